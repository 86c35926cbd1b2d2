"""SubmitJob, and the ways a job ends by request."""

from __future__ import annotations

import asyncio
import re
import uuid
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from airflow_eksbatch.api.job_reads import find_jobs
from airflow_eksbatch.api.port import Call, Operation
from airflow_eksbatch.api.rights import check_namespace, check_queue
from airflow_eksbatch.api.wire import elsewhere
from airflow_eksbatch.api.wire.names import SHARE, check_job_name, check_tags, name_of, split_job_id
from airflow_eksbatch.api.wire.node_properties import resolve_nodes
from airflow_eksbatch.api.wire.pod_properties import check_pod, find_definition, resolve_pod
from airflow_eksbatch.api.wire.requirements import resources_of_pod
from airflow_eksbatch.api.wire.shapes import (
    dependencies_from,
    retry_from,
    scheduling_priority_from,
    timeout_from,
)
from airflow_eksbatch.core.engine.facts import JobStopped, JobSubmitted, JobTried
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Denied, Rejected
from airflow_eksbatch.core.model.job import Dependency, Job, JobId, JobSpec, MultiNode
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.planner.explain import explain_new
from airflow_eksbatch.core.world import where
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.floor.clock import now_ms

AIRFLOW_JOB = "airflow:"
TASK_TOKEN = "t:"
CALL_TOKEN = "c:"
INSTANCE_TOKEN = "i:"
DEPLOYMENT = re.compile(r"[A-Za-z0-9._-]{1,64}")

NOT_OF_MULTI_NODE = {
    "eksPropertiesOverride": "nodeOverrides.nodePropertyOverrides changes what its nodes run",
    "containerOverrides": "nodeOverrides.nodePropertyOverrides changes what its nodes run",
    "arrayProperties": "it cannot be an array as well",
}


class Work(NamedTuple):
    """What a job will run and needs."""

    pod: bytes
    resources: Resources
    parameters: dict[str, str]
    """Those that filled it."""
    multi_node: MultiNode | None = None
    instance_type: str = ""
    """What its nodes must be by its definition; empty for any."""


class Identity(NamedTuple):
    """Which submit this is, and which try of which Airflow task wants it."""

    token: str | None
    task_key: str | None = None
    try_number: int = 0
    task_instance: str = ""
    """Only ids that are ordered by their time (UUID version 7, as Airflow makes them)."""


async def submit_job(call: Call) -> dict[str, Any]:
    """One new job, or the one that an earlier submit with this token made."""
    spec = await spec_of(call)
    may_end_in = call.caller.rights.queues
    job_id = await call.desk.offer(JobSubmitted(spec=spec, may_end_in=may_end_in))
    arn = call.desk.settings.arn(f"job/{job_id}")
    return {"jobName": spec.name, "jobId": job_id, "jobArn": arn}


async def dry_run(call: Call) -> dict[str, Any]:
    """What would come of a SubmitJob: refused as that would be, else what would run and where; nothing is kept.

    Whether it repeats or overtakes the submit of another try is not asked.
    """
    spec = await spec_of(call)
    spec = msgspec.structs.replace(spec, token=None, task_key=None, task_instance="")
    job: Job = await call.desk.offer(JobTried(spec=spec))
    await call.desk.settled()
    sentences = explain_new(call.desk.world, job, now_ms())
    return {
        "jobQueue": spec.queue,
        "jobDefinition": spec.definition,
        "podProperties": msgspec.json.decode(spec.pod),
        "sentences": sentences,
    }


async def spec_of(call: Call) -> JobSpec:
    """The job that is asked for; raises Rejected."""
    await call.desk.settled()
    request, world = call.input, call.desk.world
    elsewhere.refuse(request, elsewhere.OF_SUBMIT)
    identity = bounded(identity_of(call))
    queue_name = name_of(request["jobQueue"])
    check_queue(call.caller, queue_name)
    queue = world.queues.get(queue_name)
    definition = find_definition(world.definitions, request["jobDefinition"])
    work = resolved(definition, request)
    check_share(queue, request.get("shareIdentifier"), request.get("schedulingPriorityOverride"))
    if queue is not None:
        if call.caller.rights.queues:
            check_namespace(call.caller, work.pod, namespaces_of(world, queue))
        check_can_ever_run(world, queue, work)
    array_size = array_size_of(request)
    priority = request.get("schedulingPriorityOverride")
    return JobSpec(
        job_id=JobId(str(uuid.uuid4())),
        name=check_job_name(request["jobName"]),
        queue=queue_name,
        definition=definition.key,
        resources=work.resources,
        pod=work.pod,
        share=request.get("shareIdentifier", ""),
        priority=definition.scheduling_priority if priority is None else priority,
        array_size=array_size,
        multi_node=work.multi_node,
        retry=retry_from(request.get("retryStrategy")) or definition.retry or RetryStrategy(),
        timeout_s=timeout_from(request.get("timeout")) or definition.timeout_s,
        depends_on=await known_dependencies(call, array_size),
        parameters=work.parameters,
        tags=check_tags(placed(request.get("tags") or {}, work.instance_type)),
        token=identity.token,
        task_key=identity.task_key,
        try_number=identity.try_number,
        task_instance=identity.task_instance,
        airflow=airflow_of(call),
        created_at=now_ms(),
    )


@lru_cache(maxsize=4096)
def resolved_plain(
    pod: bytes, container: bytes, parameters: tuple[tuple[str, str], ...]
) -> tuple[bytes, Resources]:
    """A definition without overrides, worked out once."""
    definition = JobDefinition(
        name="", revision=0, arn="", pod=pod, container=container, parameters=dict(parameters)
    )
    found, _ = resolve_pod(definition, {})
    return msgspec.json.encode(found), resources_of_pod(found)


def resolved(definition: JobDefinition, request: dict[str, Any]) -> Work:
    """What its pods will run and need, with overrides and parameters."""
    if definition.nodes:
        return resolved_multi_node(definition, request)
    if not elsewhere.is_empty(request.get("nodeOverrides")):
        raise Rejected(
            f"nodeOverrides is for multi-node parallel jobs, and job definition {definition.key} is none: leave it "
            "out, eksPropertiesOverride changes what the job runs."
        )
    if not request.get("eksPropertiesOverride") and not request.get("containerOverrides"):
        parameters = {**definition.parameters, **(request.get("parameters") or {})}
        pod, resources = resolved_plain(
            definition.pod, definition.container, tuple(sorted(parameters.items()))
        )
        return Work(pod, resources, parameters)
    changed, parameters = resolve_pod(definition, request)
    check_pod(changed)
    return Work(msgspec.json.encode(changed), resources_of_pod(changed), parameters)


def resolved_multi_node(definition: JobDefinition, request: dict[str, Any]) -> Work:
    for name, why in NOT_OF_MULTI_NODE.items():
        if not elsewhere.is_empty(request.get(name)):
            raise Rejected(
                f"Job definition {definition.key} is of a multi-node parallel job: leave out {name}, {why}."
            )
    nodes = resolve_nodes(definition, request)
    pod = nodes.multi_node.pod_of(0)
    return Work(pod, nodes.resources, nodes.parameters, nodes.multi_node, nodes.instance_type)


def placed(tags: dict[str, str], instance_type: str) -> dict[str, str]:
    """Tags that say where a job may run say what its nodeProperties do."""
    if not instance_type:
        return tags
    said = tags.get(where.INSTANCE_TYPE, instance_type)
    if said != instance_type:
        raise Rejected(
            f"Tag {where.INSTANCE_TYPE} says {said}, and instanceTypes of the nodes {instance_type}: "
            "leave one of them out, or change instanceTypes by nodeOverrides."
        )
    return {**tags, where.INSTANCE_TYPE: instance_type}


def identity_of(call: Call) -> Identity:
    """What makes a repeat the same job: the task instance, the caller's token, or the id that SDKs keep over their retries.

    A task instance is the same whoever signs: keys change while tasks wait. Other tokens are the key's own.
    """
    header = call.headers.get("x-eksbatch-token")
    if header is None:
        invocation = call.headers.get("amz-sdk-invocation-id")
        return Identity(
            f"{CALL_TOKEN}{call.caller.access_key}:{invocation}" if invocation else None
        )
    key, _, number = unquote(header).rpartition("|")
    if not key or "\0" in key or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise Rejected("x-eksbatch-token must be a task key and a try number: KEY|1.")
    task_key, try_number = of_deployment(call, key), int(number)
    told = call.headers.get("x-eksbatch-task-instance")
    if told is None:
        token = f"{TASK_TOKEN}{call.caller.access_key}:{task_key}|{try_number}"
        return Identity(token, task_key, try_number)
    try:
        instance = uuid.UUID(told)
    except ValueError:
        raise Rejected("x-eksbatch-task-instance must be the UUID of a task instance.") from None
    ordered = str(instance) if instance.version == 7 else ""
    return Identity(f"{INSTANCE_TOKEN}{instance}", task_key, try_number, ordered)


def bounded(identity: Identity) -> Identity:
    """Databases index what a submit is known by; PostgreSQL takes 2,704 bytes there, and else refuses the whole beat."""
    for known in (identity.token or "", identity.task_key or ""):
        if len(known.encode()) > limits.TOKEN_BYTES_MAX:
            raise Rejected(
                f"x-eksbatch-token or amz-sdk-invocation-id makes {len(known.encode())} bytes, at most "
                f"{limits.TOKEN_BYTES_MAX} are allowed. Of an Airflow task shorten the id of its DAG, run or task."
            )
    return identity


def of_deployment(call: Call, key: str) -> str:
    """The key of a task of the Airflow that asks: another one may have the same DAGs and runs."""
    deployment = deployment_of(call)
    return f"{key}@{deployment}" if deployment else key


def deployment_of(call: Call) -> str:
    """The name of the Airflow that asks; empty if it has none."""
    deployment = call.headers.get("x-eksbatch-deployment", "")
    if deployment and not DEPLOYMENT.fullmatch(deployment):
        raise Rejected(
            "The deployment of an Airflow connection must be up to 64 letters, digits and ._-, "
            f"not {deployment!r}."
        )
    return deployment


def airflow_of(call: Call) -> bytes | None:
    """The task that wants the job, and whose it is: what DAG X may be shown to whom, each Airflow says of its own."""
    header = call.headers.get("x-eksbatch-airflow")
    if header is None:
        return None
    try:
        told = msgspec.json.decode(unquote(header), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        raise Rejected("x-eksbatch-airflow must be a JSON object, percent-encoded.") from None
    return msgspec.json.encode({**told, "deployment": deployment_of(call)})


def array_size_of(request: dict[str, Any]) -> int | None:
    size = (request.get("arrayProperties") or {}).get("size")
    if size is None:
        return None
    if not limits.ARRAY_SIZE_MIN <= size <= limits.ARRAY_SIZE_MAX:
        raise Rejected(
            f"arrayProperties.size must be {limits.ARRAY_SIZE_MIN} to {limits.ARRAY_SIZE_MAX}, "
            f"not {size}."
        )
    return int(size)


def check_share(queue: JobQueue | None, share: str | None, priority: int | None) -> None:
    if queue is None:
        return
    if queue.policy is None and (share is not None or priority is not None):
        raise Rejected(
            "Job with shareIdentifier or schedulingPriority can only be submitted to job queue "
            "with fair share scheduling policy."
        )
    if queue.policy is not None and not share:
        raise Rejected(
            f"shareIdentifier is required: job queue {queue.name} has a fair share policy."
        )
    if priority is not None:
        scheduling_priority_from(priority, "schedulingPriorityOverride")
    if share is not None and ("*" in share or not SHARE.fullmatch(share)):
        raise Rejected("shareIdentifier must be up to 255 letters and digits.")


def namespaces_of(world: World, queue: JobQueue) -> set[str]:
    found = (world.compute_environments.get(name) for name in queue.compute_environments)
    return {environment.namespace for environment in found if environment is not None}


def check_can_ever_run(world: World, queue: JobQueue, work: Work) -> None:
    """AWS lets such a job wait for ever; we say at once that no environment can hold it."""
    resources, rooms = work.resources, list[Resources]()
    for name in queue.compute_environments:
        environment = world.compute_environments.get(name)
        if environment is None or not environment.managed or name not in world.offerings:
            return
        sold = [
            offering.promised
            for offering in world.offerings[name]
            if work.instance_type in ("", offering.instance_type)
        ]
        if any(resources.fits(room) for room in sold):
            return
        rooms += sold
    names = ", ".join(queue.compute_environments)
    if not rooms and work.instance_type:
        raise Rejected(
            f"There are no instances of type {work.instance_type} in {names}, and instanceTypes of the job's nodes "
            f"asks for it. Add a compute environment that has them to job queue {queue.name}, use another job queue, "
            "or leave instanceTypes out."
        )
    if not rooms:
        return
    largest = max(rooms)
    raise Rejected(
        "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - The job resource requirement "
        "(vCPU/memory/GPU) is higher than that can be met by the CE(s) attached to the job queue. "
        f"It asks for {resources.cpu_m / 1000:g} vCPU, {resources.memory_mib} MiB, "
        f"{resources.gpu} GPU; the largest instance of {names} "
        f"leaves {largest.cpu_m / 1000:g} vCPU, {largest.memory_mib} MiB, {largest.gpu} GPU to jobs."
    )


async def known_dependencies(call: Call, array_size: int | None) -> tuple[Dependency, ...]:
    """dependsOn, with Airflow tasks replaced by their newest jobs."""
    found = dependencies_from(call.input.get("dependsOn"), array_size)
    keys = {
        entry.job_id: of_deployment(call, entry.job_id.removeprefix(AIRFLOW_JOB))
        for entry in found
        if entry.job_id.startswith(AIRFLOW_JOB)
    }
    jobs = await jobs_of_tasks(call, [*keys.values()]) if keys else {}
    return tuple(
        msgspec.structs.replace(
            entry,
            job_id=jobs[keys[entry.job_id]]
            if entry.job_id in keys
            else JobId(name_of(entry.job_id)),
        )
        for entry in found
    )


async def jobs_of_tasks(call: Call, keys: list[str]) -> dict[str, JobId]:
    """The newest job of each, live or ended; raises Rejected where there is none."""
    world = call.desk.world
    jobs = {key: world.job_by_task[key] for key in keys if key in world.job_by_task}
    missing = [key for key in keys if key not in jobs]
    if missing:
        jobs |= await call.desk.ask(lambda store: store.find_task_jobs(missing))
    for key in keys:
        if key not in jobs:
            mapped = ", or is a mapped task: of those it takes job ids" if "|-1" in key else ""
            raise Rejected(
                f"dependsOn names the Airflow task {key}, which has submitted no job yet{mapped}."
            )
    return jobs


# ---- ends by request


async def stop(call: Call, job_id: str, *, terminate: bool) -> None:
    reason = call.input["reason"]
    if not job_id or not reason or len(reason) > limits.REASON_LENGTH_MAX:
        raise Rejected(
            f"jobId and a reason of up to {limits.REASON_LENGTH_MAX} characters are required."
        )
    named = split_job_id(job_id)
    if named.is_node:
        raise Rejected(
            f"{job_id} is one node of a multi-node parallel job: only the job as a whole can be cancelled or "
            f"terminated, by its id {named.job_id}."
        )
    if call.caller.rights.queues:
        for job in (await find_jobs(call.desk, [named.job_id])).values():
            check_queue(call.caller, job.spec.queue)
    fact = JobStopped(job_id=named.job_id, index=named.number, reason=reason, terminate=terminate)
    await call.desk.offer(fact)


async def cancel_job(call: Call) -> dict[str, Any]:
    await stop(call, call.input["jobId"], terminate=False)
    return {}


async def terminate_job(call: Call) -> dict[str, Any]:
    await stop(call, call.input["jobId"], terminate=True)
    return {}


async def stop_many(call: Call, *, terminate: bool) -> dict[str, Any]:
    """Each job by itself, all in one beat; one that fails is told and does not hold up the others."""
    jobs: list[str] = call.input["jobs"]
    if len(jobs) > limits.BULK_MAX:
        raise Rejected(f"jobs takes at most {limits.BULK_MAX} ids, not {len(jobs)}.")
    stops = (stop(call, job_id, terminate=terminate) for job_id in jobs)
    answers = await asyncio.gather(*stops, return_exceptions=True)
    errors: list[dict[str, str]] = []
    for job_id, answer in zip(jobs, answers, strict=True):
        if isinstance(answer, Denied):
            operation = "TerminateJob" if terminate else "CancelJob"
            call.desk.tell_denied(operation, job_id, call.caller.access_key)
        if isinstance(answer, Rejected):
            code = "ThrottlingException" if "TooMany" in answer.code else answer.code
            errors.append({"job": job_id, "code": code, "message": answer.message})
        elif answer is not None:
            raise answer
    failed = {error["job"] for error in errors}
    return {"successful": [job for job in jobs if job not in failed], "errors": errors}


async def cancel_jobs(call: Call) -> dict[str, Any]:
    return await stop_many(call, terminate=False)


async def terminate_jobs(call: Call) -> dict[str, Any]:
    return await stop_many(call, terminate=True)


OPERATIONS: dict[str, Operation] = {
    "SubmitJob": submit_job,
    "CancelJob": cancel_job,
    "TerminateJob": terminate_job,
    "CancelJobs": cancel_jobs,
    "TerminateJobs": terminate_jobs,
}
