"""Setting up: queues, environments, policies and definitions; what is refused says what to do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import (
    CheckEnvironment,
    CreatePod,
    DeleteEnvironment,
    DeletePod,
    LaunchNode,
)
from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    DefinitionDeregistered,
    DefinitionRegistered,
    Deleted,
    EnvironmentChecked,
    Fact,
    JobSubmitted,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Outdated, Rejected
from airflow_eksbatch.core.model.job import Dependency, JobId
from airflow_eksbatch.core.model.job_definition import JobDefinition
from tests.build import NOW, a_node, a_policy, a_queue, a_spec, a_world, an_environment
from tests.core.stage import Stage, loaded

DEPENDENCY = (Dependency(job_id=JobId("first")),)


def refuses(stage: Stage, fact: object, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        stage.give(fact)  # type: ignore[arg-type]


# ---- job queues


def test_a_queue_needs_environments_and_a_policy_that_exist() -> None:
    stage = Stage(a_world())
    refuses(stage, QueuePut(queue=a_queue("q", "nowhere"), create=True), "nowhere does not exist")
    refuses(stage, QueuePut(queue=a_queue("q", policy="none"), create=True), "none does not exist")
    assert set(stage.world.queues) == {"queue"}


def test_a_name_is_taken_once_and_only_what_exists_is_changed() -> None:
    stage = Stage(a_world())
    refuses(stage, QueuePut(queue=a_queue(), create=True), "UpdateJobQueue")
    refuses(stage, QueuePut(queue=a_queue("new"), create=False), "CreateJobQueue")
    stage.give(QueuePut(queue=a_queue("new", priority=3), create=True))
    assert stage.world.queues["new"].priority == 3


def test_a_fifo_queue_never_gets_a_policy() -> None:
    stage = Stage(a_world(a_policy()))
    refuses(stage, QueuePut(queue=a_queue(policy="fair"), create=False), "FIFO")


def test_deleting_a_queue_terminates_its_jobs_and_ends_when_they_have() -> None:
    stage = Stage(a_world(a_node("n1"), offerings=()))
    delete = Deleted(kind="job_queue", name="queue")
    stage.submit("runs", vcpus=4)
    stage.run()
    stage.submit("waits", vcpus=4)
    refuses(stage, delete, "Disable it")
    stage.give(QueuePut(queue=a_queue(state="DISABLED"), create=False))
    stage.give(delete)
    assert stage.jobs["waits"].status_reason == "JobQueue deleted"
    assert [effect.pod for effect in stage.of(DeletePod)] == ["runs-0-1"]
    assert stage.world.queues["queue"].status == "DELETING"
    with pytest.raises(Rejected):
        stage.submit("late")
    stage.end("runs", exit_code=143)
    assert stage.world.queues == {}
    stage.give(delete)


def a_queue_to_empty(jobs: int) -> Stage:
    stage = Stage(a_world(a_node("n1")))
    chain = [a_spec(f"j{n}", depends_on=DEPENDENCY[: n % 2]) for n in range(jobs)]
    stage.step(JobSubmitted(spec=a_spec("first")), *(JobSubmitted(spec=spec) for spec in chain))
    stage.give(QueuePut(queue=a_queue(state="DISABLED"), create=False))
    stage.run()
    return stage


def test_a_large_queue_is_emptied_over_many_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it begins meanwhile, nothing is bought for it, and every job is told the same."""
    monkeypatch.setattr(limits, "ENDS_PER_BEAT_MAX", 10)
    stage = a_queue_to_empty(34)
    outcome = stage.step(Deleted(kind="job_queue", name="queue"))
    assert len(stage.world.jobs) == 25
    beats = 1
    while outcome.wake_at == stage.now:
        outcome = stage.step()
        assert (stage.of(CreatePod), stage.of(LaunchNode)) == ([], [])
        beats += 1
    assert beats == 4
    stage.step(*(stage.ended(a.job_id, exit_code=143) for a in [*stage.world.attempts.values()]))
    assert (stage.world.jobs, stage.world.queues) == ({}, {})
    reasons = {job.status_reason for job in stage.jobs.values()}
    assert reasons == {"JobQueue deleted"}


def test_a_queue_goes_on_being_emptied_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ENDS_PER_BEAT_MAX", 10)
    stage = a_queue_to_empty(34)
    stage.step(Deleted(kind="job_queue", name="queue"))
    again = loaded(stage)
    for _ in range(4):
        again.step()
    assert all(job.terminated for job in again.world.jobs.values())


# ---- compute environments


def test_a_new_environment_is_used_after_it_was_checked() -> None:
    stage = Stage(a_world())
    stage.give(ComputeEnvironmentPut(compute_environment=an_environment("new"), create=True))
    assert stage.world.compute_environments["new"].status == "CREATING"
    assert [effect.name for effect in stage.of(CheckEnvironment)] == ["new"]
    stage.step(EnvironmentChecked(name="new", status="VALID", status_reason="Healthy"))
    assert stage.world.compute_environments["new"].may_grow


def test_a_change_of_size_needs_no_check_and_works_at_once() -> None:
    stage = Stage(a_world(an_environment(max_vcpus=0)))
    stage.submit("a")
    assert stage.world.nodes == {}
    larger = msgspec.structs.replace(stage.world.compute_environments["ce"], max_vcpus=4)
    stage.give(ComputeEnvironmentPut(compute_environment=larger, create=False))
    assert stage.of(CheckEnvironment) == []
    assert len(stage.world.nodes) == 1


def test_any_other_change_is_checked_and_buys_nothing_meanwhile() -> None:
    stage = Stage(a_world())
    other = an_environment(instance_types=("c5",))
    stage.give(ComputeEnvironmentPut(compute_environment=other, create=False))
    assert stage.world.compute_environments["ce"].status == "UPDATING"
    stage.submit("a")
    assert stage.world.nodes == {}
    stage.step(EnvironmentChecked(name="ce", status="VALID", status_reason="Healthy"))
    assert len(stage.world.nodes) == 1


def test_lowering_the_maximum_ends_nobody() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a", size=4)
    stage.run()
    smaller = an_environment(max_vcpus=1)
    stage.give(ComputeEnvironmentPut(compute_environment=smaller, create=False))
    stage.wait(1_000)
    assert len(stage.job("a").running) == 4


def test_disabling_an_environment_lets_its_jobs_finish_and_places_nothing_new() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a")
    stage.run()
    disabled = an_environment(state="DISABLED")
    stage.give(ComputeEnvironmentPut(compute_environment=disabled, create=False))
    stage.submit("b")
    assert stage.status("b") == "RUNNABLE"
    stage.end("a")
    assert stage.status("a") == "SUCCEEDED"


def test_an_environment_goes_when_it_is_disabled_unused_and_empty() -> None:
    stage = Stage(a_world(a_node("n1")))
    delete = Deleted(kind="compute_environment", name="ce")
    refuses(stage, delete, "is ENABLED")
    disabled = an_environment(state="DISABLED")
    stage.give(ComputeEnvironmentPut(compute_environment=disabled, create=False))
    refuses(stage, delete, "found existing JobQueue relationship")
    stage.give(QueuePut(queue=a_queue(state="DISABLED"), create=False))
    stage.give(Deleted(kind="job_queue", name="queue"))
    stage.give(delete)
    assert stage.world.compute_environments["ce"].status == "DELETING"
    stage.lose("n1", reclaimed=False)
    assert [effect.name for effect in stage.of(DeleteEnvironment)] == ["ce"]
    assert stage.world.compute_environments == {}


def test_a_check_that_comes_after_deleting_began_changes_nothing() -> None:
    stage = Stage(a_world(an_environment(state="DISABLED", status="DELETING"), a_node("n1")))
    stage.step(EnvironmentChecked(name="ce", status="VALID", status_reason="x"))
    assert stage.world.compute_environments["ce"].status == "DELETING"


# ---- scheduling policies


def test_a_policy_in_use_cannot_be_deleted() -> None:
    stage = Stage(a_world(a_policy(), a_queue(policy="fair")))
    refuses(stage, Deleted(kind="scheduling_policy", name="fair"), "used by job queue queue")
    refuses(stage, PolicyPut(policy=a_policy(), create=True), "exists already")
    refuses(stage, PolicyPut(policy=a_policy("other"), create=False), "does not exist")
    stage.give(PolicyPut(policy=a_policy("other"), create=True))
    stage.give(Deleted(kind="scheduling_policy", name="other"))
    assert set(stage.world.policies) == {"fair"}


def test_a_changed_policy_counts_from_the_next_beat() -> None:
    world = a_world(a_policy(a=1.0, b=1.0), a_queue(policy="fair"), a_node("n1"), offerings=())
    stage = Stage(world)
    stage.submit("block", vcpus=4, share="x")
    stage.run()
    stage.submit("a", size=9, share="a")
    stage.submit("b", size=9, share="b")
    stage.give(PolicyPut(policy=a_policy(a=1.0, b=0.01), create=False))
    stage.end("block")
    assert len(stage.job("b").running) == 3


# ---- two at once


@pytest.mark.parametrize("kind", ["queue", "environment", "policy"])
def test_of_two_changes_made_from_the_same_state_the_second_is_to_be_made_anew(kind: str) -> None:
    """In one beat: what the first changed is not undone, and neither are tags."""
    world = a_world(a_policy())
    nouns: dict[str, Any] = {
        "queue": (world.queues, "queue", {"state": "DISABLED"}, {"priority": 7}),
        "environment": (world.compute_environments, "ce", {"max_vcpus": 9}, {"min_vcpus": 1}),
        "policy": (world.policies, "fair", {"share_decay_s": 700}, {"compute_reservation": 5}),
    }
    there, name, first, second = nouns[kind]

    def put(seen: Any, changes: dict[str, Any]) -> Fact:
        meant = msgspec.structs.replace(seen, **changes)
        if kind == "queue":
            return QueuePut(queue=meant, create=False, seen=seen)
        if kind == "environment":
            return ComputeEnvironmentPut(compute_environment=meant, create=False, seen=seen)
        return PolicyPut(policy=meant, create=False, seen=seen)

    stage, seen = Stage(world), there[name]
    answers = stage.step(put(seen, first), put(seen, second)).answers
    assert not isinstance(answers[0], Rejected)
    assert isinstance(answers[1], Outdated)
    assert not isinstance(stage.step(put(there[name], second)).answers[0], Rejected)
    meant = {**first, **second}
    assert {field: getattr(there[name], field) for field in meant} == meant


def test_a_queue_that_is_being_deleted_is_not_brought_back_by_an_update() -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a")
    stage.give(QueuePut(queue=a_queue(state="DISABLED"), create=False))
    seen = stage.world.queues["queue"]
    stage.give(Deleted(kind="job_queue", name="queue"))
    refuses(stage, QueuePut(queue=seen, create=False, seen=seen), "changed by somebody else")
    there = stage.world.queues["queue"]
    refuses(stage, QueuePut(queue=there, create=False, seen=there), "being deleted")


# ---- job definitions


def test_revisions_count_up_and_are_never_used_twice() -> None:
    stage = Stage(a_world())
    definition = JobDefinition(name="work", revision=0, arn="", created_at=NOW)
    register = DefinitionRegistered(definition=definition, arn_prefix="arn:")
    first, second = stage.give(register), stage.give(register)
    assert isinstance(first, JobDefinition)
    assert isinstance(second, JobDefinition)
    assert (first.key, second.arn) == ("work:1", "arn:work:2")
    stage.give(DefinitionDeregistered(name="work", revision=2))
    third = stage.give(register)
    assert isinstance(third, JobDefinition)
    assert third.revision == 3
    assert stage.world.definitions["work"][2].status == "INACTIVE"


def test_deregistering_what_does_not_exist_is_refused() -> None:
    refuses(
        Stage(a_world()), DefinitionDeregistered(name="work", revision=1), "work:1 does not exist"
    )
