"""A compute environment looked at in AWS: what its instances are made of is there, and one would be sold to us."""

from __future__ import annotations

import math
from typing import Any

from airflow_eksbatch.cloud.aws.blueprint import Blueprint, instance_request, subnets_for
from airflow_eksbatch.cloud.aws.catalogue import Ec2Catalogue
from airflow_eksbatch.cloud.aws.checks import (
    EksCluster,
    Network,
    bid_percentage_of,
    check_access_entry,
    draw_blueprint,
    find_cluster,
    find_network,
    resources_of,
)
from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.aws.refusals import Meaning, meaning_of, sentence_of
from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.node import NodeId, Offering
from airflow_eksbatch.core.planner.words import listed, number_of
from airflow_eksbatch.doctor.aws.rights import POLICY, UNAUTHORIZED, WOULD
from airflow_eksbatch.doctor.findings import Group

UPDATE = "aws batch update-compute-environment --endpoint-url URL --compute-environment "
# The VPC CNI takes whole interfaces of addresses for a node: about so many.
ADDRESSES_PER_NODE = 10


async def look_at_environment(
    group: Group, aws: Aws, catalogue: Ec2Catalogue, environment: ComputeEnvironment
) -> tuple[Offering, ...]:
    """What it may buy, as far as that could be found out."""
    cluster = await _look_at_cluster(group, aws, environment)
    try:
        network = await find_network(aws, environment)
    except ValueError as error:
        group.wrong(
            "subnets",
            str(error),
            f"{UPDATE}{environment.name} --compute-resources subnets=SUBNET,...",
        )
        return ()
    offerings: tuple[Offering, ...] = ()
    try:
        bid = bid_percentage_of(environment)
        offerings = await catalogue.offerings(environment, list(network.subnets), bid)
        await _look_at_addresses(group, aws, environment, network, offerings)
        if cluster is None:
            return offerings
        blueprint = await draw_blueprint(aws, environment, network, offerings)
    except ValueError as error:
        group.wrong("instances", str(error), fix_for(str(error), environment))
        return offerings
    except AwsRefusal as error:
        group.wrong("instances", sentence_of(error.code, error.message), POLICY)
        return offerings
    types = listed(sorted({offering.instance_type for offering in offerings}))
    group.ok("instances", f"{types}: image, profile, security groups and templates are there.")
    scores = {o.zone: o.zone_score for o in offerings if o.zone_score}
    if scores:
        said = listed([f"{zone} {score}" for zone, score in sorted(scores.items())])
        group.ok("placement scores", f"For maxvCpus on Spot in one zone, of ten: {said}.")
    await _try_to_buy(group, aws, blueprint, offerings)
    return offerings


async def _look_at_cluster(
    group: Group, aws: Aws, environment: ComputeEnvironment
) -> EksCluster | None:
    try:
        cluster = await find_cluster(aws, environment.cluster_arn)
    except ValueError as error:
        group.wrong("cluster", str(error), fix_for(str(error), environment))
        return None
    name, mode = cluster.address.name, cluster.authentication_mode
    group.ok(
        "cluster",
        f"EKS cluster {name}: {cluster.status}, version {cluster.version}, authentication mode {mode}.",
    )
    profile = resources_of(environment).get("instanceRole") or ""
    if profile:
        await _look_at_entry(group, aws, cluster, profile)
    return cluster


async def _look_at_entry(group: Group, aws: Aws, cluster: EksCluster, profile: str) -> None:
    """Whether the cluster lets the nodes' role in. That the profile exists is said with the instances."""
    name, mode = cluster.address.name, cluster.authentication_mode
    if mode == "CONFIG_MAP":
        group.warn(
            "access entry",
            f"Nodes are let in by the ConfigMap aws-auth of {name} alone, which AWS cannot tell us of.",
            f"aws eks update-cluster-config --name {name} --access-config authenticationMode=API_AND_CONFIG_MAP",
        )
        return
    try:
        told = await aws.call(
            "iam", "get_instance_profile", InstanceProfileName=profile.rpartition("/")[2]
        )
        roles = told["InstanceProfile"]["Roles"]
        if not roles:
            return
        await check_access_entry(aws, name, roles[0]["Arn"])
    except AwsRefusal:
        return
    except ValueError as error:
        said, mark, command = str(error).partition(": aws ")
        tell = group.wrong if mode == "API" else group.warn
        beside = "" if mode == "API" else " (unless the ConfigMap aws-auth lets them in)"
        tell("access entry", f"{said}{beside}.", f"{mark.strip(': ')} {command}".strip())
    else:
        group.ok("access entry", "The cluster lets the nodes' role in.")


async def _look_at_addresses(
    group: Group,
    aws: Aws,
    environment: ComputeEnvironment,
    network: Network,
    offerings: tuple[Offering, ...],
) -> None:
    """A node takes an address for itself, and the VPC CNI about ten for its pods."""
    told = await aws.call("ec2", "describe_subnets", SubnetIds=sorted(set(environment.subnets)))
    free = {s["SubnetId"]: s["AvailableIpAddressCount"] for s in told["Subnets"]}
    said = listed([f"{subnet} {count}" for subnet, count in sorted(free.items())])
    smallest = max(1, min((offering.vcpus for offering in offerings), default=1))
    nodes = math.ceil(environment.max_vcpus / smallest)
    empty = sorted(subnet for subnet, count in free.items() if not count)
    more = "aws ec2 associate-vpc-cidr-block, aws ec2 create-subnet; then name that subnet, too:\n"
    fix = f"{more}{UPDATE}{environment.name} --compute-resources subnets=SUBNET,..."
    if len(empty) == len(free):
        group.wrong("addresses", f"No subnet has a free address: {', '.join(empty)}.", fix)
    elif empty or sum(free.values()) < nodes * ADDRESSES_PER_NODE:
        group.warn(
            "addresses",
            f"Free addresses: {said}. Up to {number_of(nodes, 'node')} (maxvCpus {environment.max_vcpus} of the "
            f"smallest type) may want {nodes * ADDRESSES_PER_NODE}, about {ADDRESSES_PER_NODE} each with the VPC CNI.",
            fix,
        )
    else:
        group.ok(
            "addresses",
            f"{number_of(len(free), 'subnet')} in {number_of(len(network.subnets), 'zone')}, free addresses: {said}.",
        )


async def _try_to_buy(
    group: Group, aws: Aws, blueprint: Blueprint, offerings: tuple[Offering, ...]
) -> None:
    """RunInstances with DryRun: EC2 looks at rights and at the whole request, and sells nothing."""
    offering = min(offerings, key=lambda offering: offering.price_usd_hour)
    effect = LaunchNode(
        node_id=NodeId("eksbatch-doctor"), compute_environment=blueprint.name, offering=offering
    )
    request: dict[str, Any] = instance_request(blueprint, effect, subnets_for(blueprint, effect)[0])
    what = f"{offering.instance_type} in {offering.zone} ({offering.market})"
    try:
        await aws.call_once("ec2", "run_instances", DryRun=True, **request)
    except AwsRefusal as error:
        said = sentence_of(error.code, error.message)
        if error.code == WOULD:
            group.ok(
                "buying",
                f"EC2 would sell us {what}, with our tags and the nodes' role (tried with DryRun).",
            )
        elif error.code in UNAUTHORIZED:
            group.wrong("buying", f"We may not buy {what}: {said}", POLICY)
        elif meaning_of(error.code) is Meaning.ELSEWHERE:
            group.warn(
                "buying",
                f"EC2 has no {what} for us now: {said}",
                "Name more instance types, or more zones.",
            )
        else:
            group.wrong("buying", f"EC2 does not take our request for {what}: {said}", said)


def fix_for(sentence: str, environment: ComputeEnvironment) -> str:
    """The command that mends it, by what the sentence speaks of."""
    _, mark, command = sentence.partition(": aws ")
    if mark:
        return f"aws {command}"
    update = f"{UPDATE}{environment.name} --compute-resources"
    for words, fix in {
        "security group": f"{update} securityGroupIds=GROUP,...",
        "nstance profile": f"docker/eks.md makes one; then {update} instanceRole=eksbatch-node",
        "instanceRole": f"{update} instanceRole=eksbatch-node",
        "is unsupported": "aws eks update-cluster-version --name CLUSTER --kubernetes-version VERSION",
        "does not exist": "aws eks list-clusters    # in this region; then eksConfiguration.eksClusterArn",
        "not authorized": POLICY,
    }.items():
        if words in sentence:
            return fix
    return update
