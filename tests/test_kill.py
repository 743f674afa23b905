"""``kill -9`` at any moment, then the same command: the result equals that of an uninterrupted run."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sinterlm.store import Store
from tests.processes import take_30_steps
from tests.tiny import save_tiny
from tests.tiny_fusion import write_tiny_fusion

UNTIMED = ("step_seconds", "tokens_per_second")
"""Figures of metrics.jsonl that no two runs share."""


def command(recipe: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "sinterlm", "run", str(recipe), f"output={output}"]


def run_to_the_end(recipe: Path, output: Path) -> None:
    finished = subprocess.run(command(recipe, output), capture_output=True, text=True, timeout=280, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def outcome(output: Path) -> dict[str, Any]:
    """Everything that a run has made, except what depends on the clock."""
    connection = sqlite3.connect(output / "store.sqlite")
    tables = {
        "responses": "SELECT * FROM responses ORDER BY id",
        "scores": "SELECT * FROM scores ORDER BY response_id, scorer, answers_hash",
        "dropped": "SELECT stage, subject, reason, detail FROM dropped ORDER BY stage, subject, reason, detail",
        "prompts": "SELECT * FROM prompts ORDER BY id",
    }
    made: dict[str, Any] = {name: connection.execute(query).fetchall() for name, query in tables.items()}
    connection.close()
    made["rows"] = {path.name: pq.read_table(path).to_pylist() for path in sorted((output / "rows").iterdir())}
    made["evaluation"] = json.loads((output / "evaluation.json").read_text())
    return made | trained(output)


def trained(output: Path) -> dict[str, Any]:
    """Everything that the trainings below ``output`` have made, except what depends on the clock."""
    metrics = {
        path.parent.name: [
            {name: value for name, value in json.loads(line).items() if name not in UNTIMED}
            for line in path.read_text().splitlines()
        ]
        for path in sorted(output.glob("*/metrics.jsonl"))
    }
    weights = {path.parent.name: path.read_bytes() for path in sorted(output.glob("*/model.safetensors"))}
    return {"metrics": metrics, "weights": weights}


def finished_at(output: Path) -> dict[str, float]:
    try:
        with Store(output / "store.sqlite", read_only=True) as store:
            return {name: stage.finished_at for name, stage in store.finished_stages(".").items()}
    except Exception:  # killed before the store was complete
        return {}


def kill_moments(stages: list[tuple[str, float]], num_kills: int, seed: int) -> list[tuple[str, float]]:
    """(stage, seconds after its start) of every kill, in order, spread over all stages."""
    rng = random.Random(seed)
    chosen = [stages[k % len(stages)] for k in rng.sample(range(max(num_kills, len(stages))), num_kills)]
    order = [name for name, _ in stages]
    return sorted(
        ((name, rng.random() * seconds) for name, seconds in chosen), key=lambda kill: (order.index(kill[0]), kill[1])
    )


def kill_in_stage(recipe: Path, output: Path, stage: str, seconds: float) -> None:
    """Start the run, wait for ``stage`` to begin and ``seconds`` more, then kill it (unless it ended before)."""
    process = subprocess.Popen(command(recipe, output), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"{stage} ..."):
            time.sleep(seconds)
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()


def check_kills(folder: Path, recipe: Path, reference: Path, num_kills: int, seed: int) -> None:
    with Store(reference / "store.sqlite", read_only=True) as store:
        stages = [(name, stage.seconds) for name, stage in store.finished_stages(".").items()]
    output = folder / f"killed-{seed}"
    finished: dict[str, float] = {}
    for stage, seconds in kill_moments(stages, num_kills, seed):
        kill_in_stage(recipe, output, stage, seconds)
        now = finished_at(output)
        redone = {name for name, moment in finished.items() if now.get(name) != moment}
        assert not redone, f"finished stages were redone: {redone}"
        finished = now
    run_to_the_end(recipe, output)
    assert {name: finished_at(output)[name] for name in finished} == finished
    assert outcome(output) == outcome(reference)
    assert not list(output.glob("*/checkpoints")), "checkpoints of finished stages are removed"
    shutil.rmtree(output)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folder, recipe, and the output of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("kill")
    recipe = write_tiny_fusion(folder)
    run_to_the_end(recipe, folder / "whole")
    return folder, recipe, folder / "whole"


@pytest.mark.timeout(600)
def test_ten_kills_over_all_stages_change_nothing(fusion: tuple[Path, Path, Path]) -> None:
    folder, recipe, reference = fusion
    check_kills(folder, recipe, reference, num_kills=10, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(1, 6))
def test_fifty_kills_in_five_runs_change_nothing(fusion: tuple[Path, Path, Path], seed: int) -> None:
    folder, recipe, reference = fusion
    check_kills(folder, recipe, reference, num_kills=10, seed=seed)


# --- a training alone ------------------------------------------------------------------------------------------------


def start_training(model: Path, output: Path) -> ForkServerProcess:
    """Training in a process that need not import everything again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes"])
    process = context.Process(target=take_30_steps, args=(model, output))
    process.start()
    return process


def half_written(output: Path) -> set[Path]:
    """Checkpoints that exist but are not whole."""
    checkpoints = output.glob("*/checkpoints/checkpoint-*")
    return {checkpoint for checkpoint in checkpoints if not (checkpoint / "manifest.json").exists()}


def kill_in_checkpoint_write(process: ForkServerProcess, output: Path) -> bool:
    """Kill when the next checkpoint exists but is not whole; returns whether that happened before training ended."""
    left_by_others = half_written(output)
    while process.is_alive() and not half_written(output) - left_by_others:
        time.sleep(1e-4)
    process.kill()
    process.join()
    return bool(half_written(output) - left_by_others)


def check_training_kills(model: Path, folder: Path, num_kills: int, seed: int) -> None:
    """Every third kill hits a checkpoint's write, the others any moment; a run that ends is followed by a new one."""
    rng = random.Random(seed)
    started = time.monotonic()
    start_training(model, folder / "whole").join()
    seconds = time.monotonic() - started
    num_runs = num_in_write = 0
    for number in range(num_kills):
        output = folder / f"killed-{num_runs}"
        process = start_training(model, output)
        if number % 3 == 1:
            num_in_write += kill_in_checkpoint_write(process, output)
        else:
            process.join(rng.random() * seconds)
            process.kill()
            process.join()
        if process.exitcode == 0 or number == num_kills - 1:
            start_training(model, output).join()
            assert trained(output) == trained(folder / "whole")
            num_runs += 1
    assert num_in_write > num_kills // 6


def test_three_kills_of_a_training_change_nothing(tmp_path: Path) -> None:
    check_training_kills(save_tiny(tmp_path / "model"), tmp_path, num_kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_kills_of_trainings_change_nothing(tmp_path: Path) -> None:
    check_training_kills(save_tiny(tmp_path / "model"), tmp_path, num_kills=50, seed=1)
