"""Which rows an epoch takes in which order, and how several processes come out even."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat

import torch
from accelerate import Accelerator
from torch.utils.data import Sampler

from sinterlm.training.batch import RowBatch
from sinterlm.training.encoding import EncodedRow


class EpochOrder(Sampler[int]):
    """An order of the rows that depends on seed and epoch alone, filled up until all processes get equally many.

    Accelerate would repeat the epoch's first rows instead, and they would count twice in its last step.

    Args:
        order: of the rows; where it is random, it has a ``generator``.
        seed: of the order of epoch 0; any epoch's is this one plus its number, as in Accelerate.
        epoch: tells the epoch that begins, or in which a resumed run is. (``set_epoch`` of Transformers and Accelerate
            does not reach the sampler where several processes resume within an epoch.)
        multiple: the number of places in an epoch is a multiple of it.
        filler: the row that fills up, of weight 0.
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
    """A row that costs little and counts nothing: the shortest, with weight 0."""
    shortest = min(rows, key=lambda row: len(row["input_ids"]))
    return EncodedRow(**{**shortest, "weight": 0.0})


def fill_up_chunks(batches: Sequence[dict[str, list[RowBatch]]], accelerator: Accelerator) -> None:
    """Give each micro-batch as many chunks as the largest of all processes has, since sharded models run in step.

    Args:
        batches: this process's micro-batches, as many as every other's; chunks without weight are added to them.
        accelerator: joins the processes.
    """
    if accelerator.num_processes == 1:
        return
    own = torch.tensor([len(batch["chunks"]) for batch in batches], device=accelerator.device)
    most = accelerator.gather(own).view(accelerator.num_processes, -1).amax(0)
    for batch, num_missing in zip(batches, (most - own).tolist(), strict=True):
        smallest = min(batch["chunks"], key=lambda chunk: int(chunk["num_row_tokens"].sum()))
        empty = RowBatch(**{**smallest, "row_weights": torch.zeros_like(smallest["row_weights"])})
        batch["chunks"] += [empty] * num_missing
