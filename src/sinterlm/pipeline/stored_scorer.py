"""A scorer that remembers: what is in the store is not scored again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, cached_property
from typing import NamedTuple, TypeVar

from sinterlm.errors import SinterError
from sinterlm.records import Score, digest
from sinterlm.scoring.protocol import SCORER_FAILED, Exchange, Given, Scorer, answers_at_once, stream_scores
from sinterlm.scoring.thought_policy import ThoughtPolicy
from sinterlm.store import ScoreKey, Store

Item = TypeVar("Item")


class _Entry(NamedTuple):
    """An answer and its keys in the store, computed once: finding its thoughts means reading the answer."""

    exchange: Exchange
    keys: list[ScoreKey]
    """A score is kept under the first. Earlier releases kept all under the last, which names the scorer's identity."""

    @property
    def ids(self) -> tuple[str, str]:
        """The ids of the prompt and the response."""
        return self.exchange.prompt.id, self.exchange.response.id


class LookedUp(NamedTuple):
    """What the store has for some answers."""

    scores: list[Score | None]
    num_missing: int
    """Different answers without a score."""


class Account:
    """Who pays for scores that are asked of servers; this one does not count."""

    def supply(self, work: Iterable[Item]) -> Iterator[Item]:
        """Pass on work to begin, as long as it may be paid for."""
        yield from work

    def enter(self, given: Given, seconds: float) -> None:
        """Write down what scores have cost, in the transaction that keeps them.

        Args:
            given: The scores.
            seconds: How long they took.
        """

    def close(self) -> None:
        """Raise why ``supply`` has ended early, if it has."""


class StoredScorer:
    """Wraps any scorer and keeps its scores in the store, those that it gives together in one transaction.

    Args:
        scorer: Scores what the store lacks.
        store: Keeps the scores, under the scorer's identity.
        worker: Does the scorer's work in its place, e.g. on another machine.
        by_place: Whether a score may depend on the answer's source and sample index. These are then part of its key,
            because the same answer may have another place later.
        account: Pays for the scores.
    """

    def __init__(
        self,
        scorer: Scorer,
        store: Store,
        *,
        worker: Scorer | None = None,
        by_place: bool = False,
        account: Account | None = None,
    ) -> None:
        self._scorer = scorer
        self._worker = worker or scorer
        self._store = store
        self._by_place = by_place
        self._account = account or Account()
        self._name_of_place = cache(lambda *place: digest(place))

    @cached_property
    def identity(self) -> str:
        """The scorer's own, computed once: a reward model has to look up its files."""
        return self._scorer.identity

    @property
    def needs_answers(self) -> bool:
        """Whether the scorer needs accepted answers."""
        return self._scorer.needs_answers

    def stored(self, exchanges: Sequence[Exchange]) -> list[Score | None]:
        """The score of each answer in the store; None for one that the scorer has not been asked about."""
        return self._read(self._entries(exchanges))

    def has_scored(self) -> bool:
        """Whether the store has any score of this scorer, whatever it does with thoughts."""
        scorer = self._scorer
        identities = scorer.identities if isinstance(scorer, ThoughtPolicy) else [self.identity]
        return any(map(self._store.has_scores, identities))

    def look_up(self, exchanges: Sequence[Exchange]) -> LookedUp:
        """Like :meth:`stored`, with the number of answers that have no score."""
        entries = self._entries(exchanges)
        scores = self._read(entries)
        return LookedUp(scores, len(_lacking(entries, scores)))

    @property
    def answers_at_once(self) -> int:
        """How many answers the scorer likes to be given at once."""
        return answers_at_once(self._worker)

    def score(
        self, exchanges: Sequence[Exchange], on_scored: Callable[[int], object] = lambda number: None
    ) -> list[Score]:
        """Score what the store lacks and return all scores. Where the scorer failed, the next call tries again.

        Args:
            exchanges: The answers.
            on_scored: Called with the number of new scores whenever some come.
        """
        entries = self._entries(exchanges)
        scores = self._read(entries)
        if missing := _lacking(entries, scores):
            failed = self._score(missing, on_scored)
            places = [place for place, score in enumerate(scores) if score is None]
            for place, score in zip(places, self._read([entries[place] for place in places]), strict=True):
                scores[place] = score or failed.get(entries[place].ids)
        return [score for score in scores if score]

    def _score(self, missing: Sequence[_Entry], on_scored: Callable[[int], object]) -> dict[tuple[str, str], Score]:
        """Ask the scorer and store its scores, except for answers on which it failed: these are returned by ids."""
        failed: dict[tuple[str, str], Score] = {}
        try:
            exchanges = [entry.exchange for entry in missing]
            with closing(stream_scores(self._worker, exchanges, self._account.supply)) as stream:
                started = time.monotonic()
                for given in stream:
                    scored = [(missing[place], score) for place, score in given.scores]
                    failures = {entry.ids: score for entry, score in scored if _has_failed(score)}
                    with self._store.transaction():
                        self._keep((entry, score) for entry, score in scored if entry.ids not in failures)
                        self._account.enter(given, time.monotonic() - started)
                    failed |= failures
                    on_scored(len(given.scores))
                    started = time.monotonic()
        except SinterError as error:
            had = {(prompt_id, score.response_id): score for prompt_id, score in error.scored}
            error.scored = ()  # a combination must not take its part's scores for its own
            self._keep((entry, had[entry.ids]) for entry in missing if entry.ids in had)
            raise
        self._account.close()
        return failed

    def _keep(self, scored: Iterable[tuple[_Entry, Score]]) -> None:
        self._store.add_scores(
            (entry.exchange.prompt, replace(score, scorer=entry.keys[0].scorer)) for entry, score in scored
        )

    def _read(self, entries: Sequence[_Entry]) -> list[Score | None]:
        found = self._store.scores(key for entry in entries for key in entry.keys)
        scores: list[Score | None] = []
        for entry in entries:
            score = next((found[key] for key in entry.keys if key in found), None)
            scores.append(score and replace(score, scorer=entry.keys[-1].scorer))
        return scores

    def _entries(self, exchanges: Iterable[Exchange]) -> list[_Entry]:
        return [_Entry(exchange, self._keys(exchange)) for exchange in exchanges]

    def _keys(self, exchange: Exchange) -> list[ScoreKey]:
        (prompt, response), identity = exchange, self._identity(exchange)
        names = [self._name_of_place(identity, response.source, response.index)] if self._by_place else []
        return [ScoreKey(response.id, name, prompt.answers_hash) for name in (*names, identity)]

    def _identity(self, exchange: Exchange) -> str:
        """What decides the score of an answer, besides the answer itself."""
        return self._scorer.identity_for(exchange) if isinstance(self._scorer, ThoughtPolicy) else self.identity

    def close(self) -> None:
        """Close the scorer; the store stays open."""
        self._worker.close()


def _has_failed(score: Score) -> bool:
    return score.detail.get("reason") == SCORER_FAILED


def _lacking(entries: Sequence[_Entry], scores: Sequence[Score | None]) -> list[_Entry]:
    """The entries without a score, each once."""
    lacking = (entry for entry, score in zip(entries, scores, strict=True) if score is None)
    return list({(entry.exchange.prompt.id, entry.keys[0]): entry for entry in lacking}.values())
