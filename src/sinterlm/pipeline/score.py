"""Scores into the store: only answers without a score are scored, and every batch is one transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing

from sinterlm.errors import InputError, ToleranceError
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.progress import Task
from sinterlm.pipeline.sample import answers_to
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.pipeline.stored_scorer import Account, Item, StoredScorer
from sinterlm.records import Dropped, Prompt, Score, Scored, Spent
from sinterlm.scoring.protocol import INVALID_VERDICT, NO_SCORE, NOT_A_NUMBER, Exchange, Given, Scorer
from sinterlm.scoring.settings import ScorerSettings, build_scorer
from sinterlm.streams import Spool, chunks

WINDOW = 4096
"""Answers in memory at a time. Answers of similar length are scored together, among these."""
READING_BATCH = 64
"""Prompts whose scores are read at a time."""


Needed = Callable[[SamplingRequest, Sequence[Exchange]], Sequence[Exchange]]
"""Chooses, from a model's answers to one prompt, those that need a score."""


def score(
    run: RunContext,
    stage: str,
    config: ScorerSettings,
    requests: Sequence[SamplingRequest],
    prompts: Sequence[Prompt],
    needed: Needed | None = None,
) -> StageResult:
    """Score every answer without a stored score. The batches are the same whatever is stored.

    Args:
        run: The run.
        stage: Named in what is dropped.
        config: The scorer.
        requests: Whose answers.
        prompts: To which prompts.
        needed: Which answers need a score; by default all.

    Raises:
        ToleranceError: No answer got a number, or a judge gave no verdict on more answers than the recipe tolerates.
    """
    tally = _Tally(stage)

    def wanted(request: SamplingRequest, entries: Sequence[Exchange]) -> Sequence[Exchange]:
        chosen = needed(request, entries) if needed else entries
        tally.num_left += len(entries) - len(chosen)
        return chosen

    answered = (
        entry
        for request in requests
        for entries in answers_to(run, request, prompts)
        for entry in wanted(request, entries)
    )
    at_most = sum(len(request.asked(prompts)) * request.num_samples for request in requests)
    with closing(stored_scorer(run, config, stage)) as scorer, ExitStack() as progress:
        task: Task | None = None
        for window in chunks(answered, WINDOW):
            scores, num_missing = scorer.look_up(window)
            tally.num_missing += num_missing
            if num_missing and task is None:
                task = progress.enter_context(run.reporter.task(config.kind, at_most, "answers"))
                task.advance(tally.num_answers)
            for batch in chunks(_by_length(window), scorer.answers_at_once):
                lacking = [place for place in batch if scores[place] is None]
                if task:
                    task.advance(len(batch) - len(lacking))
                if task and lacking:
                    found = scorer.score([window[place] for place in lacking], task.advance)
                    for place, given in zip(lacking, found, strict=True):
                        scores[place] = given
            for entry, score in zip(window, scores, strict=True):
                assert score is not None
                tally.add(entry, score)
    tally.check(config)
    return StageResult(tally.counts, tally.dropped)


class _Tally:
    """The figures of a stage, and the answers without a score."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self.num_answers = 0
        self.num_missing = 0
        """Answers without a score when the stage began."""
        self.num_left = 0
        """Answers that need no score."""
        self._num_numbers = 0
        self._total = 0.0
        self.dropped: Spool[Dropped] = Spool()
        self._first: dict[str, Dropped] = {}
        """The first drop for each reason."""
        self._num_invalid = 0

    def add(self, exchange: Exchange, score: Score) -> None:
        """Count an answer."""
        self.num_answers += 1
        if not math.isnan(score.value):
            self._num_numbers += 1
            self._total += score.value
            return
        reason, problem = score.detail.get("reason", NO_SCORE), score.detail.get("problem", NOT_A_NUMBER)
        detail = f"{exchange.response.source} on {exchange.prompt.id}: {problem}"
        drop = Dropped(exchange.response.id, self._stage, reason, detail)
        self.dropped.append(drop)
        self._first.setdefault(reason, drop)
        self._num_invalid += reason == INVALID_VERDICT

    @property
    def counts(self) -> dict[str, float]:
        """The figures by name."""
        counts: dict[str, float] = {"answers": self.num_answers, "scored now": self.num_missing}
        if self.num_left:
            counts["not needed"] = self.num_left
        if self.dropped:
            counts["without a score"] = len(self.dropped)
        if self._num_invalid:
            counts["invalid verdicts"] = self._num_invalid
        if self._num_numbers:
            counts["mean score"] = round(self._total / self._num_numbers, 4)
        return counts

    def check(self, config: ScorerSettings) -> None:
        """Refuse a result in which too many answers have no score.

        Raises:
            ToleranceError: See :func:`score`.
        """
        if self.num_answers and not self._num_numbers:
            first = next(iter(self._first.values()))
            raise ToleranceError(
                f"scorer {config.kind}: none of the {self.num_answers} answers got a number for a score; the first: "
                f"{first.reason}, {first.detail}"
            )
        if self._num_invalid > config.tolerated_invalid * self.num_answers:
            raise ToleranceError(
                f"the judge gave no valid verdict on {self._num_invalid} of {self.num_answers} answers, more than "
                f"max_invalid ({config.tolerated_invalid:g}) tolerates; the first: "
                f"{self._first[INVALID_VERDICT].detail}; raise max_tokens or max_invalid, or use another "
                "response_format or judge"
            )


def _by_length(window: Sequence[Exchange]) -> list[int]:
    """The places of a window's answers, the longest first.

    So a model with a token budget gets full batches, and running out of memory shows early.
    """
    return sorted(range(len(window)), key=lambda place: _length(window[place]), reverse=True)


def _length(exchange: Exchange) -> int:
    return sum(len(message.content) for message in exchange.prompt.messages) + len(exchange.response.content)


class _StageAccount(Account):
    """Writes what scores cost to the ledger, and stops within the budget."""

    def __init__(self, run: RunContext, stage: str, config: ScorerSettings) -> None:
        self._run = run
        self._stage = stage
        self._config = config

    def supply(self, work: Iterable[Item]) -> Iterator[Item]:
        """Pass on work until the run is halted or its budget is reached."""
        return self._run.within_budget(work)

    def enter(self, given: Given, seconds: float) -> None:
        """Write usage and notes of scores that were asked of servers."""
        run, title = self._run, self._config.title
        if given.usage.requests:
            money = self._config.money(given.usage) or 0.0
            run.spend(Spent(self._stage, title, given.usage, len(given.scores), money, seconds))
        run.store.add_notes(run.fusion.run_name, self._stage, title, given.notes)
        for note in given.notes:
            run.reporter.say(f"  {title}: {note}")

    def close(self) -> None:
        """Raise why the run is halted.

        Raises:
            BudgetError: The budget is reached.
        """
        self._run.halt.raise_reason()


def stored_scorer(run: RunContext, config: ScorerSettings, stage: str = "") -> StoredScorer:
    """Build the scorer of a ``scorer:`` mapping. It and the parts of a combination keep their scores in the store.

    Args:
        run: The run.
        config: The mapping.
        stage: The stage to whose account scores go that are asked of servers.

    Raises:
        InputError: A file that the scorer reads is missing: its scores are not found without it.
    """
    for part in config.walk():
        for key, path in part.files().items():
            if not path.is_file():
                raise InputError(
                    f"{path}: there is no such file ({key} of the scorer {part.kind}), and scores are stored by what "
                    "it contains; put it back"
                )

    def wrap(scorer: Scorer, config: ScorerSettings) -> StoredScorer:
        worker, account = run.executor.scorer(scorer, config), _StageAccount(run, stage, config)
        return StoredScorer(scorer, run.store, worker=worker, by_place=config.joins_by_place, account=account)

    wrapped = build_scorer(config, wrap=wrap)
    assert isinstance(wrapped, StoredScorer)
    return wrapped


def scored_answers_to(
    run: RunContext, scorer: StoredScorer, requests: Sequence[SamplingRequest], prompts: Sequence[Prompt]
) -> Iterator[tuple[Scored, ...]]:
    """Yield the stored answers of several participants to each of ``prompts``, in order, with their stored scores.

    Answers without a score are left out. Answers and scores are read lazily, a few hundred at a time.
    """
    answers = [answers_to(run, request, prompts) for request in requests]
    for start in range(0, len(prompts), READING_BATCH):
        batch = [
            [entry for entries in answers for entry in next(entries)] for _ in prompts[start : start + READING_BATCH]
        ]
        scores = iter(scorer.stored([entry for entries in batch for entry in entries]))
        for entries in batch:
            yield tuple(Scored(entry.response, score) for entry in entries if (score := next(scores)))


def scored_answers(
    run: RunContext, config: ScorerSettings, request: SamplingRequest, prompts: Sequence[Prompt]
) -> dict[str, tuple[Scored, ...]]:
    """The stored answers of one participant with their stored scores, by prompt id; prompts without any are missing."""
    with closing(stored_scorer(run, config)) as scorer:
        scored = scored_answers_to(run, scorer, [request], prompts)
        return {prompt.id: answers for prompt, answers in zip(prompts, scored, strict=True) if answers}
