"""From an answer to a program: which of its text is code, and how it continues what the prompt began."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
import typing
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sinterlm.records import Message

MAX_CHARACTERS = 100_000
"""Of an answer: longer ones are not read."""

_FENCE = re.compile(
    r"^([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*\2[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_LANGUAGES = ("python", "python3", "py", "py3")
_EMPTY = re.compile(  # the header of a function or class, and no line behind it that is indented more
    r"^(([ \t]*)(?:(?:async[ \t]+)?def\b|class\b|\)).*:[ \t]*)$"
    r"(?!(?:\n[ \t]*(?:#.*)?)*\n\2[ \t]+[^\s#])",
    re.MULTILINE,
)
_COMMENTED_CLASS = re.compile(r"^#[ \t]?class\b.*(?:\n#(?:[ \t]{2}.*|[ \t]*$))*", re.MULTILINE)
_CODE_LINE = re.compile(r"(?:async def|def|class|import|from)\b|@")
_MAX_READ_CHARACTERS = 2_000_000
"""Of all readings of an answer: what has not been understood by then, is no program."""
_INDENT = "    "


class Block(NamedTuple):
    """A fenced block of an answer."""

    language: str
    """As the fence says it, in lower case; empty where it says none."""
    code: str


def find_blocks(text: str) -> list[Block]:
    """The fenced blocks that may be Python: those that say so, else those that say nothing.

    The indentation of the fence itself is taken off; a block that is never closed goes on to the end.
    """
    blocks = [Block(match[3].lower(), _unindented(match[4], match[1])) for match in _FENCE.finditer(text)]
    python = [block for block in blocks if block.language in _LANGUAGES]
    return python or [block for block in blocks if not block.language]


def prompt_code(messages: Sequence[Message]) -> str:
    """The code with which a prompt begins the program (imports, signature, helpers); empty where it has none.

    It is the last message where that is Python as a whole, or else its fenced blocks, where these define something. As
    LeetCode has it, functions may lack their bodies, types in signatures their import from ``typing``, and classes may
    be defined in a comment or a text.
    """
    text = messages[-1].content.replace("\r\n", "\n")
    fenced = "\n".join(block.code for block in find_blocks(text))
    for code in (text, fenced, _EMPTY.sub(rf"\1\n\2{_INDENT}pass", fenced)):
        tree = parse(code)
        if tree is not None and any(isinstance(node, _Definition | ast.Import | ast.ImportFrom) for node in tree.body):
            code = _commented_classes(code, tree) + code
            return _import_types(parse(code) or tree) + code
    return ""


def own_definitions(code: str) -> str:
    """What the prompt's code itself says: all but the functions and classes that the answer has to write.

    A function without a body (but for a docstring, ``pass``, ``...`` and imports) is such a one, and a class with one.
    """
    tree = parse(code) or ast.Module([], [])
    kept = [node for node in tree.body if not _is_stub(node) and isinstance(node, _Definition | _Binding)]
    return "\n".join(map(ast.unparse, kept))


def methods_to_write(code: str) -> set[str]:
    """Names of the methods in a prompt's classes that the answer has to write."""
    tree = parse(code) or ast.Module([], [])
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_stub(node)]
    return {member.name for node in classes for member in node.body if isinstance(member, _Definition)}


def common_definitions(tests: Sequence[str], messages: Sequence[Message]) -> list[str]:
    """What of the tests the program needs: the classes that the last message names, and imports for these.

    One that asserts something is a test, which the program must not see.
    """
    nodes = [node for test in tests for node in (parse(test) or ast.Module([], [])).body]
    words = set(re.findall(r"\w+", messages[-1].content))
    classes = [
        node
        for node in nodes
        if isinstance(node, ast.ClassDef)
        and node.name in words
        and not any(isinstance(inner, ast.Assert) for inner in ast.walk(node))
    ]
    imports = [node for node in nodes if isinstance(node, _IMPORTS)] if classes else []
    return [ast.unparse(node) for node in (*imports, *classes)]


def build_program(answer: str, begun: str, *, as_script: bool) -> str | None:
    """The program of an answer; None where no reading of it is Python.

    Args:
        answer: with fenced blocks or without, with prose around, the whole program or the continuation of ``begun``.
        begun: the prompt's code, which the program begins with.
        as_script: the program reads input and prints: of several blocks it is the last. Otherwise it is all of them,
            because one may hold what another needs.
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    codes = [block.code for block in find_blocks(answer)]
    if not codes:
        readings = _without_prose(answer, begun)
    elif as_script:
        readings = _readings(codes[-1], begun)
    else:
        readings = (reading for code in ("\n".join(codes), *reversed(codes)) for reading in _readings(code, begun))
    num_characters = 0
    for reading in readings:
        if parse(reading) is not None:
            return reading
        num_characters += len(reading)
        if num_characters > _MAX_READ_CHARACTERS:
            break
    return None


def parse(code: str) -> ast.Module | None:
    """The tree of a program; None for one that is empty or no Python.

    It is not compiled: 20 KB of text, such as a long sum of constants, can cost the compiler minutes and gigabytes. So
    that is left to the sandbox.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return None
    return tree if tree.body and not _has_misplaced(tree) else None


def names_in(code: str) -> set[str]:
    """Every name that stands in a program."""
    return {node.id for node in ast.walk(parse(code) or ast.Module([], [])) if isinstance(node, ast.Name)}


def class_names(code: str) -> set[str]:
    """Classes on the uppermost level of a program."""
    return {node.name for node in (parse(code) or ast.Module([], [])).body if isinstance(node, ast.ClassDef)}


def modules_in(code: str) -> dict[str, list[str]]:
    """Names of standard modules that stand in a program, each with what it takes of them."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(parse(code) or ast.Module([], [])):
        match node:
            case ast.Attribute(ast.Name(name), attribute) if name in sys.stdlib_module_names:
                found.setdefault(name, []).append(attribute)
    return found


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_Binding = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign
_IMPORTS = (ast.Import, ast.ImportFrom)
_IN_FUNCTIONS = (ast.Return, ast.Yield, ast.YieldFrom, ast.Await)
_IN_LOOPS = (ast.Break, ast.Continue)


def _readings(code: str, begun: str) -> Iterator[str]:
    """A block as a program: on its own behind the prompt's code, or as the rest of its last function."""
    whole = f"{begun}\n\n{textwrap.dedent(code)}"
    if not begun:
        yield whole
        return
    first = code.lstrip("\n")
    continued = (f"{begun}\n{body}" for body in (first, _INDENT + first, textwrap.indent(first, _INDENT)))
    if first[:1].isspace() and not _defined(textwrap.dedent(code)) & _defined(begun):
        yield from continued
        yield whole
    else:
        yield whole
        yield from continued


def _without_prose(answer: str, begun: str) -> Iterator[str]:
    """The lines of an unfenced answer: from its beginning, or a line that looks like code, to any unindented line."""
    lines = answer.splitlines()
    starts = [0, *(number for number, line in enumerate(lines) if number and _CODE_LINE.match(line))]
    ends = [len(lines), *(number for number, line in reversed([*enumerate(lines)]) if line and not line[0].isspace())]
    codes = ("\n".join(lines[start:end]) for start in starts for end in ends if end > start)
    return (reading for code in codes for reading in _readings(code, begun))


def _defined(code: str) -> set[str]:
    """Functions and classes on the uppermost level of a program."""
    tree = parse(code)
    return {node.name for node in tree.body if isinstance(node, _Definition)} if tree else set()


def _has_misplaced(tree: ast.Module) -> bool:
    """Whether a ``return``, ``yield`` or ``await`` stands outside of functions, or a ``break`` outside of loops."""
    rest: list[tuple[ast.AST, bool, bool]] = [(tree, False, False)]
    while rest:
        node, in_function, in_loop = rest.pop()
        if isinstance(node, (*(() if in_function else _IN_FUNCTIONS), *(() if in_loop else _IN_LOOPS))):
            return True
        if isinstance(node, _Definition | ast.Lambda):
            in_function, in_loop = not isinstance(node, ast.ClassDef), False
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            in_loop = True
        rest += [(child, in_function, in_loop) for child in ast.iter_child_nodes(node)]
    return False


def _import_types(tree: ast.Module) -> str:
    """The import of the types that a prompt's code names and does not define."""
    nodes = [*ast.walk(tree)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    known = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    known |= {node.name for node in nodes if isinstance(node, _Definition)}
    known |= {alias.asname or alias.name for node in nodes if isinstance(node, _IMPORTS) for alias in node.names}
    missing = {name for name in names & set(typing.__all__) - known if name[0].isupper()}
    return f"from typing import {', '.join(sorted(missing))}\n" if missing and not known & {"*", "annotations"} else ""


def _commented_classes(code: str, tree: ast.Module) -> str:
    """The classes that a prompt's code defines in comments or texts, and not besides."""
    comments = [re.sub(r"^#[ \t]?", "", comment, flags=re.MULTILINE) for comment in _COMMENTED_CLASS.findall(code)]
    alone = [node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    texts = [node.value for node in alone if isinstance(node.value, str)]
    found = [node for text in comments + texts for node in (parse(text) or ast.Module([], [])).body]
    classes = [node for node in found if isinstance(node, ast.ClassDef) and not _is_stub(node)]
    return "".join(f"{ast.unparse(node)}\n\n\n" for node in classes if node.name not in _defined(code))


def _is_stub(node: ast.stmt) -> bool:
    if isinstance(node, ast.ClassDef):
        return any(isinstance(member, _Definition) and _is_stub(member) for member in node.body)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
        isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in node.body
    )


def _unindented(text: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
