"""The store: what it has acknowledged is stored exactly once, whatever happens to the process."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinterlm.errors import InputError, TryAgainError
from sinterlm.locks import folder_lock
from sinterlm.records import (
    Dropped,
    Failure,
    Message,
    Prompt,
    Response,
    SamplingSettings,
    Score,
    Spent,
    StoredResponse,
    Usage,
    response_id,
)
from sinterlm.store import VERSION, FinishedStage, RecordedResponse, ScoreKey, Store

PROMPT = Prompt("capital-france", (Message("user", "What is the capital of France?"),), ("Paris",), "capitals")


def response(index: int, content: str = "Paris", identity: str = "gemma@1") -> Response:
    key = response_id(identity, PROMPT.content_hash, index)
    return Response(key, PROMPT.id, "gemma", index, content, "stop", 131, 2, SamplingSettings(seed=3))


def read(
    store: Store, identity: str, num_samples: int, *, prompt: Prompt = PROMPT, source: str = "gemma"
) -> list[Response]:
    [found] = store.responses(identity, [prompt], source=source, num_samples=num_samples)
    return found


def score_of(store: Store, response: Response, prompt: Prompt = PROMPT) -> Score | None:
    key = ScoreKey(response.id, "exact", prompt.answers_hash)
    return store.scores([key]).get(key)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


def test_a_response_comes_back_as_it_went_in(store: Store) -> None:
    store.add_responses("gemma@1", [(PROMPT, response(1, "Pâris\n\x00 “q”")), (PROMPT, response(0))])
    assert read(store, "gemma@1", 5) == [
        response(0),
        response(1, "Pâris\n\x00 “q”"),
    ]
    assert read(store, "gemma@1", 1) == [response(0)]
    assert read(store, "gemma@2", 5) == []
    assert store.mean_tokens("gemma@1") == (131, 2)
    assert store.mean_tokens("gemma@2") is None


def test_recipes_with_other_ids_share_answers_to_the_same_prompt(store: Store) -> None:
    store.add_responses("gemma@1", [(PROMPT, response(0))])
    renamed = Prompt("other-id", PROMPT.messages, ("Paris", "the city of Paris"))
    (shared,) = read(store, "gemma@1", 5, prompt=renamed, source="their-name")
    assert (shared.id, shared.prompt_id, shared.source) == (response(0).id, "other-id", "their-name")


def test_writing_again_changes_nothing(store: Store) -> None:
    store.add_responses("gemma@1", [(PROMPT, response(0, "first"))])
    store.add_responses("gemma@1", [(PROMPT, response(0, "second")), (PROMPT, response(0, "third"))])
    assert [r.content for r in read(store, "gemma@1", 9)] == ["first"]
    store.add_scores([(PROMPT, Score("r", "exact", 1.0, True))])
    store.add_scores([(PROMPT, Score("r", "exact", 0.0, False))])
    found = score_of(store, Response("r", PROMPT.id, "s", 0, "", "stop", 0, 0))
    assert found == Score("r", "exact", 1.0, True, {})


def test_a_score_belongs_to_the_accepted_answers(store: Store) -> None:
    store.add_scores([(PROMPT, Score(response(0).id, "exact", 1.0, True, {"contains": 1.0}))])
    stricter = Prompt(PROMPT.id, PROMPT.messages, ("Lyon",))
    assert score_of(store, response(0)) == Score(response(0).id, "exact", 1.0, True, {"contains": 1.0})
    assert score_of(store, response(0), stricter) is None


@pytest.mark.parametrize("scorer", ['a "judge"', "ä€😀", "it's\\n", "nul\0l", ""])
def test_scores_are_found_under_any_name(store: Store, scorer: str) -> None:
    """Scorers of other packages name themselves."""
    store.add_scores([(PROMPT, Score("r", scorer, 1.0)), (PROMPT, Score("r", "another", 0.0))])
    key = ScoreKey("r", scorer, PROMPT.answers_hash)
    assert store.scores([key]) == {key: Score("r", scorer, 1.0)}


def test_prompts_keep_part_and_order(store: Store) -> None:
    second = Prompt("b", (Message("system", "s"), Message("user", "u")))
    store.set_prompts("run", {"sft": [second, PROMPT], "held_out": []})
    assert store.prompts("run", "sft") == [second, PROMPT]
    store.set_prompts("run", {"sft": [PROMPT]})
    assert store.prompts("run", "sft") == [PROMPT]
    assert store.prompts("other", "sft") == []


def test_finishing_a_stage_replaces_its_drops_only(store: Store) -> None:
    kept = Dropped("p0", "select-sft", "no-passing-source-answer", "best 0")
    store.finish_stage("run", FinishedStage("select-sft", "k", 1.0, 2, {}, 1.0), [kept])
    store.finish_stage("run", FinishedStage("select-wrpo", "k1", 1.0, 2, {}, 2.0), [Dropped("p1", "select-wrpo", "x")])
    again = FinishedStage("select-wrpo", "k2", 1.5, 3, {"rows": 4}, 3.0)
    store.finish_stage("run", again, [Dropped("p2", "select-wrpo", "y")])
    assert list(store.dropped("run")) == [kept, Dropped("p2", "select-wrpo", "y")]
    assert store.finished_stages("run")["select-wrpo"] == again


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3)), max_size=6), max_size=5),
)
def test_any_order_of_writes_keeps_the_first_content_of_every_key(batches: list[list[tuple[int, str]]]) -> None:
    with TemporaryDirectory() as folder, Store(Path(folder, "store.sqlite")) as store:
        first: dict[int, str] = {}
        for batch in batches:
            store.add_responses("gemma@1", [(PROMPT, response(index, content)) for index, content in batch])
            for index, content in batch:
                first.setdefault(index, content)
        found = read(store, "gemma@1", 9)
        assert {r.index: r.content for r in found} == first
        assert store.response_ids("gemma@1") == {response(index).id for index in first}


@pytest.mark.parametrize("seed", range(5))
def test_kill_9_loses_nothing_acknowledged_and_leaves_whole_transactions(tmp_path: Path, seed: int) -> None:
    """A process writes batches of five answers, prints each batch that is acknowledged, and is killed."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from sinterlm.records import Message, Prompt, Response, response_id
        from sinterlm.store import Store
        store, prompt = Store(Path(sys.argv[1])), Prompt("p", (Message("user", "q"),))
        for batch in range(10**6):
            indices = range(5 * batch, 5 * batch + 5)
            store.add_responses("i", [
                (prompt, Response(response_id("i", prompt.content_hash, k), "p", "s", k, "x" * 2000, "stop", 1, 1))
                for k in indices
            ])
            print(batch, flush=True)
    """)
    path = tmp_path / "store.sqlite"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.02 + 0.03 * seed)
    process.send_signal(signal.SIGKILL)
    acknowledged = 1 + len([line for line in process.stdout.read().splitlines() if line.strip()])
    process.wait()
    process.stdout.close()
    stored = len(Store(path).response_ids("i"))
    assert stored % 5 == 0
    assert 5 * acknowledged <= stored <= 5 * (acknowledged + 1)


def test_a_damaged_store_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        store.add_responses("gemma@1", [(PROMPT, response(k, "x" * 3000)) for k in range(20)])
    content = bytearray(path.read_bytes())
    content[:100] = b"not a database at all" * 4 + b"0" * 16
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"store\.sqlite.*damaged"):
        Store(path)


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for read_only in (True, False):
        with pytest.raises(InputError, match=rf"version 99, written by a newer release .* up to {VERSION}\. Upgrade"):
            Store(path, read_only=read_only)


@pytest.mark.parametrize("read_only", [True, False])
def test_an_empty_file_is_no_new_store(read_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.touch()
    with pytest.raises(InputError, match=r"store\.sqlite: is empty, but a database was expected.*a copy"):
        Store(path, read_only=read_only)
    assert path.stat().st_size == 0


def test_a_kill_while_a_store_is_made_leaves_none(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, sqlite3, sys
        from pathlib import Path
        from sinterlm.store import Store
        os.fsync = lambda _: os.kill(os.getpid(), 9)
        Store(Path(sys.argv[1]))
    """)
    path = tmp_path / "new" / "store.sqlite"
    path.parent.mkdir()
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -signal.SIGKILL
    assert not path.exists()
    Store(path).close()
    assert [file.name for file in path.parent.iterdir()] == ["store.sqlite"]


def test_the_log_of_a_store_that_is_gone_is_not_read_into_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path)
    store.add_responses("gemma@1", [(PROMPT, response(0))])
    path.unlink()  # while the log still holds the answer
    with pytest.raises(InputError, match=r"the store is missing, but its log store\.sqlite-wal exists"):
        Store(path)
    store.close()


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (name TEXT)")
    connection.close()
    before = path.read_bytes()
    for read_only in (True, False):
        with pytest.raises(InputError, match=r"store\.sqlite: is a database of another program"):
            Store(path, read_only=read_only)
    assert path.read_bytes() == before


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("read_only", [True, False])
def test_links_are_refused(ending: str, read_only: bool, tmp_path: Path) -> None:
    """SQLite would write where they point, and this folder's lock does not protect that place."""
    workspace, mine = tmp_path / "workspace", tmp_path / "mine"
    path = workspace / "store.sqlite"
    workspace.mkdir()
    Store(path).close()
    if ending:
        mine.write_text("mine")
    else:
        path.rename(mine)
    before = mine.read_bytes()
    path.with_name(f"store.sqlite{ending}").symlink_to(mine)
    with pytest.raises(InputError, match=rf"store\.sqlite{ending}: is a symbolic link"):
        Store(path, read_only=read_only)
    assert mine.read_bytes() == before


@pytest.mark.parametrize("read_only", [True, False])
def test_any_damage_is_said_and_no_traceback(read_only: bool, tmp_path: Path) -> None:
    """Pages of zeros, cut files, flipped bits: SQLite finds most; what it misses is not valid JSON."""
    path, damaged = tmp_path / "store.sqlite", tmp_path / "damaged" / "store.sqlite"
    with Store(path) as store:
        store.set_prompts("run", {"sft": [PROMPT]})
        store.add_responses("gemma@1", [(PROMPT, response(index, "Paris " * 300)) for index in range(20)])
        store.add_scores([(PROMPT, Score(response(index).id, "exact", 1.0, True, {"a": 1})) for index in range(20)])
        store.finish_stage("run", FinishedStage("sample", "key", 1.0, 1, {"answers": 20}))
    content = path.read_bytes()
    rng = random.Random(0)
    cases = []
    for start in range(0, len(content), 4096):
        cases.append(content[:start] + bytes(4096) + content[start + 4096 :])
        cases.append(content[: start + rng.randrange(4096)])
    for _ in range(40):
        flipped = bytearray(content)
        for _ in range(20):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        cases.append(bytes(flipped))
    num_refused = 0
    damaged.parent.mkdir()
    for case in cases:
        for file in damaged.parent.iterdir():
            file.unlink()
        damaged.write_bytes(case)
        try:
            with Store(damaged, read_only=read_only) as store:
                for prompt in store.prompts("run", "sft"):
                    for answer in read(store, "gemma@1", 20, prompt=prompt):
                        score_of(store, answer, prompt)
                list(store.all_responses()), list(store.all_scores()), list(store.dropped("run"))
                store.finished_stages("run")
        except InputError:
            num_refused += 1
    assert num_refused > len(cases) // 2


def test_reading_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store here"):
        Store(tmp_path / "store.sqlite", read_only=True)
    assert not (tmp_path / "store.sqlite").exists()


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    store.add_responses("gemma@1", [(PROMPT, response(0))])
    store._connection.execute("PRAGMA max_page_count = 40")  # SQLite reports this limit like a full disk
    with pytest.raises(TryAgainError, match="full"):
        store.add_responses("gemma@1", [(PROMPT, response(k, "x" * 9000)) for k in range(1, 90)])
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert store.response_ids("gemma@1") == {response(0).id}
    store.add_responses("gemma@1", [(PROMPT, response(k, "x" * 9000)) for k in range(1, 90)])
    assert len(store.response_ids("gemma@1")) == 90


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from sinterlm.locks import folder_lock
        with folder_lock(Path(sys.argv[1]), Path("runs/first")):
            print("held", flush=True)
            sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(TryAgainError, match=rf"process {process.pid} .*runs/first"),
        folder_lock(tmp_path, Path("runs/second")),
    ):
        pass
    process.kill()  # the operating system frees the lock of a dead process
    process.communicate()
    with folder_lock(tmp_path, Path("runs/second")):
        pass


# -- recorded answers --------------------------------------------------------------------------------------------------


def recorded(index: int, text: str, number: int = 0) -> RecordedResponse:
    return RecordedResponse(index, StoredResponse(f"text {text}", PROMPT.content_hash, number, text, "stop", 0, 0))


def contents(store: Store, identity: str) -> list[tuple[int, str]]:
    found = read(store, identity, 9)
    return [(response.index, response.content) for response in found]


def test_a_recorded_answer_keeps_its_id_at_another_place_of_another_file(store: Store) -> None:
    assert store.set_recorded("file 1", [PROMPT], [recorded(0, "a"), recorded(1, "b")], num_samples=9) == 2
    assert store.set_recorded("file 2", [PROMPT], [recorded(0, "b"), recorded(1, "c")], num_samples=9) == 1
    assert (contents(store, "file 1"), contents(store, "file 2")) == ([(0, "a"), (1, "b")], [(0, "b"), (1, "c")])
    [[_, second], [first, _]] = [[each.id for each in read(store, f"file {number}", 9)] for number in (1, 2)]
    assert first == second


def test_what_a_file_gives_to_a_prompt_is_what_was_found_last(store: Store) -> None:
    """The prompts' ids may have changed; another recipe that looks for fewer answers keeps the others."""
    store.set_recorded("file", [PROMPT], [recorded(0, "a"), recorded(1, "b")], num_samples=2)
    store.set_recorded("file", [PROMPT], [recorded(0, "c")], num_samples=1)
    assert contents(store, "file") == [(0, "c"), (1, "b")]
    store.set_recorded("file", [PROMPT], [], num_samples=9)
    assert contents(store, "file") == []


def test_recorded_answers_of_earlier_releases_keep_their_scores(tmp_path: Path) -> None:
    """Stores without a table of places named them by their file; what was there stays, and what changed is new."""
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        store.add_responses("file", [(PROMPT, response(0, "a", "file")), (PROMPT, response(1, "b", "file"))])
        tables = ("places", "details", "ledger", "failures", "notes", "jobs", "drop_counts")
        store._connection.executescript("".join(f"DROP TABLE {name};" for name in tables) + "PRAGMA user_version = 1")
    with Store(path, read_only=True) as store:
        assert contents(store, "file") == [(0, "a"), (1, "b")]
        old = [each.id for each in read(store, "file", 9)]
    with Store(path) as store:
        assert store.set_recorded("file", [PROMPT], [recorded(0, "a"), recorded(1, "c")], num_samples=9) == 1
        assert contents(store, "file") == [(0, "a"), (1, "c")]
        new = [each.id for each in read(store, "file", 9)]
    assert new[0] == old[0]
    assert new[1] != old[1]


def test_what_servers_say_and_cost_is_kept_by_run_stage_and_model(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    prompt = Prompt("p", (Message("user", "Why?"),))
    response = Response("r", "p", "a", 0, "So.", "stop", 5, 2, None, "Because so.", "model-1 (fp_9)")
    with Store(path) as store:
        store.add_responses("who", [(prompt, response)])
        store.add_responses("who", [(prompt, replace(response, content="Other.", reasoning="Else."))])
        for usage, money in ((Usage(1, 20, 4, 5), 0.25), (Usage(2, 30, 0, 7), 0.5)):
            store.add_spent("run", Spent("sample-sources", "a", usage, 1, money, 2.0))
        store.add_spent("other", Spent("sample-sources", "a", Usage(9), 0, 0.0))
        store.add_failures("run", "sample-sources", "a", [Failure("q", 0, "x")])
        store.forget_failures("run", "sample-sources")
        store.add_failures("run", "sample-sources", "a", [Failure("p", 1, "timed-out", "slow")])
        store.add_failures("run", "sample-sources", "b", [Failure("p", 0, "refused")])
        store.add_notes("run", "sample-sources", "a", ["the server ignores n", "the server ignores n"])
        store.set_job("who", "0", "sent", {"id": "batch_1"})
        store.set_job("who", "0", "done", {"id": "batch_1", "file": "f"})
    with Store(path, read_only=True) as store:
        (found,) = next(store.responses("who", [prompt], source="a", num_samples=2))
        assert replace(found, id="r") == response
        assert next(store.all_responses()).reasoning == "Because so."
        assert store.ledger("run") == [Spent("sample-sources", "a", Usage(3, 50, 4, 12), 2, 0.75, 4.0)]
        assert store.ledger()[0].usage.requests == 12
        assert list(store.failures("run")) == [
            ("sample-sources", "a", Failure("p", 1, "timed-out", "slow")),
            ("sample-sources", "b", Failure("p", 0, "refused")),
        ]
        assert [note[:3] for note in store.notes("run")] == [("sample-sources", "a", "the server ignores n")]
        assert store.jobs("who") == {"0": ("done", {"id": "batch_1", "file": "f"})}


def test_writes_of_one_transaction_are_kept_together_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        with suppress(RuntimeError), store.transaction():
            store.add_spent("run", Spent("s", "a", Usage(1), 1, 0.0))
            raise RuntimeError
        assert store.ledger("run") == []


def test_threads_write_side_by_side(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as store:

        def spend(model: str) -> None:
            for _ in range(20):
                with store.transaction():
                    store.add_spent("run", Spent("s", model, Usage(1), 1, 0.5))
                    store.add_notes("run", "s", model, ["x"])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(spend, "abab"))
        assert [(spent.model, spent.usage.requests, spent.money) for spent in store.ledger("run")] == [
            ("a", 40, 20.0),
            ("b", 40, 20.0),
        ]
