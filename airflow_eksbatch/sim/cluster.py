"""Pods and nodes of a simulated cluster: pods take as long and end as their job says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import msgspec

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod, ForgetPod
from airflow_eksbatch.core.engine.facts import (
    Fact,
    NodeClosed,
    NodeLost,
    NodeReady,
    NodesListed,
    PodEnded,
    PodRefused,
    PodRunning,
    PodSeen,
    PodsListed,
    PodStuck,
)
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import NOT_THERE, POD_DELETED, AttemptEnd, Cause, host_ended
from airflow_eksbatch.sim.faults import Chance
from airflow_eksbatch.sim.timeline import Timeline

# Kubernetes calls a node that does not answer unreachable after 40 s.
SILENT_S = 40.0
SIGTERM_EXIT_CODE = 143
# So long a pod may fail to start before its cluster calls it stuck.
STUCK_S = 120.0
# Within this after its start a pod has an address.
ADDRESS_S = 20.0


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod does; carried as JSON in place of podProperties. Each charged attempt takes the next entry."""

    run_s: tuple[float, ...] = (10.0,)
    exit_codes: tuple[int, ...] = (0,)
    exit_codes_of: dict[int, tuple[int, ...]] = {}
    """Children of an array that end differently."""

    def nth(self, number: int, index: int) -> tuple[float, int]:
        """Seconds and exit code of a charged attempt, counted from 1."""
        codes = self.exit_codes_of.get(index, self.exit_codes)
        seconds = self.run_s[min(number, len(self.run_s)) - 1]
        return seconds, codes[min(number, len(codes)) - 1]


class SimPod(msgspec.Struct, kw_only=True):
    name: PodName
    environment: str
    node_id: NodeId
    run_s: float
    exit_code: int
    created_at: int
    variables: Mapping[str, str] = {}
    """AWS_BATCH_*, as its containers see them."""
    is_stuck: bool = False
    """It cannot start, whatever it waits for."""
    running_at: int | None = None
    address: str = ""
    """Empty for as long as nobody has seen it, which may be a while after its start."""
    end: PodEnded | None = None

    @property
    def facts(self) -> list[Fact]:
        """All there is to tell of it."""
        told: list[Fact] = [PodSeen(pod=self.name, at=self.created_at)]
        if self.running_at is not None:
            told.append(PodRunning(pod=self.name, at=self.running_at, address=self.address))
        return told if self.end is None else [*told, self.end]


class SimNode(msgspec.Struct, kw_only=True):
    node_id: NodeId
    environment: str
    allocatable: Resources
    ready: NodeReady
    silent_since: int | None = None
    """Its kubelet tells nothing and obeys nothing; its pods go on."""


class SimCluster:
    """`watch` takes what is told by itself, and may lose it; answers to effects are returned."""

    def __init__(
        self,
        timeline: Timeline,
        chance: Chance,
        watch: Callable[[Fact], None],
        *,
        pod_start_s: tuple[float, float],
    ) -> None:
        self.pods: dict[PodName, SimPod] = {}
        self.nodes: dict[NodeId, SimNode] = {}
        self.on_pod_created: Callable[[SimPod], None] = lambda pod: None
        self._timeline = timeline
        self._chance = chance
        self._watch = watch
        self._pod_start_s = pod_start_s
        self._addresses = itertools.count(1)

    @property
    def live_pods(self) -> list[SimPod]:
        """What really runs, or is about to."""
        return [pod for pod in self.pods.values() if pod.end is None]

    # ---- effects

    def create_pod(self, effect: CreatePod) -> Fact | None:
        """None is success; the rest is told by the watch."""
        now = self._timeline.now
        if effect.pod in self.pods:
            return None
        node = self.nodes.get(effect.node_id)
        if node is None:
            return PodRefused(pod=effect.pod, at=now, reason=f"Node {effect.node_id} is not there")
        if self._chance.strikes(self._chance.faults.pod_refused):
            return PodRefused(pod=effect.pod, at=now, reason="OutOfcpu")
        if self._chance.strikes(self._chance.faults.pod_beyond_quota):
            return PodRefused(pod=effect.pod, at=now, reason="exceeded quota", quota=True)
        self._begin(effect)
        return None

    def delete_pod(self, effect: DeletePod) -> Fact | None:
        """Ended within its grace; a pod that is not there, or has ended, is told at once."""
        pod = self.pods.get(effect.pod)
        if pod is None:
            return PodEnded(pod=effect.pod, at=self._timeline.now, end=NOT_THERE)
        if pod.end is None:
            end = AttemptEnd(cause=Cause.EXITED, exit_code=SIGTERM_EXIT_CODE)
            after_ms = self._chance.ms(0, effect.grace_s) if pod.running_at is not None else 0
            self._timeline.after(after_ms, lambda: self._end(pod, end, by_kubelet=True))
        return pod.end

    def forget_pod(self, effect: ForgetPod) -> None:
        pod = self.pods.get(effect.pod)
        if pod is not None and pod.end is not None:
            del self.pods[effect.pod]

    def look(self, environment: str) -> list[Fact]:
        """Everything there is in one compute environment, as it is now."""
        now = self._timeline.now
        nodes = [node for node in self.nodes.values() if node.environment == environment]
        pods = [pod for pod in self.pods.values() if pod.environment == environment]
        return [
            *(self._lost(node) if self._is_unreachable(node) else node.ready for node in nodes),
            NodesListed(
                compute_environment=environment, nodes=frozenset(n.node_id for n in nodes), at=now
            ),
            *(fact for pod in pods for fact in pod.facts),
            *(self._stuck(pod) for pod in pods if self._is_called_stuck(pod)),
            PodsListed(
                compute_environment=environment, pods=frozenset(pod.name for pod in pods), at=now
            ),
        ]

    # ---- nodes, by the cloud

    def add_node(self, node_id: NodeId, environment: str, allocatable: Resources) -> None:
        """The instance has booted."""
        ready = NodeReady(
            node_id=node_id,
            node_name=f"{node_id}.internal",
            allocatable=allocatable,
            at=self._timeline.now,
        )
        self.nodes[node_id] = SimNode(
            node_id=node_id, environment=environment, allocatable=allocatable, ready=ready
        )
        self._watch(ready)
        if self._chance.strikes(self._chance.faults.pressed):
            self._press(node_id)

    def silence_node(self, node_id: NodeId) -> None:
        """Its kubelet dies; nobody but time notices."""
        node = self.nodes.get(node_id)
        if node is not None and node.silent_since is None:
            node.silent_since = self._timeline.now
            self._timeline.after(round(SILENT_S * 1000) + 1, lambda: self._notice_silence(node))

    def is_silent(self, node_id: NodeId) -> bool:
        node = self.nodes.get(node_id)
        return node is not None and node.silent_since is not None

    def remove_node(self, node_id: NodeId) -> None:
        """The instance has ended, and with it all that ran there."""
        node = self.nodes.pop(node_id, None)
        for pod in [pod for pod in self.pods.values() if pod.node_id == node_id]:
            if pod.end is not None:
                continue
            end = AttemptEnd(cause=Cause.PLATFORM, status_reason=host_ended(node_id))
            self._end(pod, end)
            if self._chance.coin():
                del self.pods[pod.name]
        if node is not None:
            self._watch(self._lost(node))

    # ---- lives

    def _begin(self, effect: CreatePod) -> None:
        program = msgspec.json.decode(effect.pod_properties, type=Program)
        number = int(effect.environment["AWS_BATCH_JOB_ATTEMPT"])
        index = int(effect.environment.get("AWS_BATCH_JOB_ARRAY_INDEX", "0"))
        run_s, exit_code = program.nth(number, index)
        pod = self.pods[effect.pod] = SimPod(
            name=effect.pod,
            environment=effect.compute_environment,
            node_id=effect.node_id,
            run_s=run_s,
            exit_code=exit_code,
            created_at=self._timeline.now,
            variables=effect.environment,
            is_stuck=self._chance.strikes(self._chance.faults.pod_stuck),
        )
        self.on_pod_created(pod)
        self._tell(pod, PodSeen(pod=pod.name, at=pod.created_at))
        start_ms = self._chance.ms(*self._pod_start_s)
        if pod.is_stuck:
            self._timeline.after(round(STUCK_S * 1000), lambda: self._notice_stuck(pod))
        else:
            self._timeline.after(start_ms, lambda: self._run(pod))
        if self._chance.strikes(self._chance.faults.pod_deleted):
            lives_ms = start_ms + self._chance.ms(0, pod.run_s)
            self._timeline.after(lives_ms, lambda: self._vanish(pod))

    def _run(self, pod: SimPod) -> None:
        node = self.nodes.get(pod.node_id)
        if pod.end is not None or node is None or node.silent_since is not None:
            return
        pod.running_at = self._timeline.now
        if not self._chance.strikes(self._chance.faults.address_late):
            pod.address = self._next_address()
        self._tell(pod, PodRunning(pod=pod.name, at=pod.running_at, address=pod.address))
        if not pod.address:
            self._timeline.after(self._chance.ms(0, ADDRESS_S), lambda: self._place(pod))
        end = AttemptEnd(cause=Cause.EXITED, exit_code=pod.exit_code)
        self._timeline.after(round(pod.run_s * 1000), lambda: self._end(pod, end, by_kubelet=True))

    def _place(self, pod: SimPod) -> None:
        """Its address is known: the watch tells it once more, or the next full look does."""
        assert pod.running_at is not None
        pod.address = self._next_address()
        if pod.end is None and self._chance.coin():
            self._tell(pod, PodRunning(pod=pod.name, at=pod.running_at, address=pod.address))

    def _next_address(self) -> str:
        """No two pods have the same one."""
        number = next(self._addresses)
        return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"

    def _end(self, pod: SimPod, end: AttemptEnd, *, by_kubelet: bool = False) -> None:
        """A silent node's pods may finish, but nobody will know: they count as running until it is gone."""
        node = self.nodes.get(pod.node_id)
        is_silent = node is not None and node.silent_since is not None
        if pod.end is None and not (by_kubelet and is_silent):
            pod.end = PodEnded(pod=pod.name, at=self._timeline.now, end=end)
            self._watch(pod.end)

    def _vanish(self, pod: SimPod) -> None:
        """Somebody deleted it: the watch tells nothing but that it is gone, or not even that."""
        if pod.end is None and pod.node_id in self.nodes:
            end = AttemptEnd(cause=Cause.PLATFORM, status_reason=POD_DELETED)
            if self._chance.coin():
                self._end(pod, end, by_kubelet=True)
            elif self.nodes[pod.node_id].silent_since is None:
                del self.pods[pod.name]
                pod.end = PodEnded(pod=pod.name, at=self._timeline.now, end=end)

    def _press(self, node_id: NodeId) -> None:
        def tell(reason: str | None) -> None:
            if node_id in self.nodes:
                self._watch(NodeClosed(node_id=node_id, reason=reason, at=self._timeline.now))

        begins_ms = self._chance.ms(0, 60)
        self._timeline.after(begins_ms, lambda: tell("DiskPressure"))
        self._timeline.after(begins_ms + self._chance.ms(1, 60), lambda: tell(None))

    # ---- telling

    def _tell(self, pod: SimPod, fact: Fact) -> None:
        node = self.nodes.get(pod.node_id)
        if node is not None and node.silent_since is None:
            self._watch(fact)

    def _notice_silence(self, node: SimNode) -> None:
        if node.node_id in self.nodes:
            self._watch(self._lost(node))

    def _notice_stuck(self, pod: SimPod) -> None:
        if pod.end is None:
            self._tell(pod, self._stuck(pod))

    def _is_called_stuck(self, pod: SimPod) -> bool:
        age_ms = self._timeline.now - pod.created_at
        return pod.is_stuck and pod.end is None and age_ms >= STUCK_S * 1000

    def _stuck(self, pod: SimPod) -> PodStuck:
        return PodStuck(pod=pod.name, at=self._timeline.now, reason="ImagePullBackOff")

    def _is_unreachable(self, node: SimNode) -> bool:
        now = self._timeline.now
        return node.silent_since is not None and now - node.silent_since > SILENT_S * 1000

    def _lost(self, node: SimNode) -> NodeLost:
        return NodeLost(node_id=node.node_id, at=self._timeline.now, reason="Node is unreachable")
