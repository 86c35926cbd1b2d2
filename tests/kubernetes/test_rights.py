"""What docker/kubernetes.yaml lets the service do, what it does not, and who is kept out of its nodes and namespace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from airflow_eksbatch.core.model import labels
from tests.kubernetes.bed import MANAGED, NAMESPACE, a_plane, add_nodes, path_of
from tests.kubernetes.rig.api import SaidNo
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes

REVIEWS = "/apis/authorization.k8s.io/v1"
# What every account of Kubernetes may: ask about itself, and read what the API is.
EVERYBODYS = ("authorization.k8s.io", "authentication.k8s.io", "certificates.k8s.io")
LOOKS = {
    ("", "nodes"): {"get", "list", "watch"},
    ("", "pods"): {"list", "watch"},
    ("apps", "daemonsets"): {"list", "watch"},
    ("", "namespaces"): {"get"},
}
JOBS = {("", "pods"): {"create", "get", "delete", "list", "watch"}, ("", "pods/log"): {"get"}}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane"), with_scheduler=True) as plane:
        yield plane


@pytest.fixture(scope="module")
def fakes(plane: ControlPlane) -> FakeNodes:
    return FakeNodes(plane)


def rights_in(plane: ControlPlane, namespace: str) -> dict[tuple[str, str], set[str]]:
    """All that the service may there, as the API server works it out."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = plane.api("eksbatch").create(f"{REVIEWS}/selfsubjectrulesreviews", review)
    rights: dict[tuple[str, str], set[str]] = {}
    for rule in answer["status"]["resourceRules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                if group not in EVERYBODYS:
                    rights.setdefault((group, resource), set()).update(rule["verbs"])
    return rights


@pytest.mark.parametrize("namespace", ["default", "kube-system", "eksbatch"])
def test_outside_of_its_namespace_the_service_may_only_look(
    plane: ControlPlane, namespace: str
) -> None:
    assert rights_in(plane, namespace) == LOOKS


def test_where_jobs_run_it_may_make_read_and_delete_pods(plane: ControlPlane) -> None:
    assert rights_in(plane, NAMESPACE) == LOOKS | JOBS


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/secrets",
        f"/api/v1/namespaces/{NAMESPACE}/secrets",
        f"/api/v1/namespaces/{NAMESPACE}/configmaps",
        "/api/v1/namespaces/kube-system/pods/x/log",
        "/api/v1/namespaces",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    ],
)
def test_it_cannot_read_what_is_none_of_its_business(plane: ControlPlane, path: str) -> None:
    with pytest.raises(SaidNo) as no:
        plane.api("eksbatch").get(path)
    assert no.value.status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("create", "/api/v1/namespaces/default/pods"),
        ("create", f"{path_of('x')}/exec"),
        ("create", f"{path_of('x')}/attach"),
        ("create", f"{path_of('x')}/binding"),
        ("create", f"{path_of('x')}/eviction"),
        ("patch", f"{path_of('x')}/ephemeralcontainers"),
        ("patch", path_of("x")),
        ("patch", "/api/v1/nodes/n"),
        ("create", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default/token"),
        ("create", "/api/v1/nodes"),
    ],
)
def test_it_cannot_change_or_enter_anything_else(
    plane: ControlPlane, method: str, path: str
) -> None:
    with pytest.raises(SaidNo) as no:
        getattr(plane.api("eksbatch"), method)(path, {})
    assert no.value.status == 403


# ---- isolation, by trying to break it


def a_pod_of_somebody(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "a", "image": "b"}], **spec},
    }


def refusal_of(plane: ControlPlane, pod: dict[str, Any]) -> str:
    """What the API server says to it; a policy is known a moment after it was applied."""
    namespace = pod["metadata"]["namespace"]

    def refusal() -> str | None:
        try:
            plane.admin.create(f"/api/v1/namespaces/{namespace}/pods", pod)
        except SaidNo as no:
            return str(no)
        plane.admin.delete(path_of(pod["metadata"]["name"], namespace), gracePeriodSeconds="0")
        return None

    return plane.wait_for("the policy", refusal)


def test_not_even_an_administrator_makes_pods_where_jobs_run(plane: ControlPlane) -> None:
    said = refusal_of(plane, a_pod_of_somebody("intruder", NAMESPACE))
    assert "this namespace is for jobs of eksbatch" in said


def test_nobody_else_tolerates_our_taint(plane: ControlPlane) -> None:
    tolerations = [{"key": labels.TAINT, "operator": "Exists"}]
    said = refusal_of(plane, a_pod_of_somebody("tolerant", "default", tolerations=tolerations))
    assert "nodes with the taint" in said


def test_nobody_passes_for_a_daemon_set(plane: ControlPlane) -> None:
    """An owner is only a word in the pod; its maker is known."""
    tolerations = [{"key": labels.TAINT, "operator": "Exists"}]
    pod = a_pod_of_somebody("pretender", "default", tolerations=tolerations)
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u"}
    pod["metadata"]["ownerReferences"] = [owner]
    assert "nodes with the taint" in refusal_of(plane, pod)


def test_a_namespace_is_for_jobs_or_under_the_rule_for_all_others(plane: ControlPlane) -> None:
    tolerations = [{"key": labels.TAINT, "operator": "Exists"}]
    plane.create_namespace("neither")
    plane.admin.patch(
        "/api/v1/namespaces/neither", {"metadata": {"labels": {"eksbatch/jobs": "false"}}}
    )
    said = refusal_of(plane, a_pod_of_somebody("tolerant", "neither", tolerations=tolerations))
    assert "nodes with the taint" in said


def test_pods_that_tolerate_our_taint_already_may_be_changed(
    plane: ControlPlane, fakes: FakeNodes
) -> None:
    """Controllers and people go on to label and finalize the pods of DaemonSets on our nodes."""
    add_nodes(fakes, "ours-too", environment=MANAGED)
    chosen = {"matchLabels": {"app": "daemon"}}
    tolerations = [{"key": labels.TAINT, "operator": "Exists"}]
    pod = a_pod_of_somebody("daemon", "default", tolerations=tolerations)
    template = {"metadata": {"labels": chosen["matchLabels"]}, "spec": pod["spec"]}
    daemons = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "daemon", "namespace": "default"},
        "spec": {"selector": chosen, "template": template},
    }
    plane.apply(daemons)
    pods = "/api/v1/namespaces/default/pods"
    found = plane.wait_for(
        "the daemon's pod", lambda: plane.admin.list(pods, labelSelector="app=daemon")
    )
    path = path_of(found[0]["metadata"]["name"], "default")
    changed = plane.admin.patch(path, {"metadata": {"labels": {"seen": "yes"}}})
    assert changed["metadata"]["labels"]["seen"] == "yes"
    plane.admin.delete(plane.admin.path_of(daemons), propagationPolicy="Foreground")


def test_pods_of_others_are_not_put_on_our_nodes(plane: ControlPlane, fakes: FakeNodes) -> None:
    """kube-scheduler has only nodes of ours: it says that they are tainted, and the pod waits."""
    add_nodes(fakes, "ours", environment=MANAGED)
    plane.apply(a_pod_of_somebody("ordinary", "default"))

    def why() -> str | None:
        status = plane.admin.get(path_of("ordinary", "default"))["status"]
        conditions = status.get("conditions", ())
        return next((c["message"] for c in conditions if c["type"] == "PodScheduled"), None)

    assert "untolerated taint" in plane.wait_for("the scheduler's word", why)
