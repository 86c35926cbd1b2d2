"""Multi-node parallel jobs over the wire: how they are registered, submitted, told, and read node by node."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from airflow_eksbatch.api.extension import explain_job
from airflow_eksbatch.api.wire import node_properties
from airflow_eksbatch.core.engine.facts import JobStopped
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import JobId
from tests.api.asking import Raw, refusal
from tests.api.conftest import an_environment
from tests.api.desk import StageDesk
from tests.build import a_node, a_queue, a_world, an_offering
from tests.core.stage import Stage
from tests.service.running import RunningService, a_definition
from tests.test_cli import run as run_cli
from tests.web.test_dashboard import look

TYPE = "node.kubernetes.io/instance-type"


def a_pod(*command: str, cpu: str = "1", memory: str = "512Mi", **fields: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": cpu, "memory": memory}}
    container = {"image": "busybox", "command": [*command], "resources": resources}
    return {"containers": [container], **fields}


def a_range(targets: str, *command: str, types: Any = None, **fields: Any) -> dict[str, Any]:
    entry = {"targetNodes": targets, "eksProperties": {"podProperties": a_pod(*command, **fields)}}
    return {**entry, "instanceTypes": types} if types is not None else entry


def nodes(number: int, main: int, *ranges: Any) -> dict[str, Any]:
    return {"numNodes": number, "mainNode": main, "nodeRangeProperties": [*ranges]}


# ---- which range a node is of


@pytest.mark.parametrize(
    ("number", "targets", "of"),
    [
        (1, ["0"], "0"),
        (1, [":"], "0"),
        (4, [":1", "2:"], "0011"),
        (4, ["0:3", "1:2"], "0110"),
        (4, ["1:2", "0:3"], "1001"),
        (4, ["2:", "0:3"], "1100"),
        (4, ["0:", "0:1"], "1100"),
        (4, ["0:1", "0:"], "0011"),
        (5, ["0:4", "1:3", "2"], "01210"),
        (3, ["0:1", "1:2"], "011"),
    ],
)
def test_of_nested_ranges_a_node_is_of_the_inner_one(
    number: int, targets: list[str], of: str
) -> None:
    ranges = node_properties.ranges_of(nodes(number, 0, *map(a_range, targets)))
    found = node_properties.governing(ranges, number)
    assert "".join(map(str, found)) == of


# ---- registering


def register(batch: Any, properties: dict[str, Any], **fields: Any) -> str:
    fields = {"jobDefinitionName": "gang", **fields}
    made = batch.register_job_definition(type="multinode", nodeProperties=properties, **fields)
    return str(made["jobDefinitionArn"])


def test_a_definition_is_told_in_the_words_in_which_it_was_registered(batch: Any) -> None:
    given = nodes(4, 2, a_range("0:", "work"), a_range("2", "lead", types=["m6i.large"]))
    arn = register(batch, given, parameters={"x": "1"})
    (told,) = batch.describe_job_definitions(jobDefinitions=[arn])["jobDefinitions"]
    assert (told["type"], told["containerOrchestrationType"]) == ("multinode", "EKS")
    assert told["nodeProperties"] == given
    assert "eksProperties" not in told


ECS: dict[str, Any] = {"taskProperties": [{"containers": [{"image": "x"}]}]}
POD = {"podProperties": a_pod("x")}
CONTAINER = {"image": "x", "vcpus": 1, "memory": 512}
CLAIMS = {"consumableResourceList": [{"consumableResource": "license", "quantity": 1}]}


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        (nodes(0, 0, a_range("0:")), "numNodes must be 1 to 1,000, not 0"),
        (nodes(1001, 0, a_range("0:")), "numNodes must be 1 to 1,000, not 1001"),
        (nodes(2, 2, a_range("0:")), "mainNode must be one of the 2 nodes, 0 to 1, not 2"),
        (nodes(2, -1, a_range("0:")), "not -1"),
        (nodes(2, 0), "1 to 5 entries, not 0"),
        (nodes(6, 0, *(a_range(str(n)) for n in range(6))), "1 to 5 entries, not 6"),
        (nodes(4, 0, a_range("0:2")), "Node 3 is in no range"),
        (nodes(4, 0, a_range("0:0"), a_range("2:")), "Node 1 is in no range"),
        (nodes(4, 0, a_range("0:4")), "targetNodes 0:4 goes beyond node 3"),
        (nodes(4, 0, a_range("0:3"), a_range("4:")), "targetNodes 4: goes beyond node 3"),
        (nodes(4, 0, a_range("3:0")), "give the lower node first"),
        (nodes(4, 0, a_range("a:b")), "like 0:3, :3, 2: or 2, not 'a:b'"),
        (nodes(4, 0, a_range("")), "not ''"),
        (nodes(4, 0, a_range("0:\n")), "targetNodes must be like"),
        (nodes(1, 0, {"targetNodes": ":"}), "either eksProperties.podProperties or container"),
        (
            nodes(1, 0, {**a_range("0:"), "container": CONTAINER}),
            "either eksProperties.podProperties or container",
        ),
        (nodes(1, 0, {"targetNodes": ":", "ecsProperties": ECS}), "ecsProperties is not supported"),
        (
            nodes(1, 0, {**a_range(":"), "consumableResourceProperties": CLAIMS}),
            "consumable resources",
        ),
        (nodes(2, 0, a_range("0"), a_range("1", cpu="0.1")), "0.25 on, not '0.1'. [targetNodes 1]"),
        (
            nodes(2, 0, a_range(":", metadata={"namespace": "default"})),
            "neither default nor begin with kube-",
        ),
        (
            nodes(2, 0, a_range("0", metadata={"namespace": "one"}), a_range("1")),
            "the same metadata.namespace, these have none and one",
        ),
        (
            nodes(2, 0, a_range(":", types=["m6i.large", "m6i.xlarge"])),
            "instanceTypes takes one, the same in all ranges, not m6i.large, m6i.xlarge",
        ),
        (
            nodes(2, 0, a_range("0", types=["m6i.large"]), a_range("1", types=["m6i.xlarge"])),
            "of the same instance type",
        ),
    ],
)
def test_node_properties_that_cannot_be_are_refused_with_a_sentence(
    batch: Any, properties: dict[str, Any], words: str
) -> None:
    assert words in refusal(register, batch=batch, properties=properties)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"eksProperties": POD}, "eksProperties is for type container"),
        ({"containerProperties": CONTAINER}, "containerProperties is for type container"),
        ({"platformCapabilities": ["FARGATE"]}, "not for EKS"),
    ],
)
def test_what_one_pod_has_is_refused_beside_node_properties(
    batch: Any, fields: dict[str, Any], words: str
) -> None:
    message = refusal(register, batch=batch, properties=nodes(1, 0, a_range(":")), **fields)
    assert words in message


# ---- submitting


@pytest.fixture(scope="module")
def waiting(batch: Any) -> str:
    """A job queue whose jobs stay RUNNABLE."""
    off = an_environment("nodes-off")
    batch.create_compute_environment(**off, state="DISABLED")
    order = [{"order": 1, "computeEnvironment": "nodes-off"}]
    batch.create_job_queue(jobQueueName="nodes", priority=1, computeEnvironmentOrder=order)
    return "nodes"


@pytest.fixture
def described(batch: Any, waiting: str) -> Callable[..., dict[str, Any]]:
    """Submit a definition, and what DescribeJobs says of the job that waits."""

    def submit(properties: dict[str, Any], **fields: Any) -> dict[str, Any]:
        definition = register(batch, properties)
        given = {"jobName": "gang", "jobQueue": waiting, "jobDefinition": definition, **fields}
        job_id = batch.submit_job(**given)["jobId"]
        (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
        return job

    return submit


def words_of(job: dict[str, Any]) -> dict[str, list[str]]:
    """Command of each stretch of nodes that run the same."""
    found: dict[str, list[str]] = {}
    for one in job["nodeProperties"]["nodeRangeProperties"]:
        (container,) = one["eksProperties"]["podProperties"]["containers"]
        found[one["targetNodes"]] = [*container.get("command", ()), *container.get("args", ())]
    return found


def change(targets: str, *command: str, **fields: Any) -> dict[str, Any]:
    pod = {"containers": [{"command": [*command], **fields}]}
    return {"targetNodes": targets, "eksPropertiesOverride": {"podProperties": pod}}


def test_a_job_tells_its_nodes_with_parameters_filled_in(described: Any) -> None:
    given = nodes(4, 2, a_range("0:", "work", "Ref::how"), a_range("2", "lead", "Ref::how"))
    job = described(given, parameters={"how": "fast"})
    assert job["nodeProperties"]["numNodes"] == 4
    assert job["nodeProperties"]["mainNode"] == 2
    assert words_of(job) == {
        "0:1": ["work", "fast"],
        "2:2": ["lead", "fast"],
        "3:3": ["work", "fast"],
    }
    assert job["container"]["command"] == ["lead", "fast"], "that of the main node"
    assert "arrayProperties" not in job


def test_ranges_that_run_the_same_are_told_as_one(described: Any) -> None:
    assert words_of(described(nodes(3, 0, a_range("0", "a"), a_range("1:", "a")))) == {"0:2": ["a"]}


@pytest.mark.parametrize("targets", ["1:", "1:7"])
def test_more_nodes_come_where_the_definition_leaves_their_number_open(
    described: Any, targets: str
) -> None:
    given = nodes(2, 0, a_range("0", "lead"), a_range("1:", "work"))
    overrides = {"numNodes": 8, "nodePropertyOverrides": [change(targets, "other")]}
    job = described(given, nodeOverrides=overrides)
    assert words_of(job) == {"0:0": ["lead"], "1:7": ["other"]}
    assert job["nodeProperties"]["numNodes"] == 8


def test_an_override_changes_the_nodes_of_its_range_and_inner_ranges_stay(described: Any) -> None:
    given = nodes(4, 0, a_range("0:3", "a"), a_range("1:2", "b"))
    overrides = {"nodePropertyOverrides": [change(":3", "c", env=[{"name": "X", "value": "1"}])]}
    job = described(given, nodeOverrides=overrides)
    assert words_of(job) == {"0:0": ["c"], "1:2": ["b"], "3:3": ["c"]}


def test_ranges_in_the_words_of_ecs_run_as_pods(described: Any) -> None:
    """As Metaflow registers them: literal words, and an instance type in the container."""
    container = {**CONTAINER, "command": ["echo", "$HOME"], "instanceType": "m6i.large"}
    ranges = [{"targetNodes": targets, "container": container} for targets in ("0", "1:")]
    change = {"targetNodes": "1:", "containerOverrides": {"command": ["$A", "Ref::b"]}}
    job = described(
        nodes(2, 0, *ranges),
        nodeOverrides={"nodePropertyOverrides": [change]},
        parameters={"b": "$B"},
    )
    assert words_of(job) == {"0:0": ["echo", "$$HOME"], "1:1": ["$$A", "$$B"]}
    assert job["tags"][TYPE] == "m6i.large"


def test_the_instance_type_becomes_the_tag_that_chooses_nodes(described: Any) -> None:
    """1 of the definition 2 of the submit, for all ranges that name one 3 `optimal` is any."""
    given = nodes(2, 0, a_range("0", types=["m6i.large"]), a_range("1"))
    job = described(given, tags={"team": "bio"})
    assert job["tags"] == {"team": "bio", TYPE: "m6i.large"}
    for entry in job["nodeProperties"]["nodeRangeProperties"]:
        assert entry["instanceTypes"] == ["m6i.large"]
    other = {"targetNodes": "0", "instanceTypes": ["m6i.xlarge"]}
    changed = described(given, nodeOverrides={"nodePropertyOverrides": [other]})
    assert changed["tags"] == {TYPE: "m6i.xlarge"}
    assert described(nodes(1, 0, a_range(":", types=["optimal"])))["tags"] == {}


def test_as_many_nodes_as_aws_allows_may_be_asked_for(described: Any) -> None:
    job = described(nodes(limits.NODES_MAX, 999, a_range(":", "x"), a_range("999", "y")))
    assert words_of(job) == {"0:998": ["x"], "999:999": ["y"]}


ECS_CHANGE = {"taskProperties": [{"containers": [{"name": "Default", "command": ["x"]}]}]}
OPEN = nodes(3, 2, a_range("0", "a"), a_range("1:", "b"))
CLOSED = nodes(3, 0, a_range("0", "a"), a_range("1:2", "b", types=["m6i.large"]))


def said(*entries: Any, **fields: Any) -> dict[str, Any]:
    return {"nodeOverrides": {"nodePropertyOverrides": [*entries], **fields}}


@pytest.mark.parametrize(
    ("properties", "fields", "words"),
    [
        (CLOSED, said(numNodes=4), "at least 1 target node without a range_end"),
        (OPEN, said(numNodes=0), "numNodes must be 1 to 1,000"),
        (OPEN, said(numNodes=2), "mainNode must be one of the 2 nodes"),
        (OPEN, said(change("2:", "x")), "Non matching targets - 2:. It has 0, 1:, for 3 nodes"),
        (OPEN, said(change("1:5", "x")), "Non matching targets - 1:5"),
        (OPEN, said(change("x", "x")), "targetNodes must be like"),
        (OPEN, said(change("1:", "x"), change("1:2", "y")), "targetNodes 1:2 twice"),
        (OPEN, said(change("0", "Ref::y")), "No parameter found for reference y [targetNodes 0]"),
        (
            OPEN,
            said(change("0", "x", name="other")),
            "names container other, which the job definition does not have",
        ),
        (
            OPEN,
            said(change("0", "x", resources={"requests": {"cpu": "0.3", "memory": "1Mi"}})),
            "multiple of 0.25",
        ),
        (
            OPEN,
            said({"targetNodes": "0", "ecsPropertiesOverride": ECS_CHANGE}),
            "ecsPropertiesOverride is not supported here",
        ),
        (
            OPEN,
            said({"targetNodes": "0", "consumableResourcePropertiesOverride": CLAIMS}),
            "consumable resources",
        ),
        (
            CLOSED,
            said({"targetNodes": "0", "instanceTypes": ["m6i.xlarge"]}),
            "of the same instance type",
        ),
        (CLOSED, {"tags": {TYPE: "m6i.xlarge"}}, "says m6i.xlarge, and instanceTypes of the nodes"),
        (
            OPEN,
            {"eksPropertiesOverride": {"podProperties": {"containers": [{"command": ["x"]}]}}},
            "leave out eksPropertiesOverride, nodeOverrides.nodePropertyOverrides changes",
        ),
        (OPEN, {"containerOverrides": {"command": ["x"]}}, "leave out containerOverrides"),
        (OPEN, {"arrayProperties": {"size": 2}}, "it cannot be an array as well"),
        (OPEN, {"dependsOn": [{"type": "SEQUENTIAL"}]}, "is for array jobs"),
    ],
)
def test_a_submit_that_cannot_be_is_refused_with_a_sentence(
    described: Any, properties: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(Exception, match="ClientException") as refused:
        described(properties, **fields)
    assert words in str(refused.value)


def test_members_that_say_nothing_are_as_good_as_absent(described: Any) -> None:
    """Airflow's operator sends all of its arguments that are not None."""
    job = described(
        OPEN,
        containerOverrides={},
        nodeOverrides={"nodePropertyOverrides": []},
        eksPropertiesOverride={},
        arrayProperties={},
    )
    assert job["nodeProperties"]["numNodes"] == 3


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        (
            nodes(2, 0, a_range("0"), a_range("1", memory="9000000Mi")),
            "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",
        ),
        (
            nodes(2, 0, a_range(":", types=["x1.mini"])),
            "no instances of type x1.mini in on-demand, spot",
        ),
        (
            nodes(2, 0, a_range(":", memory="30000Mi", types=["m6i.large"])),
            "the largest instance of on-demand, spot leaves",
        ),
    ],
)
def test_what_no_environment_can_hold_is_refused_at_once(
    batch: Any, properties: dict[str, Any], words: str
) -> None:
    given = {"jobName": "x", "jobQueue": "default", "shareIdentifier": "a"}
    given["jobDefinition"] = register(batch, properties)
    assert words in refusal(batch.submit_job, **given)


def test_a_range_that_no_node_is_of_asks_for_nothing(described: Any) -> None:
    huge = a_range("0:1", memory="9000000Mi")
    job = described(nodes(2, 0, huge, a_range("0", "a"), a_range("1", "b")))
    assert words_of(job) == {"0:0": ["a"], "1:1": ["b"]}


# ---- what is told while it lives, over a world that is played by hand

LARGE = an_offering("m6i.large", vcpus=2, memory_mib=8_192)


@pytest.fixture
def desk() -> StageDesk:
    machines = [a_node(offering=LARGE) for _ in range(4)]
    return StageDesk(Stage(a_world(*machines, offerings=[LARGE])))


def submitted(desk: StageDesk, **fields: Any) -> str:
    """A job of four nodes, the third of which is the main one."""
    given = nodes(4, 2, a_range("0:", "work"), a_range("2", "lead"))
    named = {"jobDefinitionName": "gang", "type": "multinode", "nodeProperties": given}
    desk.ask_for("RegisterJobDefinition", **named)
    job = {"jobName": "gang", "jobQueue": "queue", "jobDefinition": "gang", **fields}
    return str(desk.ask_for("SubmitJob", **job)["jobId"])


def with_nodes(job_id: str) -> list[str]:
    return [job_id, *(f"{job_id}#{number}" for number in range(4))]


def statuses(desk: StageDesk, job_id: str) -> list[str]:
    """The job's, then those of its nodes by AWS's numbers."""
    return [job["status"] for job in desk.described(*with_nodes(job_id))]


def listed(desk: StageDesk, job_id: str, **fields: Any) -> list[int]:
    """Numbers of the nodes that ListJobs tells."""
    rows = desk.ask_for("ListJobs", multiNodeJobId=job_id, **fields)["jobSummaryList"]
    assert [row["jobId"] for row in rows] == [
        f"{job_id}#{row['nodeProperties']['nodeIndex']}" for row in rows
    ]
    return [row["nodeProperties"]["nodeIndex"] for row in rows]


def run_all(stage: Stage) -> None:
    """The main node runs, then the others."""
    stage.run()
    stage.run()


def test_a_job_lives_as_its_main_node_does_and_each_node_tells_its_own(desk: StageDesk) -> None:
    """1 it runs 2 a node fails: its own affair 3 the main node ends: the job runs until all do 4 how each ended."""
    stage, job_id = desk.stage, submitted(desk)
    run_all(stage)
    assert statuses(desk, job_id) == ["RUNNING"] * 5
    assert listed(desk, job_id) == [0, 1, 2, 3]

    # Index 0 is node 2, and index 2 is node 0.
    stage.end(job_id, 1, exit_code=7)
    assert statuses(desk, job_id) == ["RUNNING", "RUNNING", "FAILED", "RUNNING", "RUNNING"]
    assert listed(desk, job_id) == [0, 2, 3]
    assert listed(desk, job_id, jobStatus="FAILED") == [1]

    stage.end(job_id, 0)
    assert statuses(desk, job_id) == ["RUNNING", "RUNNING", "FAILED", "SUCCEEDED", "RUNNING"]
    (whole,) = desk.described(job_id)
    assert "stoppedAt" not in whole
    rows = desk.ask_for("ListJobs", jobQueue="queue")["jobSummaryList"]
    assert [(row["jobId"], row["status"]) for row in rows] == [(job_id, "RUNNING")]

    stage.step(stage.ended(job_id, 2, exit_code=143), stage.ended(job_id, 3, exit_code=143))
    assert statuses(desk, job_id) == ["SUCCEEDED", "FAILED", "FAILED", "SUCCEEDED", "FAILED"]
    whole, first, second, main, _ = desk.described(*with_nodes(job_id))
    assert whole["container"]["exitCode"] == main["container"]["exitCode"] == 0
    assert second["container"]["exitCode"] == 7
    assert first["statusReason"] == "The main node of its multi-node parallel job has ended"
    assert [job["isTerminated"] for job in (whole, first, second, main)] == [False] * 4
    assert [job["stoppedAt"] for job in (whole, first, main)] == [stage.now] * 3


def test_each_node_has_its_number_its_pod_and_its_attempts(desk: StageDesk) -> None:
    job_id = submitted(desk)
    run_all(desk.stage)
    desk.stage.end(job_id, 2, exit_code=3)
    whole, *several = desk.described(*with_nodes(job_id))
    assert [job["nodeDetails"] for job in several] == [
        {"nodeIndex": number, "isMainNode": number == 2} for number in range(4)
    ]
    assert "nodeDetails" not in whole
    assert [job["jobArn"].rpartition("/")[2] for job in several] == with_nodes(job_id)[1:]
    assert all("nodeProperties" not in job and "arrayProperties" not in job for job in several)
    pods = [job["eksProperties"]["podProperties"] for job in several]
    assert [pod["containers"][0]["command"] for pod in pods] == [
        ["work"], ["work"], ["lead"], ["work"]
    ]  # fmt: skip
    assert len({pod["nodeName"] for pod in pods}) == 4
    assert whole["eksProperties"]["podProperties"] == pods[2]
    assert [len(job["eksAttempts"]) for job in (whole, *several)] == [0, 1, 0, 0, 0]
    (attempt,) = several[0]["eksAttempts"]
    assert attempt["containers"] == [{"name": "Default", "exitCode": 3}]
    assert attempt["podName"] == pods[0]["podName"]


def test_clients_made_for_ecs_find_the_log_streams_of_a_job_in_its_attempts(
    desk: StageDesk,
) -> None:
    """Airflow's BatchOperator looks for them there if a job has nodeProperties, and nowhere else."""
    stage = desk.stage
    job_id = submitted(desk, retryStrategy={"attempts": 2})
    assert desk.described(job_id)[0]["attempts"] == []
    run_all(stage)
    (running,) = desk.described(job_id)[0]["attempts"]
    assert running["container"] == {"logStreamName": f"{job_id}-0-1"}
    stage.end(job_id, 0, exit_code=1)
    stage.step(*(stage.ended(job_id, index, exit_code=143) for index in (1, 2, 3)))
    run_all(stage)
    stage.end(job_id, 0)
    stage.step(*(stage.ended(job_id, index, exit_code=143) for index in (1, 2, 3)))
    (whole,) = desk.described(job_id)
    told = [(one["container"]["logStreamName"], one["container"]["exitCode"]) for one in whole["attempts"]]  # fmt: skip
    assert told == [(f"{job_id}-0-1", 1), (f"{job_id}-0-2", 0)]
    assert [one["podName"] for one in whole["eksAttempts"]] == [name for name, _ in told]


def test_a_node_with_a_machine_says_what_it_does_itself(desk: StageDesk) -> None:
    """1 it waits for the main node 2 it runs, on its own machine 3 of a job that waits it says why."""
    job_id, other = submitted(desk), submitted(desk)

    def told(number: int, of: str = job_id) -> str:
        found = asyncio.run(explain_job(desk, f"{of}#{number}"))
        return str(found["sentences"][0])

    def machine(number: int) -> str:
        (job,) = desk.described(f"{job_id}#{number}")
        return str(job["eksProperties"]["podProperties"]["nodeName"])

    assert told(0) == f"Node {machine(0)} is its own; it begins when the main node runs."
    assert "the cluster has not shown its pod yet" in told(2)
    run_all(desk.stage)
    for number in range(4):
        assert "It has been RUNNING for" in told(number)
        assert f"on node {machine(number)} (ce)" in told(number)
    assert "It has been RUNNABLE for" in told(1, of=other)


def test_nodes_of_a_job_that_waits_wait_and_of_one_that_is_cancelled_are_cancelled(
    desk: StageDesk,
) -> None:
    first, second = submitted(desk), submitted(desk)
    assert statuses(desk, first) == ["STARTING"] * 5
    assert statuses(desk, second) == ["RUNNABLE"] * 5
    desk.ask_for("CancelJob", jobId=second, reason="not needed")
    for job in desk.described(*with_nodes(second)):
        assert (job["status"], job["statusReason"]) == ("FAILED", "not needed")
        assert (job["isCancelled"], job["isTerminated"]) == (True, False)


def test_nodes_of_a_job_that_is_cancelled_before_its_next_attempt_tell_why(desk: StageDesk) -> None:
    """Not how their last attempt ended: that was to be tried again."""
    stage, job_id = desk.stage, submitted(desk, retryStrategy={"attempts": 2})
    run_all(stage)
    stage.end(job_id, 0, exit_code=1)
    ends = [stage.ended(job_id, index, exit_code=143) for index in (1, 2, 3)]
    cancel = JobStopped(job_id=JobId(job_id), index=None, reason="not needed", terminate=False)
    stage.step(*ends, cancel)
    for job in desk.described(*with_nodes(job_id)):
        assert (job["status"], job["statusReason"]) == ("FAILED", "not needed")
        assert job["isCancelled"]


def test_nodes_are_listed_page_by_page_in_the_order_of_their_numbers(desk: StageDesk) -> None:
    job_id = submitted(desk)
    run_all(desk.stage)
    desk.stage.end(job_id, 1)
    asked: dict[str, Any] = {"multiNodeJobId": job_id, "maxResults": 1}
    found: list[dict[str, Any]] = []
    while True:
        page = desk.ask_for("ListJobs", **asked)
        found += page["jobSummaryList"]
        if "nextToken" not in page:
            break
        asked["nextToken"] = page["nextToken"]
    assert [row["nodeProperties"] for row in found] == [
        {"isMainNode": number == 2, "numNodes": 4, "nodeIndex": number} for number in (0, 2, 3)
    ]
    (row,) = desk.ask_for("ListJobs", jobQueue="queue")["jobSummaryList"]
    assert row["nodeProperties"] == {"numNodes": 4}
    assert row["capacityUsage"] == [{"capacityUnit": "cpu", "quantity": 4}]
    assert found[0]["capacityUsage"] == [{"capacityUnit": "cpu", "quantity": 1}]


def test_ids_of_parts_that_are_not_there_name_nothing(desk: StageDesk) -> None:
    job_id = submitted(desk)
    array = desk.stage.submit("array", size=3)
    ids = [
        f"{job_id}#4", f"{job_id}:1", f"{job_id}#", f"{job_id}#01", f"{job_id}#1#1", f"{array}#1"
    ]  # fmt: skip
    assert desk.described(*ids) == []
    assert desk.ask_for("ListJobs", arrayJobId=job_id) == {"jobSummaryList": []}
    assert desk.ask_for("ListJobs", multiNodeJobId=array) == {"jobSummaryList": []}


@pytest.mark.parametrize("operation", ["CancelJob", "TerminateJob"])
def test_one_node_cannot_be_ended_and_the_sentence_says_what_can(
    desk: StageDesk, operation: str
) -> None:
    job_id = submitted(desk)
    run_all(desk.stage)
    with pytest.raises(Rejected, match="only the job as a whole") as refused:
        desk.ask_for(operation, jobId=f"{job_id}#1", reason="enough")
    assert job_id in refused.value.message.replace(f"{job_id}#1", "")
    assert statuses(desk, job_id) == ["RUNNING"] * 5


def test_a_job_that_is_terminated_ends_on_all_of_its_nodes(desk: StageDesk) -> None:
    stage, job_id = desk.stage, submitted(desk)
    run_all(stage)
    desk.ask_for("TerminateJob", jobId=job_id, reason="enough")
    stage.step(*(stage.ended(job_id, index, exit_code=143) for index in range(4)))
    for job in desk.described(*with_nodes(job_id)):
        assert (job["status"], job["statusReason"]) == ("FAILED", "enough")
        assert job["isTerminated"]


def test_at_the_front_of_a_queue_a_job_is_one_whatever_it_has_nodes() -> None:
    """1 multi-node jobs between others, in the order of their age 2 a hundred of them are a hundred."""
    desk = StageDesk(Stage(a_world(a_queue("empty"), offerings=[])))
    order = [desk.stage.submit("first"), submitted(desk), submitted(desk)]
    order.append(desk.stage.submit("last"))
    for _ in range(2):
        front = desk.ask_for("GetJobQueueSnapshot", jobQueue="queue")["frontOfQueue"]["jobs"]
        assert [entry["jobArn"].rpartition("/")[2] for entry in front] == order[:100]
        order += [submitted(desk) for _ in range(98)]


# ---- a job that really runs


@pytest.fixture(scope="module")
def ran(service: RunningService, batch: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four nodes: the main one, the third, ends when the three others have said that they run."""
    pipe = tmp_path_factory.mktemp("gang") / "pipe"
    os.mkfifo(pipe)
    told = "node $AWS_BATCH_JOB_NODE_INDEX of $AWS_BATCH_JOB_NUM_NODES main $AWS_BATCH_JOB_MAIN_NODE_INDEX"
    work = f"echo {told} at $AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS; echo up >{pipe}; exec sleep 900"
    lead = f'exec 3<>{pipe}; for _ in 1 2 3; do read line <&3; done; echo "{told}"; exit 0'
    tasks = [("0:", work), ("2", lead)]
    ranges = [a_range(targets, "sh", "-c", line, cpu="0.25") for targets, line in tasks]
    definition = register(batch, nodes(4, 2, *ranges), jobDefinitionName="ran")
    job = {"jobName": "ran", "jobQueue": "default", "shareIdentifier": "gang"}
    job_id = str(batch.submit_job(**job, jobDefinition=definition)["jobId"])
    assert service.wait_for_ends({job_id}) == {job_id: "SUCCEEDED"}
    return job_id


def test_a_job_that_ran_tells_its_nodes(batch: Any, ran: str) -> None:
    told = batch.describe_jobs(jobs=with_nodes(ran))["jobs"]
    assert [job["status"] for job in told] == [
        "SUCCEEDED", "FAILED", "FAILED", "SUCCEEDED", "FAILED"
    ]  # fmt: skip
    rows = batch.list_jobs(multiNodeJobId=ran, jobStatus="FAILED")["jobSummaryList"]
    assert [row["jobId"] for row in rows] == [f"{ran}#{number}" for number in (0, 1, 3)]
    assert batch.list_jobs(multiNodeJobId=ran)["jobSummaryList"] == []


@pytest.mark.parametrize(("node", "end"), [("", " main 2"), ("#2", " main 2"), ("#3", "127.0.0.1")])
def test_the_output_of_one_node_is_read_by_its_id_and_that_of_the_main_one_by_the_jobs(
    service: RunningService, batch: Any, raw: Raw, ran: str, node: str, end: str
) -> None:
    """1 by its path, percent-encoded 2 by the log stream that DescribeJobs names 3 at the command line."""
    job_id, number = f"{ran}{node}", node.removeprefix("#") or "2"
    reply = raw("GET", f"/v1/eksbatch/jobs/{quote(job_id, safe='')}/log")
    line = reply.body.decode()
    assert line.startswith(f"node {number} of 4 main 2")
    assert line.rstrip().endswith(end)

    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    target = {"x-amz-target": "Logs_20140328.GetLogEvents"}
    asked = {"logGroupName": "/aws/batch/job", "logStreamName": job["container"]["logStreamName"]}
    events = json.loads(raw("POST", "/", json.dumps(asked).encode(), target).body)["events"]
    assert [event["message"] for event in events] == line.splitlines()

    ended = run_cli("job", "--log", job_id, EKSBATCH_URL=service.url)
    assert ended.stdout == line, ended.stderr
    assert ended.returncode == (1 if job["status"] == "FAILED" else 0)


def test_a_node_is_explained_and_told_at_the_command_line(
    service: RunningService, ran: str
) -> None:
    ended = run_cli("explain", f"{ran}#1", EKSBATCH_URL=service.url)
    assert "It has ended as FAILED: The main node of its multi-node parallel job" in ended.stdout
    ended = run_cli("job", ran, EKSBATCH_URL=service.url)
    assert "4, the main one is 2" in ended.stdout


def test_the_page_of_a_job_leads_to_its_nodes_and_theirs_back(
    service: RunningService, raw: Raw, ran: str
) -> None:
    """1 its page has a row for each, with machine and output 2 their pages 3 a browser is led there from the API."""
    page = look(service, f"/job/{ran}")
    assert "Nodes node status machine" in page.text
    assert "2 main SUCCEEDED" in page.text
    assert page.text.count("The main node of its multi-node parallel job has ended") == 3
    for number in range(4):
        assert f"../job/{ran}%23{number}" in page.links
        assert f"../v1/eksbatch/jobs/{ran}%23{number}/log" in page.links
    node = look(service, f"/job/{ran}%231")
    assert f"node of {ran}" in node.text
    assert "node 1 of 4" in node.text
    assert ran in node.links
    reply = raw("GET", f"/v1/eksbatch/jobs/{ran}%231", headers={"accept": "text/html"})
    assert (reply.status, reply.headers["location"]) == (303, f"/job/{ran}%231")
    assert "on 4 nodes" in look(service, "/queue/default").text


def test_node_overrides_of_a_job_with_one_pod_are_refused(batch: Any, waiting: str) -> None:
    given = {"jobName": "x", "jobQueue": waiting, "jobDefinition": a_definition(batch, "true")}
    message = refusal(batch.submit_job, **given, nodeOverrides={"numNodes": 2})
    assert "eksPropertiesOverride changes what the job runs" in message
