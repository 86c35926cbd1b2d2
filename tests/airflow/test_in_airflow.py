"""The face in a real Airflow, with the real embedded service: what the issue promises, seen.

One Airflow and one service for all tests of this file; no test leaves a job behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import psutil
import pytest
from botocore.config import Config

from tests.airflow.processes import Child, stop_all, wait_for
from tests.airflow.rig import Airflow

HERE = Path(__file__).resolve().parent
LOCAL = [sys.executable, "-c", "from airflow_eksbatch.cli import main; main()", "local"]
TAKEN_OVER_S = 8  # a triggerer that is silent for so long loses its triggers to another
WAIT_S = 60.0


class Embedded:
    """The embedded service of a home directory, whoever has started it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        env = {**os.environ, "EKSBATCH_HOME": str(home), "PYTHONPATH": str(HERE.parent.parent)}
        self._child = Child("eksbatch local", LOCAL, env=env, log=home / "test.log", cwd=home)
        wait_for("the service", self._announced, within_s=WAIT_S)

    def _announced(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.home / "service.json").read_text())
        except (OSError, ValueError):
            return None

    @property
    def process(self) -> psutil.Process:
        return psutil.Process((self._announced() or {})["pid"])

    def job(self, job_id: str) -> dict[str, Any]:
        told = self._announced() or {}
        client = botocore.session.Session().create_client(
            "batch",
            region_name="us-east-1",
            endpoint_url=told["url"],
            aws_access_key_id=told["access_key"],
            aws_secret_access_key=told["secret_key"],
            config=Config(retries={"mode": "standard"}),
        )
        return client.describe_jobs(jobs=[job_id])["jobs"][0]

    def stop(self) -> None:
        """One that a triggerer has started may have ended with it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            stop_all([self.process])
        self._child.wait()

    def wait_for_status(self, job_id: str, *wanted: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in wanted else None

        return wait_for(f"job {job_id} to be {wanted}", look, within_s=WAIT_S)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    embedded = Embedded(tmp_path_factory.mktemp("eksbatch") / "home")
    yield embedded
    embedded.stop()


@pytest.fixture(scope="module")
def airflow(service: Embedded) -> Iterator[Airflow]:
    env = {
        "EKSBATCH_HOME": str(service.home),
        "PYTHONPATH": str(HERE.parent.parent),
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": str(TAKEN_OVER_S),
    }
    # Not in pytest's own directory: another pytest would shut the database's user out of it.
    with tempfile.TemporaryDirectory(prefix="face-", ignore_cleanup_errors=True) as home:
        with Airflow(Path(home), HERE / "dags", env) as running:
            running.wait_for_dag("slow")
            yield running
            children = list(running.children.values())
        for child in children:
            child.wait()


def started(airflow: Airflow, dag_id: str) -> str:
    return airflow.rest.trigger(dag_id, dag_run_id=f"r{uuid.uuid4().hex[:8]}")["dag_run_id"]


def task_of(airflow: Airflow, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
    rows = airflow.rest.task_instances(dag_id, run_id)
    return next(row for row in rows if row["task_id"] == task_id)


def wait_for_task(
    airflow: Airflow, dag_id: str, run_id: str, task_id: str, state: str, try_number: int = 1
) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        row = task_of(airflow, dag_id, run_id, task_id)
        return row if (row["state"], row["try_number"]) == (state, try_number) else None

    what = f"{dag_id}.{task_id} to be {state} in try {try_number}"
    return wait_for(what, look, within_s=WAIT_S, poll_s=0.25)


def job_of(airflow: Airflow, dag_id: str, run_id: str, task_id: str) -> str:
    """From the button, which is there while the task waits."""

    def look() -> str | None:
        return airflow.rest.xcom(dag_id, run_id, task_id, "_link_EKSBatchJobLink")

    return wait_for(f"the job of {task_id}", look, within_s=WAIT_S).rpartition("/")[2]


def worker_logs(airflow: Airflow, dag_id: str, task_id: str) -> list[Path]:
    folder = airflow.home / "logs" / f"dag_id={dag_id}"
    return list(folder.glob(f"run_id=*/task_id={task_id}/attempt=?.log"))


def test_a_task_runs_without_any_worker(airflow: Airflow) -> None:
    run = started(airflow, "no_worker")
    assert airflow.wait_for_run("no_worker", run) == "success"
    log = airflow.rest.task_log("no_worker", run, "hello")
    assert "hello world from manual 1 7" in log
    assert "SUCCEEDED (exit code 0)" in log
    assert worker_logs(airflow, "no_worker", "hello") == []
    result = airflow.rest.xcom("no_worker", run, "hello")
    assert (result["status"], result["exit_code"]) == ("SUCCEEDED", 0)
    # Three pods at once, of which the main one has heard of both others.
    log = airflow.rest.task_log("no_worker", run, "nodes")
    assert [log.count(f"] {nodes} nodes: pi is about 3.141592") for nodes in (1, 3)] == [0, 1]
    assert worker_logs(airflow, "no_worker", "nodes") == []
    result = airflow.rest.xcom("no_worker", run, "nodes")
    assert (result["status"], result["exit_code"]) == ("SUCCEEDED", 0)


def test_a_run_that_catches_up_has_the_share_of_backfills_and_one_by_hand_that_of_today(
    airflow: Airflow, service: Embedded
) -> None:
    """Told alike by the triggerer and by a worker."""

    def shares(run: str) -> list[str]:
        assert airflow.wait_for_run("catches_up", run) == "success"
        results = [airflow.rest.xcom("catches_up", run, one) for one in ("direct", "worker")]
        return [service.job(result["job_id"])["shareIdentifier"] for result in results]

    airflow.wait_for_dag("catches_up")
    airflow.rest.unpause("catches_up")
    by_schedule = {"run_type": "scheduled"}
    [late] = wait_for(
        "the run of 2015",
        lambda: airflow.rest.runs("catches_up", **by_schedule),
        within_s=WAIT_S,
    )
    assert shares(late["dag_run_id"]) == ["backfill", "backfill"]
    assert shares(started(airflow, "catches_up")) == ["today", "today"]


def test_what_needs_a_worker_gets_one_and_ends_the_same_way(airflow: Airflow) -> None:
    run = started(airflow, "worker")
    assert airflow.wait_for_run("worker", run) == "success"
    assert "from xcom" in airflow.rest.task_log("worker", run, "fed")
    rows = airflow.rest.task_instances("worker", run)
    assert {row["state"] for row in rows} == {"success"}
    assert len([row for row in rows if row["task_id"] == "mapped"]) == 2
    for task_id in ("hello", "fed", "blocking", "outlets"):
        assert airflow.rest.xcom("worker", run, task_id)["status"] == "SUCCEEDED"
    events = airflow.rest.call("GET", "assets/events")["asset_events"]
    assert [event["source_task_id"] for event in events] == ["outlets"]


def test_failures_say_why_and_retry_only_where_that_helps(
    airflow: Airflow, service: Embedded
) -> None:
    run = started(airflow, "failing")
    late = job_of(airflow, "failing", run, "late")
    assert airflow.wait_for_run("failing", run) == "failed"
    tries = {row["task_id"]: row["try_number"] for row in airflow.rest.task_instances("failing")}
    assert tries == {"retried": 2, "blocking": 1, "refused": 1, "late": 1}
    for task_id in ("retried", "blocking"):
        log = airflow.rest.task_log("failing", run, task_id)
        assert "no such month" in log
        assert "(exit code 3)" in log
    assert "nowhere" in airflow.rest.task_log("failing", run, "refused")
    assert service.wait_for_status(late, "FAILED")["statusReason"].startswith("execution_timeout")


def test_callbacks_of_tasks_that_start_in_the_triggerer_know_their_run_and_what_went_wrong(
    airflow: Airflow,
) -> None:
    run = started(airflow, "callbacks")
    assert airflow.wait_for_run("callbacks", run) == "failed"
    said = {
        name: wait_for(
            f"the callback {name}",
            lambda name=name: (found := airflow.home / name).exists() and found.read_text(),
            within_s=WAIT_S,
        )
        for name in ("good.success", "bad.retry", "bad.failure")
    }
    assert said.pop("good.success") == f"{run}: None"
    for told in said.values():
        assert str(told).startswith(f"{run}: job ")
        assert "FAILED (exit code 3)" in str(told)
    assert airflow.rest.xcom("callbacks", run, "good", "_link_EKSBatchJobLink")


def test_output_is_in_the_log_while_the_job_runs_if_that_was_asked_for(airflow: Airflow) -> None:
    run = started(airflow, "talking")
    for task_id, state in (("direct", "deferred"), ("blocking", "running")):
        wait_for_task(airflow, "talking", run, task_id, state)
        wait_for(
            f"the output of {task_id}",
            lambda task_id=task_id: "] early" in airflow.rest.task_log("talking", run, task_id),
            within_s=WAIT_S,
            poll_s=0.25,
        )
        assert task_of(airflow, "talking", run, task_id)["state"] == state
    (airflow.home / "heard").touch()
    assert airflow.wait_for_run("talking", run) == "success"
    for task_id in ("direct", "blocking"):
        log = airflow.rest.task_log("talking", run, task_id)
        assert [log.count(f"] {word}") for word in ("early", "late")] == [1, 1]


def test_marking_a_task_failed_ends_its_job_and_clearing_it_starts_another(
    airflow: Airflow, service: Embedded
) -> None:
    """1. Two jobs run. 2. Cleared: old jobs end, new ones run. 3. Marked failed: those end too."""
    run = started(airflow, "forever")
    first = {task: job_of(airflow, "forever", run, task) for task in ("direct", "worker")}
    for task_id in first:
        wait_for_task(airflow, "forever", run, task_id, "deferred")
    airflow.rest.clear("forever", run, list(first))
    for task_id, job in first.items():
        service.wait_for_status(job, "FAILED")
        wait_for_task(airflow, "forever", run, task_id, "deferred", try_number=2)
    second = {}
    for task_id, old in first.items():
        second[task_id] = wait_for(
            "another job",
            lambda task_id=task_id, old=old: (
                (found := job_of(airflow, "forever", run, task_id)) != old and found
            ),
            within_s=WAIT_S,
        )
        service.wait_for_status(str(second[task_id]), "STARTING", "RUNNING", "RUNNABLE")
        airflow.rest.set_task_state("forever", run, task_id, "failed")
    for job in second.values():
        assert "ended or cleared" in service.wait_for_status(str(job), "FAILED")["statusReason"]


def test_a_retry_finds_the_job_of_a_worker_that_died(airflow: Airflow, service: Embedded) -> None:
    run = started(airflow, "orphan")
    row = wait_for_task(airflow, "orphan", run, "blocking", "running")

    def submitted() -> bool:
        return "Submitted job" in airflow.rest.task_log("orphan", run, "blocking")

    wait_for("the job", submitted, within_s=WAIT_S, poll_s=0.25)
    os.kill(row["pid"], signal.SIGKILL)
    assert airflow.wait_for_run("orphan", run) == "success"
    [first] = [
        line.split()[2]
        for line in airflow.rest.task_log("orphan", run, "blocking").splitlines()
        if line.startswith("Submitted job")
    ]
    log = airflow.rest.task_log("orphan", run, "blocking", 2)
    assert f"Found job {first} of an earlier try again" in log
    assert airflow.rest.xcom("orphan", run, "blocking")["job_id"] == first


def test_a_killed_triggerer_and_a_killed_service_lose_nothing(
    airflow: Airflow, service: Embedded
) -> None:
    """1. A job runs. 2. Its triggerer and the service are killed. 3. The next triggerer starts both."""
    run = started(airflow, "slow")
    job = job_of(airflow, "slow", run, "slow")
    service.wait_for_status(job, "RUNNING")
    service.process.kill()
    triggerer = airflow.children.pop("triggerer")
    for process in [*triggerer.process.children(recursive=True), triggerer.process]:
        process.kill()
    triggerer.wait()
    airflow.start_process("triggerer")
    (airflow.home / "woken").touch()
    assert airflow.wait_for_run("slow", run) == "success"
    (airflow.home / "woken").unlink()
    assert service.job(job)["status"] == "SUCCEEDED"
    assert airflow.rest.xcom("slow", run, "slow")["job_id"] == job


def test_a_frozen_triggerer_that_wakes_up_does_not_cancel_what_another_took_over(
    airflow: Airflow, service: Embedded
) -> None:
    """1. A triggerer waits. 2. It freezes; another takes over. 3. It wakes up and lets go."""
    run = started(airflow, "slow")
    job = job_of(airflow, "slow", run, "slow")
    service.wait_for_status(job, "RUNNING")
    frozen = airflow.children.pop("triggerer")
    family = [frozen.process, *frozen.process.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        airflow.start_process("triggerer")
        logs = airflow.home / "logs" / "dag_id=slow" / f"run_id={run}" / "task_id=slow"
        wait_for(
            "another triggerer to wait",
            lambda: len(list(logs.glob("attempt=1.log.trigger.*.log"))) == 2,
            within_s=WAIT_S,
        )
    finally:
        for process in reversed(family):
            process.resume()
    wait_for(
        "the frozen one to let go",
        lambda: "another triggerer has it" in airflow.rest.task_log("slow", run, "slow"),
        within_s=WAIT_S,
    )
    (airflow.home / "woken").touch()
    assert airflow.wait_for_run("slow", run) == "success"
    assert service.job(job)["status"] == "SUCCEEDED"
    stop_all([frozen.process])
    frozen.wait()
