"""Data flows once: statements and digests per answer, and reads of a recorded file, counted in whole runs."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sinterlm import records
from sinterlm.formats import recorded
from sinterlm.formats.lines import Line, read_lines
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.load import load_recipe
from tests.test_pipeline import Lines

NUM_PROMPTS, NUM_SAMPLES = 30, 10
NUM_ANSWERS = 2 * NUM_PROMPTS * NUM_SAMPLES
"""The answers of a source and, also recorded, of the target."""


class Counts:
    """Counts what happens in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: Counter[str] = Counter()
        self.queries: dict[str, str] = {}
        self.read: Counter[str] = Counter()
        self.hashed: Counter[str] = Counter()
        self.num_digests = 0
        connect, encode, file_digest = sqlite3.connect, records._CANONICAL.encode, hashlib.file_digest

        def traced(*arguments: Any, **others: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **others)
            if arguments[0]:  # without a name it is temporary, and no store
                connection.set_trace_callback(self.add_statement)
            return connection

        def counted(content: object) -> str:
            self.num_digests += 1
            return encode(content)

        def hashed(file: Any, name: str) -> Any:
            self.hashed[Path(file.name).name] += 1
            return file_digest(file, name)

        def lines(path: Path) -> Iterator[Line]:
            self.read[path.name] += 1
            return read_lines(path)

        monkeypatch.setattr(sqlite3, "connect", traced)
        monkeypatch.setattr(records._CANONICAL, "encode", counted)
        monkeypatch.setattr(hashlib, "file_digest", hashed)
        monkeypatch.setattr(recorded, "read_lines", lines)

    def add_statement(self, statement: str) -> None:
        verb = statement.split()[0]
        self.statements[verb] += 1
        if verb in ("SELECT", "WITH"):
            self.queries[re.sub(r"'[^']*'", "''", statement)] = statement

    def per_answer(self) -> tuple[float, float]:
        """The statements that read the store and the digests since the last call."""
        reads = self.statements["SELECT"] + self.statements["WITH"]
        found = reads / NUM_ANSWERS, self.num_digests / NUM_ANSWERS
        self.statements.clear()
        self.num_digests = 0
        return found


@pytest.fixture
def fusion(tmp_path: Path) -> Fusion:
    """Two files of recorded answers: a source's, and the target's."""
    write_lines(
        tmp_path / "questions.jsonl",
        ({"id": f"p{n}", "prompt": f"What is {n} plus 1?", "answers": [str(n + 1)]} for n in range(NUM_PROMPTS)),
    )
    for name in ("source", "target"):
        write_lines(
            tmp_path / f"{name}.jsonl",
            (
                {"prompt_id": f"p{n}", "index": index, "response": f"{n + index % 2}{' .' * index}"}
                for n in range(NUM_PROMPTS)
                for index in range(NUM_SAMPLES + 1)
            ),
        )
    (tmp_path / "model").mkdir()
    answers = {"engine": "recorded", "num_samples": NUM_SAMPLES}
    recipe = {
        "output": str(tmp_path / "run"),
        "prompts": {"path": "questions.jsonl", "split": {"preference": 1.0}},
        "target": {"model": str(tmp_path / "model"), "samples": {**answers, "path": "target.jsonl"}},
        "sources": {"old": {**answers, "path": "source.jsonl"}},
        "scorer": {"kind": "exact-match"},
        "preference": {
            "wrpo": {"select": {"kind": "wrpo"}, "objective": {"kind": "wrpo", "base": "dpo"}, "train": {}},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return Fusion(load_recipe(path).recipe)


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_answers_and_scores_are_read_by_batch_and_named_once(fusion: Fusion, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(monkeypatch)
    limits = {"sample-target": (0.1, 4), "score-target": (0.1, 0.5), "select-wrpo": (0.1, 1.5)}
    found = {}
    for until in limits:
        run_fusion(fusion, Lines(), until=until)
        found[until] = counts.per_answer()
    assert {
        stage: (reads <= limits[stage][0], digests <= limits[stage][1]) for stage, (reads, digests) in found.items()
    } == {stage: (True, True) for stage in limits}, found


def test_no_query_of_a_run_reads_a_whole_table(fusion: Fusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers, scores and places are found by indices, whatever their number."""
    counts = Counts(monkeypatch)
    run_fusion(fusion, Lines(), until="select-wrpo")
    with closing(sqlite3.connect(fusion.store_path)) as connection:
        plans = {
            query: [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
            for query in list(counts.queries.values())
        }
    steps = [step for plan in plans.values() for step in plan]
    assert sum("SEARCH responses" in step for step in steps) >= 2
    assert any("SEARCH scores" in step for step in steps)
    assert not [step for step in steps if re.search("SCAN (responses|scores|places)", step)], plans


def test_a_recorded_file_is_hashed_and_parsed_once_in_a_command(
    fusion: Fusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are looked up, unused ones are named, and four stage keys contain its hash."""
    counts = Counts(monkeypatch)
    outcome = run_fusion(fusion, Lines(), until="select-wrpo")
    assert {"sample-sources", "sample-target", "select-wrpo"} <= set(outcome.done_now)
    assert dict(counts.read) == {"source.jsonl": 1, "target.jsonl": 1}
    hashed = {name: count for name, count in counts.hashed.items() if name in counts.read}
    assert hashed == {"source.jsonl": 1, "target.jsonl": 1}
