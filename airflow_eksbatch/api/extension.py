"""What AWS Batch does not have: the event stream, stories, outputs, reasons, totals."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from airflow_eksbatch.api.costs import cost_of_attempt, cost_of_job, get_costs
from airflow_eksbatch.api.job_reads import (
    environment_of,
    find_jobs,
    has_part,
    index_of,
    views_of,
)
from airflow_eksbatch.api.port import Desk
from airflow_eksbatch.api.wire.names import split_job_id
from airflow_eksbatch.api.wire.shapes import (
    cost_wire,
    event_wire,
    job_detail,
    status_in,
    status_reason,
    without_nothing,
)
from airflow_eksbatch.core.engine import views
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import TERMINAL, Attempt, Job, JobEvent, pod_name
from airflow_eksbatch.core.planner.explain import explain, explain_child
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.store.port import Store

NOT_FOUND = "ResourceNotFoundException"
STORY_MAX = 1_000
COSTLY_JOBS = 50
LOG_BLOCK = 1 << 20
# A whole output in one answer; what is longer is read on from x-eksbatch-next-offset.
LOG_BYTES_MAX = 16 << 20
# Bytes in which the last lines are looked for.
TAIL_BYTES = 1 << 20
FOLLOW_EVERY_S = 0.5
NUMBER = re.compile(r"-?[0-9]{1,17}")

Query = Mapping[str, str]


def number_in(query: Query, name: str, default: int) -> int:
    """A whole number of the query string."""
    text = query.get(name, "")
    if not text:
        return default
    if not NUMBER.fullmatch(text):
        raise Rejected(f"{name} must be a whole number, not {text!r}.")
    return int(text)


def not_found(what: str) -> Rejected:
    return Rejected(f"{what} does not exist.", NOT_FOUND)


async def find_job(desk: Desk, job_id: str) -> tuple[Job, int | None]:
    """A job, a child of an array or a node of a multi-node job; raises Rejected for what there is not."""
    await desk.settled()
    if "\0" in job_id:
        raise not_found("Such a job")  # No database can be asked for it
    named = split_job_id(job_id)
    job = (await find_jobs(desk, [named.job_id])).get(named.job_id)
    if job is None or not has_part(job, named):
        raise not_found(f"Job {job_id}")
    return job, index_of(job, named)


# ---- one job


async def get_job(desk: Desk, job_id: str) -> dict[str, Any]:
    """All that is known of a job: detail, the Airflow task behind it, events, attempts."""
    job, index = await find_job(desk, job_id)
    (view,) = await views_of(desk, [(job, index)])
    events = await story_of(desk, job, index)
    return {
        "job": job_detail(view, desk.settings),
        "airflow": msgspec.json.decode(job.spec.airflow) if job.spec.airflow else None,
        "story": [event_wire(event) for event in events],
        "attempts": [attempt_wire(desk, job, attempt) for attempt in view.attempts],
        "cost": cost_of_job(desk.world, view.job, None if index is None else view.attempts),
    }


async def story_of(desk: Desk, job: Job, index: int | None) -> list[JobEvent]:
    """The first events of a job, all of its children included; or those of one child to its end.

    Of a multi-node job there are only those of the whole.
    """

    def read(after: int) -> Callable[[Store], list[JobEvent]]:
        return lambda store: store.events_since(after, STORY_MAX, job.job_id)

    block = await desk.ask(read(0))
    if index is None or job.is_multi_node:
        return block
    story: list[JobEvent] = []
    while block:
        story += [event for event in block if event.index == index]
        if len(block) < STORY_MAX or (story and story[-1].status in TERMINAL):
            break
        block = await desk.ask(read(block[-1].seq))
    return story


def attempt_wire(desk: Desk, job: Job, attempt: Attempt) -> dict[str, Any]:
    """One placement, also those that cost the user nothing."""
    node, end = desk.world.nodes.get(attempt.node_id), attempt.end
    environment = environment_of(desk.world, attempt.node_id)
    return without_nothing(
        {
            "attempt": attempt.number,
            "charged": attempt.charged if end is not None else None,
            "podName": attempt.pod_name,
            "nodeId": attempt.node_id,
            "instanceType": node.offering.instance_type if node is not None else None,
            "computeEnvironment": environment.name if environment is not None else None,
            "status": attempt.status.value,
            "createdAt": attempt.created_at,
            "startedAt": attempt.started_at,
            "stoppedAt": attempt.stopped_at,
            "exitCode": end.exit_code if end is not None else None,
            "reason": end.reason if end is not None else None,
            "statusReason": end.status_reason if end is not None else None,
            "cost": cost_wire(cost_of_attempt(desk.world, job, attempt, now_ms())),
        }
    )


async def explain_job(desk: Desk, job_id: str) -> dict[str, Any]:
    """Why it is not running, in sentences."""
    job, index = await find_job(desk, job_id)
    status = status_in(desk.world, job, index)
    live = desk.world.jobs.get(job.job_id)
    if live is None or status in TERMINAL:
        (view,) = await views_of(desk, [(job, index)])
        reason = status_reason(view, view.attempts[-1] if view.attempts else None)
        why = f": {reason.rstrip('.')}" if reason else ""
        sentences = [f"It has ended as {status.value}{why}."]
    else:
        sentences = explain_part(desk.world, live, index, now_ms())
        (view,) = await views_of(desk, [(job, index)])
    cost = cost_of_job(desk.world, view.job, None if index is None else view.attempts)
    if cost["total"]["instanceSeconds"]:
        so_far = "" if status in TERMINAL else " so far"
        sentences = [*sentences, f"It has cost {usd(cost['total'])}{so_far}."]
    return {"jobId": job_id, "status": status.value, "sentences": sentences}


def explain_part(world: World, job: Job, index: int | None, now: int) -> list[str]:
    """A child of an array tells its own, and so does a node of a multi-node job that has its machine."""
    if index is None or (job.is_multi_node and index not in job.running):
        return explain(world, job, now)
    if job.is_multi_node and index:
        own, main = (
            world.attempts.get(pod_name(job.job_id, one, job.running.get(one, 0)))
            for one in (index, 0)
        )
        assert own is not None
        if main is not None and not main.address:
            return [
                f"Node {own.node_name or own.node_id} is its own; it begins when the main node runs."
            ]
    return explain_child(world, job, index, now)


# ---- output


async def find_attempt(desk: Desk, job_id: str, number: int) -> Attempt | None:
    """An attempt by number (0: the last); None before the first one."""
    job, index = await find_job(desk, job_id)
    if job.is_array and index is None:
        raise Rejected(
            f"Job {job_id} is an array of {job.spec.size}: name a child, such as {job_id}:0."
        )
    attempts = await desk.ask(lambda store: store.find_attempts([job.job_id], [index or 0]))
    if not number:
        return attempts[-1] if attempts else None
    for attempt in attempts:
        if attempt.number == number:
            return attempt
    raise not_found(f"Attempt {number} of job {job_id}")


class Output(NamedTuple):
    """Of an attempt: a part of it, and where it goes on."""

    text: bytes
    offset: int
    attempt: int
    """0 before the first one."""


async def read_output(desk: Desk, job_id: str, query: Query) -> Output:
    """Output of an attempt; empty before it begins."""
    attempt = await find_attempt(desk, job_id, number_in(query, "attempt", 0))
    tail = number_in(query, "tail", 0)
    if attempt is None:
        return Output(b"", 0, 0)
    if tail > 0:
        return await read_tail(desk, attempt, tail)
    offset = max(0, number_in(query, "offset", 0))
    blocks: list[bytes] = []
    while sum(map(len, blocks)) < LOG_BYTES_MAX:
        found = await desk.read_log(attempt, offset, LOG_BLOCK)
        if found is None or not found[0]:
            break
        blocks.append(found[0])
        offset = found[1]
    return Output(b"".join(blocks), offset, attempt.number)


async def read_tail(desk: Desk, attempt: Attempt, lines: int) -> Output:
    """The last lines, whole ones."""
    found = await desk.read_log(attempt, -TAIL_BYTES, TAIL_BYTES)
    text, offset = found or (b"", 0)
    kept = text.splitlines(keepends=True)[-lines:]
    return Output(b"".join(kept), offset, attempt.number)


async def follow_output(desk: Desk, job_id: str, query: Query) -> AsyncIterator[bytes]:
    """Output as it comes, until the job has ended and all of it was read."""
    number, offset = number_in(query, "attempt", 0), max(0, number_in(query, "offset", 0))
    while True:
        attempt = await find_attempt(desk, job_id, number)
        job, index = await find_job(desk, job_id)
        over = status_in(desk.world, job, index) in TERMINAL or (
            attempt is not None and bool(number) and attempt.end is not None
        )
        if attempt is not None:
            while (found := await desk.read_log(attempt, offset, LOG_BLOCK)) and found[0]:
                offset = found[1]
                yield found[0]
        if over:
            return
        await asyncio.sleep(FOLLOW_EVERY_S)


# ---- totals


def usd(cost: Mapping[str, Any]) -> str:
    """0.012345 USD (42 instance-seconds)."""
    return f"{cost['usd']:.6f} USD ({cost['instanceSeconds']:g} instance-seconds)"


async def get_summary(desk: Desk) -> dict[str, object]:
    """What the service has done since it was installed, and what it is doing."""
    await desk.settled()
    return views.summary(desk.world, now_ms())


async def read_costs(desk: Desk, query: Query) -> dict[str, Any]:
    """What the query string asks for: by, since, until, limit; the last 24 hours by job queue if nothing is said."""
    moments = {name: number_in(query, name, -1) for name in ("since", "until")}
    since, until = (None if at < 0 else at for at in moments.values())
    limit = number_in(query, "limit", COSTLY_JOBS)
    return await get_costs(desk, query.get("by") or "queue", since, until, limit)
