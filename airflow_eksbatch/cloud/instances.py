"""Simulated instances, what may be set about them, and the file that keeps them."""

from __future__ import annotations

import hashlib
import math
import os
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from airflow_eksbatch.core.engine.facts import InstanceGone
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.floor.clock import now_ms

# Ended instances are remembered so that a repeated launch or terminate gets the right answer.
ENDED_KEPT_MAX = 500


def instance_id_of(node_id: str) -> str:
    """Derived from the node id, so a launch that is repeated is the same instance."""
    return "i-" + hashlib.sha256(node_id.encode()).hexdigest()[:17]


class Instance(msgspec.Struct, kw_only=True):
    """One simulated instance, as the file keeps it. Times are epoch milliseconds."""

    node_id: NodeId
    instance_id: str
    compute_environment: str
    offering: Offering
    launched_at: int
    ready_at: int
    interrupted_at: int | None = None
    reclaim_at: int | None = None
    ended_at: int | None = None
    reason: str = ""
    reclaimed: bool = False

    @property
    def gone(self) -> InstanceGone:
        assert self.ended_at is not None
        return InstanceGone(
            node_id=self.node_id, at=self.ended_at, reason=self.reason, reclaimed=self.reclaimed
        )


class CloudSettings(msgspec.Struct, kw_only=True):
    """What may be changed while the cloud runs; a new start begins with the defaults again."""

    launch_delay_s: float = 2.0
    reclaim_notice_s: float = 120.0
    capacity: dict[str, int] = {}
    """type/zone/market -> instances at once; `*` stands for anything; the latest match counts."""

    def capacity_of(self, pool: str) -> float:
        """How many instances this pool has; endless where nothing is said."""
        if pool in self.capacity:
            return self.capacity[pool]
        for pattern in reversed(self.capacity):
            if fnmatchcase(pool, pattern):
                return self.capacity[pattern]
        return math.inf

    def change(self, request: dict[str, object]) -> None:
        """Take over what the request says; all of it, or Rejected and nothing."""
        seconds = {
            name: _seconds(name, request[name])
            for name in ("launch_delay_s", "reclaim_notice_s")
            if name in request
        }
        capacity = _limits(request.get("capacity", {}))
        for name, value in seconds.items():
            setattr(self, name, value)
        for pool, count in capacity.items():
            self.capacity.pop(pool, None)
            if count is not None:
                self.capacity[pool] = count


def _seconds(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise Rejected(f"{name} must be a number of seconds, 0 or more, not {value!r}.")


def _limits(capacity: object) -> dict[str, int | None]:
    """New limits by pool; None lifts one."""
    if not isinstance(capacity, dict):
        raise Rejected('capacity must be an object like {"m6i.large/us-east-1a/SPOT": 2}.')
    for pool, count in capacity.items():
        whole = isinstance(count, int) and not isinstance(count, bool) and count >= 0
        if pool.count("/") != 2 or not (whole or count is None):
            raise Rejected(
                f"capacity {pool!r}: {count!r} must be type/zone/market (EC2 or SPOT, `*` for any) "
                f"and a whole number, or null for no limit."
            )
    return capacity


class _State(msgspec.Struct, kw_only=True):
    version: int = 1
    instances: list[Instance] = []
    ended: list[Instance] = []


class InstanceBook:
    """Live and lately ended instances; the file is replaced as a whole, never half written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.live: dict[NodeId, Instance] = {}
        self.ended: dict[NodeId, Instance] = {}

    def load(self) -> None:
        """Raises ValueError with a sentence when the file is damaged."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            state = msgspec.json.decode(self._file.read_bytes(), type=_State)
        except FileNotFoundError:
            state = _State()
        except msgspec.DecodeError as error:
            raise ValueError(
                f"The file of simulated instances {self._file} cannot be read ({error}). Move it "
                f"away: its instances and their jobs' processes then count as lost."
            ) from error
        self.live = {instance.node_id: instance for instance in state.instances}
        self.ended = {instance.node_id: instance for instance in state.ended}

    def save(self) -> None:
        state = _State(instances=list(self.live.values()), ended=list(self.ended.values()))
        partial = self._file.with_suffix(".new")
        partial.write_bytes(msgspec.json.encode(state))
        os.replace(partial, self._file)

    def end(self, instance: Instance, reason: str, *, reclaimed: bool) -> None:
        """Move it to the ended ones, of which only the last are kept."""
        instance.ended_at, instance.reason, instance.reclaimed = now_ms(), reason, reclaimed
        del self.live[instance.node_id]
        self.ended[instance.node_id] = instance
        while len(self.ended) > ENDED_KEPT_MAX:
            del self.ended[next(iter(self.ended))]

    def find(self, instance_id: str) -> Instance | None:
        for instance in (*self.live.values(), *self.ended.values()):
            if instance.instance_id == instance_id:
                return instance
        return None

    def count_in(self, pool: str) -> int:
        return sum(1 for instance in self.live.values() if instance.offering.pool == pool)
