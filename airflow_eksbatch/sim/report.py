"""`eksbatch simulate`: when would it end, what would it cost, and who would wait? The planner's own answer."""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from airflow_eksbatch.cloud.offerings import offerings_of, resolve_types, shipped_types
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    JobSubmitted,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.engine.outcome import Outcome
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import JobStatus
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareWeight
from airflow_eksbatch.sim.cluster import Program
from airflow_eksbatch.sim.faults import Faults
from airflow_eksbatch.sim.simulator import SimSettings, Simulator
from airflow_eksbatch.sim.timeline import BEGIN
from airflow_eksbatch.sim.workload import ARN, Request, Workload, a_queue, a_spec, an_environment

ENVIRONMENTS = ("on-demand:EC2:64", "spot:SPOT:256")
JOBS = ("1000:60:1:2048",)
LIMIT_S = 30 * 86_400.0
CHART_WIDTH, CHART_HEIGHT = 72, 8


class BadScenario(Rejected):
    """What was asked for cannot be simulated; one sentence says why."""


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs alike that are submitted together."""

    count: int
    run_s: float
    vcpus: float
    memory_mib: int
    share: str = "today"
    at_s: float = 0.0


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--jobs",
        action="append",
        metavar="COUNT:RUN_S:VCPUS:MEMORY_MIB[:SHARE[:AT_S]]",
        help="jobs alike, submitted as one array at that second; repeat for more kinds "
        f"[default {JOBS[0]}]",
    )
    command.add_argument(
        "--env",
        action="append",
        metavar="NAME:EC2|SPOT:MAX_VCPUS[:TYPES]",
        help="a compute environment, in the order of the job queue; types are separated by commas "
        f"[default {' and '.join(ENVIRONMENTS)}]",
    )
    command.add_argument(
        "--weight", action="append", metavar="SHARE=FACTOR", help="of a share; the lower, the more"
    )
    number = {"type": float, "metavar": "SECONDS"}
    command.add_argument("--launch-s", default=60.0, help="from launch to ready [60]", **number)
    command.add_argument(
        "--idle-s", default=60.0, help="an empty instance is kept so long [60]", **number
    )
    rate = {"type": float, "default": 0.0, "metavar": "RATE"}
    command.add_argument(
        "--reclaimed", help="part of Spot instances taken back within 15 min [0]", **rate
    )
    command.add_argument("--refused", help="part of launches that are refused [0]", **rate)
    command.add_argument("--seed", type=int, default=1, help="of everything that is chance [1]")
    command.add_argument("--json", action="store_true", help="the answer as JSON")


def run(given: argparse.Namespace) -> int:
    """Simulate and print; raises BadScenario."""
    groups = [read_group(text) for text in given.jobs or JOBS]
    workload = make_workload(groups, given.env or ENVIRONMENTS, given.weight or ())
    for name in ("reclaimed", "refused"):
        if not 0 <= getattr(given, name) < 1:
            raise BadScenario(f"--{name} is a part: 0 or more, and less than 1.")
    simulator = Simulator(
        workload.offerings,
        Faults(reclaimed=given.reclaimed, refused=given.refused),
        SimSettings(
            seed=given.seed, launch_s=(given.launch_s, given.launch_s), idle_s=given.idle_s
        ),
    )
    report = Watcher(simulator, groups)
    answer = report.live(workload)
    print(json.dumps(answer, indent=2) if given.json else text_of(answer))
    return 0 if answer["jobs"]["failed"] == 0 else 1


def read_group(text: str) -> Group:
    parts = text.split(":")
    try:
        count, run_s, vcpus, memory = int(parts[0]), float(parts[1]), float(parts[2]), int(parts[3])
        share = parts[4] if len(parts) > 4 else "today"
        at_s = float(parts[5]) if len(parts) > 5 else 0.0
    except (IndexError, ValueError):
        raise BadScenario(
            f"--jobs {text}: say COUNT:RUN_S:VCPUS:MEMORY_MIB[:SHARE[:AT_S]], such as 1000:60:1:2048:backfill."
        ) from None
    if not (0 < count <= 10_000_000 and run_s > 0 and vcpus > 0 and memory > 0 and at_s >= 0):
        raise BadScenario(
            f"--jobs {text}: every number must be above zero (the start may be zero)."
        )
    return Group(count=count, run_s=run_s, vcpus=vcpus, memory_mib=memory, share=share, at_s=at_s)


def make_workload(
    groups: Sequence[Group], environments: Sequence[str], weights: Sequence[str]
) -> Workload:
    """One fair-share job queue over all environments, in their order."""
    setup: list[Any] = []
    offerings: dict[str, Any] = {}
    for text in environments:
        name, market, most, types = read_environment(text)
        setup.append(
            ComputeEnvironmentPut(
                compute_environment=an_environment(name, market, most), create=True
            )
        )
        rows = resolve_types(types, shipped_types())
        offerings[name] = offerings_of(rows, zones="abc", market=market, region="us-east-1")
    largest = [offering.allocatable for found in offerings.values() for offering in found]
    for group in groups:
        shape = Resources(cpu_m=round(group.vcpus * 1000), memory_mib=group.memory_mib, pods=1)
        if not any(shape.fits(room) for room in largest):
            raise BadScenario(
                f"No environment can hold a job of {group.vcpus:g} vCPUs and {group.memory_mib} MiB: "
                "name larger instance types in --env."
            )
    shares = tuple(read_weight(text) for text in weights)
    policy = SchedulingPolicy(name="fair", arn=f"{ARN}:scheduling-policy/fair", shares=shares)
    queue = a_queue("queue", offerings, policy="fair")
    setup += [PolicyPut(policy=policy, create=True), QueuePut(queue=queue, create=True)]
    requests = []
    for number, group in enumerate(groups):
        for part in range(0, group.count, 10_000):
            size = min(10_000, group.count - part)
            spec = a_spec(
                f"group{number}.{part}",
                "queue",
                Resources(cpu_m=round(group.vcpus * 1000), memory_mib=group.memory_mib, pods=1),
                Program(run_s=(group.run_s,)),
                share=group.share,
                array_size=size if size > 1 else None,
                retry=RetryStrategy(attempts=3),
            )
            requests.append(Request(at_s=group.at_s, fact=JobSubmitted(spec=spec)))
    return Workload(setup=setup, requests=requests, offerings=offerings)


def read_environment(text: str) -> tuple[str, Market, int, tuple[str, ...]]:
    name, _, rest = text.partition(":")
    market, _, rest = rest.partition(":")
    most, _, types = rest.partition(":")
    if not name or market not in ("EC2", "SPOT") or not most.isdigit() or not int(most):
        raise BadScenario(
            f"--env {text}: say NAME:EC2|SPOT:MAX_VCPUS[:TYPES], such as spot:SPOT:256:m6i,c6i."
        )
    chosen = tuple(types.split(",")) if types else ("optimal",)
    try:
        resolve_types(chosen, shipped_types())
    except ValueError as error:
        raise BadScenario(f"--env {text}: {error}") from None
    return name, Market(market), int(most), chosen


def read_weight(text: str) -> ShareWeight:
    share, _, factor = text.partition("=")
    try:
        return ShareWeight(share_identifier=share, weight_factor=float(factor))
    except ValueError:
        raise BadScenario(f"--weight {text}: say SHARE=FACTOR, such as today=0.1.") from None


class Watcher:
    """What is noted while it happens."""

    def __init__(self, simulator: Simulator, groups: Sequence[Group]) -> None:
        self.simulator = simulator
        self.groups = groups
        self.waits_s: defaultdict[str, list[float]] = defaultdict(list)
        self.ended_s: dict[str, float] = {}
        self.series: list[tuple[float, float, float]] = []
        """Seconds, vCPUs bought, vCPUs that jobs use."""
        self._shares: dict[str, str] = {}
        self._submitted_s: dict[str, float] = {}
        simulator.on_commit = self.on_commit

    def live(self, workload: Workload) -> dict[str, Any]:
        """Until the last instance is given back. Raises BadScenario where that never happens."""
        simulator, answers = self.simulator, list[object]()
        for fact in workload.setup:
            simulator.ask(fact)
        for request in workload.requests:
            assert isinstance(request.fact, JobSubmitted)
            spec = request.fact.spec
            self._shares[spec.job_id], self._submitted_s[spec.job_id] = spec.share, 1 + request.at_s
            simulator.ask_at(1 + request.at_s, request.fact, answers.append)
        wanted = len(workload.requests)
        if not simulator.run(lambda: len(answers) == wanted and simulator.is_quiet, LIMIT_S):
            raise BadScenario(
                "After 30 simulated days jobs still wait: no environment may grow enough."
            )
        return self.answer()

    def on_commit(self, outcome: Outcome) -> None:
        now_s = self.simulator.timeline.elapsed_s
        for event in outcome.changes.events:
            if event.parent or event.status not in (JobStatus.RUNNING, JobStatus.SUCCEEDED):
                continue
            share = self._shares[event.job_id]
            at_s = (event.time - BEGIN) / 1000
            if event.status is JobStatus.SUCCEEDED:
                self.ended_s[share] = max(at_s, self.ended_s.get(share, 0.0))
            elif event.attempt == 1:
                self.waits_s[share].append(at_s - self._submitted_s[event.job_id])
        if outcome.changes.nodes or outcome.changes.attempts:
            world = self.simulator.world
            if world is not None:
                used = sum(usage.running_cpu_m for usage in world.usages.values()) / 1000
                self.series.append((now_s, float(sum(world.vcpus.values())), used))

    def answer(self) -> dict[str, Any]:
        world, bill = self.simulator.world, self.simulator.cloud.bill
        assert world is not None
        totals = world.totals
        work_s = sum(group.count * group.run_s * group.vcpus for group in self.groups)
        bought_s = area_of([(at, bought) for at, bought, _ in self.series])
        return {
            "ends_s": round(max(self.ended_s.values(), default=0.0), 1),
            "empty_s": round(self.simulator.timeline.elapsed_s, 1),
            "jobs": {
                "succeeded": totals.succeeded,
                "failed": totals.failed,
                "attempts": totals.attempts,
            },
            "price_usd": round(bill.price_usd, 4),
            "instances": {
                "launched": dict(bill.launched),
                "peak": bill.peak,
                "refused": bill.refused,
            },
            "reclaims": bill.reclaimed,
            "vcpu_use_percent": round(100 * work_s / bought_s, 1) if bought_s else 0.0,
            "shares": {
                share: {
                    "jobs": len(waits),
                    "wait_p50_s": round(quantile(waits, 0.5), 1),
                    "wait_p99_s": round(quantile(waits, 0.99), 1),
                    "ends_s": round(self.ended_s.get(share, 0.0), 1),
                }
                for share, waits in sorted(self.waits_s.items())
            },
            "series": [[round(at, 1), bought, used] for at, bought, used in thinned(self.series)],
        }


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def area_of(series: Sequence[tuple[float, float]]) -> float:
    """Of a curve that stays where it is until the next point."""
    return sum(value * (then - at) for (at, value), (then, _) in itertools.pairwise(series))


def thinned(series: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """One point for each column of the chart: the last one that was so."""
    if not series:
        return []
    last_s, points, position = series[-1][0], list[tuple[float, float, float]](), 0
    for column in range(CHART_WIDTH + 1):
        at = last_s * column / CHART_WIDTH
        while position + 1 < len(series) and series[position + 1][0] <= at:
            position += 1
        points.append((at, *series[position][1:]) if series[position][0] <= at else (at, 0.0, 0.0))
    return points


def text_of(answer: dict[str, Any]) -> str:
    """For people."""
    launched = (
        ", ".join(f"{n} {name}" for name, n in answer["instances"]["launched"].items()) or "none"
    )
    jobs = answer["jobs"]
    lines = [
        f"last job ends   {clock(answer['ends_s'])}",
        f"zero instances  {clock(answer['empty_s'])}",
        f"jobs            {jobs['succeeded']} SUCCEEDED, {jobs['failed']} FAILED, {jobs['attempts']} attempts",
        f"instances       {launched}; {answer['instances']['peak']} at peak, "
        f"{answer['instances']['refused']} refused, {answer['reclaims']} reclaimed",
        f"price           {answer['price_usd']:.2f} USD; jobs used {answer['vcpu_use_percent']:g} % of the vCPU time",
        "",
        f"{'share':<16}{'jobs':>8}{'wait p50':>12}{'wait p99':>12}{'ends':>12}",
    ]
    for share, row in answer["shares"].items():
        waits = f"{clock(row['wait_p50_s']):>12}{clock(row['wait_p99_s']):>12}{clock(row['ends_s']):>12}"
        lines.append(f"{share:<16}{row['jobs']:>8}{waits}")
    return "\n".join([*lines, "", *chart(answer["series"])])


def chart(series: Sequence[Sequence[float]]) -> list[str]:
    """vCPUs over time: # used by jobs, . bought and free."""
    most = max((bought for _, bought, _ in series), default=0.0)
    if not most:
        return []
    rows = [f"{most:g} vCPUs  (# used by jobs, . bought)"]
    for level in range(CHART_HEIGHT, 0, -1):
        floor = most * (level - 0.5) / CHART_HEIGHT
        rows.append(
            "".join(
                "#" if u >= floor else "." if b >= floor else " " for _, b, u in series
            ).rstrip()
        )
    return [*rows, f"0{clock(series[-1][0]):>{CHART_WIDTH}}"]


def clock(seconds: float) -> str:
    """4.2 s, 1:07 min, 2:03:09 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
