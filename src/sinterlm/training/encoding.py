"""From training rows to token ids: the prompt once, then every response, cut to the maximum length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from transformers import PreTrainedTokenizerBase

from sinterlm.chat import PLAIN, REFUSED, EncodedExample, UnfitAnswer, encode_example, render_prompt
from sinterlm.errors import InputError
from sinterlm.objectives.named import ResolvedObjective
from sinterlm.records import Dropped, RowResponse, TrainingRow
from sinterlm.template import TemplateOptions, TemplateRefusal
from sinterlm.thoughts import HOLDS_THOUGHTS, ThoughtRule, split_thoughts
from sinterlm.training.members import UnfitRow, find_members, with_pairs

ALIKE = "answers-alike"
"""Why a row is dropped here: both answers of every pair have the same tokens."""
ALIKE_AFTER_CUTTING = "answers-alike-after-cutting"
"""The same, of a row that was cut at the maximum length."""
ALIKE_PAIR = "pair-alike"
"""Why a row loses one of its pairs: both answers have the same tokens."""
ONLY_A_THOUGHT = "only-a-thought"
"""Why a row is dropped under ``thoughts: strip``: nothing is left of an answer."""


class EncodedRow(TypedDict):
    """A training row as token ids; a dictionary with ``input_ids``, by whose length Transformers' samplers group."""

    name: str
    """For messages, e.g. ``row 12 (prompt 'capital-france')``."""
    weight: float
    input_ids: list[int]
    """The prompt once, then every response."""
    num_prompt_tokens: int
    num_response_tokens: list[int]
    """The tokens of each response."""
    pairs: list[dict[str, int]]
    """The number of the response with each role, for every pair."""
    weights: list[float] | None
    """The weight of each response within the row; None if the objective reads none."""
    scores: list[float] | None
    """The score of each response; None if the objective reads none."""
    groups: list[int]
    """The group of each response, numbered within the row."""
    reference_logps: list[float]
    """The reference's log-probability of each response; empty without a reference."""


class EncodedRows(NamedTuple):
    """The encoded rows, and what was dropped or cut."""

    rows: list[EncodedRow]
    dropped: list[Dropped]
    """Dropped rows, and dropped pairs of rows that stay."""
    num_cut: int
    """Responses that were cut at the maximum length, and so lost their end-of-turn."""
    num_cut_prompts: int
    """Prompts that lost their beginning to the maximum length."""
    num_as_generated: int
    """Responses encoded as the model generates them, because the chat template writes them differently."""


def row_examples(row: EncodedRow) -> list[EncodedExample]:
    """Prompt and response of each of the row's responses."""
    prompt_ids, rest = row["input_ids"][: row["num_prompt_tokens"]], row["input_ids"][row["num_prompt_tokens"] :]
    examples = []
    for num_tokens in row["num_response_tokens"]:
        examples.append(EncodedExample(prompt_ids, rest[:num_tokens]))
        rest = rest[num_tokens:]
    return examples


def encode_rows(
    rows: Sequence[TrainingRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    objective: ResolvedObjective,
    max_length: int,
    max_prompt_length: int | None = None,
    thoughts: ThoughtRule = "keep",
    options: TemplateOptions = PLAIN,
) -> EncodedRows:
    """Encode every row as token ids.

    A row is dropped if one of its answers cannot be trained word for word. A pair is dropped if both answers have the
    same tokens, and its row with it if it has no other pair.

    If the prompt and the longest answer do not fit, the prompt loses its beginning (but not the BOS), as much as
    needed, but keeps ``max_prompt_length`` tokens. Then each answer that still does not fit loses its end, and with it
    the end-of-turn.

    Args:
        rows: The training rows.
        tokenizer: The tokenizer of the model that is trained, with its chat template.
        objective: Decides which responses are read.
        max_length: Maximum tokens of a prompt and one response.
        max_prompt_length: Tokens that a prompt keeps; by default half of ``max_length``.
        thoughts: What to do with an answer that begins with a thought.
        options: Options of the chat template.

    Raises:
        InputError: A row lacks what the objective reads or holds an empty response, a weight is not accepted, or the
            chat template cannot be used.
    """
    max_prompt_length = max_prompt_length or max_length // 2
    encoded: list[EncodedRow] = []
    dropped: list[Dropped] = []
    num_cut = num_cut_prompts = num_as_generated = 0
    for number, row in enumerate(rows, start=1):
        name = f"row {number} (prompt {row.prompt_id!r})"
        if not 0 <= row.weight < math.inf:
            raise InputError(f"{name}: weight is {row.weight}; expected a finite number, at least 0")
        try:
            members = find_members(row, objective)
        except UnfitRow as error:
            raise InputError(f"{name}: {error}; choose rows that were selected for {objective.name!r}") from error
        try:
            examples = _encode_responses(name, row, members.responses, tokenizer, thoughts, options)
        except UnfitAnswer as error:
            dropped.append(Dropped(row.prompt_id, "train", error.reason, str(error)))
            continue
        prompt_ids = examples[0].prompt_ids
        longest = max(len(example.response_ids) for example in examples)
        kept = _cut_prompt(prompt_ids, max(max_prompt_length, max_length - longest), tokenizer.bos_token_id)
        room = max_length - len(kept)
        token_ids = [example.response_ids[:room] for example in examples]
        num_row_cut = sum(len(example.response_ids) > room for example in examples)
        pairs = [pair for pair in members.pairs if not _is_alike(token_ids, pair)]
        if members.pairs and not pairs:
            reason = ALIKE_AFTER_CUTTING if num_row_cut else ALIKE
            detail = f"{len(prompt_ids)} prompt tokens, max_length {max_length}" if num_row_cut else f"row {number}"
            dropped.append(Dropped(row.prompt_id, "train", reason, detail))
            continue
        if num_alike := len(members.pairs) - len(pairs):
            detail = f"row {number}, {num_alike} of {len(members.pairs)} pairs"
            dropped += [Dropped(row.prompt_id, "train", ALIKE_PAIR, detail)] * num_alike
            # The other pairs keep their weight: a pair of equal answers has a constant loss, and so no gradient.
            members = with_pairs(members, pairs)
            token_ids = [token_ids[index] for pair in pairs for index in pair.values()]
        num_cut += num_row_cut
        num_cut_prompts += len(kept) < len(prompt_ids)
        num_as_generated += sum(example.is_as_generated for example in examples)
        weighs, scored = objective.objective.reads_weights, objective.objective.reads_scores
        encoded.append(
            EncodedRow(
                name=name,
                weight=row.weight,
                input_ids=sum(token_ids, kept),
                num_prompt_tokens=len(kept),
                num_response_tokens=[len(response_ids) for response_ids in token_ids],
                pairs=[dict(pair) for pair in members.pairs],
                weights=[float(response.weight or 0) for response in members.responses] if weighs else None,
                scores=[float(response.score or 0) for response in members.responses] if scored else None,
                groups=list(members.groups),
                reference_logps=[],
            )
        )
    return EncodedRows(encoded, dropped, num_cut, num_cut_prompts, num_as_generated)


def _encode_responses(
    name: str,
    row: TrainingRow,
    responses: Sequence[RowResponse],
    tokenizer: PreTrainedTokenizerBase,
    thoughts: ThoughtRule,
    options: TemplateOptions,
) -> list[EncodedExample]:
    """The prompt, encoded once, with each response.

    Raises:
        UnfitAnswer: A response cannot be trained, and so neither can the row.
        InputError: A response is empty, or the chat template cannot be used.
    """
    place = name
    try:
        prompt = render_prompt(tokenizer, row.messages, options)
        examples = []
        for response in responses:
            place = f"{name}, role {response.role!r}"
            content = _apply_policy(response.content, thoughts)
            examples.append(
                encode_example(
                    tokenizer, row.messages, content, truncated=response.truncated, prompt=prompt, options=options
                )
            )
        return examples
    except UnfitAnswer as error:
        raise UnfitAnswer(error.reason, f"{place}: {error}") from error
    except TemplateRefusal as error:
        raise UnfitAnswer(REFUSED, f"{place}: {error}") from error
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _apply_policy(content: str, thoughts: ThoughtRule) -> str:
    """The part of an answer to train on, if it may begin with a thought.

    Raises:
        UnfitAnswer: The rule refuses the thought, or nothing is left without it.
    """
    own = split_thoughts(content)
    if thoughts == "refuse" and own.thoughts:
        raise UnfitAnswer(HOLDS_THOUGHTS, "the answer begins with a thought (thoughts: refuse)")
    if thoughts != "strip":
        return content
    if content.strip() and not own.answer.strip():
        raise UnfitAnswer(ONLY_A_THOUGHT, "nothing is left of the answer without its thought (thoughts: strip)")
    return own.answer


def _cut_prompt(prompt_ids: list[int], room: int, bos_token_id: int | None) -> list[int]:
    """The last ``room`` tokens of the prompt, one of them the BOS that models expect in front."""
    if len(prompt_ids) <= room:
        return prompt_ids
    bos = prompt_ids[:1] if prompt_ids[0] == bos_token_id and room > 1 else []
    return bos + prompt_ids[len(prompt_ids) - room + len(bos) :]


def _is_alike(responses: Sequence[list[int]], pair: Mapping[str, int]) -> bool:
    """Whether a pair has nothing to compare: every chosen answer is the same as a rejected one.

    For WRPO it is enough that the target's own two are the same: one answer cannot be both its best and its worst.
    """
    chosen, rejected = (
        {role: responses[index] for role, index in pair.items() if role.startswith(side)}
        for side in ("chosen", "rejected")
    )
    if not rejected:
        return False
    is_own_alike = "chosen_target" in chosen and chosen["chosen_target"] == rejected["rejected"]
    return is_own_alike or all(answer in rejected.values() for answer in chosen.values())
