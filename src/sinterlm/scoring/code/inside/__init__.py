"""The code that runs inside the sandbox, and nowhere else; it needs only the standard library.

Program and tests are two processes, because in one process no verdict is safe: a program could replace what the tests
compare with, or find the tests' expected values. They exchange copies of plain data, copies of objects whose
class both sides have (its name and the attributes), exceptions, and references to all other objects, which stay where
they are. So an ``==`` of the program's own never meets a value of the tests: what it may decide is whether two of its
own objects are equal, and what the tests do with an object that they made themselves, of a class that was asked for.

The sandbox cannot read the files of this package. So its modules are sent there as one script, :func:`script`. They
share one namespace there, in which a name means one thing only.

Little of the standard library is imported: imports are half of the time that an answer takes.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from threading import Lock

_MODULES = (
    "bridge",
    "event_loops",
    "operations",
    "stand_ins",
    "program_side",
    "pytest_part",
    "test_runner",
    "tests_side",
    "main",
)
"""Each needs only what is before it."""
_JOINING = Lock()
"""Answers are judged in several threads, and in CPython 3.11 two that call ``ast.parse`` at once may get a SystemError
(python/cpython#106905): the first answers had no score."""


@cache
def script() -> str:
    """All modules in one text, without what they import of each other."""
    with _JOINING:
        texts = [Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8") for module in _MODULES]
        return "from __future__ import annotations\n" + "\n".join(map(_without_own_imports, texts))


def _without_own_imports(text: str) -> str:
    lines = text.split("\n")
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith((__name__, "__future__")):
            del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)
