"""Whose turn it is: queue priority, fair share, job priority, age.

A turn serves one class with a small part of what can be placed at all, so the order stays close to that of single jobs while
the number of turns is bounded. With fewer than `TURNS_PER_BEAT_MAX` free places every turn is one job and the order is exact.
"""

from __future__ import annotations

import heapq
from collections import defaultdict

from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.world.job_class import ClassLine, LineWalk
from airflow_eksbatch.core.world.world import World

# A share that runs nothing and never ran is first; a float apart from any real use.
NO_RIVAL = float("inf")


def queues_in_order(world: World) -> list[JobQueue]:
    """Job queues by descending priority; names break ties, so that plans repeat. Of one that is being deleted nothing begins."""
    queues = (queue for queue in world.queues.values() if queue.status != "DELETING")
    return sorted(queues, key=lambda queue: (-queue.priority, queue.name))


def lines_by_queue(world: World, now: int) -> dict[str, list[ClassLine]]:
    """Lines in which anybody stands whose time has come, by job queue."""
    found: defaultdict[str, list[ClassLine]] = defaultdict(list)
    for line in world.lines.values():
        if line.count and not world.trials.is_left_alone(line.job_class, now):
            found[line.job_class.queue].append(line)
    return found


class ShareLine:
    """The classes of one share: higher priority first, then the older head."""

    def __init__(self, weight: float, use_vcpus: float) -> None:
        self.weight = weight
        self.use_vcpus = use_vcpus
        self.heads: list[tuple[int, int, int, LineWalk]] = []

    @property
    def key(self) -> float:
        """Weighted use: the lowest goes next."""
        return self.weight * self.use_vcpus


class Turns:
    """The order of one job queue in one beat. Without a policy it is first in, first out: priorities do not count."""

    def __init__(
        self, world: World, queue: JobQueue, lines: list[ClassLine], now: int, places: int
    ) -> None:
        self._shares: dict[str, ShareLine] = {}
        self._portion = max(1, places // limits.TURNS_PER_BEAT_MAX)
        policy = world.policy_of(queue)
        self._is_fifo = policy is None
        for number, line in enumerate(lines):
            name = line.job_class.share if policy is not None else ""
            share = self._shares.get(name)
            if share is None:
                weight = policy.weight_of(name) if policy is not None else 1.0
                use = use_vcpus(world, queue.name, name, now)
                share = self._shares[name] = ShareLine(weight, use)
            self._enter(share, LineWalk(line, world.jobs), number)
        self._order = [(share.key, name) for name, share in self._shares.items() if share.heads]
        heapq.heapify(self._order)

    def next(self) -> tuple[ClassLine, int] | None:
        """The line whose turn it is and how many of it may be placed before the next turn."""
        while self._order:
            share = self._shares[self._order[0][1]]
            if not share.heads:
                heapq.heappop(self._order)
                continue
            walk = share.heads[0][3]
            left = walk.line.count - walk.taken
            return walk.line, min(left, self._allowance(share, walk.line))
        return None

    @property
    def job(self) -> Job:
        """The oldest of those whose turn it is."""
        return self._shares[self._order[0][1]].heads[0][3].job

    def served(self, taken: int, *, blocked: bool) -> None:
        """The turn is over: `taken` of the class were placed; a blocked class does not come again."""
        _, name = self._order[0]
        share = self._shares[name]
        _, _, number, walk = heapq.heappop(share.heads)
        share.use_vcpus += taken * walk.line.job_class.shape.cpu_m / 1000
        if not blocked:
            walk.advance(taken)
            self._enter(share, walk, number)
        heapq.heapreplace(self._order, (share.key, name))

    def _enter(self, share: ShareLine, walk: LineWalk, number: int) -> None:
        seq = walk.seq()
        if seq is not None:
            priority = 0 if self._is_fifo else walk.line.job_class.priority
            heapq.heappush(share.heads, (-priority, seq, number, walk))

    def _allowance(self, share: ShareLine, line: ClassLine) -> int:
        """How many may go before another share or class would be first."""
        vcpus = max(line.job_class.shape.cpu_m, 1) / 1000
        rivals = [self._shares[name].key for _, name in self._order[1:3]]
        lead = min(rivals, default=NO_RIVAL) - share.key
        by_share = lead / (share.weight * vcpus) if lead != NO_RIVAL else NO_RIVAL
        alone = len(share.heads) == 1 or share.heads[0][0] < min(h[0] for h in share.heads[1:3])
        by_class = NO_RIVAL if alone else self._portion
        return int(max(self._portion, min(by_share, by_class, 1 << 40)))


def use_vcpus(world: World, queue: str, share: str, now: int) -> float:
    """Mean vCPUs of a share over the decay window, plus what it runs now."""
    usage = world.usages.get((queue, share))
    if usage is None:
        return 0.0
    return usage.mean_vcpus(now, world.decay_s(queue)) + usage.running_cpu_m / 1000
