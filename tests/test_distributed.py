"""Several processes, micro-batches or chunks take the steps of one; a model too large for a device trains in shards."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler
from transformers import AutoModelForCausalLM

from sinterlm.formats import write_rows
from sinterlm.training.order import EpochOrder
from sinterlm.training.train import METRICS
from tests import processes
from tests.processes import GLOBAL_BATCH, NUM_ROWS, TRAININGS, keep_gradients
from tests.tiny import save_tiny

pytestmark = pytest.mark.xdist_group("distributed")  # the tests' shared fixtures are made once, in one process

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "src" / "sinterlm" / "recipes" / "accelerate"
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
UNTIMED = {"step_seconds", "tokens_per_second"}


def launch(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m command``, which starts two processes, and wait for them."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def accelerate(config: str) -> tuple[str, ...]:
    """Accelerate's launcher with a shipped configuration, for two processes on this machine's CPU."""
    fitted = ("--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0")
    return "accelerate.commands.launch", "--config_file", str(CONFIGS / config), *fitted, "-m"


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def assert_same_steps(ours: Path, theirs: Path, *, tolerance: float) -> None:
    mine, others = lines_of(ours), lines_of(theirs)
    assert [line["step"] for line in mine] == [line["step"] for line in others] == [1, 2, 3, 4]
    for left, right in zip(mine, others, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - UNTIMED:
            if left["step"] == 1 and name.endswith("accuracies"):
                continue  # all rewards are 0 there, so rounding decides which is larger
            assert left[name] == pytest.approx(right[name], rel=tolerance, abs=tolerance), (name, left["step"])


def assert_same_weights(ours: Path, theirs: Path, *, tolerance: float) -> None:
    mine, others = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (ours, theirs))
    assert mine.keys() == others.keys()
    for name, weights in mine.items():
        assert torch.allclose(weights, others[name], rtol=tolerance, atol=tolerance), name


def assert_no_connection_is_left(folder: Path) -> None:
    """Its threads would sometimes abort the process while it exits."""
    for process in (0, 1):
        assert "gloo" not in (folder / f"threads-{process}.txt").read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training in one process, none of them interrupted."""
    folder = tmp_path_factory.mktemp("one")
    for name in TRAININGS:
        processes.run(name, model, folder, may_interrupt=False, callback=keep_gradients(folder, name))
    return folder


@pytest.fixture(scope="module")
def two(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training in two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(*TORCHRUN, "-m", "tests.processes", "data_parallel", str(model), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


# --- micro-batches and chunks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 8, "chunk_tokens": 1},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "chunk_tokens": 150},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["sft", "interrupted"])
def test_micro_batches_and_chunks_change_no_loss_and_no_gradient(
    name: str, arguments: dict[str, int], model: Path, one: Path, tmp_path: Path
) -> None:
    processes.run(
        name, model, tmp_path, may_interrupt=False, callback=keep_gradients(tmp_path), save_strategy="no", **arguments
    )
    for mine, other in zip(lines_of(tmp_path / name), lines_of(one / name), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    gradients, expected = (torch.load(path) for path in (tmp_path / "gradients-1-0.pt", one / f"{name}-1-0.pt"))
    for parameter, gradient in gradients.items():
        assert torch.allclose(gradient, expected[parameter], rtol=1e-5, atol=1e-6), parameter


# --- the order of the rows -------------------------------------------------------------------------------------------


def order(num_rows: int, epoch: int, *, multiple: int = 1) -> list[int]:
    rows = RandomSampler(range(num_rows))
    return list(EpochOrder(rows, seed=3, epoch=lambda: epoch, multiple=multiple, filler=num_rows))


@given(num_rows=st.integers(1, 30), multiple=st.integers(1, 12), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_row_once_and_fillers_behind(num_rows: int, multiple: int, epoch: int) -> None:
    found = order(num_rows, epoch, multiple=multiple)
    assert sorted(found[:num_rows]) == list(range(num_rows))
    assert found[num_rows:] == [num_rows] * (-num_rows % multiple)


def test_the_order_is_accelerates_and_changes_with_the_epoch() -> None:
    accelerates = SeedableRandomSampler(range(20), data_seed=3)
    for epoch in (0, 1):
        accelerates.set_epoch(epoch)
        assert order(20, epoch) == order(20, epoch) == list(accelerates)
    assert order(20, 0) != order(20, 1)


@pytest.mark.parametrize("name", ["grouped", "interrupted"])
def test_a_resumed_run_keeps_the_order(name: str, model: Path, one: Path, tmp_path: Path) -> None:
    """Within the second epoch; also by length, for which Transformers draws another order on resuming."""
    processes.run(name, model, tmp_path)
    assert_same_steps(tmp_path / name, one / name, tolerance=1e-6)
    assert_same_weights(tmp_path / name, one / name, tolerance=1e-6)


# --- data parallelism ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_take_the_steps_of_one(name: str, one: Path, two: Path) -> None:
    """Losses, gradients and metrics, over all rows and each once; also if training was interrupted."""
    assert_same_steps(two / name, one / name, tolerance=1e-5)
    for mine, other in zip(lines_of(two / name), lines_of(one / name), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-6)
    assert_same_weights(two / name, one / name, tolerance=1e-4)


def test_both_processes_have_the_same_gradients(two: Path) -> None:
    """Bit for bit: otherwise their weights would diverge."""
    for step in range(1, 5):
        left, right = (torch.load(two / f"gradients-{step}-{process}.pt") for process in (0, 1))
        assert any(gradient.abs().max() > 1e-3 for gradient in left.values())
        assert all(torch.equal(gradient, right[name]) for name, gradient in left.items())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not name a process's threads")
def test_processes_part_before_they_end(two: Path) -> None:
    assert_no_connection_is_left(two)


def test_every_row_counts_once_an_epoch(one: Path, two: Path) -> None:
    """Rows that fill up the last batch of two processes are not counted."""
    tokens = [lines_of(folder / "sft")[-1]["num_tokens"] for folder in (one, two)]
    assert tokens[0] == tokens[1]
    assert lines_of(two / "sft")[1]["num_tokens"] * 2 == tokens[1]


def test_a_loss_that_is_not_finite_in_one_process_stops_both(two: Path) -> None:
    texts = [(two / f"error-{process}.txt").read_text() for process in (0, 1)]
    assert texts[0] == texts[1]
    assert "(prompt 'p" in texts[0]
    assert "is not finite in step 2" in texts[0]
    assert [line["step"] for line in lines_of(two / "broken" / "sft")] == [1]


def test_the_command_in_two_processes_writes_and_prints_once(model: Path, one: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.parquet"
    write_rows(data, processes.rows("sft"))
    command = ["train", "--objective", "sft", "--model", str(model), "--data", str(data)]
    settings = ["learning_rate=1e-2", "num_train_epochs=2", f"per_device_train_batch_size={GLOBAL_BATCH // 2}"]
    done = launch(
        *accelerate("ddp.yaml"),
        *("tests.processes", "command", str(tmp_path)),
        *(*command, "--output", str(tmp_path / "out"), *settings),
    )
    assert done.returncode == 0, done.stderr
    assert_no_connection_is_left(tmp_path)
    assert done.stdout.count(f"{NUM_ROWS} rows, 4 steps") == 1
    assert done.stdout.count("trains on cpu, float32, 2 processes") == 1
    assert done.stderr == ""
    assert_same_steps(tmp_path / "out", one / "sft", tolerance=1e-5)


def test_a_recipe_does_not_run_in_several_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sinterlm", "quickstart", "--output", str(tmp_path / "out")],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "a launcher has started 2 processes, but a recipe runs in one; launch `sinterlm train`" in done.stderr
    assert not (tmp_path / "out").exists()


# --- sharded models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings in two processes with FSDP2."""
    folder = tmp_path_factory.mktemp("sharded")
    done = launch(*accelerate("fsdp2.yaml"), "tests.processes", "sharded", str(model), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["sft", "wrpo", "interrupted", "lora"])
def test_fsdp2_takes_the_steps_of_one_process(name: str, one: Path, sharded: Path) -> None:
    assert [(sharded / f"way-{process}.txt").read_text() for process in (0, 1)] == ["FSDP", "FSDP"]
    assert_same_steps(sharded / name, one / name, tolerance=1e-5)
    assert_same_weights(sharded / name, one / name, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero3_takes_the_steps_of_one_process(model: Path, one: Path, tmp_path: Path) -> None:
    done = launch(
        *accelerate("deepspeed_zero3.yaml"),
        "tests.processes",
        "sharded",
        str(model),
        str(tmp_path),
        DS_ACCELERATOR="cpu",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "way-0.txt").read_text() == "DEEPSPEED"
    for name in ("sft", "wrpo", "interrupted", "lora"):
        assert_same_steps(tmp_path / name, one / name, tolerance=1e-5)
        assert_same_weights(tmp_path / name, one / name, tolerance=1e-4)
