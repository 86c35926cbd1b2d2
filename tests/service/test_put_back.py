"""A database that is put back from an older copy does what docker/operating.md says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.airflow.processes import wait_for
from tests.service.conftest import MakeService
from tests.service.running import RunningService, a_definition, pod_pids, submit


def test_what_began_after_the_copy_is_ended_and_what_ended_after_it_runs_again(
    make_service: MakeService, tmp_path: Path
) -> None:
    """
    1. an old job runs while the database is copied
    2. it ends, and a new one begins
    3. the copy is put back: the pod of the new job, which nobody knows, is ended; the old one runs once more
    """
    marks, copy = tmp_path / "marks", tmp_path / "copy.db"
    marks.mkdir()
    service = make_service("--launch-delay-s", "0.1", "--check-plans").start()
    old = begin(service, marks, "old")
    service.kill()
    database = service.home / "eksbatch.db"
    with closing(sqlite3.connect(database)) as now, closing(sqlite3.connect(copy)) as then:
        now.backup(then)

    service.start()
    (marks / "old.go").touch()
    assert service.wait_for_ends({old}) == {old: "SUCCEEDED"}
    new = begin(service, marks, "new")
    service.kill()
    for path in service.home.glob("eksbatch.db*"):
        path.unlink()
    copy.rename(database)
    assert pod_pids(service.home)

    service.start()
    assert service.wait_for_ends({old}) == {old: "SUCCEEDED"}
    assert lines(marks / "old") == ["1", "1"], "it ran again, at no cost of an attempt"
    assert service.batch().describe_jobs(jobs=[new])["jobs"] == []
    wait_for("the unknown pod to end", lambda: not pod_pids(service.home), within_s=60)
    assert lines(marks / "new") == ["1"]


def begin(service: RunningService, marks: Path, name: str) -> str:
    """A job that notes its attempts, and runs until it is told to go."""
    mark = marks / name
    script = f"echo $AWS_BATCH_JOB_ATTEMPT >> {mark}; until [ -e {mark}.go ]; do sleep 0.1; done"
    batch = service.batch()
    job = submit(batch, a_definition(batch, "bash", "-c", script, name=name))
    wait_for(f"the {name} job to run", lambda: lines(mark), within_s=60)
    return job


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
