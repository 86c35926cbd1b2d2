"""ECS's containerProperties -> podProperties, as far as a pod can be the same container; pure.

Tools that know no pods register and submit in these words (Nextflow, Metaflow). What a pod cannot do is refused by
name. Taken and without effect: jobRoleArn and executionRoleArn (a pod's rights are those of its service account),
logConfiguration (outputs are kept here), enableExecuteCommand (kubectl does that), `swappiness` (nodes have no swap).
"""

from __future__ import annotations

import re
from typing import Any

from airflow_eksbatch.api.wire import elsewhere
from airflow_eksbatch.core.model.errors import Rejected

Wire = dict[str, Any]
# ECS's names of resources in Kubernetes' words.
RESOURCE_KEYS = {"VCPU": "cpu", "MEMORY": "memory", "GPU": "nvidia.com/gpu"}
USER = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?")
MOUNT_OPTIONS = {"defaults", "rw"}
NOT_IN_PODS = {
    "ephemeralStorage": "only Fargate has it",
    "fargatePlatformConfiguration": "only Fargate has it",
    "instanceType": "the job's tag node.kubernetes.io/instance-type chooses one",
    "networkConfiguration": "only Fargate has it",
    "repositoryCredentials": "eksProperties has imagePullSecrets",
    "runtimePlatform": "the job's tag kubernetes.io/arch chooses one",
    "secrets": "eksProperties mounts secrets of Kubernetes",
    "ulimits": "containers of pods have those of their node",
}
NO_PARAMETERS_OF_PODS = {"devices": "of devices, pods have only GPUs"}
NO_VOLUMES_OF_PODS = {
    "efsVolumeConfiguration": "eksProperties mounts persistent volume claims",
    "s3filesVolumeConfiguration": "eksProperties mounts persistent volume claims",
}


def pod_from_container(given: Wire) -> Wire:
    """The pod that runs this container, for check_pod to look at. Its image's entrypoint stays, as in ECS."""
    elsewhere.refuse(given, NOT_IN_PODS, "containerProperties.")
    linux = given.get("linuxParameters") or {}
    volumes, mounts = volumes_from(given)
    for volume, path in memory_from(linux):
        volumes.append(volume)
        mounts.append({"name": volume["name"], "mountPath": path})
    plain = literal(given)
    container = {
        "image": given.get("image"),
        "args": plain.get("command"),
        "env": [entry for entry in plain.get("environment") or () if entry.get("name")],
        "resources": resources_from(given),
        "volumeMounts": mounts,
        "securityContext": security_from(given),
    }
    pod = {
        "containers": [{name: value for name, value in container.items() if value}],
        "volumes": volumes,
        # Docker's --init reaps what a container leaves behind; in a shared namespace the pod's own first process does.
        "shareProcessNamespace": linux.get("initProcessEnabled"),
    }
    return {name: value for name, value in pod.items() if value}


def literal(given: Wire) -> Wire:
    """Command and variables so that Kubernetes, which fills in `$(NAME)`, leaves them as ECS would."""
    words = [as_it_is(word) for word in given.get("command") or ()]
    environment = [
        {**entry, "value": as_it_is(entry.get("value") or "")}
        for entry in given.get("environment") or ()
    ]
    return {**given, "command": words, "environment": environment}


def as_it_is(text: str) -> str:
    return text.replace("$", "$$")


def requirements_of(given: Wire) -> dict[str, str]:
    """VCPU, MEMORY (MiB) and GPU; resourceRequirements go before `vcpus` and `memory`, which AWS has deprecated."""
    older = {"VCPU": given.get("vcpus"), "MEMORY": given.get("memory")}
    found = {kind: str(amount) for kind, amount in older.items() if amount is not None}
    return found | {
        entry["type"]: entry["value"] for entry in given.get("resourceRequirements") or ()
    }


def amounts_of(given: Wire) -> dict[str, str]:
    """The same in Kubernetes' words and units."""
    return {
        RESOURCE_KEYS[kind]: f"{amount}Mi" if kind == "MEMORY" else amount
        for kind, amount in requirements_of(given).items()
    }


def resources_from(given: Wire) -> Wire:
    """Memory is a hard limit, vCPUs are a share of the machine: so it is in ECS."""
    amounts = amounts_of(given)
    limits = {key: amount for key, amount in amounts.items() if key != "cpu"}
    return {"requests": amounts, "limits": limits}


def security_from(given: Wire) -> Wire:
    found: Wire = {}
    if given.get("privileged"):
        found["privileged"] = True
    if given.get("readonlyRootFilesystem"):
        found["readOnlyRootFilesystem"] = True
    if given.get("user"):
        match = USER.fullmatch(given["user"])
        if match is None:
            raise Rejected(
                f"containerProperties.user must be a number, such as 1000 or 1000:1000, not {given['user']!r}: "
                "pods know no names of users."
            )
        found["runAsUser"] = int(match[1])
        if match[2] is not None:
            found["runAsGroup"] = int(match[2])
    return found


def volumes_from(given: Wire) -> tuple[list[Wire], list[Wire]]:
    """Volumes, of the host or for this job alone, and where they are mounted; their names may be none in Kubernetes."""
    names: dict[str, str] = {}
    volumes: list[Wire] = []
    for number, volume in enumerate(given.get("volumes") or (), 1):
        elsewhere.refuse(volume, NO_VOLUMES_OF_PODS, "containerProperties.volumes.")
        path = (volume.get("host") or {}).get("sourcePath")
        names[volume.get("name") or ""] = name = f"volume-{number}"
        volumes.append(
            {"name": name, "hostPath": {"path": path}} if path else {"name": name, "emptyDir": {}}
        )
    mounts: list[Wire] = []
    for point in given.get("mountPoints") or ():
        source = point.get("sourceVolume") or ""
        if source not in names:
            raise Rejected(
                f"containerProperties.mountPoints names volume {source!r}, which volumes does not have."
            )
        mount = {"name": names[source], "mountPath": point.get("containerPath") or ""}
        mounts.append({**mount, "readOnly": True} if point.get("readOnly") else mount)
    return volumes, mounts


def memory_from(linux: Wire) -> list[tuple[Wire, str]]:
    """Volumes in memory and their paths: the shared memory, and tmpfs."""
    elsewhere.refuse(linux, NO_PARAMETERS_OF_PODS, "containerProperties.linuxParameters.")
    if linux.get("maxSwap"):
        raise Rejected(
            "containerProperties.linuxParameters.maxSwap must be 0 or left out: nodes have no swap."
        )
    wanted: list[tuple[str, int]] = []
    if linux.get("sharedMemorySize"):
        wanted.append(("/dev/shm", linux["sharedMemorySize"]))
    for entry in linux.get("tmpfs") or ():
        if not MOUNT_OPTIONS.issuperset(entry.get("mountOptions") or ()):
            raise Rejected(
                "containerProperties.linuxParameters.tmpfs.mountOptions takes defaults and rw here."
            )
        wanted.append((entry["containerPath"], entry["size"]))
    return [
        (
            {
                "name": f"memory-{number}",
                "emptyDir": {"medium": "Memory", "sizeLimit": f"{size_mib}Mi"},
            },
            path,
        )
        for number, (path, size_mib) in enumerate(wanted, 1)
    ]
