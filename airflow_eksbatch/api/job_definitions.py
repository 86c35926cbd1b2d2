"""Job definitions over the wire: register, deregister, describe."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from airflow_eksbatch.api.port import Call, Operation
from airflow_eksbatch.api.wire import elsewhere
from airflow_eksbatch.api.wire.container_properties import pod_from_container
from airflow_eksbatch.api.wire.names import check_name, check_tags, name_of, page
from airflow_eksbatch.api.wire.node_properties import main_pod
from airflow_eksbatch.api.wire.pod_properties import check_pod
from airflow_eksbatch.api.wire.requirements import resources_of_pod
from airflow_eksbatch.api.wire.shapes import (
    retry_from,
    retry_wire,
    scheduling_priority_from,
    timeout_from,
    without_nothing,
)
from airflow_eksbatch.core.engine.facts import DefinitionDeregistered, DefinitionRegistered
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job_definition import JobDefinition, split_revision
from airflow_eksbatch.floor.clock import now_ms


async def register(call: Call) -> dict[str, Any]:
    """The next revision of its name."""
    desk, request = call.desk, call.input
    work = work_from(request)
    priority = scheduling_priority_from(request.get("schedulingPriority", 0), "schedulingPriority")
    if (size := len(msgspec.json.encode(request))) > limits.DEFINITION_BYTES_MAX:
        raise Rejected(
            f"The job definition has {size:,} bytes, at most {limits.DEFINITION_BYTES_MAX:,} are allowed: "
            "put long scripts and data into the image, or where jobs can read them."
        )
    definition = JobDefinition(
        name=check_name(request["jobDefinitionName"], "jobDefinitionName"),
        revision=0,
        arn="",
        pod=msgspec.json.encode(work.pod),
        container=msgspec.json.encode(work.container) if work.container else b"",
        nodes=msgspec.json.encode(work.nodes) if work.nodes else b"",
        parameters=request.get("parameters", {}),
        retry=retry_from(request.get("retryStrategy")),
        timeout_s=timeout_from(request.get("timeout")),
        scheduling_priority=priority,
        tags=check_tags(request.get("tags")),
        created_at=now_ms(),
    )
    fact = DefinitionRegistered(
        definition=definition, arn_prefix=desk.settings.arn("job-definition/")
    )
    made: JobDefinition = await desk.offer(fact)
    return {
        "jobDefinitionName": made.name,
        "jobDefinitionArn": made.arn,
        "revision": made.revision,
    }


class Work(NamedTuple):
    """podProperties, checked, and what else they were registered as."""

    pod: dict[str, Any]
    container: dict[str, Any] | None = None
    """The containerProperties they were made from."""
    nodes: dict[str, Any] | None = None
    """nodeProperties; the pod is the main node's."""


def work_from(request: dict[str, Any]) -> Work:
    elsewhere.refuse(request, elsewhere.OF_DEFINITION)
    if "FARGATE" in request.get("platformCapabilities", ()):
        raise Rejected("platformCapabilities FARGATE is not for EKS: leave it out, or say EC2.")
    nodes = request.get("nodeProperties")
    if request["type"] == "multinode":
        return multi_node_work(request, nodes)
    if nodes is not None and not elsewhere.is_empty(nodes):
        raise Rejected(
            "nodeProperties is for multi-node parallel jobs: give type multinode, or leave it out."
        )
    pod = (request.get("eksProperties") or {}).get("podProperties")
    container = request.get("containerProperties")
    if elsewhere.is_empty(container):
        container = None
    if pod is None and container is None:
        raise Rejected("This service runs pods: give eksProperties.podProperties.")
    if pod is not None and container is not None:
        raise Rejected("Give eksProperties or containerProperties, not both.")
    if container is not None:
        pod = pod_from_container(container)
    assert pod is not None
    check_pod(pod)
    resources_of_pod(pod)
    return Work(pod, container)


def multi_node_work(request: dict[str, Any], nodes: dict[str, Any] | None) -> Work:
    if nodes is None:
        raise Rejected("type multinode needs nodeProperties: they say what each node runs.")
    for name in ("eksProperties", "containerProperties"):
        if not elsewhere.is_empty(request.get(name)):
            raise Rejected(
                f"{name} is for type container: a multi-node parallel job has it in "
                "nodeProperties.nodeRangeProperties, as eksProperties or container of each range."
            )
    return Work(main_pod(nodes), nodes=nodes)


async def deregister(call: Call) -> dict[str, Any]:
    name, revision = split_revision(name_of(call.input["jobDefinition"]))
    if not revision:
        raise Rejected("jobDefinition must be name:revision, or an ARN that ends so.")
    await call.desk.offer(DefinitionDeregistered(name=name, revision=revision))
    return {}


async def describe(call: Call) -> dict[str, Any]:
    """All revisions, by name and status, or those that are named one by one."""
    await call.desk.settled()
    request, world = call.input, call.desk.world
    named = request.get("jobDefinitions") or []
    if len(named) > limits.DESCRIBE_MAX:
        raise Rejected(f"jobDefinitions takes at most {limits.DESCRIBE_MAX} entries.")
    revisions = (d for by_number in world.definitions.values() for d in by_number.values())
    found = list(revisions)
    if named:
        wanted = {name_of(name) for name in named}
        found = [d for d in found if d.key in wanted or d.name in wanted]
    elif request.get("jobDefinitionName"):
        name = name_of(request["jobDefinitionName"])
        found = [d for d in found if d.name == name]
    if request.get("status"):
        found = [d for d in found if d.status == request["status"]]
    rows, token = page(found, lambda d: (d.name, -d.revision), request)
    return without_nothing({"jobDefinitions": [detail(d) for d in rows], "nextToken": token})


def detail(definition: JobDefinition) -> dict[str, Any]:
    return without_nothing(
        {
            "jobDefinitionName": definition.name,
            "jobDefinitionArn": definition.arn,
            "revision": definition.revision,
            "status": definition.status,
            "type": "multinode" if definition.nodes else "container",
            "schedulingPriority": definition.scheduling_priority,
            "parameters": definition.parameters,
            "retryStrategy": retry_wire(definition.retry) if definition.retry else None,
            "timeout": {"attemptDurationSeconds": definition.timeout_s}
            if definition.timeout_s
            else None,
            **properties(definition),
            "tags": definition.tags,
            "platformCapabilities": [],
            "containerOrchestrationType": "EKS",
        }
    )


def properties(definition: JobDefinition) -> dict[str, Any]:
    """In the words in which it was registered: tools look for definitions of theirs by what they say."""
    if definition.nodes:
        return {"nodeProperties": msgspec.json.decode(definition.nodes)}
    if definition.container:
        return {"containerProperties": msgspec.json.decode(definition.container)}
    return {"eksProperties": {"podProperties": msgspec.json.decode(definition.pod)}}


OPERATIONS: dict[str, Operation] = {
    "RegisterJobDefinition": register,
    "DeregisterJobDefinition": deregister,
    "DescribeJobDefinitions": describe,
}
