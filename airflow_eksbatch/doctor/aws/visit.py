"""AWS looked at, group by group: who we are, our rights, each compute environment that buys there, quotas, notices, strays."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_eksbatch.cloud.aws.catalogue import Ec2Catalogue
from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.doctor.aws.account import look_at_account
from airflow_eksbatch.doctor.aws.environments import look_at_environment
from airflow_eksbatch.doctor.aws.notices import look_at_notices
from airflow_eksbatch.doctor.aws.quotas import look_at_quotas
from airflow_eksbatch.doctor.aws.rights import look_at_rights
from airflow_eksbatch.doctor.aws.strays import look_for_strays
from airflow_eksbatch.doctor.findings import Report


async def look_at_aws(
    report: Report, aws: Aws, environments: Sequence[ComputeEnvironment] | None, notices: str
) -> None:
    """Environments that are unmanaged have their machines from others, and are not looked at here.

    None: the database could not be read.
    """
    buying = [environment for environment in environments or () if environment.managed]
    account = report.group("AWS account")
    try:
        identity = await look_at_account(account, aws)
        if identity is None:
            return
        uses_spot = any(environment.market is Market.SPOT for environment in buying)
        await look_at_rights(report.group("rights in AWS"), aws, identity)
        catalogue, offered = Ec2Catalogue(aws), dict[str, tuple[Offering, ...]]()
        for environment in buying:
            group = report.group(f"compute environment {environment.name} in AWS")
            offered[environment.name] = await look_at_environment(
                group, aws, catalogue, environment
            )
        if buying:
            await look_at_quotas(report.group("quotas of EC2"), aws, buying, offered)
        await look_at_notices(report.group("notices"), aws, notices, uses_spot=uses_spot)
        if environments is not None:
            await look_for_strays(report.group("instances in AWS"), aws, environments)
    except (CloudDown, AwsRefusal) as error:
        account.wrong("reach", f"AWS stopped answering while we looked: {error}", "Look again.")
    finally:
        aws.close()
