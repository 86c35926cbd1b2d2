"""What is bought for a mixed queue at zero nodes: cpu seconds to plan, and its price against a lower bound.

Run it: python -m tests.benchmarks provision [--seeds 1 2 3] [--markets ON_DEMAND SPOT] [--profile] [--out FILE]

Three queues on 600 offerings of the shipped table (200 types in three zones): 33,000 jobs in 50 shapes, 2,000 in eight,
and 1,000 equal ones. The bound (lower_bound.py) is a linear program in which machines come in pieces, and for the 50 shapes
jobs too; no plan costs less, and mostly none costs as little. `price` is of the whole purchase over the bound, once as
planned and once when everything has joined and runs: what is bought on the way, because pods stand elsewhere than
planned, counts. `busy` is the part of the paid cpu time in which a pod used it, if every job runs five to fifteen minutes
and a machine is paid until its last pod has ended.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow_eksbatch.cloud.offerings import offerings_of, shipped_types
from airflow_eksbatch.core.engine.facts import Fact, InstanceLaunched, NodeReady
from airflow_eksbatch.core.engine.step import step
from airflow_eksbatch.core.engine.turn import StepSettings
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import Node, NodeStatus, Offering
from airflow_eksbatch.core.model.resources import NOTHING, Resources
from airflow_eksbatch.core.planner.planning import make_plan
from airflow_eksbatch.core.world.world import World
from tests.benchmarks.conditions import conditions
from tests.benchmarks.lower_bound import jobs_in_pieces, whole_jobs
from tests.build import NOW, a_job, a_world, an_amount, an_environment

# name: jobs, shapes
QUEUES = {"mixed": (33_000, 50), "eight": (2_000, 8), "equal": (1_000, 1)}
TYPES = 200
VCPUS = (0.25, 0.5, 1, 2, 4, 8, 16)
GIB_A_VCPU = (1, 1.5, 2, 3, 4, 6, 8, 12)
GIB_LEAST, GIB_MOST = 0.5, 64
RUN_S = (300, 900)
JOINS_A_BEAT = 10
# Beyond so many shapes the exact bound takes minutes.
WHOLE_SHAPES_MAX = 8
SETTINGS = StepSettings(idle_s=60.0)


def offerings(market: Market, seed: int) -> list[Offering]:
    """A draw of types without GPU, each in all three zones."""
    types = [
        row
        for row in shipped_types().values()
        if row.architecture == "x86_64" and not row.gpu and set("abc") <= set(row.zones)
    ]
    drawn = random.Random(seed).sample(types, TYPES)
    return list(offerings_of(drawn, zones="abc", market=market, region="us-east-1"))


def demand(jobs: int, shapes: int, seed: int) -> dict[Resources, int]:
    """So many jobs in so many different shapes, some shapes more often than others."""
    draw = random.Random(seed)
    found: dict[Resources, float] = {}
    while len(found) < shapes:
        vcpus = draw.choice(VCPUS)
        gib = min(max(vcpus * draw.choice(GIB_A_VCPU), GIB_LEAST), GIB_MOST)
        found[an_amount(vcpus, round(gib * 1024))] = draw.uniform(0.2, 1.8)
    scale = jobs / sum(found.values())
    counts = {shape: int(weight * scale) for shape, weight in found.items()}
    counts[next(iter(counts))] += jobs - sum(counts.values())
    return counts


def a_scene(sold: list[Offering], wanted: dict[Resources, int], seed: int) -> World:
    """Zero nodes, and all jobs in line in a mixed order."""
    world = a_world(an_environment(max_vcpus=10**6), offerings=())
    world.with_offerings("ce", *sold)
    line = [shape for shape, count in wanted.items() for _ in range(count)]
    random.Random(seed).shuffle(line)
    for number, shape in enumerate(line):
        world.add_job(
            a_job(
                f"j{number}",
                seq=number + 1,
                vcpus=shape.cpu_m / 1000,
                memory_mib=shape.memory_mib,
            )
        )
    world.take_changes()
    return world


def buy_all(world: World) -> int:
    """Beat until nothing more is bought; how many beats bought something."""
    beats = 0
    while step(world, [], NOW, SETTINGS).plan.launches:
        beats += 1
    return beats


def join_all(world: World) -> None:
    """Machines join a few at a time in the order of their requests, and again if more had to be bought."""
    while coming := [node for node in world.nodes.values() if node.status is NodeStatus.REQUESTED]:
        for first in range(0, len(coming), JOINS_A_BEAT):
            facts = [x for node in coming[first : first + JOINS_A_BEAT] for x in joined(node)]
            step(world, facts, NOW, SETTINGS)


def joined(node: Node) -> list[Fact]:
    return [
        InstanceLaunched(node_id=node.node_id, instance_id=f"i-{node.node_id}", at=NOW),
        NodeReady(
            node_id=node.node_id,
            node_name=f"name-{node.node_id}",
            allocatable=node.allocatable,
            at=NOW,
        ),
    ]


def price_of(world: World) -> float:
    return sum(node.offering.price_usd_hour for node in world.nodes.values())


def busy(world: World, seed: int) -> float:
    """Cpu seconds used over cpu seconds paid, each machine until its last pod has ended."""
    draw = random.Random(seed)
    ends: defaultdict[str, float] = defaultdict(float)
    used = 0.0
    for attempt in world.attempts.values():
        seconds = draw.uniform(*RUN_S)
        ends[attempt.node_id] = max(ends[attempt.node_id], seconds)
        used += seconds * world.jobs[attempt.job_id].spec.resources.cpu_m
    paid = sum(
        ends[node.node_id] * node.allocatable.cpu_m
        for node in world.nodes.values()
        if node.node_id in ends
    )
    return used / paid


def packing(world: World, wanted: dict[Resources, int]) -> tuple[float, float]:
    """Part of the allocatable cpu and memory that the jobs ask for."""
    asked, have = NOTHING, NOTHING
    for shape, count in wanted.items():
        asked = asked.plus(shape.times(count))
    for node in world.nodes.values():
        have = have.plus(node.allocatable)
    return asked.cpu_m / have.cpu_m, asked.memory_mib / have.memory_mib


def bench(queue: str, market: Market, seed: int) -> dict[str, Any]:
    sold, wanted = offerings(market, seed), demand(*QUEUES[queue], seed)
    pieces = jobs_in_pieces(sold, wanted)
    bound = max(pieces, whole_jobs(sold, wanted)) if len(wanted) <= WHOLE_SHAPES_MAX else pieces
    world = a_scene(sold, wanted, seed)
    began = time.process_time()
    make_plan(world, NOW, SETTINGS.idle_s)
    plan_s = time.process_time() - began
    beats = buy_all(world)
    planned, cpu_memory = price_of(world), packing(world, wanted)
    machines = len(world.nodes)
    types = Counter(node.offering.instance_type for node in world.nodes.values())
    join_all(world)
    waiting = sum(line.count for line in world.lines.values())
    return {
        "queue": queue,
        "market": market.value,
        "seed": seed,
        "plan_s": round(plan_s, 2),
        "beats": beats,
        "machines": machines,
        "types": len(types),
        "bound_usd_hour": round(bound, 2),
        "pieces_usd_hour": round(pieces, 2),
        "price": round(planned / bound, 3),
        "price_joined": round(price_of(world) / bound, 3),
        "packing_cpu": round(cpu_memory[0], 3),
        "packing_memory": round(cpu_memory[1], 3),
        "busy": round(busy(world, seed), 3),
        "waiting": waiting,
    }


def profile(queue: str, market: Market, seed: int) -> None:
    world = a_scene(offerings(market, seed), demand(*QUEUES[queue], seed), seed)
    profiler = cProfile.Profile()
    profiler.runcall(make_plan, world, NOW, SETTINGS.idle_s)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for queue in given.queues:
        for market in map(Market, given.markets):
            for seed in given.seeds:
                if given.profile:
                    profile(queue, market, seed)
                row = bench(queue, market, seed)
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queues", nargs="+", choices=list(QUEUES), default=list(QUEUES))
    parser.add_argument("--markets", nargs="+", choices=list(Market), default=list(Market))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result = {"conditions": conditions(), "purchases": list(rows(given))}
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
