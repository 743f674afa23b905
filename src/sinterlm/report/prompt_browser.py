"""The page's browser of prompts: every prompt with all its answers, as JSON that the page's script shows.

Answers are untrusted text. They reach the page as JSON in which no character can end the script element, and the script
puts them on the page as text, never as markup.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

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


def sample_prompts(data: ReportData, *, max_bytes: int, seed: int) -> PromptSample:
    """All prompts, or as many as fit into ``max_bytes``, drawn at random and kept in their order."""
    asked = [(part, candidates) for part, prompts in data.parts.items() for candidates in prompts]
    joins = _Joins.of(data)
    chosen: dict[int, Markup] = {}
    num_bytes = 0
    for position in random.Random(seed).sample(range(len(asked)), len(asked)):
        entry = _script_json(_prompt_entry(*asked[position], joins))
        num_bytes += len(entry.encode(errors="replace")) + 1
        if num_bytes > max_bytes:
            break
        chosen[position] = entry
    return PromptSample(
        Markup("[{}]").format(Markup(",").join(chosen[position] for position in sorted(chosen))),
        num_shown=len(chosen),
        num_prompts=len(asked),
    )


def describe_prompt(data: ReportData, prompt_id: str) -> dict[str, Any]:
    """One prompt with every model's answers, their scores, and the training rows that hold them.

    Raises:
        InputError: No run has such a prompt.
    """
    asked = {each.prompt.id: (part, each) for part, prompts in data.parts.items() for each in prompts}
    if prompt_id not in asked:
        raise InputError(
            f"no prompt has the id {prompt_id!r}; an existing id, for example, is {next(iter(asked), 'none')!r}"
        )
    return _prompt_entry(*asked[prompt_id], _Joins.of(data))


@dataclass(frozen=True, slots=True)
class _Joins:
    """What other records say about a prompt or an answer, by id."""

    roles: Mapping[tuple[str, str, int], Sequence[str]]
    """By prompt, model and sample index."""
    drops: Mapping[str, Sequence[Dropped]]
    """By prompt or response."""
    held_out: Mapping[str, Sequence[Scored]]
    """Greedy answers by prompt."""
    featured: str
    """The fused model whose held-out answers are compared with the target's."""

    @staticmethod
    def of(data: ReportData) -> _Joins:
        roles: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        for run, rows in data.rows.items():
            for row in rows:
                for response in row.responses:
                    role = f"{run}: {response.role}" if response.role else run
                    roles[row.prompt_id, response.source, response.index].append(role)
        drops: dict[str, list[Dropped]] = defaultdict(list)
        for drop in data.dropped:
            drops[drop.subject].append(drop)
        held_out: dict[str, list[Scored]] = defaultdict(list)
        for scored in chain.from_iterable(data.held_out.answers.values() if data.held_out else ()):
            held_out[scored.response.prompt_id].append(scored)
        return _Joins(roles, drops, held_out, featured_model(data.held_out) if data.held_out else "")


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
