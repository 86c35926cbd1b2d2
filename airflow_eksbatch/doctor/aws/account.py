"""Who we are in AWS, and its clock."""

from __future__ import annotations

import msgspec

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.doctor.clocks import SIGV4, SYNC, Stopwatch, judge_clock
from airflow_eksbatch.doctor.findings import Group

CREDENTIALS = (
    "In the cluster: EKS Pod Identity or IRSA for the service account (docker/eks.md).\n"
    "Elsewhere: aws sts get-caller-identity    # with AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
# What AWS says to a signature whose time is not its own.
SKEWED = (
    "Signature expired",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "Signature not yet current",
)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    account: str
    arn: str

    @property
    def partition(self) -> str:
        """How ARNs begin here: `arn:aws`, `arn:aws-cn`."""
        return ":".join(self.arn.split(":")[:2])

    @property
    def principal(self) -> str:
        """The user or role behind a session; empty for the account itself, which has no policy."""
        partition, _, name = self.arn.partition(":sts::")
        if name:
            _, _, role = name.partition(":assumed-role/")
            return f"{partition}:iam::{self.account}:role/{role.partition('/')[0]}" if role else ""
        return "" if self.arn.endswith(":root") else self.arn


async def look_at_account(group: Group, aws: Aws) -> Identity | None:
    """None when there is nothing more to be asked."""
    watch = Stopwatch()
    try:
        told = await aws.call("sts", "get_caller_identity")
    except (CloudDown, AwsRefusal) as error:
        is_late = any(words in str(error) for words in SKEWED)
        group.wrong(
            "account", f"AWS does not know who we are: {error}", SYNC if is_late else CREDENTIALS
        )
        return None
    identity = Identity(account=told["Account"], arn=told["Arn"])
    group.ok("account", f"We are {identity.arn}, in {aws.region}.")
    date = told["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    judge_clock(group, "AWS", watch.skew_to_date(date), SIGV4)
    return identity
