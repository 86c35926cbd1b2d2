"""docker/namespace-options.yaml on a real API server: what it lets through, and what becomes of jobs that it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_eksbatch.cluster.kube.connection import Kubeconfig
from airflow_eksbatch.core.engine.facts import PodRefused
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.doctor.clocks import lease_patience
from airflow_eksbatch.doctor.findings import Mark, Report
from airflow_eksbatch.doctor.kube.look import ACCOUNT
from airflow_eksbatch.doctor.kube.visit import Wanted, look_at_clusters
from tests.contracts.test_cluster import asynchronous
from tests.kubernetes.bed import (
    MANAGED,
    NAMESPACE,
    a_cluster,
    a_plane,
    a_pod,
    add_nodes,
    path_of,
    service_for,
)
from tests.kubernetes.load import set_up, submit
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.service.running import RunningService

OPTIONS = Path(__file__).resolve().parents[2] / "docker" / "namespace-options.yaml"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture(scope="module")
def nodes(plane: ControlPlane) -> FakeNodes:
    nodes = FakeNodes(plane)
    add_nodes(nodes, "n", instance_type="m6i.16xlarge")
    return nodes


@pytest.fixture(autouse=True)
def options(plane: ControlPlane) -> Iterator[None]:
    """As they are; taken away again."""
    plane.apply(OPTIONS)
    yield
    for one in documents():
        if one["kind"] != "Namespace" and plane.admin.find(plane.admin.path_of(one)):
            plane.admin.delete(plane.admin.path_of(one))
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": None}}}
    plane.admin.patch(f"/api/v1/namespaces/{NAMESPACE}", level)


def documents() -> list[Json]:
    return [one for one in yaml.safe_load_all(OPTIONS.read_text()) if one]


def bound(plane: ControlPlane, **hard: str) -> None:
    """The quota with these figures, once it counts."""
    path = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas/jobs"
    plane.admin.patch(
        path,
        {"spec": {"hard": dict.fromkeys(("pods", "requests.cpu", "requests.memory")) | hard}},
    )

    def counts() -> bool:
        return (plane.admin.get(path).get("status") or {}).get("hard") == hard

    plane.wait_for("the quota", counts)


def test_they_are_taken_as_they_are_and_jobs_that_say_hostnetwork_false_run(
    plane: ControlPlane,
) -> None:
    kinds = [one["kind"] for one in documents()]
    assert kinds == ["Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy"]
    policy = plane.admin.get(
        f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies/jobs"
    )
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy["spec"]


@asynchronous
async def test_pods_against_pod_security_or_a_limit_are_refused_for_good_and_why_is_said(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    async with a_cluster(plane, tmp_path) as (cluster, _):
        on_host = await cluster.create_pod(a_pod("on-host", node="n", containers=[with_cpu("1")]))
        large = a_pod(
            "large",
            node="n",
            hostNetwork=False,
            containers=[with_cpu("65")],
        )
        too_large = await cluster.create_pod(large)
        assert isinstance(on_host, PodRefused)
        assert isinstance(too_large, PodRefused)
        assert (on_host.permanent, too_large.permanent) == (True, True)
        assert 'violates PodSecurity "baseline:latest": host namespaces' in on_host.reason
        assert "maximum cpu usage per Pod is 64, but limit is 65" in too_large.reason
        fine = a_pod("fine", node="n", hostNetwork=False, containers=[with_cpu("1")])
        assert await cluster.create_pod(fine) is None
        plane.wait_for("the pod", lambda: plane.admin.find(path_of("fine")))
        plane.admin.delete(path_of("fine"), gracePeriodSeconds="0")


@asynchronous
async def test_a_pod_beyond_the_quota_waits_and_one_that_the_quota_cannot_count_is_refused(
    plane: ControlPlane, nodes: FakeNodes, tmp_path: Path
) -> None:
    async with a_cluster(plane, tmp_path) as (cluster, _):
        bound(plane, **{"requests.cpu": "1"})
        beyond = a_pod("beyond", node="n", hostNetwork=False, containers=[with_cpu("2")])
        burst = {"image": "b", "resources": {"limits": {"memory": "4Mi"}}}
        uncounted = a_pod("uncounted", node="n", hostNetwork=False, containers=[burst])
        plane.admin.delete(f"/api/v1/namespaces/{NAMESPACE}/limitranges/jobs")
        found = [await cluster.create_pod(pod) for pod in (beyond, uncounted)]
        assert [(f.quota, f.permanent) for f in found if isinstance(f, PodRefused)] == [
            (True, False),
            (False, True),
        ]
        reasons = [f.reason for f in found if isinstance(f, PodRefused)]
        assert reasons[0].startswith("exceeded quota: jobs, requested: requests.cpu=2")
        assert "must specify requests.cpu for: default" in reasons[1]


def test_the_doctor_says_what_the_options_ask_of_job_definitions(
    plane: ControlPlane, nodes: FakeNodes
) -> None:
    def found() -> list[tuple[str, Mark]]:
        report = Report()
        wanted = Wanted(acts_as=ACCOUNT, patience=lease_patience(10))
        ways = Kubeconfig(str(plane.kubeconfig()))
        asyncio.run(look_at_clusters(report, ways, [MANAGED], wanted))
        every = [f for group in report.groups for f in group.findings]
        return [(f.check, f.mark) for f in every if f.mark is not Mark.OK]

    plane.wait_for("its word", lambda: found() == [("plain pods", Mark.WARNING)])


def with_cpu(cpu: str) -> Json:
    return {"image": "b", "resources": {"limits": {"cpu": cpu, "memory": "4Mi"}}}


# ---- the whole service


@pytest.fixture
def service(plane: ControlPlane, tmp_path: Path) -> Iterator[RunningService]:
    options = ("--check-plans", "--lease-s", "2")
    with service_for(plane.kubeconfig("eksbatch"), tmp_path / "home", *options) as service:
        yield service.start()


def test_jobs_wait_for_the_quota_without_cost_and_fail_for_good_against_pod_security(
    plane: ControlPlane, nodes: FakeNodes, service: RunningService
) -> None:
    """
    1. the quota has room for one pod: one job runs, the other waits and says why
    2. what runs is ended: the other one runs, in its first attempt
    3. an array larger than the quota runs to its end, without a failure
    4. a job that wants the host's network fails, and says what the API server said
    """
    batch = service.batch()
    uuid = set_up(batch, plane)
    nodes.add_many(1, instance_type="m6i.4xlarge", labels={labels.ENVIRONMENT_UUID: uuid})
    define(batch, "stays", "1h")
    define(batch, "work", "0s")
    define(batch, "on-host", "0s", hostNetwork=True)
    bound(plane, pods="1")

    staying = submit(batch, "stays")
    service.wait_for(lambda event: event["jobId"] == staying and event["status"] == "RUNNING")
    waiting = submit(batch, "work")

    def why() -> str | None:
        told = " ".join(service.get(f"/v1/eksbatch/jobs/{waiting}/explain")["sentences"])
        return told if "quota" in told else None

    said = plane.wait_for("why it waits", why)
    assert f"Namespace {NAMESPACE} of compute environment racks has no room under its quota" in said
    assert "exceeded quota: jobs, requested: pods=1, used: pods=1, limited: pods=1" in said

    batch.terminate_job(jobId=staying, reason="enough")
    assert service.wait_for_ends({waiting}) == {waiting: "SUCCEEDED"}
    detail = batch.describe_jobs(jobs=[waiting])["jobs"][0]
    assert len(detail["eksAttempts"]) == 1

    bound(plane, pods="2")
    array = submit(batch, "work", arrayProperties={"size": 4})
    assert service.wait_for_ends({array}) == {array: "SUCCEEDED"}

    refused = submit(batch, "on-host")
    assert service.wait_for_ends({refused}) == {refused: "FAILED"}
    detail = batch.describe_jobs(jobs=[refused])["jobs"][0]
    assert 'violates PodSecurity "baseline:latest": host namespaces' in detail["statusReason"]


def define(batch: Any, name: str, lasts: str, **fields: Any) -> None:
    pod = {
        "containers": [{**with_cpu("0.25"), "image": "busybox", "command": ["true"]}],
        "metadata": {"annotations": {"rig/lasts": lasts}},
        "hostNetwork": False,
        **fields,
    }
    batch.register_job_definition(
        jobDefinitionName=name, type="container", eksProperties={"podProperties": pod}
    )
