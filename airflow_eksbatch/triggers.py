"""EKSBatchJobTrigger: submits if no worker did, waits on the shared stream, ends the task itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from airflow.triggers.base import (
    BaseEventTrigger,
    BaseTrigger,
    TaskFailedEvent,
    TaskSuccessEvent,
    TriggerEvent,
)

from airflow_eksbatch.arguments import FIELDS, BadArguments
from airflow_eksbatch.endpoint import ServiceAway, ServiceRefused, reason_of
from airflow_eksbatch.hooks import keep_named
from airflow_eksbatch.links import JOB_LINK
from airflow_eksbatch.outcome import (
    JobOutcome,
    asked,
    end_job,
    feed_for,
    follow,
    reading,
    submit,
    url_of,
)
from airflow_eksbatch.stream import JobFeed
from airflow_eksbatch.submission import Submission, build_submission, run_facts, task_key
from airflow_eksbatch.templates import strict_environment

# Airflow 3.3 fails a task whose worker reports its end after the task was already resumed.
WORKER_SETTLES_S = 3.0
DEFAULT_SUBMIT_WITHIN_S = 3600.0
DEFAULT_LOG_LINES = 50


class EKSBatchJobTrigger(BaseEventTrigger):
    """
    Submit one job, if it has no id yet, and end the task when the job ends.

    :param conn_id: Airflow connection of the service; keys never travel with the trigger.
    :param job_id: the job to wait for, if a worker has submitted it.
    :param place: of the service that it was submitted to.
    :param resume: end on a worker (outlets, post_execute, ...) instead of here.
    :param resume_failed: the same, but only if the job failed (callbacks and mails of failures).
    :param retries: whether the task has any; a failure that no retry helps then needs a worker.
    :param from_worker: a worker deferred the task a moment ago.
    :param wait: False ends the task as soon as the job is submitted.
    :param push_result: whether the result goes to XCom.
    :param cancel_on_kill: whether the job ends when a user ends or clears the task.
    :param submit_within_s: how long a service that is away is asked again to take the job.
    :param log_lines: how many last lines of the job's output go to the task's log.
    :param logging_interval_s: how often what is new of it goes there while the job runs.
    """

    supports_triggerer_queue = True

    def __init__(
        self,
        *,
        conn_id: str,
        job_id: str | None = None,
        place: str = "",
        resume: bool = False,
        resume_failed: bool = False,
        retries: int = 0,
        from_worker: bool = False,
        wait: bool = True,
        push_result: bool = True,
        cancel_on_kill: bool = True,
        submit_within_s: float = DEFAULT_SUBMIT_WITHIN_S,
        log_lines: int = DEFAULT_LOG_LINES,
        logging_interval_s: float | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.job_id = job_id
        self.place = place
        self.resume = resume
        self.resume_failed = resume_failed
        self.retries = retries
        self.from_worker = from_worker
        self.wait = wait
        self.push_result = push_result
        self.cancel_on_kill = cancel_on_kill
        self.submit_within_s = submit_within_s
        self.log_lines = log_lines
        self.logging_interval_s = logging_interval_s
        # Attributes of the operator's names: Airflow renders those in the triggerer.
        for name in FIELDS:
            setattr(self, name, fields.pop(name, None))
        if fields:
            raise TypeError(f"EKSBatchJobTrigger takes no {', '.join(sorted(fields))}")
        self._submission: Submission | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        options = ("conn_id", "job_id", "resume", "resume_failed", "retries", "from_worker", "wait")
        more = ("place", "push_result", "cancel_on_kill", "submit_within_s", "log_lines")
        names = (*options, *more, "logging_interval_s", *FIELDS)
        found = {name: getattr(self, name) for name in names}
        kwargs = {name: value for name, value in found.items() if value is not None}
        return "airflow_eksbatch.triggers.EKSBatchJobTrigger", kwargs

    def shared_stream_key(self) -> tuple[str, str]:
        return ("eksbatch", self.conn_id)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        """Keep the feed read. It finds waiters by job id itself, so nothing is ever broadcast."""
        keep_named(kwargs["conn_id"], kwargs.get("place", ""))
        await feed_for(kwargs["conn_id"]).read()
        yield None

    def get_template_env(self, dag: Any = None) -> Any:
        """As strict as on a worker: Airflow's own one renders a missing name as nothing here."""
        return strict_environment()

    async def filter_shared_stream(
        self, shared_stream: AsyncIterator[Any]
    ) -> AsyncIterator[TriggerEvent]:
        began = time.monotonic()
        outcome = await self._outcome(self._feed())
        event = self._end_event(outcome)
        if isinstance(event, TaskSuccessEvent) and self.push_result:
            await self._push_xcom("return_value", outcome.result())
        if self.from_worker and not isinstance(event, (TaskSuccessEvent, TaskFailedEvent)):
            await asyncio.sleep(max(0.0, WORKER_SETTLES_S - (time.monotonic() - began)))
        yield event

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Alone, as `dag.test()` runs triggers: there the operator always resumes, and Ctrl-C ends the task."""
        async with reading(self._feed()) as feed:
            try:
                outcome = await self._outcome(feed)
            except asyncio.CancelledError:
                if self.cancel_on_kill:
                    with self._saying_what_fails():
                        await self._end("the Airflow task was interrupted")
                raise
        yield TriggerEvent(msgspec.to_builtins(outcome))

    def _feed(self) -> JobFeed:
        keep_named(self.conn_id, self.place)
        return feed_for(self.conn_id)

    async def _outcome(self, feed: JobFeed) -> JobOutcome:
        try:
            if self.job_id is None:
                self.job_id = await self._submitted(feed)
            if not self.wait:
                url = await url_of(feed, self.job_id)
                return JobOutcome(job_id=self.job_id, status="SUBMITTED", url=url)
            self.log.info("Waiting for job %s", self.job_id)
            return await follow(
                feed,
                self.job_id,
                self.log.info,
                place=self.place,
                log_lines=self.log_lines,
                log_every_s=self.logging_interval_s,
            )
        except (BadArguments, ServiceRefused) as error:
            return JobOutcome(job_id="", status="FAILED", reason=str(error), final=True)
        except ServiceAway as error:
            return JobOutcome(job_id="", status="FAILED", reason=str(error))

    async def _submitted(self, feed: JobFeed) -> str:
        ti: Any = self.task_instance
        task, run = task_key(ti), run_facts(ti.get_template_context()["dag_run"])
        fields = {name: getattr(self, name) for name in FIELDS}
        submission = self._submission = build_submission(fields, task=task, run=run)
        job_id = await submit(feed, submission, self.submit_within_s, self.log.info)
        url = await url_of(feed, job_id)
        queue = submission.request["jobQueue"]
        self.log.info("Submitted job %s to job queue %s", job_id, queue)
        # While it waits is when people want the button, so not only at the end.
        await self._push_xcom(JOB_LINK.xcom_key, url)
        return job_id

    async def _push_xcom(self, key: str, value: Any) -> None:
        """As a worker would. An event's own xcoms arrive as JSON text in Airflow 3.3."""
        from airflow.sdk.execution_time import comms, task_runner

        task = task_key(self.task_instance)
        message = comms.SetXCom(
            key=key,
            value=value,
            dag_id=task.dag_id,
            run_id=task.run_id,
            task_id=task.task_id,
            map_index=task.map_index,
        )
        await task_runner.SUPERVISOR_COMMS.asend(message)

    def _end_event(self, outcome: JobOutcome) -> TriggerEvent:
        failed = outcome.status == "FAILED"
        if failed:
            self.log.error("%s", outcome.sentence)
        else:
            self.log.info("%s", outcome.sentence)
        pointless = outcome.final and self.retries  # only a worker can say so
        if self.resume or (failed and (self.resume_failed or pointless)):
            return TriggerEvent(msgspec.to_builtins(outcome))
        if failed:
            return TaskFailedEvent()
        return TaskSuccessEvent()

    async def on_kill(self) -> None:
        """End the job, unless the task only moved to another triggerer."""
        if self.cancel_on_kill:
            with self._saying_what_fails():
                await self._cancel_unless_handed_over()

    @contextmanager
    def _saying_what_fails(self) -> Iterator[None]:
        try:
            yield
        except (ServiceAway, ServiceRefused, TimeoutError) as error:
            self.log.warning("The job may run on until its own timeout: %s", reason_of(error))

    async def _cancel_unless_handed_over(self) -> None:
        if await self._still_deferred():
            self.log.info("The task is still deferred: another triggerer has it, the job stays")
            return
        await self._end("the Airflow task was ended or cleared by a user")

    async def _end(self, reason: str) -> None:
        # Without an id it may be there all the same: a submit of ours, or of a triggerer before us.
        if job := self.job_id or self._submission:
            job_id, status = await end_job(self._feed(), job, reason)
            self.log.info("Terminated job %s, which was %s", job_id, status)

    async def _still_deferred(self) -> bool:
        """Also true after a clear whose next try waits already: its submit supersedes our job."""
        from airflow.sdk.execution_time import comms, task_runner

        task = task_key(self.task_instance)
        answer: Any = await task_runner.SUPERVISOR_COMMS.asend(
            comms.GetTaskStates(
                dag_id=task.dag_id,
                task_ids=[task.task_id],
                run_ids=[task.run_id],
                map_index=task.map_index if task.map_index >= 0 else None,
            )
        )
        states = answer.task_states.get(task.run_id, {})
        return "deferred" in [str(getattr(state, "value", state)) for state in states.values()]


class EKSBatchJobQueueTrigger(BaseTrigger):
    """Ask until a job queue is ENABLED and VALID."""

    def __init__(self, *, conn_id: str, job_queue: str, every_s: float = 5.0) -> None:
        super().__init__()
        self.conn_id = conn_id
        self.job_queue = job_queue
        self.every_s = every_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("conn_id", "job_queue", "every_s")
        kwargs = {name: getattr(self, name) for name in names}
        return "airflow_eksbatch.triggers.EKSBatchJobQueueTrigger", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            if (
                found := await queue_verdict(self.conn_id, self.job_queue, self.log.info)
            ) is not None:
                yield TriggerEvent(found)
                return
            await asyncio.sleep(self.every_s)


async def queue_verdict(
    conn_id: str, name: str, say: Callable[[str], Any]
) -> dict[str, str] | None:
    """What to tell the sensor, or None to go on waiting."""
    try:
        queues = (await asked(conn_id, "describejobqueues", {"jobQueues": [name]}))["jobQueues"]
    except ServiceAway as error:
        say(f"The service does not answer, so it is asked again: {error}")
        return None
    except ServiceRefused as error:
        return {"refused": str(error)}
    if not queues:
        return {"refused": f"there is no job queue {name}"}
    queue = queues[0]
    if queue.get("status") == "INVALID":
        return {"refused": f"job queue {name} is INVALID: {queue.get('statusReason', '')}"}
    ready = queue.get("status") == "VALID" and queue.get("state") == "ENABLED"
    return {"ready": name} if ready else None
