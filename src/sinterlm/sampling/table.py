"""The engines a recipe can name. A new one is a file beside this one, a row here, a model in ``recipe/schema.py``."""

from __future__ import annotations

from typing import NamedTuple


class EngineRow(NamedTuple):
    """Where an engine stands, and what it is in one line."""

    path: str
    """``module:class``; nothing is imported before an engine is built."""
    description: str


ENGINES = {
    "transformers": EngineRow(
        "sinterlm.sampling.transformers_engine:TransformersEngine",
        "a model in this process, on the CPU or one GPU: a folder, a hub name, or a GGUF file in a package",
    ),
    "recorded": EngineRow(
        "sinterlm.sampling.recorded:RecordedEngine",
        "answers made elsewhere, from a JSON Lines or Parquet file, joined by prompt id or text",
    ),
}
