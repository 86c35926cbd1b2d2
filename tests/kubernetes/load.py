"""A few hundred jobs through a real service on fake nodes, and what must be true of them whatever happened meanwhile."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from airflow_eksbatch.core.model import labels
from tests.kubernetes.bed import NAMESPACE
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes, is_ready
from tests.kubernetes.rig.history import History, PodLife
from tests.service.running import RunningService

CLUSTER = "arn:aws:eks:us-east-1:123456789012:cluster/rig"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
NODES = 4
# Every fourth submit is an array.
ARRAY = 20
ENDS_WITHIN_S = 400.0
PAGE = 100
Json = dict[str, Any]


def set_up(batch: Any, plane: ControlPlane, name: str = "racks") -> str:
    """An unmanaged compute environment on this cluster with a job queue; its uuid."""
    batch.create_compute_environment(
        computeEnvironmentName=name,
        type="UNMANAGED",
        eksConfiguration={"eksClusterArn": CLUSTER, "kubernetesNamespace": NAMESPACE},
    )

    def environment() -> Json | None:
        found = batch.describe_compute_environments(computeEnvironments=[name])
        one = found["computeEnvironments"][0]
        return one if one["status"] == "VALID" else None

    made = plane.wait_for("the environment to be VALID", environment)
    order = [{"order": 1, "computeEnvironment": name}]
    batch.create_job_queue(jobQueueName="queue", priority=1, computeEnvironmentOrder=order)
    return made["uuid"]


def register(batch: Any, name: str, **notes: str) -> None:
    container = {
        "image": "eksbatch.test/busybox:1",
        "command": ["true"],
        "resources": {"requests": {"cpu": "0.25", "memory": "128Mi"}},
    }
    pod = {"containers": [container], "metadata": {"annotations": notes}}
    batch.register_job_definition(
        jobDefinitionName=name, type="container", eksProperties={"podProperties": pod}
    )


def submit(batch: Any, definition: str, **fields: Any) -> str:
    made = batch.submit_job(jobName="j", jobQueue="queue", jobDefinition=definition, **fields)
    return str(made["jobId"])


class Load:
    """Jobs that are submitted one after the other by a client that repeats what gets no answer."""

    def __init__(self, plane: ControlPlane, nodes: FakeNodes, service: RunningService) -> None:
        self.plane = plane
        self.service = service
        self.jobs: dict[str, int] = {}
        """Accepted ones and how many pods each is."""
        self.history = History(plane, NAMESPACE)
        self.batch = service.batch(retries={"total_max_attempts": 30, "mode": "standard"})
        self._nodes = nodes
        self._names: list[str] = []
        self._submitting: threading.Thread | None = None
        self._failed: Exception | None = None

    def open(self, lasts: str = "1s") -> None:
        """Everything that jobs need, and nodes that nobody else's jobs run on."""
        uuid = set_up(self.batch, self.plane)
        register(self.batch, "work", **{"rig/lasts": lasts})
        given = {labels.ENVIRONMENT_UUID: uuid}
        self._names = self._nodes.add_many(NODES, instance_type="m6i.16xlarge", labels=given)

    def begin(self, submits: int, **fields: Any) -> None:
        """Submit in the background."""
        self._submitting = threading.Thread(
            target=self._submit, args=(submits, fields), name="submits", daemon=True
        )
        self._submitting.start()

    def _submit(self, submits: int, fields: Json) -> None:
        try:
            for number in range(submits):
                size = ARRAY if number % 4 == 0 else 1
                array = {"arrayProperties": {"size": size}} if size > 1 else {}
                self.jobs[submit(self.batch, "work", **array, **fields)] = size
        except (ClientError, BotoCoreError) as error:
            self._failed = error

    def wait_for_pods(self, count: int) -> None:
        """Until there have been so many."""
        self.plane.wait_for(f"{count} pods", lambda: len(self.history.read()) >= count)

    def check(self) -> list[PodLife]:
        """Nothing is lost, nothing ran twice, nothing is left; the pods there have been."""
        assert self._submitting is not None
        self._submitting.join(ENDS_WITHIN_S)
        assert not self._submitting.is_alive(), f"only {len(self.jobs)} submits were answered"
        assert self._failed is None, self._failed
        self.plane.wait_for("all jobs to end", self._have_ended, within_s=ENDS_WITHIN_S)
        statuses = Counter(job["status"] for job in self._describe())
        assert statuses == {"SUCCEEDED": len(self.jobs)}
        self.plane.wait_for("all pods to go", lambda: not self.plane.admin.list(PODS))
        lives = self.history.read()
        times = succeeded(lives)
        odd = {index: times[index] for index in {*times, *self._indices()} if times[index] != 1}
        assert not odd, f"pods that succeeded, for each index: {odd}"
        assert not twice_at_once(lives), twice_at_once(lives)
        left = [life.name for life in lives if life.is_there]
        assert not left, left
        there = {n["metadata"]["name"]: is_ready(n) for n in self.plane.admin.list("/api/v1/nodes")}
        assert {name: there.get(name) for name in self._names} == dict.fromkeys(self._names, True)
        return lives

    def close(self) -> None:
        """Also when it failed: the next load begins with nothing."""
        self.plane.admin.delete(PODS, gracePeriodSeconds="0")
        for name in self._names:
            self._nodes.remove(name)

    def _indices(self) -> Iterator[str]:
        for job_id, size in self.jobs.items():
            yield from (f"{job_id}-{index}" for index in range(size))

    def _describe(self) -> list[Json]:
        job_ids = sorted(self.jobs)
        return [
            job
            for first in range(0, len(job_ids), PAGE)
            for job in self.batch.describe_jobs(jobs=job_ids[first : first + PAGE])["jobs"]
        ]

    def _have_ended(self) -> bool:
        self.check_silence()
        return all(job["status"] in ("SUCCEEDED", "FAILED") for job in self._describe())

    def check_silence(self) -> None:
        """The plan checker ends the service when it finds something."""
        process = self.service.process
        assert process is not None
        assert process.poll() is None, f"the service ended: {self.service.text}"
        bad = [line for line in errors(self.service) if line["event"] != "the store failed"]
        assert bad == []


def errors(service: RunningService) -> list[Json]:
    """What it logged as its own mistake, or as much as that."""
    lines = [json.loads(line) for line in service.output if line.startswith("{")]
    return [line for line in lines if line["level"] in ("error", "critical")]


def succeeded(lives: list[PodLife]) -> Counter[str]:
    """How many pods of each index ever succeeded."""
    return Counter(life.index for life in lives if "Succeeded" in life.phases)


def twice_at_once(lives: list[PodLife]) -> list[tuple[PodLife, PodLife]]:
    """Pods of one index that were alive at the same moment."""
    never = float("inf")
    by_index: dict[str, list[PodLife]] = {}
    for life in lives:
        by_index.setdefault(life.index, []).append(life)
    return [
        (one, other)
        for of_index in by_index.values()
        for number, one in enumerate(of_index)
        for other in of_index[number + 1 :]
        if one.created < (other.ended or never) and other.created < (one.ended or never)
    ]


@contextmanager
def a_load(plane: ControlPlane, nodes: FakeNodes, service: RunningService) -> Iterator[Load]:
    load = Load(plane, nodes, service)
    try:
        load.open()
        yield load
    finally:
        load.close()
