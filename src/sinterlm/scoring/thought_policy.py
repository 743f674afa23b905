"""Thoughts in scoring: whether a scorer reads what a model thought before its answer.

keep     the scorer reads the whole text
strip    thoughts are taken off first: the scorer reads what a reader would be shown
refuse   an answer with thoughts gets no score

Every scorer that reads answers is wrapped here, so that all of them agree on what a thought is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

from sinterlm.records import Prompt, Score
from sinterlm.scoring.protocol import (
    Exchange,
    Given,
    Scorer,
    Supply,
    answers_at_once,
    in_order,
    no_score,
    stream_scores,
)
from sinterlm.thoughts import HOLDS_THOUGHTS, split_thoughts


class ThoughtPolicy:
    """A scorer that reads answers without their thoughts, or refuses answers that have some.

    An answer without thoughts has the same score under every policy, and is stored under the inner scorer's identity.
    So when the policy changes, only answers with thoughts are scored again.

    Args:
        scorer: Reads what is left.
        thoughts: What happens to thoughts; to keep them, use the scorer alone.
    """

    def __init__(self, scorer: Scorer, thoughts: Literal["strip", "refuse"]) -> None:
        self._scorer = scorer
        self._thoughts = thoughts

    @cached_property
    def identity(self) -> str:
        """Names the scorer and what happens to thoughts."""
        return f"{self._scorer.identity}:thoughts-{self._thoughts}"

    def identity_for(self, exchange: Exchange) -> str:
        """The identity that this answer's score is stored under: the inner scorer's if nothing is taken off."""
        return self._scorer.identity if _without_thoughts(exchange) == exchange else self.identity

    @property
    def identities(self) -> tuple[str, str]:
        """Both identities that scores are stored under."""
        return self._scorer.identity, self.identity

    @property
    def needs_answers(self) -> bool:
        """True if the scorer itself needs them."""
        return self._scorer.needs_answers

    @property
    def answers_at_once(self) -> int:
        """As many as the scorer likes."""
        return answers_at_once(self._scorer)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the scorer check prompts before they are answered, if it does so.

        Raises:
            InputError: The scorer could not tell one answer to a prompt from another.
        """
        if check := getattr(self._scorer, "check_prompts", None):
            check(prompts)

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Score what is left of every answer; under ``refuse``, an answer with thoughts has no score.

        Raises:
            InputError: Whatever the scorer raises.
        """
        return in_order(self.stream(exchanges))

    def stream(self, exchanges: Sequence[Exchange], supply: Supply = iter) -> Iterator[Given]:
        """See :class:`~sinterlm.scoring.protocol.StreamsScores`; a scorer that cannot stream gives all at once."""
        bare = [_without_thoughts(entry) for entry in exchanges]
        refused = {
            place
            for place, (own, entry) in enumerate(zip(bare, exchanges, strict=True))
            if self._thoughts == "refuse" and own != entry
        }
        if refused:
            yield Given([(place, self._refuse(exchanges[place])) for place in sorted(refused)])
        places = [place for place in range(len(exchanges)) if place not in refused]
        if not places:
            return
        for given in stream_scores(self._scorer, [bare[place] for place in places], supply):
            scores = [
                (places[number], replace(score, scorer=self.identity_for(exchanges[places[number]])))
                for number, score in given.scores
            ]
            yield given._replace(scores=scores)

    def close(self) -> None:
        """Close the scorer."""
        self._scorer.close()

    def _refuse(self, exchange: Exchange) -> Score:
        problem = "it begins with a thought, which the scorer's `thoughts: refuse` does not allow"
        return no_score(exchange, self.identity, HOLDS_THOUGHTS, problem, {})


def _without_thoughts(exchange: Exchange) -> Exchange:
    answer = split_thoughts(exchange.response.content).answer
    if answer == exchange.response.content:
        return exchange
    return exchange._replace(response=replace(exchange.response, content=answer))
