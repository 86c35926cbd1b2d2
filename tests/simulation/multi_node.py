"""What the auditor asks of multi-node jobs: from pods, instances and committed rows, by AWS's rules alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from airflow_eksbatch.core.model.job import (
    TERMINAL,
    Attempt,
    JobEvent,
    JobId,
    JobSpec,
    JobStatus,
)
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.retry import Cause
from airflow_eksbatch.sim.cloud import Instance
from airflow_eksbatch.sim.cluster import SIGTERM_EXIT_CODE, Program, SimPod
from airflow_eksbatch.sim.simulator import Simulator

PREFIX = "AWS_BATCH_JOB_"
ADDRESS = f"{PREFIX}MAIN_NODE_PRIVATE_IPV4_ADDRESS"
Index = tuple[JobId, int]


class MultiNodeAuditor:
    """Asked by the auditor, whose notes it reads."""

    def __init__(
        self,
        simulator: Simulator,
        specs: Mapping[JobId, JobSpec],
        pods: Mapping[Index, Sequence[SimPod]],
        index_of: Callable[[SimPod], Index],
    ) -> None:
        self._simulator = simulator
        self._specs = specs
        self._pods = pods
        self._index_of = index_of

    def pods_of(self, spec: JobSpec) -> list[SimPod]:
        """All there ever were, of all nodes."""
        return [
            pod for index in range(spec.size) for pod in self._pods.get((spec.job_id, index), ())
        ]

    # ---- when a pod is created

    def on_pod_created(self, pod: SimPod) -> None:
        """Of whatever job it is: it may have come onto a node that another has to itself."""
        job, index = self._index_of(pod)
        spec = self._specs[job]
        self._check_alone(pod, spec)
        if spec.multi_node is None:
            return
        live = [other for other in self.pods_of(spec) if other.end is None and other is not pod]
        where = f"pod {pod.name}"
        for other in live:
            assert try_of(other) == try_of(pod), f"{where} begins while {other.name} runs"
        hosts = [self._host_of(one) for one in (pod, *live)]
        assert len({pool_of(host) for host in hosts}) == 1, f"{where} is apart: {hosts}"
        self._check_row(pod, spec, index)
        self._check_variables(pod, spec, index)
        if index:
            self._check_main_runs(pod, spec)

    def _check_alone(self, pod: SimPod, spec: JobSpec) -> None:
        for other in self._simulator.cluster.live_pods:
            if other.node_id != pod.node_id or other is pod:
                continue
            several = [self._specs[self._index_of(one)[0]].multi_node for one in (pod, other)]
            assert several == [None, None], f"{pod.name} shares a node with {other.name}"

    def _check_row(self, pod: SimPod, spec: JobSpec, index: int) -> None:
        """It is not created a second time, and does what AWS's range for its node says."""
        row = self._simulator.ledger.live["attempt", pod.name]
        attempt = msgspec.msgpack.decode(row, type=Attempt)
        assert attempt.started_at is None, f"{pod.name} runs a second time"
        assert spec.multi_node is not None
        number = number_of(spec, index)
        pods = dict(spec.multi_node.pods)
        mine = pods[max(first for first in pods if first <= number)]
        program = msgspec.json.decode(mine, type=Program).nth(
            int(pod.variables[f"{PREFIX}ATTEMPT"]), 0
        )
        assert (pod.run_s, pod.exit_code) == program, f"{pod.name} does another node's work"

    def _check_variables(self, pod: SimPod, spec: JobSpec, index: int) -> None:
        assert spec.multi_node is not None
        number = number_of(spec, index)
        meant = {
            "ID": f"{spec.job_id}#{number}",
            "MAIN_NODE_INDEX": str(spec.multi_node.main),
            "NODE_INDEX": str(number),
            "NUM_NODES": str(spec.multi_node.nodes),
        }
        told = {name: pod.variables.get(f"{PREFIX}{name}") for name in meant}
        assert told == meant, f"{pod.name} is told {told}"
        assert (ADDRESS in pod.variables) == (index > 0), f"{pod.name}: {pod.variables}"

    def _check_main_runs(self, pod: SimPod, spec: JobSpec) -> None:
        """Calls are on their way for a moment: that it has ended since, nobody may know yet."""
        mains = self._pods.get((spec.job_id, 0), ())
        assert mains, f"{pod.name} begins before its main node"
        main = mains[-1]
        assert try_of(main) == try_of(pod), f"{pod.name} begins beside {main.name}"
        assert main.running_at is not None, f"{pod.name} begins before {main.name} runs"
        assert pod.variables[ADDRESS] == main.address != "", f"{pod.name} looks for {main.name}"

    # ---- when something was committed

    def on_event(self, event: JobEvent) -> None:
        spec = self._specs[event.job_id]
        if spec.multi_node is None:
            return
        assert event.index is None, f"{event} tells of one node"
        if event.status is JobStatus.STARTING:
            self._check_placed(spec, event.attempt)
        elif event.status is JobStatus.RUNNABLE or event.status in TERMINAL:
            left = [pod.name for pod in self.pods_of(spec) if pod.end is None]
            assert not left, f"{event.job_id} is {event.status} and {left} run"
        if event.status in TERMINAL:
            nodes = self._simulator.ledger.found(Node, live=True)
            kept = [node.node_id for node in nodes if node.reserved_for == event.job_id]
            assert not kept, f"{event.job_id} has ended and keeps {kept}"

    def _check_placed(self, spec: JobSpec, number: int) -> None:
        """All of it or nothing, each on a node of its own that nobody else has."""
        live = self._simulator.ledger.found(Attempt, live=True)
        mine = [a for a in live if a.job_id == spec.job_id]
        assert {(a.index, a.number) for a in mine} == {(i, number) for i in range(spec.size)}, (
            f"{spec.job_id} has {spec.size} nodes, and of these are placed {mine}"
        )
        given = Counter(attempt.node_id for attempt in live)
        shared = [attempt.node_id for attempt in mine if given[attempt.node_id] > 1]
        assert not shared, f"{spec.job_id} has not {shared} to itself"
        hosts = [self._simulator.cloud.instances[attempt.node_id] for attempt in mine]
        assert len({pool_of(host) for host in hosts}) == 1, f"{spec.job_id} is on {hosts}"

    # ---- ends

    def was_ended_for_another(self, spec: JobSpec, main: SimPod) -> bool:
        """Whether one of its nodes did not begin or run as it should: then all are ended, and may run again."""
        return spec.multi_node is not None and not all(
            any(
                try_of(pod) == try_of(main)
                and pod.running_at is not None
                and pod.end is not None
                and pod.end.end.cause is Cause.EXITED
                and pod.end.end.exit_code != SIGTERM_EXIT_CODE
                for pod in self._pods.get((spec.job_id, index), ())
            )
            for index in range(1, spec.size)
        )

    def _host_of(self, pod: SimPod) -> Instance:
        instances = self._simulator.cloud.instances.values()
        return next(instance for instance in instances if instance.known_as == pod.node_id)


def number_of(spec: JobSpec, index: int) -> int:
    """AWS's number of a node: ours is 0 for the main one, which has changed places with AWS's 0."""
    assert spec.multi_node is not None
    if index == 0:
        return spec.multi_node.main
    return 0 if index == spec.multi_node.main else index


def try_of(pod: SimPod) -> str:
    """Which of its job's tries it belongs to."""
    return pod.name.rsplit("-", 1)[1]


def pool_of(host: Instance) -> tuple[str, ...]:
    offering = host.offering
    return host.environment, offering.instance_type, offering.zone, offering.market
