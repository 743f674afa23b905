"""Right programs with ordinary features of Python, their tests, and what makes each of them wrong.

A case is a program, its tests, and a replacement within the program (old, new) that makes it wrong. Nothing here is
far-fetched: every right program is what a model would write, and passes in plain Python.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    right: str
    tests: tuple[str, ...]
    old: str
    new: str
    prompt: str = "Write the function or class that the tests name."

    @property
    def wrong(self) -> str:
        assert self.old in self.right
        return self.right.replace(self.old, self.new)


RAISES = "def raises(kind, call, *arguments):\n    try:\n        call(*arguments)\n    except kind as error:\n        return error\n"
RAISES += "    raise AssertionError('nothing was raised')"
V = """class V:
    def __init__(self, x, y):
        self.x, self.y = x, y
    def __add__(self, other):
        return V(self.x + other.x, self.y + other.y)
    def __sub__(self, other):
        return V(self.x - other.x, self.y - other.y)
    def __mul__(self, k):
        return V(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __neg__(self):
        return V(-self.x, -self.y)
    def __abs__(self):
        return (self.x ** 2 + self.y ** 2) ** 0.5
    def __eq__(self, other):
        return isinstance(other, V) and (self.x, self.y) == (other.x, other.y)
    def __hash__(self):
        return hash((self.x, self.y))
    def __lt__(self, other):
        return abs(self) < abs(other)
    def __len__(self):
        return 2
    def __getitem__(self, place):
        return (self.x, self.y)[place]
    def __iter__(self):
        return iter((self.x, self.y))
    def __contains__(self, item):
        return item in (self.x, self.y)
    def __bool__(self):
        return bool(self.x or self.y)
    def __repr__(self):
        return f"V({self.x}, {self.y})"
    def __str__(self):
        return f"<{self.x}, {self.y}>"
    def __call__(self, t):
        return self.x + t
    def __iadd__(self, other):
        self.x += other.x
        self.y += other.y
        return self
    def __float__(self):
        return abs(self)
    def __format__(self, how):
        return format(self.x, how)
    @property
    def norm(self):
        return abs(self)
    @classmethod
    def unit(cls):
        return cls(1, 0)
    @staticmethod
    def zero():
        return V(0, 0)
    origin = (0, 0)
"""
STACK = """class EmptyError(Exception):
    pass
class Stack:
    def __init__(self, items=()):
        self._items = list(items)
    def push(self, item):
        self._items.append(item)
        return self
    def pop(self):
        if not self._items:
            raise EmptyError("the stack is empty")
        return self._items.pop()
    def __len__(self):
        return len(self._items)
    def __iter__(self):
        return iter(reversed(self._items))
    def __contains__(self, item):
        return item in self._items
"""
CLASS = "Write the class that the tests use."


def _v(name: str, test: str, old: str, new: str) -> dict[str, Case]:
    return {f"operators: {name}": Case(V, (test,), old, new, CLASS)}


CASES: dict[str, Case] = {
    # --- exceptions ---
    "an exception of its own": Case(
        STACK,
        (RAISES, "assert str(raises(EmptyError, Stack().pop)) == 'the stack is empty'"),
        "raise EmptyError(",
        "raise ValueError(",
        CLASS,
    ),
    "an exception of its own, caught by its base": Case(
        "class TooBig(ValueError):\n    pass\ndef f(x):\n    if x > 9:\n        raise TooBig(x)\n    return x",
        (
            RAISES,
            "assert raises(ValueError, f, 10).args == (10,) and raises(TooBig, f, 11).args == (11,) and f(9) == 9",
        ),
        "TooBig(x)",
        "TooBig()",
    ),
    "an exception with attributes": Case(
        "class Bad(Exception):\n    def __init__(self, code, why):\n        super().__init__(f'{code}: {why}')\n"
        "        self.code = code\ndef f():\n    raise Bad(404, 'gone')",
        (RAISES, "e = raises(Bad, f)\nassert e.code == 404 and str(e) == '404: gone'"),
        "= code",
        "= -code",
    ),
    "a hierarchy of exceptions": Case(
        "class A(Exception): pass\nclass B(A): pass\ndef f(n):\n    raise (B if n else A)('x')",
        (RAISES, "raises(A, f, 1)\nassert type(raises(A, f, 0)) is A and isinstance(raises(A, f, 1), B)"),
        "B if n",
        "A if n",
    ),
    "an exception raised from another": Case(
        "def f(x):\n    try:\n        return int(x)\n    except ValueError as e:\n        raise RuntimeError('no') from e",
        (RAISES, "assert isinstance(raises(RuntimeError, f, 'a').__cause__, ValueError)"),
        "from e",
        "from None",
    ),
    "a KeyError's argument": Case(
        "def f(d, k):\n    return d[k]",
        (RAISES, "e = raises(KeyError, f, {}, 'k')\nassert e.args == ('k',) and e.args[0] == 'k'"),
        "d[k]",
        "d[k + 'x']",
    ),
    "a KeyError's text": Case(
        "def f(d, k):\n    return d[k]",
        (RAISES, 'assert str(raises(KeyError, f, {}, "k")) == "\'k\'"'),
        "d[k]",
        "d[k * 2]",
    ),
    "JSONDecodeError as ValueError": Case(
        "import json\ndef f(t):\n    return json.loads(t)",
        (RAISES, "raises(ValueError, f, '{')\nassert f('[1]') == [1]"),
        "return json.loads(t)",
        "return [1]",
    ),
    "JSONDecodeError itself": Case(
        "import json\ndef f(t):\n    return json.loads(t)",
        ("import json\n" + RAISES, "assert raises(json.JSONDecodeError, f, '{').pos == 1"),
        "loads(t)",
        "loads(' ' + t)",
    ),
    "an OSError's number": Case(
        "def f():\n    raise FileNotFoundError(2, 'no', 'x.txt')",
        (RAISES, "e = raises(OSError, f)\nassert e.errno == 2 and e.filename == 'x.txt'"),
        "(2,",
        "(3,",
    ),
    "a decimal's error": Case(
        "from decimal import Decimal\ndef f(t):\n    return Decimal(t)",
        ("from decimal import InvalidOperation\n" + RAISES, "raises(InvalidOperation, f, 'x')"),
        "return Decimal(t)",
        "return None",
    ),
    "UnicodeDecodeError": Case(
        "def f(b):\n    return b.decode()",
        (RAISES, "assert raises(UnicodeDecodeError, f, b'\\xff').start == 0"),
        "b.decode()",
        "b.decode('latin1')",
    ),
    "ZeroDivisionError": Case(
        "def f(a, b):\n    return a / b", (RAISES, "raises(ZeroDivisionError, f, 1, 0)"), "a / b", "b / a"
    ),
    "an AssertionError of the program": Case(
        "def f(x):\n    assert x > 0, 'positive'\n    return x",
        (RAISES, "assert str(raises(AssertionError, f, -1)) == 'positive'"),
        "x > 0",
        "x > -9",
    ),
    "SystemExit": Case(
        "import sys\ndef f():\n    sys.exit(3)", (RAISES, "assert raises(SystemExit, f).code == 3"), "(3)", "(4)"
    ),
    "StopIteration of a call": Case(
        "def f(i):\n    return next(i)", (RAISES, "raises(StopIteration, f, iter(()))"), "next(i)", "next(i, 0)"
    ),
    "an exception that is returned": Case(
        "def f():\n    return ValueError('x')",
        ("assert isinstance(f(), ValueError) and f().args == ('x',)",),
        "'x'",
        "'y'",
    ),
    "RecursionError": Case("def f(n):\n    return f(n + 1)", (RAISES, "raises(RecursionError, f, 0)"), "f(n + 1)", "n"),
    "pytest.raises": Case(
        "def f(x):\n    if x < 0:\n        raise ValueError('x must be positive')\n    return x",
        (
            "import pytest\ndef test_negative():\n    with pytest.raises(ValueError, match='must be'):\n        f(-1)\n"
            "def test_value():\n    assert f(2) == 2",
        ),
        "x < 0",
        "x < -5",
    ),
    "pytest.approx": Case(
        "def f(x):\n    return x / 3",
        ("from pytest import approx\nassert f(1) == approx(0.3333333333)",),
        "/ 3",
        "/ 3.1",
    ),
    "pytest.mark.parametrize": Case(
        "def f(a, b):\n    return a + b",
        (
            "import pytest\n@pytest.mark.parametrize('a, b, c', [(1, 2, 3), (2, 2, 4)])\ndef test_f(a, b, c):\n    assert f(a, b) == c",
        ),
        "a + b",
        "a * b + 1",
    ),
    "a test function that nobody calls": Case(
        "def f():\n    return 1", ("def test_f():\n    assert f() == 1",), "return 1", "return 2"
    ),
    "an import of the solution": Case(
        "def f():\n    return 1", ("from solution import f\nassert f() == 1",), "return 1", "return 2"
    ),
    "unittest": Case(
        "def f(x):\n    if x < 0:\n        raise ValueError\n    return x",
        (
            "import unittest\nclass TestF(unittest.TestCase):\n    def test_value(self):\n        self.assertEqual(f(1), 1)\n"
            "    def test_error(self):\n        with self.assertRaises(ValueError):\n            f(-1)\n"
            "if __name__ == '__main__':\n    unittest.main()",
        ),
        "x < 0",
        "x < -1",
    ),
    "unittest.main": Case(
        "def f(x):\n    return x",
        (
            "import unittest\nclass TestF(unittest.TestCase):\n    def test(self):\n        self.assertAlmostEqual(f(1), 1)\nunittest.main()",
        ),
        "return x",
        "return x + 1",
    ),
    # --- values ---
    "a named tuple": Case(
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f():\n    return P(1, 2)",
        ("p = f()\nassert p.x == 1 and p.y == 2 and p == (1, 2) and p._asdict() == {'x': 1, 'y': 2}",),
        "P(1, 2)",
        "P(2, 1)",
    ),
    "a NamedTuple with a property": Case(
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    @property\n    def twice(self):\n        return 2 * self.x\n"
        "def f():\n    return P(2)",
        ("assert f().twice == 4",),
        "2 * self",
        "3 * self",
    ),
    "named tuples in a list": Case(
        "from collections import namedtuple\nP = namedtuple('P', 'x')\ndef f():\n    return [P(2), P(1)]",
        ("assert [p.x for p in sorted(f())] == [1, 2]",),
        "P(2)",
        "P(3)",
    ),
    "Decimal": Case(
        "from decimal import Decimal\ndef f():\n    return Decimal('1.10')",
        ("assert str(f()) == '1.10'",),
        "1.10",
        "1.1",
    ),
    "Fraction": Case(
        "from fractions import Fraction\ndef f():\n    return Fraction(1, 3)", ("assert f() * 3 == 1",), "1, 3", "1, 4"
    ),
    "dates": Case(
        "from datetime import date, timedelta\ndef f(d):\n    return d + timedelta(1)",
        ("from datetime import date\nassert f(date(2024, 2, 28)) == date(2024, 2, 29)",),
        "timedelta(1)",
        "timedelta(2)",
    ),
    "complex": Case("def f(z):\n    return z * 1j", ("assert f(1) == 1j and f(1j) == -1",), "1j", "2j"),
    "bytes": Case("def f(b):\n    return b[::-1]", ("assert f(b'ab\\xff') == b'\\xffba'",), "[::-1]", "[:]"),
    "range": Case(
        "def f(n):\n    return range(n)", ("assert f(3) == range(3) and 2 in f(3)",), "range(n)", "range(n + 1)"
    ),
    "sets": Case(
        "def f(a):\n    return set(a)", ("assert f([1, 1]) == {1} and isinstance(f([]), set)",), "set(a)", "list(a)"
    ),
    "frozen sets": Case(
        "def f(a):\n    return frozenset(a)", ("assert {f([1]): 2}[frozenset({1})] == 2",), "frozenset(a)", "tuple(a)"
    ),
    "a Counter": Case(
        "from collections import Counter\ndef f(a):\n    return Counter(a)",
        ("assert f('aab').most_common(1) == [('a', 2)]",),
        "Counter(a)",
        "Counter(a[1:] + 'b')",
    ),
    "an OrderedDict": Case(
        "from collections import OrderedDict\ndef f():\n    return OrderedDict(a=1, b=2)",
        ("from collections import OrderedDict\nassert f() != OrderedDict(b=2, a=1) and list(f()) == ['a', 'b']",),
        "a=1, b=2",
        "b=2, a=1",
    ),
    "a defaultdict": Case(
        "from collections import defaultdict\ndef f():\n    return defaultdict(list, a=[1])",
        ("assert f()['b'] == [] and f()['a'] == [1]",),
        "(list",
        "(set",
    ),
    "a defaultdict with a lambda": Case(
        "from collections import defaultdict\ndef f():\n    return defaultdict(lambda: 7)",
        ("assert f()['b'] == 7",),
        "7",
        "8",
    ),
    "nan": Case("def f():\n    return float('nan')", ("assert f() != f()",), "'nan'", "'inf'"),
    "infinity": Case("def f():\n    return float('-inf')", ("assert f() < -1e308",), "'-inf'", "'inf'"),
    "large integers": Case("def f(n):\n    return 2 ** n", ("assert f(9_000) == 1 << 9_000",), "2 ** n", "2 ** n + 1"),
    "negative zero": Case(
        "def f():\n    return -0.0", ("import math\nassert math.copysign(1, f()) == -1",), "-0.0", "0.0"
    ),
    "half a surrogate": Case("def f():\n    return '\\ud800'", ("assert f() == '\\ud800'",), "ud800", "ud801"),
    "a type": Case("def f(x):\n    return type(x)", ("assert f(1) is int and f('') is str",), "type(x)", "int"),
    "an array": Case(
        "from array import array\ndef f():\n    return array('i', [1, 2])",
        ("assert list(f()) == [1, 2] and len(f()) == 2",),
        "1, 2",
        "1, 3",
    ),
    "a memoryview": Case(
        "def f():\n    return memoryview(b'ab')",
        ("assert bytes(f()[i] for i in range(len(f()))) == b'ab'",),
        "b'ab'",
        "b'ac'",
    ),
    # --- classes ---
    "a dataclass": Case(
        "from dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n    x: int\n    tags: list = field(default_factory=list)",
        (
            "assert P(1) == P(1) and P(1) < P(2) and P(1) != P(2)\np = P(1)\np.tags.append(3)\nassert repr(P(1)) == 'P(x=1, tags=[])'",
        ),
        "order=True",
        "eq=False",
        CLASS,
    ),
    "a frozen dataclass": Case(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int",
        (
            "from dataclasses import FrozenInstanceError\n" + RAISES,
            "p = P(1)\nraises(FrozenInstanceError, setattr, p, 'x', 2)\nassert {p: 1}[P(1)] == 1",
        ),
        "(frozen=True)",
        "(eq=False)",
        CLASS,
    ),
    "an Enum": Case(
        "from enum import Enum\nclass Color(Enum):\n    RED = 1\n    BLUE = 2\ndef f(n):\n    return Color(n)",
        (
            "assert f(1) is Color.RED and f(1) == Color.RED and f(2).name == 'BLUE' and [c.value for c in Color] == [1, 2]",
            "assert Color['RED'] in Color and len(Color) == 2 and isinstance(f(1), Color)",
        ),
        "RED = 1",
        "RED = 3",
    ),
    "an IntEnum": Case(
        "from enum import IntEnum\nclass Level(IntEnum):\n    LOW = 1\n    HIGH = 2",
        ("assert Level.HIGH > Level.LOW and Level.LOW == 1 and Level.LOW.name == 'LOW'",),
        "LOW = 1",
        "LOW = 3",
    ),
    "isinstance": Case(
        "class A: pass\nclass B(A): pass\ndef f(n):\n    return B() if n else A()",
        ("assert isinstance(f(1), A) and isinstance(f(1), B) and not isinstance(f(0), B) and issubclass(B, A)",),
        "if n",
        "if not n",
    ),
    "type and its name": Case(
        "class Dog:\n    pass\ndef f():\n    return Dog()",
        ("assert type(f()) is Dog and type(f()).__name__ == 'Dog' and f().__class__ is Dog",),
        "return Dog()",
        "return Dog",
    ),
    "a subclass's super": Case(
        "class A:\n    def f(self):\n        return 1\nclass B(A):\n    def f(self):\n        return super().f() + 1",
        ("assert B().f() == 2",),
        "+ 1",
        "+ 2",
        CLASS,
    ),
    "an abstract class": Case(
        "from abc import ABC, abstractmethod\nclass Shape(ABC):\n    @abstractmethod\n    def area(self): ...\n"
        "class Square(Shape):\n    def __init__(self, a):\n        self.a = a\n    def area(self):\n        return self.a ** 2",
        (RAISES, "raises(TypeError, Shape)\nassert Square(3).area() == 9 and isinstance(Square(1), Shape)"),
        "** 2",
        "* 2",
        CLASS,
    ),
    "a property that is set": Case(
        "class T:\n    def __init__(self):\n        self._c = 0\n    @property\n    def c(self):\n        return self._c\n    @c.setter\n"
        "    def c(self, v):\n        if v < -273:\n            raise ValueError('too cold')\n        self._c = v",
        (RAISES, "t = T()\nt.c = 5\nassert t.c == 5\nraises(ValueError, setattr, t, 'c', -300)"),
        "-273",
        "-999",
        CLASS,
    ),
    "attributes of a class": Case(
        "class C:\n    made = 0\n    def __init__(self):\n        C.made += 1",
        ("C(), C()\nassert C.made == 2",),
        "+= 1",
        "+= 2",
        CLASS,
    ),
    "a class method": Case(
        "class P:\n    def __init__(self, x):\n        self.x = x\n    @classmethod\n    def of(cls, t):\n        return cls(int(t))\n"
        "    @staticmethod\n    def twice(x):\n        return 2 * x",
        ("assert P.of('3').x == 3 and P.twice(2) == 4",),
        "int(t)",
        "int(t) + 1",
        CLASS,
    ),
    "slots": Case(
        "class S:\n    __slots__ = ('x',)\n    def __init__(self):\n        self.x = 1",
        (RAISES, "raises(AttributeError, setattr, S(), 'y', 1)\nassert not hasattr(S(), '__dict__')"),
        "    __slots__ = ('x',)\n",
        "",
        CLASS,
    ),
    "a missing attribute": Case(
        "class S:\n    def __init__(self):\n        self.x = 1",
        ("assert not hasattr(S(), 'y') and getattr(S(), 'y', 3) == 3",),
        "self.x",
        "self.y",
        CLASS,
    ),
    "a subclass of dict": Case(
        "class Attr(dict):\n    def __getattr__(self, name):\n        return self[name]",
        ("a = Attr(x=1)\nassert a.x == 1 and a['x'] == 1",),
        "self[name]",
        "self[name] + 1",
        CLASS,
    ),
    "a subclass of list": Case(
        "class Total(list):\n    def total(self):\n        return sum(self)",
        ("t = Total([1, 2])\nt.append(3)\nassert t.total() == 6 and len(t) == 3",),
        "sum(self)",
        "max(self)",
        CLASS,
    ),
    "a subclass of int": Case(
        "class Mod(int):\n    def twice(self):\n        return Mod(2 * self)\ndef f():\n    return Mod(3)",
        ("assert f() == 3 and f().twice() == 6",),
        "2 *",
        "3 *",
    ),
    "a subclass of str": Case(
        "class S(str):\n    def shout(self):\n        return self.upper() + '!'",
        ("assert S('a').shout() == 'A!'",),
        "'!'",
        "'?'",
        CLASS,
    ),
    "a singleton": Case(
        "class One:\n    _one = None\n    def __new__(cls):\n        if cls._one is None:\n            cls._one = super().__new__(cls)\n        return cls._one",
        ("assert One() is One()",),
        "        if cls._one is None:\n    ",
        "",
        CLASS,
    ),
    "a list that the object keeps": Case(
        STACK,
        ("s, a = Stack(), [1]\ns.push(a)\na.append(2)\nassert s.pop() == [1, 2]",),
        "append(item)",
        "append(item[:])",
        CLASS,
    ),
    "a fluent interface": Case(
        STACK, ("s = Stack()\nassert s.push(1).push(2) is s and len(s) == 2",), "        return self\n", "", CLASS
    ),
    "a container": Case(
        STACK,
        (
            "s = Stack([1, 2])\nassert 1 in s and 3 not in s and list(s) == [2, 1] and [x for x in s] == [2, 1] and len(s) == 2 and s",
        ),
        "reversed(self._items)",
        "self._items",
        CLASS,
    ),
    "linked nodes": Case(
        "class Node:\n    def __init__(self, value, next=None):\n        self.value, self.next = value, next\n"
        "def reverse(head):\n    before = None\n    while head:\n        head.next, before, head = before, head, head.next\n    return before",
        ("head = reverse(Node(1, Node(2)))\nassert (head.value, head.next.value, head.next.next) == (2, 1, None)",),
        "return before",
        "return head",
    ),
    # --- functions ---
    "a generator": Case(
        "def f(n):\n    for i in range(n):\n        yield i",
        ("import types\nassert isinstance(f(3), types.GeneratorType) and list(f(3)) == [0, 1, 2]",),
        "yield i",
        "yield -i",
    ),
    "an endless generator": Case(
        "def f():\n    a, b = 0, 1\n    while True:\n        yield a\n        a, b = b, a + b",
        ("from itertools import islice\nassert list(islice(f(), 5)) == [0, 1, 1, 2, 3]",),
        "a + b",
        "a - b",
    ),
    "a generator that is sent values": Case(
        "def f():\n    total = 0\n    while True:\n        total += yield total",
        ("g = f()\nnext(g)\nassert g.send(2) == 2 and g.send(3) == 5\ng.close()",),
        "+=",
        "-=",
    ),
    "a generator that ends": Case(
        "def f():\n    yield 1\n    return 2",
        (RAISES, "g = f()\nnext(g)\nassert raises(StopIteration, next, g).value == 2"),
        "return 2",
        "return 3",
    ),
    "an iterator": Case(
        "class Count:\n    def __init__(self, n):\n        self.n = n\n    def __iter__(self):\n        return self\n    def __next__(self):\n"
        "        if self.n <= 0:\n            raise StopIteration\n        self.n -= 1\n        return self.n",
        ("assert list(Count(3)) == [2, 1, 0] and next(Count(1)) == 0 and sum(Count(3)) == 3",),
        "<= 0",
        "<= 1",
        CLASS,
    ),
    "a context manager": Case(
        "class Open:\n    def __init__(self):\n        self.log = []\n    def __enter__(self):\n        self.log.append('in')\n        return self\n"
        "    def __exit__(self, kind, error, trace):\n        self.log.append(kind and kind.__name__)\n        return kind is KeyError",
        (
            "o = Open()\nwith o as p:\n    assert p is o\nwith o:\n    raise KeyError\nassert o.log == ['in', None, 'in', 'KeyError']",
        ),
        "is KeyError",
        "is None",
        CLASS,
    ),
    "a context manager of a generator": Case(
        "from contextlib import contextmanager\nlog = []\n@contextmanager\ndef f():\n    log.append(1)\n    try:\n        yield 5\n    finally:\n        log.append(2)\ndef get():\n    return log",
        ("with f() as x:\n    assert x == 5\nassert get() == [1, 2]",),
        "yield 5",
        "yield 6",
    ),
    "an async function": Case(
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return 2 * x",
        ("import asyncio\nassert asyncio.run(f(3)) == 6",),
        "2 *",
        "3 *",
    ),
    "async functions together": Case(
        "import asyncio\nasync def one(x):\n    await asyncio.sleep(0.01)\n    return x\nasync def f():\n    return await asyncio.gather(one(1), one(2))",
        ("import asyncio\nassert asyncio.run(f()) == [1, 2]",),
        "one(1)",
        "one(3)",
    ),
    "an async generator": Case(
        "async def f():\n    for i in range(3):\n        yield i",
        (
            "import asyncio\nasync def all_of():\n    return [x async for x in f()]\nassert asyncio.run(all_of()) == [0, 1, 2]",
        ),
        "range(3)",
        "range(2)",
    ),
    "a closure": Case(
        "def f(n):\n    def add(x):\n        return x + n\n    return add",
        ("assert f(2)(3) == 5 and [*map(f(1), [1, 2])] == [2, 3]",),
        "x + n",
        "x - n",
    ),
    "a closure with state": Case(
        "def f():\n    n = 0\n    def count():\n        nonlocal n\n        n += 1\n        return n\n    return count",
        ("c, d = f(), f()\nassert (c(), c(), d()) == (1, 2, 1)",),
        "n += 1",
        "n += 2",
    ),
    "a function as an argument": Case(
        "def f(g, x):\n    return g(g(x))", ("assert f(lambda x: x + 1, 0) == 2",), "g(g(x))", "g(x)"
    ),
    "a key": Case(
        "def f(a, key):\n    return sorted(a, key=key)",
        (
            "assert f([1, -3, 2], lambda x: -x) == [2, 1, -3]\nassert f(['b', 'A'], str.lower) == ['A', 'b']\nassert f([-2, 1], abs) == [1, -2]",
        ),
        "key=key",
        "key=None",
    ),
    "a function of a module as an argument": Case(
        "from functools import reduce\ndef f(g, a):\n    return reduce(g, a)",
        ("import operator\nassert f(operator.mul, [2, 3, 4]) == 24 and f(max, [1, 3, 2]) == 3",),
        "(g, a)",
        "(g, a[:2])",
    ),
    "a call that is counted": Case(
        "def memoize(g):\n    seen = {}\n    def inner(x):\n        if x not in seen:\n            seen[x] = g(x)\n        return seen[x]\n    return inner",
        (
            "calls = []\ndef slow(x):\n    calls.append(x)\n    return x * x\nfast = memoize(slow)\nassert (fast(3), fast(3), calls) == (9, 9, [3])",
        ),
        "if x not in seen",
        "if True",
    ),
    "a decorator": Case(
        "import functools\ndef twice(g):\n    @functools.wraps(g)\n    def inner(*a, **k):\n        g(*a, **k)\n        return g(*a, **k)\n    return inner",
        (
            "n = [0]\n@twice\ndef bump(by=1):\n    n[0] += by\n    return n[0]\nassert bump(by=2) == 4 and bump.__name__ == 'bump'",
        ),
        "        g(*a, **k)\n",
        "",
    ),
    "a decorator with an argument": Case(
        "def times(n):\n    def wrap(g):\n        def inner(x):\n            for _ in range(n):\n                x = g(x)\n            return x\n        return inner\n    return wrap",
        ("@times(3)\ndef up(x):\n    return x + 1\nassert up(0) == 3",),
        "range(n)",
        "range(n + 1)",
    ),
    "an error of a function that was given": Case(
        "def safe(g, x):\n    try:\n        return g(x)\n    except ZeroDivisionError:\n        return None",
        ("assert safe(lambda x: 1 / x, 0) is None and safe(lambda x: 1 / x, 2) == 0.5",),
        "return None",
        "return 0",
    ),
    "retries": Case(
        "def retry(g, n):\n    for i in range(n):\n        try:\n            return g()\n        except ValueError:\n            if i == n - 1:\n                raise",
        (
            RAISES,
            "seen = []\ndef fails():\n    seen.append(1)\n    raise ValueError('always')\nassert str(raises(ValueError, retry, fails, 3)) == 'always' and len(seen) == 3",
        ),
        "i == n - 1",
        "i == n",
    ),
    "an iterator as an argument": Case(
        "def f(i):\n    return [x for x in i]",
        (
            "assert f(x * x for x in range(3)) == [0, 1, 4] and f(iter('ab')) == ['a', 'b'] and f(zip('ab', [1, 2])) == [('a', 1), ('b', 2)]",
        ),
        "for x in i",
        "for x in i if x",
    ),
    "composition": Case(
        "def compose(*gs):\n    def inner(x):\n        for g in reversed(gs):\n            x = g(x)\n        return x\n    return inner",
        ("assert compose(str, abs, lambda x: x - 5)(2) == '3'",),
        "reversed(gs)",
        "gs",
    ),
    "partial": Case(
        "from functools import partial\ndef f(n):\n    return partial(pow, n)",
        ("assert f(2)(3) == 8",),
        "partial(pow, n)",
        "partial(max, n)",
    ),
    "a cached function": Case(
        "from functools import lru_cache\n@lru_cache(None)\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        ("assert fib(80) == 23416728348467685\nassert fib.cache_info().misses == 81",),
        "n < 2",
        "n < 3",
    ),
    "docstring and name": Case(
        'def f():\n    """Say it."""', ("assert f.__doc__ == 'Say it.' and f.__name__ == 'f'",), "Say it", "Said it"
    ),
    "keywords and defaults": Case(
        "def f(a, *rest, b=2, **more):\n    return a, rest, b, more",
        ("assert f(1, 3, b=4, c=5) == (1, (3,), 4, {'c': 5})",),
        "rest, b, more",
        "rest, more, b",
    ),
    "deep recursion": Case(
        "import sys\nsys.setrecursionlimit(20_000)\ndef f(n):\n    return 0 if n == 0 else 1 + f(n - 1)",
        ("assert f(9_000) == 9_000",),
        "1 + f",
        "2 + f",
    ),
    "a signature": Case(
        "def f(a: int, b: int = 2) -> int:\n    return a + b",
        ("import inspect\nassert list(inspect.signature(f).parameters) == ['a', 'b']",),
        "b: int = 2",
        "c: int = 2, b: int = 2",
    ),
    # --- state, identity, input and output ---
    "an argument that is changed": Case(
        "def f(a):\n    a.sort()", ("a = [2, 1]\nassert f(a) is None and a == [1, 2]",), "a.sort()", "a = sorted(a)"
    ),
    "a nested argument that is changed": Case(
        "def f(d):\n    d['a'].append(1)\n    d['b'] = d['a']",
        ("d = {'a': []}\nf(d)\nassert d['b'] is d['a'] == [1]",),
        "d['b'] = d['a']",
        "d['b'] = list(d['a'])",
    ),
    "changed before it was raised": Case(
        "def f(a):\n    a.append(1)\n    raise ValueError",
        (RAISES, "a = []\nraises(ValueError, f, a)\nassert a == [1]"),
        "    a.append(1)\n",
        "",
    ),
    "the argument itself": Case("def f(a):\n    return a", ("a = [1]\nassert f(a) is a",), "return a", "return a[:]"),
    "one list for ever": Case(
        "items = []\ndef get():\n    return items\ndef add(x):\n    items.append(x)",
        ("a = get()\nadd(1)\nassert get() == [1] and a is get() and a == [1]",),
        "return items",
        "return items[:]",
    ),
    "a list that grows behind": Case(
        "items = []\ndef get():\n    return items\ndef add(x):\n    items.append(x)",
        ("a = get()\nadd(1)\nassert a == [1]",),
        "return items",
        "return items[:]",
    ),
    "a global variable": Case(
        "n = 0\ndef f():\n    global n\n    n += 1\n    return n", ("f()\nassert f() == 2",), "+= 1", "+= 2"
    ),
    "printed text": Case(
        "def f():\n    print('a', 1)\n    print('b', end='')",
        (
            "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    f()\nassert out.getvalue() == 'a 1\\nb'",
        ),
        "'a', 1",
        "'a', 2",
    ),
    "printed text by sys.stdout": Case(
        "def f():\n    print('a')",
        (
            "import io, sys\nold, sys.stdout = sys.stdout, io.StringIO()\ntry:\n    f()\n    text = sys.stdout.getvalue()\nfinally:\n    sys.stdout = old\nassert text == 'a\\n'",
        ),
        "'a'",
        "'b'",
    ),
    "input": Case(
        "def f():\n    return int(input()) + int(input())",
        ("import io, sys\nsys.stdin = io.StringIO('1\\n2\\n')\nassert f() == 3",),
        "+",
        "-",
    ),
    "input that is replaced": Case(
        "def f():\n    return input('Name? ')",
        ("import builtins\nbuiltins.input = lambda prompt: 'Ann'\nassert f() == 'Ann'",),
        "return input('Name? ')",
        "return 'Bob'",
    ),
    "sys.stdin": Case(
        "import sys\ndef f():\n    return [int(line) for line in sys.stdin]",
        ("import io, sys\nsys.stdin = io.StringIO('1\\n2\\n')\nassert f() == [1, 2]",),
        "int(line)",
        "-int(line)",
    ),
    "patched input": Case(
        "def f():\n    return input().upper()",
        ("from unittest.mock import patch\nwith patch('builtins.input', side_effect=['a']):\n    assert f() == 'A'",),
        ".upper()",
        ".lower()",
    ),
    "setrlimit": Case(
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (2**26, resource.RLIM_INFINITY))\ndef f():\n    return 1",
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))\nassert f() == 1",),
        "return 1",
        "return 2",
    ),
    "a thread with a large stack": Case(
        "import sys, threading\ndef f(n):\n    out = []\n    def go():\n        out.append(n)\n    threading.stack_size(2**26)\n    t = threading.Thread(target=go)\n    t.start()\n    t.join()\n    return out[0]",
        ("assert f(3) == 3",),
        "append(n)",
        "append(-n)",
    ),
    "a program in a text": Case("def f(x):\n    return eval(x)", ("assert f('1 + 1') == 2",), "eval(x)", "eval(x) + 1"),
    "regular expressions": Case(
        "import re\ndef f(t):\n    return re.search(r'\\d+', t)",
        ("assert f('a12').group() == '12' and f('a') is None",),
        "\\d+",
        "\\d",
    ),
    "random numbers": Case(
        "import random\ndef f(seed):\n    random.seed(seed)\n    return random.random()",
        ("import random\nrandom.seed(3)\nassert f(3) == random.random()",),
        "(seed)\n    return random",
        "(seed + 1)\n    return random",
    ),
    "a set-up of the module": Case(
        "TABLE = [0] * 10\nfor i in range(10):\n    TABLE[i] = i * i\ndef f(n):\n    return TABLE[n]",
        ("assert f(3) == 9",),
        "i * i",
        "i + i",
    ),
    "bisect and heapq": Case(
        "import heapq\ndef f(a):\n    heapq.heapify(a)\n    return heapq.heappop(a)",
        ("assert f([3, 1, 2]) == 1",),
        "heappop(a)",
        "heapreplace(a, 0) + 1",
    ),
    "a package that is not there": Case(
        "import numpy as np\ndef f(a):\n    return float(np.sum(a))", ("assert f([1, 2]) == 3",), "np.sum", "np.max"
    ),
    "a result of 3 MB": Case(
        "def f(n):\n    return list(range(n))", ("assert len(f(300_000)) == 300_000",), "range(n)", "range(n - 1)"
    ),
    "many calls": Case(
        "def f(n):\n    return n + 1",
        ("assert all(f(n) == n + 1 for n in range(5_000))",),
        "n + 1",
        "n + 1 if n < 4_000 else 0",
    ),
    "objects of the tests": Case(
        "def total(orders):\n    return sum(order.price() for order in orders)",
        (
            "class Order:\n    def __init__(self, p):\n        self.p = p\n    def price(self):\n        return self.p\nassert total([Order(1), Order(2)]) == 3",
        ),
        "order.price()",
        "-order.price()",
    ),
    "a subclass in the tests": Case(
        "class Base:\n    def run(self):\n        return self.step() + 1\n    def step(self):\n        return 0",
        ("class Mine(Base):\n    def step(self):\n        return 5\nassert Mine().run() == 6 and Base().run() == 1",),
        "+ 1",
        "+ 2",
        CLASS,
    ),
    "a mock of the tests": Case(
        "def notify(sender, text):\n    sender.send(text.strip())",
        ("from unittest.mock import Mock\nm = Mock()\nnotify(m, ' a ')\nm.send.assert_called_once_with('a')",),
        ".strip()",
        "",
    ),
    "a file of the tests": Case(
        "def count(file):\n    return sum(1 for _ in file)",
        ("import io\nassert count(io.StringIO('a\\nb\\n')) == 2",),
        "1 for",
        "2 for",
    ),
    **_v("sum", "assert V(1, 2) + V(3, 4) == V(4, 6)", "V(self.x + other.x", "V(self.x - other.x"),
    **_v("sum and product", "assert (V(1, 2) + V(3, 4)) * 2 == V(8, 12)", "self.x * k", "self.x + k"),
    **_v("product from the left", "assert 2 * V(1, 2) == V(2, 4)", "__rmul__ = __mul__", "__rmul__ = __add__"),
    **_v("difference", "assert V(1, 2) - V(3, 4) == V(-2, -2)", "V(self.x - other.x", "V(other.x"),
    **_v("negative", "assert -V(1, 2) == V(-1, -2)", "V(-self.x", "V(self.x"),
    **_v("size", "assert abs(V(3, 4)) == 5 and float(V(3, 4)) == 5.0 and V(3, 4).norm == 5", "** 0.5", "** 1"),
    **_v(
        "unequal",
        "assert V(1, 2) != V(2, 1) and not V(1, 2) == V(2, 1)",
        "(self.x, self.y) == (other.x, other.y)",
        "True",
    ),
    **_v(
        "unequal to others",
        "assert V(1, 2) != (1, 2) and V(1, 2) != None",
        "isinstance(other, V) and (self.x, self.y) == (other.x, other.y)",
        "True",
    ),
    **_v(
        "order",
        "assert V(1, 1) < V(2, 2) and sorted([V(2, 2), V(1, 1)])[0] == V(1, 1) and max(V(1, 0), V(0, 3)).y == 3",
        "abs(self) < abs(other)",
        "abs(self) > abs(other)",
    ),
    **_v(
        "hash",
        "assert len({V(1, 2), V(1, 2)}) == 1 and {V(1, 2): 3}[V(1, 2)] == 3",
        "hash((self.x, self.y))",
        "id(self)",
    ),
    **_v(
        "items",
        "assert V(1, 2)[1] == 2 and list(V(1, 2)) == [1, 2] and len(V(1, 2)) == 2\nx, y = V(3, 4)\nassert (x, y) == (3, 4)",
        "(self.x, self.y)[place]",
        "(self.y, self.x)[place]",
    ),
    **_v("in", "assert 2 in V(1, 2) and 3 not in V(1, 2)", "item in (self.x, self.y)", "item in (self.x,)"),
    **_v(
        "texts",
        "assert repr(V(1, 2)) == 'V(1, 2)' and str(V(1, 2)) == '<1, 2>' and f'{V(1, 2):03}' == '001'",
        'f"<{',
        'f"({',
    ),
    **_v("truth", "assert V(1, 0) and not V(0, 0)", "self.x or self.y", "True or self.y"),
    **_v("call", "assert V(1, 2)(5) == 6", "self.x + t", "self.y + t"),
    **_v(
        "in place",
        "v = w = V(1, 2)\nv += V(1, 1)\nassert v is w and w.x == 2",
        "        return self\n",
        "        return V(self.x, self.y)\n",
    ),
    **_v(
        "methods of the class",
        "assert V.unit() == V(1, 0) and V.zero() == V(0, 0) and V.origin == (0, 0)",
        "cls(1, 0)",
        "cls(0, 1)",
    ),
    **_v(
        "in a list",
        "assert [V(1, 2), V(0, 0)] == [V(1, 2), V(0, 0)] and V(1, 2) in [V(1, 2)] and [V(1, 2)].index(V(1, 2)) == 0",
        "isinstance(other, V) and",
        "False and",
    ),
    **_v("a sum of all", "assert sum([V(1, 2), V(3, 4)], V(0, 0)) == V(4, 6)", "V(self.x + other.x", "V(self.x"),
    "a slice of an object": Case(
        "class Deck:\n    def __init__(self):\n        self.cards = [*range(52)]\n    def __getitem__(self, place):\n        return self.cards[place]\n    def __len__(self):\n        return len(self.cards)",
        ("d = Deck()\nassert d[1:3] == [1, 2] and d[::-1][0] == 51 and d[-1] == 51 and len(d) == 52",),
        "range(52)",
        "range(51)",
    ),
}
