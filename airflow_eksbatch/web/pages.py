"""Rows to what a page shows: sums, bars, ages; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from airflow_eksbatch.core.world.books import HOUR_MS

Row = Mapping[str, Any]
Rows = Sequence[Row]
STATUSES = ("PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")
MARKETS = {"EC2": "On-Demand", "SPOT": "Spot"}
JOBS_ON_OVERVIEW = 15
DAY_MS = 24 * HOUR_MS
COST_VIEWS = {
    "queue": "job queue",
    "share": "share",
    "dag": "DAG",
    "environment": "compute environment",
    "market": "market",
    "job": "job",
}
COST_DAYS = {"1": "24 hours", "7": "7 days", "30": "30 days"}
# What a bar is made of, from below: use and market, class of its colour, words.
COST_PARTS = (
    ("JOBS", "onDemand", "paid-on-demand", "jobs, On-Demand"),
    ("JOBS", "spot", "paid-spot", "jobs, Spot"),
    ("IDLE", "total", "paid-idle", "idle"),
    ("BOOT", "total", "paid-boot", "boot"),
)
CHART_WIDTH, CHART_HEIGHT = 960, 160
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


def in_url(job_id: str) -> str:
    """An id in the path of a link: behind a # browsers ask for nothing."""
    return quote(job_id, safe=":")


def money(usd: float) -> str:
    """US dollars, small ones to the digit that matters."""
    if usd >= 1:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if usd >= 0.001 or not usd else f"${usd:.6f}"


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
        "nodes": (row.get("nodeProperties") or {}).get("numNodes"),
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
        # Services of earlier releases have none.
        "nodes": [job_row(row, now) for row in view.get("nodes") or ()],
        "parent": parent_of(detail),
        "title": explained(detail),
        "is_over": detail["status"] in ("SUCCEEDED", "FAILED"),
    }


def parent_of(detail: Row) -> str | None:
    """Of a child its array, of a node its multi-node job."""
    if "index" in (detail.get("arrayProperties") or {}):
        return detail["jobId"].partition(":")[0]
    return detail["jobId"].partition("#")[0] if "nodeDetails" in detail else None


def explained(detail: Row) -> str:
    """What the sentences about a job are called."""
    if (detail.get("arrayProperties") or {}).get("size"):
        return "How far it is"
    return "What it does" if detail["status"] in ("STARTING", "RUNNING") else "Why it waits"


def facts(view: Row) -> dict[str, Any]:
    """What a job was given, in the order people ask for it."""
    detail = view["job"]
    # Services once kept whatever JSON they were told of a task.
    airflow = view["airflow"] if isinstance(view["airflow"], dict) else {}
    array = detail.get("arrayProperties") or {}
    nodes, node = detail.get("nodeProperties"), detail.get("nodeDetails")
    timeout = detail.get("timeout") or {}
    return {
        "definition": detail["jobDefinition"].rpartition("/")[2],
        "share": detail.get("shareIdentifier"),
        "array": f"{array['size']} children" if array.get("size") else None,
        "nodes": f"{nodes['numNodes']}, the main one is {nodes['mainNode']}" if nodes else None,
        "node": f"{node['nodeIndex']}, {'the main one' if node['isMainNode'] else 'not the main one'}"
        if node
        else None,
        "depends on": ", ".join(d.get("jobId", d.get("type", "")) for d in detail["dependsOn"]),
        "timeout": span(timeout["attemptDurationSeconds"]) if timeout else None,
        "tags": ", ".join(f"{key}={value}" for key, value in (detail.get("tags") or {}).items()),
        "Airflow": " / ".join(
            str(airflow[key]) for key in ("dag_id", "run_id", "task_id") if airflow.get(key)
        ),
        "cost": cost_words(view["cost"]),
    }


def cost_words(cost: Row) -> str:
    """Of a job, with the markets it ran in; empty before it cost anything."""
    total, markets = cost["total"], {"onDemand": "On-Demand", "spot": "Spot"}
    if not total["instanceSeconds"]:
        return ""
    where = [words for name, words in markets.items() if cost.get(name, {}).get("instanceSeconds")]
    on = f" on {' and '.join(where)}" if where else ""
    return f"{money(total['usd'])} for {span(total['instanceSeconds'])} of an instance{on}"


def costs(found: Row, hours: Row) -> dict[str, Any]:
    """A bill, what of it went to jobs, and its hours as bars."""
    whole = found["total"]["total"]["nanoUsd"]
    used = {"JOBS": 0, "IDLE": 0, "BOOT": 0}
    for row in hours["rows"]:
        used[row["use"]] += row["total"]["nanoUsd"]
    paid = sum(used.values())
    return {
        "rows": [
            {**row, "percent": percent_of(row["total"]["nanoUsd"], whole)} for row in found["rows"]
        ],
        "total": found["total"],
        "paid": hours["total"],
        "jobs_percent": percent_of(used["JOBS"], paid),
        "chart": cost_chart(hours),
        "views": COST_VIEWS,
        "spans": COST_DAYS,
        "parts": [(css, words) for _, _, css, words in COST_PARTS],
        "width": CHART_WIDTH,
        "height": CHART_HEIGHT,
        "is_over": True,  # It is not read anew: an hour's sum is not worth a look every 3 seconds.
    }


def percent_of(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def cost_chart(hours: Row) -> dict[str, Any]:
    """Bars as wide as hours, each part a rectangle on the one below; what idle time is below zero is not drawn."""
    first, last = hours["since"] // HOUR_MS, -(-hours["until"] // HOUR_MS)
    amounts: dict[int, dict[str, float]] = {}
    for row in hours["rows"]:
        bar = amounts.setdefault(row["hour"] // HOUR_MS, {})
        for use, market, css, _ in COST_PARTS:
            if use == row["use"]:
                bar[css] = bar.get(css, 0.0) + max(0.0, row[market]["usd"])
    top = max((sum(bar.values()) for bar in amounts.values()), default=0.0)
    step = CHART_WIDTH / max(1, last - first)
    rectangles: list[dict[str, Any]] = []
    for hour, bar in sorted(amounts.items()):
        y = float(CHART_HEIGHT)
        for _, _, css, words in COST_PARTS:
            height = CHART_HEIGHT * bar.get(css, 0.0) / top if top else 0.0
            y -= height
            if height > 0:
                told = f"{clock(hour * HOUR_MS)}: {money(bar[css])} {words}"
                rectangles.append(
                    {
                        "x": round((hour - first) * step, 2),
                        "y": round(y, 2),
                        "width": round(max(1.0, step - 1), 2),
                        "height": round(height, 2),
                        "css": css,
                        "told": told,
                    }
                )
    return {
        "bars": rectangles,
        "top": money(top),
        "from": clock(first * HOUR_MS),
        "to": clock(hours["until"]),
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
