"""By domain: a scorer for each domain, such as a verifier for mathematics and a reward model for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from sinterlm.records import Score, digest
from sinterlm.scoring.protocol import Exchange, Scorer, answers_at_once
from sinterlm.scoring.settings import BuildPart, PartPath, ScorerSettings

if TYPE_CHECKING:
    Part = ScorerSettings  # any form of the table, in which this one is (see scorers.py)


class ByDomain(ScorerSettings):
    """A scorer for every domain of the prompts."""

    kind: Literal["by-domain"]
    domains: Annotated[dict[str, Part], Field(min_length=1)]
    """Scorers by domain."""
    other: Part
    """The scorer for prompts of any other domain, or of none."""

    description: ClassVar = (
        "a scorer for each domain, such as a verifier for mathematics and a reward model for the rest"
    )

    @property
    def title(self) -> str:
        """Which scorer scores which domain."""
        titles = [f"{part.title} for {domain}" for domain, part in self.domains.items()]
        return ", ".join([*titles, f"else {self.other.title}"])

    @property
    def named_domains(self) -> list[str]:
        """The domains with a scorer of their own."""
        return list(self.domains)

    def children(self) -> dict[PartPath, ScorerSettings]:
        """The scorer of every domain, and the one for all others."""
        return {**{("domains", domain): part for domain, part in self.domains.items()}, ("other",): self.other}

    def for_domain(self, domain: str) -> ScorerSettings:
        """The domain's own scorer, or the one for all others."""
        return self.domains.get(domain, self.other)

    def build(self, build_part: BuildPart) -> ByDomainScorer:
        """One scorer that asks the scorers of the domains."""
        domains = {domain: build_part(part) for domain, part in self.domains.items()}
        return ByDomainScorer(domains, build_part(self.other))


class ByDomainScorer:
    """Scores every answer by the scorer of its prompt's domain.

    Scores of different scorers are not comparable; policies compare answers to one prompt only.

    Args:
        domains: Scorers by domain.
        other: The scorer for prompts of any other domain, or of none.
    """

    def __init__(self, domains: Mapping[str, Scorer], other: Scorer) -> None:
        self._domains = domains
        self._other = other

    @cached_property
    def identity(self) -> str:
        """Names the domains and their scorers."""
        domains = {domain: scorer.identity for domain, scorer in self._domains.items()}
        return digest({"scorer": "by-domain", "domains": domains, "other": self._other.identity})

    @property
    def needs_answers(self) -> bool:
        """True if any of the scorers needs them."""
        return any(scorer.needs_answers for scorer in (*self._domains.values(), self._other))

    @property
    def answers_at_once(self) -> int:
        """As many as one of the scorers likes."""
        return answers_at_once(*self._domains.values(), self._other)

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Let every scorer score the answers of its domains.

        Raises:
            InputError: Whatever the scorers raise.
        """
        places: dict[int, list[int]] = {}
        scorers = [self._domains.get(entry.prompt.domain, self._other) for entry in exchanges]
        for place, scorer in enumerate(scorers):
            places.setdefault(id(scorer), []).append(place)
        scores: dict[int, Score] = {}
        for own in places.values():
            found = scorers[own[0]].score([exchanges[place] for place in own])
            scores |= dict(zip(own, found, strict=True))
        return [replace(scores[place], scorer=self.identity) for place in range(len(exchanges))]

    def close(self) -> None:
        """Release what the scorers hold."""
        for scorer in (*self._domains.values(), self._other):
            scorer.close()
