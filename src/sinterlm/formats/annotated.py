"""Answers annotated by a reward model, as SimPO's authors publish them (princeton-nlp/*-ultrafeedback-armorm).

prompt_id, prompt (text), all_generated_responses, all_rm_scores, chosen and rejected (best and worst, each a
conversation of the user's message and the answer)

All answers are one model's. Such a file serves as prompts, as recorded answers with scores, and as training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from sinterlm.explain import Expects
from sinterlm.formats.conversations import MESSAGES, Row, build_row, dump_answer, dump_messages, not_empty
from sinterlm.formats.fields import Number, Question, Record, Reply
from sinterlm.formats.lines import Line
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.records import Message, Role, RowResponse, TrainingRow

ALL_ANSWERS, ALL_SCORES = "all_generated_responses", "all_rm_scores"


class _Answers(Record):
    all_generated_responses: Annotated[list[str], Field(min_length=1), Expects("a list of texts, one for each answer")]
    all_rm_scores: Annotated[list[Number] | None, Expects("a list of numbers")] = None


class _Row(_Answers, Row):
    prompt: Question
    source: str = ""
    chosen: Reply | None = None
    rejected: Reply | None = None


def read_answers(line: Line) -> list[tuple[str, float | None]]:
    """The answers of a line, each with its score if the line has scores."""
    return _scored(line, line.parse(_Answers))


def _scored(line: Line, record: _Answers) -> list[tuple[str, float | None]]:
    answers, scores = record.all_generated_responses, record.all_rm_scores
    if scores is None:
        return [(answer, None) for answer in answers]
    if len(scores) != len(answers):
        raise line.error(f"`{ALL_SCORES}` has {len(scores)} numbers", f"one for each of the {len(answers)} answers")
    return list(zip(answers, scores, strict=True))


def read_annotated(line: Line) -> TrainingRow:
    """A row of all answers; those that ``chosen`` and ``rejected`` repeat have these roles."""
    record = line.parse(_Row)
    answers = _scored(line, record)
    roles: dict[int, Role] = {}
    repeated: dict[Role, tuple[Message, ...] | None] = {"chosen": record.chosen, "rejected": record.rejected}
    for role, conversation in repeated.items():
        if conversation is not None:
            content = conversation[-1].content
            places = [place for place, (answer, _) in enumerate(answers) if answer == content and place not in roles]
            if not places:
                raise line.error(f"`{role}` ends with none of `{ALL_ANSWERS}`", "one of them")
            roles[places[0]] = role
    responses = tuple(
        RowResponse(not_empty(line, f"{ALL_ANSWERS}[{place}]", answer), roles.get(place), record.source, place, score)
        for place, (answer, score) in enumerate(answers)
    )
    return build_row(line, record, record.prompt, responses)


def _records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
    scores = [response.score for response in row.responses]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return Misfit("no-score", f"{len(scores) - len(known)} of {len(scores)} answers have none")
    if len(set(known)) < 2:
        return Misfit("no-two-different-scores", f"{len(known)} answers")
    if len(row.messages) > 1:
        return Misfit("prompt-of-several-messages", f"{len(row.messages)}; a row of this format holds one text")
    if len({response.source for response in row.responses}) > 1:
        return Misfit("answers-of-several-models", "a row of this format holds one model's")
    return [
        {
            "prompt_id": row.prompt_id,
            "prompt": row.messages[0].content,
            ALL_ANSWERS: [response.content for response in row.responses],
            ALL_SCORES: known,
            "chosen": _conversation(row, known.index(max(known))),
            "rejected": _conversation(row, known.index(min(known))),
            "source": row.responses[0].source,
        }
    ]


def _conversation(row: TrainingRow, place: int) -> Sequence[dict[str, str]]:
    return [*dump_messages(row.messages), *dump_answer(row.responses[place])]


ANNOTATED = Shape(
    pa.schema(
        {
            "prompt_id": pa.string(),
            "prompt": pa.string(),
            ALL_ANSWERS: pa.list_(pa.string()),
            ALL_SCORES: pa.list_(pa.float64()),
            "chosen": MESSAGES,
            "rejected": MESSAGES,
            "source": pa.string(),
        }
    ),
    _records,
)
