"""Scorers against a table of real outputs, and a reward model against its own head computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from sinterlm.chat import encode_conversation, encode_prompt
from sinterlm.errors import InputError
from sinterlm.models import load_tokenizer
from sinterlm.records import Message, Prompt, Response
from sinterlm.scoring.exact_match import ExactMatchScorer, normalise
from sinterlm.scoring.protocol import Answered
from sinterlm.scoring.reward_model import RewardModelScorer
from tests.tiny import build_tokenizer, save_tiny_reward_model

CASES = json.loads((Path(__file__).parent / "exact_match_cases.json").read_text(encoding="utf-8"))


def answered(content: str, *answers: str, question: str = "What?") -> Answered:
    prompt = Prompt("q", (Message("user", question),), answers)
    return Answered(prompt, Response(f"r-{content}", "q", "gemma", 0, content, "stop", 1, 1))


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


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_reward_model(tmp_path_factory.mktemp("reward"))


def build(folder: Path, *, max_length: int = 512, batch_size: int = 8) -> RewardModelScorer:
    return RewardModelScorer(str(folder), max_length=max_length, batch_size=batch_size)


def values(scorer: RewardModelScorer, entries: list[Answered]) -> list[float]:
    return [score.value for score in scorer.score(entries)]


def by_hand(folder: Path, tokens: list[int]) -> float:
    """The score head on the last hidden state of the dialogue, read alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(model, LlamaForSequenceClassification)
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
        return float(hidden @ model.score.weight[0])


def dialogue(folder: Path, entry: Answered) -> list[int]:
    messages = (*entry.prompt.messages, Message("assistant", entry.response.content))
    return encode_conversation(load_tokenizer(str(folder)), messages)


def test_reward_is_the_head_at_the_last_token(reward_model: Path) -> None:
    scores = build(reward_model).score(LONG)
    expected = [by_hand(reward_model, dialogue(reward_model, entry)) for entry in LONG]
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == len(expected)
    assert [score.response_id for score in scores] == [entry.response.id for entry in LONG]
    assert all(score.passed is None and score.detail == {} for score in scores)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_changes_no_score(reward_model: Path, batch_size: int) -> None:
    expected = values(build(reward_model), LONG)
    assert values(build(reward_model, batch_size=batch_size), LONG) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
def test_model_without_a_padding_token_is_read_at_the_last_token(tmp_path: Path, family: str) -> None:
    """Transformers reads such a model at the last token of a row alone, also where that is an eos."""
    folder = save_tiny_reward_model(tmp_path, family=family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    expected = [by_hand(folder, dialogue(folder, entry)) for entry in LONG]
    assert values(build(folder), LONG) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["llama3", "gemma", "chatml"])
def test_too_long_loses_the_end_of_the_answer_only(tmp_path: Path, family: str) -> None:
    folder = save_tiny_reward_model(tmp_path, family=family)
    tokenizer = build_tokenizer(family)
    entry = LONG[3]
    whole = dialogue(folder, entry)
    tail = whole[-1:] if family == "llama3" else whole[-2:]  # end of turn; the others write a newline behind it
    limit = len(whole) - 5
    head = whole[: limit - len(tail)]
    assert len(head) > len(encode_prompt(tokenizer, entry.prompt.messages))

    cut, fitting = build(folder, max_length=limit).score([entry, LONG[0]])

    assert cut.value == pytest.approx(by_hand(folder, head + tail), abs=1e-5)
    assert (dict(cut.detail), dict(fitting.detail)) == ({"truncated": True}, {})
    assert build(folder, max_length=len(whole)).score([entry])[0].detail == {}


def test_prompt_that_leaves_no_room_is_named(reward_model: Path) -> None:
    with pytest.raises(InputError, match=r"prompt q: .* raise the scorer's max_length"):
        build(reward_model, max_length=10).score(LONG)


def test_model_with_two_outputs_is_refused(tmp_path: Path, reward_model: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reward_model, num_labels=2, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path)
    build_tokenizer("llama3").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="2 outputs; expected a sequence-classification model with one"):
        build(tmp_path).score(LONG)


def test_reward_identity(tmp_path: Path, reward_model: Path) -> None:
    base = build(reward_model).identity
    assert base == build(reward_model, batch_size=1).identity
    assert base != build(reward_model, max_length=100).identity
    assert base != build(save_tiny_reward_model(tmp_path, seed=1)).identity
    assert not build(reward_model).needs_answers


def test_closed_scorer_loads_again(reward_model: Path) -> None:
    scorer = build(reward_model)
    first = values(scorer, LONG)
    scorer.close()
    assert values(scorer, LONG) == first
