"""An independent account of a simulated life: from pods, instances and committed events, never from the world."""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec

from airflow_eksbatch.core.engine.effects import Outcome
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    Fact,
    JobStopped,
    JobSubmitted,
)
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import (
    TERMINAL,
    TRANSITIONS,
    Attempt,
    DependencyType,
    Job,
    JobEvent,
    JobId,
    JobSpec,
    JobStatus,
    PodName,
    pod_name,
)
from airflow_eksbatch.core.model.node import Node, Offering
from airflow_eksbatch.core.model.resources import NOTHING, Cost
from airflow_eksbatch.core.model.retry import CONTAINER_EXITED
from airflow_eksbatch.core.planner.explain import explain
from airflow_eksbatch.core.world.books import Use
from airflow_eksbatch.sim.cloud import Instance
from airflow_eksbatch.sim.cluster import SIGTERM_EXIT_CODE, Program, SimPod
from airflow_eksbatch.sim.simulator import Simulator
from airflow_eksbatch.sim.workload import Workload
from tests.simulation.multi_node import MultiNodeAuditor

Index = tuple[JobId, int]
LATER_S = 60.0
EXPLAINED_BEATS = 20


class Auditor:
    """Looks on while it happens; what must never be raises AssertionError with one sentence."""

    def __init__(self, simulator: Simulator, workload: Workload) -> None:
        self.simulator = simulator
        self.specs: dict[JobId, JobSpec] = {}
        for request in workload.requests:
            if isinstance(request.fact, JobSubmitted):
                self.specs[request.fact.spec.job_id] = request.fact.spec
        stops = [r.fact for r in workload.requests if isinstance(r.fact, JobStopped)]
        self.stopped = {fact.job_id for fact in stops if self.can_stop(fact)}
        self.stopped |= {job for job, spec in self.specs.items() if self.has_later_try(spec)}
        environments = [
            f.compute_environment for f in workload.setup if isinstance(f, ComputeEnvironmentPut)
        ]
        self.max_vcpus = {environment.name: environment.max_vcpus for environment in environments}
        self.statuses: dict[Index, JobStatus] = {}
        self.whole: dict[JobId, JobStatus] = {}
        self.ran: set[PodName] = set()
        self.pods: defaultdict[Index, list[SimPod]] = defaultdict(list)
        self.over_at: dict[JobId, int] = {}
        """When a job was told to stop, or was superseded: nothing of it is placed from then on."""
        self.multi_node = MultiNodeAuditor(simulator, self.specs, self.pods, self.index_of)
        simulator.cluster.on_pod_created = self.on_pod_created
        simulator.cloud.on_bought = self.on_bought
        simulator.listeners.append(self.on_commit)

    # ---- while it happens

    def on_commit(self, outcome: Outcome) -> None:
        for event in outcome.changes.events:
            if not self.is_known(event.job_id):
                self.on_accepted(self.specs[event.job_id])
            self.on_event(event)
        if self.simulator.beats % EXPLAINED_BEATS == 0:
            self.check_reasons()

    def on_accepted(self, spec: JobSpec) -> None:
        """A later try ends what is left of earlier ones."""
        for other in self.specs.values():
            is_earlier = other.task_key == spec.task_key and other.try_number < spec.try_number
            if spec.task_key is not None and is_earlier and self.is_known(other.job_id):
                self.over_at.setdefault(other.job_id, self.simulator.timeline.now)

    def on_answer(self, fact: Fact, answer: object) -> None:
        if not isinstance(fact, JobStopped) or isinstance(answer, Rejected):
            return
        if fact.terminate and fact.index is None and self.is_known(fact.job_id):
            self.over_at.setdefault(fact.job_id, self.simulator.timeline.now)

    def can_stop(self, fact: JobStopped) -> bool:
        """One node of a multi-node job cannot be stopped alone."""
        spec = self.specs.get(fact.job_id)
        return spec is None or spec.multi_node is None or fact.index is None

    def is_known(self, job: JobId) -> bool:
        return job in self.whole or (job, 0) in self.statuses

    def check_reasons(self) -> None:
        """Whatever waits, somebody may ask why, and is told."""
        world = self.simulator.world
        assert world is not None
        for job in world.jobs.values():
            told = explain(world, job, self.simulator.timeline.now)
            assert told, f"nobody knows why {job.job_id} waits"
            assert all(told)

    def on_event(self, event: JobEvent) -> None:
        """Every index and every job moves as the table says, and ends once."""
        if event.parent:
            before = self.whole.get(event.job_id)
            assert before not in TERMINAL, f"{event.job_id} is {event.status} after {before}"
            self.whole[event.job_id] = event.status
            return
        self.multi_node.on_event(event)
        key = (event.job_id, event.index or 0)
        is_child = self.specs[event.job_id].array_size is not None
        # A child's first RUNNABLE is not told.
        before = self.statuses.get(key, JobStatus.RUNNABLE if is_child else JobStatus.SUBMITTED)
        assert event.status in TRANSITIONS[before], f"{key} is {event.status} after {before}"
        self.statuses[key] = event.status
        name = pod_name(event.job_id, key[1], event.attempt)
        if event.status is JobStatus.RUNNING:
            self.ran.add(name)
        elif event.status in TERMINAL and self.pods[key]:
            self.check_reason(event, self.pods[key][-1])

    @staticmethod
    def check_reason(event: JobEvent, pod: SimPod) -> None:
        """Who is ended on purpose is told for which."""
        if pod.end is not None and pod.end.end.exit_code == SIGTERM_EXIT_CODE:
            where = f"{pod.name} was ended on purpose, and is {event.status}: {event.status_reason}"
            assert event.status is JobStatus.FAILED, where
            assert event.status_reason not in (None, "", CONTAINER_EXITED), where

    def on_pod_created(self, pod: SimPod) -> None:
        job, index = self.index_of(pod)
        where = f"pod {pod.name}"
        row = self.simulator.ledger.live.get(("attempt", pod.name))
        assert row is not None, f"{where} exists and no live attempt says so"
        attempt = msgspec.msgpack.decode(row, type=Attempt)
        host = self.simulator.cloud.instances[attempt.node_id]
        assert host.known_as == pod.node_id, f"{where} is not on its attempt's node"
        told = self.statuses.get((job, index if self.specs[job].multi_node is None else 0))
        assert told not in TERMINAL, f"{where} begins after the end"
        over_at = self.over_at.get(job, attempt.created_at)
        assert attempt.created_at <= over_at, f"{where} is placed after its job was told to stop"
        for other in self.pods[job, index]:
            assert other.end is not None, f"{where} begins while {other.name} runs"
            host = self.host_of(other)
            is_reclaimed = host is not None and host.interrupted_at is not None
            is_ended_by_us = other.end.end.exit_code == SIGTERM_EXIT_CODE and not other.is_stuck
            is_ended_by_us = is_ended_by_us and not is_reclaimed and not self.is_with_others(other)
            assert not is_ended_by_us, f"{where} begins after {other.name} was ended on purpose"
        assert pod.name not in self.ran, f"{where} runs a second time"
        for other in self.pods_of_earlier_tries(self.specs[job]):
            assert other.end is not None, f"{where} begins beside {other.name} of an earlier try"
        self.pods[job, index].append(pod)
        self.check_dependencies(self.specs[job], index, where)
        self.check_room(pod, where)
        self.multi_node.on_pod_created(pod)

    def is_with_others(self, pod: SimPod) -> bool:
        """Whether it was ended because of another node of its job: of the main node, or of one that never began."""
        job, index = self.index_of(pod)
        spec = self.specs[job]
        if spec.multi_node is None:
            return False
        return index > 0 or self.multi_node.was_ended_for_another(spec, pod)

    def pods_of_earlier_tries(self, spec: JobSpec) -> list[SimPod]:
        if spec.task_key is None:
            return []
        earlier = {
            other.job_id
            for other in self.specs.values()
            if other.task_key == spec.task_key and other.try_number < spec.try_number
        }
        return [pod for (job, _), pods in self.pods.items() if job in earlier for pod in pods]

    def check_dependencies(self, spec: JobSpec, index: int, where: str) -> None:
        for dependency in spec.depends_on:
            match dependency.type:
                case DependencyType.SEQUENTIAL:
                    wanted = index == 0 or self.has_succeeded(spec.job_id, index - 1)
                case DependencyType.N_TO_N:
                    wanted = self.has_succeeded(dependency.job_id, index)
                case _:
                    size = self.specs[dependency.job_id].jobs
                    wanted = all(self.has_succeeded(dependency.job_id, i) for i in range(size))
            assert wanted, f"{where} begins before {dependency}"

    def host_of(self, pod: SimPod) -> Instance | None:
        instances = self.simulator.cloud.instances.values()
        return next((i for i in instances if i.known_as == pod.node_id), None)

    def has_succeeded(self, job: JobId, index: int) -> bool:
        return self.statuses.get((job, index)) is JobStatus.SUCCEEDED

    def check_room(self, pod: SimPod, where: str) -> None:
        node = self.simulator.cluster.nodes[pod.node_id]
        used = self.specs[self.index_of(pod)[0]].resources
        for other in self.simulator.cluster.live_pods:
            if other.node_id == pod.node_id and other.name != pod.name:
                used = used.plus(self.specs[self.index_of(other)[0]].resources)
        assert used.fits(node.allocatable), f"{where}: {used} are too much for {node.allocatable}"

    def on_bought(self, bought: Instance) -> None:
        """The maximum may be passed by one instance only; calls may overtake each other on their way."""
        name = bought.environment
        vcpus = [
            instance.offering.vcpus
            for instance in self.simulator.cloud.live
            if instance.environment == name
        ]
        most = self.max_vcpus[name]
        assert sum(vcpus) - max(vcpus) < most, f"{name} has {vcpus} vCPUs of at most {most}"

    @staticmethod
    def index_of(pod: SimPod) -> Index:
        job, index, _ = pod.name.rsplit("-", 2)
        return JobId(job), int(index)

    # ---- at the end

    def check_end(self, accepted: set[JobId]) -> None:
        """All that was accepted has ended as it had to, and nothing is left anywhere."""
        for job in accepted:
            spec = self.specs[job]
            statuses = [self.statuses.get((job, index)) for index in range(spec.jobs)]
            assert all(status in TERMINAL for status in statuses), f"{job} is {statuses}"
            self.check_results(spec)
            if spec.array_size is not None:
                failed = JobStatus.FAILED in statuses
                meant = JobStatus.FAILED if failed else JobStatus.SUCCEEDED
                assert self.whole[job] is meant, f"{job} as a whole is {self.whole[job]}"
        assert {key[0] for key in self.statuses} <= accepted, "jobs ran that nobody was told of"
        self.check_nothing_is_left()
        self.check_books()

    def has_later_try(self, spec: JobSpec) -> bool:
        return spec.task_key is not None and any(
            other.task_key == spec.task_key and other.try_number > spec.try_number
            for other in self.specs.values()
        )

    def check_results(self, spec: JobSpec) -> None:
        for index in range(spec.jobs):
            meant = self.meant_result(spec, index)
            status = self.statuses[spec.job_id, index]
            assert meant is None or status is meant, f"{spec.job_id}:{index} is {status}: {spec}"

    def meant_result(self, spec: JobSpec, index: int) -> JobStatus | None:
        """By program, retry strategy and dependencies alone; None where time or a caller decides."""
        if spec.timeout_s is not None or spec.job_id in self.stopped:
            return None
        if any(pod.is_stuck for i in range(spec.size) for pod in self.pods[spec.job_id, i]):
            return None
        for dependency in spec.depends_on:
            other = self.specs[dependency.job_id or spec.job_id]
            if dependency.type is DependencyType.PLAIN:
                before = {self.meant_result(other, i) for i in range(other.jobs)}
            elif dependency.type is DependencyType.N_TO_N:
                before = {self.meant_result(other, index)}
            else:
                before = {self.meant_result_of_program(other)} if index else set[JobStatus | None]()
            if before - {JobStatus.SUCCEEDED}:
                return JobStatus.FAILED if JobStatus.FAILED in before else None
        return self.meant_result_of_program(spec)

    @staticmethod
    def meant_result_of_program(spec: JobSpec) -> JobStatus:
        program = msgspec.json.decode(spec.pod, type=Program)
        for number in range(1, spec.retry.attempts + 1):
            code = program.nth(number, 0)[1]
            if code == 0:
                return JobStatus.SUCCEEDED
            if any(rule.on_exit_code == str(code) for rule in spec.retry.evaluate_on_exit):
                return JobStatus.FAILED
        return JobStatus.FAILED

    def check_nothing_is_left(self) -> None:
        simulator = self.simulator
        assert simulator.cloud.live == [], "instances are left"
        assert simulator.cluster.live_pods == [], "pods are left"
        kinds = {kind for kind, _ in simulator.ledger.live} & {"job", "attempt", "node"}
        assert not kinds, f"the store still holds a live {kinds}"

    def check_books(self) -> None:
        """What the service counted is what happened."""
        charged: Counter[Index] = Counter()
        for attempt in self.simulator.ledger.found(Attempt):
            charged[attempt.job_id, attempt.index] += attempt.charged
        for (job, index), number in charged.items():
            most = self.specs[job].retry.attempts
            assert number <= most, f"{job}:{index} was charged {number} attempts of {most}"
        world = self.simulator.world
        assert world is not None
        assert world.usages is not None
        for usage in world.usages.values():
            assert usage.running_cpu_m == 0, f"{usage} counts what does not run"
        self.check_money()
        launched = sum(world.totals.instances.values())
        assert launched <= sum(self.simulator.cloud.bill.launched.values()), "phantom instances"
        ends = Counter(self.statuses.values())
        told = (world.totals.succeeded, world.totals.failed)
        assert told == (ends[JobStatus.SUCCEEDED], ends[JobStatus.FAILED]), f"{told} is not {ends}"
        assert all(n.used == NOTHING for n in world.nodes.values())

    def check_money(self) -> None:
        """Instances cost price x time, and all of it is in the accounts, to the nano-dollar."""
        ledger, zero = self.simulator.ledger, Cost()
        paid: dict[str, Cost] = {}
        used: dict[Use, Cost] = {}
        for (_, account), cost in ledger.costs.items():
            name, use = account.compute_environment, account.use
            paid[name] = paid.get(name, zero).plus(cost)
            used[use] = used.get(use, zero).plus(cost)
        meant: dict[str, Cost] = {}
        for node in ledger.found(Node):
            if node.launched_at is not None:
                assert node.paid_until is not None, f"{node.node_id} was never paid"
                name, lived_ms = node.compute_environment, node.paid_until - node.launched_at
                meant[name] = meant.get(name, zero).plus(price_of(node.offering, lived_ms))
        assert paid == meant, f"the accounts have {paid}, instances cost {meant}"
        attempts = ledger.found(Attempt)
        by_attempts = Cost()
        for attempt in attempts:
            by_attempts = by_attempts.plus(attempt.cost)
        by_jobs = Cost()
        for job in ledger.found(Job):
            by_jobs = by_jobs.plus(job.bill.total)
        assert used.get(Use.JOBS, zero) == by_attempts == by_jobs, "jobs paid something else"
        idle = used.get(Use.IDLE, zero)
        assert idle.nano_usd >= -len(attempts), f"jobs paid more than there was: {idle}"
        assert idle.instance_ms >= -len(attempts), f"jobs paid for more than there was: {idle}"

    def check_bill(self) -> None:
        """Where no news was late or lost, the accounts are what the cloud would bill."""
        billed: dict[str, Cost] = {}
        for instance in self.simulator.cloud.instances.values():
            assert instance.gone is not None, f"{instance.node_id} lives"
            lived_ms = max(60_000, instance.gone.at - instance.launched_at)
            cost = price_of(instance.offering, lived_ms)
            billed[instance.environment] = billed.get(instance.environment, Cost()).plus(cost)
        paid: dict[str, Cost] = {}
        for (_, account), cost in self.simulator.ledger.costs.items():
            name = account.compute_environment
            paid[name] = paid.get(name, Cost()).plus(cost)
        assert paid == billed, f"the accounts have {paid}, the cloud bills {billed}"


def price_of(offering: Offering, lived_ms: int) -> Cost:
    """By price and time alone."""
    nano_usd_hour = round(offering.price_usd_hour * 1_000_000_000)
    return Cost(
        nano_usd=nano_usd_hour * lived_ms // 3_600_000,
        instance_ms=lived_ms,
        vcpu_ms=offering.vcpus * lived_ms,
    )
