"""The Kubernetes adapter on a real API server, with the rights of docker/kubernetes.yaml and no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from airflow_eksbatch.cluster.kube.connection import Kubeconfig
from airflow_eksbatch.cluster.kubernetes import KubernetesCluster
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, ForgetPod
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from tests.contracts.test_cluster import Watch
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes, eks_node
from tests.service.running import RunningService

MANIFEST = Path(__file__).resolve().parents[2] / "docker" / "kubernetes.yaml"
NAMESPACE = "batch-jobs"
TAINTS = [{"key": labels.TAINT, "effect": effect} for effect in ("NoSchedule", "NoExecute")]
MANAGED = ComputeEnvironment(name="ce", arn="", uuid="uuid-ce", namespace=NAMESPACE)
UNMANAGED = ComputeEnvironment(
    name="own", arn="", uuid="uuid-own", managed=False, namespace=NAMESPACE
)


@contextmanager
def a_plane(directory: Path, **more: Any) -> Iterator[ControlPlane]:
    """A control plane in which the service is installed as people are told to."""
    with ControlPlane(directory, **more) as plane:
        plane.apply(MANIFEST)
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
        plane.wait_for("the service account of jobs", lambda: plane.admin.find(account))
        for path in (f"/api/v1/namespaces/{NAMESPACE}/pods", "/api/v1/nodes"):
            plane.wait_for(
                "the service's rights", lambda path=path: plane.may_get("eksbatch", path)
            )
        yield plane


@contextmanager
def service_for(kubeconfig: Path, home: Path, *options: str) -> Iterator[RunningService]:
    """`eksbatch serve` for that cluster. Whoever needs it starts it; it ends with the block."""
    cluster = ("--port", "0", "--cluster", "kubeconfig", "--kubeconfig", str(kubeconfig))
    service = RunningService(home, *cluster, *options, command="serve")
    try:
        yield service
    finally:
        service.end()


@asynccontextmanager
async def a_cluster(
    plane: ControlPlane,
    home: Path,
    *environments: ComputeEnvironment,
    troubles: list[str] | None = None,
) -> AsyncIterator[tuple[KubernetesCluster, Watch]]:
    """The adapter, watched; its environments have been checked and are usable."""
    heard = troubles if troubles is not None else []
    cluster = KubernetesCluster(
        Kubeconfig(str(plane.kubeconfig("eksbatch"))),
        home,
        tell_trouble=lambda trouble, _: heard.append(trouble),
    )
    await cluster.start()
    watch = Watch(cluster)
    try:
        for environment in environments or (MANAGED,):
            assert await cluster.check(environment) is None
        yield cluster, watch
    finally:
        await watch.close()
        await cluster.stop()


def add_nodes(
    nodes: FakeNodes, *names: str, environment: ComputeEnvironment = MANAGED, **more: Any
) -> None:
    """Fake nodes of a compute environment; of a managed one their node ids are their names."""
    given = {labels.ENVIRONMENT_UUID: environment.uuid}
    for name in names:
        own = {labels.NODE_UID: name} if environment.managed else {}
        taints = TAINTS if environment.managed else []
        nodes.add(eks_node(name, labels={**given, **own}, taints=taints, **more))


def a_pod(name: str, *, node: str, node_id: str | None = None, **properties: Any) -> CreatePod:
    """An effect as the engine makes it, for the environment `ce` unless said otherwise."""
    environment: ComputeEnvironment = properties.pop("environment", MANAGED)
    properties.setdefault("containers", [{"image": "busybox", "command": ["true"]}])
    return CreatePod(
        pod=PodName(name),
        compute_environment=environment.name,
        node_id=NodeId(node_id or node),
        node_name=node,
        namespace=NAMESPACE,
        pod_properties=json.dumps(properties).encode(),
        environment={"AWS_BATCH_JOB_ID": name},
        labels={labels.JOB_ID: name, labels.ENVIRONMENT_UUID: environment.uuid},
        grace_s=30,
    )


def a_fake_pod(name: str, *, node: str, lasts: str = "0s", exit_code: int = 0) -> CreatePod:
    """A pod on a fake node, which plays how long it lasts and how it ends."""
    notes = {"rig/lasts": lasts, "rig/exit-code": str(exit_code)}
    return a_pod(name, node=node, metadata={"annotations": notes})


def delete(name: str, grace_s: int = 30) -> DeletePod:
    return DeletePod(pod=PodName(name), compute_environment="ce", grace_s=grace_s)


def forget(name: str) -> ForgetPod:
    return ForgetPod(pod=PodName(name), compute_environment="ce")


async def forgotten(cluster: KubernetesCluster, name: str) -> None:
    """Forget it as the performer does: again, while the cluster is down for it."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await cluster.forget_pod(forget(name))
            except ClusterDown:
                await asyncio.sleep(0.05)


def path_of(name: str, namespace: str = NAMESPACE) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"
