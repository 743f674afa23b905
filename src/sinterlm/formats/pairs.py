"""The parts of a row that formats of one answer, or of one pair, can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sinterlm.formats.shape import Misfit
from sinterlm.records import Role, RowResponse, TrainingRow

CHOSEN: tuple[Role, ...] = ("chosen", "chosen_source", "chosen_target")
REJECTED: tuple[Role, ...] = ("rejected", "rejected_source")


class Pair(NamedTuple):
    """A chosen and a rejected response, and what the pair counts."""

    chosen: RowResponse
    rejected: RowResponse
    weight: float


class Answer(NamedTuple):
    """A response to learn from, or to turn from, and what it counts."""

    response: RowResponse
    is_chosen: bool
    weight: float


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


def pairs_of(row: TrainingRow) -> list[Pair] | Misfit:
    """Every pair of the row.

    A quadruple is two pairs: the target's chosen answer against the target's rejected one, and the source's against
    the source's rejected answer where there is one, else against the target's. Rows of several sources' pairs (FusePO)
    give one for each source.
    """
    pairs = []
    for members in _groups(row):
        by_role = {response.role: response for response in members}
        for role in CHOSEN:
            if role not in by_role:
                continue
            rejected = by_role.get("rejected_source") if role == "chosen_source" else None
            rejected = rejected or by_role.get("rejected")
            if rejected is None:
                return Misfit("no-rejected-response", _describe(row))
            pairs.append(Pair(by_role[role], rejected, _weight(row, by_role[role])))
    return pairs or Misfit("no-chosen-response", _describe(row))


def _groups(row: TrainingRow) -> list[Sequence[RowResponse]]:
    """The responses by source, where there is more than one with the role ``chosen``; else all of them."""
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
