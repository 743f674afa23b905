"""The base of every scorer's settings: the forms of the ``scorer:`` mapping, and all that others ask of them.

A scorer is one file: its settings, a subclass of :class:`ScorerSettings` or of :class:`AnswerReader`, beside the class
that scores. Importing that file imports no torch, so that a plan is quick: what is heavy is imported by
:meth:`ScorerSettings.build` and by the first ``score``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from sinterlm.errors import InputError
from sinterlm.explain import Problem
from sinterlm.files import content_digest
from sinterlm.models.flops import Flops, add_flops, count_weights, scoring_flops
from sinterlm.records import Usage
from sinterlm.scoring.protocol import Scorer
from sinterlm.scoring.thought_policy import ThoughtPolicy
from sinterlm.settings import Settings
from sinterlm.thoughts import ThoughtRule

Fingerprint = Callable[[str], str | None]
"""The hash of a model's weights and template by its name; None if it is not known yet."""
BuildPart = Callable[["ScorerSettings"], Scorer]
"""Builds a scorer that is part of another one."""
PartPath = tuple[str, ...]
"""The keys of a part below the mapping of the scorer that it belongs to, e.g. ``("parts", "right")``."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a scorer may want to know when it is checked before the first answer."""

    allow_code: bool = False
    """Whether the user allows code that lies beside the recipe to run (``--allow-code``)."""
    has_scores: Callable[[], bool] = lambda: False
    """Whether the workspace has scores of this scorer already: there may be nothing left to ask it."""


class ScorerSettings(Settings):
    """A form of the ``scorer:`` mapping; subclasses add ``kind`` and the keys of their scorer."""

    if TYPE_CHECKING:
        kind: str

    description: ClassVar[str]
    """What the scorer gives, in one line; for ``sinterlm list scorers``."""
    placement: ClassVar[Set[str]] = frozenset()
    """Keys that change no score: stages are not run again if they change."""

    @abstractmethod
    def build(self, build_part: BuildPart) -> Scorer:
        """The scorer. Cheap: models are loaded by its first ``score``.

        Args:
            build_part: Builds the scorers that this one is made of, each of them once.
        """

    @property
    def rules(self) -> object:
        """Names the scorer's own rules in this release, if its settings and weights do not; part of stage keys.

        It changes whenever an answer may get another score than before.
        """
        return None

    @property
    def title(self) -> str:
        """What reports call the scorer: its kind, with a name if one kind may have several."""
        return self.kind

    def children(self) -> Mapping[PartPath, ScorerSettings]:
        """The scorers that this one is made of, its parts, in their order."""
        return {}

    def walk(self, domain: str | None = None) -> Iterator[ScorerSettings]:
        """The scorer and all that it is made of; with a domain, those that score prompts of that domain."""
        yield self
        own = self if domain is None else self.for_domain(domain)
        for part in self.children().values() if own is self else [own]:
            yield from part.walk(domain)

    def for_domain(self, domain: str) -> ScorerSettings:
        """The scorer of answers to prompts of this domain."""
        return self

    @property
    def named_domains(self) -> Sequence[str]:
        """The domains that this mapping names, its parts aside."""
        return ()

    def files(self) -> Mapping[str, Path]:
        """The files that the scorer reads, by the key that names each; its parts aside."""
        return {key: value for key, value in self if isinstance(value, Path)}

    def models(self) -> Sequence[str]:
        """Names of the models that it runs on this machine; its parts aside."""
        return ()

    @property
    def needs_machine(self) -> bool:
        """Whether it takes the processors of this machine long enough for a cluster's nodes to share the work.

        Its parts aside.
        """
        return bool(self.models())

    @property
    def num_gpus(self) -> int:
        """GPUs of one machine that it takes, if there are GPUs at all; its parts aside."""
        return 1 if self.models() and getattr(self, "device", "auto") != "cpu" else 0

    def find_problems(self) -> Iterator[Problem]:
        """Keys that do not go together, in this mapping and its parts; paths are relative to the mapping."""
        for path, part in self.children().items():
            yield from (Problem((*path, *problem.path), problem.text) for problem in part.find_problems())

    def check(self, preflight: Preflight) -> None:
        """Check that this machine has what the scorer needs, before the first answer; its parts aside.

        Raises:
            InputError: A file or a package is missing.
            CredentialsError: There is no key for its server.
            SandboxError: It runs untrusted programs, and there is no sandbox.
        """
        for key, path in self.files().items():
            if not path.is_file():
                raise InputError(f"{path}: there is no such file ({key} of the scorer {self.kind})")

    def describe(self, fingerprint: Fingerprint) -> Sequence[object]:
        """What decides the scores besides the answers: settings, rules, weights by fingerprint, and files by content.

        It is part of stage keys, which is why its form must not change.
        """
        files, children = self.files(), self.children()
        weights = [fingerprint(model) for model in self.models()]
        described: list[object] = [
            self.model_dump(exclude={*files, *(key for key, *_ in children), *self.placement}),
            weights[0] if len(weights) == 1 else weights or None,
            *([{"rules": rules}] if (rules := self.rules) else []),
            *({key: content_digest(path)} for key, path in files.items()),
        ]
        if children:
            described.append([[path, part.describe(fingerprint)] for path, part in children.items()])
        return described

    def flops(self, tokens: float) -> Flops | None:
        """What its models, and those of its parts, compute to read ``tokens`` tokens; None if a size is not known."""
        # A model that is named several times, for several domains, reads every answer once.
        models = {model for part in self.walk() for model in part.models()}
        sizes = map(count_weights, models)
        return add_flops(None if size is None else scoring_flops(size, tokens=tokens) for size in sizes)

    def expected_usage(self, answers: int, tokens: float) -> Usage:
        """What scoring asks of servers; its parts aside. Scorers of this machine ask none.

        Args:
            answers: The number of answers to score.
            tokens: All tokens of these answers and their prompts.
        """
        return Usage()

    def money(self, usage: Usage) -> float | None:
        """What ``usage`` costs by the recipe's price, its parts aside: see ``EngineSettings.money``."""
        return 0.0

    @property
    def tolerated_invalid(self) -> float:
        """The share of answers that may stay without a verdict: the strictest of its parts."""
        return min((part.tolerated_invalid for part in self.children().values()), default=1.0)

    @property
    def joins_by_place(self) -> bool:
        """Whether a score may belong to an answer's source and sample index instead of its text."""
        return any(part.joins_by_place for part in self.children().values())


class AnswerReader(ScorerSettings):
    """A scorer that reads answers; by default it reads them without the thoughts before them."""

    thoughts: ThoughtRule = "strip"
    """What happens to a reasoning model's thoughts before its answer: the scorer reads them too, they are removed
    first, or the answer gets no score and is dropped as ``holds-thoughts``. Every scorer that reads answers has this
    key: all but ``recorded``, ``combination`` and ``by-domain``.
    """

    @abstractmethod
    def build_reader(self) -> Scorer:
        """The scorer of what is left of an answer once the rule for thoughts is applied."""

    @final
    def build(self, build_part: BuildPart) -> Scorer:
        """The reader, with the rule for thoughts around it."""
        reader = self.build_reader()
        return reader if self.thoughts == "keep" else ThoughtPolicy(reader, self.thoughts)


def build_scorer(
    settings: ScorerSettings, *, wrap: Callable[[Scorer, ScorerSettings], Scorer] = lambda scorer, settings: scorer
) -> Scorer:
    """The scorer of a ``scorer:`` mapping; if the mapping names the same part twice, that is one scorer.

    So a reward model that scores several domains is loaded once.

    Args:
        settings: The mapping.
        wrap: What to make of the scorer, and of its parts, before they are put together; called with the settings of
            each, too.
    """
    built: list[tuple[ScorerSettings, Scorer]] = []

    def build(settings: ScorerSettings) -> Scorer:
        for other, scorer in built:
            if other == settings:
                return scorer
        scorer = wrap(settings.build(build), settings)
        built.append((settings, scorer))
        return scorer

    return build(settings)


def find_unread_keys(settings: Settings, choice: str, readers: Mapping[str, str]) -> Iterator[Problem]:
    """Keys that are given although only another choice (of a mode or a rule) reads them.

    Args:
        settings: The mapping.
        choice: The key that chooses, e.g. ``mode``.
        readers: By key, the choice that reads it.
    """
    chosen = getattr(settings, choice)
    for key, reader in readers.items():
        if chosen != reader and getattr(settings, key) != type(settings).model_fields[key].get_default():
            yield Problem((key,), f"{choice}: {chosen} does not read it, {choice}: {reader} does; remove it")
