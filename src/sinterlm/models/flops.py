"""GPU hours before anything is run: estimates from floating-point operations.

One token costs 2 operations a weight where it is read (a prompt, or an answer that is scored) or written, and 6 where
it is trained on; 2 more where activations are computed again, and 2 for the reference. What a GPU sustains of these is
in :data:`GPUS`. Attention, which grows with the square of the length, loading, and what several GPUs lose to each other
are not counted: expect the right order of magnitude, no more.
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
    """Operations a second that one GPU sustains, in bfloat16, by what it does."""

    name: str
    reading: float
    """Prompts, and dialogues that are scored, in large batches."""
    writing: float
    """Answers, many at once."""
    training: float


GPUS = (
    # 40, 10 and 25 % of the data sheet's 312 TFLOP/s: estimates. WRPO's own training, 212 minutes on eight A800
    # (Table 8), comes to 28 hours, and to some 20 % where a sequence has 700 tokens.
    Gpu("A100", reading=125e12, writing=31e12, training=78e12),
    # Twice the A100's answers a second, as Lambda's benchmark of vLLM has it; else 40 and 25 % of 989 TFLOP/s.
    Gpu("H100", reading=396e12, writing=62e12, training=247e12),
)


class Flops(NamedTuple):
    """Floating-point operations, by what they are for."""

    reading: float = 0.0
    writing: float = 0.0
    training: float = 0.0

    def hours(self, gpu: Gpu) -> float:
        """What one such GPU takes."""
        seconds = self.reading / gpu.reading + self.writing / gpu.writing + self.training / gpu.training
        return seconds / 3600


def add_flops(parts: Iterable[Flops | None]) -> Flops | None:
    """All of it together; None where a part is not known."""
    total = Flops()
    for part in parts:
        if part is None:
            return None
        total = Flops(*map(sum, zip(total, part, strict=True)))
    return total


def count_weights(model: str, active_billions: float | None = None) -> float | None:
    """Weights that a token passes through: as declared, as the files on this machine hold, or as the name says.

    >>> count_weights("google/gemma-2-27b-it")
    27000000000.0
    """
    if active_billions is not None:
        return active_billions * 1e9
    if known := known_weights_bytes(model):
        return known / FLOAT32_BYTES
    # "8x7B" is none: of a mixture of experts, how many weights work at a token does not follow from the name.
    name = split_revision(model)[0].rpartition("/")[2].lower()
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name)
    return float(size[1]) * {"b": 1e9, "m": 1e6}[size[2]] if size else None


def sampling_flops(weights: float, *, prompt_tokens: float, new_tokens: float) -> Flops:
    """Of reading prompts and writing answers."""
    return Flops(reading=READ_OR_WRITTEN * weights * prompt_tokens, writing=READ_OR_WRITTEN * weights * new_tokens)


def scoring_flops(weights: float, *, tokens: float) -> Flops:
    """Of reading dialogues."""
    return Flops(reading=READ_OR_WRITTEN * weights * tokens)


def training_flops(weights: float, *, tokens: float, epochs: float, needs_reference: bool, recomputes: bool) -> Flops:
    """Of training on ``tokens`` tokens, ``epochs`` times; the reference reads them once."""
    trained = (TRAINED + (COMPUTED_AGAIN if recomputes else 0)) * epochs
    reference = READ_OR_WRITTEN if needs_reference else 0
    return Flops(training=(trained + reference) * weights * tokens)
