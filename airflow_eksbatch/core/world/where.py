"""Where a job may run: what its tags say of nodes, and from when on only On-Demand ones will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.node import Offering

# Tags named like the labels that nodes have.
ZONE = "topology.kubernetes.io/zone"
ARCHITECTURE = "kubernetes.io/arch"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
# How often a job may be lost with its node before it runs On-Demand only, and from when on it does in any case.
ON_DEMAND_AFTER, ON_DEMAND_BY = "eksbatch/on-demand-after", "eksbatch/on-demand-by"
TAGS = frozenset({ZONE, ARCHITECTURE, INSTANCE_TYPE, ON_DEMAND_AFTER, ON_DEMAND_BY})
# Kubernetes' name -> EC2's.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "arm64"}


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """What nodes must be; empty is any."""

    on_demand: bool = False
    zone: str = ""
    architecture: str = ""
    instance_type: str = ""

    def allows(self, offering: Offering) -> bool:
        return (
            (not self.on_demand or offering.market is Market.ON_DEMAND)
            and self.zone in ("", offering.zone)
            and self.architecture in ("", offering.architecture)
            and self.instance_type in ("", offering.instance_type)
        )

    def __str__(self) -> str:
        parts = [
            self.instance_type,
            self.architecture,
            "On-Demand" if self.on_demand else "",
            f"in zone {self.zone}" if self.zone else "",
        ]
        return " ".join(filter(None, parts))


def where_of(tags: Mapping[str, str], *, on_demand: bool) -> Where | None:
    """None for anywhere."""
    if not on_demand and TAGS.isdisjoint(tags):
        return None
    where = Where(
        on_demand=on_demand,
        zone=tags.get(ZONE, ""),
        architecture=ARCHITECTURES.get(tags.get(ARCHITECTURE, ""), ""),
        instance_type=tags.get(INSTANCE_TYPE, ""),
    )
    return None if where == Where() else where


def allowed(where: Where | None, offerings: Sequence[Offering]) -> Sequence[Offering]:
    return offerings if where is None else [o for o in offerings if where.allows(o)]


def is_off_spot(tags: Mapping[str, str], lost: int, now: int) -> bool:
    """Whether it runs On-Demand only by now, after so many losses with its node."""
    by, most = on_demand_by(tags), losses_allowed(tags)
    return (most is not None and lost >= most) or (by is not None and by <= now)


def losses_allowed(tags: Mapping[str, str]) -> int | None:
    """How often a job may be lost before it must be On-Demand; None: any number. Raises Rejected."""
    text = tags.get(ON_DEMAND_AFTER)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 3):
        raise Rejected(
            f"Tag {ON_DEMAND_AFTER} must be a number of times that Spot may take the job, 0 to 999, not {text!r}."
        )
    return int(text)


def on_demand_by(tags: Mapping[str, str]) -> int | None:
    """From when on a job must be On-Demand, epoch milliseconds; None: never. Raises Rejected."""
    text = tags.get(ON_DEMAND_BY)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise Rejected(
            f"Tag {ON_DEMAND_BY} must be a time with its offset, like 2026-11-25T18:00:00Z, not {text!r}."
        )
    return int(at.timestamp() * 1000)


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises Rejected for values that mean nothing."""
    losses_allowed(tags)
    on_demand_by(tags)
    architecture = tags.get(ARCHITECTURE)
    if architecture is not None and architecture not in ARCHITECTURES:
        raise Rejected(f"Tag {ARCHITECTURE} must be amd64 or arm64, not {architecture!r}.")
