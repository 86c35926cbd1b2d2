"""The simulated cluster keeps what every cluster promises (tests/contracts), and is late where real ones are."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod
from airflow_eksbatch.core.engine.facts import Fact, PodEnded, PodRunning
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import NOT_THERE
from airflow_eksbatch.sim.cluster import ADDRESS_S, Program, SimCluster
from airflow_eksbatch.sim.faults import Chance, Faults
from airflow_eksbatch.sim.timeline import Timeline

POD, NODE = PodName("job-0-1"), NodeId("node-1")


class Bed:
    """A cluster with one node, and what its watch told."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.timeline = Timeline()
        self.told: list[Fact] = []
        chance = Chance(seed, faults, self.timeline)
        self.cluster = SimCluster(self.timeline, chance, self.told.append, pod_start_s=(1, 1))
        self.cluster.add_node(NODE, "ce", Resources(cpu_m=1000, memory_mib=1024, pods=1))

    def run_a_pod(self) -> None:
        """For longer than anything here takes; until its address is there."""
        create = CreatePod(
            pod=POD,
            compute_environment="ce",
            node_id=NODE,
            node_name=NODE,
            namespace="batch",
            pod_properties=msgspec.json.encode(Program(run_s=(10 * ADDRESS_S,))),
            environment={"AWS_BATCH_JOB_ATTEMPT": "1"},
            labels={},
            grace_s=30,
        )
        assert self.cluster.create_pod(create) is None
        while self.timeline.next_at is not None and self.timeline.elapsed_s < 2 * ADDRESS_S:
            self.timeline.run_next()

    @property
    def addresses(self) -> list[str]:
        return addresses_in(self.told)


def addresses_in(facts: list[Fact]) -> list[str]:
    return [fact.address for fact in facts if isinstance(fact, PodRunning)]


def test_deleting_a_pod_that_was_never_created_says_that_it_is_not_there() -> None:
    bed = Bed(1, Faults())
    ended = bed.cluster.delete_pod(DeletePod(pod=POD, compute_environment="ce", grace_s=30))
    assert isinstance(ended, PodEnded)
    assert ended.end == NOT_THERE


def test_a_running_pod_is_told_with_its_address() -> None:
    bed = Bed(1, Faults())
    bed.run_a_pod()
    assert bed.addresses == ["10.0.0.1"]


def test_an_address_that_is_late_is_told_by_the_watch_or_only_by_a_look() -> None:
    seen: set[int] = set()
    for seed in range(20):
        bed = Bed(seed, Faults(address_late=1))
        bed.run_a_pod()
        assert bed.addresses in ([""], ["", "10.0.0.1"])
        assert addresses_in(bed.cluster.look("ce")) == ["10.0.0.1"]
        seen.add(len(bed.addresses))
    assert seen == {1, 2}
