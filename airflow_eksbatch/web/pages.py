"""Rows to what a page shows: sums, bars and ages; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]
STATUSES = ("PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")


def bars(counts: Mapping[str, Any], names: Sequence[str] = STATUSES) -> list[dict[str, Any]]:
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


def fill_percent(row: Mapping[str, Any]) -> int:
    """How full a node is, by the fuller of vCPUs and memory."""
    parts = [
        row["used_vcpus"] / row["allocatable_vcpus"] if row["allocatable_vcpus"] else 0,
        row["used_memory_mib"] / row["allocatable_memory_mib"]
        if row["allocatable_memory_mib"]
        else 0,
    ]
    return round(100 * max(parts))


def age(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min, 2.5 h, 4 d."""
    for limit, unit, size in ((120, "s", 1), (7_200, "min", 60), (172_800, "h", 3_600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def overview(summary: Mapping[str, Any], queues: Rows) -> dict[str, Any]:
    """The first page."""
    return {
        "summary": summary,
        "bars": bars(summary["jobs"]),
        "queues": [{**row, "bars": bars(row)} for row in queues],
        "environments": [
            {**row, "fill": round(100 * row["vcpus"] / max(1, row["maxvCpus"]))}
            for row in summary["compute_environments"]
        ],
    }


def nodes(rows: Rows) -> dict[str, Any]:
    return {"nodes": [{**row, "fill": fill_percent(row), "age": age(row["age_s"])} for row in rows]}
