"""Many lives of one service against one account, with faults at EC2's door: nothing twice, nothing left."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from airflow_eksbatch.cloud.aws import launches
from airflow_eksbatch.cloud.aws.sightings import seen_from
from airflow_eksbatch.cloud.ec2 import Ec2Cloud
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode, TerminateStray
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchAlone,
    LaunchRefused,
)
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.floor.clock import Backoff
from tests.cloud.account import Account, a_lot, terminate
from tests.cloud.door import Door
from tests.cloud.watching import asynchronous

ROUNDS = 12
FAULTS = (
    {"code": "InsufficientInstanceCapacity", "status": 500},
    {"code": "VcpuLimitExceeded"},
    {"code": "RequestLimitExceeded", "status": 503},
    {"code": "InternalError", "status": 500},
    {"code": "InternalError", "status": 500, "after": True},
    {"code": "Unavailable", "status": 503, "after": True},
)


class Memory:
    """What a service has committed: which nodes it wants, and what it was told of them."""

    def __init__(self) -> None:
        self.wanted: dict[NodeId, LaunchNode] = {}
        self.instances: dict[NodeId, str | None] = {}
        self.ending: set[NodeId] = set()

    def take(self, facts: list[Fact]) -> list[TerminateStray]:
        strays: list[TerminateStray] = []
        for fact in facts:
            match fact:
                case InstanceLaunched(node_id=node_id) if node_id in self.wanted:
                    self.instances[node_id] = fact.instance_id
                case LaunchAlone(node_id=node_id) if node_id in self.wanted:
                    alone = {"together": (), "all_or_none": False}
                    self.wanted[node_id] = msgspec.structs.replace(self.wanted[node_id], **alone)
                case LaunchRefused(node_id=node_id) | InstanceGone(node_id=node_id):
                    for kept in (self.wanted, self.instances):
                        kept.pop(node_id, None)
                    self.ending.discard(node_id)
                case InstancesListed():
                    strays += [
                        TerminateStray(instance_id=i, compute_environment="ce")
                        for node_id, i in fact.instances.items()
                        if node_id not in self.wanted
                    ]
                case _:
                    pass
        return strays

    def to_launch(self) -> list[LaunchNode]:
        return [
            effect
            for node_id, effect in self.wanted.items()
            if node_id not in self.instances and node_id not in self.ending
        ]

    def to_end(self) -> list[TerminateNode]:
        return [terminate(self.wanted[n], self.instances.get(n)) for n in sorted(self.ending)]


async def revived(account: Account, dead: Ec2Cloud | None = None) -> Ec2Cloud:
    """The service after a crash: only tags know what the one before it did last."""
    if dead is not None:
        await dead.stop()
    cloud = account.cloud()
    await cloud.offerings(account.environment())
    return cloud


@pytest.mark.parametrize("seed", range(6))
@asynchronous
async def test_whatever_goes_wrong_no_node_has_two_instances_and_none_is_left(
    account: Account, door: Door, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """
    1. Nodes are asked for, alone and together, some are not wanted any more, while EC2 refuses, throttles and loses answers.
    2. Now and then the service dies before it has committed what it was told.
    3. In the end all nodes are ended, and a full look finds the strays.
    """
    monkeypatch.setattr(launches, "PAUSE", Backoff(first_s=0.001))
    monkeypatch.setattr(launches, "PAUSES_MAX", 2)
    luck, memory = random.Random(seed), Memory()
    cloud = await revived(account)
    offerings = await cloud.offerings(account.environment())
    for number in range(ROUNDS):
        size, all_or_none = luck.choice((1, 1, 2, 3)), luck.random() < 0.5
        for effect in a_lot(luck.choice(offerings), 10 * number, size, all_or_none=all_or_none):
            memory.wanted[effect.node_id] = effect
        room = luck.choice((1, 2, 1_000))
        door.room = lambda form, room=room: room
        if luck.random() < 0.6:
            fault = dict(luck.choice(FAULTS))
            door.refuse("RunInstances", **fault, times=luck.choice((1, 1, 2)))
        if luck.random() < 0.3:
            memory.ending.add(luck.choice(sorted(memory.wanted)))
        # Half of these lives EC2 is slow to show what it has, the other half quick to forget tokens: never both at once.
        if seed % 2:
            door.shows_instances = luck.random() < 0.5
        elif luck.random() < 0.5:
            door.tokens.clear()
        facts: list[Fact] = []
        try:
            facts += await cloud.launch(memory.to_launch())
            facts += await cloud.terminate([*memory.to_end()])
        except CloudDown:
            pass
        door.shows_instances = True
        if luck.random() < 0.3:
            cloud = await revived(account, cloud)
        else:
            memory.take(facts)
        counts = Counter(seen_from(i).node_id for i in account.instances())
        assert not counts or max(counts.values()) == 1
    door.faults.clear()
    door.room = lambda form: 1_000
    memory.ending |= set(memory.wanted)
    cloud = await revived(account, cloud)
    memory.take(await cloud.terminate([*memory.to_end()]))
    assert memory.wanted == {}
    strays = memory.take(await anext(aiter(cloud.watch())))
    await cloud.terminate([*strays])
    assert account.left() == {}
    await cloud.stop()
