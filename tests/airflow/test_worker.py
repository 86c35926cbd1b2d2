"""What an operator and the sensors do on a worker, against a real HTTP server that speaks the contract.

No worker runs here: what it does with an operator is done by the tests.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferralTimeout,
    TaskDeferred,
)

from airflow_eksbatch import hooks, outcome
from airflow_eksbatch.hooks import EKSBatchHook, Endpoint, ServiceAway
from airflow_eksbatch.links import JOB_LINK
from airflow_eksbatch.operators import STATE_KEY, EKSBatchOperator
from airflow_eksbatch.outcome import EKSBatchJobFailed, EKSBatchJobRefused
from airflow_eksbatch.sensors import EKSBatchJobQueueSensor, EKSBatchJobSensor
from tests.airflow.contract_service import ContractService

PATIENCE_S = 20
OUT_OF_TIME = {"error": "Trigger timeout"}


class Elsewhere:
    """A service in a thread of its own: a worker's own thread waits while it asks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.service = self.does(self._started())

    async def _started(self) -> ContractService:
        service = ContractService()
        await service.start()
        return service

    def does(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(PATIENCE_S)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self.service.answering.set)

    def close(self) -> None:
        self.does(self.service.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Notes(dict[str, Any]):
    """The task's notes in Airflow; they outlive its tries."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        self.pop(key, None)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    elsewhere = Elsewhere()
    url = elsewhere.service.url

    async def aendpoint(_: EKSBatchHook) -> Endpoint:
        return Endpoint(url=url)

    monkeypatch.setattr(EKSBatchHook, "aendpoint", aendpoint)
    monkeypatch.setattr(EKSBatchHook, "endpoint", lambda _: Endpoint(url=url))
    yield elsewhere
    elsewhere.close()


def a_task(make: Callable[..., Any] = EKSBatchOperator, **more: Any) -> Any:
    with DAG("weather", schedule=None, start_date=datetime(2012, 1, 1, tzinfo=UTC)):
        return make(task_id="month", **more)


def a_context(notes: Notes | None = None, **more: Any) -> Any:
    ti = {
        "dag_id": "weather",
        "run_id": "r1",
        "task_id": "month",
        "map_index": -1,
        "try_number": 1,
        "max_tries": 1,
        "start_date": None,
        **more,
    }
    return {
        "ti": SimpleNamespace(**ti),
        "dag_run": SimpleNamespace(run_type="manual", logical_date=None, clear_number=0),
        "task_state_store": Notes() if notes is None else notes,
    }


def job_of(operator: EKSBatchOperator, context: Any) -> str:
    """The job that the task is deferred for."""
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    return deferred.value.trigger.serialize()[1]["job_id"]


# ---- the next try


def test_a_retry_keeps_its_live_job_also_after_a_clear_of_another_task_of_the_run(
    there: Elsewhere,
) -> None:
    notes = Notes()
    job = job_of(a_task(command=["run"]), a_context(notes))
    retry = a_context(notes, try_number=2)
    retry["dag_run"].clear_number = 1
    assert job_of(a_task(command=["run"]), retry) == job
    assert len(there.service.jobs) == 1


@pytest.mark.parametrize("status", ["RUNNING", "SUCCEEDED"])
def test_a_task_that_was_cleared_gets_a_new_job(there: Elsewhere, status: str) -> None:
    notes = Notes()
    job = job_of(a_task(command=["run"]), a_context(notes))
    there.does(there.service.change(job, status))
    assert job_of(a_task(command=["run"]), a_context(notes, try_number=2, max_tries=2)) != job


@pytest.mark.parametrize(("status", "kept"), [("RUNNING", True), ("SUCCEEDED", False)])
def test_a_note_of_a_former_release_is_good_for_a_job_that_is_live(
    there: Elsewhere, status: str, kept: bool
) -> None:
    notes = Notes()
    job = job_of(a_task(command=["run"]), a_context(notes))
    notes[STATE_KEY] = {"job_id": job, "clear_number": 0}
    there.does(there.service.change(job, status))
    assert (job_of(a_task(command=["run"]), a_context(notes, try_number=2)) == job) is kept


def test_a_retry_waits_for_a_service_that_is_busy(there: Elsewhere) -> None:
    notes = Notes()
    job = job_of(a_task(command=["run"]), a_context(notes))
    there.service.busy = 1
    assert job_of(a_task(command=["run"]), a_context(notes, try_number=2)) == job


def test_a_worker_that_cannot_read_the_connection_does_not_look_for_its_job_elsewhere(
    there: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has submitted it, and its note says where."""
    monkeypatch.setattr(hooks, "_naming", set())
    notes = Notes()
    job_of(a_task(command=["run"]), a_context(notes))
    monkeypatch.undo()

    async def missing(_: str) -> Any:
        raise AirflowNotFoundException

    monkeypatch.setattr(hooks, "_naming", set())
    monkeypatch.setattr(EKSBatchHook, "aget_connection", staticmethod(missing))
    monkeypatch.setattr(hooks, "find_or_start_embedded", lambda: pytest.fail("a job runs here"))
    with pytest.raises(ServiceAway, match="was there before"):
        a_task(command=["run"], submit_within=0).execute(a_context(notes, try_number=2))


# ---- ends that somebody asks for


def test_a_worker_told_to_end_in_the_middle_of_the_submit_ends_the_job(there: Elsewhere) -> None:
    """1. The service takes the job. 2. SIGTERM comes before its answer. 3. The answer comes."""
    operator, context = a_task(command=["run"]), a_context()
    there.service.unanswered = 1

    def end(*_: Any) -> None:
        operator.on_kill()
        there.release()

    def tell() -> None:
        there.does(there.service.submitted())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        telling = threading.Thread(target=tell)
        telling.start()
        job = job_of(operator, context)
        telling.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [body["jobId"] for body in there.service.bodies("terminatejob")] == [job]
    assert list(there.service.jobs) == [job]


def test_what_is_asked_with_is_there_before_on_kill_may_ask() -> None:
    """Another thread asks then, and would wait for ever for an import that SIGTERM fell into."""
    program = """
import asyncio, sys
from airflow_eksbatch.hooks import EKSBatchHook, Endpoint
from airflow_eksbatch.outcome import feed_for

async def aendpoint(_):
    return Endpoint(url="http://127.0.0.1:1", access_key_id="A", secret_access_key="S")

def on_kill_may_ask(endpoint):
    global loaded
    loaded = set(sys.modules)

async def ask():
    feed = feed_for("eksbatch_default", on_kill_may_ask)
    service = await feed.service()
    service._signed("POST", "http://127.0.0.1:1/v1/submitjob", b"{}", {})
    service._session()
    await feed.close()

EKSBatchHook.aendpoint = aendpoint
asyncio.run(ask())
late = set(sys.modules) - loaded
print([name for name in late if name.partition(".")[0] in ("aiohttp", "botocore", "yarl")])
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_worker_interrupted_while_it_starts_a_thread_of_a_pool_ends_its_job(
    there: Elsewhere,
) -> None:
    job = job_of(a_task(command=["run"]), a_context())
    with concurrent.futures.thread._global_shutdown_lock:
        assert outcome.end_from_anywhere(Endpoint(url=there.service.url), job, "") == job


def test_a_worker_that_has_submitted_nothing_asks_nothing_when_it_is_told_to_end(
    there: Elsewhere,
) -> None:
    a_task(command=["run"]).on_kill()
    assert there.service.requests == []


def test_a_task_out_of_time_ends_its_job_and_says_that_waiting_counts(
    there: Elsewhere, capsys: pytest.CaptureFixture[str]
) -> None:
    """Started in the triggerer: there is no note, and the token finds the job."""
    job = job_of(a_task(command=["run"]), a_context())
    there.does(there.service.change(job, "RUNNABLE"))
    task = a_task(command=["run"])
    with pytest.raises(TaskDeferralTimeout):
        task.resume_execution("__fail__", OUT_OF_TIME, a_context())
    assert [body["jobId"] for body in there.service.bodies("terminatejob")] == [job]
    assert task.job_url == f"eksbatch/eksbatch_default/job/{job}"
    said = capsys.readouterr().out
    assert f"terminated job {job}, which was RUNNABLE" in said
    assert "execution_timeout counts the wait" in said


def test_a_task_out_of_time_fails_also_while_the_service_is_away(
    there: Elsewhere, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outcome, "END_S", 0.5)
    there.does(there.service.stop())
    with pytest.raises(TaskDeferralTimeout):
        a_task(command=["run"]).resume_execution("__fail__", OUT_OF_TIME, a_context())
    assert "the job may run on until its own timeout" in capsys.readouterr().out


@pytest.mark.parametrize("make", [EKSBatchOperator, partial(EKSBatchJobSensor, job_id="1")])
def test_the_button_of_a_task_whose_wait_failed_stays(
    there: Elsewhere, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]
) -> None:
    """Airflow asks for it at every end that a worker has a part in, and keeps the answer."""
    monkeypatch.setattr(outcome, "END_S", 0.5)
    there.does(there.service.stop())
    shown = "eksbatch/eksbatch_default/job/1"

    def xcom_pull(task_id: str, *, key: str, map_indexes: int) -> str | None:
        here = (task_id, key, map_indexes) == ("month", "_link_EKSBatchJobLink", -1)
        return shown if here else None

    context = a_context(xcom_pull=xcom_pull)
    task = a_task(make)
    with pytest.raises((TaskDeferralTimeout, AirflowSensorTimeout)):
        task.resume_execution("__fail__", OUT_OF_TIME, context)
    assert JOB_LINK.get_link(task, ti_key=context["ti"]) == shown


# ---- sensors


def test_sensors_that_poll_wait_for_a_service_that_is_away(there: Elsewhere) -> None:
    there.does(there.service.stop())
    job = a_task(EKSBatchJobSensor, job_id="1", deferrable=False)
    assert job.poke({}).is_done is False
    assert a_task(EKSBatchJobQueueSensor, deferrable=False).poke({}) is False


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({}, EKSBatchJobFailed),
        ({"silent_fail": True}, EKSBatchJobFailed),
        ({"soft_fail": True}, AirflowSkipException),
        ({"never_fail": True}, AirflowSkipException),
    ],
)
def test_a_failed_job_ends_a_sensor_that_polls_as_it_ends_one_that_waits(
    there: Elsewhere, given: dict[str, bool], ends: type[Exception]
) -> None:
    job = job_of(a_task(command=["run"]), a_context())
    there.does(there.service.change(job, "FAILED", statusReason="broken"))
    sensor = a_task(EKSBatchJobSensor, job_id=job, deferrable=False, timeout=0, **given)
    event = {"job_id": job, "status": "FAILED", "reason": "broken"}
    for wait in (
        lambda: sensor.execute({}),
        lambda: sensor.resume_execution("execute_complete", {"event": event}, {}),
    ):
        with pytest.raises(ends):
            wait()
    assert sensor.job_url == f"eksbatch/eksbatch_default/job/{job}"


def test_a_sensor_that_polls_returns_the_result_of_the_job(there: Elsewhere) -> None:
    job = job_of(a_task(command=["run"]), a_context())
    there.does(there.service.change(job, "SUCCEEDED"))
    result = a_task(EKSBatchJobSensor, job_id={"job_id": job}, deferrable=False).execute({})
    assert (result["job_id"], result["status"]) == (job, "SUCCEEDED")


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize("job_id", [None, "", {}, ["1", "2"]])
def test_a_sensor_of_no_job_or_of_several_says_what_it_takes(
    there: Elsewhere, job_id: Any, deferrable: bool
) -> None:
    with pytest.raises(EKSBatchJobRefused, match="job_id must be the id of one job"):
        a_task(EKSBatchJobSensor, job_id=job_id, deferrable=deferrable).execute({})
    assert there.service.requests == []


@pytest.mark.parametrize(
    ("given", "ends"), [({}, AirflowFailException), ({"soft_fail": True}, AirflowSkipException)]
)
@pytest.mark.parametrize("deferrable", [True, False])
def test_a_job_queue_that_is_not_there_ends_a_sensor_alike_in_both_modes(
    there: Elsewhere, given: dict[str, bool], ends: type[Exception], deferrable: bool
) -> None:
    there.service.missing_queue = "default"
    with pytest.raises(ends):
        a_task(EKSBatchJobQueueSensor, deferrable=deferrable, **given).execute({})


def test_a_queue_sensor_waits_in_the_triggerer_for_a_service_that_is_away(
    there: Elsewhere,
) -> None:
    there.does(there.service.stop())
    with pytest.raises(TaskDeferred):
        a_task(EKSBatchJobQueueSensor).execute({})
