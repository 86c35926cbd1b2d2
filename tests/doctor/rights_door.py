"""The door of tests/cloud, which also judges rights by a policy and knows vCPU quotas.

moto allows everything and has neither IAM's simulator nor quotas of EC2; these are answered here. Policies are judged as
far as docker/iam/service.json goes: Allow statements, wildcards, StringEquals.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from werkzeug.wrappers import Response

from tests.cloud.door import Door, Form, as_json, error, xml

SERVICE_POLICY = Path(__file__).resolve().parents[2] / "docker" / "iam" / "service.json"
ACCOUNT = "123456789012"
EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}
QUOTAS = {
    "L-1216C47A": ("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 256.0),
    "L-34B43A08": ("All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 64.0),
    "L-DB2E81BA": ("Running On-Demand G and VT instances", 0.0),
    "L-0263D0A3": ("EC2-VPC Elastic IPs", 5.0),
}


class RightsDoor(Door):
    def reset(self) -> None:
        super().reset()
        self.statements: list[dict[str, Any]] = json.loads(SERVICE_POLICY.read_text())["Statement"]
        self.may_simulate = True
        self.may_read_quotas = True
        self.quotas = dict(QUOTAS)
        self.arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/eksbatch/session"

    def allows(self, action: str, resource: str, context: dict[str, str]) -> bool:
        return any(
            any(fnmatchcase(action, pattern) for pattern in _list(one["Action"]))
            and any(fnmatchcase(resource, pattern) for pattern in _list(one["Resource"]))
            and all(context.get(key) == value
                    for key, value in one.get("Condition", {}).get("StringEquals", {}).items())
            for one in self.statements
        )  # fmt: skip

    def _own_answer(self, action: str, form: Form, body: bytes) -> Response | None:
        if action == "GetCallerIdentity":
            return xml(
                '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
                f"<GetCallerIdentityResult><Arn>{self.arn}</Arn><Account>{ACCOUNT}</Account>"
                "</GetCallerIdentityResult></GetCallerIdentityResponse>"
            )
        if action == "SimulatePrincipalPolicy":
            if not self.may_simulate:
                return error(
                    "AccessDenied", "not authorized to perform: iam:SimulatePrincipalPolicy", 403
                )
            return self._simulated(form)
        if action == "ListServiceQuotas":
            if not self.may_read_quotas:
                return as_json(
                    {"__type": "AccessDeniedException", "message": "not authorized"}, 400
                )
            quotas = [
                {"QuotaCode": code, "QuotaName": name, "Value": value, "ServiceCode": "ec2"}
                for code, (name, value) in self.quotas.items()
            ]
            return as_json({"Quotas": quotas})
        return super()._own_answer(action, form, body)

    def _simulated(self, form: Form) -> Response:
        context: dict[str, str] = {}
        for key, name in form.items():
            if key.endswith(".ContextKeyName"):
                place = key.removesuffix("ContextKeyName")
                context[name] = form[f"{place}ContextKeyValues.member.1"]
        resource = form.get("ResourceArns.member.1", "*")
        actions = [value for key, value in form.items() if key.startswith("ActionNames.member.")]
        results = "".join(
            f"<member><EvalActionName>{escape(action)}</EvalActionName><EvalDecision>"
            f"{'allowed' if self.allows(action, resource, context) else 'implicitDeny'}"
            "</EvalDecision></member>"
            for action in actions
        )
        return xml(
            '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">'
            f"<SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated><EvaluationResults>{results}"
            "</EvaluationResults></SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
        )


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
