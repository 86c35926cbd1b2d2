"""What goes over the wire for what an author wrote."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import botocore.session
import pytest
import uuid6
from botocore.validate import ParamValidator

from airflow_eksbatch.arguments import BadArguments, check_fields
from airflow_eksbatch.submission import (
    RunFacts,
    Submission,
    TaskKey,
    build_submission,
    run_facts,
    task_key,
)

TASK = TaskKey(dag_id="weather", run_id="manual__2012-01-01T00:00:00+00:00", task_id="one.month")
JOB = "3f0c1d9e-8f0a-4d7f-9a43-0f3b4c2d1e5f"
BATCH = botocore.session.Session().get_service_model("batch")


def built(run: RunFacts | None = None, **fields: Any) -> Submission:
    return build_submission({"job_queue": "default", **fields}, task=TASK, run=run or RunFacts())


def container(submission: Submission) -> dict[str, Any]:
    return submission.request["eksPropertiesOverride"]["podProperties"]["containers"][0]


def assert_aws_takes(operation: str, body: dict[str, Any]) -> None:
    shape = BATCH.operation_model(operation).input_shape
    assert ParamValidator().validate(body, shape).generate_report() == ""


def test_what_changes_from_run_to_run_is_an_override_and_the_rest_is_named_by_its_content() -> None:
    january, february = built(command=["run", "01"]), built(command=["run", "02"])
    assert container(january) == {"command": ["run", "01"]}
    assert january.request["jobDefinition"] == february.request["jobDefinition"]
    assert january.request["jobDefinition"] != built(vcpus=2).request["jobDefinition"]
    assert january.definition is not None
    assert january.definition["jobDefinitionName"] == january.request["jobDefinition"]


def test_a_string_is_a_shell_line() -> None:
    assert container(built(command="echo $HOME"))["command"] == ["sh", "-c", "echo $HOME"]


def test_resources_are_written_as_batch_on_eks_wants_them() -> None:
    definition = built(vcpus="0.25", memory=512, gpus=1).definition
    assert definition is not None
    pod = definition["eksProperties"]["podProperties"]
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "0.25", "memory": "512Mi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "512Mi", "nvidia.com/gpu": "1"},
    }


def test_a_named_job_definition_is_only_overridden_where_something_is_said() -> None:
    submission = built(job_definition="mine:3", memory=2048, parameters={"year": 2012})
    assert submission.definition is None
    assert submission.request["jobDefinition"] == "mine:3"
    assert submission.request["parameters"] == {"year": "2012"}
    assert container(submission) == {
        "resources": {"requests": {"memory": "2048Mi"}, "limits": {"memory": "2048Mi"}}
    }


def test_backfills_and_todays_runs_are_shares_of_one_job_queue() -> None:
    assert built(RunFacts(run_type="backfill")).request["shareIdentifier"] == "backfill"
    assert built(RunFacts(run_type="scheduled")).request["shareIdentifier"] == "today"
    assert built(share_identifier="mine").request["shareIdentifier"] == "mine"
    assert "shareIdentifier" not in built(share_identifier="").request


@pytest.mark.parametrize(
    ("run_type", "interval", "late", "share"),
    [
        ("scheduled", timedelta(days=1), timedelta(minutes=5), "today"),
        ("scheduled", timedelta(days=1), timedelta(days=3), "today"),
        ("scheduled", timedelta(days=1), timedelta(days=3, seconds=1), "backfill"),
        ("scheduled", timedelta(), timedelta(days=4), "backfill"),  # a cron trigger has no interval
        ("scheduled", timedelta(days=30), timedelta(days=20), "today"),  # the newest month there is
        ("scheduled", timedelta(days=30), timedelta(days=31), "backfill"),
        ("manual", timedelta(days=1), timedelta(days=400), "today"),  # somebody waits for it
        ("asset_triggered", timedelta(), timedelta(days=400), "today"),
        ("backfill", timedelta(days=1), timedelta(), "backfill"),
    ],
)
def test_a_run_of_the_schedule_that_began_long_after_it_was_due_is_history(
    run_type: str, interval: timedelta, late: timedelta, share: str
) -> None:
    due = datetime(2026, 5, 1, tzinfo=UTC)
    run = SimpleNamespace(
        run_type=run_type,
        logical_date=due - interval,
        data_interval_start=due - interval,
        data_interval_end=due,
        start_date=due + late,
    )
    assert built(run_facts(run)).request["shareIdentifier"] == share
    assert built(run_facts(run), share_identifier="mine").request["shareIdentifier"] == "mine"


def test_a_run_without_dates_is_of_today() -> None:
    run = SimpleNamespace(run_type="scheduled", logical_date=None, start_date=None)
    assert run_facts(run).share == "today"


def test_the_token_tells_the_try_and_the_story_tells_the_run() -> None:
    headers = built(RunFacts(run_type="backfill", logical_date="2012-01-01")).headers
    key, _, attempt = headers["x-eksbatch-token"].rpartition("|")
    assert unquote(key) == f"weather|{TASK.run_id}|one.month|-1"
    assert attempt == "1"
    story = json.loads(unquote(headers["x-eksbatch-airflow"]))
    assert story["run_type"] == "backfill"
    assert story["task_id"] == "one.month"


def test_a_task_instance_is_named_by_airflows_id_of_the_try() -> None:
    """Its key and number may come again: in a run that was deleted and made again."""
    instance = uuid6.uuid7()
    ti = SimpleNamespace(
        dag_id="weather", run_id="r1", task_id="month", map_index=None, try_number=2, id=instance
    )
    headers = build_submission({"job_queue": "q"}, task=task_key(ti), run=RunFacts()).headers
    assert headers["x-eksbatch-task-instance"] == str(instance)
    assert unquote(headers["x-eksbatch-token"]) == "weather|r1|month|-1|2"
    assert "x-eksbatch-task-instance" not in built().headers


def test_dependencies_are_job_ids_dicts_or_tasks_of_the_same_run() -> None:
    waits = [JOB, "fetch", {"task_id": "split", "type": "N_TO_N"}, {"job_id": JOB}]
    assert built(depends_on=waits).request["dependsOn"] == [
        {"jobId": JOB},
        {"jobId": f"airflow:weather|{TASK.run_id}|fetch|-1"},
        {"jobId": f"airflow:weather|{TASK.run_id}|split|-1", "type": "N_TO_N"},
        {"jobId": JOB},
    ]


def test_an_array_of_one_is_a_plain_job_that_believes_to_be_child_0() -> None:
    assert built(array_size="12").request["arrayProperties"] == {"size": 12}
    alone = built(array_size=1, command=["run"])
    assert "arrayProperties" not in alone.request
    assert container(alone)["command"][:2] == ["env", "AWS_BATCH_JOB_ARRAY_INDEX=0"]
    with pytest.raises(BadArguments, match="give command"):
        built(array_size=1)


def test_a_job_over_several_nodes_has_one_definition_for_any_number_of_them() -> None:
    two, three = (
        built(num_nodes=count, command=["run"], env={"X": 1}, labels={"a": "b"}, memory=512)
        for count in (2, "3")
    )
    assert two.definition == three.definition
    assert two.definition is not None
    assert_aws_takes("RegisterJobDefinition", two.definition)
    assert_aws_takes("SubmitJob", three.request)
    alone = built(memory=512).definition
    assert alone is not None
    assert two.definition == {
        "jobDefinitionName": two.request["jobDefinition"],
        "type": "multinode",
        "nodeProperties": {
            "numNodes": 1,
            "mainNode": 0,
            "nodeRangeProperties": [{"targetNodes": "0:", "eksProperties": alone["eksProperties"]}],
        },
    }
    assert alone["jobDefinitionName"] != two.definition["jobDefinitionName"]
    pod = {
        "containers": [{"command": ["run"], "env": [{"name": "X", "value": "1"}]}],
        "metadata": {"labels": {"a": "b"}},
    }
    override = {"targetNodes": "0:", "eksPropertiesOverride": {"podProperties": pod}}
    assert three.request == {
        "jobName": "one-month",
        "jobQueue": "default",
        "jobDefinition": two.request["jobDefinition"],
        "nodeOverrides": {"numNodes": 3, "nodePropertyOverrides": [override]},
        "shareIdentifier": "today",
    }


def test_a_job_over_several_nodes_that_changes_nothing_else_says_their_number_only() -> None:
    assert built(num_nodes=1).request["nodeOverrides"] == {"numNodes": 1}
    assert built(num_nodes=1).definition != built().definition


@pytest.mark.parametrize(
    "described",
    [
        {"container_overrides": {"command": ["run"]}},
        {"eks_properties_override": {"podProperties": {"containers": [{"args": ["run"]}]}}},
        {"arguments": ["run"], "job_definition": "mine:3"},
    ],
)
def test_whatever_describes_the_container_describes_that_of_every_node(
    described: dict[str, Any],
) -> None:
    request = built(num_nodes=4, **described).request
    assert_aws_takes("SubmitJob", request)
    pod = {"containers": [{"args": ["run"]}]}
    override = {"targetNodes": "0:", "eksPropertiesOverride": {"podProperties": pod}}
    assert request["nodeOverrides"] == {"numNodes": 4, "nodePropertyOverrides": [override]}
    assert "eksPropertiesOverride" not in request


def test_node_overrides_of_batch_operator_are_passed_on_for_a_definition_of_ones_own() -> None:
    pod = {"podProperties": {"containers": [{"name": "main", "args": ["lead"]}]}}
    changes = [{"targetNodes": "0:0", "eksPropertiesOverride": pod}]
    overrides = {"numNodes": "8", "nodePropertyOverrides": changes}
    submission = built(job_definition="mine", node_overrides=overrides, parameters={"a": "b"})
    assert_aws_takes("SubmitJob", submission.request)
    assert submission.definition is None
    assert submission.request["nodeOverrides"] == {"numNodes": 8, "nodePropertyOverrides": changes}
    only = {"nodePropertyOverrides": changes}
    assert built(job_definition="mine", node_overrides=only).request["nodeOverrides"] == only
    assert overrides["numNodes"] == "8"


def test_ecs_overrides_of_batch_operator_are_understood() -> None:
    submission = built(
        job_definition="mine",
        container_overrides={
            "command": ["run"],
            "environment": [{"name": "YEAR", "value": "2012"}],
            "resourceRequirements": [{"type": "MEMORY", "value": "512"}],
        },
    )
    assert container(submission)["args"] == ["run"]
    assert container(submission)["env"] == [{"name": "YEAR", "value": "2012"}]
    assert container(submission)["resources"]["limits"] == {"memory": "512Mi"}


def test_labels_join_an_override_of_ones_own() -> None:
    override = {"podProperties": {"metadata": {"labels": {"a": "1"}}}}
    request = built(eks_properties_override=override, labels={"b": 2}, env={"X": 1}).request
    pod = request["eksPropertiesOverride"]["podProperties"]
    assert pod["metadata"] == {"labels": {"a": "1", "b": "2"}}
    assert pod["containers"] == [{"env": [{"name": "X", "value": "1"}]}]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"vcpus": 0.3}, "multiple of 0.25"),
        ({"vcpus": 0}, "at least 0.25"),
        ({"vcpus": "many"}, "must be a number"),
        ({"vcpus": float("inf")}, "multiple of 0.25"),
        ({"vcpus": "nan"}, "multiple of 0.25"),
        ({"job_queue": None}, "job_queue is empty: name a job queue"),
        ({"arguments": "--date 2012-01-01"}, "must be a list of words, got '--date 2012-01-01'"),
        ({"arguments": 5}, "arguments must be a list of words, got 5; .* goes into .* command"),
        ({"memory": 3}, "between 4"),
        ({"memory": "1GiB"}, "whole number"),
        ({"command": []}, "command is empty"),
        ({"command": " "}, "command is empty"),
        ({"array_size": 0}, "between 1 and 10000"),
        ({"array_size": 10_001}, "between 1 and 10000"),
        ({"num_nodes": 0}, "num_nodes must be between 1 and 1000"),
        ({"num_nodes": 1_001}, "num_nodes must be between 1 and 1000"),
        ({"num_nodes": "many"}, "num_nodes must be a whole number"),
        ({"num_nodes": 2, "array_size": 2}, "give num_nodes or array_size, not both"),
        ({"num_nodes": 2, "node_overrides": {}}, "give num_nodes, or numNodes in node_overrides"),
        ({"node_overrides": [2]}, "node_overrides must be a dict"),
        ({"node_overrides": {"numNodes": 0}}, "numNodes of node_overrides must be between 1"),
        ({"node_overrides": {"numNodes": 2}}, "type multinode: name one, or give num_nodes"),
        ({"node_overrides": {}, "array_size": 2}, "give node_overrides or array_size, not both"),
        (
            {
                "job_definition": "mine",
                "node_overrides": {},
                "command": ["x"],
                "labels": {"a": "b"},
            },
            r"say what the nodes run: leave out \['command', 'labels'\]",
        ),
        (
            {"job_definition": "mine", "node_overrides": {}, "eks_properties_override": {}},
            r"leave out \['eks_properties_override'\]",
        ),
        ({"timeout_s": 59}, "between 60"),
        ({"attempts": 11}, "between 1 and 10"),
        ({"attempts": 2, "retry_strategy": {"attempts": 3}}, "twice"),
        ({"env": {"AWS_BATCH_JOB_ID": "x"}}, "set by the service"),
        ({"env": ["A=1"]}, "must be a dict"),
        ({"share_identifier": "back-fill"}, "letters and digits"),
        ({"job_name": "my job"}, "up to 128 letters"),
        ({"depends_on": "fetch"}, "must be a list"),
        ({"scheduling_priority_override": 10_000}, "between 0 and 9999"),
        ({"container_overrides": {}, "eks_properties_override": {}}, "not both"),
        ({"container_overrides": {"command": ["x"]}, "command": ["y"]}, "leave out"),
        (
            {"container_overrides": {"command": "echo hi"}},
            "command of container_overrides must be a",
        ),
        ({"container_overrides": {"vcpus": 1}}, "cannot take vcpus on Amazon EKS"),
        (
            {"container_overrides": {"environment": {"A": "1"}}},
            "a list of dicts, each with name and",
        ),
        ({"container_overrides": {"environment": [{"name": "A"}]}}, "each with name and value"),
        (
            {"container_overrides": {"resourceRequirements": [{"type": "CPU", "value": "1"}]}},
            "must be one of VCPU, MEMORY, GPU, got CPU",
        ),
        (
            {"eks_properties_override": {"containers": []}},
            "takes podProperties only, got containers",
        ),
        (
            {"eks_properties_override": {"podProperties": [{}]}},
            "podProperties of eks_properties_override must be a dict",
        ),
        ({"job_definition": "mine", "service_account": "me"}, "belongs to the job definition"),
        ({"parameters": {"a": "b"}}, "name one"),
    ],
)
def test_what_cannot_be_is_said_when_the_dag_is_parsed(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BadArguments, match=says):
        check_fields(fields)


def test_templates_are_checked_once_they_are_rendered() -> None:
    check_fields({"vcpus": "{{ params.vcpus }}", "array_size": "{{ params.n }}"})
    counted = {"numNodes": "{{ params.n }}"}
    check_fields({"num_nodes": "{{ params.n }}"})
    check_fields({"node_overrides": counted, "job_definition": "mine"})
    overrides = [
        {"command": "{{ params.words }}", "environment": ["{{ params.pair }}"]},
        {"environment": [{"name": "A", "value": "{{ ds }}"}]},
        {"resourceRequirements": [{"type": "{{ params.kind }}", "value": 1}]},
    ]
    for override in overrides:
        check_fields({"container_overrides": override})
    check_fields({"arguments": "{{ params.words }}", "job_queue": "{{ params.queue }}"})
    assert container(built(arguments=("--date", 1)))["args"] == ["--date", "1"]
    for text in ("--date 2012-01-01", "{{ not a template any more }}"):
        with pytest.raises(BadArguments, match="arguments must be a list of words"):
            built(arguments=text)
    with pytest.raises(BadArguments, match=r"resourceRequirements .* must be a list of dicts"):
        built(container_overrides={"resourceRequirements": None})
    for queue in (None, ""):
        with pytest.raises(BadArguments, match="job_queue is empty"):
            built(job_queue=queue)
    with pytest.raises(BadArguments, match="multiple of"):
        built(vcpus="0.3")
    with pytest.raises(BadArguments, match="between 1 and 1000"):
        built(num_nodes="0")
