"""What a recipe says of the scorer ``code``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from sinterlm.scoring.settings import AnswerReader, Preflight
from sinterlm.settings import Positive

if TYPE_CHECKING:
    from sinterlm.scoring.code.scorer import CodeScorer


class Code(AnswerReader):
    """Whether the program in a response passes the prompt's tests, run in a sandbox."""

    kind: Literal["code"]
    timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Limit of the computing time for one answer, or for one test of a program that reads input; what takes longer
    fails. A program that waits has four times as long.
    """
    num_workers: Positive = 2
    """Number of answers tested at once; each may take 1 GB."""

    description: ClassVar = "1 if the program in the answer passes the prompt's tests, run in a sandbox; otherwise 0"
    placement: ClassVar = {"num_workers"}

    @property
    def rules(self) -> str:
        """The rules by which code is found and tested, the sandbox's, and the Python that runs the programs."""
        from sinterlm.scoring.code import scorer

        return scorer.VERSION

    def check(self, preflight: Preflight) -> None:
        """Check that a program can be isolated.

        Raises:
            SandboxError: There is no sandbox on this machine.
        """
        from sinterlm.scoring.code.sandbox import check_isolation

        super().check(preflight)
        check_isolation()

    def build_reader(self) -> CodeScorer:
        """The scorer of answers without thoughts."""
        from sinterlm.scoring.code.scorer import CodeScorer

        return CodeScorer(timeout_seconds=self.timeout_seconds, num_workers=self.num_workers)
