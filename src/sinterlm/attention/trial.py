"""Whether a model may share what sequences begin with: found out by trying.

A configuration does not tell all that a model's attention does. So training and sampling each compute a few tokens
with shared attention and with the library's before they rely on it.
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
        CannotShareError: the configuration rules it out, the comparison found a difference, or the model failed.
        InputError: as raised by the comparison; so is a FloatingPointError, and an error that says memory ran out.
    """
    try:
        plug_in(model)
        yield
    except Exception as error:  # whatever a model does with arguments and a cache that it does not expect
        attend_as_before(model)
        if out_of_memory(error) or isinstance(error, InputError | FloatingPointError):
            raise
        raise CannotShareError(f"{type(error).__name__}: {first_line(error)}") from error
