"""From training rows to token ids and padded tensors.

    TrainingRow -> EncodedRow (token ids, boundaries) -> RowBatch (tensors)

Shapes: B rows, R responses a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sinterlm.chat import EncodedExample, encode_example
from sinterlm.errors import InputError
from sinterlm.records import Dropped, RowResponse, TrainingRow
from sinterlm.training.packing import Layout, SequenceBatch


class EncodedRow(TypedDict):
    """A training row as token ids; a dictionary with ``input_ids``, by whose length Transformers' samplers group."""

    prompt_id: str
    weight: float
    input_ids: list[int]
    """The prompt once, then every response, in the order of the roles."""
    num_prompt_tokens: int
    num_response_tokens: list[int]
    """Of each response, in the order of the roles."""
    reference_logps: list[float]
    """Of each response, in the order of the roles; empty without a reference."""


class EncodedRows(NamedTuple):
    """What became of the rows."""

    rows: list[EncodedRow]
    dropped: list[Dropped]
    num_cut: int
    """Responses that lost their end to the maximum length."""


class RowBatch(TypedDict):
    """A micro-batch of rows."""

    sequences: SequenceBatch
    num_tokens: Tensor
    """(B, R): tokens of each response."""
    num_row_tokens: Tensor
    """(B,): tokens of the prompt, counted once, and of the responses."""
    loss_weights: Tensor
    """(B,): what each row's loss counts in the mean over the global batch."""
    reference_logps: Tensor | None
    """(B, R)."""
    prompt_ids: list[str]


def row_examples(row: EncodedRow) -> list[EncodedExample]:
    """Prompt and response of each of the row's responses, in the order of the roles."""
    prompt_ids, rest = row["input_ids"][: row["num_prompt_tokens"]], row["input_ids"][row["num_prompt_tokens"] :]
    examples = []
    for num_tokens in row["num_response_tokens"]:
        examples.append(EncodedExample(prompt_ids, rest[:num_tokens]))
        rest = rest[num_tokens:]
    return examples


def encode_rows(
    rows: Sequence[TrainingRow], tokenizer: PreTrainedTokenizerBase, *, roles: Sequence[str], max_length: int
) -> EncodedRows:
    """Token ids of every row.

    A response that does not fit behind its prompt is cut on the right and so loses its end-of-turn; a row whose prompt
    leaves no room for a single response token is dropped.

    Args:
        rows: the training rows.
        tokenizer: of the model that is trained, with its chat template.
        roles: the responses that the objective needs, in the order in which they shall stand.
        max_length: most tokens of a prompt and one response.

    Raises:
        InputError: a row lacks a role or holds an empty response, its prompt is no prefix of prompt and response, or a
            weight is not accepted.
    """
    encoded: list[EncodedRow] = []
    dropped: list[Dropped] = []
    num_cut = 0
    for row in rows:
        _check_weights(row)
        examples = [_encode_response(row, _response(row, role), tokenizer) for role in roles]
        room = max_length - len(examples[0].prompt_ids)
        if room < 1:
            detail = f"{len(examples[0].prompt_ids)} prompt tokens, max_length {max_length}"
            dropped.append(Dropped(row.prompt_id, "train", "prompt-longer-than-max-length", detail))
            continue
        num_cut += sum(len(example.response_ids) > room for example in examples)
        responses = [example.response_ids[:room] for example in examples]
        encoded.append(
            EncodedRow(
                prompt_id=row.prompt_id,
                weight=row.weight,
                input_ids=sum(responses, examples[0].prompt_ids),
                num_prompt_tokens=len(examples[0].prompt_ids),
                num_response_tokens=[len(response_ids) for response_ids in responses],
                reference_logps=[],
            )
        )
    return EncodedRows(encoded, dropped, num_cut)


def _check_weights(row: TrainingRow) -> None:
    if not 0 <= row.weight < math.inf:
        raise InputError(
            f"row of prompt {row.prompt_id!r}: weight is {row.weight}; expected a finite number, at least 0"
        )
    for response in row.responses:
        if response.weight != 1:
            raise InputError(
                f"row of prompt {row.prompt_id!r}: a response has the weight {response.weight:g}; no objective of this "
                "version reads the weights of single responses: give the row a weight instead"
            )


def _response(row: TrainingRow, role: str) -> RowResponse:
    """The row's one response with ``role``; where a single response has no role, it is the chosen one."""
    found = [response for response in row.responses if response.role == role]
    if not found and role == "chosen":
        found = [response for response in row.responses if response.role is None]
    if len(found) != 1:
        roles = ", ".join(str(response.role) for response in row.responses) or "no response"
        raise InputError(
            f"row of prompt {row.prompt_id!r}: expected one response with role {role!r}, found {len(found)} (roles: "
            f"{roles}); choose rows that were selected for this objective"
        )
    return found[0]


def _encode_response(row: TrainingRow, response: RowResponse, tokenizer: PreTrainedTokenizerBase) -> EncodedExample:
    try:
        return encode_example(tokenizer, row.messages, response.content, truncated=response.truncated)
    except InputError as error:
        raise InputError(f"row of prompt {row.prompt_id!r}, role {response.role!r}: {error}") from error


class RowCollator:
    """Makes a :class:`RowBatch` of encoded rows (as the plain dictionary that Transformers expects).

    Args:
        layout: how the sequences lie in tensors.
        pad_token_id: any token of the vocabulary; padding is never attended to.
        counts: whether a row's loss counts by its weight, or by its weight times its response tokens.
    """

    def __init__(self, *, layout: Layout, pad_token_id: int, counts: Literal["rows", "tokens"]) -> None:
        self._layout = layout
        self._pad_token_id = pad_token_id
        self._counts = counts

    def __call__(self, rows: list[EncodedRow]) -> dict[str, Any]:
        """Collate a micro-batch."""
        num_tokens = torch.tensor([row["num_response_tokens"] for row in rows])
        weights = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        has_reference = bool(rows[0]["reference_logps"])
        batch = RowBatch(
            sequences=self._layout([row_examples(row) for row in rows], pad_token_id=self._pad_token_id),
            num_tokens=num_tokens,
            num_row_tokens=torch.tensor([len(row["input_ids"]) for row in rows]),
            loss_weights=weights if self._counts == "rows" else weights * num_tokens.sum(1),
            reference_logps=torch.tensor([row["reference_logps"] for row in rows]) if has_reference else None,
            prompt_ids=[row["prompt_id"] for row in rows],
        )
        return dict(batch)
