"""What each prompt is used for: held-out questions, SFT, development, preference optimisation."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from sinterlm.errors import InputError
from sinterlm.records import Prompt, digest

Size = int | float
"""A count of prompts (int), or a fraction (float)."""


class Parts(NamedTuple):
    """Every prompt in exactly one part, each part in the order of its prompts' hashes."""

    held_out: tuple[Prompt, ...]
    sft: tuple[Prompt, ...]
    development: tuple[Prompt, ...]
    preference: tuple[Prompt, ...]
    unused: tuple[Prompt, ...]
    """What is left if ``preference`` is a count or a fraction and not the rest."""


class Handover(NamedTuple):
    """The prompts of one part by who learns from them, each in the part's order."""

    kept: tuple[Prompt, ...]
    handed_over: tuple[Prompt, ...]


class _Question(NamedTuple):
    """All prompts of one content (as a rule one): they stay together."""

    order: str
    prompts: tuple[Prompt, ...]

    @property
    def domain(self) -> str:
        return self.prompts[0].domain


def split_prompts(
    prompts: Iterable[Prompt],
    *,
    held_out: Size,
    sft: Size,
    development: Size,
    preference: Size | Literal["rest"],
    seed: int,
    sft_domains: Mapping[str, Size] | None = None,
) -> Parts:
    """Split prompts by the SHA-256 of (seed, prompt id), whatever their order in the file.

    Prompts of one content stay together and count once. Every part takes its share of each domain (largest remainder),
    the first in hash order. Fractions are rounded down; ``held_out`` is a fraction of all prompts, the others are
    fractions of the rest.

    Args:
        prompts: In any order.
        held_out: Size of this part.
        sft: Size, for the domains that ``sft_domains`` does not name.
        development: Size; its share of each domain comes from what SFT leaves.
        preference: Size; ``rest`` for what all others leave.
        seed: Seed of the hashes.
        sft_domains: By domain, the size of SFT's share there in place of ``sft``'s.

    Raises:
        InputError: The parts ask for more prompts than there are.
    """
    questions = _group_by_content(prompts, seed)
    num_all = len(questions)
    num_held_out = _count(held_out, num_all)
    num_training = max(num_all - num_held_out, 0)
    domains = _count_domains(questions)
    held_out_seats = _apportion(min(num_held_out, num_all), domains, seed)
    left = {domain: count - held_out_seats[domain] for domain, count in domains.items()}
    sft_seats = _seat_sft(sft, sft_domains or {}, left, seed)
    sizes = {
        "held_out": num_held_out,
        "sft": sum(sft_seats.values()) if left else _count(sft, 0),  # without a prompt there is no domain to seat
        "development": _count(development, num_training),
        "preference": 0 if preference == "rest" else _count(preference, num_training),
    }
    num_wanted = sum(sizes.values())
    if num_wanted > num_all:
        wanted = " + ".join(f"{name} {size}" for name, size in sizes.items() if size)
        raise InputError(
            f"prompts.split asks for {num_wanted} prompts ({wanted}), but there are {num_all} different ones: "
            "lower these numbers or bring more prompts"
        )
    for domain, num_seats in sft_seats.items():
        if num_seats > left[domain]:
            raise InputError(
                f"prompts.split asks for {num_seats} prompts of domain {domain!r} for SFT, but there are "
                f"{left[domain]}: lower sft or sft_domains, or bring more prompts"
            )
    if preference == "rest":
        sizes["preference"] = num_all - num_wanted
    parts = []
    for part, size in sizes.items():
        seats = sft_seats if part == "sft" else _apportion(size, _count_domains(questions), seed)
        taken, questions = _take(questions, seats)
        parts.append(taken)
    return Parts(*(tuple(prompt for question in taken for prompt in question.prompts) for taken in [*parts, questions]))


def hand_over(
    prompts: Sequence[Prompt], *, with_row: Collection[str], domains: Collection[str] | None = None
) -> Handover:
    """Take from a part the prompts that give it no row, for another stage to learn from.

    Prompts of one content stay together: if one gives a row, all stay, and if one goes, all go.

    Args:
        prompts: The part's prompts.
        with_row: Ids of the prompts that give a row.
        domains: Only prompts of these domains go; all by default.
    """
    with_row_contents = {prompt.content_hash for prompt in prompts if prompt.id in with_row}
    of_domains = {prompt.content_hash for prompt in prompts if domains is None or prompt.domain in domains}
    going = of_domains - with_row_contents
    return Handover(
        tuple(prompt for prompt in prompts if prompt.content_hash not in going),
        tuple(prompt for prompt in prompts if prompt.content_hash in going),
    )


def _count(size: Size, num_prompts: int) -> int:
    if isinstance(size, int):
        return size
    return math.floor(size * num_prompts + 1e-9)  # 0.29 * 100 is 28.999999999999996 in floating point


def _group_by_content(prompts: Iterable[Prompt], seed: int) -> list[_Question]:
    """All questions in hash order."""
    groups: defaultdict[str, list[tuple[str, Prompt]]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.content_hash].append((digest([seed, prompt.id]), prompt))
    ordered = (sorted(group, key=lambda member: member[0]) for group in groups.values())
    return sorted(_Question(group[0][0], tuple(prompt for _, prompt in group)) for group in ordered)


def _seat_sft(sft: Size, own: Mapping[str, Size], left: Mapping[str, int], seed: int) -> dict[str, int]:
    """SFT's share of what is left of every domain: its own if it has one, or that of all others together."""
    others = {domain: count for domain, count in left.items() if domain not in own}
    return {
        **_apportion(_count(sft, sum(others.values())), others, seed),
        **{domain: _count(size, left[domain]) for domain, size in own.items() if domain in left},
    }


def _count_domains(questions: Iterable[_Question]) -> dict[str, int]:
    return dict(Counter(question.domain for question in questions))


def _take(questions: Sequence[_Question], seats: Mapping[str, int]) -> tuple[list[_Question], list[_Question]]:
    """Take the first questions of every domain, as many as it has seats; what is taken and what is left, in order."""
    left_to_take = dict(seats)
    taken: list[_Question] = []
    left: list[_Question] = []
    for question in questions:
        is_taken = left_to_take[question.domain] > 0
        left_to_take[question.domain] -= is_taken
        (taken if is_taken else left).append(question)
    return taken, left


def _apportion(size: int, domains: Mapping[str, int], seed: int) -> dict[str, int]:
    """Deal ``size`` seats to domains in proportion to their counts, by largest remainder (ties by hash)."""
    total = max(sum(domains.values()), 1)
    seats = {domain: size * count // total for domain, count in domains.items()}
    by_remainder = sorted(domains, key=lambda domain: (-(size * domains[domain] % total), digest([seed, domain])))
    for domain in by_remainder[: size - sum(seats.values())]:
        seats[domain] += 1
    return seats
