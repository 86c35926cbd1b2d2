"""podProperties -> Pod, as AWS Batch makes it (design: the pod is created straight on its node); pure.

Only what AWS documents is taken over. A pod that cannot be right is said so before anybody is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from airflow_eksbatch.cluster.port import BadPod
from airflow_eksbatch.core.engine.effects import CreatePod
from airflow_eksbatch.core.model import labels

Wire = dict[str, Any]

# Fields that AWS and Kubernetes name alike.
POD_FIELDS = ("serviceAccountName", "imagePullSecrets", "shareProcessNamespace", "securityContext")
CONTAINER_FIELDS = ("image", "imagePullPolicy", "command", "args", "volumeMounts")
VOLUME_KINDS = ("hostPath", "emptyDir", "secret", "persistentVolumeClaim")
# The name that AWS gives a container without one; Kubernetes wants it in lower case.
CONTAINER_NAME = "default"
TOLERATIONS = [
    {"key": labels.TAINT, "operator": "Exists", "effect": effect}
    for effect in ("NoSchedule", "NoExecute")
]
# A node that does not answer is our own decision (NodeLost), not that of a timer in the control plane.
LASTING = [
    {"key": f"node.kubernetes.io/{trouble}", "operator": "Exists", "effect": "NoExecute"}
    for trouble in ("not-ready", "unreachable")
]


def pod_from(effect: CreatePod) -> Wire:
    """The Pod to create. Raises BadPod with a sentence."""
    properties = _properties(effect)
    containers = properties.get("containers")
    if not containers:
        raise BadPod("podProperties has no containers; give at least one.")
    metadata: Wire = properties.get("metadata") or {}
    given: dict[str, str] = metadata.get("labels") or {}
    on_host = properties.get("hostNetwork", True)
    environment = [{"name": name, "value": value} for name, value in effect.environment.items()]
    spec: Wire = {
        "nodeName": effect.node_name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": effect.grace_s,
        "hostNetwork": on_host,
        "dnsPolicy": properties.get("dnsPolicy")
        or ("ClusterFirstWithHostNet" if on_host else "ClusterFirst"),
        "enableServiceLinks": False,
        "tolerations": TOLERATIONS + LASTING,
        "containers": [_container(container, environment) for container in containers],
    }
    for name in POD_FIELDS:
        if properties.get(name) is not None:
            spec[name] = properties[name]
    if properties.get("initContainers"):
        spec["initContainers"] = [_container(c, environment) for c in properties["initContainers"]]
    if properties.get("volumes"):
        spec["volumes"] = [_volume(volume) for volume in properties["volumes"]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": effect.pod,
            "namespace": metadata.get("namespace") or effect.namespace,
            # What we find pods again by goes before what users say.
            "labels": {**given, **effect.labels, labels.MANAGED_BY: labels.OURS},
            "annotations": metadata.get("annotations") or {},
        },
        "spec": spec,
    }


def _properties(effect: CreatePod) -> Wire:
    try:
        return msgspec.json.decode(effect.pod_properties, type=Wire)
    except msgspec.MsgspecError as error:
        raise BadPod(f"podProperties cannot be read: {error}") from error


def _container(given: Wire, environment: list[Wire]) -> Wire:
    name = given.get("name") or CONTAINER_NAME
    container: Wire = {"name": CONTAINER_NAME if name == "Default" else name}
    for field in CONTAINER_FIELDS:
        if given.get(field) is not None:
            container[field] = given[field]
    # Ours first: `$(AWS_BATCH_JOB_ID)` in a user's variable then refers to it.
    container["env"] = environment + [
        {"name": variable["name"], "value": variable.get("value") or ""}
        for variable in given.get("env") or ()
    ]
    resources = _resources(given.get("resources") or {})
    if resources:
        container["resources"] = resources
    if given.get("securityContext"):
        container["securityContext"] = _security(given["securityContext"])
    return container


def _resources(given: Wire) -> Wire:
    """A missing request is filled from the limit, a missing limit stays missing (AWS): cpu may burst.

    Only devices need a limit, for Kubernetes' sake.
    """
    limits: Mapping[str, str] = given.get("limits") or {}
    requests: Mapping[str, str] = given.get("requests") or {}
    devices = {key: value for key, value in requests.items() if "/" in key}
    wanted = {"requests": {**limits, **requests}, "limits": {**devices, **limits}}
    return {kind: amounts for kind, amounts in wanted.items() if amounts}


def _security(given: Wire) -> Wire:
    """AWS's words, but capabilities without the CAP_ that people write all the same."""
    capabilities: Wire | None = given.get("capabilities")
    if not capabilities:
        return given
    plain = {
        kind: [name.removeprefix("CAP_") for name in names] for kind, names in capabilities.items()
    }
    return {**given, "capabilities": plain}


def _volume(given: Wire) -> Wire:
    kinds = [kind for kind in VOLUME_KINDS if given.get(kind) is not None]
    if len(kinds) != 1:
        raise BadPod(
            f"Volume {given.get('name')} must be exactly one of {', '.join(VOLUME_KINDS)}."
        )
    return {"name": given.get("name", ""), kinds[0]: given[kinds[0]]}
