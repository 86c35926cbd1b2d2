"""Jobs by boto3, unchanged: submit, describe, list, cancel, terminate, as AWS has it for EKS."""

from __future__ import annotations

import itertools
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.api.asking import Raw, refusal
from tests.service.running import RunningService, a_definition, submit

UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
ACCOUNT = "arn:aws:batch:us-east-1:000000000000"
Unique = Callable[[str], str]


def run(batch: Any, queue: str, definition: str, name: str = "job", **fields: Any) -> str:
    """Submit to a queue without shares."""
    made = batch.submit_job(jobName=name, jobQueue=queue, jobDefinition=definition, **fields)
    return str(made["jobId"])


def described(batch: Any, job_id: str) -> dict[str, Any]:
    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    return dict(job)


def listed(batch: Any, **asked: Any) -> list[str]:
    """Ids of all pages, in order."""
    pages = batch.get_paginator("list_jobs").paginate(**asked)
    return [row["jobId"] for page in pages for row in page["jobSummaryList"]]


# ---- submit and describe


def test_a_job_has_an_id_an_arn_and_the_name_it_was_given(batch: Any, queue: str) -> None:
    made = batch.submit_job(
        jobName="night_run-1", jobQueue=queue, jobDefinition=a_definition(batch, "true")
    )
    assert UUID.match(made["jobId"])
    assert made["jobArn"] == f"{ACCOUNT}:job/{made['jobId']}"
    assert made["jobName"] == "night_run-1"


def test_queue_and_definition_are_named_by_name_revision_or_arn(
    batch: Any, queue: str, unique: Unique
) -> None:
    name = unique("named")
    first = a_definition(batch, "echo", "one", name=name)
    a_definition(batch, "echo", "two", name=name)
    arn = f"{ACCOUNT}:job-definition/{name}"
    for given, revision in ((name, 2), (arn, 2), (f"{name}:1", 1), (first, 1)):
        job = described(batch, run(batch, f"{ACCOUNT}:job-queue/{queue}", given))
        assert job["jobDefinition"] == f"{arn}:{revision}"
        assert job["jobQueue"] == f"{ACCOUNT}:job-queue/{queue}"


def test_a_finished_job_is_described_as_aws_describes_eks_jobs(
    service: RunningService, batch: Any, queue: str
) -> None:
    job_id = run(
        batch,
        queue,
        a_definition(batch, "sh", "-c", "exit 3"),
        tags={"team": "bio"},
        timeout={"attemptDurationSeconds": 120},
    )
    service.wait_for_ends({job_id})
    job = described(batch, job_id)
    assert job["status"] == "FAILED"
    assert job["attempts"] == []
    assert job["createdAt"] <= job["startedAt"] <= job["stoppedAt"]
    assert job["retryStrategy"] == {"attempts": 1, "evaluateOnExit": []}
    assert job["timeout"] == {"attemptDurationSeconds": 120}
    assert job["tags"] == {"team": "bio"}
    pod = job["eksProperties"]["podProperties"]
    (container,) = pod["containers"]
    assert (container["image"], container["exitCode"]) == ("busybox", 3)
    (attempt,) = job["eksAttempts"]
    assert attempt["podName"] == pod["podName"]
    assert attempt["nodeName"] == pod["nodeName"]
    assert attempt["podNamespace"] == "eksbatch-jobs"
    assert attempt["eksClusterArn"].endswith(":cluster/local")
    assert attempt["startedAt"] <= attempt["stoppedAt"]
    assert [c["exitCode"] for c in attempt["containers"]] == [3]
    assert attempt["statusReason"] == job["statusReason"]
    assert (job["isCancelled"], job["isTerminated"]) == (False, False)


def test_every_attempt_of_a_retried_job_is_told(
    service: RunningService, batch: Any, queue: str
) -> None:
    rules = [{"onExitCode": "7", "action": "retry"}, {"onReason": "*", "action": "EXIT"}]
    definition = a_definition(batch, "sh", "-c", "exit 7")
    strategy = {"attempts": 3, "evaluateOnExit": rules}
    job_id = run(batch, queue, definition, retryStrategy=strategy)
    service.wait_for_ends({job_id})
    job = described(batch, job_id)
    assert len(job["eksAttempts"]) == 3
    assert len({attempt["podName"] for attempt in job["eksAttempts"]}) == 3
    last = service.get(f"/v1/eksbatch/jobs/{job_id}")["story"][-1]
    assert (last["attempt"], last["attempts"]) == (3, 3)
    assert [rule["action"] for rule in job["retryStrategy"]["evaluateOnExit"]] == ["retry", "exit"]


def test_parameters_and_overrides_decide_what_runs(
    service: RunningService, batch: Any, queue: str, unique: Unique
) -> None:
    name = unique("greets")
    batch.register_job_definition(
        jobDefinitionName=name,
        type="container",
        parameters={"who": "world", "how": "hello"},
        eksProperties={
            "podProperties": {
                "containers": [
                    {
                        "name": "main",
                        "image": "busybox",
                        "command": ["sh", "-c", "echo Ref::how Ref::who $EXTRA $KEPT"],
                        "env": [
                            {"name": "EXTRA", "value": "plain"},
                            {"name": "KEPT", "value": "kept"},
                        ],
                        "resources": {"limits": {"cpu": "0.25", "memory": "128Mi"}},
                    }
                ]
            }
        },
    )
    changed = {"name": "main", "env": [{"name": "EXTRA", "value": "more"}]}
    job_id = run(
        batch,
        queue,
        name,
        parameters={"who": "you"},
        eksPropertiesOverride={"podProperties": {"containers": [changed]}},
    )
    service.wait_for_ends({job_id})
    assert service.get(f"/v1/eksbatch/jobs/{job_id}/log") == "hello you more kept\n"
    assert described(batch, job_id)["parameters"] == {"who": "you", "how": "hello"}


def test_overrides_made_for_ecs_reach_the_first_container(
    service: RunningService, batch: Any, queue: str
) -> None:
    job_id = run(
        batch,
        queue,
        a_definition(batch, "false"),
        containerOverrides={
            "command": ["sh", "-c", "echo $A"],
            "environment": [{"name": "A", "value": "from ecs"}],
            "resourceRequirements": [
                {"type": "VCPU", "value": "0.5"},
                {"type": "MEMORY", "value": "256"},
            ],
        },
    )
    service.wait_for_ends({job_id})
    assert service.get(f"/v1/eksbatch/jobs/{job_id}/log") == "from ecs\n"
    (container,) = described(batch, job_id)["eksProperties"]["podProperties"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "0.5", "memory": "256Mi"}


def test_empty_members_count_as_absent_because_clients_send_them(batch: Any, queue: str) -> None:
    definition = a_definition(batch, "true")
    assert run(batch, queue, definition, parameters={}, tags={}, containerOverrides={})


def test_a_job_that_depends_on_another_waits_pending_and_fails_with_it(
    service: RunningService, batch: Any, queue: str, idle_queue: str
) -> None:
    definition = a_definition(batch, "true")
    first = run(batch, idle_queue, definition)
    second = run(batch, queue, definition, dependsOn=[{"jobId": first}])
    third = run(batch, queue, definition, dependsOn=[{"jobId": f"{ACCOUNT}:job/{second}"}])
    assert described(batch, second)["status"] == "PENDING"
    assert described(batch, second)["dependsOn"] == [{"jobId": first}]
    batch.cancel_job(jobId=first, reason="not today")
    service.wait_for_ends({second, third})
    assert described(batch, first)["statusReason"] == "not today"
    assert described(batch, first)["isCancelled"] is True
    assert described(batch, third)["statusReason"] == "Dependent Job failed"


def test_unknown_jobs_are_left_out_of_a_description(batch: Any) -> None:
    """Airflow's Batch executor asks for an id of 32 times `a` to see whether the service is well."""
    assert batch.describe_jobs(jobs=["a" * 32, "", "no such job", "x:1", "ü"])["jobs"] == []


def test_a_description_takes_a_hundred_jobs_and_no_more(batch: Any) -> None:
    assert "100" in refusal(batch.describe_jobs, jobs=["x"] * 101)


# ---- the same submit twice


def test_a_submit_that_the_sdk_repeats_is_one_job(batch: Any, raw: Raw, queue: str) -> None:
    """AWS runs it twice when the answer was lost; the SDK keeps its invocation id over tries."""
    given = {"jobName": "once", "jobQueue": queue, "jobDefinition": a_definition(batch, "true")}
    invocation = {"amz-sdk-invocation-id": str(uuid.uuid4())}
    body = str(given).replace("'", '"').encode()
    first, second = (raw("POST", "/v1/submitjob", body, invocation) for _ in range(2))
    other = raw("POST", "/v1/submitjob", body, {"amz-sdk-invocation-id": str(uuid.uuid4())})
    assert first.status == second.status == other.status == 200
    assert first.body == second.body
    assert first.body != other.body


def test_two_calls_are_two_jobs(batch: Any, queue: str) -> None:
    definition = a_definition(batch, "true")
    assert run(batch, queue, definition) != run(batch, queue, definition)


def test_repeats_at_the_same_moment_are_one_job(batch: Any, raw: Raw, queue: str) -> None:
    given = {"jobName": "once", "jobQueue": queue, "jobDefinition": a_definition(batch, "true")}
    headers = {"amz-sdk-invocation-id": str(uuid.uuid4())}
    body = str(given).replace("'", '"').encode()
    answers: list[bytes] = []
    callers = [
        threading.Thread(
            target=lambda: answers.append(raw("POST", "/v1/submitjob", body, headers).body)
        )
        for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1


def test_a_full_inbox_says_429_and_boto3_tries_again_by_itself(
    make_service: Callable[..., RunningService],
) -> None:
    """An inbox of one and ten callers: whoever is told to slow down gets in later."""
    service = make_service("--inbox", "1", "--beat-ms", "50").start()
    batch = service.batch(max_pool_connections=10, retries={"mode": "standard", "max_attempts": 30})
    definition = a_definition(batch, "true")
    accepted: list[str] = []
    tries: list[int] = []

    def submit_one(number: int) -> None:
        made = batch.submit_job(
            jobName=f"job-{number}",
            jobQueue="default",
            jobDefinition=definition,
            shareIdentifier="today",
        )
        accepted.append(made["jobId"])
        tries.append(made["ResponseMetadata"]["RetryAttempts"])

    callers = [threading.Thread(target=submit_one, args=(number,)) for number in range(10)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(set(accepted)) == 10
    assert max(tries) > 0, "nobody was told to slow down"


# ---- arrays


def test_an_array_is_one_job_with_counted_children(
    service: RunningService, batch: Any, queue: str, idle_queue: str
) -> None:
    definition = a_definition(batch, "sh", "-c", "exit $((AWS_BATCH_JOB_ARRAY_INDEX == 2))")
    waiting = run(batch, idle_queue, definition, arrayProperties={"size": 5})
    parent = described(batch, waiting)
    assert parent["status"] == "PENDING"
    assert parent["arrayProperties"]["size"] == 5
    assert parent["arrayProperties"]["statusSummary"]["RUNNABLE"] == 5
    assert len(parent["arrayProperties"]["statusSummary"]) == 7

    array = run(batch, queue, definition, arrayProperties={"size": 5})
    assert service.wait_for_ends({array}) == {array: "FAILED"}
    parent = described(batch, array)
    summary = parent["arrayProperties"]["statusSummary"]
    assert (summary["SUCCEEDED"], summary["FAILED"]) == (4, 1)
    assert parent["statusReason"] == "Array Child Job failed"
    assert "logStreamName" not in parent["container"]
    child = described(batch, f"{array}:2")
    assert child["jobId"] == f"{array}:2"
    assert child["jobArn"] == f"{ACCOUNT}:job/{array}:2"
    assert child["status"] == "FAILED"
    assert child["arrayProperties"] == {"index": 2, "statusSummary": {}}
    assert child["eksProperties"]["podProperties"]["containers"][0]["exitCode"] == 1
    assert "tags" not in child
    assert batch.describe_jobs(jobs=[f"{array}:5"])["jobs"] == []


def test_children_are_listed_by_status_in_the_order_of_their_indices(
    service: RunningService, batch: Any, queue: str
) -> None:
    definition = a_definition(batch, "sh", "-c", "exit $((AWS_BATCH_JOB_ARRAY_INDEX % 2))")
    array = run(batch, queue, definition, arrayProperties={"size": 7})
    service.wait_for_ends({array})
    assert listed(batch, arrayJobId=array) == [], "without a status, RUNNING is meant"
    asked: dict[str, Any] = {"arrayJobId": array, "PaginationConfig": {"PageSize": 2}}
    even = listed(batch, jobStatus="SUCCEEDED", **asked)
    assert even == [f"{array}:{index}" for index in (0, 2, 4, 6)]
    rows = batch.list_jobs(arrayJobId=array, jobStatus="FAILED")["jobSummaryList"]
    assert [row["arrayProperties"]["index"] for row in rows] == [1, 3, 5]
    assert {row["container"]["exitCode"] for row in rows} == {1}


def test_one_child_is_cancelled_and_its_siblings_are_not(
    service: RunningService, batch: Any, idle_queue: str
) -> None:
    array = run(batch, idle_queue, a_definition(batch, "true"), arrayProperties={"size": 3})
    batch.cancel_job(jobId=f"{array}:1", reason="only this")
    child = described(batch, f"{array}:1")
    assert (child["status"], child["statusReason"]) == ("FAILED", "only this")
    assert described(batch, f"{array}:0")["status"] == "RUNNABLE"
    batch.terminate_job(jobId=array, reason="all of it")
    assert service.wait_for_ends({array}) == {array: "FAILED"}
    assert described(batch, array)["isTerminated"] is True


def test_the_second_half_of_an_n_to_n_pair_waits_child_by_child(
    service: RunningService, batch: Any, queue: str
) -> None:
    definition = a_definition(batch, "true")
    first = run(batch, queue, definition, arrayProperties={"size": 3})
    second = run(
        batch,
        queue,
        definition,
        arrayProperties={"size": 3},
        dependsOn=[{"jobId": first, "type": "N_TO_N"}, {"type": "SEQUENTIAL"}],
    )
    assert set(service.wait_for_ends({first, second}).values()) == {"SUCCEEDED"}
    kinds = [entry["type"] for entry in described(batch, second)["dependsOn"]]
    assert sorted(kinds) == ["N_TO_N", "SEQUENTIAL"]


def test_an_array_that_has_ended_is_followed_child_by_child(
    service: RunningService, batch: Any, queue: str
) -> None:
    definition = a_definition(batch, "sh", "-c", "exit $AWS_BATCH_JOB_ARRAY_INDEX")
    first = run(batch, queue, definition, arrayProperties={"size": 2})
    assert service.wait_for_ends({first}) == {first: "FAILED"}
    pairs = [{"jobId": first, "type": "N_TO_N"}]
    second = run(
        batch, queue, a_definition(batch, "true"), arrayProperties={"size": 2}, dependsOn=pairs
    )
    assert service.wait_for_ends({second}) == {second: "FAILED"}
    ends = [described(batch, f"{second}:{index}")["status"] for index in range(2)]
    assert ends == ["SUCCEEDED", "FAILED"]
    with pytest.raises(ClientError, match="one size"):
        run(batch, queue, definition, arrayProperties={"size": 3}, dependsOn=pairs)


def test_an_array_that_goes_in_sequence_waits_for_the_job_it_names_beside(
    batch: Any, queue: str, idle_queue: str
) -> None:
    """AWS's model lets SEQUENTIAL have a jobId and says nothing of it; who writes one means it."""
    definition = a_definition(batch, "true")
    first = run(batch, idle_queue, definition)
    depends_on = [{"jobId": first, "type": "SEQUENTIAL"}]
    array = run(batch, queue, definition, arrayProperties={"size": 3}, dependsOn=depends_on)
    job = described(batch, array)
    assert job["arrayProperties"]["statusSummary"]["PENDING"] == 3
    assert job["dependsOn"] == [{"type": "SEQUENTIAL"}, {"jobId": first}]
    unknown = {"jobId": "nonsense", "type": "SEQUENTIAL"}
    given = {"jobName": "x", "jobQueue": queue, "jobDefinition": definition}
    message = refusal(batch.submit_job, **given, arrayProperties={"size": 3}, dependsOn=[unknown])
    assert "nonsense, which does not exist" in message


# ---- cancel and terminate


def test_cancel_leaves_a_running_job_alone_and_terminate_ends_it(
    service: RunningService, batch: Any, queue: str
) -> None:
    job_id = run(batch, queue, a_definition(batch, "sleep", "600"))
    service.wait_for(lambda e: e["jobId"] == job_id and e["status"] == "RUNNING")
    batch.cancel_job(jobId=job_id, reason="too late")
    assert described(batch, job_id)["status"] == "RUNNING"
    assert described(batch, job_id)["isCancelled"] is False
    batch.terminate_job(jobId=job_id, reason="enough")
    assert service.wait_for_ends({job_id}) == {job_id: "FAILED"}
    job = described(batch, job_id)
    assert job["isTerminated"] is True
    assert job["statusReason"] == "enough"
    batch.terminate_job(jobId=job_id, reason="again is harmless")
    assert described(batch, job_id)["statusReason"] == "enough"


def test_many_jobs_are_cancelled_and_terminated_by_one_call(
    service: RunningService, batch: Any, idle_queue: str
) -> None:
    definition = a_definition(batch, "true")
    first = [run(batch, idle_queue, definition) for _ in range(3)]
    second = [run(batch, idle_queue, definition) for _ in range(2)]
    unknown = str(uuid.uuid4())
    answer = batch.cancel_jobs(jobs=[*first, unknown], reason="all")
    assert answer["successful"] == [*first, unknown]
    assert answer["errors"] == []
    answer = batch.terminate_jobs(jobs=[f"{ACCOUNT}:job/{job_id}" for job_id in second], reason="x")
    assert len(answer["successful"]) == 2
    ends = service.wait_for_ends({*first, *second})
    assert set(ends.values()) == {"FAILED"}
    assert "50" in refusal(batch.cancel_jobs, jobs=["x"] * 51, reason="too many")


def test_ids_that_name_no_job_are_told_and_do_not_hold_up_the_others(
    batch: Any, idle_queue: str
) -> None:
    job_id = run(batch, idle_queue, a_definition(batch, "true"))
    answer = batch.cancel_jobs(jobs=["", job_id], reason="all")
    assert answer["successful"] == [job_id]
    ((job, code),) = [(error["job"], error["code"]) for error in answer["errors"]]
    assert (job, code) == ("", "ClientException")
    assert described(batch, job_id)["status"] == "FAILED"


@pytest.mark.parametrize(
    "child", ["None", "", "-1", "1:1", "01", " 1", "\u0661", "3", "1000000", "9" * 5000, "null"]
)
def test_an_id_that_names_no_child_ends_nothing(batch: Any, idle_queue: str, child: str) -> None:
    """A script that forgot which child it meant must not end all the others."""
    definition = a_definition(batch, "true")
    array = run(batch, idle_queue, definition, arrayProperties={"size": 3})
    plain = run(batch, idle_queue, definition)
    for parent in (array, plain):
        wrong = f"{parent}:{child}"
        assert batch.describe_jobs(jobs=[wrong, f"{ACCOUNT}:job/{wrong}"])["jobs"] == []
        batch.terminate_job(jobId=wrong, reason="x")
        batch.cancel_job(jobId=f"{ACCOUNT}:job/{wrong}", reason="x")
        assert batch.cancel_jobs(jobs=[wrong], reason="x")["successful"] == [wrong]
    batch.terminate_job(jobId=f"{plain}:0", reason="a plain job has no children")
    assert described(batch, array)["arrayProperties"]["statusSummary"]["RUNNABLE"] == 3
    assert described(batch, plain)["status"] == "RUNNABLE"


# ---- lists


def test_a_list_without_a_status_has_running_jobs_only(
    service: RunningService, batch: Any, queue: str
) -> None:
    running = run(batch, queue, a_definition(batch, "sleep", "600"))
    ended = run(batch, queue, a_definition(batch, "true"))
    service.wait_for(lambda e: e["jobId"] == running and e["status"] == "RUNNING")
    service.wait_for_ends({ended})
    assert listed(batch, jobQueue=queue) == [running]
    assert listed(batch, jobQueue=queue, jobStatus="SUCCEEDED") == [ended]
    batch.terminate_job(jobId=running, reason="done")
    service.wait_for_ends({running})
    row = batch.list_jobs(jobQueue=queue, jobStatus="FAILED")["jobSummaryList"][0]
    assert row["jobId"] == running
    assert row["isTerminated"] is True
    assert row["capacityUsage"] == [{"capacityUnit": "cpu", "quantity": 0.25}]
    assert row["createdAt"] <= row["scheduledAt"] <= row["stoppedAt"]


def test_pages_of_live_and_ended_jobs_are_newest_first_and_whole(
    service: RunningService, batch: Any, queue: str
) -> None:
    definition = a_definition(batch, "true")
    ids = [run(batch, queue, definition, f"page-{number}") for number in range(9)]
    service.wait_for_ends(set(ids))
    pages = batch.get_paginator("list_jobs").paginate(
        jobQueue=queue, jobStatus="SUCCEEDED", PaginationConfig={"PageSize": 4}
    )
    sizes = [len(page["jobSummaryList"]) for page in pages]
    assert sizes == [4, 4, 1]
    asked: dict[str, Any] = {"jobQueue": queue, "PaginationConfig": {"PageSize": 4}}
    assert listed(batch, jobStatus="SUCCEEDED", **asked) == ids[::-1]
    assert listed(batch, filters=[{"name": "JOB_NAME", "values": ["page-*"]}], **asked) == ids[::-1]


def test_filters_find_jobs_of_every_status(
    service: RunningService, batch: Any, queue: str, unique: Unique
) -> None:
    """1 two definitions 2 an ended and a waiting job 3 each filter as AWS says."""
    one, two = unique("one"), unique("two")
    a_definition(batch, "true", name=one)
    a_definition(batch, "true", name=two)
    ended = run(batch, queue, one, "Alpha-1")
    service.wait_for_ends({ended})
    waits = run(batch, queue, one, "never")
    batch.cancel_job(jobId=waits, reason="x")
    live = run(batch, queue, two, "alpha-2")

    def found(name: str, value: str, **more: Any) -> list[str]:
        filters = [{"name": name, "values": [value]}]
        return listed(batch, jobQueue=queue, filters=filters, **more)

    assert found("JOB_NAME", "ALPHA-1") == [ended]
    assert found("JOB_NAME", "alpha-*", jobStatus="RUNNABLE") == [live, ended]
    assert found("JOB_NAME", "alph") == []
    assert found("JOB_NAME", "alpha_1") == [], "an underscore is no wildcard"
    assert found("JOB_DEFINITION", two) == [live]
    assert found("JOB_DEFINITION", f"{one[:-1]}*") == [waits, ended] or one[:-1] == two[:-1]
    assert found("JOB_DEFINITION", f"{ACCOUNT}:job-definition/{one}:1") == [waits, ended]
    assert found("JOB_DEFINITION", one.upper()) == []
    created = described(batch, ended)["createdAt"]
    assert found("BEFORE_CREATED_AT", str(created + 1)) == [ended]
    assert found("AFTER_CREATED_AT", str(created)) == [live, waits]


def test_a_share_is_listed_with_the_status_that_was_asked_for(
    service: RunningService, batch: Any, unique: Unique
) -> None:
    share = unique("s").replace("-", "")
    job_id = submit(batch, a_definition(batch, "true"), shareIdentifier=share)
    service.wait_for_ends({job_id})
    filters = [{"name": "SHARE_IDENTIFIER", "values": [share]}]
    asked: dict[str, Any] = {"jobQueue": "default", "filters": filters}
    assert listed(batch, jobStatus="SUCCEEDED", **asked) == [job_id]
    assert listed(batch, jobStatus="FAILED", **asked) == []
    assert listed(batch, **asked) == []
    (row,) = batch.list_jobs(jobStatus="SUCCEEDED", **asked)["jobSummaryList"]
    assert row["shareIdentifier"] == share


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "exactly one of jobQueue, arrayJobId"),
        ({"jobQueue": "default", "arrayJobId": "x"}, "exactly one of"),
        ({"jobQueue": "nowhere"}, "nowhere does not exist"),
        ({"jobQueue": "default", "jobStatus": "DONE"}, "RUNNABLE"),
        ({"jobQueue": "default", "nextToken": "??"}, "begin without it"),
        ({"jobQueue": "default", "nextToken": "MS45OTk5OTk5OTk5OTk5OTk5OTk5OTk5"}, "begin without"),
        ({"jobQueue": "default", "nextToken": "MS4tMQ"}, "begin without"),
        ({"jobQueue": "default", "filters": [{"name": "COLOR", "values": ["x"]}]}, "JOB_NAME"),
        ({"jobQueue": "default", "filters": [{"name": "JOB_NAME", "values": []}]}, "one value"),
        (
            {"jobQueue": "default", "filters": [{"name": "BEFORE_CREATED_AT", "values": ["noon"]}]},
            "epoch milliseconds",
        ),
        (
            {
                "jobQueue": "default",
                "filters": [
                    {"name": "JOB_NAME", "values": ["a"]},
                    {"name": "JOB_DEFINITION", "values": ["a"]},
                ],
            },
            "one filter",
        ),
    ],
)
def test_a_list_that_cannot_be_says_why(batch: Any, asked: dict[str, Any], words: str) -> None:
    assert words in refusal(batch.list_jobs, **asked)


def test_multi_node_jobs_are_none(batch: Any) -> None:
    assert batch.list_jobs(multiNodeJobId="x")["jobSummaryList"] == []


# ---- the head of a queue


def test_a_snapshot_has_the_waiting_jobs_in_the_order_they_go(batch: Any, idle_queue: str) -> None:
    definition = a_definition(batch, "true")
    ids = [run(batch, idle_queue, definition, f"waits-{number}") for number in range(3)]
    array = run(batch, idle_queue, definition, arrayProperties={"size": 4})
    snapshot = batch.get_job_queue_snapshot(jobQueue=idle_queue)
    front = snapshot["frontOfQueue"]
    assert [row["jobArn"] for row in front["jobs"]] == [
        f"{ACCOUNT}:job/{job_id}" for job_id in [*ids, *(f"{array}:{index}" for index in range(4))]
    ]
    assert all(row["earliestTimeAtPosition"] <= front["lastUpdatedAt"] for row in front["jobs"])
    usage = snapshot["queueUtilization"]["totalCapacityUsage"]
    assert usage == [{"capacityUnit": "cpu", "quantity": 0.0}]
    assert "does not exist" in refusal(batch.get_job_queue_snapshot, jobQueue="nowhere")


def test_a_snapshot_says_which_share_uses_how_much(service: RunningService, batch: Any) -> None:
    job_id = submit(batch, a_definition(batch, "sleep", "600"), shareIdentifier="backfill")
    service.wait_for(lambda e: e["jobId"] == job_id and e["status"] == "RUNNING")
    usage = batch.get_job_queue_snapshot(jobQueue="default")["queueUtilization"]
    shares = {
        row["shareIdentifier"]: row["capacityUsage"][0]["quantity"]
        for row in usage["fairshareUtilization"]["topCapacityUtilization"]
    }
    assert shares["backfill"] >= 0.25
    batch.terminate_job(jobId=job_id, reason="done")
    service.wait_for_ends({job_id})


# ---- what is refused, and what to do about it


def a_rule(**patterns: str) -> dict[str, Any]:
    """retryStrategy with one rule."""
    return {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"action": "EXIT", **patterns}]}}


_deep = [{"jobId": str(uuid.UUID(int=number))} for number in range(21)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"jobQueue": "nowhere"}, "Create it with CreateJobQueue"),
        ({"jobDefinition": "nothing"}, "RegisterJobDefinition"),
        ({"jobDefinition": "nothing:1"}, "RegisterJobDefinition"),
        ({"jobDefinition": "nothing:one"}, "RegisterJobDefinition"),
        ({"jobDefinition": "shell:"}, "RegisterJobDefinition"),
        ({"jobDefinition": "shell:0"}, "RegisterJobDefinition"),
        ({"jobDefinition": "shell:\u0661"}, "RegisterJobDefinition"),
        ({"jobDefinition": "shell:" + "9" * 5000}, "RegisterJobDefinition"),
        ({"jobName": "-begins-badly"}, "jobName must"),
        ({"jobName": "ends-badly\n"}, "jobName must"),
        ({"jobName": "x" * 129}, "jobName must"),
        ({"jobName": ""}, "jobName must"),
        ({"arrayProperties": {"size": 1}}, "2 to 10000"),
        ({"arrayProperties": {"size": 10_001}}, "2 to 10000"),
        ({"dependsOn": _deep}, "at most 20"),
        ({"dependsOn": [{"jobId": "gone"}]}, "gone, which does not exist"),
        ({"dependsOn": [{"type": "SEQUENTIAL"}]}, "arrayProperties.size"),
        ({"dependsOn": [{"type": "LATER", "jobId": "x"}]}, "N_TO_N, SEQUENTIAL"),
        ({"retryStrategy": {"attempts": 11}}, "1 to 10"),
        ({"retryStrategy": {"attempts": 0}}, "1 to 10"),
        ({"retryStrategy": {"evaluateOnExit": [{"action": "RETRY"}]}}, "attempts must be given"),
        (
            {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"action": "RETRY"}] * 6}},
            "at most 5",
        ),
        (
            {"retryStrategy": {"attempts": 2, "evaluateOnExit": [{"action": "AGAIN"}]}},
            "one of EXIT, RETRY",
        ),
        (a_rule(onExitCode="!=0"), "digits, with * at the end or not, not '!=0'"),
        (a_rule(onExitCode="1-9"), "digits"),
        (a_rule(onExitCode="*7"), "digits"),
        (a_rule(onReason="*OOM*"), "one * at its end, not '*OOM*'"),
        (a_rule(onStatusReason="Host*EC2"), "onStatusReason may have one *"),
        (a_rule(onReason="x" * 513), "up to 512 characters, not 513"),
        ({"timeout": {"attemptDurationSeconds": 59}}, "at least 60"),
        ({"tags": {f"key{number}": "x" for number in range(51)}}, "50"),
        ({"tags": {"aws:mine": "x"}}, "aws:"),
        ({"tags": {"key": "x" * 257}}, "256"),
        ({"shareIdentifier": "today"}, "fair share scheduling policy"),
        ({"schedulingPriorityOverride": 1}, "fair share scheduling policy"),
        (
            {"eksPropertiesOverride": {"podProperties": {"containers": [{"name": "other"}]}}},
            "names container other",
        ),
        (
            {
                "eksPropertiesOverride": {
                    "podProperties": {
                        "containers": [{"resources": {"requests": {"cpu": "0.3", "memory": "1Gi"}}}]
                    }
                }
            },
            "cpu must be a multiple of 0.25",
        ),
        (
            {
                "eksPropertiesOverride": {
                    "podProperties": {
                        "containers": [
                            {"resources": {"requests": {"cpu": "9999", "memory": "512Mi"}}}
                        ]
                    }
                }
            },
            "the largest instance of on-demand leaves",
        ),
    ],
)
def test_a_job_that_cannot_be_is_refused_with_what_to_do(
    batch: Any, queue: str, fields: dict[str, Any], words: str
) -> None:
    given = {"jobName": "job", "jobQueue": queue, "jobDefinition": a_definition(batch, "true")}
    assert words in refusal(batch.submit_job, **{**given, **fields})


def test_a_reference_without_a_parameter_is_refused_in_the_words_of_aws(
    batch: Any, queue: str
) -> None:
    definition = a_definition(batch, "echo", "Ref::input-file")
    message = refusal(batch.submit_job, jobName="x", jobQueue=queue, jobDefinition=definition)
    assert message == "Unable to substitute value. No parameter found for reference input-file"


@pytest.mark.parametrize("priority", [-1, 10_000, 2**62])
def test_a_priority_is_one_that_a_definition_may_have(batch: Any, priority: int) -> None:
    given: dict[str, Any] = {"jobName": "x", "jobQueue": "default", "shareIdentifier": "today"}
    message = refusal(
        batch.submit_job,
        jobDefinition=a_definition(batch, "true"),
        schedulingPriorityOverride=priority,
        **given,
    )
    assert "schedulingPriorityOverride must be 0 to 9999" in message


def test_patterns_as_people_write_them_are_taken_and_told_back(batch: Any, idle_queue: str) -> None:
    rules = [
        {"action": "retry", "onStatusReason": "Host EC2 (instance i-*"},
        {"action": "retry", "onReason": "CannotPullContainerError: pull image manifest/x, again"},
        {"action": "exit", "onExitCode": "13*", "onReason": "*"},
        {"action": "exit", "onExitCode": "137"},
        {"action": "exit", "onExitCode": "*"},
    ]
    strategy = {"attempts": 2, "evaluateOnExit": rules}
    job_id = run(batch, idle_queue, a_definition(batch, "true"), retryStrategy=strategy)
    assert described(batch, job_id)["retryStrategy"] == strategy


def test_a_queue_with_shares_wants_one_and_a_disabled_queue_takes_nothing(
    batch: Any, idle_queue: str
) -> None:
    definition = a_definition(batch, "true")
    message = refusal(batch.submit_job, jobName="x", jobQueue="default", jobDefinition=definition)
    assert "shareIdentifier is required" in message
    batch.update_job_queue(jobQueue=idle_queue, state="DISABLED")
    message = refusal(batch.submit_job, jobName="x", jobQueue=idle_queue, jobDefinition=definition)
    assert "is DISABLED and takes no new jobs" in message
    assert "UpdateJobQueue" in message


@pytest.mark.parametrize("stop", ["cancel_job", "terminate_job"])
def test_a_stop_wants_a_job_and_a_reason_of_reasonable_length(batch: Any, stop: str) -> None:
    call = getattr(batch, stop)
    for job_id, reason in itertools.product(("", "x"), ("", "x" * 1025)):
        assert "1024" in refusal(call, jobId=job_id, reason=reason)
    call(jobId=str(uuid.uuid4()), reason="nobody knows it, and that is fine")


def test_members_that_a_client_forgot_are_named(raw: Raw) -> None:
    """boto3 finds these itself; other clients learn them here."""
    reply = raw.post("SubmitJob", {"jobName": "x"})
    assert (reply.status, reply.code) == (400, "ClientException")
    assert "is required" in reply.message
    reply = raw.post("SubmitJob", {"jobName": 3, "jobQueue": "q", "jobDefinition": "d"})
    assert "jobName must be a string" in reply.message
    reply = raw.post("DescribeJobs", {"jobs": "one"})
    assert "jobs must be a list" in reply.message
    with_time = {"jobName": "x", "jobQueue": "q", "jobDefinition": "d", "timeout": []}
    assert "timeout must be an object" in raw.post("SubmitJob", with_time).message


def test_what_only_ecs_or_sagemaker_can_run_is_refused_by_name(batch: Any) -> None:
    for call, given in (
        (batch.describe_service_environments, {}),
        (batch.submit_service_job, {
            "jobName": "x", "jobQueue": "q", "serviceRequestPayload": "{}",
            "serviceJobType": "SAGEMAKER_TRAINING",
        }),
        (batch.list_consumable_resources, {}),
    ):  # fmt: skip
        with pytest.raises(ClientError) as refused:
            call(**given)
        assert "is not supported by this service" in str(refused.value)


# ---- while jobs end


def test_an_ended_job_is_never_told_without_its_exit_code_nor_twice(
    service: RunningService, batch: Any, queue: str
) -> None:
    """Readers ask while forty short jobs end under their hands."""
    definition = a_definition(batch, "sh", "-c", "exit 3")
    ids = [run(batch, queue, definition, f"short-{number}") for number in range(40)]
    over: set[str] = set()
    while len(over) < len(ids):
        for job in batch.describe_jobs(jobs=ids)["jobs"]:
            if job["status"] == "FAILED":
                over.add(job["jobId"])
                assert job["container"]["exitCode"] == 3
                assert job["stoppedAt"] >= job["startedAt"]
                assert len(job["eksAttempts"]) == 1
        found = listed(batch, jobQueue=queue, filters=[{"name": "JOB_NAME", "values": ["short-*"]}])
        assert found == ids[::-1]
        for path in ("/", f"/queue/{queue}", f"/job/{ids[-1]}"):
            assert service.status_of(path) == 200
