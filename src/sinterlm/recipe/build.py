"""The only place where configuration meets components: a recipe's mappings in, engines, scorers and policies out."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from sinterlm.models import Fingerprint, fingerprint
from sinterlm.models.settings import ChatModel
from sinterlm.objectives.named import resolve_objective
from sinterlm.recipe.schema import ObjectiveSettings
from sinterlm.records import Candidates, SamplingSettings, Selection
from sinterlm.sampling.engines import Source
from sinterlm.sampling.protocol import Engine
from sinterlm.scoring.settings import ScorerSettings
from sinterlm.selection.settings import SelectionPolicy
from sinterlm.settings import Settings


def build_engine(
    config: Source,
    *,
    location: str | None = None,
    settings: SamplingSettings | None = None,
    on_loaded: Callable[[str], None] | None = None,
) -> Engine:
    """See :meth:`~sinterlm.sampling.settings.EngineSettings.build`."""
    return config.build(location=location, settings=settings, on_loaded=on_loaded)


def engine_identity(
    config: Source, *, location: str | None, settings: SamplingSettings | None, fingerprint: Fingerprint = fingerprint
) -> str | None:
    """See :meth:`~sinterlm.sampling.settings.EngineSettings.identity`."""
    return config.identity(location=location, settings=settings, fingerprint=fingerprint)


def template_options(config: ScorerSettings | Source) -> dict[str, Any]:
    """What a model's mapping says of its chat template, as far as it decides the text; see ``describe_options``."""
    return config.template_options if isinstance(config, ChatModel) else {}


def build_policy(config: SelectionPolicy, *, seed: int, stage: str) -> Callable[[Iterable[Candidates]], Selection]:
    """The selection policy of a ``select:`` mapping, as a function of the candidates alone."""
    return functools.partial(config.select, seed=seed, stage=stage)


def build_hyperparameters(objective: ObjectiveSettings) -> dict[str, Any]:
    """Every hyper-parameter of the objective: what the recipe gives, over the table's defaults."""
    return dict(resolve_objective(objective.kind, objective.given).values)


def _arguments(config: Settings) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields if name not in ("kind", "engine")}


def _component(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
