"""The admission policies of docker/kubernetes.yaml: they are there, they deny, and they hold."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.doctor.kube.look import (
    AS_ADMINISTRATOR,
    MANIFEST,
    Json,
    Look,
    find,
    is_forbidden,
)
from airflow_eksbatch.doctor.kube.trial import CAUTIOUS, PLAIN

ROOT = "/apis/admissionregistration.k8s.io/v1"
POLICIES = {
    "eksbatch-namespaces": "nobody but the service makes pods where jobs run",
    "eksbatch-taint": "nobody else's pods tolerate our taint",
}
STRANGER = "eksbatch-doctor-stranger"


async def look_at_policies(group: Group, look: Look, namespaces: Sequence[str]) -> None:
    try:
        for name, purpose in POLICIES.items():
            policy = await find(look.eyes, f"{ROOT}/validatingadmissionpolicies/{name}")
            binding = await find(look.eyes, f"{ROOT}/validatingadmissionpolicybindings/{name}")
            judge_policy(group, name, purpose, policy=policy, binding=binding)
    except ApiError as error:
        if not is_forbidden(error):
            raise
        group.unseen("policies", "They may not be read by whoever looks.", AS_ADMINISTRATOR)
    if look.has_two:
        for namespace in namespaces:
            await _try_as_stranger(group, look, namespace)


def judge_policy(
    group: Group, name: str, purpose: str, *, policy: Json | None, binding: Json | None
) -> None:
    if policy is None:
        group.wrong(name, f"ValidatingAdmissionPolicy {name} is not there ({purpose}).", MANIFEST)
    elif binding is None:
        group.wrong(
            name, f"ValidatingAdmissionPolicyBinding {name} is not there ({purpose}).", MANIFEST
        )
    elif (
        "Deny" not in binding["spec"].get("validationActions", ())
        or policy["spec"].get("failurePolicy") == "Ignore"
    ):
        group.wrong(name, f"Policy {name} is there and does not deny ({purpose}).", MANIFEST)
    else:
        group.ok(name, f"{purpose[0].upper()}{purpose[1:]}.")


async def _try_as_stranger(group: Group, look: Look, namespace: str) -> None:
    """The proof: whoever looks is not the service, so its pods are refused where jobs run, whatever they are."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": STRANGER, "namespace": namespace},
        "spec": {"containers": [{**PLAIN, "name": "stranger", "securityContext": CAUTIOUS}]},
    }
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    try:
        await look.eyes.write("POST", path, msgspec.json.encode(pod))
    except ApiError as error:
        said = error.message
        if "ValidatingAdmissionPolicy 'eksbatch-namespaces'" in said:
            group.ok(
                "strangers",
                f"A pod of somebody else's is refused in {namespace} (tried with dryRun).",
            )
        elif error.status != 404:
            group.unseen(
                "strangers",
                f"A pod of somebody else's is refused in {namespace}, but not by us: {said}",
            )
    else:
        group.wrong(
            "strangers",
            f"A pod of somebody else's would be taken in {namespace}: it takes room that the service counts as free.",
            f"{MANIFEST}\nkubectl label --overwrite namespace {namespace} eksbatch/jobs=true",
        )
