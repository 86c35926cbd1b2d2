"""Whatever happens to the API server, its database or the way to them: nothing is lost and nothing runs twice."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from airflow_eksbatch.cluster.kube import site
from airflow_eksbatch.cluster.kubernetes import KubernetesCluster
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.engine.facts import NodeReady, PodEnded, PodRunning, PodsListed
from airflow_eksbatch.core.model.job import PodName
from tests.contracts.test_cluster import WAIT_S, Watch, asynchronous
from tests.kubernetes.bed import (
    NAMESPACE,
    a_cluster,
    a_fake_pod,
    a_plane,
    add_nodes,
    delete,
    forgotten,
    path_of,
)
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes

SERVICE = "system:serviceaccount:eksbatch:eksbatch"


@pytest.fixture(autouse=True)
def told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full looks tell ends again until somebody has taken note of them; here nobody does."""
    monkeypatch.setattr(site, "FULL_LOOK_S", float("inf"))


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    # An API server that gives up waiting for its database sooner than people would have it.
    flags = ("--request-timeout=5s",)
    with a_plane(tmp_path / "plane", audited=True, api_flags=flags) as plane:
        add_nodes(FakeNodes(plane), "node-1", "node-2", instance_type="m6i.16xlarge")
        yield plane


async def created(
    cluster: KubernetesCluster, effect: CreatePod, failed: asyncio.Event | None = None
) -> None:
    """Create it as the performer does: again and again, while the cluster is down."""
    while True:
        try:
            assert await cluster.create_pod(effect) is None
            return
        except ClusterDown:
            if failed is not None:
                failed.set()
            await asyncio.sleep(0.2)


async def all_ended(watch: Watch, names: list[str]) -> Counter[PodName]:
    """How often each end was told, once all were."""
    async with asyncio.timeout(WAIT_S * 2):
        while True:
            ends = Counter(fact.pod for fact in watch.facts if isinstance(fact, PodEnded))
            if ends.keys() >= {PodName(name) for name in names}:
                return ends
            await asyncio.sleep(0.05)


def compact(plane: ControlPlane) -> None:
    """etcd forgets everything but how things are now."""
    etcd = f"{plane.etcd_url}/v3/kv"
    key = base64.b64encode(b"/").decode()
    revision = httpx.post(f"{etcd}/range", json={"key": key}).json()["header"]["revision"]
    httpx.post(f"{etcd}/compaction", json={"revision": revision}).raise_for_status()


def lists(plane: ControlPlane) -> int:
    """How often the service listed its pods."""
    return sum(
        request["verb"] == "list"
        and request["user"]["username"] == SERVICE
        and request["objectRef"]["resource"] == "pods"
        and request["stage"] == "ResponseComplete"
        for request in plane.requests()
    )


@asynchronous
async def test_an_api_server_that_is_killed_under_load_costs_nothing_but_time(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """1. pods are being created; 2. kill -9; 3. it comes back; 4. every pod ran once and its end was told."""
    names = [f"load-{number}-1" for number in range(120)]
    troubles: list[str] = []
    async with a_cluster(plane, tmp_path, troubles=troubles) as (cluster, watch):
        await watch.until(NodeReady)
        effects = [a_fake_pod(name, node=f"node-{1 + n % 2}") for n, name in enumerate(names)]
        creating = [asyncio.create_task(created(cluster, effect)) for effect in effects]
        await watch.until(PodRunning)
        await asyncio.to_thread(plane.kill_part, "kube-apiserver")
        await asyncio.to_thread(plane.start_api)
        await asyncio.gather(*creating)
        ends = await all_ended(watch, names)
        assert all(ends[PodName(name)] == 1 for name in names)
        assert all(watch.kinds(name).count("PodRunning") == 1 for name in names)
        await asyncio.gather(*(forgotten(cluster, name) for name in names))
        assert plane.admin.list(f"/api/v1/namespaces/{NAMESPACE}/pods") == []
    assert troubles


@asynchronous
async def test_what_happens_while_the_watch_is_broken_is_found_by_listing_again(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """The service's place in time is compacted away while it cannot be reached (410 Gone)."""
    async with a_cluster(plane, tmp_path) as (cluster, watch):
        await watch.until(NodeReady)
        for name in ("gone-0-1", "kept-0-1"):
            await cluster.create_pod(a_fake_pod(name, node="node-1", lasts="1h"))
            await watch.until(PodRunning, name)
        before = lists(plane)
        # The API server forgets what it had cached, and its database what was before now.
        plane.kill_part("kube-apiserver")
        compact(plane)
        plane.start_api()
        plane.admin.delete(path_of("gone-0-1"))
        end = await watch.until(PodEnded, "gone-0-1")
        assert end.end.status_reason == "Pod was deleted by somebody else"
        await cluster.create_pod(a_fake_pod("new-0-1", node="node-1"))
        await watch.until(PodEnded, "new-0-1")
        assert lists(plane) > before
        assert watch.kinds("kept-0-1") == ["PodSeen", "PodRunning"]
        await cluster.delete_pod(delete("kept-0-1"))
        await watch.until(PodEnded, "kept-0-1")


@asynchronous
async def test_a_database_that_stands_still_for_a_while_loses_nothing(
    plane: ControlPlane, tmp_path: Path
) -> None:
    async with a_cluster(plane, tmp_path) as (cluster, watch):
        await watch.until(NodeReady)
        names, failed = [f"still-{number}-1" for number in range(20)], asyncio.Event()
        with plane.paused("etcd"):
            creating = [
                asyncio.create_task(created(cluster, a_fake_pod(name, node="node-1"), failed))
                for name in names
            ]
            await asyncio.wait_for(failed.wait(), WAIT_S)
        await asyncio.gather(*creating)
        ends = await all_ended(watch, names)
        assert all(ends[PodName(name)] == 1 for name in names)


@asynchronous
async def test_full_looks_say_the_same_after_a_gap(plane: ControlPlane, tmp_path: Path) -> None:
    async with a_cluster(plane, tmp_path) as (cluster, watch):
        await watch.until(NodeReady)
        await cluster.create_pod(a_fake_pod("look-0-1", node="node-1", lasts="1h"))
        await watch.until(PodRunning, "look-0-1")
        plane.kill_part("kube-apiserver")
        plane.start_api()
        second = Watch(cluster)
        assert (await second.until(PodsListed)).pods == {"look-0-1"}
        await second.close()
