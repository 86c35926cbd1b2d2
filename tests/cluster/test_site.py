"""One cluster's watches and books put together, against an API server that only this file plays."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from airflow_eksbatch.cluster.kube.connection import ApiError, Connection
from airflow_eksbatch.cluster.kube.objects import KubeNode
from airflow_eksbatch.cluster.kube.site import OURS, Site
from airflow_eksbatch.cluster.outputs import OutputFiles
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.engine.facts import (
    NodeClosed,
    NodeFound,
    NodesListed,
    PodEnded,
    PodRefused,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from tests.cloud.watching import Watch
from tests.cluster.objects import UNMANAGED, a_container, own_node

Wire = dict[str, Any]
NODE = NodeId("uid-ip-1")


class Server:
    """Lists, watches, and what a write is answered; in the place of a Connection."""

    name, ahead_ms = "played", 0

    def __init__(self) -> None:
        self.lists: defaultdict[str, list[Wire]] = defaultdict(list)
        self.events: defaultdict[str, asyncio.Queue[bytes]] = defaultdict(asyncio.Queue)
        self.nodes: dict[str, Wire] = {}
        """As they are when they are asked for by name."""
        self.refusal: ApiError | None = None

    async def get(self, path: str, query: dict[str, Any] | None = None) -> bytes:
        if query and "limit" in query:
            items = self.lists[self._kind(path, query)]
            return json.dumps({"metadata": {"resourceVersion": "1"}, "items": items}).encode()
        name = path.rpartition("/")[2]
        if name not in self.nodes:
            raise ApiError(404, "NotFound", path)
        return json.dumps(self.nodes[name]).encode()

    async def stream(self, path: str, query: dict[str, Any], **_: Any) -> AsyncIterator[bytes]:
        yield b""
        events = self.events[self._kind(path, query)]
        while True:
            yield await events.get()

    async def write(self, method: str, path: str, body: bytes, *, accept: str = "") -> bytes:
        if self.refusal is not None:
            raise self.refusal
        return b"{}"

    async def close(self) -> None: ...

    def tell(self, kind: str, event: str, thing: Wire) -> None:
        self.events[kind].put_nowait(json.dumps({"type": event, "object": thing}).encode() + b"\n")

    @staticmethod
    def _kind(path: str, query: dict[str, Any]) -> str:
        kind = path.rpartition("/")[2]
        return "beside" if kind == "pods" and query["labelSelector"] != OURS else kind


Scene = Callable[[Server, Site, Watch], Coroutine[Any, Any, None]]


def play(server: Server, directory: Path, scene: Scene) -> None:
    async def run() -> None:
        told, outputs = Watch(), OutputFiles(directory / "kept")
        outputs.open()
        site = Site(
            cast(Connection, server),
            directory / "live",
            outputs,
            tell=told.take,
            tell_trouble=lambda trouble, failures: None,
        )
        try:
            await site.add(UNMANAGED)
            site.open()
            await told.until(NodesListed)
            await scene(server, site, told)
        finally:
            await site.close()

    asyncio.run(run())


def told_as(node: KubeNode) -> Wire:
    """As an API server writes it."""
    return msgspec.to_builtins(node)


def a_pod(name: str, *, namespace: str = "jobs", ours: bool = True, exit_code: int = -1) -> Wire:
    state: Wire = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    if exit_code >= 0:
        state = {"terminated": {"exitCode": exit_code, "finishedAt": "2026-01-01T00:01:00Z"}}
    carried = {"app.kubernetes.io/managed-by": "eksbatch", labels.ENVIRONMENT_UUID: UNMANAGED.uuid}
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"{namespace}/{name}",
            "labels": carried,
        },
        "spec": {
            "nodeName": "ip-1",
            "containers": [a_container("2", "64Mi")],
            "tolerations": [{"key": labels.TAINT, "operator": "Exists"}] if ours else [],
        },
        "status": {
            "phase": "Running" if exit_code < 0 else "Succeeded",
            "containerStatuses": [{"name": "main", "state": state}],
        },
    }


@pytest.fixture
def server() -> Server:
    played = Server()
    played.lists["nodes"] = [told_as(own_node())]
    return played


def test_a_copy_of_a_pod_ends_no_job_and_takes_room(server: Server, tmp_path: Path) -> None:
    """Of the same name and labels, in another namespace, as `kubectl get -o yaml` and `apply` make one."""
    server.lists["pods"] = [a_pod("job-0-1")]

    async def scene(server: Server, site: Site, told: Watch) -> None:
        copy = a_pod("job-0-1", namespace="team", ours=False)
        server.tell("pods", "ADDED", copy)
        await told.until(NodeFound, lambda f: f.allocatable.cpu_m == 2000)
        ended = a_pod("job-0-1", namespace="team", ours=False, exit_code=0)
        told.facts.clear()
        server.tell("pods", "MODIFIED", ended)
        await told.until(NodeFound, lambda f: f.allocatable.cpu_m == 4000)
        server.tell("pods", "MODIFIED", a_pod("job-0-1", exit_code=0))
        await told.until(PodEnded)
        assert len(told.all(PodEnded)) == 1

    play(server, tmp_path, scene)


def test_a_node_that_lost_its_label_before_we_began_is_there_while_our_pods_are(
    server: Server, tmp_path: Path
) -> None:
    """What runs goes on: it must not run a second time because a service has started anew."""
    server.lists["nodes"] = []
    server.nodes["ip-1"] = told_as(own_node(environment=""))
    del server.nodes["ip-1"]["metadata"]["labels"][labels.ENVIRONMENT_UUID]
    server.lists["pods"] = [a_pod("job-0-1")]

    async def scene(server: Server, site: Site, told: Watch) -> None:
        listed = await told.until(NodesListed)
        assert listed.nodes == {NODE}
        closed = await told.until(NodeClosed)
        assert closed.reason == "its label was taken away"

    play(server, tmp_path, scene)


WEBHOOK = 'failed calling webhook "v.x.io": failed to call webhook: RBAC: access denied'
LATE = "the server was unable to return a response in the time allotted"
RATIO = "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000"


@pytest.mark.parametrize(
    ("status", "message", "outcome"),
    [
        (403, f'pods "p" is forbidden: {RATIO}', "permanent"),
        (403, 'pods "p" is forbidden: violates PodSecurity "restricted:latest"', "permanent"),
        (400, 'admission webhook "v.x.io" denied the request: no', "permanent"),
        (422, "Pod is invalid", "permanent"),
        (403, 'pods "p" is forbidden: exceeded quota: q, requested: cpu=2', "quota"),
        (403, 'pods "p" is forbidden: status unknown for quota: q', "later"),
        (403, 'pods "p" is forbidden: not yet ready to handle request', "later"),
        (500, WEBHOOK, "later"),
        (503, "denied", "later"),
        (403, f'pods "p" is forbidden: {LATE} (get limitranges)', "later"),
        (403, f'pods "p" is forbidden: error looking up service account: {LATE}', "later"),
        (403, "something that nobody has thought of", "later"),
    ],
)
def test_what_is_against_the_rules_is_final_and_what_fails_is_asked_again(
    server: Server, tmp_path: Path, status: int, message: str, outcome: str
) -> None:
    async def scene(server: Server, site: Site, told: Watch) -> None:
        server.refusal = ApiError(status, "Reason", message)
        try:
            fact = await site.create(creation("p"))
        except ClusterDown:
            assert outcome == "later"
        else:
            assert isinstance(fact, PodRefused)
            assert (fact.permanent, fact.quota) == (outcome == "permanent", outcome == "quota")

    play(server, tmp_path, scene)


def creation(pod: str) -> CreatePod:
    return CreatePod(
        pod=PodName(pod),
        compute_environment=UNMANAGED.name,
        node_id=NODE,
        node_name="ip-1",
        namespace=UNMANAGED.namespace,
        pod_properties=json.dumps({"containers": [{"image": "x"}]}).encode(),
        environment={},
        labels={labels.ENVIRONMENT_UUID: UNMANAGED.uuid},
        grace_s=30,
    )
