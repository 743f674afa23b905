"""What runs inside the sandbox, in one of four roles, which the command line names.

- ``run``: the program as a script, whose input and output are those of the process;
- ``serve``: the program as a module, whose functions the other side calls;
- ``test``: the tests. If they name part of the program, they get a stand-in, whose calls go to the other side;
- ``alone``: program and tests in one process. Such a verdict can be forged. It only tells whether a program that failed
  otherwise failed for a reason of its own or for a limit of this bridge.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

from sinterlm.scoring.code.inside.bridge import Channel
from sinterlm.scoring.code.inside.event_loops import allow_loops
from sinterlm.scoring.code.inside.program_side import run, serve
from sinterlm.scoring.code.inside.tests_side import run_alone, run_tests


def main() -> None:
    """Take the role that the command line names; the first message says the rest."""
    role = sys.argv[1]
    channel, verdicts = Channel(os.dup(0), os.dup(1)), os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (2,) if role == "run" else (0, 1, 2):
        os.dup2(nowhere, descriptor)
    job = channel.receive()
    if "asyncio" in str(job):
        with suppress(Exception):
            allow_loops()
    if role == "run":
        try:
            run(job)
        except ModuleNotFoundError as error:
            os.write(verdicts, json.dumps({"error": "ModuleNotFoundError", "message": str(error)}).encode())
            raise
        except PermissionError as error:
            os.write(verdicts, json.dumps({"error": "PermissionError", "message": str(error)}).encode())
            raise
        return
    sys.set_int_max_str_digits(0)  # whatever a program returns; it costs its own time
    if role == "serve":
        serve(channel, **job)
    else:
        try:
            verdict = run_tests(channel, **job) if role == "test" else run_alone(**job)
        except BaseException as error:
            verdict = {"passed": False, "error": type(error).__name__, "message": str(error)[:200]}
        os.write(verdicts, json.dumps(verdict).encode())
        os._exit(0)


if __name__ == "__main__":
    main()
