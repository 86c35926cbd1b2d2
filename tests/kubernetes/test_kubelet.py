"""How pods end under a real kubelet, what is told of it, and what becomes of their output.

`GOLDEN=write` keeps each pod as the kubelet left it in tests/cluster/golden/pods, for tests that need no cluster.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_eksbatch.cluster.kube import conditions
from airflow_eksbatch.cluster.kubernetes import KubernetesCluster
from airflow_eksbatch.core.engine.facts import (
    NodeClosed,
    NodeLost,
    NodeReady,
    PodEnded,
    PodRefused,
    PodRunning,
    PodStuck,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.retry import POD_DELETED, TIMED_OUT, Cause
from tests.contracts.test_cluster import BUSYBOX, WAIT_S, Watch, asynchronous
from tests.kubernetes.bed import (
    MANAGED,
    TAINTS,
    a_cluster,
    a_plane,
    a_pod,
    delete,
    forgotten,
    path_of,
)
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.images import NO_SUCH_USER
from tests.kubernetes.rig.network import Network
from tests.kubernetes.rig.real_node import RealNode

GOLDEN = Path(__file__).resolve().parents[1] / "cluster" / "golden" / "pods"
NODE = "real-1"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane"), address=network.address) as plane:
        yield plane


def join(plane: ControlPlane, network: Network, name: str, **more: Any) -> RealNode:
    node = RealNode(plane, network, name, taints=TAINTS, **more)
    given = {labels.ENVIRONMENT_UUID: MANAGED.uuid, labels.NODE_UID: name}
    plane.admin.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": given}})
    return node


@pytest.fixture(scope="module")
def node(plane: ControlPlane, network: Network) -> Iterator[RealNode]:
    with join(plane, network, NODE) as node:
        yield node


@asynccontextmanager
async def on(plane: ControlPlane, home: Path) -> AsyncIterator[tuple[KubernetesCluster, Watch]]:
    """The adapter once it counts the node of all tests."""
    async with a_cluster(plane, home) as (cluster, watch):
        await watch.until(NodeReady)
        yield cluster, watch


def keep_golden(plane: ControlPlane, name: str) -> None:
    """The pod as it is, without what differs from run to run and says nothing."""
    if os.environ.get("GOLDEN") != "write":
        return
    pod = plane.admin.find(path_of(name))
    assert pod is not None, f"{name} is gone already"
    pod["metadata"].pop("managedFields", None)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    text = json.dumps(pod, indent=1).replace(str(plane.directory), "/var/lib")
    (GOLDEN / f"{name.removesuffix('-0-1')}.json").write_text(text + "\n")


@contextmanager
def held(plane: ControlPlane, name: str) -> Iterator[None]:
    """The pod stays to be looked at when it has been deleted."""
    plane.admin.patch(path_of(name), {"metadata": {"finalizers": ["eksbatch.test/held"]}})
    try:
        yield
    finally:
        plane.admin.patch(path_of(name), {"metadata": {"finalizers": []}})


def shell(script: str, **more: Any) -> Json:
    return {"image": BUSYBOX, "command": ["sh", "-c", script], **more}


def limited(memory: str) -> Json:
    return {"limits": {"cpu": "1", "memory": memory}}


# Ends when it is told to, which the first process of a container otherwise would not.
ENDLESS = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; echo up; while :; do sleep 0.05; done"
ENDS: dict[str, tuple[Json, int | None, str]] = {
    "exit-3": ({"containers": [shell("exit 3")]}, 3, "Error"),
    "segv": ({"containers": [shell("sh -c 'kill -SEGV $$$$'; exit $?")]}, 139, "Error"),
    "oom": (
        {"containers": [shell("x=a; while :; do x=$x$x; done", resources=limited("24Mi"))]},
        137,
        "OOMKilled",
    ),
    "no-program": ({"containers": [{"image": BUSYBOX, "command": ["nope"]}]}, 128, "StartError: "),
    "init-fails": (
        {
            "initContainers": [shell("exit 5", name="first"), shell("true", name="second")],
            "containers": [shell("true")],
        },
        5,
        "Error",
    ),
    "one-of-two": (
        {"containers": [shell("exit 0", name="a"), shell("exit 8", name="b")]},
        8,
        "Error",
    ),
    "own-disk": (
        {
            "containers": [
                shell(
                    "dd if=/dev/zero of=/scratch/full bs=1M count=4; sleep 1000",
                    volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}],
                )
            ],
            "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}],
        },
        137,
        'Evicted: Usage of EmptyDir volume "scratch" exceeds the limit',
    ),
}


@pytest.mark.parametrize("name", ENDS)
@asynchronous
async def test_how_containers_end(
    plane: ControlPlane, node: RealNode, tmp_path: Path, name: str
) -> None:
    properties, code, reason = ENDS[name]
    pod = f"{name}-0-1"
    async with on(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_pod(pod, node=NODE, **properties))
        end = (await watch.until(PodEnded, pod)).end
        keep_golden(plane, pod)
        assert (end.cause, end.exit_code) == (Cause.EXITED, code)
        assert (end.reason or "").startswith(reason)
        await forgotten(cluster, pod)


REFUSED = {
    "out-of-cpu": ({"requests": {"cpu": "1000", "memory": "8Mi"}}, "OutOfcpu"),
    "out-of-memory": ({"requests": {"cpu": "1", "memory": "9000000Mi"}}, "OutOfmemory"),
}


@pytest.mark.parametrize("name", REFUSED)
@asynchronous
async def test_a_pod_that_the_kubelet_does_not_admit_is_refused_and_not_failed(
    plane: ControlPlane, node: RealNode, tmp_path: Path, name: str
) -> None:
    resources, reason = REFUSED[name]
    pod = f"{name}-0-1"
    async with on(plane, tmp_path) as (cluster, watch):
        container = shell("true", resources=resources)
        await cluster.create_pod(a_pod(pod, node=NODE, containers=[container]))
        refused = await watch.until(PodRefused, pod)
        keep_golden(plane, pod)
        assert not refused.permanent
        assert refused.reason.startswith(f"{reason}: ")
        await forgotten(cluster, pod)
        async with asyncio.timeout(WAIT_S):
            while plane.admin.find(path_of(pod)):
                await asyncio.sleep(0.05)


STUCK: dict[str, tuple[Json, str]] = {
    "no-image": ({"image": "eksbatch.test/nothing:1"}, "ErrImagePull"),
    "bad-image": ({"image": "Not An Image"}, "InvalidImageName"),
    "never-pulled": (
        {"image": "eksbatch.test/nothing:1", "imagePullPolicy": "Never"},
        "ErrImageNeverPull",
    ),
    "not-as-root": (
        {"image": BUSYBOX, "securityContext": {"runAsNonRoot": True}},
        "CreateContainerConfigError",
    ),
    "no-such-user": ({"image": NO_SUCH_USER}, "CreateContainerError"),
}


@pytest.mark.parametrize("name", STUCK)
@asynchronous
async def test_a_container_that_cannot_start_is_told_and_can_be_ended(
    plane: ControlPlane,
    node: RealNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(conditions, "SLOW_STARTS_S", dict.fromkeys(conditions.SLOW_STARTS_S, 0))
    container, reason = STUCK[name]
    pod = f"{name}-0-1"
    async with on(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_pod(pod, node=NODE, containers=[container]))
        stuck = await watch.until(PodStuck, pod)
        keep_golden(plane, pod)
        assert stuck.reason.partition(":")[0] in (reason, "ImagePullBackOff")
        await cluster.delete_pod(delete(pod, grace_s=1))
        assert not (await watch.until(PodEnded, pod)).end.succeeded
        assert watch.kinds(pod) == ["PodSeen", "PodStuck", "PodEnded"]


@asynchronous
async def test_a_container_that_does_not_listen_is_killed_after_its_grace(
    plane: ControlPlane, node: RealNode, tmp_path: Path
) -> None:
    async with on(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_pod("deaf-0-1", node=NODE, containers=[shell(DEAF)]))
        await watch.until(PodRunning, "deaf-0-1")
        await cluster.delete_pod(delete("deaf-0-1", grace_s=1))
        end = (await watch.until(PodEnded, "deaf-0-1")).end
        assert (end.cause, end.exit_code) == (Cause.EXITED, 137)


@asynchronous
async def test_of_all_graces_the_shortest_is_what_the_kubelet_is_told(
    plane: ControlPlane, node: RealNode, tmp_path: Path
) -> None:
    """What it makes of one that is shortened while it ends a container is its own."""
    async with on(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_pod("hasty-0-1", node=NODE, containers=[shell(DEAF)]))
        await watch.until(PodRunning, "hasty-0-1")
        for grace_s in (3600, 1, 3600):
            await cluster.delete_pod(delete("hasty-0-1", grace_s=grace_s))
        asked = plane.admin.get(path_of("hasty-0-1"))["metadata"]["deletionGracePeriodSeconds"]
        assert asked == 1
        plane.admin.delete(path_of("hasty-0-1"), gracePeriodSeconds="0")
        await watch.until(PodEnded, "hasty-0-1")


def evict(plane: ControlPlane, pod: str) -> None:
    """As `kubectl drain` does."""
    namespace, name = path_of(pod).split("/")[-3::2]
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    }
    plane.admin.create(f"{path_of(pod)}/eviction", body)


OTHERS: dict[str, tuple[Callable[[ControlPlane, str], object], Cause, str]] = {
    "deleted": (
        lambda plane, pod: plane.admin.delete(path_of(pod)),
        Cause.PLATFORM,
        POD_DELETED,
    ),
    "drained": (evict, Cause.PLATFORM, "Pod was disrupted: EvictionByEvictionAPI: "),
    "deadline": (
        lambda plane, pod: plane.admin.patch(path_of(pod), {"spec": {"activeDeadlineSeconds": 1}}),
        Cause.TIMEOUT,
        TIMED_OUT,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@asynchronous
async def test_what_others_do_to_a_running_pod_is_not_its_end_and_its_last_words_are_kept(
    plane: ControlPlane, node: RealNode, tmp_path: Path, name: str
) -> None:
    """It ends politely, with 0, but has not done its work."""
    act, cause, reason = OTHERS[name]
    pod = f"{name}-0-1"
    async with on(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_pod(pod, node=NODE, containers=[shell(ENDLESS)]))
        await said(cluster, pod, b"up\n")
        with held(plane, pod):
            act(plane, pod)
            end = (await watch.until(PodEnded, pod)).end
            keep_golden(plane, pod)
        assert end.cause is cause
        assert end.status_reason.startswith(reason)
        await forgotten(cluster, pod)
        assert await output(cluster, pod) == b"up\nbye\n"


@asynchronous
async def test_a_pod_that_ends_for_its_nodes_sake_was_disrupted(
    plane: ControlPlane, node: RealNode, tmp_path: Path
) -> None:
    """The kubelet finds that the machine has too little memory for anybody. (Of a program that ends
    with 0 when it is evicted, the kubelet says that it has succeeded, and nothing else.)"""
    pod, script = "evicted-0-1", "trap 'exit 143' TERM; echo up; while :; do sleep 0.05; done"
    async with on(plane, tmp_path) as (cluster, watch):
        # One that asked for nothing would not be let in again by a kubelet that begins again.
        container = shell(script, resources=limited("24Mi"))
        await cluster.create_pod(a_pod(pod, node=NODE, containers=[container]))
        await said(cluster, pod, b"up\n")
        full = {"memory.available": "99%"}
        await asyncio.to_thread(node.reconfigure_kubelet, evictionHard=full)
        try:
            end = (await watch.until(PodEnded, pod)).end
            keep_golden(plane, pod)
            async with asyncio.timeout(WAIT_S):
                while not any(
                    isinstance(f, NodeClosed) and "MemoryPressure" in (f.reason or "")
                    for f in watch.facts
                ):
                    await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(node.reconfigure_kubelet)
        assert end.cause is Cause.PLATFORM
        assert end.status_reason.startswith("Pod was disrupted: Evicted: The node was low on")
        await forgotten(cluster, pod)


# ---- output


@asynchronous
async def test_binary_and_long_output_is_kept_as_it_was(
    plane: ControlPlane, node: RealNode, tmp_path: Path
) -> None:
    """Two million bytes of all kinds, ended by a line, so that the kubelet has it all."""
    script = (
        "i=0; while [ $i -lt 20000 ]; do printf '\\000\\377\\200%097d' $i; i=$((i+1)); done; echo"
    )
    async with on(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_pod("binary-0-1", node=NODE, containers=[shell(script)]))
        await watch.until(PodEnded, "binary-0-1")
        await forgotten(cluster, "binary-0-1")
        kept = await output(cluster, "binary-0-1")
    expected = b"".join(b"\0\xff\x80%097d" % number for number in range(20_000)) + b"\n"
    assert kept == expected


@asynchronous
async def test_a_pod_without_a_word_has_an_empty_output(
    plane: ControlPlane, node: RealNode, tmp_path: Path
) -> None:
    async with on(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_pod("silent-0-1", node=NODE, containers=[shell("true")]))
        await watch.until(PodEnded, "silent-0-1")
        await forgotten(cluster, "silent-0-1")
        assert await output(cluster, "silent-0-1") == b""


@asynchronous
async def test_output_is_whole_for_whoever_reads_it_while_it_is_put_away(
    plane: ControlPlane, node: RealNode, tmp_path: Path
) -> None:
    """As Airflow does when a job has ended: in the moment in which its pod is forgotten."""
    pods = [f"parting-0-{number}" for number in range(1, 9)]
    async with on(plane, tmp_path) as (cluster, watch):
        for pod in pods:
            await cluster.create_pod(a_pod(pod, node=NODE, containers=[shell("echo words")]))
        for pod in pods:
            await watch.until(PodEnded, pod)
        # Some ask a moment before, some a moment after.
        reads = [asyncio.create_task(output(cluster, pod)) for pod in pods[::2]]
        forgets = [asyncio.create_task(forgotten(cluster, pod)) for pod in pods]
        reads += [asyncio.create_task(output(cluster, pod)) for pod in pods[1::2]]
        await asyncio.gather(*forgets)
        assert await asyncio.gather(*reads) == [b"words\n"] * len(pods)


@asynchronous
async def test_a_log_outlives_its_node_and_a_killed_machine_is_lost(
    plane: ControlPlane, node: RealNode, network: Network, tmp_path: Path
) -> None:
    """1. one pod ends and is forgotten, one is read while it runs, one finds the machine full; 2. the
    machine dies; 3. both outputs are there."""
    with join(plane, network, "mortal", max_pods=1) as mortal:
        async with a_cluster(plane, tmp_path) as (cluster, watch):
            async with asyncio.timeout(WAIT_S):
                while not any(
                    isinstance(f, NodeReady) and f.node_id == "mortal" for f in watch.facts
                ):
                    await asyncio.sleep(0.05)
            await cluster.create_pod(
                a_pod("ended-0-1", node="mortal", containers=[shell("echo a")])
            )
            await watch.until(PodEnded, "ended-0-1")
            await forgotten(cluster, "ended-0-1")
            for pod in ("node-lost-0-1", "out-of-pods-0-1"):
                await cluster.create_pod(a_pod(pod, node="mortal", containers=[shell(ENDLESS)]))
            assert (await watch.until(PodRefused, "out-of-pods-0-1")).reason.startswith("OutOfpods")
            keep_golden(plane, "out-of-pods-0-1")
            await said(cluster, "node-lost-0-1", b"up\n")
            with held(plane, "node-lost-0-1"):
                await asyncio.to_thread(mortal.kill)
                # The machine is gone, and so says its cloud: the node object goes.
                plane.admin.delete("/api/v1/nodes/mortal")
                assert (await watch.until(NodeLost)).node_id == "mortal"
                # Kubernetes waits for 40 s and looks every 20 s for what was on it.
                end = (await watch.until(PodEnded, "node-lost-0-1", within_s=180)).end
                keep_golden(plane, "node-lost-0-1")
            assert end.cause is Cause.PLATFORM
            assert end.status_reason.startswith("Host EC2 (instance ")
            await forgotten(cluster, "node-lost-0-1")
            assert await output(cluster, "ended-0-1") == b"a\n"
            assert await output(cluster, "node-lost-0-1") == b"up\n"


async def output(cluster: KubernetesCluster, pod: str) -> bytes:
    part = await cluster.read_log(PodName(pod), 0, 10_000_000)
    assert part is not None
    return part[0]


async def said(cluster: KubernetesCluster, pod: str, text: bytes) -> None:
    """Until its output holds this."""
    async with asyncio.timeout(WAIT_S):
        while text not in await output(cluster, pod):
            await asyncio.sleep(0.05)
