"""In the tests, what represents an object or class of the program: whatever is done with it is done there."""

from __future__ import annotations

from sinterlm.scoring.code.inside.operations import BINARY, COMPARING, UNARY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Remote:
    """In the tests, an object of the program. What is done with it is done there.

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


def carried_text(error: Any) -> str:
    """As ``str`` of an exception of the program: the text that it had there."""
    return str(error.__dict__.get("_text", error.args[0] if len(error.args) == 1 else error.args or ""))


def carried_attribute(error: Any, name: str) -> Any:
    """As ``getattr`` of an exception of the program: an attribute that was not copied is asked for there."""
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


LOCAL = {"generator": _local_generator, "coroutine": _local_coroutine}
"""What is a generator or coroutine there, must be one here."""
