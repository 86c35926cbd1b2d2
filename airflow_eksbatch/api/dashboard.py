"""Rows for the dashboard's pages, each view by its name: from the world, and from the store where it is indexed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any

from airflow_eksbatch.api.extension import (
    NOT_FOUND,
    explain_job,
    get_job,
    not_found,
    read_costs,
    read_output,
)
from airflow_eksbatch.api.job_reads import ended_jobs, find_jobs, live_jobs, views_of
from airflow_eksbatch.api.port import Desk
from airflow_eksbatch.api.wire.names import name_of
from airflow_eksbatch.api.wire.shapes import job_summary
from airflow_eksbatch.core.engine import views
from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import TERMINAL, Job, JobId, JobStatus
from airflow_eksbatch.core.planner.explain import explain
from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.store.port import JobQuery

JOBS_SHOWN = 50
CHILDREN_SHOWN = 20
# Explaining looks at all nodes and offerings, so only the longest lines are.
CLASSES_EXPLAINED = 8
OUTPUT_LINES = "200"

Rows = list[dict[str, Any]]
Asked = Mapping[str, str]
View = Callable[[Desk, Asked], Awaitable[Any]]
Fetch = Callable[..., Awaitable[Any]]


async def summary(desk: Desk, asked: Asked) -> dict[str, object]:
    return views.summary(desk.world, now_ms())


async def queues(desk: Desk, asked: Asked) -> list[views.View]:
    return views.queues(desk.world)


async def nodes(desk: Desk, asked: Asked) -> list[views.View]:
    return views.nodes(desk.world, now_ms())


async def classes(desk: Desk, asked: Asked) -> Rows:
    """Job classes, of one queue if it is named, the longest lines with why their first job waits."""
    world, now = desk.world, now_ms()
    rows: Rows = [
        dict(row) for row in views.classes(world) if asked.get("queue") in (None, row["jobQueue"])
    ]
    for number, row in enumerate(rows):
        head = world.jobs.get(JobId(row["oldest"])) if number < CLASSES_EXPLAINED else None
        row["sentences"] = explain(world, head, now) if head is not None else []
    return rows


async def jobs(desk: Desk, asked: Asked) -> Rows:
    """The newest jobs, of a queue and a status if they are named."""
    queue, status = asked.get("queue"), asked.get("status")
    query = JobQuery(queue=queue, limit=JOBS_SHOWN)
    if status is None:
        stored = await desk.ask(lambda store: store.list_jobs(query))
        # Read again: the store's copy of a live job is as old as its last change.
        await desk.settled()
        known = await find_jobs(desk, [job.job_id for job in stored])
        found = [known[job.job_id] for job in stored if job.job_id in known]
    elif JobStatus(status) in TERMINAL:
        found = await desk.ask(lambda store: ended_jobs(store, query, (JobStatus(status),)))
    else:
        found = await live_jobs(desk, query, (JobStatus(status),))
    shown = await views_of(desk, [(job, None) for job in found[:JOBS_SHOWN]])
    return [{**job_summary(one, desk.settings), "jobQueue": one.job.spec.queue} for one in shown]


async def job(desk: Desk, asked: Asked) -> dict[str, Any] | None:
    """A job with its reasons, the children or nodes one may want to see, and the end of its output."""
    job_id = asked["job_id"]
    try:
        found = await get_job(desk, job_id)
    except Rejected as refusal:
        if refusal.code != NOT_FOUND:
            raise
        return None
    detail = found["job"]
    is_array = bool(detail.get("arrayProperties", {}).get("size"))
    if is_array:
        # Its children tell their own; what one wants to see here is how the array as a whole went.
        found["story"] = [event for event in found["story"] if event["jobId"] == detail["jobId"]]
    output = b"" if is_array else (await read_output(desk, job_id, {"tail": OUTPUT_LINES})).text
    ended = detail["status"] in {status.value for status in TERMINAL}
    return {
        **found,
        "queue": name_of(detail["jobQueue"]),
        "explain": [] if ended else (await explain_job(desk, job_id))["sentences"],
        "children": await children(desk, JobId(detail["jobId"])) if is_array else [],
        "nodes": await nodes_of(desk, JobId(detail["jobId"])) if "nodeProperties" in detail else [],
        "log": output.decode(errors="replace"),
    }


async def children(desk: Desk, job_id: JobId) -> Rows:
    """Of an array: the first that failed, then the first that run."""
    array = (await find_jobs(desk, [job_id]))[job_id]
    shown = await views_of(desk, [(array, index) for index in telling(array)])
    return [job_summary(one, desk.settings) for one in shown]


def telling(array: Job) -> list[int]:
    """Indices worth a look."""
    failed = list(islice(ranges.indices(array.failed), CHILDREN_SHOWN))
    return failed + sorted(array.running)[: CHILDREN_SHOWN - len(failed)]


async def nodes_of(desk: Desk, job_id: JobId) -> Rows:
    """Of a multi-node job: its main node, the first that failed, run, ended well; by AWS's numbers, with where they are."""
    job = (await find_jobs(desk, [job_id]))[job_id]
    multi_node = job.spec.multi_node
    assert multi_node is not None
    placed = [*ranges.indices(job.failed), *sorted(job.running), *ranges.indices(job.succeeded)]
    chosen = sorted(placed, key=lambda index: index != 0)[:CHILDREN_SHOWN]
    chosen.sort(key=multi_node.renumbered)
    shown = await views_of(desk, [(job, index) for index in chosen])
    return [
        {
            **job_summary(one, desk.settings),
            "machine": one.attempts[-1].node_name or one.attempts[-1].node_id,
            "logStreamName": one.attempts[-1].pod_name,
        }
        for one in shown
        if one.attempts
    ]


async def costs(desk: Desk, asked: Asked) -> dict[str, Any]:
    return await read_costs(desk, asked)


VIEWS: dict[str, View] = {
    "summary": summary,
    "queues": queues,
    "nodes": nodes,
    "classes": classes,
    "jobs": jobs,
    "job": job,
    "costs": costs,
}


async def view_of(desk: Desk, name: str, asked: Asked) -> Any:
    """The rows of a view for whoever makes pages of them elsewhere; raises Rejected for what there is not."""
    if name not in VIEWS:
        raise not_found(f"View {name}")
    if "status" in asked and asked["status"] not in {*JobStatus}:
        raise Rejected(f"status must be one of {', '.join(JobStatus)}, not {asked['status']!r}.")
    if name == "job" and "job_id" not in asked:
        raise Rejected("View job needs a job_id.")
    await desk.settled()
    rows = await VIEWS[name](desk, asked)
    if rows is None:
        raise not_found(f"Job {asked['job_id']}")
    return rows


def fetch_from(desk: Desk) -> Fetch:
    """What the dashboard reads from: rows by the name of a view; None for what there is not. Raises Rejected."""

    async def fetch(name: str, **asked: str) -> Any:
        await desk.settled()
        return await VIEWS[name](desk, asked)

    return fetch
