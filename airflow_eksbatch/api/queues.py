"""Job queues and scheduling policies over the wire."""

from __future__ import annotations

from typing import Any

import msgspec

from airflow_eksbatch.api.port import Call, Operation, offer_change
from airflow_eksbatch.api.wire.names import SHARE, check_name, check_tags, name_of, page
from airflow_eksbatch.api.wire.shapes import without_nothing
from airflow_eksbatch.core.engine.facts import Deleted, PolicyPut, QueuePut
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job_queue import JobQueue, TimeLimit
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareWeight
from airflow_eksbatch.core.planner.explain_room import AT_MAXIMUM, NO_CAPACITY, TOO_LARGE
from airflow_eksbatch.floor.clock import now_ms

PRIORITY_MAX = 1_000
DECAY_S_MAX = 604_800
RESERVATION_MAX = 99
WEIGHT_MIN, WEIGHT_MAX = 0.0001, 999.9999
# The last one is AWS's, too, and never is a reason here.
LIMIT_REASONS = (
    NO_CAPACITY,
    AT_MAXIMUM,
    TOO_LARGE,
    "MISCONFIGURATION:EC2_INSTANCE_CONFIGURATION_UNSUPPORTED",
)
LIMIT_S = (600, 86_400)
NOT_HERE = {
    "serviceEnvironmentOrder": "service environments run SageMaker jobs",
}


def check_supported(request: dict[str, Any]) -> None:
    for name, why in NOT_HERE.items():
        if request.get(name):
            raise Rejected(f"{name} is not supported here ({why}): leave it out.")
    if request.get("jobQueueType", "EKS") != "EKS":
        raise Rejected("jobQueueType must be EKS, or left out.")


def environments_in_order(order: list[dict[str, Any]]) -> dict[str, Any]:
    """Fields of a queue from computeEnvironmentOrder: names, first choice first, and the numbers they were given."""
    most = limits.COMPUTE_ENVIRONMENTS_PER_QUEUE_MAX
    if not 1 <= len(order) <= most:
        raise Rejected(f"computeEnvironmentOrder must name 1 to {most} compute environments.")
    pairs = sorted((entry["order"], name_of(entry["computeEnvironment"])) for entry in order)
    numbers = {name: number for number, name in pairs}
    if len({number for number, _ in pairs}) < len(pairs) or len(numbers) < len(pairs):
        raise Rejected(
            "computeEnvironmentOrder names a compute environment or an order number twice."
        )
    given = {"computeEnvironmentOrder": numbers}
    return {"compute_environments": tuple(numbers), "wire": msgspec.json.encode(given)}


def environment_order(queue: JobQueue) -> list[tuple[int, str]]:
    """With the numbers that the caller gave, as clients compare them; the service's own queues count from 1."""
    given = msgspec.json.decode(queue.wire).get("computeEnvironmentOrder", {})
    return [
        (given.get(name, number), name) for number, name in enumerate(queue.compute_environments, 1)
    ]


def time_limits_from(actions: list[dict[str, Any]]) -> tuple[TimeLimit, ...]:
    """jobStateTimeLimitActions: one action for each reason."""
    found: dict[str, TimeLimit] = {}
    for action in actions:
        reason, seconds = action["reason"], action["maxTimeSeconds"]
        if reason not in LIMIT_REASONS:
            raise Rejected(
                f"jobStateTimeLimitActions.reason must be one of {', '.join(LIMIT_REASONS)}, not {reason!r}."
            )
        if action["state"] != "RUNNABLE" or action["action"] != "CANCEL":
            raise Rejected(
                "jobStateTimeLimitActions can CANCEL what is RUNNABLE, and nothing else, on EKS."
            )
        if not LIMIT_S[0] <= seconds <= LIMIT_S[1]:
            raise Rejected(
                f"jobStateTimeLimitActions.maxTimeSeconds must be {LIMIT_S[0]} to {LIMIT_S[1]}, not {seconds}."
            )
        if reason in found:
            raise Rejected(f"jobStateTimeLimitActions names {reason} twice.")
        found[reason] = TimeLimit(reason=reason, max_time_s=seconds)
    return tuple(found.values())


def time_limits_wire(queue: JobQueue) -> list[dict[str, Any]]:
    return [
        {
            "reason": limit.reason,
            "state": "RUNNABLE",
            "maxTimeSeconds": limit.max_time_s,
            "action": "CANCEL",
        }
        for limit in queue.time_limits
    ]


def check_priority(priority: int) -> int:
    if not 0 <= priority <= PRIORITY_MAX:
        raise Rejected(f"priority must be 0 to {PRIORITY_MAX}, not {priority}.")
    return priority


def names_of_queue(queue: JobQueue) -> dict[str, Any]:
    return {"jobQueueName": queue.name, "jobQueueArn": queue.arn}


async def create_queue(call: Call) -> dict[str, Any]:
    request = call.input
    check_supported(request)
    name = check_name(request["jobQueueName"], "jobQueueName")
    policy = request.get("schedulingPolicyArn")
    queue = JobQueue(
        name=name,
        arn=call.desk.settings.arn(f"job-queue/{name}"),
        priority=check_priority(request["priority"]),
        state=request.get("state", "ENABLED"),
        policy=name_of(policy) if policy else None,
        tags=check_tags(request.get("tags")),
        created_at=now_ms(),
        time_limits=time_limits_from(request.get("jobStateTimeLimitActions") or []),
        **environments_in_order(request.get("computeEnvironmentOrder") or []),
    )
    return names_of_queue(await call.desk.offer(QueuePut(queue=queue, create=True)))


async def update_queue(call: Call) -> dict[str, Any]:
    """What is given replaces what was; a FIFO queue stays one (AWS)."""
    request, name = call.input, name_of(call.input["jobQueue"])
    check_supported(request)
    changes: dict[str, Any] = {}
    if "state" in request:
        changes["state"] = request["state"]
    if "priority" in request:
        changes["priority"] = check_priority(request["priority"])
    if request.get("computeEnvironmentOrder"):
        changes |= environments_in_order(request["computeEnvironmentOrder"])
    if request.get("jobStateTimeLimitActions") is not None:
        changes["time_limits"] = time_limits_from(request["jobStateTimeLimitActions"])
    if request.get("schedulingPolicyArn"):
        changes["policy"] = name_of(request["schedulingPolicyArn"])

    def change(before: JobQueue) -> QueuePut:
        queue = msgspec.structs.replace(before, **changes)
        return QueuePut(queue=queue, create=False, seen=before)

    queue = await offer_change(
        call.desk, f"Job queue {name}", lambda world: world.queues.get(name), change
    )
    return names_of_queue(queue)


async def delete_queue(call: Call) -> dict[str, Any]:
    await call.desk.offer(Deleted(kind="job_queue", name=name_of(call.input["jobQueue"])))
    return {}


async def describe_queues(call: Call) -> dict[str, Any]:
    await call.desk.settled()
    request, settings = call.input, call.desk.settings
    queues = list(call.desk.world.queues.values())
    if request.get("jobQueues"):
        wanted = {name_of(name) for name in request["jobQueues"]}
        queues = [queue for queue in queues if queue.name in wanted]
    rows, token = page(queues, lambda queue: (queue.name, 0), request)
    details = [
        without_nothing(
            {
                **names_of_queue(queue),
                "state": queue.state,
                "status": queue.status,
                "statusReason": queue.status_reason,
                "priority": queue.priority,
                "schedulingPolicyArn": settings.arn(f"scheduling-policy/{queue.policy}")
                if queue.policy
                else None,
                "computeEnvironmentOrder": [
                    {
                        "order": number,
                        "computeEnvironment": settings.arn(f"compute-environment/{name}"),
                    }
                    for number, name in environment_order(queue)
                ],
                "jobQueueType": "EKS",
                "jobStateTimeLimitActions": time_limits_wire(queue),
                "tags": queue.tags,
            }
        )
        for queue in rows
    ]
    return without_nothing({"jobQueues": details, "nextToken": token})


# ---- scheduling policies


def fair_share(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of a policy from fairsharePolicy."""
    if request.get("quotaSharePolicy"):
        raise Rejected("quotaSharePolicy is not supported here: give fairsharePolicy.")
    wire = request.get("fairsharePolicy") or {}
    decay_s, reservation = wire.get("shareDecaySeconds", 0), wire.get("computeReservation", 0)
    if not 0 <= decay_s <= DECAY_S_MAX:
        raise Rejected(f"shareDecaySeconds must be 0 to {DECAY_S_MAX}, not {decay_s}.")
    if not 0 <= reservation <= RESERVATION_MAX:
        raise Rejected(f"computeReservation must be 0 to {RESERVATION_MAX}, not {reservation}.")
    shares = tuple(share_weight(entry) for entry in wire.get("shareDistribution", ()))
    if len(shares) > limits.ACTIVE_SHARES_MAX:
        raise Rejected(f"shareDistribution takes at most {limits.ACTIVE_SHARES_MAX} entries.")
    check_apart([share.share_identifier for share in shares])
    return {"share_decay_s": decay_s, "compute_reservation": reservation, "shares": shares}


def check_apart(names: list[str]) -> None:
    """No share may have two weights (AWS): neither by its name nor by prefixes."""
    if len(set(names)) < len(names):
        raise Rejected("shareDistribution names a shareIdentifier twice.")
    for prefix in names:
        if prefix.endswith("*"):
            within = next((n for n in names if n != prefix and n.startswith(prefix[:-1])), None)
            if within is not None:
                raise Rejected(
                    f"shareDistribution gives weights to {prefix} and to {within}, which overlap: "
                    "each share may fall under one entry."
                )


def share_weight(entry: dict[str, Any]) -> ShareWeight:
    name, weight = entry["shareIdentifier"], entry.get("weightFactor", 1.0)
    if not name or not SHARE.fullmatch(name):
        raise Rejected(
            f"shareIdentifier must be 1 to 255 letters and digits, with * at its end or not: {name!r}."
        )
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise Rejected(f"weightFactor must be {WEIGHT_MIN} to {WEIGHT_MAX}, not {weight}.")
    return ShareWeight(share_identifier=name, weight_factor=float(weight))


async def create_policy(call: Call) -> dict[str, Any]:
    name = check_name(call.input["name"], "name")
    policy = SchedulingPolicy(
        name=name,
        arn=call.desk.settings.arn(f"scheduling-policy/{name}"),
        tags=check_tags(call.input.get("tags")),
        **fair_share(call.input),
    )
    await call.desk.offer(PolicyPut(policy=policy, create=True))
    return {"name": policy.name, "arn": policy.arn}


async def update_policy(call: Call) -> dict[str, Any]:
    """fairsharePolicy replaces all of the one before; without one nothing changes."""
    name, given = name_of(call.input["arn"]), fair_share(call.input)
    changes = given if "fairsharePolicy" in call.input else {}

    def change(before: SchedulingPolicy) -> PolicyPut:
        policy = msgspec.structs.replace(before, **changes)
        return PolicyPut(policy=policy, create=False, seen=before)

    what = f"Scheduling policy {name}"
    await offer_change(call.desk, what, lambda world: world.policies.get(name), change)
    return {}


async def delete_policy(call: Call) -> dict[str, Any]:
    await call.desk.offer(Deleted(kind="scheduling_policy", name=name_of(call.input["arn"])))
    return {}


async def describe_policies(call: Call) -> dict[str, Any]:
    await call.desk.settled()
    policies = call.desk.world.policies
    found = [policies[name] for name in map(name_of, call.input["arns"]) if name in policies]
    return {"schedulingPolicies": [policy_detail(policy) for policy in found]}


def policy_detail(policy: SchedulingPolicy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "arn": policy.arn,
        "fairsharePolicy": {
            "shareDecaySeconds": policy.share_decay_s,
            "computeReservation": policy.compute_reservation,
            "shareDistribution": [
                {"shareIdentifier": share.share_identifier, "weightFactor": share.weight_factor}
                for share in policy.shares
            ],
        },
        "tags": policy.tags,
    }


async def list_policies(call: Call) -> dict[str, Any]:
    await call.desk.settled()
    policies = call.desk.world.policies.values()
    rows, token = page(policies, lambda policy: (policy.name, 0), call.input)
    listed = [{"arn": policy.arn} for policy in rows]
    return without_nothing({"schedulingPolicies": listed, "nextToken": token})


OPERATIONS: dict[str, Operation] = {
    "CreateJobQueue": create_queue,
    "UpdateJobQueue": update_queue,
    "DeleteJobQueue": delete_queue,
    "DescribeJobQueues": describe_queues,
    "CreateSchedulingPolicy": create_policy,
    "UpdateSchedulingPolicy": update_policy,
    "DeleteSchedulingPolicy": delete_policy,
    "DescribeSchedulingPolicies": describe_policies,
    "ListSchedulingPolicies": list_policies,
}
