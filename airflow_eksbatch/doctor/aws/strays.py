"""Instances that carry our tags and belong to nothing here: they cost money, and no service would ever end them.

A service ends what it does not know in the compute environments of its database. An environment of which its database
knows nothing (it was lost, or put back from an old copy) may as well be another service's: that only people can say.
"""

from __future__ import annotations

from collections.abc import Iterable

from airflow_eksbatch.cloud.aws import Aws, AwsRefusal
from airflow_eksbatch.cloud.blueprint import ENVIRONMENT_TAG
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.planner.words import listed, number_of
from airflow_eksbatch.doctor.aws.rights import POLICY
from airflow_eksbatch.doctor.findings import Group

# Those that end by themselves need nobody.
LASTING = ["pending", "running", "stopping", "stopped"]


async def look_for_strays(
    group: Group, aws: Aws, environments: Iterable[ComputeEnvironment]
) -> None:
    """`environments` are all that the database knows."""
    known = {environment.uuid for environment in environments}
    filters = [
        {"Name": f"tag:{labels.MANAGED_BY}", "Values": [labels.OURS]},
        {"Name": "instance-state-name", "Values": LASTING},
    ]
    strays: dict[str, str] = {}
    count = 0
    try:
        async for page in aws.pages("ec2", "describe_instances", Filters=filters):
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    count += 1
                    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                    if tags.get(labels.ENVIRONMENT_UUID) not in known:
                        since = instance["LaunchTime"].date().isoformat()
                        name = tags.get(ENVIRONMENT_TAG, "no compute environment")
                        strays[instance["InstanceId"]] = f"of {name}, since {since}"
    except AwsRefusal as error:
        group.unseen("strays", f"Instances may not be listed: {error.message}", POLICY)
        return
    if not strays:
        said = number_of(count, "instance")
        group.ok("strays", f"{said} with our tags, none of a compute environment that is not here.")
        return
    told = listed([f"{instance_id} ({about})" for instance_id, about in sorted(strays.items())])
    group.warn(
        "strays",
        f"{number_of(len(strays), 'instance')} of compute environments that this database does not know: {told}. "
        "Unless another eksbatch of this account has them, nobody will ever end them.",
        f"aws ec2 terminate-instances --instance-ids {' '.join(sorted(strays))}    # once you are sure of it",
    )
