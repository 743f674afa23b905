"""The engines that a recipe can name: those that come with Sinter, and those of installed packages.

A new one is a file beside this one and a row here, or a package with an entry point in the group ``sinterlm.engines``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sinterlm.components import union_of, with_installed
from sinterlm.sampling.batch import BatchSource
from sinterlm.sampling.endpoint_engine import EndpointSource
from sinterlm.sampling.managed import ManagedSource
from sinterlm.sampling.recorded import RecordedSource
from sinterlm.sampling.settings import EngineSettings
from sinterlm.sampling.transformers_engine import TransformersSource

ENGINES: dict[str, type[EngineSettings]] = with_installed(
    "sinterlm.engines",
    {
        "transformers": TransformersSource,
        "endpoint": EndpointSource,
        "managed": ManagedSource,
        "batch": BatchSource,
        "recorded": RecordedSource,
    },
    EngineSettings,
)

if TYPE_CHECKING:
    Source = EngineSettings
else:
    Source = union_of(ENGINES, "engine")
    """The forms of a source's mapping, told apart by ``engine``."""
