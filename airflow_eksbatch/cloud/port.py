"""What the service asks of a cloud; it says no by typed refusals, which are facts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode, TerminateStray
from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import Offering


class CloudDown(Exception):
    """The cloud cannot be reached now: the performer tries again."""


class Cloud(Protocol):
    async def start(self) -> None: ...

    async def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        """What this environment may buy. Raises ValueError with a sentence for types or subnets that do not exist."""
        ...

    async def launch(self, effects: list[LaunchNode]) -> list[Fact]:
        """Buy instances: InstanceLaunched or LaunchRefused for each. The node id is the token: a repeat buys nothing."""
        ...

    async def terminate(self, effects: list[TerminateNode | TerminateStray]) -> list[Fact]:
        """End instances; those that are not there any more come back as InstanceGone."""
        ...

    def watch(self) -> AsyncIterator[list[Fact]]:
        """Interruptions, ends and full looks (InstancesListed), for ever."""
        ...

    async def delete_environment(self, environment: str, uuid: str) -> None:
        """Take down what was made for it, whether or not it was ever looked into here."""
        ...

    async def stop(self) -> None: ...
