"""What no plan may do, counted again from the nouns: for tests, simulator and `check_plans`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from airflow_eksbatch.core.model.node import NodeId, NodeStatus
from airflow_eksbatch.core.model.resources import NOTHING, Resources
from airflow_eksbatch.core.planner.plan import Launch, Plan
from airflow_eksbatch.core.world.job_class import JobClass
from airflow_eksbatch.core.world.world import World


class WrongPlan(AssertionError):
    """Our own bug: a plan that must not be carried out."""


def check_plan(world: World, plan: Plan, now: int) -> None:
    """Raises WrongPlan with one sentence; `world` as it is before the plan is carried out."""
    check_placements(world, plan)
    check_rooms(world, plan)
    check_together(world, plan)
    check_launches(world, plan, now)
    check_retirements(world, plan)


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise WrongPlan(sentence)


def check_placements(world: World, plan: Plan) -> None:
    """Only on open nodes of the queue's environments, and nobody twice: no more than stand in line."""
    placed: Counter[JobClass] = Counter()
    for placement in plan.placements:
        job_class, node = placement.job_class, world.nodes.get(placement.node_id)
        require(placement.count > 0, f"{placement.count} jobs are placed on {placement.node_id}")
        require(node is not None, f"jobs are placed on {placement.node_id}, which is not here")
        assert node is not None
        where = job_class.where
        require(
            where is None or where.allows(node.offering),
            f"jobs that must be on {where} are placed on {node.node_id}, {node.offering.pool}",
        )
        require(node.takes_work, f"jobs are placed on {node.node_id}, which takes no new work")
        queue = world.queues.get(job_class.queue)
        name = node.compute_environment
        require(
            queue is not None and name in queue.compute_environments,
            f"jobs of queue {job_class.queue} are placed in {name}, which it does not use",
        )
        state = world.compute_environments[name].state
        require(state == "ENABLED", f"jobs are placed in {name}, which is {state}")
        require(name not in world.full, f"jobs are placed in {name}, whose quota is used up")
        placed[job_class] += placement.count
    for job_class, number in placed.items():
        line = world.lines.get(job_class)
        standing = line.count if line is not None else 0
        require(number <= standing, f"{number} jobs are placed where {standing} wait: {job_class}")
    for job_class, number in plan.unplaced.items():
        count = world.lines[job_class].count
        require(
            placed[job_class] + number == count,
            f"{placed[job_class]} placed and {number} left over are not {count}: {job_class}",
        )


def check_rooms(world: World, plan: Plan) -> None:
    """No node gets more than it has free, by its pods and not by its books."""
    wanted: defaultdict[NodeId, Resources] = defaultdict(Resources)
    for placement in plan.placements:
        load = placement.job_class.shape.times(placement.count)
        wanted[placement.node_id] = wanted[placement.node_id].plus(load)
    for node_id, load in wanted.items():
        used = NOTHING
        for pod in world.pods_by_node.get(node_id, ()):
            used = used.plus(world.jobs[world.attempts[pod].job_id].spec.resources)
        allocatable = world.nodes[node_id].allocatable
        require(
            load.fits(allocatable.minus(used)),
            f"node {node_id} has {allocatable}, {used} are in use, and {load} are placed there",
        )


def check_together(world: World, plan: Plan) -> None:
    """Multi-node jobs get all of their nodes or none, of one pool and empty, and nobody else gets any of these."""
    pools: defaultdict[JobClass, list[tuple[str, str]]] = defaultdict(list)
    got = Counter(placement.node_id for placement in plan.placements)
    for placement in plan.placements:
        job_class, node = placement.job_class, world.nodes[placement.node_id]
        if not job_class.nodes:
            kept_for = node.reserved_for
            require(kept_for is None, f"{node.node_id} is reserved for {kept_for}, others go there")
            continue
        is_alone = got[node.node_id] == placement.count == 1
        is_empty = not world.pods_by_node.get(node.node_id)
        require(is_alone and is_empty, f"a node of a multi-node job shares {node.node_id}")
        pools[job_class].append((node.compute_environment, node.offering.pool))
    for job_class, nodes in pools.items():
        for start in range(0, len(nodes), job_class.nodes):
            some = nodes[start : start + job_class.nodes]
            require(
                len(some) == job_class.nodes and len(set(some)) == 1,
                f"a multi-node job gets {some}, not {job_class.nodes} nodes of one pool",
            )
    for node_id, job_id in plan.claims.items():
        job = world.jobs.get(job_id) if job_id is not None else None
        waits = job_id is None or (job is not None and job.is_multi_node and bool(job.runnable))
        require(waits, f"{node_id} is reserved for {job_id}, which waits for no nodes")


def check_launches(world: World, plan: Plan, now: int) -> None:
    """Every instance is begun below its environment's maximum: AWS allows the last one to pass it."""
    vcpus: Counter[str] = Counter()
    for node in world.nodes.values():
        vcpus[node.compute_environment] += node.offering.vcpus
    for launch in plan.launches:
        check_offering(world, launch, now)
        maximum = world.compute_environments[launch.compute_environment].max_vcpus
        for _ in range(launch.count):
            have = vcpus[launch.compute_environment]
            require(
                have < maximum,
                f"{launch.compute_environment} has {have} of {maximum} vCPUs, and more are bought",
            )
            vcpus[launch.compute_environment] += launch.offering.vcpus


def check_offering(world: World, launch: Launch, now: int) -> None:
    """It may be bought here and now."""
    name, pool = launch.compute_environment, launch.offering.pool
    environment = world.compute_environments.get(name)
    require(
        environment is not None and environment.may_grow,
        f"instances are bought in {name}, which must not grow",
    )
    require(launch.count > 0, f"{launch.count} instances are bought in {name}")
    offered = launch.offering in world.offerings.get(name, ())
    require(offered, f"{pool} is bought in {name}, which does not offer it")
    at_once = launch.reserved_for is not None and launch.count > 1
    rests = world.rests_until(launch.offering, at_once=at_once) > now
    require(not rests, f"{pool} is bought, and it was refused a moment ago")


def check_retirements(world: World, plan: Plan) -> None:
    """Nobody loses a machine, and open ones go only as far as the minimum."""
    busy = {placement.node_id for placement in plan.placements}
    going: set[NodeId] = set()
    for retirement in plan.retirements:
        node = world.nodes.get(retirement.node_id)
        require(node is not None, f"{retirement.node_id} is retired and is not here")
        assert node is not None
        pods = len(world.pods_by_node.get(node.node_id, ()))
        require(not pods, f"node {node.node_id} is retired with {pods} pods on it")
        require(node.node_id not in busy, f"node {node.node_id} is retired and gets new pods")
        require(node.node_id not in going, f"node {node.node_id} is retired twice")
        status = node.status
        require(status is not NodeStatus.TERMINATING, f"node {node.node_id} is going already")
        managed = world.compute_environments[node.compute_environment].managed
        require(managed, f"node {node.node_id} is retired, and it belongs to others")
        going.add(node.node_id)
    check_minimum(world, going, plan.exchanged)


def check_minimum(world: World, going: set[NodeId], exchanged: Mapping[str, int]) -> None:
    """Where an open node goes, the minimum stays without those that are on their way out, unless others come instead."""
    staying: Counter[str] = Counter()
    for node in world.nodes.values():
        if node.node_id not in going and node.status is not NodeStatus.TERMINATING:
            staying[node.compute_environment] += node.offering.vcpus
    for node_id in going:
        node = world.nodes[node_id]
        environment = world.compute_environments[node.compute_environment]
        stays = environment.status != "DELETING" and environment.name not in exchanged
        if node.is_open and stays:
            require(
                staying[environment.name] >= environment.min_vcpus,
                f"{node_id} is retired, and only {staying[environment.name]} of at least "
                f"{environment.min_vcpus} vCPUs stay in {environment.name}",
            )
