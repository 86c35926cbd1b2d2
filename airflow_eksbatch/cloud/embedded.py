"""Simulated instances on this machine: launch delay, limited capacity, Spot reclaim, settable.

Instances outlive the service: they stand in one file that is written before anybody is told of a
change, and what time does to them (boot, the end after a Spot notice) is worked out from the wall
clock, so it happens even while no service runs. An instance ends in this order: its pods are
killed, its end is written, then it is told: nothing is run again while it still runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from airflow_eksbatch.cloud.instances import (
    CloudSettings,
    Instance,
    InstanceBook,
    instance_id_of,
)
from airflow_eksbatch.cloud.offerings import Catalogue, SimulatedCatalogue
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode, TerminateStray
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchRefused,
    SpotInterrupted,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import INSTANCE_TERMINATED, INSTANCE_UNKNOWN
from airflow_eksbatch.floor.clock import now_ms, within
from airflow_eksbatch.floor.feeds import Feeds, next_facts

# A full look heals lost news; it costs one pass over the instances.
FULL_LOOK_S = 30.0
CONTROLS = ("launch_delay_s", "reclaim_notice_s", "capacity", "reclaim")


class Hosts(Protocol):
    """The cluster, as far as instances join it and leave it."""

    def add_node(
        self,
        node_id: NodeId,
        *,
        instance_id: str,
        node_name: str,
        compute_environment: str,
        allocatable: Resources,
    ) -> None:
        """The instance has booted: its node takes pods from now on. Twice is harmless."""
        ...

    async def remove_node(self, node_id: NodeId, instance_id: str) -> None:
        """Kill what runs there; returns when nothing does any more."""
        ...

    def node_ids(self) -> frozenset[NodeId]:
        """Nodes that are there, or that pods say they run on."""
        ...

    def pods_on(self, node_id: NodeId) -> int:
        """How many pods run there now."""
        ...


class EmbeddedCloud:
    """Sells what its catalogue lists. Start it after the cluster, which `hosts` is."""

    def __init__(
        self,
        directory: Path,
        hosts: Hosts,
        *,
        catalogue: Catalogue | None = None,
        settings: CloudSettings | None = None,
    ) -> None:
        self._book = InstanceBook(directory / "instances.json")
        self._hosts = hosts
        self._catalogue = catalogue or SimulatedCatalogue()
        self._settings = settings or CloudSettings()
        self._environments: set[str] = set()
        self._joined: set[NodeId] = set()
        self._endings: dict[NodeId, asyncio.Task[InstanceGone]] = {}
        self._feeds = Feeds()
        self._woken = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None
        self._unsaved: OSError | None = None

    # ---- the port

    async def start(self) -> None:
        """Find the instances again; those whose time came meanwhile boot or end now."""
        self._book.load()
        for node_id in self._hosts.node_ids() - self._book.live.keys():
            await self._hosts.remove_node(node_id, instance_id_of(node_id))
        self._pass_time()
        self._clock = asyncio.create_task(self._keep_time(), name="embedded-cloud")

    async def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        found = self._catalogue.offerings(environment)
        self._environments.add(environment.name)
        return found

    async def launch(self, effects: list[LaunchNode]) -> list[Fact]:
        answers = [self._launch(effect) for effect in effects]
        self._save()
        if self._unsaved is not None:
            raise CloudDown(f"Instances cannot be written down: {self._unsaved}")
        self._woken.set()
        return answers

    async def terminate(self, effects: list[TerminateNode | TerminateStray]) -> list[Fact]:
        facts: list[Fact] = []
        endings: list[asyncio.Task[InstanceGone]] = []
        for effect in effects:
            node_id = self._node_of(effect)
            if node_id is None:
                continue
            if node_id in self._book.live:
                endings.append(self._begin_end(node_id, INSTANCE_TERMINATED))
            elif node_id in self._book.ended:
                facts.append(self._book.ended[node_id].gone)
            else:
                gone = InstanceGone(node_id=node_id, at=now_ms(), reason=INSTANCE_UNKNOWN)
                facts.append(gone)
        return facts + list(await asyncio.gather(*map(asyncio.shield, endings)))

    async def watch(self) -> AsyncIterator[list[Fact]]:
        with self._feeds.open() as feed:
            yield self._untold() + self._full_look()
            looked_at = time.monotonic()
            while True:
                facts = await next_facts(feed, looked_at + FULL_LOOK_S - time.monotonic())
                if not facts:
                    facts, looked_at = self._full_look(), time.monotonic()
                yield facts

    async def delete_environment(self, environment: str, uuid: str) -> None:
        self._environments.discard(environment)
        left = [i for i in self._book.live.values() if i.compute_environment == environment]
        endings = [self._begin_end(i.node_id, "Compute environment was deleted") for i in left]
        await asyncio.gather(*map(asyncio.shield, endings))

    async def stop(self) -> None:
        """Instances stay; the next start finds them."""
        clock = [] if self._clock is None else [self._clock]
        for task in clock:
            task.cancel()
        await asyncio.gather(*clock, *self._endings.values(), return_exceptions=True)

    # ---- what people may do to it

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """Change settings, or take a Spot instance back; answers what is so now.

        `reclaim` takes a node id, an instance id or "any-spot". Raises Rejected.
        """
        for name in request:
            if name not in CONTROLS:
                raise Rejected(f"The embedded cloud knows no {name!r}; use {', '.join(CONTROLS)}.")
        self._settings.change(request)
        reclaimed = {"reclaimed": self._reclaim(request["reclaim"])} if "reclaim" in request else {}
        instances = {
            i.node_id: {"instanceId": i.instance_id, "pool": i.offering.pool}
            for i in self._book.live.values()
        }
        return {**reclaimed, **msgspec.to_builtins(self._settings), "instances": instances}

    def _reclaim(self, whom: object) -> NodeId:
        """Give notice to one Spot instance; of any, the one with the most pods."""
        spot = [
            instance
            for instance in self._book.live.values()
            if instance.offering.market is Market.SPOT
            and instance.interrupted_at is None
            and instance.node_id not in self._endings
            and whom in ("any-spot", instance.node_id, instance.instance_id)
        ]
        if not spot:
            raise Rejected(
                f"reclaim {whom!r}: there is no such Spot instance without a notice; use a node "
                f'id, an instance id or "any-spot".'
            )
        instance = max(spot, key=lambda i: (self._hosts.pods_on(i.node_id), i.node_id))
        now = now_ms()
        instance.interrupted_at = now
        instance.reclaim_at = now + int(self._settings.reclaim_notice_s * 1000)
        self._save()
        self._feeds.tell([SpotInterrupted(node_id=instance.node_id, at=now)])
        self._woken.set()
        return instance.node_id

    # ---- instances

    def _launch(self, effect: LaunchNode) -> Fact:
        offering, node_id, now = effect.offering, effect.node_id, now_ms()
        if node_id in self._book.ended:
            return self._book.ended[node_id].gone
        instance = self._book.live.get(node_id)
        if instance is None:
            room = self._settings.capacity_of(offering.pool) - self._book.count_in(offering.pool)
            wanted = effect.together if effect.all_or_none else (node_id,)
            live, ended = self._book.live, self._book.ended
            if room < sum(one not in live and one not in ended for one in wanted):
                return LaunchRefused(
                    node_id=node_id,
                    code="InsufficientInstanceCapacity",
                    message=f"There is no {offering.instance_type} capacity left in "
                    f"{offering.zone} ({offering.market.value}).",
                    at=now,
                )
            instance = self._book.live[node_id] = Instance(
                node_id=node_id,
                instance_id=instance_id_of(node_id),
                compute_environment=effect.compute_environment,
                offering=offering,
                launched_at=now,
                ready_at=now + int(self._settings.launch_delay_s * 1000),
            )
        return InstanceLaunched(
            node_id=node_id, instance_id=instance.instance_id, at=instance.launched_at
        )

    def _node_of(self, effect: TerminateNode | TerminateStray) -> NodeId | None:
        if isinstance(effect, TerminateNode):
            return effect.node_id
        instance = self._book.find(effect.instance_id)
        return None if instance is None else instance.node_id

    def _begin_end(
        self, node_id: NodeId, reason: str, *, reclaimed: bool = False
    ) -> asyncio.Task[InstanceGone]:
        """One task for each end, however often it is asked for."""
        if node_id not in self._endings:
            ending = self._end(self._book.live[node_id], reason, reclaimed=reclaimed)
            task = self._endings[node_id] = asyncio.create_task(ending)
            task.add_done_callback(lambda _: self._endings.pop(node_id, None))
        return self._endings[node_id]

    async def _end(self, instance: Instance, reason: str, *, reclaimed: bool) -> InstanceGone:
        await self._hosts.remove_node(instance.node_id, instance.instance_id)
        self._book.end(instance, reason, reclaimed=reclaimed)
        self._joined.discard(instance.node_id)
        self._save()
        self._feeds.tell([instance.gone])
        return instance.gone

    # ---- time

    async def _keep_time(self) -> None:
        while True:
            self._woken.clear()
            self._pass_time()
            times = [at for i in self._book.live.values() for at in self._times_of(i)]
            wait_s = max(0.0, (min(times) - now_ms()) / 1000) if times else None
            await within(wait_s, self._woken)

    def _times_of(self, instance: Instance) -> list[int]:
        """When time does something to it next."""
        if instance.node_id in self._endings:
            return []
        times = [] if instance.node_id in self._joined else [instance.ready_at]
        return times if instance.reclaim_at is None else [*times, instance.reclaim_at]

    def _pass_time(self) -> None:
        """Boot and end what is due."""
        now = now_ms()
        for instance in list(self._book.live.values()):
            if instance.node_id in self._endings:
                continue
            if instance.reclaim_at is not None and instance.reclaim_at <= now:
                reason = "Spot instance was reclaimed"
                self._begin_end(instance.node_id, reason, reclaimed=True)
            elif instance.ready_at <= now and instance.node_id not in self._joined:
                self._join(instance)

    def _join(self, instance: Instance) -> None:
        self._joined.add(instance.node_id)
        self._hosts.add_node(
            instance.node_id,
            instance_id=instance.instance_id,
            node_name=f"{instance.instance_id}.ec2.internal",
            compute_environment=instance.compute_environment,
            allocatable=instance.offering.allocatable,
        )

    # ---- keeping and telling

    def _save(self) -> None:
        """A full disk stops new launches (CloudDown), never an end."""
        try:
            self._book.save()
            self._unsaved = None
        except OSError as error:
            self._unsaved = error

    def _untold(self) -> list[Fact]:
        """Notices and ends that may have come while nobody watched."""
        facts: list[Fact] = [instance.gone for instance in self._book.ended.values()]
        for instance in self._book.live.values():
            if instance.interrupted_at is not None:
                at = instance.interrupted_at
                facts.append(SpotInterrupted(node_id=instance.node_id, at=at))
        return facts

    def _full_look(self) -> list[Fact]:
        found: dict[str, dict[str, str]] = {name: {} for name in sorted(self._environments)}
        for instance in self._book.live.values():
            listed = found.setdefault(instance.compute_environment, {})
            listed[instance.node_id] = instance.instance_id
        now = now_ms()
        return [
            InstancesListed(compute_environment=name, instances=listed, at=now)
            for name, listed in found.items()
        ]
