"""Reading and writing prompts, rows and recorded answers, with writes that are whole or absent."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinterlm.errors import InputError, TryAgainError
from sinterlm.files import atomic_write
from sinterlm.formats import (
    RecordedAnswer,
    parse_rows,
    read_prompts,
    read_recorded,
    read_rows,
    read_scores,
    read_training_file,
    write_rows,
)
from sinterlm.formats.pairs import CHOSEN
from sinterlm.formats.questions import read_questions
from sinterlm.formats.row_formats import FORMATS
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.records import Message, Prompt, Role, RowResponse, TrainingRow

SFT: tuple[Role, ...] = ("chosen",)
PAIR: tuple[Role, ...] = ("chosen", "rejected")
WRPO: tuple[Role, ...] = ("chosen_source", "chosen_target", "rejected")

USER = {"role": "user", "content": "Capital of France?"}
ASKED = (Message("user", "Capital of France?"),)
Write = Callable[..., Path]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(params=["jsonl", "parquet"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes records to a file of either kind."""

    def write_records(*records: dict[str, Any]) -> Path:
        path = tmp_path / f"records.{request.param}"
        if request.param == "parquet":
            keys = dict.fromkeys(key for record in records for key in record)
            pq.write_table(pa.table({key: [record.get(key) for record in records] for key in keys}), path)
        else:
            path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        return path

    return write_records


def lines(path: Path, *texts: str) -> Path:
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


class TestPrompts:
    def test_both_shapes_and_optional_keys(self, write: Write) -> None:
        system = {"role": "system", "content": "Be brief."}
        path = write(
            {"id": "a", "prompt": "Capital of France?", "answers": ["Paris", "paris"], "domain": "capitals"},
            {"id": "b", "messages": [system, USER]},
        )
        assert read_prompts(path) == [
            Prompt("a", ASKED, ("Paris", "paris"), "capitals"),
            Prompt("b", (Message("system", "Be brief."), *ASKED)),
        ]

    def test_prompt_may_be_messages_and_answers_one_text(self, write: Write) -> None:
        path = write({"id": "a", "prompt": [USER], "answers": "Paris"})
        assert read_prompts(path) == [Prompt("a", ASKED, ("Paris",))]

    def test_without_id_the_content_names_the_prompt(self, write: Write) -> None:
        (prompt,) = read_prompts(write({"prompt": "Capital of France?", "answers": ["Paris"]}))
        assert prompt.id == prompt.content_hash == Prompt("x", ASKED).content_hash

    def test_the_same_line_twice_counts_once(self, write: Write) -> None:
        line = {"id": "a", "prompt": "Capital of France?"}
        assert len(read_prompts(write(line, {"id": "b", "prompt": "Other?"}, line))) == 2

    @pytest.mark.parametrize("other", [{"prompt": "Other?"}, {"answers": ["Rome"]}, {"domain": "cities"}])
    def test_one_id_with_two_contents_names_both_lines(self, write: Write, other: dict[str, Any]) -> None:
        line = {"id": "a", "prompt": "Capital?", "answers": ["Paris"], "domain": "capitals"}
        with pytest.raises(InputError, match=r"(line|row) 2: the id 'a' is already used .*(line|row) 1\)"):
            read_prompts(write(line, {**line, **other}))

    def test_blank_lines_and_a_byte_order_mark_do_no_harm(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "p.jsonl", '\ufeff{"id": 7, "prompt": "Wie heißt die Straße?"}', "", "  ")
        assert read_prompts(path) == [Prompt("7", (Message("user", "Wie heißt die Straße?"),))]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{bad", r"p\.jsonl, line 2: not JSON .*one JSON object in each line"),
            ("[1]", r"line 2: \[1\]; expected one JSON object"),
            ('{"id": "x"}', "line 2: `prompt` is missing; expected text or a list of messages"),
            ('{"prompt": 5}', "line 2: `prompt` is 5; expected text or a list of messages"),
            ('{"prompt": []}', r"line 2: `prompt` is \[\]; expected"),
            ('{"prompt": " "}', "line 2: the last message of `prompt` is empty; expected a message of the user"),
            (
                '{"messages": [{"role": "bot", "content": "x"}]}',
                r"`messages\[0\]\.role` is \"bot\"; expected system or user",
            ),
            ('{"messages": [{"role": "user"}]}', r"`messages\[0\]\.content` is missing; expected text"),
            ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', "'assistant'"),
            ('{"prompt": "a", "answers": [1]}', r"`answers\[0\]` is 1; expected text"),
            ('{"prompt": "a", "id": true}', "`id` is true; expected text or a whole number"),
            ('{"prompt": "a", "domain": 3}', "`domain` is 3; expected text"),
            (
                r'{"prompt": "a \ud83d b"}',
                r"line 2: \\ud83d is half of a surrogate pair; expected its other half beside",
            ),
            (r'{"prompt": "a", "\uDE00": 1}', r"line 2: \\ude00 is half of a surrogate pair"),
            (
                f'{{"prompt": "a", "id": {"9" * 5_000}}}',
                "line 2: a number with too many digits; expected one JSON object",
            ),
            ("[" * 100_000, "line 2: nested too deeply; expected one JSON object in each line"),
        ],
    )
    def test_a_line_of_another_shape_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        path = lines(tmp_path / "p.jsonl", '{"prompt": "good"}', text)
        with pytest.raises(InputError, match=message):
            read_prompts(path)

    def test_all_that_is_wrong_with_a_line_is_told_with_the_nearest_key(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "p.jsonl", '{"promt": "a", "id": [], "answers": ["b", 1]}')
        with pytest.raises(InputError) as raised:
            read_prompts(path)
        assert str(raised.value).splitlines() == [
            f"{path}, line 1: `id` is []; expected text or a whole number",
            f"{path}, line 1: `prompt` is missing; expected text or a list of messages; did you mean `promt`?",
            f"{path}, line 1: `answers[1]` is 1; expected text",
        ]

    def test_a_whole_surrogate_pair_is_a_character(self, tmp_path: Path) -> None:
        (prompt,) = read_prompts(lines(tmp_path / "p.jsonl", r'{"prompt": "What is \ud83d\ude00?"}'))
        assert prompt.messages == (Message("user", "What is 😀?"),)

    def test_at_no_depth_of_nesting_is_there_another_error(self, tmp_path: Path) -> None:
        """A value that can be read cannot always be displayed."""
        for depth in range(100, 1_000, 2):
            path = lines(tmp_path / "p.jsonl", f'{{"prompt": {"[" * depth}{"]" * depth}}}')
            with pytest.raises(InputError, match=r"p\.jsonl, line 1"):
                read_prompts(path)

    def test_parquet_text_that_is_none(self, tmp_path: Path) -> None:
        broken = pa.array([b"\xff"]).view(pa.string())
        pq.write_table(pa.table({"prompt": broken}), tmp_path / "p.parquet")
        with pytest.raises(InputError, match=r"p\.parquet, after row 0: text that is not UTF-8"):
            read_prompts(tmp_path / "p.parquet")

    def test_an_empty_a_missing_and_a_broken_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"p\.jsonl: there is no prompt in it"):
            read_prompts(lines(tmp_path / "p.jsonl", ""))
        with pytest.raises(InputError, match=r"none\.jsonl: no such file; expected a file of JSON Lines"):
            read_prompts(tmp_path / "none.jsonl")
        with pytest.raises(InputError, match="is a folder; expected a file of JSON Lines, JSON or Parquet"):
            read_prompts(tmp_path)
        with pytest.raises(InputError, match=r"p\.parquet: not a whole Parquet file"):
            read_prompts(lines(tmp_path / "p.parquet", "PAR1 and no more"))
        (tmp_path / "latin.jsonl").write_bytes('{"prompt": "Straße"}'.encode("latin-1"))
        with pytest.raises(InputError, match=r"latin\.jsonl, line 1: not UTF-8"):
            read_prompts(tmp_path / "latin.jsonl")


def responses_of(row: TrainingRow) -> dict[Role | None, str]:
    return {response.role: response.content for response in row.responses}


class TestTrainingFile:
    def test_preference_pair(self, write: Write) -> None:
        path = write(
            {
                "id": "a",
                "prompt": [USER],
                "chosen": [said("Paris")],
                "rejected": [said("Rome")],
                "weight": 2,
                "source": "gemma",
                "score_chosen": 1,
                "score_rejected": 0.25,
            }
        )
        assert read_training_file(path, PAIR) == [
            TrainingRow(
                "a",
                ASKED,
                (
                    RowResponse("Paris", "chosen", "gemma", score=1.0),
                    RowResponse("Rome", "rejected", "gemma", score=0.25),
                ),
                weight=2.0,
            )
        ]

    @pytest.mark.parametrize(
        "record",
        [
            {"prompt": "Capital of France?", "chosen": "Paris", "rejected": "Rome"},
            {"prompt": "Capital of France?", "chosen": [USER, said("Paris")], "rejected": [USER, said("Rome")]},
            {"chosen": [USER, said("Paris")], "rejected": [USER, said("Rome")]},
        ],
        ids=["plain text", "with the prompt repeated", "with the prompt implied"],
    )
    def test_other_ways_to_write_a_pair(self, write: Write, record: dict[str, Any]) -> None:
        (row,) = read_training_file(write(record), PAIR)
        assert row.messages == ASKED
        assert responses_of(row) == {"chosen": "Paris", "rejected": "Rome"}
        assert row.prompt_id == Prompt("", ASKED).content_hash

    @pytest.mark.parametrize(
        "record",
        [
            {
                "prompt": [USER],
                "chosen_source": [said("Paris!")],
                "chosen_target": [said("Paris")],
                "rejected": [said("Rome")],
            },
            {"prompt": USER, "chosen": [said("Paris!"), said("Paris")], "rejected": [said("Rome")]},
        ],
        ids=["design", "authors"],
    )
    def test_wrpo_in_both_shapes(self, write: Write, record: dict[str, Any]) -> None:
        (row,) = read_training_file(write(record), WRPO)
        assert row.messages == ASKED
        assert responses_of(row) == {"chosen_source": "Paris!", "chosen_target": "Paris", "rejected": "Rome"}

    def test_wrpo_may_have_a_rejected_source(self, write: Write) -> None:
        record = {"prompt": "q", "chosen_source": "a", "chosen_target": "b", "rejected": "c", "rejected_source": "d"}
        (row,) = read_training_file(write(record), WRPO)
        assert row.with_role("rejected_source").content == "d"

    @pytest.mark.parametrize(
        "record",
        [
            {"prompt": [USER], "completion": [said("Paris")]},
            {"prompt": "Capital of France?", "completion": "Paris"},
            {"messages": [USER, said("Paris")]},
        ],
    )
    def test_sft(self, write: Write, record: dict[str, Any]) -> None:
        (row,) = read_training_file(write({**record, "weight": 0.5}), SFT)
        assert (row.messages, responses_of(row), row.weight) == (ASKED, {"chosen": "Paris"}, 0.5)

    def test_messages_keep_earlier_turns_in_the_prompt(self, write: Write) -> None:
        more = {"role": "user", "content": "And Italy?"}
        (row,) = read_training_file(write({"messages": [USER, said("Paris"), more, said("Rome")]}), SFT)
        assert row.messages == (*ASKED, Message("assistant", "Paris"), Message("user", "And Italy?"))
        assert responses_of(row) == {"chosen": "Rome"}

    def test_many_responses(self, write: Write) -> None:
        response = {"content": "Paris", "role": "chosen", "source": "gemma", "index": 2, "score": 0.5, "weight": -1.0}
        path = write({"prompt_id": "a", "prompt": [USER], "responses": [response, {**response, "role": "rejected"}]})
        expected = RowResponse("Paris", "chosen", "gemma", 2, 0.5, weight=-1.0)
        (row,) = read_training_file(path, PAIR)
        assert row.responses[0] == expected

    @pytest.mark.parametrize(
        ("roles", "record", "message"),
        [
            (PAIR, {"prompt": "q", "completion": "a"}, "there is no rejected response .*expected `prompt` and"),
            (PAIR, {"prompt": "q", "chosen": "a"}, "`rejected` is missing; expected text or a list of messages"),
            (PAIR, {"question": "q"}, "the keys are question; expected `prompt` and `chosen`, `rejected`, or"),
            (WRPO, {"prompt": "q", "chosen": "a", "rejected": "b"}, "there is no chosen_source response"),
            (WRPO, {"prompt": "q", "chosen_source": "a", "rejected": "b"}, "there is no chosen_target response"),
            (SFT, {"prompt": "q", "completion": ""}, "`chosen` is an empty response.*never reaches a loss"),
            (PAIR, {"prompt": "q", "chosen": "a", "rejected": " \n"}, "`rejected` is an empty response"),
            (PAIR, {"prompt": "q", "chosen": [USER], "rejected": "b"}, "`chosen` has the roles user; expected one"),
            (
                PAIR,
                {"prompt": "q", "chosen": [USER, said("a")], "rejected": "b"},
                r"`chosen` \(roles user, assistant\) does not begin with the prompt \(roles user\); expected .*after",
            ),
            (SFT, {"messages": [said("a")]}, "`chosen` has the roles assistant"),
            (SFT, {"prompt": "q", "completion": "a", "weight": float("nan")}, "`weight` is NaN; expected a finite"),
            (SFT, {"prompt": "q", "completion": "a", "weight": float("inf")}, "`weight` is Infinity; expected a"),
            (SFT, {"prompt": "q", "completion": "a", "weight": 10**400}, "`weight` is 1000+[.]{3}; expected a finite"),
            (PAIR, {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": float("-inf")}, "`score_chosen` is"),
            (
                SFT,
                {"prompt": "q", "responses": [{"content": "a", "role": "chosen", "score": float("nan")}]},
                r"`responses\[0\]\.score` is NaN; expected a finite number",
            ),
            (
                SFT,
                {"prompt": "q", "responses": [{"content": "a", "role": "chosen", "index": 2**63}]},
                r"`responses\[0\]\.index` is 9223372036854775808; expected a whole number, 0 to",
            ),
            (SFT, {"prompt": "q", "completion": "a", "weight": "1"}, "`weight` is \"1\"; expected a finite number"),
            (
                SFT,
                {"prompt": "q", "responses": [{"content": "a", "role": "best"}]},
                r"`responses\[0\]\.role` is \"best\"; expected chosen, rejected",
            ),
            (SFT, {"prompt": "q", "responses": [{"content": "", "role": "chosen"}]}, r"`responses\[0\]\.content` is"),
            (SFT, {"prompt": "q", "completion": "a", "weight": -1}, "`weight` is -1; expected a number, at least 0"),
            (SFT, {"prompt": "q", "responses": [{"content": "a", "truncated": 1}]}, r"`responses\[0\]\.truncated` is"),
            (SFT, {"prompt": "q", "responses": []}, r"`responses` is \[\]; expected a list of objects"),
        ],
    )  # fmt: skip
    def test_a_row_of_the_wrong_shape_names_file_line_key_and_what_was_expected(
        self, tmp_path: Path, roles: tuple[Role, ...], record: dict[str, Any], message: str
    ) -> None:
        good: dict[str, Any] = {"prompt": "q", "chosen_source": "a", "chosen_target": "b", "rejected": "c"}
        good |= {"responses": [{"content": "a", "role": role} for role in get_args(Role)]}
        path = lines(tmp_path / "rows.jsonl", json.dumps(good), json.dumps(record))
        with pytest.raises(InputError, match=rf"rows\.jsonl, line 2(, )?:? ?{message}"):
            read_training_file(path, roles)

    def test_no_rows_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no row in it; expected lines with `prompt` and `completion`"):
            read_training_file(lines(tmp_path / "rows.jsonl", ""), SFT)

    @pytest.mark.parametrize(
        "record",
        [
            {"prompt": [USER], "chosen": [said("Paris")], "rejected": [said("Lyon")], "score_chosen": 1.0},
            {"prompt": "q", "chosen_source": "a", "chosen_target": "b", "rejected": "c"},
            {"messages": [USER, said("Paris")], "weight": 2.0},
            {
                "prompt": "q",
                "responses": [{"content": "a", "weight": 0.5, "group": "x"}, {"content": "b", "score": 1.0}],
            },
        ],
        ids=["pair", "wrpo", "sft", "many"],
    )
    def test_a_dataset_gives_the_rows_of_its_file(self, write: Write, record: dict[str, Any]) -> None:
        from datasets import Dataset

        rows = read_training_file(write(record, record), ())
        assert parse_rows(Dataset.from_list([record, record])) == rows
        assert parse_rows(iter([record, record])) == rows

    def test_a_record_of_the_wrong_shape_is_named_by_its_number(self) -> None:
        good = {"prompt": "q", "chosen": "a", "rejected": "b"}
        with pytest.raises(InputError, match=r"^row 1: `rejected` is missing; expected text"):
            parse_rows([good, {**good, "rejected": None}])
        with pytest.raises(
            InputError, match=r"^row 0: the keys are text; expected `prompt` and `chosen`, `completion`"
        ):
            parse_rows([{"text": "q"}])
        assert parse_rows([]) == []


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
floats = st.floats(-1e100, 1e100)
responses = st.builds(
    RowResponse,
    content=texts.filter(str.strip),
    role=st.one_of(st.none(), st.sampled_from(get_args(Role))),
    source=texts,
    index=st.integers(0, 2**40),
    score=st.one_of(st.none(), floats),
    group=texts,
    weight=floats,
    truncated=st.booleans(),
)
rows = st.builds(
    TrainingRow,
    prompt_id=texts.filter(bool),
    messages=st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts), max_size=3).map(
        lambda turns: (*turns, Message("user", "?"))
    ),
    responses=st.lists(responses, min_size=1, max_size=4).map(tuple),
    weight=floats.map(abs),
)


class TestOwnRows:
    @given(written=st.lists(rows, max_size=4))
    def test_what_is_written_is_read_again(self, tmp_path_factory: pytest.TempPathFactory, written: Any) -> None:
        path = tmp_path_factory.mktemp("rows") / "rows.parquet"
        write_rows(path, written)
        assert read_rows(path) == written

    def test_other_tools_can_read_them(self, tmp_path: Path) -> None:
        row = TrainingRow("a", ASKED, (RowResponse("Paris", "chosen", "gemma", 1, 1.0),), 2.0)
        write_rows(tmp_path / "rows.parquet", [row])
        assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [
            {
                "prompt_id": "a",
                "prompt": [USER],
                "responses": [
                    {
                        "content": "Paris",
                        "role": "chosen",
                        "source": "gemma",
                        "index": 1,
                        "score": 1.0,
                        "group": "",
                        "weight": None,
                        "truncated": False,
                    }
                ],
                "weight": 2.0,
            }
        ]
        assert read_training_file(tmp_path / "rows.parquet", SFT) == [row]

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.parquet"
        write_rows(path, [TrainingRow("a", ASKED, (RowResponse("Paris"),))])
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(InputError, match="not a whole Parquet file"):
            read_rows(path)


ANNOTATED = {
    "prompt_id": "p1",
    "prompt": "Capital of France?",
    "all_generated_responses": ["Paris", "Rome", "Lyon"],
    "all_rm_scores": [0.17, 0.11, 0.13],
    "chosen": [USER, said("Paris")],
    "rejected": [USER, said("Rome")],
}
"""As in princeton-nlp/llama3-ultrafeedback-armorm: keys and nesting of the published file."""
HUMAN, GPT = {"from": "human", "value": "Capital of France?"}, {"from": "gpt", "value": "Paris"}


class TestRowsOfOthers:
    def test_annotated_answers(self, write: Write) -> None:
        (row,) = read_training_file(write(ANNOTATED), PAIR)
        assert row == TrainingRow(
            "p1",
            ASKED,
            (
                RowResponse("Paris", "chosen", index=0, score=0.17),
                RowResponse("Rome", "rejected", index=1, score=0.11),
                RowResponse("Lyon", None, index=2, score=0.13),
            ),
        )

    def test_an_annotated_file_is_one_of_prompts_of_answers_and_of_scores(self, write: Write) -> None:
        path = write(ANNOTATED)
        assert read_prompts(path) == [Prompt("p1", ASKED)]
        assert read_recorded(path) == [
            RecordedAnswer("p1", None, "Paris", index=0),
            RecordedAnswer("p1", None, "Rome", index=1),
            RecordedAnswer("p1", None, "Lyon", index=2),
        ]
        assert [(score.prompt_id, score.response, score.index, score.value) for score in read_scores(path)] == [
            ("p1", "Paris", 0, 0.17), ("p1", "Rome", 1, 0.11), ("p1", "Lyon", 2, 0.13),
        ]  # fmt: skip

    def test_equal_answers_are_told_apart(self, write: Write) -> None:
        """The best and the worst may be the same text: each role goes to a different answer."""
        equal = {**ANNOTATED, "all_generated_responses": ["Paris"] * 3, "rejected": [USER, said("Paris")]}
        (row,) = read_training_file(write(equal), PAIR)
        assert [response.role for response in row.responses] == ["chosen", "rejected", None]

    def test_fusechat3_sft(self, write: Write) -> None:
        path = write({"dataset": "helpsteer2", "source_model": "gemma-2-27b-it", "conversations": [HUMAN, GPT]})
        (row,) = read_training_file(path, SFT)
        assert row.messages == ASKED
        assert row.responses == (RowResponse("Paris", "chosen", "gemma-2-27b-it"),)

    def test_fusechat3_dpo(self, write: Write) -> None:
        pair = {"prompt": [USER], "chosen": [said("Paris")], "rejected": [said("Rome")]}
        (row,) = read_training_file(write({"dataset": "leetcode", "source_model": "qwen", **pair}), PAIR)
        assert row.responses == (RowResponse("Paris", "chosen", "qwen"), RowResponse("Rome", "rejected", "qwen"))

    @pytest.mark.parametrize("system", [None, "", "Be brief."])
    def test_sharegpt(self, write: Write, system: str | None) -> None:
        (row,) = read_training_file(write({"conversations": [HUMAN, GPT], "system": system}), SFT)
        assert row.messages == ((Message("system", "Be brief."), *ASKED) if system else ASKED)
        assert responses_of(row) == {"chosen": "Paris"}

    def test_sharegpt_with_a_turn_of_the_system(self, write: Write) -> None:
        """As in LLaMA-Factory's dpo_en_demo.json."""
        system = {"from": "system", "value": "You are a teacher."}
        record = {"conversations": [system, HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Rome"}}
        (row,) = read_training_file(write(record), PAIR)
        assert row.messages == (Message("system", "You are a teacher."), *ASKED)

    def test_sharegpt_ranking(self, write: Write) -> None:
        record = {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Rome"}}
        (row,) = read_training_file(write(record), PAIR)
        assert row.messages == ASKED
        assert responses_of(row) == {"chosen": "Paris", "rejected": "Rome"}

    @pytest.mark.parametrize(("label", "role"), [(True, "chosen"), (False, "rejected")])
    def test_unpaired(self, write: Write, label: bool, role: Role) -> None:
        path = write({"prompt": [USER], "completion": [said("Paris")], "label": label})
        (row,) = read_training_file(path, (role,))
        assert row.responses == (RowResponse("Paris", role),)

    def test_wrpo_scores_and_source(self, write: Write) -> None:
        record = {"prompt": USER, "chosen": [said("Paris!"), said("Paris")], "rejected": [said("Rome")]}
        scores = {"score_chosen_source": 0.180, "score_chosen_target": 0.152, "score_rejected": 0.132}
        (row,) = read_training_file(write({**record, "source": "gemma", **scores}), WRPO)
        assert [(response.source, response.score) for response in row.responses] == [
            ("gemma", 0.180), ("", 0.152), ("", 0.132),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"all_rm_scores": [0.1, 0.2]}, "`all_rm_scores` has 2 numbers; expected one for each of the 3 answers"),
            ({"all_rm_scores": [0.1, "b", 0.2]}, r"`all_rm_scores\[1\]` is \"b\"; expected a finite number"),
            ({"all_rm_scores": 3}, "`all_rm_scores` is 3; expected a list of numbers"),
            ({"all_generated_responses": ["a", 1]}, r"`all_generated_responses\[1\]` is 1; expected text"),
            (
                {"all_generated_responses": ["Paris", "Rome", ""]},
                r"`all_generated_responses\[2\]` is an empty response",
            ),
            ({"chosen": [USER, said("Nice")]}, "`chosen` ends with none of `all_generated_responses`"),
        ],
    )
    def test_annotated_answers_of_the_wrong_shape(self, tmp_path: Path, changes: Any, message: str) -> None:
        path = lines(tmp_path / "rows.jsonl", json.dumps(ANNOTATED), json.dumps(ANNOTATED | changes))
        with pytest.raises(InputError, match=rf"rows\.jsonl, line 2: {message}"):
            read_training_file(path, ())

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            (
                {"conversations": [{"from": "bot", "value": "a"}]},
                r"`conversations\[0\]\.from` is \"bot\"; expected one",
            ),
            ({"conversations": [{"from": "human"}]}, r"`conversations\[0\]\.value` is missing; expected text"),
            ({"conversations": [HUMAN], "chosen": GPT}, "`rejected` is missing; expected a list of objects"),
            ({"source_model": "qwen", "prompt": "q", "chosen": "a"}, "`rejected` is missing; expected text"),
            ({"prompt": "q", "completion": "a", "label": 1}, "`label` is 1; expected true or false"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, record: dict[str, Any], message: str) -> None:
        path = lines(tmp_path / "rows.jsonl", json.dumps(ANNOTATED), json.dumps(record))
        with pytest.raises(InputError, match=rf"rows\.jsonl, line 2(, )?:? ?{message}"):
            read_training_file(path, ())

    def test_a_file_may_be_one_list(self, tmp_path: Path) -> None:
        """As published by FuseChat-3.0 and in LLaMA-Factory's examples."""
        path = tmp_path / "train.json"
        path.write_text("\ufeff" + json.dumps([ANNOTATED, {**ANNOTATED, "prompt_id": "p2"}], indent=2), "utf-8")
        assert [row.prompt_id for row in read_training_file(path, ())] == ["p1", "p2"]
        path.write_text(json.dumps([ANNOTATED, 5]))
        with pytest.raises(InputError, match=r"train\.json, row 2: 5; expected a list of JSON objects"):
            read_training_file(path, ())
        path.write_text("[{]")
        with pytest.raises(InputError, match=r"train\.json: not JSON .*expected a list of JSON objects"):
            read_training_file(path, ())
        path.write_text(json.dumps(ANNOTATED))
        assert len(read_training_file(path, ())) == 1

    @pytest.mark.parametrize(("name", "text"), [("a.jsonl.gz", "{0}\n{0}\n"), ("a.json.gz", "[{0}, {0}]")])
    def test_a_file_may_be_compressed(self, tmp_path: Path, name: str, text: str) -> None:
        """As in the published HumanEval."""
        path = tmp_path / name
        packed = gzip.compress(text.format(json.dumps(ANNOTATED)).encode())
        path.write_bytes(packed)
        assert len(read_training_file(path, ())) == 2
        for broken in (packed[:-20], packed[:30] + b"\xff" * 30 + packed[60:], b"{}"):
            path.write_bytes(broken)
            with pytest.raises(InputError, match=rf"{name}: not a whole gzip file"):
                read_training_file(path, ())


named = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
contents = texts.filter(str.strip)
scores = st.one_of(st.none(), floats)
users = st.builds(Message, st.just("user"), contents)
assistants = st.builds(Message, st.just("assistant"), texts)
systems = st.builds(Message, st.just("system"), named)
single = st.tuples(users)
dialogues = st.lists(st.tuples(users, assistants), max_size=2).map(lambda turns: [m for turn in turns for m in turn])
conversations = st.builds(
    lambda system, before, last: (*system, *before, last), st.lists(systems, max_size=1), dialogues, users
)


def rows_of(prompts: Any, *roles: Role, one_source: bool = True) -> Any:
    """Rows of answers with these roles, in a format with fewer columns."""

    def build(prompt: tuple[Message, ...], source: str, answers: list[tuple[str, float]], *rest: Any) -> TrainingRow:
        responses = tuple(
            RowResponse(content, role, source if one_source or "source" in role else "", score=score)
            for role, (content, score) in zip(roles, answers, strict=True)
        )
        return TrainingRow(rest[0], prompt, responses, rest[1])

    answers = st.lists(st.tuples(contents, scores), min_size=len(roles), max_size=len(roles))
    return st.builds(build, prompts, texts, answers, named, floats.map(abs))


@st.composite
def annotated_rows(draw: st.DrawFn) -> TrainingRow:
    answers = draw(st.lists(st.tuples(contents, floats), min_size=2, unique_by=(lambda a: a[0], lambda a: a[1])))
    order = sorted(answers, key=lambda answer: answer[1])
    roles: dict[str, Role] = {order[-1][0]: "chosen", order[0][0]: "rejected"}
    source = draw(texts)
    responses = tuple(
        RowResponse(content, roles.get(content), source, place, score) for place, (content, score) in enumerate(answers)
    )
    return TrainingRow(draw(named), draw(single), responses)


def of_two_models(row: TrainingRow, source: str) -> TrainingRow:
    chosen, rejected = row.responses
    return replace(row, responses=(chosen, replace(rejected, source=source)))


pairs_of_two_models = st.builds(of_two_models, rows_of(conversations, *PAIR), texts)
ROUND_TRIPS: dict[str, tuple[str, Any]] = {
    "sinterlm": ("sinterlm", rows),
    "annotated": ("ultrafeedback-armorm", annotated_rows()),
    "wrpo": ("wrpo", rows_of(single, *WRPO, one_source=False)),
    "wrpo, equation 9": ("wrpo", rows_of(single, *WRPO, "rejected_source", one_source=False)),
    "fusechat3 sft": ("fusechat3", rows_of(conversations, "chosen")),
    "fusechat3 dpo": ("fusechat3", rows_of(conversations, *PAIR)),
    "sharegpt": ("llamafactory", rows_of(conversations, "chosen")),
    "sharegpt ranking": ("llamafactory", pairs_of_two_models),
    "trl completion": ("trl", rows_of(conversations, "chosen")),
    "trl preference": ("trl", pairs_of_two_models),
    "trl unpaired, chosen": ("trl-unpaired", rows_of(conversations, "chosen")),
    "trl unpaired, rejected": ("trl-unpaired", rows_of(conversations, "rejected")),
    "trl messages": ("trl-messages", rows_of(conversations, "chosen")),
}


def shape_of(row: TrainingRow, format_name: str) -> Shape:
    shape = FORMATS[format_name].shape_of([row])
    assert shape is not None
    return shape


def records_of(row: TrainingRow, format_name: str) -> Any:
    return shape_of(row, format_name).records(row)


class TestFormats:
    @pytest.mark.parametrize("name", ROUND_TRIPS)
    @given(data=st.data())
    def test_what_is_written_is_read_again(
        self, tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
    ) -> None:
        format_name, strategy = ROUND_TRIPS[name]
        row = data.draw(strategy)
        (record,) = records_of(row, format_name)
        schema = shape_of(row, format_name).schema
        assert list(record) == [key for key in schema.names if key in record], "columns are in the order of the schema"
        path = tmp_path_factory.mktemp("rows") / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([record], schema=schema), path)
        assert read_training_file(path, ()) == [row]

    def test_every_format_of_rows_is_tried(self) -> None:
        assert {name for name, _ in ROUND_TRIPS.values()} == {name for name, row in FORMATS.items() if row.reads}

    def test_a_quadruple_is_two_pairs(self) -> None:
        """The source's answer is paired with the source's rejected one if there is one, as in equation 9."""
        contents = dict(zip((*WRPO, "rejected_source"), "abcd", strict=True))
        responses = tuple(RowResponse(content, role) for role, content in contents.items())
        for number, expected in ((3, [("a", "c"), ("b", "c")]), (4, [("a", "d"), ("b", "c")])):
            records = records_of(TrainingRow("p", ASKED, responses[:number]), "trl")
            assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in records] == expected

    def test_a_row_of_several_sources_is_a_pair_for_each_with_its_weight(self) -> None:
        responses = tuple(
            RowResponse(f"{source} {role}", role, source, group=source, weight=weight)
            for role in PAIR
            for source, weight in (("gemma", 0.75), ("qwen", 0.25))
        )
        records = records_of(TrainingRow("p", ASKED, responses, weight=2.0), "trl")
        found = [(r["chosen"][0]["content"], r["rejected"][0]["content"], r["weight"], r["source"]) for r in records]
        assert found == [
            ("gemma chosen", "gemma rejected", 1.5, "gemma"),
            ("qwen chosen", "qwen rejected", 0.5, "qwen"),
        ]

    def test_several_weighted_answers_are_as_many_records(self) -> None:
        responses = tuple(RowResponse(name, "chosen", name, weight=0.5) for name in ("a", "b"))
        for format_name in ("trl", "trl-messages", "trl-unpaired", "llamafactory", "fusechat3"):
            records = records_of(TrainingRow("p", ASKED, responses), format_name)
            assert [record["weight"] for record in records] == [0.5, 0.5]

    @pytest.mark.parametrize(
        ("format_name", "messages", "responses", "reason"),
        [
            ("wrpo", (Message("system", "s"), *ASKED), WRPO, "prompt-of-several-messages"),
            ("wrpo", ASKED, PAIR, "no-quadruple"),
            ("ultrafeedback-armorm", (*ASKED, *ASKED), PAIR, "prompt-of-several-messages"),
            ("llamafactory", (*ASKED, *ASKED), PAIR, "turns-do-not-alternate"),
            ("llamafactory", (*ASKED, *ASKED), SFT, "turns-do-not-alternate"),
            ("fusechat3", ASKED, WRPO, "pair-of-two-models"),
            ("trl", ASKED, ("rejected",), "no-chosen-response"),
            ("trl", ASKED, ("chosen_source", "rejected_source", "chosen_target"), "no-rejected-response"),
            ("trl", ASKED, (None, None), "no-chosen-response"),
            ("trl-unpaired", ASKED, (None, None), "no-chosen-response"),
            ("trl", ASKED, ("chosen", "rejected", "rejected"), "several-rejected-responses"),
        ],
    )
    def test_what_a_format_cannot_hold_is_said(
        self, format_name: str, messages: tuple[Message, ...], responses: tuple[Role | None, ...], reason: str
    ) -> None:
        answers = tuple(
            RowResponse(
                str(number), role, source="target" if role in ("chosen_target", "rejected") else "", score=number
            )
            for number, role in enumerate(responses)
        )
        found = records_of(TrainingRow("p", messages, answers), format_name)
        assert isinstance(found, Misfit)
        assert found.reason == reason

    def test_no_answer_of_a_row_is_passed_over(self) -> None:
        """Two chosen answers of one source make two pairs; a source without a chosen answer is reported."""
        roles: tuple[Role, ...] = ("chosen", "chosen", "rejected")
        responses = tuple(RowResponse(content, role) for content, role in zip("abc", roles, strict=True))
        records = records_of(TrainingRow("p", ASKED, responses), "trl")
        assert [(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in records] == [("a", "c"), ("b", "c")]
        lone = RowResponse("d", "rejected", "qwen")
        others = tuple(replace(response, source="gemma") for response in responses)
        unused = RowResponse("e", None, "yi")
        assert len(records_of(TrainingRow("p", ASKED, (*others, unused)), "trl")) == 2
        found = records_of(TrainingRow("p", ASKED, (*others, lone)), "trl")
        assert isinstance(found, Misfit)
        assert found.reason == "no-chosen-response"

    @pytest.mark.parametrize(
        ("answers", "reason"),
        [
            ([("a", 1.0, "x"), ("b", None, "x")], "no-score"),
            ([("a", 1.0, "x"), ("b", 1.0, "x")], "no-two-different-scores"),
            ([("a", 1.0, "x"), ("b", 2.0, "y")], "answers-of-several-models"),
        ],
    )
    def test_annotated_rows_need_one_models_scores(self, answers: Any, reason: str) -> None:
        responses = tuple(RowResponse(content, source=source, score=score) for content, score, source in answers)
        found = records_of(TrainingRow("p", ASKED, responses), "ultrafeedback-armorm")
        assert isinstance(found, Misfit)
        assert found.reason == reason

    def test_roles_are_complete(self) -> None:
        """A new role must be added to the formats that hold one answer or one pair."""
        from sinterlm.formats.pairs import REJECTED

        assert {*CHOSEN, *REJECTED} == set(get_args(Role))


class TestQuestions:
    """Lines as in AlpacaEval, Arena-Hard, MT-Bench, GSM8K, MATH, MBPP and HumanEval."""

    @pytest.mark.parametrize(
        ("record", "turns"),
        [
            ({"dataset": "helpful_base", "instruction": "Who?", "output": "He."}, ["Who?"]),
            ({"uid": "328c", "category": "arena-hard-v0.1", "prompt": "Who?"}, ["Who?"]),
            ({"question_id": "328c", "turns": [{"content": "Who?"}]}, ["Who?"]),
            ({"question_id": 81, "category": "writing", "turns": ["Who?", "And now?"]}, ["Who?", "And now?"]),
            ({"question": "Who?", "answer": "#### 4"}, ["Who?"]),
            ({"problem": "Who?", "solution": "He."}, ["Who?"]),
            ({"text": "Who?", "code": "pass", "task_id": 1}, ["Who?"]),
            ({"task_id": "test/0", "prompt": "def return1():\n", "test": "..."}, ["def return1():\n"]),
        ],
    )
    def test_they_are_named_by_file_and_line(self, tmp_path: Path, record: dict[str, Any], turns: list[str]) -> None:
        path = lines(tmp_path / "bench.jsonl", "", json.dumps(record))
        assert read_questions(path) == [Prompt("bench.jsonl, line 2", tuple(Message("user", turn) for turn in turns))]

    def test_files_of_one_name_are_told_apart(self, tmp_path: Path) -> None:
        paths = [tmp_path / name for name in ("gsm8k/test.jsonl", "math/test.jsonl", "mbpp.jsonl")]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            lines(path, '{"question": "Who?"}')
        assert [question.id for question in read_questions(*paths, paths[0])] == [
            "gsm8k/test.jsonl, line 1", "math/test.jsonl, line 1", "mbpp.jsonl, line 1",
        ]  # fmt: skip

    def test_what_is_no_question_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"line 1: the keys are answer; expected one of prompt, messages, turns"):
            read_questions(lines(tmp_path / "bench.jsonl", '{"answer": 4}'))
        with pytest.raises(InputError, match="there is no question in it"):
            read_questions(lines(tmp_path / "bench.jsonl", ""))


class TestRecorded:
    def test_by_id_or_by_text(self, write: Write) -> None:
        path = write(
            {"prompt_id": "a", "response": "Paris", "finish_reason": "length", "source": "gemma", "index": 4},
            {"prompt": "Capital of France?", "content": "Rome"},
            {"prompt": "Capital of France?", "response": ""},
        )
        asked = Prompt("", ASKED).content_hash
        assert read_recorded(path) == [
            RecordedAnswer("a", None, "Paris", "gemma", 4, "length"),
            RecordedAnswer(None, asked, "Rome", index=0),
            RecordedAnswer(None, asked, "", index=1),
        ]

    def test_samples_are_counted_by_prompt_and_source(self, write: Write) -> None:
        keys = [("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")]
        path = write(*({"prompt_id": prompt, "source": source, "response": "r"} for prompt, source in keys))
        assert [answer.index for answer in read_recorded(path)] == [0, 0, 0, 1]

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        good = '{"prompt_id": "a", "response": "r", "index": 0}'
        for bad, message in {
            good: r"line 2: answer 0 to this prompt was given before \(.*line 1\)",
            '{"response": "r"}': "line 2: `prompt` is missing",
            '{"prompt_id": "a"}': "line 2: `response` is missing; expected text",
            '{"prompt_id": "a", "response": "r", "index": -1}': "`index` is -1; expected a whole number",
            '{"prompt_id": "b", "response": "r", "finish_reason": "cut"}': '`finish_reason` is "cut"; expected stop',
        }.items():
            with pytest.raises(InputError, match=message):
                read_recorded(lines(tmp_path / "answers.jsonl", good, bad))
        with pytest.raises(InputError, match="there is no answer in it"):
            read_recorded(lines(tmp_path / "answers.jsonl", ""))


class TestAtomicWrite:
    def test_the_file_appears_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file.txt"
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text("all of it")
            assert not path.exists()
        assert path.read_text() == "all of it"
        assert os.listdir(path.parent) == ["file.txt"]

    def test_an_error_leaves_the_old_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "file.txt", "old")
        with pytest.raises(TypeError), atomic_write(path) as temporary:
            temporary.write_text(5)  # type: ignore[arg-type]
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file.txt"]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_is_said_and_harms_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        path = lines(tmp_path / "file.txt", "old")

        def full(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", full)
        with (
            pytest.raises(TryAgainError, match=r"file\.txt: the disk is full") as raised,
            atomic_write(path) as temporary,
        ):
            temporary.write_text("new")
        assert raised.value.exit_code == 75
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["file.txt"]

    @pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux's device that is always full")
    def test_parquet_on_a_full_disk(self, tmp_path: Path) -> None:
        """Through a link, because Arrow removes what it could not write."""

        def write_where_there_is_no_space() -> None:
            with atomic_write(tmp_path / "rows.parquet") as temporary:
                temporary.symlink_to("/dev/full")
                pq.write_table(pa.table({"a": list(range(10**5))}), temporary)

        with pytest.raises(TryAgainError, match="the disk is full"):
            write_where_there_is_no_space()
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("moment", ["writing", "syncing"])
    def test_a_killed_process_leaves_the_old_file(self, tmp_path: Path, moment: str) -> None:
        path = lines(tmp_path / "file.txt", "old")
        die = "os.kill(os.getpid(), 9)"
        program = (
            "import os, sys\nfrom pathlib import Path\nfrom sinterlm.files import atomic_write\n"
            + ("os.fsync = lambda _: " + die + "\n" if moment == "syncing" else "")
            + "with atomic_write(Path(sys.argv[1])) as temporary:\n    temporary.write_text('new')\n"
            + (f"    {die}\n" if moment == "writing" else "")
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
        assert done.returncode == -9
        assert path.read_text() == "old"
        another_file, of_a_living = tmp_path / ".file.txt.old", tmp_path / f".file.txt.{os.getppid()}.tmp"
        for kept in (another_file, of_a_living):
            kept.touch()
        with atomic_write(path) as temporary:
            temporary.write_text("newer")
        assert path.read_text() == "newer"
        assert set(tmp_path.iterdir()) == {path, another_file, of_a_living}
