"""A database as the release before this one would have left it: SQLite, one step behind."""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy import Engine, create_engine

from airflow_eksbatch.store import migrations, schema


def an_older_database(file: Path, leader: str = "", until: int = 0) -> int:
    """Make it, led by somebody until then (epoch ms); its schema version."""
    older = len(migrations.STEPS) - 1
    file.parent.mkdir(parents=True, exist_ok=True)
    engine = _engine(file)
    with engine.begin() as connection:
        for step in migrations.STEPS[:older]:
            step(connection)
        body = msgspec.msgpack.encode(older)
        connection.execute(schema.meta.insert().values(key="schema_version", body=body))
        lease = {"name": "beat", "owner": leader, "fence": 1, "until": until}
        connection.execute(schema.leases.insert().values(**lease))
    engine.dispose()
    return older


def set_version(file: Path, number: int) -> None:
    """As another release would have left it."""
    engine = _engine(file)
    with engine.begin() as connection:
        mine = schema.meta.c.key == "schema_version"
        body = msgspec.msgpack.encode(number)
        connection.execute(schema.meta.update().where(mine).values(body=body))
    engine.dispose()


def end_lease(file: Path) -> None:
    """Its leader has died, and was waited for."""
    engine = _engine(file)
    with engine.begin() as connection:
        connection.execute(schema.leases.update().values(until=0))
    engine.dispose()


def schema_version(file: Path) -> int:
    engine = _engine(file)
    with engine.connect() as connection:
        version = migrations.version_of(connection)
    engine.dispose()
    return version


def _engine(file: Path) -> Engine:
    return create_engine(f"sqlite:///{file}")
