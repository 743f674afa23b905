"""The model card: where a trained model comes from, by which method, from whose answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCardData

from sinterlm.models import GGUF_PREFIX
from sinterlm.objectives.table import ResolvedObjective
from sinterlm.records import TrainingRow

FRAMEWORKS = ("sinterlm", "transformers", "torch", "accelerate", "tokenizers")


@dataclass(frozen=True, slots=True)
class CardDetails:
    """What only the caller knows of a model's origin."""

    base_model: str
    """The model at the beginning of all training, as the recipe names it: a hub name, a folder or a GGUF file."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further lines, e.g. ``{"Scorer": "exact match"}``."""


def source_shares(rows: Sequence[TrainingRow]) -> dict[str, float]:
    """The share of every source in the answers that are learnt from, largest first."""
    counts = Counter(
        response.source
        for row in rows
        for response in row.responses
        if response.source and response.role in (None, "chosen", "chosen_source")
    )
    return {source: count / counts.total() for source, count in counts.most_common()}


def render_card(
    details: CardDetails,
    *,
    objective: ResolvedObjective,
    arguments: Mapping[str, object],
    rows: Sequence[TrainingRow],
    seed: int,
) -> str:
    """The text of the card, metadata included."""
    is_folder = Path(details.base_model).is_dir()
    base_model = Path(details.base_model).name if is_folder else details.base_model
    metadata = ModelCardData(
        # The hub takes a name of its own only.
        base_model=None if is_folder or base_model.startswith(GGUF_PREFIX) else base_model,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sinterlm", "model-fusion", objective.name, "generated_from_trainer"],
    )
    paper = f" ({objective.objective.paper})" if objective.objective.paper else ""
    settings = {**objective.values, **arguments, "seed": seed}
    sections = {
        "Method": f"`{objective.name}`: {objective.objective.description}{paper}, on {len(rows)} rows.",
        "Settings": _list({name: f"`{value}`" for name, value in settings.items()}),
        "Sources": _list({source: f"{share:.1%}" for source, share in source_shares(rows).items()})
        or "The rows do not name their sources.",
        "Notes": _list(details.notes),
        "Framework versions": _list({name: version(name) for name in FRAMEWORKS}),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    start = f"Trained from `{base_model}` by Sinter, which fuses what several models know into one."
    return f"---\n{metadata.to_yaml()}\n---\n\n# Fused model\n\n{start}\n\n{body}\n"


def _list(items: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in items.items())
