"""What instances cost and who pays: every nano-dollar of one is in an account, of jobs, of IDLE or of BOOT.

An instance costs its price when it was bought, from its launch to its end, by the millisecond and for a minute at least.
A pod pays for its part of the node from its placement to its end; parts follow AWS's split cost allocation data: a GiB of
memory weighs 1, a vCPU 9, a GPU 90, of what the node gives to pods. What nobody pays is IDLE, and BOOT before the node
was ready. Costs are told by the hour (UTC) in which they arose.

It adds up because all are differences of one function that rounds down, and what goes to a pod is taken from IDLE; what
rounding leaves, below a nano-dollar for each pod, stays there. A reclaimed Spot instance is in the books with its whole
price; EC2 does not charge it if that happens in its first hour.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec

from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.job import Attempt, Job, JobId, JobSpec, PodName, pod_name
from airflow_eksbatch.core.model.node import Node, NodeId
from airflow_eksbatch.core.model.resources import FREE, Bill, Cost, Resources

HOUR_MS = 3_600_000
WHOLE = 1_000_000_000
"""A node in billionths."""
# EC2 bills by the second, a minute at least.
INSTANCE_MS_MIN = 60_000


class Use(enum.StrEnum):
    JOBS = "JOBS"
    IDLE = "IDLE"
    BOOT = "BOOT"


class Account(NamedTuple):
    """Who paid for what; the last three only of JOBS."""

    compute_environment: str
    market: Market
    use: Use
    queue: str = ""
    share: str = ""
    dag: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """To be added to what the account has for that hour; may be below zero for IDLE."""

    hour: int
    """Since 1970."""
    account: Account
    cost: Cost


Amounts = tuple[int, int, int]
"""The members of a Cost; a hundred thousand pods make too many of those."""


class Rate(NamedTuple):
    """What time costs."""

    nano_usd_hour: int
    part: int
    """Billionths of an instance."""
    cpu_m: int

    def amounts(self, ms: int) -> Amounts:
        part_ms = self.part * ms
        return (
            self.nano_usd_hour * part_ms // (HOUR_MS * WHOLE),
            part_ms // WHOLE,
            self.cpu_m * ms // 1_000,
        )


class Span(NamedTuple):
    """A stretch of a life; epoch ms."""

    born: int
    begin: int
    end: int


class Books:
    """What is to be added to the accounts of the store; nothing of the past is held."""

    def __init__(self) -> None:
        self.taken = 0
        """How often there was something to take: whoever reads the accounts sees by it that they have changed."""
        self._entries: dict[tuple[int, Account], Amounts] = {}

    def take(self) -> list[Entry]:
        """What was noted since the last call."""
        entries, self._entries = self._entries, {}
        self.taken += bool(entries)
        return [
            Entry(hour=hour, account=account, cost=Cost(*amounts))
            for (hour, account), amounts in entries.items()
            if any(amounts)
        ]

    def pay(self, account: Account, rate: Rate, span: Span, source: Account | None = None) -> Cost:
        """Note what a span costs, taken out of another account if one is named; how much that is."""
        usd = ms = vcpu_ms = 0
        for hour, (more_usd, more_ms, more_vcpu_ms) in by_hour(rate, span):
            self._add(hour, account, (more_usd, more_ms, more_vcpu_ms))
            if source is not None:
                self._add(hour, source, (-more_usd, -more_ms, -more_vcpu_ms))
            usd, ms, vcpu_ms = usd + more_usd, ms + more_ms, vcpu_ms + more_vcpu_ms
        return Cost(usd, ms, vcpu_ms)

    def charge(self, attempt: Attempt, spec: JobSpec, node: Node, until: int) -> Cost:
        """A pod pays; what it pays is not IDLE. Returns its cost."""
        rate, span = rate_of_pod(attempt, spec, node), span_of_pod(attempt, until)
        return self.pay(account_of_job(spec, node), rate, span, account_of_node(node, Use.IDLE))

    def _add(self, hour: int, account: Account, more: Amounts) -> None:
        entries, key = self._entries, (hour, account)
        has = entries.get(key)
        entries[key] = (
            more if has is None else (has[0] + more[0], has[1] + more[1], has[2] + more[2])
        )


def by_hour(rate: Rate, span: Span) -> Iterator[tuple[int, Amounts]]:
    """What each hour of a span costs; the sum of spans that meet is what both together cost."""
    at, before = span.begin, rate.amounts(span.begin - span.born)
    while at < span.end:
        hour = at // HOUR_MS
        at = min(span.end, (hour + 1) * HOUR_MS)
        after = rate.amounts(at - span.born)
        yield hour, (after[0] - before[0], after[1] - before[1], after[2] - before[2])
        before = after


# ---- pods


def part_of(resources: Resources, node: Node) -> int:
    """The billionths of a node that a pod pays for: never more than others leave."""
    whole, left = weight_of(node.allocatable), max(0, WHOLE - node.given)
    return min(left, weight_of(resources) * WHOLE // whole) if whole else left


def weight_of(resources: Resources) -> int:
    """GiB + 9 vCPUs + 90 GPUs, times 1,024,000 to have whole numbers."""
    return (
        1_000 * resources.memory_mib + 9 * 1_024 * resources.cpu_m + 90 * 1_024_000 * resources.gpu
    )


def rate_of_pod(attempt: Attempt, spec: JobSpec, node: Node) -> Rate:
    return Rate(nano_usd_hour(node), attempt.part, spec.resources.cpu_m)


def span_of_pod(attempt: Attempt, until: int) -> Span:
    begin = attempt.created_at
    return Span(begin, begin, max(begin, until))


def account_of_job(spec: JobSpec, node: Node) -> Account:
    return Account(
        node.compute_environment,
        node.offering.market,
        Use.JOBS,
        spec.queue,
        spec.share,
        dag_of(spec),
    )


def dag_of(spec: JobSpec) -> str:
    """Of a task's key, which is dag|run|task|map index; other callers' keys are not taken apart."""
    dag, *rest = (spec.task_key or "").split("|")
    return dag if len(rest) >= 3 else ""


# ---- nodes


def nano_usd_hour(node: Node) -> int:
    return round(node.offering.price_usd_hour * 1_000_000_000)


def rate_of_node(node: Node) -> Rate:
    return Rate(nano_usd_hour(node), WHOLE, node.offering.vcpus * 1_000)


def span_of_node(node: Node, until: int) -> Span | None:
    """What of its life is not in the books yet; None if nothing is."""
    if node.launched_at is None:
        return None
    begin = node.launched_at if node.paid_until is None else node.paid_until
    return Span(node.launched_at, begin, until) if begin < until else None


def account_of_node(node: Node, use: Use | None = None) -> Account:
    """Where what nobody pays goes to; at this moment of its life if nothing else is said."""
    use = use or (Use.BOOT if node.ready_at is None else Use.IDLE)
    return Account(node.compute_environment, node.offering.market, use)


def cost_of_node(node: Node, now: int) -> Cost:
    """What is owed for it and not in the books yet."""
    span = span_of_node(node, now)
    if span is None:
        return FREE
    rate = rate_of_node(node)
    whole, paid = rate.amounts(span.end - span.born), rate.amounts(span.begin - span.born)
    return Cost(*whole).minus(Cost(*paid))


# ---- what goes on


class Lives(Protocol):
    """What of the world is needed here."""

    jobs: dict[JobId, Job]
    attempts: dict[PodName, Attempt]
    nodes: dict[NodeId, Node]


def owed(lives: Lives, now: int) -> list[Entry]:
    """What lives costs and is not in the accounts yet, as if all of it ended now."""
    books = Books()
    for node in lives.nodes.values():
        span = span_of_node(node, now)
        if span is not None:
            books.pay(account_of_node(node), rate_of_node(node), span)
    for attempt in lives.attempts.values():
        node = lives.nodes[attempt.node_id]
        books.charge(attempt, lives.jobs[attempt.job_id].spec, node, now)
    return books.take()


def bill_of(lives: Lives, job: Job, now: int) -> Bill:
    """What a job has cost so far."""
    bill = job.bill
    for index, number in job.running.items():
        attempt = lives.attempts.get(pod_name(job.job_id, index, number))
        if attempt is not None:
            node = lives.nodes[attempt.node_id]
            bill = bill.plus(node.offering.market, cost_of_pod(attempt, job.spec, node, now))
    return bill


def cost_of_pod(attempt: Attempt, spec: JobSpec, node: Node, until: int) -> Cost:
    """What a pod that lives has cost so far."""
    span = span_of_pod(attempt, until)
    return Cost(*rate_of_pod(attempt, spec, node).amounts(span.end - span.born))
