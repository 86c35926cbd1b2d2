"""What may happen to a database server: each is one sentence that says what to do, and nothing is lost by it."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import make_url

from airflow_eksbatch.core.world.changes import Changes, Counters
from airflow_eksbatch.store.port import Fenced, StoreError, Unstorable
from airflow_eksbatch.store.postgres import postgres_store
from tests.build import NOW, a_queue
from tests.contracts import writer
from tests.contracts.databases import Database, Postgres, running_postgres, started_server
from tests.contracts.nouns import a_live_job

WAIT_S = 60.0


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    database = postgres.database()
    yield database
    postgres.drop(database)


def refusal(url: str) -> str:
    """What is said about opening it."""
    store = postgres_store(url)
    with pytest.raises(StoreError) as refused:
        store.open()
    store.close()
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def cut_connections(database: Database) -> None:
    database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


@pytest.mark.parametrize("token", [secrets.token_hex(5_000), "nul\0"], ids=["long", "nul"])
def test_a_value_that_it_does_not_take_is_told_from_its_own_trouble(
    database: Database, token: str
) -> None:
    store = database.open()
    with pytest.raises(Unstorable):
        store.commit(Changes(jobs_added=[a_live_job(1, token=token)]))
    if "\0" in token:
        with pytest.raises(Unstorable):
            store.find_tokens([token])
    store.commit(Changes(jobs_added=[a_live_job(1, token="short")]))


def test_a_connection_that_is_cut_is_said_once_and_made_again(database: Database) -> None:
    store = database.open()
    store.take_lease("one", NOW, 10)
    store.commit(Changes(queues=[a_queue("one")]))
    cut_connections(database)
    with pytest.raises(StoreError, match="cannot be reached"):
        store.commit(Changes(queues=[a_queue("two")]))
    store.commit(Changes(queues=[a_queue("three")]))
    assert sorted(queue.name for queue in store.load().queues) == ["one", "three"]


def test_who_comes_back_after_a_cut_is_fenced_if_another_leads(database: Database) -> None:
    old, new = database.open(), database.open()
    old.take_lease("old", NOW, 10)
    cut_connections(database)
    with pytest.raises(StoreError):
        new.take_lease("new", NOW + 10_000, 10)
    assert new.take_lease("new", NOW + 10_000, 10) == 2
    with pytest.raises(StoreError):
        old.load()
    with pytest.raises(Fenced):
        old.commit(Changes(queues=[a_queue()]))


def test_a_server_that_is_killed_has_everything_that_was_acknowledged() -> None:
    """1 commits go on 2 the server is killed 3 the next commit says so 4 the server runs again 5 it goes on."""
    with tempfile.TemporaryDirectory(prefix="eksbatch-postgres-") as place:
        directory = Path(place) / "data"
        with started_server(directory) as server:
            store = Postgres(server.get_uri()).database().open()
            for number in range(1, 31):
                store.commit(writer.changes(number))
            children = psutil.Process(server.get_pid()).children()
            os.kill(server.get_pid() or 0, signal.SIGKILL)
            _, left = psutil.wait_procs(children, WAIT_S)
            assert not left
        with pytest.raises(StoreError, match="cannot be reached"):
            store.commit(writer.changes(31))
        with started_server(directory):
            writer.check(store, at_least=30)
            store.commit(writer.changes(31))
            writer.check(store, at_least=31)
            store.close()


def test_a_server_that_is_not_there_and_a_database_that_it_does_not_have(
    database: Database, tmp_path: Path
) -> None:
    there = make_url(database.url)
    nowhere = there.set(query={"host": str(tmp_path)})
    assert "cannot be reached" in refusal(nowhere.render_as_string())
    assert "check the database URL" in refusal(there.set(database="nobodys").render_as_string())
    assert "check the database URL" in refusal(there.set(username="nobody").render_as_string())


def test_a_password_is_never_told(database: Database) -> None:
    url = make_url(database.url).set(username="nobody", password="hunter2-secret")
    assert "hunter2" not in refusal(url.render_as_string(hide_password=False))
    with pytest.raises(StoreError) as refused:
        postgres_store("postgresql://nobody:hunter2-secret@host:port/name")
    assert "hunter2" not in str(refused.value)


def test_a_user_that_may_not_make_tables_is_told_what_to_grant(database: Database) -> None:
    database.run("CREATE ROLE visitor LOGIN")
    url = make_url(database.url).set(username="visitor").render_as_string()
    try:
        assert "CREATE on the schema" in refusal(url)
    finally:
        database.run("DROP ROLE visitor")


def test_a_read_only_replica_is_not_written(database: Database) -> None:
    database.open().close()
    name = make_url(database.url).database
    database.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    store = database.open()
    with pytest.raises(StoreError, match="read-only"):
        store.take_lease("one", NOW, 10)
    assert store.load().jobs == []


def test_a_job_that_cannot_be_read_is_damage(database: Database) -> None:
    store = database.open()
    store.commit(Changes(jobs_added=[a_live_job(1)], counters=Counters(job_seq=1)))
    database.run(r"UPDATE eksbatch_jobs SET state = '\xc1'")
    with pytest.raises(StoreError, match="restore a backup"):
        store.load()


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"airflow-eksbatch\[postgres\]"):
        postgres_store("postgresql://user@host/name")


def test_servers_of_tests_leave_nothing_behind() -> None:
    with running_postgres() as server:
        url = make_url(server.database().url)
    assert not Path(str(url.query["host"])).exists()
