"""What a problem asks for: the code of its prompt, its tests, and which names an answer has to define."""

from __future__ import annotations

import ast
import builtins
import re
import sys
import typing
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from importlib import import_module
from typing import NamedTuple

from sinterlm.errors import InputError
from sinterlm.records import Message
from sinterlm.scoring.code.extraction import Program, find_blocks
from sinterlm.scoring.code.syntax import (
    IMPORTS,
    Definition,
    bound_names,
    has_definition,
    is_trivial,
    names_bound_by,
    names_loaded,
    names_stored,
    parse,
    source_of,
    statements_of,
)

SOLUTION_MODULES = (
    "solution",
    "program",
    "main",
    "answer",
    "submission",
    "your_module",
    "your_solution",
    "code_solution",
)
"""A test that imports from one of these means the program."""

_EMPTY = re.compile(  # the header of a function or class, and no line after it that is indented more
    r"^(([ \t]*)(?:(?:async[ \t]+)?def\b|class\b|\)).*:[ \t]*)$"
    r"(?!(?:\n[ \t]*(?:#.*)?)*\n\2[ \t]+[^\s#])",
    re.MULTILINE,
)
_COMMENTED_CLASS = re.compile(r"^#[ \t]?class\b.*(?:\n#(?:[ \t]{2}.*|[ \t]*$))*", re.MULTILINE)
_TO_DO = re.compile(
    r"#.*\b(?:TODO|FIXME|your (?:code|solution|implementation)|implement|fill (?:this )?in|write (?:your|the|code))\b",
    re.IGNORECASE,
)
_LIBRARY = {
    name: (module, name if name not in ("np", "pd", "plt") else "")
    for module, names in {
        "math": "isclose isnan isinf",
        "cmath": "phase",
        "copy": "deepcopy",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "collections": "Counter deque defaultdict OrderedDict namedtuple",
        "datetime": "timedelta",
        "functools": "reduce partial",
        "pytest": "approx raises",
        "numpy": "np allclose array_equal",
        "numpy.testing": "assert_allclose assert_array_equal assert_almost_equal",
        "pandas": "pd",
        "matplotlib.pyplot": "plt",
    }.items()
    for name in names.split()
}
"""What tests compare and build with: an answer's own version would decide what counts as equal."""
_INDENT = "    "


class Problem(NamedTuple):
    """A prompt and its Python tests, as the scorer needs them."""

    begun: str
    """The prompt's code, which the program begins with; empty if it has none."""
    asked: frozenset[str]
    """Which of the tests' names the answer has to define."""
    replaced: frozenset[str]
    """Those of them that the prompt defines in full: a function to mend, for example."""
    yardsticks: frozenset[str]
    """Those of the replaced names that the tests compare the others with, such as a slow function beside a fast one."""
    provided: dict[str, tuple[str, str]]
    """Names of the standard library that the tests forgot to import: module, and what of it (empty for all of it)."""
    given: list[str]
    """Parts of the tests that the program needs."""


def read_problem(tests: Sequence[str], messages: Sequence[Message]) -> Problem:
    """Find out what the tests ask of an answer.

    Raises:
        InputError: The tests use nothing that an answer could define: every answer would have the same verdict.
    """
    begun = prompt_code(messages)
    code = "\n".join(tests)
    names = _free_names(code, bound_names(begun))
    said = _words(messages)
    stubs = {node.name for node in _definitions(begun) if is_stub(node, begun)}
    complete = bound_names(begun) - stubs
    provided = _forgotten(code, names - bound_names(begun) - said)
    asked = names - complete - provided.keys()
    replaced: set[str] = set()
    if not asked:
        defined = {node.name for node in _definitions(begun)}
        asked = replaced = names & complete & defined
    if not asked:
        asked, provided = {*provided}, {}
    if not asked:
        asked = {name for name in _called_builtins(code) if name in said}
    if not asked:
        raise InputError(
            "the tests use nothing that an answer could define, so that every answer would pass or fail alike; "
            "expected tests that call a function or class which the prompt asks for"
        )
    return Problem(
        begun,
        frozenset(asked),
        frozenset(replaced),
        frozenset(_yardsticks(code, replaced, _prose(messages, begun))),
        provided,
        common_definitions(tests, messages),
    )


def taken_from(problem: Problem, program: Program) -> set[str]:
    """Which of the tests' names come from the program; all others are the tests' own.

    If the prompt defines names in full, they are those that the answer redefines; but never both sides of a comparison,
    which the program could make equal. An answer that defines nothing of what it was asked for gives nothing, even if
    the prompt's code before it would.
    """
    in_prompt = bound_names(problem.begun)
    defined = problem.asked & program.defined
    if not problem.replaced:
        return set(problem.asked if defined else problem.asked - in_prompt)
    changed = {name for name in defined if _last(problem.begun, name) != _last(program.text, name)}
    return changed - problem.yardsticks or changed or set(defined)


def own_definitions(problem: Problem, taken: Set[str]) -> str:
    """The part of the prompt's code that is the tests' own: all definitions but those that the answer has to write."""
    hidden = problem.asked if problem.replaced and not taken else taken
    hidden = hidden | (problem.asked - problem.replaced)
    kept = [
        source_of(problem.begun, node)
        for node in statements_of(problem.begun)
        if isinstance(node, Definition | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)
        and not names_bound_by(node) & hidden
        and not (isinstance(node, Definition) and is_stub(node, problem.begun))
    ]
    return "\n".join(kept)


def methods_to_write(problem: Problem) -> set[str]:
    """Names of the methods in those of the prompt's classes that the answer has to write."""
    classes = [
        node
        for node in _definitions(problem.begun)
        if isinstance(node, ast.ClassDef) and (node.name in problem.asked or is_stub(node, problem.begun))
    ]
    return {member.name for node in classes for member in node.body if isinstance(member, Definition)}


def prompt_code(messages: Sequence[Message]) -> str:
    """The code with which a prompt begins the program (imports, signature, helpers); empty if it has none.

    It is the last message if that is Python as a whole, or else its fenced blocks, or else its lines that are Python,
    if these define something. As on LeetCode, functions may lack their bodies, types in signatures
    their import from ``typing``, and classes may be defined in a comment or a text.
    """
    text = messages[-1].content.replace("\r\n", "\n")
    for code in (text, _filled(text)):
        tree = parse(code)
        if tree is not None and any(isinstance(node, (Definition, *IMPORTS)) for node in tree.body):
            return _completed(code, tree)
    pieces = []
    fenced = [block for block in find_blocks(_fences_only(text))]
    named = [block for block in fenced if block.language.startswith("py")] or [
        block for block in fenced if not block.language
    ]
    for block in named:
        for code in (block.raw, _filled(block.raw), block.code):
            if parse(code) is not None:
                pieces.append(code)
                break
    if not named and re.search(r"^(?:def|class|async def) ", text, re.MULTILINE):
        pieces = [block.code for block in find_blocks(_filled(text)) if has_definition(parse(block.code))]
    code = "\n".join(pieces)
    tree = parse(code)
    if tree is not None and any(isinstance(node, (Definition, *IMPORTS)) for node in tree.body):
        return _completed(code, tree)
    return ""


def common_definitions(tests: Sequence[str], messages: Sequence[Message]) -> list[str]:
    """The parts of the tests that the program needs: the classes that the last message names, and imports for these.

    One that asserts something is a test, which the program must not see.
    """
    nodes = [(test, node) for test in tests for node in statements_of(test)]
    words = set(re.findall(r"\w+", messages[-1].content))
    classes = [
        source_of(test, node)
        for test, node in nodes
        if isinstance(node, ast.ClassDef)
        and node.name in words
        and not any(isinstance(inner, ast.Assert) for inner in ast.walk(node))
    ]
    imports = [source_of(test, node) for test, node in nodes if isinstance(node, IMPORTS)] if classes else []
    return [*imports, *classes]


def class_names(code: str) -> set[str]:
    """Classes at the top level of a program."""
    return {node.name for node in statements_of(code) if isinstance(node, ast.ClassDef)}


def is_stub(node: ast.stmt, code: str) -> bool:
    """Whether a definition of ``code`` is one that an answer has to write: it computes nothing, or says "to do"."""
    if isinstance(node, ast.ClassDef):  # a method of a complete class may well return a constant
        methods = [member for member in node.body if isinstance(member, Definition) and is_stub(member, code)]
        return any(not any(isinstance(part, ast.Return) and part.value for part in ast.walk(item)) for item in methods)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return is_trivial(node) or _TO_DO.search(source_of(code, node)) is not None


def _free_names(code: str, in_prompt: Set[str]) -> set[str]:
    """What the tests use and do not define; what they import from the solution's module too."""
    tree = parse(code) or ast.Module([], [])
    bound = names_stored(code) - in_prompt
    hard = {node.name for node in ast.walk(tree) if isinstance(node, Definition)}
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in SOLUTION_MODULES:
            imported |= {alias.name for alias in node.names if alias.name != "*"}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            hard |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    loaded = names_loaded(code) - bound - (hard - imported) - vars(builtins).keys() - {"__name__", "__file__"}
    for node in ast.walk(tree):  # import solution; solution.add(1, 2)
        match node:
            case ast.Attribute(ast.Name(name), attribute) if name in SOLUTION_MODULES and name in hard:
                imported.add(attribute)
    return loaded | imported


def _yardsticks(code: str, names: Set[str], prose: str) -> set[str]:
    """The side of every comparison of two of these names that is not to be written.

    The prompt says that it wants ``fast`` before it says that it must equal ``slow``; if it says neither, what is
    expected is on the right.
    """
    nodes = [*ast.walk(parse(code) or ast.Module([], []))]
    behind: dict[str, set[str]] = {}  # what the value of a variable was made with

    def used(node: ast.AST) -> set[str]:
        loaded = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        return set().union(loaded & names, *(behind.get(name, ()) for name in loaded))

    for node in nodes:
        match node:
            case ast.Assign([ast.Name(variable)], value):
                behind.setdefault(variable, set()).update(used(value))
    found: set[str] = set()
    for node in nodes:
        match node:
            case ast.Compare(left, _, [right]) | ast.Call(ast.Attribute(), [left, right, *_]):
                sides = [used(right), used(left)]
                if all(sides) and not sides[0] & sides[1]:
                    found |= max(
                        sides, key=lambda side: min(_place(name, prose) for name in side)
                    )  # the first, if equal
    return found


def _place(name: str, prose: str) -> int:
    said = re.search(rf"\b{re.escape(name)}\b", prose)
    return said.start() if said else len(prose)


def _prose(messages: Sequence[Message], begun: str) -> str:
    """The last message without its code."""
    code = {line.strip() for line in begun.split("\n")}
    return "\n".join(line for line in messages[-1].content.splitlines() if line.strip() not in code)


def _called_builtins(code: str) -> set[str]:
    tree = parse(code) or ast.Module([], [])
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return names & vars(builtins).keys()


def _words(messages: Iterable[Message]) -> set[str]:
    return {word for message in messages for word in re.findall(r"\w+", message.content)}


def _forgotten(code: str, names: Set[str]) -> dict[str, tuple[str, str]]:
    """Which of the names mean something of a library that the tests did not import: its module, and what of it."""
    attributes: dict[str, set[str]] = {}
    for node in ast.walk(parse(code) or ast.Module([], [])):
        match node:
            case ast.Attribute(ast.Name(name), attribute):
                attributes.setdefault(name, set()).add(attribute)
    found = {name: _LIBRARY[name] for name in names if name in _LIBRARY}
    for name in names & attributes.keys() & sys.stdlib_module_names:
        with suppress(ImportError):
            if attributes[name] <= {*dir(import_module(name))}:
                found[name] = (name, "")
    return found


def _last(code: str, name: str) -> str:
    """The last definition of a name, as a tree; empty if there is none."""
    nodes = [node for node in statements_of(code) if name in names_bound_by(node)]
    with suppress(RecursionError):
        return ast.dump(nodes[-1]) if nodes else ""
    return source_of(code, nodes[-1])


def _fences_only(text: str) -> str:
    """The text, if it has a fence; otherwise nothing, because prose is not code."""
    return text if re.search(r"^[ \t>]*(?:[-*+][ \t]+|\d+\.[ \t]+)?(?:```|~~~)", text, re.MULTILINE) else ""


def _filled(code: str) -> str:
    return _EMPTY.sub(rf"\1\n\2{_INDENT}pass", code)


def _completed(code: str, tree: ast.Module) -> str:
    code = _commented_classes(code, tree) + code
    return _import_types(parse(code) or tree) + code


def _import_types(tree: ast.Module) -> str:
    """The import of the types that a prompt's code names and does not define."""
    nodes = [*ast.walk(tree)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    known = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    known |= {node.name for node in nodes if isinstance(node, Definition)}
    known |= {alias.asname or alias.name for node in nodes if isinstance(node, IMPORTS) for alias in node.names}
    missing = {name for name in names & set(typing.__all__) - known if name[0].isupper()}
    return f"from typing import {', '.join(sorted(missing))}\n" if missing and not known & {"*", "annotations"} else ""


def _commented_classes(code: str, tree: ast.Module) -> str:
    """The classes that a prompt's code defines only in comments or texts."""
    comments = [re.sub(r"^#[ \t]?", "", comment, flags=re.MULTILINE) for comment in _COMMENTED_CLASS.findall(code)]
    alone = [node.value for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    texts = [node.value for node in alone if isinstance(node.value, str)]
    found = [(text, node) for text in comments + texts for node in statements_of(text)]
    classes = [(text, node) for text, node in found if isinstance(node, ast.ClassDef) and not is_stub(node, text)]
    known = {node.name for node in _definitions(code)}
    return "".join(f"{source_of(text, node)}\n\n\n" for text, node in classes if node.name not in known)


def _definitions(code: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    return [node for node in statements_of(code) if isinstance(node, Definition)]
