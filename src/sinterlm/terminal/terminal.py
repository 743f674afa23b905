"""The one place through which everything printed for people passes."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (of C0 all but tab and line feed), what reorders text, and halves of surrogate pairs."""


def show_controls(text: str) -> str:
    r"""Text that a terminal prints and never obeys: its control characters as escapes, as Python writes them.

    Prompts, answers, names and servers' replies are other people's text. An escape sequence in one could set the
    terminal's title, fill its clipboard or overwrite the lines above.

    >>> print(show_controls("It is \x1b]0;5\x07"))
    It is \x1b]0;5\x07
    """
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Terminal(Console):
    """Prints text as it is: square brackets and colons are no markup, and control characters show as escapes.

    Args:
        file: Where to print, instead of standard output or, with ``stderr``, standard error.
        stderr: Whether it is for errors.
        width: In characters; the terminal's own by default.
        quiet: Whether to print nothing.
    """

    def __init__(
        self, *, file: IO[str] | None = None, stderr: bool = False, width: int | None = None, quiet: bool = False
    ) -> None:
        super().__init__(file=file, stderr=stderr, width=width, quiet=quiet, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """All text becomes printable here, before its width is measured."""
        return super().render_str(show_controls(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that was not a plain string becomes printable here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=show_controls(segment.text))

    def say(self, text: str) -> None:
        """Print lines without wrapping them."""
        self.print(text, soft_wrap=True)


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return show_controls(super().getMessage())


def guard_standard_error() -> None:
    """Make printable what bypasses ``Terminal``: log messages, warnings and tracebacks, also those of libraries."""
    plain_warning = warnings.formatwarning

    def format_warning(*arguments: Any, **named: Any) -> str:
        return show_controls(plain_warning(*arguments, **named))

    def print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(show_controls("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)

    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = format_warning
    sys.excepthook = print_error
