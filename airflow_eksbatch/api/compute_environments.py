"""Compute environments over the wire."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from airflow_eksbatch.api.port import Call, Operation, offer_change
from airflow_eksbatch.api.wire.names import check_name, check_namespace, check_tags, name_of, page
from airflow_eksbatch.api.wire.shapes import without_nothing
from airflow_eksbatch.core.engine.facts import ComputeEnvironmentPut, Deleted
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.floor.clock import now_ms

Wire = dict[str, Any]
STRATEGIES = {
    "EC2": ("BEST_FIT_PROGRESSIVE", "BEST_FIT_PROGRESSIVE_ORDERED"),
    "SPOT": (
        "SPOT_PRICE_CAPACITY_OPTIMIZED",
        "SPOT_CAPACITY_OPTIMIZED",
        "SPOT_CAPACITY_OPTIMIZED_PRIORITIZED",
        "BEST_FIT_PROGRESSIVE",
    ),
}
VCPUS_MAX = 10_000_000
UPDATE_MINUTES_MAX = 7_200
NEWEST_IMAGE = "updateToLatestImageVersion"
# Members of computeResources that change how many instances there are, and none of them.
SCALING = frozenset({"minvCpus", "maxvCpus", "desiredvCpus", "scalingPolicy", NEWEST_IMAGE})
# Tools tell these in any order, and each time in another one.
UNORDERED = frozenset({"subnets", "securityGroupIds"})
# What is not said (AWS): of the On-Demand price.
BID_PERCENTAGE = 100
# AWS's bounds of scalingPolicy.minScaleDownDelayMinutes; 0 is off.
DELAY_MINUTES = (20, 10_080)


def environment_from(wire: Wire, before: ComputeEnvironment | None) -> ComputeEnvironment:
    """The noun of what a caller has given, all updates merged in."""
    managed = wire["type"] == "MANAGED"
    resources: Wire = wire.get("computeResources") or {}
    if managed and not resources:
        raise Rejected("computeResources is required for a MANAGED compute environment.")
    eks = wire.get("eksConfiguration")
    if not eks:
        raise Rejected(
            "eksConfiguration with eksClusterArn and kubernetesNamespace is required: this service "
            "runs jobs on Amazon EKS. The embedded cluster takes any."
        )
    least, most = sizes_of(resources, managed)
    market = market_of(resources) if managed else Market.ON_DEMAND
    fields: Wire = {
        "managed": managed,
        "state": wire.get("state", "ENABLED"),
        "market": market,
        "min_vcpus": least,
        "max_vcpus": most,
        "allocation_strategy": strategy_of(resources, market),
        "instance_types": tuple(resources.get("instanceTypes") or ("optimal",)),
        "subnets": tuple(resources.get("subnets") or ()),
        "cluster_arn": eks["eksClusterArn"],
        "namespace": check_namespace(eks["kubernetesNamespace"], "kubernetesNamespace"),
        "idle_s": idle_of(resources),
        "tags": check_tags(wire.get("tags")),
        "wire": msgspec.json.encode(wire),
    }
    if before is not None:
        return msgspec.structs.replace(before, **fields)
    return ComputeEnvironment(
        name="", arn="", uuid=str(uuid.uuid4()), created_at=now_ms(), **fields
    )


def sizes_of(resources: Wire, managed: bool) -> tuple[int, int]:
    least, most = resources.get("minvCpus", 0), resources.get("maxvCpus", 0)
    if managed and not 0 <= least <= most <= VCPUS_MAX:
        raise Rejected(
            f"minvCpus and maxvCpus must be 0 <= minvCpus <= maxvCpus <= {VCPUS_MAX}, "
            f"not {least} and {most}."
        )
    return least, most


def market_of(resources: Wire) -> Market:
    kind = resources.get("type")
    if kind not in STRATEGIES:
        raise Rejected(f"computeResources.type must be EC2 or SPOT on EKS, not {kind}.")
    return Market(kind)


def strategy_of(resources: Wire, market: Market) -> str:
    allowed = STRATEGIES[market.value]
    strategy = resources.get("allocationStrategy") or allowed[0]
    if strategy not in allowed:
        raise Rejected(
            f"allocationStrategy of {market.value} must be one of {', '.join(allowed)}, "
            f"not {strategy}."
        )
    return strategy


def idle_of(resources: Wire) -> float | None:
    """minScaleDownDelayMinutes: how long an empty node is kept."""
    minutes = (resources.get("scalingPolicy") or {}).get("minScaleDownDelayMinutes")
    if not minutes:
        return None
    if not DELAY_MINUTES[0] <= minutes <= DELAY_MINUTES[1]:
        raise Rejected(
            f"minScaleDownDelayMinutes must be {DELAY_MINUTES[0]} to {DELAY_MINUTES[1]}, "
            f"or 0 for none, not {minutes}."
        )
    return minutes * 60.0


def names_of(environment: ComputeEnvironment) -> Wire:
    return {
        "computeEnvironmentName": environment.name,
        "computeEnvironmentArn": environment.arn,
    }


async def create(call: Call) -> Wire:
    name = check_name(call.input["computeEnvironmentName"], "computeEnvironmentName")
    wire = {key: value for key, value in call.input.items() if key != "computeEnvironmentName"}
    environment = msgspec.structs.replace(
        environment_from(wire, None),
        name=name,
        arn=call.desk.settings.arn(f"compute-environment/{name}"),
    )
    fact = ComputeEnvironmentPut(compute_environment=environment, create=True)
    return names_of(await call.desk.offer(fact))


async def update(call: Call) -> Wire:
    """What is given replaces what was, member by member; other machines than before replace those there are."""
    request = {key: value for key, value in call.input.items() if key != "computeEnvironment"}
    check_update_policy(request.get("updatePolicy") or {})
    name = name_of(call.input["computeEnvironment"])

    def change(before: ComputeEnvironment) -> ComputeEnvironmentPut:
        told = wire_of(before)
        wire = {**told, **request}
        for key in ("computeResources", "eksConfiguration"):
            if key in request:
                wire[key] = {**(told.get(key) or {}), **request[key]}
        # A wish of this one update and not kept (AWS): the check that follows it finds the newest image.
        newest = bool((wire.get("computeResources") or {}).pop(NEWEST_IMAGE, False))
        environment = environment_from(wire, before)
        return ComputeEnvironmentPut(
            compute_environment=environment,
            create=False,
            seen=before,
            replaces_nodes=newest or machines(environment) != machines(before),
        )

    environment = await offer_change(
        call.desk,
        f"Compute environment {name}",
        lambda world: world.compute_environments.get(name),
        change,
    )
    return names_of(environment)


def check_update_policy(policy: Wire) -> None:
    """Kept and told back; what it would end here is refused."""
    if policy.get("terminateJobsOnUpdate"):
        raise Rejected(
            "updatePolicy.terminateJobsOnUpdate must be false here: jobs on nodes from before the update run to "
            "their end, and then those nodes go. TerminateJob ends what must not go on."
        )
    minutes = policy.get("jobExecutionTimeoutMinutes")
    if minutes is not None and not 1 <= minutes <= UPDATE_MINUTES_MAX:
        raise Rejected(
            f"jobExecutionTimeoutMinutes must be 1 to {UPDATE_MINUTES_MAX}, not {minutes}."
        )


def machines(environment: ComputeEnvironment) -> Wire:
    """What decides how its instances are made; an update of it is one of infrastructure (AWS)."""
    resources: Wire = wire_of(environment).get("computeResources") or {}
    told = {key: value for key, value in resources.items() if value and key not in SCALING}
    for key in UNORDERED & told.keys():
        told[key] = set(told[key])
    if told.get("bidPercentage") == BID_PERCENTAGE:
        del told["bidPercentage"]
    if template := told.get("launchTemplate"):
        told["launchTemplate"] = {**template, "version": template.get("version") or "$Default"}
    return told


async def delete(call: Call) -> Wire:
    name = name_of(call.input["computeEnvironment"])
    await call.desk.offer(Deleted(kind="compute_environment", name=name))
    return {}


def wire_of(environment: ComputeEnvironment) -> Wire:
    """As the caller gave it; one that the service made itself is told in the same words."""
    given: Wire = msgspec.json.decode(environment.wire)
    resources: Wire = {
        "type": environment.market.value,
        "allocationStrategy": environment.allocation_strategy,
        "minvCpus": environment.min_vcpus,
        "maxvCpus": environment.max_vcpus,
        "instanceTypes": list(environment.instance_types),
        "subnets": list(environment.subnets),
        **(given.get("computeResources") or {}),
    }
    resources.pop(NEWEST_IMAGE, None)
    return {
        **given,
        "type": "MANAGED" if environment.managed else "UNMANAGED",
        "state": environment.state,
        "tags": environment.tags,
        "computeResources": resources if environment.managed else None,
        "eksConfiguration": {
            **(given.get("eksConfiguration") or {}),
            "eksClusterArn": environment.cluster_arn,
            "kubernetesNamespace": environment.namespace,
        },
    }


async def describe(call: Call) -> Wire:
    await call.desk.settled()
    request, world = call.input, call.desk.world
    found = list(world.compute_environments.values())
    if request.get("computeEnvironments"):
        wanted = {name_of(name) for name in request["computeEnvironments"]}
        found = [environment for environment in found if environment.name in wanted]
    rows, token = page(found, lambda environment: (environment.name, 0), request)
    details = [detail(environment, world.vcpus[environment.name]) for environment in rows]
    return without_nothing({"computeEnvironments": details, "nextToken": token})


def detail(environment: ComputeEnvironment, vcpus: int) -> Wire:
    """ComputeEnvironmentDetail; desiredvCpus is what its nodes have, those on their way included."""
    wire = wire_of(environment)
    resources = wire.pop("computeResources")
    return without_nothing(
        {
            **wire,
            **names_of(environment),
            "status": environment.status,
            "statusReason": environment.status_reason,
            "computeResources": {**resources, "desiredvCpus": vcpus} if resources else None,
            "containerOrchestrationType": "EKS",
            "uuid": environment.uuid,
        }
    )


OPERATIONS: dict[str, Operation] = {
    "CreateComputeEnvironment": create,
    "UpdateComputeEnvironment": update,
    "DeleteComputeEnvironment": delete,
    "DescribeComputeEnvironments": describe,
}
