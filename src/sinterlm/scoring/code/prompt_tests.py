"""The tests of a prompt, which are its ``answers``.

One is either Python (assert statements, or any code that raises if the program is wrong) or a JSON object
``{"input": ..., "output": ...}``: what a script reads and must print, white space at the ends of lines aside.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sinterlm.errors import InputError
from sinterlm.records import Prompt
from sinterlm.scoring.code.syntax import Definition, parse


class InputOutput(NamedTuple):
    """A test of a script: what it reads, and what it must print."""

    input: str
    output: str


class Tests(NamedTuple):
    """The tests of one prompt: Python, or pairs for a script, not both."""

    python: list[str]
    pairs: list[InputOutput]


def parse_tests(prompt: Prompt) -> Tests:
    """The tests in a prompt's ``answers``.

    Raises:
        InputError: There are no tests, one has neither form, or both forms are mixed.
    """
    tests = Tests([], [])
    for number, text in enumerate(prompt.answers):
        pair = _parse_pair(text)
        if pair:
            tests.pairs.append(pair)
        elif parse(text) is not None:
            tests.python.append(text)
        else:
            raise _test_error(prompt, f"`answers[{number}]` is {text[:80]!r}")
    if bool(tests.python) == bool(tests.pairs):
        raise _test_error(prompt, "tests of both forms" if tests.python else "no tests")
    return tests


def _parse_pair(text: str) -> InputOutput | None:
    with suppress(ValueError, RecursionError):
        fields: Any = json.loads(text)
        is_pair = isinstance(fields, dict) and fields.keys() == set(InputOutput._fields)
        if is_pair and all(isinstance(value, str) for value in fields.values()):
            return InputOutput(**fields)
    return None


def _test_error(prompt: Prompt, found: str) -> InputError:
    return InputError(
        f"prompt {prompt.id}: {found}; expected, for the scorer code, `answers` that are tests: Python code, or JSON "
        'objects {"input": text, "output": text}, all of one form'
    )


def uncalled_tests(test: str) -> list[str]:
    """The functions of a test that are tests themselves, by pytest's naming, and that it does not call."""
    tree = parse(test)
    functions = [node for node in tree.body if isinstance(node, Definition)] if tree else []
    called = {
        node.id
        for statement in (tree.body if tree else [])
        if not isinstance(statement, Definition)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    }
    return [
        node.name
        for node in functions
        if node.name.startswith("test")
        and not isinstance(node, ast.ClassDef)
        and node.name not in called
        and (len(node.args.args) == len(node.args.defaults) or node.decorator_list)
    ]


def compares_identity(tests: Sequence[str]) -> bool:
    """Whether tests ask if two objects are the same: copies are not."""
    return any(
        isinstance(operator, ast.Is | ast.IsNot) and not isinstance(operand, ast.Constant)
        for test in tests
        for node in ast.walk(parse(test) or ast.Module([], []))
        if isinstance(node, ast.Compare)
        for operator, operand in zip(node.ops, node.comparators, strict=True)
    )
