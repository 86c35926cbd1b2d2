"""What the service asks of a cluster; adapters answer with facts, never with decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, ForgetPod
from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName


class BadPod(Exception):
    """The pod can never run here; the message says why."""


class ClusterDown(Exception):
    """The cluster cannot be reached now: the performer tries again."""


class Cluster(Protocol):
    """One cluster; many compute environments may share it."""

    async def start(self) -> None:
        """Connect and find again what runs already."""
        ...

    async def check(self, environment: ComputeEnvironment) -> str | None:
        """None when the environment can be used here, else the sentence that says why not."""
        ...

    async def create_pod(self, effect: CreatePod) -> Fact | None:
        """Create it on its node; a refusal comes back as PodRefused. 'Already there' is success."""
        ...

    async def delete_pod(self, effect: DeletePod) -> Fact | None:
        """Begin its end; the end itself arrives by watch. A pod that is not there comes back as PodEnded."""
        ...

    async def forget_pod(self, effect: ForgetPod) -> None:
        """Copy its output away and drop it."""
        ...

    def watch(self) -> AsyncIterator[list[Fact]]:
        """Pods and nodes as facts, in batches, for ever; full looks (PodsListed) from time to time and after a gap."""
        ...

    async def read_log(self, pod: PodName, offset: int, limit: int) -> tuple[bytes, int] | None:
        """Up to `limit` bytes of a pod's output from `offset` (negative: from the end) and the next offset; None if unknown."""
        ...

    async def stop(self) -> None: ...
