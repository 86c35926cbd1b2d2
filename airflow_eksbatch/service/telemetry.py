"""Metrics and log lines, made from what a beat left behind; one line for each change a person cares about."""

from __future__ import annotations

import logging
import sys
from collections import Counter as Counts
from collections.abc import Sequence
from typing import TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from airflow_eksbatch.core.engine.effects import Effect, Outcome
from airflow_eksbatch.core.engine.facts import (
    Fact,
    LaunchRefused,
    PodRefused,
    RebalanceRecommended,
    SpotInterrupted,
)
from airflow_eksbatch.core.engine.views import classes, environments, jobs_by_status
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.job import TERMINAL, JobEvent, JobStatus
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from airflow_eksbatch.core.world.books import Entry, Use
from airflow_eksbatch.core.world.world import World

# A beat of tens of milliseconds is the aim; the last bucket is where people should look.
_BEAT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_FACT_LINES: dict[type[Fact], str] = {
    SpotInterrupted: "Spot instance is being reclaimed",
    RebalanceRecommended: "Spot instance may be reclaimed soon: no new work",
    LaunchRefused: "launch refused",
    PodRefused: "pod refused",
}
MARKETS = {Market.ON_DEMAND: "on-demand", Market.SPOT: "spot"}
_NODE_LINES: dict[NodeStatus, str] = {
    NodeStatus.REQUESTED: "instance requested",
    NodeStatus.LAUNCHED: "instance launched",
    NodeStatus.READY: "node ready",
    NodeStatus.TERMINATING: "instance is given back",
    NodeStatus.GONE: "instance ended",
}


def configure_logging(*, as_json: bool, level: str, stream: TextIO | None = None) -> None:
    """Lines for people, or JSON lines for machines, on stderr."""
    out = stream if stream is not None else sys.stderr
    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            _without_nothing,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )


def _without_nothing(
    _: object, __: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """What is not known needs no word."""
    return {name: value for name, value in line.items() if value is not None}


class Telemetry:
    """What the service says of itself. The world is looked at only when metrics are read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.log = structlog.get_logger().bind()
        self._told: dict[NodeId, NodeStatus] = {}
        registry = self.registry

        def seconds(name: str, words: str) -> Histogram:
            return Histogram(
                f"eksbatch_{name}_seconds", words, buckets=_BEAT_BUCKETS, registry=registry
            )

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"eksbatch_{name}", words, labels, registry=registry)

        def gauge(name: str, words: str, *labels: str) -> Gauge:
            return Gauge(f"eksbatch_{name}", words, labels, registry=registry)

        environment, market = "compute_environment", "market"
        self._step_s = seconds("step", "Time of one step.")
        self._commit_s = seconds("commit", "Time of one commit.")
        self._facts = counter("facts", "Facts taken in.", "fact")
        self._effects = counter("effects", "Effects given out.", "effect")
        self._failures = counter("outside_failures", "Calls to the outside that failed.", "what")
        self._ended = counter("jobs_ended", "Jobs that ended.", "queue", "status")
        self._paid = counter(
            "instance_cost_usd",
            "What instances cost, as far as it is in the books.",
            environment,
            market,
        )
        self._paid_by_jobs = counter(
            "job_cost_usd",
            "What of it ended attempts of jobs paid; the rest is idle and boot time.",
            "queue",
            environment,
            market,
        )
        self._inbox = gauge("inbox_facts", "Facts that wait for a beat.")
        self._undone = gauge("effects_waiting", "Effects not done yet.")
        self._streams = gauge("streams", "Readers of the event stream.")
        self._ready = gauge("ready", "1 while this replica beats, or stands by for one that does.")
        self._leader = gauge(
            "leader", "1 while this replica has the lease; of all replicas one should."
        )
        self._jobs = gauge("jobs", "Live jobs by status.", "queue", "status")
        self._oldest = gauge(
            "oldest_runnable_seconds",
            "How long the job that waits longest has been RUNNABLE; 0 when none is.",
            "queue",
        )
        self._valid = gauge(
            "compute_environment_valid",
            "0 while it is INVALID; the reason is in the log and in DescribeComputeEnvironments.",
            environment,
        )
        self._vcpus = gauge("vcpus", "vCPUs that are bought.", environment)
        self._nodes = gauge("nodes", "Nodes.", environment, "status")
        self._price = gauge(
            "price_usd_per_hour", "What the instances that live cost an hour.", environment, market
        )
        self._of_world = (
            self._jobs, self._oldest, self._valid, self._vcpus, self._nodes, self._price
        )  # fmt: skip

    def beat(self, facts: Sequence[Fact], outcome: Outcome, step_s: float, commit_s: float) -> None:
        """One committed beat."""
        self._step_s.observe(step_s)
        self._commit_s.observe(commit_s)
        for kind, count in Counts(map(type, facts)).items():
            self._facts.labels(kind.__name__).inc(count)
        for kind, count in Counts(map(type, outcome.effects)).items():
            self._effects.labels(kind.__name__).inc(count)
        for fact in facts:
            line = _FACT_LINES.get(type(fact))
            if line is not None:
                self.log.warning(line, **_words_of(fact))
        for environment in outcome.changes.compute_environments:
            say = self.log.warning if environment.status == "INVALID" else self.log.info
            say(
                "compute environment",
                name=environment.name,
                status=environment.status,
                reason=environment.status_reason,
            )
        self._count_costs(outcome.changes.costs)
        for node in outcome.changes.nodes:
            self._tell_node(node)
        for event in outcome.changes.events:
            self._tell_event(event)

    def _count_costs(self, entries: Sequence[Entry]) -> None:
        """Jobs take from IDLE what they pay, so all entries of a beat together are what its instances cost."""
        paid: Counts[tuple[str, str]] = Counts()
        for entry in entries:
            account = entry.account
            place = (account.compute_environment, MARKETS[account.market])
            paid[place] += entry.cost.nano_usd
            if account.use is Use.JOBS:
                self._paid_by_jobs.labels(account.queue, *place).inc(entry.cost.nano_usd / 1e9)
        for place, nano_usd in paid.items():
            self._paid.labels(*place).inc(nano_usd / 1e9)

    def _tell_node(self, node: Node) -> None:
        """Nodes are kept at every booking; a line is due only when one moves on in its life."""
        if self._told.get(node.node_id) is node.status:
            return
        self._told[node.node_id] = node.status
        if node.status is NodeStatus.GONE:
            del self._told[node.node_id]
        self.log.info(
            _NODE_LINES[node.status],
            node=node.node_id,
            instance=node.instance_id,
            pool=node.offering.pool,
            compute_environment=node.compute_environment,
            reason=node.reason,
        )

    def _tell_event(self, event: JobEvent) -> None:
        is_end = event.status in TERMINAL
        if is_end and not event.parent:
            self._ended.labels(event.job_queue, event.status.value).inc()
        say = self.log.debug
        if event.status is JobStatus.FAILED:
            say = self.log.warning
        elif is_end and event.index is None:
            say = self.log.info
        say(
            f"job {event.status.value}",
            job_id=event.public_id,
            job_name=event.job_name,
            job_queue=event.job_queue,
            reason=event.status_reason,
            exit_code=event.exit_code,
            attempt=event.attempt,
            node=event.node_id,
        )

    def changed(self, operation: str, what: str | None, by: str | None) -> None:
        """Who asked for a change. Jobs come by the thousand, so those who submit them are told to `debug` only."""
        say = self.log.debug if operation == "SubmitJob" else self.log.info
        say(operation, what=what, by=by)

    def denied(self, operation: str, what: str | None, by: str) -> None:
        self.log.warning(f"{operation} was denied", what=what, by=by)

    # ---- trouble

    def effect_failed(self, effect: Effect, reason: str, failures: int) -> None:
        """The outside is down; said once, then at every tenth failure."""
        self._failures.labels(type(effect).__name__).inc()
        if failures % 10 == 1:
            self.log.warning(
                "cannot be done now, tried again",
                effect=type(effect).__name__,
                reason=reason,
                failures=failures,
            )

    def effect_broke(self, effect: Effect, error: Exception, failures: int) -> None:
        self._failures.labels(type(effect).__name__).inc()
        self.log.error(
            "unexpected failure, tried again",
            effect=str(effect),
            failures=failures,
            exc_info=error,
        )

    def watch_broke(self, name: str, reason: str, failures: int) -> None:
        self._failures.labels(f"watch {name}").inc()
        self.log.warning("watch broke, begun again", watch=name, reason=reason, failures=failures)

    def cloud_troubled(self, what: str, reason: str, times: int) -> None:
        """Something that nobody waits for does not work; said once, then at every tenth time."""
        self._failures.labels(f"cloud {what}").inc()
        if times % 10 == 1:
            self.log.warning("the cloud has trouble", what=what, reason=reason, times=times)

    def store_failed(self, what: str, reason: str) -> None:
        self._failures.labels(f"store {what}").inc()
        self.log.error("the store failed", during=what, reason=reason)

    def unstorable(self, fact: str, reason: str) -> None:
        self._failures.labels("store value").inc()
        self.log.error("a fact was left out: the store does not take it", fact=fact, reason=reason)

    def standing_by(self, leader: str) -> None:
        self.log.info(
            "another service beats on this database: standing by until it ends; Ctrl-C or SIGTERM ends this one",
            leader=leader or None,
        )

    # ---- what /metrics shows

    def exposition(
        self,
        world: World | None,
        *,
        now: int,
        ready: bool,
        leader: bool,
        inbox: int,
        undone: int,
        streams: int,
    ) -> bytes:
        """The metrics page."""
        self._ready.set(1 if ready else 0)
        self._leader.set(1 if leader else 0)
        self._inbox.set(inbox)
        self._undone.set(undone)
        self._streams.set(streams)
        if world is not None:
            self._look_at(world, now)
        return generate_latest(self.registry)

    def _look_at(self, world: World, now: int) -> None:
        for gauge in self._of_world:
            gauge.clear()
        for node in world.nodes.values():
            if node.launched_at is not None:
                place = (node.compute_environment, MARKETS[node.offering.market])
                self._price.labels(*place).inc(node.offering.price_usd_hour)
        for queue, counts in jobs_by_status(world).items():
            for status in (JobStatus.RUNNABLE, JobStatus.STARTING, JobStatus.RUNNING):
                self._jobs.labels(queue, status.value).set(counts[status])
        waits_ms = dict.fromkeys(world.queues, 0)
        for row in classes(world):
            queue, since = str(row["jobQueue"]), row["oldest_at"]
            assert isinstance(since, int)
            waits_ms[queue] = max(waits_ms.get(queue, 0), now - since)
        for queue, wait_ms in waits_ms.items():
            self._oldest.labels(queue).set(wait_ms / 1000)
        for row in environments(world, now):
            name = str(row["computeEnvironment"])
            self._vcpus.labels(name).set(world.vcpus[name])
            self._valid.labels(name).set(row["status"] != "INVALID")
            instances = row["instances"]
            assert isinstance(instances, dict)
            for status in NodeStatus:
                self._nodes.labels(name, status.value).set(instances.get(status, 0))


def _words_of(fact: Fact) -> dict[str, object]:
    """The fields of a fact worth a log line."""
    hidden = ("at", "allocatable")
    return {
        name: getattr(fact, name)
        for name in fact.__struct_fields__
        if name not in hidden and getattr(fact, name) not in (None, False)
    }
