"""No cloud: nothing is bought, and machines are others' (UNMANAGED compute environments)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode, TerminateStray
from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import Offering

NO_CLOUD = (
    "this service buys no instances. Create the compute environment with type UNMANAGED and label your nodes, "
    "or start the service with a cloud"
)


class NoCloud:
    """Says so whenever it is asked for a machine."""

    async def start(self) -> None:
        return None

    async def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        raise ValueError(f"{environment.name} is MANAGED, but {NO_CLOUD}.")

    async def launch(self, effects: list[LaunchNode]) -> list[Fact]:
        raise CloudDown(f"Nothing can be launched: {NO_CLOUD}.")

    async def terminate(self, effects: list[TerminateNode | TerminateStray]) -> list[Fact]:
        """Bought while there was a cloud: nobody may say that they have ended, so nothing of theirs runs again."""
        raise CloudDown(f"Nothing can be terminated: {NO_CLOUD}.")

    async def watch(self) -> AsyncIterator[list[Fact]]:
        await asyncio.Event().wait()
        yield []

    async def delete_environment(self, environment: str, uuid: str) -> None:
        return None

    async def stop(self) -> None:
        return None
