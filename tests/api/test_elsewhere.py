"""Members that only ECS or SageMaker jobs, or jobs of the other type have: refused when they say something, else ignored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.asking import refusal
from tests.service.running import a_definition

LICENSE = {"consumableResourceList": [{"consumableResource": "license", "quantity": 1}]}
POD = {
    "podProperties": {
        "containers": [{"image": "x", "resources": {"requests": {"cpu": "1", "memory": "128Mi"}}}]
    }
}
ECS = {"taskProperties": [{"containers": [{"name": "Default", "command": ["rm", "x"]}]}]}
NODES = {"numNodes": 2, "mainNode": 0, "nodeRangeProperties": []}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ecsPropertiesOverride": ECS}, "ecsPropertiesOverride is not supported here (jobs are"),
        ({"nodeOverrides": {"numNodes": 3}}, "nodeOverrides is for multi-node parallel jobs"),
        ({"consumableResourcePropertiesOverride": LICENSE}, "consumable resources"),
        ({"containerOverrides": {"instanceType": "m5.large"}}, "tag node.kubernetes.io/instance"),
        ({"containerOverrides": {"vcpus": 0}}, "cpu must be a multiple"),
    ],
)
def test_a_submit_that_would_run_something_else_is_refused(
    batch: Any, idle_queue: str, fields: dict[str, Any], words: str
) -> None:
    given = {"jobName": "x", "jobQueue": idle_queue, "jobDefinition": a_definition(batch, "true")}
    assert words in refusal(batch.submit_job, **given, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"ecsProperties": {"taskProperties": [{"containers": [{"image": "x"}]}]}},
            "ecsProperties is not supported here",
        ),
        ({"consumableResourceProperties": LICENSE}, "consumable resources"),
        ({"nodeProperties": NODES}, "give type multinode, or leave it out"),
        ({"containerProperties": {"image": "other"}}, "not both"),
        ({"type": "multinode"}, "type multinode needs nodeProperties"),
    ],
)
def test_a_definition_that_would_run_something_else_is_refused(
    raw: Any, fields: dict[str, Any], words: str
) -> None:
    given = {"jobDefinitionName": "refused", "type": "container", "eksProperties": POD}
    reply = raw.post("RegisterJobDefinition", {**given, **fields})
    assert (reply.status, reply.code) == (400, "ClientException")
    assert words in reply.message


def test_members_that_say_nothing_are_as_good_as_absent(raw: Any, idle_queue: str) -> None:
    """Airflow's operator sends all of its arguments that are not None."""
    nothing: dict[str, Any] = {
        "ecsPropertiesOverride": {"taskProperties": [{"containers": []}]},
        "nodeOverrides": {"nodePropertyOverrides": []},
        "consumableResourcePropertiesOverride": {"consumableResourceList": []},
        "containerOverrides": {"instanceType": "", "vcpus": None},
        "eksPropertiesOverride": {},
    }
    definition = {"jobDefinitionName": "says-nothing", "type": "container", "eksProperties": POD}
    also = {"ecsProperties": None, "containerProperties": {}, "consumableResourceProperties": {}}
    assert raw.post("RegisterJobDefinition", {**definition, **also}).status == 200
    given = {"jobName": "x", "jobQueue": idle_queue, "jobDefinition": "says-nothing"}
    assert raw.post("SubmitJob", {**given, **nothing}).status == 200


def test_vcpus_and_memory_are_taken_and_requirements_go_before_them(
    batch: Any, idle_queue: str
) -> None:
    given = {"jobName": "x", "jobQueue": idle_queue, "jobDefinition": a_definition(batch, "true")}

    def requests_of(**overrides: Any) -> dict[str, str]:
        job_id = batch.submit_job(**given, containerOverrides=overrides)["jobId"]
        (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
        (container,) = job["eksProperties"]["podProperties"]["containers"]
        return dict(container["resources"]["requests"])

    assert requests_of(vcpus=2, memory=512) == {"cpu": "2", "memory": "512Mi"}
    newer = [{"type": "MEMORY", "value": "256"}]
    assert requests_of(vcpus=1, memory=512, resourceRequirements=newer) == {
        "cpu": "1", "memory": "256Mi"
    }  # fmt: skip
