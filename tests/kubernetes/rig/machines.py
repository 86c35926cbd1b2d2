"""Two kinds of machines for the joiner: nodes that KWOK plays, by the hundred, and real ones with a kubelet."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import INSTANCE_TYPES, Size, eks_node, size_of
from tests.kubernetes.rig.joiner import UNINITIALIZED, Machine
from tests.kubernetes.rig.network import Network
from tests.kubernetes.rig.nodeadm import Misled, NodeConfig
from tests.kubernetes.rig.real_node import RealNode, Told

TAINT = {"key": UNINITIALIZED, "value": "true", "effect": "NoSchedule"}
CONNECT_WITHIN_S = 10.0


class FakeMachine:
    """There is nothing in it whose power could go: the Node object is all."""

    def end(self) -> None:
        return None


class KwokMachines:
    """They need `FakeNodes(plane)`, which lets them be Ready and plays their pods."""

    def __init__(self, plane: ControlPlane, ec2: Any) -> None:
        """`ec2`: a client, asked once what instance types are like."""
        self._plane = plane
        self._ec2 = ec2
        self._asking = threading.Lock()
        self._types: dict[str, dict[str, Any]] = {}

    def boot(self, machine: Machine, config: NodeConfig) -> FakeMachine:
        check_endpoint(config)
        node = eks_node(
            machine.node_name,
            instance_type=machine.instance_type,
            zone=machine.zone,
            labels=config.labels,
            taints=[*config.taints, TAINT],
            size=self._size(machine.instance_type, config.max_pods),
            provider_id=machine.provider_id,
        )
        self._plane.admin.create("/api/v1/nodes", node)
        return FakeMachine()

    def _size(self, instance_type: str, max_pods: int | None) -> Size:
        seen = INSTANCE_TYPES.get(instance_type)
        if seen is not None:
            return seen._replace(pods=str(max_pods or seen.pods))
        with self._asking:
            if not self._types:
                pages = self._ec2.get_paginator("describe_instance_types").paginate()
                self._types = {t["InstanceType"]: t for p in pages for t in p["InstanceTypes"]}
        told = self._types[instance_type]
        network = told["NetworkInfo"]
        each = network["Ipv4AddressesPerInterface"] - 1
        return size_of(
            told["VCpuInfo"]["DefaultVCpus"],
            told["MemoryInfo"]["SizeInMiB"],
            network["MaximumNetworkInterfaces"] * each + 2,
            max_pods,
        )


class RealMachines:
    """Kubelet, containerd and containers; whatever the instance type, it is as large as this machine."""

    def __init__(self, plane: ControlPlane, network: Network) -> None:
        self._plane = plane
        self._network = network

    def boot(self, machine: Machine, config: NodeConfig) -> RealMachine:
        check_endpoint(config)
        identities = self._plane.identities
        authority = self._plane.directory / f"{machine.instance_id}.crt"
        authority.write_bytes(config.authority)
        told = Told(
            kubeconfig=identities.kubeconfig_of_node(
                machine.node_name, server=config.endpoint, authority=authority
            ),
            authority=authority,
            kubelet={**config.kubelet, "providerID": machine.provider_id},
            flags=("--cloud-provider=external", *config.flags),
        )
        node = RealNode(self._plane, self._network, machine.node_name, told=told)
        return RealMachine(node=node)


class RealMachine(msgspec.Struct, frozen=True):
    node: RealNode

    def end(self) -> None:
        self.node.stop()


def check_endpoint(config: NodeConfig) -> None:
    """A kubelet would try for ever; here it is said at once. Raises Misled."""
    where = urlsplit(config.endpoint)
    if where.scheme != "https" or not where.hostname:
        raise Misled(f"{config.endpoint!r} is no address of an API server")
    try:
        context = ssl.create_default_context(cadata=config.authority.decode("ascii"))
        address = (where.hostname, where.port or 443)
        with socket.create_connection(address, CONNECT_WITHIN_S) as connection:
            context.wrap_socket(connection, server_hostname=where.hostname).close()
    except (OSError, ValueError) as error:
        raise Misled(f"{config.endpoint}: {error}") from error
