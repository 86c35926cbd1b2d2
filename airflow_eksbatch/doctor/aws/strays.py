"""Instances that carry our tags and belong to nothing here: they cost money, and no service would ever end them.

A service ends what it does not know in the compute environments of its database. An environment of which its database
knows nothing (it was lost, or put back from an old copy) may as well be another service's: that only people can say.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.aws.sightings import Seen, list_by
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
    try:
        ours = await list_by(aws, "instance-state-name", LASTING)
    except AwsRefusal as error:
        group.unseen("strays", f"Instances may not be listed: {error.message}", POLICY)
        return
    strays = {seen.instance_id: seen for seen in ours if seen.uuid not in known}
    if not strays:
        said = number_of(len(ours), "instance")
        group.ok("strays", f"{said} with our tags, none of a compute environment that is not here.")
        return
    told = listed(
        [
            f"{instance_id} (of {seen.environment or 'no compute environment'}, since {_day(seen)})"
            for instance_id, seen in sorted(strays.items())
        ]
    )
    group.warn(
        "strays",
        f"{number_of(len(strays), 'instance')} of compute environments that this database does not know: {told}. "
        "Unless another eksbatch of this account has them, nobody will ever end them.",
        f"aws ec2 terminate-instances --instance-ids {' '.join(sorted(strays))}    # once you are sure of it",
    )


def _day(seen: Seen) -> str:
    return datetime.fromtimestamp(seen.launched_at / 1000, UTC).date().isoformat()
