"""``kill -9`` of a real command asking by jobs: its rows are those of an uninterrupted one, nothing is paid twice."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sinterlm.records import Message, Prompt
from sinterlm.sampling.served_model import seed_of
from tests.batch_server import BatchServer, serve_batches
from tests.tiny import save_tiny

NUM_PROMPTS, NUM_SAMPLES = 7, 2
RECIPE = """\
output: {folder}/run
prompts: {{path: questions.jsonl, split: {{held_out: 0, sft: 7, preference: rest}}}}
target: {{model: {folder}/target}}
sources:
  jobs: {{engine: batch, model: m, sampling: {{num_samples: 2, seed: 3}}, chunk: 3, poll_seconds: 0.05, {keys}}}
scorer: {{kind: exact-match}}
sft: {{select: {{kind: best-of-sources}}, train: {{max_steps: 1}}}}
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "target")


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serve_batches(BatchServer()) as server:
        yield server


def write_recipe(folder: Path, target: Path, keys: str) -> Path:
    (folder / "target").symlink_to(target)
    rows = [{"id": f"p{n}", "prompt": f"What is {n} plus 1?", "answers": [str(n + 1)]} for n in range(NUM_PROMPTS)]
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, keys=keys))
    return folder / "recipe.yaml"


def start(recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sinterlm", "run", str(recipe), "--until", "sample-sources"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_to_the_end(recipe: Path) -> None:
    with start(recipe) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


def kill_at(
    recipe: Path, server: BatchServer, call: str, *, when: str, number: int = 1, how: int = signal.SIGKILL
) -> None:
    """End the command when it makes a call for the ``number``-th time, before or after the server has done it."""
    reached, killed, seen = threading.Event(), threading.Event(), Counter[str]()

    def hold(made: str) -> bool:
        seen[made] += 1
        if made == call and seen[made] == number:
            reached.set()
            killed.wait(60)
            return True
        return False

    if when == "before":
        server.before = lambda made: 500 if hold(made) else None
    else:
        server.after = hold
    with start(recipe) as process:
        while not reached.wait(0.05):
            assert process.poll() is None, process.communicate()[0]
        process.send_signal(how)
        said, _ = process.communicate(timeout=8)
        assert process.returncode == (130 if how == signal.SIGINT else -how), said
    killed.set()
    server.before, server.after = lambda made: None, lambda made: None


def rows(recipe: Path) -> dict[tuple[str, int], str]:
    connection = sqlite3.connect(recipe.parent / "run" / "store.sqlite")
    query = "SELECT prompt_hash, sample_index, content FROM responses"
    found = {(prompt, index): content for prompt, index, content in connection.execute(query)}
    connection.close()
    return found


def expected(first: int = 0) -> dict[tuple[str, int], str]:
    prompts = [Prompt("", (Message("user", f"What is {n} plus 1?"),)) for n in range(first, NUM_PROMPTS)]
    return {
        (prompt.content_hash, index): f"{prompt.messages[0].content} #{index} {seed_of(3, prompt.content_hash, 0)}"
        for prompt in prompts
        for index in range(NUM_SAMPLES)
    }


def spent(recipe: Path) -> Sequence[int]:
    connection = sqlite3.connect(recipe.parent / "run" / "store.sqlite")
    (found,) = connection.execute("SELECT SUM(requests), SUM(new_tokens), SUM(items) FROM ledger").fetchall()
    connection.close()
    return tuple(found)


@pytest.mark.timeout(120)
def test_kills_at_every_step_pay_nothing_twice(server: BatchServer, target: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, target, f"base_url: '{server.url}'")
    kill_at(recipe, server, "POST /files", when="after")
    assert not server.batches
    kill_at(recipe, server, "POST /batches", when="before", number=2)
    assert len(server.batches) == 1
    kill_at(recipe, server, "POST /batches", when="after")
    assert len(server.batches) == 2
    kill_at(recipe, server, "GET /batches", when="after", number=2, how=signal.SIGINT)
    kill_at(recipe, server, "GET /files/content", when="before", number=2)
    assert 0 < len(rows(recipe)) < NUM_PROMPTS * NUM_SAMPLES
    run_to_the_end(recipe)
    assert rows(recipe) == expected()
    assert set(server.answered.values()) == {1}
    assert len(server.batches) == 3
    assert spent(recipe) == (NUM_PROMPTS, NUM_PROMPTS * NUM_SAMPLES * 4, NUM_PROMPTS * NUM_SAMPLES)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forty_kills_at_any_moment_pay_nothing_twice(target: Path, tmp_path: Path) -> None:
    """Also while the server lets jobs expire in part."""
    rng = random.Random(0)
    for round_number in range(8):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        with serve_batches(BatchServer(polls=6, status="expired")) as server:
            recipe = write_recipe(folder, target, f"base_url: '{server.url}'")
            finish = server.finish
            work = server.work
            server.work = lambda request: work(request) if rng.random() < 0.7 else None  # noqa: B023
            for _ in range(5):
                with start(recipe) as process:
                    time.sleep(rng.uniform(1.0, 3.5))
                    process.kill()
                    process.communicate()
            server.finish = finish  # type: ignore[method-assign]
            server.work = work
            run_to_the_end(recipe)
            assert set(rows(recipe)) == set(expected())
            assert set(server.answered.values()) == {1}
            assert spent(recipe)[2] == NUM_PROMPTS * NUM_SAMPLES


@pytest.mark.slow  # in short: test_batch.test_a_program_is_waited_for_by_the_next_command
@pytest.mark.timeout(120)
def test_a_program_outlives_a_killed_command(target: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.run_batch",
        "-i",
        "{input}",
        "-o",
        "{output}",
        "--model",
        "m",
        "--seconds",
        "2",
    ]
    recipe = write_recipe(tmp_path, target, f"command: {json.dumps(command)}, reasoning: apart")
    jobs = tmp_path / "run" / "jobs"
    with start(recipe) as process:
        while not list(jobs.glob("*.lock")):
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
        process.communicate()
    run_to_the_end(recipe)
    assert rows(recipe) == expected()
    asked = Counter(text for log in jobs.glob("*.log") for text in log.read_text().splitlines())
    assert len(asked) == NUM_PROMPTS
    assert set(asked.values()) == {1}
