"""A folder belongs to one process at a time, even if the file system has no locks, or accepts and ignores them."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from sinterlm import cli
from sinterlm import locks as locks_module
from sinterlm.errors import TryAgainError
from sinterlm.locks import folder_lock

HOLDER = """
    import fcntl, os, sys
    from pathlib import Path
    {change}
    from sinterlm.locks import folder_lock
    with folder_lock(Path(sys.argv[1]), Path("runs/first")):
        print("held", flush=True)
        sys.stdin.read()
"""
LOCKS = {
    "that hold": "",
    "that do nothing": "fcntl.flock = lambda *_: None",
    "that are not there": f"fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError({errno.ENOLCK}, 'no locks'))",
}


@contextmanager
def held(folder: Path, locks: str) -> Iterator[subprocess.Popen[str]]:
    program = textwrap.dedent(HOLDER).format(change=LOCKS.get(locks, locks))
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture(params=LOCKS)
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file system's locks, in this process."""
    if request.param == "that do nothing":
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
    elif request.param == "that are not there":

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr("fcntl.flock", refuse)
    return str(request.param)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)


def take(folder: Path) -> None:
    with folder_lock(folder, Path("runs/second")):
        assert json.loads((folder / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (folder / ".lock.json").exists()


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(locks: str, tmp_path: Path) -> None:
    with held(tmp_path, locks) as process:
        with pytest.raises(TryAgainError, match=rf"in use by process {process.pid} on .*runs/first; wait for it or"):
            take(tmp_path)
        process.kill()
        process.wait()
        take(tmp_path)


def test_a_second_training_into_one_folder_is_refused(locks: str, tmp_path: Path) -> None:
    """It is refused before it reads its model."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "What is hot?", "chosen": "cold", "rejected": "hot"}))
    with (
        held(tmp_path / "out", locks) as process,
        pytest.raises(TryAgainError, match=f"in use by process {process.pid}"),
    ):
        cli.train("dpo", str(tmp_path / "unread"), rows, tmp_path / "out")


def test_a_second_holder_in_the_same_process_is_refused(locks: str, tmp_path: Path) -> None:
    with folder_lock(tmp_path, tmp_path), pytest.raises(TryAgainError, match=f"process {os.getpid()}"):
        take(tmp_path)
    take(tmp_path)


@pytest.mark.usefixtures("without_locks")
def test_an_error_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_lock(tmp_path, tmp_path):
        raise KeyError
    take(tmp_path)


def sign(folder: Path, **changes: Any) -> Path:
    path = folder / ".lock.json"
    own = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": "2026-01-01 00:00:00",
        "output": "runs/first",
        "started": psutil.Process().create_time(),
        "beat": 0,
    }
    path.write_text(json.dumps(own | changes))
    return path


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(
    "changes",
    [
        {"started": psutil.Process().create_time() - 1000},  # another process had our process number
        {"pid": 2**22 + 1},  # no process has it
    ],
)
def test_a_process_of_the_same_number_is_another(changes: dict[str, Any], tmp_path: Path) -> None:
    sign(tmp_path, **changes)
    take(tmp_path)


@pytest.mark.parametrize("content", ["", "\0" * 80, "[]", '{"pid": 1}', "{"])
def test_a_sign_that_says_nothing_holds_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / ".lock.json").write_text(content)
    take(tmp_path)


@pytest.mark.usefixtures("without_locks")
def test_a_process_of_another_machine_holds_the_folder_as_long_as_it_renews_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks_module, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks_module, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    with folder_lock(tmp_path, Path("runs/first")):
        monkeypatch.undo()
        monkeypatch.setattr("fcntl.flock", lambda *_: None)
        monkeypatch.setattr(locks_module, "BEAT_SECONDS", 0.1)
        monkeypatch.setattr(locks_module, "WATCH_SECONDS", 1.0)
        with pytest.raises(TryAgainError, match=r"on another since .*; if it is gone, remove .*\.lock\.json"):
            take(tmp_path)
    sign(tmp_path, host="another", pid=1)
    started = time.monotonic()
    take(tmp_path)
    assert time.monotonic() - started > 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks_module, "WATCH_SECONDS", 0.6)


QUICK = "import sinterlm.locks as locks; locks.BEAT_SECONDS = 0.1; fcntl.flock = lambda *_: None; "


@pytest.mark.usefixtures("without_locks", "quick")
def test_a_process_that_was_suspended_while_another_machine_took_the_folder_ends(tmp_path: Path) -> None:
    with held(tmp_path, QUICK + "import socket; socket.gethostname = lambda: 'another'") as process:
        process.send_signal(signal.SIGSTOP)
        with folder_lock(tmp_path, Path("runs/second")):
            process.send_signal(signal.SIGCONT)
            assert process.wait(10) == TryAgainError.exit_code
            assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("without_locks")
def test_a_suspended_process_of_this_machine_holds_its_folder(tmp_path: Path) -> None:
    with held(tmp_path, QUICK) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TryAgainError, match=f"process {process.pid}"):
            take(tmp_path)


@pytest.mark.usefixtures("without_locks")
def test_a_process_whose_sign_was_removed_ends(tmp_path: Path) -> None:
    with held(tmp_path, QUICK) as process:
        (tmp_path / ".lock.json").unlink()
        assert process.wait(10) == TryAgainError.exit_code


@pytest.mark.usefixtures("without_locks", "quick")
def test_setting_the_clock_frees_no_folder(tmp_path: Path) -> None:
    """The system computes a process's start time from today's clock."""
    with held(tmp_path, QUICK + "locks._started = lambda pid: 1e9") as process:
        with pytest.raises(TryAgainError, match=f"process {process.pid}"):
            take(tmp_path)
        process.kill()
        process.wait()
        take(tmp_path)


def test_links_are_never_followed(tmp_path: Path) -> None:
    """A workspace from elsewhere may contain links to the user's files."""
    mine, workspace = tmp_path / "mine.txt", tmp_path / "workspace"
    workspace.mkdir()
    mine.write_text("mine")
    for name in (".lock", ".lock.json"):
        (workspace / name).symlink_to(mine)
    take(workspace)
    assert mine.read_text() == "mine"
    assert not any(path.is_symlink() for path in workspace.iterdir())
