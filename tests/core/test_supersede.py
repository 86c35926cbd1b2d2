"""One Airflow task has one live job: a later try ends the job of the earlier one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from airflow_eksbatch.core.engine.effects import CreatePod, DeletePod
from airflow_eksbatch.core.engine.facts import JobSubmitted
from airflow_eksbatch.core.model.errors import Denied, Rejected
from airflow_eksbatch.core.model.job import Dependency, JobId
from airflow_eksbatch.core.planner.explain import explain
from tests.build import a_node, a_spec, a_world
from tests.core.stage import Stage, loaded

TASK = "dag|run|task|-1"


def tried(number: int) -> dict[str, Any]:
    return {"task_key": TASK, "try_number": number, "token": f"{TASK}|{number}"}


def made(number: int, instance: str) -> dict[str, Any]:
    """A try as clients submit it that name the task instance."""
    return {**tried(number), "token": f"i:{instance}", "task_instance": instance}


def a_stage() -> Stage:
    return Stage(a_world(a_node("n1")))


def test_a_later_try_ends_the_running_job_of_the_earlier_one() -> None:
    stage = a_stage()
    stage.submit("first", **tried(1))
    stage.run()
    stage.submit("second", **tried(2))
    assert [effect.pod for effect in stage.of(DeletePod)] == ["first-0-1"]
    assert stage.status("second") == "PENDING"
    stage.end("first", exit_code=143)
    assert "Superseded by try 2" in (stage.jobs["first"].status_reason or "")
    assert stage.status("second") == "STARTING"


@pytest.mark.parametrize(("may_end_in", "is_denied"), [(("other",), True), (("queue",), False)])
def test_who_is_held_to_job_queues_ends_no_earlier_try_in_another_one(
    may_end_in: tuple[str, ...], *, is_denied: bool
) -> None:
    """Decided in the beat: two submits that come together have both not seen the other one's job."""
    stage = a_stage()
    first = JobSubmitted(spec=a_spec("first", **tried(1)))
    second = JobSubmitted(spec=a_spec("second", **tried(2)), may_end_in=may_end_in)
    _, answer = stage.step(first, second).answers
    assert isinstance(answer, Denied) is is_denied
    assert stage.status("first") == ("STARTING" if is_denied else "FAILED")


@pytest.mark.parametrize("ended_before_s", [0, 10])
def test_no_pod_of_a_later_try_begins_before_that_of_the_earlier_one_has_ended(
    ended_before_s: float,
) -> None:
    """Either way: also if it succeeded before it was told to stop."""
    stage = a_stage()
    stage.submit("first", **tried(1))
    stage.run()
    stage.wait(20)
    stage.submit("second", size=2, **tried(2))
    stage.submit("after", depends_on=(Dependency(job_id=JobId("second")),))
    stage.wait(29)
    assert stage.of(CreatePod) == []
    told = explain(stage.world, stage.job("second"), stage.now)
    assert any("earlier try of its Airflow task is being ended first: first" in one for one in told)
    at = stage.now - 29_000 - int(ended_before_s * 1000)
    ended = msgspec.structs.replace(stage.ended("first"), at=at)
    stage.step(ended)
    assert stage.status("first") == ("SUCCEEDED" if ended_before_s else "FAILED")
    assert [effect.pod for effect in stage.of(CreatePod)] == ["second-0-1", "second-1-1"]
    assert stage.status("after") == "PENDING"


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_third_try_waits_for_what_the_second_one_waited_for(is_cancelled: bool) -> None:
    stage = a_stage()
    stage.submit("first", **tried(1))
    stage.run()
    stage.submit("second", **tried(2))
    if is_cancelled:
        stage.cancel("second")
    stage.submit("third", **tried(3))
    assert (stage.status("second"), stage.status("third")) == ("FAILED", "PENDING")
    stage.end("first", exit_code=143)
    assert stage.status("third") == "STARTING"


def test_a_later_try_that_waits_for_the_earlier_one_may_be_cancelled() -> None:
    stage = a_stage()
    stage.submit("first", **tried(1))
    stage.run()
    stage.submit("second", **tried(2))
    stage.cancel("second")
    stage.end("first", exit_code=143)
    assert stage.world.jobs == stage.world.job_by_task == {}


def test_a_later_try_goes_on_waiting_after_a_crash() -> None:
    stage = a_stage()
    stage.submit("first", **tried(1))
    stage.run()
    stage.submit("second", **tried(2))
    again = loaded(stage)
    again.step()
    assert again.status("second") == "PENDING"
    again.end("first", exit_code=143)
    assert again.status("second") == "STARTING"


def test_an_earlier_instance_that_comes_after_the_end_of_a_later_one_is_refused() -> None:
    """The store knows of that one; a run that was deleted and made again has younger instances."""
    stage = a_stage()
    late = a_spec("late", **made(2, "019a-2"))
    for number in (1, 2):
        early = a_spec("early", **made(number, "019a-1"))
        with pytest.raises(Rejected, match="overtaken by a later one"):
            stage.give(JobSubmitted(spec=early, newest=late))
    made_again = a_spec("again", **made(1, "019a-3"))
    stage.give(JobSubmitted(spec=made_again, newest=late))
    assert stage.status("again") == "STARTING"


def test_a_later_try_runs_after_the_end_of_an_earlier_one_whatever_the_clocks_said_of_their_ids() -> (
    None
):
    """Two schedulers whose clocks differ by more than a short retry delay."""
    stage = a_stage()
    first = a_spec("first", **made(1, "019a-2"))
    stage.give(JobSubmitted(spec=a_spec("second", **made(2, "019a-1")), newest=first))
    assert stage.status("second") == "STARTING"


def test_a_live_job_is_that_of_its_try_whichever_release_submits_it_again() -> None:
    old, new = tried(1), made(1, "019a-1")
    for first, again in ((old, new), (new, old)):
        stage = a_stage()
        stage.submit("first", **first)
        assert stage.give(JobSubmitted(spec=a_spec("again", **again))) == "first"


@pytest.mark.parametrize(("later_ms", "same"), [(-1, True), (0, True), (1, False)])
def test_a_job_that_ended_during_an_update_does_not_run_again_unless_its_run_was_made_again(
    later_ms: int, same: bool
) -> None:
    """The instance of a run that was deleted and made again is younger than the job."""
    stage, created_at = a_stage(), 1_800_000_000_000
    ended = a_spec("ended", **tried(1), created_at=created_at)
    began = f"{created_at + later_ms:012x}"
    instance = f"{began[:8]}-{began[8:]}-7000-8000-000000000000"
    fact = JobSubmitted(spec=a_spec("again", **made(1, instance)), newest=ended)
    assert stage.give(fact) == ("ended" if same else "again")


def test_a_try_that_names_its_instance_is_not_measured_by_one_that_did_not() -> None:
    """The run may have been deleted and made again while Airflow got a new release of this provider."""
    stage = a_stage()
    earlier = a_spec("earlier", **tried(2))
    stage.give(JobSubmitted(spec=a_spec("again", **made(1, "019a-1")), newest=earlier))
    assert stage.status("again") == "STARTING"


def test_a_waiting_job_of_an_earlier_try_fails_at_once() -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("first", **tried(1))
    stage.submit("second", **tried(2))
    assert stage.status("first") == "FAILED"
    assert stage.world.job_by_task == {TASK: "second"}


def test_an_earlier_try_that_comes_late_is_refused_and_harms_nobody() -> None:
    stage = a_stage()
    stage.submit("second", **tried(2))
    with pytest.raises(Rejected, match="overtaken by try 2"):
        stage.submit("first", **tried(1))
    assert stage.status("second") == "STARTING"
    assert stage.of(DeletePod) == []


def test_the_same_try_again_is_the_same_job() -> None:
    stage = a_stage()
    stage.submit("first", **tried(1))
    assert stage.submit("again", **tried(1)) == "first"


def test_an_earlier_try_whose_successor_has_ended_may_run() -> None:
    stage = a_stage()
    stage.submit("second", **tried(2))
    stage.run()
    stage.end("second")
    stage.submit("first", **tried(1))
    assert stage.status("first") == "STARTING"


def test_a_refused_submit_does_not_end_the_job_it_would_have_replaced() -> None:
    stage = a_stage()
    stage.submit("first", **tried(1))
    with pytest.raises(Rejected):
        stage.submit("second", **tried(2), depends_on=(Dependency(job_id=JobId("nobody")),))
    assert stage.status("first") == "STARTING"
    assert stage.of(DeletePod) == []


@pytest.mark.parametrize("tries_before", [1, 2])
def test_a_run_that_was_deleted_and_made_again_has_a_new_job_and_ends_the_old_one(
    tries_before: int,
) -> None:
    stage = a_stage()
    stage.submit("old", **made(tries_before, "019a-1"))
    stage.run()
    assert stage.submit("new", **made(1, "019a-2")) == "new"
    assert [effect.pod for effect in stage.of(DeletePod)] == ["old-0-1"]
    stage.end("old", exit_code=143)
    reason = stage.jobs["old"].status_reason or ""
    assert "younger run" in reason
    assert "deployment" in reason


def test_the_submit_of_a_deleted_run_that_comes_late_is_refused() -> None:
    stage = a_stage()
    stage.submit("new", **made(1, "019a-2"))
    with pytest.raises(Rejected, match="overtaken"):
        stage.submit("old", **made(1, "019a-1"))
    assert stage.of(DeletePod) == []


def test_a_later_try_ends_an_earlier_one_whatever_the_clocks_said_of_their_ids() -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("first", **made(1, "019a-2"))
    stage.submit("second", **made(2, "019a-1"))
    assert stage.status("first") == "FAILED"
    with pytest.raises(Rejected, match="overtaken by try 2"):
        stage.submit("late", **made(1, "019a-0"))


def test_a_job_of_a_client_that_named_no_instance_is_found_again_by_one_that_does() -> None:
    """Tasks that wait while Airflow gets a new release of this provider."""
    stage = a_stage()
    stage.submit("first", **tried(1))
    assert stage.submit("again", **made(1, "019a-1")) == "first"
    stage.submit("second", **made(2, "019a-2"))
    assert stage.submit("again", **made(2, "019a-2")) == "second"


def test_other_tasks_are_left_alone() -> None:
    stage = a_stage()
    stage.submit("a", task_key="dag|run|a|-1", try_number=1)
    stage.submit("b", task_key="dag|run|b|-1", try_number=2)
    stage.submit("c")
    assert stage.of(DeletePod) == []
    assert len(stage.world.jobs) == 3
