"""EKSBatchOperator: says what to run; starts in the triggerer, or on a worker where it must."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from airflow.sdk import BaseOperator

from airflow_eksbatch.arguments import (
    FIELDS,
    BadArguments,
    check_fields,
    job_timeout_s,
    logging_interval_s,
    one_of,
    seconds,
    size_in,
)
from airflow_eksbatch.links import JOB_LINK
from airflow_eksbatch.submission import Submission, build_submission, run_facts, task_key
from airflow_eksbatch.templates import (
    WhenAsked,
    needs_worker_to_fail,
    needs_worker_to_render,
    needs_worker_to_start,
    needs_worker_to_succeed,
    plain,
)

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import StartTriggerArgs

    from airflow_eksbatch.hooks import Endpoint
    from airflow_eksbatch.stream import JobFeed

Answer = TypeVar("Answer")
TRIGGER = "airflow_eksbatch.triggers.EKSBatchJobTrigger"
STATE_KEY = "eksbatch_job"
DEFERRALS_KEY = "eksbatch_deferrals"
MAX_DEFERRALS_AFTER_FAILURE = 5
TRIGGER_TIMEOUT = "Trigger timeout"


class EKSBatchOperator(BaseOperator):
    """
    Run a job, or an array of jobs, on an airflow-eksbatch service.

    The task needs no worker: it is submitted, awaited and ended in the triggerer. A worker starts
    it where a field is fed by XCom, the task is mapped, a template, hook or callback needs one, or
    Airflow is to count it before it starts: a ``pool`` of its own, ``max_active_tis_per_dag`` or
    ``max_active_tis_per_dagrun`` (``why_worker`` tells). A worker ends it where it has outlets, a
    ``post_execute`` or an ``on_success_callback``, and, only if the job failed, where it has an
    ``on_failure_callback``, an ``on_retry_callback``, a retry policy or ``email``.

    What starts in the triggerer takes no slot of ``default_pool`` and is not held back by the
    DAG's ``max_active_tasks``: how much runs at once is said by the job queue's compute
    environments. Airflow does not count tasks that wait in the triggerer there either; a pool
    does if it includes deferred tasks.

    Whoever ends or clears the task ends its job, also while the service is away for some seconds.
    Where nobody is left to ask for it (marked failed while no triggerer lives, a worker lost and
    no retries left, a longer outage), the job runs on until its ``timeout``, or until the next try
    of the task is submitted.

    :param command: what to run: a list of words, or a string for ``sh -c``. Without it the image
        or the job definition decides.
    :param arguments: a list of arguments of the command, or of the image's own one.
    :param image: container image (default ``python:3.12-slim``, which each new node pulls from
        Docker Hub: name one of your own registry); the embedded service runs plain processes of
        its machine and ignores it.
    :param env: environment variables.
    :param env_vars: the same, as KubernetesPodOperator calls it.
    :param vcpus: a multiple of 0.25 (default 1).
    :param memory: MiB (default 1024).
    :param gpus: whole GPUs (default none).
    :param job_name: default: the task id.
    :param job_queue: name or ARN (default ``default``).
    :param job_definition: name or ARN of a job definition of yours. Without one, a definition
        named by its content is registered when it is needed for the first time.
    :param container_overrides: command, environment and resourceRequirements as BatchOperator
        takes them.
    :param eks_properties_override: the same field of SubmitJob.
    :param parameters: placeholders of ``job_definition``.
    :param array_size: number of children, 1 to 10,000; each reads AWS_BATCH_JOB_ARRAY_INDEX. AWS
        Batch has no array of one: that runs as a plain job with the index 0.
    :param array_properties: ``{"size": n}``, as BatchOperator takes it.
    :param num_nodes: number of nodes, 1 to 1,000, of a job that runs on all of them at once. Each has a
        machine to itself and runs the same command, which reads AWS_BATCH_JOB_NODE_INDEX; node 0, the
        main node, starts first, its end is the job's, and its output is in the log. Of a
        ``job_definition`` of type multinode it changes the number.
    :param node_overrides: nodeOverrides of SubmitJob for such a ``job_definition``, as BatchOperator
        takes them.
    :param depends_on: jobs to wait for at the service: job ids, task ids of the same run, or
        dicts with ``type`` (``N_TO_N``, ``SEQUENTIAL``). Of a mapped task give job ids; only inside
        one mapped task group a task id means the job of the same map index.
    :param attempts: how often the service tries a job (default 1; platform failures are not
        counted).
    :param retry_strategy: the same field of SubmitJob, with evaluateOnExit.
    :param timeout: seconds or timedelta an attempt may take from its start, at least 60 s; default:
        ``execution_timeout``, which itself counts from the start of the task: it ends the task and
        its job also while that waits in the job queue. So give ``timeout`` to limit how long the
        job runs, and ``execution_timeout`` only where waiting is to have an end too.
    :param share_identifier: whose part of the job queue this uses; the queue's scheduling policy
        says how large it is. Default: ``backfill`` for runs of a backfill, and for runs of the
        schedule that began more than three days, and more than their data interval, after it
        ended (``catchup=True``, an old run cleared); else ``today``. All tries of a run use the
        same one. The empty string for none.
    :param scheduling_priority_override: order inside the share, e.g. ``"{{ task.priority_weight }}"``.
    :param tags: of the job; some say where it may run, such as ``eksbatch/on-demand-after`` and
        ``topology.kubernetes.io/zone``: see ``docker/README.md``.
    :param service_account: ServiceAccount of the pod; only without ``job_definition``.
    :param labels: of the pod.
    :param annotations: of the pod.
    :param deferrable: False keeps a worker slot while the job runs.
    :param wait_for_completion: False succeeds as soon as the job is submitted.
    :param submit_within: seconds or timedelta for which a service that is away is asked again.
    :param log_lines: how many last lines of the job's output go to the task's log when it has ended.
    :param logging_interval: seconds or timedelta, at least 1 s: so often the log shows what is new
        of the output while the job runs, at most ``log_lines`` lines each time; of arrays it does
        not. Default: only at the end. Each look is a request to the service and, on Kubernetes,
        keeps a stream from the node open: of 256 jobs of a cluster at a time, and what others
        print is in the log when they have ended.
    :param conn_id: connection of type ``eksbatch``; without it the embedded service is used.
    :param aws_conn_id: the same, as BatchOperator calls it.

    The result in XCom: ``job_id``, ``status``, ``exit_code``, and ``attempts``, which counts as
    ``attempts`` above does: what the platform did to the job (a node lost, Spot) is free. An array
    as a whole has no exit code and no attempts.
    """

    template_fields: Collection[str] = FIELDS
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "command": "bash",
        "env": "json",
        "eks_properties_override": "json",
        "node_overrides": "json",
    }
    operator_extra_links = (JOB_LINK,)
    ui_color = "#f3e9d2"

    job_queue: str
    start_from_trigger: Any = WhenAsked(False, lambda operator: not operator.why_worker)
    start_trigger_args: Any = WhenAsked(None, lambda operator: operator._start_args())

    def __init__(
        self,
        *,
        command: Sequence[str] | str | None = None,
        arguments: Sequence[str] | None = None,
        image: str | None = None,
        env: Mapping[str, Any] | None = None,
        env_vars: Mapping[str, Any] | None = None,
        vcpus: float | str | None = None,
        memory: int | str | None = None,
        gpus: int | str | None = None,
        job_name: str | None = None,
        job_queue: str = "default",
        job_definition: str | None = None,
        container_overrides: Mapping[str, Any] | None = None,
        eks_properties_override: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        array_size: int | str | None = None,
        array_properties: Mapping[str, Any] | None = None,
        num_nodes: int | str | None = None,
        node_overrides: Mapping[str, Any] | None = None,
        depends_on: Sequence[Any] | None = None,
        attempts: int | str | None = None,
        retry_strategy: Mapping[str, Any] | None = None,
        timeout: float | timedelta | None = None,
        share_identifier: str | None = None,
        scheduling_priority_override: int | str | None = None,
        tags: Mapping[str, Any] | None = None,
        service_account: str | None = None,
        labels: Mapping[str, Any] | None = None,
        annotations: Mapping[str, Any] | None = None,
        deferrable: bool = True,
        wait_for_completion: bool = True,
        submit_within: float | timedelta = timedelta(hours=1),
        log_lines: int = 50,
        logging_interval: float | timedelta | None = None,
        conn_id: str = "eksbatch_default",
        aws_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = dict(locals())  # the arguments, before anything else is local
        super().__init__(**kwargs)
        for name in FIELDS:
            setattr(self, name, given.get(name))
        self.deferrable = deferrable
        self.wait_for_completion = wait_for_completion
        self.log_lines = log_lines
        self.conn_id = aws_conn_id or conn_id
        self.job_id: str | None = None
        self.job_url: str | None = None
        self._endpoint: Endpoint | None = None
        self._sent: Submission | None = None
        try:
            self.env = one_of("env", env, "env_vars", env_vars)
            size = size_in(array_properties)
            self.array_size = one_of("array_size", array_size, "array_properties", size)
            self.timeout_s = job_timeout_s(timeout, self.execution_timeout)
            self.submit_within_s = seconds("submit_within", submit_within)
            self.logging_interval_s = logging_interval_s(logging_interval)
            check_fields(self._fields())
        except BadArguments as error:
            raise BadArguments(f"task {self.task_id}: {error}") from None
        self._arguments_are_set = True

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FIELDS}

    def get_template_env(self, dag: Any = None) -> Any:
        return super().get_template_env(dag).overlay(finalize=plain)

    # ---- where it runs ----

    @property
    def why_worker(self) -> list[str]:
        """Why a worker has to start this task; empty if none has to."""
        found = needs_worker_to_start(self)
        if self._overrides("pre_execute", "execute"):
            found.append("its class overrides execute")
        return found + needs_worker_to_render(self._fields(), self.get_dag())

    @property
    def _ends_on_worker(self) -> bool:
        own = self._overrides("post_execute", "execute_complete")
        return own or needs_worker_to_succeed(self)

    def _overrides(self, *methods: str) -> bool:
        return any(
            getattr(type(self), name) is not getattr(EKSBatchOperator, name) for name in methods
        )

    def _trigger_options(self) -> dict[str, Any]:
        return {
            "conn_id": self.conn_id,
            "resume": self._ends_on_worker,
            "resume_failed": needs_worker_to_fail(self),
            "retries": self.retries or 0,
            "wait": self.wait_for_completion,
            "push_result": self.do_xcom_push,
            "submit_within_s": self.submit_within_s,
            "log_lines": self.log_lines,
            "logging_interval_s": self.logging_interval_s,
        }

    def _start_args(self) -> StartTriggerArgs | None:
        if self.why_worker:
            return None
        from airflow.triggers.base import StartTriggerArgs

        given = {name: value for name, value in self._fields().items() if value is not None}
        return StartTriggerArgs(
            trigger_cls=TRIGGER,
            trigger_kwargs={**self._trigger_options(), **given},
            next_method="execute_complete",
        )

    # ---- on a worker ----

    def execute(self, context: Context) -> Any:
        found = self._found_again(context)
        job_id = found or self._submitted(context)
        self._remember(context, job_id)
        if not found:  # said last: whoever reads it can count on the next try finding the job
            self.log.info("Submitted job %s to job queue %s", job_id, self.job_queue)
        if not self.wait_for_completion:
            return {"job_id": job_id, "status": "SUBMITTED", "exit_code": None, "attempts": 0}
        if self.deferrable:
            self._defer_to_trigger(context, job_id)
        return self._awaited(context, job_id)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """The job ended while the task was deferred."""
        return self._finished(context, event)

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Airflow resumes here also when the wait itself failed; the job must not be forgotten."""
        if next_method == "__fail__":
            error = str(getattr(value := (next_kwargs or {}).get("error"), "value", value))
            self._after_failed_wait(error, context)
        return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """Only while a worker has the task; deferred tasks are ended by the trigger.

        Called in the middle of anything, also of the submit. Airflow kills the worker after 5 s.
        """
        job = self.job_id or self._sent
        if not job or self._endpoint is None:
            return
        from airflow_eksbatch.endpoint import ServiceAway, ServiceRefused, reason_of
        from airflow_eksbatch.outcome import end_from_anywhere

        reason = "the Airflow task was ended on its worker"
        try:
            self.log.info("Terminated job %s", end_from_anywhere(self._endpoint, job, reason))
        except (ServiceAway, ServiceRefused, TimeoutError) as error:
            self.log.warning("The job may run on until its own timeout: %s", reason_of(error))

    def _submission(self, context: Context) -> Submission:
        run = run_facts(_of(context, "dag_run"))
        return build_submission(self._fields(), task=task_key(_of(context, "ti")), run=run)

    def _submitted(self, context: Context) -> str:
        from airflow_eksbatch.hooks import ServiceRefused
        from airflow_eksbatch.outcome import EKSBatchJobRefused, submit

        try:
            sent = self._sent = self._submission(context)
            within_s = self.submit_within_s
            return self._asked(lambda feed: submit(feed, sent, within_s, self.log.info))
        except (BadArguments, ServiceRefused) as error:
            raise EKSBatchJobRefused(str(error)) from error

    def _asked(self, ask: Callable[[JobFeed], Coroutine[Any, Any, Answer]]) -> Answer:
        """What the service answers a worker; where it is is noted first, for on_kill."""
        from airflow_eksbatch.outcome import feed_for

        async def talk() -> Answer:
            feed = feed_for(self.conn_id, partial(setattr, self, "_endpoint"))
            try:
                return await ask(feed)
            finally:
                await feed.close()

        return asyncio.run(talk())

    def _found_again(self, context: Context) -> str | None:
        """The job of an earlier try that lost its worker; a clear of this task asks for a new one.

        A clear raises `max_tries`, and a retry does not. (The run's `clear_number` is raised by
        clears of other tasks, too.) A task cleared while it runs keeps it, but its job is ended.
        """
        from airflow_eksbatch.outcome import patiently, status_of

        stored = self._note(context)
        job_id, max_tries = stored.get("job_id"), stored.get("max_tries")
        if not job_id or max_tries not in (None, _of(context, "ti").max_tries):
            return None
        self.job_id = job_id
        status = self._asked(
            lambda feed: patiently(
                feed,
                lambda: status_of(feed, job_id),
                self.submit_within_s,
                lambda error: self.log.info("The service is away, so it is asked again: %s", error),
            )
        )
        # Notes of former releases do not say: what has succeeded may be what somebody has cleared.
        if status in (None, "FAILED") or (max_tries is None and status == "SUCCEEDED"):
            self.job_id = None
            return None
        self.log.info("Found job %s of an earlier try again: it is %s", job_id, status)
        return str(job_id)

    def _remember(self, context: Context, job_id: str) -> None:
        from airflow_eksbatch.hooks import EKSBatchHook, job_url

        self.job_id = job_id
        self._endpoint = self._endpoint or EKSBatchHook(self.conn_id).endpoint()
        ti = _of(context, "ti")
        note = {"job_id": job_id, "max_tries": ti.max_tries, "try_number": ti.try_number}
        _store(context).set(STATE_KEY, {**note, "place": self._endpoint.place})
        self.job_url = job_url(self._endpoint, job_id)

    def _note(self, context: Context) -> dict[str, Any]:
        """What `_remember` has noted, in whatever process that was."""
        from airflow_eksbatch.hooks import keep_named

        stored = dict(_store(context).get(STATE_KEY) or {})
        keep_named(self.conn_id, stored.get("place", ""))
        return stored

    def _defer_to_trigger(self, context: Context, job_id: str) -> NoReturn:
        from airflow_eksbatch.triggers import EKSBatchJobTrigger

        job: dict[str, Any] = {
            "job_id": job_id,
            "place": self._endpoint.place if self._endpoint else "",
        }
        self.defer(
            trigger=EKSBatchJobTrigger(**self._trigger_options(), **job, from_worker=True),
            method_name="execute_complete",
            timeout=self._time_left(context),
        )

    def _time_left(self, context: Context) -> timedelta | None:
        """Airflow does not count a deferred task's execution_timeout, so the deferral carries it."""
        if self.execution_timeout is None:
            return None
        began = _of(context, "ti").start_date or datetime.now(UTC)
        left = self.execution_timeout - (datetime.now(UTC) - began)
        return max(left, timedelta(seconds=1))

    def _awaited(self, context: Context, job_id: str) -> Any:
        """The worker waits itself, on the same stream and by the same code as the trigger."""
        import msgspec

        from airflow_eksbatch.outcome import feed_for, follow, reading

        async def wait() -> Any:
            async with reading(feed_for(self.conn_id)) as feed:
                return await follow(
                    feed,
                    job_id,
                    self.log.info,
                    log_lines=self.log_lines,
                    log_every_s=self.logging_interval_s,
                )

        try:
            outcome = asyncio.run(wait())
        except KeyboardInterrupt:  # in `airflow dags test`, which does not call it
            self.on_kill()
            raise
        return self._finished(context, msgspec.to_builtins(outcome))

    def _finished(self, context: Context, event: dict[str, Any]) -> Any:
        import msgspec

        from airflow_eksbatch.outcome import JobOutcome, result_of

        outcome = msgspec.convert(event, JobOutcome)
        self.job_id = self._sent = None
        self.job_url = outcome.url or self.job_url
        _store(context).delete(STATE_KEY)
        self.log.info("%s", outcome.sentence)
        return result_of(outcome)

    # ---- when the wait failed ----

    def _after_failed_wait(self, error: str, context: Context) -> None:
        """End the job of a task that is out of time; wait again for one whose trigger broke."""
        if error == TRIGGER_TIMEOUT:
            self._end_out_of_time(context)
            return
        job_id = self._job_of_this_try(context) or self._submitted(context)
        store = _store(context)
        token = task_key(_of(context, "ti")).token
        before: Any = store.get(DEFERRALS_KEY) or {}
        count = before.get("count", 0) if before.get("token") == token else 0
        if count < MAX_DEFERRALS_AFTER_FAILURE:
            store.set(DEFERRALS_KEY, {"token": token, "count": count + 1})
            self.log.warning("The trigger broke (%s): waiting again for job %s", error, job_id)
            self._remember(context, job_id)
            self._defer_to_trigger(context, job_id)

    def _end_out_of_time(self, context: Context) -> None:
        """The task fails whatever comes of it: a service that is away must not hold a worker."""
        from airflow_eksbatch.endpoint import ServiceAway, ServiceRefused, reason_of
        from airflow_eksbatch.hooks import job_url
        from airflow_eksbatch.outcome import UNPLACED, end_job

        reason = "execution_timeout of the Airflow task"
        try:
            job = self._job_of_this_try(context) or self._submission(context)
            job_id, status = self._asked(lambda feed: end_job(feed, job, reason))
        except (BadArguments, ServiceAway, ServiceRefused, TimeoutError) as error:
            self.log.error(
                "Out of time; the job may run on until its own timeout: %s", reason_of(error)
            )
            return
        if self._endpoint:
            self.job_url = job_url(self._endpoint, job_id)
        self.log.error("Out of time: terminated job %s, which was %s", job_id, status)
        if status in UNPLACED:
            self.log.error(
                "It had no place yet: execution_timeout counts the wait in the job queue too; "
                "`timeout` limits the run alone"
            )

    def _job_of_this_try(self, context: Context) -> str | None:
        """A trigger cannot leave a note, but the same token is answered with the same job."""
        stored, tried = self._note(context), _of(context, "ti").try_number
        return stored.get("job_id") if stored.get("try_number", tried) == tried else None


def _of(context: Context, name: str) -> Any:
    return dict(context)[name]


def _store(context: Context) -> Any:
    """Notes that outlive the try; not reachable from the triggerer."""
    return _of(context, "task_state_store")
