"""The page's browser of prompts: every prompt with all its answers, as JSON that the page's script shows.

Answers are untrusted text. They reach the page as JSON in which no character can end the script element, and the script
puts them on the page as text, never as markup.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from sinterlm.errors import InputError
from sinterlm.records import Candidates, Dropped, Scored
from sinterlm.report.data import Part, ReportData
from sinterlm.report.tallies import featured_model, kind_of

MAX_CHARACTERS = 20_000
"""Longer texts are cut for display, so that one endless answer cannot fill the page."""


@dataclass(frozen=True, slots=True)
class PromptSample:
    """The prompts that the page holds."""

    json: Markup
    """A JSON array, safe inside a script element."""
    num_shown: int
    num_prompts: int


class _Kept(NamedTuple):
    """A prompt that may be shown."""

    rank: int
    """Its place in the random order."""
    part: Part
    candidates: Candidates
    num_bytes: int
    """Its size without what other records say about it."""


class PromptBrowser:
    """Draws a random sample of the prompts while all of them pass by: all, or as many as fit.

    In memory are only the prompts that may be shown.

    Args:
        num_prompts: How many will pass.
        max_bytes: The most that a sample may take.
        seed: Decides the random order in which prompts are taken.
    """

    def __init__(self, num_prompts: int, *, max_bytes: int, seed: int) -> None:
        self._num_prompts = num_prompts
        self._max_bytes = max_bytes
        self._ranks = [0] * num_prompts
        for rank, position in enumerate(random.Random(seed).sample(range(num_prompts), num_prompts)):
            self._ranks[position] = rank
        self._kept: list[tuple[int, _Kept]] = []
        """A heap with the last of the random order at its top: those kept are the first that fit."""
        self._num_bytes = 0

    def watch(self, parts: Mapping[Part, Iterable[Candidates]]) -> Iterator[tuple[Part, Candidates]]:
        """Yield every prompt with its part, and keep those that may be shown."""
        asked = ((part, candidates) for part, prompts in parts.items() for candidates in prompts)
        for rank, (part, candidates) in zip(self._ranks, asked, strict=True):
            if self._num_bytes <= self._max_bytes or rank < -self._kept[0][0]:
                self._keep(rank, part, candidates)
            yield part, candidates

    def _keep(self, rank: int, part: Part, candidates: Candidates) -> None:
        size = _size(_script_json(_prompt_entry(part, candidates, _NO_JOINS)))
        heappush(self._kept, (-rank, _Kept(rank, part, candidates, size)))
        self._num_bytes += size
        while self._num_bytes - self._kept[0][1].num_bytes > self._max_bytes:
            self._num_bytes -= heappop(self._kept)[1].num_bytes

    def sample(self, data: ReportData, *, max_bytes: int) -> PromptSample:
        """The prompts that fit into ``max_bytes``, in their order, with what other records say about them."""
        kept = sorted((kept for _, kept in self._kept), key=attrgetter("rank"))
        joins = _Joins.of(data, [each.candidates for each in kept])
        chosen: dict[int, Markup] = {}
        num_bytes = 0
        for rank, part, candidates, _ in kept:
            entry = _script_json(_prompt_entry(part, candidates, joins))
            num_bytes += _size(entry)
            if num_bytes > max_bytes:
                break
            chosen[rank] = entry
        shown = [chosen[rank] for rank in self._ranks if rank in chosen]
        return PromptSample(
            Markup("[{}]").format(Markup(",").join(shown)), num_shown=len(shown), num_prompts=self._num_prompts
        )


def _size(entry: Markup) -> int:
    """The bytes of an entry and of the comma after it."""
    return len(entry.encode(errors="replace")) + 1


def describe_prompt(data: ReportData, prompt_id: str) -> dict[str, Any]:
    """One prompt with every model's answers, their scores, and the training rows that hold them.

    Raises:
        InputError: No run has such a prompt.
    """
    first = ""
    for part, prompts in data.parts.items():
        for candidates in prompts:
            first = first or candidates.prompt.id
            if candidates.prompt.id == prompt_id:
                return _prompt_entry(part, candidates, _Joins.of(data, [candidates]))
    raise InputError(f"no prompt has the id {prompt_id!r}; an existing id, for example, is {first or 'none'!r}")


@dataclass(frozen=True, slots=True)
class _Joins:
    """What other records say about some prompts or their answers, by id."""

    roles: Mapping[tuple[str, str, int], Sequence[str]]
    """By prompt, model and sample index."""
    drops: Mapping[str, Sequence[Dropped]]
    """By prompt or response."""
    held_out: Mapping[str, Sequence[Scored]]
    """Greedy answers by prompt."""
    featured: str
    """The fused model whose held-out answers are compared with the target's."""

    @staticmethod
    def of(data: ReportData, shown: Sequence[Candidates]) -> _Joins:
        prompts = {candidates.prompt.id for candidates in shown}
        roles: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for run, rows in data.rows.items():
            for row in rows:
                for response in row.responses if row.prompt_id in prompts else ():
                    role = f"{run}: {response.role}" if response.role else run
                    roles[row.prompt_id, response.source, response.index].append(role)
        held_out: dict[str, list[Scored]] = defaultdict(list)
        for scored in chain.from_iterable(data.held_out.answers.values() if data.held_out else ()):
            if scored.response.prompt_id in prompts:
                held_out[scored.response.prompt_id].append(scored)
        answers = chain(
            (scored for candidates in shown for scored in (*candidates.sources, *candidates.target)),
            chain.from_iterable(held_out.values()),
        )
        subjects = prompts | {scored.response.id for scored in answers}
        drops: dict[str, list[Dropped]] = defaultdict(list)
        for drop in data.dropped:
            if drop.subject in subjects:
                drops[drop.subject].append(drop)
        return _Joins(roles, drops, held_out, featured_model(data.held_out) if data.held_out else "")


_NO_JOINS = _Joins({}, {}, {}, "")


def _prompt_entry(part: Part, candidates: Candidates, joins: _Joins) -> dict[str, Any]:
    """One prompt as ``page.js`` reads it."""
    prompt = candidates.prompt
    greedy = joins.held_out.get(prompt.id, ())
    samples = [_answer_entry(scored, joins) for scored in (*candidates.sources, *candidates.target)]
    drops = [_drop_entry(drop) for drop in joins.drops.get(prompt.id, ())]
    return {
        "id": prompt.id,
        "part": part,
        "family": prompt.domain,
        "messages": [{"role": message.role, "content": _cut(message.content)} for message in prompt.messages],
        "accepted": [_cut(answer) for answer in prompt.answers],
        "outcomes": [
            *(["row"] if any(sample["roles"] for sample in samples) else []),
            *(["dropped"] if drops else []),
            *_fusion_outcome(greedy, joins.featured),
        ],
        "dropped": drops,
        "heldOut": [_answer_entry(scored, joins) for scored in greedy],
        "samples": samples,
    }


def _answer_entry(scored: Scored, joins: _Joins) -> dict[str, Any]:
    response, score = scored
    return {
        "model": response.source,
        "kind": kind_of(response.source),
        "index": response.index,
        "text": _cut(response.content),
        "score": round(score.value, 4) if math.isfinite(score.value) else None,
        "passed": score.passed,
        "roles": joins.roles.get((response.prompt_id, response.source, response.index), ()),
        "finish": response.finish_reason,
        "tokens": response.num_tokens,
        "dropped": [_drop_entry(drop) for drop in joins.drops.get(response.id, ())],
    }


def _drop_entry(drop: Dropped) -> dict[str, str]:
    return {"stage": drop.stage, "reason": drop.reason, "detail": _cut(drop.detail)}


def _fusion_outcome(greedy: Sequence[Scored], featured: str) -> list[str]:
    """``gained`` or ``lost``: the featured model's answer scores higher or lower than the target's."""
    scores = {scored.response.source: scored.score.value for scored in greedy}
    if not {"target", featured} <= scores.keys() or scores["target"] == scores[featured]:
        return []
    return ["gained" if scores[featured] > scores["target"] else "lost"]


def _cut(text: str) -> str:
    return (
        text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} [cut for display: {len(text):,} characters]"
    )


def _script_json(entry: dict[str, Any]) -> Markup:
    """JSON for a script element: ``<``, ``>``, ``&``, U+2028 and U+2029 are escaped."""
    text = htmlsafe_json_dumps(entry, ensure_ascii=False, separators=(",", ":"))
    return text.replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")
