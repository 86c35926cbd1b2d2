"""What instances cost, by whatever it is asked: the accounts of the store, and what lives owes on top of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from airflow_eksbatch.api.port import Desk
from airflow_eksbatch.api.wire.shapes import bill_wire, cost_wire, status_in
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Attempt, Job
from airflow_eksbatch.core.model.resources import FREE, NO_BILL, Bill, Cost
from airflow_eksbatch.core.world import books
from airflow_eksbatch.core.world.books import HOUR_MS, Entry, Use
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.floor.clock import now_ms

DAY_MS = 24 * HOUR_MS
JOBS_MAX = 1_000
# A read that a beat overtook is done again, so that nothing is counted twice; beats are short.
READS_MAX = 10
# What each view is by: members of Account, by the names that callers see.
VIEWS: dict[str, dict[str, str]] = {
    "queue": {"jobQueue": "queue"},
    "share": {"jobQueue": "queue", "shareIdentifier": "share"},
    "dag": {"dagId": "dag"},
    "environment": {},
    "market": {},
    "hour": {},
}
BY = ("job", *VIEWS)
Costs = dict[str, Any]


async def get_costs(desk: Desk, by: str, since: int | None, until: int | None, limit: int) -> Costs:
    """One row for each queue, ... dearest first, then what idled and booted; they add up to `total`.

    `since` and `until` are epoch ms, and by the hour: those that begin in [since, until) count, the one of `since` too.
    With `job` the rows are jobs that ended then or live, each with all it ever cost: the dearest `limit`.
    """
    if by not in BY:
        raise Rejected(f"Costs are told by {', '.join(BY)}, not by {by}.")
    end = now_ms() if until is None else until
    begin = end - DAY_MS if since is None else since
    begin -= begin % HOUR_MS
    if begin >= end:
        raise Rejected(f"since ({begin}) must be before until ({end}).")
    if by == "job":
        rows = await job_rows(desk, begin, end, min(max(1, limit), JOBS_MAX))
        bills = [bill for _, bill in rows]
    else:
        grouped = rows_by(by, await entries_of(desk, begin, end, by))
        rows, bills = grouped, [bill for _, bill in grouped]
    total = NO_BILL
    for bill in bills:
        total = Bill(total.on_demand.plus(bill.on_demand), total.spot.plus(bill.spot))
    return {
        "by": by,
        "since": begin,
        "until": end,
        "rows": [{**names, **bill_wire(bill)} for names, bill in rows],
        "total": bill_wire(total),
    }


async def entries_of(desk: Desk, since: int, until: int, by: str) -> list[Entry]:
    """Of the store and of the world at one moment; idle and boot time by compute environment."""
    named = {*VIEWS[by].values(), "compute_environment", "hour" if by == "hour" else ""}
    kept: list[Entry] = []
    for _ in range(READS_MAX):
        await desk.settled()
        world, taken = desk.world, desk.world.books.taken
        kept = await desk.ask(lambda store: store.sum_costs(since, until, named))
        await desk.settled()
        if desk.world is world and world.books.taken == taken:
            break
    first, last = since // HOUR_MS, -(-until // HOUR_MS)
    live = [entry for entry in books.owed(desk.world, now_ms()) if first <= entry.hour < last]
    return kept + live


Rows = list[tuple[dict[str, object], Bill]]


def rows_by(by: str, entries: Iterable[Entry]) -> Rows:
    """Entries with the same names are one row; hours in their order, all else by what it cost."""
    bills: dict[tuple[tuple[str, object], ...], Bill] = {}
    for entry in entries:
        key = tuple(names_of(by, entry).items())
        bills[key] = bills.get(key, NO_BILL).plus(entry.account.market, entry.cost)
    rows: Rows = [(dict(key), bill) for key, bill in bills.items()]
    if by == "hour":
        return sorted(rows, key=lambda row: (str(row[0]["hour"]), str(row[0]["use"])))
    return sorted(rows, key=lambda row: (row[0]["use"] != Use.JOBS, -row[1].total.nano_usd))


def names_of(by: str, entry: Entry) -> dict[str, object]:
    account = entry.account
    if by == "hour":
        return {"hour": entry.hour * HOUR_MS, "use": account.use.value}
    if by == "market":
        return {"market": account.market.value, "use": account.use.value}
    names: dict[str, object] = {"use": account.use.value}
    if account.use is Use.JOBS:
        names |= {name: getattr(account, member) for name, member in VIEWS[by].items()}
    if by == "environment" or account.use is not Use.JOBS:
        names["computeEnvironment"] = account.compute_environment
    return names


# ---- jobs


async def job_rows(desk: Desk, since: int, until: int, limit: int) -> Rows:
    await desk.settled()
    live = {job.job_id: job_row(desk.world, job) for job in running(desk.world)}
    for job in await desk.ask(lambda store: store.costly_jobs(since, until, limit)):
        live[job.job_id] = job_row(desk.world, job)
    return sorted(live.values(), key=lambda row: -row[1].total.nano_usd)[:limit]


def running(world: World) -> Collection[Job]:
    """Jobs with a pod, each once."""
    ids = dict.fromkeys(attempt.job_id for attempt in world.attempts.values())
    return [world.jobs[job_id] for job_id in ids]


def job_row(world: World, job: Job) -> tuple[dict[str, object], Bill]:
    spec = job.spec
    names: dict[str, object] = {
        "jobId": spec.job_id,
        "jobName": spec.name,
        "jobQueue": spec.queue,
        "status": status_in(world, job, None).value,
    }
    return names, books.bill_of(world, job, now_ms())


def cost_of_job(world: World, job: Job, attempts: Sequence[Attempt] | None) -> Costs:
    """What a job has cost so far; a child, by its attempts, in whatever market."""
    now = now_ms()
    if attempts is None:
        return bill_wire(books.bill_of(world, world.jobs.get(job.job_id, job), now))
    total = FREE
    for attempt in attempts:
        total = total.plus(cost_of_attempt(world, job, attempt, now))
    return {"total": cost_wire(total)}


def cost_of_attempt(world: World, job: Job, attempt: Attempt, now: int) -> Cost:
    node = world.nodes.get(attempt.node_id)
    if attempt.end is not None or node is None:
        return attempt.cost
    return books.cost_of_pod(attempt, job.spec, node, now)
