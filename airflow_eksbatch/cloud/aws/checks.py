"""A compute environment looked at with AWS: everything its instances need is there, and written down as its blueprint.

What is missing is said in a sentence, in the words of AWS Batch's own status reasons where it has them.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from airflow_eksbatch.cloud.aws.blueprint import Blueprint, UserTemplate, image_kind, template_for
from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.aws.user_data import ClusterAddress, node_config, user_data
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering

Wire = dict[str, Any]
# The oldest Kubernetes for which there is an EKS image with nodeadm that AWS Batch takes.
VERSION_LEAST = (1, 29)
# A cluster goes on working while EKS changes its version, logging or access.
WORKING = ("ACTIVE", "UPDATING")
# Those of AWS Batch on EKS; there is no Bottlerocket among them.
IMAGE_TYPES = ("EKS_AL2023", "EKS_AL2023_NVIDIA", "EKS_AL2", "EKS_AL2_NVIDIA")
NODE_ENTRY_TYPES = ("EC2_LINUX", "EC2", "STANDARD")
IMAGE_PARAMETER = (
    "/aws/service/eks/optimized-ami/{version}/amazon-linux-2023/{kind}/recommended/image_id"
)
# What a network interface of a template may say beside subnet and groups, in a request as in the template.
INTERFACE_KEYS = (
    "AssociatePublicIpAddress",
    "InterfaceType",
    "Ipv6AddressCount",
)


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """Where instances of the environment may stand."""

    vpc: str
    subnets: dict[str, tuple[str, ...]]
    """By zone."""


class EksCluster(msgspec.Struct, frozen=True, kw_only=True):
    address: ClusterAddress
    version: str
    vpc: str
    security_group: str
    authentication_mode: str
    status: str = "ACTIVE"


def resources_of(environment: ComputeEnvironment) -> Wire:
    return msgspec.json.decode(environment.wire, type=Wire).get("computeResources") or {}


def bid_percentage_of(environment: ComputeEnvironment) -> int | None:
    """100, which AWS Batch assumes where nothing is said, is also EC2's own bound: then none is set."""
    percentage = resources_of(environment).get("bidPercentage") or 100
    return None if percentage >= 100 else int(percentage)


async def find_network(aws: Aws, environment: ComputeEnvironment) -> Network:
    """Raises ValueError for subnets that do not exist or do not stand together."""
    if not environment.subnets:
        raise ValueError(
            "computeResources.subnets is empty; name the subnets of the EKS cluster's VPC."
        )
    told = await _asked(aws, "ec2", "describe_subnets", SubnetIds=sorted(set(environment.subnets)))
    zones: dict[str, list[str]] = {}
    for subnet in told["Subnets"]:
        zones.setdefault(subnet["AvailabilityZone"], []).append(subnet["SubnetId"])
    vpcs = sorted({subnet["VpcId"] for subnet in told["Subnets"]})
    if len(vpcs) > 1:
        raise ValueError(f"Subnets must stand in one VPC; these stand in {', '.join(vpcs)}.")
    return Network(
        vpc=vpcs[0], subnets={zone: tuple(sorted(zones[zone])) for zone in sorted(zones)}
    )


async def draw_blueprint(
    aws: Aws, environment: ComputeEnvironment, network: Network, offerings: Iterable[Offering]
) -> Blueprint:
    """Raises ValueError with the sentence that says what is not there."""
    resources, offerings = resources_of(environment), list(offerings)
    cluster, templates = await asyncio.gather(
        find_cluster(aws, environment.cluster_arn),
        find_templates(aws, resources.get("launchTemplate") or {}),
    )
    if cluster.vpc and cluster.vpc != network.vpc:
        raise ValueError(
            f"The subnets stand in {network.vpc}, the EKS cluster in {cluster.vpc}: nodes would not join."
        )
    made_from = {o.instance_type: template_for(templates, o.instance_type) for o in offerings}
    bare = [o for o in offerings if not ((t := made_from[o.instance_type]) and t.has_image)]
    images, profile = await asyncio.gather(
        find_images(aws, resources, cluster.version, bare),
        check_profile(aws, resources.get("instanceRole") or "", list(made_from.values()), cluster),
    )
    groups = tuple(resources.get("securityGroupIds") or ())
    if groups:
        await _asked(aws, "ec2", "describe_security_groups", GroupIds=list(groups))
    blueprint = Blueprint(
        name=environment.name,
        uuid=environment.uuid,
        cluster=cluster.address,
        images=images,
        subnets=network.subnets,
        security_groups=groups,
        cluster_security_group=cluster.security_group,
        instance_profile=profile,
        key_pair=resources.get("ec2KeyPair") or "",
        placement_group=resources.get("placementGroup") or "",
        tags=resources.get("tags") or {},
        bid_percentage=bid_percentage_of(environment),
        instance_types=tuple(sorted({o.instance_type for o in offerings})),
        templates=templates,
    )
    for template in templates:
        if template.market and environment.market is Market.ON_DEMAND:
            # A request can name another market, but not none.
            raise ValueError(
                f"Launch template {template.template_id} says InstanceMarketOptions ({template.market}); "
                "take them out: the compute environment's type says how instances are bought."
            )
        # Too long or unreadable is better said now than at the first launch.
        user_data(node_config(blueprint.cluster, {}, 0), template.user_data)
    return blueprint


# ---- the cluster


async def find_cluster(aws: Aws, arn: str) -> EksCluster:
    name = arn.rpartition("/")[2]
    told = (await _asked(aws, "eks", "describe_cluster", name=name))["cluster"]
    if told["status"] not in WORKING:
        raise ValueError(f"EKS cluster {name} is {told['status']}, not ACTIVE.")
    if not is_supported(told["version"]):
        raise ValueError(f"EKS Cluster version [{told['version']}] is unsupported")
    network = told.get("kubernetesNetworkConfig") or {}
    vpc = told.get("resourcesVpcConfig") or {}
    return EksCluster(
        address=ClusterAddress(
            name=name,
            endpoint=told["endpoint"],
            certificate_authority=told["certificateAuthority"]["data"],
            service_cidr=network.get("serviceIpv4Cidr") or network.get("serviceIpv6Cidr") or "",
        ),
        version=told["version"],
        vpc=vpc.get("vpcId") or "",
        security_group=vpc.get("clusterSecurityGroupId") or "",
        authentication_mode=(told.get("accessConfig") or {}).get(
            "authenticationMode", "CONFIG_MAP"
        ),
        status=told["status"],
    )


def is_supported(version: str) -> bool:
    major, _, minor = version.partition(".")
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= VERSION_LEAST


async def check_profile(
    aws: Aws, profile: str, made_from: Collection[UserTemplate | None], cluster: EksCluster
) -> str:
    """The instance profile exists, and the cluster lets its role's nodes in, as far as that can be seen.

    `made_from`: the template of each instance type, of which all may bring a profile.
    """
    if not profile:
        if all(template is not None and template.has_profile for template in made_from):
            return ""
        raise ValueError(
            "computeResources.instanceRole is missing: name the instance profile of the nodes' role."
        )
    name = profile.rpartition("/")[2]
    try:
        told = await aws.call("iam", "get_instance_profile", InstanceProfileName=name)
    except AwsRefusal as error:
        if error.code == "NoSuchEntity":
            raise ValueError(f"Instance profile {profile} does not exist") from error
        raise ValueError(str(error)) from error
    roles = told["InstanceProfile"]["Roles"]
    if not roles:
        raise ValueError(f"Instance profile {profile} has no role.")
    if cluster.authentication_mode == "API":
        await check_access_entry(aws, cluster.address.name, roles[0]["Arn"])
    return profile


async def check_access_entry(aws: Aws, cluster: str, role_arn: str) -> None:
    """Only where access entries alone decide: the aws-auth ConfigMap is the cluster's, not AWS's, to tell."""
    how = (
        f"aws eks create-access-entry --cluster-name {cluster} --principal-arn {role_arn} "
        f"--type EC2_LINUX"
    )
    try:
        told = await aws.call(
            "eks", "describe_access_entry", clusterName=cluster, principalArn=role_arn
        )
    except AwsRefusal as error:
        if error.code == "ResourceNotFoundException":
            raise ValueError(
                f"EKS cluster {cluster} has no access entry for the nodes' role, so they could not join: {how}"
            ) from error
        raise ValueError(str(error)) from error
    kind = told["accessEntry"].get("type", "")
    if kind not in NODE_ENTRY_TYPES:
        raise ValueError(
            f"The access entry of {role_arn} is of type {kind}, which lets no EC2 nodes in: {how}"
        )


# ---- images


async def find_images(
    aws: Aws,
    resources: Wire,
    version: str,
    offerings: Iterable[Offering],
) -> dict[str, str]:
    """An image for each kind of machine: the one that is named, else what EKS recommends for its version today."""
    images: dict[str, str] = {}
    for architecture, gpu in sorted({(o.architecture, min(1, o.gpu)) for o in offerings}):
        kind = image_kind(architecture, gpu)
        choice = image_choice(resources.get("ec2Configuration") or [], gpu)
        named = choice.get("imageIdOverride") or resources.get("imageId")
        if named:
            images[kind] = named
            continue
        wanted = choice.get("imageKubernetesVersion") or version
        images[kind] = await recommended_image(aws, wanted, kind)
    if images:
        await _asked(aws, "ec2", "describe_images", ImageIds=sorted(set(images.values())))
    return images


def image_choice(configuration: list[Wire], gpu: int) -> Wire:
    """The entry of ec2Configuration that speaks of such machines. Raises ValueError for images that are no more."""
    for choice in configuration:
        kind = choice.get("imageType", "")
        if kind and kind not in IMAGE_TYPES:
            raise ValueError(f"imageType {kind} is none of {', '.join(IMAGE_TYPES)}.")
        if kind in ("EKS_AL2", "EKS_AL2_NVIDIA"):
            raise ValueError(
                f"imageType {kind}: AWS makes no Amazon Linux 2 images for EKS any more; use {kind.replace('AL2', 'AL2023')}."
            )
        if kind.endswith("NVIDIA") == bool(gpu):
            return choice
    return {}


async def recommended_image(aws: Aws, version: str, kind: str) -> str:
    name = IMAGE_PARAMETER.format(version=version, kind=kind)
    try:
        told = await aws.call("ssm", "get_parameter", Name=name)
    except AwsRefusal as error:
        if error.code == "ParameterNotFound":
            raise ValueError(
                f"EKS Cluster version [{version}] is unsupported: AWS has no image {name}."
            ) from error
        raise ValueError(str(error)) from error
    return told["Parameter"]["Value"]


# ---- users' launch templates


async def find_templates(aws: Aws, named: Wire) -> tuple[UserTemplate, ...]:
    """`$Latest` and `$Default` are looked up now, so that all instances are made of one version."""
    overrides = named.get("overrides") or []
    wanted = (
        [(named, ())] if named.get("launchTemplateId") or named.get("launchTemplateName") else []
    )
    wanted += [
        (override, tuple(override.get("targetInstanceTypes") or ())) for override in overrides
    ]
    return tuple([await find_template(aws, which, types) for which, types in wanted])


async def find_template(aws: Aws, named: Wire, target_types: tuple[str, ...]) -> UserTemplate:
    if named.get("launchTemplateId"):
        which = {"LaunchTemplateId": named["launchTemplateId"]}
    else:
        which = {"LaunchTemplateName": named["launchTemplateName"]}
    told = await _asked(
        aws,
        "ec2",
        "describe_launch_template_versions",
        Versions=[named.get("version") or "$Default"],
        **which,
    )
    if not told["LaunchTemplateVersions"]:
        raise ValueError(f"Launch template {next(iter(which.values()))} has no such version.")
    version = told["LaunchTemplateVersions"][0]
    says = version["LaunchTemplateData"]
    interfaces = says.get("NetworkInterfaces") or []
    return UserTemplate(
        template_id=version["LaunchTemplateId"],
        version=str(version["VersionNumber"]),
        target_types=target_types,
        user_data=base64.b64decode(says.get("UserData") or "").decode("utf-8", "replace"),
        has_image=bool(says.get("ImageId")),
        has_profile=bool(says.get("IamInstanceProfile")),
        has_metadata_options=bool(says.get("MetadataOptions")),
        is_protected=bool(says.get("DisableApiTermination")),
        market=(says.get("InstanceMarketOptions") or {}).get("MarketType", ""),
        security_groups=tuple(
            says.get("SecurityGroupIds") or [g for i in interfaces for g in i.get("Groups") or []]
        ),
        network_interface=_interface(interfaces[0]) if interfaces else None,
    )


def _interface(says: Wire) -> Wire:
    kept = {key: says[key] for key in INTERFACE_KEYS if key in says}
    return {**kept, **({"Groups": says["Groups"]} if says.get("Groups") else {})}


async def _asked(aws: Aws, service: Any, operation: str, **request: Any) -> dict[str, Any]:
    """What AWS says no to here, it says of what the compute environment names: its sentence is the reason."""
    try:
        return await aws.call(service, operation, **request)
    except AwsRefusal as error:
        if error.code == "ResourceNotFoundException" and service == "eks":
            raise ValueError(f"EKS cluster {request['name']} does not exist.") from error
        raise ValueError(f"{error.message.rstrip('.')} ({error.code}).") from error
