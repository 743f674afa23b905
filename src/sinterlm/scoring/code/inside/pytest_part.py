"""What tests use of pytest, which is not in the standard library: ``raises``, ``approx``, ``mark``."""

from __future__ import annotations

import sys

from sinterlm.scoring.code.inside.bridge import kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def pytest_module() -> Any:
    """What tests use of pytest, which is not in the standard library: ``raises``, ``approx``, ``mark``."""
    module = type(sys)("pytest")
    module.raises, module.approx, module.mark = Raises, Approximately, Mark()  # type: ignore[attr-defined]
    module.fail = _fail  # type: ignore[attr-defined]
    return module


def _fail(reason: str = "") -> None:
    raise AssertionError(reason)


class Raises:
    """As pytest's ``raises``: the block must raise this."""

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
    """As pytest's ``approx``: equal within one part in a million."""

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
    """As pytest's ``mark``: of all marks only ``parametrize``, which gives a test's cases, does anything."""

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
