"""Workloads and faults drawn from a seed: small worlds of every kind, and what goes wrong in them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec

from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    Fact,
    JobStopped,
    JobSubmitted,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.job import Dependency, DependencyType, JobSpec, MultiNode
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import EvaluateOnExit, RetryAction, RetryStrategy
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareWeight
from airflow_eksbatch.sim.cluster import Program
from airflow_eksbatch.sim.faults import Faults
from airflow_eksbatch.sim.workload import ARN, Request, Workload, a_queue, a_spec, an_environment

DAEMONS_CPU_M_MAX = 600
SHARES = ("today", "backfill", "other")


class Draw:
    """A small world of every kind: two or three environments, a fair and a FIFO queue, all kinds of jobs."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(f"workload {seed}")
        self.specs: list[JobSpec] = []
        self.sold: dict[str, list[tuple[int, Offering]]] = {}
        """By job queue, what can be had in any number: how many at most, and of which offering."""
        self.tries: Counter[str] = Counter()

    def workload(self, jobs: int, within_s: float) -> Workload:
        dice = self.dice
        environments = [
            an_environment("on-demand", Market.ON_DEMAND, dice.choice((4, 8, 16))),
            an_environment("spot", Market.SPOT, dice.choice((8, 32))),
        ]
        if dice.random() < 0.3:
            third = an_environment("more", Market.ON_DEMAND, 32, min_vcpus=0, idle_s=10)
            environments.append(third)
        names = [environment.name for environment in environments]
        shares = (ShareWeight(share_identifier="today", weight_factor=0.1),)
        policy = SchedulingPolicy(
            name="fair",
            arn=f"{ARN}:scheduling-policy/fair",
            share_decay_s=dice.choice((0, 3600)),
            compute_reservation=dice.choice((0, 0, 30)),
            shares=shares,
        )
        setup: list[Fact] = [
            *(ComputeEnvironmentPut(compute_environment=e, create=True) for e in environments),
            PolicyPut(policy=policy, create=True),
            QueuePut(queue=a_queue("fair", names, policy="fair"), create=True),
            QueuePut(queue=a_queue("fifo", names[:2], priority=2), create=True),
        ]
        offerings = {e.name: offerings_of(e.market) for e in environments}
        pools = [offering.pool for of in offerings.values() for offering in of]
        capacity = {pool: dice.choice((0, 1, 2, 1 << 20)) for pool in pools if dice.random() < 0.5}
        # Something must be had at last, or nothing would ever end.
        capacity = {p: n for p, n in capacity.items() if not p.startswith("big.")}
        self.sold = {
            queue: [
                ((e.max_vcpus - 1) // o.vcpus + 1, o)
                for e in listed
                for o in offerings[e.name]
                if capacity.get(o.pool, 1 << 20) == 1 << 20
            ]
            for queue, listed in (("fair", environments), ("fifo", environments[:2]))
        }
        # Who depends on another is submitted after it.
        times = sorted(dice.uniform(0, within_s) for _ in range(jobs))
        requests = [self._submit(number, at_s) for number, at_s in enumerate(times)]
        requests += self._repeats(requests) + self._stops(requests, within_s)
        requests += self._switches(environments, within_s)
        return Workload(setup=setup, requests=requests, offerings=offerings, capacity=capacity)

    def _submit(self, number: int, at_s: float) -> Request:
        dice = self.dice
        queue = dice.choice(("fair", "fair", "fifo"))
        size = dice.choice((None, None, None, 2, 5, 20))
        attempts = dice.choice((1, 1, 2, 3))
        runs = tuple(dice.choice((1.0, 5.0, 20.0, 60.0, 300.0)) for _ in range(2))
        codes = dice.choice(((0,), (0,), (0,), (1, 0), (1,), (137, 1, 0)))
        rules = (EvaluateOnExit(action=RetryAction.EXIT, on_exit_code="137"),)
        task_key, try_number = self._task()
        shape = Resources(
            cpu_m=dice.choice((250, 500, 1000, 2000, 4000)),
            memory_mib=dice.choice((128, 1024, 4096)),
            pods=1,
        )
        program = Program(run_s=runs, exit_codes=codes)
        multi_node = self._multi_node(queue, shape, program) if size is None else None
        spec = a_spec(
            f"job-{number}",
            queue,
            shape,
            program,
            multi_node=multi_node,
            share=dice.choice(SHARES) if queue == "fair" else "",
            priority=dice.choice((0, 0, 7)),
            array_size=size,
            retry=RetryStrategy(
                attempts=attempts, evaluate_on_exit=rules if dice.random() < 0.3 else ()
            ),
            timeout_s=dice.choice((None, None, None, 60)),
            depends_on=self._dependencies(size),
            task_key=task_key,
            try_number=try_number,
        )
        self.specs.append(spec)
        return Request(at_s=at_s, fact=JobSubmitted(spec=spec))

    def _multi_node(self, queue: str, shape: Resources, program: Program) -> MultiNode | None:
        """A few nodes, no more than can be had some day; the others of them often do something else than the main one."""
        dice = self.dice
        needed_m = shape.cpu_m + DAEMONS_CPU_M_MAX
        most = max(n for n, o in self.sold[queue] if needed_m <= o.allocatable.cpu_m)
        if dice.random() < 0.7:
            return None
        nodes = min(most, dice.choice((1, 2, 2, 3, 4, 5)))
        main = dice.randrange(nodes)
        other = Program(
            run_s=(dice.choice((1.0, 60.0, 900.0)),), exit_codes=dice.choice(((0,), (3,)))
        )
        # Ranges: all alike, or the main node and what comes after, or before it, differ.
        programs = [program if number == main else other for number in range(nodes)]
        if dice.random() < 0.3:
            programs = [program] * nodes
        stretches = ((n, p) for n, p in enumerate(programs) if n == 0 or p != programs[n - 1])
        pods = tuple((number, msgspec.json.encode(one)) for number, one in stretches)
        return MultiNode(nodes=nodes, main=main, pods=pods)

    def _task(self) -> tuple[str | None, int]:
        """One of a few Airflow tasks that are tried again and again, now and then by a late caller."""
        if self.dice.random() < 0.7:
            return None, 0
        key = f"dag|run|task-{self.dice.randrange(3)}|-1"
        self.tries[key] += 2
        return key, self.tries[key] - 3 * (self.dice.random() < 0.2)

    def _dependencies(self, size: int | None) -> tuple[Dependency, ...]:
        dice = self.dice
        if size is not None and dice.random() < 0.2:
            return (Dependency(type=DependencyType.SEQUENTIAL),)
        if not self.specs or dice.random() < 0.6:
            return ()
        other = dice.choice(self.specs)
        if size is not None and other.array_size == size:
            return (Dependency(type=DependencyType.N_TO_N, job_id=other.job_id),)
        return (Dependency(job_id=other.job_id),)

    def _repeats(self, requests: Sequence[Request]) -> list[Request]:
        """A caller whose answer was lost long ago: the same submit again."""
        chosen = [r for r in requests if self.dice.random() < 0.1]
        return [Request(at_s=r.at_s + self.dice.uniform(0, 500), fact=r.fact) for r in chosen]

    def _switches(
        self, environments: Sequence[ComputeEnvironment], within_s: float
    ) -> list[Request]:
        """Somebody disables a compute environment, makes it smaller or keeps it warm, and takes it back later."""
        requests: list[Request] = []
        for environment in environments:
            if self.dice.random() < 0.7:
                continue
            less = self.dice.choice(
                (
                    {"state": "DISABLED"},
                    {"max_vcpus": environment.max_vcpus // 2},
                    {"min_vcpus": environment.max_vcpus // 2},
                )
            )
            changed = msgspec.structs.replace(environment, **less)
            at_s = self.dice.uniform(0, within_s)
            for later_s, wanted in ((0, changed), (self.dice.uniform(200, 600), environment)):
                fact = ComputeEnvironmentPut(compute_environment=wanted, create=False)
                requests.append(Request(at_s=at_s + later_s, fact=fact))
        return requests

    def _stops(self, requests: Sequence[Request], within_s: float) -> list[Request]:
        dice = self.dice
        return [
            Request(
                at_s=request.at_s + dice.uniform(0, within_s / 2),
                fact=JobStopped(
                    job_id=request.fact.spec.job_id,
                    index=dice.choice((None, None, 1)),  # means nothing for a multi-node job
                    reason="somebody asked for it",
                    terminate=dice.random() < 0.7,
                ),
            )
            for request in requests
            if isinstance(request.fact, JobSubmitted) and dice.random() < 0.12
        ]


def offerings_of(market: Market) -> tuple[Offering, ...]:
    """Three sizes in two zones; Spot costs a third."""
    price = 0.05 if market is Market.ON_DEMAND else 0.017
    return tuple(
        Offering(
            instance_type=f"{name}.{vcpus}",
            zone=zone,
            market=market,
            vcpus=vcpus,
            memory_mib=vcpus * 4096,
            allocatable=Resources(cpu_m=vcpus * 1000, memory_mib=vcpus * 4096, pods=20),
            price_usd_hour=price * vcpus,
        )
        for name, vcpus in (("small", 2), ("medium", 4), ("big", 8))
        for zone in ("a", "b")
    )


def draw_faults(seed: int, calm_after_s: float) -> Faults:
    """A mixture for one seed: each fault is absent, rare or frequent, so that each is also seen alone."""
    dice = random.Random(f"faults {seed}")

    def rate(frequent: float) -> float:
        return frequent * dice.choice((0.0, 0.0, 0.2, 1.0))

    return Faults(
        lost=rate(0.3),
        doubled=rate(0.3),
        late=rate(0.4),
        late_s=dice.choice((2.0, 30.0, 200.0)),
        crash=rate(0.1),
        refused=rate(0.5),
        never_joins=rate(0.2),
        dies=rate(0.3),
        reclaimed=rate(0.8),
        without_notice=rate(0.5),
        pod_refused=rate(0.2),
        pod_stuck=rate(0.1),
        address_late=rate(0.5),
        pod_deleted=rate(0.15),
        pressed=rate(0.3),
        pod_beyond_quota=rate(0.1),
        daemons_cpu_m=dice.choice((0, 0, 100, DAEMONS_CPU_M_MAX)),
        unanswered=rate(0.1),
        recommended=rate(0.3),
        calm_after_s=calm_after_s,
    )
