"""The service on EC2 (moto behind its door) and a control plane that AWS knows as an EKS cluster."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.processes import Gone, wait_for
from tests.cloud.account import PROFILE, Account
from tests.cloud.door import Door
from tests.kubernetes.bed import NAMESPACE, service_for
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.service.running import RunningService

Json = dict[str, Any]


@contextmanager
def an_account(plane: ControlPlane) -> Iterator[Account]:
    """An AWS account whose EKS cluster `main` is this control plane."""
    with Door().open() as door:
        door.empty()
        account = Account(door)
        authority = base64.b64encode(plane.identities.certificate.read_bytes()).decode()
        door.cluster = {"endpoint": plane.url, "certificateAuthority": {"data": authority}}
        yield account


@contextmanager
def a_service(
    plane: ControlPlane,
    account: Account,
    home: Path,
    *options: str,
    watched: tuple[str, ...] = ("--lease-s", "2", "--idle-s", "1", "--check-plans"),
) -> Iterator[RunningService]:
    """`eksbatch serve --cloud ec2` with the rights of docker/kubernetes.yaml, ready. `watched`: as tests want it."""
    cloud = ("--cloud", "ec2", "--aws-endpoint", account.door.url)
    # moto has no rate; EC2's own would make a burst last for what it lasts there.
    pace = ("--launches-per-s", "1000")
    kubeconfig = plane.kubeconfig("eksbatch")
    with pytest.MonkeyPatch.context() as environ:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environ.setenv(name, "testing")
        with service_for(kubeconfig, home, *cloud, *pace, *watched, *options) as service:
            yield service.start()


def create_environment(
    service: RunningService, account: Account, name: str = "ce", **resources: Any
) -> Json:
    """A managed compute environment as soon as it has been looked into: VALID or INVALID."""
    batch = service.batch()
    batch.create_compute_environment(
        computeEnvironmentName=name,
        type="MANAGED",
        computeResources={
            "type": "EC2",
            "minvCpus": 0,
            "maxvCpus": 256,
            "instanceTypes": ["m5.large", "m5.xlarge"],
            "subnets": list(account.subnets.values()),
            "securityGroupIds": [account.security_group],
            "instanceRole": PROFILE,
            **resources,
        },
        eksConfiguration={"eksClusterArn": account.cluster, "kubernetesNamespace": NAMESPACE},
    )

    def settled() -> Json | None:
        told = batch.describe_compute_environments(computeEnvironments=[name])
        (one,) = told["computeEnvironments"]
        return one if one["status"] != "CREATING" else None

    return wait_for(f"{name} to be looked into", settled, within_s=60)


def create_queue(service: RunningService, *environments: str, name: str = "queue") -> None:
    order = [{"order": n, "computeEnvironment": e} for n, e in enumerate(environments, 1)]
    batch = service.batch()
    batch.create_job_queue(jobQueueName=name, priority=1, computeEnvironmentOrder=order)


def what_is_left(plane: ControlPlane, account: Account, service: RunningService) -> Json:
    """By kind: in the account, in the cluster and in the service's books; empty when all is gone."""
    now = service.get("/v1/eksbatch/summary")
    found = {
        **account.left(),
        "nodes": len(plane.admin.list("/api/v1/nodes")),
        "pods": len(plane.admin.list(f"/api/v1/namespaces/{NAMESPACE}/pods")),
        "nodes in the books": now["instances"]["now"],
        "vCPUs in the books": sum(each["vcpus"] for each in now["compute_environments"]),
    }
    return {kind: count for kind, count in found.items() if count}


def wait_for_nothing(plane: ControlPlane, account: Account, service: RunningService) -> None:
    def look() -> bool:
        return not what_is_left(plane, account, service)

    try:
        plane.wait_for("nothing to be left", look, within_s=60)
    except Gone:
        left = what_is_left(plane, account, service)
        raise AssertionError(f"left: {left}") from None
