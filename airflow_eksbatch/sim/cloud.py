"""A simulated cloud: launch delay, capacity, refusals, Spot reclaims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode, TerminateStray
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchAlone,
    LaunchRefused,
    RebalanceRecommended,
    SpotInterrupted,
)
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import INSTANCE_TERMINATED, INSTANCE_UNKNOWN
from airflow_eksbatch.sim.cluster import SimCluster
from airflow_eksbatch.sim.faults import Chance
from airflow_eksbatch.sim.timeline import Timeline

NOTICE_S = 120.0
"""EC2 tells of a Spot interruption two minutes before."""

# A recommendation may come before the instance has joined.
RECOMMENDED_S = 200.0


class Instance(msgspec.Struct, kw_only=True):
    node_id: NodeId
    known_as: NodeId
    """What its cluster calls its node: those that are bought together are told no node id."""
    instance_id: str
    environment: str
    offering: Offering
    launched_at: int
    interrupted_at: int | None = None
    is_ending: bool = False
    gone: InstanceGone | None = None


class CloudBill(msgspec.Struct, kw_only=True):
    """Counted here, not by the service."""

    launched: Counter[str] = msgspec.field(default_factory=Counter)
    reclaimed: int = 0
    refused: int = 0
    peak: int = 0


class SimCloud:
    """`watch` takes what is told by itself, and may lose it; answers to effects are returned."""

    def __init__(
        self,
        timeline: Timeline,
        chance: Chance,
        watch: Callable[[Fact], None],
        cluster: SimCluster,
        *,
        launch_s: tuple[float, float],
        capacity: Mapping[str, int] | None = None,
    ) -> None:
        self.instances: dict[NodeId, Instance] = {}
        self.bill = CloudBill()
        self._unanswered: set[NodeId] = set()
        self._refused_lots: set[tuple[NodeId, ...]] = set()
        self.refusing: set[str] = set()
        """Compute environments whose every launch is refused."""
        self.on_bought: Callable[[Instance], None] = lambda instance: None
        self._timeline = timeline
        self._chance = chance
        self._watch = watch
        self._cluster = cluster
        self._launch_s = launch_s
        self._capacity = capacity or {}

    @property
    def live(self) -> list[Instance]:
        return [instance for instance in self.instances.values() if instance.gone is None]

    # ---- what a person makes happen

    def reclaim(self, environment: str, number: int) -> int:
        """Take so many Spot instances back, the oldest first; how many there were."""
        chosen = self._pick(environment, number)
        for instance in chosen:
            self._reclaim(instance)
        return len(chosen)

    def silence(self, environment: str, number: int) -> int:
        """Let the kubelets of so many nodes die, the oldest first; how many there were."""
        chosen = self._pick(environment, number)
        for instance in chosen:
            self._cluster.silence_node(instance.known_as)
        return len(chosen)

    def _pick(self, environment: str, number: int) -> list[Instance]:
        untouched = [
            instance
            for instance in self.live
            if instance.environment == environment
            and instance.known_as in self._cluster.nodes
            and instance.interrupted_at is None
            and not self._cluster.is_silent(instance.known_as)
        ]
        return untouched[:number]

    # ---- effects

    def launch(self, effect: LaunchNode) -> Fact | None:
        """The node id is the token: asked twice is bought once. None: asked in vain."""
        instance = self.instances.get(effect.node_id)
        if instance is not None:
            return instance.gone or self._launched(instance)
        if effect.node_id in self._unanswered or self._chance.strikes(
            self._chance.faults.unanswered
        ):
            self._unanswered.add(effect.node_id)
            return None
        in_part = effect.together and not effect.all_or_none
        if in_part and self._chance.strikes(self._chance.faults.refused):
            return LaunchAlone(node_id=effect.node_id)
        wanted = effect.together if effect.all_or_none else (effect.node_id,)
        if self._is_refused(
            [node_id for node_id in wanted if node_id not in self.instances], effect
        ):
            self.bill.refused += 1
            return LaunchRefused(
                node_id=effect.node_id,
                code="InsufficientInstanceCapacity",
                message=f"There is no capacity in {effect.offering.pool}.",
                at=self._timeline.now,
            )
        return self._launched(self._buy(effect))

    def _is_refused(self, wanted: list[NodeId], effect: LaunchNode) -> bool:
        """Of a lot that is made all or none this is drawn once: for the first of them."""
        pool = effect.offering.pool
        there = sum(instance.offering.pool == pool for instance in self.live)
        if there + len(wanted) > self._capacity.get(pool, 1 << 30):
            return True
        if effect.compute_environment in self.refusing or effect.together in self._refused_lots:
            return True
        is_drawn = not effect.all_or_none or len(wanted) == len(effect.together)
        if not is_drawn or not self._chance.strikes(self._chance.faults.refused):
            return False
        if effect.all_or_none:
            self._refused_lots.add(effect.together)
        return True

    def terminate(self, effect: TerminateNode) -> Fact | None:
        """Its end is told when it has ended."""
        instance = self.instances.get(effect.node_id)
        if instance is None:
            return InstanceGone(
                node_id=effect.node_id, at=self._timeline.now, reason=INSTANCE_UNKNOWN
            )
        if instance.gone is None:
            self._begin_end(instance, INSTANCE_TERMINATED, self._chance.ms(1, 30))
        return instance.gone

    def terminate_stray(self, effect: TerminateStray) -> None:
        for instance in self.live:
            if instance.instance_id == effect.instance_id:
                self._begin_end(instance, "Nobody remembers it", self._chance.ms(1, 30))

    def look(self, environment: str) -> list[Fact]:
        """Live instances of one compute environment, and notices given to them."""
        ours = [instance for instance in self.live if instance.environment == environment]
        told: list[Fact] = [
            SpotInterrupted(node_id=instance.node_id, at=instance.interrupted_at)
            for instance in ours
            if instance.interrupted_at is not None
        ]
        listed = {str(instance.node_id): instance.instance_id for instance in ours}
        now = self._timeline.now
        return [
            *told,
            InstancesListed(compute_environment=environment, instances=listed, at=now),
        ]

    # ---- lives

    def _buy(self, effect: LaunchNode) -> Instance:
        chance, faults = self._chance, self._chance.faults
        instance_id = f"i-{effect.node_id}"
        instance = self.instances[effect.node_id] = Instance(
            node_id=effect.node_id,
            known_as=NodeId(instance_id) if effect.together else effect.node_id,
            instance_id=instance_id,
            environment=effect.compute_environment,
            offering=effect.offering,
            launched_at=self._timeline.now,
        )
        self.on_bought(instance)
        self.bill.launched[effect.compute_environment] += 1
        self.bill.peak = max(self.bill.peak, len(self.live))
        if not chance.strikes(faults.never_joins):
            self._timeline.after(chance.ms(*self._launch_s), lambda: self._join(instance))
        is_spot = effect.offering.market is Market.SPOT
        if is_spot and chance.strikes(faults.recommended):
            self._timeline.after(chance.ms(0, RECOMMENDED_S), lambda: self._recommend(instance))
        if is_spot and chance.strikes(faults.reclaimed):
            self._timeline.after(chance.ms(0, faults.lifetime_s), lambda: self._reclaim(instance))
        elif chance.strikes(faults.dies):
            after_ms = chance.ms(0, faults.lifetime_s)
            if chance.coin():
                silence = self._cluster.silence_node
                self._timeline.after(after_ms, lambda: silence(instance.known_as))
            else:
                reason = "Server.InternalError"
                self._timeline.after(after_ms, lambda: self._begin_end(instance, reason, 0))
        return instance

    def _join(self, instance: Instance) -> None:
        if instance.gone is None:
            daemons = Resources(cpu_m=self._chance.faults.daemons_cpu_m)
            room = instance.offering.allocatable.minus(daemons)
            self._cluster.add_node(instance.known_as, instance.environment, room)

    def _reclaim(self, instance: Instance) -> None:
        if instance.gone is not None:
            return
        if self._chance.strikes(self._chance.faults.without_notice):
            self._end(instance, "Server.SpotInstanceTermination", reclaimed=True)
            return
        instance.interrupted_at = self._timeline.now
        self.bill.reclaimed += 1
        self._watch(SpotInterrupted(node_id=instance.node_id, at=instance.interrupted_at))
        self._timeline.after(
            round(NOTICE_S * 1000),
            lambda: self._end(instance, "Server.SpotInstanceTermination", reclaimed=True),
        )

    def _recommend(self, instance: Instance) -> None:
        if instance.gone is None:
            self._watch(RebalanceRecommended(node_id=instance.node_id, at=self._timeline.now))

    def _begin_end(self, instance: Instance, reason: str, after_ms: int) -> None:
        if not instance.is_ending:
            instance.is_ending = True
            self._timeline.after(after_ms, lambda: self._end(instance, reason))

    def _end(self, instance: Instance, reason: str, *, reclaimed: bool = False) -> None:
        """Its pods end before anybody is told."""
        if instance.gone is not None:
            return
        now = self._timeline.now
        self._cluster.remove_node(instance.known_as)
        instance.gone = InstanceGone(
            node_id=instance.node_id, at=now, reason=reason, reclaimed=reclaimed
        )
        self.bill.reclaimed += reclaimed and instance.interrupted_at is None
        self._watch(instance.gone)

    def _launched(self, instance: Instance) -> InstanceLaunched:
        return InstanceLaunched(
            node_id=instance.node_id,
            instance_id=instance.instance_id,
            at=instance.launched_at,
        )
