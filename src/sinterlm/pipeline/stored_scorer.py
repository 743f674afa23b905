"""A scorer that remembers: what is in the store is not scored again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, cached_property

from sinterlm.errors import SinterError
from sinterlm.records import Score, digest
from sinterlm.scoring.protocol import SCORER_FAILED, Exchange, Scorer
from sinterlm.scoring.thought_policy import ThoughtPolicy
from sinterlm.store import ScoreKey, Store


class StoredScorer:
    """Any scorer, with its scores in the store; what it is asked for at once is written at once.

    Args:
        scorer: asked for what the store lacks.
        store: where the scores are kept, under the scorer's identity.
        by_place: whether a score may belong to the answer's source and sample index, which are then part of the name
            under which it is kept: an answer may come to have another place.
    """

    def __init__(self, scorer: Scorer, store: Store, *, by_place: bool = False) -> None:
        self._scorer = scorer
        self._store = store
        self._by_place = by_place
        self._name_of_place = cache(lambda *place: digest(place))

    @cached_property
    def identity(self) -> str:
        """The scorer's own; asked once, because a reward model's looks its files up."""
        return self._scorer.identity

    @property
    def needs_answers(self) -> bool:
        """As the scorer itself."""
        return self._scorer.needs_answers

    def stored(self, exchanges: Sequence[Exchange]) -> list[Score | None]:
        """The score of each answer in the store; None for one that the scorer has not been asked about."""
        keys = [self._keys(entry) for entry in exchanges]
        found = self._store.scores(key for own in keys for key in own)
        scores: list[Score | None] = []
        for own in keys:
            score = next((found[key] for key in own if key in found), None)
            scores.append(score and replace(score, scorer=own[-1].scorer))
        return scores

    def has_scored(self) -> bool:
        """Whether the store has any score of this scorer, whatever it does with thoughts."""
        scorer = self._scorer
        identities = scorer.identities if isinstance(scorer, ThoughtPolicy) else [self.identity]
        return any(map(self._store.has_scores, identities))

    def missing(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """The answers that the store has no score of, each once."""
        stored = zip(exchanges, self.stored(exchanges), strict=True)
        lacking = (entry for entry, score in stored if score is None)
        return list({(entry.prompt.id, entry.response.id, self._name(entry)): entry for entry in lacking}.values())

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Score what the store lacks, and give what it then has; where the scorer failed, the next call tries again."""
        failed: dict[tuple[str, str], Score] = {}
        if missing := self.missing(exchanges):
            try:
                scored = list(zip(missing, self._scorer.score(missing), strict=True))
            except SinterError as error:
                had = {(prompt_id, score.response_id): score for prompt_id, score in error.scored}
                error.scored = ()  # a combination of scorers has not got what its part had
                self._keep(
                    (entry, had[key]) for entry in missing if (key := (entry.prompt.id, entry.response.id)) in had
                )
                raise
            failed = {
                (entry.prompt.id, entry.response.id): score
                for entry, score in scored
                if score.detail.get("reason") == SCORER_FAILED
            }
            self._keep(pair for pair in scored if (pair[0].prompt.id, pair[0].response.id) not in failed)
        stored = zip(exchanges, self.stored(exchanges), strict=True)
        found = [score or failed.get((entry.prompt.id, entry.response.id)) for entry, score in stored]
        return [score for score in found if score]

    def _keep(self, scored: Iterable[tuple[Exchange, Score]]) -> None:
        self._store.add_scores((entry.prompt, replace(score, scorer=self._name(entry))) for entry, score in scored)

    def _identity(self, exchange: Exchange) -> str:
        """What decides the score of an answer, besides the answer itself."""
        return self._scorer.identity_for(exchange) if isinstance(self._scorer, ThoughtPolicy) else self.identity

    def _name(self, exchange: Exchange) -> str:
        """Under what the score of an answer is kept."""
        return self._keys(exchange)[0].scorer

    def _keys(self, exchange: Exchange) -> list[ScoreKey]:
        """The keys under which the store may have the score of an answer; the last names the scorer's identity.

        Earlier releases kept all scores under the latter.
        """
        (prompt, response), identity = exchange, self._identity(exchange)
        names = [self._name_of_place(identity, response.source, response.index)] if self._by_place else []
        return [ScoreKey(response.id, name, prompt.answers_hash) for name in (*names, identity)]

    def close(self) -> None:
        """Close the scorer; the store stays open."""
        self._scorer.close()
