"""vCPU quotas of EC2 against what compute environments may grow to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from airflow_eksbatch.cloud.aws.client import Aws, AwsRefusal
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.planner.words import listed
from airflow_eksbatch.doctor.findings import Group

# `Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances`, `All P4, P3 and P2 Spot Instance Requests`
NAMES = {
    Market.ON_DEMAND: re.compile(r"Running On-Demand (.+) instances"),
    Market.SPOT: re.compile(r"All (.+) Spot Instance Requests"),
}


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """So many vCPUs of such instances at once, in this account and region."""

    code: str
    name: str
    vcpus: float
    market: Market
    families: frozenset[str]
    """Lower case: `m`, `vt`, or with a generation `p4`."""

    def holds_for(self, offering: Offering) -> bool:
        return offering.market is self.market and covers(self.families, offering.instance_type)


def quota_from(told: Mapping[str, object]) -> Quota | None:
    """None for quotas of something else."""
    name = str(told["QuotaName"])
    for market, pattern in NAMES.items():
        match = pattern.fullmatch(name)
        if match is not None:
            inside = re.search(r"\((.+)\)", match[1])
            words = re.findall(r"\w+", inside[1] if inside else match[1])
            return Quota(
                code=str(told["QuotaCode"]),
                name=name,
                vcpus=float(str(told["Value"])),
                market=market,
                families=frozenset(word.lower() for word in words if word != "and"),
            )
    return None


def covers(families: Iterable[str], instance_type: str) -> bool:
    """`im4gn` counts as I: what no quota names counts with its first letter."""
    family = instance_type.partition(".")[0]
    letters = re.match(r"[a-z]*", family)
    kind = letters[0] if letters else ""
    plain = {name for name in families if name.isalpha()}
    return (
        kind in plain
        or (len(kind) == 2 and kind[0] == "i" and "i" in plain)
        or any(family.startswith(name) for name in families if not name.isalpha())
    )


async def look_at_quotas(
    group: Group,
    aws: Aws,
    environments: Sequence[ComputeEnvironment],
    offered: Mapping[str, tuple[Offering, ...]],
) -> None:
    try:
        pages = aws.pages("service-quotas", "list_service_quotas", ServiceCode="ec2")
        told = [one async for page in pages for one in page["Quotas"]]
    except AwsRefusal as error:
        group.unseen(
            "quotas",
            f"They may not be read: {error.message}",
            "docker/iam/doctor.json has the right: servicequotas:ListServiceQuotas",
        )
        return
    quotas = [quota for one in told if (quota := quota_from(one)) is not None]
    for environment in environments:
        judge_quotas(group, environment, offered.get(environment.name, ()), quotas)


def judge_quotas(
    group: Group,
    environment: ComputeEnvironment,
    offerings: Sequence[Offering],
    quotas: Sequence[Quota],
) -> None:
    """Other environments and other users of the account share them: that it fits alone is the least."""
    mine = [quota for quota in quotas if any(quota.holds_for(one) for one in offerings)]
    if not mine:
        return
    most, wanted = sum(quota.vcpus for quota in mine), environment.max_vcpus
    said = listed([f"{quota.name} {quota.vcpus:g}" for quota in mine])
    if wanted <= most:
        group.ok("quotas", f"{environment.name}: maxvCpus {wanted} is within {said} vCPUs.")
        return
    fix = (
        "aws service-quotas request-service-quota-increase --service-code ec2 "
        f"--quota-code {mine[0].code} --desired-value {wanted}"
    )
    tell = group.warn if most else group.wrong
    tell(
        "quotas",
        f"{environment.name} may grow to maxvCpus {wanted}, and AWS gives this account {said} vCPUs.",
        fix,
    )
