"""What travels between program and tests: copies of plain data and of common classes' objects, and references.

Each message is four bytes of length and JSON. What one call carries is a :class:`Parcel`; its :class:`Side`
says what each side makes of objects that are not plain data.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from enum import Enum
from types import MemberDescriptorType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

MAX_MESSAGE_BYTES = 16 * 2**20

SCALARS: dict[str, Callable[[Any], Any]] = {"int": int.__int__, "float": float.__float__, "str": str.__str__}
"""What JSON has; a subclass keeps only its value."""
WRITTEN: dict[str, tuple[str, Callable[[Any], list[Any]], str]] = {
    "complex": ("builtins", lambda value: [value.real, value.imag], ""),
    "range": ("builtins", lambda value: [value.start, value.stop, value.step], ""),
    "slice": ("builtins", lambda value: [value.start, value.stop, value.step], ""),
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


class ProgramError(Exception):
    """What the program raised, if the tests know no such exception."""


if TYPE_CHECKING:

    class Side(Protocol):
        """What one side makes of objects that are not plain data."""

        def refer(self, value: Any, parcel: Parcel) -> Any:
            """An object that stays, as JSON."""

        def dereference(self, tag: str, content: Any, parcel: Parcel, *, is_inside: bool) -> Any:
            """What represents the other side's object, alone or inside of an object of a common class."""

        def note_loss(self, value: Any) -> None:
            """A value of a class of its own is copied as plain data."""

        def name_of(self, cls: type) -> str | None:
            """The name under which the other side knows this class; None if it does not."""

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
        """The value that was encoded: of types that this side knows, or what represents a reference here."""
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
        """The next message; ProgramError if there are no more, or it is too large."""
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


def kind_of_class(cls: type) -> str:
    """The kind of plain data that a class is; empty for any other."""
    return cls.__name__ if MODULES.get(cls.__name__) == cls.__module__ else ""


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
    """What the standard library has under this name; None if it has nothing."""
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
