"""The engines a recipe can name. A new one is a file beside this one, a row here, a model in ``recipe/schema.py``."""

from __future__ import annotations

from typing import NamedTuple


class EngineRow(NamedTuple):
    """Where an engine stands, and what it is in one line."""

    path: str
    """``module:class``; nothing is imported before an engine is built. It is called with the other keys of the source's
    mapping; with ``few_shot``, ``system`` and ``settings`` in place of ``prompt`` and ``sampling``."""
    identity: str
    """``module:function``: names the engine's answers without building it; called with the same arguments."""
    description: str


ENGINES = {
    "transformers": EngineRow(
        "sinterlm.sampling.transformers_engine:TransformersEngine",
        "sinterlm.sampling.identity:transformers_identity",
        "a model in this process, on the CPU or one GPU: a folder, a hub name, or a GGUF file in a package",
    ),
    "recorded": EngineRow(
        "sinterlm.sampling.recorded:RecordedEngine",
        "sinterlm.sampling.identity:recorded_identity",
        "answers made elsewhere, from a JSON Lines or Parquet file, joined by prompt id or text",
    ),
}
