"""A fusion whose sources and target are sampled by servers that it starts, one after the other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from sinterlm.chat import encode_prompt
from sinterlm.errors import InputError
from sinterlm.models import load_lone_tokenizer
from sinterlm.pipeline.fusion import Fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Message
from sinterlm.sampling.served_model import seed_of
from sinterlm.store import Store
from tests.model_server import answer
from tests.tiny_fusion import write_tiny_fusion

SERVER = [sys.executable, str(Path(__file__).with_name("model_server.py")), "{model}", "--port", "{port}"]


def write_recipe(folder: Path, *options: str, **changes: Any) -> Path:
    """The tiny fusion, with two sources and the target in servers of which only one may run at a time."""
    path = write_tiny_fusion(folder)
    recipe = yaml.safe_load(path.read_text())
    server = {"engine": "managed", "command": [*SERVER, "--alone", str(folder / "alone"), *options]}
    sampling = {"num_samples": 2, "temperature": 1.0, "top_p": 0.9, "max_new_tokens": 5}
    source = {**server, "model": str(folder / "models" / "source"), "sampling": sampling}
    recipe["sources"] = {
        "first": source,
        "second": {**source, "prompt": {"system": "Be brief."}},
        "old-answers": recipe["sources"]["old-answers"],
    }
    recipe["target"] = {**recipe["target"], **server}
    del recipe["preference"]["dpo"]
    for training in (recipe["sft"], recipe["preference"]["wrpo"]):
        training["train"] = {**training["train"], "max_steps": 2}
    path.write_text(yaml.safe_dump({**recipe, **changes}))
    return path


def sinterlm(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sinterlm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("managed")
    ran = sinterlm("run", write_recipe(folder), "--until", "sample-held-out")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def test_sources_and_every_form_of_the_target_have_a_server_each(done: Path) -> None:
    models = ["first", "second", "target", "target-sft", "target-sft-wrpo"]
    logs = done / "run" / "logs"
    assert sorted(path.stem for path in logs.iterdir()) == models
    for name in models[2:]:
        served = {line.split()[5] for line in (logs / f"{name}.log").read_text().split("\n") if line.startswith("===")}
        assert served == {str(done / "models" / "target" if name == "target" else done / "run" / name)}
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(done) in str(process.info["cmdline"])]


def test_a_trained_form_answers_by_its_own_weights(done: Path) -> None:
    """The stored answer is what the server's rule makes of these weights and of the prompt's token ids."""
    fusion = Fusion(load_recipe(done / "run" / "recipe.yaml").recipe)
    with Store(fusion.store_path, read_only=True) as store:
        prompt = store.prompts(fusion.run_name, "held_out")[0]
        for participant in (fusion.target, *fusion.trained):
            request = fusion.for_evaluation(participant)
            identity = request.identity()
            assert identity
            [[response]] = store.responses(identity, [prompt], source=participant.name, num_samples=1)
            weights = str(participant.weights)
            messages = (Message("system", "Answer with one word."), *prompt.messages)
            ids = encode_prompt(load_lone_tokenizer(weights).tokenizer, messages)
            seed = seed_of(0, prompt.content_hash, 0)
            assert response.content == answer(weights, json.dumps(ids), seed, 0, 6)


def test_the_same_command_starts_no_server_again(done: Path) -> None:
    before = {path.name: path.read_text() for path in (done / "run" / "logs").iterdir()}
    assert sinterlm("run", done / "recipe.yaml", "--until", "sample-held-out").returncode == 0
    assert {path.name: path.read_text() for path in (done / "run" / "logs").iterdir()} == before


def test_an_interrupt_leaves_no_process_and_the_same_command_resumes(tmp_path: Path) -> None:
    """Ctrl-C in a terminal goes to Sinter's process group; the servers are in sessions of their own."""
    recipe = write_recipe(tmp_path, "--slow", "0.05")
    command = [sys.executable, "-m", "sinterlm", "run", str(recipe), "--until", "sample-sources"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver:
        log = tmp_path / "run" / "logs" / "first.log"
        wait_until(lambda: log.is_file() and "pid " in log.read_text())
        family = {child.pid for child in psutil.Process(driver.pid).children(recursive=True)}
        wait_until(lambda: count_answers(tmp_path / "run") > 3)
        began = time.monotonic()
        os.killpg(driver.pid, signal.SIGINT)
        assert driver.wait(timeout=30) == 130
        assert time.monotonic() - began < 10
    assert len(family) >= 2
    assert not any(map(psutil.pid_exists, family))
    answered = count_answers(tmp_path / "run")
    assert 3 < answered < 48
    assert sinterlm("run", recipe, "--until", "sample-sources").returncode == 0
    assert count_answers(tmp_path / "run") == 2 * 24 * 2
    assert log.read_text().count("=== ") == 2


def test_a_source_whose_server_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    written = yaml.safe_load(recipe.read_text())
    first = written["sources"]["first"]
    first["command"] = [*first["command"], "--crash-after", "3"]
    first["restarts"] = 1
    first["concurrency"] = 1  # so that answers come before the crash
    recipe.write_text(yaml.safe_dump(written))
    ran = sinterlm("run", recipe, "--until", "sample-sources")
    assert ran.returncode == 3
    assert "more often than `restarts` (1) allows" in ran.stderr
    assert "| out of luck" in ran.stderr
    answered_before = 2 * 3 * 2  # at most: two servers, three requests to each, two answers to a request
    assert 24 * 2 < count_answers(tmp_path / "run") <= 24 * 2 + answered_before
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])
    ]


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def count_answers(output: Path) -> int:
    """Answers in the store; 0 before there is one."""
    try:
        with Store(output / "store.sqlite", read_only=True) as store:
            return sum(spent.items for spent in store.ledger())
    except InputError:
        return 0
