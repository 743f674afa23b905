"""What runs inside the sandbox, in one of three roles: its text is given to an isolated interpreter.

- ``run``: the program as a script, whose input and output are those of the process;
- ``serve``: the program as a module, whose functions the other side calls;
- ``test``: the tests. Where they name something of the program, they get a stand-in, whose calls go to the other side.

Program and tests are two processes, because in one process no verdict is safe: a program could replace what the tests
compare with, or find the tests' expected values. Between them travel plain data, copied, and references to objects
that stay where they are. So a value with an ``==`` of its own never reaches a test: it is a reference, and equals
itself only.

Each message is four bytes of length and JSON. Of the standard library little is imported: it is half of the time that
an answer takes.
"""

from __future__ import annotations

import builtins
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_MESSAGE_BYTES = 16 * 2**20
PROGRAM = 0
"""The reference to the program's module."""

COLLECTIONS: dict[str, type[list[Any] | tuple[Any, ...] | set[Any] | frozenset[Any]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **keywords: function(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda container, key: container[key],
    "setitem": lambda container, key, value: container.__setitem__(key, value),
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
}


class ProgramError(Exception):
    """What the program raised, where the tests know no such exception."""


class Remote:
    """In the tests, an object of the program. What is done with it, is done there; compared, it equals itself only."""

    __slots__ = ("_ask", "_reference")

    def __init__(self, ask: Callable[..., Any], reference: int) -> None:
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_reference", reference)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it there."""
        return self._ask("call", self, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", self, key, value)

    def __iter__(self) -> Any:
        return self._ask("iter", self)

    def __next__(self) -> Any:
        try:
            return self._ask("next", self)
        except ProgramError as error:
            if str(error).startswith("StopIteration:"):
                raise StopIteration from None
            raise

    def __len__(self) -> int:
        return int(self._ask("len", self))

    def __bool__(self) -> bool:
        return bool(self._ask("bool", self))

    def __str__(self) -> str:
        return str(self._ask("str", self))

    def __repr__(self) -> str:
        return str(self._ask("repr", self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._reference == other._reference

    def __hash__(self) -> int:
        return hash(self._reference)


def encode(value: Any, refer: Callable[[Any], int]) -> Any:
    """A value as JSON; ``refer`` numbers what is no plain data. Subclasses become the builtin type that they extend."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    for tag, collection in COLLECTIONS.items():
        if isinstance(value, collection):
            return [tag, [encode(item, refer) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key, refer), encode(item, refer)] for key, item in value.items()]]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, bytearray):
        return ["bytearray", value.hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, type(sys)):
        return ["module", value.__name__]
    if isinstance(value, type):
        name = value.__name__
        if vars(builtins).get(name) is value:
            return ["type", name]
    return ["object", refer(value)]


def decode(encoded: Any, dereference: Callable[[int], Any]) -> Any:
    """The value that was encoded; it is of builtin types only, and of what ``dereference`` makes of a reference."""
    if not isinstance(encoded, list):
        return encoded
    tag, content = encoded
    if tag in COLLECTIONS:
        return COLLECTIONS[tag](decode(item, dereference) for item in content)
    if tag == "dict":
        return {decode(key, dereference): decode(item, dereference) for key, item in content}
    if tag in ("bytes", "bytearray"):
        return getattr(builtins, tag).fromhex(content)
    if tag in ("complex", "range"):
        return getattr(builtins, tag)(*content)
    if tag == "type" and isinstance(getattr(builtins, content), type):
        return getattr(builtins, content)
    if tag == "module" and content in sys.stdlib_module_names:
        return __import__(content)
    if tag == "object":
        return dereference(content)
    raise ProgramError(f"a value of the kind {tag!r}")


def refill(mutable: Any, encoded: Any, dereference: Callable[[int], Any]) -> None:
    """Give a list, set, dict or bytearray the content that it got on the other side."""
    content = decode(encoded, dereference)
    if isinstance(mutable, (list, bytearray)):
        mutable[:] = content
    else:
        mutable.clear()
        mutable.update(content)


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


def run(source: str) -> None:
    """The program as a script."""
    sys.argv = ["program.py"]
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)


def serve(channel: Channel, source: str) -> None:
    """The program as a module, and then its answers to all requests."""
    module = type(sys)("program")
    sys.modules["program"] = module
    objects: list[Any] = [module]
    numbers: dict[int, int] = {}

    def refer(value: Any) -> int:
        if id(value) not in numbers:  # it stays in use, so the id stays its own
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    def encode_mutable(value: Any) -> Any:
        return encode(value, refer) if isinstance(value, (list, dict, set, bytearray)) else None

    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        channel.send({"value": None})
    except Exception as error:
        channel.send({"error": [type(error).__name__, str(error)]})
    while True:
        request = channel.receive()
        try:
            arguments = [decode(item, objects.__getitem__) for item in request["arguments"]]
            keywords = {name: decode(item, objects.__getitem__) for name, item in request["keywords"].items()}
            before = [encode_mutable(value) for value in (*arguments, *keywords.values())]
            value = encode(OPERATIONS[request["operation"]](*arguments, **keywords), refer)
            after = [encode_mutable(value) for value in (*arguments, *keywords.values())]
            changed = [[place, new] for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
            reply = {"value": value, "changed": changed}
        except Exception as error:
            reply = {"error": [type(error).__name__, str(error)]}
        channel.send(reply)


def run_tests(
    channel: Channel, definitions: str, tests: list[str], names: list[str], modules: dict[str, list[str]]
) -> dict[str, Any]:
    """Run the tests one after the other, in one namespace; where one fails: its number and the error."""
    remotes: dict[int, Remote] = {}

    def dereference(number: int) -> Remote:
        return remotes.setdefault(number, Remote(ask, number))

    def refer(value: Any) -> int:
        if isinstance(value, Remote):
            return int(value._reference)
        raise TypeError(f"a test gives the program an object of the type {type(value).__name__}; expected plain data")

    def ask(operation: str, *arguments: Any, **keywords: Any) -> Any:
        channel.send(
            {
                "operation": operation,
                "arguments": [encode(value, refer) for value in arguments],
                "keywords": {name: encode(value, refer) for name, value in keywords.items()},
            }
        )
        return answer((*arguments, *keywords.values()))

    def answer(given: tuple[Any, ...] = ()) -> Any:
        reply = channel.receive()
        if "error" in reply:
            raise raised(*reply["error"])
        for place, encoded in reply.get("changed", ()):
            refill(given[place], encoded, dereference)
        return decode(reply["value"], dereference)

    answer()  # to the program's being loaded
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(compile(definitions, "definitions.py", "exec", dont_inherit=True), namespace)
    program = Remote(ask, PROGRAM)
    namespace |= borrowed(program, set(names) - namespace.keys())
    for name, attributes in modules.items():  # the program's own `math` would be a way to compare as it likes
        if isinstance(namespace.get(name), Remote) and all(hasattr(__import__(name), one) for one in attributes):
            namespace[name] = __import__(name)
    for number, test in enumerate(tests):
        try:
            exec(compile(test, "test.py", "exec", dont_inherit=True), namespace)
        except BaseException as error:
            return {"passed": False, "test": number, "error": type(error).__name__, "message": str(error)[:200]}
    return {"passed": True}


def raised(name: str, message: str) -> Exception:
    """The exception that the program raised, as a test may expect it.

    An AssertionError is the tests' own; and the end of an iteration, raised by a function, would end that of the tests.
    """
    known = getattr(builtins, name, None)
    own = (AssertionError, StopIteration, StopAsyncIteration)
    if isinstance(known, type) and issubclass(known, Exception) and known not in own:
        try:
            return known(message)
        except TypeError:  # one that takes more than a message
            pass
    return ProgramError(f"{name}: {message}")


def borrowed(program: Remote, names: set[str]) -> dict[str, Any]:
    """What the program has of ``names``. Builtins are its own only where the tests name nothing else of it."""
    own = defined(program, {name for name in names if not hasattr(builtins, name)})
    return own or defined(program, names)


def defined(program: Remote, names: set[str]) -> dict[str, Any]:
    """What the program has of ``names``, by name."""
    found = {}
    for name in sorted(names):
        try:
            found[name] = getattr(program, name)
        except AttributeError:
            continue
    return found


def main() -> None:
    """Take the role that the command line names; the first message says the rest."""
    role = sys.argv[1]
    channel, verdicts = Channel(os.dup(0), os.dup(1)), os.dup(2)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (2,) if role == "run" else (0, 1, 2):
        os.dup2(nowhere, descriptor)
    job = channel.receive()
    if role == "run":
        run(job)
        return
    sys.set_int_max_str_digits(0)  # whatever a program returns; it costs its own time
    if role == "serve":
        serve(channel, job)
    else:
        try:
            verdict = run_tests(channel, **job)
        except Exception as error:
            verdict = {"passed": False, "error": type(error).__name__, "message": str(error)[:200]}
        os.write(verdicts, json.dumps(verdict).encode())


if __name__ == "__main__":
    main()
