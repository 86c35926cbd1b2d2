"""A compute environment is looked into before it buys: VALID, or INVALID with a sentence that says what to mend."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any, cast

import boto3
import msgspec
import pytest
from botocore.exceptions import ClientError

from airflow_eksbatch.cloud.aws.checks import IMAGE_PARAMETER
from airflow_eksbatch.cloud.aws.client import Aws, AwsSettings
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from tests.cloud.account import PROFILE, VERSION, Account, launch
from tests.cloud.door import REGION, Door
from tests.cloud.watching import asynchronous


def with_cluster(environment: ComputeEnvironment, arn: str) -> ComputeEnvironment:
    return msgspec.structs.replace(environment, cluster_arn=arn)


def old_cluster(account: Account) -> ComputeEnvironment:
    arn = account.door.client("eks").create_cluster(
        name="old", version="1.28", roleArn=account.role, resourcesVpcConfig={}
    )["cluster"]["arn"]
    return with_cluster(account.environment(), arn)


def other_vpc(account: Account) -> ComputeEnvironment:
    vpc = account.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = account.ec2.create_subnet(
        VpcId=vpc, CidrBlock="10.9.0.0/24", AvailabilityZone="us-east-1a"
    )["Subnet"]["SubnetId"]
    return account.environment(subnets=[subnet, *account.subnets.values()])


def no_entry(account: Account) -> ComputeEnvironment:
    account.door.authentication_mode = "API"
    return account.environment()


def wrong_entry(account: Account) -> ComputeEnvironment:
    account.door.authentication_mode = "API"
    account.door.access_entries[account.role] = "FARGATE_LINUX"
    return account.environment()


def no_image(account: Account) -> ComputeEnvironment:
    account.door.images.clear()
    return account.environment()


def no_rights(account: Account) -> ComputeEnvironment:
    account.door.refuse(
        "DescribeSubnets", "UnauthorizedOperation", message="You are not authorized."
    )
    return account.environment()


def unborn_cluster(account: Account) -> ComputeEnvironment:
    account.door.cluster = {"status": "CREATING"}
    return account.environment()


def al2(account: Account) -> ComputeEnvironment:
    return account.environment(ec2Configuration=[{"imageType": "EKS_AL2"}])


def bottlerocket(account: Account) -> ComputeEnvironment:
    return account.environment(ec2Configuration=[{"imageType": "EKS_BOTTLEROCKET"}])


def a_template(account: Account, **says: Any) -> str:
    name = f"template-{len(account.ec2.describe_launch_templates()['LaunchTemplates'])}"
    made = account.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=says)
    return made["LaunchTemplate"]["LaunchTemplateId"]


def template_of_spot(account: Account) -> ComputeEnvironment:
    """The environment's own type is EC2: On-Demand."""
    template = a_template(account, InstanceMarketOptions={"MarketType": "spot"})
    return account.environment(launchTemplate={"launchTemplateId": template})


def template_for_some(account: Account) -> ComputeEnvironment:
    """An override brings a profile, but for one of two types."""
    made = a_template(account, ImageId=account.image, IamInstanceProfile={"Name": PROFILE})
    override = {"launchTemplateId": made, "targetInstanceTypes": ["m5.xlarge"]}
    return account.environment(instanceRole="", launchTemplate={"overrides": [override]})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda a: with_cluster(a.environment(), "cluster/none"),
            "EKS cluster none does not exist.",
        ),
        (unborn_cluster, "EKS cluster main is CREATING, not ACTIVE."),
        (old_cluster, "EKS Cluster version [1.28] is unsupported"),
        (no_image, f"EKS Cluster version [{VERSION}] is unsupported"),
        (lambda a: a.environment(instanceRole="nobody"), "Instance profile nobody does not exist"),
        (lambda a: a.environment(instanceRole=""), "computeResources.instanceRole is missing"),
        (lambda a: a.environment(subnets=["subnet-0000000000000000a"]), "subnet-0000000000000000a"),
        (lambda a: a.environment(subnets=[]), "computeResources.subnets is empty"),
        (
            lambda a: a.environment(securityGroupIds=["sg-00000000000000000"]),
            "sg-00000000000000000",
        ),
        (lambda a: a.environment(instanceTypes=["m9.huge"]), "is no instance type"),
        (lambda a: a.environment(instanceTypes=["m5", "m6g"]), "instanceTypes mixes"),
        (lambda a: a.environment(launchTemplate={"launchTemplateName": "none"}), "none"),
        (other_vpc, "Subnets must stand in one VPC"),
        (no_entry, "aws eks create-access-entry --cluster-name main"),
        (wrong_entry, "is of type FARGATE_LINUX"),
        (no_rights, "You are not authorized"),
        (al2, "use EKS_AL2023"),
        (bottlerocket, "imageType EKS_BOTTLEROCKET is none of EKS_AL2023, EKS_AL2023_NVIDIA"),
        (template_of_spot, "says InstanceMarketOptions (spot); take them out"),
        (template_for_some, "computeResources.instanceRole is missing"),
    ],
)
@asynchronous
async def test_an_invalid_environment_says_why(
    account: Account, make: Callable[[Account], ComputeEnvironment], sentence: str
) -> None:
    environment = make(account)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        await account.cloud().offerings(environment)


@asynchronous
async def test_an_environment_is_not_called_invalid_because_aws_is_down(
    account: Account, door: Door
) -> None:
    door.refuse("DescribeSubnets", "Unavailable", status=503)
    with pytest.raises(CloudDown):
        await account.cloud().offerings(account.environment())


@asynchronous
async def test_a_cluster_that_eks_updates_is_used_meanwhile(account: Account, door: Door) -> None:
    door.cluster = {"status": "UPDATING"}
    assert await account.cloud().offerings(account.environment())


@asynchronous
async def test_nodes_may_join_where_access_entries_alone_decide(
    account: Account, door: Door
) -> None:
    door.authentication_mode = "API"
    door.access_entries[account.role] = "EC2_LINUX"
    assert await account.cloud().offerings(account.environment(instanceRole=PROFILE))


async def request_for(account: Account, **resources: Any) -> dict[str, str]:
    """What RunInstances was asked for the first offering."""
    cloud = account.cloud()
    offerings = await cloud.offerings(account.environment(**resources))
    await cloud.launch([launch(offerings[0], len(account.instances()))])
    return dict(account.door.requests)["RunInstances"]


@asynchronous
async def test_images_are_those_that_eks_recommends_for_the_cluster_and_the_machine(
    account: Account, door: Door
) -> None:
    images = [image["ImageId"] for image in account.ec2.describe_images()["Images"]][1:4]
    for kind, image in zip(("x86_64/nvidia", "arm64/standard"), images, strict=False):
        door.images[IMAGE_PARAMETER.format(version=VERSION, kind=kind)] = image
    assert (await request_for(account))["ImageId"] == account.image
    assert (await request_for(account, instanceTypes=["g4dn.xlarge"]))["ImageId"] == images[0]
    assert (await request_for(account, instanceTypes=["m6g.large"]))["ImageId"] == images[1]
    named = [{"imageType": "EKS_AL2023", "imageIdOverride": images[2]}]
    assert (await request_for(account, ec2Configuration=named))["ImageId"] == images[2]


@asynchronous
async def test_keys_groups_and_placement_are_taken_over(account: Account) -> None:
    account.ec2.create_key_pair(KeyName="key")
    form = await request_for(account, ec2KeyPair="key", placementGroup="close")
    assert form["KeyName"] == "key"
    assert form["Placement.GroupName"] == "close"
    assert form["NetworkInterface.1.SecurityGroupId.1"] == account.security_group
    assert form["NetworkInterface.1.DeleteOnTermination"] == "true"
    assert form["IamInstanceProfile.Name"] == PROFILE


@asynchronous
async def test_a_users_template_is_used_at_the_version_it_had_and_its_user_data_comes_first(
    account: Account,
) -> None:
    script = "#!/bin/bash\necho mine"
    account.ec2.create_launch_template(
        LaunchTemplateName="mine",
        LaunchTemplateData={
            "UserData": base64.b64encode(script.encode()).decode(),
            "ImageId": account.image,
            "SecurityGroupIds": [account.security_group],
        },
    )
    form = await request_for(
        account,
        securityGroupIds=[],
        launchTemplate={"launchTemplateName": "mine", "version": "$Latest"},
    )
    assert form["LaunchTemplate.Version"] == "1"
    assert "ImageId" not in form
    assert form["SubnetId"] in account.subnets.values()
    told = base64.b64decode(form["UserData"]).decode()
    assert told.index("echo mine") < told.index("NodeConfig")


@asynchronous
async def test_a_template_that_overrides_for_a_type_is_used_for_that_type(account: Account) -> None:
    made = [a_template(account, ImageId=account.image) for _ in range(2)]
    override = {"launchTemplateId": made[1], "targetInstanceTypes": ["m5.xlarge"]}
    template = {"launchTemplateId": made[0], "overrides": [override]}
    for instance_type, expected in (("m5.large", made[0]), ("m5.xlarge", made[1])):
        form = await request_for(account, instanceTypes=[instance_type], launchTemplate=template)
        assert form["LaunchTemplate.LaunchTemplateId"] == expected


@asynchronous
async def test_a_type_has_what_its_own_template_brings_and_else_what_others_have(
    account: Account, door: Door
) -> None:
    """An override with security groups and an image says nothing of the types that it does not name."""
    door.cluster = {
        "resourcesVpcConfig": {
            "vpcId": account.vpc,
            "clusterSecurityGroupId": (of_cluster := "sg-0123456789abcdef0"),
        }
    }
    made = a_template(account, ImageId=account.image, SecurityGroupIds=[account.security_group])
    override = {"launchTemplateId": made, "targetInstanceTypes": ["m5.xlarge"]}
    cloud = account.cloud()
    offerings = await cloud.offerings(
        account.environment(securityGroupIds=[], launchTemplate={"overrides": [override]})
    )
    large, extra = offerings[0], offerings[-1]
    assert (large.instance_type, extra.instance_type) == ("m5.large", "m5.xlarge")
    await cloud.launch([launch(large)])
    form = door.requests[-1][1]
    assert form["NetworkInterface.1.SecurityGroupId.1"] == of_cluster
    assert form["ImageId"] == account.image
    assert "LaunchTemplate.LaunchTemplateId" not in form
    await cloud.launch([launch(extra, 2)])
    form = door.requests[-1][1]
    assert form["LaunchTemplate.LaunchTemplateId"] == made
    assert of_cluster not in form.values()
    assert "ImageId" not in form


@asynchronous
async def test_credentials_that_cannot_be_had_are_no_answer_to_what_was_asked(
    account: Account,
) -> None:
    """With a role of a service account (IRSA) botocore asks STS first, in the middle of any call."""
    refused = {"Code": "InvalidIdentityToken", "Message": "No verification key."}

    def no_credentials(**_: Any) -> None:
        raise ClientError(cast(Any, {"Error": refused}), "AssumeRoleWithWebIdentity")

    session = boto3.Session("testing", "testing", region_name=REGION)
    session.events.register("request-created.ec2", no_credentials)
    aws = Aws(AwsSettings(region=REGION, endpoint=account.door.url), session)
    with pytest.raises(CloudDown, match="No credentials: InvalidIdentityToken"):
        await aws.call("ec2", "describe_subnets")
