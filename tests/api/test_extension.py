"""What AWS Batch does not have: events as they happen, a job's story, its output, and why it waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.api.asking import Raw
from tests.service.running import RunningService, a_definition

Run = Callable[..., str]


@pytest.fixture
def run(batch: Any, queue: str) -> Run:
    """Submit a shell line."""

    def submit(line: str, **fields: Any) -> str:
        definition = a_definition(batch, "sh", "-c", line)
        made = batch.submit_job(jobName="job", jobQueue=queue, jobDefinition=definition, **fields)
        return str(made["jobId"])

    return submit


def test_a_story_tells_every_step_of_a_job_with_its_reasons(
    service: RunningService, run: Run
) -> None:
    job_id = run("exit 3", retryStrategy={"attempts": 2})
    service.wait_for_ends({job_id})
    found = service.get(f"/v1/eksbatch/jobs/{job_id}")
    statuses = [event["status"] for event in found["story"]]
    assert statuses == ["RUNNABLE", *["STARTING", "RUNNING"], "RUNNABLE", *["STARTING", "RUNNING"], "FAILED"]  # fmt: skip
    assert found["story"][-1]["exitCode"] == 3
    assert [attempt["exitCode"] for attempt in found["attempts"]] == [3, 3]
    assert [attempt["attempt"] for attempt in found["attempts"]] == [1, 2]
    assert {attempt["computeEnvironment"] for attempt in found["attempts"]} == {"on-demand"}
    assert found["job"]["jobId"] == job_id
    assert found["airflow"] is None


def an_array(batch: Any, queue: str, size: int) -> str:
    made = batch.submit_job(
        jobName="wide",
        jobQueue=queue,
        jobDefinition=a_definition(batch, "true"),
        arrayProperties={"size": size},
    )
    return str(made["jobId"])


def test_a_child_has_a_story_of_its_own_however_large_its_array(
    service: RunningService, batch: Any, idle_queue: str
) -> None:
    """More events than are read at once lie before those of the last child."""
    array = an_array(batch, idle_queue, 1_200)
    for start in range(0, 1_200, 50):
        jobs = [f"{array}:{index}" for index in range(start, start + 50)]
        assert batch.cancel_jobs(jobs=jobs, reason=f"from {start}")["errors"] == []
    story = service.get(f"/v1/eksbatch/jobs/{array}:1199")["story"]
    assert [(event["status"], event["statusReason"]) for event in story] == [
        ("FAILED", "from 1150")
    ]


def test_output_is_read_whole_from_an_offset_and_from_its_end(
    service: RunningService, raw: Raw, run: Run
) -> None:
    job_id = run("for i in 1 2 3 4; do echo line $i; done; echo oops >&2; exit 1")
    service.wait_for_ends({job_id})
    path = f"/v1/eksbatch/jobs/{job_id}/log"
    whole = raw("GET", path)
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.body.startswith(b"line 1\nline 2\n")
    assert b"oops" in whole.body
    end = int(whole.headers["x-eksbatch-next-offset"])
    assert end == len(whole.body)
    assert whole.headers["x-eksbatch-attempt"] == "1"
    assert raw("GET", f"{path}?offset=7").body == whole.body[7:]
    assert raw("GET", f"{path}?offset={end}").body == b""
    assert raw("GET", f"{path}?tail=1").body == whole.body.splitlines(keepends=True)[-1]
    assert raw("GET", f"{path}?attempt=1").body == whole.body
    assert raw("GET", f"{path}?attempt=2").status == 404
    for bad in ("offset=x", "tail=1.5", "attempt=--1", "offset=" + "9" * 30):
        assert raw("GET", f"{path}?{bad}").status == 400


def test_output_is_followed_to_the_end_of_the_job(
    service: RunningService, raw: Raw, run: Run
) -> None:
    job_id = run("for i in 1 2 3; do echo $i; sleep 0.2; done")
    assert raw("GET", f"/v1/eksbatch/jobs/{job_id}/log?follow=1").body == b"1\n2\n3\n"


def test_output_of_an_array_is_asked_child_by_child(
    service: RunningService, raw: Raw, run: Run
) -> None:
    array = run("echo I am $AWS_BATCH_JOB_ARRAY_INDEX", arrayProperties={"size": 2})
    service.wait_for_ends({array})
    assert raw("GET", f"/v1/eksbatch/jobs/{array}:1/log").body == b"I am 1\n"
    refused = raw("GET", f"/v1/eksbatch/jobs/{array}/log")
    assert refused.status == 400
    assert f"{array}:0" in refused.message


def test_why_a_job_waits_is_said_in_sentences(
    service: RunningService, batch: Any, idle_queue: str, run: Run
) -> None:
    made = batch.submit_job(
        jobName="x", jobQueue=idle_queue, jobDefinition=a_definition(batch, "true")
    )
    found = service.get(f"/v1/eksbatch/jobs/{made['jobId']}/explain")
    assert found["status"] == "RUNNABLE"
    assert any("DISABLED" in sentence for sentence in found["sentences"]), found
    batch.cancel_job(jobId=made["jobId"], reason="enough of it")
    found = service.get(f"/v1/eksbatch/jobs/{made['jobId']}/explain")
    assert found["sentences"] == ["It has ended as FAILED: enough of it."]
    done = run("true")
    service.wait_for_ends({done})
    found = service.get(f"/v1/eksbatch/jobs/{done}/explain")
    assert found["sentences"][0].startswith("It has ended as SUCCEEDED")


def test_a_child_of_an_array_is_told_its_own_place(
    service: RunningService, batch: Any, idle_queue: str
) -> None:
    made = an_array(batch, idle_queue, 3)
    sentences = service.get(f"/v1/eksbatch/jobs/{made}:2/explain")["sentences"]
    assert "2 runnable jobs are older" in " ".join(sentences)
    assert "children" not in " ".join(sentences)
    batch.terminate_job(jobId=made, reason="enough of it")


def test_events_go_on_after_a_cursor_without_a_gap(service: RunningService, run: Run) -> None:
    first = run("true")
    service.wait_for_ends({first})
    last = max(e["seq"] for e in service.get(f"/v1/eksbatch/jobs/{first}")["story"])
    second = run("true")
    seen = []
    for event in service.events(cursor=last):
        seen.append(event)
        if event["jobId"] == second and event["status"] == "SUCCEEDED":
            break
    assert [event["seq"] for event in seen] == list(range(last + 1, last + 1 + len(seen)))


@pytest.mark.parametrize("path", ["", "/log", "/explain", "/log?follow=1"])
@pytest.mark.parametrize("job_id", ["none", "none:1", "x" * 3000, "..%2f..%2fetc"])
def test_a_job_that_does_not_exist_is_a_404(raw: Raw, job_id: str, path: str) -> None:
    reply = raw("GET", f"/v1/eksbatch/jobs/{job_id}{path}")
    assert reply.status == 404
    assert reply.message


def test_a_browser_is_led_from_the_api_to_the_page_of_a_job(raw: Raw) -> None:
    job_id = "some-job"
    reply = raw("GET", f"/v1/eksbatch/jobs/{job_id}", headers={"accept": "text/html,*/*"})
    assert (reply.status, reply.headers["location"]) == (303, f"/job/{job_id}")


def test_a_cursor_that_is_none_is_refused(raw: Raw) -> None:
    assert raw("GET", "/v1/eksbatch/events?cursor=now").status == 400


def test_the_embedded_cloud_takes_orders_and_refuses_nonsense(raw: Raw) -> None:
    for body in (b"{}", b'{"x": 1}', b"[", b'{"refuse": 3}', b'{"reclaim": {}}'):
        reply = raw("POST", "/v1/eksbatch/cloud", body)
        assert reply.status in (200, 400), reply.body


def test_totals_count_what_was_done(service: RunningService, run: Run) -> None:
    before = service.get("/v1/eksbatch/summary")
    ids = {run("true"), run("false")}
    service.wait_for_ends(ids)
    after = service.get("/v1/eksbatch/summary")
    # Jobs of other tests may end meanwhile.
    assert after["jobs"]["submitted"] >= before["jobs"]["submitted"] + 2
    assert after["jobs"]["SUCCEEDED"] > before["jobs"]["SUCCEEDED"]
    assert after["jobs"]["FAILED"] > before["jobs"]["FAILED"]
    assert after["attempts"] >= before["attempts"] + 2


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ("nothing", 404, "View nothing does not exist"),
        ("jobs?status=LOST", 400, "status must be one of SUBMITTED"),
        ("job", 400, "needs a job_id"),
        ("job?job_id=none", 404, "Job none does not exist"),
        ("costs?by=mood&name=x", 400, "not by mood"),
    ],
)
def test_views_for_pages_that_are_made_elsewhere(
    raw: Raw, asked: str, status: int, says: str
) -> None:
    """Airflow's API server makes them of the same rows."""
    for name in ("summary", "queues", "nodes", "classes", "jobs", "costs?by=dag"):
        assert raw("GET", f"/v1/eksbatch/views/{name}").status == 200, name
    reply = raw("GET", f"/v1/eksbatch/views/{asked}")
    assert reply.status == status
    assert says in reply.message
