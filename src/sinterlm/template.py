"""Chat templates: programs that come with a model, rendered with a fixed date and within limits.

    template (Jinja source) + conversation + options -> text

A template runs in Transformers' sandbox, which keeps it from files and from Python, but not from the clock, from random
numbers or from running forever. Here the date is fixed, random functions are refused, and time, memory and output are
bounded.

Nothing here imports torch or Transformers before a template is rendered.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from types import FrameType
from typing import Any, ClassVar, NamedTuple

if sys.platform != "win32":
    import resource

from jinja2 import Template, meta, nodes

from sinterlm.errors import InputError
from sinterlm.records import Message

MAX_TEMPLATE_CHARACTERS = 2**16
"""Three times the longest of 114 published templates."""
MAX_SECONDS = 2.0
"""Maximum computing time of one rendering; published templates need less than three milliseconds."""
MAX_BYTES = 2**30
"""Maximum memory that one rendering may add to the process."""
MAX_OUTPUT_CHARACTERS = 2**20
"""Maximum output of one rendering, plus 16 characters for each character of the messages."""

_OWN_VARIABLES = {"messages", "add_generation_prompt", "tools", "documents", "strftime_now"}
"""The variables that Sinter itself passes to a template."""
DATE_FUNCTION = "strftime_now"
"""The function by which templates ask for the date."""
_ANOTHER = "such a template cannot be used: give the model another one (chat_template.jinja in its folder)"


class TemplateRefusal(InputError):
    """A template fails on one conversation; it may work for others."""


@dataclass(frozen=True)
class TemplateOptions:
    """What decides a rendering besides the template and the conversation."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables (``chat_template_kwargs``), e.g. ``{"enable_thinking": False}``."""
    date: datetime.date | None = None
    """The date that the template uses as today's date, if it asks."""

    @classmethod
    def of(cls, variables: Mapping[str, Any] | None, date: str | None) -> TemplateOptions:
        """Options as settings name them, the date in the form ``2026-11-30``.

        Raises:
            InputError: ``date`` is not a date.
        """
        try:
            return cls(dict(variables or {}), datetime.date.fromisoformat(date) if date else None)
        except ValueError as error:
            raise InputError(f"template_date is {date!r}; expected a date such as 2026-11-30") from error


class _Program(NamedTuple):
    """A compiled template and facts from its source."""

    template: Template
    variables: frozenset[str]
    """Names that it reads and does not define."""
    literals: str
    """All text in it, separated by null characters."""


def render(
    source: str,
    messages: Sequence[Message],
    options: TemplateOptions,
    *,
    name: str,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
) -> str:
    """The text of a conversation.

    Args:
        source: The template.
        messages: The conversation.
        options: Variables and date.
        name: What messages call the template, e.g. ``the chat template of tokenizer 'org/model'``.
        add_generation_prompt: Whether the text ends where the model's answer begins.
        special_tokens: The tokenizer's tokens by their names, e.g. ``eos_token``.

    Raises:
        TemplateRefusal: The template raises an error of any kind, for this conversation at least.
        InputError: It takes too long or too much memory, writes too much, uses random numbers, does not read one of the
            variables, or asks for the date and none is given.
    """
    if not _can_limit():
        return _Child.ask(
            "render",
            source=source,
            messages=messages,
            variables=dict(options.variables),
            date=options.date.isoformat() if options.date else None,
            name=name,
            add_generation_prompt=add_generation_prompt,
            special_tokens=dict(special_tokens),
        )
    try:
        with _limits():
            program = _compile(source)
            _check_variables(program, options)
            text = program.template.render(
                messages=[message._asdict() for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=_clock(options.date),
                **{**special_tokens, **options.variables},
            )
    except InputError as error:
        raise InputError(f"{name} {error}") from error
    except _OutOfTime as error:
        raise InputError(f"{name} computes for more than {MAX_SECONDS:g} seconds; {_ANOTHER}") from error
    except MemoryError as error:
        raise InputError(f"{name} takes more than {MAX_BYTES // 2**20:,} MiB{_place(error)}; {_ANOTHER}") from error
    except Exception as error:  # whatever a stranger's program raises
        roles = ", ".join(message.role for message in messages)
        kind = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
        raise TemplateRefusal(
            f"{name} refuses a conversation with the roles {roles}: {kind}{error}{_place(error)}"
        ) from error
    limit = MAX_OUTPUT_CHARACTERS + 16 * sum(len(message.content) for message in messages)
    if len(text) > limit:
        raise InputError(f"{name} makes {len(text):,} characters of a conversation; expected at most {limit:,}")
    return text


def literals_of(source: str, *, name: str) -> str:
    """All literal text in a template, separated by null characters.

    Raises:
        InputError: The template cannot be compiled.
    """
    if not _can_limit():
        return _Child.ask("literals_of", source=source, name=name)
    try:
        with _limits():
            return _compile(source).literals
    except InputError as error:
        raise InputError(f"{name} {error}") from error
    except (_OutOfTime, Exception) as error:
        raise InputError(f"{name} cannot be compiled{_place(error)}: {error or type(error).__name__}") from error


@lru_cache(maxsize=32)
def _compile(source: str) -> _Program:
    # Private, but the only place that knows which functions and filters templates expect; render_jinja_template would
    # bring its own clock.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise InputError(f"has {len(source):,} characters; expected at most {MAX_TEMPLATE_CHARACTERS:,}")
    template = _compile_jinja_template(source)
    tree = template.environment.parse(source)
    variables = frozenset(meta.find_undeclared_variables(tree))
    uses = {node.name for node in tree.find_all((nodes.Name, nodes.Filter))}
    if not uses.isdisjoint({"lipsum", "random"}):
        raise InputError("draws at random, so that no two renderings are the same; such a template cannot be used")
    literals = [node.data for node in tree.find_all(nodes.TemplateData)]
    literals += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return _Program(template, variables, "\0".join(literals))


def _check_variables(program: _Program, options: TemplateOptions) -> None:
    known = program.variables - _OWN_VARIABLES
    unread = [variable for variable in options.variables if variable not in known]
    if unread:
        raise InputError(
            f"does not read {', '.join(sorted(unread))} (chat_template_kwargs); "
            f"it reads {', '.join(sorted(known)) or 'no variable'}"
        )


def _clock(date: datetime.date | None) -> Callable[[str], str]:
    """The function by which templates ask for the date."""

    def strftime_now(form: str) -> str:
        if date is None:
            raise InputError("writes today's date; give the date that it should write (template_date: 2026-11-30)")
        return datetime.datetime.combine(date, datetime.time()).strftime(form)

    return strftime_now


def _place(error: BaseException) -> str:
    """The line of the template that raised an error, in words; empty if it is not known."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of the template)" if line else ""


# --- limits ----------------------------------------------------------------------------------------------------------


class _OutOfTime(BaseException):
    """A rendering took too long. Not an Exception, which Jinja would catch while it folds constants."""


def _can_limit() -> bool:
    """Whether this is the main thread, which alone gets signals."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _limits() -> Iterator[None]:
    """Bound the computing time and, on Linux, the memory of what runs inside; for the main thread.

    A timer and a limit on this process cost only microseconds, unlike a process of its own. So they apply to every
    conversation, also to one that makes a harmless template run wild.
    """
    if not hasattr(signal, "SIGVTALRM"):
        yield
        return
    _handle_timer()
    with _bounded_memory():
        signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@cache  # setting a handler takes as long as half a rendering
def _handle_timer() -> None:
    signal.signal(signal.SIGVTALRM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _OutOfTime


@contextmanager
def _bounded_memory() -> Iterator[None]:
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([_address_space() + MAX_BYTES, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes that the process has mapped."""
    return int(os.pread(_statm(os.getpid()), 32, 0).split()[0]) * _PAGE_BYTES


@cache
def _statm(process: int) -> int:
    """An open file with the process's memory statistics, kept because opening it takes longer than a rendering."""
    return os.open("/proc/self/statm", os.O_RDONLY)


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


# --- other threads ---------------------------------------------------------------------------------------------------


class _Child:
    """A process that renders for threads other than the main one: in its own main thread, where the limits hold.

    It answers one line of JSON with another, and ends with the process that started it.
    """

    _lock = threading.Lock()
    _running: ClassVar[dict[int, subprocess.Popen[str]]] = {}
    """By the process that started it: a forked process must not use its parent's."""

    @classmethod
    def ask(cls, function: str, *, name: str, **arguments: Any) -> str:
        """Call a function of this module in that process.

        Raises:
            InputError: As raised by the function.
        """
        request = json.dumps({"function": function, "name": name, **arguments})
        with cls._lock:
            child = cls._running.get(os.getpid())
            if child is None or child.poll() is not None:
                command = [sys.executable, "-c", "from sinterlm.template import serve; serve()"]
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                cls._running[os.getpid()] = child
            assert child.stdin is not None and child.stdout is not None  # noqa: PT018
            child.stdin.write(f"{request}\n")
            child.stdin.flush()
            reply = child.stdout.readline()
        if not reply:
            raise InputError(f"{name} ended the process that rendered it; {_ANOTHER}")
        kind, text = json.loads(reply)
        if kind == "text":
            return str(text)
        raise (TemplateRefusal if kind == "refusal" else InputError)(text)


def serve() -> None:
    """Answer the requests on standard input until it ends."""
    for line in sys.stdin:
        print(json.dumps(_answer(**json.loads(line))), flush=True)


def _answer(function: str, **arguments: Any) -> tuple[str, str]:
    try:
        if function == "literals_of":
            return "text", literals_of(**arguments)
        messages = [Message(*message) for message in arguments.pop("messages")]
        options = TemplateOptions.of(arguments.pop("variables"), arguments.pop("date"))
        return "text", render(messages=messages, options=options, **arguments)
    except TemplateRefusal as refusal:
        return "refusal", str(refusal)
    except InputError as error:
        return "error", str(error)
