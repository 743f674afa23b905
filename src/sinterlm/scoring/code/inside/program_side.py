"""The program, as a script (``run``) or as a module whose functions the tests call (``serve``)."""

from __future__ import annotations

import _ast
import _io
import builtins
import sys
from collections import namedtuple
from contextlib import suppress

from sinterlm.scoring.code.inside.bridge import (
    MUTABLE,
    Channel,
    Parcel,
    exception_code,
    is_own_container,
    kind_of,
    kind_of_class,
    known,
    known_name,
)
from sinterlm.scoring.code.inside.operations import OPERATIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_PRINTED = 2**20


def load(source: str, namespace: dict[str, Any]) -> list[str]:
    """Run a program's statements one by one, so that one that fails (its example, its plot) decides nothing.

    The whole of it must be Python.

    Returns:
        What the statements raised that failed.
    """
    tree: Any = compile(source, "program.py", "exec", _ast.PyCF_ONLY_AST, dont_inherit=True)
    flags, codes = 0, []
    for node in tree.body:
        if isinstance(node, _ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= getattr(__import__("__future__"), alias.name).compiler_flag
        codes.append(compile(_ast.Module([node], []), "program.py", "exec", flags, dont_inherit=True))
    failed = []
    for code in codes:
        try:
            exec(code, namespace)
        except BaseException as error:
            failed.append(f"{type(error).__name__}: {str(error)[:200]}")
    return failed


def run(source: str) -> None:
    """The program as a script."""
    sys.argv = ["program.py"]
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)


def serve(channel: Channel, program: str, given: list[str], classes: list[str]) -> None:
    """The program as a module, after what the tests give it, and then its answers to all requests."""
    module = type(sys)("program")
    sys.modules["program"] = module
    side = ProgramSide(channel, module, classes)
    sys.stdout = Printed()
    asking = Asking(side)
    sys.stdin = asking
    builtins.input = lambda prompt="": side.call_back("input", 0, str(prompt))
    for code in given:
        with suppress(Exception):  # one that needs more of the tests
            exec(compile(code, "given.py", "exec", dont_inherit=True), module.__dict__)
    try:
        failed = load(program, module.__dict__)
    except BaseException as error:
        failed = [f"{type(error).__name__}: {str(error)[:200]}"]
    channel.send({"value": None, "objects": [], "failed": failed[:9]} | side._aside())
    while True:
        channel.send(side.perform(channel.receive()))


class Printed(_io.StringIO):
    """What the program prints, up to a limit."""

    def write(self, text: str) -> int:
        """Keep it, or drop what is too much."""
        return super().write(text) if self.tell() < MAX_PRINTED else len(text)


class Asking:
    """The program's standard input, which is that of the tests."""

    def __init__(self, side: ProgramSide) -> None:
        self._side = side

    def readline(self, *_: int) -> Any:
        """A line, or nothing."""
        return self._side.call_back("readline", 0)

    def read(self, *_: int) -> Any:
        """All that is left."""
        return self._side.call_back("read", 0)

    def readlines(self) -> list[str]:
        """All lines that are left."""
        return str(self.read()).splitlines(keepends=True)

    def __iter__(self) -> Any:
        return iter(self.readline, "")


class ProgramSide:
    """The program's objects: those of common classes, and those that stay, by their numbers."""

    def __init__(self, channel: Channel, module: Any, classes: list[str]) -> None:
        self.is_lossy = False
        self._channel = channel
        self._module = module
        self._classes = set(classes)
        self._unnamed: dict[str, type] = {}
        self._objects: list[Any] = [module]
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._their_numbers: dict[int, int] = {}

    def refer(self, value: Any, parcel: Parcel) -> Any:
        """As :class:`Side` has it."""
        if id(value) in self._their_numbers:
            return ["yours", self._their_numbers[id(value)]]
        if isinstance(value, type):
            return self._class_code(value)
        number = self._number(value)
        if isinstance(value, BaseException):
            return ["exception", exception_code(value, self._class_code(type(value)), parcel, number)]
        cls = type(value)
        is_own = cls.__module__ in ("program", "given") and cls.__name__ not in self._classes
        return ["object", [number, self._class_code(cls) if is_own else cls.__name__]]

    def note_loss(self, value: Any) -> None:
        """As :class:`Side` has it; but not if the class has comparisons of its own, which are lost on purpose."""
        own = [base for base in type(value).__mro__ if base.__module__ == "program"]
        self.is_lossy = self.is_lossy or not any({"__eq__", "__ne__"} & vars(base).keys() for base in own)

    def dereference(self, tag: str, content: Any, parcel: Parcel, *, is_inside: bool) -> Any:
        """As :class:`Side` has it."""
        if tag == "yours":
            return self._objects[content]
        if tag == "known":
            return known(*content)
        if tag == "exception":
            cls, arguments = content[:2]
            return parcel.decode(cls)(*(parcel.decode(item) for item in arguments))
        number, sort, name = content
        if number not in self._theirs:
            found = self._function(number, name) if sort == "function" else self._iterator(number)
            self._theirs[number] = found
            self._their_numbers[id(found)] = number
        return self._theirs[number]

    def name_of(self, cls: type) -> str | None:
        """As :class:`Side` has it; a subclass of a common class counts as that."""
        return next((base.__name__ for base in cls.__mro__ if base.__name__ in self._classes), None)

    def class_of(self, name: str) -> type:
        """As :class:`Side` has it; an empty one if the program knows none."""
        self._classes.add(name)
        found = vars(self._module).get(name)
        return found if isinstance(found, type) else self._unnamed.setdefault(name, type(name, (), {}))

    def named_tuple(self, name: str, fields: tuple[str, ...]) -> Any:
        """As :class:`Side` has it; the program's own if it has one of that name."""
        found = vars(self._module).get(name)
        return found if getattr(found, "_fields", None) == fields else namedtuple(name, fields)

    def call_back(self, operation: str, number: int, *arguments: Any, **keywords: Any) -> Any:
        """Have the tests call a function that they gave."""
        parcel = Parcel(self)
        request: dict[str, Any] = {"operation": operation, "number": number}
        request["arguments"] = [parcel.encode(value) for value in arguments]
        request["keywords"] = {name: parcel.encode(value) for name, value in keywords.items()}
        request["objects"] = parcel.contents()
        self._channel.send(request | self._aside())
        reply = self._channel.receive()
        while "operation" in reply:
            self._channel.send(self.perform(reply))
            reply = self._channel.receive()
        parcel.unpack(reply["objects"])
        if "error" in reply:
            raise parcel.decode(reply["error"])
        return parcel.decode(reply["value"])

    def perform(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the tests ask for."""
        parcel = Parcel(self)
        before: list[Any] = []
        self.is_lossy = False
        try:
            parcel.unpack(request["objects"])
            arguments = [parcel.decode(item) for item in request["arguments"]]
            keywords = {name: parcel.decode(item) for name, item in request["keywords"].items()}
            before = parcel.contents()
            found = OPERATIONS[request["operation"]](*arguments, **keywords)
            is_made = request["operation"] == "call" and type(found) is arguments[0] and is_own_container(found)
            is_kept = sys.getrefcount(found) > 2 and kind_of(found) in MUTABLE
            value = self.refer_made(found) if is_made else parcel.encode(found)
            reply = {"value": value, "objects": parcel.contents(before)}
            if self.is_lossy or is_kept:
                reply["lossy"] = True
        except BaseException as error:
            try:
                reply = {"error": parcel.encode(error), "objects": parcel.contents(before)}
            except Exception:
                name = type(error).__name__
                plain = ["exception", [["known", ["builtins", "RuntimeError"]], [name], {}, [None, None], 0, name]]
                reply = {"error": plain, "objects": []}
        return reply | self._aside()

    def refer_made(self, value: Any) -> Any:
        """A container of a class of the program's own stays where it is, with its methods."""
        return ["object", [self._number(value), self._class_code(type(value))]]

    def _aside(self) -> dict[str, Any]:
        """What was printed in the meantime."""
        if not isinstance(sys.stdout, Printed) or not sys.stdout.tell():
            return {}
        printed = sys.stdout.getvalue()
        sys.stdout.seek(0)
        sys.stdout.truncate()
        return {"printed": printed}

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:  # it stays in use, so the id stays its own
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._numbers[id(value)]

    def _class_code(self, cls: type) -> list[Any]:
        if (issubclass(cls, BaseException) or kind_of_class(cls)) and (place := known_name(cls)):
            return ["known", place]
        bases = [base for base in cls.__bases__ if base.__module__ == "program" or issubclass(base, BaseException)]
        return ["class", [self._number(cls), cls.__name__, [self._class_code(base) for base in bases]]]

    def _function(self, number: int, name: str) -> Any:
        def function(*arguments: Any, **keywords: Any) -> Any:
            return self.call_back("call", number, *arguments, **keywords)

        function.__name__ = function.__qualname__ = name
        return function

    def _iterator(self, number: int) -> Any:
        while True:
            is_over, value = self.call_back("next", number)
            if is_over:
                return
            yield value
