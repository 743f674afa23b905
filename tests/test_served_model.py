"""What a server is asked, and how its replies are read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sinterlm.chat import FewShot
from sinterlm.records import Message, Prompt, SamplingSettings, Usage
from sinterlm.sampling.served_model import Requests, check_reply, seed_of, share_out
from sinterlm.template import TemplateRefusal

PROMPT = Prompt("sum", (Message("user", "What is 2 plus 3?"),))
SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3)
SHOTS = FewShot("Q: {question}\nA: {answer}\n\n", (("What is 1 plus 1?", "2"),))


def requests(**changes: Any) -> Requests:
    how: dict[str, Any] = {
        "few_shot": None,
        "system": None,
        "settings": SETTINGS,
        "extra_body": {},
        "reasoning": "apart",
    }
    return Requests("m", **(how | changes))


def reply(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": list(choices), "model": "m-2026", **more}


def said(content: str | None, finish_reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}


def read(choice: dict[str, Any], **changes: Any) -> tuple[str, str, str, str]:
    (generation,) = requests(**changes).read(reply(choice), PROMPT, [0]).generations
    return generation.content, generation.reasoning, generation.finish_reason, generation.problem


def test_a_request_holds_messages_and_sampling_settings() -> None:
    body = requests(system="Be brief.", extra_body={"top_k": 20}).body(PROMPT, [2, 4])
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2 plus 3?"},
        ],
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": seed_of(3, PROMPT.content_hash, 2),
        "max_tokens": 64,
        "max_completion_tokens": 64,
        "n": 2,
        "top_k": 20,
    }


def test_a_base_model_is_asked_by_a_text() -> None:
    body = requests(few_shot=SHOTS).body(PROMPT, [0])
    assert body["prompt"] == "Q: What is 1 plus 1?\nA: 2\n\nQ: What is 2 plus 3?\nA:"
    assert body["stop"] == ["\n"]
    assert body.keys() == {"model", "prompt", "stop", "temperature", "top_p", "seed", "max_tokens"}
    assert requests(few_shot=SHOTS).path == "/completions"
    with pytest.raises(TemplateRefusal, match="roles user, assistant"):
        requests(few_shot=SHOTS).body(Prompt("two", (*PROMPT.messages, Message("assistant", "5"))), [0])


def test_a_request_leaves_out_what_the_server_does_not_take() -> None:
    asking = requests(system="Be brief.", settings=SamplingSettings(repetition_penalty=1.2))
    body = asking.body(PROMPT, [0], without=["seed", "max_tokens"], limit=7, has_system_role=False)
    assert body["messages"] == [{"role": "user", "content": "Be brief.\n\nWhat is 2 plus 3?"}]
    assert (body["max_completion_tokens"], body["repetition_penalty"]) == (7, 1.2)
    assert body.keys().isdisjoint({"seed", "max_tokens", "n"})


def test_every_answer_has_its_own_seed() -> None:
    keys = [(seed, text, index) for seed in (0, 1) for text in "ab" for index in range(3)]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (said(" 5\n"), ("5", "", "stop", "")),
        (said("5", None), ("5", "", "stop", "")),
        (said("5", "length"), ("5", "", "length", "")),
        (said("5", "model_length"), ("5", "", "length", "")),
        (said("5", reasoning_content="2 and 3."), ("5", "2 and 3.", "stop", "")),
        (said("5", reasoning="2 and 3.", reasoning_content="2 and 3."), ("5", "2 and 3.", "stop", "")),
        (said("<think>\n2 and 3.\n</think>\n\n5"), ("5", "2 and 3.", "stop", "")),
        (said(None, "length", reasoning="2 and"), ("", "2 and", "length", "")),
        (said("<think>2 and", "length"), ("", "2 and", "length", "")),
        (said(None, "tool_calls", tool_calls=[{}]), ("", "", "stop", "")),
        (said("4", "content_filter"), ("", "", "prompt-refused", "the server's content filter has blocked the answer")),
        (said(None, refusal="No."), ("", "", "prompt-refused", "the model refused: No.")),
        (
            said([{"type": "thinking", "thinking": [{"type": "text", "text": "2"}]}, {"type": "text", "text": "5"}]),  # type: ignore[arg-type]
            ("5", "2", "stop", ""),
        ),
    ],
)
def test_a_message_is_read(choice: dict[str, Any], expected: tuple[str, str, str, str]) -> None:
    assert read(choice) == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (said("5", reasoning_content="2 and 3."), "<think>\n2 and 3.\n</think>\n\n5"),
        (said("<think>2 and 3.</think>5"), "<think>2 and 3.</think>5"),
        (said("<think>2 and 3.</think>5", reasoning="2 and 3."), "<think>2 and 3.</think>5"),
        (said("5"), "5"),
    ],
)
def test_reasoning_may_be_part_of_the_answer(choice: dict[str, Any], expected: str) -> None:
    assert read(choice, reasoning="in-answer") == (expected, "", "stop", "")


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        (" 5", "stop", ("5", "", "stop", "")),
        (" 5\nQ: And", "length", ("5", "", "stop", "")),
        (" 5 and", "length", ("5 and", "", "length", "")),
        (" <think>5</think>", "stop", ("<think>5</think>", "", "stop", "")),
    ],
)
def test_a_completion_ends_at_the_stop_text(text: str, finish_reason: str, expected: tuple[str, ...]) -> None:
    assert read({"text": text, "finish_reason": finish_reason}, few_shot=SHOTS) == expected


def test_tokens_are_counted_as_the_server_says() -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 16}}
    found = requests().read(reply(said("five"), said("12345678"), usage=usage), PROMPT, [3, 1])
    assert found.usage == Usage(0, 20, 16, 9)
    assert [(one.index, one.num_prompt_tokens, one.num_tokens) for one in found.generations] == [(3, 20, 3), (1, 20, 6)]
    assert requests().read(reply(said("5"), usage=None), PROMPT, [0]).usage == Usage()


def test_tokens_of_further_answers_are_estimated_where_the_server_counts_the_first_only() -> None:
    """llama.cpp says how many tokens its first answer has, also in `usage`."""
    usage = {"prompt_tokens": 20, "completion_tokens": 4}
    value = reply(said("12345678"), said("1234"), usage=usage, timings={"predicted_n": 4})
    found = requests().read(value, PROMPT, [0, 1])
    assert found.usage == Usage(0, 20, 0, 6)
    assert [one.num_tokens for one in found.generations] == [4, 2]
    few = requests(settings=SamplingSettings(max_new_tokens=2)).read(value, PROMPT, [0, 1])
    assert few.usage.new_tokens == 4, "the limit holds for every answer"
    assert requests().read(value | {"timings": {"predicted_n": 3}}, PROMPT, [0, 1]).usage.new_tokens == 4


def test_more_answers_than_asked_for_are_left() -> None:
    assert len(requests().read(reply(said("5"), said("6")), PROMPT, [0]).generations) == 1


@pytest.mark.parametrize(
    ("model", "fingerprint", "expected"),
    [("m-2026", "fp_1", "m-2026, fp_1"), ("/home/me/m.gguf", None, "m.gguf"), (None, None, "")],
)
def test_the_server_names_the_model(model: str | None, fingerprint: str | None, expected: str) -> None:
    value = reply(said("5")) | {"model": model, "system_fingerprint": fingerprint}
    assert requests().read(value, PROMPT, [0]).served_by == expected


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"choices": []},
        {"choices": [{"finish_reason": "stop"}]},
        reply(said("5", "error")),
        reply(said("5", "abort")),
        reply(said("5") | {"error": {"code": 502}}),
        reply(said("5"), said("5", "error")),
        [said("5")],
        "5",
    ],
)
def test_what_is_no_reply_is_told_apart(value: Any) -> None:
    with pytest.raises(ValidationError):
        check_reply(value)


def test_shares_are_whole_and_sum_up() -> None:
    assert share_out(7, [0, 0]) == [4, 3]
    assert share_out(100, [1, 1, 1]) == [33, 34, 33]
    assert sum(share_out(12345, [3, 1, 4, 1, 5])) == 12345
