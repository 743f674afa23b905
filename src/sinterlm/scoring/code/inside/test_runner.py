"""How tests run: their statements, test functions, and classes of ``unittest``."""

from __future__ import annotations

import sys
from contextlib import suppress

from sinterlm.scoring.code.inside.pytest_part import pytest_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def carry_out(
    namespace: dict[str, Any],
    borrow: Callable[[str], Any],
    tests: list[str],
    names: list[str],
    provided: dict[str, list[str]],
    modules: list[str],
    functions: list[list[str]],
    asks_for_classes: bool,
) -> dict[str, Any]:
    """Run the tests one after the other, in one namespace; if one fails: its number and the error.

    Args:
        namespace: What is the tests' own already.
        borrow: Gives what the program has under a name.
        tests: Python.
        names: What the tests use of the program.
        provided: Names that the tests forgot to import, each with its module and what of it.
        modules: From these the tests import what is the program's.
        functions: For each test the functions that it defines and does not call.
        asks_for_classes: Not used here.
    """
    own = {}
    for name in names:
        with suppress(AttributeError):
            own[name] = borrow(name)
    namespace |= own
    for name, (module, attribute) in provided.items():
        with suppress(ImportError, AttributeError):
            found = __import__(module, fromlist=["_"])
            namespace[name] = getattr(found, attribute) if attribute else found
    for name in modules:
        solution = type(sys)(name)
        solution.__dict__.update(own)
        sys.modules[name] = solution
    if any("pytest" in test for test in tests):
        sys.modules["pytest"] = pytest_module()
    if any("unittest" in test for test in tests):
        unittest: Any = __import__("unittest")
        unittest.main = lambda *_, **__: None
    seen: set[str] = set()
    for number, (test, to_call) in enumerate(zip(tests, functions, strict=True)):
        try:
            exec(compile(test, "test.py", "exec", dont_inherit=True), namespace)
            for name in to_call:
                call_test(namespace[name])
            if "unittest" in sys.modules:
                run_cases({name: value for name, value in namespace.items() if name not in seen})
            seen |= namespace.keys()
        except BaseException as error:
            return {"passed": False, "test": number, "error": type(error).__name__, "message": str(error)[:200]}
    return {"passed": True}


def call_test(function: Any) -> None:
    """Run a test that is a function, with each of the cases that it names."""
    cases: list[dict[str, Any]] = [{}]
    for names, values in getattr(function, "cases", []):
        split = names.replace(" ", "").split(",") if isinstance(names, str) else list(names)
        rows = [dict(zip(split, row if len(split) > 1 else [row], strict=False)) for row in values]
        cases = [case | row for case in cases for row in rows]
    for case in cases:
        found = function(**case)
        if hasattr(found, "__await__"):
            __import__("asyncio").run(found)


def is_of_test_runner(error: Any) -> bool:
    """Whether an exception says something to ``unittest`` itself, such as that a test is to be skipped."""
    return any(cls.__module__.partition(".")[0] == "unittest" for cls in type(error).__mro__)


def run_cases(namespace: dict[str, Any]) -> None:
    """Run the tests of all classes of ``unittest``."""
    unittest = sys.modules["unittest"]
    for value in namespace.values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == "tests":
            result = unittest.TestResult()
            ended: list[Any] = []
            result.addSuccess = ended.append
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            for _, trace in (*result.failures, *result.errors):
                raise AssertionError(trace.strip().rpartition("\n")[2])
            if len(ended) + len(result.skipped) + len(result.expectedFailures) < result.testsRun:
                raise AssertionError("a test came to no end")
