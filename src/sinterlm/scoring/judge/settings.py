"""What a recipe says of the scorer ``judge``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from sinterlm.endpoint.settings import Served
from sinterlm.explain import Problem
from sinterlm.records import Usage
from sinterlm.scoring.judge import prompts
from sinterlm.scoring.judge.prompts import EXPLANATION, Mode, ResponseFormat
from sinterlm.scoring.settings import AnswerReader, Preflight, find_unread_keys
from sinterlm.settings import InputPath, Positive, expected

if TYPE_CHECKING:
    from sinterlm.scoring.judge.scorer import JudgeScorer


VERDICT_TOKENS, EXPLANATION_TOKENS, WORDING_TOKENS = 20, 200, 400
"""For ``plan``: about how many tokens a judge writes for a grade and for its reasons, and reads besides a dialogue."""


def _check_criterion(name: str) -> str:
    if not name.strip() or name == EXPLANATION or '"' in name:
        raise expected("a criterion's name without quotes, other than 'explanation', which holds the reasons")
    return name


class Judge(Served, AnswerReader):
    """A language model behind the OpenAI protocol that grades answers, or compares each with a baseline."""

    kind: Literal["judge"]
    model: str
    """The model's name on the server."""
    mode: Mode = "grade"
    """One grade from 1 to 10; the mean of a grade for each criterion; or the win rate against a baseline, between 0 and
    1.
    """
    rubric: Annotated[dict[Annotated[str, AfterValidator(_check_criterion)], str], Field(min_length=1)] | None = None
    """With ``mode: rubric``, and required there: criteria by name, and what each means."""
    baseline: InputPath | None = None
    """With ``mode: pairwise``: a file of recorded answers, one to each prompt, relative to the recipe. Without it the
    answer is compared with the prompt's first accepted answer.
    """
    explain: bool = True
    """Whether the judge gives its reasons first."""
    temperature: Annotated[float, Field(ge=0)] | Literal["none"] = 0.0
    """``none`` leaves it to the server."""
    max_tokens: Positive = 2048
    """Limit of a reply; a reply that is cut is invalid."""
    response_format: ResponseFormat = "json_schema"
    """How the server is told the form of a verdict. With ``json_schema`` most servers can reply nothing else."""
    extra_body: dict[str, Any] = {}
    """Further fields of every request, such as ``{chat_template_kwargs: {enable_thinking: false}}``."""
    revision: str | None = None
    """Names the weights that judge. If it is given, verdicts stay valid when ``base_url`` changes."""
    max_invalid: Annotated[float, Field(ge=0, le=1)] = 0.02
    """The share of answers without a verdict above which the run stops, with exit code 3."""

    description: ClassVar = (
        "a language model behind the OpenAI protocol: a grade, grades by a rubric, or the win rate against a baseline"
    )
    placement: ClassVar = {*Served.served_placement, "max_invalid"}

    @property
    def rules(self) -> str:
        """Every word that the judge is told."""
        return prompts.WORDING

    @property
    def title(self) -> str:
        """The kind with the model, as its server names it."""
        return f"{self.kind} {self.model}"

    @property
    def tolerated_invalid(self) -> float:
        """As the recipe says."""
        return self.max_invalid

    def find_problems(self) -> Iterator[Problem]:
        """Keys of another mode, and a missing rubric."""
        yield from find_unread_keys(self, "mode", {"rubric": "rubric", "baseline": "pairwise"})
        if self.mode == "rubric" and self.rubric is None:
            yield Problem(("rubric",), "missing, expected criteria by name, and what each means")

    def check(self, preflight: Preflight) -> None:
        """Check that there is a key for the server, if it needs one.

        Raises:
            CredentialsError: There is none.
        """
        super().check(preflight)
        # A judge with stored verdicts may have nothing left to judge; if it has, the first request misses the key.
        if not preflight.has_scores():
            self.check_keys()

    def expected_usage(self, answers: int, tokens: float) -> Usage:
        """A request for each answer, or two to compare it in both orders with a baseline of about its length."""
        requests = answers * (2 if self.mode == "pairwise" else 1)
        verdict = VERDICT_TOKENS * (len(self.rubric) if self.rubric else 1) + (
            EXPLANATION_TOKENS if self.explain else 0
        )
        read = requests / max(answers, 1) * tokens + requests * WORDING_TOKENS
        return Usage(requests, round(read), 0, requests * min(self.max_tokens, verdict))

    def build_reader(self) -> JudgeScorer:
        """The scorer of answers without thoughts."""
        from sinterlm.scoring.judge.scorer import JudgeScorer

        return JudgeScorer(
            self.model,
            mode=self.mode,
            rubric=self.rubric,
            baseline=self.baseline,
            explain=self.explain,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            response_format=self.response_format,
            extra_body=self.extra_body,
            served_by=self.revision or self.base_urls[0],
            build_endpoint=self.build_endpoint,
        )
