"""From podProperties to the Pod that is created, field by field as AWS documents it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from airflow_eksbatch.cluster.kube.manifests import pod_from
from airflow_eksbatch.cluster.port import BadPod
from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.node import NodeId

GOLDEN = Path(__file__).parent / "golden" / "pod_of_everything.json"


def an_effect(**properties: Any) -> CreatePod:
    properties = {"containers": [{"image": "busybox"}], **properties}
    return CreatePod(
        pod=PodName("j-0-1"),
        compute_environment="ce",
        node_id=NodeId("node-1"),
        node_name="ip-1",
        namespace="jobs",
        pod_properties=json.dumps(properties).encode(),
        environment={"AWS_BATCH_JOB_ID": "j"},
        labels={labels.JOB_ID: "j"},
        grace_s=30,
    )


def spec_of(**properties: Any) -> dict[str, Any]:
    return pod_from(an_effect(**properties))["spec"]


def container_of(**fields: Any) -> dict[str, Any]:
    return spec_of(containers=[{"image": "busybox", **fields}])["containers"][0]


def test_a_pod_goes_straight_to_its_node_and_runs_once() -> None:
    spec = spec_of()
    assert spec["nodeName"] == "ip-1"
    assert spec["restartPolicy"] == "Never"
    assert spec["terminationGracePeriodSeconds"] == 30
    tolerated = {(t["key"], t["effect"]) for t in spec["tolerations"]}
    assert {(labels.TAINT, "NoSchedule"), (labels.TAINT, "NoExecute")} <= tolerated


@pytest.mark.parametrize(
    ("given", "on_host", "policy"),
    [
        ({}, True, "ClusterFirstWithHostNet"),
        ({"hostNetwork": True}, True, "ClusterFirstWithHostNet"),
        ({"hostNetwork": False}, False, "ClusterFirst"),
        ({"hostNetwork": False, "dnsPolicy": "Default"}, False, "Default"),
        ({"dnsPolicy": "ClusterFirst"}, True, "ClusterFirst"),
    ],
)
def test_pods_use_the_hosts_network_unless_told_otherwise(
    given: dict[str, Any], on_host: bool, policy: str
) -> None:
    spec = spec_of(**given)
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (on_host, policy)


@pytest.mark.parametrize(
    ("given", "requests", "limits"),
    [
        ({"limits": {"cpu": "1", "memory": "4Mi"}}, {"cpu": "1", "memory": "4Mi"}, None),
        ({"requests": {"cpu": "1"}}, {"cpu": "1"}, {}),
        (
            {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "8Mi"}},
            {"cpu": "1", "memory": "8Mi"},
            None,
        ),
        (
            {"requests": {"nvidia.com/gpu": "1"}},
            {"nvidia.com/gpu": "1"},
            {"nvidia.com/gpu": "1"},
        ),
    ],
)
def test_missing_requests_come_from_limits_and_missing_limits_stay_missing(
    given: dict[str, Any], requests: dict[str, str], limits: dict[str, str] | None
) -> None:
    resources = container_of(resources=given)["resources"]
    assert resources["requests"] == requests
    assert resources.get("limits", {}) == (given["limits"] if limits is None else limits)


def test_variables_of_batch_come_first_so_that_others_may_refer_to_them() -> None:
    env = container_of(env=[{"name": "A", "value": "$(AWS_BATCH_JOB_ID)"}, {"name": "B"}])["env"]
    assert env == [
        {"name": "AWS_BATCH_JOB_ID", "value": "j"},
        {"name": "A", "value": "$(AWS_BATCH_JOB_ID)"},
        {"name": "B", "value": ""},
    ]


@pytest.mark.parametrize("name", [None, "Default", "default"])
def test_a_container_without_a_name_has_the_one_of_aws(name: str | None) -> None:
    assert container_of(**({} if name is None else {"name": name}))["name"] == "default"


def test_labels_that_we_find_pods_by_cannot_be_taken_over() -> None:
    metadata = {"labels": {labels.JOB_ID: "other", "team": "a"}, "annotations": {"b": "c"}}
    made = pod_from(an_effect(metadata=metadata))["metadata"]
    assert made["labels"] == {labels.JOB_ID: "j", "team": "a", labels.MANAGED_BY: labels.OURS}
    assert made["annotations"] == {"b": "c"}
    assert made["namespace"] == "jobs"


def test_a_pod_may_have_a_namespace_of_its_own() -> None:
    assert pod_from(an_effect(metadata={"namespace": "own"}))["metadata"]["namespace"] == "own"


def test_capabilities_are_taken_with_and_without_cap() -> None:
    context = {"capabilities": {"add": ["CAP_SYS_PTRACE", "NET_ADMIN"]}, "privileged": False}
    made = container_of(securityContext=context)["securityContext"]
    assert made["capabilities"] == {"add": ["SYS_PTRACE", "NET_ADMIN"]}
    assert made["privileged"] is False


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"containers": []}, "no containers"),
        ({"volumes": [{"name": "v"}]}, "Volume v must be exactly one of"),
        (
            {"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]},
            "Volume v must be exactly one of",
        ),
    ],
)
def test_pods_that_cannot_be_are_refused_with_a_sentence(
    properties: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadPod, match=sentence):
        pod_from(an_effect(**properties))


def test_properties_that_are_no_json_are_refused() -> None:
    effect = an_effect()
    with pytest.raises(BadPod, match="cannot be read"):
        pod_from(
            CreatePod(
                **{
                    **{name: getattr(effect, name) for name in effect.__struct_fields__},
                    "pod_properties": b"{",
                }
            )
        )


def test_golden_a_pod_of_everything_that_aws_knows() -> None:
    everything = {
        "serviceAccountName": "reader",
        "hostNetwork": False,
        "imagePullSecrets": [{"name": "registry"}],
        "shareProcessNamespace": True,
        "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
        "initContainers": [{"name": "fetch", "image": "fetch:1", "args": ["all"]}],
        "containers": [
            {
                "name": "work",
                "image": "work:1",
                "imagePullPolicy": "IfNotPresent",
                "command": ["work"],
                "args": ["--day", "1"],
                "env": [{"name": "DAY", "value": "1"}],
                "resources": {"limits": {"cpu": "1", "memory": "512Mi", "nvidia.com/gpu": "1"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
                "securityContext": {"readOnlyRootFilesystem": True},
            }
        ],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
            {"name": "host", "hostPath": {"path": "/mnt"}},
            {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "key", "secret": {"secretName": "key", "optional": True}},
        ],
        "metadata": {"labels": {"team": "a"}, "annotations": {"owner": "b"}},
    }
    text = json.dumps(pod_from(an_effect(**everything)), indent=2) + "\n"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
