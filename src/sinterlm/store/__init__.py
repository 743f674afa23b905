"""The workspace's store: everything that was paid for, in one SQLite file.

``store.py`` reads and writes records. ``schema.py`` has the tables and the migrations between their versions.
"""

from sinterlm.store.schema import VERSION
from sinterlm.store.store import FinishedStage, Merged, RecordedResponse, ScoreKey, Store

__all__ = ["VERSION", "FinishedStage", "Merged", "RecordedResponse", "ScoreKey", "Store"]
