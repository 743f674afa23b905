"""Stores of every earlier version: what was paid for is read unchanged and is not requested again.

The dumps in ``cases/stores`` were written by the code of those versions (see ``store_dumps.py``).
"""

from __future__ import annotations

import json
import math
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.stored_scorer import StoredScorer
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Message, Prompt, Score, StoredResponse, response_id
from sinterlm.scoring.protocol import Exchange
from sinterlm.store import VERSION, ScoreKey, Store, schema
from tests.store_dumps import write_files, write_recorded_recipe
from tests.test_pipeline import Lines

DUMPS = sorted(Path(__file__).with_name("cases").joinpath("stores").glob("*.sql"))

EXTREMES = {
    "1-too-long": ["too-long"],
    "1-outputs": ["too-long"],
    "1-refused": ["too-long", "refused"],
    "2-migrations": ["too-long", "refused"],
    "3-servers": ["too-long", "refused"],
    "4-drop-counts": ["too-long", "refused"],
}
"""The version that made a dump."""


def load(dump: Path, folder: Path) -> Path:
    path = folder / "store.sqlite"
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump.read_text(encoding="utf-8"))
    return path


def rows(path: Path, query: str) -> list[dict[str, Any]]:
    """The file's content, read without the store's code."""
    with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


@pytest.fixture(params=DUMPS, ids=lambda dump: dump.stem)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of an earlier version."""
    return load(request.param, tmp_path / "workspace")


def test_there_is_a_store_of_every_version() -> None:
    """After raising the version, add a dump of the one before it, made with `store_dumps.py`."""
    assert {int(dump.stem.split("-")[0]) for dump in DUMPS} == set(range(1, VERSION + 1))


@pytest.mark.parametrize("read_only", [True, False])
def test_everything_is_read_as_it_was_written(path: Path, read_only: bool) -> None:
    tables = {name: rows(path, f"SELECT * FROM {name}") for name in ("prompts", "responses", "scores", "stages")}
    dropped = rows(path, "SELECT * FROM dropped ORDER BY rowid")
    before = path.read_bytes()
    assert min(map(len, tables.values())) >= 6
    with Store(path, read_only=read_only) as store:
        for run, part in {(row["run"], row["part"]) for row in tables["prompts"]}:
            own = [row for row in tables["prompts"] if (row["run"], row["part"]) == (run, part)]
            assert store.prompts(run, part) == [as_prompt(row) for row in sorted(own, key=lambda row: row["position"])]
        assert [as_row(response) for response in store.all_responses()] == [
            {**row, "sampling": row["sampling"] and {"repetition_penalty": 1.0, **json.loads(row["sampling"])}}
            for row in sorted(tables["responses"], key=lambda row: row["id"])
        ]
        places = rows(path, "SELECT * FROM places") if "places" in tables_of(path) else []
        assert {
            (row["identity"], prompt.content_hash, response.index, response.id)
            for row in places
            for prompt in store.prompts("../second", "sft")
            for response in next(store.responses(row["identity"], [prompt], source="old", num_samples=2))
        } == {tuple(row.values()) for row in places}
        scores = {(row["response_id"], row["scorer"], row["answers_hash"]): row for row in tables["scores"]}
        found = store.scores(ScoreKey(*key) for key in scores)
        assert {key: score_row(score) for key, score in found.items()} == {
            key: (row["value"], row["passed"], json.loads(row["detail"])) for key, row in scores.items()
        }
        for run in {row["run"] for row in tables["stages"]}:
            stages = {row["name"]: row for row in tables["stages"] if row["run"] == run}
            finished = store.finished_stages(run)
            assert {
                name: (stage.key, stage.seconds, stage.peak_memory_bytes, stage.counts, stage.finished_at)
                for name, stage in finished.items()
            } == {
                name: (
                    row["key"],
                    row["seconds"],
                    row["peak_memory_bytes"],
                    json.loads(row["counts"]),
                    row["finished_at"],
                )
                for name, row in stages.items()
            }
            assert [(drop.subject, drop.stage, drop.reason, drop.detail) for drop in store.dropped(run)] == [
                (row["subject"], row["stage"], row["reason"], row["detail"]) for row in dropped if row["run"] == run
            ]
    if read_only:
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == ["store.sqlite"]
    else:
        assert rows(path, "PRAGMA user_version") == [{"user_version": VERSION}]


def as_prompt(row: Mapping[str, Any]) -> Prompt:
    messages = tuple(Message(*message) for message in json.loads(row["messages"]))
    return Prompt(row["id"], messages, tuple(json.loads(row["answers"])), row["domain"])


def as_row(response: StoredResponse) -> dict[str, Any]:
    """A response as the table has it, its settings apart: the first release had no repetition penalty."""
    fields = ("id", "identity", "prompt_hash", "content", "finish_reason", "num_prompt_tokens", "num_tokens")
    sampling = response.sampling and asdict(response.sampling)
    return {name: getattr(response, name) for name in fields} | {"sample_index": response.index, "sampling": sampling}


def score_row(score: Score) -> tuple[float | None, int | None, dict[str, Any]]:
    value = None if math.isnan(score.value) else score.value
    return value, None if score.passed is None else int(score.passed), dict(score.detail)


def test_no_stage_is_done_again_and_no_recorded_answer_scored_again(path: Path, request: pytest.FixtureRequest) -> None:
    """Today's code resumes an earlier version's run; stages that are forced to run again add nothing new."""
    folder = path.parent.parent
    (folder / "models" / "target").mkdir(parents=True)
    write_files(folder, EXTREMES.get(request.node.callspec.id, ()))
    fusion = Fusion(load_recipe(write_recorded_recipe(folder)).recipe)
    was_run = bool(rows(path, "SELECT * FROM stages WHERE run = '../second'"))
    outcome = run_fusion(fusion, Lines(), until="score-sources")
    assert outcome.done_now == ([] if was_run else ["prompts", "sample-sources", "score-sources"])
    with Store(path) as store:
        for name in ("sample-sources", "score-sources"):
            store.forget_stage(fusion.run_name, name)
    run_fusion(fusion, Lines(), until="score-sources")
    with Store(path, read_only=True) as store:
        stages = store.finished_stages(fusion.run_name)
    assert stages["sample-sources"].counts["old answers"] == 12
    assert stages["sample-sources"].counts["old sampled now"] == 0
    assert stages["score-sources"].counts["scored now"] == 0


def test_no_sampled_answer_is_asked_for_or_scored_again(path: Path) -> None:
    """By the identities that the store has: those of today's weights, engines and scorers have tests of their own."""
    scorers = {row["response_id"]: row["scorer"] for row in rows(path, "SELECT * FROM scores")}
    sampled = rows(path, "SELECT * FROM responses WHERE sampling IS NOT NULL")
    num_scored = 0
    with Store(path) as store:
        parts = ("sft", "preference", "held_out")
        prompts = [prompt for part in parts for prompt in store.prompts("../run", part)]
        for identity in {row["identity"] for row in sampled}:
            own = [row for row in sampled if row["identity"] == identity]
            keys = {response_id(identity, row["prompt_hash"], row["sample_index"]) for row in own}
            assert store.response_ids(identity) == keys
            entries = [
                Exchange(prompt, response)
                for prompt, responses in zip(
                    prompts, store.responses(identity, prompts, source="tiny", num_samples=9), strict=True
                )
                for response in responses
            ]
            assert sorted((entry.prompt.content_hash, entry.response.index) for entry in entries) == sorted(
                (row["prompt_hash"], row["sample_index"]) for row in own
            )
            for entry in entries:
                if scorer := scorers.get(entry.response.id):
                    [score] = StoredScorer(NeverAsked(scorer), store).score([entry])
                    assert score.response_id == entry.response.id
                    num_scored += 1
    assert num_scored > 10


class NeverAsked:
    needs_answers = True

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        raise AssertionError(exchanges)

    def close(self) -> None:
        pass


# -- migrations --------------------------------------------------------------------------------------------------------


def tables_of(path: Path) -> dict[str, str]:
    """Every table and index with its definition, without white space."""
    return {
        row["name"]: re.sub(r"\s*([(),])\s*|\s+", lambda match: match[1] or " ", row["sql"].replace('"', "")).strip()
        for row in rows(path, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    }


def test_a_store_that_was_migrated_has_the_tables_of_a_new_one(path: Path, tmp_path: Path) -> None:
    Store(path).close()
    Store(tmp_path / "new.sqlite").close()
    assert tables_of(path) == tables_of(tmp_path / "new.sqlite")


KILLED = textwrap.dedent("""
    import os, sqlite3, sys
    from pathlib import Path
    from sinterlm.store import Store
    left = int(sys.argv[2])

    class Connection(sqlite3.Connection):
        def execute(self, statement, *parameters):
            global left
            result = super().execute(statement, *parameters)
            if statement.lstrip().startswith(("BEGIN", "CREATE", "PRAGMA user_version =")):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), 9)
            return result

    connect = sqlite3.connect
    sqlite3.connect = lambda *arguments, **others: connect(*arguments, factory=Connection, **others)
    Store(Path(sys.argv[1]))
""")


def test_a_kill_in_the_middle_of_a_migration_loses_nothing(tmp_path: Path) -> None:
    """Killed after each of its statements. The last process has no statement left to be killed at."""
    dump = next(dump for dump in DUMPS if dump.stem == "1-first")
    path = load(dump, tmp_path)
    before = {
        name: rows(path, f"SELECT * FROM {name}") for name in ("prompts", "responses", "scores", "stages", "dropped")
    }
    tables = {1: set(), 2: {"places", "outputs"}, 3: {"places", "outputs", "details", "ledger", "jobs"}}
    versions = []
    for num_statements in range(1, 10):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(num_statements)], check=False)
        if num_statements == 9:
            assert done.returncode == 0
            break
        assert done.returncode == -signal.SIGKILL
        with closing(sqlite3.connect(path)) as connection:  # rolls back what the process has left unfinished
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        versions.append(version)
        assert names & {"places", "outputs", "details", "ledger", "jobs"} == tables[version]
    assert versions == [1, 1, 1, 1, 2, 2, 2, 3]
    assert rows(path, "PRAGMA user_version") == [{"user_version": VERSION}]
    assert {name: rows(path, f"SELECT * FROM {name}") for name in before} == before


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a later version, which fails after it has changed the table of answers."""

    def fail(connection: sqlite3.Connection, temporary: str) -> None:
        connection.execute("DELETE FROM responses")
        connection.execute("CREATE TABLE more (x)")
        raise sqlite3.OperationalError("database or disk is full")

    path = load(DUMPS[0], tmp_path)
    before = rows(path, "SELECT * FROM responses")
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, fail))
    monkeypatch.setattr(schema, "VERSION", VERSION + 1)
    with pytest.raises(Exception, match="is full"):
        Store(path)
    assert rows(path, "PRAGMA user_version") == [{"user_version": VERSION}]
    assert rows(path, "SELECT * FROM responses") == before
    assert "more" not in tables_of(path)
