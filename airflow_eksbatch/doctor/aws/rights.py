"""Rights in AWS that are used only when it is too late to mend them: asked of EC2 by dry runs, else of IAM's simulator.

What a compute environment's look asks for itself (EKS, IAM, Systems Manager, RunInstances) is tried there.
"""

from __future__ import annotations

import asyncio

import msgspec

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.planner.words import number_of
from airflow_eksbatch.doctor.aws.account import Identity
from airflow_eksbatch.doctor.findings import Group

# Asked with DryRun: EC2 says whether it would have answered.
DRY_RUNS = (
    "describe_images",
    "describe_instance_type_offerings",
    "describe_instance_types",
    "describe_instances",
    "describe_security_groups",
    "describe_spot_price_history",
    "describe_subnets",
)
WOULD = "DryRunOperation"
UNAUTHORIZED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")
POLICY = "aws iam put-role-policy --role-name ROLE --policy-name eksbatch --policy-document file://docker/iam/service.json"


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """Actions on a resource, under what conditions; `expected` is whether they are to be allowed."""

    actions: tuple[str, ...]
    resource: str
    context: tuple[tuple[str, str], ...] = ()
    expected: bool = True


INSTANCES = "{partition}:ec2:{region}:{account}:instance/*"
SIMULATED = (
    Simulated(
        actions=("ec2:TerminateInstances",),
        resource=INSTANCES,
        context=((f"aws:ResourceTag/{labels.MANAGED_BY}", labels.OURS),),
    ),
    Simulated(actions=("pricing:GetProducts",), resource="*"),
    Simulated(
        actions=("iam:CreateServiceLinkedRole",),
        resource="{partition}:iam::{account}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot",
        context=(("iam:AWSServiceName", "spot.amazonaws.com"),),
    ),
    # Somebody else's instance, and what leads to all other rights.
    Simulated(actions=("ec2:TerminateInstances",), resource=INSTANCES, expected=False),
    Simulated(
        actions=("iam:AttachRolePolicy", "iam:CreateUser", "sts:AssumeRole"),
        resource="*",
        expected=False,
    ),
)


async def look_at_rights(group: Group, aws: Aws, identity: Identity) -> None:
    refused = await asyncio.gather(*(_is_refused(aws, operation) for operation in DRY_RUNS))
    missing = [f"ec2:{_action(o)}" for o, no in zip(DRY_RUNS, refused, strict=True) if no]
    if missing:
        group.wrong("reading EC2", f"{identity.arn} may not {', '.join(missing)}.", POLICY)
    else:
        group.ok(
            "reading EC2", f"It may what it must read ({number_of(len(DRY_RUNS), 'dry run')})."
        )
    if not await _may_read_scores(aws):
        group.warn(
            "placement scores",
            f"{identity.arn} may not ec2:GetSpotPlacementScores: in which zones Spot is deep is told by prices alone.",
            POLICY,
        )
    try:
        answers = [await _simulate(aws, identity, one) for one in SIMULATED]
    except AwsRefusal as error:
        if error.code not in UNAUTHORIZED and identity.principal:
            raise
        group.unseen(
            "rights",
            "Rights that cannot be tried (to end instances, to begin with Spot) are not known: "
            "iam:SimulatePrincipalPolicy is not allowed.",
            POLICY.replace("--policy-name eksbatch", "--policy-name eksbatch-doctor").replace(
                "service.json", "doctor.json"
            ),
        )
        return
    lacking = [a for one, allowed in zip(SIMULATED, answers, strict=True) if one.expected
               for a in one.actions if a not in allowed]  # fmt: skip
    if lacking:
        group.wrong("rights", f"{identity.principal} may not {', '.join(lacking)}.", POLICY)
    else:
        group.ok(
            "rights",
            "It may end instances with our tag, read prices and begin with Spot (IAM's simulator).",
        )
    excess = [a for one, allowed in zip(SIMULATED, answers, strict=True) if not one.expected
              for a in one.actions if a in allowed]  # fmt: skip
    if excess:
        group.warn(
            "too many rights",
            f"{identity.principal} may also {', '.join(excess)}, on what is not ours. The service needs none of it.",
            f"Give the service a role of its own with docker/iam/service.json and no more:\n{POLICY}",
        )
    else:
        group.ok(
            "too many rights", "It may not end others' instances, nor give itself more rights."
        )


async def _is_refused(aws: Aws, operation: str) -> bool:
    try:
        await aws.call("ec2", operation, DryRun=True)
    except AwsRefusal as error:
        if error.code in UNAUTHORIZED:
            return True
        if error.code != WOULD:
            raise
    return False


async def _may_read_scores(aws: Aws) -> bool:
    """What else EC2 says against it (its limits) is nothing that a policy mends."""
    try:
        await aws.call("ec2", "get_spot_placement_scores", DryRun=True, TargetCapacity=1)
    except AwsRefusal as error:
        return error.code not in UNAUTHORIZED
    return True


async def _simulate(aws: Aws, identity: Identity, one: Simulated) -> set[str]:
    """Of its actions those that are allowed."""
    if not identity.principal:
        raise AwsRefusal(UNAUTHORIZED[0], "the account's root user has no policy")
    told = await aws.call(
        "iam",
        "simulate_principal_policy",
        PolicySourceArn=identity.principal,
        ActionNames=list(one.actions),
        ResourceArns=[
            one.resource.format(
                partition=identity.partition, region=aws.region, account=identity.account
            )
        ],
        ContextEntries=[
            {"ContextKeyName": key, "ContextKeyValues": [value], "ContextKeyType": "string"}
            for key, value in one.context
        ],
    )
    results = told["EvaluationResults"]
    return {one["EvalActionName"] for one in results if one["EvalDecision"] == "allowed"}


def _action(operation: str) -> str:
    return "".join(word.capitalize() for word in operation.split("_"))
