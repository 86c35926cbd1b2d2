"""The contract of every cluster, kept by Kubernetes: real kubelet, real containers. (tests/contracts has the local one.)"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_eksbatch.cluster.kube import site
from airflow_eksbatch.cluster.kube.objects import room_of
from airflow_eksbatch.cluster.kubernetes import KubernetesCluster
from airflow_eksbatch.core.engine.facts import NodeReady
from airflow_eksbatch.core.model import labels

# Each is run against the bed below.
from tests.contracts.test_cluster import (  # noqa: F401
    NODE,
    NODE_NAME,
    Watch,
    test_a_deleted_pod_may_end_in_its_own_way,
    test_a_deleted_pod_that_ignores_sigterm_is_killed_after_its_grace,
    test_a_forgotten_pod_is_not_run_again_and_its_output_stays,
    test_a_pod_for_a_node_that_is_not_there_is_refused,
    test_a_pod_is_running_as_soon_as_its_init_containers_are_through,
    test_a_pod_is_seen_runs_and_ends_with_its_exit_code,
    test_a_pod_that_ends_with_0_has_succeeded,
    test_a_pod_that_is_stopped_between_init_containers_has_not_succeeded,
    test_a_pod_that_makes_no_sense_is_refused_for_good,
    test_a_process_that_a_signal_ended_has_128_and_the_signal,
    test_a_program_that_does_not_exist_is_a_start_error,
    test_a_running_pod_is_told_with_an_address_at_which_others_reach_it,
    test_a_script_that_ends_with_127_is_no_start_error,
    test_a_watch_begins_with_everything_that_is_there,
    test_an_environment_without_pods_is_looked_at_too,
    test_an_init_container_that_fails_keeps_the_others_from_running,
    test_commands_and_variables_arrive_exactly_as_they_were_written,
    test_creating_a_pod_twice_runs_it_once,
    test_deleting_a_pod_that_is_not_there_says_that_it_ended,
    test_full_looks_come_again_and_again,
    test_init_containers_run_first_and_in_order,
    test_of_several_containers_the_first_that_failed_in_their_order_counts,
    test_output_is_read_by_parts_live_and_afterwards,
)
from tests.kubernetes.bed import MANAGED, NAMESPACE, TAINTS, a_cluster, a_plane
from tests.kubernetes.rig.api import SaidNo
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.network import Network
from tests.kubernetes.rig.real_node import RealNode


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[ControlPlane]:
    directory = tmp_path_factory.mktemp("plane")
    with a_plane(directory, address=network.address) as plane:
        yield plane


@pytest.fixture(scope="module")
def node(plane: ControlPlane, network: Network) -> Iterator[RealNode]:
    with RealNode(plane, network, NODE_NAME, taints=TAINTS) as node:
        # Kubelets may not give themselves labels of others.
        given = {labels.ENVIRONMENT_UUID: MANAGED.uuid, labels.NODE_UID: NODE}
        plane.admin.patch(f"/api/v1/nodes/{NODE_NAME}", {"metadata": {"labels": given}})
        yield node


class KubernetesBed:
    """As LocalBed, in a real cluster."""

    checked = (MANAGED.name,)
    lost_program = (128, "StartError: failed to create", "")
    stopped_in_init = None
    # Seen with the API alone: a kubelet that has begun to end a container with one grace mostly goes on with it.
    heeds_a_shorter_grace = False
    # A job's pod has its node's network: its port must be nobody else's there.
    serve = "echo port 18080; exec httpd -f -p 18080"
    fetch = "wget -qO-"

    def __init__(self, plane: ControlPlane, home: Path) -> None:
        self._plane = plane
        self._home = home
        status = plane.admin.get(f"/api/v1/nodes/{NODE_NAME}")["status"]
        self.room = room_of(status["allocatable"])

    def look_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(site, "FULL_LOOK_S", 0.01)
        monkeypatch.setattr(site, "TICK_S", 0.01)

    @asynccontextmanager
    async def open(
        self, *, with_node: bool = True
    ) -> AsyncIterator[tuple[KubernetesCluster, Watch]]:
        """Its node is there in any case; who needs it waits for it."""
        async with a_cluster(self._plane, self._home) as (cluster, watch):
            if with_node:
                await watch.until(NodeReady)
            yield cluster, watch

    def clean(self) -> None:
        """The next test begins with an empty namespace."""
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        for pod in self._plane.admin.list(pods):
            # Some go by themselves meanwhile.
            with suppress(SaidNo):
                self._plane.admin.delete(
                    f"{pods}/{pod['metadata']['name']}", gracePeriodSeconds="1"
                )
        self._plane.wait_for("all pods to be gone", lambda: not self._plane.admin.list(pods))


@pytest.fixture
def bed(plane: ControlPlane, node: RealNode, tmp_path: Path) -> Any:
    bed = KubernetesBed(plane, tmp_path)
    yield bed
    bed.clean()
