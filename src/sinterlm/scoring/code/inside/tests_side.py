"""The tests' process (``test``): their objects, and what they see of the program's; or both in one (``alone``)."""

from __future__ import annotations

import sys
from collections import namedtuple
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodType

from sinterlm.scoring.code.inside.bridge import (
    MUTABLE,
    Channel,
    Parcel,
    ProgramError,
    exception_code,
    has_method,
    kind_of,
    kind_of_class,
    known,
    known_name,
)
from sinterlm.scoring.code.inside.operations import next_of
from sinterlm.scoring.code.inside.program_side import load
from sinterlm.scoring.code.inside.stand_ins import LOCAL, Remote, RemoteClass, carried_attribute, carried_text
from sinterlm.scoring.code.inside.test_runner import carry_out, is_of_test_runner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROGRAM = 0
"""The reference to the program's module."""


def run_tests(channel: Channel, definitions: str, classes: list[str], methods: list[str], **job: Any) -> dict[str, Any]:
    """Run the tests one after the other against the program in the other process."""
    side = TestsSide(channel, classes, methods, asks_for_classes=job["asks_for_classes"])
    side.answer(Parcel(side))  # to the program's being loaded
    exec(compile(definitions, "definitions.py", "exec", dont_inherit=True), side.namespace)
    program = object.__new__(Remote)
    for name, value in (("_ask", side.ask), ("_reference", PROGRAM), ("_is_made", False)):
        object.__setattr__(program, name, value)

    def borrow(name: str) -> Any:
        found = program._ask("borrow", program, name)
        side.note_borrowed(name, found)
        return found

    side.is_plain = True
    verdict = carry_out(side.namespace, borrow, **job)
    return verdict | {"limits": side.limits[:3], "is_plain": side.is_plain, "failed": side.failed}


def run_alone(program: str, definitions: str, given: list[str], **job: Any) -> dict[str, Any]:
    """Run program and tests in one process: what Python itself makes of them."""
    module = type(sys)("program")
    sys.modules["program"] = module
    for code in given:
        with suppress(Exception):
            exec(compile(code, "given.py", "exec", dont_inherit=True), module.__dict__)
    failed = load(program, module.__dict__)
    namespace = {"__name__": "tests"}
    exec(compile(definitions, "definitions.py", "exec", dont_inherit=True), namespace)
    namespace |= {name: value for name, value in vars(module).items() if name in namespace and name[:2] != "__"}
    return carry_out(namespace, lambda name: getattr(module, name), **job) | {"failed": failed}


class TestsSide:
    """The tests' objects, and their stand-ins for the program's.

    Args:
        classes: The program may make objects of these that the tests or their definitions have.
        methods: The prompt asks the program for methods of these names.
        asks_for_classes: What the tests make of the program's classes is theirs to combine with anything.
    """

    def __init__(self, channel: Channel, classes: list[str], methods: list[str], *, asks_for_classes: bool) -> None:
        self.namespace: dict[str, Any] = {"__name__": "tests"}
        self.limits: list[str] = []
        self.failed: list[str] = []
        self.is_plain = True
        self._channel = channel
        self._classes = set(classes)
        self._methods = methods
        self._asks_for_classes = asks_for_classes
        self._asked_classes: set[Any] = set()
        self._remotes: dict[int, Any] = {}
        self._remote_classes: dict[int, type] = {}
        self._local_numbers: dict[int, int] = {}
        self._mine: list[Any] = []
        self._tuples: dict[tuple[str, tuple[str, ...]], Any] = {}

    def refer(self, value: Any, parcel: Parcel) -> Any:
        """As :class:`Side` has it."""
        if isinstance(value, Remote):
            return ["yours", int(value._reference)]
        if isinstance(value, RemoteClass):
            return ["yours", int(value._number)]
        if id(value) in self._local_numbers:
            return ["yours", self._local_numbers[id(value)]]
        self.is_plain = False
        if place := known_name(value):
            return ["known", place]
        if isinstance(value, BaseException) and (place := known_name(type(value))):
            return ["exception", exception_code(value, ["known", place], parcel, 0)]
        if sort := self._may_be_called(value):
            if all(value is not mine for mine in self._mine):
                self._mine.append(value)
            number = next(place for place, mine in enumerate(self._mine) if mine is value)
            return ["object", [number, sort, getattr(value, "__name__", "function")]]
        self.limits.append(f"a test gives the program an object of the type {type(value).__name__}")
        raise TypeError(
            f"a test gives the program an object of the type {type(value).__name__}; expected plain data, functions, "
            "iterators, or objects of a class that the prompt or the tests define"
        )

    def note_loss(self, value: Any) -> None:
        """As :class:`Side` has it."""
        self.is_plain = False

    def dereference(self, tag: str, content: Any, parcel: Parcel, *, is_inside: bool) -> Any:
        """As :class:`Side` has it."""
        if tag == "yours":
            return self._mine[content]
        self.is_plain = False
        if tag == "known":
            found = known(*content)
            if isinstance(found, type) and (issubclass(found, BaseException) or kind_of_class(found)):
                return found
            raise ProgramError(f"a class {content!r}")
        if is_inside:
            return object()
        if tag == "class":
            return self._class_for(*content)
        if tag == "exception":
            return self._exception(content, parcel)
        number, sort = content
        return self._stand_in(number, sort)

    def name_of(self, cls: type) -> str | None:
        """As :class:`Side` has it; the program may make objects of a class that it got one of."""
        if cls.__module__ != self.namespace["__name__"]:
            return None
        self._classes.add(cls.__name__)
        self.is_plain = False
        return cls.__name__

    def class_of(self, name: str) -> type:
        """As :class:`Side` has it."""
        found = self.namespace.get(name)
        if name in self._classes and isinstance(found, type) and found.__module__ == self.namespace["__name__"]:
            return found
        raise ProgramError(f"an object of the class {name!r}")

    def named_tuple(self, name: str, fields: tuple[str, ...]) -> Any:
        """As :class:`Side` has it."""
        return self._tuples.setdefault((name, fields), namedtuple(name, fields))

    def note_borrowed(self, name: str, value: Any) -> None:
        """What the tests use under a name: a class, if that is what was asked for and how the tests name it.

        A class that the program gives for a function or a method is not one of these, whatever its own name.
        """
        if self._asks_for_classes and isinstance(value, RemoteClass) and name.lstrip("_")[:1].isupper():
            self._asked_classes.add(value)

    def may_be_made(self, cls: Any) -> bool:
        """Whether what the tests make of a class is theirs."""
        return cls in self._asked_classes

    def ask(self, operation: str, *arguments: Any, **keywords: Any) -> Any:
        """Have the program do something."""
        if operation == "getattr" and self._is_own_method(arguments[1]):
            raise ProgramError(f"{arguments[1]!r} of an object of another class")
        parcel = Parcel(self)
        request: dict[str, Any] = {"operation": operation}
        request["arguments"] = [parcel.encode(value) for value in arguments]
        request["keywords"] = {name: parcel.encode(value) for name, value in keywords.items()}
        request["objects"] = parcel.contents()
        self._channel.send(request)
        return self.answer(parcel)

    def answer(self, parcel: Parcel) -> Any:
        """What the program answers; the objects in the parcel change as it changed them."""
        while True:
            reply = self._channel.receive()
            if "printed" in reply:
                sys.stdout.write(str(reply["printed"]))
            if "operation" not in reply:
                break
            self._channel.send(self._called_back(reply))
        self.is_plain = self.is_plain and "lossy" not in reply
        self.failed += [str(failed) for failed in reply.get("failed", [])]
        parcel.unpack(reply["objects"])
        if "error" in reply:
            error = parcel.decode(reply["error"])
            if is_of_test_runner(error):  # it would have the tests skipped
                raise ProgramError(f"{type(error).__name__}: {error}")
            if isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit)):
                # The end of an iteration, raised by a function, would end that of the tests.
                self.limits.append(f"{type(error).__name__} raised by the program")
                raise ProgramError(f"{type(error).__name__}: {error}")
            raise error if isinstance(error, BaseException) else ProgramError(f"an error {error!r}")
        return parcel.decode(reply["value"])

    def _called_back(self, request: dict[str, Any]) -> dict[str, Any]:
        """What comes of a function that the tests gave, or of their standard input."""
        self.is_plain = False
        parcel = Parcel(self)
        before: list[Any] = []
        try:
            parcel.unpack(request["objects"])
            arguments = [parcel.decode(item) for item in request["arguments"]]
            keywords = {name: parcel.decode(item) for name, item in request["keywords"].items()}
            before = parcel.contents()
            operation = request["operation"]
            if operation == "input":
                found: Any = input(*arguments)
            elif operation in ("readline", "read"):
                found = getattr(sys.stdin, operation)()
            elif operation == "next":
                found = next_of(self._mine[request["number"]])
            elif operation == "call":
                found = self._mine[request["number"]](*arguments, **keywords)
            else:
                raise ProgramError(f"the operation {operation!r}")
            return {"value": parcel.encode(found), "objects": parcel.contents(before)}
        except Exception as error:
            if not known_name(type(error)):
                error = RuntimeError(f"{type(error).__name__}: {error}")
            return {"error": parcel.encode(error), "objects": parcel.contents(before)}

    def _may_be_called(self, value: Any) -> str:
        """Whether the program may call a thing of the tests, and how; empty if it may not."""
        function = value.__func__ if isinstance(value, MethodType) else value
        if isinstance(function, FunctionType):
            return "function" if function.__globals__ is self.namespace else ""
        if isinstance(value, BuiltinFunctionType):  # [].append
            return "function" if kind_of(value.__self__) in MUTABLE else ""
        return "iterator" if hasattr(type(value), "__next__") and not isinstance(value, Remote) else ""

    def _class_for(self, number: int, name: str, bases: list[Any]) -> Any:
        if number not in self._remote_classes:
            parcel = Parcel(self)
            known_bases = [parcel.decode(base) for base in bases]
            errors = tuple(base for base in known_bases if issubclass(base, BaseException))
            own = tuple(base for base in known_bases if issubclass(base, Remote))
            namespace = {"__module__": "program", "_number": number, "_side": self}
            if errors:
                namespace |= {"__str__": carried_text, "__getattr__": carried_attribute, "_reference": 0}
            else:
                namespace["__slots__"] = ()
            self._remote_classes[number] = RemoteClass(str(name), errors or own or (Remote,), namespace)
        return self._remote_classes[number]

    def _stand_in(self, number: int, sort: Any) -> Any:
        found = self._remotes.get(number)
        if found is None:
            found = object.__new__(self._class_for(*sort[1]) if isinstance(sort, list) else Remote)
            object.__setattr__(found, "_ask", self.ask)
            object.__setattr__(found, "_reference", int(number))
            object.__setattr__(found, "_is_made", None)
            found = LOCAL.get(sort, lambda remote: remote)(found) if isinstance(sort, str) else found
            self._local_numbers[id(found)] = number
            self._remotes[number] = found
        elif isinstance(found, Remote):
            object.__setattr__(found, "_is_made", False)
        return found

    def _exception(self, content: Any, parcel: Parcel) -> Any:
        cls, arguments, attributes, causes, number, text = content
        kind = parcel.decode(cls)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ProgramError(f"an exception of the class {kind!r}")
        values = [parcel.decode(item) for item in arguments]
        is_own = isinstance(kind, RemoteClass)
        try:
            error = kind.__new__(kind, *values) if is_own else kind(*values)
        except Exception:
            error = kind.__new__(kind, *values)
        if not isinstance(error, OSError):
            error.args = tuple(values)
        for name, item in attributes.items():
            if not name.startswith("__"):
                error.__dict__[name] = parcel.decode(item)
        if is_own:
            error.__dict__ |= {"_text": str(text), "_reference": int(number)}
            self._local_numbers[id(error)] = int(number)
            self._remotes[number] = error
        error.__cause__, error.__context__ = (
            found if isinstance(found := parcel.decode(cause), BaseException) else None for cause in causes
        )
        return error

    def _is_own_method(self, name: str) -> bool:
        """Whether a test means a method of its own class: any other object could claim to equal everything."""
        classes = [self.namespace.get(known) for known in self._classes]
        is_own = any(isinstance(cls, type) and has_method(cls, name) for cls in classes)
        return is_own and name not in self._methods
