"""``kill -9`` at any moment of sampling from a server, scoring, selection and export, and Ctrl-C once and twice."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from sinterlm.pipeline.export import export_rows
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.load import load_recipe
from tests.chat_server import Answer, ScriptedServer, serve

NUM_PROMPTS, NUM_SAMPLES, CONCURRENCY = 40, 3, 4
RECIPE = """\
prompts: {path: prompts.jsonl}
target: {model: someone/small-1b, samples: {engine: recorded, path: own.jsonl}}
sources:
  served: {engine: endpoint, model: m, base_url: URL, revision: one, concurrency: 4, sampling: {num_samples: 3}}
  old: {engine: recorded, path: old.jsonl}
scorer: {kind: exact-match}
preference:
  m: {select: {kind: wrpo}, objective: {kind: wrpo}, train: {num_train_epochs: 1}}
"""


def reply(request: dict[str, Any]) -> Answer:
    """The same answers to the same question, some of them right."""
    time.sleep(0.002)
    question = request["messages"][-1]["content"]
    texts = [hashlib.sha256(f"{question}{index}".encode()).hexdigest()[0] for index in range(request.get("n", 1))]
    choices = [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for text in texts]
    usage = {"prompt_tokens": 10, "completion_tokens": len(texts)}
    return Answer(body=json.dumps({"choices": choices, "model": "m-1", "usage": usage}))


def write_recipe(folder: Path, url: str) -> Path:
    names = [f"p{number}" for number in range(NUM_PROMPTS)]
    lines: dict[str, list[dict[str, Any]]] = {
        "prompts": [{"id": name, "prompt": f"Which letter, {name}?", "answers": list("0123abc")} for name in names],
        "own": [{"prompt_id": name, "response": text} for name in names for text in ("x", "a", "y")],
        "old": [{"prompt_id": name, "response": "3"} for name in names[::2]],
    }
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (folder / "recipe.yaml").write_text(RECIPE.replace("URL", url))
    return folder / "recipe.yaml"


def fuse(recipe: Path, output: Path) -> None:
    """Everything up to the exported rows, in a process that a test may kill."""
    run_fusion(Fusion(load_recipe(recipe, [f"output={output}"]).recipe), SilentReporter(), until="select-m")
    export_rows(output, format_name="wrpo")


def start(recipe: Path, output: Path) -> ForkServerProcess:
    """A process that need not import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_kill_sources", "openai", "aiohttp"])
    process = context.Process(target=fuse, args=(recipe, output))
    process.start()
    return process


class Made(NamedTuple):
    """What a run has made, except what depends on the clock."""

    tables: dict[str, list[Any]]
    rows: list[Any]
    exported: list[Any]


def made(output: Path) -> Made:
    queries = {
        "responses": "SELECT * FROM responses ORDER BY id",
        "details": "SELECT * FROM details ORDER BY response_id",
        "scores": "SELECT * FROM scores ORDER BY response_id, scorer, answers_hash",
        "dropped": "SELECT stage, subject, reason, detail FROM dropped ORDER BY stage, subject, reason, detail",
        "ledger": "SELECT stage, model, items FROM ledger ORDER BY stage, model",
    }
    connection = sqlite3.connect(output / "store.sqlite")
    tables = {name: connection.execute(query).fetchall() for name, query in queries.items()}
    connection.close()
    (exported,) = (output / "export" / "wrpo").rglob("*.parquet")
    rows = pq.read_table(output / "rows" / "m.parquet").to_pylist()
    return Made(tables, rows, pq.read_table(exported).to_pylist())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ScriptedServer]]:
    folder = tmp_path_factory.mktemp("killed")
    with serve(reply) as server:
        yield write_recipe(folder, server.url), server


def check_kills(recipe: Path, server: ScriptedServer, folder: Path, num_kills: int, seed: int) -> None:
    rng = random.Random(seed)
    started = time.monotonic()
    start(recipe, folder / "whole").join()
    seconds, whole = time.monotonic() - started, made(folder / "whole")
    assert len(whole.tables["responses"]) == NUM_SAMPLES * NUM_PROMPTS + NUM_PROMPTS // 2 + 3 * NUM_PROMPTS
    assert len(whole.rows) > 10
    num_done = num_runs = 0
    while num_done < num_kills:
        output, before = folder / f"run-{num_runs}", len(server.requests)
        killed = 0
        while True:
            process = start(recipe, output)
            process.join(rng.uniform(0, 0.7 * seconds) if num_done < num_kills else None)
            if process.is_alive():
                process.kill()
                killed += 1
                num_done += 1
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL
        found = made(output)
        assert found.tables.pop("ledger") == whole.tables["ledger"], "what was received was paid for, once"
        assert found == whole._replace(tables={k: v for k, v in whole.tables.items() if k != "ledger"})
        asked = Counter(text for text in server.texts[before:])
        assert len(asked) == NUM_PROMPTS
        assert asked.total() <= NUM_PROMPTS + killed * CONCURRENCY, "only requests in flight are repeated"
        num_runs += 1


@pytest.mark.timeout(300)
def test_a_few_kills_lose_nothing_and_double_nothing(world: tuple[Path, ScriptedServer], tmp_path: Path) -> None:
    check_kills(*world, tmp_path, num_kills=8, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_kills_lose_nothing_and_double_nothing(world: tuple[Path, ScriptedServer], tmp_path: Path) -> None:
    check_kills(*world, tmp_path, num_kills=1000, seed=1)


# --- interrupts -------------------------------------------------------------------------------------------------------


def interrupt(folder: Path, reply_seconds: float, times: int) -> tuple[int, float, int, int, str]:
    """Interrupt a run with requests in flight; returns exit code, seconds, answers asked for and kept, and errors."""

    with serve(reply, seconds=reply_seconds) as server:
        recipe = write_recipe(folder, server.url)
        command = [
            sys.executable,
            "-m",
            "sinterlm",
            "run",
            str(recipe),
            f"output={folder / 'run'}",
            "--until",
            "select-m",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while len(server.requests) < CONCURRENCY and process.poll() is None:
                time.sleep(0.05)
            time.sleep(0.2)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            for _ in range(times - 1):
                time.sleep(0.3)
                started = time.monotonic()
                process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
            seconds = time.monotonic() - started
        asked = sum(request.get("n", 1) for request in server.requests)
    with sqlite3.connect(folder / "run" / "store.sqlite") as connection:
        (kept,) = connection.execute("SELECT COUNT(*) FROM details").fetchone()
    return process.returncode, seconds, asked, kept, said


def test_one_interrupt_keeps_what_is_in_flight(tmp_path: Path) -> None:
    code, seconds, asked, kept, said = interrupt(tmp_path, reply_seconds=1.5, times=1)
    assert code == 130
    assert CONCURRENCY * NUM_SAMPLES <= asked == kept < NUM_PROMPTS * NUM_SAMPLES / 2
    assert seconds < 10
    assert "Traceback" not in said


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    code, seconds, _, kept, said = interrupt(tmp_path, reply_seconds=20.0, times=2)
    assert (code, kept) == (130, 0)
    assert seconds < 3, "one second on an idle machine"
    assert "Traceback" not in said
