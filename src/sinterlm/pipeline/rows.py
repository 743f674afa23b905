"""From scored answers to training rows: joins them by prompt, applies the recipe's policy, writes the rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from sinterlm.chat import with_system
from sinterlm.errors import ToleranceError
from sinterlm.formats import read_row_ids, write_rows
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.score import scored_answers_to, stored_scorer
from sinterlm.pipeline.stage import RunContext, StageResult, count_reasons
from sinterlm.recipe.build import build_policy
from sinterlm.recipe.schema import ExtraPrompts
from sinterlm.records import Candidates, Prompt
from sinterlm.scoring.scorers import Scorer
from sinterlm.selection.split import hand_over


def candidates_of(
    run: RunContext,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    *,
    sources: Sequence[SamplingRequest],
    targets: Sequence[SamplingRequest] = (),
) -> Iterator[Candidates]:
    """Every prompt with all its scored answers; the prompt as the target is asked it, its system prompt included.

    Prompt by prompt, so that the answers of only a few are in memory.
    """
    system = run.fusion.recipe.target.prompt.system
    with closing(stored_scorer(run, scorer)) as stored:
        of_sources, of_targets = (scored_answers_to(run, stored, asks, prompts) for asks in (sources, targets))
        for prompt, from_sources, from_target in zip(prompts, of_sources, of_targets, strict=True):
            yield Candidates(
                prompt=replace(prompt, messages=with_system(prompt.messages, system)),
                sources=from_sources,
                target=from_target,
            )


def count_name(extra: ExtraPrompts) -> str:
    """What the number of a fine-tuning's extra prompts is called among the counts of its selection."""
    return f"prompts from {extra.dropped_by}"


def select(run: RunContext, name: str) -> StageResult:
    """Select the rows of one training (``sft`` or a preference method) and write them to ``rows/NAME.parquet``.

    A fine-tuning with ``extra_prompts`` learns from those too, and no other preference method that starts from it does.

    Raises:
        ToleranceError: No prompt gives a row.
    """
    fusion = run.fusion
    stage = f"select-{name}"
    part = "sft" if name in fusion.recipe.fine_tunings else "preference"
    prompts: Sequence[Prompt] = run.store.prompts(fusion.run_name, part)
    moved: dict[str, float] = {}
    if extra := fusion.extra_prompts(name):
        kept, handed_over = hand_over(
            run.store.prompts(fusion.run_name, "preference"),
            with_row=read_row_ids(fusion.rows_path(extra.dropped_by)),
            domains=extra.domains,
        )
        prompts = [*prompts, *handed_over] if part == "sft" else kept
        moved[count_name(extra) if part == "sft" else "prompts left to SFT"] = len(handed_over)
    compared = fusion.compared(name)
    candidates = candidates_of(
        run,
        prompts,
        fusion.recipe.scorer,
        sources=[fusion.for_training(source) for source in fusion.sources],
        targets=[fusion.for_training(compared)] if compared else [],
    )
    selection = build_policy(fusion.trainings[name].select, seed=fusion.recipe.seed, stage=stage)(candidates)
    if not selection.rows:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in count_reasons(selection.dropped).items())
        raise ToleranceError(
            f"{stage}: none of the {len(prompts)} prompts for it gives a training row ({reasons}); "
            "look at the answers and scores, bring more prompts or samples, or other sources"
        )
    write_rows(fusion.rows_path(name), selection.rows)
    num_dropped = len(prompts) - len(selection.rows)
    counts: dict[str, float] = {"rows": len(selection.rows), "dropped": num_dropped}
    if num_left_out := len(selection.dropped) - num_dropped:
        counts["sources left out of rows"] = num_left_out
    return StageResult(counts | moved, selection.dropped)
