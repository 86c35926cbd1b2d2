"""What SQLite needs: one file, WAL, immediate transactions, and words for what goes wrong with files."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.dialects.sqlite import insert

from airflow_eksbatch.store.sql import SqlStore

BUSY_MS = 10_000


def sqlite_store(path: Path | None, *, pages_max: int | None = None) -> SqlStore:
    """A store in this file, or in memory. `pages_max` bounds its size (4 KiB a page)."""
    engine = create_engine("sqlite://" if path is None else f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # An answer means it is on disk, also after a power cut; one beat is one sync.
        cursor.execute("PRAGMA synchronous = FULL")
        if pages_max is not None:
            cursor.execute(f"PRAGMA max_page_count = {pages_max}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return SqlStore(engine, insert, lambda error: _explain(error, path), lock=None)


def _explain(error: Exception, path: Path | None) -> str:
    """One sentence that says what to do."""
    words = str(getattr(error, "orig", None) or error)
    place = "the database in memory" if path is None else f"the database file {path}"
    if "disk is full" in words:
        return f"No space is left for {place}: free some, it goes on by itself."
    if "not a database" in words or "malformed" in words or "MessagePack" in words:
        return (
            f"{place[0].upper()}{place[1:]} is damaged or not a database ({words}): restore a "
            "backup, or move it away to start with an empty one."
        )
    if "unable to open" in words or "readonly" in words:
        return f"{place[0].upper()}{place[1:]} cannot be written ({words}): check its permissions."
    if "locked" in words:
        return f"Another program has locked {place}: end it, or wait."
    return f"{place[0].upper()}{place[1:]} does not work: {words}"
