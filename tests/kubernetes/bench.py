"""Pods bound per second on one control plane: a bare client, ours from SubmitJob on, kube-scheduler.

Run it: make bench-cluster ARGS="--pods 2000 --nodes 100"

`bare` is the ceiling: an administrator's client that does nothing but create small pods with a node's name. `same` is the
same client as the service's own identity with the very pods that the service makes, asked for as the service asks: what is
between the two is the price of their fields and of access rules, what is between `same` and `ours` that of queue, plan, database and watches.

All go round by round, each time another one first, on an API server that is warm and holds nothing of the one before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil

from airflow_eksbatch.cluster.kube.connection import BRIEF
from airflow_eksbatch.cluster.kube.manifests import pod_from
from airflow_eksbatch.cluster.kube.site import UNWARNED
from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from tests.benchmarks.conditions import conditions
from tests.kubernetes.bed import MANIFEST, NAMESPACE, service_for
from tests.kubernetes.rig.api import SaidNo
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.kubernetes.rig.identities import ADMIN, SERVICE
from tests.kubernetes.rig.images import BUSYBOX
from tests.service.running import RunningService

OURS, OTHERS = NAMESPACE, "bench"
CLUSTER = "arn:aws:eks:us-east-1:123456789012:cluster/rig"
CONTAINER = {
    "image": BUSYBOX,
    "command": ["sleep", "60"],
    "resources": {"requests": {"cpu": "0.25", "memory": "64Mi"}},
}
WAYS = ("ours", "same", "bare", "scheduled")
# So many of these an m6i.16xlarge takes.
PODS_A_NODE = 255
IN_FLIGHT = 32
WARM_UP = 200
CPU = "cpu_s_per_1000_pods"
WITHIN_S = 600.0
HTTP_TIMEOUT = 504
# The scheduler holds itself to 50 requests a second otherwise.
UNLIMITED = ("--kube-api-qps=5000", "--kube-api-burst=5000")
WRITES = re.compile(
    r'apiserver_request_total\{.*resource="(?P<resource>[^"]*)".*verb="(POST|PUT|PATCH|DELETE|APPLY)".*\} (?P<count>\S+)'
)

Json = dict[str, Any]


class Bench:
    """A control plane with nodes that run nothing: what is measured ends when a pod has its node."""

    def __init__(self, plane: ControlPlane, service: RunningService, nodes: int) -> None:
        self.plane = plane
        self.service = service
        plane.create_namespace(OTHERS)
        self.definition, environment = self._set_up()
        fakes = FakeNodes(plane, run_pods=False)
        given = {labels.ENVIRONMENT_UUID: environment}
        self.nodes = fakes.add_many(nodes, instance_type="m6i.16xlarge", labels=given)

    def _set_up(self) -> tuple[str, str]:
        """A queue on an environment of nodes that are there; the job definition, the environment's uuid."""
        batch = self.service.batch()
        batch.create_compute_environment(
            computeEnvironmentName="bench",
            type="UNMANAGED",
            eksConfiguration={"eksClusterArn": CLUSTER, "kubernetesNamespace": OURS},
        )

        def usable() -> Json | None:
            [found] = batch.describe_compute_environments()["computeEnvironments"]
            return found if found["status"] == "VALID" else None

        environment = self.plane.wait_for("the compute environment", usable)
        order = [{"order": 1, "computeEnvironment": "bench"}]
        batch.create_job_queue(jobQueueName="bench", priority=1, computeEnvironmentOrder=order)
        defined = batch.register_job_definition(
            jobDefinitionName="bench",
            type="container",
            eksProperties={"podProperties": {"containers": [CONTAINER]}},
        )
        return defined["jobDefinitionArn"], environment["uuid"]

    # -- the ways --

    def bare(self, pods: int) -> Json:
        """The ceiling: a client that only creates, with the node's name."""
        return self._measure(OTHERS, pods, lambda: self._create(self._names(pods)))

    def same(self, pods: int) -> Json:
        """A client that only creates, as who the service is, and what the service makes."""
        bodies = (our_pod(number, name) for number, name in enumerate(self._names(pods)))
        create = create_all(self.plane, bodies, identity=SERVICE, path=f"{OURS}/pods{UNWARNED}")
        return self._measure(OURS, pods, lambda: asyncio.run(create))

    def _names(self, pods: int) -> Iterator[str]:
        return (self.nodes[number % len(self.nodes)] for number in range(pods))

    def ours(self, pods: int) -> Json:
        """One SubmitJob; the rest is the service's, with all that it remembers. The others go without it: it would
        watch their pods too.
        """
        if self.service.process is None:
            self.service.start()
        batch = self.service.batch()
        job: list[str] = []

        def submit() -> None:
            made = batch.submit_job(
                jobName="bench",
                jobQueue="bench",
                jobDefinition=self.definition,
                arrayProperties={"size": pods},
            )
            job.append(made["jobId"])

        measured = self._measure(OURS, pods, submit)
        batch.terminate_job(jobId=job[0], reason="Measured")
        self._clear()
        has_ended = partial(self._has_ended, batch, job[0])
        self.plane.wait_for("the end of the array", has_ended, WITHIN_S)
        self.stop_service()
        return measured

    def _has_ended(self, batch: Any, job_id: str) -> bool:
        [job] = batch.describe_jobs(jobs=[job_id])["jobs"]
        return job["status"] == "FAILED"

    def stop_service(self) -> None:
        self.service.stop()
        self.service.process = None

    def scheduled(self, pods: int) -> Json:
        """The same pods without a node's name, and kube-scheduler."""
        self.plane.start_scheduler(*UNLIMITED)
        try:
            return self._measure(OTHERS, pods, lambda: self._create([""] * pods))
        finally:
            self.plane.kill_part("kube-scheduler")

    def _create(self, node_names: Iterable[str]) -> None:
        bodies = (a_pod(number, name) for number, name in enumerate(node_names))
        asyncio.run(create_all(self.plane, bodies, identity=ADMIN, path=f"{OTHERS}/pods"))

    # -- measuring --

    def rounds(self, pods: int, rounds: int) -> Json:
        """The median of each way; a round that counts not, with few pods, goes before."""
        found: dict[str, list[Json]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):
            first = number % len(WAYS)
            for way in WAYS[first:] + WAYS[:first]:
                measured = getattr(self, way)(pods if number else WARM_UP)
                self._clear()
                if number:
                    print(
                        f"round {number} of {rounds}: {way} {measured['bound_per_s']}/s", flush=True
                    )
                    found[way].append(measured)
        return {way: median_of(measured) for way, measured in found.items()}

    def _clear(self) -> None:
        for namespace in (OURS, OTHERS):
            path = f"/api/v1/namespaces/{namespace}/pods"
            self.plane.wait_for("an empty namespace", partial(self._is_empty, path), WITHIN_S)

    def _is_empty(self, path: str) -> bool:
        """Thousands are more than one request's time; then it is a 504, or the connection is cut."""
        try:
            self.plane.admin.delete(path, gracePeriodSeconds="0")
        except SaidNo as no:
            if no.status != HTTP_TIMEOUT:
                raise
        except httpx.TransportError:
            return False
        return not self.plane.admin.list(path, limit="1")

    def _measure(self, namespace: str, pods: int, begin: Callable[[], None]) -> Json:
        processes = {
            name: child.process for name, child in self.plane.children.items() if name != "kwok"
        }
        processes["client"] = psutil.Process()
        if self.service.process and self.service.process.poll() is None:
            processes["service"] = psutil.Process(self.service.process.pid)
        cpu = {name: cpu_s(process) for name, process in processes.items()}
        writes = self._writes()
        with bound_pods(self.plane, namespace, pods) as bound:
            began = time.monotonic()
            begin()
            if not bound.wait(WITHIN_S):
                raise TimeoutError(f"not all of {pods} pods were bound within {WITHIN_S:.0f} s")
            took = time.monotonic() - began
        return {
            "seconds": round(took, 2),
            "bound_per_s": round(pods / took),
            "api_writes_per_pod": round((self._writes() - writes) / pods, 2),
            CPU: {
                name: round((cpu_s(process) - cpu[name]) * 1000 / pods, 2)
                for name, process in processes.items()
            },
        }

    def _writes(self) -> float:
        """All but leases, by which KWOK's nodes say that they live."""
        found = WRITES.finditer(self.plane.admin.text("/metrics"))
        return sum(float(one["count"]) for one in found if one["resource"] != "leases")


def median_of(measured: list[Json]) -> Json:
    """Of each number; with what every round bound, which says how steady the machine was."""
    rates = [one["bound_per_s"] for one in measured]
    numbers = {
        name: round(statistics.median(one[name] for one in measured), 2)
        for name in ("seconds", "bound_per_s", "api_writes_per_pod")
    }
    cpu = {
        name: round(statistics.median(one[CPU][name] for one in measured), 2)
        for name in measured[0][CPU]
    }
    return {**numbers, "bound_per_s_by_round": rates, CPU: cpu}


def cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


@contextmanager
def bound_pods(plane: ControlPlane, namespace: str, count: int) -> Iterator[threading.Event]:
    """Set when so many more pods have a node; told by a watch, which asks for nothing again and again."""
    path, with_node = f"/api/v1/namespaces/{namespace}/pods", {"fieldSelector": "spec.nodeName!="}

    def listed() -> tuple[set[str], str]:
        pods = plane.admin.get(path, **with_node)
        names = {pod["metadata"]["name"] for pod in pods["items"]}
        return names, pods["metadata"]["resourceVersion"]

    before, since = listed()
    done = threading.Event()

    def look(since: str) -> None:
        names = set(before)
        while len(names) - len(before) < count:
            for line in plane.admin.watch(path, resourceVersion=since, **with_node):
                names.add(json.loads(line)["object"]["metadata"]["name"])
                if len(names) - len(before) >= count:
                    break
            else:
                # An API server with much to do ends watches; what was missed is in the next list.
                names, since = listed()
        done.set()

    threading.Thread(target=look, args=(since,), daemon=True).start()
    yield done


def a_pod(number: int, node: str) -> bytes:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}-{time.monotonic_ns()}"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "main", **CONTAINER}],
            **({"nodeName": node} if node else {}),
        },
    }
    return json.dumps(pod).encode()


def our_pod(number: int, node: str) -> bytes:
    """What the service makes for a child of an array."""
    job_id = str(uuid.uuid4())
    effect = CreatePod(
        pod=PodName(f"{job_id}-{number}-1"),
        compute_environment="bench",
        node_id=NodeId(node),
        node_name=node,
        namespace=OURS,
        pod_properties=json.dumps({"containers": [CONTAINER]}).encode(),
        environment={
            "AWS_BATCH_JOB_ID": f"{job_id}:{number}",
            "AWS_BATCH_JOB_ATTEMPT": "1",
            "AWS_BATCH_JQ_NAME": "bench",
            "AWS_BATCH_CE_NAME": "bench",
            "AWS_BATCH_JOB_KUBERNETES_NODE_UID": str(uuid.uuid4()),
            "AWS_BATCH_JOB_ARRAY_INDEX": str(number),
            "AWS_BATCH_JOB_ARRAY_SIZE": "10000",
        },
        labels={
            labels.JOB_ID: job_id,
            labels.ENVIRONMENT_UUID: str(uuid.uuid4()),
            labels.NODE_UID: str(uuid.uuid4()),
        },
        grace_s=30,
    )
    return json.dumps(pod_from(effect)).encode()


async def create_all(
    plane: ControlPlane, bodies: Iterator[bytes], *, identity: str, path: str
) -> None:
    """As fast as one process can, with `IN_FLIGHT` requests under way; the service does not read the answers either."""
    headers = {
        "Accept": BRIEF if identity == SERVICE else "application/json",
        "Authorization": f"Bearer {plane.identities.tokens[identity]}",
        "Content-Type": "application/json",
    }
    trusted = ssl.create_default_context(cafile=plane.identities.certificate)
    url = f"{plane.url}/api/v1/namespaces/{path}"
    connector = aiohttp.TCPConnector(ssl=trusted, limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def create() -> None:
            for body in bodies:
                async with session.post(url, data=body) as answer:
                    answer.raise_for_status()
                    await answer.read()

        await asyncio.gather(*(create() for _ in range(IN_FLIGHT)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--out", type=Path, help="keep the result in this file")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    most = chosen.nodes * PODS_A_NODE
    if chosen.pods > most:
        parser.error(f"{chosen.nodes} nodes have room for {most} pods")
    sizes = {"pods": chosen.pods, "nodes": chosen.nodes, "rounds": chosen.rounds}
    before = conditions("kubernetes", "aiohttp", **sizes)
    results: Json = {"conditions": before}
    with tempfile.TemporaryDirectory() as directory, ControlPlane(Path(directory) / "p") as plane:
        plane.apply(MANIFEST)
        with service_for(plane.kubeconfig("eksbatch"), Path(directory) / "home") as service:
            bench = Bench(plane, service.start(), chosen.nodes)
            bench.stop_service()
            results |= bench.rounds(chosen.pods, chosen.rounds)
    written = json.dumps(results, indent=1)
    print(written)
    if chosen.out:
        chosen.out.write_text(written + "\n")


if __name__ == "__main__":
    main()
