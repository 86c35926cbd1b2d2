"""A world with its engine, played by hand: facts go in, what comes out is kept, every step is counted again.

stage = Stage(a_world(a_node("n1")))
stage.submit("a")
stage.run()
stage.end("a", exit_code=1)
"""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar

from airflow_eksbatch.core.engine.effects import Effect, Outcome
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    JobStopped,
    JobSubmitted,
    NodeReady,
    PodEnded,
    PodRunning,
    PodSeen,
)
from airflow_eksbatch.core.engine.step import derive_effects, step
from airflow_eksbatch.core.engine.turn import StepSettings
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import (
    Attempt,
    Job,
    JobEvent,
    JobId,
    JobStatus,
    PodName,
    pod_name,
)
from airflow_eksbatch.core.model.node import Node, NodeId, NodeStatus
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause, EvaluateOnExit, RetryAction
from airflow_eksbatch.core.planner.plan import Plan
from airflow_eksbatch.core.world.changes import Snapshot
from airflow_eksbatch.core.world.world import World
from tests.build import NOW, a_spec

E = TypeVar("E", bound=Effect)


class Stage:
    def __init__(self, world: World, *, idle_s: float = 60.0) -> None:
        self.world = world
        self.now = NOW
        self.settings = StepSettings(idle_s=idle_s, check_plans=True)
        self.effects: list[Effect] = []
        """Of the last step."""
        self.plan = Plan()
        self.events: list[JobEvent] = []
        self.jobs: dict[str, Job] = {**world.jobs}
        """Every job there ever was, as it was last kept."""
        self.attempts: dict[str, Attempt] = {**world.attempts}

    def step(self, *news: Fact) -> Outcome:
        outcome = step(self.world, news, self.now, self.settings)
        changes = outcome.changes
        self.effects, self.plan = outcome.effects, outcome.plan
        self.events += changes.events
        self.jobs |= {job.job_id: job for job in (*changes.jobs_added, *changes.jobs)}
        self.attempts |= {attempt.pod_name: attempt for attempt in changes.attempts}
        self.world.check_indexes()
        shares = Counter((job.spec.queue, job.spec.share) for job in self.world.jobs.values())
        assert self.world.jobs_by_share == shares
        return outcome

    def wait(self, seconds: float, *news: Fact) -> Outcome:
        self.now += int(seconds * 1000)
        return self.step(*news)

    def give(self, fact: Fact) -> object:
        """One fact; its answer, or its refusal raised."""
        answer = self.step(fact).answers[0]
        if isinstance(answer, Rejected):
            raise answer
        return answer

    # ---- callers

    def submit(self, job_id: str | None = None, **fields: Any) -> JobId:
        ends = fields.pop("dependency_ends", {})
        spec = a_spec(job_id, **fields)
        answer = self.give(JobSubmitted(spec=spec, dependency_ends=ends))
        return JobId(str(answer))

    def cancel(self, job_id: str, index: int | None = None, reason: str = "not needed") -> None:
        self.step(JobStopped(job_id=JobId(job_id), index=index, reason=reason, terminate=False))

    def terminate(self, job_id: str, index: int | None = None, reason: str = "enough") -> None:
        self.step(JobStopped(job_id=JobId(job_id), index=index, reason=reason, terminate=True))

    # ---- cluster and cloud

    def live(self, job_id: str, index: int = 0) -> Attempt:
        number = self.job(job_id).running[index]
        return self.world.attempts[pod_name(JobId(job_id), index, number)]

    def run(self) -> None:
        """Everything that was placed runs."""
        self.step(
            *(
                self.running(attempt)
                for attempt in self.world.attempts.values()
                if attempt.status is JobStatus.STARTING
            )
        )

    def seen(self, pod: str) -> None:
        self.step(PodSeen(pod=PodName(pod), at=self.now))

    def end(self, job_id: str, index: int = 0, **how: Any) -> None:
        """Its pod has ended: `exit_code` 0 if nothing is said."""
        self.step(self.ended(job_id, index, **how))

    def ended(self, job_id: str, index: int = 0, **how: Any) -> PodEnded:
        end = AttemptEnd(**{"cause": Cause.EXITED, "exit_code": 0, **how})
        return PodEnded(pod=self.live(job_id, index).pod_name, at=self.now, end=end)

    def end_all(self) -> None:
        """Every pod that runs has ended well."""
        self.step(
            *(
                self.ended(attempt.job_id, attempt.index)
                for attempt in list(self.world.attempts.values())
                if attempt.status is JobStatus.RUNNING
            )
        )

    def join(self) -> list[NodeId]:
        """Every instance that was asked for is launched, and its node is ready."""
        nodes = self.world.nodes.values()
        asked = [node.node_id for node in nodes if node.status is NodeStatus.REQUESTED]
        self.step(
            *(InstanceLaunched(node_id=n, instance_id=f"i-{n}", at=self.now) for n in asked),
            *(self.ready(self.world.nodes[n]) for n in asked),
        )
        return asked

    def what_follows(self) -> list[Fact]:
        """All goes well outside: instances join and end, pods run and end."""
        news: list[Fact] = []
        for node in self.world.nodes.values():
            if node.status is NodeStatus.REQUESTED:
                launched = InstanceLaunched(
                    node_id=node.node_id, instance_id=f"i-{node.node_id}", at=self.now
                )
                news += [launched, self.ready(node)]
            elif node.status is NodeStatus.TERMINATING:
                news.append(InstanceGone(node_id=node.node_id, at=self.now, reason="terminated"))
        for attempt in self.world.attempts.values():
            if attempt.status is JobStatus.STARTING:
                if self.is_asked_for(attempt):
                    news.append(self.running(attempt))
            else:
                news.append(self.ended(attempt.job_id, attempt.index))
        return news

    def running(self, attempt: Attempt) -> PodRunning:
        return PodRunning(pod=attempt.pod_name, at=self.now, address="10.0.0.1")

    def is_asked_for(self, attempt: Attempt) -> bool:
        """Other nodes of a multi-node job have no pod before the main one runs."""
        job = self.world.jobs[attempt.job_id]
        return job.leads(attempt.index) or (
            0 in job.running and bool(self.live(attempt.job_id).address)
        )

    def ready(self, node: Node) -> NodeReady:
        return NodeReady(
            node_id=node.node_id,
            node_name=f"ip-{node.node_id}",
            allocatable=node.offering.allocatable,
            at=self.now,
        )

    def lose(self, node_id: str, *, reclaimed: bool = True) -> None:
        """The instance is gone."""
        self.step(
            InstanceGone(
                node_id=NodeId(node_id), at=self.now, reason="Spot reclaim", reclaimed=reclaimed
            )
        )

    # ---- looking

    def of(self, kind: type[E]) -> list[E]:
        """Effects of a kind in the last step."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def story(self, job_id: str, index: int | None = None) -> list[str]:
        """The statuses a job, or one child, went through, as listeners were told."""
        return [
            event.status.value
            for event in self.events
            if event.job_id == job_id and event.index == index
        ]

    def job(self, job_id: str) -> Job:
        """A live job."""
        return self.world.jobs[JobId(job_id)]

    def status(self, job_id: str) -> JobStatus:
        return self.world.status_of(self.jobs[job_id])


def rule(action: RetryAction, **patterns: str) -> EvaluateOnExit:
    return EvaluateOnExit(action=action, **{f"on_{name}": text for name, text in patterns.items()})


def loaded(stage: Stage) -> Stage:
    """The same world after a crash: from what was kept."""
    before = stage.world
    world = World(
        Snapshot(
            jobs=list(before.jobs.values()),
            attempts=list(before.attempts.values()),
            nodes=list(before.nodes.values()),
            queues=list(before.queues.values()),
            compute_environments=list(before.compute_environments.values()),
            policies=list(before.policies.values()),
            usages=list(before.usages.values()),
            totals=before.totals,
            counters=before.counters,
        )
    )
    world.offerings = before.offerings
    world.check_indexes()
    again = Stage(world)
    again.now = stage.now
    again.effects = derive_effects(world, again.now, again.settings)
    return again
