"""One service for all foreigners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.running import RunningService


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("clients"), "--launch-delay-s", "0.1") as running:
        yield running


@pytest.fixture(scope="session")
def batch(service: RunningService) -> Any:
    return service.batch()


@pytest.fixture(scope="session")
def queue(batch: Any) -> str:
    """A queue without shares, as most are."""
    order = [{"order": 1, "computeEnvironment": "on-demand"}]
    batch.create_job_queue(jobQueueName="plain", priority=1, computeEnvironmentOrder=order)
    return "plain"
