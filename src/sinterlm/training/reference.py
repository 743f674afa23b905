"""Log-probabilities of the reference (the frozen start model), computed once before training and kept on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch import nn

from sinterlm.errors import InputError
from sinterlm.files import atomic_write
from sinterlm.records import digest
from sinterlm.training.batch import RowBatch
from sinterlm.training.encoding import EncodedRow
from sinterlm.training.logprobs import compute_dtype
from sinterlm.training.lora import base_weights
from sinterlm.training.order import fill_up_chunks

_DIGEST = b"digest"
"""Key in the file's metadata for the digest of the log-probabilities, so that damage shows."""
ROWS_AT_ONCE = 256
"""Rows that are collated together, then cut into chunks by their tokens."""

Collator = Callable[[list[EncodedRow]], dict[str, list[RowBatch]]]


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """Where reference log-probabilities are kept, and which weights they belong to."""

    folder: Path
    model_fingerprint: str

    def path(self, rows: Sequence[EncodedRow], dtype: torch.dtype) -> Path:
        """The file of these rows; its name depends on the weights, the precision, and every token id and boundary."""
        # Row by row: as one text, the tokens of a large data set would take more memory than the rows themselves.
        tokens = [digest([row["input_ids"], row["num_prompt_tokens"], row["num_response_tokens"]]) for row in rows]
        return self.folder / f"{digest([self.model_fingerprint, str(dtype), tokens])}.parquet"

    def read(self, rows: Sequence[EncodedRow], dtype: torch.dtype) -> list[list[float]] | None:
        """The kept log-probabilities of these rows, in order; None if there are none, or the file is damaged."""
        try:
            table = pq.read_table(self.path(rows, dtype), page_checksum_verification=True)
            logps: list[list[float]] = table["logps"].to_pylist()
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return None
        written = (table.schema.metadata or {}).get(_DIGEST)
        return logps if written in (None, digest(logps).encode()) else None  # earlier releases wrote no digest

    def write(self, rows: Sequence[EncodedRow], dtype: torch.dtype, logps: list[list[float]]) -> None:
        """Keep the log-probabilities of these rows' responses."""
        table = pa.table({"row": [row["name"] for row in rows], "logps": logps})
        with atomic_write(self.path(rows, dtype)) as temporary:
            pq.write_table(table.replace_schema_metadata({_DIGEST: digest(logps)}), temporary, write_page_checksum=True)


class Referenced(NamedTuple):
    """Rows with the reference's log-probabilities."""

    rows: list[EncodedRow]
    is_from_cache: bool


def with_reference(
    model: nn.Module,
    rows: Sequence[EncodedRow],
    *,
    collate: Collator,
    accelerator: Accelerator,
    cache: ReferenceCache | None = None,
    is_trained: bool = False,
) -> Referenced:
    """The rows with the log-probabilities that ``model`` gives their responses now, under the current autocast.

    They are computed as in training, on the weights without an adapter. Each process computes its share; only the
    main process reads and writes the cache.

    Args:
        model: The policy before its first step, as it is called in training.
        rows: Encoded rows.
        collate: As in training.
        accelerator: Connects the processes.
        cache: Read if it has these rows, written if it does not; None always computes.
        is_trained: Whether ``model`` has taken steps, so that only the cache can give the log-probabilities.

    Raises:
        InputError: ``model`` has taken steps, and the cache does not have these rows.
    """
    unwrapped = accelerator.unwrap_model(model)
    dtype = compute_dtype(unwrapped)
    kept = cache.read(rows, dtype) if cache and accelerator.is_main_process else None
    logps: list[list[float]] | None = broadcast_object_list([kept])[0]
    is_from_cache = logps is not None
    if logps is None:
        if is_trained:
            raise InputError(
                "training resumes from a checkpoint, but the reference's log-probabilities for these weights, rows and "
                f"precision are not in {cache.folder if cache else 'a cache'}; begin anew"
            )
        with base_weights(unwrapped):
            logps = _compute(model, rows, collate, accelerator)
        if cache and accelerator.is_main_process:
            cache.write(rows, dtype, logps)
    referenced = [EncodedRow(**{**row, "reference_logps": values}) for row, values in zip(rows, logps, strict=True)]
    return Referenced(referenced, is_from_cache)


@torch.no_grad()
def _compute(
    model: nn.Module, rows: Sequence[EncodedRow], collate: Collator, accelerator: Accelerator
) -> list[list[float]]:
    """Log-probabilities of every row's responses, in the order of the rows."""
    was_training = model.training
    model.train(False)
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]))
    # Every process gets the same number of rows, because all must call a sharded model together.
    num_each = math.ceil(len(rows) / accelerator.num_processes)
    own = list(
        islice(
            cycle(by_length), accelerator.process_index, num_each * accelerator.num_processes, accelerator.num_processes
        )
    )
    found: list[tuple[int, list[float]]] = []
    for start in range(0, len(own), ROWS_AT_ONCE):
        indices = own[start : start + ROWS_AT_ONCE]
        logps = iter(_logps(model, collate([rows[index] for index in indices]), accelerator))
        found += [(index, list(islice(logps, len(rows[index]["num_response_tokens"])))) for index in indices]
    model.train(was_training)
    by_row = dict(gather_object(found))
    return [by_row[index] for index in range(len(rows))]


def _logps(model: nn.Module, batch: dict[str, list[RowBatch]], accelerator: Accelerator) -> list[float]:
    """The log-probability of every response of the batch, in order."""
    num_own = len(batch["chunks"])
    fill_up_chunks([batch], accelerator)
    sequences = [
        {key: value for key, value in chunk["sequences"].items() if key != "occurrences"} for chunk in batch["chunks"]
    ]
    logps = [model(**send_to_device(inputs, accelerator.device)) for inputs in sequences]
    return torch.cat(logps[:num_own]).tolist()
