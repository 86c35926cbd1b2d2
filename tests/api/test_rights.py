"""What a key may do, by its role and its job queues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from airflow_eksbatch.api.app import OPERATIONS
from tests.airflow.processes import wait_for
from tests.api.asking import Raw, Reply
from tests.api.conftest import an_environment
from tests.api.test_auth import Key, a_key
from tests.service.running import RunningService, a_definition

LOOKS = {name for name in OPERATIONS if name.startswith(("Describe", "List", "Get"))}
WORKS = {
    "SubmitJob",
    "CancelJob",
    "CancelJobs",
    "TerminateJob",
    "TerminateJobs",
    "RegisterJobDefinition",
}
DENIED = (403, "AccessDeniedException")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("rights"), "--auth", "sigv4") as service:
        yield service


@pytest.fixture(scope="module")
def admin(closed: RunningService) -> Any:
    """boto3 of one who may do everything, and two job queues in which nothing runs."""
    key = a_key(closed.home)
    batch = closed.batch(key.access_key, key.secret)
    batch.create_compute_environment(**an_environment("off", maxvCpus=8), state="DISABLED")
    order = [{"order": 1, "computeEnvironment": "off"}]
    for name in ("ours", "theirs"):
        batch.create_job_queue(jobQueueName=name, priority=1, computeEnvironmentOrder=order)
    return batch


@pytest.fixture(scope="module")
def held(closed: RunningService, admin: Any) -> Key:
    return a_key(closed.home, "--queue", "ours")


def signed(
    service: RunningService,
    key: Key,
    path: str,
    given: object = None,
    headers: dict[str, str] | None = None,
) -> Reply:
    """A POST, or a GET where nothing is given."""
    method, body = ("GET", b"") if given is None else ("POST", json.dumps(given).encode())
    request = AWSRequest(method, service.url + path, data=body, headers=headers)
    credentials = Credentials(key.access_key, key.secret)
    SigV4Auth(credentials, "batch", "us-east-1").add_auth(request)
    told = {name.lower(): str(value) for name, value in request.headers.items()}
    return Raw(service.url)(method, path, body, told)


def in_queue(batch: Any, queue: str) -> str:
    """The id of a job that waits there."""
    definition = a_definition(batch, "true")
    return str(batch.submit_job(jobName="waits", jobQueue=queue, jobDefinition=definition)["jobId"])


def code_of(call: Any, **given: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**given)
    return str(refused.value.response["Error"]["Code"])


@pytest.mark.parametrize(
    ("role", "may"), [("viewer", LOOKS), ("user", LOOKS | WORKS), ("admin", set(OPERATIONS))]
)
def test_a_role_is_let_in_to_what_is_its_own_and_to_nothing_else(
    closed: RunningService, role: str, may: set[str]
) -> None:
    """Before anything else is looked at: what is asked here is nonsense."""
    key = a_key(closed.home, "--role", role)
    for name in OPERATIONS:
        path, given = f"/v1/{name.lower()}", {"nonsense": 1}
        if "Resource" in name:
            path = "/v1/tags/nonsense"
        if name in ("ListTagsForResource", "UntagResource"):
            continue
        reply = signed(closed, key, path, given)
        was_let_in = (reply.status, reply.code) != DENIED
        assert was_let_in == (name in may), (name, reply)
        assert was_let_in or f"its role is {role}" in reply.message


def test_tags_are_read_by_all_and_changed_by_admins(closed: RunningService, admin: Any) -> None:
    key = a_key(closed.home, "--role", "user")
    batch = closed.batch(key.access_key, key.secret)
    arn = admin.describe_job_queues(jobQueues=["ours"])["jobQueues"][0]["jobQueueArn"]
    assert code_of(batch.tag_resource, resourceArn=arn, tags={"a": "b"}) == DENIED[1]
    assert code_of(batch.untag_resource, resourceArn=arn, tagKeys=["a"]) == DENIED[1]
    assert batch.list_tags_for_resource(resourceArn=arn)["tags"] == {}


def test_a_viewer_reads_what_the_dashboard_and_the_commands_show(
    closed: RunningService, admin: Any
) -> None:
    key, job_id = a_key(closed.home, "--role", "viewer"), in_queue(admin, "theirs")
    of_job = (f"/v1/eksbatch/jobs/{job_id}{page}" for page in ("", "/log", "/explain"))
    for path in (*of_job, "/v1/eksbatch/summary", "/v1/eksbatch/costs"):
        assert signed(closed, key, path).status == 200, path


def test_who_may_not_submit_may_not_try_to(closed: RunningService, admin: Any, held: Key) -> None:
    viewer, path = a_key(closed.home, "--role", "viewer"), "/v1/eksbatch/dry-run"
    request = {"jobName": "a", "jobQueue": "ours", "jobDefinition": a_definition(admin, "true")}
    reply = signed(closed, viewer, path, request)
    assert (reply.status, reply.code) == DENIED
    assert signed(closed, held, path, request).status == 200
    reply = signed(closed, held, path, {**request, "jobQueue": "theirs"})
    assert (reply.status, reply.code) == DENIED

    def told() -> set[str]:
        lines = [json.loads(line) for line in closed.output if line.startswith("{")]
        return {line["by"] for line in lines if line["event"] == "dry-run was denied"}

    both = {viewer.access_key, held.access_key}
    assert wait_for("the log", lambda: both & told() == both, within_s=30)


def test_instances_of_the_embedded_cloud_are_an_admins(closed: RunningService) -> None:
    key = a_key(closed.home, "--role", "user")
    reply = signed(closed, key, "/v1/eksbatch/cloud", {"interrupt": "nobody"})
    assert (reply.status, reply.code) == DENIED


def test_a_key_that_is_held_to_a_job_queue_works_there_and_nowhere_else(
    closed: RunningService, admin: Any, held: Key
) -> None:
    batch = closed.batch(held.access_key, held.secret)
    own, other = in_queue(batch, "ours"), in_queue(admin, "theirs")
    definition = a_definition(batch, "true")
    for queue in ("theirs", "there-is-none"):
        with pytest.raises(ClientError, match=f"in job queue '{queue}': it is held to ours") as no:
            batch.submit_job(jobName="a", jobQueue=queue, jobDefinition=definition)
        assert no.value.response["Error"]["Code"] == DENIED[1]
        assert no.value.response["ResponseMetadata"]["RetryAttempts"] == 0
    for call in (batch.cancel_job, batch.terminate_job):
        assert code_of(call, jobId=other, reason="no") == DENIED[1]
        assert code_of(call, jobId=f"{other}:0", reason="no") == DENIED[1]
    (seen,) = batch.describe_jobs(jobs=[other])["jobs"]
    assert seen["status"] == "RUNNABLE"
    batch.terminate_job(jobId=own, reason="done")
    (ended,) = batch.describe_jobs(jobs=[own])["jobs"]
    assert (ended["status"], ended["statusReason"]) == ("FAILED", "done")
    admin.terminate_job(jobId=other, reason="done")
    assert code_of(batch.terminate_job, jobId=other, reason="no") == DENIED[1], "also of the past"


def test_of_many_jobs_those_of_other_queues_are_refused_one_by_one(
    closed: RunningService, admin: Any, held: Key
) -> None:
    own, other = in_queue(admin, "ours"), in_queue(admin, "theirs")
    given = {"jobs": [own, other], "reason": "done"}
    answer = json.loads(signed(closed, held, "/v1/terminatejobs", given).body)
    assert answer["successful"] == [own]
    assert [(error["job"], error["code"]) for error in answer["errors"]] == [(other, DENIED[1])]

    def told() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in closed.output if line.startswith("{")]
        return [line for line in lines if line["event"] == "TerminateJob was denied"]

    found = wait_for("the log", lambda: [a for a in told() if a.get("what") == other], within_s=30)
    assert [(line["level"], line["by"]) for line in found] == [("warning", held.access_key)]


def test_nobody_takes_the_place_of_a_job_in_a_queue_that_he_may_not_use(
    closed: RunningService, admin: Any, held: Key
) -> None:
    """A later try of a task ends the job of the one before; anybody can say which task he is."""
    everything = a_key(closed.home)
    definition = a_definition(admin, "true")

    def tried(key: Key, queue: str, number: int) -> Reply:
        given = {"jobName": "task", "jobQueue": queue, "jobDefinition": definition}
        headers = {"x-eksbatch-token": f"dag%7Crun%7Ctask|{number}"}
        return signed(closed, key, "/v1/submitjob", given, headers)

    first = json.loads(tried(everything, "theirs", 1).body)["jobId"]
    reply = tried(held, "ours", 2)
    assert (reply.status, reply.code) == DENIED
    (job,) = admin.describe_jobs(jobs=[first])["jobs"]
    assert job["status"] == "RUNNABLE"
    assert tried(everything, "ours", 2).status == 200
    (job,) = admin.describe_jobs(jobs=[first])["jobs"]
    assert job["status"] == "FAILED"


def test_jobs_of_a_held_key_stay_in_the_namespaces_of_their_job_queue(
    admin: Any, closed: RunningService, held: Key
) -> None:
    """Whatever names another one: a definition of somebody else, an override, nodes of one job."""
    batch = closed.batch(held.access_key, held.secret)
    properties: dict[str, Any] = {
        "podProperties": {
            "containers": [
                {
                    "image": "busybox",
                    "command": ["true"],
                    "resources": {"requests": {"cpu": "1", "memory": "128Mi"}},
                }
            ]
        }
    }

    def registered(name: str, **fields: Any) -> str:
        made = admin.register_job_definition(jobDefinitionName=name, **fields)
        return str(made["jobDefinitionArn"])

    def elsewhere(namespace: str) -> dict[str, Any]:
        return {
            "podProperties": {**properties["podProperties"], "metadata": {"namespace": namespace}}
        }

    nodes = {"targetNodes": "0:", "eksProperties": elsewhere("payroll")}
    plain = registered("plain", type="container", eksProperties=properties)
    strays: list[dict[str, Any]] = [
        {"jobDefinition": registered("away", type="container", eksProperties=elsewhere("payroll"))},
        {"jobDefinition": plain, "eksPropertiesOverride": {"podProperties": {"metadata": {"namespace": "payroll"}}}},
        {"jobDefinition": registered("two", type="multinode", nodeProperties={"numNodes": 2, "mainNode": 0, "nodeRangeProperties": [nodes]})},
    ]  # fmt: skip
    for given in strays:
        assert code_of(batch.submit_job, jobName="a", jobQueue="ours", **given) == DENIED[1]
        admin.submit_job(jobName="a", jobQueue="ours", **given)
    at_home = registered("home", type="container", eksProperties=elsewhere("jobs"))
    for definition in (plain, at_home):
        batch.submit_job(jobName="a", jobQueue="ours", jobDefinition=definition)
