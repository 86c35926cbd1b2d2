"""What every instance of a compute environment is made from, and the request that makes them. Pure.

The request is complete in itself: there is no launch template of ours to make, to keep in step or to leave behind. A
user's own template is named in it, and what the request says goes before what the template says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from airflow_eksbatch.cloud.aws.user_data import ClusterAddress, node_config, user_data
from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import Offering

# What people see in EC2's console beside our machine-made tags.
NAME_TAG, ENVIRONMENT_TAG = "Name", "eksbatch/compute-environment"
# What EC2 makes along with an instance and tags in the same call.
TAGGED = ("instance", "volume", "network-interface")


class UserTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """A user's launch template, at the version it had when the compute environment was checked."""

    template_id: str
    version: str
    target_types: tuple[str, ...] = ()
    """Instance types or families it overrides the first one for; empty for the first."""
    user_data: str = ""
    has_image: bool = False
    has_profile: bool = False
    has_metadata_options: bool = False
    is_protected: bool = False
    """From being ended: it must not be."""
    market: str = ""
    """As which it would have instances bought (`spot`, `capacity-block`); empty: it leaves that to the request."""
    security_groups: tuple[str, ...] = ()
    network_interface: dict[str, Any] | None = None
    """Its first, if it has any: EC2 then takes subnet and security groups there only."""


class Blueprint(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    uuid: str
    cluster: ClusterAddress
    images: dict[str, str]
    """Kind of image (image_kind) -> id; empty where the template brings its own."""
    subnets: dict[str, tuple[str, ...]]
    """By zone."""
    security_groups: tuple[str, ...] = ()
    cluster_security_group: str = ""
    """For types of which neither computeResources nor a template names any."""
    instance_profile: str = ""
    key_pair: str = ""
    placement_group: str = ""
    tags: dict[str, str] = {}
    bid_percentage: int | None = None
    """How much of the On-Demand price Spot may cost; None: up to all of it, which is EC2's own bound."""
    instance_types: tuple[str, ...] = ()
    """All that may be asked for, also what is too dear today."""
    templates: tuple[UserTemplate, ...] = ()


def template_for(templates: Sequence[UserTemplate], instance_type: str) -> UserTemplate | None:
    """An override that names the type, then one that names its family, then the first."""
    family = instance_type.partition(".")[0]
    for wanted in (instance_type, family):
        for template in templates:
            if any(fnmatchcase(wanted, target) for target in template.target_types):
                return template
    plain = [template for template in templates if not template.target_types]
    return plain[0] if plain else None


def image_kind(architecture: str, gpu: int) -> str:
    """The path by which Systems Manager knows the EKS image for such machines."""
    return f"{architecture}/{'nvidia' if gpu else 'standard'}"


def token_of(nodes: str, subnet: str) -> str:
    """EC2 makes instances for a token once, however often it is asked; another subnet is another question."""
    return "eksbatch-" + hashlib.sha256(f"{nodes}/{subnet}".encode()).hexdigest()[:48]


def nodes_tag(effect: LaunchNode) -> str:
    """The node ids of all instances that one request makes, in the order in which EC2 numbers them."""
    return " ".join(effect.together or (effect.node_id,))


def subnets_for(blueprint: Blueprint, effect: LaunchNode) -> tuple[str, ...]:
    """The subnets of its zone, each request beginning with another."""
    subnets = blueprint.subnets.get(effect.offering.zone, ())
    first = int.from_bytes(hashlib.sha256(nodes_tag(effect).encode()).digest()[:4])
    return tuple(subnets[(first + n) % len(subnets)] for n in range(len(subnets)))


def instance_request(blueprint: Blueprint, effect: LaunchNode, subnet: str) -> dict[str, Any]:
    """RunInstances for one node, or for all that are asked for together; those know no node id, but their instance."""
    offering, number = effect.offering, len(effect.together) or 1
    template = template_for(blueprint.templates, offering.instance_type)
    own = {} if effect.together else {labels.NODE_UID: effect.node_id}
    node_labels = {labels.ENVIRONMENT_UUID: blueprint.uuid, **own}
    config = node_config(blueprint.cluster, node_labels, offering.allocatable.pods)
    request: dict[str, Any] = {
        "ClientToken": token_of(nodes_tag(effect), subnet),
        "MinCount": number if effect.all_or_none else 1,
        "MaxCount": number,
        "InstanceType": offering.instance_type,
        "UserData": user_data(config, template.user_data if template else ""),
        # A machine that shuts itself down is given back, not kept.
        "InstanceInitiatedShutdownBehavior": "terminate",
        "TagSpecifications": tag_specifications(blueprint, effect),
        **network_of(blueprint, template, subnet),
    }
    image = blueprint.images.get(image_kind(offering.architecture, offering.gpu))
    if image and not (template and template.has_image):
        request["ImageId"] = image
    if template is not None:
        request["LaunchTemplate"] = {
            "LaunchTemplateId": template.template_id,
            "Version": template.version,
        }
    if template is not None and template.is_protected:
        request["DisableApiTermination"] = False
    if template is None or not template.has_metadata_options:
        # Two hops, so that pods with a network of their own reach their node's role as on other EKS nodes.
        request["MetadataOptions"] = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    if blueprint.instance_profile:
        key = "Arn" if blueprint.instance_profile.startswith("arn:") else "Name"
        request["IamInstanceProfile"] = {key: blueprint.instance_profile}
    if blueprint.key_pair:
        request["KeyName"] = blueprint.key_pair
    if blueprint.placement_group:
        request["Placement"] = {"GroupName": blueprint.placement_group}
    if offering.market is Market.SPOT:
        request["InstanceMarketOptions"] = spot_options(blueprint, offering)
    return request


def network_of(blueprint: Blueprint, template: UserTemplate | None, subnet: str) -> dict[str, Any]:
    """One interface, which ends with its instance. A template's own interface is kept but for where it stands."""
    groups = list(blueprint.security_groups)
    if not (groups or (template and template.security_groups)) and blueprint.cluster_security_group:
        groups = [blueprint.cluster_security_group]
    if template is not None and template.security_groups and not template.network_interface:
        # EC2 takes security groups of a template only beside a subnet, not beside interfaces.
        return {"SubnetId": subnet, **({"SecurityGroupIds": groups} if groups else {})}
    interface = (template.network_interface if template else None) or {}
    return {
        "NetworkInterfaces": [
            {
                **interface,
                **({"Groups": groups} if groups else {}),
                "DeviceIndex": 0,
                "SubnetId": subnet,
                "DeleteOnTermination": True,
            }
        ]
    }


def spot_options(blueprint: Blueprint, offering: Offering) -> dict[str, Any]:
    options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    if blueprint.bid_percentage is not None:
        most = offering.on_demand_usd_hour * blueprint.bid_percentage / 100
        options["MaxPrice"] = f"{most:.5f}"
    return {"MarketType": "spot", "SpotOptions": options}


def tag_specifications(blueprint: Blueprint, effect: LaunchNode) -> list[dict[str, Any]]:
    """The node ids stand on the instance from the moment there is one; by them the instance is found again."""
    tags = {
        NAME_TAG: f"eksbatch {blueprint.name}",
        f"kubernetes.io/cluster/{blueprint.cluster.name}": "owned",
        **blueprint.tags,
        ENVIRONMENT_TAG: blueprint.name,
        labels.MANAGED_BY: labels.OURS,
        labels.ENVIRONMENT_UUID: blueprint.uuid,
        labels.NODE_UID: nodes_tag(effect),
    }
    return [{"ResourceType": kind, "Tags": tag_list(tags.items())} for kind in TAGGED]


def tag_list(tags: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags)]
