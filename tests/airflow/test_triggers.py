"""The trigger under Airflow's own stream manager, against a real HTTP server that speaks the contract.

No triggerer runs here: what it does with a trigger is done by `triggered` below.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jinja2
import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.execution_time import comms, task_runner
from airflow.triggers.base import TaskFailedEvent, TaskSuccessEvent, TriggerEvent
from airflow.triggers.shared_stream import SharedStreamManager

from airflow_eksbatch import hooks, outcome, stream
from airflow_eksbatch.hooks import EKSBatchHook, Endpoint
from airflow_eksbatch.triggers import EKSBatchJobQueueTrigger, EKSBatchJobTrigger
from tests.airflow.contract_service import ContractService

PATIENCE_S = 20
AENDPOINT = EKSBatchHook.aendpoint
RUN = SimpleNamespace(run_type="backfill", logical_date=None)


class Supervisor:
    """Answers what triggers ask Airflow, as the triggerer's supervisor would."""

    def __init__(self) -> None:
        self.state = "deferred"
        self.xcoms: dict[str, Any] = {}

    async def asend(self, message: Any) -> Any:
        if isinstance(message, comms.SetXCom):
            self.xcoms[message.key] = message.value
            return None
        assert isinstance(message, comms.GetTaskStates)
        assert message.run_ids
        states = {message.task_ids[0]: self.state} if message.task_ids else {}
        return comms.TaskStatesResult(task_states={message.run_ids[0]: states})


def a_trigger(task_id: str = "month", **more: Any) -> EKSBatchJobTrigger:
    fields = {"job_queue": "default", "command": ["run"]}
    trigger = EKSBatchJobTrigger(
        **{"conn_id": "eksbatch_default", "submit_within_s": 30, **fields, **more}
    )
    ti: Any = SimpleNamespace(
        dag_id="weather",
        run_id="r1",
        task_id=task_id,
        map_index=-1,
        try_number=1,
        get_template_context=lambda: {"dag_run": RUN},
    )
    trigger._task_instance = ti
    return trigger


async def triggered(trigger: EKSBatchJobTrigger, manager: SharedStreamManager) -> TriggerEvent:
    """What a triggerer does: subscribe, filter, on_kill when a user acts, unsubscribe."""
    key, number = trigger.shared_stream_key(), uuid.uuid4().int
    shared = manager.subscribe(trigger_id=number, trigger=trigger, key=key)
    try:
        async for event in trigger.filter_shared_stream(shared):
            return event
        raise AssertionError("the trigger ended without an event")
    except asyncio.CancelledError as error:
        if error.args == ("user-action",):
            await trigger.on_kill()
        raise
    finally:
        await manager.unsubscribe(number, key)


@contextlib.asynccontextmanager
async def a_service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ContractService]:
    async with ContractService() as service:

        async def endpoint(_: EKSBatchHook) -> Endpoint:
            return Endpoint(url=service.url)

        monkeypatch.setattr(EKSBatchHook, "aendpoint", endpoint)
        yield service


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    answering = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", answering, raising=False)
    return answering


Scenario = Callable[[ContractService, SharedStreamManager], Coroutine[Any, Any, None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, supervisor: Supervisor) -> Callable[[Scenario], None]:
    """Run a scenario with a service and a stream manager; nothing may be left behind."""

    async def play_it(scenario: Scenario) -> None:
        async with asyncio.timeout(PATIENCE_S), a_service(monkeypatch) as service:
            manager = SharedStreamManager()
            await scenario(service, manager)
            assert manager._groups == {}

    return lambda scenario: asyncio.run(play_it(scenario))


def test_a_task_is_submitted_awaited_and_ended_in_the_triggerer(
    play: Any, supervisor: Supervisor
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        await service.change(job, "RUNNING")
        # Its second placement; the first was lost with a Spot instance, for free.
        await service.change(job, "SUCCEEDED", exitCode=0, attempt=2, attempts=1)
        event = await ending
        assert isinstance(event, TaskSuccessEvent)
        result = {"job_id": job, "status": "SUCCEEDED", "exit_code": 0, "attempts": 1}
        assert supervisor.xcoms == {
            "_link_EKSBatchJobLink": f"eksbatch/eksbatch_default/job/{job}",
            "return_value": result,
        }
        assert service.bodies("submitjob")[0]["shareIdentifier"] == "backfill"

    play(scenario)


def test_the_definition_is_registered_once_and_then_one_call_submits(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        for number in (1, 2):
            ending = asyncio.create_task(triggered(a_trigger(f"t{number}"), manager))
            job = (await service.submitted(number))[-1]
            await service.change(job, "SUCCEEDED")
            await ending
        assert len(service.bodies("registerjobdefinition")) == 1
        assert len(service.bodies("submitjob")) == 3

    play(scenario)


def test_a_default_share_is_dropped_where_the_job_queue_has_no_shares_and_says_so_once(
    play: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        service.fifo = True
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        await service.change(job, "SUCCEEDED")
        assert isinstance(await ending, TaskSuccessEvent)
        said = capfd.readouterr().out
        assert said.count("Job queue default has no scheduling policy, so the share backfill") == 1
        chosen = await triggered(a_trigger("t2", share_identifier="mine"), manager)
        assert isinstance(chosen, TaskFailedEvent)

    play(scenario)


def test_three_hundred_tasks_share_one_connection_and_coalesce_their_looks(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine submits come one by one, and looks are gathered by time.
    monkeypatch.setattr(stream, "GATHER_S", 0.5)

    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        tasks = [
            asyncio.create_task(triggered(a_trigger(f"t{n}", log_lines=0), manager))
            for n in range(300)
        ]
        for job in await service.submitted(300):
            await service.change(job, "SUCCEEDED")
        events = await asyncio.gather(*tasks)
        assert all(isinstance(event, TaskSuccessEvent) for event in events)
        assert service.connections == 1
        assert len(service.bodies("describejobs")) < 60

    play(scenario)


def test_a_failed_job_tells_its_reason_and_the_end_of_its_output(play: Any, capsys: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        service.outputs[job] = [b"loading\nno such file: 2012.csv\n"]
        await service.change(job, "FAILED", exitCode=3, statusReason="Essential container exited")
        assert isinstance(await ending, TaskFailedEvent)

    play(scenario)
    said = capsys.readouterr().out
    assert "no such file: 2012.csv" in said
    assert "FAILED (exit code 3): Essential container exited" in said


def test_the_end_of_a_job_says_what_it_cost(play: Any, capsys: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        await service.change(job, "SUCCEEDED", exitCode=0, cost={"usd": 0.0123})
        assert isinstance(await ending, TaskSuccessEvent)

    play(scenario)
    assert " cost 0.012300 USD" in capsys.readouterr().out


def test_why_a_job_waits_is_said_while_it_waits_and_again_only_if_it_has_changed(
    play: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "EXPLAIN_AFTER_S", 0.02)
    monkeypatch.setattr(outcome, "EXPLAIN_LONGEST_S", 0.02)
    monkeypatch.setattr(outcome, "EXPLAIN_GAP_S", 0.0)

    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        await service.change(job, "RUNNABLE")
        await service.why_was_asked(3)
        service.why = ["A node is on its way.", "Nine jobs are before it."]
        await service.why_was_asked(len(service.explained) + 3)
        await service.change(job, "SUCCEEDED")
        assert isinstance(await ending, TaskSuccessEvent)

    play(scenario)
    said = capsys.readouterr().out
    assert said.count("is RUNNABLE: It waits.") == 1
    assert said.count("is RUNNABLE: A node is on its way. Nine jobs are before it.") == 1


def test_many_tasks_ask_why_they_wait_one_by_one(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "EXPLAIN_AFTER_S", 0.02)
    monkeypatch.setattr(outcome, "EXPLAIN_GAP_S", 0.0)

    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        # From the first: a change would leave a question half asked, and the next one would overlap it there.
        service.first_status = "RUNNABLE"
        tasks = [asyncio.create_task(triggered(a_trigger(f"t{n}"), manager)) for n in range(9)]
        await service.why_was_asked(18)
        assert service.most_explained_at_once == 1
        for job in service.jobs:
            await service.change(job, "SUCCEEDED")
        await asyncio.gather(*tasks)

    play(scenario)


def test_an_array_tells_which_children_failed_and_shows_the_output_of_one(
    play: Any, capsys: Any
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(array_size=12), manager))
        [job] = await service.submitted()
        service.outputs[f"{job}:7"] = [b"division by zero\n"]
        await service.change(f"{job}:7", "FAILED", statusReason="exited 1")
        await service.change(job, "FAILED", statusReason="Array Child Job failed", parent=True)
        assert isinstance(await ending, TaskFailedEvent)

    play(scenario)
    said = capsys.readouterr().out
    assert ":7 FAILED: exited 1" in said
    assert "division by zero" in said


@pytest.mark.parametrize("retries", [0, 2])
def test_a_refused_job_fails_at_once_and_is_not_retried(
    play: Any, capsys: Any, retries: int
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        service.refusal = "JobQueue nowhere not found. Create it first."
        event = await triggered(a_trigger(retries=retries), manager)
        if retries:  # only a worker can say that retries are pointless
            assert event.payload["final"] is True
            assert "nowhere" in event.payload["reason"]
        else:
            assert isinstance(event, TaskFailedEvent)

    play(scenario)
    said = capsys.readouterr().out
    assert "JobQueue nowhere not found. Create it first." in said


def test_arguments_that_render_to_nonsense_fail_the_task_with_a_sentence(
    play: Any, capsys: Any
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        event = await triggered(a_trigger(vcpus="0.3"), manager)
        assert isinstance(event, TaskFailedEvent)
        assert service.jobs == {}

    play(scenario)
    said = capsys.readouterr().out
    assert "vcpus must be a multiple of 0.25" in said


def test_a_busy_service_is_asked_again(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        service.busy = 2
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        await service.change(job, "SUCCEEDED")
        assert isinstance(await ending, TaskSuccessEvent)
        assert len(service.jobs) == 1

    play(scenario)


def test_a_service_that_stays_away_fails_the_task_after_the_bound(play: Any, capsys: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        await service.stop()
        event = await triggered(a_trigger(submit_within_s=0.1), manager)
        assert isinstance(event, TaskFailedEvent)

    play(scenario)
    said = capsys.readouterr().out
    assert "gave up after 0.1 s" in said


def test_a_service_that_restarts_loses_nothing(play: Any, capsys: Any) -> None:
    """1. A job waits. 2. The service goes. 3. It ends the job. 4. It is back and tells of it."""

    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        await service.connected()
        await service.stop()
        await service.change(job, "SUCCEEDED", exitCode=0)
        await service.start()
        assert isinstance(await ending, TaskSuccessEvent)

    play(scenario)
    said = capsys.readouterr().out
    assert "still waiting" in said


def test_an_end_before_the_stream_is_open_is_found_by_the_look(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        job = str(uuid.uuid4())
        service.jobs[job] = {"jobId": job, "jobName": "old", "status": "SUCCEEDED"}
        assert isinstance(await triggered(a_trigger(job_id=job), manager), TaskSuccessEvent)

    play(scenario)


def test_the_next_stream_goes_on_where_the_last_one_was_left(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        for number in (1, 2):
            ending = asyncio.create_task(triggered(a_trigger(f"t{number}"), manager))
            job = (await service.submitted(number))[-1]
            await service.connected(number)
            await service.change(job, "RUNNING")
            await service.change(job, "SUCCEEDED")
            await ending
        assert service.cursors[0] == stream.FROM_NOW
        assert service.cursors[1] > 0

    play(scenario)


def test_a_job_the_service_forgot_ends_the_wait(play: Any, capsys: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        event = await triggered(a_trigger(job_id=str(uuid.uuid4())), manager)
        assert isinstance(event, TaskFailedEvent)

    play(scenario)
    said = capsys.readouterr().out
    assert "does not know this job any more" in said


def test_a_new_triggerer_that_cannot_read_the_connection_waits_for_jobs_of_before(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker submitted it; the first process that cannot read is one that has never read before."""
    monkeypatch.setattr(hooks, "_naming", set())
    unreadable = asyncio.Event()

    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        job = str(uuid.uuid4())
        service.jobs[job] = {"jobId": job, "jobName": "month", "status": "RUNNING"}
        _, kwargs = a_trigger(job_id=job, place=service.url).serialize()
        readable = False

        async def aget(_: str) -> Any:
            if readable:
                return Connection(
                    conn_id="eksbatch_default", conn_type="eksbatch", host=service.url
                )
            unreadable.set()
            raise AirflowNotFoundException

        monkeypatch.setattr(EKSBatchHook, "aendpoint", AENDPOINT)
        monkeypatch.setattr(EKSBatchHook, "aget_connection", staticmethod(aget))
        monkeypatch.setattr(hooks, "find_or_start_embedded", lambda: pytest.fail("a job runs here"))
        ending = asyncio.create_task(triggered(a_trigger(**kwargs), manager))
        await unreadable.wait()
        readable = True
        await service.connected()
        await service.change(job, "SUCCEEDED")
        assert isinstance(await ending, TaskSuccessEvent)

    play(scenario)


async def killed(service: ContractService, manager: SharedStreamManager) -> str:
    ending = asyncio.create_task(triggered(a_trigger(), manager))
    [job] = await service.submitted()
    await service.connected()
    ending.cancel("user-action")
    await asyncio.wait([ending])
    return job


@pytest.mark.parametrize("state", ["failed", "success", "None"])
def test_a_user_who_ends_the_task_ends_the_job(
    play: Any, supervisor: Supervisor, state: str
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        supervisor.state = state
        job = await killed(service, manager)
        assert [body["jobId"] for body in service.bodies("terminatejob")] == [job]

    play(scenario)


def test_a_job_is_ended_as_soon_as_a_busy_service_takes_that(
    play: Any, supervisor: Supervisor
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        supervisor.state = "failed"
        ending = asyncio.create_task(triggered(a_trigger(), manager))
        [job] = await service.submitted()
        await service.connected()
        service.busy = 3
        ending.cancel("user-action")
        await asyncio.wait([ending])
        assert [body["jobId"] for body in service.bodies("terminatejob")][-1:] == [job]
        assert service.jobs[job]["isTerminated"]

    play(scenario)


def test_a_queue_is_asked_for_again_while_the_service_is_away(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        service.busy = 2
        trigger = EKSBatchJobQueueTrigger(conn_id="c", job_queue="default", every_s=0.01)
        event = await anext(trigger.run())
        assert event.payload == {"ready": "default"}

    play(scenario)


def test_a_hand_over_to_another_triggerer_leaves_the_job_alone(
    play: Any, supervisor: Supervisor
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        await killed(service, manager)
        assert service.bodies("terminatejob") == []

    play(scenario)


def test_a_job_that_somebody_ended_is_not_retried(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(retries=2), manager))
        [job] = await service.submitted()
        service.jobs[job]["isTerminated"] = True
        await service.change(job, "FAILED", statusReason="not needed any more")
        event = await ending
        assert event.payload["final"] is True

    play(scenario)


def test_a_task_with_outlets_gets_its_outcome_on_a_worker(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(resume=True), manager))
        [job] = await service.submitted()
        await service.change(job, "SUCCEEDED", exitCode=0)
        event = await ending
        assert (event.payload["job_id"], event.payload["status"]) == (job, "SUCCEEDED")
        assert event.payload["url"].endswith(job)  # of the button, which a worker writes anew

    play(scenario)


@pytest.mark.parametrize(
    ("status", "expected"), [("SUCCEEDED", TaskSuccessEvent), ("FAILED", TriggerEvent)]
)
def test_a_task_with_failure_callbacks_gets_only_failures_on_a_worker(
    play: Any, status: str, expected: type[TriggerEvent]
) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.create_task(triggered(a_trigger(resume_failed=True), manager))
        [job] = await service.submitted()
        await service.change(job, status)
        assert type(await ending) is expected

    play(scenario)


def test_not_waiting_ends_the_task_with_the_submit(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        event = await triggered(a_trigger(wait=False), manager)
        assert isinstance(event, TaskSuccessEvent)

    play(scenario)


def test_a_trigger_runs_alone_too_as_dag_test_wants_it(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        trigger = a_trigger()
        ending = asyncio.ensure_future(anext(trigger.run()))
        [job] = await service.submitted()
        await service.change(job, "SUCCEEDED")
        assert (await ending).payload["status"] == "SUCCEEDED"

    play(scenario)


def test_an_interrupt_of_dag_test_ends_the_job(play: Any) -> None:
    async def scenario(service: ContractService, manager: SharedStreamManager) -> None:
        ending = asyncio.ensure_future(anext(a_trigger().run()))
        [job] = await service.submitted()
        await service.connected()
        ending.cancel()
        await asyncio.wait([ending])
        assert [body["jobId"] for body in service.bodies("terminatejob")] == [job]

    play(scenario)


def test_a_missing_name_in_a_template_is_a_mistake_and_not_nothing() -> None:
    trigger = a_trigger(command="echo {{ ds }}")
    trigger.template_fields = ("command",)
    with pytest.raises(jinja2.UndefinedError):
        trigger.render_template_fields({})
    trigger.render_template_fields({"ds": "2012-01-01"})
    assert vars(trigger)["command"] == "echo 2012-01-01"


def test_keys_never_travel_with_the_trigger() -> None:
    path, kwargs = a_trigger().serialize()
    assert path == "airflow_eksbatch.triggers.EKSBatchJobTrigger"
    assert kwargs["conn_id"] == "eksbatch_default"
    assert not {"login", "password", "secret", "url"} & kwargs.keys()
    assert EKSBatchJobTrigger(**kwargs).serialize() == (path, kwargs)


def test_the_embedded_service_is_found_by_its_file(tmp_path: Any) -> None:
    async def scenario() -> None:
        async with ContractService() as service:
            (tmp_path / "service.json").write_text(f'{{"url": "{service.url}", "pid": 1}}')
            places = {"EKSBATCH_HOME": str(tmp_path)}
            with mock.patch.dict(os.environ, places):
                found = await asyncio.to_thread(EKSBatchHook()._embedded)
            assert found == Endpoint(url=service.url, embedded=True)

    asyncio.run(scenario())
