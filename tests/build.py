"""Builders for core tests: each gives a noun with everything filled in but what the test is about.

    world = a_world().with_(a_node(), a_job(vcpus=2, size=10))

`a_world()` has one compute environment `ce` (64 vCPUs, m5 On-Demand) and one FIFO job queue `queue` on it. Whatever is
given with a name that is there already takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any

import msgspec

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.job import Attempt, Job, JobId, JobSpec, JobStatus, Tries
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus, Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareUsage, ShareWeight
from airflow_eksbatch.core.world.world import World

ARN = "arn:aws:batch:us-east-1:000000000000"
# Epoch ms of the moment at which tests begin: large enough that nothing is before zero.
NOW = 1_700_000_000_000
Noun = Job | Node | ComputeEnvironment | JobQueue | SchedulingPolicy | JobDefinition | ShareUsage

_numbers = count(1)


def an_amount(vcpus: float = 1, memory_mib: int = 1024, gpu: int = 0, pods: int = 1) -> Resources:
    return Resources(cpu_m=round(vcpus * 1000), memory_mib=memory_mib, gpu=gpu, pods=pods)


def an_offering(
    instance_type: str = "m5.xlarge",
    *,
    vcpus: int = 4,
    memory_mib: int = 16_384,
    gpu: int = 0,
    pods: int = 58,
    price: float | None = None,
    zone: str = "us-east-1a",
    market: Market = Market.ON_DEMAND,
) -> Offering:
    """Nothing is reserved on its nodes, so that sums are easy; price is 0.05 USD a vCPU-hour if not given."""
    return Offering(
        instance_type=instance_type,
        zone=zone,
        market=market,
        vcpus=vcpus,
        memory_mib=memory_mib,
        gpu=gpu,
        allocatable=Resources(cpu_m=vcpus * 1000, memory_mib=memory_mib, gpu=gpu, pods=pods),
        price_usd_hour=0.05 * vcpus if price is None else price,
    )


M5 = (
    an_offering("m5.large", vcpus=2, memory_mib=8_192, pods=29),
    an_offering("m5.xlarge", vcpus=4, memory_mib=16_384, pods=58),
    an_offering("m5.2xlarge", vcpus=8, memory_mib=32_768, pods=58),
)


def an_environment(name: str = "ce", *, max_vcpus: int = 64, **fields: Any) -> ComputeEnvironment:
    return ComputeEnvironment(
        name=name,
        arn=f"{ARN}:compute-environment/{name}",
        uuid=f"{name}-0000-0000",
        max_vcpus=max_vcpus,
        namespace="batch",
        **fields,
    )


def a_queue(name: str = "queue", *environments: str, **fields: Any) -> JobQueue:
    return JobQueue(
        name=name,
        arn=f"{ARN}:job-queue/{name}",
        compute_environments=environments or ("ce",),
        **fields,
    )


def a_policy(
    name: str = "fair", *, decay_s: int = 600, reservation: int = 0, **weights: float
) -> SchedulingPolicy:
    """`a_policy(today=0.1, history=1.0)`: weight factors by share."""
    return SchedulingPolicy(
        name=name,
        arn=f"{ARN}:scheduling-policy/{name}",
        share_decay_s=decay_s,
        compute_reservation=reservation,
        shares=tuple(
            ShareWeight(share_identifier=share, weight_factor=weight)
            for share, weight in weights.items()
        ),
    )


def a_node(
    node_id: str | None = None,
    *,
    environment: str = "ce",
    offering: Offering | None = None,
    allocatable: Resources | None = None,
    status: NodeStatus = NodeStatus.READY,
    **fields: Any,
) -> Node:
    """A READY, empty m5.xlarge; nodes that are not ready have neither instance nor name."""
    offering = offering or an_offering()
    name = node_id or f"node-{next(_numbers):06d}"
    if status is not NodeStatus.REQUESTED:
        fields = {"instance_id": f"i-{name}", "launched_at": NOW} | fields
    if status is NodeStatus.READY:
        fields = {"node_name": name, "ready_at": NOW, "idle_since": NOW} | fields
    return Node(
        node_id=NodeId(name),
        compute_environment=environment,
        offering=offering,
        status=status,
        allocatable=allocatable or offering.allocatable,
        **{"requested_at": NOW, **fields},
    )


def a_spec(
    job_id: str | None = None,
    *,
    queue: str = "queue",
    size: int | None = None,
    vcpus: float = 1,
    memory_mib: int = 1024,
    gpu: int = 0,
    **fields: Any,
) -> JobSpec:
    name = job_id or f"job-{next(_numbers):06d}"
    return JobSpec(
        **{
            "job_id": JobId(name),
            "name": name,
            "queue": queue,
            "definition": "work:1",
            "resources": an_amount(vcpus, memory_mib, gpu),
            "pod": b"{}",
            "array_size": size,
            "created_at": NOW,
            **fields,
        }
    )


def a_job(job_id: str | None = None, *, state: dict[str, Any] | None = None, **fields: Any) -> Job:
    """All of it RUNNABLE unless `state` (fields of Job) says otherwise; other fields are those of `a_spec`."""
    spec = a_spec(job_id, **fields)
    return Job(
        spec=spec, **{"runnable_at": NOW, "runnable": ranges.whole(spec.size), **(state or {})}
    )


class BuiltWorld(World):
    """A world that takes nouns of any kind."""

    def with_(self, *nouns: Noun) -> BuiltWorld:
        """Add these, in this order; jobs without a `seq` are as old as their place among them says."""
        for noun in nouns:
            self._add(noun)
        return self

    def with_offerings(self, environment: str, *offerings: Offering) -> BuiltWorld:
        self.offerings[environment] = offerings
        return self

    def with_running(self, job: Job, node_id: str, number: int = 1) -> BuiltWorld:
        """Add the job if it is new and start so many of its indices on that node."""
        if job.job_id not in self.jobs:
            self._add(job)
        job = self.jobs[job.job_id]
        for index in self.draw_runnable(job, number):
            self.add_attempt(
                Attempt(
                    job_id=job.job_id,
                    index=index,
                    number=job.tries.get(index, Tries()).placed + 1,
                    charged_before=0,
                    node_id=NodeId(node_id),
                    status=JobStatus.RUNNING,
                    created_at=NOW,
                    seen_at=NOW,
                    started_at=NOW,
                ),
                job.spec.resources,
                NOW,
            )
        return self

    def _add(self, noun: Noun) -> None:
        match noun:
            case Job():
                if not noun.spec.seq:
                    spec = msgspec.structs.replace(noun.spec, seq=self.next_job_seq())
                    noun = msgspec.structs.replace(noun, spec=spec)
                self.add_job(noun)
            case Node():
                self.add_node(noun)
            case ComputeEnvironment():
                self.put_compute_environment(noun)
            case JobQueue():
                self.put_queue(noun)
            case SchedulingPolicy():
                self.put_policy(noun)
            case JobDefinition():
                self.put_definition(noun)
            case ShareUsage():
                self.usages[noun.queue, noun.share] = noun


def a_world(*nouns: Noun, offerings: Iterable[Offering] = M5) -> BuiltWorld:
    """One environment `ce` with the offerings, one queue `queue` on it, then the nouns; nothing of it is dirty."""
    world = BuiltWorld()
    world.with_(an_environment(), a_queue()).with_offerings("ce", *offerings)
    world.with_(*nouns)
    world.take_changes()
    return world
