"""`eksbatch serve --cluster kubeconfig`: from SubmitJob to pods on nodes that others own, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_eksbatch.core.model import labels
from airflow_eksbatch.service.settings import BadSetting, Settings
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.service.wiring import make_cluster_and_cloud
from tests.kubernetes.bed import NAMESPACE, a_plane, service_for
from tests.kubernetes.load import CLUSTER, register, set_up, submit
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.service.running import RunningService


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture(scope="module")
def nodes(plane: ControlPlane) -> FakeNodes:
    return FakeNodes(plane)


@pytest.fixture
def service(plane: ControlPlane, tmp_path: Path) -> Iterator[RunningService]:
    options = ("--check-plans", "--lease-s", "2")
    with service_for(plane.kubeconfig("eksbatch"), tmp_path / "home", *options) as service:
        yield service.start()


def test_jobs_run_on_labelled_nodes_and_leave_nothing_behind(
    plane: ControlPlane, nodes: FakeNodes, service: RunningService
) -> None:
    """
    1. an array waits: nobody's nodes are ours yet
    2. two nodes are given the label of the environment: the array runs
    3. a job that fails is retried, and fails
    4. a job that is terminated ends; its pod is gone
    5. no pod is left
    """
    batch = service.batch()
    uuid = set_up(batch, plane)
    register(batch, "work", **{"rig/lasts": "1s"})
    register(batch, "fails", **{"rig/lasts": "0s", "rig/exit-code": "7"})
    register(batch, "stays", **{"rig/lasts": "1h"})
    array = submit(batch, "work", arrayProperties={"size": 40})
    given = {labels.ENVIRONMENT_UUID: uuid}
    names = nodes.add_many(2, instance_type="m6i.large", labels=given)
    assert service.wait_for_ends({array}) == {array: "SUCCEEDED"}

    failing = submit(batch, "fails", retryStrategy={"attempts": 2})
    assert service.wait_for_ends({failing}) == {failing: "FAILED"}
    detail = batch.describe_jobs(jobs=[failing])["jobs"][0]
    codes = [each["containers"][0]["exitCode"] for each in detail["eksAttempts"]]
    assert codes == [7, 7]
    assert {each["nodeName"] for each in detail["eksAttempts"]} <= set(names)
    assert detail["statusReason"] == "Essential container in task exited"

    staying = submit(batch, "stays")
    service.wait_for(lambda event: event["jobId"] == staying and event["status"] == "RUNNING")
    batch.terminate_job(jobId=staying, reason="enough")
    assert service.wait_for_ends({staying}) == {staying: "FAILED"}
    assert batch.describe_jobs(jobs=[staying])["jobs"][0]["statusReason"] == "enough"
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    plane.wait_for("no pod to be left", lambda: not plane.admin.list(pods))


def test_a_service_killed_while_its_pods_run_finds_their_ends(
    plane: ControlPlane, nodes: FakeNodes, service: RunningService
) -> None:
    """1. jobs run; 2. kill -9; 3. they end meanwhile; 4. the next service tells of them, each once."""
    batch = service.batch()
    uuid = set_up(batch, plane)
    nodes.add_many(1, instance_type="m6i.large", labels={labels.ENVIRONMENT_UUID: uuid})
    register(batch, "short", **{"rig/lasts": "3s"})
    job_ids = {submit(batch, "short") for _ in range(4)}
    running = set[str]()
    for event in service.events():
        if event["status"] == "RUNNING":
            running.add(event["jobId"])
        if running >= job_ids:
            break
    service.kill()
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"

    def have_ended() -> bool:
        return all(pod["status"]["phase"] == "Succeeded" for pod in plane.admin.list(pods))

    plane.wait_for("the pods to end", have_ended)
    service.start()
    assert set(service.wait_for_ends(job_ids).values()) == {"SUCCEEDED"}
    details = service.batch().describe_jobs(jobs=sorted(job_ids))["jobs"]
    assert [len(each["eksAttempts"]) for each in details] == [1] * 4


def test_a_managed_environment_says_that_nothing_can_be_bought(
    plane: ControlPlane, service: RunningService
) -> None:
    batch = service.batch()
    batch.create_compute_environment(
        computeEnvironmentName="bought",
        type="MANAGED",
        computeResources={"type": "EC2", "minvCpus": 0, "maxvCpus": 8, "subnets": ["subnet-1"]},
        eksConfiguration={"eksClusterArn": CLUSTER, "kubernetesNamespace": NAMESPACE},
    )

    def invalid() -> str | None:
        one = batch.describe_compute_environments(computeEnvironments=["bought"])
        found = one["computeEnvironments"][0]
        return found["statusReason"] if found["status"] == "INVALID" else None

    assert "this service buys no instances" in plane.wait_for("it to be INVALID", invalid)


@pytest.mark.parametrize(
    ("cluster", "sentence"),
    [("kubeconfig", "nowhere/config"), ("in-cluster", "service account")],
)
def test_a_cluster_that_cannot_be_reached_is_said_before_anything_starts(
    tmp_path: Path, cluster: str, sentence: str
) -> None:
    settings = Settings(
        home=str(tmp_path), cluster=cluster, kubeconfig=str(tmp_path / "nowhere" / "config")
    )
    with pytest.raises(BadSetting, match=f"--cluster {cluster}: .*{sentence}"):
        make_cluster_and_cloud(settings, Telemetry())
