"""Limits of this scorer: which failures they explain, and which programs could forge a verdict in one process."""

from __future__ import annotations

import ast
import re

from sinterlm.scoring.code.extraction import Program
from sinterlm.scoring.code.problem import Problem
from sinterlm.scoring.code.syntax import Definition, bound_names, parse, source_of

PACKAGES = {
    *(
        "numpy",
        "scipy",
        "pandas",
        "sympy",
        "networkx",
        "sklearn",
        "matplotlib",
        "seaborn",
        "torch",
        "tensorflow",
        "keras",
    ),
    *("jax", "numba", "sortedcontainers", "requests", "pytest", "hypothesis", "attr", "attrs", "pydantic", "dateutil"),
    *("more_itertools", "pytz", "yaml", "bs4", "lxml", "PIL", "cv2", "nltk", "regex", "gmpy2", "mpmath", "tqdm"),
    *("bitarray", "faker", "psutil", "openpyxl", "sqlalchemy", "flask", "django", "aiohttp", "httpx", "prettytable"),
}
"""Well-known packages. The sandbox lacks them, which says nothing about a program that uses one."""
_SUSPICIOUS = re.compile(
    r"__\w+__|\b(?:_getframe|modules|gc|ctypes|inspect|os|builtins|settrace|setprofile|atexit|globals|eval|exec|exit|quit"
    r"|SystemExit|SkipTest|_ShouldStop|importlib|setattr|_thread|signal|BaseException)\b"
)
_HARMLESS = re.compile(
    r"__(?:init|name|main|str|repr|len|iter|next|enter|exit|call|post_init|slots|future|all|doc|init_subclass|aenter"
    r"|aexit|aiter|anext|version|author)__|\bos\.path\b"
)


def limit_of(error: str, message: str) -> str:
    """Which limit of the sandbox made a program or its tests raise this; empty if it may be their own fault."""
    if error == "ModuleNotFoundError":
        package = message.removeprefix("No module named ").strip("'").partition(".")[0]
        return f"the package {package} is not in the sandbox" if package in PACKAGES else ""
    return f"the sandbox refused a call: {message}" if error == "PermissionError" else ""


def is_suspicious(program: Program, problem: Problem, definitions: str) -> bool:
    """Whether a program holds anything by which it could deceive tests in its own process."""
    own = program.text.removeprefix(problem.begun)
    tree = parse(own) or parse(program.text) or ast.Module([], [])
    rest = own
    for node in tree.body:  # how its objects are compared is what a class was asked for
        if isinstance(node, ast.ClassDef) and node.name in problem.asked:
            rest = rest.replace(source_of(own, node), re.sub(r"__\w+__", "", source_of(own, node)))
    if _SUSPICIOUS.search(_HARMLESS.sub("", rest)):
        return True
    methods = {node.name for node in ast.walk(parse(definitions) or ast.Module([], [])) if isinstance(node, Definition)}
    if methods & bound_names(own):
        return True
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for inner in ast.walk(tree):
        match inner:
            case ast.Attribute(value, attribute, ast.Store()):
                if attribute in methods or (isinstance(value, ast.Name) and value.id in imported):
                    return True
    return False
