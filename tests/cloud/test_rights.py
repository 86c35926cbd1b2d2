"""The policy in docker/iam allows what the code asks of AWS, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

from botocore import xform_name

from airflow_eksbatch.core.model import labels

ROOT = Path(__file__).resolve().parents[2]
IAM = ROOT / "docker" / "iam"
# What a call needs beside its own name.
ALONG_WITH = {
    "ec2:RunInstances": ("ec2:CreateTags", "iam:CreateServiceLinkedRole", "iam:PassRole"),
}
# A batch of one kind of call has that call's right.
NAMED_AS = {"sqs:DeleteMessageBatch": "sqs:DeleteMessage"}
CALL = re.compile(r'"(ec2|eks|iam|pricing|sqs|ssm)",\s*"([a-z]+_[a-z_]+)"')


def actions_of_policy() -> set[str]:
    policy = json.loads((IAM / "service.json").read_text())
    found: set[str] = set()
    for statement in policy["Statement"]:
        actions = statement["Action"]
        found |= {actions} if isinstance(actions, str) else set(actions)
    return found


def actions_of_code() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "airflow_eksbatch" / "cloud").rglob("*.py"):
        for service, operation in CALL.findall(path.read_text()):
            name = "".join(word.capitalize() for word in operation.split("_"))
            assert xform_name(name) == operation
            action = f"{service}:{name}"
            found |= {NAMED_AS.get(action, action), *ALONG_WITH.get(action, ())}
    return found


def test_the_service_may_do_what_it_does_and_nothing_else() -> None:
    assert actions_of_policy() == actions_of_code()


def test_it_buys_and_ends_only_what_carries_our_tag() -> None:
    policy = json.loads((IAM / "service.json").read_text())
    bound = {s["Sid"]: s.get("Condition", {}).get("StringEquals", {}) for s in policy["Statement"]}
    assert bound["BuyInstancesThatCarryOurTag"] == {
        f"aws:RequestTag/{labels.MANAGED_BY}": labels.OURS
    }
    assert bound["EndOnlyWhatCarriesOurTag"] == {
        f"aws:ResourceTag/{labels.MANAGED_BY}": labels.OURS
    }


def test_every_statement_has_its_reason_and_every_file_can_be_read() -> None:
    for path in IAM.glob("*.json"):
        policy = json.loads(path.read_text())
        assert all(statement["Sid"].isalnum() for statement in policy.get("Statement", []))
