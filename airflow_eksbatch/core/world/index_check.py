"""Recomputes every index of the world from its nouns and says what differs: for tests, simulator and `check_plans`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from airflow_eksbatch.core.model import dependencies, ranges
from airflow_eksbatch.core.model.job import Job, JobId, PodName
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from airflow_eksbatch.core.model.ranges import Ranges
from airflow_eksbatch.core.model.resources import NOTHING, Resources
from airflow_eksbatch.core.world.books import WHOLE

if TYPE_CHECKING:
    from airflow_eksbatch.core.world.world import World


class WrongIndex(AssertionError):
    """Our own bug: what the world remembers of its nouns is not what they are."""


def check_indexes(world: World) -> None:
    """Raises WrongIndex with one sentence; to be called between two steps."""
    for job_id, job in world.jobs.items():
        require(job_id == job.job_id, f"job {job.job_id} is kept under the name {job_id}")
        check_indices(job)
        check_waiting(world, job)
    check_attempts(world)
    check_nodes(world)
    check_lines(world)
    check_jobs_by_name(world)
    check_dependents(world)
    check_pods(world)
    check_usages(world)


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise WrongIndex(sentence)


def compare(name: str, kept: Mapping[object, object], meant: Mapping[object, object]) -> None:
    """Both maps, but for entries that hold nothing."""
    for key in [*kept, *meant]:
        ours, theirs = kept.get(key), meant.get(key)
        if (ours or theirs) and ours != theirs:
            raise WrongIndex(f"{name} of {key} is {ours!r} and should be {theirs!r}")


# ---- jobs


def check_indices(job: Job) -> None:
    """Every index is in exactly one set or runs."""
    sets = {
        "pending": job.pending,
        "runnable": job.runnable,
        "succeeded": job.succeeded,
        "failed": job.failed,
    }
    everything: Ranges = ranges.EMPTY
    for name, members in sets.items():
        edges = [edge for pair in members for edge in pair]
        ordered = edges == sorted(edges) and all(start < stop for start, stop in members)
        require(ordered, f"job {job.job_id}: its {name} ranges {members} are out of order")
        require(
            not ranges.intersect(everything, members),
            f"job {job.job_id}: some {name} indices of {members} are in another set too",
        )
        everything = ranges.union(everything, members)
    for index in job.running:
        require(
            not ranges.contains(everything, index),
            f"job {job.job_id}: index {index} runs and is in another set too",
        )
        everything = ranges.add(everything, index)
    require(
        everything == ranges.whole(job.spec.size),
        f"job {job.job_id}: its indices are {everything} and should be {job.spec.size} in all",
    )
    for index in job.tries:
        require(
            index in job.running or ranges.contains(job.runnable, index),
            f"job {job.job_id}: index {index} has tries behind it and neither waits nor runs",
        )


def check_waiting(world: World, job: Job) -> None:
    """What is awaited is alive, and nothing waits that may go."""
    require(not job.is_finished, f"job {job.job_id} is finished and still here")
    for awaited in job.waits_for:
        require(awaited in world.jobs, f"job {job.job_id} waits for {awaited}, which is not here")
    follows = job.follows
    require(
        follows is None or follows in world.jobs,
        f"job {job.job_id} follows {follows}, which is not here",
    )
    if job.pending:
        for awaited, members in job.matched.items():
            other = world.jobs.get(awaited)
            left = ranges.minus(job.pending, members)
            require(
                not left if other is None else members == other.succeeded,
                f"job {job.job_id} knows of {awaited} that {members} succeeded, and {left} are pending",
            )
    ready = dependencies.ready_indices(job)
    require(not ready, f"job {job.job_id}: {ready} are pending, and nothing holds them back")


# ---- attempts and nodes


def check_attempts(world: World) -> None:
    """Live attempts and the running indices of jobs are the same, each on a node that is here."""
    running: dict[PodName, JobId] = {}
    for pod, attempt in world.attempts.items():
        require(pod == attempt.pod_name, f"attempt {attempt.pod_name} is kept as {pod}")
        require(attempt.end is None, f"attempt {pod} has ended and is still here")
        require(attempt.node_id in world.nodes, f"attempt {pod} is on no node that is here")
        job = world.jobs.get(attempt.job_id)
        number = job.running.get(attempt.index) if job is not None else None
        require(number == attempt.number, f"attempt {pod}: its job runs number {number} instead")
        running[pod] = attempt.job_id
    meant = sum(len(job.running) for job in world.jobs.values())
    require(
        len(running) == meant,
        f"{meant} indices are said to run and there are {len(running)} attempts",
    )


def check_nodes(world: World) -> None:
    """Pods, use and idleness of every node; rooms of open nodes and of those on their way; vCPUs of environments."""
    pods: defaultdict[NodeId, set[PodName]] = defaultdict(set)
    used: defaultdict[NodeId, Resources] = defaultdict(Resources)
    given: Counter[NodeId] = Counter()
    alone: defaultdict[NodeId, set[str]] = defaultdict(set)
    for attempt in world.attempts.values():
        pods[attempt.node_id].add(attempt.pod_name)
        given[attempt.node_id] += attempt.part
        job = world.jobs[attempt.job_id]
        if job.is_multi_node:
            alone[attempt.node_id].add(attempt.job_id)
        shape = job.spec.resources
        used[attempt.node_id] = used[attempt.node_id].plus(shape)
    compare("pods_by_node", {**world.pods_by_node}, {**pods})
    rooms: defaultdict[object, set[NodeId]] = defaultdict(set)
    coming: defaultdict[object, set[NodeId]] = defaultdict(set)
    vcpus: Counter[str] = Counter()
    for node_id, node in world.nodes.items():
        require(node_id == node.node_id, f"node {node.node_id} is kept under the name {node_id}")
        require(node.status is not NodeStatus.GONE, f"node {node_id} is gone and still here")
        meant = used.get(node_id, NOTHING)
        require(node.used == meant, f"node {node_id} has {node.used} in use, should be {meant}")
        require(
            node.given == given[node_id] <= WHOLE,
            f"node {node_id} gave {node.given} billionths to its pods, should be {given[node_id]}",
        )
        if node.status is NodeStatus.READY:
            idle = node.idle_since is not None
            require(
                idle != bool(pods.get(node_id)),
                f"node {node_id} has {len(pods[node_id])} pods and is idle since {node.idle_since}",
            )
        check_reserved(world, node, alone.get(node_id, set()))
        if node.is_open:
            rooms[node.compute_environment, node.free].add(node_id)
        if node.is_coming:
            coming[node.compute_environment, node.allocatable, node.bought_for].add(node_id)
        vcpus[node.compute_environment] += node.offering.vcpus
    kept_rooms: dict[object, object] = {room: set(members) for room, members in world.rooms.items()}
    compare("rooms", kept_rooms, {**rooms})
    kept_coming: dict[object, object] = {room: set(nodes) for room, nodes in world.coming.items()}
    compare("coming", kept_coming, {**coming})
    compare("vcpus", {**world.vcpus}, {**vcpus})


def check_reserved(world: World, node: Node, alone: set[str]) -> None:
    """A node of a multi-node job is its own, and is kept only for one that waits."""
    kept_for = node.reserved_for
    require(
        not alone or alone == {kept_for},
        f"node {node.node_id} runs multi-node jobs {alone} and is reserved for {kept_for}",
    )
    if kept_for is not None and not alone:
        job = world.jobs.get(JobId(kept_for))
        waits = job is not None and job.is_multi_node and bool(job.runnable)
        require(waits, f"node {node.node_id} is kept for {kept_for}, which does not wait for nodes")
        pods = len(world.pods_by_node.get(node.node_id, ()))
        require(not pods, f"node {node.node_id} is kept for {kept_for} and has {pods} pods")


# ---- what is found by name


def check_lines(world: World) -> None:
    """Every line counts its runnable indices; whoever has some stands in it, and nobody of another class."""
    counts: Counter[object] = Counter()
    # `first` would drop those that left: a line that is looked at stays as it is.
    standing = {job_class: line.standing() for job_class, line in world.lines.items()}
    for job in world.jobs.values():
        if job.runnable:
            job_class = world.class_of(job)
            counts[job_class] += ranges.count(job.runnable)
            require(
                job.job_id in standing.get(job_class, ()),
                f"job {job.job_id} has runnable indices and stands in no line",
            )
    kept: dict[object, object] = {key: line.count for key, line in world.lines.items()}
    compare("the count of the line", kept, {**counts})
    for job_class, ids in standing.items():
        require(len(ids) == len(set(ids)), f"a job stands twice in the line of {job_class}")
        for job in filter(None, map(world.jobs.get, ids)):
            require(
                world.class_of(job) == job_class,
                f"job {job.job_id} stands in the line of {job_class} and is none of them",
            )
    strangers = (world.lines.on_demand_only | world.lines.turned_away) - world.jobs.keys()
    require(not strangers, f"{strangers} are said to be of other classes, and are not here")
    for job_id in world.lines.turned_away:
        job_class = world.class_of(world.jobs[job_id]).without_refusals
        refusals = world.trials.refusals.get(job_class)
        require(
            refusals is not None and refusals.times > 0 and job_id in refusals.jobs,
            f"job {job_id} was turned away, and of its class nobody knows when it is tried again",
        )


def check_jobs_by_name(world: World) -> None:
    """Jobs by queue, token and Airflow task."""
    by_queue: defaultdict[object, list[JobId]] = defaultdict(list)
    by_token: dict[object, object] = {}
    for job in sorted(world.jobs.values(), key=lambda job: job.spec.seq):
        by_queue[job.spec.queue].append(job.job_id)
        if job.spec.token:
            by_token[job.spec.token] = job.job_id
    kept: dict[object, object] = {name: [*ids] for name, ids in world.jobs_by_queue.items()}
    compare("jobs_by_queue", kept, {**by_queue})
    compare("job_by_token", {**world.job_by_token}, by_token)
    for task_key, job_id in world.job_by_task.items():
        job = world.jobs.get(job_id)
        fits = job is not None and job.spec.task_key == task_key
        require(fits, f"task {task_key} is said to have job {job_id}, which is not (any more)")
    for job in world.jobs.values():
        newest = world.jobs.get(world.job_by_task.get(job.spec.task_key or "", JobId("")))
        require(
            newest is None or newest.spec.seq >= job.spec.seq,
            f"task {job.spec.task_key} has a newer job than is said: {job.job_id}",
        )


def check_dependents(world: World) -> None:
    """Who waits for a live job is told of its end."""
    meant: defaultdict[JobId, set[JobId]] = defaultdict(set)
    for job in world.jobs.values():
        for awaited in dependencies.awaited(job) & world.jobs.keys():
            meant[awaited].add(job.job_id)
    compare("dependents", {**world.dependents}, {**meant})
    empty = [awaited for awaited, waiting in world.dependents.items() if not waiting]
    require(not empty, f"nobody depends on {empty}, and they are kept")


def check_pods(world: World) -> None:
    """Pod properties of live jobs, one copy of each, and no others."""
    kept, meant = len(world.pods_kept), len({job.spec.pod for job in world.jobs.values()})
    require(kept == meant, f"the pod properties of {kept} jobs are kept, and {meant} are alive")


def check_usages(world: World) -> None:
    """Running vCPUs of every share."""
    meant: Counter[object] = Counter()
    for attempt in world.attempts.values():
        spec = world.jobs[attempt.job_id].spec
        meant[spec.queue, spec.share] += spec.resources.cpu_m
    kept: dict[object, object] = {key: usage.running_cpu_m for key, usage in world.usages.items()}
    compare("running_cpu_m", kept, {**meant})
