"""The doctor looks at AWS: a healthy account is all ok, and each thing broken in turn is named with its fix."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.cli import main
from airflow_eksbatch.cloud.aws.client import Aws, AwsSettings
from airflow_eksbatch.cloud.ec2 import Ec2Cloud
from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.world.changes import Changes
from airflow_eksbatch.doctor.aws.account import Identity
from airflow_eksbatch.doctor.aws.notices import judge_policy, kinds_in
from airflow_eksbatch.doctor.aws.quotas import covers, quota_from
from airflow_eksbatch.doctor.aws.visit import look_at_aws
from airflow_eksbatch.doctor.findings import Finding, Group, Mark, Report
from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.service.wiring import make_store
from tests.cloud.account import Account
from tests.cloud.door import REGION
from tests.doctor.rights_door import ACCOUNT, EVERYTHING, RightsDoor

ROOT = Path(__file__).resolve().parents[2]
IAM = ROOT / "docker" / "iam"
QUEUE = "eksbatch-notices"


def install(account: Account, door: RightsDoor) -> str:
    """What docker/eks.md tells people to do; the queue's URL."""
    door.access_entries[account.role] = "EC2_LINUX"
    sqs, events = door.client("sqs"), door.client("events")
    policy = (IAM / "notices-queue.json").read_text()
    policy = policy.replace("REGION", REGION).replace("ACCOUNT", ACCOUNT)
    url = sqs.create_queue(QueueName=QUEUE, Attributes={"Policy": policy})["QueueUrl"]
    events.put_rule(Name=QUEUE, EventPattern=(IAM / "notices-rule.json").read_text())
    arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{QUEUE}"
    events.put_targets(Rule=QUEUE, Targets=[{"Id": "queue", "Arn": arn}])
    return url


def report_on(door: RightsDoor, *environments: ComputeEnvironment, notices: str = QUEUE) -> Report:
    report = Report()
    aws = Aws(AwsSettings(region=REGION, endpoint=door.url), door.session)
    asyncio.run(look_at_aws(report, aws, environments, notices))
    return report


def not_ok(report: Report) -> list[Finding]:
    return [f for group in report.groups for f in group.findings if f.mark is not Mark.OK]


def test_a_healthy_account_is_all_ok(account: Account, door: RightsDoor) -> None:
    install(account, door)
    spot = account.environment("spot", market=Market.SPOT)
    report = report_on(door, account.environment(), spot)
    assert not_ok(report) == []
    assert report.exit_code == 0
    assert [group.title for group in report.groups] == [
        "AWS account",
        "rights in AWS",
        "compute environment ce in AWS",
        "compute environment spot in AWS",
        "quotas of EC2",
        "notices",
        "instances in AWS",
    ]


def test_nothing_is_bought_or_changed_by_looking(account: Account, door: RightsDoor) -> None:
    install(account, door)
    door.asked.clear()
    report_on(door, account.environment())
    assert account.left() == {}
    runs = [form for action, form in door.requests if action == "RunInstances"]
    assert [form["DryRun"] for form in runs] == ["true"]
    reads = re.compile(r"(Describe|Get|List|Simulate|RunInstances|GET |POST )")
    assert [action for action in door.asked if not reads.match(action)] == []


# ---- one thing broken


def no_credentials(account: Account, door: RightsDoor) -> None:
    door.refuse("GetCallerIdentity", "InvalidClientTokenId", message="The token is invalid.")


def skewed(account: Account, door: RightsDoor) -> None:
    door.ahead_s = 400.0


def nearly_skewed(account: Account, door: RightsDoor) -> None:
    door.ahead_s = -100.0


def no_reading(account: Account, door: RightsDoor) -> None:
    door.refuse("DescribeSpotPriceHistory", "UnauthorizedOperation", times=1)


def no_scores(account: Account, door: RightsDoor) -> None:
    door.refuse("GetSpotPlacementScores", "UnauthorizedOperation")


def no_types(account: Account, door: RightsDoor) -> None:
    door.refuse("DescribeInstanceTypes", "UnauthorizedOperation", message="Not authorized")


def no_simulator(account: Account, door: RightsDoor) -> None:
    door.may_simulate = False


def no_ending(account: Account, door: RightsDoor) -> None:
    door.statements = [s for s in door.statements if s["Sid"] != "EndOnlyWhatCarriesOurTag"]


def all_rights(account: Account, door: RightsDoor) -> None:
    door.statements.append(EVERYTHING)


def root_user(account: Account, door: RightsDoor) -> None:
    door.arn = f"arn:aws:iam::{ACCOUNT}:root"


def no_entry(account: Account, door: RightsDoor) -> None:
    door.access_entries.clear()


def config_map_only(account: Account, door: RightsDoor) -> None:
    door.authentication_mode = "CONFIG_MAP"


def no_image(account: Account, door: RightsDoor) -> None:
    door.images.clear()


def no_buying(account: Account, door: RightsDoor) -> None:
    door.refuse("RunInstances", "UnauthorizedOperation", message="You are not authorized.")


def no_capacity(account: Account, door: RightsDoor) -> None:
    door.refuse("RunInstances", "InsufficientInstanceCapacity", message="None there.", status=500)


def no_queue(account: Account, door: RightsDoor) -> None:
    sqs = door.client("sqs")
    sqs.delete_queue(QueueUrl=sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"])


def open_queue(account: Account, door: RightsDoor) -> None:
    statement = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": "*"}
    set_policy(door, {"Version": "2012-10-17", "Statement": [statement]})


def closed_queue(account: Account, door: RightsDoor) -> None:
    set_policy(door, {"Version": "2012-10-17", "Statement": []})


def set_policy(door: RightsDoor, policy: dict[str, Any]) -> None:
    sqs = door.client("sqs")
    url = sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy)})


def no_rule(account: Account, door: RightsDoor) -> None:
    door.client("events").remove_targets(Rule=QUEUE, Ids=["queue"])


def sleeping_rule(account: Account, door: RightsDoor) -> None:
    door.client("events").disable_rule(Name=QUEUE)


def small_quota(account: Account, door: RightsDoor) -> None:
    name, _ = door.quotas["L-1216C47A"]
    door.quotas["L-1216C47A"] = (name, 32.0)


def no_quotas(account: Account, door: RightsDoor) -> None:
    door.may_read_quotas = False


@pytest.mark.parametrize(
    ("spoil", "mark", "sentence", "fix"),
    [
        (no_credentials, Mark.WRONG, "The token is invalid.", "aws sts get-caller-identity"),
        (skewed, Mark.WRONG, "s behind that of AWS", "timedatectl"),
        (nearly_skewed, Mark.WARNING, "s ahead of that of AWS", "timedatectl"),
        (no_reading, Mark.WRONG, "may not ec2:DescribeSpotPriceHistory", "service.json"),
        (no_scores, Mark.WARNING, "may not ec2:GetSpotPlacementScores", "service.json"),
        (no_types, Mark.WRONG, "Not authorized. The service's role lacks", "service.json"),
        (no_simulator, Mark.UNSEEN, "iam:SimulatePrincipalPolicy is not", "doctor.json"),
        (no_ending, Mark.WRONG, "may not ec2:TerminateInstances", "service.json"),
        (all_rights, Mark.WARNING, "may also ec2:TerminateInstances", "role of its own"),
        (root_user, Mark.UNSEEN, "Rights that cannot be tried", "doctor.json"),
        (no_entry, Mark.WARNING, "no access entry", "aws eks create-access-entry"),
        (config_map_only, Mark.WARNING, "ConfigMap aws-auth", "API_AND_CONFIG_MAP"),
        (no_image, Mark.WRONG, "AWS has no image", "aws eks update-cluster-version"),
        (no_buying, Mark.WRONG, "We may not buy m5.large", "service.json"),
        (no_capacity, Mark.WARNING, "EC2 has no m5.large", "Name more instance types"),
        (no_queue, Mark.WRONG, "SQS queue eksbatch-notices", "aws sqs create-queue"),
        (open_queue, Mark.WARNING, "Everybody may put notices", "notices-queue.json"),
        (closed_queue, Mark.WRONG, "EventBridge may not put", "aws sqs set-queue-attributes"),
        (no_rule, Mark.WRONG, "No rule of EventBridge", "aws events put-targets"),
        (sleeping_rule, Mark.WRONG, "is disabled", "aws events enable-rule"),
        (small_quota, Mark.WARNING, "maxvCpus 64", "--quota-code L-1216C47A --desired-value 64"),
        (no_quotas, Mark.UNSEEN, "may not be read", "servicequotas:ListServiceQuotas"),
    ],
)
def test_what_is_broken_in_the_account_is_named_with_its_fix(
    account: Account,
    door: RightsDoor,
    spoil: Callable[[Account, RightsDoor], None],
    mark: Mark,
    sentence: str,
    fix: str,
) -> None:
    install(account, door)
    environment = account.environment()
    spoil(account, door)
    named = [f for f in not_ok(report_on(door, environment)) if sentence in f.sentence]
    assert [(f.mark, fix in f.fix) for f in named] == [(mark, True)], named


@pytest.mark.parametrize(
    ("resources", "sentence", "fix"),
    [
        ({"subnets": ["subnet-0000000000000000a"]}, "subnet-0000000000000000a", "subnets="),
        ({"instanceRole": "nobody"}, "Instance profile nobody does not exist", "eks.md"),
        ({"instanceRole": ""}, "instanceRole is missing", "instanceRole=eksbatch-node"),
        ({"instanceTypes": ["m9.huge"]}, "is no instance type", "update-compute-environment"),
        ({"securityGroupIds": ["sg-00000000000000000"]}, "sg-00000000000000000", "update-compute"),
    ],
)
def test_what_is_wrong_in_an_environment_is_named_with_its_fix(
    account: Account, door: RightsDoor, resources: dict[str, Any], sentence: str, fix: str
) -> None:
    install(account, door)
    found = not_ok(report_on(door, account.environment(**resources)))
    assert [(f.mark, sentence in f.sentence, fix in f.fix) for f in found] == [
        (Mark.WRONG, True, True)
    ]


def test_where_access_entries_alone_decide_a_missing_one_is_wrong(
    account: Account, door: RightsDoor
) -> None:
    install(account, door)
    door.access_entries.clear()
    door.authentication_mode = "API"
    found = not_ok(report_on(door, account.environment()))
    assert {(f.mark, "aws eks create-access-entry" in f.fix) for f in found} == {(Mark.WRONG, True)}


def test_subnets_that_are_too_small_for_the_environment_are_named(
    account: Account, door: RightsDoor
) -> None:
    install(account, door)
    small = account.ec2.create_subnet(
        VpcId=account.vpc, CidrBlock="10.0.9.0/28", AvailabilityZone="us-east-1a"
    )["Subnet"]["SubnetId"]
    (found,) = not_ok(report_on(door, account.environment(subnets=[small])))
    assert (found.check, found.mark) == ("addresses", Mark.WARNING)
    assert f"{small} 11" in found.sentence


def test_spot_without_notices_is_a_warning(account: Account, door: RightsDoor) -> None:
    install(account, door)
    spot = account.environment("spot", market=Market.SPOT)
    (found,) = not_ok(report_on(door, spot, notices=""))
    assert (found.check, "--notices eksbatch-notices" in found.fix) == ("notices", True)


def test_the_scores_of_zones_are_told_where_spot_goes_by_them(
    account: Account, door: RightsDoor
) -> None:
    install(account, door)
    door.scores.by_zone["us-east-1b"] = 3
    types = ["m5.large", "m5.xlarge", "c5.large"]
    spot = account.environment("spot", market=Market.SPOT, instanceTypes=types)
    strategy = "SPOT_CAPACITY_OPTIMIZED"
    report = report_on(door, msgspec.structs.replace(spot, allocation_strategy=strategy))
    told = [f for group in report.groups for f in group.findings if f.check == "placement scores"]
    assert [(f.mark, "us-east-1a 10, us-east-1b 3" in f.sentence) for f in told] == [
        (Mark.OK, True)
    ]


# ---- the command


def test_the_command_looks_at_aws_also_where_the_cluster_does_not_answer(
    account: Account,
    door: RightsDoor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(account, door)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    kubeconfig = {"clusters": [cluster], "contexts": [context], "current-context": "c"}
    users = [{"name": "u", "user": {"token": "t"}}]
    file = tmp_path / "kubeconfig"
    file.write_text(
        json.dumps({"apiVersion": "v1", "kind": "Config", "users": users, **kubeconfig})
    )
    database = f"sqlite:///{tmp_path / 'eksbatch.db'}"
    store = make_store(Settings(database=database))
    store.open()
    store.commit(Changes(compute_environments=[account.environment()]))
    store.close()

    options = ["--cluster", "kubeconfig", "--kubeconfig", str(file), "--database", database]
    options += ["--cloud", "ec2", "--aws-endpoint", door.url, "--notices", QUEUE]
    assert main(["doctor", "--json", *options]) == 1

    told = json.loads(capsys.readouterr().out)
    marks = {g["title"]: {f["mark"] for f in g["findings"]} for g in told["groups"]}
    assert marks.pop("database") == {"ok", "warning"}
    assert marks.pop("Kubernetes c") == {"wrong"}
    assert set(marks) >= {"AWS account", "compute environment ce in AWS", "notices"}
    assert set.union(*marks.values()) == {"ok"}


# ---- pure parts


def test_a_session_is_the_role_behind_it() -> None:
    def principal(arn: str) -> str:
        return Identity(account=ACCOUNT, arn=arn).principal

    role = f"arn:aws:iam::{ACCOUNT}:role/eksbatch"
    assert principal(f"arn:aws:sts::{ACCOUNT}:assumed-role/eksbatch/session") == role
    assert principal(f"arn:aws:iam::{ACCOUNT}:user/me") == f"arn:aws:iam::{ACCOUNT}:user/me"
    assert principal(f"arn:aws:iam::{ACCOUNT}:root") == ""
    assert principal(f"arn:aws:sts::{ACCOUNT}:federated-user/me") == ""


@pytest.mark.parametrize(
    ("name", "covered", "not_covered"),
    [
        (
            "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
            ["m5.large", "c7g.large", "im4gn.large", "i4i.large", "t3.micro"],
            ["g4dn.xlarge", "inf2.xlarge", "trn1.2xlarge", "p4d.24xlarge", "x2iedn.xlarge", "mac1.metal"],
        ),
        ("All G and VT Spot Instance Requests", ["g4dn.xlarge", "vt1.3xlarge"], ["m5.large"]),
        ("All P4, P3 and P2 Spot Instance Requests", ["p4d.24xlarge"], ["p5.48xlarge", "m5.large"]),
    ],
)  # fmt: skip
def test_a_quotas_name_says_which_families_count(
    name: str, covered: list[str], not_covered: list[str]
) -> None:
    quota = quota_from({"QuotaName": name, "QuotaCode": "L-1", "Value": 5})
    assert quota is not None
    assert [t for t in covered if not covers(quota.families, t)] == []
    assert [t for t in not_covered if covers(quota.families, t)] == []


def test_other_quotas_are_none() -> None:
    assert quota_from({"QuotaName": "EC2-VPC Elastic IPs", "QuotaCode": "L-1", "Value": 5}) is None


def test_a_rule_that_names_no_kinds_lets_all_of_ec2_through() -> None:
    assert kinds_in("{}") == kinds_in('{"source": ["aws.ec2"]}') != set()
    assert kinds_in('{"source": ["aws.s3"]}') == set()


def test_a_principal_bound_by_a_condition_is_not_everybody() -> None:
    statement = {"Effect": "Allow", "Principal": "*", "Condition": {"ArnEquals": {}}}
    group = Group(title="")
    judge_policy(group, QUEUE, json.dumps({"Statement": [statement]}))
    assert "may not put" in group.findings[0].sentence


# ---- machines that nobody would end


def test_instances_of_environments_that_the_database_does_not_know_are_named(
    account: Account, door: RightsDoor
) -> None:
    """As they are left when a database is lost; those of environments that it knows are the service's matter."""
    install(account, door)
    lost, kept = account.environment("lost"), account.environment("kept")

    async def launch() -> None:
        cloud = Ec2Cloud(Aws(AwsSettings(region=REGION, endpoint=door.url), door.session))
        for environment in (lost, kept):
            (offering, *_) = await cloud.offerings(environment)
            node = NodeId(f"node-of-{environment.name}")
            await cloud.launch(
                [LaunchNode(node_id=node, compute_environment=environment.name, offering=offering)]
            )
        await cloud.stop()

    asyncio.run(launch())
    (found,) = not_ok(report_on(door, kept))
    assert (found.check, found.mark) == ("strays", Mark.WARNING)
    (stray,) = re.findall(r"i-[0-9a-f]+", found.fix)
    assert f"{stray} (of lost, since " in found.sentence
    report = Report()
    aws = Aws(AwsSettings(region=REGION, endpoint=door.url), door.session)
    asyncio.run(look_at_aws(report, aws, None, QUEUE))
    assert not_ok(report) == [], "without the database nobody can tell"


# ---- the policy


def test_the_policy_of_the_doctor_allows_what_it_asks_beyond_the_service() -> None:
    allowed = {a for name in ("service.json", "doctor.json") for a in actions_of(IAM / name)}
    calls = re.compile(
        r'"(ec2|eks|events|iam|pricing|service-quotas|sqs|ssm)",\s*"([a-z]+_[a-z_]+)"'
    )
    asked = set[str]()
    for path in (ROOT / "airflow_eksbatch" / "doctor" / "aws").glob("*.py"):
        for service, operation in calls.findall(path.read_text()):
            name = "".join(word.capitalize() for word in operation.split("_"))
            asked.add(f"{service.replace('-', '')}:{name}")
    assert asked <= allowed
    beyond = actions_of(IAM / "doctor.json")
    assert beyond <= asked
    assert beyond.isdisjoint(actions_of(IAM / "service.json"))


def actions_of(path: Path) -> set[str]:
    found: set[str] = set()
    for statement in json.loads(path.read_text())["Statement"]:
        actions = statement["Action"]
        found |= {actions} if isinstance(actions, str) else set(actions)
    return found
