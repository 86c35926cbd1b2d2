"""The nodes of one cluster, what runs on them beside our pods, and what that leaves for ours; pure.

A managed node counts when it is Ready, carries our labels and taint, and its DaemonSets run. Its
room is what the kubelet offers less the pods of others that are there, or that DaemonSets still owe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from airflow_eksbatch.cluster.kube.daemons import REPELLING, runs_on
from airflow_eksbatch.cluster.kube.objects import DaemonSet, KubeNode, Pod, requests_of, room_of
from airflow_eksbatch.core.engine.facts import (
    Fact,
    NodeClosed,
    NodeFound,
    NodeLost,
    NodeReady,
    NodesListed,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.limits import NODE_JOIN_S_MAX
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.model.resources import NOTHING, Resources

# The control plane calls a node unreachable 40 to 50 s after its last heartbeat; this much more and it is lost.
UNREACHABLE_S_MAX = 60
# A kubelet that answers but is not ready (its runtime restarts, ...) gets as long as Kubernetes gives pods.
NOT_READY_S_MAX = 300
# When most nodes are unreachable at once it is the network or the control plane; then nodes keep their jobs this long.
PARTITION_S_MAX = 900
PARTITION_NODES_MIN = 4
# A DaemonSet that does not come up must not keep every node from working.
DAEMONS_S_MAX = 180
PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure")
RELEASED = "its label was taken away"


class Beside(msgspec.Struct, frozen=True):
    """A pod on a node that is not one of ours."""

    node: str
    owner: str
    requests: Resources
    is_ready: bool


class Told(msgspec.Struct):
    """What was last told of a node."""

    node_id: NodeId
    room: Resources | None = None
    closed: str | None = None
    is_lost: bool = False


class Known(msgspec.Struct):
    """A node that is there, and since when something is so (monotonic seconds)."""

    node: KubeNode
    told: Told
    ready_since: float | None = None
    unready_since: float | None = None
    is_released: bool = False
    heir: KubeNode | None = None
    """It as it is now, of another compute environment; until our pods have left it counts for the former one."""

    @property
    def waits(self) -> bool:
        """Whether time alone may change what is to be told."""
        is_new = self.told.room is None and self.ready_since is not None
        return is_new or self.unready_since is not None


class NodeBook:
    """Put in what watches say; `news` is what follows. Times are given, so that tests have their own."""

    def __init__(self, pods_on: Callable[[str], bool]) -> None:
        """`pods_on` says whether pods of ours are on a node of that name."""
        self._pods_on = pods_on
        self._environments: dict[str, ComputeEnvironment] = {}
        self._nodes: dict[str, Known] = {}
        self._pods: dict[str, Beside] = {}
        self._pods_by_node: defaultdict[str, dict[str, Beside]] = defaultdict(dict)
        self._daemon_sets: dict[str, tuple[DaemonSet, Resources]] = {}
        self._dirty: set[str] = set()
        self._waiting: set[str] = set()
        """Nodes of which time alone may change what is to be told."""
        self._silent: set[str] = set()
        """Nodes that the control plane has not heard of for long."""
        self._news: list[Fact] = []
        self.is_complete = False
        """Whether everything has been listed once; before that nothing is known of DaemonSets."""

    # ---- what is asked

    def host_of(self, name: str) -> str:
        """A machine as people know it: by its instance, or by its node's name."""
        known = self._nodes.get(name)
        return (known.node.instance_id if known else None) or name

    def is_there(self, name: str) -> bool:
        known = self._nodes.get(name)
        return known is not None and not known.told.is_lost

    def takes_pods(self, node_id: NodeId, name: str) -> bool:
        """Whether a pod may be created for this node: it is the same one, and it is not lost."""
        known = self._nodes.get(name)
        return known is not None and known.told.node_id == node_id and not known.told.is_lost

    def has(self, name: str) -> bool:
        """Also of one that is lost."""
        return name in self._nodes

    def names(self) -> set[str]:
        return set(self._nodes)

    def daemon_sets(self) -> set[str]:
        """Their uids."""
        return set(self._daemon_sets)

    def pods_beside(self) -> set[str]:
        """Their uids."""
        return set(self._pods)

    # ---- what watches say

    def put_environments(self, environments: Mapping[str, ComputeEnvironment]) -> None:
        """Compute environments by uuid."""
        self._environments = dict(environments)
        for name, known in self._nodes.items():
            known.told.node_id = self._id_of(known.node)
            self._dirty.add(name)

    def put_node(self, node: KubeNode) -> None:
        name, known = node.metadata.name, self._nodes.get(node.metadata.name)
        if known is not None and self._is_moved(known, node):
            self.release_node(name, node)
            known.heir = node
            return
        node_id = self._id_of(node)
        if known is not None and known.told.node_id not in ("", node_id):
            self._lose(known, "another node took its name")
            known = None
        if known is None:
            known = self._nodes[name] = Known(node=node, told=Told(node_id=node_id))
        known.node, known.is_released, known.heir = node, False, None
        known.told.node_id = node_id
        self._note_changed(node)

    def drop_node(self, name: str) -> None:
        """It left the cluster."""
        known = self._nodes.get(name)
        if known is not None:
            self._lose(known, "the node was deleted")
            self._forget(name)

    def release_node(self, name: str, node: KubeNode) -> None:
        """It is there, but somebody took our label away: no new work, and gone when its pods are."""
        known = self._nodes.get(name)
        if known is not None:
            known.is_released, known.heir = True, None
            known.node = labelled_as(node, known.node.metadata.labels)
            self._note_changed(known.node)

    def released(self) -> set[str]:
        """Nodes of which our watch does not tell any more."""
        return {n for n, known in self._nodes.items() if known.is_released and not known.heir}

    def given_up(self, clock_s: float) -> list[str]:
        """Nodes that are to be given up because of how they were when we last heard of them."""
        there = (self._nodes[name] for name in sorted(self._waiting & self._nodes.keys()))
        return [k.node.metadata.name for k in there if self._loss(k, clock_s) is not None]

    def _is_moved(self, known: Known, node: KubeNode) -> bool:
        before, now = self._environment_of(known.node), node.metadata
        is_same = known.node.metadata.uid == now.uid and not known.told.is_lost
        return (
            is_same
            and before is not None
            and now.labels.get(labels.ENVIRONMENT_UUID) != before.uuid
        )

    def _note_changed(self, node: KubeNode) -> None:
        name = node.metadata.name
        self._dirty.add(name)
        (self._silent.add if _is_silent(node) else self._silent.discard)(name)

    def put_pod(self, pod: Pod) -> None:
        """A pod that is not ours."""
        uid, node = pod.metadata.uid, pod.spec.node_name
        if pod.is_over or not node:
            self.drop_pod(uid)
            return
        owners = (o.uid for o in pod.metadata.owner_references if o.kind == "DaemonSet")
        beside = Beside(node, next(owners, ""), requests_of(pod.spec), pod.is_ready)
        if self._pods.get(uid) != beside:
            self._pods[uid] = self._pods_by_node[node][uid] = beside
            self._dirty.add(node)

    def drop_pod(self, uid: str) -> None:
        beside = self._pods.pop(uid, None)
        if beside is not None:
            del self._pods_by_node[beside.node][uid]
            self._dirty.add(beside.node)

    def put_daemon_set(self, daemon_set: DaemonSet) -> None:
        spec = daemon_set.spec.template.spec
        uid, entry = daemon_set.metadata.uid, (daemon_set, requests_of(spec))
        before = self._daemon_sets.get(uid)
        if before is None or before[0].spec != daemon_set.spec:
            self._dirty |= self._nodes.keys()
        self._daemon_sets[uid] = entry

    def drop_daemon_set(self, uid: str) -> None:
        if self._daemon_sets.pop(uid, None) is not None:
            self._dirty |= self._nodes.keys()

    def touch(self, names: Iterable[str]) -> None:
        """Our own pods on these nodes came or went."""
        self._dirty |= {n for n in names if n in self._nodes and self._nodes[n].is_released}

    def tick(self, unsure: Iterable[str] = ()) -> None:
        """Time has passed. Not every news of one node is a reason to look at all that wait, as all do when the network breaks.

        Of the `unsure` it is not known how they are now: nothing is given up on old news.
        """
        self._dirty |= self._waiting.difference(unsure)

    # ---- what follows

    def news(self, clock_s: float, at: int) -> list[Fact]:
        """Facts that were not told yet, oldest first; none before the book is complete."""
        if not self.is_complete:
            return []
        for name in sorted(self._dirty & self._nodes.keys()):
            self._judge(name, clock_s)
            known = self._nodes.get(name)
            waits = known is not None and known.waits
            (self._waiting.add if waits else self._waiting.discard)(name)
        self._dirty.clear()
        news, self._news = self._news, []
        return [_stamped(fact, at) for fact in news]

    def again(self, at: int) -> list[Fact]:
        """Everything that is so, for somebody who was told nothing yet."""
        facts: list[Fact] = []
        for known in self._nodes.values():
            environment = self._environment_of(known.node)
            if environment is None or known.told.room is None or known.told.is_lost:
                continue
            facts.append(self._ready(known, environment, known.told.room))
            closed = known.told.closed
            facts.append(NodeClosed(node_id=known.told.node_id, reason=closed, at=0))
        return [_stamped(fact, at) for fact in facts]

    def full_look(self, at: int) -> list[Fact]:
        """Which nodes are there, by compute environment."""
        nodes: dict[str, set[NodeId]] = {e.name: set() for e in self._environments.values()}
        for known in self._nodes.values():
            environment = self._environment_of(known.node)
            if environment is not None and not known.told.is_lost:
                nodes[environment.name].add(known.told.node_id)
        return [
            NodesListed(compute_environment=name, nodes=frozenset(found), at=at)
            for name, found in nodes.items()
        ]

    def _judge(self, name: str, clock_s: float) -> None:
        """Compare what is so with what was told, and note the difference."""
        known = self._nodes[name]
        environment = self._environment_of(known.node)
        if environment is None:
            return
        self._note_times(known, clock_s)
        if known.is_released and not self._pods_on(name):
            self._lose(known, RELEASED)
            self._forget(name)
            if known.heir is not None:
                self.put_node(known.heir)
                self._judge(name, clock_s)
            return
        loss = self._loss(known, clock_s)
        if loss is not None:
            self._lose(known, loss)
            return
        told, closed = known.told, self._closed(known)
        is_new = told.room is None or told.is_lost
        if is_new and not self._may_join(known, environment, closed, clock_s):
            # An earlier service may have counted it; whoever never did does not listen.
            if closed != told.closed and not told.is_lost:
                self._close(told, closed)
            return
        room = self._room(known.node)
        if is_new or room != told.room:
            told.room, told.is_lost = room, False
            self._news.append(self._ready(known, environment, room))
        # Of a new one it is said in any case: what an earlier service was told may be over.
        if is_new or closed != told.closed:
            self._close(told, closed)

    def _note_times(self, known: Known, clock_s: float) -> None:
        if _ready_status(known.node) == "True":
            known.unready_since = None
            known.ready_since = clock_s if known.ready_since is None else known.ready_since
        elif known.unready_since is None:
            known.unready_since = clock_s

    def _may_join(
        self, known: Known, environment: ComputeEnvironment, closed: str | None, clock_s: float
    ) -> bool:
        """Whether a node that does not count yet does so from now on."""
        if closed is not None or known.ready_since is None:
            return False
        if environment.managed and not has_taint(known.node):
            return False
        return clock_s - known.ready_since >= DAEMONS_S_MAX or self._daemons_run(known.node)

    def _daemons_run(self, node: KubeNode) -> bool:
        there = self._pods_by_node.get(node.metadata.name, {}).values()
        up = {beside.owner for beside in there if beside.is_ready}
        return all(
            uid in up or not runs_on(daemon_set.spec.template.spec, node)
            for uid, (daemon_set, _) in self._daemon_sets.items()
        )

    def _room(self, node: KubeNode) -> Resources:
        there = self._pods_by_node.get(node.metadata.name, {}).values()
        taken, owners = NOTHING, {beside.owner for beside in there}
        for beside in there:
            taken = taken.plus(beside.requests)
        for uid, (daemon_set, owed) in self._daemon_sets.items():
            if uid not in owners and runs_on(daemon_set.spec.template.spec, node):
                taken = taken.plus(owed)
        left = room_of(node.status.allocatable).minus(taken)
        return Resources(
            cpu_m=max(0, left.cpu_m),
            memory_mib=max(0, left.memory_mib),
            gpu=max(0, left.gpu),
            pods=max(0, left.pods),
        )

    def _closed(self, known: Known) -> str | None:
        """Why it takes no new pods now."""
        return RELEASED if known.is_released else closed_by(known.node)

    def _loss(self, known: Known, clock_s: float) -> str | None:
        """Why it is given up; None while there is hope."""
        since = known.unready_since
        if since is None or known.told.is_lost:
            return None
        if _is_silent(known.node):
            patience = PARTITION_S_MAX if self._is_partition() else UNREACHABLE_S_MAX
            return "the node is unreachable" if clock_s - since >= patience else None
        patience = NOT_READY_S_MAX if known.told.room is not None else NODE_JOIN_S_MAX
        return f"the node was not ready for {patience} s" if clock_s - since >= patience else None

    def _is_partition(self) -> bool:
        there = len(self._nodes)
        return there >= PARTITION_NODES_MIN and len(self._silent) * 2 > there

    def _forget(self, name: str) -> None:
        del self._nodes[name]
        self._silent.discard(name)
        self._waiting.discard(name)

    def _close(self, told: Told, reason: str | None) -> None:
        told.closed = reason
        self._news.append(NodeClosed(node_id=told.node_id, reason=reason, at=0))

    def _lose(self, known: Known, reason: str) -> None:
        told = known.told
        if self._environment_of(known.node) is not None and not told.is_lost:
            self._news.append(NodeLost(node_id=told.node_id, reason=reason, at=0))
        told.is_lost, told.closed = True, None

    def _environment_of(self, node: KubeNode) -> ComputeEnvironment | None:
        return self._environments.get(node.metadata.labels.get(labels.ENVIRONMENT_UUID, ""))

    def _id_of(self, node: KubeNode) -> NodeId:
        """Ours by the label that we asked for, or by its instance; a node of others by its own uid."""
        environment = self._environment_of(node)
        if environment is not None and not environment.managed:
            return NodeId(node.metadata.uid)
        given = node.metadata.labels.get(labels.NODE_UID)
        return NodeId(given or node.instance_id or node.metadata.uid)

    def _ready(self, known: Known, environment: ComputeEnvironment, room: Resources) -> Fact:
        name, node_id = known.node.metadata.name, known.told.node_id
        if environment.managed:
            return NodeReady(node_id=node_id, node_name=name, allocatable=room, at=0)
        return NodeFound(
            node_id=node_id,
            compute_environment=environment.name,
            node_name=name,
            offering=offering_of(known.node, room),
            allocatable=room,
            at=0,
        )


def labelled_as(node: KubeNode, former: Mapping[str, str]) -> KubeNode:
    """As the node of that compute environment which it was."""
    whose = {
        key: former[key] for key in (labels.ENVIRONMENT_UUID, labels.NODE_UID) if key in former
    }
    metadata = msgspec.structs.replace(node.metadata, labels={**node.metadata.labels, **whose})
    return msgspec.structs.replace(node, metadata=metadata)


def _stamped(fact: Fact, at: int) -> Fact:
    return msgspec.structs.replace(fact, at=at)  # type: ignore[call-arg]


def closed_by(node: KubeNode) -> str | None:
    """What Kubernetes says against new pods on it."""
    if node.metadata.deletion_timestamp is not None:
        return "the node is being deleted"
    if _ready_status(node) != "True":
        return "the node is not ready"
    if node.spec.unschedulable:
        return "cordoned"
    for condition in node.status.conditions:
        if condition.type in PRESSURES and condition.status == "True":
            return condition.type
    for taint in node.spec.taints:
        if taint.effect in REPELLING and taint.key != labels.TAINT:
            return f"taint {taint.key}"
    return None


def has_taint(node: KubeNode) -> bool:
    """Whether others' pods are kept off it."""
    effects = {taint.effect for taint in node.spec.taints if taint.key == labels.TAINT}
    return effects.issuperset(REPELLING)


def offering_of(node: KubeNode, room: Resources) -> Offering:
    """What a machine that others own is, as if it had been bought; it costs us nothing."""
    given, capacity = node.metadata.labels, room_of(node.status.capacity)
    spot = "spot" in (
        given.get("karpenter.sh/capacity-type", ""),
        given.get("eks.amazonaws.com/capacityType", "").lower(),
    )
    return Offering(
        instance_type=given.get("node.kubernetes.io/instance-type") or "unmanaged",
        zone=given.get("topology.kubernetes.io/zone", ""),
        market=Market.SPOT if spot else Market.ON_DEMAND,
        vcpus=capacity.cpu_m // 1000,
        memory_mib=capacity.memory_mib,
        gpu=capacity.gpu,
        architecture="arm64" if given.get("kubernetes.io/arch") == "arm64" else "x86_64",
        allocatable=room,
        price_usd_hour=0.0,
    )


def _is_silent(node: KubeNode) -> bool:
    return _ready_status(node) == "Unknown"


def _ready_status(node: KubeNode) -> str:
    """True, False, or Unknown when the control plane has not heard of it for long."""
    for condition in node.status.conditions:
        if condition.type == "Ready":
            return condition.status
    return "False"
