"""The workspace's store: prompts, responses, scores, drops and finished stages in one SQLite file.

One process at a time owns it (see :func:`sinterlm.locks.folder_lock`) and writes in transactions: once a method has
returned, what it wrote survives ``kill -9`` and a power cut. Writing the same record again changes nothing. Answers and
scores belong to the workspace and are shared by its recipes; split, drops and stages belong to a *run*, which is named
by its output folder.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, TypeVar

from sinterlm.errors import InputError, TryAgainError
from sinterlm.files import atomic_write
from sinterlm.records import (
    IMPORT,
    NOT_ASKED,
    Dropped,
    Failure,
    Message,
    Prompt,
    Response,
    SamplingSettings,
    Score,
    Spent,
    StoredResponse,
    StoredScore,
    Usage,
    response_id,
)
from sinterlm.store.schema import VERSION, create_tables, read_version, show_as_upgraded, upgrade
from sinterlm.streams import chunks

Made = TypeVar("Made")

CHUNK = 1000
"""The number of keys in one statement, limited so that memory does not grow with the store."""


@dataclass(frozen=True, slots=True)
class FinishedStage:
    """A finished stage, and what it took.

    Example: ``FinishedStage("sample-sources", "5e..", 12.5, 1_900_000_000, {"responses": 4300})``
    """

    name: str
    key: str
    """Hash of everything that decides the stage's result; with another key the stage must run again."""
    seconds: float
    peak_memory_bytes: int
    counts: Mapping[str, float] = field(default_factory=dict)
    finished_at: float = 0.0
    """Unix time."""
    outputs: Mapping[str, Mapping[str, Any]] | None = None
    """Size and hash of every file that it left, by path in the run's folder (see
    :func:`sinterlm.files.record_files`); None for a stage of an earlier release."""
    seen: str = ""
    """The state of these files on the disk (see :func:`sinterlm.files.describe_state`) when they were last found to be
    as recorded."""


class Merged(NamedTuple):
    """What became of imported answers and scores."""

    new_responses: int
    new_scores: int
    known_responses: int
    """Responses that the store already had, word for word."""
    known_scores: int
    """Scores that the store already had."""
    dropped: Sequence[Dropped]
    """Responses for which the store has another text under the same key, scores without a response in the store, and
    what could not be read."""


class RecordedResponse(NamedTuple):
    """An answer that a file gives to a prompt as its sample of this index."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    response: StoredResponse
    """With its own identity and index, which need not be its place in the file."""


class ScoreKey(NamedTuple):
    """The key of a score."""

    response_id: str
    scorer: str
    """The name under which it is kept: the scorer's identity, or one that also names the answer's place."""
    answers_hash: str
    """See :attr:`Prompt.answers_hash`."""


class Store:
    """One workspace's ``store.sqlite``.

    Args:
        path: The file, created if it does not exist. A store of an earlier release is upgraded.
        read_only: Neither create nor change the file: for ``plan``, ``status`` and ``report``, which may read while a
            run writes.

    Raises:
        InputError: The file is damaged, is not a store, or was written by a newer release.
        TryAgainError: The disk is full (from any writing method).
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lock = RLock()
        """Models are asked side by side, each in its own thread, and all write here."""
        if read_only and not path.exists():
            raise InputError(f"{path}: no store here; run a recipe in this workspace first")
        _require_no_links(path)
        with self._translated_errors():
            if not path.exists():
                _create(path)
            elif path.stat().st_size == 0:
                raise InputError(
                    f"{path}: is empty, but a database was expected: something has cut it short. Restore it from a "
                    "copy; if you have none, remove it, and the same command begins with a new one"
                )
            self._connection = (
                self._connect_read_only() if read_only else sqlite3.connect(path, check_same_thread=False)
            )
            try:
                self._prepare(read_only)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, read_only: bool) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        version = read_version(connection)
        if version < 1:
            raise InputError(f"{self.path}: is a database of another program; expected a Sinter store")
        if version > VERSION:
            raise InputError(
                f"{self.path}: store of version {version}, written by a newer release of Sinter; this one reads "
                f"versions up to {VERSION}. Upgrade Sinter, or use another workspace"
            )
        if read_only:
            show_as_upgraded(connection)
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            upgrade(connection)

    def _connect_read_only(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True)
        try:
            connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.OperationalError:
            # On a read-only disk SQLite cannot make the file that readers share with a writer, but nobody writes there.
            if self.path.with_name(f"{self.path.name}-wal").exists() or os.access(self.path.parent, os.W_OK):
                raise
            connection = sqlite3.connect(f"{uri}&immutable=1", uri=True)
        return connection

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- prompts -------------------------------------------------------------------------------------------------

    def set_prompts(self, run: str, parts: Mapping[str, Sequence[Prompt]]) -> None:
        """Replace the run's prompts and their parts (``held_out``, ``sft``, ...)."""
        rows = (
            (run, prompt.id, part, position, prompt.content_hash, json.dumps(prompt.messages), *_answers(prompt))
            for part, prompts in parts.items()
            for position, prompt in enumerate(prompts)
        )
        with self.transaction() as connection:
            connection.execute("DELETE FROM prompts WHERE run = ?", (run,))
            connection.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def prompts(self, run: str, part: str) -> list[Prompt]:
        """The prompts of one part, in the split's order."""
        query = "SELECT * FROM prompts WHERE run = ? AND part = ? ORDER BY position"
        return [
            Prompt(
                id=row["id"],
                messages=_messages(row),
                answers=_parse(row["answers"], tuple),
                domain=row["domain"],
            )
            for row in self._read(query, run, part)
        ]

    def domains(self, run: str) -> dict[str, str]:
        """The domain of every prompt of the run that has one, by id."""
        query = "SELECT id, domain FROM prompts WHERE run = ? AND domain != ''"
        return {row["id"]: row["domain"] for row in self._stream(query, run)}

    # -- responses -----------------------------------------------------------------------------------------------

    def response_ids(self, identity: str) -> set[str]:
        """The ids of all responses of one source identity."""
        return {row["id"] for row in self._read("SELECT id FROM responses WHERE identity = ?", identity)}

    def sample_indices(self, identity: str, prompt_hashes: Sequence[str]) -> set[tuple[str, int]]:
        """Which responses of one source identity to a few hundred prompts are stored: prompt hash and sample index."""
        query = """SELECT prompt_hash, sample_index FROM json_each(?) AS asked
                   CROSS JOIN responses ON identity = ? AND prompt_hash = asked.value"""
        return {(name, index) for name, index in self._read(query, json.dumps(list(prompt_hashes)), identity)}

    def add_responses(self, identity: str, responses: Iterable[tuple[Prompt, Response]]) -> None:
        """Write responses; those already stored stay as they are."""
        with self.transaction():
            for prompt, response in responses:
                self._add_response(_response_row(identity, prompt.content_hash, response), response)

    def _add_response(self, row: tuple[Any, ...], response: Response | StoredResponse) -> bool:
        """Write a response within a transaction, unless one of the same id is stored; says whether it was written."""
        is_new = self._connection.execute(_INSERT_RESPONSE, row).rowcount > 0
        if is_new and (response.reasoning or response.served_by):
            self._connection.execute(_INSERT_DETAILS, (row[0], response.reasoning, response.served_by))
        return is_new

    def set_recorded(
        self, identity: str, prompts: Iterable[Prompt], answers: Iterable[RecordedResponse], *, num_samples: int
    ) -> int:
        """Write the answers that a file of recorded answers gives to prompts, replacing those that it gave before.

        Args:
            identity: The file's identity.
            prompts: All prompts for which the file was searched.
            answers: The answers that were found.
            num_samples: How many answers to each prompt were looked for.

        Returns:
            The number of answers that the store did not have.
        """
        num_new = 0
        with self.transaction() as connection:
            connection.executemany(
                "DELETE FROM places WHERE identity = ? AND prompt_hash = ? AND sample_index < ?",
                ((identity, prompt.content_hash, num_samples) for prompt in prompts),
            )
            for found in chunks(answers, CHUNK):
                # Earlier releases named a recorded answer by its file: answers stored that way stay, with their scores.
                old = [response_id(identity, response.prompt_hash, index) for index, response in found]
                contents = self._contents(old)
                named = [
                    (index, _response_row(response.identity, response.prompt_hash, response))
                    for (index, response), key in zip(found, old, strict=True)
                    if contents.get(key) != response.content
                ]
                num_new += connection.executemany(_INSERT_RESPONSE, [row for _, row in named]).rowcount
                # Prompts of one text have one place: the first one's answer.
                connection.executemany(
                    "INSERT OR IGNORE INTO places VALUES (?, ?, ?, ?)",
                    [(identity, row[2], index, row[0]) for index, row in named],
                )
        return num_new

    def _contents(self, ids: Sequence[str]) -> dict[str, str]:
        """The texts of stored responses by id."""
        query = "SELECT id, content FROM responses WHERE id IN (SELECT value FROM json_each(?))"
        return {row["id"]: row["content"] for row in self._read(query, json.dumps(ids))}

    def responses(
        self, identity: str, prompts: Sequence[Prompt], *, source: str, num_samples: int
    ) -> Iterator[list[Response]]:
        """The responses of one source identity to each of ``prompts``, in their order.

        Args:
            identity: Who was asked, and how.
            prompts: All prompts whose responses to read; a few hundred are read at once.
            source: The name that the responses get.
            num_samples: Read at most this many responses to a prompt, the first by sample index.
        """
        query = """WITH asked (identity, prompt_hash, num_samples) AS (SELECT ?, value, ? FROM json_each(?))
                   SELECT responses.*, reasoning, served_by, places.sample_index AS place FROM asked
                   CROSS JOIN places USING (identity, prompt_hash) JOIN responses ON responses.id = places.response_id
                   LEFT JOIN details ON details.response_id = responses.id
                   WHERE places.sample_index < num_samples
                   UNION ALL
                   SELECT responses.*, reasoning, served_by, responses.sample_index AS place FROM asked
                   CROSS JOIN responses USING (identity, prompt_hash)
                   LEFT JOIN details ON details.response_id = responses.id
                   WHERE responses.sample_index < num_samples
                   AND (identity, prompt_hash, responses.sample_index)
                   NOT IN (SELECT identity, prompt_hash, sample_index FROM places)
                   ORDER BY place"""
        for asked in chunks(prompts, max(1, CHUNK // num_samples)):
            found: dict[str, list[Any]] = defaultdict(list)
            hashes = {prompt.content_hash for prompt in asked}
            for row in self._read(query, identity, num_samples, json.dumps(sorted(hashes))):
                found[row["prompt_hash"]].append(row)
            for prompt in asked:
                yield [
                    Response(id=row["id"], prompt_id=prompt.id, source=source, index=row["place"], **_answer(row))
                    for row in found[prompt.content_hash]
                ]

    def mean_tokens(self, identity: str) -> tuple[float, float] | None:
        """The mean prompt and answer tokens of a source identity's responses, for estimates; None without responses."""
        query = """SELECT AVG(num_prompt_tokens), AVG(num_tokens), COUNT(*) FROM responses
                   WHERE identity = ? AND finish_reason NOT IN (?, ?)"""
        prompt_tokens, tokens, count = self._read(query, identity, *NOT_ASKED)[0]
        return (prompt_tokens, tokens) if count else None

    # -- scores --------------------------------------------------------------------------------------------------

    def add_scores(self, scores: Iterable[tuple[Prompt, Score]]) -> None:
        """Write scores; those already stored stay as they are."""
        rows = [_score_row(StoredScore(score, prompt.answers_hash)) for prompt, score in scores]
        with self.transaction() as connection:
            connection.executemany(_INSERT_SCORE, rows)

    def scores(self, keys: Iterable[ScoreKey]) -> dict[ScoreKey, Score]:
        """The stored scores by their keys; keys without a score are left out."""
        query = "SELECT scores.* FROM json_each(?) AS asked CROSS JOIN scores ON response_id = asked.value"
        found = {}
        for chunk in chunks(keys, CHUNK):
            asked = set(chunk)
            for row in self._read(query, json.dumps(sorted({key.response_id for key in asked}))):
                key = ScoreKey(row["response_id"], row["scorer"], row["answers_hash"])
                if key in asked:  # an answer may have a few other scores
                    found[key] = _score(row)
        return found

    def has_scores(self, scorer: str) -> bool:
        """Whether ``scorer`` has scored anything."""
        return bool(self._read("SELECT 1 FROM scores WHERE scorer = ? LIMIT 1", scorer))

    # -- servers -------------------------------------------------------------------------------------------------

    def add_spent(self, run: str, spent: Spent) -> None:
        """Add to what the run has spent on a model in a stage. Call it in the transaction that writes the answers."""
        with self.transaction() as connection:
            connection.execute(_ADD_SPENT, (run, spent.stage, spent.model, *spent.usage, *spent[3:]))

    def ledger(self, run: str | None = None) -> list[Spent]:
        """What a run has spent, by stage and model; by default every run of the workspace together."""
        query = """SELECT stage, model, SUM(requests), SUM(prompt_tokens), SUM(cached_tokens), SUM(new_tokens),
                   SUM(items), SUM(money), SUM(seconds) FROM ledger WHERE run = ? OR ? GROUP BY stage, model"""
        return [
            Spent(stage, model, Usage(*usage), items, money, seconds)
            for stage, model, *usage, items, money, seconds in self._read(query, run, run is None)
        ]

    def forget_failures(self, run: str, stage: str) -> None:
        """Forget a stage's failed requests before they are sent again."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM failures WHERE run = ? AND stage = ?", (run, stage))

    def add_failures(self, run: str, stage: str, model: str, failures: Iterable[Failure]) -> None:
        """Keep failed requests of a model in a stage."""
        with self.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(run, stage, model, *failure) for failure in failures],
            )

    def failures(self, run: str) -> Iterator[tuple[str, str, Failure]]:
        """Every failed request of the run, with its stage and model."""
        query = "SELECT stage, model, prompt_id, sample_index, kind, detail FROM failures WHERE run = ?"
        for stage, model, *failure in self._read(query, run):
            yield stage, model, Failure(*failure)

    def count_failures(self, run: str) -> list[tuple[str, str, str, int, Failure]]:
        """The run's failed requests by stage, model and kind: their number, and the first of them as an example."""
        # SQLite takes the other columns from the row that has the minimum.
        query = """SELECT stage, model, kind, COUNT(*), MIN(prompt_id), sample_index, detail FROM failures
                   WHERE run = ? GROUP BY stage, model, kind ORDER BY stage, model, COUNT(*) DESC, kind"""
        return [
            (stage, model, kind, number, Failure(prompt_id, index, kind, detail))
            for stage, model, kind, number, prompt_id, index, detail in self._read(query, run)
        ]

    def add_notes(self, run: str, stage: str, model: str, texts: Iterable[str]) -> None:
        """Keep sentences about a model in a stage, each once, with the time of the first."""
        with self.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO notes VALUES (?, ?, ?, ?, ?)",
                [(run, stage, model, text, time.time()) for text in texts],
            )

    def notes(self, run: str) -> list[tuple[str, str, str, float]]:
        """The run's notes in order: stage, model, text and Unix time."""
        query = "SELECT stage, model, text, noted_at FROM notes WHERE run = ? ORDER BY noted_at, text"
        return [(stage, model, text, noted_at) for stage, model, text, noted_at in self._read(query, run)]

    def set_job(self, identity: str, name: str, state: str, detail: Mapping[str, Any]) -> None:
        """Keep the state of a job that a server does on its own for the source ``identity``."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?)", (identity, name, state, json.dumps(dict(detail)))
            )

    def jobs(self, identity: str) -> dict[str, tuple[str, dict[str, Any]]]:
        """State and details of every job of a source, by name."""
        query = "SELECT name, state, detail FROM jobs WHERE identity = ? ORDER BY name"
        return {name: (state, _parse(detail, dict)) for name, state, detail in self._read(query, identity)}

    # -- sharing -------------------------------------------------------------------------------------------------

    def all_responses(self) -> Iterator[StoredResponse]:
        """Every response of the workspace, by id."""
        query = """SELECT responses.*, reasoning, served_by, asked.messages FROM responses
                   LEFT JOIN details ON details.response_id = responses.id
                   LEFT JOIN (SELECT content_hash, MIN(messages) AS messages FROM prompts GROUP BY content_hash) asked
                   ON asked.content_hash = responses.prompt_hash ORDER BY responses.id"""
        for row in self._stream(query):
            yield StoredResponse(
                identity=row["identity"],
                prompt_hash=row["prompt_hash"],
                index=row["sample_index"],
                **_answer(row),
                prompt=_messages(row) if row["messages"] else None,
            )

    def all_scores(self) -> Iterator[StoredScore]:
        """Every score of the workspace, by the response's id."""
        for row in self._stream("SELECT * FROM scores ORDER BY response_id, scorer, answers_hash"):
            yield StoredScore(_score(row), row["answers_hash"])

    def merge(self, responses: Iterable[StoredResponse], scores: Iterable[StoredScore | Dropped]) -> Merged:
        """Import answers and scores in one transaction; those already stored stay as they are.

        A response for which the store has another text is dropped with its scores, which do not belong to that text. If
        either iterable raises an error, the store stays as it was.
        """
        counts: Counter[str] = Counter()
        dropped: dict[str, Dropped] = {}
        unusable: list[Dropped] = []
        with self.transaction() as connection:
            for response in responses:
                row = _response_row(response.identity, response.prompt_hash, response)
                key = row[0]
                if self._add_response(row, response):
                    counts["new responses"] += 1
                elif self._contents([key])[key] == response.content:
                    counts["known responses"] += 1
                else:
                    detail = f"identity {response.identity}, prompt {response.prompt_hash}, sample {response.index}"
                    dropped[key] = Dropped(key, IMPORT, "another-answer-is-stored", detail)
            for stored in scores:
                if isinstance(stored, Dropped):
                    unusable.append(stored)
                    continue
                subject = stored.score.response_id
                if subject in dropped or not self._read("SELECT 1 FROM responses WHERE id = ?", subject):
                    unusable.append(Dropped(subject, IMPORT, "score-of-no-stored-answer", stored.score.scorer))
                else:
                    is_new = connection.execute(_INSERT_SCORE, _score_row(stored)).rowcount
                    counts["new scores" if is_new else "known scores"] += 1
        return Merged(
            counts["new responses"],
            counts["new scores"],
            counts["known responses"],
            counts["known scores"],
            [*dropped.values(), *unusable],
        )

    # -- stages and drops ----------------------------------------------------------------------------------------

    def finish_stage(self, run: str, stage: FinishedStage, dropped: Iterable[Dropped] = ()) -> None:
        """Mark a stage as finished and write what it dropped, in one transaction; the drops are read once."""
        counts: Counter[str] = Counter()

        def rows() -> Iterator[tuple[str, ...]]:
            for drop in dropped:
                counts[drop.reason] += 1
                yield run, stage.name, drop.subject, drop.reason, drop.detail

        with self.transaction() as connection:
            for table in ("dropped", "drop_counts"):
                connection.execute(f"DELETE FROM {table} WHERE run = ? AND stage = ?", (run, stage.name))
            connection.executemany("INSERT INTO dropped VALUES (?, ?, ?, ?, ?)", rows())
            connection.executemany(
                "INSERT INTO drop_counts VALUES (?, ?, ?, ?)",
                [(run, stage.name, reason, number) for reason, number in counts.items()],
            )
            connection.execute(
                "INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    run,
                    stage.name,
                    stage.key,
                    stage.seconds,
                    stage.peak_memory_bytes,
                    json.dumps(dict(stage.counts)),
                    stage.finished_at or time.time(),
                ),
            )
            _set_outputs(connection, run, stage)

    def see_outputs(self, run: str, stage: FinishedStage) -> None:
        """Store what is known about the files of a finished stage."""
        with self.transaction() as connection:
            _set_outputs(connection, run, stage)

    def forget_stage(self, run: str, name: str) -> None:
        """Unmark a stage before it runs again: its outputs cannot be trusted until it is finished."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM stages WHERE run = ? AND name = ?", (run, name))

    def finished_stages(self, run: str) -> dict[str, FinishedStage]:
        """The run's finished stages by name."""
        query = """SELECT stages.*, outputs.files, outputs.seen FROM stages
                   LEFT JOIN outputs ON outputs.run = stages.run AND outputs.stage = stages.name
                   WHERE stages.run = ? ORDER BY finished_at"""
        return {
            row["name"]: FinishedStage(
                row["name"],
                row["key"],
                row["seconds"],
                row["peak_memory_bytes"],
                _parse(row["counts"], dict),
                row["finished_at"],
                _parse(row["files"], dict) if row["files"] else None,
                row["seen"] or "",
            )
            for row in self._read(query, run)
        }

    def dropped(self, run: str) -> Iterator[Dropped]:
        """Everything that the run has dropped, in order, read row by row."""
        for row in self._stream("SELECT * FROM dropped WHERE run = ? ORDER BY rowid", run):
            yield Dropped(row["subject"], row["stage"], row["reason"], row["detail"])

    def count_dropped(self, run: str) -> dict[str, dict[str, int]]:
        """The run's numbers of drops by stage and reason, the most frequent reason first."""
        query = "SELECT stage, reason, number FROM drop_counts WHERE run = ? ORDER BY stage, number DESC, reason"
        counts: dict[str, dict[str, int]] = {}
        for stage, reason, number in self._read(query, run):
            counts.setdefault(stage, {})[reason] = number
        return counts

    # -- the file ------------------------------------------------------------------------------------------------

    def _stream(self, query: str, *parameters: object) -> Iterator[Any]:
        """Like :meth:`_read`, but row by row, for results that may not fit in memory."""
        with self._translated_errors():
            yield from self._connection.execute(query, parameters)

    def _read(self, query: str, *parameters: object) -> list[Any]:
        with self._lock, self._translated_errors():
            return self._connection.execute(query, parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Make all writes within it one transaction: all are kept, or none. Threads take turns.

        Writing methods called within it join it.
        """
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            with self._translated_errors(), self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise TryAgainError(f"{self.path}: {error}; free some space and rerun the command") from error
            if "locked" in str(error):
                raise TryAgainError(f"{self.path}: {error} by another program; rerun the command") from error
            raise InputError(
                f"{self.path}: cannot be used as a store ({error}); check the permissions of the file and of its "
                "folder, or use a new workspace"
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise InputError(
                f"{self.path}: the store is damaged ({error}); restore it from a backup or use a new workspace"
            ) from error


def _set_outputs(connection: sqlite3.Connection, run: str, stage: FinishedStage) -> None:
    files = None if stage.outputs is None else json.dumps(stage.outputs)
    connection.execute("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?)", (run, stage.name, files, stage.seen))


def _create(path: Path) -> None:
    """Create an empty store, whole or not at all.

    Raises:
        InputError: There is a log of SQLite, which may hold answers of a store that is gone.
        TryAgainError: The disk is full.
    """
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise InputError(
            f"{path}: the store is missing, but its log {log.name} exists. Restore the store from a copy, beside its "
            "log; if you have none, remove the log, and the same command begins with a new store"
        )
    with atomic_write(path) as temporary, closing(sqlite3.connect(temporary)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        create_tables(connection)


def _require_no_links(path: Path) -> None:
    """Refuse a database that is elsewhere: this folder's lock does not protect it, and SQLite would write there.

    Raises:
        InputError: The file, or one that SQLite keeps beside it, is a symbolic link.
    """
    for file in (path, *(path.with_name(f"{path.name}-{ending}") for ending in ("wal", "shm", "journal"))):
        if file.is_symlink():
            raise InputError(
                f"{file}: is a symbolic link, which a store must not be; use the folder of the store as the workspace, "
                "or put the file itself here"
            )


_INSERT_RESPONSE = "INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_SPENT = """INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens, new_tokens = new_tokens + excluded.new_tokens,
    items = items + excluded.items, money = money + excluded.money, seconds = seconds + excluded.seconds"""
_INSERT_DETAILS = "INSERT OR REPLACE INTO details VALUES (?, ?, ?)"
_INSERT_SCORE = "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?)"


def _response_row(identity: str, prompt_hash: str, response: Response | StoredResponse) -> tuple[Any, ...]:
    return (
        response.id,
        identity,
        prompt_hash,
        response.index,
        response.content,
        response.finish_reason,
        response.num_prompt_tokens,
        response.num_tokens,
        json.dumps(asdict(response.sampling)) if response.sampling else None,
    )


def _score_row(stored: StoredScore) -> tuple[object, ...]:
    score = stored.score
    detail = json.dumps(dict(score.detail))
    return score.response_id, score.scorer, stored.answers_hash, score.value, score.passed, detail


def _score(row: Mapping[str, Any]) -> Score:
    passed = None if row["passed"] is None else bool(row["passed"])
    value = math.nan if row["value"] is None else row["value"]  # SQLite keeps NaN as NULL
    return Score(row["response_id"], row["scorer"], value, passed, _parse(row["detail"], dict))


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that :class:`Response` and :class:`StoredResponse` have in common."""
    return {
        "content": row["content"],
        "finish_reason": row["finish_reason"],
        "num_prompt_tokens": row["num_prompt_tokens"],
        "num_tokens": row["num_tokens"],
        "sampling": _parse(row["sampling"], lambda kept: SamplingSettings(**kept)) if row["sampling"] else None,
        "reasoning": row["reasoning"] or "",
        "served_by": row["served_by"] or "",
    }


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    return _parse(row["messages"], lambda kept: tuple(Message(*message) for message in kept))


def _parse(text: str, make: Callable[[Any], Made]) -> Made:
    """Parse a column of JSON.

    Raises:
        InputError: The column is damaged.
    """
    try:
        return make(json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"store.sqlite of this workspace is damaged: {text!r:.80} is not a record ({error}); restore it from a "
            "backup or use a new workspace"
        ) from error


def _answers(prompt: Prompt) -> tuple[str, str]:
    return json.dumps(list(prompt.answers)), prompt.domain
