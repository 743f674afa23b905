"""The parts of a row that formats of one answer, or of one pair, can hold: each becomes one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from sinterlm.formats.shape import Misfit
from sinterlm.records import Role, RowResponse, TrainingRow

CHOSEN: tuple[Role, ...] = ("chosen", "chosen_source", "chosen_target")
REJECTED: tuple[Role, ...] = ("rejected", "rejected_source")

ANSWER_COLUMNS: Mapping[str, pa.DataType] = {
    "weight": pa.float64(),
    "source": pa.string(),
    "score_chosen": pa.float64(),
}
"""Further columns of an answer to learn from, in formats that ignore unknown columns."""
PAIR_COLUMNS: Mapping[str, pa.DataType] = {
    **ANSWER_COLUMNS,
    "source_rejected": pa.string(),
    "score_rejected": pa.float64(),
}
"""Further columns of a pair."""

PartT = TypeVar("PartT")


class PreferencePair(NamedTuple):
    """A chosen and a rejected response, and what the pair counts."""

    chosen: RowResponse
    rejected: RowResponse
    weight: float


class Answer(NamedTuple):
    """A response to learn from, or to turn from, and what it counts."""

    response: RowResponse
    is_chosen: bool
    weight: float


def each(
    parts: Callable[[TrainingRow], Sequence[PartT] | Misfit], record: Callable[[TrainingRow, PartT], dict[str, Any]]
) -> Callable[[TrainingRow], list[dict[str, Any]] | Misfit]:
    """The function from a row to its records: ``record`` makes one of each of the row's ``parts``."""

    def records(row: TrainingRow) -> list[dict[str, Any]] | Misfit:
        found = parts(row)
        return found if isinstance(found, Misfit) else [record(row, part) for part in found]

    return records


def answer_columns(answer: Answer) -> dict[str, Any]:
    """The values of :data:`ANSWER_COLUMNS`."""
    response = answer.response
    return {"weight": answer.weight, "source": response.source, "score_chosen": response.score}


def pair_columns(pair: PreferencePair) -> dict[str, Any]:
    """The values of :data:`PAIR_COLUMNS`."""
    return {
        "weight": pair.weight,
        "source": pair.chosen.source,
        "score_chosen": pair.chosen.score,
        "source_rejected": pair.rejected.source,
        "score_rejected": pair.rejected.score,
    }


def has_rejected(row: TrainingRow) -> bool:
    """Whether the row compares responses."""
    return any(response.role in REJECTED for response in row.responses)


def answers_of(row: TrainingRow) -> list[Answer] | Misfit:
    """Every chosen or rejected response; a lone response without a role is chosen."""
    alone = len(row.responses) == 1
    answers = [
        Answer(response, response.role not in REJECTED, _weight(row, response))
        for response in row.responses
        if response.role is not None or alone
    ]
    return answers or Misfit("no-chosen-response", _describe(row))


def chosen_of(row: TrainingRow) -> list[Answer] | Misfit:
    """The responses to learn from."""
    answers = answers_of(row)
    if isinstance(answers, Misfit):
        return answers
    return [answer for answer in answers if answer.is_chosen] or Misfit("no-chosen-response", _describe(row))


def pairs_of(row: TrainingRow) -> list[PreferencePair] | Misfit:
    """Every pair of the row.

    A quadruple is two pairs: the target's chosen answer against the target's rejected one, and the source's against
    the source's rejected answer if there is one, or else against the target's. Rows of several sources' pairs (FusePO)
    give one for each source. Which of several rejected answers belongs to a chosen one cannot be known.
    """
    pairs = []
    for members in _groups(row):
        of_role = {role: [response for response in members if response.role == role] for role in (*CHOSEN, *REJECTED)}
        chosen = [response for role in CHOSEN for response in of_role[role]]
        if not chosen and any(of_role.values()):
            return Misfit("no-chosen-response", _describe(row))
        for response in chosen:
            rejected = (response.role == "chosen_source" and of_role["rejected_source"]) or of_role["rejected"]
            if len(rejected) != 1:
                reason = "several-rejected-responses" if rejected else "no-rejected-response"
                return Misfit(reason, _describe(row))
            pairs.append(PreferencePair(response, rejected[0], _weight(row, response)))
    return pairs or Misfit("no-chosen-response", _describe(row))


def _groups(row: TrainingRow) -> list[Sequence[RowResponse]]:
    """The responses by source if more than one has the role ``chosen``; otherwise all of them."""
    if sum(response.role == "chosen" for response in row.responses) < 2:
        return [row.responses]
    groups: dict[str, list[RowResponse]] = {}
    for response in row.responses:
        groups.setdefault(response.group or response.source, []).append(response)
    return list(groups.values())


def _weight(row: TrainingRow, response: RowResponse) -> float:
    return row.weight * (1.0 if response.weight is None else response.weight)


def _describe(row: TrainingRow) -> str:
    return f"its responses have the roles {', '.join(response.role or 'none' for response in row.responses)}"
