"""The SQS queue of notices: it is there, EventBridge feeds it, and only EventBridge may."""

from __future__ import annotations

import json
from typing import Any

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.aws.interruptions import Kind
from airflow_eksbatch.core.planner.words import listed
from airflow_eksbatch.doctor.findings import Group

README = "docker/eks.md has the commands"
FED_BY = "events.amazonaws.com"


async def look_at_notices(group: Group, aws: Aws, queue: str, *, uses_spot: bool) -> None:
    if not queue:
        if uses_spot:
            group.warn(
                "notices",
                "No notices are read: a Spot instance that is reclaimed is noticed when it is gone, two minutes late.",
                f"eksbatch serve --notices eksbatch-notices    # {README} that make the queue and its rule",
            )
        else:
            group.ok("notices", "None are read; without Spot nothing is missed but seconds.")
        return
    url = await _look_for_queue(group, aws, queue)
    if url is None:
        return
    try:
        told = await aws.call(
            "sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=["Policy", "QueueArn"]
        )
    except AwsRefusal as error:
        group.unseen("queue policy", f"It may not be read: {error.message}", _RIGHT)
        return
    attributes = told.get("Attributes") or {}
    judge_policy(group, queue, attributes.get("Policy", ""))
    try:
        await _look_at_rules(group, aws, queue, attributes["QueueArn"])
    except AwsRefusal as error:
        group.unseen("rule", f"Rules of EventBridge may not be read: {error.message}", _RIGHT)


_RIGHT = "docker/iam/doctor.json has the rights for this look"


async def _look_for_queue(group: Group, aws: Aws, queue: str) -> str | None:
    if "://" in queue:
        return queue
    try:
        url = (await aws.call("sqs", "get_queue_url", QueueName=queue))["QueueUrl"]
    except AwsRefusal as error:
        group.wrong(
            "queue",
            f"SQS queue {queue}: {error.message} ({error.code}).",
            f"aws sqs create-queue --queue-name {queue} --attributes MessageRetentionPeriod=300    # then {README}",
        )
        return None
    group.ok("queue", f"SQS queue {queue} is there.")
    return url


def judge_policy(group: Group, queue: str, text: str) -> None:
    fix = (
        "aws sqs set-queue-attributes --queue-url URL "
        "--attributes \"$(jq -c '{Policy: tostring}' docker/iam/notices-queue.json)\""
    )
    statements = [
        s for s in json.loads(text or "{}").get("Statement", []) if s["Effect"] == "Allow"
    ]
    services = {name for s in statements for name in principals_of(s)}
    if FED_BY not in services and "*" not in services:
        group.wrong("queue policy", f"EventBridge may not put notices into {queue}.", fix)
    elif "*" in services:
        group.warn("queue policy", f"Everybody may put notices into {queue}, also false ones.", fix)
    else:
        group.ok("queue policy", "EventBridge may put notices in.")


def principals_of(statement: dict[str, Any]) -> list[str]:
    """Services and the like; `*` where a condition does not bind it."""
    principal = statement.get("Principal")
    if principal == "*" or principal == {"AWS": "*"}:
        return [] if statement.get("Condition") else ["*"]
    named = (principal or {}).get("Service", [])
    return [named] if isinstance(named, str) else list(named)


async def _look_at_rules(group: Group, aws: Aws, queue: str, queue_arn: str) -> None:
    told = await aws.call("events", "list_rule_names_by_target", TargetArn=queue_arn)
    heard: set[str] = set()
    asleep: list[str] = []
    for name in told["RuleNames"]:
        rule = await aws.call("events", "describe_rule", Name=name)
        if rule.get("State") == "DISABLED":
            asleep.append(name)
        else:
            heard |= kinds_in(rule.get("EventPattern") or "{}")
    missing = [kind.value for kind in Kind if kind.value not in heard]
    if not missing:
        group.ok("rule", f"EventBridge puts all that we want to hear into {queue}.")
    elif asleep:
        group.wrong(
            "rule",
            f"The rule {listed(asleep)} is disabled.",
            f"aws events enable-rule --name {asleep[0]}",
        )
    else:
        group.wrong(
            "rule",
            f"No rule of EventBridge puts into {queue}: {listed(missing)}.",
            "aws events put-rule --name eksbatch-notices --event-pattern file://docker/iam/notices-rule.json\n"
            f"aws events put-targets --rule eksbatch-notices --targets Id=queue,Arn={queue_arn}",
        )


def kinds_in(pattern: str) -> set[str]:
    """Detail types that a rule lets through; one that names none lets all of EC2's through."""
    told = json.loads(pattern)
    if "aws.ec2" not in told.get("source", ["aws.ec2"]):
        return set()
    return set(told.get("detail-type", [kind.value for kind in Kind]))
