"""Fair share: who used how much lately, and whose turn that makes it."""

from __future__ import annotations

import math

import msgspec

from airflow_eksbatch.core.model import limits

MINUTE_MS = 60_000


class ShareWeight(msgspec.Struct, frozen=True, kw_only=True):
    """`share_identifier` may end in `*` and then stands for every share with that prefix."""

    share_identifier: str
    weight_factor: float = 1.0


class SchedulingPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A fair-share policy; weight factors: the lower, the more a share gets (AWS)."""

    name: str
    arn: str
    share_decay_s: int = 0
    compute_reservation: int = 0
    shares: tuple[ShareWeight, ...] = ()
    tags: dict[str, str] = {}

    @property
    def decay_s(self) -> int:
        return max(self.share_decay_s, limits.SHARE_DECAY_S_MIN)

    def weight_of(self, share: str) -> float:
        """The weight factor of a share: its own entry, else its prefix entry, else 1."""
        prefix_weight = 1.0
        for entry in self.shares:
            if entry.share_identifier == share:
                return entry.weight_factor
            if entry.share_identifier.endswith("*") and share.startswith(
                entry.share_identifier[:-1]
            ):
                prefix_weight = entry.weight_factor
        return prefix_weight


class ShareUsage(msgspec.Struct, kw_only=True):
    """Decayed vCPU-seconds of one share of one queue, brought up to date when its running vCPUs change."""

    queue: str
    share: str
    vcpu_s: float = 0.0
    running_cpu_m: int = 0
    updated_at: int = 0
    began: dict[int, int] = {}
    """Jobs that were placed lately, by minute of the epoch."""

    @property
    def name(self) -> str:
        """Neither half has a `|`."""
        return f"{self.queue}|{self.share}"

    def bring_to(self, now: int, decay_s: int) -> None:
        """Let old use fade and add what ran since (times in epoch milliseconds)."""
        passed_s = max(0, now - self.updated_at) / 1000
        fade = math.exp(-passed_s / decay_s)
        running = self.running_cpu_m / 1000
        self.vcpu_s = self.vcpu_s * fade + running * decay_s * (1 - fade)
        self.updated_at = max(now, self.updated_at)

    def note_start(self, now: int) -> None:
        minute = now // MINUTE_MS
        self.began[minute] = self.began.get(minute, 0) + 1
        if len(self.began) > limits.PACE_MINUTES:
            oldest = minute - limits.PACE_MINUTES
            self.began = {m: count for m, count in self.began.items() if m >= oldest}

    def began_since(self, minute: int) -> int:
        """Of the last `PACE_MINUTES` minutes, from the beginning of this one on."""
        return sum(count for m, count in self.began.items() if m >= minute)

    def mean_vcpus(self, now: int, decay_s: int) -> float:
        """Mean vCPUs over the decay window as seen now, without changing the books."""
        passed_s = max(0, now - self.updated_at) / 1000
        fade = math.exp(-passed_s / decay_s)
        return self.vcpu_s * fade / decay_s + self.running_cpu_m / 1000 * (1 - fade)
