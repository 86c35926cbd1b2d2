"""All live nouns and their indexes; whatever changes here is noted for the store."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict

from airflow_eksbatch.core.model import dependencies, limits, ranges
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, NamespaceFull
from airflow_eksbatch.core.model.job import (
    Attempt,
    Job,
    JobEvent,
    JobId,
    JobStatus,
    PodName,
    pod_name,
)
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import (
    NODE_TRANSITIONS,
    Node,
    NodeId,
    NodeStatus,
    Offering,
)
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareUsage
from airflow_eksbatch.core.world import books
from airflow_eksbatch.core.world.changes import Changes, Counters, Snapshot, Totals
from airflow_eksbatch.core.world.fading import watch_usage
from airflow_eksbatch.core.world.gathering import Gathering
from airflow_eksbatch.core.world.index_check import check_indexes
from airflow_eksbatch.core.world.job_class import JobClass, Lines
from airflow_eksbatch.core.world.joins import Joins
from airflow_eksbatch.core.world.kept_once import KeptOnce
from airflow_eksbatch.core.world.measured import Measured
from airflow_eksbatch.core.world.rooms import Rooms
from airflow_eksbatch.core.world.trials import Trials

USAGE = "share_usage"


class World:
    """Mutable, owned by one beat at a time. Every mutation goes through a method that keeps the indexes."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.jobs: dict[JobId, Job] = {}
        self.attempts: dict[PodName, Attempt] = {}
        self.nodes: dict[NodeId, Node] = {}
        self.queues: dict[str, JobQueue] = {}
        self.compute_environments: dict[str, ComputeEnvironment] = {}
        self.policies: dict[str, SchedulingPolicy] = {}
        self.definitions: dict[str, dict[int, JobDefinition]] = {}
        self.usages: dict[tuple[str, str], ShareUsage] = {}
        self.offerings: dict[str, tuple[Offering, ...]] = {}
        self.measured = Measured()
        self.refused_until: dict[str, int] = {}
        self.refused_times: dict[str, int] = {}
        """Pools and quotas of offerings that were refused: until when each is left alone, how often in a row."""
        self.refused_vcpus: dict[str, int] = {}
        """Quotas, and the least vCPUs of a machine that did not fit into what is left of them."""
        self.full: dict[str, NamespaceFull] = {}
        self.full_times: Counter[str] = Counter()
        """Compute environments whose namespace has no room under its quota: nothing new goes there; how often in a row."""
        self.never_joined: Counter[str] = Counter()
        """Instances in a row that did not become nodes, by compute environment."""
        self.trials = Trials()
        self.joins = Joins()
        self.gathering = Gathering()
        self.counters = Counters()
        self.totals = Totals()

        self.lines = Lines()
        self.pods_by_node: defaultdict[NodeId, set[PodName]] = defaultdict(set)
        self._rooms = Rooms()
        self.rooms, self.coming = self._rooms.open, self._rooms.coming
        self.vcpus: defaultdict[str, int] = defaultdict(int)
        self.instances = 0
        """Launched and not gone; nodes that are only asked for are none."""
        self.dependents: defaultdict[JobId, set[JobId]] = defaultdict(set)
        self.job_by_token: dict[str, JobId] = {}
        self.job_by_task: dict[str, JobId] = {}
        self.jobs_by_queue: defaultdict[str, dict[JobId, None]] = defaultdict(dict)  # oldest first
        self.jobs_by_share: Counter[tuple[str, str]] = Counter()
        self.deadlines: list[tuple[int, str, str]] = []

        self.books = books.Books()
        self._changes = Changes()
        self._dirty_jobs: dict[JobId, Job] = {}
        self._dirty_attempts: dict[PodName, Attempt] = {}
        self._dirty_nodes: dict[NodeId, Node] = {}
        self._dirty_usages: dict[tuple[str, str], ShareUsage] = {}
        self._deleted: dict[tuple[str, str], None] = {}
        """What is put again in the same step is not deleted: the store puts first."""
        self.fading: set[str] = set()
        """Names of usages that are looked at when they have faded."""
        self.pods_kept = KeptOnce()
        if snapshot is not None:
            self._load(snapshot)

    # ---- jobs

    def add_job(self, job: Job) -> None:
        """A new job, its indices already in their sets."""
        self._changes.jobs_added.append(job)
        self._index_job(job)

    def note_job(self, job: Job) -> None:
        """The job's own fields changed."""
        self._dirty_jobs[job.job_id] = job

    def make_runnable(self, job: Job, members: ranges.Ranges) -> None:
        """Pending indices, or indices between two attempts, may run now."""
        job.pending = ranges.minus(job.pending, members)
        job.runnable = ranges.union(job.runnable, members)
        self.lines.enter(job, ranges.count(members))
        self.gathering.has_news = True
        self.note_job(job)

    def draw_runnable(self, job: Job, limit: int) -> list[int]:
        """Take up to `limit` indices out of RUNNABLE, lowest first."""
        taken, job.runnable = ranges.take(job.runnable, limit)
        self.lines.leave(job, len(taken))
        self.note_job(job)
        return taken

    def drop_runnable(self, job: Job, members: ranges.Ranges) -> None:
        """Take these indices out of RUNNABLE (cancelled)."""
        gone = ranges.minus(job.runnable, ranges.minus(job.runnable, members))
        job.runnable = ranges.minus(job.runnable, members)
        self.lines.leave(job, ranges.count(gone))
        self.note_job(job)

    def remove_job(self, job: Job) -> None:
        """A finished job leaves the world; its row stays in the store."""
        self.release_nodes(job)
        self.note_job(job)
        self._unindex_job(job)

    def class_of(self, job: Job) -> JobClass:
        return self.lines.class_of(job)

    def keep_off_spot(self, job: Job) -> None:
        """From now on it is placed on On-Demand nodes only; what runs goes on.

        What kubelets said is known by class, and was said on other nodes: it is tried anew.
        """
        if job.job_id not in self.lines.on_demand_only:
            self.trials.forget_job(job.job_id)
            self.lines.change_class(job, self.lines.turned_away, joins=False)
            self.lines.change_class(job, self.lines.on_demand_only, joins=True)

    # ---- attempts

    def add_attempt(self, attempt: Attempt, resources: Resources, now: int) -> None:
        """An index was placed: it books its node's room and its share's use."""
        job = self.jobs[attempt.job_id]
        job.running[attempt.index] = attempt.number
        self._index_attempt(attempt)
        node = self.nodes[attempt.node_id]
        attempt.part = books.part_of(resources, node)
        if job.is_multi_node:
            node.reserved_for, attempt.part = job.job_id, books.WHOLE - node.given
        node.given += attempt.part
        self._book(node, resources, now)
        self._use(job, resources.cpu_m, now)
        if job.leads(attempt.index):
            self.usages[job.spec.queue, job.spec.share].note_start(now)
        self.totals.attempts += 1
        self.note_job(job)
        self.note_attempt(attempt)

    def end_attempt(self, attempt: Attempt, now: int) -> None:
        """The attempt is over: room and share are given back. Its row stays in the store."""
        job = self.jobs[attempt.job_id]
        del job.running[attempt.index]
        del self.attempts[attempt.pod_name]
        node_id = attempt.node_id
        self.pods_by_node[node_id].discard(attempt.pod_name)
        node = self.nodes.get(node_id)
        if node is not None:
            if job.is_multi_node:
                node.reserved_for = None
            self._charge(attempt, job, node, now)
            self._book(node, job.spec.resources.times(-1), now)
        self._use(job, -job.spec.resources.cpu_m, now)
        self.note_job(job)
        self.note_attempt(attempt)

    def _charge(self, attempt: Attempt, job: Job, node: Node, now: int) -> None:
        """It pays from its placement to its own end, and the books of its node are brought to there."""
        until = min(attempt.stopped_at or now, now)
        attempt.cost = self.books.charge(attempt, job.spec, node, until)
        job.bill = job.bill.plus(node.offering.market, attempt.cost)
        node.given -= attempt.part
        self.settle(node, until)

    def note_attempt(self, attempt: Attempt) -> None:
        self._dirty_attempts[attempt.pod_name] = attempt

    # ---- nodes

    def add_node(self, node: Node) -> None:
        self.nodes[node.node_id] = node
        self.vcpus[node.compute_environment] += node.offering.vcpus
        self._count_instance(node)
        self.joins.note(node)
        self._rooms.enter(node)
        self.note_node(node)

    def note_launched(self, node: Node, at: int) -> None:
        """Its instance exists and is paid for from now on; told twice, the earlier time counts."""
        if node.launched_at is None:
            node.launched_at = at
            launched, name = self.totals.instances, node.compute_environment
            launched[name] = launched.get(name, 0) + 1
            self._count_instance(node)
            self.note_node(node)
        elif at < node.launched_at and node.paid_until is None:
            node.launched_at = at
            self.note_node(node)

    def move_node(self, node: Node, status: NodeStatus) -> bool:
        """Move a node forward in its life; False when it is already past that."""
        if status not in NODE_TRANSITIONS[node.status]:
            return False
        self._rooms.leave(node)
        node.status = status
        self._rooms.enter(node)
        self.note_node(node)
        return True

    def close_node(self, node: Node, reason: str | None) -> None:
        """Take it out of, or with None put it back into, use for new pods."""
        self._rooms.leave(node)
        node.closed = reason
        self._rooms.enter(node)
        self.note_node(node)

    def reserve_node(self, node: Node, job_id: JobId | None) -> None:
        """Keep it for a multi-node job that waits, or with None let everybody have it."""
        self._rooms.leave(node)
        node.reserved_for = job_id
        self._rooms.enter(node)
        self.note_node(node)

    def release_nodes(self, job: Job) -> None:
        """What is kept for it and has none of its pods is everybody's."""
        for node in self.nodes.values() if job.is_multi_node else ():
            if node.reserved_for == job.job_id and not self.pods_by_node.get(node.node_id):
                self.reserve_node(node, None)

    def set_allocatable(self, node: Node, allocatable: Resources) -> None:
        self._rooms.leave(node)
        node.allocatable = allocatable
        self._rooms.enter(node)
        self.note_node(node)

    def settle(self, node: Node, until: int) -> None:
        """Bring the books of a node up to that moment."""
        span = books.span_of_node(node, until)
        if span is not None:
            cost = self.books.pay(books.account_of_node(node), books.rate_of_node(node), span)
            name, totals = node.compute_environment, self.totals
            totals.instance_ms[name] = totals.instance_ms.get(name, 0) + cost.instance_ms
            totals.nano_usd[name] = totals.nano_usd.get(name, 0) + cost.nano_usd
            node.paid_until = until
            self.note_node(node)

    def remove_node(self, node: Node, now: int, reason: str, *, at: int | None = None) -> None:
        """The machine is gone, since `at` if that is known; nothing is owed for it any more."""
        if node.launched_at is not None:
            environment = self.compute_environments.get(node.compute_environment)
            bought = environment is None or environment.managed
            least = node.launched_at + books.INSTANCE_MS_MIN if bought else 0
            self.settle(node, max(min(now if at is None else at, now), least))
        self._rooms.leave(node)
        node.status, node.ended_at, node.reason = NodeStatus.GONE, now, node.reason or reason
        del self.nodes[node.node_id]
        self.joins.forget(node)
        self.pods_by_node.pop(node.node_id, None)
        self.vcpus[node.compute_environment] -= node.offering.vcpus
        if node.launched_at is not None:
            self.instances -= 1
        self.note_node(node)

    def rests_until(self, offering: Offering, *, at_once: bool = False) -> int:
        """When this, or several of it at once, may be asked for; in the past if nobody refused it lately."""
        return offering.rests_until(self.refused_until, self.refused_vcpus, at_once=at_once)

    def note_node(self, node: Node) -> None:
        self._dirty_nodes[node.node_id] = node

    # ---- what operators set up

    def put_queue(self, queue: JobQueue) -> None:
        self.queues[queue.name] = queue
        self._changes.queues.append(queue)
        self._deleted.pop(("job_queue", queue.name), None)

    def put_compute_environment(self, environment: ComputeEnvironment) -> None:
        self.compute_environments[environment.name] = environment
        self._changes.compute_environments.append(environment)
        self._deleted.pop(("compute_environment", environment.name), None)

    def put_policy(self, policy: SchedulingPolicy) -> None:
        self.policies[policy.name] = policy
        self._changes.policies.append(policy)
        self._deleted.pop(("scheduling_policy", policy.name), None)

    def put_definition(self, definition: JobDefinition) -> None:
        self.definitions.setdefault(definition.name, {})[definition.revision] = definition
        self._changes.definitions.append(definition)

    def delete(self, kind: str, name: str) -> None:
        by_kind: dict[str, dict[str, object]] = {
            "job_queue": self.queues,  # type: ignore[dict-item]
            "compute_environment": self.compute_environments,  # type: ignore[dict-item]
            "scheduling_policy": self.policies,  # type: ignore[dict-item]
        }
        by_kind[kind].pop(name, None)
        self._deleted[kind, name] = None
        if kind == "job_queue":
            self.jobs_by_queue.pop(name, None)
            for usage in [usage for usage in self.usages.values() if usage.queue == name]:
                self.forget_usage(usage)

    # ---- telling and time

    def tell(self, event: JobEvent) -> None:
        """Note an event; its `seq` must come from `next_event_seq`."""
        self._changes.events.append(event)

    def next_event_seq(self) -> int:
        self.counters.event_seq += 1
        return self.counters.event_seq

    def next_job_seq(self) -> int:
        self.counters.job_seq += 1
        return self.counters.job_seq

    def next_node_id(self, environment: str) -> NodeId:
        self.counters.node += 1
        uuid = self.compute_environments[environment].uuid
        return NodeId(f"node-{self.counters.node:06d}-{uuid[:8]}")

    def wake_at(self, at: int, kind: str, key: str) -> None:
        """Ask to be looked at again at that time; what it means is decided then."""
        heapq.heappush(self.deadlines, (at, kind, key))

    def due(self, now: int) -> list[tuple[str, str]]:
        """Deadlines that have come, taken off the heap."""
        come: list[tuple[str, str]] = []
        while self.deadlines and self.deadlines[0][0] <= now:
            _, kind, key = heapq.heappop(self.deadlines)
            come.append((kind, key))
        return come

    def take_changes(self) -> Changes:
        """What was changed since the last call."""
        changes, self._changes = self._changes, Changes()
        added = {job.job_id for job in changes.jobs_added}
        changes.jobs = [job for key, job in self._dirty_jobs.items() if key not in added]
        changes.attempts = list(self._dirty_attempts.values())
        changes.nodes = list(self._dirty_nodes.values())
        changes.usages = list(self._dirty_usages.values())
        changes.deleted = list(self._deleted)
        changes.costs = self.books.take()
        self._dirty_jobs.clear()
        self._dirty_attempts.clear()
        self._dirty_nodes.clear()
        self._dirty_usages.clear()
        self._deleted.clear()
        if not changes.is_empty:
            changes.totals, changes.counters = self.totals, self.counters
        return changes

    # ---- keeping the indexes

    def check_indexes(self) -> None:
        """Compare every index with the nouns it was made from; raises WrongIndex. Slow: for tests."""
        check_indexes(self)

    def _load(self, snapshot: Snapshot) -> None:
        self.counters, self.totals = snapshot.counters, snapshot.totals
        self.queues = {queue.name: queue for queue in snapshot.queues}
        self.compute_environments = {env.name: env for env in snapshot.compute_environments}
        self.policies = {policy.name: policy for policy in snapshot.policies}
        for definition in snapshot.definitions:
            self.definitions.setdefault(definition.name, {})[definition.revision] = definition
        self.usages = {(usage.queue, usage.share): usage for usage in snapshot.usages}
        for node in snapshot.nodes:
            self.nodes[node.node_id] = node
            self.instances += node.launched_at is not None
            self.vcpus[node.compute_environment] += node.offering.vcpus
            self.joins.note(node)
            self._rooms.enter(node)
        for job in sorted(snapshot.jobs, key=lambda job: job.spec.seq):
            self._index_job(job)
        for attempt in snapshot.attempts:
            self._index_attempt(attempt)

    def _index_job(self, job: Job) -> None:
        spec = job.spec
        self.jobs[job.job_id] = job
        self.jobs_by_queue[spec.queue][job.job_id] = None
        self.jobs_by_share[spec.queue, spec.share] += 1
        self.pods_kept.enter(spec.pod)
        for awaited in dependencies.awaited(job):
            if awaited in self.jobs:
                self.dependents[awaited].add(job.job_id)
        if spec.token:
            self.job_by_token[spec.token] = job.job_id
        if spec.task_key:
            newest = self.jobs.get(self.job_by_task.get(spec.task_key, JobId("")))
            if newest is None or newest.spec.seq <= spec.seq:
                self.job_by_task[spec.task_key] = job.job_id
        self.lines.enter(job, ranges.count(job.runnable))

    def _unindex_job(self, job: Job) -> None:
        spec = job.spec
        del self.jobs[job.job_id]
        self.lines.forget(job.job_id)
        self.trials.forget_job(job.job_id)
        self.jobs_by_queue[spec.queue].pop(job.job_id, None)
        self.jobs_by_share[spec.queue, spec.share] -= 1
        if not self.jobs_by_share[spec.queue, spec.share]:
            del self.jobs_by_share[spec.queue, spec.share]
        self.pods_kept.leave(spec.pod)
        self.dependents.pop(job.job_id, None)
        for awaited in dependencies.awaited(job) & self.dependents.keys():
            self.dependents[awaited].discard(job.job_id)
            if not self.dependents[awaited]:
                del self.dependents[awaited]
        if spec.token:
            self.job_by_token.pop(spec.token, None)
        if spec.task_key and self.job_by_task.get(spec.task_key) == job.job_id:
            del self.job_by_task[spec.task_key]
            if job.follows is not None:
                self.job_by_task[spec.task_key] = job.follows

    def _index_attempt(self, attempt: Attempt) -> None:
        self.attempts[attempt.pod_name] = attempt
        self.pods_by_node[attempt.node_id].add(attempt.pod_name)

    def _book(self, node: Node, resources: Resources, now: int) -> None:
        self._rooms.leave(node)
        node.used = node.used.plus(resources)
        busy = bool(self.pods_by_node[node.node_id])
        node.idle_since = None if busy else now
        self._rooms.enter(node)
        self.note_node(node)

    def _count_instance(self, node: Node) -> None:
        if node.launched_at is not None:
            self.instances += 1
            self.totals.peak_instances = max(self.totals.peak_instances, self.instances)

    def _use(self, job: Job, cpu_m: int, now: int) -> None:
        key = (job.spec.queue, job.spec.share)
        usage = self.usages.get(key)
        if usage is None:
            usage = self.usages[key] = ShareUsage(queue=key[0], share=key[1], updated_at=now)
            self._deleted.pop((USAGE, usage.name), None)
        usage.bring_to(now, self.decay_s(job.spec.queue))
        usage.running_cpu_m += cpu_m
        self._dirty_usages[key] = usage
        if not usage.running_cpu_m:
            watch_usage(self, usage)

    def forget_usage(self, usage: ShareUsage) -> None:
        del self.usages[usage.queue, usage.share]
        self._dirty_usages.pop((usage.queue, usage.share), None)
        self._deleted[USAGE, usage.name] = None

    def decay_s(self, queue_name: str) -> int:
        """The decay window of a queue's shares, in seconds."""
        queue = self.queues.get(queue_name)
        policy = self.policy_of(queue) if queue is not None else None
        return policy.decay_s if policy is not None else limits.SHARE_DECAY_S_MIN

    def policy_of(self, queue: JobQueue) -> SchedulingPolicy | None:
        """None for first in, first out."""
        return self.policies.get(queue.policy) if queue.policy else None

    def status_of(self, job: Job) -> JobStatus:
        """Status of a job as a whole, as DescribeJobs tells it."""
        if job.is_finished:
            return job.end_status
        if job.is_array:
            return JobStatus.PENDING
        if job.main_ended is not None:
            return JobStatus.RUNNING
        if job.running:
            return self.attempts[pod_name(job.job_id, 0, job.running[0])].status
        return JobStatus.PENDING if job.pending else JobStatus.RUNNABLE
