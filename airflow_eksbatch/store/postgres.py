"""What PostgreSQL needs: its driver, a lock around migrations, and words for what goes wrong."""

from __future__ import annotations

from sqlalchemy import create_engine, make_url
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import ArgumentError

from airflow_eksbatch.store.port import StoreError
from airflow_eksbatch.store.sql import SqlStore

CONNECT_S = 10
# Two services that start at once must not both bring the schema forward.
MIGRATION_LOCK = "SELECT pg_advisory_xact_lock(4243211501)"


def postgres_store(url: str) -> SqlStore:
    """A store in this database (postgresql://user:password@host/name)."""
    try:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
    except ArgumentError as error:
        raise StoreError(f"This is no database URL: {error}") from error
    engine = create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_S})
    place = f"PostgreSQL at {parsed.host or 'the local socket'}, database {parsed.database}"
    return SqlStore(engine, insert, lambda error: _explain(error, place), lock=MIGRATION_LOCK)


def _explain(error: Exception, place: str) -> str:
    """One sentence that says what to do."""
    words = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    if "No space left" in words:
        return f"{place} has no disk space left: free some, it goes on by itself."
    if "authentication failed" in words or "does not exist" in words:
        return f"{place} does not let us in ({words}): check the database URL."
    if "connect" in words or "closed" in words or "terminat" in words:
        return f"{place} cannot be reached ({words}): it is tried again."
    return f"{place} does not work: {words}"
