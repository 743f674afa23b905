"""What runs inside the sandbox, in one of four roles: its text is given to an isolated interpreter.

- ``run``: the program as a script, whose input and output are those of the process;
- ``serve``: the program as a module, whose functions the other side calls;
- ``test``: the tests. Where they name something of the program, they get a stand-in, whose calls go to the other side;
- ``alone``: program and tests in one process. Such a verdict can be forged. It only tells whether a program that failed
  otherwise failed for a reason of its own or for a limit of this bridge.

Program and tests are two processes, because in one process no verdict is safe: a program could replace what the tests
compare with, or find the tests' expected values. Between them travel copies of plain data, copies of objects whose
class both sides have (its name and the attributes), exceptions, and references to all other objects, which stay where
they are. So an ``==`` of the program's own never meets a value of the tests: what it may decide is whether two of its
own objects are equal, and what the tests do with an object that they made themselves, of a class that was asked for.

Each message is four bytes of length and JSON. Of the standard library little is imported: it is half of the time that
an answer takes.
"""

from __future__ import annotations

import _ast
import _io
import _operator
import builtins
import json
import os
import sys
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from contextlib import suppress
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

MAX_MESSAGE_BYTES = 16 * 2**20
MAX_PRINTED = 2**20
PROGRAM = 0
"""The reference to the program's module."""

SCALARS: dict[str, Callable[[Any], Any]] = {"int": int.__int__, "float": float.__float__, "str": str.__str__}
"""What JSON has; of a subclass it is the value alone."""
WRITTEN: dict[str, tuple[str, Callable[[Any], list[Any]], str]] = {
    "complex": ("builtins", lambda value: [value.real, value.imag], ""),
    "range": ("builtins", lambda value: [value.start, value.stop, value.step], ""),
    "bytes": ("builtins", lambda value: [bytes.hex(value)], "fromhex"),
    "Decimal": ("decimal", lambda value: [str(value)], ""),
    "Fraction": ("fractions", lambda value: [value.numerator, value.denominator], ""),
    "date": ("datetime", lambda value: [value.isoformat()], "fromisoformat"),
    "time": ("datetime", lambda value: [value.isoformat()], "fromisoformat"),
    "datetime": ("datetime", lambda value: [value.isoformat()], "fromisoformat"),
    "timedelta": ("datetime", lambda value: [value.days, value.seconds, value.microseconds], ""),
}
"""Other constants: their module, the arguments that make them, and the class's method that does, if not itself."""
MUTABLE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "list": ("builtins", lambda _: []),
    "set": ("builtins", lambda _: set()),
    "dict": ("builtins", lambda _: {}),
    "bytearray": ("builtins", lambda _: bytearray()),
    "deque": ("collections", lambda maxlen: deque(maxlen=maxlen)),
    "defaultdict": ("collections", lambda factory: defaultdict(factory and builtin_type(factory))),
    "OrderedDict": ("collections", lambda _: OrderedDict()),
    "Counter": ("collections", lambda _: Counter()),
}
"""Data that can change or be shared: their module, and an empty one."""
MODULES = (
    dict.fromkeys((*SCALARS, "tuple", "frozenset", "module", "type"), "builtins")
    | {kind: module for kind, (module, *_) in WRITTEN.items()}
    | {kind: module for kind, (module, _) in MUTABLE.items()}
)
"""All kinds of plain data, by the name of their type: its module."""


def _send(generator: Any, sent: Any) -> tuple[bool, Any]:
    try:
        return False, (next(generator) if sent is None else generator.send(sent))
    except StopIteration as end:
        return True, end.value


def _next(iterator: Any) -> tuple[bool, Any]:
    try:
        return False, next(iterator)
    except StopIteration:
        return True, None


def _leave(manager: Any, error: BaseException | None) -> Any:
    return manager.__exit__(type(error) if error else None, error, None)


def _wait_for(awaitable: Any) -> Any:
    return _loop().run_until_complete(awaitable)


def _anext(iterator: Any) -> tuple[bool, Any]:
    try:
        return False, _loop().run_until_complete(iterator.__anext__())
    except StopAsyncIteration:
        return True, None


def _is_honest(one: Any) -> bool:
    """Whether an object has an ``==`` of its own that does not say yes to everything."""
    other, cls = object(), type(one)
    return getattr(cls, "__eq__", None) is not vars(object)["__eq__"] and one != other and not bool(one == other)


_LOOPS: list[Any] = []


def _loop() -> Any:
    if not _LOOPS:
        allow_loops()
        _LOOPS.append(__import__("asyncio").new_event_loop())
    return _LOOPS[0]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **keywords: function(*arguments, **keywords),
    "borrow": getattr,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": lambda container, key: container[key],
    "setitem": lambda container, key, value: container.__setitem__(key, value),
    "delitem": lambda container, key: container.__delitem__(key),
    "iter": iter,
    "next": _next,
    "send": _send,
    "throw": lambda generator, error: generator.throw(error),
    "close": lambda generator: generator.close(),
    "enter": lambda manager: manager.__enter__(),
    "exit": _leave,
    "await": _wait_for,
    "anext": _anext,
    "contains": lambda container, item: item in container,
    "eq": lambda one, other: one == other,
    "ne": lambda one, other: one != other,
    "is_honest": _is_honest,
    **{function.__name__: function for function in (len, bool, str, repr, hash, int, float, complex, abs, round, dir)},
    "format": format,
    "divmod": divmod,
    "pow": pow,
    "reversed": reversed,
}
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "and_", "or_", "xor", "lshift", "rshift")
"""Operators by their names in ``operator``, with a reflected and an in-place form."""
COMPARING = ("lt", "le", "gt", "ge")
UNARY = ("neg", "pos", "invert", "index")
OPERATIONS |= {name: getattr(_operator, name) for name in (*BINARY, *COMPARING, *UNARY)}
OPERATIONS |= {f"i{name.rstrip('_')}": getattr(_operator, f"i{name.rstrip('_')}") for name in BINARY}


class ProgramError(Exception):
    """What the program raised, where the tests know no such exception."""


class Remote:
    """In the tests, an object of the program. What is done with it, is done there.

    Operators that bring in a value of the tests are refused: an answer to these is for the tests to compute. But two
    objects of the program may be compared and combined, and so may one that the tests made with anything.
    """

    __slots__ = ("_ask", "_is_made", "_reference")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it there."""
        return self._ask("call", self, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._ask("delitem", self, key)

    def __iter__(self) -> Any:
        return self._ask("iter", self)

    def __next__(self) -> Any:
        is_over, value = self._ask("next", self)
        if is_over:
            raise StopIteration
        return value

    def __contains__(self, item: Any) -> bool:
        if self._is_made or isinstance(item, Remote):
            return bool(self._ask("contains", self, item))
        return any(item is one or item == one for one in self)

    def __enter__(self) -> Any:
        return self._ask("enter", self)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        return self._ask("exit", self, error)

    def __await__(self) -> Any:
        yield from ()
        return self._ask("await", self)

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        is_over, value = self._ask("anext", self)
        if is_over:
            raise StopAsyncIteration
        return value

    def __len__(self) -> int:
        return int(self._ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._ask("bool", self))

    def __str__(self) -> str:
        return str(self._ask("str", self))

    def __repr__(self) -> str:
        return str(self._ask("repr", self))

    def __format__(self, how: str) -> str:
        return str(self._ask("format", self, how))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote) or self._is_made:
            return bool(self._ask("eq", self, other))
        self._refuse("==", only_if_honest=True)
        return False

    def __ne__(self, other: object) -> bool:
        if isinstance(other, Remote) or self._is_made:
            return bool(self._ask("ne", self, other))
        return not self == other

    def __hash__(self) -> int:
        return int(self._ask("hash", self))

    def _refuse(self, what: str, *, only_if_honest: bool = False) -> None:
        """Note that this operator is for the tests to compute; one equal to everything is not worth a note."""
        side = self._ask.__self__
        if not only_if_honest or self._ask("is_honest", self) is True:
            side.limits.append(f"{what} between an object of the program and a value of the tests")


def _forwarded(operation: str, *, is_reflected: bool = False) -> Callable[..., Any]:
    def operator(self: Any, other: Any) -> Any:
        if not (isinstance(other, Remote) or self._is_made):
            self._refuse(operation)
            return NotImplemented
        return self._ask(operation, *((other, self) if is_reflected else (self, other)))

    return operator


def _asked(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._ask(operation, self, *arguments)


for _name in BINARY:
    _plain = _name.rstrip("_")
    setattr(Remote, f"__{_plain}__", _forwarded(_name))
    setattr(Remote, f"__r{_plain}__", _forwarded(_name, is_reflected=True))
    setattr(Remote, f"__i{_plain}__", _forwarded(f"i{_plain}"))
for _name in COMPARING:
    setattr(Remote, f"__{_name}__", _forwarded(_name))
for _name in ("divmod", "pow"):
    setattr(Remote, f"__{_name}__", _forwarded(_name))
    setattr(Remote, f"__r{_name}__", _forwarded(_name, is_reflected=True))
for _name in (*UNARY, "int", "float", "complex", "abs", "round", "reversed", "dir"):
    setattr(Remote, f"__{_name}__", _asked(_name))
Remote.__doc__ = property(lambda self: self._ask("getattr", self, "__doc__"))  # type: ignore[assignment]


class RemoteClass(type):
    """In the tests, a class of the program: its objects there are of this class here."""

    _number: int
    _side: Any

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        """Make an object there."""
        found = cls._side.ask("call", cls, *arguments, **keywords)
        if isinstance(found, Remote) and cls._side.may_be_made(cls):
            object.__setattr__(found, "_is_made", True)
        return found

    def __getattr__(cls, name: str) -> Any:
        return cls._side.ask("getattr", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._side.ask("setattr", cls, name, value)

    def __iter__(cls) -> Any:
        return cls._side.ask("iter", cls)

    def __len__(cls) -> int:
        return int(cls._side.ask("len", cls))

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: Any) -> Any:
        return cls._side.ask("getitem", cls, key)

    def __contains__(cls, item: Any) -> bool:
        return bool(cls._side.ask("contains", cls, item))

    def __eq__(cls, other: object) -> bool:
        return cls is other

    def __hash__(cls) -> int:
        return id(cls)


if TYPE_CHECKING:

    class Side(Protocol):
        """What one side makes of objects that are no plain data."""

        def refer(self, value: Any, parcel: Parcel) -> Any:
            """An object that stays, as JSON."""

        def dereference(self, tag: str, content: Any, parcel: Parcel, *, is_inside: bool) -> Any:
            """What stands for the other side's object, alone or inside of an object of a common class."""

        def note_loss(self, value: Any) -> None:
            """A value of a class of its own is copied as plain data."""

        def name_of(self, cls: type) -> str | None:
            """The name under which the other side knows this class; None where it does not."""

        def class_of(self, name: str) -> type:
            """This side's class of that name."""

        def named_tuple(self, name: str, fields: tuple[str, ...]) -> Any:
            """A class of tuples whose items have names."""


class Parcel:
    """What one call carries there and back.

    What can change or be shared lies in a list, once each, and everything else names it by its place there. So
    identity, cycles and long chains survive, and the return finds the objects of the call.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._objects: list[Any] = []
        self._places: dict[int, int] = {}

    def encode(self, value: Any) -> Any:
        """A value as JSON; what can change gets its place in :meth:`contents`."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) in self._places:
            return ["at", self._places[id(value)]]
        kind = kind_of(value)
        if kind not in ("", "type") and type(value).__name__ != kind:
            fields = getattr(value, "_fields", None)
            if kind == "tuple" and isinstance(fields, tuple) and len(fields) == len(value):
                return ["named", [type(value).__name__, list(fields), [self.encode(item) for item in value]]]
            self._side.note_loss(value)
        if kind in SCALARS:
            return SCALARS[kind](value)
        if kind in WRITTEN:
            return [kind, WRITTEN[kind][1](value)]
        if kind in ("tuple", "frozenset"):
            return [kind, [self.encode(item) for item in value]]
        if kind == "module":
            return [kind, value.__name__]
        if kind == "type" and builtin_name(value):
            return [kind, builtin_name(value)]
        name = None if kind else self._side.name_of(type(value))
        if name and isinstance(value, Enum):
            return ["member", [name, value.name]]
        if name or kind in MUTABLE:
            self._add(value)
            return ["at", self._places[id(value)]]
        return self._side.refer(value, self)

    def contents(self, before: list[Any] | None = None) -> list[Any]:
        """The objects of all encoded values, and theirs; None for one that is as it was before."""
        found: list[Any] = []
        for value in self._objects:  # which grow
            found.append(self._content(value))
        return [None if before and entry in before[place : place + 1] else entry for place, entry in enumerate(found)]

    def unpack(self, contents: list[Any]) -> None:
        """Give the objects of this parcel the content that they got on the other side; further ones are made."""
        for kind, extra, _ in contents[len(self._objects) :]:
            self._add(MUTABLE[kind][1](extra) if kind in MUTABLE else object.__new__(self._side.class_of(extra)))
        # A test may call methods of what lies inside its own objects: these must not be the program's.
        is_inside = not all(map(kind_of, self._objects))
        for is_hashing in (False, True):  # what is hashed should be complete
            for value, entry in zip(self._objects, contents, strict=True):
                if entry is not None and isinstance(value, (set, dict)) is is_hashing:
                    self._fill(value, entry[2], is_inside)

    def decode(self, encoded: Any, *, is_inside: bool = False) -> Any:
        """The value that was encoded: of types that this side knows, or what stands here for a reference."""
        if not isinstance(encoded, list):
            return encoded
        tag, content = encoded
        if tag == "at":
            return self._objects[content]
        if tag in ("tuple", "frozenset"):
            return getattr(builtins, tag)(self.decode(item, is_inside=is_inside) for item in content)
        if tag in WRITTEN:
            module, _, maker = WRITTEN[tag]
            cls = getattr(__import__(module), tag)
            return (getattr(cls, maker) if maker else cls)(*content)
        if tag == "type":
            return builtin_type(content)
        if tag == "module" and content in sys.stdlib_module_names:
            return __import__(content)
        if tag == "member":
            name, member = content
            return self._side.class_of(name)[member]  # type: ignore[index]  # of an enumeration
        if tag == "named":
            name, fields, items = content
            return self._side.named_tuple(name, tuple(fields))(
                *(self.decode(item, is_inside=is_inside) for item in items)
            )
        if tag in ("object", "class", "exception", "known", "yours"):
            return self._side.dereference(tag, content, self, is_inside=is_inside)
        raise ProgramError(f"a value of the kind {tag!r}")

    def _add(self, value: Any) -> None:
        self._places[id(value)] = len(self._objects)
        self._objects.append(value)

    def _content(self, value: Any) -> list[Any]:
        kind = kind_of(value)
        if not kind:
            attributes = {name: self.encode(item) for name, item in attributes_of(value).items()}
            return ["instance", self._side.name_of(type(value)), attributes]
        if isinstance(value, bytearray):
            return [kind, None, value.hex()]
        if isinstance(value, dict):
            extra: Any = builtin_name(value.default_factory) if isinstance(value, defaultdict) else None
            return [kind, extra, [[self.encode(key), self.encode(item)] for key, item in value.items()]]
        extra = value.maxlen if isinstance(value, deque) else None
        return [kind, extra, [self.encode(item) for item in value]]

    def _fill(self, value: Any, content: Any, is_inside: bool) -> None:
        def decode(encoded: Any) -> Any:
            return self.decode(encoded, is_inside=is_inside)

        if isinstance(value, bytearray):
            value[:] = bytes.fromhex(content)
        elif isinstance(value, dict):
            value.clear()
            for key, item in content:
                value[decode(key)] = decode(item)
        elif isinstance(value, set):
            value.clear()
            value.update(map(decode, content))
        elif isinstance(value, (list, deque)):
            value.clear()
            value.extend(map(decode, content))
        else:
            set_attributes(value, {name: decode(item) for name, item in content.items()})


def kind_of(value: Any) -> str:
    """The kind of plain data that a value is, or extends; empty for any other object."""
    for cls in type(value).__mro__:
        if cls.__name__ in MODULES and MODULES[cls.__name__] == cls.__module__:
            return cls.__name__
    return ""


def is_own_container(value: Any) -> bool:
    """Whether a list, dict or the like has a class, and so methods, of the program's own."""
    return kind_of(value) in MUTABLE and type(value).__name__ not in MUTABLE


def builtin_name(value: Any) -> str | None:
    """The name of a builtin type; None for anything else."""
    name = getattr(value, "__name__", None) if isinstance(value, type) else None
    return name if name and vars(builtins).get(name) is value else None


def builtin_type(name: str) -> type:
    """The builtin type of that name."""
    found = getattr(builtins, name)
    if not isinstance(found, type):
        raise ProgramError(f"the type {name!r}")
    return found


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes that an object itself has, in ``__slots__`` too."""
    members = [item for cls in type(value).__mro__ for item in vars(cls).items()]
    slots = [name for name, member in members if isinstance(member, MemberDescriptorType) and hasattr(value, name)]
    return {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots}}


def set_attributes(value: Any, attributes: dict[str, Any]) -> None:
    """Give an object these attributes and no other; what its class defines (methods, properties) stays."""
    cls = type(value)
    for name in attributes_of(value).keys() - attributes.keys():
        object.__delattr__(value, name)
    for name, item in attributes.items():
        is_special = name.startswith("__") and name.endswith("__")
        if not is_special and not has_method(cls, name):
            object.__setattr__(value, name, item)


def has_method(cls: type, name: str) -> bool:
    """Whether a class itself computes what this name gives: by a method, a property or their like."""
    found = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    is_computed = callable(found) or hasattr(type(found), "__get__")
    return is_computed and not isinstance(found, MemberDescriptorType)


class Channel:
    """Messages over two file descriptors."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def receive(self) -> Any:
        """The next message; ProgramError where there is none any more, or it is too large."""
        size = int.from_bytes(self._read(4), "big")
        if size > MAX_MESSAGE_BYTES:
            raise ProgramError(f"a value of {size} bytes")
        return json.loads(self._read(size))

    def send(self, message: Any) -> None:
        """Send one message."""
        content = json.dumps(message).encode()
        rest = memoryview(len(content).to_bytes(4, "big") + content)
        while rest:
            rest = rest[os.write(self._outgoing, rest) :]

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self._incoming, min(size, 2**16))
            if not part:
                raise ProgramError("the program has ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


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


def load(source: str, namespace: dict[str, Any]) -> list[str]:
    """Run a program's statements one by one, so that one that fails (its example, its plot) decides nothing.

    What the whole of it needs to be, Python, it must be.

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


def exception_code(error: BaseException, cls: Any, parcel: Parcel, number: int, depth: int = 0) -> list[Any]:
    """An exception as JSON: its class, arguments and attributes, and what it came from."""
    arguments = error.args
    if isinstance(error, OSError) and error.filename is not None:
        arguments = (*arguments[:2], error.filename)
    attributes = {name: item for name, item in vars(error).items() if not name.startswith("__")}
    causes = [
        None if cause is None or depth > 2 else parcel.encode(cause) for cause in (error.__cause__, error.__context__)
    ]
    return [
        cls,
        [parcel.encode(item) for item in arguments],
        {name: parcel.encode(item) for name, item in attributes.items()},
        causes,
        number,
        str(error)[:2000],
    ]


def known_name(value: Any) -> list[str] | None:
    """Module and name under which the standard library has this function or class; None for others."""
    owner = getattr(value, "__objclass__", None)
    module = getattr(owner if owner else value, "__module__", None)
    name = getattr(value, "__qualname__", "")
    if not isinstance(module, str) or module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    return [module, name] if module != "__main__" and known(module, name) is value else None


def known(module: str, name: str) -> Any:
    """What the standard library has under this name; None where it has nothing."""
    if module.partition(".")[0] not in sys.stdlib_module_names or module == "__main__":
        return None
    try:
        __import__(module)
        found = sys.modules[module]
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found


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
        """As :class:`Side` has it; but not where the class has comparisons of its own, which are lost on purpose."""
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
        """As :class:`Side` has it; an empty one where the program knows none."""
        self._classes.add(name)
        found = vars(self._module).get(name)
        return found if isinstance(found, type) else self._unnamed.setdefault(name, type(name, (), {}))

    def named_tuple(self, name: str, fields: tuple[str, ...]) -> Any:
        """As :class:`Side` has it; the program's own where it has one of that name."""
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
        """What was printed meanwhile."""
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


class TestsSide:
    """The tests' objects, and their stand-ins for the program's.

    Args:
        classes: the program may make objects of these that the tests or their definitions have.
        methods: the prompt asks the program for methods of these names.
        asks_for_classes: what the tests make of the program's classes is theirs to combine with anything.
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
        """As :class:`Side` has it; what the program gets an object of, it may make objects of."""
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

    def may_be_made(self, cls: Any) -> bool:
        """Whether what the tests make of a class is theirs: a function may not pass for a class by its name."""
        return self._asks_for_classes and cls.__name__.lstrip("_")[:1].isupper()

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
                found = _next(self._mine[request["number"]])
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
        """Whether the program may call a thing of the tests, and how; empty where it may not."""
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
                namespace |= {"__str__": _carried_text, "__getattr__": _carried_attribute, "_reference": 0}
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
            found = _LOCAL.get(sort, lambda remote: remote)(found) if isinstance(sort, str) else found
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
        """Whether a test means its own class's method: an object that is no such would say that it equals all."""
        classes = [self.namespace.get(known) for known in self._classes]
        is_own = any(isinstance(cls, type) and has_method(cls, name) for cls in classes)
        return is_own and name not in self._methods


def _carried_text(error: Any) -> str:
    return str(error.__dict__.get("_text", error.args[0] if len(error.args) == 1 else error.args or ""))


def _carried_attribute(error: Any, name: str) -> Any:
    number = error.__dict__.get("_reference")
    if number is None or name.startswith("__"):
        raise AttributeError(name)
    return type(error)._side.ask("getattr", error, name)


def _local_generator(remote: Any) -> Any:
    sent = None
    while True:
        is_over, value = remote._ask("send", remote, sent)
        if is_over:
            return value
        try:
            sent = yield value
        except GeneratorExit:
            remote._ask("close", remote)
            raise
        except Exception as error:
            sent = yield remote._ask("throw", remote, error)


async def _local_coroutine(remote: Any) -> Any:
    return remote._ask("await", remote)


_LOCAL = {"generator": _local_generator, "coroutine": _local_coroutine}
"""What is a generator or coroutine there, must be one here."""


def kind_of_class(cls: type) -> str:
    """The kind of plain data that a class is; empty for any other."""
    return cls.__name__ if MODULES.get(cls.__name__) == cls.__module__ else ""


def run_tests(channel: Channel, definitions: str, classes: list[str], methods: list[str], **job: Any) -> dict[str, Any]:
    """Run the tests one after the other against the program in the other process."""
    side = TestsSide(channel, classes, methods, asks_for_classes=job["asks_for_classes"])
    side.answer(Parcel(side))  # to the program's being loaded
    exec(compile(definitions, "definitions.py", "exec", dont_inherit=True), side.namespace)
    program = object.__new__(Remote)
    for name, value in (("_ask", side.ask), ("_reference", PROGRAM), ("_is_made", False)):
        object.__setattr__(program, name, value)

    def borrow(name: str) -> Any:
        return program._ask("borrow", program, name)

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


def carry_out(
    namespace: dict[str, Any],
    borrow: Callable[[str], Any],
    tests: list[str],
    names: list[str],
    provided: dict[str, list[str]],
    modules: list[str],
    functions: list[list[str]],
    asks_for_classes: bool,
) -> dict[str, Any]:
    """Run the tests one after the other, in one namespace; where one fails: its number and the error.

    Args:
        namespace: what is the tests' own already.
        borrow: gives what the program has under a name.
        tests: Python.
        names: what the tests use of the program.
        provided: names that the tests forgot to import, each with its module and what of it.
        modules: from these the tests import what is the program's.
        functions: for each test the functions that it defines and nobody calls.
        asks_for_classes: of no account here.
    """
    own = {}
    for name in names:
        with suppress(AttributeError):
            own[name] = borrow(name)
    namespace |= own
    for name, (module, attribute) in provided.items():
        with suppress(ImportError, AttributeError):
            found = __import__(module, fromlist=["_"])
            namespace[name] = getattr(found, attribute) if attribute else found
    for name in modules:
        solution = type(sys)(name)
        solution.__dict__.update(own)
        sys.modules[name] = solution
    if any("pytest" in test for test in tests):
        sys.modules["pytest"] = pytest_module()
    if any("unittest" in test for test in tests):
        unittest: Any = __import__("unittest")
        unittest.main = lambda *_, **__: None
    seen: set[str] = set()
    for number, (test, to_call) in enumerate(zip(tests, functions, strict=True)):
        try:
            exec(compile(test, "test.py", "exec", dont_inherit=True), namespace)
            for name in to_call:
                call_test(namespace[name])
            if "unittest" in sys.modules:
                run_cases({name: value for name, value in namespace.items() if name not in seen})
            seen |= namespace.keys()
        except BaseException as error:
            return {"passed": False, "test": number, "error": type(error).__name__, "message": str(error)[:200]}
    return {"passed": True}


def call_test(function: Any) -> None:
    """Run a test that is a function, with each of the cases that it names."""
    cases: list[dict[str, Any]] = [{}]
    for names, values in getattr(function, "cases", []):
        split = names.replace(" ", "").split(",") if isinstance(names, str) else list(names)
        rows = [dict(zip(split, row if len(split) > 1 else [row], strict=False)) for row in values]
        cases = [case | row for case in cases for row in rows]
    for case in cases:
        found = function(**case)
        if hasattr(found, "__await__"):
            __import__("asyncio").run(found)


def run_cases(namespace: dict[str, Any]) -> None:
    """Run the tests of all classes of ``unittest``."""
    unittest = sys.modules["unittest"]
    for value in namespace.values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == "tests":
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            for _, trace in (*result.failures, *result.errors):
                raise AssertionError(trace.strip().rpartition("\n")[2])


def pytest_module() -> Any:
    """What tests use of pytest, which is no part of the standard library: ``raises``, ``approx``, ``mark``."""
    module = type(sys)("pytest")
    module.raises, module.approx, module.mark = Raises, Approximately, Mark()  # type: ignore[attr-defined]
    module.fail = _fail  # type: ignore[attr-defined]
    return module


def _fail(reason: str = "") -> None:
    raise AssertionError(reason)


class Raises:
    """As of pytest: what is within must raise this."""

    def __init__(self, kinds: Any, *arguments: Any, match: str | None = None) -> None:
        self.kinds, self.match = kinds, match
        self.value: Any = None
        self.type: Any = None
        if arguments:
            with self:
                arguments[0](*arguments[1:])

    def __enter__(self) -> Raises:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is None:
            raise AssertionError(f"did not raise {self.kinds}")
        if not issubclass(kind, self.kinds):
            return False
        self.value, self.type = error, kind
        if self.match is not None and not __import__("re").search(self.match, str(error)):
            raise AssertionError(f"{str(error)!r} does not match {self.match!r}")
        return True


class Approximately:
    """As of pytest: equal but for one part in a million."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:
        self.expected, self.rel, self.abs = expected, rel, abs

    def __eq__(self, other: object) -> bool:
        return self._equals(self.expected, other)

    def _equals(self, expected: Any, other: Any) -> bool:
        if isinstance(expected, dict):
            is_like = isinstance(other, dict) and expected.keys() == other.keys()
            return is_like and all(self._equals(expected[key], other[key]) for key in expected)
        if isinstance(expected, (list, tuple)):
            is_like = isinstance(other, (list, tuple)) and len(expected) == len(other)
            return is_like and all(map(self._equals, expected, other))
        if not isinstance(other, (int, float, complex)) and kind_of(other) not in ("Decimal", "Fraction"):
            return bool(expected is None and other is None)
        if expected == other:
            return True
        tolerance = self.abs if self.abs is not None else 1e-12
        if self.rel is not None or self.abs is None:
            tolerance = max(tolerance, (1e-6 if self.rel is None else self.rel) * abs_of(expected))
        return bool(abs_of(expected - other) <= tolerance)

    __hash__ = None  # type: ignore[assignment]


abs_of = abs


class Mark:
    """As of pytest: marks say nothing, but for a test's cases."""

    def __getattr__(self, name: str) -> Any:
        def mark(*arguments: Any, **_: Any) -> Any:
            if name == "parametrize":
                return lambda function: add_cases(function, *arguments[:2])
            return arguments[0] if arguments and callable(arguments[0]) else (lambda function: function)

        return mark


def add_cases(function: Any, names: Any, values: Any) -> Any:
    """Note a test's cases with its function."""
    function.cases = [*getattr(function, "cases", []), (names, values)]
    return function


class Doorbell:
    """The two ends by which an event loop wakes itself; there are no sockets here."""

    def __init__(self) -> None:
        self._number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Its descriptor."""
        return self._number

    def send(self, _: bytes) -> int:
        """Ring."""
        os.eventfd_write(self._number, 1)
        return 1

    def recv(self, _: int) -> bytes:
        """Hear it, once."""
        return b"\0" if os.eventfd_read(self._number) else b""

    def close(self) -> None:
        """Close it."""
        if self._number >= 0:
            os.close(self._number)
        self._number = -1


def allow_loops() -> None:
    """Let event loops run without sockets."""

    def make(loop: Any) -> None:
        loop._ssock = loop._csock = Doorbell()
        loop._internal_fds += 1
        loop._add_reader(loop._ssock.fileno(), loop._read_from_self)

    __import__("asyncio.selector_events").selector_events.BaseSelectorEventLoop._make_self_pipe = make


def main() -> None:
    """Take the role that the command line names; the first message says the rest."""
    role = sys.argv[1]
    channel, verdicts = Channel(os.dup(0), os.dup(1)), os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (2,) if role == "run" else (0, 1, 2):
        os.dup2(nowhere, descriptor)
    job = channel.receive()
    if "asyncio" in str(job):
        with suppress(Exception):
            allow_loops()
    if role == "run":
        try:
            run(job)
        except ModuleNotFoundError as error:
            os.write(verdicts, json.dumps({"error": "ModuleNotFoundError", "message": str(error)}).encode())
            raise
        except PermissionError as error:
            os.write(verdicts, json.dumps({"error": "PermissionError", "message": str(error)}).encode())
            raise
        return
    sys.set_int_max_str_digits(0)  # whatever a program returns; it costs its own time
    if role == "serve":
        serve(channel, **job)
    else:
        try:
            verdict = run_tests(channel, **job) if role == "test" else run_alone(**job)
        except BaseException as error:
            verdict = {"passed": False, "error": type(error).__name__, "message": str(error)[:200]}
        os.write(verdicts, json.dumps(verdict).encode())
        os._exit(0)


if __name__ == "__main__":
    main()
