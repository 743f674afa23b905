"""Which responses of a row an objective reads, and which of them form a pair.

A row that an objective cannot read is refused here, whether it comes from a file or from a selection.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sinterlm.objectives.named import ResolvedObjective
from sinterlm.records import RowResponse, TrainingRow


class UnfitRow(ValueError):
    """A row lacks what the objective reads.

    Args:
        found: What the row holds.
        expected: What the objective needs.
    """

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"{found}; expected {expected}")
        self.found = found
        self.expected = expected


class Members(NamedTuple):
    """The responses of a row that an objective reads."""

    responses: tuple[RowResponse, ...]
    pairs: tuple[Mapping[str, int], ...]
    """The number of the response with each role, for every pair; empty for objectives that compare no pairs."""
    groups: tuple[int, ...]
    """The group of each response, numbered within the row by first appearance."""


def find_members(row: TrainingRow, objective: ResolvedObjective) -> Members:
    """The responses of ``row`` that ``objective`` reads.

    Raises:
        UnfitRow: A response is missing or given twice, or lacks a group, weight or score that the objective reads.
    """
    readable = [response for response in row.responses if _is_readable(response, objective)]
    if not readable:
        raise UnfitRow(_describe_roles(row.responses), _expected(objective))
    _check_groups(readable, objective)
    if objective.objective.per == "group":
        pairs = [_pair(members, objective, f"in group {name!r}") for name, members in _by_group(readable).items()]
    else:
        pairs = [_pair(readable, objective, "in the row")] if objective.objective.per == "row" else []
    responses = [response for pair in pairs for response in pair.values()] or readable
    names = list(dict.fromkeys(_group_name(response) for response in responses))
    groups = tuple(names.index(_group_name(response)) for response in responses)
    _check_weights(responses, groups, objective)
    _check_scores(responses, groups, objective)
    numbers = iter(range(len(responses)))
    return Members(tuple(responses), tuple({role: next(numbers) for role in pair} for pair in pairs), groups)


def with_pairs(members: Members, pairs: Sequence[Mapping[str, int]]) -> Members:
    """``members`` with only ``pairs`` (a subset of its own) and the responses in them."""
    kept = [index for pair in pairs for index in pair.values()]
    numbers, groups = iter(range(len(kept))), [members.groups[index] for index in kept]
    return Members(
        tuple(members.responses[index] for index in kept),
        tuple({role: next(numbers) for role in pair} for pair in pairs),
        tuple(list(dict.fromkeys(groups)).index(group) for group in groups),
    )


def _is_readable(response: RowResponse, objective: ResolvedObjective) -> bool:
    """Whether the objective reads a response, judged by its role."""
    if objective.objective.per == "group":
        return response.role is not None
    return objective.objective.per == "row" or not objective.roles or _is_chosen(response)


def _pair(responses: Sequence[RowResponse], objective: ResolvedObjective, where: str) -> dict[str, RowResponse]:
    """One response of each role; if only ``chosen`` is needed, a response without a role is the chosen one.

    Raises:
        UnfitRow: A role has no response, or several.
    """
    pair = {}
    for role in objective.roles:
        found = [response for response in responses if response.role == role]
        if not found and objective.roles == ("chosen",):
            found = [response for response in responses if _is_chosen(response)]
        if len(found) != 1:
            raise UnfitRow(
                f"{len(found)} responses with the role {role!r} {where} ({_describe_roles(responses)})",
                _expected(objective),
            )
        pair[role] = found[0]
    _check_rejected_source(pair)
    return pair


def _check_rejected_source(pair: Mapping[str, RowResponse]) -> None:
    """Check that both source answers come from one source, as equation 9 of WRPO needs.

    Raises:
        UnfitRow: Their sources differ.
    """
    if "rejected_source" not in pair:
        return
    worse, better = pair["rejected_source"].source, pair["chosen_source"].source
    if worse != better:
        raise UnfitRow(
            f"rejected_source has the source {worse!r}",
            f"{better!r}, that of chosen_source, since the two are answers of one model",
        )


def _by_group(responses: Sequence[RowResponse]) -> dict[str, list[RowResponse]]:
    groups: dict[str, list[RowResponse]] = {}
    for response in responses:
        groups.setdefault(_group_name(response), []).append(response)
    return groups


def _group_name(response: RowResponse) -> str:
    return response.group or response.source


def _is_chosen(response: RowResponse) -> bool:
    return response.role in (None, "chosen")


def _reads_groups(objective: ResolvedObjective) -> bool:
    """Whether the objective reads which source gave a response: for pairs, weights or a baseline within a source."""
    weighs_advantages = objective.objective.reads_weights and objective.objective.reads_scores
    return objective.objective.per == "group" or weighs_advantages or objective.values.get("baseline") == "source"


def _check_groups(responses: Sequence[RowResponse], objective: ResolvedObjective) -> None:
    if _reads_groups(objective) and not all(map(_group_name, responses)):
        raise UnfitRow(
            "a response with neither `group` nor `source`",
            f"one of them on every response, since {objective.name!r} compares the responses of a source",
        )


def _check_weights(responses: Sequence[RowResponse], groups: Sequence[int], objective: ResolvedObjective) -> None:
    weights = [response.weight for response in responses]
    if not objective.objective.reads_weights:
        if any(weight not in (None, 1) for weight in weights):
            raise UnfitRow(
                f"a response has the weight {next(weight for weight in weights if weight not in (None, 1)):g}",
                f"none, since {objective.name!r} does not read the weights of responses: give the row a `weight`",
            )
        return
    if None in weights:
        raise UnfitRow("a response without `weight`", f"one on every response, since {objective.name!r} weighs them")
    known = [weight for weight in weights if weight is not None]
    if not all(0 <= weight < math.inf for weight in known) or not sum(known) > 0:
        found = ", ".join(f"{weight:g}" for weight in known)
        raise UnfitRow(f"the weights {found}", "finite numbers from 0 up, not all 0")
    if _reads_groups(objective) and len(set(zip(groups, known, strict=True))) > len(set(groups)):
        raise UnfitRow("different weights within a group", "a group's weight on all its members")


def _check_scores(responses: Sequence[RowResponse], groups: Sequence[int], objective: ResolvedObjective) -> None:
    if not objective.objective.reads_scores:
        return
    scores = [response.score for response in responses]
    if None in scores:
        raise UnfitRow("a response without `score`", f"one on every response, since {objective.name!r} compares them")
    if not all(math.isfinite(score) for score in scores if score is not None):
        raise UnfitRow(f"the scores {', '.join(f'{score:g}' for score in scores)}", "finite numbers")
    pools = groups if objective.values["baseline"] == "source" else [0] * len(responses)
    if min(Counter(pools).values()) < 2:
        raise UnfitRow(
            "a response with no other to compare with",
            "two or more of every source" if objective.values["baseline"] == "source" else "two or more in the row",
        )


def _expected(objective: ResolvedObjective) -> str:
    """The responses that a row must hold, in words."""
    if objective.objective.per == "response":
        return "responses of the role chosen, or without one" if objective.roles else "responses"
    of_every_group = " in every group" if objective.objective.per == "group" else ""
    return f"one response each of {', '.join(objective.roles)}{of_every_group}"


def _describe_roles(responses: Sequence[RowResponse]) -> str:
    return "roles: " + (", ".join(response.role or "none" for response in responses) or "no response")
