"""Why a runnable job finds no room: its environments one by one, nodes on their way, rooms held back."""

from __future__ import annotations

from collections import Counter

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Node, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.planner.hold import (
    Roomiest,
    Ways,
    has_waited_long,
    is_coming,
    is_full,
    takes_work,
)
from airflow_eksbatch.core.planner.multi_node.together import Together
from airflow_eksbatch.core.planner.order import Turns, lines_by_queue
from airflow_eksbatch.core.planner.reservation import (
    Headroom,
    active_shares,
    headroom_of,
    held_back_cpu_m,
)
from airflow_eksbatch.core.planner.words import amount, listed, number_of, span
from airflow_eksbatch.core.world.job_class import ClassLine, JobClass
from airflow_eksbatch.core.world.where import ON_DEMAND_AFTER, ON_DEMAND_BY, Where, allowed
from airflow_eksbatch.core.world.world import World

# How AWS begins the statusReason of a job that is stuck, and here the nearest to going away by itself first.
NO_CAPACITY = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"
AT_MAXIMUM = "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE"
TOO_LARGE = "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"
UNDETERMINED = "UNDETERMINED"
ACTION_REQUIRED = "ACTION_REQUIRED"
OBSTACLES = (NO_CAPACITY, AT_MAXIMUM, TOO_LARGE, UNDETERMINED, ACTION_REQUIRED)


def explain_room(world: World, job: Job, now: int) -> list[str]:
    """One sentence or more for every environment of the queue, in the queue's order."""
    queue, sentences = world.queues.get(job.spec.queue), explain_before_room(world, job, now)
    if queue is None or world.trials.is_left_alone(world.class_of(job), now):
        return sentences
    shape, where = job.spec.resources, world.class_of(job).where
    free = [node for node in able_nodes(world, queue, shape, where) if shape.fits(node.free)]
    if free:
        sentences += explain_free_room(world, job, free, now)
    else:
        for name in queue.compute_environments:
            sentences.append(explain_environment(world, name, shape, where, now))
        sentences += explain_coming(world, queue, shape, where, now)
        sentences += explain_hold(world, job, queue, now)
    return sentences + explain_reservation(world, job, queue, now)


def explain_before_room(world: World, job: Job, now: int) -> list[str]:
    """What is to be said of its queue, its tags and its luck with kubelets."""
    queue = world.queues.get(job.spec.queue)
    if queue is None:
        return [f"Its job queue {job.spec.queue} does not exist any more."]
    where = explain_where(world, job, world.class_of(job).where)
    return explain_queue(queue) + where + explain_turned_away(world, job, now)


def explain_turned_away(world: World, job: Job, now: int) -> list[str]:
    """Kubelets do not take its pods, though we think that there is room."""
    job_class = world.class_of(job)
    refusals = world.trials.refusals.get(job_class.without_refusals)
    if refusals is None or not job_class.turned_away:
        return []
    wait_ms = refusals.until - now
    again = f"It is tried again in {span(wait_ms)}" if wait_ms > 0 else "It is tried again"
    return [
        f"Nodes with room for it turn its pods away ({refusals.reason.rstrip('.')}): does something add to what they "
        f"ask for? {again}; an instance is bought for it only if no node is left that could hold it."
    ]


def explain_queue(queue: JobQueue) -> list[str]:
    """A disabled queue takes no new jobs and still runs those in it (AWS)."""
    if queue.state == "ENABLED":
        return []
    return [
        f"Job queue {queue.name} is {queue.state}: it takes no new jobs; those in it still run."
    ]


def explain_where(world: World, job: Job, where: Where | None) -> list[str]:
    if where is None:
        return []
    why = "as its tags say"
    if job.job_id in world.lines.on_demand_only:
        lost = max((tries.lost for tries in job.tries.values()), default=0)
        after, by = job.spec.tags.get(ON_DEMAND_AFTER), job.spec.tags.get(ON_DEMAND_BY)
        if lost and after is not None and lost >= int(after):
            why = f"since it was lost with its node {number_of(lost, 'time')} ({ON_DEMAND_AFTER}: {after})"
        elif by is not None:
            why = f"since {by} ({ON_DEMAND_BY})"
    return [f"It runs only on nodes that are {where}, {why}."]


def able_nodes(world: World, queue: JobQueue, shape: Resources, where: Where | None) -> list[Node]:
    """Open nodes that could hold the job when empty."""
    nodes = world.nodes.values()
    return [n for n in nodes if n.is_open and may_take(world, queue, n, shape, where)]


# ---- in the words of AWS


def stuck_by(world: World, job_class: JobClass, now: int) -> str | None:
    """What that statusReason begins with.

    AWS gives one only if all environments have the problem; of different ones the nearest to going away is told.
    Nodes are looked at last, and not where an environment may grow.
    """
    queue = world.queues.get(job_class.queue)
    if queue is None or not queue.compute_environments:
        return None
    obstacles: list[str] = []
    for name in queue.compute_environments:
        obstacle = obstacle_of(world, name, job_class, now)
        if obstacle is None:
            return None
        obstacles.append(obstacle)
    pools = Counter(
        (node.compute_environment, node.offering.pool)
        for node in world.nodes.values()
        if may_take(world, queue, node, job_class.shape, job_class.where)
    )
    if max(pools.values(), default=0) >= max(1, job_class.nodes):
        return None
    return min(obstacles, key=OBSTACLES.index)


def obstacle_of(world: World, name: str, job_class: JobClass, now: int) -> str | None:
    """What keeps an environment from ever having room for it; None for what passes by itself, as with other jobs."""
    environment, full = world.compute_environments.get(name), world.full.get(name)
    if environment is None or environment.state != "ENABLED" or environment.status == "INVALID":
        return ACTION_REQUIRED
    if full is not None:
        return ACTION_REQUIRED if full.unusable else None
    if not environment.managed:
        return UNDETERMINED
    every = world.offerings.get(name, ())
    if environment.status != "VALID" or not every:
        return None
    able = [o for o in allowed(job_class.where, every) if job_class.shape.fits(o.allocatable)]
    if not able:
        return TOO_LARGE
    if max(0, job_class.nodes - 1) * min(o.vcpus for o in able) >= environment.max_vcpus:
        return AT_MAXIMUM
    if world.vcpus[name] >= environment.max_vcpus:
        return None
    at_once = job_class.nodes > 1
    return NO_CAPACITY if all(world.rests_until(o, at_once=at_once) > now for o in able) else None


def may_take(
    world: World, queue: JobQueue, node: Node, shape: Resources, where: Where | None
) -> bool:
    """Whether it is there or on its way, and holds the job once it is empty."""
    return (
        shape.fits(node.allocatable)
        and node.compute_environment in queue.compute_environments
        and (node.is_open or node.is_coming or node.is_paused)
        and takes_work(world, node.compute_environment)
        and (where is None or where.allows(node.offering))
    )


# ---- one environment


def explain_environment(
    world: World, name: str, shape: Resources, where: Where | None, now: int
) -> str:
    """Why this environment has no room for it now."""
    environment = world.compute_environments.get(name)
    if environment is None:
        return f"Compute environment {name} does not exist."
    if environment.state != "ENABLED":
        return f"Compute environment {name} is {environment.state}: nothing new is placed there."
    full = world.full.get(name)
    if full is not None and full.unusable:
        return (
            f"Namespace {environment.namespace} of compute environment {name} takes no pods "
            f"({full.reason.rstrip('.')}): it is looked at again in {span(full.until - now)}."
        )
    if full is not None:
        return (
            f"Namespace {environment.namespace} of compute environment {name} has no room under its quota "
            f"({full.reason.rstrip('.')}): it is tried again in {span(full.until - now)}, or when a pod there has ended."
        )
    if not environment.managed:
        return (
            f"Compute environment {name} is unmanaged: none of its nodes has {amount(shape)} free."
        )
    if environment.status != "VALID":
        again = world.trials.check_at.get(name)
        return (
            f"Compute environment {name} is {environment.status} and launches no nodes: "
            f"{environment.status_reason}"
            + (f" It is looked into again in {span(again - now)}." if again is not None else "")
        )
    return explain_growth(world, environment, shape, where, now)


def explain_growth(
    world: World, environment: ComputeEnvironment, shape: Resources, where: Where | None, now: int
) -> str:
    """Why a valid, enabled environment buys no node for it."""
    name, every = environment.name, world.offerings.get(environment.name, ())
    offerings = tuple(allowed(where, every))
    if every and not offerings:
        return f"Compute environment {name} has no nodes that are {where}."
    able = [offering for offering in offerings if shape.fits(offering.allocatable)]
    room = environment.max_vcpus - world.vcpus[name]
    able = [offering for offering in able if offering.vcpus <= room] or able
    refused = [offering for offering in able if world.rests_until(offering) > now]
    if not offerings:
        return f"The instance types of compute environment {name} are not known yet."
    if not able:
        return explain_misfit(name, offerings, shape)
    if world.vcpus[name] >= environment.max_vcpus:
        return (
            f"Compute environment {name} is full: its nodes have {world.vcpus[name]} of at most "
            f"{environment.max_vcpus} vCPUs, and none has {amount(shape)} free."
        )
    failed = world.never_joined[name]
    if failed >= limits.NEVER_JOINED_MAX:
        return (
            f"Compute environment {name} is on trial, since its last {failed} instances did not join: one is "
            "launched at a time until one does."
        )
    if len(refused) == len(able):
        return (
            f"The cloud has no capacity for it in {name}: {explain_refusals(world, refused, now)}."
        )
    some = f" Not asked for: {explain_refusals(world, refused, now)}." if refused else ""
    return (
        f"Compute environment {name} has {world.vcpus[name]} of at most {environment.max_vcpus} vCPUs "
        f"and may launch nodes for it.{some}"
    )


def explain_misfit(name: str, offerings: tuple[Offering, ...], shape: Resources) -> str:
    """No instance type is large enough: say how large they get, and which were thought to be."""
    largest = max(offerings, key=lambda offering: (offering.gpu, offering.allocatable))
    sentence = (
        f"No instance type of compute environment {name} can hold {amount(shape)}: the largest, "
        f"{largest.instance_type}, has {amount(largest.allocatable)} for jobs."
    )
    less = {o.instance_type: o for o in offerings if shape.fits(o.as_listed.allocatable)}
    if not less:
        return sentence
    rooms = [
        f"{instance_type} offer {amount(less[instance_type].allocatable)} to jobs"
        for instance_type in sorted(less)
    ]
    plugin = any(shape.gpu > offering.allocatable.gpu for offering in less.values())
    return (
        f"{sentence} Instances of type {listed(rooms)}, less than it wants: so the last nodes that joined have "
        f"shown, beside their DaemonSets.{' Is the NVIDIA device plugin installed?' if plugin else ''} "
        "UpdateComputeEnvironment has it tried again at once."
    )


def explain_refusals(world: World, refused: list[Offering], now: int) -> str:
    """Pools that said no, and for how long they are left alone."""
    return listed(
        [
            f"{offering.pool} was refused and is asked again in "
            f"{span(world.rests_until(offering) - now)}"
            for offering in sorted(refused, key=lambda o: (world.rests_until(o), o.pool))
        ]
    )


def explain_coming(
    world: World, queue: JobQueue, shape: Resources, where: Where | None, now: int
) -> list[str]:
    """Nodes on their way that could hold it, by environment."""
    sentences: list[str] = []
    for name in queue.compute_environments:
        coming = [
            node
            for node in world.nodes.values()
            if node.is_coming
            and node.compute_environment == name
            and shape.fits(node.allocatable)
            and (where is None or where.allows(node.offering))
        ]
        if coming:
            since = span(now - min(node.requested_at for node in coming))
            are = "is" if len(coming) == 1 else "are"
            sentences.append(
                f"{number_of(len(coming), 'node')} large enough {are} being launched in {name}, "
                f"the first asked for {since} ago{explain_joined(coming)}."
            )
    return sentences


def explain_joined(coming: list[Node]) -> str:
    """Of nodes on their way, those that are in the cluster already, and what they wait for."""
    joined = [node for node in coming if node.joined_at is not None]
    if not joined:
        return ""
    lacks = listed(sorted({node.lacks for node in joined if node.lacks}))
    return f"; {len(joined)} joined and not ready yet{f' ({lacks})' if lacks else ''}"


# ---- rooms that are there and kept


def explain_free_room(world: World, job: Job, free: list[Node], now: int) -> list[str]:
    """There is room: then it is kept for somebody, or the job's turn has not come."""
    held = held_nodes(world, job, now)
    open_nodes = [node for node in free if node.node_id not in held]
    if open_nodes:
        return [
            f"{number_of(len(open_nodes), 'ready node')} with room for {amount(job.spec.resources)} "
            "can take it: it is placed in the next beat if its turn comes."
        ]
    keeper = held[free[0].node_id]
    return [
        f"Node {free[0].node_id} has room for it and is kept free for {keeper.spec.name} "
        f"({keeper.job_id}), which needs {amount(keeper.spec.resources)} and has waited longer."
    ]


def held_nodes(world: World, job: Job, now: int) -> dict[str, Job]:
    """Nodes kept free for jobs of other classes that have waited too long, and for whom."""
    held: dict[str, Job] = {}
    ways, together = Ways(world, now), Together(world, now)
    for name, lines in lines_by_queue(world, now).items():
        queue = world.queues.get(name)
        for line in lines if queue is not None else ():
            assert queue is not None
            keeper = line.head(world.jobs)
            if keeper is None or line.job_class == world.class_of(job):
                continue
            shape = line.job_class.shape
            if line.job_class.turned_away:
                continue
            if line.job_class.nodes:
                overdue = has_waited_long(world, line, now)
                for node in together.make_way(queue, keeper) if overdue else ():
                    held.setdefault(node.node_id, keeper)
                continue
            if has_waited_long(world, line, now) and not fits_anywhere(world, queue, shape):
                for node in ways.nodes_for(queue, line.job_class):
                    held.setdefault(node.node_id, keeper)
    return held


def fits_anywhere(world: World, queue: JobQueue, shape: Resources) -> bool:
    return any(
        name in queue.compute_environments and shape.fits(free) for name, free in world.rooms
    )


def explain_hold(world: World, job: Job, queue: JobQueue, now: int) -> list[str]:
    """A node kept for this job's class."""
    line = world.lines.get(world.class_of(job))
    if line is None or not has_waited_long(world, line, now):
        return []
    job_class = line.job_class
    node = Roomiest(world).node_for(job_class.shape, queue.compute_environments, job_class.where)
    if node is None:
        return [] if is_coming(world, queue, job_class) else explain_way(world, line, queue, now)
    return [
        f"Jobs of its size have waited long, so node {node.node_id} takes no other work until one "
        f"fits there: {amount(node.free)} of {amount(node.allocatable)} are free."
    ]


def explain_way(world: World, line: ClassLine, queue: JobQueue, now: int) -> list[str]:
    """The maximum is used up by nodes that are too small for it."""
    ways = Ways(world, now)
    nodes = ways.make(queue, line.job_class)
    why = "Jobs of its size have waited long and no node here could hold one, so"
    full = [name for name in ways.first if is_full(world, name)]
    if full and not nodes:
        return [
            f"{why} the next to be bought in {full[0]} is for one: a smaller one is ending for it."
        ]
    return [
        f"{why} node {node.node_id} takes no new work and goes when it is empty, to leave room for a larger one: "
        f"{amount(node.free)} of {amount(node.allocatable)} are free."
        for node in nodes
    ]


def explain_reservation(world: World, job: Job, queue: JobQueue, now: int) -> list[str]:
    """computeReservation leaves too little for it, or what it leaves is kept for one that has waited longer."""
    policy = world.policy_of(queue)
    share = job.spec.share
    # Its own is active, or would be if it were submitted.
    headroom = headroom_of(world, queue, now, share)
    if policy is None or headroom is None:
        return []
    sentences: list[str] = []
    job_class = world.class_of(job)
    if not headroom.count_of(job_class, 1):
        held_back = held_back_cpu_m(world, queue, policy, now, share) / 1000
        active = number_of(len(active_shares(world, queue, now) | {share}), "share")
        sentences.append(
            f"Scheduling policy {policy.name} holds back {held_back:g} vCPUs for shares that are not active "
            f"yet (computeReservation {policy.compute_reservation}, {active} active): "
            f"{max(0, headroom.cpu_m) / 1000:g} vCPUs are left for this job queue."
        )
    return sentences + explain_kept_headroom(world, job, queue, headroom, now)


def explain_kept_headroom(
    world: World, job: Job, queue: JobQueue, headroom: Headroom, now: int
) -> list[str]:
    line = first_kept_waiting(world, queue, now)
    keeper = line.head(world.jobs) if line is not None else None
    if line is None or keeper is None:
        return []
    kept = line.job_class.shape.cpu_m / 1000
    job_class = world.class_of(job)
    if line.job_class == job_class:
        return [
            f"Jobs of its size have waited long, so of what the policy leaves {kept:g} vCPUs are kept for the "
            "next of them."
        ]
    headroom.keep_for(line.job_class)
    if headroom.count_of(job_class, 1):
        return []
    return [
        f"Of what the policy leaves {kept:g} vCPUs are kept for {keeper.spec.name} ({keeper.job_id}), "
        "which comes first and has waited long."
    ]


def first_kept_waiting(world: World, queue: JobQueue, now: int) -> ClassLine | None:
    """Of the classes that have waited too long and could have a node, the one whose turn is first."""
    ways = Ways(world, now)
    turns = Turns(world, queue, lines_by_queue(world, now).get(queue.name, []), now, places=1)
    while (turn := turns.next()) is not None:
        line, _ = turn
        if (
            not line.job_class.turned_away
            and has_waited_long(world, line, now)
            and ways.is_in_reach(queue, line.job_class)
        ):
            return line
        turns.served(0, blocked=True)
    return None
