"""Our pods in one cluster as the watch shows them, and what of each was told; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from airflow_eksbatch.cluster.kube.conditions import (
    Trouble,
    end_of_vanished,
    facts_from_pod,
    trouble_of,
)
from airflow_eksbatch.cluster.kube.objects import Pod, epoch_ms
from airflow_eksbatch.core.engine.facts import (
    Fact,
    PodEnded,
    PodRefused,
    PodRunning,
    PodSeen,
    PodsListed,
    PodStuck,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import PodName


class Seen(msgspec.Struct):
    """A pod that is there."""

    pod: Pod
    environment: str
    told: set[type[Fact]] = set()
    end: PodEnded | PodRefused | None = None
    running: PodRunning | None = None
    trouble: Trouble | None = None
    troubled_since: float = 0.0
    asked: bool = False
    """We have asked for its end."""
    is_leaving: bool = False
    """Its end is remembered and it is being dropped: nobody is told of it any more."""

    @property
    def name(self) -> PodName:
        return PodName(self.pod.metadata.name)

    @property
    def namespace(self) -> str:
        return self.pod.metadata.namespace

    @property
    def node(self) -> str:
        return self.pod.spec.node_name

    @property
    def due(self) -> int | None:
        """When it will be killed at the latest (epoch ms); None while nobody has asked for its end."""
        return epoch_ms(self.pod.metadata.deletion_timestamp)

    @property
    def is_ended_by_others(self) -> bool:
        return self.due is not None and not self.asked and self.end is None


class Hosts(msgspec.Struct, frozen=True):
    """What the book asks about a node's name, and about the cluster's clock."""

    host_of: Callable[[str], str]
    is_there: Callable[[str], bool]
    ahead_ms: Callable[[], int] = lambda: 0
    """How far our clock is ahead of it."""


class PodBook:
    """Put in what the watch says; facts that were not told yet come out."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._environments: dict[str, ComputeEnvironment] = {}
        self._seen: dict[PodName, Seen] = {}
        self._by_node: defaultdict[str, set[PodName]] = defaultdict(set)
        self._troubled: set[PodName] = set()
        self._unclaimed: dict[str, Pod] = {}
        """Pods of compute environments that we have not heard of yet."""

    def get(self, name: PodName) -> Seen | None:
        return self._seen.get(name)

    def are_on(self, node: str) -> bool:
        """Whether pods are there that have not ended."""
        return any(self._seen[name].end is None for name in self._by_node.get(node, ()))

    def on(self, node: str) -> list[Seen]:
        return [self._seen[name] for name in self._by_node.get(node, ())]

    def live(self) -> list[Pod]:
        """All that are not over, also of compute environments that we have not heard of yet."""
        there = [*(seen.pod for seen in self._seen.values()), *self._unclaimed.values()]
        return [pod for pod in there if not pod.is_over]

    def put_environments(
        self, environments: Mapping[str, ComputeEnvironment], clock_s: float, at: int
    ) -> list[Fact]:
        """Compute environments by uuid; pods that waited for one of them are told."""
        self._environments = dict(environments)
        unclaimed, self._unclaimed = self._unclaimed, {}
        return [fact for pod in unclaimed.values() for fact in self.put(pod, clock_s, at)]

    def listed(self, pods: Iterable[Pod], clock_s: float, at: int) -> list[Fact]:
        """All pods there are: the others have vanished while nobody looked."""
        facts: list[Fact] = []
        there = {PodName(pod.metadata.name): pod for pod in pods}
        self._unclaimed.clear()
        for name in list(self._seen):
            now = there.get(name)
            if now is None or now.metadata.uid != self._seen[name].pod.metadata.uid:
                facts += self._drop(name, at)
        for pod in there.values():
            facts += self.put(pod, clock_s, at)
        return facts

    def put(self, pod: Pod, clock_s: float, at: int) -> list[Fact]:
        """A pod as it is now."""
        environment = self._environments.get(pod.metadata.labels.get(labels.ENVIRONMENT_UUID, ""))
        if environment is None:
            self._unclaimed[pod.metadata.uid] = pod
            return []
        name = PodName(pod.metadata.name)
        seen = self._seen.get(name)
        if seen is None:
            seen = self._seen[name] = Seen(pod=pod, environment=environment.name)
            self._by_node[pod.spec.node_name].add(name)
        seen.pod = pod
        self._note_trouble(seen, clock_s)
        return [] if seen.is_leaving else self._untold(seen, at)

    def drop(self, pod: Pod, clock_s: float, at: int) -> list[Fact]:
        """A pod is gone; how it was last may say how it ended."""
        self._unclaimed.pop(pod.metadata.uid, None)
        name = PodName(pod.metadata.name)
        seen = self._seen.get(name)
        if seen is None or seen.pod.metadata.uid != pod.metadata.uid:
            return []
        last = self.put(pod, clock_s, at) if pod.is_over and seen.end is None else []
        return [*last, *self._drop(name, at)]

    def stuck(self, clock_s: float, at: int) -> list[Fact]:
        """Pods that could not start for longer than makes sense; told once."""
        facts: list[Fact] = []
        for name in sorted(self._troubled):
            seen = self._seen[name]
            trouble = seen.trouble
            assert trouble is not None
            if clock_s - seen.troubled_since >= trouble.patience_s and PodStuck not in seen.told:
                seen.told.add(PodStuck)
                facts.append(PodStuck(pod=name, at=at, reason=trouble.reason))
        return facts

    def again(self, at: int) -> list[Fact]:
        """Everything that is so, for somebody who was told nothing yet."""
        facts: list[Fact] = []
        for seen in self._seen.values():
            if not seen.is_leaving and not isinstance(seen.end, PodRefused):
                facts.append(PodSeen(pod=seen.name, at=at))
                if seen.running is not None:
                    facts.append(seen.running)
        return facts + self.ends()

    def ends(self) -> list[Fact]:
        """Pods that are over and that nobody has dropped yet."""
        return [s.end for s in self._seen.values() if s.end is not None and not s.is_leaving]

    def full_look(self, at: int) -> list[Fact]:
        pods: dict[str, set[PodName]] = {e.name: set() for e in self._environments.values()}
        for seen in self._seen.values():
            if not seen.is_leaving:
                pods.setdefault(seen.environment, set()).add(seen.name)
        return [
            PodsListed(compute_environment=name, pods=frozenset(found), at=at)
            for name, found in pods.items()
        ]

    def _untold(self, seen: Seen, at: int) -> list[Fact]:
        host = self._hosts.host_of(seen.node)
        ahead_ms = self._hosts.ahead_ms()
        facts = facts_from_pod(seen.pod, at, host=host, asked=seen.asked, ahead_ms=ahead_ms)
        news: list[Fact] = []
        for fact in facts:
            new = fact if type(fact) not in seen.told else newly_placed(fact, seen)
            if new is None:
                continue
            news.append(new)
            seen.told.add(type(new))
            if isinstance(new, PodRunning):
                seen.running = new
            elif isinstance(new, PodEnded | PodRefused):
                seen.end = new
        return news

    def _drop(self, name: PodName, at: int) -> list[Fact]:
        seen = self._seen.pop(name)
        self._troubled.discard(name)
        self._by_node[seen.node].discard(name)
        if not self._by_node[seen.node]:
            del self._by_node[seen.node]
        if seen.is_leaving or seen.end is not None:
            return []
        host, is_there = self._hosts.host_of(seen.node), self._hosts.is_there(seen.node)
        end = end_of_vanished(seen.pod, host=host, host_is_gone=not is_there)
        return [PodEnded(pod=name, at=at, end=end)]

    def _note_trouble(self, seen: Seen, clock_s: float) -> None:
        """Since when it cannot start; back-offs change their words but not their cause."""
        trouble = trouble_of(seen.pod)
        if trouble is None:
            seen.trouble = None
            self._troubled.discard(seen.name)
            return
        if seen.trouble is None or seen.trouble.patience_s != trouble.patience_s:
            seen.troubled_since = clock_s
        seen.trouble = trouble
        self._troubled.add(seen.name)


def newly_placed(fact: Fact, seen: Seen) -> PodRunning | None:
    """It was said to run before anybody knew where: other pods may wait for that (multi-node jobs)."""
    before = seen.running
    if not isinstance(fact, PodRunning) or before is None or before.address or not fact.address:
        return None
    return msgspec.structs.replace(before, address=fact.address)
