"""Log-probabilities of the reference, the frozen start model: computed once, before training, and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from sinterlm.formats import atomic_write
from sinterlm.records import digest
from sinterlm.training.batch import EncodedRow, row_examples
from sinterlm.training.logprobs import compute_dtype, sequence_logps


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """Where reference log-probabilities are kept, and which weights they belong to."""

    folder: Path
    model_fingerprint: str

    def path(self, rows: Sequence[EncodedRow], dtype: torch.dtype) -> Path:
        """The file of these rows: its name holds the weights, the precision, and every token id and boundary."""
        tokens = [[row["input_ids"], row["num_prompt_tokens"], row["num_response_tokens"]] for row in rows]
        return self.folder / f"{digest([self.model_fingerprint, str(dtype), tokens])}.parquet"


def with_reference(
    model: PreTrainedModel, rows: Sequence[EncodedRow], *, batch_size: int, cache: ReferenceCache | None = None
) -> list[EncodedRow]:
    """The rows with the log-probabilities that ``model`` gives their responses now, under the autocast that is on.

    Args:
        model: the policy before its first step.
        rows: encoded rows.
        batch_size: rows in one forward pass.
        cache: read where the file is there, written where it is not; None computes.
    """
    path = cache.path(rows, compute_dtype(model)) if cache else None
    if path and path.exists():
        logps = pq.read_table(path)["logps"].to_pylist()
    else:
        logps = _compute(model, rows, batch_size=batch_size)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.table({"prompt_id": [row["prompt_id"] for row in rows], "logps": logps})
            with atomic_write(path) as temporary:
                pq.write_table(table, temporary)
    return [EncodedRow(**{**row, "reference_logps": values}) for row, values in zip(rows, logps, strict=True)]


def _compute(model: PreTrainedModel, rows: Sequence[EncodedRow], *, batch_size: int) -> list[list[float]]:
    examples = [row_examples(row) for row in rows]
    flat = iter(sequence_logps(model, list(chain.from_iterable(examples)), batch_size=batch_size))
    return [[next(flat).logp for _ in row] for row in examples]
