"""Inputs drawn from botocore's own model, right, nearly right and wrong: every answer is one that the model knows.

FUZZ=5000 draws so many new ones; without it the same 400 are drawn each time. A failure prints how to repeat it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from botocore.model import ListShape, MapShape, StructureShape
from botocore.parsers import create_parser
from botocore.validate import ParamValidator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_eksbatch.api.wire.model import operations, service_model
from tests.api.asking import Raw, Reply
from tests.service.running import RunningService, a_definition, submit

ACCOUNT = "arn:aws:batch:us-east-1:000000000000"
REFUSED = {400, 403, 404, 413, 429}
# What exists, what could, and what members of these names commonly hold.
WORDS: dict[str, list[str]] = {
    "jobQueue": ["default", f"{ACCOUNT}:job-queue/default", "q1"],
    "jobQueueName": ["q1", "q2", "default"],
    "computeEnvironment": ["on-demand", f"{ACCOUNT}:compute-environment/spot", "ce1"],
    "computeEnvironmentName": ["ce1", "ce2"],
    "jobDefinition": ["shell", "shell:1", "d1", f"{ACCOUNT}:job-definition/shell"],
    "jobDefinitionName": ["d1", "shell"],
    "jobName": ["j", "job-1"],
    "shareIdentifier": ["today", "backfill", "a1"],
    "schedulingPolicyArn": [f"{ACCOUNT}:scheduling-policy/fair"],
    "arn": [f"{ACCOUNT}:scheduling-policy/fair", f"{ACCOUNT}:scheduling-policy/p1"],
    "name": ["p1", "fair", "main", "JOB_NAME", "SHARE_IDENTIFIER", "JOB_DEFINITION"],
    "kubernetesNamespace": ["jobs", "batch-1"],
    "namespace": ["jobs", "default"],
    "image": ["busybox"],
    "cpu": ["1", "0.25", "0.3"],
    "memory": ["512Mi", "1Gi", "4Mi"],
    "nvidia.com/gpu": ["1", "x"],
    "key": ["cpu", "memory", "nvidia.com/gpu", "team"],
    "value": ["1", "512Mi", "Ref::x", "256"],
    "onExitCode": ["1", "13*"],
    "type": ["container", "multinode", "MANAGED", "EC2", "SPOT", "N_TO_N"],
    "targetNodes": ["0:", ":", "1", "0:1", "1:"],
    "instanceType": ["m6i.large", "optimal"],
    "resourceArn": [f"{ACCOUNT}:job-queue/default", f"{ACCOUNT}:job-definition/shell:1"],
}
# Inputs that are right, of operations with so many members that drawn ones hardly ever are.
CONTAINER = {"image": "busybox", "resources": {"limits": {"cpu": "1", "memory": "128Mi"}}}
POD = {"podProperties": {"containers": [CONTAINER]}}
NODES = {
    "numNodes": 2,
    "mainNode": 1,
    "nodeRangeProperties": [{"targetNodes": "0:", "eksProperties": POD}],
}
RIGHT: dict[str, dict[str, Any]] = {
    "SubmitJob": {
        "jobName": "j", "jobQueue": "steady", "jobDefinition": "steady", "shareIdentifier": "a"
    },
    "RegisterJobDefinition": {
        "jobDefinitionName": "d1",
        "type": "container",
        "eksProperties": POD,
    },
    "CreateJobQueue": {
        "jobQueueName": "q1",
        "priority": 1,
        "computeEnvironmentOrder": [{"order": 1, "computeEnvironment": "on-demand"}],
    },
    "UpdateJobQueue": {"jobQueue": "default"},
    "CreateComputeEnvironment": {
        "computeEnvironmentName": "ce1",
        "type": "UNMANAGED",
        "eksConfiguration": {"eksClusterArn": "arn:aws:eks:x", "kubernetesNamespace": "jobs"},
    },
    "UpdateComputeEnvironment": {"computeEnvironment": "spot"},
    "ListJobs": {"jobQueue": "default"},
    "DescribeJobDefinitions": {},
}  # fmt: skip
# The same of multi-node parallel jobs.
RIGHT_TOO: dict[str, dict[str, Any]] = {
    "SubmitJob": {
        "jobName": "j",
        "jobQueue": "steady",
        "jobDefinition": "nodes",
        "shareIdentifier": "a",
        "nodeOverrides": {"numNodes": 3},
    },
    "RegisterJobDefinition": {
        "jobDefinitionName": "d1", "type": "multinode", "nodeProperties": NODES
    },
}  # fmt: skip
# Local pods are processes: whatever is drawn, only this is ever run.
COMMANDS = st.sampled_from([["true"], ["echo", "Ref::x"], []])
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(0, 3), max_size=3),
)


def values(name: str, shape: Any, known: dict[str, list[str]], depth: int = 0) -> st.SearchStrategy:
    """Mostly what the model says, now and then anything."""
    drawn = drawn_from(name, shape, known, depth)
    return st.integers(0, 99).flatmap(lambda dice: JUNK if dice == 0 else drawn)


def drawn_from(
    name: str, shape: Any, known: dict[str, list[str]], depth: int
) -> st.SearchStrategy[Any]:
    if name in ("command", "args"):
        return COMMANDS
    if isinstance(shape, StructureShape):
        return structures(shape, known, depth)
    if isinstance(shape, ListShape):
        return st.lists(values(name.rstrip("s"), shape.member, known, depth + 1), max_size=3)
    if isinstance(shape, MapShape):
        key = values("key", shape.key, known, depth + 1).filter(lambda k: isinstance(k, str))
        return st.dictionaries(key, values("value", shape.value, known, depth + 1), max_size=3)
    if shape.type_name == "boolean":
        return st.booleans()
    if shape.type_name in ("float", "double"):
        return st.sampled_from([0.0, 0.5, 1.0, 1e300, -1.0])
    if shape.type_name != "string":
        return st.one_of(st.integers(0, 200), st.sampled_from([-1, 600, 10_000, 2**31, 2**63]))
    return texts(name, shape, known)


def texts(name: str, shape: Any, known: dict[str, list[str]]) -> st.SearchStrategy[str]:
    enum = shape.metadata.get("enum")
    if enum:
        return st.sampled_from([*enum, enum[0].lower(), "OTHER"])
    some = [*WORDS.get(name, []), *known.get(name, [])] or ["x", "a-b", "1"]
    return st.one_of(st.sampled_from(some), st.sampled_from(some), st.text(max_size=300))


def structures(
    shape: Any, known: dict[str, list[str]], depth: int
) -> st.SearchStrategy[dict[str, Any]]:
    required, optional = {}, {}
    for name, member in shape.members.items():
        where = required if name in shape.required_members else optional
        where[name] = st.deferred(
            lambda name=name, member=member: values(name, member, known, depth + 1)
        )
    kept = optional if depth < 6 else {}
    return st.fixed_dictionaries(required, optional=kept).flatmap(
        lambda whole: st.sampled_from([whole] * 9 + [dict(list(whole.items())[1:])])
    )


def nearly_right(
    name: str, shape: Any, known: dict[str, list[str]]
) -> st.SearchStrategy[dict[str, Any]]:
    """A right input with a member or two that are drawn; names of what is made are new ones."""
    right = st.sampled_from([RIGHT[name], RIGHT_TOO.get(name, RIGHT[name])])
    members = st.sampled_from(sorted(shape.members)).flatmap(
        lambda member: st.tuples(
            st.just(member), values(member, shape.members[member], known, depth=1)
        )
    )
    made = {"jobDefinitionName", "jobQueueName", "computeEnvironmentName"} & RIGHT[name].keys()
    new = st.fixed_dictionaries(
        {member: st.from_regex(r"\A[a-z]{6}\Z").map(str) for member in sorted(made)}
    )
    return st.tuples(right, new, st.lists(members, max_size=2)).map(
        lambda drawn: {**drawn[0], **drawn[1], **dict(drawn[2])}
    )


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, dict]]:
    """A service that buys nothing, with a job of each kind, and the ids of its jobs."""
    options = ("--check-plans", "--beat-ms", "2")
    with RunningService(tmp_path_factory.mktemp("fuzz"), *options) as service:
        batch = service.batch()
        for name in ("on-demand", "spot"):
            batch.update_compute_environment(computeEnvironment=name, state="DISABLED")
        # No drawn name is this one, so that it stays and jobs can be submitted to it.
        definition = a_definition(batch, "true", name="steady")
        batch.create_job_queue(
            jobQueueName="steady",
            priority=1,
            schedulingPolicyArn=f"{ACCOUNT}:scheduling-policy/fair",
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "on-demand"}],
        )
        a_definition(batch, "true")
        batch.register_job_definition(
            jobDefinitionName="nodes", type="multinode", nodeProperties=NODES
        )
        jobs = [
            submit(batch, definition),
            submit(batch, definition, arrayProperties={"size": 3}),
            submit(batch, "nodes"),
        ]
        ids = [*jobs, f"{jobs[1]}:1", f"{jobs[2]}#1", f"{ACCOUNT}:job/{jobs[0]}"]
        yield service, {"jobId": ids, "job": ids, "arrayJobId": jobs, "multiNodeJobId": jobs}


def ask(raw: Raw, operation: Any, body: dict[str, Any]) -> Reply:
    """By the verb and path of the model."""
    method, path = operation.http["method"], operation.http["requestUri"]
    if "{resourceArn}" not in path:
        return raw(method, path, json.dumps(body).encode())
    path = path.replace("{resourceArn}", quote(str(body.pop("resourceArn", "x")), safe=""))
    if method == "POST":
        return raw(method, path, json.dumps(body).encode())
    keys = body.get("tagKeys")
    keys = keys if isinstance(keys, list) else []
    return raw(method, f"{path}?{urlencode([('tagKeys', str(key)) for key in keys])}")


def check_answer(operation: Any, reply: Reply) -> None:
    """200 with an output of the model, or a refusal with a message; nothing else."""
    if reply.status != 200:
        assert reply.status in REFUSED, (reply.status, reply.body)
        assert reply.code
        assert reply.message
        return
    whole = {"status_code": 200, "headers": dict(reply.headers), "body": reply.body}
    parsed = create_parser("rest-json").parse(whole, operation.output_shape)
    parsed.pop("ResponseMetadata")
    report = ParamValidator().validate(parsed, operation.output_shape)
    # AWS's own answers lack startedAt until a job starts, although its model requires it.
    lines = [line for line in report.generate_report().splitlines() if "startedAt" not in line]
    assert lines == []


@settings(
    max_examples=int(os.environ.get("FUZZ", "400")),
    derandomize="FUZZ" not in os.environ,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ],
)
@given(data=st.data())
def test_no_input_gets_an_answer_that_the_model_does_not_know(
    fuzzed: tuple[RunningService, dict[str, list[str]]], data: st.DataObject
) -> None:
    service, known = fuzzed
    model = service_model()
    names: list[str] = [*operations().values(), *RIGHT, *RIGHT]
    operation: Any = model.operation_model(data.draw(st.sampled_from(names)))
    bodies = values("", operation.input_shape, known)
    if operation.name in RIGHT:
        bodies = st.one_of(bodies, nearly_right(operation.name, operation.input_shape, known))
    body = data.draw(bodies)
    if not isinstance(body, dict):
        reply = Raw(service.url)("POST", operation.http["requestUri"], json.dumps(body).encode())
    else:
        reply = ask(Raw(service.url), operation, dict(body))
    check_answer(operation, reply)


def test_the_service_has_nothing_to_say_about_all_that(
    fuzzed: tuple[RunningService, dict[str, list[str]]],
) -> None:
    service, _ = fuzzed
    assert "a request failed" not in service.text
    assert "Traceback" not in service.text
    assert service.get("/readyz") == {"status": "ready"}
