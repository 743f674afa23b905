"""The only place where configuration meets components: a recipe's mappings in, engines, scorers and policies out."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from sinterlm.chat import FewShot
from sinterlm.models import fingerprint
from sinterlm.models.settings import ChatModel
from sinterlm.objectives.named import resolve_objective
from sinterlm.recipe.load import load_few_shot
from sinterlm.recipe.schema import AskedModel, ObjectiveSettings, PromptFormat, Sampling, Source
from sinterlm.records import Candidates, SamplingSettings, Selection
from sinterlm.sampling.identity import Fingerprint
from sinterlm.sampling.protocol import Engine
from sinterlm.sampling.table import ENGINES
from sinterlm.scoring.scorers import Scorer
from sinterlm.selection.settings import SelectionPolicy
from sinterlm.settings import Settings


def build_settings(sampling: Sampling, *, seed: int) -> SamplingSettings:
    """The settings of one model's training samples; ``seed`` is the recipe's, for models that name none."""
    return SamplingSettings(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        seed=seed if sampling.seed is None else sampling.seed,
        repetition_penalty=sampling.repetition_penalty,
    )


def greedy(settings: SamplingSettings, *, max_new_tokens: int | None = None) -> SamplingSettings:
    """The settings of an evaluation answer: the likeliest token at every step, so no seed either."""
    return SamplingSettings(
        temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens or settings.max_new_tokens, seed=0
    )


def build_few_shot(prompt: PromptFormat) -> FewShot | None:
    """The few-shot prompt that the model answers through; None where it is asked by its chat template."""
    return load_few_shot(prompt.few_shot) if prompt.few_shot else None


def build_engine(
    config: Source,
    *,
    location: str | None = None,
    settings: SamplingSettings | None = None,
    on_loaded: Callable[[str], None] | None = None,
) -> Engine:
    """An engine that samples one model.

    Args:
        config: The model's mapping in the recipe.
        location: Weights to use instead of the mapping's own (a trained target).
        settings: How to sample; for models that are asked.
        on_loaded: Told where and in which precision the weights were loaded; for models that are asked.
    """
    arguments = _engine_arguments(config, location, settings)
    if isinstance(config, AskedModel):
        arguments["on_loaded"] = on_loaded
    engine: Engine = _component(ENGINES[config.engine].path)(**arguments)
    return engine


def engine_identity(
    config: Source, *, location: str | None, settings: SamplingSettings | None, fingerprint: Fingerprint = fingerprint
) -> str | None:
    """The identity of the engine that :func:`build_engine` would build, without building it.

    None where ``fingerprint`` does not know the weights, or a file of answers is not there.
    """
    arguments = _engine_arguments(config, location, settings)
    identity: str | None = _component(ENGINES[config.engine].identity)(**arguments, fingerprint=fingerprint)
    return identity


def template_options(config: Scorer | Source) -> dict[str, Any]:
    """What a model's mapping says of its chat template, as far as it decides the text; see ``describe_options``."""
    return config.template_options if isinstance(config, ChatModel) else {}


_NOT_THE_ENGINES = ("prompt", "sampling", "num_samples", "samples", "active_billions", "domains")
"""Keys of a model's mapping that say how much is asked of it, and how; or that are for plans."""


def _engine_arguments(config: Source, location: str | None, settings: SamplingSettings | None) -> dict[str, Any]:
    own = {name: value for name, value in _arguments(config).items() if name not in _NOT_THE_ENGINES}
    if isinstance(config, AskedModel):
        own |= {"few_shot": build_few_shot(config.prompt), "system": config.prompt.system, "settings": settings}
    return own | ({"model": location} if location else {})


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
