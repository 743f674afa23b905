"""The engines that a recipe can name: a class of settings each, in one file with the engine's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sinterlm.components import union_of, with_installed
from sinterlm.sampling.recorded import RecordedSource
from sinterlm.sampling.settings import EngineSettings
from sinterlm.sampling.transformers_engine import TransformersSource

BUILT_IN: Mapping[str, type[EngineSettings]] = {
    "transformers": TransformersSource,
    "recorded": RecordedSource,
}
ENGINES = with_installed("sinterlm.engines", BUILT_IN, EngineSettings)

if TYPE_CHECKING:
    Source = EngineSettings
else:
    Source = union_of(ENGINES, "engine")
"""A model's mapping in a recipe; its key ``engine`` picks the class."""
