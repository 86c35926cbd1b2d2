"""One plan (make_plan) for up to a million runnable jobs, by classes and nodes; and where its time goes.

Run it: python -m tests.benchmarks planner [--jobs 100000 1000000] [--rounds 5] [--profile] [--out FILE]

Scenes: `full` - every node is busy and a few have room again, the environments are at their maximum (the beat of a long
backlog); `long` - the same after everybody has waited past RESERVE_AFTER_S; `empty` - every node is ready and empty, so
the plan places as much as it can; `stranded` - as `full`, and all other nodes have cpu and no memory; `growing` - half
the nodes are there and full, the rest may be bought; `scattered` - no node is there, and ten jobs of each class want one.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.check import check_plan
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.planner.planning import make_plan
from airflow_eksbatch.core.world.world import World
from tests.benchmarks.conditions import conditions
from tests.build import (
    NOW,
    a_job,
    a_node,
    a_policy,
    a_queue,
    a_world,
    an_amount,
    an_environment,
    an_offering,
)

CLASSES, NODES = (50, 500), (100, 1_000, 5_000)
SCENES = ("full", "long", "stranded", "empty", "growing", "scattered")
SHARES = 10
NODE_VCPUS = 16
# Of a full cluster so many nodes have room for new work in a beat.
NODES_WITH_ROOM = 0.05
IDLE_S = 60.0


def offerings() -> Iterator[Any]:
    """Thirty types in three zones, from 2 to 64 vCPUs and from 2 to 16 GiB a vCPU."""
    for family in range(5):
        for vcpus in (2, 4, 8, 16, 32, 64):
            for zone in "abc":
                yield an_offering(
                    f"t{family}.{vcpus}",
                    vcpus=vcpus,
                    memory_mib=vcpus * 1_024 * (2, 4, 8, 12, 16)[family],
                    pods=110,
                    zone=zone,
                    price=vcpus * (0.034, 0.042, 0.055, 0.062, 0.07)[family],
                )


def shape_of(number: int) -> dict[str, Any]:
    """Shapes of all sizes: a quarter to 8 vCPUs, half a GiB to 24 GiB; no two classes have the same."""
    return {
        "vcpus": 0.25 * (1 + number % 32),
        "memory_mib": 512 * (1 + number * 7 % 48) + number,
        "share": f"share{number % SHARES}",
        "priority": number % 3,
    }


@lru_cache(maxsize=1)
def runnable_jobs(jobs: int, classes: int) -> list[Job]:
    """Kept from scene to scene: a plan changes nothing."""
    shapes = [shape_of(number) for number in range(classes)]
    return [a_job(f"j{n}", seq=n + 1, **shapes[n % classes]) for n in range(jobs)]


def a_scene(scene: str, jobs: int, classes: int, nodes: int) -> World:
    there = {"growing": nodes // 2, "scattered": 0}.get(scene, nodes)
    jobs = classes * 10 if scene == "scattered" else jobs
    maximum = nodes * NODE_VCPUS
    world = a_world(
        an_environment(max_vcpus=maximum // 2),
        an_environment("spot", max_vcpus=maximum - maximum // 2),
        a_policy(**{f"share{n}": 0.25 * (1 + n) for n in range(SHARES)}),  # type: ignore[arg-type]
        a_queue("queue", "ce", "spot", policy="fair"),
        offerings=(),
    )
    for name in ("ce", "spot"):
        world.with_offerings(name, *offerings())
    offering = an_offering("m5.4xlarge", vcpus=NODE_VCPUS, memory_mib=65_536, pods=110)
    for number in range(there):
        node = a_node(f"n{number}", environment=("ce", "spot")[number % 2], offering=offering)
        if scene != "empty":
            node.used = node.allocatable.minus(free_of(number, scene))
            node.idle_since = None
        world.with_(node)
    for job in runnable_jobs(jobs, classes):
        world.add_job(job)
    world.take_changes()
    return world


def free_of(number: int, scene: str) -> Resources:
    """What a busy node has free; no two have the same, so that nothing is won by looking at nodes alike once."""
    if number % int(1 / NODES_WITH_ROOM) == 0:
        return an_amount(4, 16_384 + number * 7 % 8_191, pods=100)
    if scene == "stranded":
        return an_amount(4 + number % 8, number * 7 % 509, pods=100)
    return an_amount(0.125 * (number % 2), number * 7 % 8_191, pods=100)


def measure(world: World, now: int, rounds: int) -> tuple[list[float], Plan]:
    """Milliseconds of each round; the world is as it was after each."""
    times: list[float] = []
    plan = make_plan(world, now, IDLE_S)
    for _ in range(rounds):
        began = time.perf_counter()
        plan = make_plan(world, now, IDLE_S)
        times.append((time.perf_counter() - began) * 1000)
    return times, plan


def bench(scene: str, jobs: int, classes: int, nodes: int, rounds: int) -> dict[str, Any]:
    world = a_scene(scene, jobs, classes, nodes)
    gc.collect()
    gc.freeze()
    now = NOW + (limits.RESERVE_AFTER_S + 1) * 1000 if scene == "long" else NOW + 1
    times, plan = measure(world, now, rounds)
    check_plan(world, plan, now)
    gc.unfreeze()
    return {
        "scene": scene,
        "jobs": jobs,
        "classes": classes,
        "nodes": nodes,
        "median_ms": round(statistics.median(times), 1),
        "max_ms": round(max(times), 1),
        "placed": sum(placement.count for placement in plan.placements),
        "launched": sum(launch.count for launch in plan.launches),
    }


def profile(scene: str, jobs: int, classes: int, nodes: int) -> None:
    world = a_scene(scene, jobs, classes, nodes)
    now = NOW + (limits.RESERVE_AFTER_S + 1) * 1000 if scene == "long" else NOW + 1
    profiler = cProfile.Profile()
    profiler.runcall(make_plan, world, now, IDLE_S)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for jobs in given.jobs:
        for classes in given.classes:
            for nodes in given.nodes:
                for scene in given.scenes:
                    if given.profile:
                        profile(scene, jobs, classes, nodes)
                    row = bench(scene, jobs, classes, nodes, given.rounds)
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                    yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=SCENES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result = {"conditions": conditions(rounds=given.rounds), "plans": list(rows(given))}
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
