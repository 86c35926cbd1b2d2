"""Rows to what a page shows: sums, bars, ages; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]
STATUSES = ("PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
MARKETS = {"EC2": "On-Demand", "SPOT": "Spot"}
JOBS_ON_OVERVIEW = 15
UNITS = ((120, "s", 1), (7_200, "min", 60), (172_800, "h", 3_600))


# ---- filters of templates


def span(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 42 s, 3 min, 2.5 h, 4 d."""
    if seconds < 10:
        return f"{round(seconds, 1):g} s"
    for limit, unit, size in UNITS:
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def ago(ms: int | None, now: int) -> str:
    """How long a moment is past."""
    if not ms:
        return ""
    seconds = (now - ms) // 1000
    return "now" if seconds < 1 else f"{span(seconds)} ago"


def clock(ms: int | None) -> str:
    """A moment as a date and time that needs no zone guessed."""
    if not ms:
        return ""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def money(usd: float) -> str:
    """US dollars, small ones to the digit that matters."""
    return f"${usd:,.2f}" if usd >= 1 else f"${usd:.4f}"


def mib(number: int) -> str:
    return f"{number / 1024:.3g} GiB" if number >= 1024 else f"{number} MiB"


# ---- parts of pages


def bars(counts: Row, names: Sequence[str] = STATUSES) -> list[dict[str, Any]]:
    """One bar a status with its part of the whole in percent; a status that has any is never invisible."""
    total = sum(int(counts.get(name, 0)) for name in names)
    return [
        {
            "name": name,
            "count": int(counts.get(name, 0)),
            "percent": max(0.5, 100 * int(counts.get(name, 0)) / total),
        }
        for name in names
        if counts.get(name)
    ]


def fill_percent(row: Row) -> int:
    """How full a node is, by the fuller of vCPUs and memory."""
    parts = [
        row["used_vcpus"] / row["allocatable_vcpus"] if row["allocatable_vcpus"] else 0,
        row["used_memory_mib"] / row["allocatable_memory_mib"]
        if row["allocatable_memory_mib"]
        else 0,
    ]
    return round(100 * max(parts))


def job_row(row: Row, now: int) -> dict[str, Any]:
    """One line of a list of jobs."""
    started, stopped = row.get("startedAt"), row.get("stoppedAt")
    array = row.get("arrayProperties") or {}
    return {
        **row,
        "waited": span((started - row["createdAt"]) / 1000) if started else "",
        "ran": span(((stopped or now) - started) / 1000) if started else "",
        "size": array.get("size"),
        "index": array.get("index"),
        "bars": bars(array.get("statusSummary") or {}),
        "exit_code": (row.get("container") or {}).get("exitCode"),
    }


def environment_row(row: Row) -> dict[str, Any]:
    return {
        **row,
        "market": MARKETS.get(row["type"], row["type"]),
        "fill": min(100, round(100 * row["vcpus"] / max(1, row["maxvCpus"]))),
        "nodes": ", ".join(f"{number} {status}" for status, number in row["instances"].items()),
    }


# ---- pages


def overview(summary: Row, queues: Rows, jobs: Rows, now: int) -> dict[str, Any]:
    """The first page."""
    return {
        "summary": summary,
        "bars": bars(summary["jobs"]),
        "queues": [{**row, "bars": bars(row)} for row in queues],
        "environments": [environment_row(row) for row in summary["compute_environments"]],
        "jobs": [job_row(row, now) for row in jobs[:JOBS_ON_OVERVIEW]],
    }


def queue(row: Row, *, shares: Rows, classes: Rows, jobs: Rows, now: int) -> dict[str, Any]:
    return {
        "queue": row,
        "bars": bars(row),
        "shares": [share for share in shares if share["jobQueue"] == row["jobQueue"]],
        "classes": classes,
        "jobs": [job_row(job, now) for job in jobs],
        "statuses": STATUSES,
    }


def job(view: Row, now: int) -> dict[str, Any]:
    """A job: facts that it has, and its tables."""
    detail = view["job"]
    array = detail.get("arrayProperties") or {}
    started, stopped = detail.get("startedAt"), detail.get("stoppedAt")
    return {
        **view,
        "facts": {name: value for name, value in facts(view).items() if value},
        "bars": bars(array.get("statusSummary") or {}),
        "waited": span((started - detail["createdAt"]) / 1000) if started else "",
        "ran": span(((stopped or now) - started) / 1000) if started else "",
        "children": [job_row(row, now) for row in view["children"]],
        "parent": detail["jobId"].partition(":")[0] if "index" in array else None,
        "title": explained(detail),
        "is_over": detail["status"] in ("SUCCEEDED", "FAILED"),
    }


def explained(detail: Row) -> str:
    """What the sentences about a job are called."""
    if (detail.get("arrayProperties") or {}).get("size"):
        return "How far it is"
    return "What it does" if detail["status"] in ("STARTING", "RUNNING") else "Why it waits"


def facts(view: Row) -> dict[str, Any]:
    """What a job was given, in the order people ask for it."""
    detail = view["job"]
    airflow, array = view["airflow"] or {}, detail.get("arrayProperties") or {}
    timeout = detail.get("timeout") or {}
    return {
        "definition": detail["jobDefinition"].rpartition("/")[2],
        "share": detail.get("shareIdentifier"),
        "array": f"{array['size']} children" if array.get("size") else None,
        "depends on": ", ".join(d.get("jobId", d.get("type", "")) for d in detail["dependsOn"]),
        "timeout": span(timeout["attemptDurationSeconds"]) if timeout else None,
        "tags": ", ".join(f"{key}={value}" for key, value in (detail.get("tags") or {}).items()),
        "Airflow": " / ".join(
            str(airflow[key]) for key in ("dag_id", "run_id", "task_id") if airflow.get(key)
        ),
    }


def nodes(rows: Rows) -> dict[str, Any]:
    """Nodes, and what all of them together have and cost."""
    return {
        "nodes": [
            {
                **row,
                "fill": fill_percent(row),
                "age": span(row["age_s"]),
                "market": MARKETS.get(row["market"], row["market"]),
            }
            for row in rows
        ],
        "vcpus": sum(row["allocatable_vcpus"] for row in rows),
        "used_vcpus": sum(row["used_vcpus"] for row in rows),
        "price_usd_hour": sum(row["price_usd_hour"] for row in rows),
    }
