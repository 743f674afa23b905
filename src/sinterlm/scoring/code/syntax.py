"""Python as a tree: what a text of Python defines, reads and leaves open."""

from __future__ import annotations

import ast
import warnings

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
IMPORTS = (ast.Import, ast.ImportFrom)


def parse(code: str) -> ast.Module | None:
    """The tree of a program; None for one that is empty or not Python.

    It is not compiled: 20 KB of text, such as a long sum of constants, can cost the compiler minutes and gigabytes. So
    that is left to the sandbox.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return None
    return tree if tree.body and not _has_misplaced(tree) else None


def source_of(code: str, node: ast.stmt) -> str:
    """The lines of a statement. A tree is never written out again: that recurses as deep as the tree."""
    first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
    return "\n".join(code.split("\n")[first - 1 : node.end_lineno])


def bound_names(code: str) -> set[str]:
    """What a program defines, imports or assigns at its top level."""
    return set().union(*map(names_bound_by, statements_of(code)))


def names_bound_by(node: ast.stmt) -> set[str]:
    """What a statement defines, imports or assigns, outside of functions and classes."""
    found: set[str] = set()
    rest: list[ast.AST] = [node]
    while rest:
        match rest.pop():
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                found.add(name)
            case ast.Import(names) | ast.ImportFrom(names=names):
                found |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
            case ast.Name(name, ast.Store()):
                found.add(name)
            case ast.Lambda():
                pass
            case other:
                rest += ast.iter_child_nodes(other)
    return found


def names_loaded(code: str) -> set[str]:
    """Every name that a program reads."""
    nodes = ast.walk(parse(code) or ast.Module([], []))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def names_stored(code: str) -> set[str]:
    """Every name that a program gives a value anywhere, arguments too."""
    found: set[str] = set()
    for node in ast.walk(parse(code) or ast.Module([], [])):
        if isinstance(node, ast.stmt):
            found |= names_bound_by(node) if isinstance(node, Definition | ast.Import | ast.ImportFrom) else set()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def has_definition(tree: ast.Module | None) -> bool:
    """Whether a program defines a function or class at its top level."""
    return tree is not None and any(isinstance(node, Definition) for node in tree.body)


def is_trivial(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function computes nothing yet: a docstring, ``pass``, ``...``, a trivial value, an error."""
    return all(map(_is_trivial_statement, node.body))


def _is_trivial_statement(node: ast.stmt) -> bool:
    match node:
        case ast.Pass() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value):
            return isinstance(value, ast.Constant)
        case ast.Return(value) | ast.AnnAssign(ast.Name(), value=value) | ast.Assign([ast.Name()], value):
            return value is None or _is_trivial_value(value)
        case ast.Raise(ast.Name("NotImplementedError") | ast.Call(ast.Name("NotImplementedError"))):
            return True
    return False


def _is_trivial_value(node: ast.expr) -> bool:
    match node:
        case ast.Constant() | ast.Name():
            return True
        case ast.List(elements) | ast.Tuple(elements) | ast.Set(elements):
            return all(map(_is_trivial_value, elements))
        case ast.Dict(keys):
            return not keys
        case ast.UnaryOp(operand=operand):
            return _is_trivial_value(operand)
        case ast.Call(ast.Name("list" | "dict" | "set" | "tuple" | "str" | "int" | "float"), [], []):
            return True
    return False


def statements_of(code: str) -> list[ast.stmt]:
    """The statements at the top level of a program; none if it is not Python."""
    tree = parse(code)
    return tree.body if tree else []


_IN_FUNCTIONS = (ast.Return, ast.Yield, ast.YieldFrom, ast.Await)
_IN_LOOPS = (ast.Break, ast.Continue)


def _has_misplaced(tree: ast.Module) -> bool:
    """Whether a ``return``, ``yield`` or ``await`` is outside of functions, or a ``break`` outside of loops."""
    rest: list[tuple[ast.AST, bool, bool]] = [(tree, False, False)]
    while rest:
        node, in_function, in_loop = rest.pop()
        if isinstance(node, (*(() if in_function else _IN_FUNCTIONS), *(() if in_loop else _IN_LOOPS))):
            return True
        if isinstance(node, Definition | ast.Lambda):
            in_function, in_loop = not isinstance(node, ast.ClassDef), False
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While):
            in_loop = True
        rest += [(child, in_function, in_loop) for child in ast.iter_child_nodes(node)]
    return False
