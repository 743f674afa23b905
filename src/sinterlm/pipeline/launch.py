"""What a launcher (``accelerate launch``, ``torchrun``) tells each of its processes, without loading torch."""

from __future__ import annotations

import gc
import os
import sys

from sinterlm.errors import InputError


def is_main_process() -> bool:
    """Whether this is the process that prints and writes; without a launcher it is."""
    return os.environ.get("RANK", "0") == "0"


def require_one_process() -> None:
    """Refuse to carry out a fusion in several processes: each would ask every model on its own.

    Raises:
        InputError: a launcher has started several.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        raise InputError(
            f"a launcher has started {num_processes} processes, and a recipe runs in one; launch `sinterlm train` on "
            "the rows that the recipe has selected (`sinterlm run RECIPE --until select-METHOD` writes them to rows/)"
        )


def leave_launch() -> None:
    """Part from the launch's other processes, where a training has joined them: for the end of the program only.

    A finished trainer lies in reference cycles, and the connection's threads with it. Threads that are still there when
    the interpreter ends abort it.
    """
    distributed = sys.modules.get("torch.distributed")  # nothing has joined anything before it is loaded
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()
