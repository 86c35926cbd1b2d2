"""The world holds what is alive: of what has ended nothing stays, however much there was."""

from __future__ import annotations

from airflow_eksbatch.core.engine.facts import Deleted, PolicyPut
from airflow_eksbatch.core.engine.step import derive_effects
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.job import Dependency, Ended, JobId
from tests.build import a_node, a_policy, a_queue, a_world
from tests.core.stage import Stage

FADED_S = 600 * limits.SHARE_FADES


def a_stage() -> Stage:
    world = a_world(a_node("n1"), a_policy(), a_queue(policy="fair"), a_queue("other"))
    return Stage(world, idle_s=10 * FADED_S)


def a_job_each(stage: Stage, *shares: str) -> None:
    for share in shares:
        stage.submit(share, share=share)
        stage.run()
        stage.end(share)


def test_pod_properties_leave_with_the_last_job_that_has_them() -> None:
    stage = a_stage()
    first, second = b'{"containers":[1]}', bytes(bytearray(b'{"containers":[1]}'))
    stage.submit("a", pod=first, share="s")
    stage.submit("b", pod=second, share="s")
    assert stage.job("a").spec.pod is stage.job("b").spec.pod
    stage.terminate("a")
    stage.end("a", exit_code=143)
    assert len(stage.world.pods_kept) == 1
    stage.submit("c", pod=bytes(bytearray(first)), share="s")
    assert stage.job("c").spec.pod is stage.job("b").spec.pod
    for job in ("b", "c"):
        stage.run()
        stage.end(job)
    assert len(stage.world.pods_kept) == 0


def test_who_depends_on_what_has_ended_is_not_noted_there() -> None:
    stage = a_stage()
    gone = JobId("gone")
    stage.submit(
        "a",
        share="s",
        depends_on=(Dependency(job_id=gone),),
        dependency_ends={gone: Ended(succeeded=True)},
    )
    assert stage.world.dependents == {}
    stage.submit("b", share="s", depends_on=(Dependency(job_id=JobId("a")),))
    assert stage.world.dependents == {"a": {"b"}}
    stage.terminate("b")
    assert stage.world.dependents == {}


def test_what_a_share_has_used_is_forgotten_when_it_has_faded() -> None:
    stage = a_stage()
    a_job_each(stage, "a", "b", "a")
    stage.submit("runs", share="b")
    assert len(stage.world.usages) == 2
    stage.wait(FADED_S - 1)
    assert len(stage.world.usages) == 2
    outcome = stage.wait(1)
    assert set(stage.world.usages) == {("queue", "b")}
    assert outcome.changes.deleted == [("share_usage", "queue|a")]


def test_a_share_that_is_used_meanwhile_has_its_time_anew() -> None:
    stage = a_stage()
    a_job_each(stage, "a")
    stage.wait(FADED_S - 1)
    a_job_each(stage, "a")
    stage.wait(FADED_S - 1)
    assert set(stage.world.usages) == {("queue", "a")}
    stage.wait(1)
    assert stage.world.usages == {}


def test_a_restart_knows_what_is_fading() -> None:
    stage = a_stage()
    a_job_each(stage, "a")
    stage.world.deadlines.clear()
    stage.world.fading.clear()
    derive_effects(stage.world, stage.now, stage.settings)
    stage.wait(FADED_S)
    assert stage.world.usages == {}


def test_what_fades_in_the_step_in_which_it_is_used_again_is_kept() -> None:
    """In the store rows are put first, and then deleted."""
    stage = a_stage()
    a_job_each(stage, "a")
    stage.now += FADED_S * 1000
    stage.submit("again", share="a")
    assert set(stage.world.usages) == {("queue", "a")}
    changes = stage.step().changes
    assert changes.deleted == []


def test_usage_goes_with_its_queue() -> None:
    stage = a_stage()
    a_job_each(stage, "a")
    queue = stage.world.queues["queue"]
    stage.world.put_queue(type(queue)(name="queue", arn=queue.arn, state="DISABLED"))
    outcome = stage.step(Deleted(kind="job_queue", name="queue"))
    assert stage.world.usages == {}
    assert set(outcome.changes.deleted) == {("job_queue", "queue"), ("share_usage", "queue|a")}
    stage.world.put_queue(a_queue("queue"))
    stage.wait(FADED_S)
    assert stage.step().changes.deleted == []


def test_what_is_made_again_in_the_step_that_deletes_it_is_kept() -> None:
    stage = a_stage()
    stage.world.put_policy(a_policy("spare"))
    stage.step()
    outcome = stage.step(
        Deleted(kind="scheduling_policy", name="spare"),
        PolicyPut(policy=a_policy("spare", reservation=5), create=True),
    )
    assert outcome.changes.deleted == []
    assert [policy.compute_reservation for policy in outcome.changes.policies] == [5]
