"""The command line with a database that cannot be used: exit code 2, one sentence, no traceback, nothing broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import make_url

from airflow_eksbatch.store import migrations, schema
from tests.contracts.databases import Database, Postgres, running_postgres, sqlite_database

COMMANDS = {"serve": ("serve", "--port", "0"), "migrate": ("migrate",)}
END_S = 120


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return COMMANDS[request.param]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "EKSBATCH" not in name}
    return subprocess.run(
        [sys.executable, "-m", "airflow_eksbatch.cli", *arguments],
        capture_output=True,
        text=True,
        env=clean | environ,
        timeout=END_S,
    )


def refusal(command: tuple[str, ...], url: str, home: Path) -> str:
    """The one line that is said; it begins with who says it."""
    ended = run(*command, "--database", url, "--home", str(home))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("eksbatch: ")
    assert "Error:" not in lines[0], "a Python exception is no sentence"
    assert ended.stdout == ""
    return lines[0]


def make_newer(database: Database) -> None:
    database.open().close()
    newer = msgspec.msgpack.encode(len(migrations.STEPS) + 1)
    with database.engine.begin() as connection:
        connection.execute(schema.meta.update().values(body=newer))


# ---- files


def test_a_file_that_is_no_database(command: tuple[str, ...], tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear database, " * 1_000)
    before = letter.read_bytes()
    said = refusal(command, f"sqlite:///{letter}", tmp_path / "home")
    assert "restore a backup" in said
    assert str(letter) in said
    assert letter.read_bytes() == before


def test_a_file_that_was_cut_off(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "eksbatch.db"
    sqlite_database(file).open().close()
    file.write_bytes(file.read_bytes()[:10_000])
    assert "damaged" in refusal(command, f"sqlite:///{file}", tmp_path / "home")


def test_a_newer_file(command: tuple[str, ...], tmp_path: Path) -> None:
    database = sqlite_database(tmp_path / "eksbatch.db")
    make_newer(database)
    before = database.rows()
    assert "start the newer release" in refusal(command, database.url, tmp_path / "home")
    assert database.rows() == before
    database.close()


@pytest.mark.parametrize("place", ["", "a file/eksbatch.db", "/proc/eksbatch.db"])
def test_a_place_where_no_file_can_be(command: tuple[str, ...], tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    assert "permissions" in refusal(command, f"sqlite:///{tmp_path / place}", tmp_path / "home")


def test_a_home_that_cannot_be_made(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    home = tmp_path / "a file" / "home"
    ended = run(*command, "--home", str(home))
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert str(home) in ended.stderr


def test_a_disk_without_room_for_a_first_schema(tmp_path: Path) -> None:
    """`migrate` has no such setting of its own; the environment has."""
    url = f"sqlite:///{tmp_path / 'eksbatch.db'}"
    ended = run("migrate", "--database", url, EKSBATCH_SQLITE_PAGES="3")
    assert ended.returncode == 2
    assert "No space is left" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert run("migrate", "--database", url).returncode == 0


# ---- servers


def test_a_server_that_does_not_run(command: tuple[str, ...], tmp_path: Path) -> None:
    url = f"postgresql://user:hunter2@/name?host={tmp_path}"
    said = refusal(command, url, tmp_path / "home")
    assert "cannot be reached" in said
    assert "hunter2" not in said


def test_a_database_that_the_server_does_not_have(
    command: tuple[str, ...], postgres: Postgres, tmp_path: Path
) -> None:
    database = postgres.database()
    url = make_url(database.url).set(database="nobodys").render_as_string(hide_password=False)
    assert "check the database URL" in refusal(command, url, tmp_path)


def test_a_newer_database_on_a_server(
    command: tuple[str, ...], postgres: Postgres, tmp_path: Path
) -> None:
    database = postgres.database()
    make_newer(database)
    before = database.rows()
    assert "start the newer release" in refusal(command, database.url, tmp_path)
    assert database.rows() == before
    postgres.drop(database)


def test_an_address_that_is_none(command: tuple[str, ...], tmp_path: Path) -> None:
    for url in ("postgresql://user:hunter2@host:port/name", "mysql://user:hunter2@host/name"):
        said = refusal(command, url, tmp_path)
        assert "postgresql://USER:PASSWORD@HOST" in said
        assert "hunter2" not in said


# ---- and one that can be used


def test_migrate_brings_either_database_forward_and_says_so(
    postgres: Postgres, tmp_path: Path
) -> None:
    for database in (sqlite_database(tmp_path / "new" / "eksbatch.db"), postgres.database()):
        for _ in range(2):
            ended = run("migrate", "--database", database.url)
            assert (ended.returncode, ended.stderr) == (0, "")
            assert "newest schema" in ended.stdout
        assert database.open().load().jobs == []
        database.close()
