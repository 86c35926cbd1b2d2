"""Queues, compute environments, policies, definitions and tags: made, changed, told, deleted, by boto3."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.asking import Raw, refusal
from tests.api.conftest import an_environment
from tests.service.running import RunningService, a_definition

ACCOUNT = "arn:aws:batch:us-east-1:000000000000"
WAIT_S = 60
Unique = Callable[[str], str]


def until(look: Callable[[], bool]) -> None:
    """Wait for what the service does by itself."""
    end = time.monotonic() + WAIT_S
    while not look():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def environment(batch: Any, name: str) -> dict[str, Any]:
    found = batch.describe_compute_environments(computeEnvironments=[name])["computeEnvironments"]
    return dict(found[0]) if found else {}


def queue_named(batch: Any, name: str) -> dict[str, Any]:
    found = batch.describe_job_queues(jobQueues=[name])["jobQueues"]
    return dict(found[0]) if found else {}


# ---- two at once


def test_changes_that_come_together_all_stay(batch: Any, unique: Unique) -> None:
    """Switch, priority, tags; minimum and maximum: nobody's is lost, whoever is quicker."""
    name, queue = unique("ce"), unique("q")
    made = batch.create_compute_environment(**an_environment(name), state="DISABLED")
    order = [{"order": 1, "computeEnvironment": name}]
    arn = batch.create_job_queue(jobQueueName=queue, priority=1, computeEnvironmentOrder=order)
    environment_arn = made["computeEnvironmentArn"]
    with ThreadPoolExecutor(6) as pool:
        for n in range(2, 12):
            state, tags = ("DISABLED", "ENABLED")[n % 2], {"n": str(n)}
            calls = [
                pool.submit(batch.update_job_queue, jobQueue=queue, state=state),
                pool.submit(batch.update_job_queue, jobQueue=queue, priority=n),
                pool.submit(batch.tag_resource, resourceArn=arn["jobQueueArn"], tags=tags),
                pool.submit(batch.tag_resource, resourceArn=environment_arn, tags=tags),
                *(
                    pool.submit(
                        batch.update_compute_environment,
                        computeEnvironment=name,
                        computeResources={size: most + n},
                    )
                    for size, most in (("minvCpus", 0), ("maxvCpus", 20))
                ),
            ]
            for call in calls:
                call.result()
            there, sizes = queue_named(batch, queue), environment(batch, name)
            assert (there["state"], there["priority"], there["tags"]) == (state, n, tags)
            resources = sizes["computeResources"]
            assert (resources["minvCpus"], resources["maxvCpus"]) == (n, 20 + n)
            assert sizes["tags"] == tags


# ---- a whole life


def test_an_environment_and_its_queue_live_and_go_in_the_order_aws_wants(
    batch: Any, unique: Unique
) -> None:
    """1 made, becomes VALID 2 a queue holds it 3 switched off 4 the queue goes first 5 then it goes."""
    name, queue = unique("ce"), unique("q")
    made = batch.create_compute_environment(**an_environment(name, minvCpus=0), tags={"a": "b"})
    arn = f"{ACCOUNT}:compute-environment/{name}"
    assert made["computeEnvironmentArn"] == arn
    until(lambda: environment(batch, name)["status"] == "VALID")
    batch.create_job_queue(
        jobQueueName=queue,
        priority=7,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": arn}],
    )
    assert "ENABLED" in refusal(batch.delete_compute_environment, computeEnvironment=name)
    batch.update_compute_environment(computeEnvironment=arn, state="DISABLED")
    assert environment(batch, arn)["state"] == "DISABLED"
    message = refusal(batch.delete_compute_environment, computeEnvironment=name)
    assert message == "Cannot delete, found existing JobQueue relationship"
    assert "Disable it" in refusal(batch.delete_job_queue, jobQueue=queue)
    batch.update_job_queue(jobQueue=queue, state="DISABLED")
    batch.delete_job_queue(jobQueue=f"{ACCOUNT}:job-queue/{queue}")
    until(lambda: not queue_named(batch, queue))
    batch.delete_compute_environment(computeEnvironment=name)
    until(lambda: not environment(batch, name))
    batch.delete_job_queue(jobQueue=queue)
    batch.delete_compute_environment(computeEnvironment=name)


def test_an_environment_is_told_back_as_it_was_given_and_changed(
    batch: Any, unique: Unique
) -> None:
    name = unique("ce")
    given = an_environment(
        name,
        type="SPOT",
        allocationStrategy="SPOT_CAPACITY_OPTIMIZED",
        instanceTypes=["m6i.large", "c6i"],
        securityGroupIds=["sg-1"],
        instanceRole="role",
        tags={"on": "instances"},
    )
    batch.create_compute_environment(**given)
    batch.update_compute_environment(
        computeEnvironment=name, computeResources={"maxvCpus": 32, "minvCpus": 0}
    )
    found = environment(batch, name)
    assert found["type"] == "MANAGED"
    assert found["containerOrchestrationType"] == "EKS"
    assert found["eksConfiguration"] == given["eksConfiguration"]
    assert found["uuid"]
    resources = found["computeResources"]
    assert resources == {
        **given["computeResources"], "maxvCpus": 32, "minvCpus": 0, "desiredvCpus": 0
    }  # fmt: skip
    assert found["tags"] == {}


def test_an_unmanaged_environment_buys_nothing_and_needs_no_resources(
    batch: Any, unique: Unique
) -> None:
    name = unique("ce")
    eks = an_environment(name)["eksConfiguration"]
    batch.create_compute_environment(
        computeEnvironmentName=name, type="UNMANAGED", eksConfiguration=eks
    )
    assert environment(batch, name)["type"] == "UNMANAGED"
    assert "computeResources" not in environment(batch, name)


def test_a_queue_is_told_with_its_environments_in_order(batch: Any, unique: Unique) -> None:
    name = unique("q")
    order = [
        {"order": 20, "computeEnvironment": "on-demand"},
        {"order": 10, "computeEnvironment": "spot"},
    ]
    made = batch.create_job_queue(
        jobQueueName=name,
        priority=5,
        state="DISABLED",
        computeEnvironmentOrder=order,
        schedulingPolicyArn=f"{ACCOUNT}:scheduling-policy/fair",
        tags={"team": "bio"},
    )
    assert made["jobQueueArn"] == f"{ACCOUNT}:job-queue/{name}"
    found = queue_named(batch, made["jobQueueArn"])
    assert (found["state"], found["status"], found["priority"]) == ("DISABLED", "VALID", 5)
    names = [entry["computeEnvironment"] for entry in found["computeEnvironmentOrder"]]
    assert names == [f"{ACCOUNT}:compute-environment/{name}" for name in ("spot", "on-demand")]
    assert [entry["order"] for entry in found["computeEnvironmentOrder"]] == [10, 20]
    assert found["schedulingPolicyArn"] == f"{ACCOUNT}:scheduling-policy/fair"
    assert found["tags"] == {"team": "bio"}
    batch.update_job_queue(jobQueue=name, state="ENABLED", priority=6)
    found = queue_named(batch, name)
    assert (found["state"], found["priority"]) == ("ENABLED", 6)
    assert [entry["order"] for entry in found["computeEnvironmentOrder"]] == [10, 20]
    order = [{"order": 0, "computeEnvironment": "on-demand"}]
    batch.update_job_queue(jobQueue=name, computeEnvironmentOrder=order)
    found = queue_named(batch, name)
    assert [entry["order"] for entry in found["computeEnvironmentOrder"]] == [0]
    assert found["schedulingPolicyArn"].endswith("/fair"), "what is not given stays"


def test_time_limits_of_a_queue_are_told_back_changed_and_taken_away(
    batch: Any, unique: Unique
) -> None:
    name = unique("q")
    order = [{"order": 1, "computeEnvironment": "spot"}]
    given = [a_time_limit(), a_time_limit(reason="MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT")]
    batch.create_job_queue(
        jobQueueName=name,
        priority=1,
        computeEnvironmentOrder=order,
        jobStateTimeLimitActions=given,
    )
    assert queue_named(batch, name)["jobStateTimeLimitActions"] == given
    batch.update_job_queue(jobQueue=name, priority=2)
    assert queue_named(batch, name)["jobStateTimeLimitActions"] == given
    longer = [a_time_limit(maxTimeSeconds=86_400)]
    batch.update_job_queue(jobQueue=name, jobStateTimeLimitActions=longer)
    assert queue_named(batch, name)["jobStateTimeLimitActions"] == longer
    batch.update_job_queue(jobQueue=name, jobStateTimeLimitActions=[])
    assert queue_named(batch, name)["jobStateTimeLimitActions"] == []


def test_a_queue_that_is_deleted_ends_its_jobs(
    service: RunningService, batch: Any, idle_queue: str
) -> None:
    job_id = batch.submit_job(
        jobName="x", jobQueue=idle_queue, jobDefinition=a_definition(batch, "true")
    )["jobId"]
    batch.update_job_queue(jobQueue=idle_queue, state="DISABLED")
    batch.delete_job_queue(jobQueue=idle_queue)
    assert service.wait_for_ends({job_id}) == {job_id: "FAILED"}
    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    assert job["statusReason"] == "JobQueue deleted"
    until(lambda: not queue_named(batch, idle_queue))


def test_a_policy_is_made_changed_listed_and_kept_while_it_is_used(
    batch: Any, unique: Unique
) -> None:
    name, queue = unique("policy"), unique("q")
    arn = batch.create_scheduling_policy(
        name=name,
        fairsharePolicy={
            "shareDecaySeconds": 3600,
            "computeReservation": 10,
            "shareDistribution": [{"shareIdentifier": "bio*", "weightFactor": 0.5}],
        },
        tags={"x": "y"},
    )["arn"]
    assert arn == f"{ACCOUNT}:scheduling-policy/{name}"
    pages = batch.get_paginator("list_scheduling_policies").paginate(
        PaginationConfig={"PageSize": 1}
    )
    listed = [row["arn"] for page in pages for row in page["schedulingPolicies"]]
    assert arn in listed
    assert len(listed) == len(set(listed)) >= 2
    batch.update_scheduling_policy(arn=arn, fairsharePolicy={"shareDecaySeconds": 60})
    (found,) = batch.describe_scheduling_policies(arns=[arn, f"{arn}-not"])["schedulingPolicies"]
    assert found["fairsharePolicy"]["shareDecaySeconds"] == 60
    batch.update_scheduling_policy(arn=arn)
    (still,) = batch.describe_scheduling_policies(arns=[arn])["schedulingPolicies"]
    assert still == found, "nothing was said, so nothing changes"
    assert found["tags"] == {"x": "y"}
    batch.create_job_queue(
        jobQueueName=queue,
        priority=1,
        schedulingPolicyArn=arn,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "spot"}],
    )
    assert queue in refusal(batch.delete_scheduling_policy, arn=arn)
    batch.update_job_queue(jobQueue=queue, state="DISABLED")
    batch.delete_job_queue(jobQueue=queue)
    until(lambda: not queue_named(batch, queue))
    batch.delete_scheduling_policy(arn=arn)
    assert batch.describe_scheduling_policies(arns=[arn])["schedulingPolicies"] == []


def test_revisions_count_up_and_are_never_given_twice(batch: Any, unique: Unique) -> None:
    name = unique("revised")
    first = a_definition(batch, "one", name=name)
    second = a_definition(batch, "two", name=name)
    assert (first[-2:], second[-2:]) == (":1", ":2")
    batch.deregister_job_definition(jobDefinition=second)
    assert a_definition(batch, "three", name=name).endswith(":3")
    found = batch.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    assert [(d["revision"], d["status"]) for d in found] == [
        (3, "ACTIVE"), (2, "INACTIVE"), (1, "ACTIVE")
    ]  # fmt: skip
    active = batch.describe_job_definitions(jobDefinitionName=name, status="ACTIVE")
    assert [d["revision"] for d in active["jobDefinitions"]] == [3, 1]
    named = batch.describe_job_definitions(jobDefinitions=[f"{name}:1", second])
    assert [d["revision"] for d in named["jobDefinitions"]] == [2, 1]
    message = refusal(batch.submit_job, jobName="x", jobQueue="default", jobDefinition=second)
    assert "INACTIVE" in message


def test_a_definition_is_told_back_as_it_was_registered(batch: Any, unique: Unique) -> None:
    name = unique("full")
    pod = {
        "serviceAccountName": "worker",
        "hostNetwork": False,
        "containers": [
            {
                "name": "main",
                "image": "busybox:1",
                "command": ["sh"],
                "args": ["-c", "true"],
                "env": [{"name": "A", "value": "b"}],
                "resources": {
                    "limits": {"cpu": "1", "memory": "512Mi", "nvidia.com/gpu": "1"},
                    "requests": {"cpu": "0.5", "memory": "512Mi", "nvidia.com/gpu": "1"},
                },
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                "securityContext": {"runAsUser": 1000, "readOnlyRootFilesystem": True},
            }
        ],
        "initContainers": [
            {
                "name": "first",
                "image": "busybox:1",
                "resources": {"requests": {"cpu": "0.25", "memory": "64Mi"}},
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"medium": "", "sizeLimit": "1Gi"}}],
        "metadata": {"labels": {"app": "x"}, "annotations": {"a": "b"}, "namespace": "jobs"},
    }
    given: dict[str, Any] = {
        "jobDefinitionName": name,
        "type": "container",
        "eksProperties": {"podProperties": pod},
        "parameters": {"a": "b"},
        "schedulingPriority": 9,
        "timeout": {"attemptDurationSeconds": 61},
        "retryStrategy": {"attempts": 2, "evaluateOnExit": [{"action": "exit", "onReason": "*"}]},
        "tags": {"team": "bio"},
    }
    batch.register_job_definition(**given)
    (found,) = batch.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    assert {key: found[key] for key in given} == given
    assert found["containerOrchestrationType"] == "EKS"


def test_lists_come_in_pages(batch: Any, unique: Unique) -> None:
    name = unique("many")
    for number in range(5):
        a_definition(batch, f"echo {number}", name=name)
    pages = list(
        batch.get_paginator("describe_job_definitions").paginate(
            jobDefinitionName=name, PaginationConfig={"PageSize": 2}
        )
    )
    assert [len(page["jobDefinitions"]) for page in pages] == [2, 2, 1]
    for call, key, arn in (
        ("describe_job_queues", "jobQueues", "jobQueueArn"),
        ("describe_compute_environments", "computeEnvironments", "computeEnvironmentArn"),
    ):
        # More than one page, too, where other tests have made many; nodes of theirs come and go between two reads.
        large, small = (
            [row[arn] for page in batch.get_paginator(call).paginate(**size) for row in page[key]]
            for size in ({}, {"PaginationConfig": {"PageSize": 1}})
        )
        assert small == large
        assert large


def test_whoever_deletes_what_they_read_page_by_page_reads_all(batch: Any, unique: Unique) -> None:
    name = unique("swept")
    for number in range(5):
        a_definition(batch, f"echo {number}", name=name)
    asked = {"jobDefinitionName": name, "status": "ACTIVE"}
    pages = batch.get_paginator("describe_job_definitions").paginate(
        **asked, PaginationConfig={"PageSize": 2}
    )
    for page in pages:
        for definition in page["jobDefinitions"]:
            batch.deregister_job_definition(jobDefinition=definition["jobDefinitionArn"])
    assert batch.describe_job_definitions(**asked)["jobDefinitions"] == []


@pytest.mark.parametrize("token", ["??", "MS4y", "Mi4", "Mi54LmE", "ü", "A"])
def test_a_page_begins_only_where_this_service_said(batch: Any, token: str) -> None:
    """Nonsense, a token of another list, and halves of one of this."""
    assert "begin without it" in refusal(batch.describe_job_queues, nextToken=token)


# ---- tags


def test_tags_of_whatever_has_an_arn_are_set_listed_and_taken_away(
    batch: Any, unique: Unique
) -> None:
    definition = a_definition(batch, "true", name=unique("tagged"))
    name = unique("ce")
    environment_arn = batch.create_compute_environment(**an_environment(name))[
        "computeEnvironmentArn"
    ]
    for arn in (
        f"{ACCOUNT}:job-queue/default",
        f"{ACCOUNT}:scheduling-policy/fair",
        environment_arn,
        definition,
    ):
        batch.tag_resource(resourceArn=arn, tags={"a key": "ü & more", "other": ""})
        assert batch.list_tags_for_resource(resourceArn=arn)["tags"] == {
            "a key": "ü & more", "other": ""
        }  # fmt: skip
        batch.untag_resource(resourceArn=arn, tagKeys=["a key", "never was"])
        assert batch.list_tags_for_resource(resourceArn=arn)["tags"] == {"other": ""}
        batch.untag_resource(resourceArn=arn, tagKeys=["other"])


def test_tags_of_a_job_are_listed_while_it_lives_and_afterwards(
    batch: Any, idle_queue: str
) -> None:
    made = batch.submit_job(
        jobName="x",
        jobQueue=idle_queue,
        jobDefinition=a_definition(batch, "true"),
        tags={"run": "1"},
    )
    assert batch.list_tags_for_resource(resourceArn=made["jobArn"])["tags"] == {"run": "1"}
    batch.cancel_job(jobId=made["jobId"], reason="x")
    assert batch.list_tags_for_resource(resourceArn=made["jobArn"])["tags"] == {"run": "1"}
    message = refusal(batch.tag_resource, resourceArn=made["jobArn"], tags={"late": "x"})
    assert "SubmitJob" in message


def test_an_arn_is_taken_percent_encoded_and_plain(batch: Any, raw: Raw) -> None:
    arn = f"{ACCOUNT}:job-queue/default"
    for path in (arn, arn.replace(":", "%3A").replace("/", "%2F")):
        reply = raw("GET", f"/v1/tags/{path}")
        assert (reply.status, reply.body) == (200, b'{"tags":{}}')


@pytest.mark.parametrize(
    ("arn", "words"),
    [
        ("default", "is not the ARN"),
        (f"{ACCOUNT}:job-queue/nowhere", "does not exist"),
        (f"{ACCOUNT}:job-queue/default/more", "is not the ARN"),
        (f"{ACCOUNT}:job-definition/none:1", "does not exist"),
        (f"{ACCOUNT}:job-definition/none:{'9' * 50}", "does not exist"),
        (f"{ACCOUNT}:job/none", "does not exist"),
        ("arn:aws:batch:us-east-1:000000000000:moon/x", "is not the ARN"),
    ],
)
def test_tags_of_what_there_is_not_are_refused(batch: Any, arn: str, words: str) -> None:
    assert words in refusal(batch.list_tags_for_resource, resourceArn=arn)


def test_tags_have_the_bounds_of_aws(batch: Any) -> None:
    arn = f"{ACCOUNT}:job-queue/default"
    too_many = {f"k{number}": "" for number in range(51)}
    assert "50" in refusal(batch.tag_resource, resourceArn=arn, tags=too_many)
    assert "128" in refusal(batch.tag_resource, resourceArn=arn, tags={"k" * 129: "x"})
    assert "aws:" in refusal(batch.tag_resource, resourceArn=arn, tags={"AWS:x": "x"})
    batch.tag_resource(resourceArn=arn, tags={f"k{number}": "" for number in range(30)})
    more = {f"m{number}": "" for number in range(30)}
    assert "50" in refusal(batch.tag_resource, resourceArn=arn, tags=more)
    batch.untag_resource(resourceArn=arn, tagKeys=[f"k{number}" for number in range(30)])


# ---- what is refused, and what to do about it


def container(**fields: Any) -> dict[str, Any]:
    plain = {"image": "x", "resources": {"requests": {"cpu": "1", "memory": "128Mi"}}}
    return {"containers": [{**plain, **fields}]}


SCRATCH: dict[str, Any] = {"name": "data", "emptyDir": {}}
TWO_KINDS: dict[str, Any] = {"name": "two", "emptyDir": {}, "hostPath": {"path": "/"}}


def needs(requests: dict[str, str], limits: dict[str, str]) -> dict[str, Any]:
    """A pod that asks for this; a vCPU and 128 MiB of what is not said."""
    plain = {"cpu": "1", "memory": "128Mi"}
    plain = {key: value for key, value in plain.items() if key not in limits}
    return container(resources={"requests": {**plain, **requests}, "limits": limits})


def mounting(volume: str, *paths: str) -> dict[str, Any]:
    mounts = [{"name": volume, "mountPath": path} for path in paths]
    return {**container(volumeMounts=mounts), "volumes": [SCRATCH]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"jobDefinitionName": "a b"}, "letters, digits"),
        ({"jobDefinitionName": "x\n"}, "letters, digits"),
        ({"type": "multinode"}, "needs nodeProperties"),
        ({"type": "batch"}, "container, multinode"),
        ({"platformCapabilities": ["FARGATE"]}, "leave it out"),
        ({"eksProperties": {}}, "give eksProperties.podProperties"),
        ({"eksProperties": {"podProperties": {"containers": []}}}, "1 to 10"),
        ({"pod": {"containers": container()["containers"] * 11}}, "1 to 10"),
        ({"pod": {"containers": container()["containers"] * 2}}, "names must differ"),
        ({"pod": container(image="")}, "image"),
        ({"pod": container(env=[{"name": "AWS_BATCH_JOB_ID", "value": "x"}])}, "reserved"),
        ({"pod": container(resources={})}, "a request or a limit for cpu"),
        ({"pod": container(resources={"limits": {"cpu": "1"}})}, "for memory"),
        (
            {"pod": container(resources={"limits": {"cpu": "0.1", "memory": "128Mi"}})},
            "multiple of 0.25",
        ),
        (
            {"pod": container(resources={"limits": {"cpu": "1_0", "memory": "128Mi"}})},
            "multiple of 0.25",
        ),
        (
            {"pod": container(resources={"limits": {"cpu": "1", "memory": "128Mi\n"}})},
            "whole number of Mi",
        ),
        ({"pod": container(resources={"limits": {"cpu": "1", "memory": "1Gi"}})}, "512Mi"),
        (
            {
                "pod": container(
                    resources={"limits": {"cpu": "1", "memory": "64Mi", "nvidia.com/gpu": "half"}}
                )
            },
            "nvidia.com/gpu must be a whole number",
        ),
        ({"pod": needs({"cpu": "2"}, {"cpu": "1"})}, "limit for cpu must be at least its request"),
        (
            {"pod": needs({"memory": "512Mi"}, {"memory": "256Mi"})},
            "limit for memory must be equal to its request",
        ),
        ({"pod": needs({"memory": "256Mi"}, {"memory": "512Mi"})}, "must be equal"),
        ({"pod": needs({"nvidia.com/gpu": "1"}, {"nvidia.com/gpu": "2"})}, "must be equal"),
        ({"pod": needs({"cpu": "1"}, {"cpu": "abc"})}, "multiple of 0.25 from 0.25 on, not 'abc'"),
        ({"pod": needs({"memory": "512Mi"}, {"memory": "1Ti"})}, "whole number of Mi"),
        ({"pod": needs({"foo/bar": "1"}, {})}, "cpu, memory, nvidia.com/gpu, not 'foo/bar'"),
        ({"pod": needs({}, {"ephemeral-storage": "1Gi"})}, "not 'ephemeral-storage'"),
        ({"pod": container(name="My_C")}, "small letters, digits and hyphens"),
        ({"pod": container(name="x" * 64)}, "1 to 63"),
        (
            {"pod": {**container(), "initContainers": container(name="default")["containers"]}},
            "names must differ",
        ),
        ({"pod": container(imagePullPolicy="Sometimes")}, "Always, IfNotPresent, Never"),
        ({"pod": {**container(), "dnsPolicy": "None"}}, "ClusterFirstWithHostNet"),
        ({"pod": mounting("nope", "/x")}, "mounts volume 'nope', which podProperties.volumes"),
        ({"pod": mounting("data", "/x", "/x")}, "must be a path of its own"),
        ({"pod": mounting("data", "")}, "must be a path of its own"),
        ({"pod": mounting("data", "/x:/y")}, "must be a path of its own"),
        ({"pod": {**container(), "volumes": [{"name": "v"}]}}, "Volume v must be exactly one of"),
        ({"pod": {**container(), "volumes": [TWO_KINDS]}}, "exactly one of hostPath, emptyDir"),
        ({"pod": {**container(), "volumes": [SCRATCH, SCRATCH]}}, "each volume has its own"),
        ({"pod": {**container(), "volumes": [{**SCRATCH, "name": "a.b"}]}}, "small letters"),
        ({"pod": {**container(), "metadata": {"namespace": "kube-system"}}}, "kube"),
        ({"schedulingPriority": 10_000}, "0 to 9999"),
        ({"schedulingPriority": -1}, "0 to 9999"),
        ({"pod": container(args=["x" * 256 * 1024])}, "at most 262,144 are allowed"),
    ],
)
def test_a_definition_that_cannot_be_is_refused_with_what_to_do(
    batch: Any, fields: dict[str, Any], words: str
) -> None:
    pod = fields.pop("pod", None) or container()
    given = {
        "jobDefinitionName": "refused",
        "type": "container",
        "eksProperties": {"podProperties": pod},
        **fields,
    }
    assert words in refusal(batch.register_job_definition, **given)


@pytest.mark.parametrize(
    "pod",
    [
        needs({"cpu": "0.5"}, {"cpu": "2"}),
        needs({"cpu": "1.50"}, {"cpu": "1.5", "memory": "64Mi"}),
        needs({"memory": "64Mi"}, {"memory": "64Mi"}),
        needs({"nvidia.com/gpu": "2"}, {"nvidia.com/gpu": "2"}),
        needs({}, {"nvidia.com/gpu": "1"}),
        needs({"nvidia.com/gpu": "1"}, {}),
        container(name="Default", imagePullPolicy="Never"),
        container(name="", imagePullPolicy=""),
        mounting("data", "/x", "/y"),
    ],
)
def test_a_pod_that_aws_takes_is_taken(batch: Any, pod: dict[str, Any]) -> None:
    batch.register_job_definition(
        jobDefinitionName="taken", type="container", eksProperties={"podProperties": pod}
    )


@pytest.mark.parametrize(
    "name",
    ["nothing:1", "nothing", "nothing:x", "nothing:", "nothing:0", "nothing:" + "9" * 5000, ""],
)
def test_a_definition_to_deregister_is_named_with_its_revision(batch: Any, name: str) -> None:
    message = refusal(batch.deregister_job_definition, jobDefinition=name)
    assert "name:revision" in message or "nothing:1 does not exist" in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"computeEnvironmentName": "a/b"}, "letters, digits"),
        ({"computeEnvironmentName": "on-demand"}, "exists already"),
        ({"type": "HYBRID"}, "MANAGED"),
        ({"eksConfiguration": None}, "eksConfiguration"),
        ({"computeResources": None}, "computeResources is required"),
        ({"resources": {"type": "FARGATE"}}, "EC2 or SPOT"),
        ({"resources": {"maxvCpus": -1}}, "minvCpus <= maxvCpus"),
        ({"resources": {"minvCpus": 9, "maxvCpus": 8}}, "minvCpus <= maxvCpus"),
        ({"resources": {"allocationStrategy": "BEST_FIT"}}, "BEST_FIT_PROGRESSIVE"),
        (
            {"resources": {"scalingPolicy": {"minScaleDownDelayMinutes": 5}}},
            "20 to 10080",
        ),
        (
            {"eksConfiguration": {"eksClusterArn": "arn:x", "kubernetesNamespace": "default"}},
            "neither",
        ),
        (
            {"eksConfiguration": {"eksClusterArn": "arn:x", "kubernetesNamespace": "kube-x"}},
            "kube-",
        ),
        (
            {"eksConfiguration": {"eksClusterArn": "arn:x", "kubernetesNamespace": "A_b"}},
            "namespace",
        ),
    ],
)
def test_an_environment_that_cannot_be_is_refused_with_what_to_do(
    batch: Any, fields: dict[str, Any], words: str
) -> None:
    given = an_environment("refused", **fields.pop("resources", {})) | fields
    given = {key: value for key, value in given.items() if value is not None}
    assert words in refusal(batch.create_compute_environment, **given)


def a_time_limit(**fields: Any) -> dict[str, Any]:
    """One of jobStateTimeLimitActions."""
    reason = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"
    plain = {"state": "RUNNABLE", "maxTimeSeconds": 600, "action": "CANCEL"}
    return {"reason": reason, **plain, **fields}


_one = [{"order": 1, "computeEnvironment": "spot"}]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"jobQueueName": "default"}, "exists already"),
        ({"jobQueueName": "x" * 129}, "1 to 128"),
        ({"priority": 1001}, "0 to 1000"),
        ({"priority": -1}, "0 to 1000"),
        ({"state": "ON"}, "DISABLED, ENABLED"),
        ({"computeEnvironmentOrder": []}, "1 to 3"),
        ({"computeEnvironmentOrder": _one * 4}, "1 to 3"),
        ({"computeEnvironmentOrder": _one * 2}, "twice"),
        (
            {"computeEnvironmentOrder": [{"order": 1, "computeEnvironment": "nowhere"}]},
            "nowhere does not exist",
        ),
        ({"schedulingPolicyArn": f"{ACCOUNT}:scheduling-policy/none"}, "none does not exist"),
        ({"jobQueueType": "SAGEMAKER_TRAINING"}, "must be EKS"),
        (
            {"jobStateTimeLimitActions": [a_time_limit(reason="UNDETERMINED")]},
            "must be one of CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
        ),
        ({"jobStateTimeLimitActions": [a_time_limit(action="TERMINATE")]}, "can CANCEL"),
        ({"jobStateTimeLimitActions": [a_time_limit(maxTimeSeconds=599)]}, "600 to 86400"),
        ({"jobStateTimeLimitActions": [a_time_limit(), a_time_limit()]}, "twice"),
    ],
)  # fmt: skip
def test_a_queue_that_cannot_be_is_refused_with_what_to_do(
    batch: Any, fields: dict[str, Any], words: str
) -> None:
    given = {"jobQueueName": "refused", "priority": 1, "computeEnvironmentOrder": _one}
    assert words in refusal(batch.create_job_queue, **{**given, **fields})


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"shareDecaySeconds": 604_801}, "604800"),
        ({"computeReservation": 100}, "0 to 99"),
        ({"shareDistribution": [{"shareIdentifier": "a-b"}]}, "letters and digits"),
        ({"shareDistribution": [{"shareIdentifier": "a"}, {"shareIdentifier": "a"}]}, "twice"),
        ({"shareDistribution": [{"shareIdentifier": "a", "weightFactor": 1000}]}, "999.9999"),
        ({"shareDistribution": [{"shareIdentifier": "a", "weightFactor": 0.0}]}, "0.0001"),
        (
            {"shareDistribution": [{"shareIdentifier": n} for n in ("UserA1", "User*")]},
            "User* and to UserA1, which overlap",
        ),
        (
            {"shareDistribution": [{"shareIdentifier": n} for n in ("UserA*", "b", "User*")]},
            "User* and to UserA*, which overlap",
        ),
        ({"shareDistribution": [{"shareIdentifier": n} for n in ("*", "a")]}, "overlap"),
        ({"shareDistribution": [{"shareIdentifier": f"s{n}"} for n in range(501)]}, "500"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_what_to_do(
    batch: Any, policy: dict[str, Any], words: str
) -> None:
    message = refusal(batch.create_scheduling_policy, name="refused", fairsharePolicy=policy)
    assert words in message


def test_what_there_is_not_cannot_be_changed(batch: Any) -> None:
    for call, given in (
        (batch.update_job_queue, {"jobQueue": "nowhere", "priority": 1}),
        (batch.update_compute_environment, {"computeEnvironment": "nowhere", "state": "ENABLED"}),
        (batch.update_scheduling_policy, {"arn": f"{ACCOUNT}:scheduling-policy/nowhere"}),
    ):
        assert "nowhere does not exist" in refusal(call, **given)


def test_a_first_in_first_out_queue_stays_one(batch: Any, queue: str) -> None:
    policy = f"{ACCOUNT}:scheduling-policy/fair"
    message = refusal(batch.update_job_queue, jobQueue=queue, schedulingPolicyArn=policy)
    assert "when a job queue is created" in message
