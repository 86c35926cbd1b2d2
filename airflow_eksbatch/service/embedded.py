"""`eksbatch local`: one private service per machine and home directory, ready to use, gone when nobody needs it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
import uuid
from pathlib import Path

from airflow_eksbatch.api.auth import new_key
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    Fact,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareWeight
from airflow_eksbatch.endpoint import ANNOUNCEMENT, announced, answers, default_home
from airflow_eksbatch.floor.clock import now_ms
from airflow_eksbatch.service.desk import ServiceDesk
from airflow_eksbatch.service.process import Process
from airflow_eksbatch.service.settings import BadSetting, Settings
from airflow_eksbatch.store.port import AccessKey, Rights, Store

# As long as whoever starts one waits for it.
START_S = 60.0
LOOK_EVERY_S = 2.0
OWNER = "embedded"
"""How the name begins under which an embedded service leads."""
OWN_KEY = "made by eksbatch local, for service.json"
"""Note of a key."""
QUEUE = "default"
POLICY = "fair"
# The lower, the more: a run of today gets ten vCPUs for every one of a backfill, and neither gets none.
SHARES = (
    ShareWeight(share_identifier="today", weight_factor=0.1),
    ShareWeight(share_identifier="backfill", weight_factor=1.0),
)


def bad_home(path: Path, error: OSError) -> BadSetting:
    return BadSetting(
        f"The directory {path} cannot be used ({error.strerror}): name another by --home or EKSBATCH_HOME."
    )


class Home:
    """The directory of an embedded service: its lock, and the file that says where it listens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._announcement = path / ANNOUNCEMENT
        self._last = path / "service.last.json"
        self._lock: int | None = None

    def try_lock(self) -> bool:
        """Become the one service of this directory; the lock ends with the process, however that ends."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise bad_home(self.path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        self._keep_private()
        return True

    def _keep_private(self) -> None:
        """What an earlier release left for all to read. A directory that somebody else named may have other uses."""
        if self.path == default_home({}):
            self.path.chmod(0o700)
        for name in ("eksbatch.db", "eksbatch.db-wal", "eksbatch.db-shm"):
            with contextlib.suppress(OSError):
                (self.path / name).chmod(0o600)

    def announce(self, url: str, key: tuple[str, str] | None) -> None:
        """Tell those who may read it where we are, and with which access key and secret to ask; whole or not at all."""
        told: dict[str, object] = {"url": url, "pid": os.getpid()}
        if key is not None:
            told["access_key"], told["secret_key"] = key
        new = self._announcement.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(json.dumps(told) + "\n")
        new.replace(self._announcement)

    def withdraw(self) -> None:
        """Whoever looks for us from now on starts another."""
        with contextlib.suppress(FileNotFoundError):
            self._announcement.replace(self._last)

    def announced_url(self) -> str | None:
        """Where a service said it listens; it may have died since."""
        found = announced(self._announcement)
        return found.url if found else None

    def last_port(self) -> int:
        """Clients of a service that has ended find the next one where it was; 0 when there was none."""
        told = announced(self._announcement) or announced(self._last)
        _, _, port = (told.url if told else "").rpartition(":")
        return int(port) if port.isdigit() else 0

    def lock_or_find(self, seconds: float = START_S) -> str | None:
        """None: we are the one service of this directory now. Else the URL of the one that is, once it answers.

        One that is leaving answers no more and then lets the lock go. Raises TimeoutError if neither comes about.
        """
        until = time.monotonic() + seconds
        while not self.try_lock():
            url = self.announced_url()
            if url is not None and answers(url):
                return url
            if time.monotonic() > until:
                raise TimeoutError(f"{self.path / 'lock'} is held, and nobody answers")
            time.sleep(0.1)
        return None


def own_key(store: Store) -> tuple[str, str]:
    """The access key and secret of those who find this service by its home; made at the first start."""
    known = store.keys()
    for key in store.list_keys():
        if key.note == OWN_KEY and key.rights == Rights():
            return key.access_key, known[key.access_key].secret
    access_key, secret = new_key()
    store.put_key(AccessKey(access_key=access_key, note=OWN_KEY, created_at=now_ms()), secret)
    return access_key, secret


async def set_up(desk: ServiceDesk, settings: Settings) -> None:
    """Give a new home its job queue, and do nothing to one that has any."""
    if desk.world.queues:
        return
    for fact in first_facts(settings, desk):
        await desk.offer(fact)


def first_facts(settings: Settings, desk: ServiceDesk) -> list[Fact]:
    """On-Demand first, Spot when that is full; today's runs and backfills share fairly."""
    prefix = f"arn:aws:batch:{desk.settings.region}:{desk.settings.account}"
    now = now_ms()

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


async def leave_when_idle(process: Process, home: Home, minutes: float) -> None:
    """Stop once there was no job, no instance and nobody who asks or listens for so long.

    Between the last look and the end nothing is accepted, and whoever looks for a service starts the next one.
    """
    idle_since = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        world, front = process.parts.loop.world, process.front
        if world is None or world.jobs or world.nodes or front.open_requests:
            idle_since = time.monotonic()
        idle_since = max(idle_since, front.last_request_s)
        if time.monotonic() - idle_since > minutes * 60:
            process.parts.telemetry.log.info(
                "nobody needs this service now: it leaves; the next task, or `eksbatch local`, starts it again"
            )
            home.withdraw()
            process.parts.inbox.close("The service is stopping.")
            process.stop()
            return
