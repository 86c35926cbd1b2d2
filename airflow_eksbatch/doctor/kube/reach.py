"""Whether a cluster can be reached, which version it is, who we are there, and its clock."""

from __future__ import annotations

import re

import msgspec

from airflow_eksbatch.cluster.kube.connection import ApiError
from airflow_eksbatch.cluster.port import ClusterDown
from airflow_eksbatch.doctor.clocks import Patience, Stopwatch, judge_clock
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.doctor.kube.look import ACCOUNT, MANIFEST, Look, find, is_forbidden

# The oldest that AWS Batch takes.
LEAST = (1, 29)
# Before, ValidatingAdmissionPolicy is not in admissionregistration.k8s.io/v1.
POLICIES_SINCE = (1, 30)
WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


class Version(msgspec.Struct, frozen=True, rename="camel"):
    major: str = ""
    minor: str = ""
    git_version: str = ""


async def look_at_cluster(group: Group, look: Look, patience: Patience) -> bool:
    """False when there is nothing more to be seen."""
    watch = Stopwatch()
    try:
        answer, date = await look.eyes.get_dated("/version")
    except ClusterDown as error:
        group.wrong(
            "reach",
            f"{error}.",
            "kubectl cluster-info    # with the same kubeconfig; then network, proxy and certificate",
        )
        return False
    except ApiError as error:
        group.wrong(
            "reach", f"The API server does not let us in: {error.message or error}", _CREDENTIALS
        )
        return False
    skew = watch.skew_to_date(date)
    judge_version(group, msgspec.json.decode(answer, type=Version))
    judge_clock(group, "the API server", skew, patience)
    return await _look_who(group, look)


_CREDENTIALS = (
    "kubectl auth whoami    # with the same kubeconfig; in a pod: its service account token"
)


def judge_version(group: Group, version: Version) -> None:
    number = number_from(version)
    said = version.git_version or f"v{version.major}.{version.minor}"
    if number < LEAST:
        group.wrong(
            "version",
            f"Reachable, Kubernetes {said}: older than {LEAST[0]}.{LEAST[1]}, which is not supported.",
            "aws eks update-cluster-version --name CLUSTER --kubernetes-version 1.34    # one minor version a time",
        )
    elif number < POLICIES_SINCE:
        group.warn(
            "version",
            f"Reachable, Kubernetes {said}: before 1.30 it does not know the ValidatingAdmissionPolicies of "
            "docker/kubernetes.yaml, and nothing keeps others' pods out.",
            "Upgrade the cluster to 1.30 or newer.",
        )
    else:
        group.ok("version", f"Reachable, Kubernetes {said}.")


def number_from(version: Version) -> tuple[int, int]:
    """EKS says `34+`."""
    minor = re.match(r"\d+", version.minor)
    return int(version.major or 0), int(minor[0]) if minor else 0


async def _look_who(group: Group, look: Look) -> bool:
    """Who asks; and that the account whose rights are judged is there."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        answer = await look.account.write("POST", WHO, msgspec.json.encode(review))
    except ApiError as error:
        if is_forbidden(error) and look.has_two:
            group.wrong(
                "account",
                f"{error.message}: to ask as somebody else, one must be an administrator.",
                "Leave out --as to judge the rights of the kubeconfig's own user.",
            )
        else:
            group.wrong("account", f"Who we are is not told: {error}.", _CREDENTIALS)
        return False
    told = msgspec.json.decode(answer)
    look.user = told["status"]["userInfo"]["username"]
    parts = look.user.split(":")
    if parts[:2] != ["system", "serviceaccount"] or len(parts) != 4:
        group.ok("account", f"The rights judged are those of {look.user}.")
        return True
    try:
        account = await find(look.eyes, f"/api/v1/namespaces/{parts[2]}/serviceaccounts/{parts[3]}")
    except ApiError:
        # Whoever has its token knows that it is there.
        account = None if look.has_two else {}
    if account is None:
        group.wrong(
            "account",
            f"The service account {parts[3]} of namespace {parts[2]} is not there.",
            MANIFEST
            if look.user == ACCOUNT
            else f"kubectl -n {parts[2]} create serviceaccount {parts[3]}",
        )
    else:
        group.ok("account", f"The rights judged are those of {look.user}.")
    return True
