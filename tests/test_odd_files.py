"""Files as people have them: numbers of other types, and bytes that are not text. They are read, or refused by line."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinterlm import cli
from sinterlm.errors import InputError
from sinterlm.formats import read_prompts, read_recorded, read_scores
from sinterlm.formats.fields import Identifier, Number, Record, Whole
from sinterlm.formats.lines import Line, read_lines
from sinterlm.formats.yaml_file import parse_value, read_yaml
from sinterlm.recipe.load import load_recipe
from sinterlm.report.charts import score_chart
from sinterlm.report.tallies import ScoreTally


class OneNumber(Record):
    x: Number


class OneWhole(Record):
    x: Whole


class OneIdentifier(Record):
    x: Identifier


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([Decimal("7.50")]), 7.5),
        (pa.array([Decimal("7.50")], pa.decimal256(50, 10)), 7.5),
        (pa.array(np.array([7.5], np.float16)), 7.5),
        (pa.array([0.1], pa.float32()), float(np.float32(0.1))),
        (pa.array([7], pa.int8()), 7.0),
        (pa.array([255], pa.uint8()), 255.0),
        (pa.array([2**63 - 1]), float(2**63 - 1)),
        (pa.array([2**64 - 1], pa.uint64()), float(2**64 - 1)),
        (pa.array([7.5, 7.5]).dictionary_encode().slice(0, 1), 7.5),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_scores_of_every_numeric_column_are_numbers(column: pa.Array, expected: float, tmp_path: Path) -> None:
    """So are scores in a list, and ids and sample indices in a column of decimals or floats."""
    path = tmp_path / "scores.parquet"
    table = {"prompt_id": pa.array(["p"]), "response": pa.array(["a"]), "score": column}
    pq.write_table(pa.table(table), path)
    assert [score.value for score in read_scores(path)] == [expected]
    many = {"prompt_id": pa.array(["p"]), "all_generated_responses": pa.array([["a", "b"]])}
    scores = pa.ListArray.from_arrays([0, 2], pa.concat_arrays([column, column]))
    pq.write_table(pa.table({**many, "all_rm_scores": scores}), path)
    assert [score.value for score in read_scores(path)] == [expected, expected]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1.0]), "1"),
        (pa.array([1.0], pa.float32()), "1"),
        (pa.array([Decimal("1.00")]), "1"),
        (pa.array([Decimal(2**60)]), str(2**60)),
        (pa.array([2**60]), str(2**60)),
        (pa.array([1], pa.uint8()), "1"),
        (pa.array(["1.0"]), "1.0"),
        (pa.array(["x"]).dictionary_encode(), "x"),
    ],
)
def test_ids_of_every_type_are_the_same_text(column: pa.Array, expected: str, tmp_path: Path) -> None:
    """What pandas makes of whole numbers if one is missing, and what a database makes of its keys."""
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table({"prompt_id": column, "index": pa.array([1.0]), "response": pa.array(["a"])}), path)
    [answer] = read_recorded(path)
    assert (answer.prompt_id, answer.index) == (expected, 1)


@pytest.mark.parametrize("value", [np.float32(1.5), np.float64(1.5), Decimal("1.5"), 1.5])
def test_numbers_of_other_libraries_are_numbers(value: Any) -> None:
    assert Line("row 1", {"x": value}).parse(OneNumber).x == 1.5
    for one in (np.int64(1), np.uint8(1), np.float32(1), Decimal(1), 1, 1.0):
        assert Line("row 1", {"x": one}).parse(OneWhole).x == 1
        assert Line("row 1", {"x": one}).parse(OneIdentifier).x == "1"


@pytest.mark.parametrize(
    "value",
    [
        *(
            math.nan,
            math.inf,
            -math.inf,
            10**400,
            1e101,
            -1e308,
            True,
            np.bool_(True),
            "7.5",
            [7.5],
            {"value": 7.5},
            7j,
        ),
        *map(Decimal, ("NaN", "sNaN", "Infinity", "1E+999")),
        *(datetime.datetime(2026, 1, 1), datetime.timedelta(1), b"7.5"),
    ],
    ids=repr,
)
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: `x` is .*; expected a finite number"):
        Line("row 1", {"x": value}).parse(OneNumber)
    with pytest.raises(InputError, match=r"row 1: `x` is .*; expected a whole number"):
        Line("row 1", {"x": value}).parse(OneWhole)


@pytest.mark.parametrize(
    "scores", [(7.0, 7.000000000000001), (-5e-324, 5e-324), (1e100, 1e100), (-1e100, 1e100), (0, 1)]
)
def test_scores_that_differ_by_rounding_alone_can_be_drawn(scores: Sequence[float]) -> None:
    """As means of a rubric's grades may: no 36 bins fit between them."""
    assert "<svg" in score_chart([ScoreTally("gemma", len(scores), list(scores))])


@pytest.mark.parametrize("value", [1.5, Decimal("1.5"), float(2**53), np.float64(1e300), True, b"x", [], ""], ids=repr)
def test_what_names_nothing_is_no_id(value: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: `x` is .*; expected text or a whole number"):
        Line("row 1", {"x": value}).parse(OneIdentifier)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "a"}\n{"prompt": "\xff"}', r"line 2: not UTF-8 \(invalid start byte at byte 12\)"),
        ('{"prompt": "a"}'.encode("utf-16"), r"line 1: not UTF-8"),
        (b'\n\n{"prompt": "\\ud800"}', r"line 3: \\ud800 is half of a surrogate pair"),
        (b'{"\\udfff": 1}', r"line 1: \\udfff is half of a surrogate pair"),
        (b'{"prompt": "a\0b"}', r"line 1: not JSON \(Invalid control character at"),
        (b"\0" * 50, "line 1: not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', 'line 1: the key "prompt" is given twice; keep one of them'),
        (b'{"prompt": "a", "x": {"y": 1, "y": 1}}', 'line 1: the key "y" is given twice'),
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b'{"a":' * 100_000, "line 1: nested too deeply"),
        (b'{"prompt": "a"\n}', "line 1: not JSON"),
        (b'{"prompt": "a"}\r{"prompt": "b"}', "line 1: not JSON"),
        (b'{"prompt": 1' + b"0" * 5000 + b"}", "line 1: a number with too many digits"),
        (b"[1, 2]", "line 1: .*; expected one JSON object in each line"),
        (b"", "there is no prompt in it|no prompt"),
    ],
)
def test_lines_that_cannot_be_read_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(path)
    assert len(str(caught.value)) < 500


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """A byte order mark, CRLF, and characters in text at which Python's splitlines would split."""
    text = "a\u2028b\u2029c\x85d\x1c\x1d\x1e\x0b\x0c e"
    rows = [{"prompt": text}, {"prompt": "next"}]
    path = tmp_path / "prompts.jsonl"
    for ends in ("\n", "\r\n"):
        raw = ends.join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_bytes(b"\xef\xbb\xbf" + raw.encode())
        assert [(line.place, line.fields) for line in read_lines(path)] == [
            (f"{path}, line {number}", row) for number, row in enumerate(rows, start=1)
        ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62], pa.timestamp("us")),
        pa.array([1], pa.timestamp("ns")),
        pa.array([datetime.date(2026, 1, 1)]),
        pa.array([b"\xff"]),
        pa.array([{"a": [None]}]),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_of_other_types_are_refused_or_left_alone(column: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": column}), path)
    with pytest.raises(InputError, match=r"prompts\.parquet, (after )?row [01]: "):
        read_prompts(path)


@pytest.mark.parametrize("kind", ["folder", "device", "loop", "dangling link", "long name"])
def test_what_is_no_file_is_said(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    if kind == "folder":
        path.mkdir()
    if kind == "loop":
        path.symlink_to(path)
    if kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    path = {"device": Path("/dev/null"), "long name": tmp_path / ("x" * 300)}.get(kind, path)
    found = {"folder": "is a folder", "device": "is not a regular file"}.get(kind, "no such file|File name too long")
    with pytest.raises((InputError, OSError), match=found):
        read_prompts(path)


# --- recipes and the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'seed: "\ud800"', r":1: seed: holds \\ud800, half of a surrogate pair"),
        (r'output: "a\0b"', ":1: output: holds the null character"),
        (r'"\udfff": 1', r":1: holds \\udfff, half"),
        ('a:\n  b: ["x", "\\0"]', r":2: a\.b\[1\]: holds the null character"),
    ],
)
def test_what_no_file_can_hold_is_refused_in_recipes_and_overrides(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(path)
    with pytest.raises(InputError, match=message):
        read_yaml(path)
    with pytest.raises(InputError, match=r"key:1: .*(half of a surrogate pair|null character)"):
        parse_value(text.partition(": ")[2].partition("b: ")[2] or r'"\0"', "command line: key")


def test_json_escapes_of_characters_beyond_16_bits_are_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    value = {"\U0001f600": ["a\U0010ffff\U00010000", "é"]}
    path.write_text(json.dumps(value))
    assert "\\ud83d\\ude00" in path.read_text()
    assert read_yaml(path).value == value


def test_arguments_and_folders_that_are_not_utf8_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sinterlm", "plan", "a\udcff.yaml"])
    assert cli.exit_code() == 2
    assert r"an argument is not UTF-8: a\xff.yaml; rename" in capsys.readouterr().err
    folder = tmp_path / "b\udcfe"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["sinterlm", "plan", "a.yaml"])
    assert cli.exit_code() == 2
    assert r"b\xfe; rename" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["output", "workspace", "prompts.path"])
def test_a_loop_of_links_is_no_traceback(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    recipe = {
        "output": str(tmp_path / "run"),
        "prompts": {"path": "q.jsonl", "split": {"sft": 1}},
        "target": {"model": str(tmp_path)},
        "sources": {"old": {"engine": "recorded", "path": "q.jsonl"}},
        "scorer": {"kind": "exact-match"},
    }
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = ["sinterlm", "run", str(tmp_path / "recipe.yaml"), f"{key}={loop}", "--until", "prompts"]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.exit_code() == 2
    assert "loop" in capsys.readouterr().err
