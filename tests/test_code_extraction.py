"""From answers to programs: fences, prose, continuations; each case says what the program must define or be."""

from __future__ import annotations

import ast
import itertools
import resource
import time
from contextlib import suppress

import pytest

from sinterlm.errors import InputError
from sinterlm.records import Message
from sinterlm.scoring.code.extraction import MAX_CHARACTERS, Program, build_program, find_blocks
from sinterlm.scoring.code.problem import (
    Problem,
    common_definitions,
    is_stub,
    methods_to_write,
    own_definitions,
    prompt_code,
    read_problem,
    taken_from,
)
from sinterlm.scoring.code.syntax import names_loaded
from sinterlm.thoughts import split_thoughts
from tests.cases.code_wrappings import BEGINNINGS, CONTINUATIONS, STUB, WHOLE, WRAPPINGS


def run(program: Program | None) -> object:
    """The result of ``add(1, 2)``, ignoring statements that fail."""
    assert program is not None
    assert "add" in program.defined
    namespace: dict[str, object] = {"__name__": "program"}
    for node in ast.parse(program.text).body:
        with suppress(Exception, SystemExit):
            exec(compile(ast.Module([node], []), "program.py", "exec"), namespace)
    return namespace["add"](1, 2)  # type: ignore[operator]


@pytest.mark.parametrize("answer", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_wrapped_program(answer: str) -> None:
    assert run(build_program(split_thoughts(answer).answer, wanted={"add"})) == 3


@pytest.mark.parametrize("answer", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_wrapped_program_behind_a_signature(answer: str) -> None:
    assert run(build_program(split_thoughts(answer).answer, STUB, wanted={"add"})) == 3


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS.keys())
@pytest.mark.parametrize("wrapped", ["{}", "Complete it.\n\n```python\n{}\n```\n"], ids=["bare", "fenced"])
def test_continuation_of_the_prompt(beginning: str, wrapped: str) -> None:
    begun = prompt_code([Message("user", wrapped.format(beginning))])
    results = {name: run(build_program(answer, begun, wanted={"add"})) for name, answer in CONTINUATIONS.items()}
    assert results == dict.fromkeys(CONTINUATIONS, 3)


def test_block_that_shows_the_use_does_not_decide_what_the_program_is() -> None:
    """In any order of solution, helper and usage, the program is the solution with the helper and nothing else."""
    parts = {
        "solution": "def add(a, b):\n    return plus(a, b)",
        "helper": "def plus(a, b):\n    return a + b",
        "usage": "def main():\n    print(add(int(input()), 2))\nmain()",
    }
    for order in itertools.permutations(parts):
        answer = "\n".join(f"The {name}:\n```python\n{parts[name]}\n```" for name in order)
        program = build_program(answer, wanted={"add"})
        assert run(program) == 3
        assert program is not None
        assert "main" not in program.text


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   \n",
        "I cannot write this.",
        "```python\n```",
        "```python\ndef add(a, b) return\n```",
        "def add(a, b",
        "a\0b",
        "return 3",
        "```python\nfor x in y: pass\nbreak\n```",
        "```python\nclass A:\n    yield 3\n```",
    ],
)
def test_no_program(answer: str) -> None:
    assert build_program(answer) is None


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        (["print(1)", "print(2)"], "print(2)\n"),
        (["print(input())", "print('3 as expected')"], "print(input())\n"),
        (["def f():\n    print(1)", "def g(): ...", "f()"], "def f():\n    print(1)\n\nf()\n"),
    ],
    ids=["the last", "the one that reads", "what it needs"],
)
def test_script(blocks: list[str], text: str) -> None:
    answer = "\nOr:\n".join(f"```python\n{block}\n```" for block in blocks)
    program = build_program(answer, as_script=True)
    assert program is not None
    assert program.text == text


def test_imports_of_the_prompt_are_there() -> None:
    program = build_program("```python\ndef add(a: List[int], b):\n    return 3\n```", STUB, wanted={"add"})
    assert run(program) == 3


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (STUB, STUB),
        (f"Complete this function:\n```python\n{STUB}```", STUB),
        ("Write a function that adds two numbers.", ""),
        ("Yes", ""),
        ("It must pass this:\n```python\nassert add(1, 2) == 3\n```", ""),
        (
            "Do it.\n```python\nclass Solution:\n    def f(self, x: List[int]) -> Optional[Text]:\n        \n```",
            "from typing import List, Optional, Text\n"
            "class Solution:\n    def f(self, x: List[int]) -> Optional[Text]:\n        pass\n        \n",
        ),
        (
            "```\nclass C:\n    def f(self):\n        # here\n\n"
            "    def g(\n        self\n    ):\n        \n\n# c = C()\n```",
            "class C:\n    def f(self):\n        pass\n        # here\n\n"
            "    def g(\n        self\n    ):\n        pass\n        \n\n# c = C()\n",
        ),
        (
            "```\n# As ever.\n# class A:\n#     x: Any = 3\n# An aside.\ndef f(a: A):\n```",
            "from typing import Any\nclass A:\n    x: Any = 3\n\n\n"
            "# As ever.\n# class A:\n#     x: Any = 3\n# An aside.\ndef f(a: A):\n    pass\n",
        ),
        (
            '```\n"""\n# Nodes.\nclass A:\n    x = 3\nclass B:\n    def b(self): ...\n"""\nclass C: pass\n```',
            "class A:\n    x = 3\n\n\n"
            '"""\n# Nodes.\nclass A:\n    x = 3\nclass B:\n    def b(self): ...\n"""\nclass C: pass\n',
        ),
        ("```\n# class A: pass\nclass A: x = 3\n```", "# class A: pass\nclass A: x = 3\n"),
        ("```\nclass Text: pass\ndef f(x: Text): ...\n```", "class Text: pass\ndef f(x: Text): ...\n"),
        ("```\nfrom typing import *\ndef f(x: Any): ...\n```", "from typing import *\ndef f(x: Any): ...\n"),
    ],
)
def test_code_of_the_prompt(message: str, code: str) -> None:
    assert prompt_code((Message("system", WHOLE), Message("user", message))) == code


def test_own_definitions_are_those_with_a_body() -> None:
    """Shaped like HumanEval/38 and like LeetCode's classes."""
    code = f'''import math
LIMIT = 3
def encode(s):
    """Encode."""
    return s[::-1]
{STUB}
def later(x):
    import os
    """Not a docstring, but no body either."""
class Node:
    def __init__(self, value):
        self.value = value
class Solution:
    def solve(self, x):
        ...
print("no definition")
'''
    problem = Problem(code, frozenset({"add", "later", "Solution"}), frozenset(), frozenset(), {}, [])
    namespace: dict[str, object] = {}
    exec(own_definitions(problem, {"add"}), namespace)
    assert namespace.keys() - {"__builtins__"} == {"math", "LIMIT", "encode", "List", "Node"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('"""Words."""', True),
        ("...", True),
        ("raise NotImplementedError", True),
        ("raise NotImplementedError('write me')", True),
        ("return None", True),
        ("result = []\n    return result", True),
        ("import math\n    pass", True),
        ("# TODO: write this\n    return x + 1", True),
        ("return x[0]", False),
        ("raise ValueError(x)", False),
        ("for y in x:\n        return y", False),
    ],
)
def test_skeleton(body: str, expected: bool) -> None:
    code = f"def f(x):\n    {body}\n"
    assert is_stub(ast.parse(code).body[0], code) is expected


def problem_of(prompt: str, *tests: str) -> Problem:
    return read_problem(tests, [Message("user", prompt)])


AREA = "def area(side):\n    return side * side\n"
MEDIAN = "def median(a):\n    return sorted(a)[len(a) // 2 - 1]\n"


@pytest.mark.parametrize(
    ("prompt", "test", "asked"),
    [
        ("Write it.", "assert add(1, 2) == 3", {"add"}),
        (f"```python\n{AREA}def side(x):\n    pass\n```", "assert area(side(4)) == 4", {"side"}),
        (f"Mend it.\n```python\n{MEDIAN}```", "assert median([1, 2, 3]) == 2", {"median"}),
        (f"Mend it.\n```python\n{AREA}{MEDIAN}```", "assert area(median([3])) == 9", {"area", "median"}),
        ("Add up.", "assert isclose(add(1, 2), 3) and np.allclose(add(1, 2), 3)", {"add"}),
        ("Write `isclose(a, b)`.", "assert isclose(1, 1)", {"isclose"}),
        ("Write it.", "assert math.isclose(f(1), 2)", {"f"}),
        ("Write it.", "assert deepcopy([1]) == [1]", {"deepcopy"}),
        ("The sum of both.", "assert sum(10, 15) == 6", {"sum"}),
        ("Write it.", "from solution import add, sub\nassert add(1, 2) == sub(5, 2)", {"add", "sub"}),
        ("Write it.", "def check(candidate):\n    assert candidate(1) == 2\ncheck(add)", {"add"}),
    ],
)
def test_what_the_answer_has_to_define(prompt: str, test: str, asked: set[str]) -> None:
    assert problem_of(prompt, test).asked == asked


@pytest.mark.parametrize(
    ("prompt", "test"),
    [
        ("Write it.", "assert 1 + 1 == 2"),
        ("Write it.", "import math\nassert math.sqrt(4) == 2"),
        ("Write it.", "def check(candidate):\n    assert candidate(1) == 2"),
        (f"```python\n{AREA}def side(x):\n    pass\n```", "assert area(2) == 4 and 1"),
        ("Write it.", "assert len('ab') == 2"),
    ],
)
def test_tests_that_use_nothing_of_an_answer_are_refused(prompt: str, test: str) -> None:
    if "area" in test:
        assert problem_of(prompt, test).replaced == {"area"}  # it may be the code to fix
        return
    with pytest.raises(InputError, match="nothing that an answer could define"):
        problem_of(prompt, test)


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        (MEDIAN.replace(" - 1", ""), {"median"}),
        (AREA + MEDIAN.replace(" - 1", ""), {"median"}),
        (AREA + MEDIAN, {"area", "median"}),
        ("return 42", set()),
        ("x = 1", set()),
    ],
)
def test_what_is_taken_from_a_repair(answer: str, taken: set[str]) -> None:
    """Code that an answer only repeats belongs to the prompt; an answer that defines nothing else gives no program."""
    problem = problem_of(f"Mend it.\n```python\n{AREA}{MEDIAN}```", "assert area(median([1, 2, 3])) == 4")
    program = build_program(f"```python\n{answer}\n```", problem.begun, wanted=problem.asked)
    assert (taken_from(problem, program) if program else set()) == taken


def test_classes_that_the_program_needs_of_its_tests() -> None:
    """The names in the prompt, except those that hold a test."""
    tests = (
        "import math\nclass Node:\n    x = math.pi\nclass Other: pass\nclass Check:\n    def f(self): assert g(1) == 2",
        "from enum import Enum",
    )
    assert common_definitions(tests, [Message("user", "Check that a list of `Node` is one.")]) == [
        "import math",
        "from enum import Enum",
        "class Node:\n    x = math.pi",
    ]
    assert common_definitions(tests, [Message("user", "Check it.")]) == []


def test_methods_to_write_are_those_of_classes_without_bodies() -> None:
    code = "class A:\n    def f(self): return 1\nclass B:\n    def g(self): ...\n    def h(self): return 1"
    assert methods_to_write(Problem(code, frozenset({"B"}), frozenset(), frozenset(), {}, [])) == {"g", "h"}


def test_blocks() -> None:
    text = "```\na\n```\n```python\nb\n```\n```json\n{}\n```"
    assert [(block.language, block.code) for block in find_blocks(text)] == [
        ("", "a\n"),
        ("python", "b\n"),
        ("json", ""),
    ]


def test_names() -> None:
    assert names_loaded("assert f(x.y) == [z for z in g]") == {"f", "x", "z", "g"}


HOSTILE = {
    "minus signs": "-" * 90_000 + "1",
    "parentheses": "(" * 90_000,
    "attributes": "a" + ".b" * 45_000,
    "sums": "a" + "+a" * 45_000,
    "lambdas": "lambda:" * 12_000 + "1",
    "digits": "x = " + "9" * 90_000,
    "blocks": "".join(" " * depth + "if 1:\n" for depth in range(400)),
    "fences": "```\n" * 24_000,
    "prose": "from here on we import the def and class of it\n" * 2_000,
    "code without end": "def f():\n  (\n" * 6_000,
    "warnings": "'\\d' is 1\n" * 100,
    # The compiler would need gigabytes for these.
    "a long sum of constants": "x = " + "+".join(["'a'*4096"] * 2_000),
    "a long pattern": "match a:\n case [" + ",".join(f"x{number}" for number in range(12_000)) + "]: pass",
    "returns through finally": "def f():\n try:\n" + "  if a: return\n" * 4_000 + " finally:\n" + "  a\n" * 4_000,
    "finally in finally": "".join(f"{' ' * n}try: a\n{' ' * n}finally:\n" for n in range(19)) + " " * 19 + "a\n" * 99,
    "many fences and a long prompt": "```\n.\n```\n" * 9_000,
    "half a surrogate": "x = '\ud800'",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_read_in_bounded_time(text: str) -> None:
    started, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build_program(text)
    build_program(f"```python\n{text}\n```", STUB + "# long\n" * 500, wanted={"add"})
    assert time.monotonic() - started < 20  # 2 s on an idle machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KB
    assert len(text) < MAX_CHARACTERS


def test_endless_text_is_not_read() -> None:
    assert build_program("x = 1\n" * MAX_CHARACTERS) is None
