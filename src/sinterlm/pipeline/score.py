"""Scores into the store: only answers without a score are scored, and every batch is one transaction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from sinterlm.errors import InputError, ToleranceError
from sinterlm.pipeline.fusion import SamplingRequest
from sinterlm.pipeline.sample import answers_to
from sinterlm.pipeline.stage import RunContext, StageResult
from sinterlm.pipeline.stored_scorer import StoredScorer
from sinterlm.records import Dropped, Prompt, Scored
from sinterlm.scoring.protocol import INVALID_VERDICT, NO_SCORE, NOT_A_NUMBER, Exchange, Scorer
from sinterlm.scoring.settings import ScorerSettings, build_scorer

SCORING_BATCH = 64
"""Answers scored at a time."""
READING_BATCH = 64
"""Prompts whose scores are read at a time."""


def score(
    run: RunContext, stage: str, config: ScorerSettings, requests: Iterable[SamplingRequest], prompts: Sequence[Prompt]
) -> StageResult:
    """Score every answer without a stored score. The batches are the same whatever is stored.

    Raises:
        ToleranceError: No answer got a number, or a judge gave no verdict on more answers than the recipe tolerates.
    """
    answered = [entry for request in requests for entries in answers_to(run, request, prompts) for entry in entries]
    # Sorted by length, so that a model with a token budget gets full batches; the longest first, so that running out
    # of memory shows at once.
    by_length = sorted(answered, key=_length, reverse=True)
    with closing(stored_scorer(run, config)) as scorer:
        batches = [by_length[start : start + SCORING_BATCH] for start in range(0, len(by_length), SCORING_BATCH)]
        pending = [(batch, len(missing)) for batch in batches if (missing := scorer.missing(batch))]
        num_missing = sum(count for _, count in pending)
        if pending:
            with run.reporter.task(config.kind, num_missing, "answers") as task:
                for batch, count in pending:
                    scorer.score(batch)
                    task.advance(count)
        scores = scorer.score(answered)
    values = [score.value for score in scores if not math.isnan(score.value)]
    unscored = [(item, score) for item, score in zip(answered, scores, strict=True) if math.isnan(score.value)]
    dropped = [
        Dropped(
            item.response.id,
            stage,
            score.detail.get("reason", NO_SCORE),
            f"{item.response.source} on {item.prompt.id}: {score.detail.get('problem', NOT_A_NUMBER)}",
        )
        for item, score in unscored
    ]
    if answered and not values:
        raise ToleranceError(
            f"scorer {config.kind}: none of the {len(answered)} answers got a number for a score; the first: "
            f"{dropped[0].reason}, {dropped[0].detail}"
        )
    _check_verdicts(config, dropped, len(answered))
    counts: dict[str, float] = {"answers": len(answered), "scored now": num_missing}
    if dropped:
        counts |= {"without a score": len(dropped)}
    if invalid := sum(drop.reason == INVALID_VERDICT for drop in dropped):
        counts |= {"invalid verdicts": invalid}
    if values:
        counts["mean score"] = round(sum(values) / len(values), 4)
    return StageResult(counts, dropped)


def _length(exchange: Exchange) -> int:
    return sum(len(message.content) for message in exchange.prompt.messages) + len(exchange.response.content)


def _check_verdicts(config: ScorerSettings, dropped: Sequence[Dropped], num_answers: int) -> None:
    tolerated = config.tolerated_invalid
    invalid = [drop for drop in dropped if drop.reason == INVALID_VERDICT]
    if len(invalid) > tolerated * num_answers:
        raise ToleranceError(
            f"the judge gave no valid verdict on {len(invalid)} of {num_answers} answers, more than max_invalid "
            f"({tolerated:g}) tolerates; the first: {invalid[0].detail}; raise max_tokens or max_invalid, or use "
            "another response_format or judge"
        )


def stored_scorer(run: RunContext, config: ScorerSettings) -> StoredScorer:
    """Build the scorer of a ``scorer:`` mapping. It and the parts of a combination keep their scores in the store.

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
        return StoredScorer(scorer, run.store, by_place=config.joins_by_place)

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
