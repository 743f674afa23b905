"""What a launcher (``accelerate launch``, ``torchrun``) tells each of its processes, without loading torch."""

from __future__ import annotations

import gc
import os
import sys

from sinterlm.errors import InputError


def is_main_process() -> bool:
    """Whether this is the process that prints and writes; always true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def require_one_process() -> None:
    """Refuse to run a fusion in several processes: each would ask every model by itself.

    Raises:
        InputError: A launcher has started several processes.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        raise InputError(
            f"a launcher has started {num_processes} processes, but a recipe runs in one; launch `sinterlm train` on "
            "the rows that the recipe has selected (`sinterlm run RECIPE --until select-METHOD` writes them to rows/)"
        )


def leave_launch() -> None:
    """Disconnect from the launch's other processes, if a training has connected to them. Call it only at the very end.

    Reference cycles keep a finished trainer alive, and with it the connection's threads. Threads that are alive when
    the interpreter exits abort it.
    """
    distributed = sys.modules.get("torch.distributed")  # without it, nothing is connected
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()
