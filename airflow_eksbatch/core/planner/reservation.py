"""computeReservation: what a fair-share queue holds back for shares that are not active yet."""

from __future__ import annotations

from collections import Counter

from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.share import SchedulingPolicy
from airflow_eksbatch.core.world.job_class import JobClass
from airflow_eksbatch.core.world.world import World


class Headroom:
    """How much cpu a job queue may still take in this plan.

    AWS keeps (computeReservation / 100) ^ active shares of the maximum for shares that may come. A job larger than
    all the rest would wait for ever, so a queue that runs nothing may start one. And one that is larger than what
    others leave would wait as long as they come, so for the first that has waited too long its part is kept.
    """

    def __init__(self, cpu_m: int, *, is_idle: bool) -> None:
        self.cpu_m = cpu_m
        self.kept_for: JobClass | None = None
        """Room for one of these is kept from all that come after it."""
        self._is_idle = is_idle
        self._promised_m = 0

    def keep_for(self, job_class: JobClass) -> None:
        self.kept_for = job_class

    def count_of(self, job_class: JobClass, wanted: int) -> int:
        """How many of these may be placed."""
        kept = self.kept_for
        kept_m = kept.shape.cpu_m * max(1, kept.nodes) if kept is not None else 0
        fits = max(0, self.cpu_m - kept_m) // max(1, job_class.shape.cpu_m)
        is_alone = self._is_idle and self.kept_for is None
        return min(wanted, max(fits, int(is_alone)))

    def count_together(self, job_class: JobClass) -> int:
        """How many multi-node jobs of a class may be placed, each whole."""
        is_alone = self._is_idle and self.kept_for is None and not self._promised_m
        left = Headroom(self.cpu_m - self._promised_m, is_idle=False)
        left.kept_for = self.kept_for
        return max(left.count_of(job_class, 1 << 30) // job_class.nodes, int(is_alone))

    def promise(self, job_class: JobClass, count: int) -> None:
        """So many multi-node jobs wait for nodes that are bought for them; others of their kind must do without."""
        self._promised_m += job_class.shape.cpu_m * job_class.nodes * count

    def take(self, job_class: JobClass, count: int) -> None:
        if count:
            self.cpu_m -= job_class.shape.cpu_m * count
            self._is_idle = False

    def permitted(self, demand: dict[JobClass, int]) -> dict[JobClass, int]:
        """What of this demand capacity may be bought for: for whom room is kept, then first come first."""
        rest = Headroom(self.cpu_m, is_idle=self._is_idle)
        allowed: Counter[JobClass] = Counter()
        first = self.kept_for
        if first is not None and first in demand and rest.count_of(first, 1):
            rest.take(first, 1)
            allowed[first] = 1
        else:
            rest.kept_for = first
        for job_class, wanted in demand.items():
            count = rest.count_of(job_class, wanted - allowed[job_class])
            rest.take(job_class, count)
            allowed[job_class] += count
        return +allowed


def headroom_of(
    world: World, queue: JobQueue, now: int, also: str | None = None
) -> Headroom | None:
    """What the queue may still take, if a share `also` were active; None where nothing is held back."""
    policy = world.policy_of(queue)
    if policy is None or not policy.compute_reservation:
        return None
    use_m = sum(
        usage.running_cpu_m for (name, _), usage in world.usages.items() if name == queue.name
    )
    may_use_m = max_cpu_m(world, queue) - held_back_cpu_m(world, queue, policy, now, also)
    return Headroom(may_use_m - use_m, is_idle=not use_m)


def held_back_cpu_m(
    world: World, queue: JobQueue, policy: SchedulingPolicy, now: int, also: str | None = None
) -> int:
    """(computeReservation / 100) ^ active shares of the queue's maximum."""
    active = active_shares(world, queue, now)
    if also is not None:
        active.add(also)
    return int(max_cpu_m(world, queue) * (policy.compute_reservation / 100) ** len(active))


def max_cpu_m(world: World, queue: JobQueue) -> int:
    """What the queue's environments may have at most; unmanaged ones have what they have."""
    total = 0
    for name in queue.compute_environments:
        environment = world.compute_environments.get(name)
        if environment is not None and environment.state == "ENABLED":
            total += environment.max_vcpus if environment.managed else world.vcpus[name]
    return total * 1000


def active_shares(world: World, queue: JobQueue, now: int) -> set[str]:
    """Shares with a live job, and those whose last job ended within the decay time."""
    decay_ms = world.decay_s(queue.name) * 1000
    active = {share for (name, share) in world.jobs_by_share if name == queue.name}
    for (name, share), usage in world.usages.items():
        if name == queue.name and (usage.running_cpu_m or now - usage.updated_at < decay_ms):
            active.add(share)
    return active
