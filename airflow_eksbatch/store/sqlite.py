"""What SQLite needs: one file, WAL, immediate transactions, and words for what goes wrong with files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import msgspec
from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.dialects.sqlite import insert

from airflow_eksbatch.store.port import StoreError
from airflow_eksbatch.store.sql import WRITES, SqlStore

BUSY_MS = 10_000
# How long another takes to make a new file is a sync or two.
WAL_AGAIN_S = 0.02


def sqlite_store(path: Path | None, *, pages_max: int | None = None) -> SqlStore:
    """A store in this file, or in memory. `pages_max` bounds its size (4 KiB a page)."""
    url = URL.create("sqlite", database=None if path is None else str(path))
    engine = create_engine(url)
    if path is not None:
        _make_room_for(path)

    @event.listens_for(engine, "do_connect")
    def create(*_: object) -> None:
        """Keys lie in it: a new one is for its owner only, and what SQLite puts beside it has its mode."""
        if path is not None:
            # An existing one is not opened here: closing it again would take away the locks of other connections.
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        _use_wal(cursor)
        # An answer means it is on disk, also after a power cut; one beat is one sync.
        cursor.execute("PRAGMA synchronous = FULL")
        if pages_max is not None:
            cursor.execute(f"PRAGMA max_page_count = {pages_max}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Writers wait here for each other instead of failing half-way; readers wait for nobody."""
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return SqlStore(engine, insert, lambda error: _explain(error, path))


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Of those who come to a new file at once one does it; the others are told at once that it is busy, whatever `busy_timeout` says."""
    until = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > until:
                raise
            time.sleep(WAL_AGAIN_S)
        else:
            return


def _make_room_for(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The directory of the database file {path} cannot be made ({error.strerror}): check its permissions, or name "
            "another file."
        ) from error


def _explain(error: Exception, path: Path | None) -> str:
    """One sentence that says what to do."""
    words = str(getattr(error, "orig", None) or error)
    place = "the database in memory" if path is None else f"the database file {path}"
    subject = f"{place[0].upper()}{place[1:]}"
    if "disk is full" in words:
        return f"No space is left for {place}: free some, it goes on by itself."
    if "disk I/O error" in words:
        return f"{subject} cannot be written ({words}): the disk is full, over its quota or broken."
    damaged = isinstance(error, msgspec.MsgspecError)
    if damaged or "not a database" in words or "malformed" in words:
        return (
            f"{subject} is damaged or not a database ({words}): restore a backup, or move it away to "
            "start with an empty one."
        )
    if "unable to open" in words or "readonly" in words:
        return f"{subject} cannot be opened for writing ({words}): check its permissions and those of its directory."
    if "locked" in words:
        return f"Another program has locked {place}: end it, or wait."
    return f"{subject} does not work: {words}"
