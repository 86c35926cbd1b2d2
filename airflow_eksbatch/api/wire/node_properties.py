"""nodeProperties and nodeOverrides of multi-node parallel jobs: which pod each node runs, and what nodes are called; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from airflow_eksbatch.api.wire import elsewhere
from airflow_eksbatch.api.wire.container_properties import pod_from_container
from airflow_eksbatch.api.wire.pod_properties import check_pod, resolve_pod
from airflow_eksbatch.api.wire.requirements import resources_of_pod
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import MultiNode
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.resources import NOTHING, Resources

Wire = dict[str, Any]
# AWS Batch's own.
RANGES_MAX = 5
TARGETS = re.compile(r"([0-9]{0,4}):([0-9]{0,4})|([0-9]{1,4})")
# CDK says so where its user names none: whatever the compute environment has.
ANY_TYPE = "optimal"
OF_RANGE = {
    "ecsProperties": "jobs are pods: give eksProperties.podProperties",
    "consumableResourceProperties": "nobody counts consumable resources",
}
OF_OVERRIDE = {
    "ecsPropertiesOverride": "jobs are pods: eksPropertiesOverride or containerOverrides changes what runs",
    "consumableResourcePropertiesOverride": "nobody counts consumable resources",
}


class Targets(NamedTuple):
    """Nodes by AWS's numbers, both ends included."""

    first: int
    last: int | None
    """None: as far as there are nodes."""

    def of(self, nodes: int) -> tuple[int, int]:
        return self.first, nodes - 1 if self.last is None else self.last


class NodeRange(NamedTuple):
    """An entry of nodeRangeProperties."""

    targets: Targets
    text: str
    """targetNodes as they were given."""
    pod: Wire
    is_container: bool
    """Whether the pod was made of containerProperties: then its words are literal."""
    instance_type: str
    """Empty for any."""


class Nodes(NamedTuple):
    """What a multi-node job will run."""

    multi_node: MultiNode
    resources: Resources
    """The most that one of its pods asks for."""
    parameters: dict[str, str]
    instance_type: str
    """What all of its nodes must be; empty for any."""


# ---- registering


def main_pod(given: Wire) -> Wire:
    """The pod of the main node of a definition that is right; raises Rejected for one that is not."""
    ranges = ranges_of(given)
    pods: list[Wire] = []
    for one in ranges:
        with naming(one.text):
            check_pod(one.pod)
            resources_of_pod(one.pod)
        pods.append(one.pod)
    check_alike(pods)
    one_type([one.instance_type for one in ranges])
    return pods[governing(ranges, given["numNodes"])[given["mainNode"]]]


def ranges_of(given: Wire) -> list[NodeRange]:
    """The ranges of nodeProperties, which name all nodes and no others."""
    nodes, main = given["numNodes"], given["mainNode"]
    if not 1 <= nodes <= limits.NODES_MAX:
        raise Rejected(f"numNodes must be 1 to {limits.NODES_MAX:,}, not {nodes}.")
    if not 0 <= main < nodes:
        raise Rejected(f"mainNode must be one of the {nodes} nodes, 0 to {nodes - 1}, not {main}.")
    entries = given["nodeRangeProperties"]
    if not 1 <= len(entries) <= RANGES_MAX:
        raise Rejected(
            f"nodeRangeProperties must have 1 to {RANGES_MAX} entries, not {len(entries)}: "
            "nodes that run the same belong into one."
        )
    found = [range_from(entry) for entry in entries]
    for one in found:
        if max(one.targets.of(nodes)) >= nodes:
            raise Rejected(
                f"targetNodes {one.text} goes beyond node {nodes - 1}, the last of {nodes}."
            )
    governing(found, nodes)
    return found


def range_from(entry: Wire) -> NodeRange:
    text = entry["targetNodes"]
    with naming(text):
        elsewhere.refuse(entry, OF_RANGE)
        pod = (entry.get("eksProperties") or {}).get("podProperties")
        container = entry.get("container")
        if elsewhere.is_empty(container):
            container = None
        if (pod is None) == (container is None):
            raise Rejected("A node range needs either eksProperties.podProperties or container.")
        types = [*(entry.get("instanceTypes") or ())]
        if container is not None:
            types.append(container.get("instanceType"))
            pod = pod_from_container({**container, "instanceType": None})
        assert pod is not None
        return NodeRange(
            targets=targets_from(text),
            text=text,
            pod=pod,
            is_container=container is not None,
            instance_type=one_type(types),
        )


def targets_from(text: str) -> Targets:
    """`1:3`, `:3`, `1:`, `:` or `1`."""
    match = TARGETS.fullmatch(text)
    if match is None:
        raise Rejected(f"targetNodes must be like 0:3, :3, 2: or 2, not {text!r}.")
    if match[3]:
        return Targets(int(match[3]), int(match[3]))
    found = Targets(int(match[1] or 0), int(match[2]) if match[2] else None)
    if found.last is not None and found.last < found.first:
        raise Rejected(f"targetNodes {text} ends before it begins: give the lower node first.")
    return found


def governing(ranges: Sequence[NodeRange], nodes: int) -> list[int]:
    """For each node which range it is of. Of nested ones the inner (AWS): it begins later, or ends earlier."""
    found: list[int | None] = [None] * nodes

    def outer_first(number: int) -> tuple[int, int]:
        first, last = ranges[number].targets
        return first, -limits.NODES_MAX if last is None else -last

    for number in sorted(range(len(ranges)), key=outer_first):
        first, last = ranges[number].targets.of(nodes)
        found[first : last + 1] = [number] * (last + 1 - first)
    if None in found:
        raise Rejected(
            f"Node {found.index(None)} is in no range: the targetNodes of nodeRangeProperties must name all "
            f"{nodes} nodes, 0 to {nodes - 1}."
        )
    return [number for number in found if number is not None]


def check_alike(pods: Sequence[Wire]) -> None:
    """AWS: a job is in one namespace."""
    names = {(pod.get("metadata") or {}).get("namespace") or "" for pod in pods}
    if len(names) > 1:
        told = " and ".join(sorted(name or "none" for name in names))
        raise Rejected(
            f"All node ranges must have the same metadata.namespace, these have {told}: the nodes of a job run "
            "in one namespace."
        )


def one_type(given: Sequence[str | None]) -> str:
    """AWS: all nodes of a job are of one instance type."""
    types = {name for name in given if name and name != ANY_TYPE}
    if len(types) > 1:
        raise Rejected(
            "All nodes of a job are of the same instance type: instanceTypes takes one, the same in all ranges, "
            f"not {', '.join(sorted(types))}."
        )
    return types.pop() if types else ""


@contextmanager
def naming(targets: str) -> Iterator[None]:
    """Refusals say whose they are, behind the words of AWS that clients look for."""
    try:
        yield
    except Rejected as refusal:
        raise Rejected(f"{refusal.message} [targetNodes {targets}]", refusal.code) from None


# ---- submitting


def resolve_nodes(definition: JobDefinition, request: Wire) -> Nodes:
    """The pods of all nodes, with overrides applied and parameters filled in; raises Rejected."""
    given: Wire = msgspec.json.decode(definition.nodes)
    overrides = request.get("nodeOverrides") or {}
    given["numNodes"] = nodes = number_of_nodes(given, overrides)
    ranges = ranges_of(given)
    changes = changes_of(ranges, overrides, nodes)
    parameters = {**definition.parameters, **(request.get("parameters") or {})}
    pods = [
        changed_pod(one, change, parameters) for one, change in zip(ranges, changes, strict=True)
    ]
    check_alike(pods)
    types = [
        one.instance_type if change is None else changed_type(one, change)
        for one, change in zip(ranges, changes, strict=True)
    ]
    numbers = governing(ranges, nodes)
    stretches: list[tuple[int, bytes]] = []
    encoded = [msgspec.json.encode(pod) for pod in pods]
    for node, number in enumerate(numbers):
        if not stretches or stretches[-1][1] != encoded[number]:
            stretches.append((node, encoded[number]))
    most = NOTHING
    for number in set(numbers):
        most = larger(most, resources_of_pod(pods[number]))
    return Nodes(
        multi_node=MultiNode(nodes=nodes, main=given["mainNode"], pods=tuple(stretches)),
        resources=most,
        parameters=parameters,
        instance_type=one_type(types),
    )


def number_of_nodes(given: Wire, overrides: Wire) -> int:
    """numNodes of the submit where the definition leaves it open (AWS)."""
    registered: int = given["numNodes"]
    wanted = overrides.get("numNodes")
    if wanted is None or wanted == registered:
        return registered
    if all(one.targets.last is not None for one in ranges_of(given)):
        raise Rejected(
            "NumNodes override can only be applied if the job definition has at least 1 target node without a "
            "range_end i.e (:) or (range_start:). Register it so, or leave nodeOverrides.numNodes out."
        )
    return int(wanted)


def changes_of(ranges: Sequence[NodeRange], overrides: Wire, nodes: int) -> list[Wire | None]:
    """For each range the override that names its nodes."""
    found: list[Wire | None] = [None] * len(ranges)
    for entry in overrides.get("nodePropertyOverrides") or ():
        targets = targets_from(entry["targetNodes"]).of(nodes)
        meant = [n for n, one in enumerate(ranges) if one.targets.of(nodes) == targets]
        if not meant:
            raise Rejected(
                f"NodeOverride targets should match job definition. Non matching targets - {entry['targetNodes']}. "
                f"It has {', '.join(one.text for one in ranges)}, for {nodes} nodes."
            )
        for number in meant:
            if found[number] is not None:
                raise Rejected(
                    f"nodePropertyOverrides has targetNodes {entry['targetNodes']} twice: say all of it in one."
                )
            found[number] = entry
    return found


def changed_pod(one: NodeRange, change: Wire | None, parameters: dict[str, str]) -> Wire:
    """podProperties of a range as its nodes will run them."""
    with naming(one.text):
        change = change or {}
        elsewhere.refuse(change, OF_OVERRIDE)
        as_registered = JobDefinition(
            name="",
            revision=0,
            arn="",
            pod=msgspec.json.encode(one.pod),
            container=b"{}" if one.is_container else b"",
            parameters=parameters,
        )
        of_container = {**(change.get("containerOverrides") or {}), "instanceType": None}
        is_said = not elsewhere.is_empty(of_container)
        asked = {
            "eksPropertiesOverride": change.get("eksPropertiesOverride"),
            "containerOverrides": of_container if is_said else None,
        }
        pod, _ = resolve_pod(as_registered, asked)
        check_pod(pod)
        resources_of_pod(pod)
        return pod


def changed_type(one: NodeRange, change: Wire) -> str:
    """AWS has two places for it."""
    in_container = (change.get("containerOverrides") or {}).get("instanceType")
    said = [name for name in (*(change.get("instanceTypes") or ()), in_container) if name]
    return one_type(said) if said else one.instance_type


def larger(one: Resources, other: Resources) -> Resources:
    """In each of what they ask for the most."""
    return Resources(
        cpu_m=max(one.cpu_m, other.cpu_m),
        memory_mib=max(one.memory_mib, other.memory_mib),
        gpu=max(one.gpu, other.gpu),
        pods=max(one.pods, other.pods),
    )


# ---- telling


def properties_wire(multi_node: MultiNode, instance_type: str | None) -> Wire:
    """nodeProperties of a job: where its pods differ, and what they are."""
    firsts = [first for first, _ in multi_node.pods]
    lasts = [*(first - 1 for first in firsts[1:]), multi_node.nodes - 1]
    types: Mapping[str, Any] = {"instanceTypes": [instance_type]} if instance_type else {}
    return {
        "numNodes": multi_node.nodes,
        "mainNode": multi_node.main,
        "nodeRangeProperties": [
            {
                "targetNodes": f"{first}:{last}",
                "eksProperties": {"podProperties": msgspec.json.decode(pod)},
                **types,
            }
            for (first, pod), last in zip(multi_node.pods, lasts, strict=True)
        ],
    }


def details_wire(multi_node: MultiNode, index: int) -> Wire:
    """nodeDetails of one node."""
    return {"nodeIndex": multi_node.renumbered(index), "isMainNode": index == 0}
