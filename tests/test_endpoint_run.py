"""Whole runs with a source behind a server: nothing is asked twice, and everything that was paid for is kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sinterlm.formats import read_rows
from sinterlm.records import Usage
from sinterlm.store import Store
from tests.chat_server import SMOLLM2, Answer, llama_server, serve
from tests.tiny_fusion import write_tiny_fusion
from tests.world import command

SERVED = "{engine: endpoint, model: m, base_url: URL, max_retries: 0, price: {input: 1000.0, output: 2000.0}, MORE}"
SAMPLING = "sampling: {num_samples: 2, max_new_tokens: 5}"
NUM_TRAINING = 24
"""Prompts that are not held out."""


def asked_with(url: str, more: str = SAMPLING) -> list[str]:
    """Changes of the tiny recipe: one source behind a server, one of recorded answers."""
    served = SERVED.replace("URL", url).replace("MORE", more)
    return [f"sources={{served: {served}, old-answers: {{engine: recorded, path: answers.jsonl}}}}"]


def right(request: dict[str, Any], usage: tuple[int, int] = (10, 4)) -> Answer:
    """As many answers as the request asks for, each a bare sum."""
    words = request["messages"][-1]["content"].split()
    text = str(int(words[2]) + int(words[4].rstrip("?")))
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    count = request.get("n", 1)
    tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1] * count}
    return Answer(body=json.dumps({"choices": [choice] * count, "model": "m-2026", "usage": tokens}))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_tiny_fusion(tmp_path)


def read_store(recipe: Path) -> tuple[Counter[str], list[tuple[str, Usage, int, float]]]:
    """How many answers each served model gave, and what the ledger says of the source."""
    with Store(recipe.parent / "run" / "store.sqlite", read_only=True) as store:
        names = Counter(response.served_by for response in store.all_responses() if response.served_by)
        spent = [(line.stage, line.usage, line.items, line.money) for line in store.ledger() if line.model == "served"]
    return names, spent


def test_answers_of_a_server_become_rows_and_are_paid_for_once(recipe: Path) -> None:
    with serve(right) as server:
        _, error = command(
            "run", recipe, *asked_with(server.url), "scorer={kind: exact-match}", "--until", "select-sft"
        )
        assert error == ""
        first = len(server.requests)
        command("run", recipe, *asked_with(server.url), "scorer={kind: exact-match}", "--until", "select-sft")
        assert len(server.requests) == first == NUM_TRAINING
    rows = read_rows(recipe.parent / "run" / "rows" / "sft.parquet")
    assert "served" in {answer.source for row in rows for answer in row.responses}
    names, spent = read_store(recipe)
    assert names == {"m-2026": 2 * NUM_TRAINING}
    usage = Usage(NUM_TRAINING, 10 * NUM_TRAINING, 0, 8 * NUM_TRAINING)
    ((stage, used, num_answers, money),) = spent
    assert (stage, used, num_answers) == ("sample-sources", usage, 2 * NUM_TRAINING)
    assert money == pytest.approx(0.026 * NUM_TRAINING)


def test_a_server_that_fails_loses_no_answer_and_the_rest_is_asked_for_later(recipe: Path) -> None:
    overrides = ["scorer={kind: exact-match}", "--until", "sample-sources"]
    more = f"revision: one, concurrency: 1, {SAMPLING}"

    def script(request: dict[str, Any]) -> Answer:
        return right(request) if len(failing.requests) <= 9 else Answer(status=401)

    with serve(script) as failing:
        _, error = command("run", recipe, *asked_with(failing.url, more), *overrides)
    assert "the server refuses a request without a key" in error
    assert read_store(recipe)[0] == {"m-2026": 2 * 9}
    with serve(right) as server:
        _, error = command("run", recipe, *asked_with(server.url, more), *overrides)
    assert error == ""
    assert len(server.requests) == NUM_TRAINING - 9
    names, ((_, usage, num_answers, _),) = read_store(recipe)
    assert names == {"m-2026": 2 * NUM_TRAINING}
    assert (usage.new_tokens, num_answers) == (8 * NUM_TRAINING, 2 * NUM_TRAINING)


@pytest.mark.parametrize("told_apart", [False, True])
def test_two_sources_that_would_share_their_answers_are_refused(recipe: Path, told_apart: bool) -> None:
    """One revision at two addresses: a source each, or one source with both addresses."""
    with serve(right) as one, serve(right) as two:
        a, b = (
            f"{{engine: endpoint, model: m, base_url: {server.url}, revision: {revision}, {SAMPLING}}}"
            for server, revision in ((one, "r1"), (two, "r2" if told_apart else "r1"))
        )
        overrides = [f"sources={{a: {a}, b: {b}}}", "scorer={kind: exact-match}", "--until", "sample-sources"]
        _, error = command("run", recipe, *overrides)
        assert (error == "") == told_apart
        assert told_apart or "sources.a and sources.b ask the same model in the same way" in error
        assert len(one.requests) == len(two.requests) == (NUM_TRAINING if told_apart else 0)


def test_a_prompt_that_a_server_finds_too_long_is_dropped_with_its_words(recipe: Path) -> None:
    def script(request: dict[str, Any]) -> Answer:
        is_first = request["messages"] == server.requests[0]["messages"]
        return Answer(status=400, error="the prompt is too long, by far") if is_first else right(request)

    with serve(script) as server:
        overrides = [*asked_with(server.url), "scorer={kind: exact-match}", "--until", "sample-sources"]
        _, error = command("run", recipe, *overrides)
    assert error == ""
    with Store(recipe.parent / "run" / "store.sqlite", read_only=True) as store:
        (dropped,) = (drop for drop in store.dropped(".") if drop.reason == "prompt-too-long")
    assert dropped.stage == "sample-sources"
    assert "the prompt is too long, by far" in dropped.detail


@pytest.mark.slow
@pytest.mark.models
def test_a_real_server_beside_a_model_in_this_process_is_fused_whole(recipe: Path) -> None:
    """llama.cpp's SmolLM2 by chat and by a few-shot prompt, a tiny model in this process, and recorded answers."""
    few_shot = "protocol: completions, prompt: {few_shot: shots.yaml}"
    with llama_server(SMOLLM2, slots=2) as address:
        asked = f"engine: endpoint, model: m, base_url: {address}/v1, {SAMPLING}"
        overrides = [f"sources.chat={{{asked}}}", f"sources.completed={{{asked}, {few_shot}}}"]
        said, error = command("run", recipe, *overrides)
        assert error == "", said
        said, error = command("run", recipe, *overrides)
        assert error == ""
    summary = json.loads((recipe.parent / "run" / "summary.json").read_text())
    assert {"chat", "completed", "tiny", "old-answers"} <= summary["held_out"].keys()
    assert (recipe.parent / "run" / "report.html").is_file()
    with Store(recipe.parent / "run" / "store.sqlite", read_only=True) as store:
        items = Counter({(line.stage, line.model): line.items for line in store.ledger()})
    assert items["sample-sources", "chat"] == items["sample-sources", "completed"] == 2 * NUM_TRAINING
