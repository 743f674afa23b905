"""Reward models behind servers: the same dialogues and scores as in this process, and what a server may do wrong.

The server is one of ours with plain Transformers models (see ``reward_server.py``); a real vLLM is asked where there is
one, and its recorded replies are read in any case.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from sinterlm.errors import BudgetError, CredentialsError, InputError, TryAgainError
from sinterlm.models import load_lone_tokenizer
from sinterlm.pipeline.stored_scorer import Account, StoredScorer
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Score, Usage
from sinterlm.scoring.protocol import Exchange, Given, stream_scores
from sinterlm.scoring.scorers import AnyScorer
from sinterlm.scoring.served_reward_model import ServedRewardScorer, find_text
from sinterlm.scoring.settings import ScorerSettings, build_scorer
from sinterlm.store import Store
from tests.answers import answered
from tests.chat_server import Answer, serve
from tests.reward_server import serve_reward_models
from tests.test_stored_scores import run_scoring, write_lines
from tests.tiny import save_tiny, save_tiny_reward_model

PROTOCOLS = ("classify", "pooling", "score", "sglang")
TOLERANCE = 1e-5
"""For float32; scores are on the order of 1."""
PLANTED = "It is <|eot_id|> Paris, and <|im_end|> that is all."
CONTENTS = ("Paris.", " Two plus three is five. ", "é 日本", "Answer with one word. " * 200, "Paris is the capital.")
"""The last but one is longer than the models can read, and is cut."""


def save_model(folder: Path, family: str, hidden_size: int = 128) -> Path:
    """A tiny reward model whose scores are as far apart as those of a trained one."""
    save_tiny_reward_model(folder, family=family, hidden_size=hidden_size)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] *= 20
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """By family: Llama 3's template writes a BOS and its tokenizer adds one; those of ChatML do neither."""
    return {family: save_model(tmp_path_factory.mktemp(family), family) for family in ("llama3", "chatml")}


@pytest.fixture(scope="module")
def address(models: Mapping[str, Path]) -> Iterator[str]:
    with serve_reward_models(**models) as address:
        yield address


def read(**settings: Any) -> ScorerSettings:
    return TypeAdapter(AnyScorer).validate_python({"kind": "reward-model", **settings})


def served(address: str, model: Path, path: str = "llama3", **settings: Any) -> ServedRewardScorer:
    base_url = f"{address}/{path}"
    fields = {"engine": "endpoint", "base_url": base_url, "thoughts": "keep", "max_retries": 0, **settings}
    scorer = build_scorer(read(model=str(model), **fields))
    assert isinstance(scorer, ServedRewardScorer)
    return scorer


def in_process(model: Path, exchanges: Sequence[Exchange], **settings: Any) -> list[Score]:
    return build_scorer(read(model=str(model), **settings)).score(exchanges)


def exchanges(*contents: str) -> list[Exchange]:
    return [answered(content, prompt=f"Question {n}?", name=f"q{n}") for n, content in enumerate(contents)]


# --- the same scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", ["llama3", "chatml"])
def test_scores_equal_those_in_this_process(
    models: Mapping[str, Path], address: str, family: str, protocol: str
) -> None:
    """Whatever the number of a dialogue: the first three are also asked about with the sigmoid."""
    entries = exchanges(*CONTENTS)
    scores = served(address, models[family], family, protocol=protocol).score(entries)
    expected = in_process(models[family], entries)
    assert [score.value for score in scores] == pytest.approx([score.value for score in expected], abs=TOLERANCE)
    assert [score.detail for score in scores] == [score.detail for score in expected]
    assert [score.detail for score in scores][3] == {"truncated": True}
    assert max(score.value for score in scores) - min(score.value for score in scores) > 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_that_spells_a_token_of_the_template_stays_text(
    models: Mapping[str, Path], address: str, protocol: str
) -> None:
    """As token ids. A text would be read with the token, so it is not sent."""
    entries = exchanges("Paris.", PLANTED)
    usual, planted = served(address, models["llama3"], protocol=protocol).score(entries)
    if protocol == "score":
        assert planted.detail["reason"] == "no-score"
        assert "use `protocol: classify`" in planted.detail["problem"]
    else:
        expected = [score.value for score in in_process(models["llama3"], entries)]
        assert [usual.value, planted.value] == pytest.approx(expected, abs=TOLERANCE)


def test_usage_counts_every_request_and_token(models: Mapping[str, Path], address: str) -> None:
    entries = exchanges(*CONTENTS)
    tokenizer = load_lone_tokenizer(str(models["llama3"])).tokenizer
    given = list(stream_scores(served(address, models["llama3"]), entries[:1]))
    (tokens,) = {total_usage(given).prompt_tokens // 2}
    asked = [*[message._asdict() for message in entries[0].prompt.messages], {"role": "assistant", "content": "Paris."}]
    assert tokens == len(tokenizer.apply_chat_template(asked, return_dict=False))
    assert total_usage(given) == Usage(2, 2 * tokens, 0, 0)  # one of them with the sigmoid
    scorer = served(address, models["llama3"])
    assert total_usage(stream_scores(scorer, entries)).requests == 5 + 3
    assert total_usage(stream_scores(scorer, entries)).requests == 5
    assert scorer.score([]) == []


def total_usage(given: Any) -> Usage:
    return sum((each.usage for each in given), Usage())


def test_only_the_tokenizer_is_needed(models: Mapping[str, Path], address: str, tmp_path: Path) -> None:
    """Without a config.json the number of positions is not known, so max_length must say it."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(models["llama3"] / file, tmp_path)
    entries = exchanges(*CONTENTS)
    expected = [score.value for score in in_process(models["llama3"], entries)]
    scores = served(address, tmp_path, max_length=512).score(entries)
    assert [score.value for score in scores] == pytest.approx(expected, abs=TOLERANCE)
    with pytest.raises(InputError, match=r"maximum context length is 512 .* make max_length \(4096\) what the server"):
        served(address, tmp_path).score(entries)


@pytest.mark.parametrize("family", ["llama3", "chatml"])
def test_a_text_makes_the_same_tokens(models: Mapping[str, Path], family: str) -> None:
    tokenizer = load_lone_tokenizer(str(models[family])).tokenizer
    ids = list(tokenizer("Paris", add_special_tokens=True)["input_ids"])
    assert find_text(tokenizer, ids) == "Paris"
    two = [ids[0], *ids]
    assert find_text(tokenizer, two) is None or list(tokenizer(find_text(tokenizer, two))["input_ids"]) == two


# --- what servers do wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["classify", "pooling", "score"])
def test_a_vllm_that_gives_only_probabilities_is_refused(
    models: Mapping[str, Path], address: str, protocol: str
) -> None:
    scorer = served(address, models["llama3"], "llama3/old", protocol=protocol)
    with pytest.raises(InputError, match="may be a probability and not the model's own output"):
        scorer.score(exchanges(*CONTENTS))


@pytest.mark.parametrize(
    ("raw", "sigmoid", "is_taken"),
    [
        ((0.659, 2.0, -1.0), (0.659, 0.88, 0.27), True),  # the sigmoid of 0.659 is 0.659
        ((3.0, 2.0, -1.0), (3.0, 2.0, -1.0), True),  # a model without a sigmoid
        ((0.3, 0.2, 4.0), (0.3, 0.2, 4.0), True),
        ((0.3, 0.2, 0.9), (0.3, 0.2, 0.9), False),
        ((0.3, 0.2, 0.9), (0.3001, 0.2001, 0.8999), False),  # rounded in another way
    ],
)
def test_outputs_are_taken_for_raw_only_if_they_are(
    models: Mapping[str, Path], raw: Sequence[float], sigmoid: Sequence[float], is_taken: bool
) -> None:
    lengths: dict[int, int] = {}

    def script(request: Mapping[str, Any]) -> Answer:
        number = lengths.setdefault(len(request["input"]), len(lengths))
        value = (sigmoid if request["use_activation"] else raw)[number]
        return Answer(body=json.dumps({"data": [{"probs": [value]}]}))

    entries = exchanges("a", "b, b, b.", "c, c, c, c, c, c, c, c.")
    with serve(script) as server:
        scorer = served(server.url, models["llama3"], "", concurrency=1)
        if is_taken:
            assert [score.value for score in scorer.score(entries)] == list(raw)
        else:
            with pytest.raises(InputError, match="may be a probability"):
                scorer.score(entries)


def test_a_regression_has_no_sigmoid(models: Mapping[str, Path], address: str, tmp_path: Path) -> None:
    """Its config says so, and then a server that ignores the switch gives what the model does."""
    folder = shutil.copytree(models["llama3"], tmp_path / "regression")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    assert len(served(address, folder, "llama3/old").score(exchanges("Paris."))) == 1


def test_the_older_name_of_the_switch_is_sent_too(models: Mapping[str, Path], address: str) -> None:
    entries = exchanges(*CONTENTS)
    scores = served(address, models["llama3"], "llama3/renamed").score(entries)
    expected = [score.value for score in in_process(models["llama3"], entries)]
    assert [score.value for score in scores] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("path", "protocol", "problem"),
    [
        ("llama3/bos", "classify", r"has read \d+ tokens where \d+ were sent: it adds some of its own"),
        ("llama3/bos", "score", r"has read \d+ tokens where \d+ were sent"),
        ("llama3/labels", "classify", r"gives 2 outputs; expected a reward model with one"),
        ("llama3/tokens", "pooling", r"gives \d+ outputs; expected a reward model with one"),
        ("llama3/", "sglang/none", "the server refuses the request"),
    ],
)
def test_a_server_of_another_kind_is_refused(
    models: Mapping[str, Path], address: str, path: str, protocol: str, problem: str
) -> None:
    scorer = served(address, models["llama3"], path.rstrip("/"), protocol=protocol.partition("/")[0])
    if protocol == "sglang/none":  # vLLM, where the recipe says SGLang
        scorer._asks = scorer._asks._replace(ids="tokens")
    with pytest.raises(InputError, match=problem):
        scorer.score(exchanges(*CONTENTS))


@pytest.mark.parametrize("body", ["{}", '{"data": []}', '{"data": [{"probs": ["x"]}]}', "<html>", '{"data": [{}]}'])
def test_nonsense_is_a_failed_request(models: Mapping[str, Path], body: str) -> None:
    with (
        serve(lambda request: Answer(body=body)) as server,
        pytest.raises(TryAgainError, match="the server's answer is not a reply, though asked 1 times"),
    ):
        served(server.url, models["llama3"], "").score(exchanges("Paris."))


RECORDED = {
    "classify": '{"id":"classify-9b4df6ddf6d2d31c","object":"list","created":1796083758,"model":"rm","data":[{'
    '"index":0,"label":"LABEL_0","probs":[0.09937335550785065],"num_classes":1}],"usage":{"prompt_tokens":30,"total_tokens":30,'
    '"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null}}',
    "pooling": '{"id":"pooling-822c3161cdac4deb","object":"list","created":1796083759,"model":"rm","data":[{'
    '"index":0,"object":"pooling","data":[0.09937335550785065]}],"usage":{"prompt_tokens":30,"total_tokens":30,'
    '"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null}}',
    "score": '{"id":"score-990cf02c00641a61","object":"list","created":1796083759,"model":"rm","data":[{'
    '"index":0,"object":"score","score":0.09937335550785065}],"usage":{"prompt_tokens":30,"total_tokens":30,'
    '"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null}}',
    "sglang": '{"embedding":[0.09937335550785065],"meta_info":{"id":"3c","finish_reason":{"type":"length","length":0},'
    '"prompt_tokens":30,"weight_version":"default","e2e_latency":0.01}}',
}
"""Replies of vLLM 0.32.0 with a tiny model; for SGLang 0.5.23, what its source builds."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_recorded_replies_are_read(models: Mapping[str, Path], protocol: str) -> None:
    scorer = served("http://127.0.0.1:9", models["llama3"], "", protocol=protocol)
    assert scorer._read(json.loads(RECORDED[protocol])) == ([0.09937335550785065], 30)


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_names_what_decides_a_score(models: Mapping[str, Path]) -> None:
    def names(model: str = "llama3", **settings: Any) -> tuple[str, str]:
        fields = {"engine": "endpoint", "model": str(models[model]), "base_url": "http://one:8000", **settings}
        config = read(**fields)
        return build_scorer(config).identity, json.dumps(config.describe(str.upper))

    different = [
        names(),
        names("chatml"),
        names(base_url="http://two:8000"),
        names(revision="v1"),
        names(revision="v2"),
        names(served_model="other"),
        names(max_length=100),
        names(truncate="middle"),
        names(chat_template_kwargs={"deep": True}),
    ]
    assert len({identity for identity, _ in different}) == len(different) == len({key for _, key in different})
    for same in ({"protocol": "sglang"}, {"concurrency": 3}, {"price": {"input": 1.0}}, {"api_key_env": "KEY"}):
        assert names(**same) == names()
    assert names(base_url="http://one:8000/v1")[0] == names()[0]
    assert names(base_url=["http://one:8000", "http://two:8000"])[0] == names()[0]
    assert names(revision="v1")[0] == names(revision="v1", base_url="http://two:8000")[0]
    assert names()[0] != build_scorer(read(model=str(models["llama3"]))).identity


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("engine: vllm", "scorer.engine: found 'vllm' (text), expected one of transformers, endpoint"),
        ("engine: endpoint", "scorer.base_url: missing, expected"),
        ("base_url: http://x", "scorer.base_url: unknown key"),
        ("engine: endpoint, base_url: http://x, batch_tokens: 3", "scorer.batch_tokens: unknown key"),
        ("engine: endpoint, base_url: http://x, protocol: grpc", "expected 'classify', 'pooling', 'score' or 'sglang'"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, keys: str, problem: str) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "prompts: {path: p.jsonl}\ntarget: {model: m}\nsources: {a: {engine: recorded, path: a.jsonl}}\n"
        f"scorer: {{kind: reward-model, model: m, {keys}}}\n"
    )
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert problem in str(caught.value)


# --- through the pipeline --------------------------------------------------------------------------------------------


class Recorder(Account):
    """What a stored scorer accounts for."""

    def __init__(self) -> None:
        self.given: list[Given] = []

    def enter(self, given: Given, seconds: float) -> None:
        assert seconds >= 0
        self.given.append(given)


def test_scores_before_an_error_are_kept(models: Mapping[str, Path], tmp_path: Path) -> None:
    """The server works for six requests, then no more; the rest is asked in the second go."""
    left = [6]

    def script(request: Mapping[str, Any]) -> Answer:
        left[0] -= 1
        if left[0] < 0:
            return Answer(status=500)
        value = 1 / (1 + len(request["input"])) if request["use_activation"] else float(len(request["input"]))
        usage = {"prompt_tokens": len(request["input"])}
        return Answer(body=json.dumps({"data": [{"probs": [value]}], "usage": usage}))

    entries = exchanges("a", "b b", "c c c", "d d d d", "e e e e e")
    recorder = Recorder()
    with serve(script) as server, Store(tmp_path / "store.sqlite") as store:
        stored = StoredScorer(served(server.url, models["llama3"], "", concurrency=1), store, account=recorder)
        with pytest.raises(TryAgainError):
            stored.score(entries)
        assert total_usage(recorder.given).requests == 7
        left[0], before = 100, len(server.requests)
        scores = stored.score(entries)
        assert len(server.requests) - before == len(entries) - 3
    values = [score.value for score in scores]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_a_budget_ends_scoring_in_an_orderly_way(models: Mapping[str, Path], address: str, tmp_path: Path) -> None:
    """After the three that try the server, five more are paid for: they are finished and kept."""

    class Short(Account):
        def supply(self, work: Iterable[Any]) -> Iterator[Any]:
            return islice(work, 5)

        def close(self) -> None:
            raise BudgetError("no more")

    entries = exchanges(*(f"{number} and {number}" for number in range(20)))
    with Store(tmp_path / "store.sqlite") as store:
        stored = StoredScorer(served(address, models["llama3"]), store, account=Short())
        with pytest.raises(BudgetError, match="no more"):
            stored.score(entries)
        assert stored.look_up(entries).num_missing == 20 - 3 - 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of two domains, and two recorded answers to each."""
    folder = tmp_path_factory.mktemp("recorded")
    save_tiny(folder / "target")
    questions = [
        {
            "id": f"p{n}",
            "prompt": f"What is {n} plus 1?",
            "answers": [str(n + 1)],
            "domain": "sums" if n % 2 else "other",
        }
        for n in range(6)
    ]
    write_lines(folder / "questions.jsonl", questions)
    texts = ("{}", "It is {}, I think.")
    write_lines(
        folder / "answers.jsonl",
        [
            {"prompt_id": f"p{n}", "index": index, "response": text.format(n + 1)}
            for n in range(6)
            for index, text in enumerate(texts)
        ],
    )
    return folder


def test_parts_of_scorers_are_asked_and_accounted_for(
    models: Mapping[str, Path], address: str, folder: Path, tmp_path: Path
) -> None:
    """A gate for sums (whose wrong answers the model is not asked about) and another model for the rest."""

    def scorer(*, is_served: bool) -> dict[str, Any]:
        def model(family: str, price: float) -> dict[str, Any]:
            local = {"kind": "reward-model", "model": str(models[family])}
            remote = {"engine": "endpoint", "base_url": f"{address}/{family}", "price": {"input": price}}
            return local | (remote if is_served else {})

        parts = {"right": {"kind": "exact-match"}, "good": model("llama3", 1e6)}
        gate = {"kind": "combination", "rule": "gate", "failing_value": -9.0, "parts": parts}
        return {"kind": "by-domain", "domains": {"sums": gate}, "other": model("chatml", 0.0)}

    found = {}
    for is_served in (False, True):
        workspace = tmp_path / str(is_served)
        workspace.mkdir()
        run_scoring(folder, workspace, scorer(is_served=is_served), num_samples=2)
        with Store(workspace / "store.sqlite", read_only=True) as store:
            rows = store._read("SELECT response_id, value, detail FROM scores ORDER BY response_id, value")
            found[is_served] = [row["value"] for row in rows]
            ledger = store.ledger()
    assert found[True] == pytest.approx(found[False], abs=TOLERANCE)
    gated, other = sorted(ledger, key=lambda spent: spent.model, reverse=True)
    assert {spent.stage for spent in ledger} == {"score-sources"}
    assert [gated.model, other.model] == sorted((f"reward-model {models[n].name}" for n in models), reverse=True)
    if "chatml" in gated.model:
        gated, other = other, gated
    assert (gated.items, gated.usage.requests) == (3, 3 + 3)
    assert (other.items, other.usage.requests) == (6, 6 + 3)
    assert gated.money == pytest.approx(gated.usage.prompt_tokens)
    assert (other.money, other.usage.prompt_tokens > 0) == (0.0, True)


def test_a_plan_counts_requests_and_needs_no_server(models: Mapping[str, Path]) -> None:
    config = read(engine="endpoint", model=str(models["llama3"]), base_url="http://x", price={"input": 2.0})
    assert config.expected_usage(10, 5000.0) == Usage(10, 5000)
    assert config.money(Usage(10, 1_000_000)) == 2.0
    assert config.models() == ()
    flops = config.flops(1000.0)
    assert flops is not None
    assert not any(flops)


def test_a_missing_key_is_missing_before_anything_is_asked(
    models: Mapping[str, Path], address: str, folder: Path, tmp_path: Path
) -> None:
    remote = {"engine": "endpoint", "base_url": f"{address}/llama3", "api_key_env": "NO_SUCH_KEY"}
    scorer = {"kind": "reward-model", "model": str(models["llama3"]), **remote}
    with pytest.raises(CredentialsError, match="NO_SUCH_KEY holds no key"):
        run_scoring(folder, tmp_path, scorer)


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama3", "chatml"])
def test_scores_equal_those_of_a_real_vllm(models: Mapping[str, Path], family: str, tmp_path: Path) -> None:
    """The executable is ``vllm``, or what VLLM_EXECUTABLE names, in an environment of its own."""
    executable = shutil.which(os.environ.get("VLLM_EXECUTABLE", "vllm"))
    if not executable:
        pytest.skip("there is no vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    command = [executable, "serve", str(models[family]), "--host", "127.0.0.1", "--port", str(port), *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "vllm.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        for _ in range(200):
            assert process.poll() is None, (tmp_path / "vllm.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{address}/health")
                break
            except OSError:
                time.sleep(1)
        entries = exchanges(*CONTENTS, PLANTED)
        expected = [score.value for score in in_process(models[family], entries)]
        for protocol in ("classify", "pooling", "score"):
            scores = served(address, models[family], "", protocol=protocol).score(entries)
            left = [place for place, score in enumerate(scores) if score.detail.get("reason") is None]
            assert len(left) >= (4 if protocol == "score" else len(entries))
            assert [scores[place].value for place in left] == pytest.approx(
                [expected[place] for place in left], abs=TOLERANCE
            )
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)
