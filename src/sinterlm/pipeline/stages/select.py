"""The stages ``select-NAME``: from scored answers to the training rows of one training, in ``rows/NAME.parquet``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from sinterlm.errors import ToleranceError
from sinterlm.models import Fingerprint
from sinterlm.pipeline.candidates import candidates_of
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stage import RunContext, Shown, Stage, StageResult, count_reasons
from sinterlm.records import Prompt, Selection
from sinterlm.selection.split import hand_over
from sinterlm.selection.tally import tally_selection


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
        self.needs = (
            "score-sources",
            *(["score-target"] if self._compared else []),
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
            ToleranceError: No prompt gives a row.
        """
        from sinterlm.formats import read_row_ids, write_rows

        fusion, name, extra = run.fusion, self._training, self._extra
        part = "sft" if name in fusion.recipe.fine_tunings else "preference"
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
        compared = (fusion.for_training(self._compared),) if self._compared else ()
        candidates = candidates_of(run, prompts, fusion.answers_to(part)._replace(targets=compared))
        policy = fusion.trainings[name].select
        selection = policy.select(candidates, seed=fusion.recipe.seed, stage=self.name)
        if not selection.rows:
            reasons = "; ".join(f"{reason}: {count}" for reason, count in count_reasons(selection.dropped).items())
            raise ToleranceError(
                f"{self.name}: none of its {len(prompts)} prompts gives a training row ({reasons}); "
                "check the answers and scores, or try more prompts, more samples or other sources"
            )
        write_rows(fusion.rows_path(name), selection.rows)
        num_dropped = len(prompts) - len(selection.rows)
        counts: dict[str, float] = {"rows": len(selection.rows), "dropped": num_dropped}
        if num_left_out := len(selection.dropped) - num_dropped:
            counts["sources left out of rows"] = num_left_out
        return StageResult(counts | moved, selection.dropped)

    def show(self, run: RunContext) -> Shown:
        """What was chosen, why prompts gave no row, and how many prompts came from another method's drops."""
        selection, notes = self._read(run), list(self._notes(run))
        if selection is None:
            return Shown(fill=lambda data: replace(data, notes=[*data.notes, *notes]))
        return Shown(
            {"selections": {self._training: asdict(tally_selection(selection))}},
            lambda data: replace(data, rows={**data.rows, self._training: selection.rows}, notes=[*data.notes, *notes]),
        )

    def _read(self, run: RunContext) -> Selection | None:
        """The rows in the run's folder and the drops in the store; None before the first selection."""
        from sinterlm.formats import read_rows

        path = self._fusion.rows_path(self._training)
        dropped = [drop for drop in run.store.dropped(run.fusion.run_name) if drop.stage == self.name]
        return Selection(read_rows(path), dropped) if path.is_file() else None

    def _notes(self, run: RunContext) -> Iterator[str]:
        past = run.store.finished_stages(run.fusion.run_name).get(self.name)
        # Selections of earlier releases did not record the number.
        if self._extra and past and (number := past.counts.get(self._extra.count_name)) is not None:
            dropping = f"select-{self._extra.dropped_by}"
            yield (
                f"{number:,.0f} of the prompts that {dropping} dropped went to {self.name}; the drops of {dropping} "
                "still count them."
            )
