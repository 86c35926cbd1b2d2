"""One Airflow task has one live job: a later try ends the job of the earlier one."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.effects import DeletePod
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Dependency, JobId
from tests.build import a_node, a_world
from tests.core.stage import Stage

TASK = "dag|run|task|-1"


def tried(number: int) -> dict[str, object]:
    return {"task_key": TASK, "try_number": number, "token": f"{TASK}|{number}"}


def made(number: int, instance: str) -> dict[str, object]:
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
    stage.end("first", exit_code=143)
    assert "Superseded by try 2" in (stage.jobs["first"].status_reason or "")
    assert stage.status("second") == "STARTING"


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
