"""Answers annotated by a reward model, as SimPO's authors publish them (princeton-nlp/*-ultrafeedback-armorm).

prompt_id, prompt (text), all_generated_responses, all_rm_scores, chosen and rejected (best and worst, each a
conversation of the user's message and the answer)

All answers are one model's. Such a file serves as prompts, as recorded answers with scores, and as training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import MESSAGES, answer_messages, build_row, dump_answer, dump_messages, not_empty
from sinterlm.formats.lines import Line
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.records import Role, RowResponse, TrainingRow

ALL_ANSWERS, ALL_SCORES = "all_generated_responses", "all_rm_scores"


def read_answers(line: Line) -> list[tuple[str, float | None]]:
    """The answers of a line, each with its score where the line has scores."""
    answers = line.fields[ALL_ANSWERS]
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise line.error(f"`{ALL_ANSWERS}` is no list of texts", "one text for each answer")
    if ALL_SCORES not in line.fields:
        return [(answer, None) for answer in answers]
    scores = line.numbers(ALL_SCORES)
    if len(scores) != len(answers):
        raise line.error(f"`{ALL_SCORES}` has {len(scores)} numbers", f"one for each of the {len(answers)} answers")
    return list(zip(answers, scores, strict=True))


def read_annotated(line: Line) -> TrainingRow:
    """A row of all answers; those that ``chosen`` and ``rejected`` repeat have these roles."""
    answers = read_answers(line)
    roles: dict[int, Role] = {}
    keys: tuple[Role, ...] = ("chosen", "rejected")
    for role in keys:
        if role in line.fields:
            content = answer_messages(line, role)[-1].content
            places = [place for place, (answer, _) in enumerate(answers) if answer == content and place not in roles]
            if not places:
                raise line.error(f"`{role}` ends with none of `{ALL_ANSWERS}`", "one of them")
            roles[places[0]] = role
    source = line.text("source", default="")
    responses = tuple(
        RowResponse(not_empty(line, f"{ALL_ANSWERS}[{place}]", answer), roles.get(place), source, place, score)
        for place, (answer, score) in enumerate(answers)
    )
    return build_row(line, line.prompt("prompt"), responses)


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
