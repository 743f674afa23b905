"""The order of the rows in an epoch, and how several processes get equally many of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler

from sinterlm.training.batch import RowBatch
from sinterlm.training.encoding import EncodedRow


class EpochOrder(Sampler[int]):
    """An order of the rows that depends only on seed and epoch, padded so that all processes get equally many.

    Accelerate would instead repeat the epoch's first rows, which would then count twice in its last step.

    Args:
        order: The order to follow; a random one has a ``generator``.
        seed: The seed of epoch 0; each epoch adds its number, as in Accelerate.
        epoch: Returns the current epoch. (``set_epoch`` of Transformers and Accelerate does not reach the sampler if
            several processes resume within an epoch.)
        multiple: The length of an epoch is a multiple of this number.
        filler: The index of the row that pads, of weight 0.
    """

    def __init__(self, order: Sampler[int], *, seed: int, epoch: Callable[[], int], multiple: int, filler: int) -> None:
        self._order = order
        self._seed = seed
        self._epoch = epoch
        self._filler = filler
        self._num_rows = len(order)  # type: ignore[arg-type]
        self._num_fillers = -self._num_rows % multiple

    def __iter__(self) -> Iterator[int]:
        if hasattr(self._order, "generator"):
            self._order.generator = torch.Generator().manual_seed(self._seed + self._epoch())
        yield from self._order
        yield from repeat(self._filler, self._num_fillers)

    def __len__(self) -> int:
        return self._num_rows + self._num_fillers


def filler_row(rows: Sequence[EncodedRow]) -> EncodedRow:
    """A cheap row that counts for nothing: the shortest, with weight 0."""
    shortest = min(rows, key=lambda row: len(row["input_ids"]))
    return EncodedRow(**{**shortest, "weight": 0.0})


def fill_up_chunks(batches: Sequence[dict[str, list[RowBatch]]], accelerator: Accelerator) -> None:
    """Give each micro-batch as many chunks as the largest across processes has, since sharded models run in step.

    Args:
        batches: This process's micro-batches, as many as every other process has; gets chunks of weight 0.
        accelerator: Connects the processes.
    """
    if accelerator.num_processes == 1:
        return
    own = torch.tensor([len(batch["chunks"]) for batch in batches], device=accelerator.device)
    most = accelerator.gather(own).view(accelerator.num_processes, -1).amax(0)
    for batch, num_missing in zip(batches, (most - own).tolist(), strict=True):
        smallest = min(batch["chunks"], key=lambda chunk: int(chunk["num_row_tokens"].sum()))
        empty = RowBatch(**{**smallest, "row_weights": torch.zeros_like(smallest["row_weights"])})
        batch["chunks"] += [empty] * num_missing
