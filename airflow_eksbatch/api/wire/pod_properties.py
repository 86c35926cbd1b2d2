"""From a job definition and the overrides of a submit to what one pod will run; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import msgspec

from airflow_eksbatch.api.wire import elsewhere
from airflow_eksbatch.api.wire.container_properties import amounts_of, as_it_is, literal
from airflow_eksbatch.api.wire.names import LABEL, check_namespace, name_of
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job_definition import JobDefinition, split_revision

Wire = dict[str, Any]
REFERENCE = re.compile(r"Ref::([A-Za-z0-9_-]+)")
VOLUME_KINDS = ("hostPath", "emptyDir", "secret", "persistentVolumeClaim")
LABEL_RULE = "names have 1 to 63 small letters, digits and hyphens between them (Kubernetes)"
# AWS's model calls these strings; Kubernetes takes no others.
CHOICES = {
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default"),
}


def find_definition(
    definitions: Mapping[str, Mapping[int, JobDefinition]], wanted: str
) -> JobDefinition:
    """By `name` (its newest ACTIVE revision), `name:revision` or ARN."""
    plain = name_of(wanted)
    name, revision = split_revision(plain)
    revisions = definitions.get(name, {})
    if revision is not None:
        found = revisions.get(revision)
        if found is not None and found.status != "ACTIVE":
            raise Rejected(f"Job definition {plain} is {found.status}: register it again.")
    else:
        active = [d for d in revisions.values() if d.status == "ACTIVE"]
        found = max(active, key=lambda d: d.revision, default=None)
    if found is None:
        raise Rejected(f"Job definition {plain} does not exist. RegisterJobDefinition makes it.")
    return found


def resolve_pod(definition: JobDefinition, request: Wire) -> tuple[Wire, dict[str, str]]:
    """podProperties with overrides applied and parameters filled in, and the parameters.

    In a definition that was registered as containerProperties, whatever comes in ECS's words is literal.
    """
    pod: Wire = msgspec.json.decode(definition.pod)
    override = (request.get("eksPropertiesOverride") or {}).get("podProperties")
    if override:
        apply_override(pod, override)
    overrides = request.get("containerOverrides")
    if overrides:
        apply_container_overrides(pod, literal(overrides) if definition.container else overrides)
    parameters = {**definition.parameters, **(request.get("parameters") or {})}
    values = parameters
    if definition.container:
        values = {name: as_it_is(value) for name, value in parameters.items()}
    for container in (*pod.get("containers", ()), *pod.get("initContainers", ())):
        for key in ("command", "args"):
            if container.get(key):
                container[key] = [substitute(word, values) for word in container[key]]
    return pod, parameters


def substitute(word: str, parameters: Mapping[str, str]) -> str:
    """Fill every `Ref::name` of one word."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in parameters:
            raise Rejected(
                f"Unable to substitute value. No parameter found for reference {match[1]}"
            )
        return parameters[match[1]]

    return REFERENCE.sub(value, word)


def apply_override(pod: Wire, override: Wire) -> None:
    """eksPropertiesOverride.podProperties: containers by name, or by position without one."""
    for key in ("containers", "initContainers"):
        for position, entry in enumerate(override.get(key) or ()):
            override_container(container_for(pod.get(key) or [], entry, position), entry)
    for key in ("labels", "annotations"):
        added = (override.get("metadata") or {}).get(key)
        if added:
            pod.setdefault("metadata", {}).setdefault(key, {}).update(added)
    namespace = (override.get("metadata") or {}).get("namespace")
    if namespace:
        pod.setdefault("metadata", {})["namespace"] = namespace


def container_for(containers: list[Wire], entry: Wire, position: int) -> Wire:
    name = entry.get("name")
    for container in containers:
        if name is not None and container.get("name", "Default") == name:
            return container
    if name is None and position < len(containers):
        return containers[position]
    raise Rejected(
        f"eksPropertiesOverride names container {name or position}, which the job definition "
        f"does not have: it has {', '.join(c.get('name', 'Default') for c in containers) or 'none'}."
    )


def override_container(container: Wire, entry: Wire) -> None:
    """Command, args, image and resources are replaced; env is merged by name."""
    for key in ("image", "command", "args"):
        if entry.get(key):
            container[key] = entry[key]
    if entry.get("resources"):
        container["resources"] = deepcopy(entry["resources"])
    if entry.get("env"):
        container["env"] = merge_env(container.get("env") or [], entry["env"])


def merge_env(before: list[Wire], added: list[Wire]) -> list[Wire]:
    merged = {entry["name"]: entry for entry in before}
    merged.update({entry["name"]: entry for entry in added if entry.get("name")})
    return list(merged.values())


def apply_container_overrides(pod: Wire, overrides: Wire) -> None:
    """ECS's containerOverrides, as stock clients send them, on the first container."""
    elsewhere.refuse(overrides, elsewhere.OF_CONTAINER_OVERRIDES, "containerOverrides.")
    containers = pod.get("containers") or []
    if not containers:
        return
    first = containers[0]
    if overrides.get("command"):
        first["args" if first.get("args") or not first.get("command") else "command"] = overrides[
            "command"
        ]
    if overrides.get("environment"):
        first["env"] = merge_env(first.get("env") or [], overrides["environment"])
    for key, amount in amounts_of(overrides).items():
        resources = first.setdefault("resources", {})
        for part in ("requests", "limits"):
            if key in (resources.get(part) or {}) or part == "requests":
                resources.setdefault(part, {})[key] = amount


def check_pod(pod: Wire) -> None:
    """Rules of podProperties that the model does not carry; what no Kubernetes takes is refused before it costs."""
    containers = pod.get("containers") or []
    if not 1 <= len(containers) <= 10:
        raise Rejected("eksProperties.podProperties.containers must have 1 to 10 entries.")
    check_choice(pod, "dnsPolicy", "podProperties")
    volumes = volumes_of(pod)
    names: set[str] = set()
    for container in (*containers, *(pod.get("initContainers") or ())):
        name = check_container(container, volumes)
        if name.lower() in names:
            raise Rejected(f"Two containers are named {name}: names must differ.")
        names.add(name.lower())
    namespace = (pod.get("metadata") or {}).get("namespace")
    if namespace is not None:
        check_namespace(namespace, "metadata.namespace")


def volumes_of(pod: Wire) -> set[str]:
    """Names of the pod's volumes."""
    names: set[str] = set()
    for volume in pod.get("volumes") or ():
        name = volume["name"]
        kinds = [kind for kind in VOLUME_KINDS if volume.get(kind) is not None]
        if len(kinds) != 1:
            raise Rejected(f"Volume {name} must be exactly one of {', '.join(VOLUME_KINDS)}.")
        if not LABEL.fullmatch(name) or name in names:
            raise Rejected(f"Volume {name!r}: {LABEL_RULE}, and each volume has its own.")
        names.add(name)
    return names


def check_container(container: Wire, volumes: set[str]) -> str:
    """Its name, "Default" if it has none (AWS)."""
    name = container.get("name") or "Default"
    if name != "Default" and not LABEL.fullmatch(name):
        raise Rejected(f"Container {name!r}: {LABEL_RULE}.")
    if not container.get("image"):
        raise Rejected(f"Container {name} needs an image.")
    check_choice(container, "imagePullPolicy", f"Container {name}")
    for entry in container.get("env") or ():
        if entry["name"].startswith("AWS_BATCH"):
            raise Rejected(f"Variable {entry['name']}: names with AWS_BATCH are reserved.")
    paths: set[str] = set()
    for mount in container.get("volumeMounts") or ():
        volume, path = mount.get("name"), mount.get("mountPath")
        if volume not in volumes:
            raise Rejected(
                f"Container {name} mounts volume {volume!r}, which podProperties.volumes does not have."
            )
        if not path or ":" in path or path in paths:
            raise Rejected(
                f"Container {name} mounts volume {volume}: mountPath must be a path of its own, not {path!r}."
            )
        paths.add(path)
    return name


def check_choice(given: Wire, member: str, where: str) -> None:
    value = given.get(member)
    if value and value not in CHOICES[member]:
        raise Rejected(
            f"{where}: {member} must be one of {', '.join(CHOICES[member])}, not {value!r}."
        )
