"""Estimates of GPU hours from floating-point operations, before anything is run.

A token costs 2 operations per weight to read (in a prompt, or in an answer that is scored) or to write, and 6 to train
on; recomputing activations adds 2, and the reference adds 2. :data:`GPUS` says how many operations a GPU sustains. Not
counted are attention, which grows with the square of the length, loading, and the overhead of several GPUs. Expect the
right order of magnitude, not more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from sinterlm.models.fingerprints import FLOAT32_BYTES, known_weights_bytes
from sinterlm.models.locate import split_revision

READ_OR_WRITTEN = 2
TRAINED = 6
COMPUTED_AGAIN = 2


class Gpu(NamedTuple):
    """Operations per second that one GPU sustains in bfloat16, by kind of work."""

    name: str
    reading: float
    """Prompts, and dialogues that are scored, in large batches."""
    writing: float
    """Answers, many at once in a batch."""
    training: float


GPUS = (
    # 40, 10 and 25 % of the data sheet's 312 TFLOP/s: estimates. WRPO's own training, 212 minutes on eight A800
    # (Table 8), takes 28 GPU hours: about 20 %, if a sequence has 700 tokens.
    Gpu("A100", reading=125e12, writing=31e12, training=78e12),
    # Twice the A100's answers per second, as in Lambda's benchmark of vLLM; otherwise 40 and 25 % of 989 TFLOP/s.
    Gpu("H100", reading=396e12, writing=62e12, training=247e12),
)


class Flops(NamedTuple):
    """Floating-point operations, by kind of work."""

    reading: float = 0.0
    writing: float = 0.0
    training: float = 0.0

    def hours(self, gpu: Gpu) -> float:
        """The hours that one such GPU takes."""
        seconds = self.reading / gpu.reading + self.writing / gpu.writing + self.training / gpu.training
        return seconds / 3600


def add_flops(parts: Iterable[Flops | None]) -> Flops | None:
    """The sum of all parts; None if a part is not known."""
    total = Flops()
    for part in parts:
        if part is None:
            return None
        total = Flops(*map(sum, zip(total, part, strict=True)))
    return total


def count_weights(model: str, active_billions: float | None = None) -> float | None:
    """The number of weights that a token passes through: as declared, from the files here, or from the model's name.

    >>> count_weights("google/gemma-2-27b-it")
    27000000000.0
    """
    if active_billions is not None:
        return active_billions * 1e9
    if known := known_weights_bytes(model):
        return known / FLOAT32_BYTES
    # "8x7B" does not match: the name of a mixture of experts does not tell how many weights a token passes through.
    name = split_revision(model)[0].rpartition("/")[2].lower()
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name)
    return float(size[1]) * {"b": 1e9, "m": 1e6}[size[2]] if size else None


def sampling_flops(weights: float, *, prompt_tokens: float, new_tokens: float) -> Flops:
    """The operations to read prompts and write answers."""
    return Flops(reading=READ_OR_WRITTEN * weights * prompt_tokens, writing=READ_OR_WRITTEN * weights * new_tokens)


def scoring_flops(weights: float, *, tokens: float) -> Flops:
    """The operations to read dialogues."""
    return Flops(reading=READ_OR_WRITTEN * weights * tokens)


def training_flops(weights: float, *, tokens: float, epochs: float, needs_reference: bool, recomputes: bool) -> Flops:
    """The operations to train on ``tokens`` tokens ``epochs`` times; the reference reads them once."""
    trained = (TRAINED + (COMPUTED_AGAIN if recomputes else 0)) * epochs
    reference = READ_OR_WRITTEN if needs_reference else 0
    return Flops(training=(trained + reference) * weights * tokens)
