"""DescribeJobs, ListJobs, GetJobQueueSnapshot: live jobs from the world, ended ones from the store."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec

from airflow_eksbatch.api.port import Call, Desk, Operation
from airflow_eksbatch.api.wire.names import (
    NamedJob,
    name_of,
    page_token,
    position_of,
    split_job_id,
)
from airflow_eksbatch.api.wire.shapes import (
    JobView,
    capacity,
    job_detail,
    job_summary,
    public_id,
    status_in,
    summary_of,
)
from airflow_eksbatch.core.model import limits, ranges
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import TERMINAL, Attempt, Job, JobId, JobStatus
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.share import ShareUsage
from airflow_eksbatch.core.planner.explain import why_stuck
from airflow_eksbatch.core.planner.order import Turns
from airflow_eksbatch.core.world.job_class import ClassLine, JobClass
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.store.port import JobQuery, Store

SNAPSHOT_JOBS = 100
SNAPSHOT_SHARES = 20
PAGE_WITH_FILTER = 100
# Whoever looks for few among many lets others in after so many: the beat waits no longer than that takes.
LOOKED_AT_ONCE = 2_000
# Of one answer; each is a look at offerings, and where it is stuck at nodes.
CLASSES_LOOKED_INTO = 20
PLACED = frozenset({JobStatus.STARTING, JobStatus.RUNNING})
FILTERS = (
    "JOB_NAME",
    "JOB_DEFINITION",
    "BEFORE_CREATED_AT",
    "AFTER_CREATED_AT",
    "SHARE_IDENTIFIER",
)


async def find_jobs(desk: Desk, job_ids: Iterable[JobId]) -> dict[JobId, Job]:
    """Jobs by id wherever they are; unknown ones are left out."""
    wanted = set(job_ids)
    found = {job_id: desk.world.jobs[job_id] for job_id in wanted if job_id in desk.world.jobs}
    missing = wanted - found.keys()
    if missing:
        ended = await desk.ask(lambda store: store.find_jobs(missing))
        found |= {job.job_id: job for job in ended}
    return found


async def views_of(desk: Desk, chosen: Sequence[tuple[Job, int | None]]) -> list[JobView]:
    """Jobs, children and nodes as they are now, with their attempts, which are read all at once.

    The world goes on while the store is read, so jobs are copied first: an ended job always has its last attempt's end.
    """
    await desk.settled()
    stuck = stuck_reasons(desk.world)
    views = [make_view(desk.world, job, index, stuck) for job, index in chosen]
    placed = {
        (view.job.job_id, view.index or 0): view
        for view in views
        if view.index is not None or not view.job.is_array
    }
    if not placed:
        return views
    ids, indices = {job_id for job_id, _ in placed}, {index for _, index in placed}
    attempts: dict[tuple[JobId, int], list[Attempt]] = {}
    for attempt in await desk.ask(lambda store: store.find_attempts(ids, indices)):
        attempts.setdefault((attempt.job_id, attempt.index), []).append(attempt)
    return [
        with_attempts(desk.world, view, attempts.get((view.job.job_id, view.index or 0), []))
        for view in views
    ]


def stuck_reasons(world: World) -> Callable[[Job], str | None]:
    """Why runnable jobs are stuck, looked into once for each class, and for no more than a few classes."""
    known: dict[JobClass, str | None] = {}
    now = now_ms()

    def reason_of(job: Job) -> str | None:
        job_class = world.class_of(job)
        if job_class not in known and len(known) < CLASSES_LOOKED_INTO:
            known[job_class] = why_stuck(world, job_class, now)
        return known.get(job_class)

    return reason_of


def make_view(
    world: World, job: Job, index: int | None, stuck: Callable[[Job], str | None]
) -> JobView:
    status = status_in(world, job, index)
    return JobView(
        job=msgspec.structs.replace(job),
        index=index,
        status=status,
        stuck=stuck(job) if status is JobStatus.RUNNABLE else None,
        summary=summary_of(world, job) if index is None else None,
    )


def with_attempts(world: World, view: JobView, attempts: list[Attempt]) -> JobView:
    """Nothing for an array as a whole: it has no attempts of its own."""
    if not attempts or (view.index is None and view.job.is_array):
        return view
    environment = environment_of(world, attempts[-1].node_id)
    return msgspec.structs.replace(
        view,
        attempts=attempts,
        namespace=environment.namespace if environment else "",
        cluster_arn=environment.cluster_arn if environment else "",
    )


def environment_of(world: World, node_id: NodeId) -> ComputeEnvironment | None:
    """By the node, or by the end of its name once it has left the world."""
    node = world.nodes.get(node_id)
    if node is not None:
        return world.compute_environments.get(node.compute_environment)
    mark = node_id.rpartition("-")[2]
    environments = world.compute_environments.values()
    return next((e for e in environments if mark and e.uuid.startswith(mark)), None)


async def describe_jobs(call: Call) -> dict[str, Any]:
    """Up to 100 jobs, children or nodes; unknown ids are left out (AWS)."""
    wanted = call.input["jobs"]
    if len(wanted) > limits.DESCRIBE_MAX:
        raise Rejected(f"jobs takes at most {limits.DESCRIBE_MAX} ids, not {len(wanted)}.")
    await call.desk.settled()
    ids = [split_job_id(job_id) for job_id in wanted]
    jobs = await find_jobs(call.desk, (named.job_id for named in ids))
    known = [(jobs[named.job_id], named) for named in ids if named.job_id in jobs]
    meant = [(job, index_of(job, named)) for job, named in known if has_part(job, named)]
    views = await views_of(call.desk, meant)
    return {"jobs": [job_detail(view, call.desk.settings) for view in views]}


def has_part(job: Job, named: NamedJob) -> bool:
    """Whether an id names something: arrays have children, and multi-node jobs have nodes."""
    if named.number is None:
        return True
    is_whole = job.is_multi_node if named.is_node else job.is_array
    return is_whole and named.number < job.spec.size


def index_of(job: Job, named: NamedJob) -> int | None:
    """None for the job as a whole."""
    multi_node = job.spec.multi_node
    if named.number is None or multi_node is None:
        return named.number
    return multi_node.renumbered(named.number)


# ---- lists


async def list_jobs(call: Call) -> dict[str, Any]:
    """Jobs of a queue, children of an array, or nodes of a multi-node job."""
    request = call.input
    given = [n for n in ("jobQueue", "arrayJobId", "multiNodeJobId") if request.get(n)]
    if len(given) != 1:
        raise Rejected("ListJobs takes exactly one of jobQueue, arrayJobId and multiNodeJobId.")
    await call.desk.settled()
    if given == ["jobQueue"]:
        return await list_queue(call)
    named = split_job_id(request[given[0]])
    job = (await find_jobs(call.desk, [named.job_id])).get(named.job_id)
    if job is None or not (job.is_array if given == ["arrayJobId"] else job.is_multi_node):
        return {"jobSummaryList": []}
    return await list_parts(call, job)


async def list_parts(call: Call, job: Job) -> dict[str, Any]:
    """Children of an array, or nodes of a multi-node job, in the order of their numbers."""
    desk, request = call.desk, call.input
    status = JobStatus(request.get("jobStatus", "RUNNING"))
    start, size = position_of(request.get("nextToken")), page_size(request)
    members: list[int | None] = []
    position = start
    for position in range(start, job.spec.size):
        if len(members) == size:
            break
        index = index_of(job, NamedJob(job.job_id, position))
        if status_in(desk.world, job, index) is status:
            members.append(index)
    else:
        position = job.spec.size
    views = await views_of(desk, [(job, index) for index in members])
    rows = [job_summary(view, desk.settings) for view in views]
    more = {"nextToken": page_token(position)} if position < job.spec.size else {}
    return {"jobSummaryList": rows, **more}


def page_size(request: dict[str, Any]) -> int:
    most = PAGE_WITH_FILTER if request.get("filters") else limits.LIST_JOBS_PAGE_MAX
    return max(1, min(request.get("maxResults") or most, most))


async def list_queue(call: Call) -> dict[str, Any]:
    """One page, newest first. Without a status only RUNNING jobs; most filters overrule the status (AWS)."""
    desk, request = call.desk, call.input
    query, statuses = query_of(request)
    if query.queue not in desk.world.queues:
        raise Rejected(f"Job queue {query.queue} does not exist.")
    live: list[Job] = []
    if not statuses or set(statuses) - TERMINAL:
        live = await live_jobs(desk, query, statuses)
    size = query.limit
    ended = []
    if not statuses or set(statuses) & TERMINAL:
        ended = await desk.ask(lambda store: ended_jobs(store, query, statuses))
    # One that ended while the store was read is in both.
    found = {job.job_id: job for job in (*live, *ended)}.values()
    rows = sorted(found, key=lambda job: -job.spec.seq)[: size + 1]
    views = await views_of(desk, [(job, None) for job in rows[:size]])
    more = {"nextToken": page_token(rows[size - 1].spec.seq)} if len(rows) > size else {}
    return {"jobSummaryList": [job_summary(view, desk.settings) for view in views], **more}


def query_of(request: dict[str, Any]) -> tuple[JobQuery, tuple[JobStatus, ...]]:
    """The query and the statuses asked for (none: all)."""
    filters = request.get("filters") or []
    if len(filters) > 1:
        raise Rejected("ListJobs takes one filter at a time.")
    values: dict[str, Any] = {}
    for entry in filters:
        name, wanted = entry.get("name"), entry.get("values") or []
        if name not in FILTERS or len(wanted) != 1:
            raise Rejected(f"A filter has one value and a name of {', '.join(FILTERS)}.")
        values[name] = wanted[0]
    statuses: tuple[JobStatus, ...] = (JobStatus(request.get("jobStatus", "RUNNING")),)
    if filters and "SHARE_IDENTIFIER" not in values:
        statuses = ()
    definition = values.get("JOB_DEFINITION")
    query = JobQuery(
        queue=name_of(request["jobQueue"]),
        name=values.get("JOB_NAME"),
        definition=name_of(definition) if definition else None,
        share=values.get("SHARE_IDENTIFIER"),
        created_before=milliseconds(values.get("BEFORE_CREATED_AT")),
        created_after=milliseconds(values.get("AFTER_CREATED_AT")),
        before_seq=position_of(request.get("nextToken")) or None,
        limit=page_size(request),
    )
    return query, statuses


def milliseconds(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Rejected(f"Times in filters are epoch milliseconds, not {text!r}.")
    return int(text)


async def live_jobs(desk: Desk, query: JobQuery, statuses: tuple[JobStatus, ...]) -> list[Job]:
    """One page of the live jobs that match, newest first, and one more."""
    found: list[Job] = []
    for number, job_id in enumerate(newest_first(desk.world, query, statuses), 1):
        job = desk.world.jobs.get(job_id)
        if job is not None and matches(job, query):
            if not statuses or desk.world.status_of(job) in statuses:
                found.append(job)
            if len(found) > query.limit:
                break
        if not number % LOOKED_AT_ONCE:
            await asyncio.sleep(0)
            await desk.settled()
    return found


def newest_first(world: World, query: JobQuery, statuses: tuple[JobStatus, ...]) -> Sequence[JobId]:
    """Live jobs of the query's queue that may be of these statuses, from the query's place on."""
    ids: list[JobId]
    if statuses and PLACED.issuperset(statuses):
        placed = {attempt.job_id for attempt in world.attempts.values()}
        ids = sorted(placed, key=lambda job_id: -world.jobs[job_id].spec.seq)
    elif query.queue is None:
        ids = [*reversed(world.jobs)]
    else:
        ids = [*reversed(world.jobs_by_queue.get(query.queue, {}))]
    if query.before_seq is None:
        return ids
    return ids[bisect_right(ids, -query.before_seq, key=lambda i: -world.jobs[i].spec.seq) :]


def matches(job: Job, query: JobQuery) -> bool:
    spec = job.spec
    name, definition = query.name, query.definition
    return (
        (query.queue is None or spec.queue == query.queue)
        and (query.before_seq is None or spec.seq < query.before_seq)
        and (name is None or alike(spec.name.lower(), name.lower()))
        and (definition is None or definition_alike(spec.definition, definition))
        and (query.share is None or spec.share == query.share)
        and (query.created_before is None or spec.created_at < query.created_before)
        and (query.created_after is None or spec.created_at > query.created_after)
    )


def alike(text: str, pattern: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def definition_alike(text: str, pattern: str) -> bool:
    if pattern.endswith("*") or ":" in pattern:
        return alike(text, pattern)
    return text.startswith(f"{pattern}:")


def ended_jobs(store: Store, query: JobQuery, statuses: tuple[JobStatus, ...]) -> list[Job]:
    wanted = [s.value for s in (statuses or TERMINAL) if s in TERMINAL]
    return store.list_jobs(
        msgspec.structs.replace(query, statuses=tuple(sorted(wanted)), limit=query.limit + 1)
    )


# ---- the head of a queue


async def get_job_queue_snapshot(call: Call) -> dict[str, Any]:
    """The first 100 runnable jobs in the order in which the planner asks whether they fit, and who uses how much."""
    await call.desk.settled()
    desk, world = call.desk, call.desk.world
    queue = world.queues.get(name_of(call.input["jobQueue"]))
    if queue is None:
        raise Rejected(f"Job queue {name_of(call.input['jobQueue'])} does not exist.")
    now = now_ms()
    usages = [usage for (name, _), usage in world.usages.items() if name == queue.name]
    used = sum(usage.running_cpu_m for usage in usages)
    utilization: dict[str, Any] = {"totalCapacityUsage": capacity(used), "lastUpdatedAt": now}
    if queue.policy is not None:
        utilization["fairshareUtilization"] = share_utilization(usages)
    return {
        "frontOfQueue": {
            "jobs": [
                {
                    "jobArn": desk.settings.arn(f"job/{waiting}"),
                    "earliestTimeAtPosition": job.runnable_at or job.spec.created_at,
                }
                for job, waiting in front_of(world, queue, now)
            ],
            "lastUpdatedAt": now,
        },
        "queueUtilization": utilization,
    }


def front_of(world: World, queue: JobQueue, now: int) -> Iterator[tuple[Job, str]]:
    """The first jobs and children whose turn it is, each with its public id, were there room for them all."""
    lines = [
        line for line in world.lines.values() if line.count and line.job_class.queue == queue.name
    ]
    waiting = {line.job_class: standing(world, line) for line in lines}
    turns, left = Turns(world, queue, lines, now, places=1), SNAPSHOT_JOBS
    while left and (turn := turns.next()) is not None:
        line, allowed = turn
        # A multi-node job is one that waits, and takes its places at once.
        places = line.job_class.nodes or 1
        taken = min(left, max(1, allowed // places))
        yield from islice(waiting[line.job_class], taken)
        turns.served(taken * places, blocked=False)
        left -= taken


def standing(world: World, line: ClassLine) -> Iterator[tuple[Job, str]]:
    """Runnable jobs of one class, oldest first; of an array its runnable children."""
    for job in line.first(SNAPSHOT_JOBS, world.jobs):
        if not job.is_array:
            yield job, job.job_id
            continue
        for index in ranges.indices(job.runnable):
            yield job, public_id(job, index)


def share_utilization(usages: Iterable[ShareUsage]) -> dict[str, Any]:
    """Shares that run something now, the largest first."""
    active = [usage for usage in usages if usage.running_cpu_m]
    active.sort(key=lambda usage: (-usage.running_cpu_m, usage.share))
    top = [
        {"shareIdentifier": usage.share, "capacityUsage": capacity(usage.running_cpu_m)}
        for usage in active[:SNAPSHOT_SHARES]
    ]
    return {"activeShareCount": len(active), "topCapacityUtilization": top}


OPERATIONS: dict[str, Operation] = {
    "DescribeJobs": describe_jobs,
    "ListJobs": list_jobs,
    "GetJobQueueSnapshot": get_job_queue_snapshot,
}
