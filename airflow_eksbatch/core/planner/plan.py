"""What the plan of one beat says: placements, launches, retirements, and what found no place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.core.model.node import Load, NodeId, Offering
from airflow_eksbatch.core.world.job_class import JobClass


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """So many jobs of a class onto a node; ids are drawn later, oldest first."""

    job_class: JobClass
    node_id: NodeId
    count: int


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """So many instances of an offering; `choice` is the environment's place in the queue's order, 0 first."""

    compute_environment: str
    offering: Offering
    count: int
    choice: int = 0
    load: Load = ()
    """What each of them is bought for."""
    reserved_for: JobId | None = None
    """The multi-node job they are bought for."""


class Retirement(msgspec.Struct, frozen=True, kw_only=True):
    node_id: NodeId
    reason: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    placements: Sequence[Placement] = ()
    launches: Sequence[Launch] = ()
    retirements: Sequence[Retirement] = ()
    claims: Mapping[NodeId, JobId | None] = {}
    """Nodes that a multi-node job has to itself from now on, or with None no longer."""
    exchanged: Mapping[str, int] = {}
    """vCPUs by compute environment that are to be bought in the place of nodes that go: its minimum waits for them."""
    unplaced: Mapping[JobClass, int] = {}
    """What still waits after all of this, by class."""
