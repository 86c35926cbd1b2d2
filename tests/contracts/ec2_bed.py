"""EC2 for the contract suite: moto behind its door, and for each instance a machine on which pods run as processes.

A machine is told nothing but its instance's user data, loses its power before EC2 says that it has ended, and outlives
the service.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from werkzeug.wrappers import Response

from airflow_eksbatch.cloud.ec2 import Ec2Cloud
from airflow_eksbatch.cluster.local import LocalCluster
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from tests.cloud.account import Account
from tests.cloud.door import Door, Form
from tests.kubernetes.rig.nodeadm import read_user_data

POWER_S = 60


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: str
    instance_type: str
    subnet: str
    node_id: NodeId
    uuid: str


class PoweredDoor(Door):
    """The door, and the machines behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.machines: dict[str, Machine] = {}
        self.power_on: Callable[[Machine], None] = lambda machine: None
        self.power_off: Callable[[Machine], None] = lambda machine: None

    def _fresh_answer(self, action: str, form: Form, environ: dict[str, Any]) -> Response:
        if action == "TerminateInstances":
            for instance_id in [v for k, v in form.items() if k.startswith("InstanceId.")]:
                if instance_id in self.machines:
                    self.power_off(self.machines.pop(instance_id))
        response = super()._fresh_answer(action, form, environ)
        if action == "RunInstances" and response.status_code == 200:
            for machine in machines_from(form, response.get_data(as_text=True)):
                self.machines[machine.instance_id] = machine
                self.power_on(machine)
        return response


def machines_from(form: Form, answer: str) -> list[Machine]:
    """One that was asked for with others is told no node id: it is known by its instance's."""
    told = read_user_data(base64.b64decode(form["UserData"])).labels
    return [
        Machine(
            instance_id=instance_id,
            instance_type=form["InstanceType"],
            subnet=next(v for k, v in sorted(form.items()) if k.endswith("SubnetId")),
            node_id=NodeId(told.get(labels.NODE_UID) or instance_id),
            uuid=told[labels.ENVIRONMENT_UUID],
        )
        for instance_id in re.findall(r"<instanceId>(i-[0-9a-f]+)</instanceId>", answer)
    ]


class Ec2Ways:
    """What a bed needs of an account: environments, clouds, machines, and how capacity is made scarce."""

    def __init__(self, door: PoweredDoor) -> None:
        self.door = door
        door.empty()
        door.machines.clear()
        self.account = Account(door)
        self.names: dict[str, str] = {}

    def make(self) -> Ec2Cloud:
        return self.account.cloud()

    def describe(self, name: str, **resources: Any) -> ComputeEnvironment:
        environment = self.account.environment(name, market=Market.SPOT, **resources)
        self.names[environment.uuid] = name
        return environment

    @contextmanager
    def powered(self, cluster: LocalCluster) -> Iterator[None]:
        """Machines of this account are nodes of that cluster."""
        loop = asyncio.get_running_loop()

        def power_on(machine: Machine) -> None:
            loop.call_soon_threadsafe(self._join, cluster, machine)

        def power_off(machine: Machine) -> None:
            gone = cluster.remove_node(machine.node_id, machine.instance_id)
            asyncio.run_coroutine_threadsafe(gone, loop).result(POWER_S)

        for machine in self.door.machines.values():
            self._join(cluster, machine)
        self.door.power_on, self.door.power_off = power_on, power_off
        try:
            yield
        finally:
            self.door.power_on = self.door.power_off = lambda machine: None

    def _join(self, cluster: LocalCluster, machine: Machine) -> None:
        cluster.add_node(
            machine.node_id,
            instance_id=machine.instance_id,
            node_name=f"ip-{machine.instance_id}",
            compute_environment=self.names[machine.uuid],
            allocatable=Resources(cpu_m=1_900, memory_mib=6_000, pods=29),
        )

    def control(self, request: dict[str, Any]) -> dict[str, Any]:
        """As much as the suite asks for: {"capacity": {"type/zone/market": number}}."""
        for pool, number in request["capacity"].items():
            instance_type, zone, _ = pool.split("/")
            subnet = self.account.subnets[zone]

            def is_full(
                form: Form, kind: str = instance_type, subnet: str = subnet, most: int = number
            ) -> bool:
                there = [m for m in self.door.machines.values() if m.instance_type == kind]
                wanted = form["InstanceType"] == kind and subnet in form.values()
                left = most - sum(m.subnet == subnet for m in there)
                return wanted and left < int(form["MinCount"])

            self.door.refuse(
                "RunInstances",
                "InsufficientInstanceCapacity",
                status=500,
                message=f"There is no Spot capacity for {instance_type} in {zone}.",
                when=is_full,
            )
        return {}
