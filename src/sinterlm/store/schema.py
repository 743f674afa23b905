"""The tables of the store, and how a store of an earlier version becomes one of today's.

A store says its version in ``PRAGMA user_version``. A new store has the tables of version 1 and then takes every step
of :data:`MIGRATIONS`, as an old store takes those that it lacks: so nothing is described twice. To change the tables,
append a step; never edit one that a release has taken, since stores in the world have taken it, too. Each step is one
transaction together with the number of its version, so that a store killed in the middle is of one version or the next.

Version 1
    Prompts, responses, scores, drops and finished stages.
Version 2
    Places of recorded answers, and the outputs of finished stages. Releases that made them without a number left stores
    of version 1 that have one or both of these tables.
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
"""Which of the stored answers a file of recorded answers gives to a prompt."""
_OUTPUTS: Final = "(run TEXT, stage TEXT, files TEXT, seen TEXT, PRIMARY KEY (run, stage)) WITHOUT ROWID"
"""What is known of the files that finished stages have left."""


def _add_places_and_outputs(connection: sqlite3.Connection, temporary: str) -> None:
    """To version 2."""
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for name, columns in (("places", _PLACES), ("outputs", _OUTPUTS)):
        if name not in present:
            connection.execute(f"CREATE {temporary} TABLE {name} {columns}")


Migration = Callable[[sqlite3.Connection, str], None]
"""Takes a store to the next version. The second argument is ``TEMPORARY`` or empty: whether what the step makes belongs
to this connection alone. It then hides what the file has under the same name, and the file is not written to."""

MIGRATIONS: Final[tuple[Migration, ...]] = (_add_places_and_outputs,)
"""The step to version 2, to version 3, and so on."""
VERSION: Final = 1 + len(MIGRATIONS)
"""Of the stores that this release writes."""


def read_version(connection: sqlite3.Connection) -> int:
    """The version of the store; 0 for a database of another program."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty store."""
    connection.executescript(f"{_VERSION_1}; PRAGMA user_version = 1")
    upgrade(connection)


def upgrade(connection: sqlite3.Connection) -> None:
    """Take the steps that the store lacks, each whole or not at all."""
    while read_version(connection) < VERSION:
        with connection:  # commits, or rolls everything back
            connection.execute("BEGIN IMMEDIATE")
            version = read_version(connection)  # again, now that no other process can change it
            if version < VERSION:
                MIGRATIONS[version - 1](connection, "")
                connection.execute(f"PRAGMA user_version = {version + 1}")


def show_as_upgraded(connection: sqlite3.Connection) -> None:
    """Show a connection that only reads an earlier store as it would be after :func:`upgrade`."""
    for migration in MIGRATIONS[read_version(connection) - 1 :]:
        migration(connection, "TEMPORARY")
