"""Effects -> ports: in order for each pod, merged for each environment, again and again while the outside is down."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from airflow_eksbatch.cloud.port import Cloud, CloudDown
from airflow_eksbatch.cluster.port import Cluster, ClusterDown
from airflow_eksbatch.core.engine.effects import (
    CheckEnvironment,
    CreatePod,
    DeleteEnvironment,
    DeletePod,
    Effect,
    ForgetPod,
    Key,
    LaunchNode,
    PodEffect,
    TerminateNode,
    TerminateStray,
)
from airflow_eksbatch.core.engine.facts import (
    EnvironmentChecked,
    Fact,
    LaunchRefused,
    OfferingsListed,
    PodRefused,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.service.telemetry import Telemetry


class PerformerSettings(msgspec.Struct, frozen=True, kw_only=True):
    at_once: int = 32
    """Calls under way at the same time for the pods of one compute environment, and as many that put outputs away."""
    batch_max: int = 200
    """Instances asked for in one call."""
    backoff: Backoff = Backoff()
    refusals_kept: int = 10_000
    """Far more than there can be between a refusal and the commit that takes note of it."""


class _Lane:
    """What is to be done in order: for one pod, for one environment, and of its nodes launches and ends apart."""

    __slots__ = ("failures", "is_queued", "under_way", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Key, Effect] = {}
        self.under_way: dict[Key, Effect] = {}
        self.failures = 0
        self.is_queued = False

    def enter(self, effect: Effect) -> None:
        """Put an effect in line, once. An end makes a beginning pointless that was not carried out yet."""
        key = effect.key
        if key in self.under_way and not isinstance(effect, CheckEnvironment):
            return
        match effect:
            case DeletePod(pod=pod):
                self.waiting.pop((CreatePod, pod), None)
            case TerminateNode(node_id=node_id):
                self.waiting.pop((LaunchNode, node_id), None)
            case _:
                pass
        self.waiting[key] = effect

    def begin(self, batch_max: int) -> list[Effect]:
        """The first effect, with those behind it that go into the same call; what goes together is not cut."""
        first = next(iter(self.waiting.values()))
        kind, lot = _LANES[type(first)], ()
        for key, effect in list(self.waiting.items()):
            if self.under_way and (kind not in _MERGED or _LANES[key[0]] != kind):
                break
            together = effect.together if isinstance(effect, LaunchNode) else ()
            if len(self.under_way) >= batch_max and not (together and together == lot):
                break
            lot = together
            self.under_way[key] = self.waiting.pop(key)
        return list(self.under_way.values())

    def fail(self) -> None:
        """What was under way comes first again, unless something in line has overtaken it."""
        behind, self.waiting = self.waiting, self.under_way
        self.under_way = {}
        self.failures += 1
        for effect in behind.values():
            self.enter(effect)

    def finish(self) -> None:
        self.under_way = {}
        self.failures = 0


_LANES: dict[type[Effect], str] = {
    CreatePod: "pod",
    DeletePod: "pod",
    ForgetPod: "pod",
    LaunchNode: "launches",
    TerminateNode: "ends",
    TerminateStray: "ends",
    CheckEnvironment: "environment",
    DeleteEnvironment: "environment",
}
# What goes into one call together.
_MERGED = ("launches", "ends")


class _Pool:
    """Lanes that share a number of calls: a cluster, or kubelets, that do not answer hold up nobody else."""

    __slots__ = ("ready", "under_way")

    def __init__(self) -> None:
        self.ready: deque[str] = deque()
        self.under_way = 0


class Performer:
    """Results come back as facts. An effect stays at the head of its lane until it was done."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        cloud: Cloud,
        tell: Callable[[Iterable[Fact]], None],
        find_environment: Callable[[str], ComputeEnvironment | None],
        telemetry: Telemetry,
        settings: PerformerSettings,
    ) -> None:
        self._cluster = cluster
        self._cloud = cloud
        self._tell = tell
        self._find_environment = find_environment
        self._telemetry = telemetry
        self._settings = settings
        self._lanes: dict[str, _Lane] = {}
        self._refusals: dict[Key, Fact] = {}
        self._pools: dict[str, _Pool] = {}
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.may_act: Callable[[], bool] = lambda: True
        """Set by the wiring: whether this service is still the one that leads."""

    def __len__(self) -> int:
        """Effects not done yet."""
        return sum(len(lane.waiting) + len(lane.under_way) for lane in self._lanes.values())

    async def idle(self) -> None:
        """Until everything asked for is done."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stop where it stands: what was not done is derived again at the next start."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, effects: Iterable[Effect]) -> None:
        """Take these effects in; returns at once."""
        for effect in effects:
            refusal = self._refusals.get(effect.key)
            if refusal is not None:
                self._tell([refusal])
                continue
            self._idle.clear()
            key = self._lane_for(effect)
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane()
            lane.enter(effect)
            if not lane.is_queued:
                lane.is_queued = True
                self._queue(key)

    def _lane_for(self, effect: Effect) -> str:
        """Ends wait for no launches but their own, and for that only while it is under way."""
        if isinstance(effect, TerminateNode):
            key = _launches_of(effect.compute_environment)
            launches = self._lanes.get(key)
            if launches is not None:
                launch: Key = (LaunchNode, effect.node_id)
                launches.waiting.pop(launch, None)
                if launch in launches.under_way:
                    return key
        return _lane_of(effect)

    def _queue(self, key: str) -> None:
        """Its turn comes when fewer calls of its pool are under way than may be."""
        if self._is_closed:
            return
        name = _pool_of(key, self._lanes[key])
        pool = self._pools.setdefault(name, _Pool())
        pool.ready.append(key)
        if pool.under_way < self._settings.at_once:
            pool.under_way += 1
            task = asyncio.create_task(self._work(name, pool), name=f"performer {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, name: str, pool: _Pool) -> None:
        while pool.ready:
            key = pool.ready.popleft()
            lane = self._lanes[key]
            wait_s = 0.0
            if lane.waiting:
                wait_s = await self._perform(lane, lane.begin(self._settings.batch_max))
            if wait_s:
                asyncio.get_running_loop().call_later(wait_s, self._queue, key)
            elif lane.waiting:
                self._queue(key)
            else:
                del self._lanes[key]
                if not self._lanes:
                    self._idle.set()
        pool.under_way -= 1
        if not pool.under_way:
            del self._pools[name]

    async def _perform(self, lane: _Lane, batch: Sequence[Effect]) -> float:
        """Do the batch; 0 when it is done, else the seconds until it is tried again."""
        try:
            if not self.may_act():
                raise ClusterDown("This service may not lead any more.")
            facts = await self._act(batch)
        except (ClusterDown, CloudDown) as down:
            lane.fail()
            self._telemetry.effect_failed(batch[0], str(down), lane.failures)
            return self._settings.backoff.after(lane.failures)
        except Exception as error:  # An adapter surprised us: told loudly, not lost
            lane.fail()
            self._telemetry.effect_broke(batch[0], error, lane.failures)
            return self._settings.backoff.after(lane.failures)
        lane.finish()
        told = [fact for fact in facts if fact is not None]
        self._remember_refusals(told)
        self._tell(told)
        return 0.0

    def _remember_refusals(self, facts: Iterable[Fact]) -> None:
        """No stays no: asked again before the no was committed, a yes would make a second of what runs elsewhere by then."""
        for fact in facts:
            match fact:
                case PodRefused(pod=pod):
                    self._refusals[CreatePod, pod] = fact
                case LaunchRefused(node_id=node_id):
                    self._refusals[LaunchNode, node_id] = fact
                case _:
                    continue
            if len(self._refusals) > self._settings.refusals_kept:
                del self._refusals[next(iter(self._refusals))]

    async def _act(self, batch: Sequence[Effect]) -> Iterable[Fact | None]:
        """One call for all of them."""
        match batch[0]:
            case CreatePod() as effect:
                return [await self._cluster.create_pod(effect)]
            case DeletePod() as effect:
                return [await self._cluster.delete_pod(effect)]
            case ForgetPod() as effect:
                await self._cluster.forget_pod(effect)
            case LaunchNode():
                return await self._cloud.launch([e for e in batch if isinstance(e, LaunchNode)])
            case TerminateNode() | TerminateStray():
                ends = [e for e in batch if isinstance(e, TerminateNode | TerminateStray)]
                return await self._cloud.terminate(ends)
            case CheckEnvironment(compute_environment=name):
                environment = self._find_environment(name)
                return [] if environment is None else await self._check(environment)
            case DeleteEnvironment(compute_environment=name, uuid=uuid):
                await self._cloud.delete_environment(name, uuid)
            case effect:
                raise AssertionError(f"nobody performs {type(effect).__name__}")
        return []

    async def _check(self, environment: ComputeEnvironment) -> list[Fact]:
        """VALID with what it may buy, or INVALID with the sentence that says why."""
        name = environment.name
        # The cloud is asked whatever the cluster says: machines are looked after also where it is gone.
        trouble, offered = await asyncio.gather(
            self._cluster.check(environment), self._offered(environment)
        )
        if trouble is None and not isinstance(offered, str):
            return [
                OfferingsListed(compute_environment=name, offerings=offered, made_from=environment),
                EnvironmentChecked(
                    name=name,
                    status="VALID",
                    status_reason="ComputeEnvironment Healthy",
                    made_from=environment,
                ),
            ]
        return [
            EnvironmentChecked(
                name=name,
                status="INVALID",
                status_reason=f"CLIENT_ERROR - {trouble or offered}",
                made_from=environment,
            )
        ]

    async def _offered(self, environment: ComputeEnvironment) -> tuple[Offering, ...] | str:
        """What may be bought for it, or why nothing can be; an unmanaged one has its machines from others."""
        try:
            return await self._cloud.offerings(environment) if environment.managed else ()
        except ValueError as error:
            return str(error)


def _lane_of(effect: Effect) -> str:
    is_alone = isinstance(effect, PodEffect)
    return f"{_LANES[type(effect)]} {effect.name if is_alone else effect.compute_environment}"


def _pool_of(key: str, lane: _Lane) -> str:
    """By what comes first. What the cloud is asked goes lane by lane, and there are few of these."""
    first = next(iter(lane.waiting.values()), None)
    if not isinstance(first, PodEffect):
        return key
    # A kubelet that does not answer is waited for.
    kind = "outputs" if isinstance(first, ForgetPod) else "pods"
    return f"{kind} {first.compute_environment}"


def _launches_of(environment: str) -> str:
    return f"launches {environment}"
