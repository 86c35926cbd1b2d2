"""What is told of jobs, over a world that is played by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.api import job_reads
from airflow_eksbatch.core.engine.facts import NodeClosed
from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.retry import RetryAction, RetryStrategy
from airflow_eksbatch.core.model.share import ShareUsage
from airflow_eksbatch.core.world.job_class import JobClass
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.stream import exit_code_of
from tests.api.desk import StageDesk
from tests.build import NOW, a_job, a_node, a_policy, a_queue, a_world, an_amount, an_environment
from tests.core.stage import Stage, rule

# ---- lists


def ids_of(answer: dict[str, Any]) -> list[str]:
    return [row["jobId"] for row in answer["jobSummaryList"]]


def test_a_page_looks_at_no_more_jobs_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of many are found without a look at the others, wherever the page begins."""
    desk = StageDesk(Stage(a_world(*(a_job(f"job-{number:03d}") for number in range(100)))))
    looks: list[str] = []
    matches = job_reads.matches
    monkeypatch.setattr(
        job_reads, "matches", lambda job, query: looks.append(job.job_id) or matches(job, query)
    )
    asked = {"jobQueue": "queue", "jobStatus": "RUNNABLE", "maxResults": 10}
    first = desk.ask_for("ListJobs", **asked)
    second = desk.ask_for("ListJobs", **asked, nextToken=first["nextToken"])
    newest = [f"job-{number:03d}" for number in range(99, 79, -1)]
    assert ids_of(first) + ids_of(second) == newest
    assert len(looks) == 22, "each page looks at one more, to know whether there is a next one"


def test_running_jobs_are_found_by_their_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    running, other = a_job("running"), a_job("other", queue="second")
    world = a_world(a_node("n1"), *(a_job() for _ in range(50)))
    world.with_running(running, "n1").with_running(other, "n1")
    looks: list[str] = []
    matches = job_reads.matches
    monkeypatch.setattr(
        job_reads, "matches", lambda job, query: looks.append(job.job_id) or matches(job, query)
    )
    assert ids_of(StageDesk(Stage(world)).ask_for("ListJobs", jobQueue="queue")) == ["running"]
    assert set(looks) == {"running", "other"}


def test_who_looks_for_few_among_many_lets_others_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 a name that nobody has 2 jobs end while they are looked at 3 somebody else got turns meanwhile."""
    monkeypatch.setattr(job_reads, "LOOKED_AT_ONCE", 10)
    stage = Stage(a_world(*(a_job(f"job-{number:03d}") for number in range(100))))
    desk = StageDesk(stage)
    turns: list[int] = []

    async def others() -> None:
        while True:
            turns.append(len(turns))
            stage.cancel(f"job-{len(turns):03d}")
            await asyncio.sleep(0)

    async def both() -> dict[str, Any]:
        beat = asyncio.ensure_future(others())
        asked = {"name": "JOB_NAME", "values": ["job-000"]}
        answer = await desk.answer("ListJobs", jobQueue="queue", filters=[asked])
        beat.cancel()
        return answer

    assert ids_of(asyncio.run(both())) == ["job-000"]
    assert len(turns) >= 8


# ---- children of arrays that were stopped


def told(desk: StageDesk, *job_ids: str) -> list[tuple[Any, ...]]:
    """Status, reason, isCancelled and isTerminated of each."""
    return [
        (job["status"], job.get("statusReason"), job["isCancelled"], job["isTerminated"])
        for job in desk.described(*job_ids)
    ]


EXITED = "Essential container in task exited"


def an_array_under_way() -> Stage:
    """0 has succeeded, 1 has failed, 2 failed and waits to be tried again, 3 runs, 4 has never run."""
    stage = Stage(a_world(a_node("n1", allocatable=an_amount(4, 16_384, pods=9))))
    give_up = rule(RetryAction.EXIT, exit_code="2")
    retry = RetryStrategy(attempts=2, evaluate_on_exit=(give_up,))
    stage.submit("array", size=5, retry=retry)
    stage.run()
    stage.step(NodeClosed(node_id=NodeId("n1"), reason="cordoned", at=stage.now))
    for index, exit_code in enumerate((0, 2, 1)):
        stage.end("array", index, exit_code=exit_code)
    return stage


def test_only_children_that_a_cancel_found_waiting_are_cancelled() -> None:
    stage = an_array_under_way()
    stage.cancel("array", reason="not today")
    desk = StageDesk(stage)
    children = [f"array:{index}" for index in range(5)]
    before = told(desk, *children)
    assert before == [
        ("SUCCEEDED", EXITED, False, False),
        ("FAILED", EXITED, False, False),
        ("FAILED", "not today", True, False),
        ("RUNNING", None, False, False),
        ("FAILED", "not today", True, False),
    ]
    stage.end("array", 3, exit_code=1)
    assert told(desk, *children) == [*before[:3], ("FAILED", EXITED, False, False), before[4]]
    assert told(desk, "array") == [("FAILED", "not today", True, False)]
    rows = desk.ask_for("ListJobs", arrayJobId="array", jobStatus="FAILED")["jobSummaryList"]
    assert [row.get("isCancelled", False) for row in rows] == [False, True, False, True]


def test_children_that_a_terminate_found_waiting_or_ended_are_terminated() -> None:
    stage = an_array_under_way()
    stage.terminate("array", reason="enough")
    stage.end("array", 3, exit_code=143)
    assert told(StageDesk(stage), *(f"array:{index}" for index in range(5))) == [
        ("SUCCEEDED", EXITED, False, False),
        ("FAILED", EXITED, False, False),
        ("FAILED", "enough", False, True),
        ("FAILED", "enough", False, True),
        ("FAILED", "enough", False, True),
    ]


def test_a_later_stop_changes_nothing_of_children_that_have_ended() -> None:
    stage = an_array_under_way()
    stage.cancel("array", reason="first")
    desk = StageDesk(stage)
    ended = [f"array:{index}" for index in (0, 1, 2, 4)]
    before = told(desk, *ended)
    stage.terminate("array", reason="second")
    assert told(desk, *ended) == before
    stage.end("array", 3, exit_code=143)
    assert told(desk, *ended) == before
    assert told(desk, "array:3", "array") == [
        ("FAILED", "second", False, True),
        ("FAILED", "second", True, True),
    ]


def test_a_single_child_says_how_it_was_stopped() -> None:
    stage = an_array_under_way()
    stage.terminate("array", 2, reason="two")
    stage.terminate("array", 3, reason="three")
    stage.cancel("array", 4, reason="four")
    desk = StageDesk(stage)
    children = ("array:2", "array:3", "array:4")
    two, four = ("FAILED", "two", False, True), ("FAILED", "four", True, False)
    assert told(desk, *children) == [two, ("RUNNING", None, False, True), four]
    stage.end("array", 3, exit_code=143)
    assert told(desk, *children) == [two, ("FAILED", "three", False, True), four]


def test_children_that_were_stopped_before_their_way_was_kept_count_as_cancelled() -> None:
    stage = an_array_under_way()
    stage.cancel("array", 4, reason="four")
    stage.job("array").cancelled_children = ranges.EMPTY
    assert told(StageDesk(stage), "array:4") == [("FAILED", "four", True, False)]


# ---- the head of a queue


def front(desk: StageDesk, queue: str) -> list[str]:
    """Names of jobs as a snapshot has them."""
    jobs = desk.ask_for("GetJobQueueSnapshot", jobQueue=queue)["frontOfQueue"]["jobs"]
    return [row["jobArn"].rpartition("/")[2] for row in jobs]


def test_a_snapshot_of_shares_has_them_by_weight_and_not_by_age() -> None:
    """A hundred and twenty jobs of a backfill came first; five of today go ten vCPUs for one."""
    world = a_world(a_policy(today=0.1, backfill=1.0), a_queue("fair", policy="fair"))
    for share, number in (("backfill", 120), ("today", 5)):
        world.with_(*(a_job(f"{share}-{n}", queue="fair", share=share) for n in range(number)))
    found = front(StageDesk(Stage(world)), "fair")
    assert len(found) == 100
    assert [name for name in found[:6] if name.startswith("today")] == [
        f"today-{n}" for n in range(5)
    ]
    assert [name for name in found if name.startswith("backfill")] == [
        f"backfill-{n}" for n in range(95)
    ]


def test_a_snapshot_of_a_first_in_first_out_queue_is_by_age_whatever_the_priorities() -> None:
    world = a_world(a_job("old"), a_job("middle", size=2), a_job("young", priority=500))
    assert front(StageDesk(Stage(world)), "queue") == ["old", "middle:0", "middle:1", "young"]


def test_a_snapshot_counts_shares_that_use_something_now() -> None:
    world = a_world(a_node("n1"), a_policy(), a_queue("fair", policy="fair"))
    world.with_running(a_job("one", queue="fair", share="now", vcpus=2), "n1")
    world.with_(ShareUsage(queue="fair", share="once", updated_at=NOW))
    usage = StageDesk(Stage(world)).ask_for("GetJobQueueSnapshot", jobQueue="fair")[
        "queueUtilization"
    ]
    assert usage["totalCapacityUsage"] == [{"capacityUnit": "cpu", "quantity": 2.0}]
    assert usage["fairshareUtilization"] == {
        "activeShareCount": 1,
        "topCapacityUtilization": [
            {
                "shareIdentifier": "now",
                "capacityUsage": [{"capacityUnit": "cpu", "quantity": 2.0}],
            }
        ],
    }


# ---- jobs that are stuck


def test_a_runnable_job_that_is_stuck_says_so_and_one_that_waits_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each class is looked into once, however many of its jobs are asked for."""
    world = a_world(an_environment("off", state="DISABLED"), a_queue("closed", "off"))
    world.with_(a_job("waits"), *(a_job(f"stuck-{n}", queue="closed") for n in range(5)))
    world.with_(a_job("array", queue="closed", size=3))
    desk = StageDesk(Stage(world))
    looked_into: list[JobClass] = []
    why_stuck = job_reads.why_stuck

    def counting(world: World, job_class: JobClass, now: int) -> str | None:
        looked_into.append(job_class)
        return why_stuck(world, job_class, now)

    monkeypatch.setattr(job_reads, "why_stuck", counting)
    jobs = desk.described("waits", "array", "array:1", *(f"stuck-{n}" for n in range(5)))
    assert "statusReason" not in jobs[0]
    assert "statusReason" not in jobs[1], "an array is PENDING, its children are stuck"
    text = "ACTION_REQUIRED - Compute environment off is DISABLED: nothing new is placed there."
    assert {job["statusReason"] for job in jobs[2:]} == {text}
    assert len(looked_into) == 2
    rows = desk.ask_for("ListJobs", jobQueue="closed", jobStatus="RUNNABLE")["jobSummaryList"]
    assert {row["statusReason"] for row in rows} == {text}


# ---- pods of several containers


def a_pod_of_two(namespace: str | None = None) -> bytes:
    pod: dict[str, Any] = {
        "containers": [{"image": "m"}, {"name": "sidecar", "image": "s"}],
        "initContainers": [{"name": "init", "image": "i"}],
    }
    if namespace:
        pod["metadata"] = {"namespace": namespace}
    return msgspec.json.encode(pod)


def codes(job: dict[str, Any]) -> dict[str, int | None]:
    """Exit codes of the last attempt, by container; the same as podProperties tell them."""
    attempt, pod = job["eksAttempts"][-1], job["eksProperties"]["podProperties"]
    found = {
        row["name"]: row.get("exitCode")
        for row in attempt["containers"] + attempt["initContainers"]
    }
    assert found == {
        row.get("name", "Default"): row.get("exitCode")
        for row in pod["containers"] + pod["initContainers"]
    }
    return found


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ({"exit_code": 0}, {"Default": 0, "sidecar": 0, "init": 0}),
        ({"exit_code": 3, "container": "default"}, {"Default": 3, "sidecar": None, "init": None}),
        ({"exit_code": 3, "container": "sidecar"}, {"Default": None, "sidecar": 3, "init": None}),
        ({"exit_code": 3, "container": "init"}, {"Default": None, "sidecar": None, "init": 3}),
        ({"exit_code": 3, "container": "mesh"}, {"Default": None, "sidecar": None, "init": None}),
        ({"exit_code": 3}, {"Default": None, "sidecar": None, "init": None}),
    ],
)
def test_an_exit_code_is_that_of_the_container_that_failed(
    end: dict[str, Any], told: dict[str, int | None]
) -> None:
    stage = Stage(a_world(a_node("n1")))
    stage.submit("a", pod=a_pod_of_two())
    stage.run()
    stage.end("a", **end)
    (job,) = StageDesk(stage).described("a")
    assert codes(job) == told
    assert job["container"]["exitCode"] == end["exit_code"], "that of the pod, for clients of ECS"
    known = [code for code in told.values() if code is not None]
    assert exit_code_of(job) == (known[0] if known else None)


def test_an_attempt_names_the_namespace_that_its_pod_ran_in() -> None:
    stage = Stage(a_world(a_node("n1")))
    for job_id, namespace in (("its-own", "team-a"), ("of-the-environment", None)):
        stage.submit(job_id, pod=a_pod_of_two(namespace))
        stage.run()
        stage.end(job_id)
    found = [
        job["eksAttempts"][0]["podNamespace"]
        for job in StageDesk(stage).described("its-own", "of-the-environment")
    ]
    assert found == ["team-a", "batch"]
