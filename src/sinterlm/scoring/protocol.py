"""What every scorer promises: responses in, one Score each out, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sinterlm.records import Prompt, Response, Score, Usage

NO_SCORE, NOT_A_NUMBER = "no-score", "the score is no number"
"""Reason and problem of an answer without a score, if the scorer says no more."""
INVALID_VERDICT = "invalid-verdict"
"""Reason of an answer on which a judge gave no verdict; a recipe says how many of these it tolerates."""

SCORER_FAILED = "scorer-failed"
"""Reason of an answer on which the scorer itself failed; it is not stored, so that the next run tries again."""


class Exchange(NamedTuple):
    """A response with the prompt that it answers."""

    prompt: Prompt
    response: Response


def no_score(exchange: Exchange, scorer: str, reason: str, problem: str, detail: Mapping[str, Any]) -> Score:
    """The score of an answer that could not be scored: no number, and why.

    No policy selects such an answer. The pipeline counts them by ``reason``, a short fixed phrase as that of a
    :class:`~sinterlm.records.Dropped`, and shows the ``problem`` of each.
    """
    return Score(exchange.response.id, scorer, math.nan, None, {"reason": reason, "problem": problem, **detail})


class Scorer(Protocol):
    """Gives every response a value. Cheap to construct: models are loaded by the first :meth:`score`."""

    @property
    def identity(self) -> str:
        """Names everything that decides a score: kind, settings, weights, template."""
        ...

    @property
    def needs_answers(self) -> bool:
        """Whether a prompt must have accepted answers to be scored; in the store they are part of every score's key."""
        ...

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Score one batch; raises InputError if a prompt lacks what the scorer needs."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class Given(NamedTuple):
    """Scores as they come, and what they cost."""

    scores: Sequence[tuple[int, Score]]
    """Each with the position of its answer."""
    usage: Usage = Usage()
    """What was used since the last ones."""
    notes: Sequence[str] = ()
    """What was noticed on the way, e.g. the limit of a server: sentences for the log and the report."""


Supply = Callable[[Iterable[Any]], Iterator[Any]]
"""Passes on items one by one, and may end before them."""


@runtime_checkable
class StreamsScores(Protocol):
    """An optional part of a scorer that asks servers: every score is kept as it comes, and so paid for once."""

    def stream(self, exchanges: Sequence[Exchange], supply: Supply = iter) -> Iterator[Given]:
        """As :meth:`Scorer.score`, but in any order. What was given before an error counts.

        Args:
            exchanges: The answers.
            supply: Passes on the work. If it ends early, what is in flight is finished, and scores are missing.
        """
        ...


def stream_scores(scorer: Scorer, exchanges: Sequence[Exchange], supply: Supply = iter) -> Generator[Given, None, None]:
    """Let a scorer score, whether it gives scores as they come or all at once."""
    if isinstance(scorer, StreamsScores):
        yield from scorer.stream(exchanges, supply)
    else:
        yield Given(list(enumerate(scorer.score(exchanges))))


def in_order(given: Iterator[Given]) -> list[Score]:
    """All scores, in the order of their answers."""
    scores = dict(pair for some in given for pair in some.scores)
    return [scores[place] for place in range(len(scores))]


ANSWERS_AT_ONCE = 64
"""How many answers a scorer is given at once, if it says nothing else."""


@runtime_checkable
class LikesMany(Protocol):
    """An optional part of a scorer that is slowed down by few answers at a time, such as a judge behind a server."""

    @property
    def answers_at_once(self) -> int:
        """How many answers it likes to be given at once: enough to keep it busy until the last of them."""
        ...


def answers_at_once(*scorers: Scorer) -> int:
    """How many answers to give to scorers that share them: as many as one of them likes."""
    return max(scorer.answers_at_once if isinstance(scorer, LikesMany) else ANSWERS_AT_ONCE for scorer in scorers)
