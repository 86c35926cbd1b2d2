"""dependsOn: plain, SEQUENTIAL and N_TO_N; nothing starts early, and failure travels on."""

from __future__ import annotations

import pytest

from airflow_eksbatch.core.engine.facts import JobSubmitted
from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Dependency, DependencyType, Ended, JobId
from airflow_eksbatch.core.model.retry import RetryStrategy
from tests.build import a_node, a_queue, a_spec, a_world
from tests.core.stage import Stage

IN_SEQUENCE = (Dependency(type=DependencyType.SEQUENTIAL),)


def on(*job_ids: str) -> tuple[Dependency, ...]:
    return tuple(Dependency(job_id=JobId(job_id)) for job_id in job_ids)


def pairwise(job_id: str) -> tuple[Dependency, ...]:
    return (Dependency(type=DependencyType.N_TO_N, job_id=JobId(job_id)),)


def a_stage() -> Stage:
    return Stage(a_world(a_node("n1"), a_node("n2"), a_queue("other")))


# ---- plain


def test_a_dependent_starts_when_the_last_awaited_job_succeeded() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.submit("b")
    stage.submit("c", depends_on=on("a", "b"))
    stage.run()
    stage.end("a")
    assert stage.status("c") == "PENDING"
    stage.end("b")
    assert stage.story("c") == ["PENDING", "RUNNABLE", "STARTING"]


def test_a_dependent_waits_for_the_whole_array_across_queues() -> None:
    stage = a_stage()
    stage.submit("array", size=2)
    stage.submit("b", queue="other", depends_on=on("array"))
    stage.run()
    stage.end("array", 0)
    assert stage.status("b") == "PENDING"
    stage.end("array", 1)
    assert stage.status("b") == "STARTING"


def test_a_retry_of_the_awaited_job_does_not_wake_or_fail_the_dependent() -> None:
    stage = a_stage()
    stage.submit("a", retry=RetryStrategy(attempts=2))
    stage.submit("b", depends_on=on("a"))
    stage.run()
    stage.end("a", exit_code=1)
    assert stage.status("b") == "PENDING"
    stage.run()
    stage.end("a")
    assert stage.status("b") == "STARTING"


def test_a_failure_fails_all_that_follow_from_it() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.submit("b", depends_on=on("a"))
    stage.submit("c", depends_on=on("b"), size=3)
    stage.submit("d", depends_on=on("c"))
    stage.run()
    stage.end("a", exit_code=1)
    assert [stage.status(name) for name in "bcd"] == ["FAILED"] * 3
    assert stage.jobs["d"].status_reason == "Dependent Job failed"
    assert stage.world.jobs == {}
    assert stage.world.totals.failed == 1 + 1 + 3 + 1


def test_a_chain_longer_than_any_stack_fails_at_once() -> None:
    stage = a_stage()
    stage.submit("j0")
    stage.run()
    chain = [
        JobSubmitted(spec=a_spec(f"j{n}", depends_on=on(f"j{n - 1}"))) for n in range(1, 3_000)
    ]
    stage.step(*chain)
    stage.end("j0", exit_code=1)
    assert stage.world.jobs == {}
    assert stage.status("j2999") == "FAILED"


def test_awaited_jobs_that_ended_before_are_known_by_the_store() -> None:
    stage = a_stage()
    stage.submit("b", depends_on=on("gone"), dependency_ends={"gone": Ended(succeeded=True)})
    assert stage.status("b") == "STARTING"
    stage.submit("c", depends_on=on("lost"), dependency_ends={"lost": Ended(succeeded=False)})
    assert stage.jobs["c"].status_reason == "Dependent Job failed"


@pytest.mark.parametrize(("exit_code", "status"), [(0, "STARTING"), (1, "FAILED")])
def test_an_awaited_job_may_end_in_the_beat_of_the_submit(exit_code: int, status: str) -> None:
    stage = a_stage()
    stage.submit("a")
    stage.run()
    ended = stage.ended("a", exit_code=exit_code)
    answers = stage.step(ended, JobSubmitted(spec=a_spec("b", depends_on=on("a")))).answers
    assert answers[1] == "b"
    assert stage.status("b") == status


def test_a_job_that_does_not_exist_cannot_be_awaited() -> None:
    stage = a_stage()
    with pytest.raises(Rejected, match="nobody"):
        stage.submit("b", depends_on=on("nobody"))
    assert stage.jobs == {}


# ---- SEQUENTIAL


def test_sequential_children_run_one_after_the_other() -> None:
    stage = a_stage()
    stage.submit("a", size=3, depends_on=IN_SEQUENCE)
    for index in range(3):
        assert list(stage.job("a").running) == [index]
        stage.run()
        stage.end("a", index)
    assert stage.status("a") == "SUCCEEDED"


def test_a_sequential_child_that_runs_again_holds_the_next_back() -> None:
    stage = a_stage()
    stage.submit("a", size=2, depends_on=IN_SEQUENCE, retry=RetryStrategy(attempts=2))
    stage.run()
    stage.end("a", 0, exit_code=1)
    assert list(stage.job("a").running) == [0]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_sequential_child_that_fails_or_is_cancelled_fails_those_after_it(stopped: bool) -> None:
    stage = a_stage()
    stage.submit("a", size=4, depends_on=IN_SEQUENCE)
    stage.run()
    if stopped:
        stage.cancel("a", 1)
        assert stage.job("a").failed == ((1, 4),)
        stage.end("a", 0)
    else:
        stage.end("a", 0, exit_code=1)
    assert stage.status("a") == "FAILED"


def test_a_sequential_array_may_wait_for_another_job_first() -> None:
    stage = a_stage()
    stage.submit("a")
    stage.submit("b", size=2, depends_on=(*on("a"), *IN_SEQUENCE))
    assert not stage.job("b").running
    stage.run()
    stage.end("a")
    assert list(stage.job("b").running) == [0]


# ---- N_TO_N


def test_child_i_waits_for_child_i() -> None:
    stage = a_stage()
    stage.submit("a", size=3)
    stage.submit("b", size=3, depends_on=pairwise("a"))
    stage.run()
    stage.end("a", 1)
    assert list(stage.job("b").running) == [1]
    stage.end("a", 0)
    stage.end("a", 2)
    assert sorted(stage.job("b").running) == [0, 1, 2]


def test_a_failed_child_fails_its_partner_only() -> None:
    stage = a_stage()
    stage.submit("a", size=3)
    stage.submit("b", size=3, depends_on=pairwise("a"))
    stage.run()
    stage.end("a", 1, exit_code=1)
    assert stage.job("b").failed == ((1, 2),)
    stage.end_all()
    stage.run()
    stage.end_all()
    assert stage.status("b") == "FAILED"
    assert ranges.count(stage.jobs["b"].succeeded) == 2


def test_what_the_other_array_has_behind_it_counts_at_submit() -> None:
    stage = a_stage()
    stage.submit("a", size=3)
    stage.run()
    stage.end("a", 0)
    stage.end("a", 1, exit_code=1)
    stage.submit("b", size=3, depends_on=pairwise("a"))
    assert list(stage.job("b").running) == [0]
    assert stage.job("b").failed == ((1, 2),)
    stage.end("a", 2, exit_code=1)
    stage.run()
    stage.end("b", 0)
    assert stage.status("b") == "FAILED"
    assert stage.world.jobs == {}


def test_n_to_n_with_an_array_that_succeeded_long_ago_runs_all() -> None:
    stage = a_stage()
    ends = {"gone": Ended(succeeded=True, array_size=2)}
    stage.submit("b", size=2, depends_on=pairwise("gone"), dependency_ends=ends)
    assert sorted(stage.job("b").running) == [0, 1]


def test_n_to_n_with_an_array_that_failed_long_ago_follows_it_child_by_child() -> None:
    stage = a_stage()
    ends = {"gone": Ended(succeeded=False, array_size=4, failed=((1, 3),))}
    stage.submit("b", size=4, depends_on=pairwise("gone"), dependency_ends=ends)
    assert sorted(stage.job("b").running) == [0, 3]
    assert stage.job("b").failed == ((1, 3),)
    in_sequence = (*pairwise("gone"), *IN_SEQUENCE)
    stage.submit("c", size=4, depends_on=in_sequence, dependency_ends=ends)
    assert list(stage.job("c").running) == [0]
    assert stage.job("c").failed == ((1, 4),)
    ends = {"gone": Ended(succeeded=False, array_size=2, failed=((0, 2),))}
    stage.submit("d", size=2, depends_on=pairwise("gone"), dependency_ends=ends)
    assert stage.jobs["d"].failed == ((0, 2),)
    assert "d" not in stage.world.jobs


def test_an_array_that_ends_in_the_beat_of_the_submit_is_followed_child_by_child() -> None:
    stage = a_stage()
    stage.submit("a", size=2)
    stage.run()
    news = (stage.ended("a", 0), stage.ended("a", 1, exit_code=1))
    stage.step(*news, JobSubmitted(spec=a_spec("b", size=2, depends_on=pairwise("a"))))
    assert list(stage.job("b").running) == [0]
    assert stage.job("b").failed == ((1, 2),)


@pytest.mark.parametrize("size", [None, 4])
def test_n_to_n_needs_arrays_of_one_size(size: int | None) -> None:
    stage = a_stage()
    stage.submit("a", size=size)
    with pytest.raises(Rejected, match="one size"):
        stage.submit("b", size=3, depends_on=pairwise("a"))
    ends = {"gone": Ended(succeeded=True, array_size=size)}
    with pytest.raises(Rejected, match="one size"):
        stage.submit("b", size=3, depends_on=pairwise("gone"), dependency_ends=ends)


def test_terminating_the_awaited_array_fails_all_partners() -> None:
    stage = Stage(a_world(offerings=()))
    stage.submit("a", size=3)
    stage.submit("b", size=3, depends_on=pairwise("a"))
    stage.terminate("a")
    assert stage.status("b") == "FAILED"
    assert stage.world.jobs == {}
