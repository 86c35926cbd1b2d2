"""`eksbatch local`: one private service per machine and home directory, ready to use, gone when nobody needs it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    Fact,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareWeight
from airflow_eksbatch.service.desk import ServiceDesk
from airflow_eksbatch.service.process import Process
from airflow_eksbatch.service.settings import Settings

START_S = 30.0
LOOK_EVERY_S = 2.0
QUEUE = "default"
POLICY = "fair"
# The lower, the more: a run of today gets ten vCPUs for every one of a backfill, and neither gets none.
SHARES = (
    ShareWeight(share_identifier="today", weight_factor=0.1),
    ShareWeight(share_identifier="backfill", weight_factor=1.0),
)


class Home:
    """The directory of an embedded service: its lock, and the file that says where it listens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._announcement = path / "service.json"
        self._lock: int | None = None

    def try_lock(self) -> bool:
        """Become the one service of this directory; the lock ends with the process, however that ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def announce(self, url: str) -> None:
        """Tell clients where we are; whole or not at all."""
        new = self._announcement.with_suffix(".new")
        new.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
        new.replace(self._announcement)

    def withdraw(self) -> None:
        self._announcement.unlink(missing_ok=True)

    def announced_url(self) -> str | None:
        """Where a service said it listens; it may have died since."""
        try:
            return str(json.loads(self._announcement.read_text())["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def last_port(self) -> int:
        """Clients of a service that was killed find it where it was; 0 when there was none."""
        url = self.announced_url() or ""
        _, _, port = url.rpartition(":")
        return int(port) if port.isdigit() else 0

    def wait_for_other(self, seconds: float = START_S) -> str | None:
        """The URL of the service that holds the lock, once it answers."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            url = self.announced_url()
            if url is not None and answers(url):
                return url
            time.sleep(0.1)
        return None


def answers(url: str) -> bool:
    """Whether a service is ready there."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as reply:
            return reply.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


async def set_up(desk: ServiceDesk, settings: Settings) -> None:
    """Give a new home its job queue, and do nothing to one that has any."""
    if desk.world.queues:
        return
    for fact in first_facts(settings, desk):
        await desk.offer(fact)


def first_facts(settings: Settings, desk: ServiceDesk) -> list[Fact]:
    """On-Demand first, Spot when that is full; today's runs and backfills share fairly."""
    prefix = f"arn:aws:batch:{desk.settings.region}:{desk.settings.account}"
    now = time.time_ns() // 1_000_000

    def environment(name: str, market: Market, vcpus: int) -> ComputeEnvironmentPut:
        noun = ComputeEnvironment(
            name=name,
            arn=f"{prefix}:compute-environment/{name}",
            uuid=str(uuid.uuid4()),
            market=market,
            max_vcpus=vcpus,
            cluster_arn=f"arn:aws:eks:{desk.settings.region}:{desk.settings.account}:cluster/local",
            namespace="eksbatch-jobs",
            created_at=now,
        )
        return ComputeEnvironmentPut(compute_environment=noun, create=True)

    queue = JobQueue(
        name=QUEUE,
        arn=f"{prefix}:job-queue/{QUEUE}",
        compute_environments=("on-demand", "spot"),
        policy=POLICY,
        created_at=now,
    )
    policy = SchedulingPolicy(
        name=POLICY, arn=f"{prefix}:scheduling-policy/{POLICY}", shares=SHARES
    )
    return [
        environment("on-demand", Market.ON_DEMAND, settings.on_demand_vcpus),
        environment("spot", Market.SPOT, settings.spot_vcpus),
        PolicyPut(policy=policy, create=True),
        QueuePut(queue=queue, create=True),
    ]


async def leave_when_idle(process: Process, minutes: float) -> None:
    """Stop once there was no job, no instance and no request for so long; a start finds everything again."""
    idle_since = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        world = process.parts.loop.world
        if world is None or world.jobs or world.nodes:
            idle_since = time.monotonic()
        idle_since = max(idle_since, process.front.last_request_s)
        if time.monotonic() - idle_since > minutes * 60:
            process.parts.telemetry.log.info("nobody needs this service now: it leaves")
            process.stop()
            return
