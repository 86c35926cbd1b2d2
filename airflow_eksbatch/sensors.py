"""Sensors: wait for a job that something else submitted, or for a job queue to be ready."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from airflow_eksbatch.links import JOB_LINK
from airflow_eksbatch.templates import needs_worker_to_fail, needs_worker_to_succeed

if TYPE_CHECKING:
    from airflow.sdk import Context


class EKSBatchJobSensor(BaseSensorOperator):
    """
    Wait until a job has SUCCEEDED; fail with its reason if it FAILED. The job is never ended.

    :param job_id: the job's id, or the result of an EKSBatchOperator.
    :param conn_id: connection of type ``eksbatch``; without it the embedded service is used.
    :param deferrable: False polls on a worker instead.
    :param log_lines: how many last lines of the job's output go to the task's log.
    """

    template_fields: Collection[str] = ("job_id",)
    operator_extra_links = (JOB_LINK,)

    def __init__(
        self,
        *,
        job_id: str | dict[str, Any],
        conn_id: str = "eksbatch_default",
        deferrable: bool = True,
        log_lines: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.log_lines = log_lines
        self.job_url: str | None = None

    def execute(self, context: Context) -> Any:  # noqa: RET503  defer() never returns
        from airflow_eksbatch.hooks import EKSBatchHook, job_url

        endpoint = EKSBatchHook(self.conn_id).endpoint()
        self.job_url = job_url(endpoint, self._id)
        if not self.deferrable:
            # As after a deferral: of a failure in poke Airflow honours soft_fail and silent_fail differently.
            event = super().execute(context)
            return self.resume_execution("execute_complete", {"event": event}, context)
        from datetime import timedelta

        from airflow_eksbatch.triggers import EKSBatchJobTrigger

        self.defer(
            trigger=EKSBatchJobTrigger(
                conn_id=self.conn_id,
                job_id=self._id,
                place=endpoint.place,
                resume=needs_worker_to_succeed(self),
                # Only a worker knows soft_fail.
                resume_failed=self.soft_fail or self.never_fail or needs_worker_to_fail(self),
                retries=self.retries or 0,
                push_result=self.do_xcom_push,
                from_worker=True,
                cancel_on_kill=False,
                log_lines=self.log_lines,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    @property
    def _id(self) -> str:
        found = self.job_id.get("job_id") if isinstance(self.job_id, dict) else self.job_id
        if not found or not isinstance(found, str):
            from airflow_eksbatch.outcome import EKSBatchJobRefused

            raise EKSBatchJobRefused(
                "job_id must be the id of one job or the result of an EKSBatchOperator, got "
                f"{self.job_id!r:.200}; for several jobs, map the sensor over their ids"
            )
        return found

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        import msgspec

        from airflow_eksbatch.outcome import JobOutcome, result_of

        outcome = msgspec.convert(event, JobOutcome)
        self.job_url = outcome.url or self.job_url
        return result_of(outcome)

    def poke(self, context: Context) -> Any:
        import msgspec
        from airflow.sdk import PokeReturnValue

        from airflow_eksbatch.hooks import ServiceAway, ServiceRefused
        from airflow_eksbatch.outcome import EKSBatchJobRefused, JobOutcome, asked
        from airflow_eksbatch.stream import ENDED, news_from_job

        try:
            answer = asyncio.run(asked(self.conn_id, "describejobs", {"jobs": [self._id]}))
        except ServiceAway as error:
            self.log.info("The service does not answer, so it is asked again: %s", error)
            return PokeReturnValue(is_done=False)
        except ServiceRefused as error:
            raise EKSBatchJobRefused(str(error)) from error
        jobs = answer["jobs"]
        news = news_from_job(jobs[0] if jobs else None)
        if news.status not in ENDED:
            self.log.info("Job %s is %s", self._id, news.status)
            return PokeReturnValue(is_done=False)
        outcome = JobOutcome(
            job_id=self._id,
            status=news.status,
            reason=news.reason,
            exit_code=news.exit_code,
            attempts=news.attempts,
        )
        return PokeReturnValue(is_done=True, xcom_value=msgspec.to_builtins(outcome))


class EKSBatchJobQueueSensor(BaseSensorOperator):
    """
    Wait until a job queue is ENABLED and VALID.

    :param job_queue: name or ARN.
    :param conn_id: connection of type ``eksbatch``; without it the embedded service is used.
    :param deferrable: False polls on a worker instead.
    """

    template_fields: Collection[str] = ("job_queue",)

    def __init__(
        self,
        *,
        job_queue: str = "default",
        conn_id: str = "eksbatch_default",
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_queue = job_queue
        self.conn_id = conn_id
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:  # noqa: RET503  defer() never returns
        # What is refused at once is so by Airflow's own loop, which honours soft_fail.
        if not self.deferrable or self._verdict() is not None:
            return super().execute(context)
        from datetime import timedelta

        from airflow_eksbatch.triggers import EKSBatchJobQueueTrigger

        self.defer(
            trigger=EKSBatchJobQueueTrigger(
                conn_id=self.conn_id, job_queue=self.job_queue, every_s=self.poke_interval
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        self._raise_if_refused(event)

    def poke(self, context: Context) -> bool:
        verdict = self._verdict()
        self._raise_if_refused(verdict or {})
        return verdict is not None

    def _verdict(self) -> dict[str, Any] | None:
        from airflow_eksbatch.triggers import queue_verdict

        return asyncio.run(queue_verdict(self.conn_id, self.job_queue, self.log.info))

    def _raise_if_refused(self, verdict: dict[str, Any]) -> None:
        if "refused" in verdict:
            from airflow.sdk.exceptions import AirflowFailException

            raise AirflowFailException(verdict["refused"])
