"""How the sequences of a micro-batch lie in tensors: one to a line, or with what they share computed once.

The responses of a row share its prompt, and prompts share their beginnings (a system prompt). In the shared layout the
sequences of a pack form a tree of tokens: every token stands once and sees its ancestors only, at the position of its
depth. That is the same computation as one sequence to a line, with fewer tokens.
Shapes: N sequences, M response tokens of all of them, P lines of at most U tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, Protocol, TypedDict

import torch
from torch import Tensor

from sinterlm.chat import EncodedExample

PACK_TOKENS = 512
"""Rows join a pack up to so many tokens: attention grows with their square, and rows see little of each other."""


class SequenceBatch(TypedDict):
    """What the model's forward is called with."""

    input_ids: Tensor
    """(P, U), padded on the right."""
    attention_mask: Tensor
    """(P, U), 1 for tokens and 0 for padding; or (P, 1, U, U), true where a token (third axis) sees another."""
    position_ids: NotRequired[Tensor]
    """(P, U), of the shared layout."""
    predictors: Tensor
    """(M,): positions, counted over all P * U, whose hidden states predict a response token."""
    targets: Tensor
    """(M,): those tokens, sequence by sequence."""
    lengths: Tensor
    """(N,): response tokens of each sequence."""


class Layout(Protocol):
    """A way to lay the examples of rows out in tensors."""

    def __call__(self, rows: Sequence[Sequence[EncodedExample]], *, pad_token_id: int) -> SequenceBatch:
        """Lay out the examples of each row; sequences are numbered row by row."""
        ...


class TokenTree:
    """Sequences as paths from the root; a token that several begin with stands once. Parents stand before children."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, token_ids: Sequence[int]) -> list[int]:
        """The nodes of a sequence, added where they are new."""
        node, path = -1, []
        for token_id in token_ids:
            child = self._children.setdefault((node, token_id), len(self.token_ids))
            if child == len(self.token_ids):
                self.token_ids.append(token_id)
                self.parents.append(node)
            node = child
            path.append(node)
        return path

    def visible(self) -> Tensor:
        """(U, U), true where the token of the line is the token of the column or descends from it."""
        visible = torch.eye(len(self.parents), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                visible[node] |= visible[parent]
        return visible


def one_to_a_line(rows: Sequence[Sequence[EncodedExample]], *, pad_token_id: int) -> SequenceBatch:
    """Every sequence on a line of its own, padded: for any model.

    Args:
        rows: the examples of each row.
        pad_token_id: any token; padding is not attended to.
    """
    examples = [example for row in rows for example in row]
    lines = [example.prompt_ids + example.response_ids for example in examples]
    input_ids = _padded(lines, pad_token_id)
    paths = [[line * input_ids.shape[1] + position for position in range(len(ids))] for line, ids in enumerate(lines)]
    predictors, targets, lengths = _responses(examples, paths)
    return SequenceBatch(
        input_ids=input_ids,
        attention_mask=_padded([[1] * len(ids) for ids in lines], 0),
        predictors=predictors,
        targets=targets,
        lengths=lengths,
    )


def shared(rows: Sequence[Sequence[EncodedExample]], *, pad_token_id: int) -> SequenceBatch:
    """Packs of rows in which shared beginnings are computed once: for models that attend by a mask.

    Args:
        rows: the examples of each row; they lie in the same pack.
        pad_token_id: any token; padding sees itself only.
    """
    trees = [TokenTree()]
    places: list[tuple[int, list[int]]] = []
    for row in rows:
        if len(trees[-1].token_ids) + _num_tokens(row) > PACK_TOKENS and trees[-1].token_ids:
            trees.append(TokenTree())
        places += [(len(trees) - 1, trees[-1].add(example.prompt_ids + example.response_ids)) for example in row]
    input_ids = _padded([tree.token_ids for tree in trees], pad_token_id)
    width = input_ids.shape[1]
    mask = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1, 1)
    for line, tree in enumerate(trees):
        mask[line, 0, : len(tree.token_ids), : len(tree.token_ids)] = tree.visible()
    predictors, targets, lengths = _responses(
        [example for row in rows for example in row], [[line * width + node for node in path] for line, path in places]
    )
    return SequenceBatch(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=mask.sum(-1).squeeze(1) - 1,
        predictors=predictors,
        targets=targets,
        lengths=lengths,
    )


def _num_tokens(row: Sequence[EncodedExample]) -> int:
    """Tokens of a row whose prompt is computed once."""
    return len(row[0].prompt_ids) + sum(len(example.response_ids) for example in row)


def _responses(examples: Sequence[EncodedExample], paths: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Predictors, targets and lengths: a response token is predicted at the token before it on its path."""
    predictors = [
        position
        for example, path in zip(examples, paths, strict=True)
        for position in path[len(example.prompt_ids) - 1 : -1]
    ]
    targets = [token_id for example in examples for token_id in example.response_ids]
    lengths = [len(example.response_ids) for example in examples]
    return torch.tensor(predictors), torch.tensor(targets), torch.tensor(lengths)


def _padded(lines: Sequence[Sequence[int]], value: int) -> Tensor:
    """(P, U): the lines, filled up on the right."""
    width = max(map(len, lines))
    return torch.tensor([[*line, *[value] * (width - len(line))] for line in lines])
