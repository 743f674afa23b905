"""An engine behind a price: nothing is served, but settings, ledger and plan see what a served model shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from sinterlm.models import Fingerprint, fingerprint
from sinterlm.records import SamplingSettings, Usage, digest
from sinterlm.sampling.protocol import Engine
from sinterlm.sampling.settings import AskedModel


class Priced(AskedModel):
    """A served model at 2 per million tokens read (1 if cached) and 8 per million written."""

    runs_elsewhere: ClassVar = True

    engine: Literal["priced"] = "priced"
    has_price: bool = True

    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str:
        """Names the settings alone."""
        return digest([self.model_dump(mode="json"), settings and settings.max_new_tokens])

    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], Any] | None = None,
    ) -> Engine:
        """There is no server."""
        raise NotImplementedError

    def money(self, usage: Usage) -> float | None:
        """By the token."""
        if not self.has_price:
            return None
        read = usage.prompt_tokens - usage.cached_tokens
        return (2 * read + usage.cached_tokens + 8 * usage.new_tokens) / 1e6
