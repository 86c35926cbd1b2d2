"""The world as numbers for people: summary, dashboard, CLI and metrics read it here."""

from __future__ import annotations

from collections import Counter, defaultdict

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.job import Job, JobStatus, pod_name
from airflow_eksbatch.core.world import books
from airflow_eksbatch.core.world.changes import Totals
from airflow_eksbatch.core.world.world import World

View = dict[str, object]


def jobs_by_status(world: World) -> dict[str, Counter[str]]:
    """Live indices by job queue and status; cost follows classes, attempts and unfinished arrays."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in world.queues}
    for line in world.lines.values():
        counts.setdefault(line.job_class.queue, Counter())[JobStatus.RUNNABLE] += line.jobs
    for attempt in world.attempts.values():
        job = world.jobs[attempt.job_id]
        if not job.leads(attempt.index):
            # Its main node has ended: so it counts once, by the first of those that are being ended.
            if job.main_ended is None or attempt.index != min(job.running):
                continue
            counts.setdefault(job.spec.queue, Counter())[JobStatus.RUNNING] += 1
            continue
        queue = job.spec.queue
        counts.setdefault(queue, Counter())[attempt.status] += 1
    return counts


def array_summary(world: World, job: Job) -> dict[str, int]:
    """statusSummary of an array: how many children are in each status."""
    summary = {status.value: 0 for status in JobStatus}
    summary[JobStatus.PENDING] = ranges.count(job.pending)
    summary[JobStatus.RUNNABLE] = ranges.count(job.runnable)
    summary[JobStatus.SUCCEEDED] = ranges.count(job.succeeded)
    summary[JobStatus.FAILED] = ranges.count(job.failed)
    for index, number in job.running.items():
        attempt = world.attempts.get(pod_name(job.job_id, index, number))
        summary[attempt.status if attempt else JobStatus.STARTING] += 1
    return summary


def environments(world: World, now: int) -> list[View]:
    """One row a compute environment: its nodes by status, vCPUs, and what it has cost so far."""
    nodes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    lived_ms: defaultdict[str, int] = defaultdict(int)
    nano_usd: defaultdict[str, int] = defaultdict(int)
    for node in world.nodes.values():
        name = node.compute_environment
        nodes[name][node.status] += 1
        owed = books.cost_of_node(node, now)
        lived_ms[name] += owed.instance_ms
        nano_usd[name] += owed.nano_usd
    totals = world.totals
    return [
        {
            "computeEnvironment": environment.name,
            "type": environment.market.value,
            "state": environment.state,
            "status": environment.status,
            "statusReason": environment.status_reason,
            "vcpus": world.vcpus[environment.name],
            "minvCpus": environment.min_vcpus,
            "maxvCpus": environment.max_vcpus,
            "instances": dict(nodes[environment.name]),
            "launched": totals.instances.get(environment.name, 0),
            "instance_seconds": round(
                (totals.instance_ms.get(environment.name, 0) + lived_ms[environment.name]) / 1000, 1
            ),
            "price_usd": round(
                (totals.nano_usd.get(environment.name, 0) + nano_usd[environment.name]) / 1e9, 6
            ),
        }
        for environment in sorted(world.compute_environments.values(), key=lambda e: e.name)
    ]


def quantile_s(totals: Totals, fraction: float) -> float | None:
    """Upper edge of the wait that this fraction of the starts stayed under, in seconds (powers of two of ms)."""
    wanted, passed = fraction * sum(totals.waits_ms), 0
    for bucket, number in enumerate(totals.waits_ms):
        passed += number
        if number and passed >= wanted:
            return min(1 << bucket, totals.longest_wait_ms) / 1000
    return None


def summary(world: World, now: int) -> View:
    """What the service has done since it was installed, and what it is doing."""
    totals, rows = world.totals, environments(world, now)
    statuses: Counter[str] = Counter()
    for counts in jobs_by_status(world).values():
        statuses.update(counts)
    live = sum(statuses.values())
    pending = totals.jobs - totals.succeeded - totals.failed - live
    return {
        "jobs": {
            "submitted": totals.jobs,
            "PENDING": pending,
            **{
                s.value: statuses[s]
                for s in (JobStatus.RUNNABLE, JobStatus.STARTING, JobStatus.RUNNING)
            },
            "SUCCEEDED": totals.succeeded,
            "FAILED": totals.failed,
        },
        "attempts": totals.attempts,
        "retries": totals.retries,
        "free_retries": totals.free_retries,
        "reclaims": totals.reclaims,
        "instances": {
            "launched": sum(totals.instances.values()),
            "peak": totals.peak_instances,
            "now": len(world.nodes),
            "refused": totals.refused,
            "overflow": totals.overflows,
        },
        "compute_environments": rows,
        "instance_seconds": round(sum(float(str(row["instance_seconds"])) for row in rows), 1),
        "price_usd": round(sum(float(str(row["price_usd"])) for row in rows), 6),
        "submit_to_start_s": {
            "p50": quantile_s(totals, 0.5),
            "p99": quantile_s(totals, 0.99),
            "max": totals.longest_wait_ms / 1000,
        },
        "shares": [
            {
                "jobQueue": usage.queue,
                "shareIdentifier": usage.share,
                "running_vcpus": usage.running_cpu_m / 1000,
                "mean_vcpus": round(usage.mean_vcpus(now, world.decay_s(usage.queue)), 3),
            }
            for _, usage in sorted(world.usages.items())
        ],
    }


def nodes(world: World, now: int) -> list[View]:
    """One row a node, oldest first."""
    return [
        {
            "nodeId": node.node_id,
            "computeEnvironment": node.compute_environment,
            "instanceId": node.instance_id,
            "instanceType": node.offering.instance_type,
            "zone": node.offering.zone,
            "market": node.offering.market.value,
            "status": node.status.value,
            "closed": node.closed,
            "pods": len(world.pods_by_node.get(node.node_id, ())),
            "used_vcpus": node.used.cpu_m / 1000,
            "allocatable_vcpus": node.allocatable.cpu_m / 1000,
            "used_memory_mib": node.used.memory_mib,
            "allocatable_memory_mib": node.allocatable.memory_mib,
            "age_s": (now - node.requested_at) // 1000,
            "price_usd_hour": node.offering.price_usd_hour,
        }
        for node in sorted(world.nodes.values(), key=lambda node: node.requested_at)
    ]


def queues(world: World) -> list[View]:
    """One row a job queue: its switches and what is in it."""
    counts = jobs_by_status(world)
    return [
        {
            "jobQueue": queue.name,
            "priority": queue.priority,
            "state": queue.state,
            "status": queue.status,
            "policy": queue.policy,
            "computeEnvironments": list(queue.compute_environments),
            "jobs": len(world.jobs_by_queue.get(queue.name, ())),
            **{
                status.value: counts[queue.name][status]
                for status in (JobStatus.RUNNABLE, JobStatus.STARTING, JobStatus.RUNNING)
            },
        }
        for queue in sorted(world.queues.values(), key=lambda q: (-q.priority, q.name))
    ]


def classes(world: World) -> list[View]:
    """One row a job class with runnable jobs: what the next plan is made of."""
    return [
        {
            "jobQueue": line.job_class.queue,
            "shareIdentifier": line.job_class.share,
            "priority": line.job_class.priority,
            "vcpus": line.job_class.shape.cpu_m / 1000,
            "memory_mib": line.job_class.shape.memory_mib,
            "gpus": line.job_class.shape.gpu,
            "nodes": line.job_class.nodes or None,
            "runnable": line.jobs,
            "oldest": head.job_id,
            "oldest_at": head.runnable_at or head.spec.created_at,
        }
        for line in sorted(world.lines.values(), key=lambda line: -line.count)
        if line.count and (head := line.head(world.jobs)) is not None
    ]
