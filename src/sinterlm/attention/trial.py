"""Whether a model can share the beginning of sequences: found out by trying.

A configuration does not tell everything that a model's attention does. So training and sampling first compute a few
tokens with shared attention and with the library's, and compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from sinterlm.attention.plug import CannotShareError, attend_as_before, plug_in
from sinterlm.errors import InputError, first_line, out_of_memory


@contextmanager
def sharing_on_trial(model: PreTrainedModel) -> Iterator[None]:
    """Plug shared attention in for a comparison with the library's; unplug it if anything goes wrong.

    Raises:
        CannotShareError: The configuration rules it out, the comparison found a difference, or the model failed.
        InputError: As raised by the comparison. FloatingPointError and out-of-memory errors pass through as well.
    """
    try:
        plug_in(model)
        yield
    except Exception as error:  # whatever a model raises on arguments and a cache that it does not expect
        attend_as_before(model)
        if out_of_memory(error) or isinstance(error, InputError | FloatingPointError):
            raise
        raise CannotShareError(f"{type(error).__name__}: {first_line(error)}") from error
