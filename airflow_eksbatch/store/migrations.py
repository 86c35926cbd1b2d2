"""Numbered steps from one schema to the next, forward only; each runs in the transaction that counts it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from sqlalchemy import Connection, inspect, select

from airflow_eksbatch.store import schema
from airflow_eksbatch.store.port import StoreError


def create_first(connection: Connection) -> None:
    """Version 1: all tables as they were when the first jobs were kept."""
    schema.metadata.create_all(connection)


STEPS: tuple[Callable[[Connection], None], ...] = (create_first,)
"""STEPS[n] leads from version n to n + 1. A released step is never changed."""


def version_of(connection: Connection) -> int:
    """The schema version of a database; 0 for an empty one."""
    if not inspect(connection).has_table(schema.meta.name):
        return 0
    body = connection.execute(
        select(schema.meta.c.body).where(schema.meta.c.key == "schema_version")
    ).scalar()
    return 0 if body is None else int(msgspec.msgpack.decode(body))


def migrate(connection: Connection) -> int:
    """Bring the database forward; how many steps that took. Raises StoreError for a newer one."""
    version = version_of(connection)
    if version > len(STEPS):
        raise StoreError(
            f"The database has schema version {version}, this release knows up to {len(STEPS)}: "
            "start the newer release that wrote it, or restore a backup."
        )
    for step in STEPS[version:]:
        step(connection)
    key, body = "schema_version", msgspec.msgpack.encode(len(STEPS))
    if version < len(STEPS):
        connection.execute(schema.meta.delete().where(schema.meta.c.key == key))
        connection.execute(schema.meta.insert().values(key=key, body=body))
    return len(STEPS) - version
