"""Sources of three kinds and a judge behind a server: killed, resumed, and reported with what each cost and gave."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sinterlm.formats import read_rows
from tests.chat_server import SMOLLM2, Answer, llama_server, serve
from tests.tiny_fusion import write_tiny_fusion

NUM_TRAINING = 24
"""Prompts that are not held out."""
PRICE = "price: {input: 10.0, output: 20.0}"


def grade(request: dict[str, Any]) -> Answer:
    """A verdict that depends on the answer alone."""
    text = request["messages"][-1]["content"]
    verdict = json.dumps({"explanation": "So.", "grade": 1 + sum(map(ord, text)) % 10})
    choice = {"message": {"role": "assistant", "content": verdict}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 50, "completion_tokens": 10}
    return Answer(body=json.dumps({"choices": [choice], "model": "judge-1", "usage": usage}))


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(1800)
def test_a_fusion_of_three_kinds_of_sources_is_killed_and_resumed(tmp_path: Path) -> None:
    recipe = write_tiny_fusion(tmp_path)
    rng = random.Random(0)
    with llama_server(SMOLLM2, slots=2) as address, serve(grade) as judge:
        served = f"{{engine: endpoint, model: smollm2, base_url: {address}/v1, concurrency: 2, {PRICE}, "
        served += "sampling: {num_samples: 2, max_new_tokens: 8}}"
        command = [
            *(sys.executable, "-m", "sinterlm", "run", str(recipe)),
            f"sources.served={served}",
            f"scorer={{kind: judge, model: j, base_url: {judge.url}, {PRICE}}}",
        ]
        num_kills = 0
        while True:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            end = time.monotonic() + rng.uniform(5, 15) if num_kills < 6 else float("inf")
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()
                num_kills += 1
            _, error = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, error
        num_verdicts = len(judge.requests)
    assert num_kills == 6
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert {"tiny", "served", "old-answers", "target-sft-wrpo"} <= summary["held_out"].keys()
    spent = {(line["stage"], line["model"]): line for line in summary["spent"]["models"]}
    assert spent["sample-sources", "served"]["answers"] == 2 * NUM_TRAINING
    assert spent["sample-sources", "served"]["money"] > 0
    assert spent["sample-sources", "tiny"]["money"] == 0
    verdicts = [line for (stage, model), line in spent.items() if model.startswith("judge")]
    assert 0 < sum(line["requests"] for line in verdicts) <= num_verdicts
    assert sum(line["money"] for line in verdicts) > 0
    gave = {answer.source for row in read_rows(run / "rows" / "wrpo.parquet") for answer in row.responses}
    assert gave <= {"tiny", "shots", "served", "old-answers", "target-sft"}
    page = (run / "report.html").read_text()
    assert all(name in page for name in ("served", "old-answers", "judge"))
