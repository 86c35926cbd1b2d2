"""Money at the command line: rows of a bill, as a table or as CSV, and moments as people write them."""

from __future__ import annotations

import csv
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from airflow_eksbatch.core.world.books import HOUR_MS
from airflow_eksbatch.terminal import OK, Json, Sentence

COST_VIEWS = ("queue", "share", "dag", "environment", "market", "hour", "job")
AGO = re.compile(r"(\d{1,6})([hd])")
HOURS = {"h": 1, "d": 24}
MARKETS = {"EC2": "On-Demand", "SPOT": "Spot"}
# Names of rows that are shown, in this order; a view has some of them.
NAMES = {
    "hour": "hour",
    "jobId": "job id",
    "jobName": "name",
    "jobQueue": "job queue",
    "shareIdentifier": "share",
    "dagId": "DAG",
    "computeEnvironment": "compute environment",
    "market": "market",
    "status": "status",
    "use": "for",
}
AMOUNTS = ("On-Demand USD", "Spot USD", "USD", "% of all", "instance s", "vCPU h")
USES = {"JOBS": "jobs", "IDLE": "idle", "BOOT": "boot"}


def moment_of(text: str) -> int:
    """Epoch ms of `36h` or `7d` ago, or of a date and time (local, if no zone is said)."""
    ago = AGO.fullmatch(text)
    if ago:
        return int((time.time() - int(ago[1]) * HOURS[ago[2]] * 3_600) * 1000)
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise Sentence(
            f"{text!r} is no time: write 36h, 7d, 2026-05-01 or 2026-05-01T06:00."
        ) from None


def span_of(since: str, until: str | None) -> tuple[int, int | None]:
    """Both in epoch ms. An hour counts from its begin, as it does for the service, which knows the words no more."""
    begin, end = moment_of(since), moment_of(until) if until else None
    if begin - begin % HOUR_MS >= (time.time() * 1000 if end is None else end):
        raise Sentence(f"--since {since} must be before {f'--until {until}' if until else 'now'}.")
    return begin, end


def cost_rows(found: Json) -> tuple[list[str], list[list[object]]]:
    """Titles and rows, the total last."""
    kept = [name for name in NAMES if any(name in row for row in found["rows"])] or ["use"]
    whole = found["total"]["total"]["nanoUsd"]
    rows: list[list[object]] = [
        [cell_of(name, row.get(name, "")) for name in kept] + amounts(row, whole)
        for row in found["rows"]
    ]
    rows.append(["total", *[""] * (len(kept) - 1), *amounts(found["total"], whole)])
    return [*(NAMES[name] for name in kept), *AMOUNTS], rows


def cell_of(name: str, value: object) -> str:
    if name == "hour" and isinstance(value, int):
        return f"{datetime.fromtimestamp(value / 1000):%Y-%m-%d %H:%M}"
    if name == "use":
        return USES.get(str(value), str(value))
    return MARKETS.get(str(value), str(value)) if name == "market" else str(value)


def amounts(bill: Json, whole: int) -> list[object]:
    total = bill["total"]
    return [
        f"{bill['onDemand']['usd']:.6f}",
        f"{bill['spot']['usd']:.6f}",
        f"{total['usd']:.6f}",
        f"{100 * total['nanoUsd'] / whole:.1f}" if whole else "",
        f"{total['instanceSeconds']:.1f}",
        f"{total['vcpuHours']:.3f}",
    ]


def cost_words(cost: Json) -> str:
    """What a job cost, in one line; empty while it has cost nothing."""
    total = cost["total"]
    if not total["instanceSeconds"]:
        return ""
    markets = {"onDemand": "On-Demand", "spot": "Spot"}
    where = [words for name, words in markets.items() if cost.get(name, {}).get("instanceSeconds")]
    return ", ".join(
        [f"{total['usd']:.6f} USD for {total['instanceSeconds']:.1f} instance-seconds", *where]
    )


def as_csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """All but the total, which whoever reads CSV makes."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows[:-1])
    return OK
