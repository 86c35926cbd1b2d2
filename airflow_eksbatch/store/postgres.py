"""What PostgreSQL needs: its driver, a lock around migrations, and words for what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ArgumentError

from airflow_eksbatch.store.outputs import StoredOutputs
from airflow_eksbatch.store.port import StoreError
from airflow_eksbatch.store.sql import SqlStore

CONNECT_S = 10
# Two services that start at once must not both bring the schema forward.
MIGRATION_LOCK = "SELECT pg_advisory_xact_lock(4243211501)"
# A service that was stopped within a transaction keeps the lease's row, though its lease has run out. (The server's own
# timeout for idle transactions does not count within a pipeline, which is how many rows are written.)
EVICT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_locks USING (pid)
WHERE datname = current_database() AND relation = 'eksbatch_leases'::regclass AND pid <> pg_backend_pid()
AND wait_event_type = 'Client' AND state_change < clock_timestamp() - interval '5 seconds'
"""
CLOCK = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
# All queries of a load see the same moment.
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


def postgres_store(url: str) -> SqlStore:
    """A store in this database (postgresql://user:password@host/name)."""
    engine = _make_engine(url)
    return SqlStore(
        engine,
        insert,
        lambda error: _explain(error, engine.url),
        lock=MIGRATION_LOCK,
        snapshot=SNAPSHOT,
        evict=EVICT,
        clock=CLOCK,
    )


def postgres_outputs(url: str, may_keep: Callable[[], bool], **bounds: int) -> StoredOutputs:
    """Outputs of pods in this database, once a store has brought it forward; its connections are its own."""
    engine = _make_engine(url, isolation_level="AUTOCOMMIT", pool_size=2)

    def explain(error: Exception) -> str:
        return _explain(error, engine.url)

    return StoredOutputs(engine, insert, explain, may_keep, **bounds)


def _make_engine(url: str, **more: Any) -> Engine:
    """Raises StoreError."""
    try:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        return create_engine(
            parsed, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_S}, **more
        )
    except (ArgumentError, ValueError) as error:
        # Not told what is wrong with it: that could be a part of the password.
        raise StoreError(
            "This is no database URL: write postgresql://USER:PASSWORD@HOST:PORT/NAME, with special "
            "characters of the password percent-encoded."
        ) from error
    except ModuleNotFoundError as error:
        raise StoreError(
            f"PostgreSQL needs a package that is not here ({error.name}): "
            "pip install 'airflow-eksbatch[postgres]'."
        ) from error


def _explain(error: Exception, url: URL) -> str:
    """One sentence that says what to do."""
    place = f"PostgreSQL at {url.host or 'the local socket'}, database {url.database},"
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    words = lines[0] if lines else type(error).__name__
    if "No space left" in words or "quota" in words:
        return f"{place} has no disk space left: free some, it goes on by itself."
    if "permission denied" in words:
        return (
            f"{place} does not let us keep tables ({words}): grant the user CREATE on the schema."
        )
    if "authentication failed" in words or "does not exist" in words:
        return f"{place} does not let us in ({words}): check the database URL."
    if isinstance(error, msgspec.MsgspecError):
        return f"{place} holds what nobody here wrote ({words}): restore a backup."
    if any(word in words for word in ("connect", "closed", "terminat", "shutting", "starting up")):
        return f"{place} cannot be reached ({words}): see that it runs; a service that runs goes on by itself."
    return f"{place} does not work: {words}"
