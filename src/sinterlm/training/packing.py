"""How the sequences of a micro-batch lie in tensors: one to a line, or with shared parts only once.

The responses of a row share its prompt, and neighbouring prompts may share their beginning (a system prompt, a few
shots). In the shared layout each such part appears once, in one line (padded to a multiple of 16), as a forest of
spans (``attention/spans.py``): beginning -> rest of the prompt -> responses. Positions continue the parent's. This
computes the same as one sequence to a line, with fewer tokens.
Shapes: N sequences, M response tokens of all of them, P lines of at most U tokens. No prediction needs a sequence's
last token, so no line holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NotRequired, Protocol, TypedDict

import torch
from torch import Tensor

from sinterlm.attention.spans import Span, Spans, ancestors, count_shared, positions
from sinterlm.chat import EncodedExample

MIN_SHARED_BEGINNING = 8
"""Fewer shared tokens are not worth a span of their own, which costs one more product in every layer."""

LINE_MULTIPLE = 16
"""Lines are padded to a multiple of it, so that lengths recur: oneDNN makes kernels of about 8 MB for each length."""


class SequenceBatch(TypedDict):
    """What the model's forward is called with."""

    input_ids: Tensor
    """(P, U), padded on the right."""
    attention_mask: NotRequired[Tensor]
    """(P, U), 1 for tokens and 0 for padding; of one sequence to a line."""
    position_ids: NotRequired[Tensor]
    """(P, U), of the shared layout."""
    spans: NotRequired[Spans]
    """The spans of the one line of the shared layout."""
    predictors: Tensor
    """(M,): positions, counted over all P * U, whose hidden states predict a response token."""
    targets: Tensor
    """(M,): those tokens, sequence by sequence."""
    lengths: Tensor
    """(N,): response tokens of each sequence."""
    occurrences: NotRequired[Tensor]
    """(P, U): the number of sequences that hold each token, 0 for padding; only for the loss of a mixture's router."""


class Layout(Protocol):
    """A way to lay the examples of rows out in tensors."""

    def __call__(
        self, rows: Sequence[Sequence[EncodedExample]], *, pad_token_id: int, for_router: bool = False
    ) -> SequenceBatch:
        """Lay out the examples of each row; sequences are numbered row by row."""
        ...


def one_to_a_line(
    rows: Sequence[Sequence[EncodedExample]], *, pad_token_id: int, for_router: bool = False
) -> SequenceBatch:
    """Every sequence on a line of its own, padded: for any model.

    Args:
        rows: The examples of each row.
        pad_token_id: Any token; padding is not attended to.
        for_router: Whether the loss of a mixture's router is needed; lines then hold the last tokens too.
    """
    examples = [example for row in rows for example in row]
    end = None if for_router else -1
    lines = [example.prompt_ids + example.response_ids[:end] for example in examples]
    width = max(map(len, lines))
    predictors = [
        number * width + len(example.prompt_ids) - 1 + position
        for number, example in enumerate(examples)
        for position in range(len(example.response_ids))
    ]
    attention_mask = torch.tensor([[1] * len(line) + [0] * (width - len(line)) for line in lines])
    batch = SequenceBatch(
        input_ids=torch.tensor([line + [pad_token_id] * (width - len(line)) for line in lines]),
        attention_mask=attention_mask,
        predictors=torch.tensor(predictors),
        targets=_targets(rows),
        lengths=_lengths(rows),
    )
    return SequenceBatch(**batch, occurrences=attention_mask) if for_router else batch


def shared(rows: Sequence[Sequence[EncodedExample]], *, pad_token_id: int, for_router: bool = False) -> SequenceBatch:
    """One line of spans, in which shared beginnings appear once: for models that can attend by spans.

    Args:
        rows: The examples of each row, which share one prompt.
        pad_token_id: Any token; it pads the line's end, where no response sees it.
        for_router: As in :func:`one_to_a_line`; a shared token then counts for every sequence that has it.
    """
    line = _Line(end=None if for_router else -1)
    predictors: list[int] = []
    for family, num_shared in _families([row[0].prompt_ids for row in rows]):
        beginning = line.add(rows[family.start][0].prompt_ids[:num_shared], -1)
        for row in rows[family]:
            predictors += _add_row(line, row, num_shared, beginning)
    position_ids = positions(line.spans)
    num_padding = -len(position_ids) % LINE_MULTIPLE
    occurrences = [*line.occurrences(), *[0] * num_padding] if for_router else []
    line.prolong([pad_token_id] * num_padding)
    batch = SequenceBatch(
        input_ids=torch.tensor([line.token_ids]),
        # Padding takes position 0: positions that continue the line's could be more than the model has.
        position_ids=torch.tensor([position_ids + [0] * num_padding]),
        spans=tuple(line.spans),
        predictors=torch.tensor(predictors),
        targets=_targets(rows),
        lengths=_lengths(rows),
    )
    return SequenceBatch(**batch, occurrences=torch.tensor([occurrences])) if for_router else batch


class _Line:
    """Spans one after another.

    Args:
        end: Where responses are cut: -1, before their last token, which predicts nothing; or None, nowhere.
    """

    def __init__(self, end: int | None) -> None:
        self.end_of_responses = end
        self.token_ids: list[int] = []
        self.spans: list[Span] = []
        self.leaves: list[int] = []
        """The last span of every sequence."""

    def add(self, token_ids: Sequence[int], parent: int) -> int:
        """Add a span and return its number; without tokens, return the parent's."""
        if not token_ids:
            return parent
        self.token_ids += token_ids
        self.spans.append((len(token_ids), parent))
        return len(self.spans) - 1

    def prolong(self, token_ids: Sequence[int]) -> None:
        """Add tokens to the last span."""
        self.token_ids += token_ids
        length, parent = self.spans[-1]
        self.spans[-1] = (length + len(token_ids), parent)

    def occurrences(self) -> list[int]:
        """The number of sequences that hold each token."""
        counts = [0] * len(self.spans)
        for leaf in self.leaves:
            for span in (*ancestors(self.spans, leaf), leaf):
                counts[span] += 1
        return [count for count, (length, _) in zip(counts, self.spans, strict=True) for _ in range(length)]

    def end(self, span: int) -> int:
        """The place in the line of a span's last token."""
        return sum(length for length, _ in self.spans[: span + 1]) - 1


def _add_row(line: _Line, row: Sequence[EncodedExample], num_shared: int, beginning: int) -> Iterator[int]:
    """Add what follows the shared beginning; yields the places that predict the responses' tokens."""
    prompt = row[0].prompt_ids[num_shared:]
    if len(row) == 1:
        span = line.add(prompt + row[0].response_ids[: line.end_of_responses], beginning)
        line.leaves.append(span)
        first = line.end(span) - len(row[0].response_ids[: line.end_of_responses])
        yield from range(first, first + len(row[0].response_ids))
        return
    parent = line.add(prompt, beginning)
    for example in row:
        yield line.end(parent)
        start = len(line.token_ids)
        line.leaves.append(line.add(example.response_ids[: line.end_of_responses], parent))
        yield from range(start, start + len(example.response_ids) - 1)


def _families(prompts: Sequence[Sequence[int]]) -> Iterator[tuple[slice, int]]:
    """Runs of neighbouring prompts, and the number of first tokens that a run shares (0 for a run of one)."""
    start, num_shared = 0, len(prompts[0])
    for index, prompt in enumerate([*prompts[1:], ()], start=1):
        common = count_shared([prompts[start][:num_shared], prompt])
        if common >= MIN_SHARED_BEGINNING:
            num_shared = common
            continue
        yield slice(start, index), num_shared if index - start > 1 else 0
        start, num_shared = index, len(prompt)


def _targets(rows: Sequence[Sequence[EncodedExample]]) -> Tensor:
    return torch.tensor([token_id for row in rows for example in row for token_id in example.response_ids])


def _lengths(rows: Sequence[Sequence[EncodedExample]]) -> Tensor:
    return torch.tensor([len(example.response_ids) for row in rows for example in row])


def num_tokens(example: EncodedExample) -> int:
    """Tokens of prompt and response."""
    return len(example.prompt_ids) + len(example.response_ids)
