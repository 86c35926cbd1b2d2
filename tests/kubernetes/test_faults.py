"""Whatever happens between the service and its API server under load: nothing is lost, nothing twice, nothing is left."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_eksbatch.core.engine.facts import NodeClosed, NodeReady, PodEnded
from tests.contracts.test_cluster import WAIT_S, asynchronous
from tests.kubernetes.bed import MANAGED, a_fake_pod, a_plane, add_nodes, forgotten, service_for
from tests.kubernetes.load import Load, a_load
from tests.kubernetes.rig import history
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.kubernetes.rig.proxy import BUSY, CUTS, Answer, Asked, Faults, Proxy
from tests.kubernetes.test_adapter import a_cluster_at
from tests.kubernetes.test_gaps import created
from tests.service.running import RunningService

# 40 submits are 10 arrays of 20 and 30 jobs.
SUBMITS, PODS = 40, 230
FEW = 40
HOUR_S = 3600
STILL_S = 20.0
DOWN = Answer(503, "ServiceUnavailable")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    # An API server that gives up waiting for its database sooner than people would have it.
    flags = (*history.API_FLAGS, "--request-timeout=5s")
    with a_plane(tmp_path_factory.mktemp("plane"), api_flags=flags) as plane:
        yield plane


@pytest.fixture(scope="module")
def nodes(plane: ControlPlane) -> FakeNodes:
    return FakeNodes(plane)


@pytest.fixture
def proxy(plane: ControlPlane) -> Iterator[Proxy]:
    with Proxy(plane) as proxy:
        yield proxy


@pytest.fixture
def service(proxy: Proxy, tmp_path: Path) -> Iterator[RunningService]:
    with service_for(proxy.kubeconfig("eksbatch"), tmp_path / "home", "--check-plans") as service:
        yield service


@pytest.fixture
def load(
    plane: ControlPlane, nodes: FakeNodes, proxy: Proxy, service: RunningService
) -> Iterator[Load]:
    """Ready to begin."""
    with a_load(plane, nodes, service.start()) as load:
        yield load


def check(load: Load, proxy: Proxy, writes_a_pod: float = 2.0) -> None:
    """One pod for each index, and not more requests than it takes."""
    proxy.faults = Faults()
    lives = load.check()
    assert len(lives) == sum(load.jobs.values()), "some were placed more than once"
    writes = proxy.count("POST", "pods") + proxy.count("DELETE", "pods")
    assert writes <= writes_a_pod * len(lives)


def is_write_of_pods(asked: Asked) -> bool:
    return asked.is_write and asked.what == "pods"


# ---- the API server and its database


def test_an_api_server_is_killed_in_a_burst(load: Load, proxy: Proxy) -> None:
    load.begin(SUBMITS)
    load.wait_for_pods(FEW)
    load.plane.kill_part("kube-apiserver")
    load.plane.start_api()
    check(load, proxy, writes_a_pod=4)


def test_etcd_stands_still_in_a_burst(load: Load, proxy: Proxy) -> None:
    load.begin(SUBMITS)
    load.wait_for_pods(FEW)
    with load.plane.paused("etcd", STILL_S):
        pass
    check(load, proxy, writes_a_pod=4)


def test_etcd_forgets_what_happened_while_nobody_could_watch(load: Load, proxy: Proxy) -> None:
    """1. watches break; 2. pods live and end unseen; 3. compaction, a new API server; 4. 410 Gone, and all is found."""
    load.begin(SUBMITS)
    load.wait_for_pods(FEW)
    proxy.faults = Faults(cut_every=1, instead=lambda asked: DOWN if asked.is_watch else None)
    load.wait_for_pods(PODS)
    load.history.compact()
    load.plane.kill_part("kube-apiserver")
    load.plane.start_api()
    before = proxy.count("GET", "pods")
    proxy.faults = Faults()
    check(load, proxy, writes_a_pod=4)
    assert proxy.count("GET", "pods") > before


# ---- the way there


def test_the_watch_is_cut_at_every_tenth_event(load: Load, proxy: Proxy) -> None:
    proxy.faults = Faults(cut_every=10)
    load.begin(SUBMITS)
    load.wait_for_pods(PODS)
    check(load, proxy)
    assert set(proxy.cuts) == set(CUTS)


def test_everything_takes_long(load: Load, proxy: Proxy) -> None:
    proxy.faults = Faults(latency_s=(0.2, 0.8))
    load.begin(SUBMITS)
    load.wait_for_pods(PODS)
    check(load, proxy)


def test_answers_to_writes_are_lost(load: Load, proxy: Proxy) -> None:
    """Every second write is done, and an error is answered."""
    answers = itertools.cycle((None, Answer(500, "InternalError"), None, Answer(504, "Timeout")))

    def lost(asked: Asked) -> Answer | None:
        return next(answers) if is_write_of_pods(asked) else None

    proxy.faults = Faults(lost=lost)
    load.begin(SUBMITS)
    load.wait_for_pods(PODS)
    check(load, proxy, writes_a_pod=6)


def test_the_api_server_has_too_much_to_do(load: Load, proxy: Proxy) -> None:
    """Every write is answered with 429 until some hundred were; reads go on, and so do jobs afterwards."""
    refused = threading.Semaphore(0)

    def instead(asked: Asked) -> Answer | None:
        if not is_write_of_pods(asked):
            return None
        refused.release()
        return BUSY

    load.begin(SUBMITS)
    load.wait_for_pods(FEW)
    proxy.faults = Faults(instead=instead)
    for _ in range(50):
        assert refused.acquire(timeout=120)
    check(load, proxy, writes_a_pod=4)


@asynchronous
async def test_the_limit_on_writes_goes_down_in_a_storm_and_comes_back_while_reads_go_on(
    plane: ControlPlane, nodes: FakeNodes, proxy: Proxy, tmp_path: Path
) -> None:
    add_nodes(nodes, "stormy", instance_type="m6i.16xlarge")
    async with a_cluster_at(proxy.kubeconfig("eksbatch"), tmp_path) as (cluster, watch):
        assert await cluster.check(MANAGED) is None
        await watch.until(NodeReady)
        [site] = cluster._sites.values()
        limit, names = site.connection.limit, [f"storm-{number}-1" for number in range(60)]
        proxy.faults = Faults(instead=lambda asked: BUSY if is_write_of_pods(asked) else None)
        effects = [a_fake_pod(name, node="stormy") for name in names]
        creating = [asyncio.create_task(created(cluster, effect)) for effect in effects]
        async with asyncio.timeout(WAIT_S):
            while limit.allowed > 2:
                await asyncio.sleep(0.05)
        plane.admin.patch("/api/v1/nodes/stormy", {"spec": {"unschedulable": True}})
        assert (await watch.until(NodeClosed)).node_id == "stormy"
        asked = proxy.count("POST", "pods")
        proxy.faults = Faults()
        await asyncio.gather(*creating)
        for name in names:
            await watch.until(PodEnded, name)
            await forgotten(cluster, name)
        assert limit.allowed > 8
        # Some were under way when the storm ended; each of the others is asked once.
        assert proxy.count("POST", "pods") - asked <= 2 * len(names)
    nodes.remove("stormy")


# ---- clocks


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def test_the_clock_of_the_service_is_wrong_by_an_hour(
    plane: ControlPlane,
    nodes: FakeNodes,
    proxy: Proxy,
    service: RunningService,
    ahead_s: int,
) -> None:
    """Timeouts count from when a job began, by whatever clock; so do ends, and graces."""
    service.program = ("-m", "tests.kubernetes.rig.skewed", str(ahead_s))
    # Facts come late, so that the times in them are all that is known.
    proxy.faults = Faults(latency_s=(0.5, 1.0))
    with a_load(plane, nodes, service.start()) as load:
        load.begin(SUBMITS, timeout={"attemptDurationSeconds": 300})
        load.wait_for_pods(PODS)
        check(load, proxy)
