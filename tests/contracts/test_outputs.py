"""Where outputs of pods are kept, in a directory or the database: the last part of each, and the youngest of all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_eksbatch.cluster.outputs import OutputFiles, Outputs
from airflow_eksbatch.store.outputs import StoredOutputs
from airflow_eksbatch.store.postgres import postgres_outputs
from tests.contracts.databases import Database, Postgres


class Directory:
    """Room for ten outputs of a few bytes."""

    TEN = 10 * 4096

    def __init__(self, place: Path) -> None:
        self.place = place

    def make(self, **bounds: int) -> Outputs:
        """As a service has it that begins."""
        outputs = OutputFiles(self.place / "logs", **bounds)
        outputs.open()
        return outputs

    def put(self, outputs: Outputs, pod: str, text: bytes, *, age: int = 0) -> None:
        log = self.log(text)
        os.utime(log, (1_000 - age, 1_000 - age))
        outputs.keep(pod, log)
        assert not log.exists()

    def log(self, text: bytes) -> Path:
        log = self.place / "log"
        log.write_bytes(text)
        return log


class InDatabase(Directory):
    TEN = 10 * (1024 + 20)

    def __init__(self, place: Path, database: Database) -> None:
        super().__init__(place)
        self._database = database
        self.made: list[Outputs] = []
        self.leads = True

    def make(self, **bounds: int) -> StoredOutputs:
        outputs = postgres_outputs(self._database.url, lambda: self.leads, **bounds)
        outputs.open()
        self.made.append(outputs)
        return outputs

    def put(self, outputs: Outputs, pod: str, text: bytes, *, age: int = 0) -> None:
        super().put(outputs, pod, text)
        self._database.run(
            f"UPDATE eksbatch_outputs SET kept_at = {1_000 - age} WHERE pod = '{pod}'"
        )


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    database = postgres.database()
    database.open()
    yield database
    postgres.drop(database)


@pytest.fixture
def shared(database: Database, tmp_path: Path) -> Iterator[InDatabase]:
    bed = InDatabase(tmp_path, database)
    yield bed
    for outputs in bed.made:
        outputs.close()


@pytest.fixture(params=["directory", "database"])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Directory:
    if request.param == "directory":
        return Directory(tmp_path)
    return request.getfixturevalue("shared")


def test_only_the_last_part_of_a_long_output_is_kept(bed: Directory) -> None:
    outputs = bed.make(output_bytes_max=10)
    bed.put(outputs, "p", b"0123456789abcdef")
    assert outputs.read("p", 0, 4) == (b"6789", 10)
    assert outputs.read("p", 14, 9) == (b"ef", 16)
    assert outputs.read("p", 99, 9) == (b"", 16)
    assert outputs.read("p", -2, 9) == (b"ef", 16)
    assert outputs.read("p", -99, 9) == (b"6789abcde", 15)
    assert outputs.read("q", 0, 9) is None


def test_bytes_stay_as_they_are_and_no_words_are_an_output_too(bed: Directory) -> None:
    outputs = bed.make()
    bed.put(outputs, "p", bytes(range(256)))
    bed.put(outputs, "q", b"")
    assert outputs.read("p", 0, 999) == (bytes(range(256)), 256)
    assert outputs.read("q", 0, 999) == (b"", 0)


def test_a_pod_without_a_file_has_no_output(bed: Directory) -> None:
    outputs = bed.make()
    outputs.keep("p", bed.place / "nothing")
    assert (outputs.has("p"), outputs.read("p", 0, 9)) == (False, None)


def test_the_oldest_outputs_make_room_for_new_ones(bed: Directory) -> None:
    outputs = bed.make(all_bytes_max=bed.TEN)
    for number in range(12):
        bed.put(outputs, f"p{number}", b"%d" % number, age=20 - number)
    kept = [number for number in range(12) if outputs.read(f"p{number}", 0, 9)]
    assert kept == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    again = bed.make(all_bytes_max=bed.TEN)
    assert again.read("p11", 0, 10) == (b"11", 2)
    # It knows how much there is already.
    bed.put(again, "p12", b"12")
    bed.put(again, "p13", b"13")
    assert again.read("p3", 0, 9) is None


def test_the_next_service_knows_what_was_kept(bed: Directory) -> None:
    """A pod of that name has ended before, so none is made again."""
    bed.put(bed.make(), "p", b"text")
    again = bed.make()
    assert (again.has("p"), again.has("q")) == (True, False)


def test_replicas_tell_what_another_one_kept(shared: InDatabase) -> None:
    leader, standby = shared.make(), shared.make()
    shared.put(leader, "p", b"text")
    assert standby.read("p", 0, 9) == (b"text", 4)


def test_what_was_kept_first_stays_and_who_leads_no_more_keeps_nothing(shared: InDatabase) -> None:
    """1. a leader stops for a while; 2. the next one keeps the output; 3. the first wakes up and has only a part."""
    old, new = shared.make(), shared.make()
    shared.put(new, "p", b"all of it")
    shared.put(old, "p", b"a part")
    assert old.read("p", 0, 99) == (b"all of it", 9)
    shared.leads = False
    log = shared.log(b"text")
    with pytest.raises(OSError, match="may not lead"):
        old.keep("q", log)
    assert log.exists()
    assert new.read("q", 0, 9) is None


def test_outputs_are_kept_as_long_as_jobs(shared: InDatabase, database: Database) -> None:
    outputs = shared.make()
    for pod, age in (("old", 10), ("young", 5)):
        shared.put(outputs, pod, b"text", age=age)
    database.open().forget_before(995, 10)
    assert [outputs.read(pod, 0, 9) for pod in ("old", "young")] == [None, (b"text", 4)]


def test_a_database_that_is_away_is_one_sentence_and_what_was_said_waits_in_its_file(
    shared: InDatabase, database: Database
) -> None:
    """1. it is away when a service begins; 2. nothing is kept, nothing is lost; 3. it is back, and all is known."""
    shared.put(shared.make(), "before", b"text")
    database.run("ALTER TABLE eksbatch_outputs RENAME TO away")
    outputs = shared.make()
    log = shared.log(b"text")
    for ask in (lambda: outputs.keep("p", log), lambda: outputs.read("p", 0, 9)):
        with pytest.raises(OSError, match="PostgreSQL at ") as told:
            ask()
        assert "\n" not in str(told.value)
    assert log.exists()
    database.run("ALTER TABLE away RENAME TO eksbatch_outputs")
    outputs.keep("p", log)
    assert outputs.has("p")
    assert outputs.has("before")
