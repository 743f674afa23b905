"""The tables of the store, and the migrations from earlier versions.

A store keeps its version in ``PRAGMA user_version``. A new store gets the tables of version 1 and then every step of
:data:`MIGRATIONS`; an old store gets the steps that it lacks. So no table is described twice. To change the tables,
append a step. Never edit a released step, since existing stores have already taken it. Each step and its version number
are one transaction, so that a process killed in the middle leaves a store of one version or the next.

Version 1
    Prompts, responses, scores, drops and finished stages.
Version 2
    Places of recorded answers, and the outputs of finished stages. Some releases made these tables without a new
    number, so a store of version 1 may already have one or both.
Version 3
    What servers say beside an answer, the ledger, failed requests, notes, and jobs that a server does on its own.
Version 4
    The numbers of drops, so that nobody counts millions of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

_VERSION_1: Final = """
CREATE TABLE prompts (
    run TEXT, id TEXT, part TEXT, position INTEGER, content_hash TEXT, messages TEXT, answers TEXT, domain TEXT,
    PRIMARY KEY (run, id)
) WITHOUT ROWID;
CREATE TABLE responses (
    id TEXT PRIMARY KEY, identity TEXT, prompt_hash TEXT, sample_index INTEGER, content TEXT, finish_reason TEXT,
    num_prompt_tokens INTEGER, num_tokens INTEGER, sampling TEXT
) WITHOUT ROWID;
CREATE INDEX responses_by_identity ON responses (identity, prompt_hash, sample_index);
CREATE TABLE scores (
    response_id TEXT, scorer TEXT, answers_hash TEXT, value REAL, passed INTEGER, detail TEXT,
    PRIMARY KEY (response_id, scorer, answers_hash)
) WITHOUT ROWID;
CREATE TABLE dropped (run TEXT, stage TEXT, subject TEXT, reason TEXT, detail TEXT);
CREATE INDEX dropped_by_stage ON dropped (run, stage);
CREATE TABLE stages (
    run TEXT, name TEXT, key TEXT, seconds REAL, peak_memory_bytes INTEGER, counts TEXT, finished_at REAL,
    PRIMARY KEY (run, name)
) WITHOUT ROWID;
"""

_PLACES: Final = """(
    identity TEXT, prompt_hash TEXT, sample_index INTEGER, response_id TEXT,
    PRIMARY KEY (identity, prompt_hash, sample_index)
) WITHOUT ROWID"""
"""Which stored answer a file of recorded answers gives to a prompt, by sample index."""
_OUTPUTS: Final = "(run TEXT, stage TEXT, files TEXT, seen TEXT, PRIMARY KEY (run, stage)) WITHOUT ROWID"
"""What is known about the files that finished stages have left."""


def _add_places_and_outputs(connection: sqlite3.Connection, temporary: str) -> None:
    """Migrate to version 2."""
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for name, columns in (("places", _PLACES), ("outputs", _OUTPUTS)):
        if name not in present:
            connection.execute(f"CREATE {temporary} TABLE {name} {columns}")


_SERVED: Final = {
    "details": "(response_id TEXT PRIMARY KEY, reasoning TEXT, served_by TEXT) WITHOUT ROWID",
    "ledger": """(
        run TEXT, stage TEXT, model TEXT, requests INTEGER, prompt_tokens INTEGER, cached_tokens INTEGER,
        new_tokens INTEGER, items INTEGER, money REAL, seconds REAL, PRIMARY KEY (run, stage, model)
    ) WITHOUT ROWID""",
    "failures": """(
        run TEXT, stage TEXT, model TEXT, prompt_id TEXT, sample_index INTEGER, kind TEXT, detail TEXT,
        PRIMARY KEY (run, stage, model, prompt_id, sample_index)
    ) WITHOUT ROWID""",
    "notes": """(
        run TEXT, stage TEXT, model TEXT, text TEXT, noted_at REAL, PRIMARY KEY (run, stage, model, text)
    ) WITHOUT ROWID""",
    "jobs": """(
        identity TEXT, name TEXT, state TEXT, detail TEXT, PRIMARY KEY (identity, name)
    ) WITHOUT ROWID""",
}
"""What servers say and cost: see the methods of the store that write these tables."""


def _add_served(connection: sqlite3.Connection, temporary: str) -> None:
    """Migrate to version 3."""
    for name, columns in _SERVED.items():
        connection.execute(f"CREATE {temporary} TABLE {name} {columns}")


def _add_drop_counts(connection: sqlite3.Connection, temporary: str) -> None:
    """Migrate to version 4."""
    connection.execute(
        f"""CREATE {temporary} TABLE drop_counts (
            run TEXT, stage TEXT, reason TEXT, number INTEGER, PRIMARY KEY (run, stage, reason)
        ) WITHOUT ROWID"""
    )
    connection.execute(
        "INSERT INTO drop_counts SELECT run, stage, reason, COUNT(*) FROM dropped GROUP BY run, stage, reason"
    )


Migration = Callable[[sqlite3.Connection, str], None]
"""Takes a store to the next version. The second argument is ``TEMPORARY`` or empty. If it is ``TEMPORARY``, new tables
belong to this connection alone and hide tables of the same name; the file is not written."""

MIGRATIONS: Final[tuple[Migration, ...]] = (_add_places_and_outputs, _add_served, _add_drop_counts)
"""The steps to version 2, to version 3, and so on."""
VERSION: Final = 1 + len(MIGRATIONS)
"""The version of the stores that this release writes."""


def read_version(connection: sqlite3.Connection) -> int:
    """The version of the store; 0 for a database of another program."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables of an empty store."""
    connection.executescript(f"{_VERSION_1}; PRAGMA user_version = 1")
    upgrade(connection)


def upgrade(connection: sqlite3.Connection) -> None:
    """Take the steps that the store lacks, each whole or not at all."""
    while read_version(connection) < VERSION:
        with connection:  # commits, or rolls everything back
            connection.execute("BEGIN IMMEDIATE")
            version = read_version(connection)  # read again, now that no other process can change it
            if version < VERSION:
                MIGRATIONS[version - 1](connection, "")
                connection.execute(f"PRAGMA user_version = {version + 1}")


def show_as_upgraded(connection: sqlite3.Connection) -> None:
    """Let a read-only connection see an earlier store as it would be after :func:`upgrade`."""
    for migration in MIGRATIONS[read_version(connection) - 1 :]:
        migration(connection, "TEMPORARY")
