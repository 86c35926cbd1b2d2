"""Nodes and the offerings they are bought from."""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Mapping
from typing import NewType

import msgspec

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.resources import NOTHING, Resources

NodeId = NewType("NodeId", str)

Load = tuple[tuple[Resources, int], ...]
"""Shapes and how many of each, for one node."""

# How the reason begins why a node is closed that will be tried again after a pause.
TURNED_AWAY = "turned a pod away"
# Nothing but the end of the instance follows these.
SPOT_NOTICE = "Spot interruption notice"
REBALANCE = "Spot rebalance recommendation"
OUTDATED = "its compute environment was updated"

# Classes of instance types that EC2 counts together (service quotas of EC2); other families' letters are their own class.
STANDARD = ("a", "c", "d", "h", "i", "m", "r", "t", "z")
QUOTA_CLASSES = {"gr": "g", "vt": "g"} | {name: name for name in ("dl", "hpc", "inf", "mac", "trn")}


@functools.cache
def quota_class(instance_type: str) -> str:
    family = "".join(itertools.takewhile(str.isalpha, instance_type))
    return QUOTA_CLASSES.get(family, "standard" if family[:1] in STANDARD else family)


# Where what is refused is several machines at once, and not each of them: it stands behind the name of a pool or a quota.
AT_ONCE = " at once"


class Offering(msgspec.Struct, frozen=True, kw_only=True):
    """Instance type x zone x market, with what its node can hold and its price."""

    instance_type: str
    zone: str
    market: Market
    vcpus: int
    memory_mib: int
    gpu: int = 0
    architecture: str = "x86_64"
    allocatable: Resources
    """What pods may use of it: an estimate (estimate_allocatable) until a node of the type was seen."""
    price_usd_hour: float
    on_demand_usd_hour: float = 0.0
    """What the type costs On-Demand; 0 if nobody said."""
    zone_score: int = 0
    """1 to 10: how likely its zone has Spot capacity for all that its compute environment may buy; 0 if nobody said."""
    estimate: Resources | None = None
    """What was estimated, where `allocatable` is what nodes of the type really had."""

    @property
    def as_listed(self) -> Offering:
        """As the cloud listed it: machines are ordered so."""
        if self.estimate is None:
            return self
        return msgspec.structs.replace(self, allocatable=self.estimate, estimate=None)

    def with_room(self, room: Resources | None) -> Offering:
        """With what nodes of the type really had; None goes back to the estimate."""
        listed = self.as_listed
        if room is None or room == listed.allocatable:
            return listed
        return msgspec.structs.replace(listed, allocatable=room, estimate=listed.allocatable)

    @property
    def promised(self) -> Resources:
        """What it may hold yet: GPUs show on a node some time after the node itself."""
        if self.estimate is None or self.estimate.gpu <= self.allocatable.gpu:
            return self.allocatable
        return msgspec.structs.replace(self.allocatable, gpu=self.estimate.gpu)

    @property
    def pool(self) -> str:
        """Where capacity is had or refused: type/zone/market."""
        return f"{self.instance_type}/{self.zone}/{self.market.value}"

    @property
    def quota(self) -> str:
        """Which of EC2's bounds on vCPUs counts it, in all zones and for all environments: classes of types/market."""
        return f"{quota_class(self.instance_type)}/{self.market.value}"

    def rests_until(
        self, refused: Mapping[str, int], least: Mapping[str, int], *, at_once: bool
    ) -> int:
        """When the last no to its pool or quota ends; 0 for none. `least`: the vCPUs from which on a quota refuses."""
        ends = [0]
        for how in ("", AT_ONCE)[: 1 + at_once]:
            quota = self.quota + how
            ends.append(refused.get(self.pool + how, 0))
            if self.vcpus >= least.get(quota, 0):
                ends.append(refused.get(quota, 0))
        return max(ends)


class NodeStatus(enum.StrEnum):
    REQUESTED = "REQUESTED"
    LAUNCHED = "LAUNCHED"
    READY = "READY"
    TERMINATING = "TERMINATING"
    GONE = "GONE"


# A node only ever moves forward; each step may be skipped when its news is lost.
NODE_TRANSITIONS: dict[NodeStatus, frozenset[NodeStatus]] = {
    NodeStatus.REQUESTED: frozenset(
        {NodeStatus.LAUNCHED, NodeStatus.READY, NodeStatus.TERMINATING, NodeStatus.GONE}
    ),
    NodeStatus.LAUNCHED: frozenset({NodeStatus.READY, NodeStatus.TERMINATING, NodeStatus.GONE}),
    NodeStatus.READY: frozenset({NodeStatus.TERMINATING, NodeStatus.GONE}),
    NodeStatus.TERMINATING: frozenset({NodeStatus.GONE}),
    NodeStatus.GONE: frozenset(),
}


class Node(msgspec.Struct, kw_only=True):
    """One machine of a compute environment, from the request on. Times are epoch milliseconds."""

    node_id: NodeId
    compute_environment: str
    offering: Offering
    status: NodeStatus = NodeStatus.REQUESTED
    allocatable: Resources
    used: Resources = NOTHING
    instance_id: str | None = None
    node_name: str | None = None
    joined_as: NodeId | None = None
    """What its cluster calls it, where that is not its node id: machines that are bought together do not know theirs."""
    together: tuple[NodeId, ...] = ()
    """Nodes that one request asked for, itself among them, in the order of their instances; empty if it alone."""
    all_or_none: bool = False
    """Whether the instances of `together` are of use only all at once."""
    bought_for: Load = ()
    """What the plan that bought it put on it; counts until it has its first pod."""
    reserved_for: str | None = None
    """The id of a multi-node job that has it to itself: while it waits for all of its nodes, and while it runs."""
    requested_at: int = 0
    launched_at: int | None = None
    joined_at: int | None = None
    """When its cluster first told of it, while it was not ready yet."""
    lacks: str | None = None
    """Why it was not ready then."""
    ready_at: int | None = None
    paid_until: int | None = None
    """Up to when its cost is in the books."""
    given: int = 0
    """Billionths of it that its pods pay for."""
    idle_since: int | None = None
    """Since when it has had no pod; None while it has one or is not ready."""
    closed: str | None = None
    """Why it gets no new work (Spot notice, lost, cordoned); None while it is open."""
    ended_at: int | None = None
    reason: str | None = None

    @property
    def free(self) -> Resources:
        return self.allocatable.minus(self.used)

    @property
    def known_as(self) -> NodeId:
        """What its cluster calls it."""
        return self.joined_as or self.node_id

    @property
    def counts(self) -> bool:
        """Whether it counts against its environment's maximum: it is paid for, or about to be."""
        return self.status is not NodeStatus.GONE

    @property
    def is_open(self) -> bool:
        """Whether anybody may get its room."""
        return self.reserved_for is None and self.takes_work

    @property
    def takes_work(self) -> bool:
        return self.status is NodeStatus.READY and self.closed is None

    @property
    def is_kept(self) -> bool:
        """Whether its room is for the load it was bought for."""
        return self.idle_since is not None and bool(self.bought_for)

    @property
    def is_paused(self) -> bool:
        """Closed for a moment only."""
        return self.closed is not None and self.closed.startswith(TURNED_AWAY)

    def join_by(self, join_s: int) -> int:
        """When the step of its youth that it is in must be over: to join, then to be ready with its DaemonSets."""
        if self.joined_at is not None:
            return self.joined_at + limits.NODE_READY_S_MAX * 1000
        return (self.launched_at or self.requested_at) + join_s * 1000

    @property
    def is_leaving(self) -> bool:
        """Closed for good."""
        return self.closed in (SPOT_NOTICE, REBALANCE, OUTDATED)

    @property
    def is_young(self) -> bool:
        """Asked for, and not ready yet."""
        return self.status in (NodeStatus.REQUESTED, NodeStatus.LAUNCHED)

    @property
    def is_coming(self) -> bool:
        """Whether its room may be counted on; a young node that is closed still has to join in time, or to end."""
        return self.is_young and self.closed is None and self.reserved_for is None


def estimate_allocatable(
    vcpus: int, memory_mib: int, gpu: int, max_pods: int, overhead: float = 0.075
) -> Resources:
    """What pods can use of an EKS AL2023 node, before one was seen.

    nodeadm's kube-reserved (6 % of the first core, 1 % of the second, 0.5 % of the next two, 0.25 % of the rest;
    255 MiB + 11 MiB a pod), 100 MiB of eviction threshold, and Karpenter's guess of 7.5 % for the hypervisor.
    """
    shares_m = [60, 10, 5, 5] + [2.5] * max(0, vcpus - 4)
    reserved_cpu_m = int(sum(shares_m[:vcpus]))
    memory = int(memory_mib * (1 - overhead)) - (255 + 11 * max_pods) - 100
    return Resources(
        cpu_m=vcpus * 1000 - reserved_cpu_m, memory_mib=max(0, memory), gpu=gpu, pods=max_pods
    )
