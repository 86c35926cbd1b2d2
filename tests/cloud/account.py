"""An AWS account for tests: a VPC, an EKS cluster, a node role; and at the end the sum of all that is left in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from airflow_eksbatch.cloud.aws.catalogue import Ec2Catalogue
from airflow_eksbatch.cloud.aws.checks import IMAGE_PARAMETER
from airflow_eksbatch.cloud.aws.client import Aws, AwsSettings
from airflow_eksbatch.cloud.ec2 import Ec2Cloud, Ec2Settings
from airflow_eksbatch.core.engine.effects import LaunchNode, TerminateNode
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import NodeId, Offering
from tests.build import an_environment
from tests.cloud.door import REGION, Door

ZONES = ("us-east-1a", "us-east-1b")
VERSION = "1.34"
KINDS = ("x86_64/standard", "x86_64/nvidia", "arm64/standard", "arm64/nvidia")
PRICES = {"m5.large": 0.096, "m5.xlarge": 0.192, "c5.large": 0.085, "g4dn.xlarge": 0.526}
PROFILE = "nodes"
ROLE_POLICY = {"Version": "2012-10-17", "Statement": []}


class Account:
    """What a person sets up before compute environments are made."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.troubles: list[tuple[str, str, int]] = []
        """What clouds told of: what, why, how many times in a row."""
        self.ec2 = door.client("ec2")
        self.vpc = self.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        self.subnets = {
            zone: self.ec2.create_subnet(
                VpcId=self.vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=zone
            )["Subnet"]["SubnetId"]
            for number, zone in enumerate(ZONES)
        }
        self.security_group = self.ec2.create_security_group(
            GroupName="nodes", Description="nodes", VpcId=self.vpc
        )["GroupId"]
        iam = door.client("iam")
        self.role = iam.create_role(
            RoleName="node-role", AssumeRolePolicyDocument=json.dumps(ROLE_POLICY)
        )["Role"]["Arn"]
        iam.create_instance_profile(InstanceProfileName=PROFILE)
        iam.add_role_to_instance_profile(InstanceProfileName=PROFILE, RoleName="node-role")
        self.cluster = door.client("eks").create_cluster(
            name="main",
            version=VERSION,
            roleArn=self.role,
            resourcesVpcConfig={"subnetIds": list(self.subnets.values())},
        )["cluster"]["arn"]
        self.image = self.ec2.describe_images()["Images"][0]["ImageId"]
        for kind in KINDS:
            door.images[IMAGE_PARAMETER.format(version=VERSION, kind=kind)] = self.image
        door.prices.update(PRICES)
        for name, price in PRICES.items():
            for zone, part in zip(ZONES, (0.3, 0.35), strict=True):
                door.spot_prices[name, zone] = round(price * part, 5)

    def another_subnet(self, zone: str) -> str:
        """Beside the one that each zone has."""
        made = self.ec2.create_subnet(
            VpcId=self.vpc, CidrBlock="10.0.9.0/24", AvailabilityZone=zone
        )
        return made["Subnet"]["SubnetId"]

    def environment(
        self, name: str = "ce", *, market: Market = Market.ON_DEMAND, **resources: Any
    ) -> ComputeEnvironment:
        """As DescribeComputeEnvironments would tell it; `resources` are members of computeResources."""
        wire: dict[str, Any] = {
            "type": market.value,
            "instanceTypes": ["m5.large", "m5.xlarge"],
            "subnets": list(self.subnets.values()),
            "securityGroupIds": [self.security_group],
            "instanceRole": PROFILE,
            **resources,
        }
        return an_environment(
            name,
            market=market,
            instance_types=tuple(wire["instanceTypes"]),
            subnets=tuple(wire["subnets"]),
            cluster_arn=self.cluster,
            wire=msgspec.json.encode({"computeResources": wire}),
        )

    def cloud(self, *, clock: Callable[[], float] = time.monotonic, **settings: Any) -> Ec2Cloud:
        """A service's way to this account; a second one is the service after a crash. `clock`: of what is kept of AWS's answers."""
        aws = Aws(AwsSettings(region=REGION, endpoint=self.door.url), self.door.session)
        aws.troubles.tell = lambda what, reason, times: self.troubles.append((what, reason, times))
        defaults = {"look_s": 0.2, "settle_s": 0.0, "shown_s": 0.0, "skew_s": 0.0, "endings_s": 0.1}
        defaults |= {"launch_burst": 1_000, "launches_per_s": 1e6, "refused_s": 0.0}
        defaults["notices_rest_s"] = 0.05
        settings = {**defaults, **settings}
        return Ec2Cloud(aws, Ec2Settings(**settings), Ec2Catalogue(aws, clock))

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Those in these states; any but terminated if none is named."""
        told = self.ec2.describe_instances()["Reservations"]
        found = [i for reservation in told for i in reservation["Instances"]]
        if states:
            return [i for i in found if i["State"]["Name"] in states]
        return [i for i in found if i["State"]["Name"] != "terminated"]

    def tags(self, instance: dict[str, Any]) -> dict[str, str]:
        return {tag["Key"]: tag["Value"] for tag in instance["Tags"]}

    def left(self) -> dict[str, int]:
        """Everything that costs money or is in the way, by kind; an empty account has none of it."""
        ec2 = self.ec2
        counts = {
            "instances": len(self.instances()),
            "volumes": len(ec2.describe_volumes()["Volumes"]),
            "network interfaces": len(ec2.describe_network_interfaces()["NetworkInterfaces"]),
            "launch templates": len(ec2.describe_launch_templates()["LaunchTemplates"]),
            "fleets": len(ec2.describe_fleets()["Fleets"]),
            "Spot requests": len(ec2.describe_spot_instance_requests()["SpotInstanceRequests"]),
        }
        return {kind: count for kind, count in counts.items() if count}


def launch(offering: Offering, number: int = 1, environment: str = "ce") -> LaunchNode:
    return LaunchNode(
        node_id=NodeId(f"node-{number:06d}-{environment}"),
        compute_environment=environment,
        offering=offering,
    )


def a_lot(
    offering: Offering, first: int, size: int, *, all_or_none: bool = False
) -> list[LaunchNode]:
    """Launches that one request may make; one of them alone is asked for alone."""
    lot = [launch(offering, first + number) for number in range(size)]
    together = tuple(effect.node_id for effect in lot) if size > 1 else ()
    how = {"together": together, "all_or_none": all_or_none and size > 1}
    return [msgspec.structs.replace(effect, **how) for effect in lot]


def terminate(effect: LaunchNode, instance_id: str | None) -> TerminateNode:
    return TerminateNode(
        node_id=effect.node_id,
        compute_environment=effect.compute_environment,
        instance_id=instance_id,
        node_name=None,
    )
