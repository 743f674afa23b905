"""What is told of a run at its end, and again on demand: its summary, and the fused model with two examples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from sinterlm.chat import with_system
from sinterlm.pipeline.fusion import Fusion, Participant, load_fusion
from sinterlm.pipeline.outputs import require_undamaged
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.report import greedy_answers, read_summary, write_run_report
from sinterlm.pipeline.stage import RunContext
from sinterlm.pipeline.stages import build_stages
from sinterlm.records import Message, Prompt, Scored
from sinterlm.store import Store


class Example(NamedTuple):
    """One held-out question, with the target's answer before and after the fusion."""

    prompt: Prompt
    before: Scored
    after: Scored


class FusedModel(NamedTuple):
    """The model that a run has made, and how to ask it something."""

    name: str
    """As in the tables, e.g. ``target-sft-wrpo``."""
    location: str
    """The folder to load it from."""
    target: str
    """The name of the model that it was before."""
    has_others: bool
    """Whether other methods' models lie beside it."""
    examples: Sequence[Example]
    """The question that gained most, and the one that gained least or lost; empty if nothing is held out."""
    messages: Sequence[Message]
    """What to ask it: the first example with the recipe's system prompt."""


def rewrite_report(folder: Path) -> dict[str, Any]:
    """Write the report of a run again from its folder, and return its summary."""
    fusion = load_fusion(folder)
    with closing(Store(fusion.store_path, read_only=True)) as store:
        run = read_only(fusion, store)
        require_undamaged(run)
        write_run_report(run)
    return read_summary(fusion)


def read_only(fusion: Fusion, store: Store) -> RunContext:
    """A run that is only looked at."""
    stages = tuple(stage.name for stage in build_stages(fusion))
    return RunContext(fusion, store, SilentReporter(), stages=stages)


def describe_fused(fusion: Fusion) -> FusedModel | None:
    """The model that ``fusion`` has made; None if its recipe trains none."""
    fused = fusion.fused
    if fused is None:
        return None
    assert fused.location is not None
    with closing(Store(fusion.store_path, read_only=True)) as store:
        examples = _examples(read_only(fusion, store), fused)
    asked = examples[0].prompt.messages if examples else (Message("user", "..."),)
    return FusedModel(
        fused.name,
        fused.location,
        fusion.target.name,
        len(fusion.recipe.preference) > 1,
        examples,
        with_system(asked, fusion.recipe.target.prompt.system),
    )


def _examples(run: RunContext, fused: Participant) -> list[Example]:
    """The question that gained most and the one that gained least or lost; all if there are fewer than two."""
    fusion = run.fusion
    if fusion.recipe.evaluation.held_out is None:
        return []
    prompts = run.store.prompts(fusion.run_name, "held_out")
    before, after = (
        {answer.response.prompt_id: answer for answer in greedy_answers(run, fusion.for_evaluation(model), prompts)}
        for model in (fusion.target, fused)
    )
    examples = [
        Example(prompt, before[prompt.id], after[prompt.id])
        for prompt in prompts
        if prompt.id in before and prompt.id in after
    ]
    examples.sort(key=lambda example: example.before.score.value - example.after.score.value)
    return [examples[0], examples[-1]] if len(examples) > 1 else examples
