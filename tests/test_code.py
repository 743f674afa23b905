"""The code scorer: published reference solutions pass, wrong ones fail, and no program can talk its way to a pass."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from sinterlm.errors import InputError, SandboxError
from sinterlm.records import Score
from sinterlm.scoring.code import inside, running, sandbox
from sinterlm.scoring.code.prompt_tests import parse_tests
from sinterlm.scoring.code.sandbox import check_isolation
from sinterlm.scoring.code.scorer import CodeScorer
from sinterlm.scoring.code.settings import Code
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.settings import build_scorer
from tests.answers import answered
from tests.cases.right_programs import CASES
from tests.published_data import humaneval_solutions, mbpp_solutions, needs_published_data

pytestmark = pytest.mark.xdist_group("code")  # the tests' shared fixtures are made once, in one process

try:
    check_isolation()
except SandboxError as error:
    pytest.skip(str(error), allow_module_level=True)

ADDS = "assert add(1, 2) == 3"
WHOLE = "def add(a, b):\n    return a + b\n"
IO = json.dumps({"input": "1 2\n", "output": "3\n"})


def score(entries: list[Exchange], *, timeout_seconds: float = 20) -> list[Score]:
    return build_scorer(Code(kind="code", timeout_seconds=timeout_seconds)).score(entries)


def reason(content: str, *tests: str, prompt: str = "What?", timeout_seconds: float = 20) -> str:
    [found] = score([answered(content, *tests, prompt=prompt)], timeout_seconds=timeout_seconds)
    if found.detail["reason"] == "harness-limit":
        assert math.isnan(found.value)
        assert found.passed is None
    else:
        assert (found.value, found.passed) == ((1.0, True) if found.detail["reason"] == "passed" else (0.0, False))
    return str(found.detail["reason"])


# --- forms of problems ----------------------------------------------------------------------------------------------

SIDE_PROMPT = '''def area(side: float) -> float:
    return side * side


def side_of(target: float) -> float:
    """The side of a square whose area is the target.
    >>> side_of(9.0)
    3.0
    """
'''
SIDE_CHECK = """
def check(candidate):
    for target in (0.0, 2.25, 9.0):
        assert abs(area(candidate(target)) - target) < 1e-9


check(side_of)"""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("    return target**0.5\n", "passed"),
        (f"```python\n{SIDE_PROMPT}    return target**0.5\n```", "passed"),
        ("    return target / 3\n", "wrong"),
        ("    return area(target)\n", "wrong"),
        ("    return root(target)\n", "error"),
    ],
)
def test_completion_of_the_prompt(content: str, expected: str) -> None:
    """As in HumanEval: the answer completes the prompt, and the test is a function that receives the completed one."""
    assert reason(content, SIDE_CHECK, prompt=SIDE_PROMPT) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("math.hypot(*sides)", "passed"), ("sum(sides)", "wrong"), ("hypot(*sides)", "error")],
)
def test_list_of_assertions(expression: str, expected: str) -> None:
    """As in MBPP: setup code, then one assertion per text; the answer is fenced, with prose around it."""
    tests = (
        "legs = (3, 4)",
        "assert diagonal(legs) == 5",
        "assert diagonal((0, 0)) == 0",
        "assert diagonal([5, 12]) == 13",
    )
    program = f"```python\nimport math\ndef diagonal(sides):\n    return {expression}\n```"
    assert reason(f"Pythagoras helps:\n\n{program}\nThat is all.", *tests) == expected


# --- published problems ----------------------------------------------------------------------------------------------

SPECIAL = {
    *("HumanEval/32", "HumanEval/38", "HumanEval/50", "HumanEval/115"),  # helpers in the prompt; only an import as body
    *("MBPP/126", "MBPP/367", "MBPP/533", "MBPP/596", "MBPP/601", "MBPP/927"),  # `sum`; objects; a type; a module
}


def failures(entries: list[Exchange]) -> dict[str, str]:
    scores = score(entries)
    assert [found.response_id for found in scores] == [entry.response.id for entry in entries]
    return {found.response_id: str(dict(found.detail)) for found in scores if not found.passed}


@needs_published_data
def test_a_sample_of_reference_solutions_passes() -> None:
    everything = humaneval_solutions()[::40] + mbpp_solutions()[::200]
    special = [entry for entry in humaneval_solutions() + mbpp_solutions() if entry.prompt.id in SPECIAL]
    assert len(special) == len(SPECIAL)
    assert failures(everything + special) == {}


@needs_published_data
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("read", "number"), [(humaneval_solutions, 164), (mbpp_solutions, 974)])
def test_all_reference_solutions_pass(read: Callable[[], list[Exchange]], number: int) -> None:
    entries = read()
    assert len(entries) == number
    assert failures(entries) == {}


@needs_published_data
def test_reference_solutions_of_other_problems_fail() -> None:
    """Each problem gets the next one's solution, under its own name."""
    entries = humaneval_solutions()[:4]
    shifted = [
        entry._replace(response=following.response)
        for entry, following in zip(entries, entries[1:] + entries[:1], strict=True)
    ]
    assert [found.value for found in score(shifted)] == [0.0] * len(entries)


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_detail_names_the_first_test_that_fails() -> None:
    tests = ("import math", ADDS, "assert add(2, 2) == 5, 'not five'", "assert add(0, 0) == 1")
    [found] = score([answered(WHOLE, *tests)])
    assert dict(found.detail) == {"reason": "wrong", "test": 2, "message": "AssertionError: not five"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WHOLE, "passed"),
        ("def add(a, b):\n    return a - b", "wrong"),
        ("def add(a, b):\n    return a + c", "error"),
        ("def subtract(a, b):\n    return a - b", "error"),
        ("import numpy_of_nobody\n" + WHOLE, "passed"),  # which nothing uses
        ("import numpy_of_nobody\ndef add(a, b):\n    return numpy_of_nobody.add(a, b)", "error"),
        ("def add(a: Integer, b):\n    return a + b", "error"),
        ("x = " + "+".join(["'a'*4096"] * 2_000) + "\n" + WHOLE, "error"),  # costs the compiler gigabytes
        ("I would rather not.", "no-program"),
        ("def add(a, b):\n    while True: pass", "time-limit"),
        ("def add(a, b):\n    return [0] * 10**10", "error"),
    ],
)
def test_reason(content: str, expected: str) -> None:
    assert reason(content, ADDS, timeout_seconds=1) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", "passed"),
        ("print(3)", "passed"),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())), end='  \\n\\n')", "passed"),
        ("if __name__ == '__main__':\n    print(3)", "passed"),
        ("print('3\\n3')", "wrong"),
        ("pass", "wrong"),
        ("print(3); import os; os._exit(1)", "error"),
        ("print(3); raise ValueError", "error"),
        ("print(3)\nwhile True: pass", "time-limit"),
        ("while True: print('x' * 1000)", "killed"),
        ("input()\ninput()\nprint(3)", "error"),
        ("print(3", "no-program"),
    ],
)
def test_script(content: str, expected: str) -> None:
    assert reason(f"```python\n{content}\n```", IO, timeout_seconds=1) == expected


def test_script_must_be_right_on_every_pair() -> None:
    pairs = [json.dumps({"input": str(n), "output": str(n * n)}) for n in (2, 3)]
    assert reason("n = int(input())\nprint(n * n)", *pairs) == "passed"
    [found] = score([answered("n = int(input())\nprint(n + 2)", *pairs)])
    assert dict(found.detail) == {"reason": "wrong", "test": 1}


def test_script_may_print_while_there_is_more_to_read() -> None:
    text = "".join(f"{number}\n" for number in range(60_000))
    content = "import sys\nfor line in sys.stdin:\n    print(line, end='')"
    assert len(text) > 2**18
    assert reason(content, json.dumps({"input": text, "output": text})) == "passed"


@pytest.mark.parametrize(
    "content", ["print(3)", "import os\nos.close(0)\nprint(3)", "import sys\nsys.stdin.read(5)\nprint(3)"]
)
def test_script_need_not_read_everything(content: str) -> None:
    assert reason(content, json.dumps({"input": "1\n" * 2**18, "output": "3"})) == "passed"


LEETCODE = (
    "from typing import List\n\nclass Solution:\n    def rotate(self, nums: List[int], k: int) -> None:\n        pass\n"
)
ROTATE = (
    "```python\nclass Solution:\n    def rotate(self, nums: List[int], k: int) -> None:\n"
    "        k %= len(nums)\n        nums[:] = nums[-k:] + nums[:-k]\n```"
)


@pytest.mark.parametrize(
    ("content", "tests", "prompt"),
    [
        (ROTATE, ["nums = [1, 2, 3]\nSolution().rotate(nums, k=1)\nassert nums == [3, 1, 2]"], LEETCODE),
        (
            "class Counter:\n    def __init__(self):\n        self.n = 0\n    def add(self, k):\n        self.n += k",
            ["c = Counter()\nc.add(2)\nc.add(k=3)\nassert c.n == 5\nc.n = 7\nassert c.n == 7 and c == c"],
            "What?",
        ),
        ("def f():\n    yield from 'ab'", ["assert list(f()) == ['a', 'b']", "assert next(iter(f())) == 'a'"], "What?"),
        (
            "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return x",
            ["try:\n    f(-1)\nexcept ValueError as e:\n    assert str(e) == 'negative'\nelse:\n    assert False"],
            "What?",
        ),
        (
            "def f(x): return x",
            [
                f"x = {x}\nassert f(x) == x and type(f(x)) is type(x)"
                for x in (
                    "None",
                    "True",
                    "2**70",
                    "-0.5",
                    "float('inf')",
                    "'ü\\ud800'",
                    "(1, [2, {3}])",
                    "{1: {'a': None}, (2,): 3}",
                    "frozenset({1})",
                    "b'\\xff'",
                    "bytearray(b'a')",
                    "1 + 2j",
                    "range(3)",
                    "int",
                    "10**5000",
                )
            ],
            "What?",
        ),
        (
            "import collections, enum\nclass E(enum.IntEnum):\n    ONE = 1\n"
            "def f(): return collections.Counter('aab')\ndef g(): return E.ONE",
            ["assert f() == {'a': 2, 'b': 1}", "assert g() == 1"],
            "What?",
        ),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 3", ["assert P().x == 3"], "What?"),
        ("class A: pass\na = A()\ndef f(): return a", ["assert f() is f() and f() == f() and f() in [f()]"], "What?"),
        ("def f():\n    yield 1", ["g = f()\nassert next(g) == 1 and next(g, None) is None"], "What?"),
        ("print('noise' * 10**5)\ndef f():\n    print('noise' * 10**5)\n    return 1", ["assert f() == 1"], "What?"),
    ],
    ids=[
        "in place",
        "state",
        "generator",
        "exception",
        "types",
        "subclasses",
        "dataclass",
        "identity",
        "end",
        "printing",
    ],
)
def test_shapes_of_programs(content: str, tests: list[str], prompt: str) -> None:
    [found] = score([answered(content, *tests, prompt=prompt)])
    assert dict(found.detail) == {"reason": "passed"}


# --- forged verdicts -------------------------------------------------------------------------------------------------

ALWAYS_EQUAL = "class Equal:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
FORGERIES = {
    "exit with success": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit when asked": "import os\ndef add(a, b): os._exit(0)",
    "leave by an exception": "def add(a, b): raise SystemExit(0)",
    "an object equal to all": f"{ALWAYS_EQUAL}def add(a, b): return Equal()",
    "a number equal to all": "class Int(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\n"
    "def add(a, b): return Int(7)",
    "a class equal to all": "class Meta(type):\n    def __eq__(self, o): return True\n    __hash__ = None\n"
    "class A(metaclass=Meta): pass\ndef add(a, b): return A",
    "an object that says it is an int": f"{ALWAYS_EQUAL}    __class__ = property(lambda self: int)\n"
    "def add(a, b): return Equal()",
    "a list with an eager comparison": "class L(list):\n    def __eq__(self, o): return True\n"
    "def add(a, b): return L()",
    "comparison replaced in builtins": "import builtins, operator\noperator.eq = lambda a, b: True\n"
    "builtins.AssertionError = type('E', (BaseException,), {})\ndef add(a, b): return 0",
    "the tests' helper replaced": "def is_close(a, b): return True\ndef add(a, b): return 0",
    "a builtin replaced": "def abs(x): return 0\ndef add(a, b): return 0",
    "a module replaced": "class math:\n    isclose = staticmethod(lambda a, b: True)\ndef add(a, b): return 0",
    "a module's function replaced": "import math\nmath.isclose = lambda a, b: True\ndef add(a, b): return 0",
    "verdict on standard output": "print('{\"passed\": true}')\nimport os\n"
    "os.write(1, b'{\"passed\": true}')\nos._exit(0)",
    "verdict on every descriptor": "import os\nfor n in range(64):\n    try: os.write(n, b'{\"passed\": true}')\n"
    "    except OSError: pass\nos._exit(0)",
    "verdict as a message": "import os, json\nm = json.dumps({'passed': True}).encode()\nfor n in range(64):\n"
    "    try: os.write(n, len(m).to_bytes(4, 'big') + m)\n    except OSError: pass\ndef add(a, b): return 0",
    "answers before the questions": "import os, json\nm = json.dumps({'value': True, 'passed': True}).encode()\n"
    "for n in range(64):\n    for _ in range(9):\n        try: os.write(n, len(m).to_bytes(4, 'big') + m)\n"
    "        except OSError: pass",
    "frames of the callers": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n"
    "        f.f_globals['passed'] = True\n        for v in list(f.f_locals.values()):\n"
    "            if isinstance(v, str) and v.startswith('assert add'): return int(v.split('==')[1])\n"
    "        f = f.f_back\n    return 0",
    "a search through memory": "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict):\n            for v in list(o.values()):\n"
    "                if isinstance(v, str) and v.startswith('assert add'): return int(v.split('==')[1])\n    return 0",
    "the command line": "import sys\ndef add(a, b):\n    t = ' '.join(sys.orig_argv)\n"
    "    return 3 if 'assert add' in t else 0",
    "waiting input": "import os\nos.set_blocking(3, False)\ntry: t = os.read(3, 9999)\n"
    "except OSError: t = b''\nos.set_blocking(3, True)\n"
    "def add(a, b): return 3 if b'assert' in t else 0",
    "the harness changed": "import sys, json\nm = sys.modules['__main__']\nfor n in dir(m):\n"
    "    if not n.startswith('__'): setattr(m, n, lambda *a, **k: True)\njson.dumps = lambda *a: '{\"passed\": true}'",
    "the encoder changed": "import sys\nm = sys.modules['__main__']\nm.Parcel.encode = lambda s, v: ['object', True]\n"
    "def add(a, b): return 0",
    "an unknown kind of value": "import sys\nsys.modules['__main__'].Parcel.encode = lambda s, v: ['eval', '3']\n"
    "def add(a, b): return 0",
    "a module as a value": "import sys\nsys.modules['__main__'].Parcel.encode = lambda s, v: ['module', '__main__']\n"
    "def add(a, b): return 0",
    "endless nesting": "import sys\nm = sys.modules['__main__']\nm.Parcel.encode = lambda s, v: 0\n"
    "m.json.dumps = lambda *a: '[' * 10**5 + ']' * 10**5\ndef add(a, b): return 0",
    "a message without end": "import os\nfor n in range(3, 9):\n    try: os.write(n, b'\\xff' * 4)\n"
    "    except OSError: pass\n"
    "def add(a, b): return 0",
    "a value that holds itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "an exit handler": "import atexit, os\n"
    "atexit.register(lambda: os.write(2, b'{\"passed\": true}'))\nraise SystemExit",
    "a thread that goes on": "import os, threading\ndef w():\n    while True:\n        for n in range(9):\n"
    "            try: os.write(n, b'{\"passed\": true}')\n            except OSError: pass\n"
    "threading.Thread(target=w, daemon=True).start()\ndef add(a, b): return 0",
    "a trace function": "import sys\ndef t(f, e, a):\n    f.f_globals['passed'] = True\n    return t\nsys.settrace(t)\n"
    "def add(a, b): return 0",
    "the tests' failure, as its own": "def add(a, b): raise AssertionError",
    "an end of iteration": "def add(a, b): raise StopIteration",
    "an end of the tests' iteration": "def add(a, b): raise StopIteration('enough')",
    "every file closed": "import os\nfor n in range(64):\n    try: os.close(n)\n    except OSError: pass\n"
    "def add(a, b): return 3",
    "the questions read twice": "import os\nfd = os.open('/dev/fd/3', os.O_RDONLY | os.O_NONBLOCK)\n"
    "def add(a, b):\n    try: return 3 if b'assert' in os.read(fd, 9999) else 0\n    except OSError: return 0",
    "the tests' process": "import os\nt = ''\nfor p in range(os.getpid() - 9, os.getpid() + 9):\n"
    "    for f in ('mem', 'cmdline', 'environ', 'fd/0'):\n        try: t += open(f'/proc/{p}/{f}').read()\n"
    "        except OSError: pass\ndef add(a, b): return 3 if 'assert' in t else 0",
    "a value that is no number": "def add(a, b): return float('nan')",
    "arguments emptied": "import sys\nm = sys.modules['__main__']\n"
    'm.json.dumps = lambda *a: \'{"value": 3, "objects": [["list", null, []], [-1, 0], 9]}\'\n'
    "def add(a, b): return 0",
    "truth alone": "def add(a, b): return True",
    "a late change of mind": "def add(a, b):\n    class I(int):\n        pass\n"
    "    I.__eq__ = lambda s, o: True\n    return I(0)",
}
TESTS = (
    "import math\ndef is_close(a, b):\n    return math.isclose(a, b)",
    "assert add(1, 2) == 3",
    "assert abs(add(1.0, 2.0) - 3.0) < 1e-9 and is_close(add(1, 1), 2) and math.isclose(add(1, 1), 2)",
    "assert not add(1, 2) != 3 and [add(2, 2)] == [4] and add(0, 0) in {0}",
    "assert all(map(lambda a, b: add(a, b) == 5, [2, 1], [3, 4]))",
)


@pytest.fixture(scope="module")
def forged() -> dict[str, Score]:
    entries = [answered(f"```python\n{code}\n```", *TESTS) for code in FORGERIES.values()]
    started = time.monotonic()
    scores = dict(zip(FORGERIES, score(entries, timeout_seconds=5), strict=True))
    assert time.monotonic() - started < 120
    return scores


def test_an_honest_program_passes_the_tests_of_the_forgers() -> None:
    assert reason(WHOLE, *TESTS) == "passed"


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_does_not_pass(forged: dict[str, Score], name: str) -> None:
    assert (forged[name].value, forged[name].passed) == (0.0, False)
    assert forged[name].detail["reason"] in ("wrong", "error", "killed", "time-limit")


CLASS_FOR_A_FUNCTION = {
    "in place of a function": "add = Equal",
    "a subclass in place of a function": "class Add(Equal): pass\nadd = Add",
    "in place of a method": "class Solution:\n    add = Equal",
    "a class within": "class Solution:\n    class Add(Equal): pass\n    add = Add",
    "by a property": "class Solution:\n    @property\n    def add(self): return Equal",
    "by any attribute": "class Solution:\n    def __getattr__(self, name): return Equal",
}


def test_class_does_not_pass_for_a_function_of_a_prompt_that_says_class() -> None:
    """Objects of the requested classes decide for themselves what they equal; these classes were not requested."""
    called = [("Solution()." if "Solution" in code else "") + "add(1, 2)" for code in CLASS_FOR_A_FUNCTION.values()]
    equal = ALWAYS_EQUAL + "    def __init__(self, *_): pass\n    def __sub__(self, other): return 0\n"
    entries = [
        answered(
            f"```python\n{equal}{code}\n```", f"assert {call} == 3 and {call} - 3 == 0", prompt="Complete the class."
        )
        for code, call in zip(CLASS_FOR_A_FUNCTION.values(), called, strict=True)
    ]
    assert not any(found.passed for found in score(entries))


CASE = (
    "import unittest\nclass TestAdd(unittest.TestCase):\n    def test_sum(self):\n"
    "        self.assertEqual(add(1, 2), 3)\n        self.assertEqual(add(2, 2), 4)"
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a + b", "passed"),
        ("raise unittest.SkipTest('no')", "error"),
        ("raise type('Mine', (unittest.SkipTest,), {})('no')", "error"),
        ("raise unittest.case._ShouldStop", "error"),
        ("raise SystemExit(0)", "error"),
    ],
)
def test_program_does_not_steer_unittest(body: str, expected: str) -> None:
    found = reason(f"import unittest, unittest.case\ndef add(a, b):\n    {body}", CASE)
    assert (found == "passed") == (expected == "passed")
    assert found in ("passed", "wrong", "error")


def test_helper_of_the_prompt_is_the_tests_own() -> None:
    """The test checks the answer by `area`; a program that redefines `area` would make any side the right one."""
    forged = f"```python\n{SIDE_PROMPT}    return 0.0\n\ndef area(side):\n    return 9.0\n```"
    assert reason(forged, SIDE_CHECK, prompt=SIDE_PROMPT) == "wrong"
    assert reason("    return target**0.5\n", SIDE_CHECK, prompt=SIDE_PROMPT) == "passed"


@pytest.mark.parametrize(
    ("modules", "sum_of_both", "expected"),
    [
        ("import math", "a + b", "passed"),
        ("class math:\n    isclose = staticmethod(lambda a, b: True)", "0", "wrong"),
    ],
)
def test_module_that_the_tests_do_not_import_is_theirs(modules: str, sum_of_both: str, expected: str) -> None:
    """As in MBPP/596; only the program imports it."""
    program = f"{modules}\ndef add(a, b):\n    return {sum_of_both}"
    assert reason(program, "assert math.isclose(add(1, 2), 3)") == expected


# --- right programs --------------------------------------------------------------------------------------------------

NO_SCORE = {
    # Cases that need the tests' own object, or that show in the copy that the program gets.
    *("StopIteration of a call", "a NamedTuple with a property", "a defaultdict with a lambda", "an IntEnum"),
    *("a subclass of int", "a subclass of str", "a list that the object keeps", "a signature", "one list for ever"),
    *("a list that grows behind", "objects of the tests", "a subclass in the tests", "a mock of the tests"),
    *("operators: sum and product", "a package that is not there"),
}
"""Correct programs in the table that two processes cannot tell from wrong ones; they have no score."""
SAMPLE = [*CASES][::7]


def outcomes(names: list[str], which: str) -> dict[str, str]:
    entries = [
        answered(f"```python\n{getattr(CASES[name], which)}\n```", *CASES[name].tests, prompt=CASES[name].prompt)
        for name in names
    ]
    return {name: str(dict(found.detail)) for name, found in zip(names, score(entries), strict=True)}


def check_outcomes(names: list[str]) -> None:
    right, wrong = outcomes(names, "right"), outcomes(names, "wrong")
    assert {name: found for name, found in right.items() if "'passed'" not in found and name not in NO_SCORE} == {}
    assert {name: found for name, found in right.items() if name in NO_SCORE and "harness-limit" not in found} == {}
    assert {name: found for name, found in wrong.items() if "'passed'" in found} == {}


def test_a_sample_of_right_programs_passes_and_of_wrong_ones_fails() -> None:
    check_outcomes(SAMPLE)


@pytest.mark.slow
def test_right_programs_pass_or_have_no_score_and_wrong_ones_fail() -> None:
    check_outcomes([*CASES])


MEND = "Mend this function.\n```python\ndef median(a):\n    return sorted(a)[len(a) // 2 - 1]\n```"
MENDED = "```python\ndef median(a):\n    return sorted(a)[len(a) // 2]\n```"
SLOW = "Make this faster.\n```python\ndef total(n):\n    return sum(range(n + 1))\n```"
SKELETON = "```python\ndef f(x):\n    result = []\n    # your code here\n    return result\n```"


RACE = "Make `fast` fast.\n```python\ndef slow(n):\n    return sum(range(n))\n\ndef fast(n):\n    return slow(n)\n```"
FAST = "def fast(n):\n    return n * (n - 1) // 2\n"
FORGED = "```python\ndef slow(n): return 7\ndef fast(n): return 7\n```"


@pytest.mark.parametrize(
    ("prompt", "test", "answer", "expected"),
    [
        (RACE, "assert fast(9) == slow(9)", f"```python\n{FAST}```", "passed"),
        (RACE, "assert fast(9) == slow(9)", f"```python\n{FAST}def slow(n):\n    return fast(n)\n```", "passed"),
        (RACE, "assert fast(9) == slow(9)", FORGED, "wrong"),
        (RACE, "assert slow(9) == fast(9)", FORGED, "wrong"),
        (RACE, "for n in range(9):\n    want = slow(n)\n    got = fast(n)\n    assert got == want", FORGED, "wrong"),
        (RACE.replace("`fast`", "it"), "assert fast(9) == slow(9)", FORGED, "wrong"),
        (MEND, "assert median([3, 1, 2]) == 2", MENDED, "passed"),
        (MEND, "assert median([3, 1, 2]) == 2", "return 42", "no-program"),
        (SLOW, "assert total(3) == 6", "```python\ndef total(n):\n    return n * (n + 1) // 2\n```", "passed"),
        (SLOW, "assert total(3) == 6", "return 42", "no-program"),
        (SLOW, "assert total(3) == 6", "```python\nx = 1\n```", "error"),
        (SLOW, "assert total(3) == 6", "```python\ndef total(n):\n    return n * n\n```", "wrong"),
        (SKELETON, "assert f(2) == [2]", "```python\ndef f(x):\n    return [x]\n```", "passed"),
        (SKELETON, "assert f(2) == [2]", "    return [x]\n", "passed"),
        (SKELETON, "assert f(2) == []", "```python\nx = 1\n```", "wrong"),
        ("Add up.", "assert isclose(add(1, 2), 3)", WHOLE, "passed"),
        ("Add up.", "assert isclose(add(1, 2), 3)", "def add(a, b): return 0\ndef isclose(a, b): return True", "wrong"),
        (
            "Add up.",
            "assert np.allclose(add(1, 2), 3)",
            "def add(a, b): return 0\nclass np:\n    allclose = staticmethod(lambda a, b: True)",
            "harness-limit",
        ),
    ],
)
def test_what_is_tested_is_the_answer(prompt: str, test: str, answer: str, expected: str) -> None:
    assert reason(answer, test, prompt=prompt) == expected


MANY_CALLS = "for i in range(10**5):\n    assert add(i, 1) == i + 1"


@pytest.mark.parametrize(
    ("body", "expected"), [("return a + b", "harness-limit"), ("while a > 2000: pass\n    return a + b", "time-limit")]
)
def test_time_that_the_calls_take_is_not_the_program_s(body: str, expected: str) -> None:
    """The calls take two seconds, the program's own computation a tenth of a second."""
    assert reason(f"def add(a, b):\n    {body}", MANY_CALLS, timeout_seconds=0.5) == expected


def test_prompt_with_a_long_sum() -> None:
    """Its syntax tree is deeper than Python's recursion limit; the other answers get their verdicts."""
    prompt = f"```python\nTOTAL = {'+'.join(['1'] * 600)}\ndef f():\n    pass\n```"
    entries = [
        answered("def f():\n    return TOTAL", "assert f() == TOTAL == 600", prompt=prompt),
        answered(WHOLE, ADDS),
    ]
    assert [dict(found.detail) for found in score(entries)] == [{"reason": "passed"}] * 2


def test_flood_of_the_verdict() -> None:
    """Tests write into the pipe of their own verdict, which is not read to its end."""
    flood = "import os\nfor _ in range(3_000):\n    for n in range(5, 9):\n        try: os.write(n, b'x' * 2**16)\n"
    flood += "        except OSError: pass"
    tracemalloc.start()
    found = reason(WHOLE, ADDS, flood, timeout_seconds=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found, peak < 50e6) == ("killed", True), peak


@pytest.mark.parametrize(("text", "expected"), [("a\u2028b", "passed"), ("a\fb", "passed"), ("a\nb", "wrong")])
def test_only_a_line_feed_ends_a_line(text: str, expected: str) -> None:
    pair = json.dumps({"input": "", "output": text.replace("\n", "\u2028")})
    assert reason(f"print({text!r})", pair) == expected
    assert reason("print('a\\r\\nb')", json.dumps({"input": "", "output": "a\nb"})) == "passed"


def test_failure_of_the_scorer_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(running, "_run_apart", fail)
    [found] = score([answered(WHOLE, ADDS)])
    assert math.isnan(found.value)
    assert dict(found.detail) == {"reason": "scorer-failed", "problem": "ZeroDivisionError: ours"}


def test_sandbox_that_does_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    real = sandbox.isolated_python

    def fail_once(*arguments: Any, **keywords: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise SandboxError("no room")
        return real(*arguments, **keywords)

    monkeypatch.setattr(running, "isolated_python", fail_once)
    assert reason(WHOLE, ADDS) == "passed"


@needs_published_data
@pytest.mark.slow
def test_no_problem_is_passed_by_an_object_equal_to_all() -> None:
    entries = [
        answered(
            f"```python\n{ALWAYS_EQUAL}def __getattr__(name): return lambda *a, **k: Equal()\n"
            f"def {entry.prompt.answers[0].rpartition('check(')[2].rstrip(')')}(*a, **k): return Equal()\n```",
            *entry.prompt.answers,
            prompt=entry.prompt.messages[-1].content,
            name=entry.prompt.id,
        )
        for entry in humaneval_solutions()
    ]
    assert [found.response_id for found in score(entries) if found.passed] == []


# --- what the user must bring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ((), "no tests"),
        (("assert add(1, 2) ==",), r"`answers\[0\]` is 'assert add"),
        ((ADDS, IO), "tests of both forms"),
        (("The answer is 3.",), r"`answers\[0\]` is 'The answer is 3"),
        (("assert 1 + 1 == 2",), "the tests use nothing that an answer could define"),
    ],
)
def test_prompt_without_proper_tests_is_named(answers: tuple[str, ...], found: str) -> None:
    with pytest.raises(InputError, match=f"prompt q: {found}"):
        score([answered(WHOLE, *answers)])
    with pytest.raises(InputError, match=f"prompt q: {found}"):
        CodeScorer(timeout_seconds=1, num_workers=1).check_prompts([answered("", *answers).prompt])


def test_forms_of_tests() -> None:
    assert parse_tests(answered("", ADDS).prompt) == ([ADDS], [])
    assert parse_tests(answered("", IO).prompt) == ([], [("1 2\n", "3\n")])
    other = json.dumps({"input": 1, "output": "2"})  # a dictionary is also Python
    assert parse_tests(answered("", other).prompt) == ([other], [])


def test_nothing_runs_where_nothing_isolates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "find_spec", lambda name: None)
    with pytest.raises(SandboxError) as caught:
        score([answered(WHOLE, ADDS)])
    assert caught.value.exit_code == 6


def test_identity_names_what_decides() -> None:
    base = CodeScorer(timeout_seconds=5, num_workers=1).identity
    assert base == CodeScorer(timeout_seconds=5.0, num_workers=8).identity
    assert base != CodeScorer(timeout_seconds=1, num_workers=1).identity
    assert CodeScorer(timeout_seconds=5, num_workers=1).needs_answers


def test_threads_may_ask_for_the_script_at_once() -> None:
    """In CPython 3.11 a garbage collection inside `ast.parse` lets another thread in, and one of them gets an error."""
    switching, thresholds = sys.getswitchinterval(), gc.get_threshold()
    arrived = Barrier(4)

    def ask(_: int) -> str:
        arrived.wait()
        return inside.script()

    def let_others_in(*_: object) -> None:
        time.sleep(0)

    sys.setswitchinterval(1e-6)
    gc.set_threshold(50)
    gc.callbacks.append(let_others_in)
    try:
        for _ in range(3):
            inside.script.cache_clear()
            with ThreadPoolExecutor(4) as pool:
                assert len(set(pool.map(ask, range(4)))) == 1
    finally:
        gc.callbacks.remove(let_others_in)
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(switching)
