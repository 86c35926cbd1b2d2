"""What is asked of a simulated service, and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from airflow_eksbatch.core.engine.facts import Fact
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.job import JobId, JobSpec
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources
from airflow_eksbatch.sim.cluster import Program
from airflow_eksbatch.sim.timeline import BEGIN

ARN = "arn:aws:batch:us-east-1:000000000000"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call, so long after the beginning."""

    at_s: float
    fact: Fact


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """`setup` comes first; requests in any order."""

    setup: Sequence[Fact]
    requests: Sequence[Request]
    offerings: Mapping[str, Sequence[Offering]]
    capacity: Mapping[str, int] = {}
    """Most instances by pool; a pool that is not named has no end."""


def an_environment(
    name: str, market: Market, max_vcpus: int, *, min_vcpus: int = 0, idle_s: float | None = None
) -> ComputeEnvironment:
    return ComputeEnvironment(
        name=name,
        arn=f"{ARN}:compute-environment/{name}",
        uuid=f"uuid-{name}",
        market=market,
        min_vcpus=min_vcpus,
        max_vcpus=max_vcpus,
        idle_s=idle_s,
        namespace="batch",
    )


def a_queue(name: str, environments: Iterable[str], **fields: object) -> JobQueue:
    return JobQueue(
        name=name,
        arn=f"{ARN}:job-queue/{name}",
        compute_environments=tuple(environments),
        **fields,  # type: ignore[arg-type]
    )


def a_spec(name: str, queue: str, shape: Resources, program: Program, **fields: object) -> JobSpec:
    """A job whose pod is its program; its name is also its id and its token."""
    return JobSpec(
        job_id=JobId(name),
        name=name,
        queue=queue,
        definition="simulated:1",
        resources=shape,
        pod=msgspec.json.encode(program),
        token=f"token-{name}",
        created_at=BEGIN,
        **fields,  # type: ignore[arg-type]
    )
