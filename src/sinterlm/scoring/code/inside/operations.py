"""What the tests may have done with an object of the program: the names of these operations, and what each does."""

from __future__ import annotations

import _operator

from sinterlm.scoring.code.inside.event_loops import allow_loops

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _send(generator: Any, sent: Any) -> tuple[bool, Any]:
    try:
        return False, (next(generator) if sent is None else generator.send(sent))
    except StopIteration as end:
        return True, end.value


def next_of(iterator: Any) -> tuple[bool, Any]:
    """Whether an iterator has ended, and its next value if not."""
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
    "next": next_of,
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
