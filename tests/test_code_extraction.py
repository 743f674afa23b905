"""From answers to programs: fences, prose, continuations; each case says what the program must define or be."""

from __future__ import annotations

import resource
import time

import pytest

from sinterlm.records import Message
from sinterlm.scoring.code_extraction import (
    MAX_CHARACTERS,
    build_program,
    common_definitions,
    find_blocks,
    methods_to_write,
    names_in,
    own_definitions,
    prompt_code,
)

STUB = '''from typing import List


def add(a: int, b: int) -> int:
    """Add two numbers.
    >>> add(1, 2)
    3
    """
'''
WHOLE = "def add(a, b):\n    return a + b\n"
BODY = "    total = a + b\n    return total\n"

ANSWERS = {
    "a fence": f"```python\n{WHOLE}```",
    "prose around a fence": f"Here is the function.\n\n```python\n{WHOLE}```\n\nIt adds a and b.",
    "tag in capitals": f"```Python\n{WHOLE}```",
    "tag py3": f"```py3\n{WHOLE}```",
    "no tag": f"```\n{WHOLE}```",
    "tildes": f"~~~python\n{WHOLE}~~~",
    "title behind the tag": f'```python title="add.py"\n{WHOLE}```',
    "indented fence": "1. Like this:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",
    "indented code in a fence": "```python\n    def add(a, b):\n        return a + b\n```",
    "fence that is not closed": f"Sure:\n```python\n{WHOLE}",
    "fence in a fence of four": f"````python\n{WHOLE}# ```\n````",
    "Windows line ends": f"```python\n{WHOLE}```".replace("\n", "\r\n"),
    "other language first": f"```bash\npip install numpy\n```\n```python\n{WHOLE}```",
    "printed result behind": f"```python\n{WHOLE}print(add(1, 2))\n```\nOutput:\n```\n3 is printed\n```",
    "helper in a fence of its own": "```python\ndef plus(a, b):\n    return a + b\n```\nand\n"
    "```python\ndef add(a, b):\n    return plus(a, b)\n```",
    "the better one last": f"```python\ndef add(a, b):\n    return 0\n```\nThat is wrong.\n```python\n{WHOLE}```",
    "a fence that is no Python": f"```python\nadd(a, b) -> a + b\n```\n```python\n{WHOLE}```",
    "no fence": WHOLE,
    "no fence, prose around": f"Sure! Here it is, from my notes:\n\n{WHOLE}\nHope this helps.",
    "no fence, prose behind": f"{WHOLE}\nThis function adds a and b.\nIt's simple.",
}
CONTINUATIONS = {
    "the rest of the function": BODY,
    "the rest, first line stripped": "total = a + b\n    return total\n",
    "the rest, not indented": "total = a + b\nreturn total\n",
    "the rest, prose behind": f"{BODY}\nThis adds both numbers.",
    "the rest in a fence": f"```python\n{BODY}```",
    "the rest in a fence, not indented": "```python\ntotal = a + b\nreturn total\n```",
    "the rest and more": f"{BODY}\n\nif __name__ == '__main__':\n    print(add(1, 2))\n",
}


def run(program: str | None, begun: str = "") -> int:
    assert program is not None
    namespace = {"__name__": "program"}
    exec(program, namespace)
    return namespace["add"](1, 2)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("begun", ["", STUB], ids=["prose prompt", "prompt with a signature"])
def test_whole_program(answer: str, begun: str) -> None:
    assert run(build_program(answer, begun, as_script=False)) == 3


@pytest.mark.parametrize("answer", CONTINUATIONS.values(), ids=CONTINUATIONS.keys())
def test_continuation_of_the_prompt(answer: str) -> None:
    assert run(build_program(answer, STUB, as_script=False)) == 3


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
    assert build_program(answer, "", as_script=False) is None


def test_script_is_the_last_block() -> None:
    answer = "```python\nprint(1)\n```\nBetter:\n```python\nprint(2)\n```"
    assert build_program(answer, "", as_script=True) == "\n\nprint(2)\n"


def test_imports_of_the_prompt_are_there() -> None:
    program = build_program("```python\ndef add(a: List[int], b):\n    return 3\n```", STUB, as_script=False)
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
    """Shaped as HumanEval/38, and as LeetCode's classes."""
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
    names = {"math", "LIMIT", "encode", "List", "Node"}
    namespace: dict[str, object] = {}
    exec(own_definitions(code), namespace)
    assert namespace.keys() - {"__builtins__"} == names


def test_classes_that_the_program_needs_of_its_tests() -> None:
    """Those that the prompt names, but none that holds a test."""
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
    assert methods_to_write(code) == {"g", "h"}


def test_blocks_that_say_python_go_before_those_that_say_nothing() -> None:
    text = "```\na\n```\n```python\nb\n```\n```json\nc\n```"
    assert [block.code for block in find_blocks(text)] == ["b\n"]
    assert [block.code for block in find_blocks("```\na\n```\n```json\nc\n```")] == ["a\n"]


def test_names() -> None:
    assert names_in("assert f(x.y) == [z for z in g]") == {"f", "x", "z", "g"}


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
    # The compiler needs gigabytes for these.
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
    build_program(text, "", as_script=False)
    build_program(f"```python\n{text}\n```", STUB + "# long\n" * 500, as_script=False)
    assert time.monotonic() - started < 20  # 2 s on an idle machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KB
    assert len(text) < MAX_CHARACTERS


def test_endless_text_is_not_read() -> None:
    assert build_program("x = 1\n" * MAX_CHARACTERS, "", as_script=False) is None
