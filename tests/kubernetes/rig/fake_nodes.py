"""Nodes that KWOK plays, by the thousand: they look like EKS's, take pods and run nothing."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.airflow.rig import free_port
from tests.kubernetes.rig.control_plane import LOOPBACK, ControlPlane
from tests.kubernetes.rig.identities import KWOK

STAGES = {kind: Path(__file__).with_name(f"{kind}_stages.yaml") for kind in ("node", "pod")}
OURS = {"kwok.x-k8s.io/node": "fake"}


class Size(NamedTuple):
    """What a node reports: vCPUs, memory, and how much of both, and how many pods, it has for pods."""

    vcpus: str
    memory: str
    cpu_left: str
    memory_left: str
    pods: str


# As AL2023 nodes of EKS were seen.
INSTANCE_TYPES = {
    "m6i.large": Size("2", "7934296Ki", "1930m", "7244120Ki", "29"),
    "m6i.4xlarge": Size("16", "64303028Ki", "15890m", "61305780Ki", "234"),
    "m6i.16xlarge": Size("64", "259979276Ki", "63770m", "251361292Ki", "737"),
}
# Of what a type is sold with, the hypervisor and the kernel keep this much; of larger ones less.
MEMORY_LOST = 0.054
CREATED_AT_ONCE = 8

Json = dict[str, Any]


def size_of(vcpus: int, memory_mib: int, addresses: int, max_pods: int | None = None) -> Size:
    """What nodeadm's reservations leave; they go by how many pods the type has addresses for, whatever is allowed."""
    shares_m = [60, 10, 5, 5] + [2.5] * max(0, vcpus - 4)
    kept_m = sum(shares_m[:vcpus])
    there_kib = int(memory_mib * 1024 * (1 - MEMORY_LOST))
    left_kib = there_kib - (255 + 11 * addresses + 100) * 1024
    pods = max_pods or addresses
    cpu_left = f"{vcpus * 1000 - int(kept_m)}m"
    return Size(str(vcpus), f"{there_kib}Ki", cpu_left, f"{left_kib}Ki", str(pods))


def eks_node(
    name: str,
    *,
    instance_type: str = "m6i.large",
    zone: str = "us-east-1a",
    labels: Mapping[str, str] | None = None,
    taints: Iterable[Json] = (),
    size: Size | None = None,
    provider_id: str = "",
) -> Json:
    """A node as an EKS one registers itself; Ready comes later."""
    vcpus, memory, cpu_left, memory_left, pods = size or INSTANCE_TYPES[instance_type]
    room = {"ephemeral-storage": "18181869946", "hugepages-1Gi": "0", "hugepages-2Mi": "0"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": OURS,
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "kubernetes.io/hostname": name,
                "node.kubernetes.io/instance-type": instance_type,
                "topology.kubernetes.io/region": zone[:-1],
                "topology.kubernetes.io/zone": zone,
                **(labels or {}),
            },
        },
        "spec": {
            "providerID": provider_id or f"aws:///{zone}/i-{secrets.token_hex(8)[:17]}",
            "taints": [*taints],
        },
        "status": {
            "capacity": {"cpu": vcpus, "memory": memory, "pods": pods, **room},
            "allocatable": {"cpu": cpu_left, "memory": memory_left, "pods": pods, **room},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "containerd://2.1.5",
                "kernelVersion": "6.12.40-63.114.amzn2023.x86_64",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.34.1-eks-113cf36",
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "Amazon Linux 2023",
                "systemUUID": "",
            },
        },
    }


class FakeNodes:
    """KWOK beside a control plane, and the nodes that it plays; it is stopped with the control plane."""

    def __init__(self, plane: ControlPlane, *, run_pods: bool = True) -> None:
        """`run_pods=False`: pods stay as they were created, so that KWOK's own work is not measured."""
        self._plane = plane
        self._stages = [STAGES["node"], *([STAGES["pod"]] if run_pods else [])]
        self._numbers = itertools.count(1)
        self.start()

    def start(self) -> None:
        self._plane.start_part(
            "kwok",
            f"--kubeconfig={self._plane.kubeconfig(KWOK)}",
            *(f"--config={path}" for path in self._stages),
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={'='.join(*OURS.items())}",
            # Leases say that they live, as kubelets' do.
            "--node-lease-duration-seconds=40",
            f"--node-ip={LOOPBACK}",
            f"--server-address={LOOPBACK}:{free_port()}",
        )

    def stop(self) -> None:
        """Its nodes fall silent; the controllers notice after 50 s."""
        self._plane.stop_part("kwok")

    def add(self, *nodes: Json) -> list[str]:
        """Their names; nodes made by `eks_node`, Ready when this returns."""
        api = self._plane.admin
        with ThreadPoolExecutor(CREATED_AT_ONCE) as pool:
            created = [*pool.map(lambda node: api.create("/api/v1/nodes", node), nodes)]
        names = [node["metadata"]["name"] for node in created]
        self._plane.wait_for(f"{len(names)} nodes to be Ready", lambda: self._are_ready(names))
        return names

    def add_many(self, count: int, **like: Any) -> list[str]:
        """Alike but for their names; `like` is for `eks_node`."""
        numbers = itertools.islice(self._numbers, count)
        return self.add(*(eks_node(f"fake-{number}", **like) for number in numbers))

    def remove(self, name: str) -> None:
        """As a cloud's controller does when the instance is gone."""
        self._plane.admin.delete(f"/api/v1/nodes/{name}")

    def _are_ready(self, names: Iterable[str]) -> bool:
        found = {
            node["metadata"]["name"]: is_ready(node)
            for node in self._plane.admin.list("/api/v1/nodes")
        }
        return all(found.get(name) for name in names)


def is_ready(node: Json) -> bool:
    conditions = node["status"].get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
