"""`eksbatch doctor` on a real API server: an install is all ok, and each thing broken in turn is named with its fix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_eksbatch.cli import main
from airflow_eksbatch.cluster.kube.connection import Kubeconfig
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.world.changes import Changes
from airflow_eksbatch.doctor.clocks import lease_patience
from airflow_eksbatch.doctor.findings import Finding, Mark, Report
from airflow_eksbatch.doctor.kube.look import ACCOUNT
from airflow_eksbatch.doctor.kube.visit import Wanted, look_at_clusters
from airflow_eksbatch.service.settings import Settings
from airflow_eksbatch.service.wiring import make_store
from tests.airflow.processes import Gone
from tests.kubernetes.bed import MANAGED, MANIFEST, NAMESPACE, TAINTS, UNMANAGED, a_plane, add_nodes
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes, eks_node

ELSEWHERE = ComputeEnvironment(name="else", arn="", uuid="uuid-else", namespace="nowhere")
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
ROLES = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings"
Spoil = Callable[[ControlPlane], AbstractContextManager[None]]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """With two nodes that take jobs, and a DaemonSet that runs on them."""
    with a_plane(tmp_path_factory.mktemp("plane"), with_scheduler=True) as plane:
        nodes = FakeNodes(plane)
        add_nodes(nodes, "one", environment=MANAGED)
        nodes.add(
            eks_node("shared", labels={labels.ENVIRONMENT_UUID: UNMANAGED.uuid}, taints=TAINTS)
        )
        plane.apply(a_daemon_set("agent"))
        yield plane


def a_daemon_set(name: str, cpu: str = "10m") -> Json:
    container = {"name": "a", "image": "b", "resources": {"requests": {"cpu": cpu}}}
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "tolerations": [{"operator": "Exists"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }


def report_on(
    kubeconfig: Path,
    *environments: ComputeEnvironment,
    acts_as: str = ACCOUNT,
    namespaces: tuple[str, ...] = (),
) -> Report:
    report = Report()
    wanted = Wanted(acts_as=acts_as, namespaces=namespaces, patience=lease_patience(10))
    ways = Kubeconfig(str(kubeconfig))
    asyncio.run(look_at_clusters(report, ways, environments, wanted))
    return report


def not_ok(report: Report) -> list[Finding]:
    return [f for group in report.groups for f in group.findings if f.mark is not Mark.OK]


def wait_until_well(plane: ControlPlane) -> Report:
    def look() -> Report | None:
        report = report_on(plane.kubeconfig(), MANAGED, UNMANAGED)
        return None if not_ok(report) else report

    return plane.wait_for("everything to be well", look)


def test_an_install_as_people_are_told_to_do_it_is_all_ok(plane: ControlPlane) -> None:
    report = wait_until_well(plane)
    assert [group.title for group in report.groups] == [
        "Kubernetes rig",
        f"rights in rig, namespace {NAMESPACE}",
        f"namespace {NAMESPACE} in rig",
        "policies in rig",
        "nodes in rig",
    ]
    assert report.exit_code == 0


def test_the_service_itself_sees_that_it_may_work_and_says_what_it_may_not_see(
    plane: ControlPlane,
) -> None:
    wait_until_well(plane)
    report = report_on(plane.kubeconfig("eksbatch"), MANAGED, UNMANAGED, acts_as="")
    assert [(f.check, f.mark) for f in not_ok(report)] == [
        ("quota", Mark.UNSEEN),
        ("limits", Mark.UNSEEN),
        ("policies", Mark.UNSEEN),
    ]
    assert report.exit_code == 0


def test_an_administrator_who_would_run_the_service_is_told_whose_account_to_use(
    plane: ControlPlane,
) -> None:
    wait_until_well(plane)
    report = report_on(plane.kubeconfig(), MANAGED, UNMANAGED, acts_as="")
    found = {f.check: f for f in not_ok(report)}
    assert {check: f.mark for check, f in found.items()} == {
        "too many rights": Mark.WARNING,
        "a job's pod": Mark.WRONG,
    }
    assert f"--as {ACCOUNT}" in found["too many rights"].fix
    assert f"Run the service as {ACCOUNT}" in found["a job's pod"].fix


def test_looking_changes_nothing(plane: ControlPlane) -> None:
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    report_on(plane.kubeconfig(), MANAGED)
    assert plane.admin.list(pods) == []


# ---- one thing broken


@contextmanager
def without(plane: ControlPlane, path: str) -> Iterator[None]:
    """What docker/kubernetes.yaml installs, less one."""
    plane.admin.delete(path)
    try:
        yield
    finally:
        plane.apply(MANIFEST)


@contextmanager
def with_objects(plane: ControlPlane, *objects: Json) -> Iterator[None]:
    plane.apply(*objects)
    try:
        yield
    finally:
        for one in objects:
            plane.admin.delete(plane.admin.path_of(one), gracePeriodSeconds="0")


@contextmanager
def patched(plane: ControlPlane, path: str, change: Json, back: Json) -> Iterator[None]:
    plane.admin.patch(path, change)
    try:
        yield
    finally:
        plane.admin.patch(path, back)


def relabelled(key: str, value: str | None) -> Spoil:
    path = f"/api/v1/namespaces/{NAMESPACE}"

    def spoil(plane: ControlPlane) -> AbstractContextManager[None]:
        before = plane.admin.get(path)["metadata"]["labels"].get(key)
        change, back = ({"metadata": {"labels": {key: v}}} for v in (value, before))
        return patched(plane, path, change, back)

    return spoil


def a_limit(kind: str, spec: Json) -> Spoil:
    """A ResourceQuota or LimitRange in the namespace of jobs."""
    made = {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": "bound", "namespace": NAMESPACE},
        "spec": spec,
    }
    return lambda plane: with_objects(plane, made)


def a_node(name: str, *, uuid: str | None, tainted: bool) -> Spoil:
    """One that nobody plays, so it never becomes Ready unless said so here."""

    @contextmanager
    def spoil(plane: ControlPlane) -> Iterator[None]:
        given = {labels.ENVIRONMENT_UUID: uuid} if uuid else {}
        node = eks_node(name, labels=given, taints=TAINTS if tainted else [])
        node["metadata"]["annotations"] = {}
        # No DaemonSet is owed here, and no controller has a say.
        node["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        created = plane.admin.create("/api/v1/nodes", node)
        plane.admin.patch(f"/api/v1/nodes/{name}/status", {"status": node["status"]})
        assert created["metadata"]["name"] == name
        try:
            yield
        finally:
            plane.admin.delete(f"/api/v1/nodes/{name}")

    return spoil


def too_many_rights(plane: ControlPlane) -> AbstractContextManager[None]:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "too-many"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "edit",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "eksbatch", "namespace": "eksbatch"}],
    }
    return with_objects(plane, binding)


def cordoned(plane: ControlPlane) -> AbstractContextManager[None]:
    yes, no = ({"spec": {"unschedulable": value}} for value in (True, None))
    return patched(plane, "/api/v1/nodes/one", yes, no)


def audit_only(plane: ControlPlane) -> AbstractContextManager[None]:
    change, back = ({"spec": {"validationActions": [what]}} for what in ("Audit", "Deny"))
    return patched(plane, f"{BINDINGS}/eksbatch-namespaces", change, back)


def a_lame_daemon_set(plane: ControlPlane) -> AbstractContextManager[None]:
    return with_objects(plane, a_daemon_set("huge", cpu="1000"))


@pytest.mark.parametrize(
    ("spoil", "mark", "checks", "sentence", "fix"),
    [
        (lambda p: without(p, f"{ROLES}/eksbatch"), Mark.WRONG, {"rights", "a job's pod"},
         "may not create, get and delete pods", "kubectl apply -f docker/kubernetes.yaml"),
        (too_many_rights, Mark.WARNING, {"too many rights"}, "may also list secrets",
         f"kubectl auth can-i --list --as={ACCOUNT}"),
        (lambda p: without(p, "/api/v1/namespaces/eksbatch/serviceaccounts/eksbatch"), Mark.WRONG,
         {"account"}, "service account eksbatch", "kubectl apply -f docker/kubernetes.yaml"),
        (relabelled("eksbatch/jobs", None), Mark.WRONG, {"namespace", "strangers"},
         "has no label eksbatch/jobs=true", "kubectl label --overwrite namespace batch-jobs"),
        (relabelled("pod-security.kubernetes.io/enforce", "baseline"), Mark.WARNING, {"plain pods"},
         "job definitions need hostNetwork: false", "enforce=privileged"),
        (relabelled("pod-security.kubernetes.io/enforce", "restricted"), Mark.WARNING,
         {"plain pods"}, "a securityContext", "enforce=privileged"),
        (lambda p: without(p, f"{POLICIES}/eksbatch-namespaces"), Mark.WRONG,
         {"eksbatch-namespaces", "strangers"}, "eksbatch-namespaces is not there",
         "kubectl apply -f docker/kubernetes.yaml"),
        (lambda p: without(p, f"{BINDINGS}/eksbatch-taint"), Mark.WRONG, {"eksbatch-taint"},
         "Binding eksbatch-taint is not there", "kubectl apply -f docker/kubernetes.yaml"),
        (audit_only, Mark.WRONG, {"eksbatch-namespaces", "strangers"}, "does not deny",
         "kubectl apply -f docker/kubernetes.yaml"),
        (a_limit("ResourceQuota", {"hard": {"pods": "0"}}), Mark.WARNING, {"quota", "a job's pod"},
         "bound is used up: pods (0 of 0)", "edit resourcequota bound"),
        (a_limit("LimitRange", {"limits": [{"type": "Container", "defaultRequest": {"cpu": "1"}}]}),
         Mark.WARNING, {"limits"}, "LimitRange bound gives cpu", "edit limitrange bound"),
        (a_limit("LimitRange", {"limits": [{"type": "Container", "max": {"cpu": "100m"}}]}),
         Mark.WRONG, {"limits", "a job's pod", "strangers"}, "maximum cpu usage per Container is 100m",
         "describe limitrange"),
        (a_node("untainted", uuid=MANAGED.uuid, tainted=False), Mark.WRONG, {"nodes of ce"},
         "without the taint", "kubectl taint node --overwrite untainted"),
        (a_node("untainted", uuid=UNMANAGED.uuid, tainted=False), Mark.WARNING, {"nodes of own"},
         "without our taint: untainted", "kubectl taint node --overwrite untainted"),
        (a_node("unlabelled", uuid=None, tainted=True), Mark.WARNING, {"taint without label"},
         "Neither jobs nor anybody else's", "kubectl taint node unlabelled"),
        (a_node("stranger", uuid="nobody", tainted=True), Mark.WARNING, {"unknown environment"},
         "does not have (nobody)", "# only if no other eksbatch has this environment"),
        (cordoned, Mark.WARNING, {"nodes of ce"}, "one: cordoned", "kubectl uncordon one"),
        (a_lame_daemon_set, Mark.WARNING, {"nodes of ce", "nodes of own"}, "kube-system/huge",
         "--field-selector spec.nodeName="),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_with_its_fix(
    plane: ControlPlane, spoil: Spoil, mark: Mark, checks: set[str], sentence: str, fix: str
) -> None:
    wait_until_well(plane)
    seen: list[list[Finding]] = []

    def named() -> bool:
        found = not_ok(report_on(plane.kubeconfig(), MANAGED, UNMANAGED))
        seen[:] = [found]
        return {f.check for f in found} <= checks and any(
            (f.mark, sentence in f.sentence, fix in f.fix) == (mark, True, True) for f in found
        )

    with spoil(plane):
        try:
            plane.wait_for("the finding", named, within_s=45.0)
        except Gone:
            raise AssertionError(seen) from None


def test_a_namespace_that_is_not_there_is_named_with_its_fix(plane: ControlPlane) -> None:
    found = {f.check: f for f in not_ok(report_on(plane.kubeconfig(), ELSEWHERE))}
    assert found["namespace"].mark is found["rights"].mark is Mark.WRONG
    assert "Namespace nowhere does not exist" in found["namespace"].sentence
    assert "sed 's/batch-jobs/nowhere/' docker/kubernetes.yaml" in found["namespace"].fix


def test_an_environment_of_others_nodes_without_any_is_told_how_to_get_some(
    plane: ControlPlane,
) -> None:
    lonely = ComputeEnvironment(
        name="lonely", arn="", uuid="uuid-lonely", managed=False, namespace=NAMESPACE
    )
    (found,) = not_ok(report_on(plane.kubeconfig(), MANAGED, UNMANAGED, lonely))
    assert (found.check, found.mark) == ("nodes of lonely", Mark.WARNING)
    assert f"kubectl label node NODE {labels.ENVIRONMENT_UUID}=uuid-lonely" in found.fix


def test_without_a_database_nothing_is_said_against_labels(
    plane: ControlPlane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever followed such advice would take live nodes from the service that bought them."""
    wait_until_well(plane)
    nowhere = f"sqlite:///{tmp_path / 'not-there.db'}"
    command = ["doctor", "--cluster", "kubeconfig", "--kubeconfig", str(plane.kubeconfig())]
    assert main([*command, "--as", ACCOUNT, "--database", nowhere, "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    (found,) = next(group for group in groups if group["title"] == "nodes in rig")["findings"]
    assert (found["check"], found["mark"]) == ("environments", "not seen")
    assert found["sentence"].startswith(
        "2 nodes have the label of a compute environment (one, shared)"
    )
    assert "--database" in found["fix"]
    assert "kubectl" not in found["fix"]


# ---- no way in


def test_an_administrator_is_asked_for_where_one_asks_as_somebody_else(plane: ControlPlane) -> None:
    (found,) = not_ok(report_on(plane.kubeconfig("ordinary"), MANAGED))
    assert (found.check, found.mark) == ("account", Mark.WRONG)
    assert "cannot impersonate" in found.sentence
    assert "--as" in found.fix


@pytest.mark.parametrize(
    ("change", "sentence", "fix"),
    [
        ({"users": {"token": "nobody's"}}, "does not let us in", "kubectl auth whoami"),
        ({"clusters": {"server": "https://127.0.0.1:1"}}, "cannot be reached", "kubectl cluster-info"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_asked_is_one_finding(
    plane: ControlPlane, tmp_path: Path, change: dict[str, Json], sentence: str, fix: str
) -> None:
    config = yaml.safe_load(plane.kubeconfig().read_text())
    for part, values in change.items():
        config[part][0][part.removesuffix("s")].update(values)
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    (found,) = not_ok(report_on(file, MANAGED, acts_as=""))
    assert (found.check, found.mark) == ("reach", Mark.WRONG)
    assert sentence in found.sentence
    assert fix in found.fix


# ---- the command


def test_the_command_finds_the_environments_of_its_database(
    plane: ControlPlane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"sqlite:///{tmp_path / 'eksbatch.db'}"
    store = make_store(Settings(database=database))
    store.open()
    store.commit(Changes(compute_environments=[MANAGED, UNMANAGED]))
    store.close()
    wait_until_well(plane)
    command = ["doctor", "--cluster", "kubeconfig", "--database", database, "--as", ACCOUNT]
    command += ["--kubeconfig", str(plane.kubeconfig())]

    assert main(command) == 0
    told = capsys.readouterr().out
    assert "nodes in rig\n  ok        1 node: Ready, labelled, tainted, DaemonSets run." in told
    assert "  warning   The database is a file of this machine" in told
    with relabelled("eksbatch/jobs", None)(plane):
        assert main([*command, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    wrong = [f for g in told["groups"] for f in g["findings"] if f["mark"] == "wrong"]
    assert wrong[0]["check"] == "namespace"
