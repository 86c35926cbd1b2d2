"""Compute environments: where capacity comes from and how much of it there may be."""

from __future__ import annotations

import enum

import msgspec


class Market(enum.StrEnum):
    """Capacity type of an offering; the values are computeResources.type of AWS Batch."""

    ON_DEMAND = "EC2"
    SPOT = "SPOT"


class NamespaceFull(msgspec.Struct, kw_only=True):
    """A ResourceQuota, or the namespace itself, said no to a pod: nothing new is placed until then (epoch ms)."""

    since: int
    until: int
    reason: str
    """The API server's words."""
    unusable: bool = False
    """It takes no pods at all."""


class ComputeEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """Managed ones buy nodes between min and max vCPUs; unmanaged ones use nodes that others own."""

    name: str
    arn: str
    uuid: str
    managed: bool = True
    state: str = "ENABLED"
    status: str = "VALID"
    status_reason: str = "ComputeEnvironment Healthy"
    market: Market = Market.ON_DEMAND
    min_vcpus: int = 0
    max_vcpus: int = 0
    allocation_strategy: str = "BEST_FIT_PROGRESSIVE"
    instance_types: tuple[str, ...] = ("optimal",)
    subnets: tuple[str, ...] = ()
    cluster_arn: str = ""
    namespace: str = ""
    idle_s: float | None = None
    """Seconds an empty node is kept; None leaves it to the service's setting."""
    tags: dict[str, str] = {}
    created_at: int = 0
    wire: bytes = b"{}"
    """What else the caller sent (JSON), told back as it was."""
    version: int = 0
    """Counts the updates that ask for a check."""

    @property
    def may_grow(self) -> bool:
        return self.managed and self.state == "ENABLED" and self.status == "VALID"

    def is_still(self, seen: ComputeEnvironment | None) -> bool:
        """Whether what was found out about `seen` holds for this one; None was told by nobody who says what he saw."""
        return seen is None or (seen.uuid, seen.version) == (self.uuid, self.version)
