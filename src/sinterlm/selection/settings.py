"""What every selection policy declares: its keys in a recipe, and what its rows hold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sinterlm.records import Candidates, Response, Role, Selection
from sinterlm.selection.ranking import Truncated, may_be_chosen
from sinterlm.settings import Positive, Settings

Side = Literal["sources", "target"]

SOURCES: frozenset[Side] = frozenset({"sources"})
TARGET: frozenset[Side] = frozenset({"target"})

Temperature = Annotated[float, Field(ge=0)]
"""The temperature of a softmax over scores, in their units. It depends on the scorer, so it has no default."""
Margin = Annotated[float, Field(ge=0)]


class SelectionPolicy(Settings):
    """A recipe's ``select:`` mapping: which scored answers become training rows.

    A subclass declares ``kind``, a literal, and its keys; then what its rows hold, by the class variables below.
    """

    description: ClassVar[str]
    """One line for ``sinterlm list policies``."""
    formula: ClassVar[str] = ""
    """What becomes a row, in the symbols of ``sinterlm list policies``."""
    paper: ClassVar[str] = ""
    roles: ClassVar[tuple[Role, ...]]
    """The roles of the responses in a row; empty if responses have none."""
    optional_roles: ClassVar[Mapping[str, tuple[Role, ...]]] = {}
    """By key of the recipe: the roles that a row also holds when the key is true."""
    reads: ClassVar[frozenset[Side]] = SOURCES | TARGET
    """Whose answers it looks at."""
    gives_weights: ClassVar[bool] = False
    """Whether every response in a row has a weight."""
    compares: ClassVar[bool] = True
    """Whether a row holds better answers and worse ones, as preference methods need; rows for SFT hold good ones only.
    """
    by_prompt: ClassVar[bool] = False
    """Whether a prompt's row depends on its own answers alone. The pipeline then selects from a few prompts at a time,
    so that memory does not grow with their number; otherwise it gives :meth:`select` all prompts at once."""
    skips_ineligible: ClassVar[bool] = False
    """Whether answers that can never be chosen make no difference to it: empty ones and, unless its key ``truncated``
    is ``keep``, those that the token limit cut. With ``score: on-demand`` nobody pays for their scores."""
    pairs_of: ClassVar[frozenset[Side]] = frozenset()
    """Whose rows are pairs of one model's own answers: with fewer than two different ones, no score matters."""
    reasons: ClassVar[Mapping[str, str]] = {}
    """Its own reasons for dropping a prompt, and what each means; the report explains drops by them."""

    if TYPE_CHECKING:  # at run time a subclass's own literal: recipes are written in the order of the fields
        kind: str

    @abstractmethod
    def select(self, candidates: Iterable[Candidates], *, seed: int, stage: str) -> Selection:
        """Make one row of every prompt, or say why it has none.

        Args:
            candidates: Every prompt's scored answers, in any order; read once.
            seed: Decides ties.
            stage: Named in every :class:`~sinterlm.records.Dropped`.
        """

    @property
    def arguments(self) -> dict[str, Any]:
        """Every key except ``kind``, by name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}

    @property
    def row_roles(self) -> tuple[Role, ...]:
        """The roles of the responses in a row, as this recipe asks for them."""
        return self.roles + tuple(
            role for key, roles in self.optional_roles.items() if getattr(self, key) for role in roles
        )

    def responses_in_row(self, *, source_samples: Sequence[int], target_samples: int) -> int:
        """The number of responses in a row, at most.

        Args:
            source_samples: How often each source is sampled for a prompt.
            target_samples: How often the target is sampled.
        """
        return len(self.row_roles)

    def samples_of(self, source: str, num_samples: int) -> int:
        """How many of a source's ``num_samples`` answers to a prompt it looks at, at most."""
        return num_samples

    def looks_at(self, answers: Sequence[Response], side: Side) -> Sequence[Response]:
        """Those of one model's answers to a prompt whose scores can make a difference.

        Args:
            answers: The answers; they need no scores yet.
            side: Whether the model is a source or the target.
        """
        if self.skips_ineligible:
            truncated: Truncated = getattr(self, "truncated", "drop")
            answers = [answer for answer in answers if may_be_chosen(answer, truncated=truncated)]
        if side in self.pairs_of and len({answer.content for answer in answers}) < 2:
            return ()
        return answers

    def named_sources(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The sources that the recipe names here, by their place in the mapping."""
        return iter(())

    def named_domains(self) -> Iterator[tuple[str, str]]:
        """The domains of prompts that the recipe names here, by the key that holds them."""
        return iter(())


class SelectAmongSources(SelectionPolicy):
    """A policy that looks at the sources' answers."""

    sources: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the sources that take part; by default all."""
    num_samples: Positive | None = None
    """How many samples of each source take part, the first by index; by default all."""

    def named_sources(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The sources that take part."""
        return ((("sources", index), name) for index, name in enumerate(self.sources or ()))

    def samples_of(self, source: str, num_samples: int) -> int:
        """None of a source that takes no part, otherwise the first ones."""
        if self.sources is not None and source not in self.sources:
            return 0
        return num_samples if self.num_samples is None else min(num_samples, self.num_samples)

    def looks_at(self, answers: Sequence[Response], side: Side) -> Sequence[Response]:
        """Of a source, only the samples that take part."""
        if side == "sources":
            answers = [answer for answer in answers if answer.index < self.samples_of(answer.source, answer.index + 1)]
        return super().looks_at(answers, side)
