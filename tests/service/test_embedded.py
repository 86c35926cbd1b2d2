"""The private service of a machine: one for each home, there while somebody needs it, and found again where it was."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_eksbatch.endpoint import announced
from airflow_eksbatch.service.embedded import Home
from tests.api.asking import Raw
from tests.service.conftest import MakeService
from tests.service.running import RunningService

SOON = ("--leave-when-idle", "0.01")  # minutes
SOONISH = ("--leave-when-idle", "0.05")
WAIT_S = 60


class Private(RunningService):
    """As people start it."""

    is_open = False


def let_go(home: Home) -> None:
    """As the end of its process does."""
    assert home._lock is not None
    os.close(home._lock)


def modes(home: Path, *names: str) -> set[int]:
    return {stat.S_IMODE((home / name).stat().st_mode) for name in names}


def test_it_is_for_whoever_may_read_its_home(tmp_path: Path) -> None:
    """1 others of this machine are refused 2 the command line is not 3 the key outlives the process."""
    umask, home = os.umask(0o022), tmp_path / "home"
    service = Private(home)
    try:
        service.start()
        assert Raw(service.url).post("DescribeJobQueues", {}).status == 403
        assert modes(home, "") == {0o700}
        assert modes(home, "service.json", "eksbatch.db", "eksbatch.db-wal") == {0o600}
        assert asked(home).stdout.startswith("job queue")
        first = announced(home / "service.json")
        assert first is not None
        assert first.access_key_id
        assert service.stop() == 0
        service.start()
        again = announced(home / "service.json")
        assert again is not None
        assert again.secret_access_key == first.secret_access_key
    finally:
        service.end()
        os.umask(umask)


def asked(home: Path) -> subprocess.CompletedProcess[str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("EKSBATCH", "AWS"))}
    return subprocess.run(
        [sys.executable, "-m", "airflow_eksbatch.cli", "queues"],
        capture_output=True,
        text=True,
        env={**clean, "EKSBATCH_HOME": str(home)},
        timeout=WAIT_S,
    )


def test_what_an_earlier_release_left_open_is_closed(tmp_path: Path) -> None:
    database = tmp_path / "eksbatch.db"
    database.touch(0o644)
    home = Home(tmp_path)
    assert home.try_lock()
    assert modes(tmp_path, "eksbatch.db") == {0o600}
    let_go(home)


def test_it_says_that_jobs_are_processes_here(service: RunningService) -> None:
    assert "images are not used" in service.text


def test_it_leaves_when_nobody_needs_it_and_the_next_is_where_it_was(
    make_service: MakeService,
) -> None:
    service = make_service(*SOON).start()
    was = service.url
    assert service.ended() == 0
    assert not (service.home / "service.json").exists()
    assert "starts it again" in service.text
    service.start()
    assert service.url == was


def test_it_stays_while_somebody_listens_to_its_events(make_service: MakeService) -> None:
    """Two heartbeats are longer than the idle time; with the listener it goes."""
    service = make_service(*SOONISH).start()
    with urllib.request.urlopen(f"{service.url}/v1/eksbatch/events?cursor=-1", timeout=30) as lines:
        heard = [json.loads(lines.readline()) for _ in range(3)]
        assert "hello" in heard[0]
        assert service.process is not None
        assert service.process.poll() is None
    assert service.ended() == 0


def test_who_comes_while_one_leaves_takes_its_place(tmp_path: Path) -> None:
    """1 one holds the lock and answers no more 2 another comes and waits 3 the lock is let go 4 the other has it."""
    leaving, coming = Home(tmp_path), Home(tmp_path)
    assert leaving.try_lock()
    leaving.announce("http://127.0.0.1:9", None)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(coming.lock_or_find, WAIT_S)
        leaving.withdraw()
        let_go(leaving)
        assert found.result() is None
    assert not leaving.try_lock()
    assert coming.last_port() == 9
    let_go(coming)


def test_one_that_holds_the_lock_and_never_answers_is_no_service(tmp_path: Path) -> None:
    stuck = Home(tmp_path)
    assert stuck.try_lock()
    with pytest.raises(TimeoutError, match="nobody answers"):
        Home(tmp_path).lock_or_find(0.1)
    let_go(stuck)
