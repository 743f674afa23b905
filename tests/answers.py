"""Answers made by hand: with scores for tests of selection, with their prompt for tests of scorers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from sinterlm.records import Candidates, Message, Prompt, Response, Score, Scored, Selection
from sinterlm.scoring.protocol import Exchange

PROMPT = Prompt("capital-france", (Message("system", "One word."), Message("user", "Capital of France?")), ("Paris",))

# An answer in a table of cases: content, score, finish reason. A score is True or False (pass-or-fail), a number
# (graded), or both: (verdict, number), as from a verifier before a reward model.
Case = tuple[Any, ...]


def scored(case: Case, source: str, index: int, prompt_id: str = PROMPT.id) -> Scored:
    content, value, finish_reason = (*case, "stop")[:3]
    response_id = f"{prompt_id}/{source}/{index}"
    response = Response(response_id, prompt_id, source, index, content, finish_reason, 0, 0)
    passed, number = value if isinstance(value, tuple) else (value if isinstance(value, bool) else None, value)
    return Scored(response, Score(response_id, "scorer", float(number), passed))


def candidates(
    sources: Sequence[Sequence[Case]] = (), target: Sequence[Case] = (), prompt: Prompt = PROMPT
) -> Candidates:
    return Candidates(
        prompt,
        tuple(
            scored(case, f"source-{number}", index, prompt.id)
            for number, cases in enumerate(sources)
            for index, case in enumerate(cases)
        ),
        tuple(scored(case, "target-sft", index, prompt.id) for index, case in enumerate(target)),
    )


def answered(content: str, *answers: str, prompt: str = "What?", name: str = "q") -> Exchange:
    """A response to a prompt of one message with these accepted answers."""
    asked = Prompt(name, (Message("user", prompt),), answers)
    return Exchange(asked, Response(f"r-{name}", name, "gemma", 0, content, "stop", 1, 1))


def outcome(selection: Selection) -> dict[str | None, str] | str:
    """The contents of the only row by role, or the reason of the only drop."""
    assert len(selection.rows) + len(selection.dropped) == 1
    if selection.dropped:
        return selection.dropped[0].reason
    return {response.role: response.content for response in selection.rows[0].responses}


@st.composite
def any_candidates(draw: st.DrawFn, graded: bool | None = None) -> list[Candidates]:
    is_graded = draw(st.booleans()) if graded is None else graded
    values = st.integers(-2, 2).map(float) if is_graded else st.booleans()
    answer = st.tuples(st.sampled_from(["a", "b", "c", ""]), values, st.sampled_from(["stop", "stop", "length"]))
    sources = st.lists(st.lists(answer, max_size=3), max_size=3)
    cases = draw(st.lists(st.tuples(sources, st.lists(answer, max_size=5)), max_size=4))
    return [candidates(*case, prompt=Prompt(f"prompt-{n}", PROMPT.messages)) for n, case in enumerate(cases)]
