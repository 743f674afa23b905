"""What the stages check before the first answer is paid for: the recipe's prompts and what this machine has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sinterlm.pipeline.fusion import Fusion
from sinterlm.records import Prompt
from sinterlm.store import Store


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run is about to read."""

    fusion: Fusion
    parts: Mapping[str, Sequence[Prompt]]
    """The prompts by part."""
    store: Store | None = None
    reads_target: bool = True
    """Whether a stage of this command reads the target's weights."""
    allow_code: bool = False
    """Whether Python files that the recipe names may run."""
    _checked: set[tuple[object, ...]] = field(default_factory=set)

    def is_new(self, *what: object) -> bool:
        """Whether no earlier stage has checked this: several stages may share a target or a scorer."""
        is_new = what not in self._checked
        self._checked.add(what)
        return is_new
