"""From submit at zero nodes to every pod bound, and from the last end to zero instances: seconds, instances, price.

Run it: python -m tests.benchmarks capacity [--queues equal eight] [--markets EC2 SPOT] [--out FILE]

The real service on a real API server. moto sells instances of 29 types in two zones at the shipped prices, and what it sells
boots at once as a KWOK node, from its user data; pods are played by KWOK and last long enough that all of them are there at
the same time. No delays: a machine is given back as soon as it is empty, and EC2's own rate of launches is left out. `chosen` is when the last instance was decided on,
`bound` when the last pod had its node, `price` what all instances cost an hour over the linear-programming bound
(lower_bound.py), `packing` the part of what nodes offer that pods ask for. Needs what `make test-cluster` needs.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from airflow_eksbatch.cloud.offerings import offerings_of, shipped_types
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.store.rows import node_from
from tests.airflow.processes import wait_for
from tests.benchmarks.conditions import conditions
from tests.benchmarks.lower_bound import whole_jobs
from tests.build import an_amount
from tests.cloud import door
from tests.cloud.account import ZONES, Account
from tests.kubernetes.bed import NAMESPACE, a_plane
from tests.kubernetes.bench import bound_pods
from tests.kubernetes.on_ec2 import a_service, an_account, create_environment, create_queue
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.kubernetes.rig.images import BUSYBOX
from tests.kubernetes.rig.joiner import Joiner
from tests.kubernetes.rig.machines import KwokMachines
from tests.service.running import RunningService

FAMILIES = ("c5", "m5", "r5", "c6i", "m6i", "r6i")
SIZES = ("large", "xlarge", "2xlarge", "4xlarge", "8xlarge")
TYPES = tuple(
    name for family in FAMILIES for size in SIZES if (name := f"{family}.{size}") in shipped_types()
)
SHAPES = {
    "equal": ((1, 2),),
    # vCPUs, GiB
    "eight": (
        (0.25, 0.5),
        (0.5, 4),
        (1, 2),
        (2, 4),
        (2, 16),
        (4, 8),
        (8, 64),
        (16, 32),
    ),
}
JOBS = {"equal": 1_000, "eight": 2_000}
SPOT_PART = 0.35
WITHIN_S = 600.0
Wanted = dict[Resources, int]


def demand(queue: str) -> Wanted:
    """Large ones are rarer, as in life: a shape's number falls with its size."""
    weights = {an_amount(vcpus, round(gib * 1024)): vcpus**-0.5 for vcpus, gib in SHAPES[queue]}
    scale = JOBS[queue] / sum(weights.values())
    counts = {shape: int(weight * scale) for shape, weight in weights.items()}
    counts[next(iter(counts))] += JOBS[queue] - sum(counts.values())
    return counts


def set_prices(account: Account) -> None:
    rows = shipped_types()
    account.door.prices.update({name: rows[name].price_usd_hour for name in TYPES})
    draw = random.Random(1)
    for name in TYPES:
        for zone in ZONES:
            part = SPOT_PART * draw.uniform(0.8, 1.2)
            price = round(rows[name].price_usd_hour * part, 5)
            account.door.spot_prices[name, zone] = price


def bound_usd_hour(account: Account, market: Market, wanted: Wanted) -> float:
    """The least that the instances could cost an hour."""
    rows = [row for name, row in shipped_types().items() if name in TYPES]
    sold = list(offerings_of(rows, zones="ab", market=Market.ON_DEMAND, region="us-east-1"))
    if market is Market.SPOT:
        prices = account.door.spot_prices
        sold = [
            msgspec.structs.replace(one, price_usd_hour=prices[one.instance_type, one.zone])
            for one in sold
        ]
    return whole_jobs(sold, wanted)


def submit(service: RunningService, wanted: Wanted, lasts_s: int) -> list[str]:
    """An array for each shape; their job ids."""
    batch, jobs = service.batch(), list[str]()
    definitions = list[tuple[str, int]]()
    for number, (shape, count) in enumerate(wanted.items()):
        requests = {"cpu": str(shape.cpu_m / 1000), "memory": f"{shape.memory_mib}Mi"}
        container = {"image": BUSYBOX, "command": ["true"], "resources": {"requests": requests}}
        pod = {
            "containers": [container],
            "metadata": {"annotations": {"rig/lasts": f"{lasts_s}s"}},
        }
        made = batch.register_job_definition(
            jobDefinitionName=f"shape-{number}",
            type="container",
            eksProperties={"podProperties": pod},
        )
        definitions.append((made["jobDefinitionArn"], count))
    for definition, count in definitions:
        job = batch.submit_job(
            jobName="bench",
            jobQueue="queue",
            jobDefinition=definition,
            arrayProperties={"size": count},
        )
        jobs.append(job["jobId"])
    return jobs


def nodes_of(home: Path) -> list[Node]:
    """All that the service ever asked for, as its database has them."""
    with sqlite3.connect(f"file:{home / 'eksbatch.db'}?mode=ro", uri=True) as database:
        return [node_from(body) for (body,) in database.execute("SELECT body FROM eksbatch_nodes")]


def bench(queue: str, market: Market, lasts_s: int) -> dict[str, Any]:
    wanted = demand(queue)
    with (
        mock.patch.object(door, "TYPES", TYPES),
        tempfile.TemporaryDirectory() as directory,
        a_plane(Path(directory) / "plane") as plane,
        an_account(plane) as account,
        a_service(plane, account, Path(directory) / "home", "--idle-s", "0", watched=()) as service,
        Joiner(account.door.url, plane, KwokMachines(plane, account.ec2)),
    ):
        FakeNodes(plane)
        set_prices(account)
        made = create_environment(
            service, account, type=market.value, maxvCpus=100_000, instanceTypes=list(TYPES)
        )
        if made["status"] != "VALID":
            raise SystemExit(f"the compute environment is {made['status']}: {made['statusReason']}")
        create_queue(service, "ce")
        with bound_pods(plane, NAMESPACE, sum(wanted.values())) as bound:
            began = time.time()
            jobs = submit(service, wanted, lasts_s)
            if not bound.wait(WITHIN_S):
                raise SystemExit(f"not every pod was bound within {WITHIN_S:.0f} s")
            bound_s = time.time() - began
        nodes = nodes_of(service.home)
        ends = service.wait_for_ends(set(jobs))
        wait_for("zero", lambda: is_nothing_left(plane, account), within_s=WITHIN_S, poll_s=0.2)
        ended = time.time()
        told = service.batch().describe_jobs(jobs=jobs)["jobs"]
        last_end = max(job["stoppedAt"] for job in told) / 1000
        later = len(nodes_of(service.home)) - len(nodes)
        lp = bound_usd_hour(account, market, wanted)
    return {
        "queue": queue,
        "market": market.value,
        "jobs": sum(wanted.values()),
        "succeeded": sum(status == "SUCCEEDED" for status in ends.values()),
        "chosen_s": round(max(n.requested_at for n in nodes) / 1000 - began, 2),
        "joined_s": round(max(n.ready_at or 0 for n in nodes) / 1000 - began, 2),
        "bound_s": round(bound_s, 2),
        "zero_s": round(ended - last_end, 2),
        "instances": len(nodes),
        "bought_later": later,
        "types": dict(Counter(n.offering.instance_type for n in nodes).most_common()),
        "price_usd_hour": round(sum(n.offering.price_usd_hour for n in nodes), 3),
        "bound_usd_hour": round(lp, 3),
        "price": round(sum(n.offering.price_usd_hour for n in nodes) / lp, 3),
        "packing_cpu": round(packing(nodes, wanted, "cpu_m"), 3),
        "packing_memory": round(packing(nodes, wanted, "memory_mib"), 3),
    }


def is_nothing_left(plane: ControlPlane, account: Account) -> bool:
    return not account.left() and not plane.admin.list("/api/v1/nodes")


def packing(nodes: list[Node], wanted: Wanted, resource: str) -> float:
    asked = sum(getattr(shape, resource) * count for shape, count in wanted.items())
    return asked / sum(getattr(node.allocatable, resource) for node in nodes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queues", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--markets", nargs="+", choices=list(Market), default=["EC2"])
    parser.add_argument("--lasts-s", type=int, default=60, help="how long each pod runs")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {"conditions": conditions(lasts_s=given.lasts_s), "runs": []}
    for market in map(Market, given.markets):
        for queue in given.queues:
            row = bench(queue, market, given.lasts_s)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            result["runs"].append(row)
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
