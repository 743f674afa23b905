"""Scorers on a table of real outputs, and a reward model compared with its head computed by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from sinterlm.chat import encode_conversation, encode_prompt
from sinterlm.errors import InputError
from sinterlm.models import load_tokenizer
from sinterlm.records import Message, Prompt, Response
from sinterlm.scoring import loaded_reader
from sinterlm.scoring.by_domain import ByDomainScorer
from sinterlm.scoring.combination import CombinationScorer
from sinterlm.scoring.dialogues import Reading, TooLong, Truncate, encode_dialogue
from sinterlm.scoring.exact_match import ExactMatchScorer, normalise
from sinterlm.scoring.loaded_reader import Batch, Loaded, padded_shape, split_batches
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.reward_model import RewardModelScorer
from tests.tiny import build_tokenizer, save_tiny_reward_model

CASES = json.loads((Path(__file__).parent / "exact_match_cases.json").read_text(encoding="utf-8"))


def answered(content: str, *answers: str, question: str = "What?") -> Exchange:
    prompt = Prompt("q", (Message("user", question),), answers)
    return Exchange(prompt, Response(f"r-{content}", "q", "gemma", 0, content, "stop", 1, 1))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['output']!r}-{case['answers'][0]!r}")
def test_exact_match_case(case: dict[str, Any]) -> None:
    [score] = ExactMatchScorer().score([answered(case["output"], *case["answers"])])
    assert (score.value, score.passed) == (float(case["match"]), case["match"])
    assert score.detail == {"contains": float(case["contains"])}


@given(st.text())
def test_normalised_text_is_bare_and_empty_only_for_an_empty_text(text: str) -> None:
    found = normalise(text)
    assert found == found.strip()
    assert (found == "") == (text.strip() == "")


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_a_match_contains_and_everything_matches_itself(answer: str, output: str) -> None:
    [itself] = ExactMatchScorer().score([answered(answer, answer)])
    assert (itself.value, itself.passed) == (1.0, True)
    [score] = ExactMatchScorer().score([answered(output, answer)])
    assert score.value <= score.detail["contains"]


def test_exact_match_needs_accepted_answers() -> None:
    assert ExactMatchScorer().needs_answers
    with pytest.raises(InputError, match="prompt q: no accepted answers"):
        ExactMatchScorer().score([answered("Paris", "Paris"), answered("Paris")])


# --- reward model ----------------------------------------------------------------------------------------------------

ANSWERS = ("cold", "", "five", "The capital of France is Paris, and that is a long answer to a short question.", "x")
LONG = [answered(content, question="What is the opposite of hot?") for content in ANSWERS]
MULTI_TURN = (
    Message("system", "Answer with one word."),
    Message("user", "What is the capital of France?"),
    Message("assistant", "Paris"),
    Message("user", "And the opposite of hot?"),
)
ROUNDING = {"float32": 1e-5, "bfloat16": 1e-3}
"""How much a batch may change a score."""


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_reward_model(tmp_path_factory.mktemp("reward"))


def build(
    folder: Path,
    *,
    max_length: int = 512,
    truncate: Truncate = "end",
    batch_tokens: int = 4096,
    float32_head: bool = True,
    dtype: str = "auto",
) -> RewardModelScorer:
    return RewardModelScorer(
        str(folder),
        max_length=max_length,
        truncate=truncate,
        batch_tokens=batch_tokens,
        float32_head=float32_head,
        dtype=dtype,
    )


def values(scorer: RewardModelScorer, entries: list[Exchange]) -> list[float]:
    return [score.value for score in scorer.score(entries)]


def by_hand(folder: Path, tokens: list[int]) -> float:
    """The score head on the last hidden state of the dialogue, read without other rows."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(model, LlamaForSequenceClassification)
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
        return float(hidden @ model.score.weight[0])


def dialogue(folder: Path, entry: Exchange) -> list[int]:
    messages = (*entry.prompt.messages, Message("assistant", entry.response.content))
    return encode_conversation(load_tokenizer(str(folder)), messages)


def test_reward_is_the_head_at_the_last_token(reward_model: Path) -> None:
    scores = build(reward_model).score(LONG)
    expected = [by_hand(reward_model, dialogue(reward_model, entry)) for entry in LONG]
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == len(expected)
    assert [score.response_id for score in scores] == [entry.response.id for entry in LONG]
    assert all(score.passed is None and score.detail == {} for score in scores)


def test_all_turns_of_a_prompt_are_read(reward_model: Path) -> None:
    whole, last = (
        Exchange(Prompt("q", messages), Response("r", "q", "gemma", 0, "cold", "stop", 1, 1))
        for messages in (MULTI_TURN, MULTI_TURN[-1:])
    )
    ids = dialogue(reward_model, whole)
    assert ids.count(load_tokenizer(str(reward_model)).eos_token_id) == 5
    found = values(build(reward_model), [whole, last])
    assert found == pytest.approx([by_hand(reward_model, dialogue(reward_model, entry)) for entry in (whole, last)])
    assert abs(found[0] - found[1]) > 1e-3


@pytest.mark.parametrize("dtype", ROUNDING)
def test_neighbours_in_a_batch_change_no_score(tmp_path: Path, dtype: str) -> None:
    """Wide enough that bfloat16 rounds differently if a kernel sums in another order."""
    folder = save_tiny_reward_model(tmp_path, hidden_size=256, num_layers=4)
    entries = [answered("word " * number, question="What? " * (number % 7)) for number in range(24)]
    together = values(build(folder, dtype=dtype), entries)
    assert max(together) - min(together) > 0.1
    for batch_tokens in (1, 100, 300):
        found = values(build(folder, dtype=dtype, batch_tokens=batch_tokens), entries)
        assert found == pytest.approx(together, abs=ROUNDING[dtype])
    scorer = build(folder, dtype=dtype)
    alone = [value for entry in entries for value in values(scorer, [entry])]
    assert alone == pytest.approx(together, abs=ROUNDING[dtype])


def test_head_is_read_and_computed_in_float32(tmp_path: Path) -> None:
    """A head of 1 + 2^-12 is 1 in bfloat16; so is a sum of its outputs rounded to 8 bits."""
    folder = save_tiny_reward_model(tmp_path)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"] = torch.full_like(weights["score.weight"], 1 + 2**-12)
    save_file(weights, file, metadata={"format": "pt"})
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert isinstance(model, LlamaForSequenceClassification)
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([dialogue(folder, LONG[3])])).last_hidden_state[0, -1]

    [fine] = values(build(folder, dtype="bfloat16"), LONG[3:4])
    [coarse] = values(build(folder, dtype="bfloat16", float32_head=False), LONG[3:4])

    assert fine == pytest.approx(float(hidden.double().sum()) * (1 + 2**-12), rel=1e-5)
    assert coarse == float(torch.tensor(coarse).bfloat16())
    assert fine != float(torch.tensor(fine).bfloat16())


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_model_without_a_padding_token_is_read_at_the_last_token(tmp_path: Path, family: str) -> None:
    """Transformers reads such a model at the last token of a row only, even if that is an eos."""
    folder = save_tiny_reward_model(tmp_path, family=family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    expected = [by_hand(folder, dialogue(folder, entry)) for entry in LONG]
    assert values(build(folder), LONG) == pytest.approx(expected, abs=1e-5)


def test_an_answer_that_ends_the_dialogue_is_read_to_its_last_token(tmp_path: Path) -> None:
    """The template writes nothing after an answer, and the tokenizer has no padding token; ``!`` is token 0."""
    backend = Tokenizer(BPE({token: number for number, token in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_labels = 1
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    entry = answered("cold!")
    assert dialogue(tmp_path, entry)[-1] == 0
    assert values(build(tmp_path), [entry]) == pytest.approx([by_hand(tmp_path, dialogue(tmp_path, entry))], abs=1e-5)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_reward_model(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match=r"its tokenizer has no chat template, by which .* as chat_template\.jinja"):
        build(folder).score(LONG)


def test_nothing_is_read_beyond_the_models_positions(tmp_path: Path) -> None:
    """``max_length`` is 4,096, but the model has 512 positions."""
    folder = save_tiny_reward_model(tmp_path)
    entry = answered("word " * 800)
    whole = dialogue(folder, entry)
    assert len(whole) > 512
    [score] = build(folder, max_length=4096).score([entry])
    assert score.detail == {"truncated": True}
    assert score.value == pytest.approx(by_hand(folder, whole[:511] + whole[-1:]), abs=1e-5)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_what_is_no_finite_number_is_no_score(reward_model: Path, number: float) -> None:
    """An infinite score would always be the best."""

    class Overflowing(RewardModelScorer):
        def _read(self, loaded: Loaded, batch: Batch) -> list[Reading]:
            return [Reading(number, {"objectives": [number]}) for _ in batch.dialogues]

    scorer = Overflowing(str(reward_model), max_length=512, truncate="end", batch_tokens=4096, float32_head=True)
    [score] = scorer.score(LONG[:1])
    assert math.isnan(score.value)
    assert score.detail == {"reason": "no-score", "problem": "the score is no number"}


@pytest.mark.parametrize("truncate", ["end", "middle"])
@pytest.mark.parametrize("family", ["llama3", "gemma", "chatml"])
def test_too_long_loses_the_end_or_the_middle_of_the_answer_only(
    tmp_path: Path, family: str, truncate: Truncate
) -> None:
    folder = save_tiny_reward_model(tmp_path, family=family)
    entry = LONG[3]
    whole = dialogue(folder, entry)
    head = len(encode_prompt(build_tokenizer(family), entry.prompt.messages))
    tail = 1 if family == "llama3" else 2  # end of turn; the others write a newline after it
    answer = whole[head:-tail]
    kept = (
        answer[:-5] if truncate == "end" else answer[: -(-(len(answer) - 5) // 2)] + answer[-((len(answer) - 5) // 2) :]
    )
    assert len(kept) == len(answer) - 5

    cut, fitting = build(folder, max_length=len(whole) - 5, truncate=truncate).score([entry, LONG[0]])

    assert cut.value == pytest.approx(by_hand(folder, whole[:head] + kept + whole[-tail:]), abs=1e-5)
    assert (dict(cut.detail), dict(fitting.detail)) == ({"truncated": True}, {})
    assert build(folder, max_length=len(whole)).score([entry])[0].detail == {}


@given(
    st.sampled_from(["chatml", "llama3", "gemma", "mistral"]),
    st.text(max_size=60),
    st.integers(min_value=0, max_value=60),
    st.sampled_from(["end", "middle"]),
)
def test_what_the_template_writes_is_never_cut(family: str, content: str, excess: int, truncate: Truncate) -> None:
    tokenizer = build_tokenizer(family)
    entry = answered(content)
    prompt = encode_prompt(tokenizer, entry.prompt.messages)
    whole = encode_conversation(tokenizer, (*entry.prompt.messages, Message("assistant", content)))
    max_length = len(whole) - excess
    found = encode_dialogue(tokenizer, entry, max_length=max_length, truncate=truncate)
    if isinstance(found, TooLong):
        assert found.num_tokens >= max_length
        return
    assert len(found.tokens) == min(max_length, len(whole))
    assert found.is_truncated == (excess > 0)
    # White space at the start of an answer may form one token with the end of the header.
    shared = next(
        (place for place, pair in enumerate(zip(prompt, whole, strict=False)) if len(set(pair)) > 1), len(prompt)
    )
    assert found.tokens[:shared] == whole[:shared]
    assert found.tokens[-1] == whole[-1]
    assert Counter(found.tokens) <= Counter(whole)


def test_prompt_that_leaves_no_room_has_no_score_and_says_why(reward_model: Path) -> None:
    long = answered("cold", question="What is the opposite of hot? " * 20)
    refused, scored = build(reward_model, max_length=60).score([long, LONG[0]])
    assert math.isnan(refused.value)
    assert refused.detail["reason"] == "prompt-too-long"
    empty = answered("", question=long.prompt.messages[0].content)
    num_tokens = len(dialogue(reward_model, empty))
    assert refused.detail["problem"].startswith(f"{num_tokens} tokens without an answer, of 60 that the model")
    assert scored.value == pytest.approx(by_hand(reward_model, dialogue(reward_model, LONG[0])), abs=1e-5)


@given(st.integers(min_value=1, max_value=5000), st.integers(min_value=0, max_value=5000))
def test_a_dialogue_is_padded_by_an_eighth_at_most_and_never_beyond_the_limit(length: int, room: int) -> None:
    width, is_padded = padded_shape(length, length + room)
    assert length + is_padded <= width <= min(length + max(8, length // 8), length + room)
    assert is_padded or width == length


@given(st.lists(st.integers(min_value=1, max_value=600), max_size=50), st.integers(min_value=1, max_value=5000))
def test_batches_hold_every_dialogue_once_in_one_shape_within_the_budget(lengths: list[int], batch_tokens: int) -> None:
    batches = list(split_batches(dict(enumerate(lengths)), batch_tokens=batch_tokens, max_length=512))
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        [(width, is_padded)] = {padded_shape(lengths[number], 512) for number in batch}
        assert len(batch) == 1 or len(batch) * width <= batch_tokens
        assert all((lengths[number] < width) == is_padded for number in batch)


def test_model_with_two_outputs_is_refused(tmp_path: Path, reward_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=2, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path)
    build_tokenizer("llama3").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="2 outputs; expected a sequence-classification model with one"):
        build(tmp_path).score(LONG)


def test_reward_identity(tmp_path: Path, reward_model: Path) -> None:
    base = build(reward_model).identity
    assert base == build(reward_model, batch_tokens=1).identity
    assert base != build(reward_model, max_length=100).identity
    assert base != build(reward_model, truncate="middle").identity
    assert base != build(reward_model, float32_head=False).identity
    assert base != build(reward_model, dtype="bfloat16").identity
    assert base != build(save_tiny_reward_model(tmp_path, seed=1)).identity
    assert not build(reward_model).needs_answers


def test_files_are_looked_up_once_however_many_answers_there_are(
    reward_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub name is looked up on the hub; combinations and domains name themselves in every score."""
    looked_up = []

    def fingerprint(name: str) -> str:
        looked_up.append(name)
        return "weights"

    monkeypatch.setattr(loaded_reader, "fingerprint", fingerprint)
    scorer = build(reward_model)
    both = CombinationScorer("weighted-sum", {"one": scorer, "two": ExactMatchScorer()})
    entries = [answered(content, "cold") for content in ANSWERS]
    for asked in (entries[:2], entries[2:]):
        ByDomainScorer({"": both}, scorer).score(asked)
        scorer.score(asked)
    assert looked_up == [str(reward_model)]


def test_closed_scorer_loads_again(reward_model: Path) -> None:
    scorer = build(reward_model)
    first = values(scorer, LONG)
    scorer.close()
    assert values(scorer, LONG) == first
