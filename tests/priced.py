"""An engine behind a price: nothing is served, but settings, ledger and plan see what a served model shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal

from sinterlm.models import Fingerprint, fingerprint
from sinterlm.records import SamplingSettings, Usage, digest
from sinterlm.sampling.protocol import Answered, Engine, Generation, Item
from sinterlm.sampling.settings import AskedModel


class Priced(AskedModel):
    """A served model at 2 per million tokens read (1 if cached) and 8 per million written."""

    runs_elsewhere: ClassVar = True

    engine: Literal["priced"] = "priced"
    has_price: bool = True
    in_flight: int = 3
    """Requests at once."""

    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str:
        """Names the settings alone."""
        return digest(
            [self.model_dump(mode="json", exclude={"has_price", "in_flight"}), settings and settings.max_new_tokens]
        )

    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], Any] | None = None,
    ) -> Engine:
        """The engine that answers by itself."""
        return PricedEngine(self)

    def money(self, usage: Usage) -> float | None:
        """By the token."""
        if not self.has_price:
            return None
        read = usage.prompt_tokens - usage.cached_tokens
        return (2 * read + usage.cached_tokens + 8 * usage.new_tokens) / 1e6


class PricedEngine:
    """Answers every item with its index, for 10 tokens read and 5 written: 60 millionths.

    The oldest request in flight is answered first, and a next one is begun after it.
    """

    def __init__(self, settings: Priced) -> None:
        self._settings = settings

    def stream(self, items: Iterable[Item]) -> Iterator[Answered]:
        """Answer every item."""
        rest = iter(items)
        flying = list(islice(rest, self._settings.in_flight))
        while flying:
            prompt, index = flying.pop(0)
            generation = Generation(prompt.id, index, f"answer {index}", "stop", 10, 5)
            yield Answered([generation], usage=Usage(1, 10, 0, 5), notes=["limit 3"] if index else [])
            flying += islice(rest, 1)

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """Not used by an engine that streams."""
        raise NotImplementedError

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Not used by an engine that streams."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""
