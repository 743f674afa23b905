"""Output on terminals and in pipes: other people's text is shown, never obeyed."""

from __future__ import annotations

import ast
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.table import Table

import sinterlm
from sinterlm.errors import InputError
from sinterlm.terminal.progress import TerminalReporter
from sinterlm.terminal.status import print_status
from sinterlm.terminal.terminal import Terminal, show_controls

HOSTILE = {
    "title": ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    "clipboard": ("\x1b]52;c;cm0gLXJm\x1b\\", r"\x1b]52;c;cm0gLXJm\x1b" + "\\"),
    "clear the screen": ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
    "an escape in one byte": ("\x9b31m and \x9d0;x\x9c", r"\x9b31m and \x9d0;x\x9c"),
    "overwriting": ("good\rbad\b\b\b\x7f", r"good\x0dbad\x08\x08\x08\x7f"),
    "null and form feed": ("a\0b\fc\vd", r"a\x00b\x0cc\x0bd"),
    "reordering": ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
    "line separators": ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
    "half a surrogate pair": ("a\ud800b", r"a\ud800b"),
    "markup": ("[red]a[/] [/b] [link=x]y[/link] \\[z", "[red]a[/] [/b] [link=x]y[/link] \\[z"),
    "emoji codes": (":smile: :warning:", ":smile: :warning:"),
    "other scripts": ("é 漢字 שלום 👩‍👩‍👧", "é 漢字 שלום 👩‍👩‍👧"),
}


@pytest.fixture(params=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> tuple[str, str]:
    return HOSTILE[request.param]


def test_text_is_shown_and_never_obeyed(hostile: tuple[str, str]) -> None:
    """In lines, and in a table's title, head and cells; the table's borders stay straight."""
    text, shown = hostile
    assert show_controls(text) == shown
    assert show_controls(shown) == shown
    file = StringIO()
    terminal = Terminal(file=file, width=200)
    terminal.say(text)
    terminal.print(text)
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row("short")
    terminal.print(table)
    said = file.getvalue()
    assert said.count(shown) == 5
    assert said == show_controls(said)
    if said.isascii():
        assert len({len(line) for line in said.splitlines()[3:] if line}) == 1


def test_names_are_shown_as_they_are_in_status(hostile: tuple[str, str]) -> None:
    text, shown = hostile
    entry = {"name": f"sample-{text}", "state": "done", "counts": {f"{text} answers": 1}}
    file = StringIO()
    failed = {"stage": "s", "model": text, "kind": text, "number": 1}
    status = {
        "output": text,
        "stages": [entry],
        "dropped": {"s": {text: 1}},
        "spent": {"models": []},
        "failed": [{**failed, "example": {"prompt_id": text, "index": 0, "detail": text}}],
        "notes": [{"stage": "s", "model": text, "text": text}],
    }
    print_status(status, Terminal(file=file, width=300))
    assert file.getvalue().count(shown) == 4 + 4 + 2
    assert file.getvalue() == show_controls(file.getvalue())


def test_a_live_bar_shows_names_as_they_are(hostile: tuple[str, str]) -> None:
    """The bar's escape sequences come from the library; those in the name are text."""
    text, shown = hostile
    file = StringIO()
    terminal = Terminal(file=file, width=200)
    terminal._force_terminal = True
    with TerminalReporter(terminal).task(text, 2, "answers") as task:
        task.advance(1, text)
        task.advance(1, text)
    assert shown in file.getvalue()
    if shown != text:
        assert text not in file.getvalue()


def test_errors_pass_through_the_same_place(tmp_path: Path) -> None:
    """On a real terminal, through standard error: a recipe with a hostile name is refused in printable characters."""
    recipe = tmp_path / "\x1b]0;owned\x07.yaml"
    recipe.write_text('"\\e[2Jkey": 1\n')
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sinterlm", "plan", str(recipe)]
    assert subprocess.run(command, stdout=theirs, stderr=theirs, stdin=theirs).returncode == 2
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert r"\x1b]0;owned\x07.yaml:1: \x1b[2Jkey: unknown key" in said.replace("\r\n", "")
    assert "\x1b]" not in said
    assert "\x1b[2J" not in said


@pytest.mark.parametrize(
    "act",
    [
        "logging.getLogger('sinterlm.models').warning('a weight %s', hostile)",
        "(logging.getLogger('its').addHandler(logging.StreamHandler()), logging.getLogger('its').error(hostile))[0]",
        "warnings.warn(hostile)",
        "(_ for _ in ()).throw(ValueError(hostile))",
    ],
    ids=["our log", "a library's log", "a warning", "a traceback"],
)
def test_what_libraries_print_is_shown_and_never_obeyed(act: str) -> None:
    """Names of weights reach the log, text of servers and files reaches errors; none of it passes a ``Terminal``."""
    program = (
        "import logging, sys, warnings; from sinterlm import cli\n"
        f"hostile = {HOSTILE['title'][0]!r}\ncli.app = lambda **_: {act}\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert HOSTILE["title"][1] in done.stderr
    assert done.stderr == show_controls(done.stderr)


def test_a_terminal_without_utf8_shows_what_it_can(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for arguments in (["list", "objectives"], ["status", "/nowhere/é漢"]):
        command = [sys.executable, "-m", "sinterlm", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True)
        assert done.returncode == (2 if "status" in arguments else 0), done.stderr
        assert (done.stdout + done.stderr).isascii()


def test_no_message_holds_a_password() -> None:
    message = str(InputError("found 'https://user:hunter2@host/v1', expected none; see http://x.org/a@b"))
    assert message == "found 'https://***@host/v1', expected none; see http://x.org/a@b"


PIPELINE = sorted((Path(sinterlm.__file__).parent / "pipeline").rglob("*.py"))


@pytest.mark.parametrize("path", PIPELINE, ids=lambda path: path.name)
def test_no_module_of_the_pipeline_draws_or_prints(path: Path) -> None:
    """Its functions return records and report their progress to a reporter."""
    tree = ast.parse(path.read_text())
    assert not [name for name in _imported(tree) if name.partition(".")[0] == "rich"]
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"print", "sys.stdout.write", "sys.stderr.write", "os.write", "typer.echo"}


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
