"""The adapter on a real API server with fake nodes: what it reads of a cluster and what it does there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.cluster.kube import connection, site
from airflow_eksbatch.cluster.kubernetes import KubernetesCluster
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.engine.facts import (
    Fact,
    NodeClosed,
    NodeFound,
    NodeLost,
    NodeReady,
    PodEnded,
    PodRefused,
    PodRunning,
    PodSeen,
    PodsListed,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import Cause
from tests.contracts.test_cluster import WAIT_S, Watch, asynchronous
from tests.kubernetes.bed import (
    MANAGED,
    UNMANAGED,
    a_cluster,
    a_fake_pod,
    a_plane,
    a_pod,
    add_nodes,
    delete,
    forget,
    forgotten,
    path_of,
)
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes

# What an m6i.large has for pods, as the kubelet says.
LARGE = Resources(cpu_m=1930, memory_mib=7074, pods=29)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane"), audited=True, with_scheduler=True) as plane:
        yield plane


@pytest.fixture(scope="module")
def nodes(plane: ControlPlane) -> FakeNodes:
    nodes = FakeNodes(plane)
    add_nodes(nodes, "node-1")
    return nodes


@asynccontextmanager
async def on_node_1(
    plane: ControlPlane, home: Path
) -> AsyncIterator[tuple[KubernetesCluster, Watch]]:
    """The adapter once it counts the node of all tests."""
    async with a_cluster(plane, home) as (cluster, watch):
        await until(watch, lambda fact: isinstance(fact, NodeReady) and fact.node_id == "node-1")
        yield cluster, watch


async def until(watch: Watch, holds: Callable[[Fact], bool]) -> Fact:
    """The first fact of which that holds."""

    async def found() -> Fact:
        while True:
            for fact in watch.facts:
                if holds(fact):
                    return fact
            await asyncio.sleep(0.02)

    try:
        return await asyncio.wait_for(found(), WAIT_S)
    except TimeoutError:
        told = "\n".join(map(repr, watch.facts))
        raise AssertionError(f"not among what was told:\n{told}") from None


# ---- pods


@asynchronous
async def test_a_pod_is_created_on_its_node_runs_ends_and_is_dropped(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        assert await cluster.create_pod(a_fake_pod("life-0-1", node="node-1", exit_code=3)) is None
        ended = await watch.until(PodEnded, "life-0-1")
        assert watch.kinds("life-0-1") == ["PodSeen", "PodRunning", "PodEnded"]
        assert (ended.end.cause, ended.end.exit_code) == (Cause.EXITED, 3)
        made = plane.admin.get(path_of("life-0-1"))
        assert made["spec"]["nodeName"] == "node-1"
        assert made["metadata"]["labels"][labels.MANAGED_BY] == labels.OURS
        await forgotten(cluster, "life-0-1")
        assert plane.admin.find(path_of("life-0-1")) is None
        # The fake node's kubelet has no output: people are told so.
        kept = await cluster.read_log(PodName("life-0-1"), 0, 1000)
        assert kept is not None
        assert kept[0].startswith(b"eksbatch: the output of life-0-1 on node-1 is lost: ")


@asynchronous
async def test_a_pod_costs_two_writes_over_its_life(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    names = [f"cost-{number}-1" for number in range(10)]
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        await asyncio.gather(
            *(cluster.create_pod(a_fake_pod(name, node="node-1")) for name in names)
        )
        for name in names:
            await watch.until(PodEnded, name)
            await forgotten(cluster, name)
    # The audit log has a request some moments after its answer.
    plane.wait_for("the deletions to be on record", lambda: len(writes(plane, "cost-")) >= 20)
    assert sorted(writes(plane, "cost-")) == ["create"] * 10 + ["delete"] * 10


def writes(plane: ControlPlane, names: str) -> list[str]:
    """What the service did with pods whose names begin so."""
    return [
        request["verb"]
        for request in plane.requests()
        if request["user"]["username"] == "system:serviceaccount:eksbatch:eksbatch"
        and request.get("objectRef", {}).get("resource") == "pods"
        and (names in request["requestURI"] or names in request["objectRef"].get("name", ""))
        and request["verb"] not in ("get", "list", "watch")
    ]


@asynchronous
async def test_creating_a_pod_again_is_harmless_whoever_does_it(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    effect = a_fake_pod("again-0-1", node="node-1", lasts="1h")
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        answers = await asyncio.gather(*(cluster.create_pod(effect) for _ in range(5)))
        assert answers == [None] * 5
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        assert await cluster.create_pod(effect) is None
        await watch.until(PodRunning, "again-0-1")
        await cluster.delete_pod(delete("again-0-1"))
        await watch.until(PodEnded, "again-0-1")


@asynchronous
async def test_a_name_that_somebody_else_has_taken_is_refused(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    namespace = "taken"
    plane.create_namespace(namespace)
    bind(plane, namespace)
    spec = {"containers": [{"name": "a", "image": "b"}]}
    metadata = {"name": "taken-0-1", "namespace": namespace}
    plane.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    async with on_node_1(plane, tmp_path) as (cluster, _):
        effect = a_pod("taken-0-1", node="node-1", metadata={"namespace": namespace})
        refused = await cluster.create_pod(effect)
        async with asyncio.timeout(WAIT_S):
            # New rights take a moment to be known.
            while isinstance(refused, PodRefused) and "cannot create resource" in refused.reason:
                await asyncio.sleep(0.05)
                refused = await cluster.create_pod(effect)
        assert isinstance(refused, PodRefused)
        assert not refused.permanent
        assert "is not ours" in refused.reason


@asynchronous
async def test_a_namespace_that_takes_no_pods_lets_jobs_wait_and_says_why(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. we have no rights in it, and not only for a moment; 2. it is being deleted; 3. it is gone."""
    monkeypatch.setattr(site, "RIGHTS_S_MAX", 0.2)
    namespace = "going"
    environment = msgspec.structs.replace(MANAGED, namespace=namespace)
    plane.create_namespace(namespace)
    names = iter(range(1000))

    async def refused(
        cluster: KubernetesCluster, words: str, **properties: Any
    ) -> tuple[PodRefused, str | None]:
        """With these words, which take a moment to be known everywhere; and what a check says then."""
        async with asyncio.timeout(WAIT_S):
            while True:
                pod = a_pod(f"going-0-{next(names)}", node="node-1", **properties)
                if not properties:
                    pod = msgspec.structs.replace(pod, namespace=namespace)
                with suppress(ClusterDown):
                    answer = await cluster.create_pod(pod)
                    if isinstance(answer, PodRefused) and words in answer.reason:
                        return answer, await cluster.check(environment)
                await asyncio.sleep(0.05)

    async with on_node_1(plane, tmp_path) as (cluster, _):
        pod = msgspec.structs.replace(a_pod("going-0-1000", node="node-1"), namespace=namespace)
        with pytest.raises(ClusterDown, match="cannot create resource"):
            await cluster.create_pod(pod)
        answer, trouble = await refused(cluster, "cannot create resource")
        assert (answer.quota, answer.unusable, answer.permanent) == (True, True, False)
        assert "this service may not create pods in it" in (trouble or "")

        # What has a finalizer stays, and with it our rights and the namespace.
        bind(plane, namespace, finalizers=["eksbatch.test/keep"])
        plane.wait_for(
            "rights",
            lambda: plane.may_get("eksbatch", f"/api/v1/namespaces/{namespace}/pods"),
        )
        assert await cluster.check(environment) is None
        plane.admin.delete(f"/api/v1/namespaces/{namespace}")
        answer, trouble = await refused(cluster, "is being terminated")
        assert (answer.quota, answer.unusable, answer.permanent) == (True, True, False)
        # The same for every pod that waits.
        assert "going-0-" not in answer.reason
        assert (trouble or "").endswith("Namespace going: it is being deleted")
        own = {"namespace": namespace}
        answer, _ = await refused(cluster, "is being terminated", metadata=own)
        assert (answer.quota, answer.permanent) == (False, True)

    binding = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings/eksbatch"
    plane.admin.patch(binding, {"metadata": {"finalizers": None}})
    path = f"/api/v1/namespaces/{namespace}"
    plane.wait_for("the namespace to be gone", lambda: plane.admin.find(path) is None)
    async with a_cluster_at(plane.kubeconfig(), tmp_path) as (cluster, watch):
        assert await cluster.check(MANAGED) is None
        await until(watch, lambda fact: isinstance(fact, NodeReady) and fact.node_id == "node-1")
        answer, trouble = await refused(cluster, 'namespaces "going" not found')
        assert (answer.quota, answer.unusable, answer.permanent) == (True, True, False)
        assert 'namespaces "going" not found' in (trouble or "")


def bind(plane: ControlPlane, namespace: str, **metadata: Any) -> None:
    """Give the service rights in a namespace."""
    rights = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding"}
    account = {"kind": "ServiceAccount", "name": "eksbatch", "namespace": "eksbatch"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}
    named = {"name": "eksbatch", "namespace": namespace, **metadata}
    plane.apply({**rights, "metadata": named, "roleRef": role, "subjects": [account]})


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"containers": []}, "no containers"),
        ({"containers": [{"image": "busybox", "name": "No_Name"}]}, "No_Name"),
        ({"serviceAccountName": "nobody"}, "nobody"),
        ({"metadata": {"namespace": "not-there"}}, "not-there"),
        ({"metadata": {"labels": {"team": "a b"}}}, "a b"),
    ],
    ids=["containers", "name", "account", "namespace", "label"],
)
@asynchronous
async def test_a_pod_that_can_never_be_is_refused_for_good(
    plane: ControlPlane,
    nodes: FakeNodes,
    tmp_path: Path,
    properties: dict[str, Any],
    sentence: str,
) -> None:
    async with on_node_1(plane, tmp_path) as (cluster, _):
        refused = await cluster.create_pod(a_pod("never-0-1", node="node-1", **properties))
        assert isinstance(refused, PodRefused)
        assert refused.permanent
        assert sentence in refused.reason


@asynchronous
async def test_a_pod_for_a_node_that_is_not_there_is_refused(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    async with on_node_1(plane, tmp_path) as (cluster, _):
        for node, node_id in (("gone", "gone"), ("node-1", "another")):
            refused = await cluster.create_pod(a_pod("nowhere-0-1", node=node, node_id=node_id))
            assert isinstance(refused, PodRefused)
            assert not refused.permanent
            assert node_id in refused.reason


@asynchronous
async def test_a_pod_that_somebody_else_deletes_ends_at_the_platforms_cost(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_fake_pod("stolen-0-1", node="node-1", lasts="1h"))
        await watch.until(PodRunning, "stolen-0-1")
        plane.admin.delete(path_of("stolen-0-1"))
        end = (await watch.until(PodEnded, "stolen-0-1")).end
        assert (end.cause, end.status_reason) == (
            Cause.PLATFORM,
            "Pod was deleted by somebody else",
        )


@asynchronous
async def test_deleting_and_forgetting_what_is_not_there_is_harmless(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        assert isinstance(await cluster.delete_pod(delete("nobody-0-1")), PodEnded)
        await cluster.forget_pod(forget("nobody-0-1"))
        await cluster.create_pod(a_fake_pod("done-0-1", node="node-1", exit_code=4))
        await watch.until(PodEnded, "done-0-1")
        ended = await cluster.delete_pod(delete("done-0-1"))
        assert isinstance(ended, PodEnded)
        assert ended.end.exit_code == 4
        await forgotten(cluster, "done-0-1")
        await cluster.forget_pod(forget("done-0-1"))


@asynchronous
async def test_a_service_that_starts_again_finds_everything(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    """1. one pod runs, one ends; 2. the service stops; 3. another pod is deleted; 4. the next one tells it all."""
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        await cluster.create_pod(a_fake_pod("lives-0-1", node="node-1", lasts="1h"))
        await cluster.create_pod(a_fake_pod("ended-0-1", node="node-1", exit_code=2))
        await watch.until(PodRunning, "lives-0-1")
        await watch.until(PodEnded, "ended-0-1")
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        assert (await watch.until(PodEnded, "ended-0-1")).end.exit_code == 2
        await watch.until(PodRunning, "lives-0-1")
        listed = await watch.until(PodsListed)
        assert {"lives-0-1", "ended-0-1"} <= listed.pods
        second = Watch(cluster)
        await second.until(PodRunning, "lives-0-1")
        assert (await second.until(PodEnded, "ended-0-1")).end.exit_code == 2
        await second.until(NodeReady)
        await second.close()
        await forgotten(cluster, "ended-0-1")
        await cluster.delete_pod(delete("lives-0-1"))
        await watch.until(PodEnded, "lives-0-1")


# ---- nodes


@asynchronous
async def test_a_node_counts_when_its_daemon_sets_run_and_has_the_room_they_leave(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    """1. a DaemonSet tolerates our taint; 2. a node joins and counts with what is left; 3. the DaemonSet goes."""
    amounts = {"cpu": "150m", "memory": "100Mi"}
    daemons = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "agent", "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {
                "metadata": {"labels": {"app": "agent"}},
                "spec": {
                    "nodeSelector": {"agent": "yes"},
                    "tolerations": [{"key": labels.TAINT, "operator": "Exists"}],
                    "containers": [
                        {"name": "agent", "image": "agent", "resources": {"requests": amounts}}
                    ],
                },
            },
        },
    }
    plane.apply(daemons)
    environment = msgspec.structs.replace(MANAGED, name="daemons", uuid="uuid-daemons")
    add_nodes(nodes, "with-agent", environment=environment)
    plane.admin.patch("/api/v1/nodes/with-agent", {"metadata": {"labels": {"agent": "yes"}}})
    less = LARGE.minus(Resources(cpu_m=150, memory_mib=100, pods=1))

    async with a_cluster(plane, tmp_path, environment) as (_, watch):
        await until(watch, lambda fact: isinstance(fact, NodeReady) and fact.allocatable == less)
        plane.admin.delete(plane.admin.path_of(daemons), propagationPolicy="Foreground")
        await until(watch, lambda fact: isinstance(fact, NodeReady) and fact.allocatable == LARGE)
    nodes.remove("with-agent")


@asynchronous
async def test_a_cordoned_node_is_closed_and_a_deleted_one_is_lost(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    add_nodes(nodes, "short")
    async with on_node_1(plane, tmp_path) as (cluster, watch):
        await until(watch, lambda fact: isinstance(fact, NodeReady) and fact.node_id == "short")
        await cluster.create_pod(a_fake_pod("short-0-1", node="short", lasts="1h"))
        await watch.until(PodRunning, "short-0-1")
        for cordoned, reason in ((True, "cordoned"), (False, None)):
            known = len(watch.facts)
            plane.admin.patch("/api/v1/nodes/short", {"spec": {"unschedulable": cordoned}})
            await until(
                watch,
                lambda fact, reason=reason, known=known: (
                    isinstance(fact, NodeClosed)
                    and fact in watch.facts[known:]
                    and (fact.node_id, fact.reason) == ("short", reason)
                ),
            )
        instance = plane.admin.get("/api/v1/nodes/short")["spec"]["providerID"].rpartition("/")[2]
        nodes.remove("short")
        assert (await watch.until(NodeLost)).node_id == "short"
        # Nobody could tell the pod to stop: it goes at once, and with its machine.
        await cluster.delete_pod(delete("short-0-1"))
        end = (await watch.until(PodEnded, "short-0-1")).end
        assert end.cause is Cause.PLATFORM
        assert end.status_reason in (
            f"Host EC2 (instance {instance}) terminated.",
            "Host EC2 (instance short) terminated.",
        )


@asynchronous
async def test_nodes_of_others_are_found_by_their_label_and_let_go_when_it_is_taken_away(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    add_nodes(nodes, "rack-1", environment=UNMANAGED)
    async with a_cluster(plane, tmp_path, UNMANAGED) as (cluster, watch):
        found = await watch.until(NodeFound)
        assert (found.node_name, found.compute_environment) == ("rack-1", "own")
        assert found.node_id == plane.admin.get("/api/v1/nodes/rack-1")["metadata"]["uid"]
        effect = a_pod(
            "rack-0-1",
            node="rack-1",
            node_id=found.node_id,
            environment=UNMANAGED,
            metadata={"annotations": {"rig/lasts": "1h"}},
        )
        await cluster.create_pod(effect)
        await watch.until(PodRunning, "rack-0-1")
        no_label = {"metadata": {"labels": {labels.ENVIRONMENT_UUID: None}}}
        plane.admin.patch("/api/v1/nodes/rack-1", no_label)
        await until(
            watch,
            lambda fact: isinstance(fact, NodeClosed) and fact.reason == "its label was taken away",
        )
        await cluster.delete_pod(
            msgspec.structs.replace(delete("rack-0-1"), compute_environment="")
        )
        await watch.until(PodEnded, "rack-0-1")
        await watch.until(NodeLost)
    nodes.remove("rack-1")


# ---- environments and clusters


@asynchronous
async def test_many_environments_of_a_cluster_share_its_watches(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    before = len(watches(plane))
    many = [msgspec.structs.replace(MANAGED, name=f"e{n}", uuid=f"uuid-{n}") for n in range(5)]
    async with a_cluster(plane, tmp_path, *many) as (_, watch):
        await until(
            watch,
            lambda fact: isinstance(fact, PodsListed) and fact.compute_environment == "e4",
        )
        async with asyncio.timeout(WAIT_S):
            # Nodes, DaemonSets, pods beside and ours.
            while len(watches(plane)) < before + 4:
                await asyncio.sleep(0.05)
    assert len(watches(plane)) == before + 4


def watches(plane: ControlPlane) -> list[dict[str, Any]]:
    """Those that the service began; their ends come at any time, also of earlier tests' watches."""
    return [
        request
        for request in plane.requests()
        if (request["verb"], request["stage"]) == ("watch", "ResponseStarted")
        and request["user"]["username"] == "system:serviceaccount:eksbatch:eksbatch"
    ]


@asynchronous
async def test_an_environment_that_cannot_be_used_says_why(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    plane.create_namespace("no-rights")

    def in_namespace(namespace: str) -> ComputeEnvironment:
        return msgspec.structs.replace(MANAGED, namespace=namespace)

    async with a_cluster(plane, tmp_path) as (cluster, _):
        missing = await cluster.check(in_namespace("not-there"))
        assert missing is not None
        assert missing.startswith("Unable to validate Kubernetes Namespace not-there: ")
        no_rights = await cluster.check(in_namespace("no-rights"))
        assert no_rights is not None
        assert "this service may not create pods in it" in no_rights
        assert await cluster.check(MANAGED) is None


@asynchronous
async def test_in_a_cluster_the_service_account_is_enough_and_its_token_may_change(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. the token is of yesterday: the API server says no; 2. the kubelet writes a new one; 3. it is used."""
    monkeypatch.setattr(connection, "REAUTHENTICATE_S", 0.0)
    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_bytes(plane.identities.certificate.read_bytes())
    (account / "token").write_text("of yesterday")
    host, _, port = plane.url.removeprefix("https://").partition(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    cluster = KubernetesCluster(connection.InCluster(account, environ), tmp_path)
    await cluster.start()
    try:
        assert "Unauthorized" in (await cluster.check(MANAGED) or "")
        path = "/api/v1/namespaces/eksbatch/serviceaccounts/eksbatch/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        (account / "token").write_text(plane.admin.create(path, request)["status"]["token"])
        assert await cluster.check(MANAGED) is None
    finally:
        await cluster.stop()


@asynchronous
async def test_each_environment_has_its_pods_in_the_cluster_that_it_names(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    """Two real clusters in one kubeconfig, one adapter."""
    with a_plane(tmp_path / "other") as other:
        add_nodes(FakeNodes(other), "far-1", environment=FAR)
        file = tmp_path / "both"
        file.write_bytes(msgspec.json.encode(both(plane, other)))
        async with a_cluster_at(file, tmp_path) as (cluster, watch):
            assert await cluster.check(MANAGED) is None
            assert await cluster.check(FAR) is None
            ready = [await until(watch, is_ready(name)) for name in ("node-1", "far-1")]
            assert len(ready) == 2
            await cluster.create_pod(a_fake_pod("near-0-1", node="node-1"))
            far = a_pod("far-0-1", node="far-1", environment=FAR)
            await cluster.create_pod(far)
            await watch.until(PodEnded, "near-0-1")
            await watch.until(PodSeen, "far-0-1")
            assert plane.admin.find(path_of("far-0-1")) is None
            assert other.admin.find(path_of("near-0-1")) is None
            assert other.admin.find(path_of("far-0-1")) is not None


FAR = msgspec.structs.replace(
    MANAGED, name="far", uuid="uuid-far", cluster_arn="arn:aws:eks:eu-west-1:1:cluster/far"
)


def is_ready(name: str) -> Callable[[Fact], bool]:
    return lambda fact: isinstance(fact, NodeReady) and fact.node_name == name


def both(plane: ControlPlane, other: ControlPlane) -> dict[str, Any]:
    """A kubeconfig with both clusters; the other one is named `far`."""
    clusters = {"near": plane, "far": other}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "near",
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": name}} for name in clusters
        ],
        "clusters": [
            {
                "name": name,
                "cluster": {
                    "server": one.url,
                    "certificate-authority": str(one.identities.certificate),
                },
            }
            for name, one in clusters.items()
        ],
        "users": [
            {"name": name, "user": {"token": one.identities.tokens["eksbatch"]}}
            for name, one in clusters.items()
        ],
    }


@asynccontextmanager
async def a_cluster_at(file: Path, home: Path) -> AsyncIterator[tuple[KubernetesCluster, Watch]]:
    cluster = KubernetesCluster(connection.Kubeconfig(str(file)), home)
    await cluster.start()
    watch = Watch(cluster)
    try:
        yield cluster, watch
    finally:
        await watch.close()
        await cluster.stop()
