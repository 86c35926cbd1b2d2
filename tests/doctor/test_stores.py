"""The database looked at: nothing of it is changed, and what is wrong is said with its fix."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

import airflow_eksbatch
from airflow_eksbatch.cli import main
from airflow_eksbatch.core.world.changes import Changes
from airflow_eksbatch.doctor.endpoint import look_at_service
from airflow_eksbatch.doctor.findings import Finding, Group, Mark
from airflow_eksbatch.doctor.stores import look_at_database
from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.service.wiring import make_store
from airflow_eksbatch.store import schema
from tests.build import an_environment
from tests.contracts.databases import running_postgres
from tests.service.older import an_older_database, end_lease

LATE = 1 << 50


def look(settings: Settings) -> dict[str, Finding]:
    group = Group(title="database")
    look_at_database(group, settings)
    return {finding.check: finding for finding in group.findings}


def settings_of(file: Path, **more: Any) -> Settings:
    return Settings(database=f"sqlite:///{file}", **more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with a compute environment, of this release."""
    file = tmp_path / "eksbatch.db"
    store = make_store(settings_of(file))
    store.open()
    store.commit(Changes(compute_environments=[an_environment()]))
    store.close()
    return file


def test_a_database_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "eksbatch.db"
    found = look(settings_of(file))
    assert found["database"].mark is Mark.OK
    assert not file.parent.exists()


def test_a_place_where_none_can_be_made_is_wrong(tmp_path: Path) -> None:
    there = tmp_path / "file"
    there.touch()
    found = look(settings_of(there / "eksbatch.db"))["database"]
    assert found.mark is Mark.WRONG
    assert f"{there} does not let us make it" in found.sentence


def test_one_of_this_release_is_well_and_says_that_nobody_leads(file: Path) -> None:
    found = look(settings_of(file))
    assert found["database"].mark is Mark.OK
    assert "reachable and writable, schema version" in found["database"].sentence


def test_who_leads_is_named_and_a_lease_that_ran_out_is_a_warning(file: Path) -> None:
    store = make_store(settings_of(file))
    store.open()
    store.take_lease("http://a:8642#1", LATE, 10)
    assert look(settings_of(file))["leader"].sentence.startswith("http://a:8642 leads")
    store.close()
    with sqlite3.connect(file) as connection:
        connection.execute(f"UPDATE {schema.leases.name} SET until = 1000")
    connection.close()
    found = look(settings_of(file))["leader"]
    assert found.mark is Mark.WARNING
    assert "Nobody leads: http://a:8642 did last" in found.sentence
    assert "kubectl -n eksbatch get pods" in found.fix


def test_the_home_of_an_embedded_service_that_died_is_not_for_serve(file: Path) -> None:
    """Which would be open to everybody of this machine."""
    store = make_store(settings_of(file))
    store.open()
    store.take_lease("embedded host /srv/eksbatch", 1000, 10)
    store.close()
    found = look(settings_of(file))["leader"]
    assert "Nobody leads: embedded host" in found.sentence
    assert found.fix.startswith("eksbatch local ")


def test_a_schema_of_a_newer_release_is_named_and_left_alone(file: Path) -> None:
    body = msgspec.msgpack.encode(999)
    with sqlite3.connect(file) as connection:
        connection.execute(
            f"UPDATE {schema.meta.name} SET body = ? WHERE key = 'schema_version'", (body,)
        )
    connection.close()
    before = file.read_bytes()
    found = look(settings_of(file))["database"]
    assert found.mark is Mark.WRONG
    assert "schema version 999, of a newer release" in found.sentence
    assert file.read_bytes() == before


def test_an_older_schema_is_left_to_who_leads_next_while_somebody_leads(tmp_path: Path) -> None:
    file = tmp_path / "older.db"
    older = an_older_database(file, "http://a:8642#1", LATE)
    found = look(settings_of(file))["database"]
    assert found.mark is Mark.OK
    assert f"schema version {older}" in found.sentence
    assert "nothing to do" in found.sentence
    end_lease(file)
    found = look(settings_of(file))["database"]
    assert found.mark is Mark.WARNING
    assert found.fix.startswith("eksbatch migrate")


def test_what_is_no_database_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "eksbatch.db"
    file.write_text("not a database" * 100)
    found = look(settings_of(file))["database"]
    assert found.mark is Mark.WRONG
    assert "damaged or not a database" in found.sentence


def test_a_file_for_a_service_in_a_cluster_is_a_warning(file: Path) -> None:
    found = look(settings_of(file, cluster="in-cluster"))["kind"]
    assert found.mark is Mark.WARNING
    assert "postgresql://" in found.fix


def test_postgresql_is_looked_at_with_its_clock_and_without_its_password() -> None:
    with running_postgres() as server:
        database = server.database()
        try:
            empty = look(Settings(database=database.url))
            database.open()
            found = look(Settings(database=database.url))
        finally:
            database.close()
    assert "reachable and empty" in empty["database"].sentence
    assert {finding.mark for finding in found.values()} == {Mark.OK}
    assert found["clock"].sentence == "Our clock and that of the database agree."


def test_a_postgresql_that_does_not_answer_is_wrong() -> None:
    url = "postgresql://user:secret@127.0.0.1:1/name"
    found = look(Settings(database=url))["database"]
    assert found.mark is Mark.WRONG
    assert "cannot be reached" in found.sentence
    assert "secret" not in found.sentence


# ---- the service


@contextmanager
def a_service(**answers: tuple[int, dict[str, str]]) -> Iterator[str]:
    """Answers probes as it is told to; its URL."""

    class Probes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[self.path.strip("/")]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(msgspec.json.encode(body))

        def log_message(self, format: str, *args: Any) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Probes)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def look_at(url: str) -> dict[str, Finding]:
    group = Group(title="service")
    look_at_service(group, url, Settings())
    return {finding.check: finding for finding in group.findings}


def test_a_service_of_this_release_that_is_ready_is_well() -> None:
    version = airflow_eksbatch.__version__
    with a_service(healthz=(200, {"version": version}), readyz=(200, {})) as url:
        found = look_at(url)
    assert {finding.mark for finding in found.values()} == {Mark.OK}
    assert set(found) == {"service", "release", "clock"}


def test_one_that_is_not_ready_and_of_another_release_says_so() -> None:
    trouble = {"status": "not ready", "reason": "the disk is full"}
    with a_service(healthz=(200, {"version": "0.0.1"}), readyz=(503, trouble)) as url:
        found = look_at(url)
    assert found["service"].mark is Mark.WRONG
    assert "the disk is full" in found["service"].sentence
    assert found["release"].mark is Mark.WARNING
    assert "airflow-eksbatch==0.0.1" in found["release"].fix


def test_one_that_holds_the_lease_and_does_not_answer_on_this_machine_is_wrong() -> None:
    found = look_at("http://127.0.0.1:1")["service"]
    assert found.mark is Mark.WRONG
    assert "EKSBATCH_ADVERTISE" in found.fix


def test_a_pod_that_cannot_be_reached_from_outside_its_cluster_is_not_seen() -> None:
    found = look_at("http://pod.invalid:8642")["service"]
    assert found.mark is Mark.UNSEEN
    assert "exec deploy/eksbatch -- eksbatch doctor" in found.fix


# ---- the command


def test_a_fresh_machine_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("database\n  ok        The database file")


def test_what_is_wrong_is_exit_code_one(tmp_path: Path) -> None:
    assert main(["doctor", "--database", "postgresql://u:p@127.0.0.1:1/n"]) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--database", "mysql://x"], "--database must be sqlite"),
        (["--cluster", "kubeconfig", "--kubeconfig", "/nowhere"], "cannot be used"),
        (["--cluster", "moon"], "--cluster must be one of"),
    ],
)
def test_what_cannot_even_be_looked_at_is_a_sentence_and_exit_code_two(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--home", str(tmp_path), *options]) == 2
    assert sentence in capsys.readouterr().err
