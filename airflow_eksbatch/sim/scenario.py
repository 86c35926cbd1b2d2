"""What `eksbatch simulate` is asked on its command line, read into a workload; one sentence says what cannot be."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from airflow_eksbatch.cloud.offerings import offerings_of, resolve_types, shipped_types
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    Fact,
    JobSubmitted,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import JobSpec
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareWeight
from airflow_eksbatch.sim.cluster import Program
from airflow_eksbatch.sim.faults import Faults
from airflow_eksbatch.sim.report import Watcher, text_of
from airflow_eksbatch.sim.simulator import SimSettings, Simulator
from airflow_eksbatch.sim.workload import ARN, Request, Workload, a_queue, a_spec, an_environment

ENVIRONMENTS = ("on-demand:EC2:64", "spot:SPOT:256")
JOBS = ("1000:60:1:2048",)
LIMIT_S = 30 * 86_400.0
# Beats may be rarer than the service's: answers are in seconds, and a hundred thousand jobs are to be had soon.
INTERVAL_S = 0.2
# No news is lost here, so that full looks find nothing.
LOOK_EVERY_S = 3600.0
# Every refusal is forgotten and every pause is over long before.
STALLED_S = 2 * 3600.0
STALLED = "Jobs wait for ever: no compute environment may or can grow enough."
EXAMPLES = """\
examples:
  eksbatch simulate --jobs 3000:120:1:2048:backfill --jobs 100:60:0.5:1024:today:300 --weight today=0.1
      a backfill, and a hundred jobs of today five minutes later: how long do they wait?
  eksbatch simulate --jobs 5000:600:2:4096 --env spot:SPOT:512:m6i,m7i --reclaimed 0.2
      what does it cost on Spot where every fifth instance is taken back?
  eksbatch simulate --jobs 5000:600:2:4096 --env on-demand:EC2:512
      and what if Spot were gone?
  eksbatch simulate --script story.txt
      a story told command by command; `help` as its only line lists the commands

exit codes: 0 every job succeeded (or the script was played), 1 some failed, 2 a sentence says what is wrong
"""


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
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.description = (
        "Run a workload through the service's own planner in virtual time: when would it end, "
        "what would it cost, and who would wait?"
    )
    command.epilog = EXAMPLES
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
    command.add_argument(
        "--script", metavar="FILE", help="play commands from a file instead; - reads them here"
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
    if given.script is not None:
        return run_script(given)
    groups = [read_group(text) for text in given.jobs or JOBS]
    workload = make_workload(groups, given.env or ENVIRONMENTS, given.weight or ())
    simulator = make_simulator(given, workload.offerings)
    watcher = Watcher(simulator)
    live(simulator, watcher, workload)
    answer = watcher.answer()
    print(json.dumps(answer, indent=2) if given.json else text_of(answer))
    return 0 if answer["jobs"]["failed"] == 0 else 1


def run_script(given: argparse.Namespace) -> int:
    from airflow_eksbatch.sim.script import Script

    if given.jobs or given.env or given.weight:
        raise BadScenario(
            "A script says itself what is submitted and where: leave out --jobs, --env and --weight."
        )
    try:
        text = sys.stdin.read() if given.script == "-" else Path(given.script).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadScenario(f"--script {given.script} cannot be read: {error}") from None
    script = Script(make_simulator(given, {}))
    for line in script.play(text):
        if not given.json:
            print(line)
    if given.json:
        print(json.dumps(script.watcher.answer(), indent=2))
    return 0


def make_simulator(
    given: argparse.Namespace, offerings: Mapping[str, Sequence[Offering]]
) -> Simulator:
    for name in ("reclaimed", "refused"):
        if not 0 <= getattr(given, name) < 1:
            raise BadScenario(f"--{name} is a part: 0 or more, and less than 1.")
    for name in ("launch_s", "idle_s"):
        if not 0 <= getattr(given, name) <= 86_400:
            option = name.replace("_", "-")
            raise BadScenario(f"--{option} is a number of seconds, from 0 to a day.")
    return Simulator(
        offerings,
        Faults(reclaimed=given.reclaimed, refused=given.refused),
        SimSettings(
            seed=given.seed,
            launch_s=(given.launch_s, given.launch_s),
            idle_s=given.idle_s,
            interval_s=INTERVAL_S,
            look_every_s=LOOK_EVERY_S,
        ),
    )


def live(simulator: Simulator, watcher: Watcher, workload: Workload) -> None:
    """Until the last instance is given back. Raises BadScenario where that never happens."""
    answers: list[object] = []
    for fact in workload.setup:
        simulator.ask(fact)
    for request in workload.requests:
        assert isinstance(request.fact, JobSubmitted)
        watcher.expect(request.fact.spec, 1 + request.at_s)
        simulator.ask_at(1 + request.at_s, request.fact, answers.append)
    wanted = len(workload.requests)
    if not run_to_end(simulator, lambda: len(answers) == wanted and simulator.is_quiet):
        raise BadScenario(STALLED)


def run_to_end(simulator: Simulator, is_over: Callable[[], bool]) -> bool:
    """False when jobs are left and nothing more becomes of them."""
    timeline, events = simulator.timeline, simulator.ledger.events
    begin = timeline.now

    def has_stalled() -> bool:
        last = max(begin, events[-1].time if events else begin)
        return timeline.now - last > STALLED_S * 1000 and not simulator.cluster.live_pods

    simulator.run(lambda: is_over() or has_stalled(), timeline.elapsed_s + LIMIT_S)
    return is_over()


# ---- reading


def read_group(text: str) -> Group:
    parts = text.split(":")
    try:
        if len(parts) > 6:
            raise ValueError
        group = Group(
            count=int(parts[0]),
            run_s=float(parts[1]),
            vcpus=float(parts[2]),
            memory_mib=int(parts[3]),
            share=parts[4] if len(parts) > 4 else "today",
            at_s=float(parts[5]) if len(parts) > 5 else 0.0,
        )
    except (IndexError, ValueError):
        raise BadScenario(
            f"--jobs {text}: say COUNT:RUN_S:VCPUS:MEMORY_MIB[:SHARE[:AT_S]], such as 1000:60:1:2048:backfill."
        ) from None
    check_group(group, f"--jobs {text}")
    return group


def check_group(group: Group, where: str) -> None:
    """Bounds are generous: they keep out what is not meant, such as nan."""
    if not 0 < group.count <= 10_000_000:
        raise BadScenario(f"{where}: the count must be above zero, and ten million at most.")
    if not (0 < group.run_s <= 86_400 * 30 and 0 <= group.at_s <= 86_400 * 30):
        raise BadScenario(f"{where}: jobs run above zero seconds, and no time is above 30 days.")
    if not (0.001 <= group.vcpus <= 100_000 and 0 < group.memory_mib <= 1 << 40):
        raise BadScenario(f"{where}: vCPUs and memory must be above zero.")


def make_workload(
    groups: Sequence[Group], environments: Sequence[str], weights: Sequence[str]
) -> Workload:
    """One fair-share job queue over all environments, in their order."""
    setup: list[Fact] = []
    offerings: dict[str, Sequence[Offering]] = {}
    for text in environments:
        name, market, most, types = read_environment(text)
        if name in offerings:
            raise BadScenario(f"--env {text}: there are two compute environments of this name.")
        made = an_environment(name, market, most)
        setup.append(ComputeEnvironmentPut(compute_environment=made, create=True))
        offerings[name] = offerings_by_types(types, market, f"--env {text}")
    for group in groups:
        check_fits(
            shape_of(group), [offering for found in offerings.values() for offering in found]
        )
    shares = tuple(read_weight(text, f"--weight {text}") for text in weights)
    policy = SchedulingPolicy(name="fair", arn=f"{ARN}:scheduling-policy/fair", shares=shares)
    queue = a_queue("queue", offerings, policy="fair")
    setup += [PolicyPut(policy=policy, create=True), QueuePut(queue=queue, create=True)]
    requests = [
        Request(at_s=group.at_s, fact=JobSubmitted(spec=spec))
        for number, group in enumerate(groups)
        for spec in arrays_of(f"group{number}", group)
    ]
    return Workload(setup=setup, requests=requests, offerings=offerings)


def arrays_of(name: str, group: Group) -> list[JobSpec]:
    """As many arrays as AWS would want for so many jobs."""
    sizes = [
        min(limits.ARRAY_SIZE_MAX, group.count - first)
        for first in range(0, group.count, limits.ARRAY_SIZE_MAX)
    ]
    return [
        a_spec(
            f"{name}.{part}",
            "queue",
            shape_of(group),
            Program(run_s=(group.run_s,)),
            share=group.share,
            array_size=size if size > 1 else None,
            retry=RetryStrategy(attempts=3),
        )
        for part, size in enumerate(sizes)
    ]


def shape_of(group: Group) -> Resources:
    return Resources(cpu_m=round(group.vcpus * 1000), memory_mib=group.memory_mib, pods=1)


def check_fits(shape: Resources, offerings: Sequence[Offering]) -> None:
    if not any(shape.fits(offering.allocatable) for offering in offerings):
        raise BadScenario(
            f"No environment can hold a job of {shape.cpu_m / 1000:g} vCPUs and {shape.memory_mib} MiB: "
            "name larger instance types."
        )


def offerings_by_types(types: Sequence[str], market: Market, where: str) -> tuple[Offering, ...]:
    try:
        rows = resolve_types(tuple(types), shipped_types())
    except ValueError as error:
        raise BadScenario(f"{where}: {error}") from None
    return tuple(offerings_of(rows, zones="abc", market=market, region="us-east-1"))


def read_environment(text: str) -> tuple[str, Market, int, tuple[str, ...]]:
    name, _, rest = text.partition(":")
    market, _, rest = rest.partition(":")
    most, _, types = rest.partition(":")
    if not name or market not in tuple(Market) or not most.isdecimal() or not int(most):
        raise BadScenario(
            f"--env {text}: say NAME:EC2|SPOT:MAX_VCPUS[:TYPES], such as spot:SPOT:256:m6i,c6i."
        )
    return name, Market(market), int(most), tuple(types.split(",")) if types else ("optimal",)


def read_weight(text: str, where: str) -> ShareWeight:
    share, _, factor = text.partition("=")
    try:
        weight = float(factor)
    except ValueError:
        weight = 0.0
    if not share or not 0.0001 <= weight <= 999.9999:
        raise BadScenario(
            f"{where}: say SHARE=FACTOR with a factor from 0.0001 to 999.9999, such as today=0.1."
        )
    return ShareWeight(share_identifier=share, weight_factor=weight)
