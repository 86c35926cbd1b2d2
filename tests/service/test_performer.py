"""The performer: in order for each pod, merged for each environment, and again after trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.core.engine.effects import (
    CheckEnvironment,
    CreatePod,
    DeletePod,
    Effect,
    ForgetPod,
    LaunchNode,
    TerminateNode,
    TerminateStray,
)
from airflow_eksbatch.core.engine.facts import (
    EnvironmentChecked,
    Fact,
    InstanceLaunched,
    OfferingsListed,
    PodRefused,
    PodSeen,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.service.performer import Performer, PerformerSettings
from airflow_eksbatch.service.telemetry import Telemetry

OFFERING = Offering(
    instance_type="m6i.large",
    zone="us-east-1a",
    market=Market.ON_DEMAND,
    vcpus=2,
    memory_mib=8192,
    allocatable=Resources(cpu_m=1930, memory_mib=7000, pods=29),
    price_usd_hour=0.1,
)


def create(pod: str, environment: str = "ce") -> CreatePod:
    return CreatePod(
        pod=PodName(pod),
        compute_environment=environment,
        node_id=NodeId("n"),
        node_name="n",
        namespace="default",
        pod_properties=b"{}",
        environment={},
        labels={},
        grace_s=30,
    )


def delete(pod: str) -> DeletePod:
    return DeletePod(pod=PodName(pod), compute_environment="ce", grace_s=30)


def forget(pod: str) -> ForgetPod:
    return ForgetPod(pod=PodName(pod), compute_environment="ce")


def launch(node: str) -> LaunchNode:
    return LaunchNode(node_id=NodeId(node), compute_environment="ce", offering=OFFERING)


def terminate(node: str) -> TerminateNode:
    return TerminateNode(
        node_id=NodeId(node), compute_environment="ce", instance_id=None, node_name=None
    )


class Outside:
    """A cluster and a cloud that write down what they are asked, and are down when told so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.down = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.trouble: str | None = None
        self.refusals: dict[str, Fact] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.silent: set[str] = set()
        """What is never answered."""
        self.silent_environments: set[str] = set()

    async def _enter(self, what: str) -> None:
        await self.gate.wait()
        if what.split()[0] in self.silent:
            await asyncio.Event().wait()
        if what in self.gates:
            await self.gates[what].wait()
        if self.down:
            self.down -= 1
            raise ClusterDown("away") if "pod" in what else CloudDown("away")
        self.asked.append(what)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def check(self, environment: ComputeEnvironment) -> str | None:
        return self.trouble

    async def create_pod(self, effect: CreatePod) -> Fact | None:
        if effect.compute_environment in self.silent_environments:
            await asyncio.Event().wait()
        await self._enter(f"create pod {effect.pod}")
        if effect.pod in self.refusals:
            return self.refusals.pop(effect.pod)
        return PodSeen(pod=effect.pod, at=1)

    async def delete_pod(self, effect: DeletePod) -> Fact | None:
        await self._enter(f"delete pod {effect.pod}")
        return None

    async def forget_pod(self, effect: ForgetPod) -> None:
        await self._enter(f"forget pod {effect.pod}")

    async def read_log(self, pod: PodName, offset: int, limit: int) -> tuple[bytes, int] | None:
        return None

    async def watch(self) -> AsyncIterator[list[Fact]]:
        yield []

    async def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        self.asked.append(f"offerings {environment.name}")
        if "x9" in environment.instance_types:
            raise ValueError("there is no x9")
        return (OFFERING,)

    async def launch(self, effects: list[LaunchNode]) -> list[Fact]:
        await self._enter("launch " + " ".join(effect.node_id for effect in effects))
        return [InstanceLaunched(node_id=e.node_id, instance_id="i", at=1) for e in effects]

    async def terminate(self, effects: list[TerminateNode | TerminateStray]) -> list[Fact]:
        names = [e.node_id if isinstance(e, TerminateNode) else e.instance_id for e in effects]
        await self._enter("terminate " + " ".join(names))
        return []

    async def delete_environment(self, environment: str, uuid: str) -> None:
        await self._enter(f"delete environment {environment}")


class Bench:
    """A performer between an outside and a list of facts."""

    def __init__(
        self, environment: ComputeEnvironment | None = None, *, batch_max: int = 200
    ) -> None:
        self.outside = Outside()
        self.facts: list[Fact] = []
        self.performer = Performer(
            cluster=self.outside,
            cloud=self.outside,
            tell=self.facts.extend,
            find_environment=lambda name: environment,
            telemetry=Telemetry(),
            settings=PerformerSettings(
                at_once=4, batch_max=batch_max, backoff=Backoff(first_s=0.001)
            ),
        )

    async def perform(self, *effects: Effect) -> list[str]:
        self.performer.start(effects)
        await self.performer.idle()
        return self.outside.asked


def run(scenario: Callable[[Bench], Awaitable[None]], **how: ComputeEnvironment) -> None:
    async def bounded() -> None:
        bench = Bench(how.get("environment"))
        async with asyncio.timeout(10):
            await scenario(bench)
        await bench.performer.close()

    asyncio.run(bounded())


def test_results_come_back_as_facts() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.perform(create("a"))
        assert bench.facts == [PodSeen(pod=PodName("a"), at=1)]

    run(scenario)


def test_a_refusal_stays_one_although_it_would_be_taken_back() -> None:
    """1 a pod is refused 2 the commit that would note it fails, so it is asked for again 3 no, again."""

    async def scenario(bench: Bench) -> None:
        refused = PodRefused(pod=PodName("a"), at=1, reason="exceeded quota")
        bench.outside.refusals["a"] = refused
        await bench.perform(create("a"))
        assert await bench.perform(create("a"), create("b")) == ["create pod a", "create pod b"]
        assert bench.facts == [refused, refused, PodSeen(pod=PodName("b"), at=1)]

    run(scenario)


def test_effects_of_one_pod_keep_their_order() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.perform(create("a"))
        asked = await bench.perform(delete("a"), forget("a"))
        assert asked == ["create pod a", "delete pod a", "forget pod a"]

    run(scenario)


def test_the_end_of_a_pod_overtakes_its_creation() -> None:
    async def scenario(bench: Bench) -> None:
        assert await bench.perform(create("a"), delete("a")) == ["delete pod a"]

    run(scenario)


def test_a_creation_under_way_is_finished_before_the_pod_is_ended() -> None:
    async def scenario(bench: Bench) -> None:
        bench.outside.gate.clear()
        bench.performer.start([create("a")])
        await asyncio.sleep(0)
        bench.performer.start([delete("a")])
        bench.outside.gate.set()
        await bench.performer.idle()
        assert bench.outside.asked == ["create pod a", "delete pod a"]

    run(scenario)


def test_a_creation_that_failed_is_overtaken_by_the_end() -> None:
    async def scenario(bench: Bench) -> None:
        bench.outside.gate.clear()
        bench.outside.down = 1
        bench.performer.start([create("a")])
        await asyncio.sleep(0)
        bench.performer.start([delete("a")])
        bench.outside.gate.set()
        await bench.performer.idle()
        assert bench.outside.asked == ["delete pod a"]

    run(scenario)


def test_what_is_asked_for_twice_is_done_once() -> None:
    async def scenario(bench: Bench) -> None:
        bench.outside.gate.clear()
        bench.performer.start([create("a")])
        await asyncio.sleep(0)
        bench.performer.start([create("a"), create("a"), launch("n"), launch("n")])
        bench.outside.gate.set()
        await bench.performer.idle()
        assert sorted(bench.outside.asked) == ["create pod a", "launch n"]

    run(scenario)


def test_launches_of_an_environment_go_in_one_call() -> None:
    async def scenario(bench: Bench) -> None:
        asked = await bench.perform(
            launch("a"), launch("b"), terminate("c"), terminate("d"), launch("e")
        )
        assert asked == ["launch a b e", "terminate c d"]

    run(scenario)


def test_launches_that_are_asked_for_together_are_not_cut() -> None:
    """A cloud that sees half of a lot would have to guess what became of the other half."""

    async def scenario(_: Bench) -> None:
        bench = Bench(batch_max=2)
        lots = [("a",), ("b", "c", "d"), ("e", "f")]
        effects = [
            msgspec.structs.replace(launch(node), together=tuple(NodeId(n) for n in lot))
            for lot in lots
            for node in lot
        ]
        assert await bench.perform(*effects) == ["launch a b c d", "launch e f"]

    run(scenario)


def test_ends_do_not_wait_for_a_storm_of_launches() -> None:
    """But the end of an instance waits for its own launch: it would find nothing to end, and leave a stray."""

    async def scenario(bench: Bench) -> None:
        gate = bench.outside.gates["launch a b"] = asyncio.Event()
        bench.performer.start([launch("a"), launch("b")])
        await asyncio.sleep(0)
        bench.performer.start([launch("c"), launch("d"), terminate("b"), terminate("c")])
        bench.performer.start([terminate("x")])
        while bench.outside.asked != ["terminate c x"]:
            await asyncio.sleep(0)
        gate.set()
        await bench.performer.idle()
        assert bench.outside.asked == ["terminate c x", "launch a b", "launch d", "terminate b"]

    run(scenario)


def test_an_end_leaves_nothing_to_launch() -> None:
    async def scenario(bench: Bench) -> None:
        assert await bench.perform(launch("a"), terminate("a")) == ["terminate a"]

    run(scenario)


def test_the_end_of_an_instance_overtakes_its_launch() -> None:
    async def scenario(bench: Bench) -> None:
        asked = await bench.perform(launch("a"), launch("b"), terminate("a"))
        assert sorted(asked) == ["launch b", "terminate a"]

    run(scenario)


def test_what_fails_is_tried_again_and_nothing_else_waits_for_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.outside.down = 3
        asked = await bench.perform(launch("a"), create("b"))
        assert sorted(asked) == ["create pod b", "launch a"]

    run(scenario)


async def until_asked(bench: Bench, *wanted: str) -> None:
    while not set(wanted) <= set(bench.outside.asked):
        await asyncio.sleep(0)


def test_kubelets_that_do_not_answer_hold_up_outputs_only() -> None:
    """Port 10250 is blocked: pods are still created and ended, and instances given back."""

    async def scenario(bench: Bench) -> None:
        bench.outside.silent = {"forget"}
        bench.performer.start([forget(f"ended-{number}") for number in range(100)])
        bench.performer.start([create("a"), delete("b"), terminate("n"), launch("m")])
        await until_asked(bench, "create pod a", "delete pod b", "terminate n", "launch m")

    run(scenario)


def test_a_cluster_that_does_not_answer_holds_up_no_other() -> None:
    async def scenario(bench: Bench) -> None:
        bench.outside.silent_environments = {"away"}
        bench.performer.start([create(f"stuck-{number}", "away") for number in range(1_000)])
        bench.performer.start([create("a"), terminate("n")])
        await until_asked(bench, "create pod a", "terminate n")

    run(scenario)


def test_no_more_calls_than_allowed_are_under_way_for_an_environment() -> None:
    async def scenario(bench: Bench) -> None:
        gates = bench.outside.gates
        gates.update({f"create pod {n}": asyncio.Event() for n in range(9)})
        bench.performer.start([create(str(number)) for number in range(9)])
        bench.performer.start([create("other", "another")])
        await until_asked(bench, "create pod other")
        # The fifth is let through, but its turn has not come: four others are under way.
        gates["create pod 4"].set()
        bench.performer.start([create("later", "another")])
        await until_asked(bench, "create pod later")
        assert "create pod 4" not in bench.outside.asked
        gates["create pod 0"].set()
        await until_asked(bench, "create pod 0", "create pod 4")
        for gate in gates.values():
            gate.set()
        await bench.performer.idle()

    run(scenario)


def test_a_compute_environment_is_checked_and_its_offerings_are_told() -> None:
    environment = ComputeEnvironment(name="ce", arn="", uuid="")

    async def scenario(bench: Bench) -> None:
        await bench.perform(CheckEnvironment(compute_environment="ce"))
        offerings, checked = bench.facts
        assert isinstance(offerings, OfferingsListed)
        assert offerings.offerings == (OFFERING,)
        assert isinstance(checked, EnvironmentChecked)
        assert checked.status == "VALID"
        assert offerings.made_from == checked.made_from == environment

    run(scenario, environment=environment)


def test_the_cloud_knows_of_an_environment_also_where_its_cluster_cannot_be_used() -> None:
    """Its machines are looked after there, and given back."""
    environment = ComputeEnvironment(name="ce", arn="", uuid="")

    async def scenario(bench: Bench) -> None:
        bench.outside.trouble = "There is no namespace."
        await bench.perform(CheckEnvironment(compute_environment="ce"))
        assert bench.outside.asked == ["offerings ce"]
        (checked,) = bench.facts
        assert isinstance(checked, EnvironmentChecked)
        assert checked.status_reason == "CLIENT_ERROR - There is no namespace."

    run(scenario, environment=environment)


def test_an_environment_that_asks_for_what_does_not_exist_is_invalid_and_says_why() -> None:
    environment = ComputeEnvironment(name="ce", arn="", uuid="", instance_types=("x9",))

    async def scenario(bench: Bench) -> None:
        await bench.perform(CheckEnvironment(compute_environment="ce"))
        assert bench.facts == [
            EnvironmentChecked(
                name="ce",
                status="INVALID",
                status_reason="CLIENT_ERROR - there is no x9",
                made_from=environment,
            )
        ]

    run(scenario, environment=environment)
