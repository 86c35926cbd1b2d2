"""Money in SQL: sums by the hour that are added to, and the jobs that cost most."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import Connection, Table, delete, func, select

from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.resources import Cost
from airflow_eksbatch.core.world.books import HOUR_MS, Account, Entry, Use
from airflow_eksbatch.store import rows, schema

# A year of comparisons, and what accounting needs at its end.
KEPT_MS = 400 * 24 * HOUR_MS
TABLE = schema.costs.c
SUMS = ("nano_usd", "instance_ms", "vcpu_ms")
ALWAYS = ("market", "use_of")
KEYS = ("hour", "compute_environment", *ALWAYS, "queue", "share", "dag")


def adding(insert: Callable[[Table], Any]) -> Any:
    """The statement that adds to an account's hour. Said in the transaction of what it is for, so never twice."""
    statement = insert(schema.costs)
    more = {name: TABLE[name] + statement.excluded[name] for name in SUMS}
    return statement.on_conflict_do_update(index_elements=list(KEYS), set_=more)


def sums(connection: Connection, since: int, until: int, by: Collection[str]) -> list[Entry]:
    named = [name for name in KEYS if name in by or name in ALWAYS]
    keys = [TABLE[name] for name in named]
    query = (
        select(*keys, *(func.sum(TABLE[name]).label(f"sum_{name}") for name in SUMS))
        .where(TABLE.hour >= -(-since // HOUR_MS), TABLE.hour < -(-until // HOUR_MS))
        .group_by(*keys)
        .order_by(*keys)
    )
    return [_entry(dict(row)) for row in connection.execute(query).mappings()]


def _entry(row: dict[str, Any]) -> Entry:
    # PostgreSQL sums whole numbers to decimals.
    return Entry(
        hour=row.get("hour", 0),
        account=Account(
            row.get("compute_environment", ""),
            Market(row["market"]),
            Use(row["use_of"]),
            row.get("queue", ""),
            row.get("share", ""),
            row.get("dag", ""),
        ),
        cost=Cost(*(int(row[f"sum_{name}"]) for name in SUMS)),
    )


def costly_jobs(connection: Connection, since: int, until: int, limit: int) -> list[Job]:
    jobs = schema.jobs.c
    query = (
        select(jobs.spec, jobs.state)
        .where(jobs.stopped_at.is_not(None), jobs.stopped_at >= since, jobs.stopped_at < until)
        .order_by(jobs.nano_usd.desc(), jobs.seq)
        .limit(limit)
    )
    return list(rows.jobs_from(connection.execute(query).tuples()))


def forget_before(connection: Connection, time: int) -> None:
    """Sums are small and wanted long after their jobs are not."""
    connection.execute(delete(schema.costs).where(TABLE.hour < (time - KEPT_MS) // HOUR_MS))
