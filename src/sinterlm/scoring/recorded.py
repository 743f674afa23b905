"""Recorded: scores that were made elsewhere, looked up in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from sinterlm.errors import InputError
from sinterlm.files import file_sha256
from sinterlm.records import Score, digest
from sinterlm.scoring.protocol import Exchange, no_score
from sinterlm.scoring.settings import BuildPart, ScorerSettings
from sinterlm.settings import InputPath
from sinterlm.streams import Shelf

if TYPE_CHECKING:
    from sinterlm.formats import RecordedScore

NO_RECORDED_SCORE = "no-recorded-score"


class _Recorded(NamedTuple):
    """What is kept of a recorded score."""

    value: float
    passed: bool | None
    place: str
    """File and line, for messages."""


class RecordedScores(ScorerSettings):
    """Scores made elsewhere, joined to the answers by prompt and text, or by prompt, source and index."""

    kind: Literal["recorded"]
    path: InputPath
    """The file of scores, relative to the recipe."""
    missing: Literal["error", "drop"] = "error"
    """What happens to an answer that the file does not score: the run stops, or the answer is dropped as
    ``no-recorded-score``.
    """

    description: ClassVar = "scores made elsewhere, from a JSON Lines or Parquet file, joined by prompt and answer"

    @property
    def joins_by_place(self) -> bool:
        """A line without an answer's text scores the answer of its source and index."""
        return True

    def build(self, build_part: BuildPart) -> RecordedScorer:
        """The scorer; its first ``score`` reads the file."""
        return RecordedScorer(self.path, missing=self.missing)


class RecordedScorer:
    """Gives the scores that a JSON Lines or Parquet file holds.

    A line that has the answer's text scores every answer of that text to its prompt; a line without scores the answer
    of its source and index, by their names in the run. An answer's own score wins over its text's.

    Args:
        path: The file, as :func:`sinterlm.formats.read_scores` reads it.
        missing: What happens to an answer that the file does not score: ``error``, or ``drop``, which leaves it without
            a score.
    """

    def __init__(self, path: Path, *, missing: Literal["error", "drop"] = "error") -> None:
        self._path = path
        self._missing = missing

    @cached_property
    def identity(self) -> str:
        """Names the file's content and what happens to answers that it does not score."""
        content = file_sha256(self._path)
        return digest({"scorer": "recorded", "content": content, "missing": self._missing})

    @property
    def needs_answers(self) -> bool:
        """Open prompts have scores as well."""
        return False

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Look every answer up.

        Raises:
            InputError: An answer has two scores, or it has none and such answers are not dropped.
        """
        found = [self._find(entry) for entry in exchanges]
        missing = [entry for entry, recorded in zip(exchanges, found, strict=True) if recorded is None]
        if missing and self._missing == "error":
            raise InputError(
                f"{self._path}: no score for {len(missing)} of {len(exchanges)} answers, e.g. {_describe(missing[0])}; "
                "expected a line with its `prompt_id` or `prompt`, its `response` (or `source` and `index`) and "
                "`score`; with `missing: drop` such answers are set aside"
            )
        return [self._score_one(entry, recorded) for entry, recorded in zip(exchanges, found, strict=True)]

    def close(self) -> None:
        """Forget the scores that were read."""
        self.__dict__.pop("_scores", None)

    def _score_one(self, exchange: Exchange, recorded: _Recorded | None) -> Score:
        if recorded is None:
            return no_score(exchange, self.identity, NO_RECORDED_SCORE, f"{self._path.name} has none", {})
        return Score(exchange.response.id, self.identity, recorded.value, recorded.passed)

    def _find(self, exchange: Exchange) -> _Recorded | None:
        return next((found for key in _keys_of(exchange) if (found := self._scores.get(key))), None)

    @cached_property
    def _scores(self) -> Shelf[_Recorded]:
        from sinterlm.formats import read_scores

        scores: Shelf[_Recorded] = Shelf()
        for recorded in read_scores(self._path):
            same = scores.setdefault(_key_of(recorded), _Recorded(recorded.value, recorded.passed, recorded.place))
            if (same.value, same.passed) != (recorded.value, recorded.passed):
                raise InputError(
                    f"{recorded.place}: scores an answer differently from {same.place} ({recorded.value:g}, not "
                    f"{same.value:g}); expected one score for one answer: name answers of one text by `source` and "
                    "`index` instead of `response`"
                )
        return scores


def _key_of(recorded: RecordedScore) -> str:
    by, prompt = ("content", recorded.content_hash or "") if recorded.prompt_id is None else ("id", recorded.prompt_id)
    return _key(by, prompt, [recorded.source, recorded.index] if recorded.response is None else recorded.response)


def _keys_of(exchange: Exchange) -> Iterator[str]:
    """The keys under which the answer's score may be found, the most exact first."""
    prompt, response = exchange
    for answer in ([response.source, response.index], response.content.strip()):
        yield _key("id", prompt.id, answer)
        yield _key("content", prompt.content_hash, answer)


def _key(by: str, prompt: str, answer: object) -> str:
    """Names a prompt, by ``id`` or ``content``, and an answer to it, by its text or by its source and index."""
    return digest([by, prompt, answer])


def _describe(exchange: Exchange) -> str:
    response = exchange.response
    return f"prompt {exchange.prompt.id}, source {response.source}, index {response.index}"
