"""The code scorer on problems in LeetCode's form: objects go to the program and back, and no forged one is believed."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from sinterlm.records import Score
from tests.answers import answered
from tests.test_code import reason, score

pytestmark = pytest.mark.xdist_group("code_objects")  # the tests' shared fixtures are made once, in one process


class Problem(NamedTuple):
    prompt: str
    tests: tuple[str, ...]
    right: str
    wrong: str


LIST_NODE = """class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next
"""
TREE_NODE = """class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val = val
        self.left = left
        self.right = right
"""
LINKED = """
def linked(numbers):
    head = None
    for number in reversed(numbers):
        head = ListNode(number, head)
    return head
def numbers(head):
    found = []
    while head and len(found) < 10_000:
        found.append(head.val)
        head = head.next
    return found
"""
TREES = """
def tree(values, place=0):
    if place >= len(values) or values[place] is None:
        return None
    return TreeNode(values[place], tree(values, 2 * place + 1), tree(values, 2 * place + 2))
def flat(root):
    return [] if root is None else [root.val, flat(root.left), flat(root.right)]
"""


def comment(code: str) -> str:
    return "".join(f"# {line}\n" for line in code.splitlines())


def starter(signature: str, before: str = "") -> str:
    return f"Solve it.\n\n```python\n{before}class Solution:\n    def {signature}:\n        \n```\n"


LISTS = "# Definition for singly-linked list.\n" + comment(LIST_NODE)
BINARY = "# Definition for a binary tree node.\n" + comment(TREE_NODE)
REVERSE = starter("reverseList(self, head: Optional[ListNode]) -> Optional[ListNode]", LISTS)
REVERSE_RIGHT = """class Solution:
    def reverseList(self, head: Optional[ListNode]) -> Optional[ListNode]:
        before = None
        while head:
            head.next, before, head = before, head, head.next
        return before
"""
PROBLEMS = {
    "reverse": Problem(
        REVERSE,
        (
            LINKED,
            "assert numbers(Solution().reverseList(linked([1, 2, 3]))) == [3, 2, 1]",
            "assert Solution().reverseList(None) is None",
            "assert numbers(Solution().reverseList(head=linked(range(5_000)))) == [*range(4_999, -1, -1)]",
        ),
        REVERSE_RIGHT,
        REVERSE_RIGHT.replace("return before", "return before and before.next"),
    ),
    "reverse, the class in the tests": Problem(
        starter("reverseList(self, head: Optional[ListNode]) -> Optional[ListNode]"),
        (LIST_NODE + LINKED, "head = linked([1, 2])\nassert Solution().reverseList(head).next is head"),
        REVERSE_RIGHT,
        REVERSE_RIGHT.replace("return before", "return ListNode(before.val, ListNode(before.next.val))"),
    ),
    "merge": Problem(
        starter("mergeTwoLists(self, a: Optional[ListNode], b: Optional[ListNode]) -> Optional[ListNode]", LIST_NODE),
        (
            f"{LINKED}\ndef check(candidate):\n    assert numbers(candidate(linked([1, 4]), linked([2, 3, 5]))) == "
            "[1, 2, 3, 4, 5]\n    assert isinstance(candidate(linked([]), linked([0])), ListNode)",
            "check(Solution().mergeTwoLists)",
        ),
        """class Solution:
    def mergeTwoLists(self, a: Optional[ListNode], b: Optional[ListNode]) -> Optional[ListNode]:
        values = []
        for node in (a, b):
            while node:
                values.append(node.val)
                node = node.next
        head = None
        for value in sorted(values, reverse=True):
            head = ListNode(value, head)
        return head
""",
        "class Solution:\n    def mergeTwoLists(self, a, b):\n        return a",
    ),
    "invert": Problem(
        starter("invertTree(self, root: Optional[TreeNode]) -> Optional[TreeNode]", BINARY),
        (
            TREES,
            "root = tree([4, 2, 7, 1, 3, None, 9])\nassert Solution().invertTree(root) is root",
            "assert flat(root) == [4, [7, [9, [], []], []], [2, [3, [], []], [1, [], []]]]",
        ),
        """        if root:
            root.left, root.right = self.invertTree(root.right), self.invertTree(root.left)
        return root
""",
        "        return root",
    ),
    "reorder in place": Problem(
        starter("reorderList(self, head: Optional[ListNode]) -> None", LISTS),
        (
            LINKED,
            "head = linked([1, 2, 3, 4, 5])\nassert Solution().reorderList(head) is None\n"
            "assert numbers(head) == [1, 5, 2, 4, 3]",
        ),
        """```python
class Solution:
    def reorderList(self, head):
        nodes = []
        while head:
            nodes.append(head)
            head = head.next
        order = [nodes.pop(0 if place % 2 == 0 else -1) for place in range(len(nodes))]
        for node, following in zip(order, order[1:] + [None]):
            node.next = following
```""",
        "class Solution:\n    def reorderList(self, head):\n        head = ListNode(1, ListNode(5))",
    ),
    "flatten in place": Problem(
        starter("flatten(self, root: Optional[TreeNode]) -> None", BINARY),
        (
            TREES,
            "root = tree([1, 2, 5, 3, 4])\nSolution().flatten(root)\n"
            "assert flat(root) == [1, [], [2, [], [3, [], [4, [], [5, [], []]]]]]",
        ),
        """class Solution:
    def flatten(self, root):
        nodes = []
        def visit(node):
            if node:
                nodes.append(node)
                visit(node.left)
                visit(node.right)
        visit(root)
        for node, following in zip(nodes, nodes[1:] + [None]):
            node.left, node.right = None, following
""",
        "class Solution:\n    def flatten(self, root):\n        root.left = None",
    ),
    "where the cycle begins": Problem(
        starter("detectCycle(self, head: Optional[ListNode]) -> Optional[ListNode]", LISTS),
        (
            LINKED,
            "head = linked([3, 2, 0])\nhead.next.next.next = head.next\n"
            "assert Solution().detectCycle(head) is head.next and head.next.next.next is head.next",
            "assert Solution().detectCycle(linked([1, 1])) is None",
        ),
        """class Solution:
    def detectCycle(self, head: Optional[ListNode]) -> Optional[ListNode]:
        seen = set()
        while head and head not in seen:
            seen.add(head)
            head = head.next
        return head
""",
        "class Solution:\n    def detectCycle(self, head):\n        return head and ListNode(2, head.next.next)",
    ),
    "level order": Problem(
        starter("levelOrder(self, root: Optional[TreeNode]) -> List[List[int]]", BINARY),
        (TREES, "assert Solution().levelOrder(tree([3, 9, 20, None, None, 15, 7])) == [[3], [9, 20], [15, 7]]"),
        """class Solution:
    def levelOrder(self, root: Optional[TreeNode]) -> List[List[int]]:
        rows, row = [], [root] if root else []
        while row:
            rows.append([node.val for node in row])
            row = [child for node in row for child in (node.left, node.right) if child]
        return rows
""",
        "class Solution:\n    def levelOrder(self, root):\n        return [[root.val]]",
    ),
    "parts of a list": Problem(
        starter("splitListToParts(self, head: Optional[ListNode], k: int) -> List[Optional[ListNode]]", LISTS),
        (
            LINKED,
            "assert [numbers(part) for part in Solution().splitListToParts(linked([1, 2, 3]), 2)] == [[1, 2], [3]]",
        ),
        """class Solution:
    def splitListToParts(self, head, k):
        rest, head.next.next = head.next.next, None
        return [head, rest]
""",
        "class Solution:\n    def splitListToParts(self, head, k):\n        return [head, head.next.next]",
    ),
    "a graph's copy, its class in a text": Problem(
        starter(
            "cloneGraph(self, node: Optional['Node']) -> Optional['Node']",
            '"""\n# Definition for a Node.\nclass Node:\n    def __init__(self, val: int = 0, '
            "neighbors: Optional[List['Node']] = None):\n        self.val = val\n"
            '        self.neighbors = neighbors or []\n"""\n',
        ),
        (
            "a, b = Node(1), Node(2)\na.neighbors, b.neighbors = [b, a], [a]",
            "c = Solution().cloneGraph(a)\nassert c is not a and c.neighbors[0] is not b and c.neighbors[1] is c",
            "assert (c.val, c.neighbors[0].val) == (1, 2) and c.neighbors[0].neighbors == [c]",
            "assert a.neighbors == [b, a] and type(c) is Node",
        ),
        """class Solution:
    def cloneGraph(self, node: Optional['Node']) -> Optional['Node']:
        made = {}
        def copy(old):
            if old not in made:
                made[old] = Node(old.val)
                made[old].neighbors = [copy(other) for other in old.neighbors]
            return made[old]
        return copy(node)
""",
        "class Solution:\n    def cloneGraph(self, node):\n        return node",
    ),
    "design a class": Problem(
        "```python\nclass LRUCache:\n\n    def __init__(self, capacity: int):\n        \n\n"
        "    def get(self, key: int) -> int:\n        \n\n"
        "    def put(self, key: int, value: int) -> None:\n        \n\n\n"
        "# Your LRUCache object will be instantiated and called as such:\n# obj = LRUCache(capacity)\n```",
        (
            "cache = LRUCache(2)\ncache.put(1, 1)\ncache.put(2, 2)\nassert cache.get(1) == 1",
            "cache.put(3, 3)\nassert cache.get(2) == -1 and cache.get(3) == 3",
        ),
        """from collections import OrderedDict
class LRUCache:
    def __init__(self, capacity: int):
        self.capacity, self.values = capacity, OrderedDict()
    def get(self, key: int) -> int:
        if key not in self.values:
            return -1
        self.values.move_to_end(key)
        return self.values[key]
    def put(self, key: int, value: int) -> None:
        self.values[key] = value
        self.values.move_to_end(key)
        if len(self.values) > self.capacity:
            self.values.popitem(last=False)
""",
        "class LRUCache(dict):\n    def __init__(self, capacity):\n        pass\n"
        "    def get(self, key):\n        return dict.get(self, key, -1)\n    put = dict.__setitem__",
    ),
    "design a class over trees": Problem(
        f"```python\n{BINARY}class BSTIterator:\n\n    def __init__(self, root: Optional[TreeNode]):\n        \n\n"
        "    def next(self) -> int:\n        \n\n    def hasNext(self) -> bool:\n        \n```",
        (
            TREES,
            "found, each = [], BSTIterator(tree([7, 3, 15, 1]))\nwhile each.hasNext():\n    found.append(each.next())",
            "assert found == [1, 3, 7, 15]",
        ),
        """class BSTIterator:
    def __init__(self, root: Optional[TreeNode]):
        def inside(node):
            return inside(node.left) + [node.val] + inside(node.right) if node else []
        self.values = inside(root)
    def next(self) -> int:
        return self.values.pop(0)
    def hasNext(self) -> bool:
        return bool(self.values)
""",
        "class BSTIterator:\n    def __init__(self, root):\n        self.r = root\n    def next(self):\n"
        "        self.v, self.r = self.r.val, self.r.left\n        return self.v\n    def hasNext(self):\n"
        "        return self.r is not None",
    ),
    "there and back": Problem(
        f"```python\n{BINARY}class Codec:\n\n    def serialize(self, root):\n        \n\n"
        "    def deserialize(self, data):\n        \n```",
        (
            TREES,
            "assert flat(Codec().deserialize(Codec().serialize(tree([1, 2, 3])))) == [1, [2, [], []], [3, [], []]]",
        ),
        """class Codec:
    def serialize(self, root):
        return repr(root and [root.val, self.serialize(root.left), self.serialize(root.right)])
    def deserialize(self, data):
        found = eval(data)
        return found and TreeNode(found[0], self.deserialize(found[1]), self.deserialize(found[2]))
""",
        "class Codec:\n    def serialize(self, root):\n        return str(root.val)\n"
        "    def deserialize(self, data):\n        return TreeNode(int(data))",
    ),
    "an interface to call": Problem(
        "```python\n# This is MountainArray's API interface.\n# class MountainArray:\n"
        "#    def get(self, index: int) -> int:\n#    def length(self) -> int:\n\nclass Solution:\n"
        "    def find(self, target: int, mountain: 'MountainArray') -> int:\n        \n```",
        (
            "class MountainArray:\n    def __init__(self, values):\n        self.values, self.calls = values, 0\n"
            "    def get(self, index):\n        self.calls += 1\n        return self.values[index]\n"
            "    def length(self):\n        return len(self.values)",
            "m = MountainArray([1, 5, 2])\nassert Solution().find(2, m) == 2 and m.calls <= 3",
        ),
        """class Solution:
    def find(self, target: int, mountain: 'MountainArray') -> int:
        return [mountain.get(place) for place in range(mountain.length())].index(target)
""",
        "class Solution:\n    def find(self, target, mountain):\n"
        "        return [mountain.get(n // 2) for n in range(6)].index(target) // 2",
    ),
    "a class that only the tests know": Problem(
        "Write is_leaf(n) for a node n of a tree with left and right, and mirror(n).",
        (
            "class N:\n    __slots__ = ('left', 'right')\n    def __init__(self, left=None, right=None):\n"
            "        self.left, self.right = left, right\n    def leaves(self):\n        return 2",
            "n = N(N())\nassert is_leaf(n.left) and not is_leaf(n)",
            "assert mirror(n).left is None and n.right.left is None",
            "assert type(mirror(N())) is N and mirror(n).leaves() == 2",
        ),
        "def is_leaf(n):\n    return n.left is None and n.right is None\n"
        "def mirror(n):\n    n.left, n.right = n.right, n.left\n    return n",
        "def is_leaf(n):\n    return n.left is None\ndef mirror(n):\n    return n",
    ),
    "fields, slots and members": Problem(
        "```python\nfrom dataclasses import dataclass\nfrom enum import Enum\n"
        "class Color(Enum):\n    RED = 1\n    BLUE = 2\n"
        "@dataclass(frozen=True)\nclass Point:\n    x: int\n    color: Color = Color.RED\n"
        "class Pair:\n    __slots__ = ('a', '__b')\n    def __init__(self, a, b):\n        self.a, self.__b = a, b\n"
        "    def __eq__(self, other):\n        return (self.a, self.__b) == (other.a, other.__b)\n"
        "def paint(point: Point, color: Color) -> Point:\ndef twin(point: Point) -> Pair:\n```",
        (
            "assert paint(Point(3), Color.BLUE) == Point(3, Color.BLUE)",
            "assert paint(Point(3), Color.RED).color is Color.RED",
            "assert twin(Point(1)) == Pair(Point(1), [Point(1)]) and {Point(1): 2}[twin(Point(1)).a] == 2",
        ),
        "def paint(point, color):\n    return Point(point.x, Color(color.value))\n"
        "def twin(point):\n    return Pair(point, [point])",
        "def paint(point, color):\n    return point\ndef twin(point):\n    return Pair(point, [point])",
    ),
}


@pytest.fixture(scope="module")
def solved() -> dict[tuple[str, str], Score]:
    cases = [(name, which) for name in PROBLEMS for which in ("right", "wrong")]
    problems = [(PROBLEMS[name], which) for name, which in cases]
    entries = [answered(getattr(problem, which), *problem.tests, prompt=problem.prompt) for problem, which in problems]
    return dict(zip(cases, score(entries), strict=True))


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_in_the_form_of_leetcode(solved: dict[tuple[str, str], Score], name: str) -> None:
    assert dict(solved[name, "right"].detail) == {"reason": "passed"}
    assert solved[name, "wrong"].detail["reason"] == "wrong", solved[name, "wrong"].detail


@pytest.mark.parametrize(
    "value",
    [
        "Decimal('1.50')",
        "Fraction(-1, 3)",
        "deque([1, [2]], maxlen=3)",
        "Counter('aab')",
        "defaultdict(list, a=[1])",
        "OrderedDict(b=1, a=2)",
        "{frozenset({(1, 2)}), 3}",
        "date(2024, 2, 29)",
        "time(1, 2, 3, 4)",
        "datetime(2024, 2, 29, 1, 2, 3, 4)",
        "datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=1)))",
        "timedelta(-1, 2, 3)",
        "bytes(range(256))",
        "1 - 0j",
        "[Decimal('2'), {Fraction(1): date(1, 1, 1)}]",
    ],
)
def test_values_of_the_standard_library_are_copied(value: str) -> None:
    imports = (
        "from collections import *\nfrom datetime import *\nfrom decimal import Decimal\nfrom fractions import Fraction"
    )
    program = f"{imports}\ndef same(x):\n    assert type(x) is type({value})\n    return x\ndef made(): return {value}"
    tests = (
        f"x = {value}\nassert made() == x and type(made()) is type(x)\nassert same(x) == x and type(same(x)) is type(x)"
    )
    [found] = score([answered(program, imports, tests)])
    assert dict(found.detail) == {"reason": "passed"}


def test_arguments_are_changed_and_shared_wherever_they_lie() -> None:
    program = (
        "def change(rows, box, queue):\n    rows[0].append(3)\n    box['rows'] = rows[0]\n    box['new'] = new = [5]\n"
        "    queue.appendleft(new)\n    return rows[1]\n"
        "def loop(x):\n    x.append(x)\n    return x"
    )
    tests = (
        "from collections import deque\nrow = [1]\nrows, box, queue = [row, row], {}, deque()",
        "assert change(rows, box, queue) is row and row == [1, 3] and rows == [row, row] and rows[0] is rows[1] is row",
        "assert box['rows'] is row and box['new'] is queue[0]",
        "x = []\nassert loop(x) is x and x[0] is x",
        "deep = []\nfor _ in range(3_000):\n    deep = [deep]\nassert len(loop([deep])) == 2",
    )
    [found] = score([answered(program, *tests)])
    assert dict(found.detail) == {"reason": "passed"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("object()", "harness-limit"), ("list", "passed"), ("len", "harness-limit"), ("lambda: 0", "passed")],
)
def test_what_does_not_cross_is_no_verdict(value: str, expected: str) -> None:
    """An object whose class only one side knows stays where it is."""
    assert reason("def f(x): return x", f"x = {value}\nassert f(x) is x or f(x) is len") == expected


# --- forged objects --------------------------------------------------------------------------------------------------

ASKED = """```python
class Tree:
    value = 0
    left = right = None
    def __init__(self, value, left=None, right=None):
        self.value, self.left, self.right, self.tags = value, left, right, {value}
    def __eq__(self, other):
        return isinstance(other, Tree) and self.equals(other)
    def equals(self, other):
        same = self.value == other.value and (self.left is None) == (other.left is None)
        return same and (self.left is None or self.left.equals(other.left))
    @property
    def total(self):
        return self.value + (self.left.total if self.left else 0)
def double(root: Tree) -> Tree:
```"""
HELPERS = """import copy
def doubled():
    return Tree(4, Tree(6))
def found():
    return double(Tree(2, Tree(3)))
class Anything:
    def __eq__(self, other): return True
"""
COMPARISONS = (
    "found().equals(doubled())",
    "doubled().equals(found())",
    "found() == doubled()",
    "doubled() == found()",
    "not found() != doubled()",
    "[found()] == [doubled()]",
    "copy.deepcopy(found()) == doubled()",
    "copy.copy(found()) == doubled()",
    "found().total == 10",
    "(found().value, found().left.value) == (4, 6)",
    "type(found()) is Tree and found().value == 4 and found().left.value == 6",
    "type(found()) is Tree and found().tags.issuperset({4}) and found().left.value == 6",
    "found().value in {4} and found().left.value in (6, 7)",
)
IS_FOOLED = f"""is_fooled = False
for comparison in {COMPARISONS}:
    try:
        is_fooled = is_fooled or eval(comparison)
    except Exception:
        pass
assert is_fooled
"""
HONEST = "def double(root):\n    return root and Tree(2 * root.value, double(root.left), double(root.right))"
EVIL_INT = (
    "class I(int):\n    def __eq__(s, o): return True\n    __ne__ = lambda s, o: False\n    __hash__ = int.__hash__\n"
)
EQUAL = (
    "class E:\n    value, left, right, total = 4, None, None, 10\n    def __eq__(s, o): return True\n"
    "    def __ne__(s, o): return False\n    def equals(s, o): return True\n"
    "    issuperset = equals\n    __hash__ = None\n"
)


def patched(patch: str, result: str) -> str:
    """A program that changes the harness around it while it is called."""
    return f"import sys\nm = sys.modules['__main__']\ndef double(root):\n    m.{patch}\n    return {result}"


FORGERIES = {
    "a number equal to all": f"{EVIL_INT}def double(root): return Tree(I(0), Tree(I(0)))",
    "a text equal to all": f"{EVIL_INT.replace('int', 'str')}def double(root): return Tree(I(0))",
    "an object equal to all": f"{EQUAL}def double(root): return E()",
    "an object equal to all inside": f"{EQUAL}def double(root): return Tree(4, E())",
    "a set that holds all": f"{EQUAL}def double(root):\n    t = Tree(0, Tree(6))\n    t.tags = E()\n    return t",
    "a set that holds all, in the argument": f"{EQUAL}def double(root):\n    root.tags, root.left.value = E(), 6\n"
    "    return root",
    "a type as a method": "def double(root):\n    t = Tree(0)\n    t.equals = bool\n    return t",
    "objects equal to all as values": f"{EQUAL}def double(root): return Tree(E(), Tree(E()))",
    "an object equal to all in a list": f"{EQUAL}def double(root): return Tree([E()], Tree((E(),)))",
    "an object equal to all inside the argument": f"{EQUAL}def double(root):\n    root.left = E()\n    return root",
    "another class of the same name": f"{EQUAL.replace('class E', 'class Tree')}def double(root): return Tree()",
    "a class that computes its attributes": "class Tree:\n    value = property(lambda s: 4)\n    left = None\n"
    "    def equals(s, o): return True\n    __eq__ = equals\ndef double(root): return Tree()",
    "a class with slots": "class Tree:\n    __slots__ = ('value', 'equals', 'left', 'right')\n"
    "def double(root):\n    t = Tree()\n    t.value, t.equals, t.left = 0, lambda o: True, None\n    return t",
    "methods as attributes": "def double(root):\n    t = Tree(0, Tree(0))\n    t.equals = t.__eq__ = lambda o: True\n"
    "    t.left.equals = lambda o: True\n    return t",
    "a property as an attribute": "def double(root):\n    t = Tree(0)\n    t.__dict__['total'] = 10\n    return t",
    "a copy of its own": "def double(root):\n    t = Tree(0)\n    t.__deepcopy__ = lambda memo: 0\n"
    "    t.__reduce_ex__ = lambda n: (eval, ('doubled',))\n    return t",
    "a class that sets attributes": "class Tree:\n    def __setattr__(s, n, v): s.__dict__[n] = lambda *a: True\n"
    "    def __getattr__(s, n): return lambda *a: True\n"
    "def double(root):\n    t = Tree()\n    t.equals = 1\n    return t",
    "a reduction": "def double(root):\n    Tree.__reduce__ = lambda s: (eval, ('doubled',))\n    return Tree(0)",
    "another class on the way": f"{EQUAL}def double(root):\n    root.__class__ = E\n    return root",
    "the class as an attribute": patched(
        "Parcel._content = lambda s, v: ['instance', 'Tree', {'__class__': ['type', 'int'], '__eq__': True}]", "Tree(0)"
    ),
    "all attributes as one": patched("attributes_of = lambda v: {'__dict__': {'equals': bool}}", "Tree(0)"),
    "an object that says it is a Tree": f"{EQUAL}    __class__ = property(lambda s: Tree)\n"
    "def double(root): return E()",
    "a subclass": f"class S(Tree):\n{EQUAL.partition(chr(10))[2]}def double(root): return S(0)",
    "the program itself": "def equals(o): return True\n"
    + patched("Parcel.encode = lambda s, v, e=m.Parcel.encode: e(s, v) if v else ['object', 0]", "None"),
    "objects of the program's, in a tuple": f"{EQUAL}def double(root): return (E(), E())",
    "a class of the tests that no prompt names": patched("ProgramSide.name_of = lambda s, c: 'Anything'", "Tree(0)"),
    "a class of the harness": patched("ProgramSide.name_of = lambda s, c: 'Remote'", "Tree(0)"),
    "a class that nobody has": patched("ProgramSide.name_of = lambda s, c: 'str'", "Tree(0)"),
    "an unknown kind of object": patched("Parcel._content = lambda s, v: ['eval', 'doubled', 'doubled']", "Tree(0)"),
    "an unknown kind of value": patched("Parcel.encode = lambda s, v: ['eval', 'doubled()']", "0"),
    "an object that was not sent": patched("Parcel.encode = lambda s, v: ['at', 99]", "0"),
    "contents that are missing": patched("Parcel.contents = lambda s, b=None: []", "root"),
    "contents of another kind": patched("Parcel._content = lambda s, v: ['list', None, [4]]", "root"),
    "a member of no enumeration": patched("Parcel.encode = lambda s, v: ['member', ['Tree', '__eq__']]", "0"),
    "a date that is none": patched("Parcel.encode = lambda s, v: ['date', ['4']]", "0"),
    "the argument as it is": "def double(root): return root",
    "the argument, emptied": "def double(root):\n    root.__dict__.clear()\n    return root",
    "an object in itself": "def double(root):\n    root.value, root.left = 4, root\n    return root",
    "a value in itself": "def double(root):\n    x = []\n    x.append(x)\n    return Tree(x, Tree(x))",
    "a deep value": "def double(root):\n    x = ()\n    for _ in range(10**5): x = (x,)\n    return Tree(x)",
    "a deep tree": "def double(root):\n    t = None\n    for _ in range(2_000): t = Tree(4, t)\n    return t",
    "a tree without end": "def double(root):\n    t = root\n    while True:\n"
    "        t.left = Tree(4)\n        t = t.left",
    "a huge tree": "def double(root):\n    t = None\n    for n in range(6 * 10**5): t = Tree(n, t, t)\n    return t",
    "a huge value": "def double(root): return Tree('4' * 2**25)",
    "a number that fills the memory": "from decimal import Decimal\n"
    "def double(root): return Tree(Decimal('1e999999999'))",
}


@pytest.fixture(scope="module")
def forged() -> dict[str, Score]:
    entries = [answered(f"```python\n{code}\n```", HELPERS, IS_FOOLED, prompt=ASKED) for code in FORGERIES.values()]
    return dict(zip(FORGERIES, score(entries, timeout_seconds=2), strict=True))


def test_an_honest_program_passes_all_comparisons() -> None:
    tests = [f"assert {comparison}" for comparison in COMPARISONS]
    [found] = score([answered(HONEST, HELPERS, *tests, prompt=ASKED)])
    assert dict(found.detail) == {"reason": "passed"}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_object_passes_no_comparison(forged: dict[str, Score], name: str) -> None:
    assert (forged[name].value, forged[name].passed) == (0.0, False)
    assert forged[name].detail["reason"] in ("wrong", "killed", "time-limit"), forged[name].detail
