"""What the service told of every job, read from its event stream while the demo runs."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from typing import Any

import httpx
import msgspec

Event = dict[str, Any]
RECLAIMED = "Host EC2"
ENDS = ("SUCCEEDED", "FAILED")


class Fairness(msgspec.Struct, frozen=True, kw_only=True):
    """A run of today against a backfill that was there before it; times in seconds."""

    today: int
    waiting: int
    """Children of the backfill that had been submitted before and had not started."""
    overtaken: int
    """Those of them that started after the last child of today."""
    first_start_s: float
    last_start_s: float
    life_s: float
    served_meanwhile: int
    """Children of the backfill that started while today's run was there."""


class Story:
    """Every event so far, in order; a thread reads on, over reconnects."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/eksbatch/events"
        self._events: list[Event] = []
        self._cursor = 0
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, name="events", daemon=True)
        self._reader.start()

    def close(self) -> None:
        self._over.set()

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                self._read_once()
            except httpx.HTTPError:
                self._over.wait(0.5)

    def _read_once(self) -> None:
        params = {"cursor": self._cursor}
        timeout = httpx.Timeout(10, read=15)
        with httpx.stream(
            "GET", self._url, params=params, timeout=timeout, trust_env=False
        ) as told:
            for line in told.iter_lines():
                batch = json.loads(line) if line else {}
                self._events.extend(batch.get("events", ()))
                self._cursor = max(self._cursor, batch.get("seq", 0))
                if self._over.is_set():
                    return

    def parents(self) -> dict[str, str]:
        """Every job as a whole, by id: its name."""
        return {event["jobId"].partition(":")[0]: event["jobName"] for event in [*self._events]}

    def ended(self) -> int:
        """Children and plain jobs that have ended."""
        ends = (e for e in [*self._events] if e["status"] in ENDS and not e["parent"])
        return sum(1 for _ in ends)

    def hit_by_reclaim(self) -> set[str]:
        """Jobs and children that lost their machine and became RUNNABLE again."""
        return {
            event["jobId"]
            for event in [*self._events]
            if event["status"] == "RUNNABLE" and (event["statusReason"] or "").startswith(RECLAIMED)
        }

    def times(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """First event, first start and end of everything, by job id, in epoch ms."""
        first: dict[str, int] = {}
        started: dict[str, int] = {}
        ended: dict[str, int] = {}
        for event in [*self._events]:
            job_id, time = event["jobId"], event["time"]
            first.setdefault(job_id, time)
            if event["status"] == "STARTING":
                started.setdefault(job_id, time)
            if event["status"] in ENDS:
                ended[job_id] = time
        return first, started, ended

    def fairness(self, today: set[str], backfill: dict[str, int]) -> Fairness:
        """`today`: ids of its jobs; `backfill`: array jobs and their sizes."""
        first, started, ended = self.times()
        starts: dict[str, list[int]] = defaultdict(list)
        for job_id, time in started.items():
            starts[job_id.partition(":")[0]].append(time)
        array = max(today, key=lambda job: len(starts[job]))
        arrived, own = first[array], starts[array]
        waiting = [
            time
            for job, size in backfill.items()
            if first[job] <= arrived
            for time in starts[job][:size]
            if time > arrived
        ]
        over = max(ended[job] for job in today)
        meanwhile = [t for job in backfill for t in starts[job] if arrived < t <= over]
        return Fairness(
            today=len(own),
            waiting=len(waiting),
            overtaken=sum(time > max(own) for time in waiting),
            first_start_s=(min(own) - arrived) / 1000,
            last_start_s=(max(own) - arrived) / 1000,
            life_s=(over - arrived) / 1000,
            served_meanwhile=len(meanwhile),
        )
