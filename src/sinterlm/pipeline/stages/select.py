"""The stages ``select-NAME``: from scored answers to the training rows of one training, in ``rows/NAME.parquet``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from sinterlm.errors import ToleranceError
from sinterlm.models import Fingerprint
from sinterlm.pipeline.candidates import candidates_of
from sinterlm.pipeline.fusion import GATHER, Fusion
from sinterlm.pipeline.stage import RunContext, Shown, Stage, StageResult, count_reasons
from sinterlm.records import Dropped, Prompt, TrainingRow
from sinterlm.selection.split import hand_over
from sinterlm.selection.tally import tally_rows
from sinterlm.streams import Spool, chunks

SELECTED_AT_ONCE = 64
"""Prompts that a policy is given at once, if each prompt's row depends on its own answers alone."""


class Select(Stage):
    """Selects the rows of one training: ``sft``, a method's own fine-tuning, or a preference method.

    A fine-tuning with ``extra_prompts`` also learns from these prompts, and methods that start from it do not. Its
    selection comes after that of the method that decides which prompts they are.
    """

    def __init__(self, fusion: Fusion, training: str) -> None:
        self._fusion = fusion
        self._training = training
        self._compared = fusion.compared(training)
        self._extra = fusion.extra_prompts(training)
        self.name = f"select-{training}"
        self._part = "sft" if training in fusion.recipe.fine_tunings else "preference"
        is_gathered = fusion.gathers and self._part == "preference"
        self.needs = (
            "score-sources",
            *([GATHER] if is_gathered else ["score-target"] if self._compared else []),
            *([f"select-{self._extra.dropped_by}"] if self._extra else []),
        )
        self.outputs = (fusion.rows_path(training),)

    def configuration(self, fingerprint: Fingerprint) -> object:
        """The policy, whose answers it compares, the target's system prompt, and the seed."""
        recipe, compared = self._fusion.recipe, self._compared
        return [
            self._fusion.trainings[self._training].select.model_dump(),
            *([compared and compared.name] if self._training in recipe.preference else []),
            recipe.target.prompt.system,
            recipe.seed,
            *([self._extra.model_dump()] if self._extra else []),
        ]

    def work(self, run: RunContext) -> StageResult:
        """Join answers by prompt, apply the policy and write the rows.

        Raises:
            ToleranceError: No prompt gives a row. (A preview may have none.)
        """
        from sinterlm.formats import read_row_ids, write_rows

        fusion, name, extra, part = run.fusion, self._training, self._extra, self._part
        prompts: Sequence[Prompt] = run.prompts(part)
        moved: dict[str, float] = {}
        if extra:
            kept, handed_over = hand_over(
                run.prompts("preference"),
                with_row=read_row_ids(fusion.rows_path(extra.dropped_by)),
                domains=extra.domains,
            )
            prompts = [*prompts, *handed_over] if part == "sft" else kept
            moved[extra.count_name if part == "sft" else "prompts left to SFT"] = len(handed_over)
        num_rows = 0
        dropped: Spool[Dropped] = Spool()

        def rows() -> Iterator[TrainingRow]:
            nonlocal num_rows
            for row in self.select(run, prompts, dropped):
                num_rows += 1
                yield row
            if not num_rows and fusion.trains:
                reasons = "; ".join(f"{reason}: {count}" for reason, count in count_reasons(dropped).items())
                raise ToleranceError(
                    f"{self.name}: none of its {len(prompts)} prompts gives a training row ({reasons}); "
                    "check the answers and scores, or try more prompts, more samples or other sources"
                )

        write_rows(fusion.rows_path(name), rows())
        num_dropped = len(prompts) - num_rows
        counts: dict[str, float] = {"rows": num_rows, "dropped": num_dropped}
        if num_left_out := len(dropped) - num_dropped:
            counts["sources left out of rows"] = num_left_out
        return StageResult(counts | moved, dropped)

    def select(
        self, run: RunContext, prompts: Sequence[Prompt], dropped: Spool[Dropped] | None = None
    ) -> Iterator[TrainingRow]:
        """Yield the rows that these prompts give.

        Args:
            run: The run.
            prompts: The prompts, answered and scored.
            dropped: Gets what is dropped.
        """
        fusion = run.fusion
        compared = (fusion.for_training(self._compared),) if self._compared else ()
        candidates = candidates_of(run, prompts, fusion.answers_to(self._part)._replace(targets=compared))
        policy = fusion.trainings[self._training].select
        for some in chunks(candidates, SELECTED_AT_ONCE) if policy.by_prompt else [candidates]:
            selection = policy.select(some, seed=fusion.recipe.seed, stage=self.name)
            if dropped is not None:
                for drop in selection.dropped:
                    dropped.append(drop)
            yield from selection.rows

    def show(self, run: RunContext) -> Shown:
        """What was chosen, why prompts gave no row, and how many prompts came from another method's drops."""
        from sinterlm.formats import reread_rows

        path, notes = self._fusion.rows_path(self._training), list(self._notes(run))
        if not path.is_file():
            return Shown(fill=lambda data: replace(data, notes=[*data.notes, *notes]))
        rows = reread_rows(path)
        tally = tally_rows(rows, run.store.count_dropped(run.fusion.run_name).get(self.name, {}))
        return Shown(
            {"selections": {self._training: asdict(tally)}},
            lambda data: replace(data, rows={**data.rows, self._training: rows}, notes=[*data.notes, *notes]),
        )

    def _notes(self, run: RunContext) -> Iterator[str]:
        past = run.store.finished_stages(run.fusion.run_name).get(self.name)
        # Selections of earlier releases did not record the number.
        if self._extra and past and (number := past.counts.get(self._extra.count_name)) is not None:
            dropping = f"select-{self._extra.dropped_by}"
            yield (
                f"{number:,.0f} of the prompts that {dropping} dropped went to {self.name}; the drops of {dropping} "
                "still count them."
            )
