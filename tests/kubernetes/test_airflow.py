"""A DAG's tasks are containers on two real nodes: what becomes of them is what Airflow shows.

One run of one DAG for most tests, so that what takes its minute or two does so at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_eksbatch.core.model import labels
from tests.airflow.rig import Airflow
from tests.kubernetes.bed import NAMESPACE, a_plane, service_for
from tests.kubernetes.dag_runs import JOB_WITHIN_S, job_of, pod_of, register_until_told, start_run
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.network import Network
from tests.kubernetes.rig.real_node import RealNode
from tests.service.running import RunningService

CLUSTER = "arn:aws:eks:us-east-1:123456789012:cluster/rig"
# A silent kubelet is noticed after 50 s and given up 60 s later.
SILENT_S = 300.0
Json = dict[str, Any]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane"), address=network.address) as plane:
        yield plane


@pytest.fixture(scope="module")
def service(
    plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("service") / "home"
    with service_for(plane.kubeconfig("eksbatch"), home, "--check-plans") as service:
        yield service.start()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that both nodes share."""
    return tmp_path_factory.mktemp("told")


@pytest.fixture(scope="module")
def nodes(
    plane: ControlPlane, network: Network, service: RunningService, told: Path
) -> Iterator[dict[str, RealNode]]:
    """Two, which the compute environment takes for its own."""
    batch = service.batch()
    batch.create_compute_environment(
        computeEnvironmentName="racks",
        type="UNMANAGED",
        eksConfiguration={"eksClusterArn": CLUSTER, "kubernetesNamespace": NAMESPACE},
    )

    def settled() -> Json | None:
        (one,) = batch.describe_compute_environments()["computeEnvironments"]
        return one if one["status"] != "CREATING" else None

    made = plane.wait_for("the compute environment", settled)
    assert made["status"] == "VALID", made
    order = [{"order": 1, "computeEnvironment": "racks"}]
    batch.create_job_queue(jobQueueName="queue", priority=1, computeEnvironmentOrder=order)
    register_until_told(service, told)
    given = {labels.ENVIRONMENT_UUID: made["uuid"]}
    with (
        RealNode(plane, network, "left", labels=given) as left,
        RealNode(plane, network, "right", labels=given) as right,
    ):
        yield {"left": left, "right": right}


@pytest.fixture(scope="module")
def run(airflow: Airflow, service: RunningService, nodes: dict[str, RealNode]) -> str:
    return start_run(airflow, service, "containers", "nodes")


def log_of(airflow: Airflow, run: str, task_id: str, state: str) -> str:
    """The task's log once it has ended like that."""
    ends = ("success", "failed")
    row = airflow.wait_for_task("containers", run, task_id, *ends, within_s=JOB_WITHIN_S)
    log = airflow.rest.task_log("containers", run, task_id)
    assert row["state"] == state, log
    return log


def test_the_output_of_a_container_is_in_the_log_of_its_task(airflow: Airflow, run: str) -> None:
    log = log_of(airflow, run, "speaks", "success")
    assert "] hello from left" in log or "] hello from right" in log, log
    assert "SUCCEEDED (exit code 0)" in log


def test_a_task_fails_with_the_exit_code_of_its_container(airflow: Airflow, run: str) -> None:
    log = log_of(airflow, run, "fails", "failed")
    assert "] no such month" in log
    assert "FAILED (exit code 3): Essential container in task exited" in log


def test_a_container_that_failed_is_tried_again(airflow: Airflow, run: str) -> None:
    log = log_of(airflow, run, "again", "success")
    assert "is RUNNING, attempt 2" in log
    assert "] attempt 2" in log, log
    assert airflow.rest.xcom("containers", run, "again")["attempts"] == 2


def test_a_job_whose_kubelet_dies_runs_again_for_free_on_the_other_node(
    plane: ControlPlane,
    airflow: Airflow,
    service: RunningService,
    nodes: dict[str, RealNode],
    run: str,
    told: Path,
) -> None:
    """1. a job runs on one node; 2. the kubelet there is killed; 3. the job runs on the other one, and is told to end."""
    job_id = job_of(airflow, "containers", run, "moved")
    first = pod_of(plane, job_id)["spec"]["nodeName"]
    nodes[first].kill_kubelet()
    second = pod_of(plane, job_id, not_on=first, within_s=SILENT_S)["spec"]["nodeName"]
    assert {first, second} == {"left", "right"}
    (told / "go").touch()
    assert "] told" in log_of(airflow, run, "moved", "success")
    attempts = service.get(f"/v1/eksbatch/jobs/{job_id}")["attempts"]
    assert [attempt["charged"] for attempt in attempts] == [False, True]


def test_a_container_that_is_out_of_time_sees_sigterm_and_then_sigkill(
    airflow: Airflow, run: str
) -> None:
    log = log_of(airflow, run, "late", "failed")
    assert "] told to stop" in log
    assert "FAILED (exit code 137): Job attempt duration exceeded timeout" in log


def test_output_outlives_its_node(
    plane: ControlPlane, airflow: Airflow, service: RunningService, nodes: dict[str, RealNode]
) -> None:
    """
    1. a job has spoken; 2. the power of its node goes, and its cloud takes the Node object away
    3. the task fails with the reason, and shows what was said; the service still gives it to whoever asks
    """
    run = start_run(airflow, service, "mortal", "nodes")
    job_id = job_of(airflow, "mortal", run, "mortal")
    node = pod_of(plane, job_id)["spec"]["nodeName"]
    plane.wait_for(
        "its words", lambda: "last words" in service.get(f"/v1/eksbatch/jobs/{job_id}/log")
    )
    nodes[node].kill()
    plane.admin.delete(f"/api/v1/nodes/{node}")
    airflow.wait_for_task("mortal", run, "mortal", "failed")
    log = airflow.rest.task_log("mortal", run, "mortal")
    assert "] last words" in log
    assert "Host EC2 (instance " in log
    assert service.get(f"/v1/eksbatch/jobs/{job_id}/log") == "last words\n"
