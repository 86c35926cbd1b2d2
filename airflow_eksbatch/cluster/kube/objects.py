"""What we read of Kubernetes objects: everything else in them is skipped while decoding, which is most of the cost."""

from __future__ import annotations

import math
import re
from datetime import datetime

import msgspec

from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.resources import Resources


class _Object(msgspec.Struct, frozen=True, rename="camel"):
    """Fields we do not know are no error: API servers are newer than we are."""


class OwnerReference(_Object, frozen=True):
    kind: str = ""
    uid: str = ""


class Metadata(_Object, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = {}
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    owner_references: list[OwnerReference] = []


class Condition(_Object, frozen=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


# ---- pods


class ResourceLists(_Object, frozen=True):
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class ContainerSpec(_Object, frozen=True):
    name: str
    resources: ResourceLists = ResourceLists()
    restart_policy: str = ""

    @property
    def is_sidecar(self) -> bool:
        """An init container that runs beside the others, as long as they do; how it ends says nothing."""
        return self.restart_policy == "Always"


class Toleration(_Object, frozen=True):
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class Requirement(_Object, frozen=True):
    key: str
    operator: str
    values: list[str] = []


class Term(_Object, frozen=True):
    match_expressions: list[Requirement] = []
    match_fields: list[Requirement] = []


class NodeSelector(_Object, frozen=True):
    node_selector_terms: list[Term] = []


class NodeAffinity(_Object, frozen=True):
    required: NodeSelector | None = msgspec.field(
        name="requiredDuringSchedulingIgnoredDuringExecution", default=None
    )


class Affinity(_Object, frozen=True):
    node_affinity: NodeAffinity | None = None


class PodSpec(_Object, frozen=True):
    node_name: str = ""
    containers: list[ContainerSpec] = []
    init_containers: list[ContainerSpec] = []
    overhead: dict[str, str] = {}
    resources: ResourceLists = ResourceLists()
    """Of the pod as a whole, where it has such: then they count, and not those of its containers."""
    node_selector: dict[str, str] = {}
    affinity: Affinity | None = None
    tolerations: list[Toleration] = []


class Waiting(_Object, frozen=True):
    reason: str = ""
    message: str = ""


class Running(_Object, frozen=True):
    started_at: str | None = None


class Terminated(_Object, frozen=True):
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None


class ContainerState(_Object, frozen=True):
    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Object, frozen=True):
    name: str
    state: ContainerState = ContainerState()


class PodStatus(_Object, frozen=True):
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    conditions: list[Condition] = []
    container_statuses: list[ContainerStatus] = []
    init_container_statuses: list[ContainerStatus] = []


class Pod(_Object, frozen=True):
    metadata: Metadata = Metadata()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_of_jobs(self) -> bool:
        """Labels are copied; that a pod tolerates our taint by name nobody else may say (docker/kubernetes.yaml)."""
        return any(one.key == labels.TAINT for one in self.spec.tolerations)

    @property
    def is_over(self) -> bool:
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def is_ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)


# ---- nodes and DaemonSets


class Taint(_Object, frozen=True):
    key: str
    effect: str
    value: str = ""


class NodeSpec(_Object, frozen=True):
    provider_id: str = msgspec.field(name="providerID", default="")
    unschedulable: bool = False
    taints: list[Taint] = []


class NodeState(_Object, frozen=True):
    capacity: dict[str, str] = {}
    allocatable: dict[str, str] = {}
    conditions: list[Condition] = []


class KubeNode(_Object, frozen=True):
    metadata: Metadata = Metadata()
    spec: NodeSpec = NodeSpec()
    status: NodeState = NodeState()

    @property
    def instance_id(self) -> str | None:
        """The last part of `aws:///zone/i-...`."""
        last = self.spec.provider_id.rsplit("/", 1)[-1]
        return last if last.startswith("i-") else None


class PodTemplate(_Object, frozen=True):
    spec: PodSpec = PodSpec()


class DaemonSetSpec(_Object, frozen=True):
    template: PodTemplate = PodTemplate()


class DaemonSet(_Object, frozen=True):
    metadata: Metadata = Metadata()
    spec: DaemonSetSpec = DaemonSetSpec()


# ---- quantities

_QUANTITY = re.compile(r"([+-]?[0-9.]+)([eE][+-]?[0-9]+|[KMGTPE]i?|[numk]?)\Z")
_FACTORS = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
    "Ei": 2.0**60,
}
MIB = 2.0**20


def read_quantity(text: str) -> float:
    """`250m`, `1.5Gi`, `2e3` as a number. Raises ValueError."""
    match = _QUANTITY.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    number, suffix = match.groups()
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return float(number + suffix)
    return float(number) * _FACTORS[suffix]


def room_of(amounts: dict[str, str]) -> Resources:
    """What a node has: rounded down, so that nothing is given away that is not there."""
    return Resources(
        cpu_m=int(read_quantity(amounts.get("cpu", "0")) * 1000 + 1e-6),
        memory_mib=int(read_quantity(amounts.get("memory", "0")) / MIB),
        gpu=int(read_quantity(amounts.get("nvidia.com/gpu", "0"))),
        pods=int(read_quantity(amounts.get("pods", "0"))),
    )


def requests_of(spec: PodSpec) -> Resources:
    """What a kubelet books for a pod, rounded up: containers with sidecars, or the largest init container."""
    sidecars: list[dict[str, float]] = []
    largest: dict[str, float] = {}
    for container in spec.init_containers:
        own = _requests(container)
        if container.is_sidecar:
            sidecars.append(own)
            own = {}
        for key, value in _sum([*sidecars, own]).items():
            largest[key] = max(largest.get(key, 0.0), value)
    lasting = _sum([*sidecars, *(_requests(c) for c in spec.containers)])
    overhead = {key: read_quantity(text) for key, text in spec.overhead.items()}
    peak = {key: max(lasting.get(key, 0.0), largest.get(key, 0.0)) for key in lasting | largest}
    total = _sum([{**peak, **_requests(spec)}, overhead])
    return Resources(
        cpu_m=math.ceil(total.get("cpu", 0.0) * 1000 - 1e-6),
        memory_mib=math.ceil(total.get("memory", 0.0) / MIB),
        gpu=int(total.get("nvidia.com/gpu", 0.0)),
        pods=1,
    )


def _requests(of: ContainerSpec | PodSpec) -> dict[str, float]:
    given = {**of.resources.limits, **of.resources.requests}
    return {key: read_quantity(text) for key, text in given.items()}


def _sum(amounts: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for amount in amounts:
        for key, value in amount.items():
            total[key] = total.get(key, 0.0) + value
    return total


def epoch_ms(text: str | None) -> int | None:
    """A Kubernetes timestamp as epoch milliseconds."""
    return None if text is None else int(datetime.fromisoformat(text).timestamp() * 1000)
