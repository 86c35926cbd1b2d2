"""The machines that moto does not start: for every running instance a node boots, from its user data and nothing else.

    with Joiner(door.url, plane, KwokMachines(plane, nodes)) as joiner:
        joiner.delay_s = lambda instance: 3.0

It is the hardware, and EKS's cloud controller: it gives a node its instance's labels when it has joined, and takes the
Node object away when the instance has ended. Booted nodes hear of the cluster only what their user data says.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.kubernetes.rig.api import SaidNo
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.nodeadm import Misled, NodeConfig, read_user_data

REGION = "us-east-1"
LOOK_S = 0.2
AT_ONCE = 8
UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"

Json = dict[str, Any]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a booting machine knows of itself."""

    instance_id: str
    instance_type: str
    zone: str
    node_name: str
    """The private DNS name, as on EKS."""
    profile: str
    """ARN of the instance profile; empty without one."""

    @property
    def provider_id(self) -> str:
        return f"aws:///{self.zone}/{self.instance_id}"


class Booted(Protocol):
    def end(self) -> None:
        """The power goes."""


class Machines(Protocol):
    """What kind of machines there are."""

    def boot(self, machine: Machine, config: NodeConfig) -> Booted:
        """Once it has registered; Ready comes later. Raises Misled."""
        ...


class Joiner:
    def __init__(
        self,
        endpoint: str,
        plane: ControlPlane,
        machines: Machines,
        *,
        cluster: str = "main",
        look_s: float = LOOK_S,
    ) -> None:
        """`endpoint`: where EC2 is asked; `cluster`: what EKS calls `plane`."""
        self.delay_s: Callable[[Machine], float | None] = lambda machine: 0.0
        """From running to booted; None: it never comes up."""
        self.nodes: dict[str, str] = {}
        """Instance id -> node name, of all that have ever booted."""
        self.misled: dict[str, str] = {}
        """Instance id -> what its console says of why it did not join."""
        self._plane = plane
        self._machines = machines
        self._cluster = cluster
        self._look_s = look_s
        self._ec2 = _session().client(
            "ec2",
            endpoint_url=endpoint,
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=AT_ONCE + 1),
        )
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="joiner")
        self._thread = threading.Thread(target=self._run, name="joiner")
        self._stopping = threading.Event()
        self._due: dict[str, tuple[float | None, Machine]] = {}
        self._boots: dict[str, Future[Booted | None]] = {}
        self._ends: list[Future[None]] = []

    def __enter__(self) -> Joiner:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Machines go with it; what went wrong in it is raised here."""
        self._stopping.set()
        self._thread.join()
        for instance_id in [*self._boots]:
            self._end(instance_id)
        self._pool.shutdown()
        for end in self._ends:
            end.result()

    async def __aenter__(self) -> Joiner:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.__exit__)

    def machine_of(self, instance_id: str) -> Any:
        """What `Machines.boot` answered; None while it has not booted."""
        boot = self._boots.get(instance_id)
        return boot.result() if boot is not None and boot.done() else None

    # ---- what EC2 says

    def _run(self) -> None:
        while not self._stopping.wait(self._look_s):
            try:
                there = self._running()
            except (ClientError, BotoCoreError):
                # EC2 may be made to say no; machines do not ask it whether they may run.
                continue
            for instance_id in (self._due.keys() | self._boots.keys()) - there.keys():
                self._due.pop(instance_id, None)
                if instance_id in self._boots:
                    self._end(instance_id)
            for instance_id in there.keys() - self._due.keys() - self._boots.keys():
                machine = machine_from(there[instance_id])
                delay_s = self.delay_s(machine)
                due = None if delay_s is None else time.monotonic() + delay_s
                self._due[instance_id] = (due, machine)
            for instance_id, (due, machine) in [*self._due.items()]:
                if due is not None and due <= time.monotonic():
                    del self._due[instance_id]
                    self._boots[instance_id] = self._pool.submit(self._boot, machine)

    def _running(self) -> dict[str, Json]:
        wanted = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        pages = self._ec2.get_paginator("describe_instances").paginate(Filters=wanted)
        return {
            instance["InstanceId"]: instance
            for page in pages
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        }

    # ---- the life of a machine

    def _boot(self, machine: Machine) -> Booted | None:
        try:
            config = read_user_data(self._user_data(machine.instance_id))
            self._check_identity(machine, config)
            booted = self._machines.boot(machine, config)
        except Misled as misled:
            self.misled[machine.instance_id] = str(misled)
            return None
        self._initialize(machine)
        self.nodes[machine.instance_id] = machine.node_name
        return booted

    def _user_data(self, instance_id: str) -> bytes:
        told = self._ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
        return base64.b64decode(told.get("UserData", {}).get("Value") or "")

    def _check_identity(self, machine: Machine, config: NodeConfig) -> None:
        """A node shows the API server a token of its role for the cluster that it believes it is in."""
        if not machine.profile:
            raise Misled("Unauthorized: the machine has no role")
        if config.cluster != self._cluster:
            raise Misled(f"Unauthorized: the token is for the cluster {config.cluster}")

    def _initialize(self, machine: Machine) -> None:
        """As the cloud controller does with a node that has registered."""
        path = f"/api/v1/nodes/{machine.node_name}"
        labels = {
            "node.kubernetes.io/instance-type": machine.instance_type,
            "topology.kubernetes.io/region": machine.zone[:-1],
            "topology.kubernetes.io/zone": machine.zone,
        }
        admin = self._plane.admin

        def initialize() -> bool:
            node = admin.get(path)
            taints = [t for t in node["spec"].get("taints", ()) if t["key"] != UNINITIALIZED]
            version = node["metadata"]["resourceVersion"]
            metadata = {"labels": labels, "resourceVersion": version}
            try:
                admin.patch(path, {"metadata": metadata, "spec": {"taints": taints}})
            except SaidNo as no:
                # Others give a new node taints at the same time.
                if no.status != 409:
                    raise
                return False
            return True

        self._plane.wait_for(f"{machine.node_name} to be initialized", initialize)

    def _end(self, instance_id: str) -> None:
        boot = self._boots.pop(instance_id)
        self._ends.append(self._pool.submit(self._end_when_booted, instance_id, boot))

    def _end_when_booted(self, instance_id: str, boot: Future[Booted | None]) -> None:
        booted = boot.result()
        if booted is None:
            return
        booted.end()
        try:
            self._plane.admin.delete(f"/api/v1/nodes/{self.nodes[instance_id]}")
        except SaidNo as no:
            if no.status != 404:
                raise


@functools.cache
def _session() -> boto3.Session:
    """It reads the models of AWS's services, which takes longer than most tests."""
    return boto3.Session("joiner", "joiner", region_name=REGION)


def machine_from(instance: Json) -> Machine:
    return Machine(
        instance_id=instance["InstanceId"],
        instance_type=instance["InstanceType"],
        zone=instance["Placement"]["AvailabilityZone"],
        node_name=instance["PrivateDnsName"],
        profile=instance.get("IamInstanceProfile", {}).get("Arn", ""),
    )
