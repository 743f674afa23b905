"""The model card: where a trained model comes from, by which method, from whose answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCardData

from sinterlm.models import GGUF_PREFIX, hub_revision, plain_name, split_revision
from sinterlm.objectives.named import ResolvedObjective
from sinterlm.records import TrainingRow

FRAMEWORKS = ("sinterlm", "transformers", "torch", "accelerate", "tokenizers")


@dataclass(frozen=True, slots=True)
class CardDetails:
    """What only the caller knows about a model's origin."""

    base_model: str
    """The model before any training, as the recipe names it: a hub name, a folder or a GGUF file."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further lines, e.g. ``{"Scorer": "exact match"}``."""


def source_shares(rows: Sequence[TrainingRow]) -> dict[str, float]:
    """The share of each source in the answers that the model learns from, largest first."""
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
    base_model = plain_name(details.base_model)
    is_local = base_model != details.base_model or base_model.startswith(GGUF_PREFIX)
    repository, pinned = split_revision(base_model)
    revision = hub_revision(details.base_model) or pinned
    metadata = ModelCardData(
        # The hub accepts only the name of one of its own models.
        base_model=None if is_local else repository,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sinterlm", "model-fusion", objective.name, "generated_from_trainer"],
    )
    paper = f" ({objective.objective.paper})" if objective.objective.paper else ""
    settings = {**objective.values, **{key: _without_folder(value) for key, value in arguments.items()}, "seed": seed}
    sections = {
        "Method": f"`{objective.name}`: {objective.objective.description}{paper}, on {len(rows)} rows.",
        "Settings": _list({name: f"`{value}`" for name, value in settings.items()}),
        "Sources": _list({source: f"{share:.1%}" for source, share in source_shares(rows).items()})
        or "The rows do not name their sources.",
        "Notes": _list(details.notes),
        "Framework versions": _list({name: version(name) for name in FRAMEWORKS}),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    at = f" at revision `{revision}`" if revision else ""
    start = f"Trained from `{repository}`{at} by Sinter, which fuses what several models know into one."
    return f"---\n{metadata.to_yaml()}\n---\n\n# Fused model\n\n{start}\n\n{body}\n"


def _without_folder(value: object) -> object:
    """A setting's value; for a file on this machine (a DeepSpeed configuration), only its name."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _list(items: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in items.items())
