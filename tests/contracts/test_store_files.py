"""What may happen to a database file: each is one sentence that says what to do, and nothing is lost by it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.world.changes import Changes, Counters
from airflow_eksbatch.store import sqlite
from airflow_eksbatch.store.port import JobQuery, Store, StoreError
from airflow_eksbatch.store.sqlite import sqlite_store
from tests.contracts import writer
from tests.contracts.databases import Database, sqlite_database
from tests.contracts.nouns import a_live_job

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096
WAIT_S = 120.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a home, with # and ?" / "eksbatch.db"


def jobs(first: int, last: int, **fields: object) -> Changes:
    made: list[Job] = [a_live_job(number, **fields) for number in range(first, last + 1)]
    return Changes(jobs_added=made, counters=Counters(job_seq=last))


def fill(file: Path, count: int = 200) -> None:
    store = sqlite_store(file)
    store.open()
    store.commit(jobs(1, count))
    store.close()


def refusal(act: Callable[[], object]) -> str:
    """The one sentence that is said about it."""
    with pytest.raises(StoreError) as refused:
        act()
    sentence = str(refused.value)
    assert "\n" not in sentence
    return sentence


def opened(file: Path, **options: int) -> Store:
    store = sqlite_store(file, **options)
    store.open()
    return store


# ---- no database


def test_the_directory_of_a_new_database_is_made(file: Path) -> None:
    fill(file)
    assert [path.name for path in file.parent.iterdir()] == ["eksbatch.db"]


def test_a_file_that_is_no_database_is_said_to_be_none_and_not_touched(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_bytes(b"Dear database, " * 1_000)
    before = letter.read_bytes()
    assert "not a database" in refusal(lambda: opened(letter))
    assert letter.read_bytes() == before


def test_a_directory_in_its_place_and_a_file_in_the_place_of_its_directory(tmp_path: Path) -> None:
    assert "cannot be opened" in refusal(lambda: opened(tmp_path))
    (tmp_path / "file").touch()
    assert "cannot be made" in refusal(lambda: opened(tmp_path / "file" / "eksbatch.db"))


def test_where_nobody_may_write_permissions_are_named() -> None:
    """/proc lets not even root make a file."""
    assert "permissions" in refusal(lambda: opened(Path("/proc/eksbatch.db")))


def test_a_file_that_may_not_be_written_is_not_opened() -> None:
    """Root may everything, so as root it is done as one who is not."""
    program = (
        "import os, sys; from pathlib import Path; from tests.contracts import test_store_files as t\n"
        "t.refusal(lambda: t.opened(Path('/proc/eksbatch.db')))  # All is imported now\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(t.refusal(lambda: t.opened(Path(sys.argv[1]))))"
    )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "eksbatch.db"
        fill(file)
        file.chmod(0o444)
        file.parent.chmod(0o555)
        done = run(program, str(file))
        file.parent.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "permissions" in done.stdout


def run(program: str, argument: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )


# ---- damage


def test_damage_in_the_middle_is_found_by_whatever_reads_there(file: Path) -> None:
    fill(file, 2_000)
    whole = file.read_bytes()
    pages = len(whole) // PAGE
    for page in range(1, pages, 7):
        file.write_bytes(whole[: page * PAGE] + b"\xff" * PAGE + whole[(page + 1) * PAGE :])
        for name in ("-wal", "-shm"):
            file.with_name(file.name + name).unlink(missing_ok=True)
        sentence = trouble_of(file)
        assert not sentence or "damaged" in sentence, sentence
    file.write_bytes(whole[: pages // 2 * PAGE])
    assert "damaged" in trouble_of(file)
    file.write_bytes(whole)
    store = opened(file)
    assert len(store.load().jobs) == 2_000
    store.close()


def trouble_of(file: Path) -> str:
    """What is said when all of it is used: opened, loaded, listed, written."""
    store = sqlite_store(file)
    try:
        store.open()
        store.load()
        store.list_jobs(JobQuery())
        store.commit(jobs(3_000, 3_500))
    except StoreError as error:
        return str(error)
    finally:
        store.close()
    return ""


def test_a_job_that_cannot_be_read_is_damage_too(file: Path) -> None:
    fill(file)
    database = sqlite_database(file)
    for body in ("x'c1'", "x''", "x'01'"):
        database.run(f"UPDATE eksbatch_jobs SET spec = {body} WHERE seq = 7")
        store = opened(file)
        assert "damaged" in refusal(store.load)
        store.close()
    database.close()


# ---- no space


def test_a_full_database_keeps_what_it_has_takes_nothing_by_half_and_goes_on(file: Path) -> None:
    store = opened(file, pages_max=120)
    kept = 0

    def fill_up() -> None:
        nonlocal kept
        while True:
            store.commit(jobs(kept + 1, kept + 50, pod=os.urandom(400)))
            kept += 50

    assert "No space is left" in refusal(fill_up)
    assert kept
    for _ in range(2):
        snapshot = store.load()
        assert (len(snapshot.jobs), snapshot.counters.job_seq) == (kept, kept)
        with pytest.raises(StoreError, match="No space is left"):
            store.commit(jobs(kept + 1, kept + 50, pod=os.urandom(400)))
    store.close()
    roomier = opened(file)
    roomier.commit(jobs(kept + 1, kept + 50))
    assert len(roomier.load().jobs) == kept + 50
    roomier.close()


def test_a_quota_is_as_good_as_a_full_disk(file: Path) -> None:
    """1 a writer may not make files beyond a size 2 it ends with a sentence 3 all it said is there."""
    program = (
        "import resource, sys; from tests.contracts.writer import main\n"
        "from airflow_eksbatch.store.port import StoreError\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({200 * PAGE}, {resource.RLIM_INFINITY}))\n"
        "try: main(sys.argv[1])\n"
        "except StoreError as error: print(error, file=sys.stderr)"
    )
    done = run(program, f"sqlite:///{file}")
    assert "disk" in done.stderr or "No space" in done.stderr
    assert "Traceback" not in done.stderr
    store = opened(file)
    writer.check(store, at_least=int(done.stdout.split()[-1]))
    store.close()


# ---- others


def test_a_lock_that_another_program_holds_is_waited_for_and_then_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    fill(file)
    store = opened(file)
    database = sqlite_database(file)
    with database.engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        assert "locked" in refusal(lambda: store.commit(jobs(201, 201)))
        other.rollback()
    store.commit(jobs(201, 201))
    assert len(store.load().jobs) == 201
    store.close()
    database.close()


def test_two_programs_that_write_wait_for_each_other(file: Path) -> None:
    one, two = opened(file), opened(file)

    def write() -> None:
        for number in range(1, 200, 2):
            two.commit(jobs(number, number))

    other = threading.Thread(target=write)
    other.start()
    for number in range(2, 201, 2):
        one.commit(jobs(number, number))
    other.join(WAIT_S)
    assert len(one.load().jobs) == 200
    one.close()
    two.close()


def test_a_database_of_another_program_is_shared_with_it(file: Path) -> None:
    """Our tables have names of their own."""
    database: Database = sqlite_database(file)
    file.parent.mkdir()
    database.run("CREATE TABLE jobs (name TEXT)", "INSERT INTO jobs VALUES ('theirs')")
    fill(file)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT name FROM jobs").scalar() == "theirs"
    database.close()
