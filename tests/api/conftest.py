"""One real service for all tests of the API; each test makes names of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.api.asking import Raw
from tests.service.conftest import make_service
from tests.service.running import RunningService

__all__ = ["make_service"]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    home = tmp_path_factory.mktemp("api")
    with RunningService(
        home, "--launch-delay-s", "0.1", "--idle-s", "5", "--check-plans"
    ) as running:
        yield running


@pytest.fixture(scope="session")
def batch(service: RunningService) -> Any:
    """boto3's client with its own defaults."""
    return service.batch()


@pytest.fixture
def unique() -> Callable[[str], str]:
    """A name that no other test has."""
    return lambda name: f"{name}-{next(_numbers)}"


@pytest.fixture
def queue(batch: Any, unique: Callable[[str], str]) -> str:
    """A first-in-first-out queue of its own that runs jobs."""
    name = unique("fifo")
    order = [{"order": 1, "computeEnvironment": "on-demand"}]
    batch.create_job_queue(jobQueueName=name, priority=1, computeEnvironmentOrder=order)
    return name


@pytest.fixture
def idle_queue(batch: Any, unique: Callable[[str], str]) -> str:
    """A queue of its own whose environment is switched off: its jobs stay RUNNABLE."""
    environment, name = unique("off"), unique("waiting")
    batch.create_compute_environment(
        **an_environment(environment, maxvCpus=8), state="DISABLED", tags={"for": "waiting"}
    )
    order = [{"order": 1, "computeEnvironment": environment}]
    batch.create_job_queue(jobQueueName=name, priority=1, computeEnvironmentOrder=order)
    return name


def an_environment(name: str, **resources: Any) -> dict[str, Any]:
    """Input of CreateComputeEnvironment for EKS."""
    return {
        "computeEnvironmentName": name,
        "type": "MANAGED",
        "computeResources": {
            "type": "EC2",
            "maxvCpus": 8,
            "subnets": ["subnet-1"],
            "instanceTypes": ["optimal"],
            **resources,
        },
        "eksConfiguration": {
            "eksClusterArn": "arn:aws:eks:us-east-1:000000000000:cluster/local",
            "kubernetesNamespace": "jobs",
        },
    }


@pytest.fixture
def raw(service: RunningService) -> Raw:
    return Raw(service.url)
