"""A server's process: started, watched, and ended with everything that it started, however Sinter ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sinterlm.errors import InputError
from sinterlm.sampling.server_process import ServerProcess

SERVER = (sys.executable, str(Path(__file__).with_name("model_server.py")), "a-model", "--port", "{port}")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    started = []

    def start(*options: str, env: dict[str, str] | None = None, grace_seconds: float = 0.3) -> ServerProcess:
        log = tmp_path / "logs" / "source.log"
        started.append(ServerProcess([*SERVER, *options], env=env or {}, log=log, grace_seconds=grace_seconds))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def ready(process: ServerProcess) -> None:
    for _ in process.wait(20):
        pass


def test_a_server_is_waited_for_and_stopped(start: Callable[..., ServerProcess]) -> None:
    before = descendants()
    process = start("--loading", "0.5")
    states = list(process.wait(20))
    assert process.models() == ["a-model"]
    assert any(state.startswith("pid ") for state in states), "the last line is shown while the server loads"
    assert process.url == f"http://127.0.0.1:{process.port}/v1"
    server = int(process.last_lines().removeprefix("pid "))
    assert os.getsid(server) == server, "a session of its own"
    process.stop()
    process.stop()
    assert not process.is_running
    assert not psutil.pid_exists(server)
    assert descendants() == before


def test_the_whole_family_of_a_server_is_killed_even_if_it_ignores_sigterm(
    start: Callable[..., ServerProcess],
) -> None:
    """A child in the server's group, and one in a session of its own whose parent has ended: both ignore SIGTERM."""
    before = descendants()
    process = start("--family")
    ready(process)
    family = descendants() - before
    assert len(family) == 4, "watcher, server and two that ignore SIGTERM"
    deadline = time.monotonic() + 10
    while process.last_lines().count("deaf") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    process.stop()
    assert 0.3 < time.monotonic() - began < 5
    assert not any(map(psutil.pid_exists, family))


def test_what_a_crashed_server_leaves_behind_is_ended_too(start: Callable[..., ServerProcess]) -> None:
    before = descendants()
    process = start("--family")
    ready(process)
    server = int(next(line for line in process.last_lines().split("\n") if "pid" in line).split()[1])
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.how_it_ended() == "signal SIGKILL, perhaps because memory ran out"
    assert descendants() == before


def test_a_server_that_cannot_start_shows_its_last_50_lines(start: Callable[..., ServerProcess]) -> None:
    process = start("--say", "\x1b[31mno memory\x1b[0m")
    with pytest.raises(InputError, match=r"ended before it answered \(exit code 3\)") as caught:
        ready(process)
    shown = [line for line in str(caught.value).split("\n") if line.startswith("  | ")]
    assert shown == [f"  | no memory {number}" for number in range(10, 60)], "the last 50 of 60, without colours"
    assert str(process.log) in str(caught.value)


def test_a_program_that_does_not_exist_is_said(tmp_path: Path) -> None:
    process = ServerProcess([str(tmp_path / "absent")], env={}, log=tmp_path / "a.log")
    with pytest.raises(InputError, match=r"(?s)exit code 127.*absent: cannot be started: No such file"):
        ready(process)


def test_a_server_that_does_not_answer_in_time_is_shown(start: Callable[..., ServerProcess]) -> None:
    process = start("--loading", "60")
    with pytest.raises(InputError, match=r"did not answer within 0\.5 s; raise health_timeout"):
        for _ in process.wait(0.5):
            pass
    assert process.is_running, "to end it is its owner's part"


def test_only_the_output_of_this_start_is_shown_and_a_bar_by_its_last_state(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("an earlier start\n")
    program = "print('loading 1%\\rloading 50%\\rloading 100%\\r'); print('done')"
    process = ServerProcess([sys.executable, "-c", program], env={}, log=log)
    with pytest.raises(InputError):
        ready(process)
    assert process.last_lines() == "loading 100%\ndone"
    assert log.read_text().startswith("an earlier start\n=== ")


def test_variables_are_added_to_those_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    program = "import os; print(os.environ['INHERITED'], os.environ['ADDED'])"
    process = ServerProcess([sys.executable, "-c", program], env={"ADDED": "too"}, log=tmp_path / "a.log")
    with pytest.raises(InputError):
        ready(process)
    assert process.last_lines() == "yes too"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_server_does_not_outlive_sinter(tmp_path: Path, how: signal.Signals) -> None:
    """Ended by kill -9, and by an interrupt that nothing handles."""
    program = f"""
        import time
        from pathlib import Path
        from sinterlm.sampling.server_process import ServerProcess
        log = Path({str(tmp_path / "a.log")!r})
        process = ServerProcess({[*SERVER, "--family"]!r}, env={{}}, log=log, grace_seconds=0.3)
        for _ in process.wait(20):
            pass
        print("ready", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == "ready\n"
        family = {child.pid for child in psutil.Process(driver.pid).children(recursive=True)}
        assert len(family) == 4
        driver.send_signal(how)
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, family)):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.05)
