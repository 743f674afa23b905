"""Fields of messages besides role and content: their text is trained, or they are refused by name, file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinterlm.errors import InputError
from sinterlm.formats import read_prompts, read_training_file
from sinterlm.formats.recorded import read_recorded

ASK = {"role": "user", "content": "Which river is the longest?"}
ANSWER = {"role": "assistant", "content": "The Nile."}
THOUGHT = "<think>\nAfrica, so the longest one.\n</think>\n\nThe Nile."


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_of(path: Path) -> str:
    (row,) = read_training_file(path, ("chosen",))
    return row.responses[0].content


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_put_before_the_answer(name: str, tmp_path: Path) -> None:
    said = {**ANSWER, name: "Africa, so the longest one.\n"}
    assert answer_of(write(tmp_path, {"messages": [ASK, said]})) == THOUGHT
    assert answer_of(write(tmp_path, {"prompt": [ASK], "completion": [said]})) == THOUGHT
    (row,) = read_training_file(
        write(tmp_path, {"prompt": [ASK], "chosen": [said], "rejected": [ANSWER]}), ("chosen", "rejected")
    )
    assert [response.content for response in row.responses] == [THOUGHT, "The Nile."]
    (row,) = read_training_file(write(tmp_path, {"messages": [ASK, said, ASK, ANSWER]}), ("chosen",))
    assert row.messages[1].content == THOUGHT
    responses = [{"content": "The Nile.", "role": "chosen", name: "Africa, so the longest one."}]
    assert answer_of(write(tmp_path, {"prompt": "Which?", "responses": responses})) == THOUGHT
    recorded = {"prompt_id": "p", "response": "The Nile.", name: "Africa, so the longest one."}
    assert read_recorded(write(tmp_path, recorded))[0].content == THOUGHT


def test_the_last_answer_alone_is_trained(tmp_path: Path) -> None:
    turns = [ASK, {**ANSWER, "weight": 0}, ASK, {**ANSWER, "weight": 1}]
    (row,) = read_training_file(write(tmp_path, {"messages": turns}), ("chosen",))
    assert ([message.role for message in row.messages], len(row.responses)) == (["user", "assistant", "user"], 1)
    (prompt,) = read_prompts(write(tmp_path, {"prompt": [ASK, {**ANSWER, "weight": 1}, ASK]}))
    assert len(prompt.messages) == 3


def test_fields_that_say_nothing_are_no_trouble(tmp_path: Path) -> None:
    empty: dict[str, Any] = {"tool_calls": [], "name": None, "reasoning_content": "", "weight": 1, "info": {"a": None}}
    row = {"messages": [{**ASK, "weight": 0}, {**ANSWER, **empty}], "tools": "[]", "documents": None}
    assert answer_of(write(tmp_path, row)) == "The Nile."
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.Table.from_pylist([{"messages": [{**ASK, "tool_calls": None}, {**ANSWER, "tool_calls": None}]}]), path
    )
    assert answer_of(path) == "The Nile."


CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASK, {**ANSWER, "tool_calls": CALL}]}, r"`messages\[1\].tool_calls` is .*not read"),
        ({"messages": [ASK, {**ANSWER, "content": None, "tool_calls": CALL}]}, r"`messages\[1\].tool_calls`"),
        ({"messages": [ASK, {**ANSWER, "train": False}]}, r"`messages\[1\].train` is false"),
        ({"messages": [ASK, {**ANSWER, "function_call": {"name": "f"}}]}, r"`messages\[1\].function_call`"),
        ({"messages": [{**ASK, "name": "Ann"}, ANSWER]}, r"`messages\[0\].name` is \"Ann\", which is not read"),
        ({"messages": [{**ASK, "tool_call_id": "1"}, ANSWER]}, "tool_call_id"),
        ({"messages": [{**ASK, "reasoning_content": "Hm."}, ANSWER]}, "remove reasoning_content"),
        ({"messages": [ASK, {**ANSWER, "loss": 0.5}]}, r"`messages\[1\].loss`"),
        ({"messages": [ASK, {**ANSWER, "weight": 0}]}, r"`messages\[1\].weight` is 0.*leave the row out"),
        ({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, "expected 0 or 1"),
        ({"messages": [ASK, {**ANSWER, "weight": 1}, ASK, ANSWER]}, r"`messages\[1\].weight` is 1.*only the last"),
        (
            {"prompt": [ASK], "chosen": [ASK, {**ANSWER, "weight": 1}, ASK, ANSWER], "rejected": [ANSWER]},
            r"`chosen\[1\].weight` is 1",
        ),
        ({"messages": [ASK, {**ANSWER, "thinking": "a", "reasoning": "b"}]}, "several thoughts"),
        ({"messages": [ASK, {"role": "assistant", "content": THOUGHT, "thinking": "a"}]}, "several thoughts"),
        ({"messages": [ASK, ANSWER], "tools": CALL}, "`tools` is .*a conversation without tools"),
        ({"messages": [ASK, ANSWER], "tools": json.dumps(CALL)}, "`tools`"),
        ({"messages": [ASK, ANSWER], "chat_template_kwargs": {"enable_thinking": False}}, "`chat_template_kwargs`"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}]},
            r"`conversations\[1\].weight` is 0",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[1]"},
            "`tools`",
        ),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name_with_the_line(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"messages": [ASK, ANSWER]}, row)
    with pytest.raises(InputError, match=message) as raised:
        read_training_file(path, ("chosen",))
    assert str(raised.value).startswith(f"{path}, line 2")


def test_prompts_are_held_to_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1: `prompt\[0\].name`"):
        read_prompts(write(tmp_path, {"prompt": [{**ASK, "name": "Ann"}]}))
    with pytest.raises(InputError, match="line 1: `tools`"):
        read_prompts(write(tmp_path, {"prompt": [ASK], "tools": CALL}))
