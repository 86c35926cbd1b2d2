"""Both databases for every test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.databases import Database, Postgres, running_postgres, sqlite_database


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty one of its own."""
    if request.param == "sqlite":
        database = sqlite_database(tmp_path / "a home" / "eksbatch.db")
        yield database
        database.close()
        return
    server: Postgres = request.getfixturevalue("postgres")
    database = server.database()
    yield database
    server.drop(database)
