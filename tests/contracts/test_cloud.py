"""What every cloud keeps to, and what may be done to the simulated one."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import pytest

from airflow_eksbatch.cloud.aws import refusals
from airflow_eksbatch.cloud.embedded import EmbeddedCloud
from airflow_eksbatch.cloud.instances import CloudSettings
from airflow_eksbatch.cloud.port import Cloud, CloudDown
from airflow_eksbatch.cluster.local import LocalCluster
from airflow_eksbatch.core.engine.effects import (
    CreatePod,
    LaunchNode,
    TerminateNode,
    TerminateStray,
)
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchRefused,
    NodeReady,
    PodEnded,
    PodRunning,
    SpotInterrupted,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId, Offering
from tests.build import an_environment
from tests.contracts.ec2_bed import Ec2Ways, PoweredDoor

F = TypeVar("F", bound=Fact)
WAIT_S = 60.0


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop of its own, and not for ever."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 240))

    return run


class Watch:
    """Collects what a cloud or a cluster tells, and waits for facts instead of for time."""

    def __init__(self, source: Any) -> None:
        self.facts: list[Fact] = []
        self.begun = asyncio.Event()
        """Set by the first look."""
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._collect(source))

    async def _collect(self, source: Any) -> None:
        async for facts in source.watch():
            async with self._news:
                self.facts += facts
                self._news.notify_all()
            self.begun.set()

    async def until(self, kind: type[F], **fields: Any) -> F:
        """The first fact of that kind with these fields."""

        def found() -> F | None:
            return next(iter(self.told(kind, **fields)), None)

        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(found)
        fact = found()
        assert fact is not None
        return fact

    def told(self, kind: type[F], **fields: Any) -> list[F]:
        return [
            fact
            for fact in self.facts
            if isinstance(fact, kind)
            and all(getattr(fact, name) == value for name, value in fields.items())
        ]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Scene:
    """A cloud that runs, and who watches it."""

    def __init__(
        self, cloud: Cloud, cluster: LocalCluster, control: Callable[..., dict[str, Any]]
    ) -> None:
        self.cloud = cloud
        self.control = control
        self.cluster = cluster
        self.watch = Watch(cloud)
        self.nodes = Watch(cluster)

    async def launched(self, *effects: LaunchNode) -> list[str]:
        """Launch these, which is granted; the instance ids in their order."""
        facts = await self.cloud.launch(list(effects))
        ids = {fact.node_id: fact.instance_id for fact in of(InstanceLaunched, facts)}
        assert set(ids) == {effect.node_id for effect in effects}, facts
        return [ids[effect.node_id] for effect in effects]

    async def end_of(self, node_id: NodeId) -> InstanceGone:
        return await self.watch.until(InstanceGone, node_id=node_id)

    async def look(self) -> dict[str, dict[str, str]]:
        """A full look, as one who begins to watch gets it."""
        again = Watch(self.cloud)
        async with asyncio.timeout(WAIT_S):
            await again.begun.wait()
        await again.close()
        return {f.compute_environment: f.instances for f in again.told(InstancesListed)}


class Bed(Protocol):
    """Where a cloud under test stands."""

    def describe(self, name: str, **fields: Any) -> ComputeEnvironment:
        """A compute environment that could be."""
        ...

    async def environment(self, cloud: Cloud, name: str = "ce") -> ComputeEnvironment:
        """A compute environment that the cloud has looked into."""
        ...

    def open(self) -> Any:
        """The cloud, as a service that starts finds it; what was launched stays when it is left."""
        ...


class EmbeddedBed:
    """Simulated instances over processes as pods."""

    market = Market.SPOT

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings: dict[str, Any] = {"launch_delay_s": 0.0}

    def make(self, cluster: LocalCluster) -> Any:
        settings = CloudSettings(**self.settings)
        return EmbeddedCloud(self.directory / "cloud", cluster, settings=settings)

    def control_of(self, cloud: Any) -> Callable[..., dict[str, Any]]:
        return cloud.control

    def describe(self, name: str, **fields: Any) -> ComputeEnvironment:
        fields = {"instance_types": ("m6i.large",), **fields}
        return an_environment(name, market=self.market, **fields)

    async def environment(self, cloud: Cloud, name: str = "ce") -> ComputeEnvironment:
        environment = self.describe(name)
        await cloud.offerings(environment)
        return environment

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Scene]:
        cluster = LocalCluster(self.directory / "cluster")
        await cluster.start()
        try:
            cloud = self.make(cluster)
            await cloud.start()
            scene = Scene(cloud, cluster, self.control_of(cloud))
            try:
                yield scene
            finally:
                await scene.watch.close()
                await scene.nodes.close()
                await cloud.stop()
        finally:
            await cluster.stop()

    async def clean(self) -> None:
        async with self.open() as scene:
            for name in list(await scene.look()):
                await scene.cloud.delete_environment(name, f"{name}-0000-0000")


class Ec2Bed(EmbeddedBed):
    """EC2 as moto has it, and machines that run pods as processes."""

    def __init__(self, directory: Path, door: PoweredDoor) -> None:
        super().__init__(directory)
        self.ways = Ec2Ways(door)

    def make(self, cluster: LocalCluster) -> Any:
        return self.ways.make()

    def control_of(self, cloud: Any) -> Callable[..., dict[str, Any]]:
        return self.ways.control

    def describe(self, name: str, **fields: Any) -> ComputeEnvironment:
        types = {"instanceTypes": list(fields["instance_types"])} if fields else {}
        return self.ways.describe(name, **types)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Scene]:
        async with super().open() as scene:
            with self.ways.powered(scene.cluster):
                yield scene

    async def clean(self) -> None:
        """Whatever a test has left is found by whoever knows the compute environments; then nothing is there."""
        async with self.open() as scene:
            for name in list(self.ways.names.values()):
                await self.environment(scene.cloud, name)
                await scene.cloud.delete_environment(name, f"{name}-0000-0000")
        assert self.ways.account.left() == {}


@pytest.fixture(scope="session")
def door() -> Iterator[PoweredDoor]:
    with PoweredDoor().open() as door:
        assert isinstance(door, PoweredDoor)
        yield door


@pytest.fixture(params=["embedded", "ec2"])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    directory = tmp_path / "a home"
    if request.param == "ec2":
        bed = Ec2Bed(directory, request.getfixturevalue("door"))
    else:
        bed = EmbeddedBed(directory)
    yield bed
    asyncio.run(bed.clean())


@pytest.fixture
def spot(tmp_path: Path) -> Any:
    """A cloud that sells Spot capacity, and takes it back."""
    bed = EmbeddedBed(tmp_path / "a home")
    yield bed
    asyncio.run(bed.clean())


def of(kind: type[F], facts: Iterable[Fact]) -> list[F]:
    return [fact for fact in facts if isinstance(fact, kind)]


def launch(offering: Offering, number: int = 1, environment: str = "ce") -> LaunchNode:
    return LaunchNode(
        node_id=NodeId(f"node-{number:06d}-{environment}"),
        compute_environment=environment,
        offering=offering,
    )


def terminate(effect: LaunchNode, instance_id: str | None) -> TerminateNode:
    return TerminateNode(
        node_id=effect.node_id,
        compute_environment=effect.compute_environment,
        instance_id=instance_id,
        node_name=None,
    )


async def launches(bed: Bed, scene: Scene, environment: str = "ce") -> list[LaunchNode]:
    """One launch for each of three offerings of the environment."""
    made = await bed.environment(scene.cloud, environment)
    sold = await scene.cloud.offerings(made)
    return [launch(offering, n, environment) for n, offering in enumerate(sold[:3], 1)]


# ---- offerings


@asynchronous
async def test_offerings_say_what_is_sold_for_how_much_and_what_pods_get_of_it(bed: Bed) -> None:
    async with bed.open() as scene:
        environment = await bed.environment(scene.cloud)
        sold = await scene.cloud.offerings(environment)
        assert sold == await scene.cloud.offerings(environment)
        assert len({offering.pool for offering in sold}) == len(sold) >= 3
        for offering in sold:
            assert offering.market is environment.market
            assert offering.price_usd_hour >= 0
            assert 0 < offering.allocatable.cpu_m <= offering.vcpus * 1000
            assert 0 < offering.allocatable.memory_mib <= offering.memory_mib
            assert offering.allocatable.pods > 0


@asynchronous
async def test_types_that_do_not_exist_are_one_sentence(bed: Bed) -> None:
    async with bed.open() as scene:
        with pytest.raises(ValueError, match="instanceTypes") as refused:
            await scene.cloud.offerings(bed.describe("ce", instance_types=("m99.huge",)))
        assert "m99.huge" in str(refused.value)
        assert "\n" not in str(refused.value)


# ---- launching


@asynchronous
async def test_an_instance_is_launched_and_its_node_joins(bed: Bed) -> None:
    async with bed.open() as scene:
        one, two, _ = await launches(bed, scene)
        ids = await scene.launched(one, two)
        assert len(set(ids)) == 2
        ready = await scene.nodes.until(NodeReady, node_id=two.node_id)
        assert ready.allocatable.cpu_m > 0
        assert await scene.look() == {"ce": {one.node_id: ids[0], two.node_id: ids[1]}}


@asynchronous
async def test_a_launch_that_is_repeated_buys_nothing(bed: Bed) -> None:
    """In one batch, at the same time, later, and by a service that starts after a crash."""
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        answers = [await scene.cloud.launch([one, one])]
        answers += await asyncio.gather(*(scene.cloud.launch([one]) for _ in range(5)))
        ids = {fact.instance_id for facts in answers for fact in of(InstanceLaunched, facts)}
    async with bed.open() as scene:
        await bed.environment(scene.cloud)
        ids |= set(await scene.launched(one))
        assert len(ids) == 1
        assert await scene.look() == {"ce": {one.node_id: ids.pop()}}


@asynchronous
async def test_a_launch_after_the_end_is_told_the_end_and_buys_nothing(bed: Bed) -> None:
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        (instance_id,) = await scene.launched(one)
        await scene.cloud.terminate([terminate(one, instance_id)])
        await scene.end_of(one.node_id)
        assert [fact.node_id for fact in of(InstanceGone, await scene.cloud.launch([one]))] == [
            one.node_id
        ]
        assert await scene.look() == {"ce": {}}


@asynchronous
async def test_what_cannot_be_had_is_refused_by_type_and_the_rest_is_launched(bed: Any) -> None:
    """1 a pool has room for one 2 a second is refused, another pool's is not 3 the first ends 4 there is room."""
    async with bed.open() as scene:
        one, other, _ = await launches(bed, scene)
        scene.control({"capacity": {one.offering.pool: 1}})
        again = launch(one.offering, 9)
        (instance_id,) = await scene.launched(one)
        facts = await scene.cloud.launch([again, other])
        (refused,) = of(LaunchRefused, facts)
        assert refused.node_id == again.node_id
        assert refused.code in refusals.ELSEWHERE
        assert not refused.for_good
        assert one.offering.instance_type in refused.message
        assert [fact.node_id for fact in of(InstanceLaunched, facts)] == [other.node_id]
        await scene.cloud.terminate([terminate(one, instance_id)])
        await scene.end_of(one.node_id)
        await scene.launched(again)


@asynchronous
async def test_of_a_lot_that_is_made_all_or_none_none_is_made_where_not_all_can_be(
    bed: Any,
) -> None:
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        scene.control({"capacity": {one.offering.pool: 2}})
        for size in (3, 2):
            lot = [launch(one.offering, 10 * size + number) for number in range(size)]
            ids = tuple(effect.node_id for effect in lot)
            how = {"together": ids, "all_or_none": True}
            facts = await scene.cloud.launch([msgspec.structs.replace(e, **how) for e in lot])
            kind = LaunchRefused if size > 2 else InstanceLaunched
            assert tuple(fact.node_id for fact in of(kind, facts)) == ids
        listed = await scene.look()
        assert set(listed["ce"]) == set(ids)


# ---- ending


@asynchronous
async def test_an_end_is_told_once_it_is_certain_however_often_it_is_asked_for(bed: Bed) -> None:
    async with bed.open() as scene:
        one, two, _ = await launches(bed, scene)
        ids = await scene.launched(one, two)
        ask = terminate(one, ids[0])
        answers = await asyncio.gather(*(scene.cloud.terminate([ask]) for _ in range(3)))
        gone = await scene.end_of(one.node_id)
        assert not gone.reclaimed
        assert gone.reason
        for facts in [*answers, await scene.cloud.terminate([ask])]:
            assert all(fact.node_id == one.node_id for fact in of(InstanceGone, facts))
        assert await scene.look() == {"ce": {two.node_id: ids[1]}}


@asynchronous
async def test_nothing_runs_there_any_more_when_the_end_is_told(bed: Bed, tmp_path: Path) -> None:
    """The core starts its jobs again upon this news."""
    mark = tmp_path / "mark"
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        (instance_id,) = await scene.launched(one)
        ready = await scene.nodes.until(NodeReady, node_id=one.node_id)
        await scene.cluster.create_pod(a_pod(ready, f"while :; do date > {mark}; sleep 0.01; done"))
        await scene.nodes.until(PodRunning)
        await scene.cloud.terminate([terminate(one, instance_id)])
        await scene.end_of(one.node_id)
        mark.unlink(missing_ok=True)
        await scene.nodes.until(PodEnded)
        assert not mark.exists()


def a_pod(node: NodeReady, script: str) -> CreatePod:
    container = {"image": "busybox", "command": ["sh", "-c", script]}
    return CreatePod(
        pod=PodName("pod"),
        compute_environment="ce",
        node_id=node.node_id,
        node_name=node.node_name,
        namespace="jobs",
        pod_properties=json.dumps({"containers": [container]}).encode(),
        environment={},
        labels={},
        grace_s=30,
    )


@asynchronous
async def test_what_is_not_there_is_gone(bed: Bed) -> None:
    """With an instance id or without one: then nobody knows whether it was ever launched."""
    async with bed.open() as scene:
        one, two, three = await launches(bed, scene)
        (instance_id,) = await scene.launched(one)
        asked = [terminate(two, None), terminate(three, "i-00000000000000000")]
        facts = await scene.cloud.terminate([*asked])
        assert {fact.node_id for fact in of(InstanceGone, facts)} == {two.node_id, three.node_id}
        assert await scene.look() == {"ce": {one.node_id: instance_id}}


@asynchronous
async def test_a_launch_whose_answer_was_lost_is_ended_by_its_node_id(bed: Bed) -> None:
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        await scene.cloud.launch([one])
        await scene.cloud.terminate([terminate(one, None)])
        await scene.end_of(one.node_id)
        assert await scene.look() == {"ce": {}}


@asynchronous
async def test_a_stray_is_ended_by_its_instance_id_and_one_that_is_gone_is_no_trouble(
    bed: Bed,
) -> None:
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        (instance_id,) = await scene.launched(one)
        for stray in (instance_id, instance_id, "i-00000000000000000"):
            effect = TerminateStray(instance_id=stray, compute_environment="ce")
            await scene.cloud.terminate([effect])
        await scene.end_of(one.node_id)
        assert await scene.look() == {"ce": {}}


# ---- watching


@asynchronous
async def test_a_full_look_names_every_environment_also_those_without_instances(bed: Bed) -> None:
    """Or the core would never learn that the last one is gone."""
    async with bed.open() as scene:
        (one, *_), _ = await launches(bed, scene, "one"), await launches(bed, scene, "two")
        (instance_id,) = await scene.launched(one)
        assert await scene.look() == {"one": {one.node_id: instance_id}, "two": {}}


@asynchronous
async def test_everybody_who_watches_is_told(bed: Bed) -> None:
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        another = Watch(scene.cloud)
        await another.until(InstancesListed)
        (instance_id,) = await scene.launched(one)
        await scene.cloud.terminate([terminate(one, instance_id)])
        await another.until(InstanceGone, node_id=one.node_id)
        await scene.end_of(one.node_id)
        await another.close()


@asynchronous
async def test_instances_outlive_the_service_and_are_found_again(bed: Bed) -> None:
    async with bed.open() as scene:
        one, two, _ = await launches(bed, scene)
        ids = await scene.launched(one, two)
    async with bed.open() as scene:
        await bed.environment(scene.cloud)
        await scene.nodes.until(NodeReady, node_id=one.node_id)
        await scene.nodes.until(NodeReady, node_id=two.node_id)
        assert await scene.look() == {"ce": {one.node_id: ids[0], two.node_id: ids[1]}}
        await scene.cloud.terminate([terminate(one, ids[0])])
        await scene.end_of(one.node_id)


@asynchronous
async def test_an_end_that_nobody_was_told_is_told_to_who_watches_next(bed: Bed) -> None:
    """1 an instance ends 2 the service is gone before it could keep that 3 the next one learns of it."""
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        (instance_id,) = await scene.launched(one)
        await scene.watch.close()
        await scene.cloud.terminate([terminate(one, instance_id)])
    async with bed.open() as scene:
        await bed.environment(scene.cloud)
        await scene.end_of(one.node_id)


# ---- environments


@asynchronous
async def test_a_deleted_environment_leaves_nothing_and_takes_nothing_of_others(bed: Bed) -> None:
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene, "one")
        _, two, _ = await launches(bed, scene, "two")
        ids = await scene.launched(one, two)
        await scene.cloud.delete_environment("one", "one-0000-0000")
        await scene.end_of(one.node_id)
        await scene.cloud.delete_environment("one", "one-0000-0000")
        await scene.cloud.delete_environment("never was", "never was-0000-0000")
        assert await scene.look() == {"two": {two.node_id: ids[1]}}
        assert scene.cluster.node_ids() == {two.node_id}


# ---- Spot


@asynchronous
async def test_a_spot_instance_gets_a_notice_and_then_its_end(spot: EmbeddedBed) -> None:
    spot.settings["reclaim_notice_s"] = 0.5
    async with spot.open() as scene:
        one, two, _ = await launches(spot, scene)
        ids = await scene.launched(one, two)
        scene.control({"reclaim": ids[0]})
        notice = await scene.watch.until(SpotInterrupted, node_id=one.node_id)
        gone = await scene.end_of(one.node_id)
        assert gone.reclaimed
        assert gone.at >= notice.at + 500
        kinds = [type(f) for f in scene.watch.facts if getattr(f, "node_id", "") == one.node_id]
        assert kinds == [SpotInterrupted, InstanceGone]
        assert await scene.look() == {"ce": {two.node_id: ids[1]}}


@asynchronous
async def test_a_notice_is_told_again_to_a_service_that_starts(spot: EmbeddedBed) -> None:
    async with spot.open() as scene:
        one, *_ = await launches(spot, scene)
        await scene.launched(one)
        scene.control({"reclaim": one.node_id})
    async with spot.open() as scene:
        await scene.watch.until(SpotInterrupted, node_id=one.node_id)
        assert not scene.watch.told(InstanceGone)


@asynchronous
async def test_time_passes_for_instances_also_while_no_service_runs(spot: EmbeddedBed) -> None:
    """1 one is to boot, one to be taken back 2 the service stops before 3 the next start finds both done."""
    spot.settings |= {"launch_delay_s": 0.5, "reclaim_notice_s": 0.5}
    async with spot.open() as scene:
        one, two, _ = await launches(spot, scene)
        await scene.launched(one, two)
        scene.control({"reclaim": one.node_id})
    async with spot.open() as scene:
        assert (await scene.end_of(one.node_id)).reclaimed
        await scene.nodes.until(NodeReady, node_id=two.node_id)


@asynchronous
async def test_of_any_spot_instance_the_busiest_is_taken(spot: EmbeddedBed) -> None:
    async with spot.open() as scene:
        one, two, _ = await launches(spot, scene)
        await scene.launched(one, two)
        ready = await scene.nodes.until(NodeReady, node_id=one.node_id)
        await scene.cluster.create_pod(a_pod(ready, "sleep 1000"))
        await scene.nodes.until(PodRunning)
        assert scene.control({"reclaim": "any-spot"})["reclaimed"] == one.node_id
        assert scene.control({"reclaim": "any-spot"})["reclaimed"] == two.node_id
        with pytest.raises(Rejected, match="any-spot"):
            scene.control({"reclaim": "any-spot"})


# ---- what people may do to the simulated one


@asynchronous
async def test_settings_are_changed_altogether_or_not_at_all(spot: EmbeddedBed) -> None:
    async with spot.open() as scene:
        now = scene.control({})
        for wrong in (
            {"launch_delay_s": 3, "reclaim_notice_s": -1},
            {"launch_delay_s": 3, "capacity": {"m6i.large": 1}},
            {"launch_delay_s": 3, "capacity": {"*/*/SPOT": -1}},
            {"launch_delay_s": 3, "colour": "blue"},
            {"launch_delay_s": float("inf")},
            {"launch_delay_s": True},
            {"capacity": 3},
        ):
            with pytest.raises(Rejected):
                scene.control(wrong)
            assert scene.control({}) == now
        changed = scene.control({"launch_delay_s": 3, "capacity": {"*/*/SPOT": 1}})
        assert (changed["launch_delay_s"], changed["capacity"]) == (3.0, {"*/*/SPOT": 1})
        assert scene.control({"capacity": {"*/*/SPOT": None}})["capacity"] == {}


@asynchronous
async def test_on_demand_instances_are_never_taken_back(tmp_path: Path) -> None:
    bed = EmbeddedBed(tmp_path)
    bed.market = Market.ON_DEMAND
    async with bed.open() as scene:
        one, *_ = await launches(bed, scene)
        (instance_id,) = await scene.launched(one)
        for whom in ("any-spot", one.node_id, instance_id):
            with pytest.raises(Rejected, match="no such Spot instance"):
                scene.control({"reclaim": whom})
        assert await scene.look() == {"ce": {one.node_id: instance_id}}
    await bed.clean()


@asynchronous
async def test_what_cannot_be_written_down_is_not_told(spot: EmbeddedBed) -> None:
    """1 the disk is full 2 launches wait for it, ends do not 3 there is room 4 it is one instance."""
    async with spot.open() as scene:
        one, two, _ = await launches(spot, scene)
        (instance_id,) = await scene.launched(one)
        in_the_way = spot.directory / "cloud" / "instances.new"
        in_the_way.mkdir()
        for _ in range(2):
            with pytest.raises(CloudDown, match="written down"):
                await scene.cloud.launch([two])
        await scene.cloud.terminate([terminate(one, instance_id)])
        await scene.end_of(one.node_id)
        in_the_way.rmdir()
        (second,) = await scene.launched(two)
    async with spot.open() as scene:
        await spot.environment(scene.cloud)
        assert await scene.look() == {"ce": {two.node_id: second}}


@asynchronous
async def test_a_damaged_file_of_instances_is_one_sentence_that_says_what_to_do(
    tmp_path: Path,
) -> None:
    bed = EmbeddedBed(tmp_path)
    file = tmp_path / "cloud" / "instances.json"
    file.parent.mkdir()
    for text in ("", "{", "[]", '{"instances": [{}]}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="Move it away") as refused:
            async with bed.open():
                raise AssertionError("it was taken for good")
        assert str(file) in str(refused.value)
        assert file.read_text() == text
