"""The schema only goes forward, from every released version, in both databases, and only one service at a time moves it."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy
from sqlalchemy import Connection

from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.store import migrations, schema, sqlite
from airflow_eksbatch.store.port import Fenced, JobQuery, SigningKey, StoreError
from tests.build import NOW
from tests.contracts.databases import Database
from tests.contracts.frozen import put, some_of_everything

WAIT_S = 120.0
NEWEST = len(migrations.STEPS)


def version(database: Database) -> int:
    with database.engine.connect() as connection:
        return migrations.version_of(connection)


def set_version(database: Database, number: object) -> None:
    body = msgspec.msgpack.encode(number)
    with database.engine.begin() as connection:
        connection.execute(schema.meta.update().values(body=body))


def described(metadata: sqlalchemy.MetaData) -> dict[str, Any]:
    """Tables with columns, keys, indexes and their conditions, as far as both databases tell them alike."""
    return {
        table.name: {
            "columns": [(c.name, c.type.as_generic().__class__, c.nullable) for c in table.c],
            "key": [c.name for c in table.primary_key],
            "unique": sorted(
                [c.name for c in constraint.columns]
                for constraint in table.constraints
                if isinstance(constraint, sqlalchemy.UniqueConstraint)
            ),
            "indexes": sorted((i.name, tuple(c.name for c in i.columns)) for i in table.indexes),
        }
        for table in metadata.sorted_tables
    }


def conditions(connection: Connection) -> dict[str, str]:
    """Of partial indexes."""
    found: dict[str, str] = {}
    inspector = sqlalchemy.inspect(connection)
    for table in schema.metadata.tables:
        for index in inspector.get_indexes(table):
            options: dict[str, Any] = dict(index.get("dialect_options", {}))
            where = options.get(f"{connection.dialect.name}_where")
            if where is not None:
                found[str(index["name"])] = str(where).strip("()")
    return found


def test_a_new_database_has_the_schema_that_the_queries_are_made_for(database: Database) -> None:
    database.open()
    assert version(database) == NEWEST
    there = sqlalchemy.MetaData()
    there.reflect(database.engine)
    assert described(there) == described(schema.metadata)
    meant = {
        str(index.name): str(index.dialect_options["sqlite"]["where"])
        for table in schema.metadata.tables.values()
        for index in table.indexes
        if index.dialect_options["sqlite"]["where"] is not None
    }
    with database.engine.connect() as connection:
        assert conditions(connection) == meant


def test_a_second_start_changes_nothing(database: Database) -> None:
    database.open()
    before = database.rows()
    database.open()
    assert database.rows() == before


@pytest.mark.parametrize("released", range(1, NEWEST + 1))
def test_what_a_released_version_wrote_is_read_by_this_one(
    database: Database, released: int
) -> None:
    put(database, released)
    assert version(database) == released
    store = database.open()
    assert version(database) == NEWEST
    meant, snapshot = some_of_everything(), store.load()
    array, done = meant.jobs_added
    assert snapshot.jobs == [array]
    assert snapshot.attempts == meant.attempts[:1]
    for name in ("nodes", "queues", "compute_environments", "policies", "definitions", "usages"):
        assert getattr(snapshot, name) == getattr(meant, name), name
    assert (snapshot.totals, snapshot.counters) == (meant.totals, meant.counters)
    assert store.list_jobs(JobQuery()) == [done, array]
    assert store.find_attempts([array.job_id]) == [meant.attempts[1], meant.attempts[0]]
    assert store.find_tokens(["token"]) == {"token": JobId("job-000001")}
    assert store.find_task_jobs(["dag|run|task"]) == {"dag|run|task": "job-000001"}
    assert store.events_since(0, 10) == meant.events
    assert (store.keys(), store.lease_owner()) == (
        {"EKSBKEY": SigningKey(secret="secret")},
        "somebody",
    )
    assert store.take_lease("us", NOW + 60_000, 10) == 2


@pytest.mark.parametrize("released", range(1, NEWEST))
def test_who_does_not_lead_leaves_an_older_schema_as_it_is(
    database: Database, released: int
) -> None:
    """1 an older release leads 2 another prepares to stand by 3 it takes the lease and brings the schema forward."""
    put(database, released)
    before = database.columns()
    store = database.store()
    assert store.prepare().schema_version == released
    assert store.keys() == {"EKSBKEY": SigningKey(secret="secret")}
    assert store.take_lease("us", NOW, 10) is None
    assert (version(database), database.columns()) == (released, before)
    assert store.take_lease("us", NOW + 60_000, 10) == 2
    store.open()
    assert version(database) == NEWEST


def test_who_prepares_an_empty_database_makes_its_tables(database: Database) -> None:
    assert database.store().prepare().schema_version == NEWEST
    assert version(database) == NEWEST


def test_who_lost_the_lease_brings_nothing_forward(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = database.open(), database.store()
    assert first.take_lease("first", NOW, 10) == 1
    assert second.take_lease("second", NOW + 60_000, 10) == 2
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, more(1)))
    with pytest.raises(Fenced):
        first.open()
    assert version(database) == NEWEST


def test_a_newer_database_is_refused_with_one_sentence_and_left_alone(database: Database) -> None:
    database.open().close()
    set_version(database, NEWEST + 1)
    before = database.rows()
    for _ in range(2):
        with pytest.raises(StoreError, match="start the newer release") as refused:
            database.open()
        assert "\n" not in str(refused.value)
        with pytest.raises(StoreError, match="start the newer release"):
            database.store().prepare()
    assert database.rows() == before


def test_a_version_that_is_no_number_is_damage(database: Database) -> None:
    database.open().close()
    set_version(database, "one")
    with pytest.raises(StoreError, match="restore a backup"):
        database.open()


def test_a_step_that_fails_leaves_the_database_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.open().close()
    columns, before = database.columns(), database.rows()

    def half(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE eksbatch_more (name TEXT)")
        connection.exec_driver_sql("ALTER TABLE eksbatch_jobs ADD COLUMN more TEXT")
        connection.exec_driver_sql("DELETE FROM eksbatch_nobody")

    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, half))
    with pytest.raises(StoreError):
        database.open()
    assert (database.columns(), database.rows()) == (columns, before)


def test_steps_run_once_each_and_in_order(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.open().close()
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, more(1), more(2)))
    database.open().close()
    database.open().close()
    assert version(database) == NEWEST + 2
    assert database.columns()["eksbatch_keys"][-2:] == ["more_1", "more_2"]


def more(number: int) -> Any:
    """A step that would fail a second time."""
    return lambda connection: connection.exec_driver_sql(
        f"ALTER TABLE eksbatch_keys ADD COLUMN more_{number} TEXT"
    )


def test_a_new_sqlite_file_is_waited_for_while_another_service_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has no patience of its own with who changes to WAL while somebody writes."""
    file = tmp_path / "new.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite.time, "sleep", lambda _: other.execute("ROLLBACK"))
    store = sqlite.sqlite_store(file)
    store.open()
    assert not other.in_transaction
    assert list(store.load().jobs) == []
    store.close()
    other.close()


def test_of_services_that_start_at_once_on_an_empty_database_all_start(database: Database) -> None:
    stores = [database.store() for _ in range(6)]
    together = threading.Barrier(len(stores))

    def start(number: int) -> int:
        together.wait(WAIT_S)
        stores[number].open()
        return len(stores[number].load().jobs)

    with ThreadPoolExecutor(len(stores)) as pool:
        assert list(pool.map(start, range(len(stores)))) == [0] * len(stores)
    assert version(database) == NEWEST
