"""What an EKS AL2023 node makes of its user data, as its nodeadm does; pure.

The parts of a MIME document that are NodeConfigs are merged in their order: the later wins, kubelet flags are
appended. What a node would stumble over raises `Misled`, with the words it would leave in its console.
"""

from __future__ import annotations

import base64
import binascii
import email
import email.policy
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import yaml

MEDIA_TYPE = "application/node.eks.aws"
API_VERSION, KIND = "node.eks.aws/v1alpha1", "NodeConfig"
LABELS_FLAG = "--node-labels="
# What a kubelet lets itself be labelled with of Kubernetes' own names; others it refuses to start with.
KUBERNETES = ("kubernetes.io", "k8s.io")
OWN_PREFIXES = ("kubelet.kubernetes.io", "node.kubernetes.io")
OWN_LABELS = frozenset(
    (
        *("kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os"),
        *("beta.kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/instance-type"),
        *("topology.kubernetes.io/zone", "topology.kubernetes.io/region"),
        *("failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region"),
    )
)

Json = dict[str, Any]


class Misled(Exception):
    """The node never joins, and this is why."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What it was told, once it has been found to make sense."""

    cluster: str
    endpoint: str
    authority: bytes
    """The certificate that the API server must show, PEM."""
    kubelet: Json
    """Members of KubeletConfiguration."""
    flags: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        return _labels_of(self.flags)

    @property
    def taints(self) -> list[dict[str, str]]:
        return list(self.kubelet.get("registerWithTaints") or [])

    @property
    def max_pods(self) -> int | None:
        return self.kubelet.get("maxPods")


def read_user_data(document: bytes) -> NodeConfig:
    """Raises Misled."""
    spec: Json = {}
    for text in _node_configs(document):
        spec = _merged(spec, _decoded(text).get("spec") or {})
    cluster, kubelet = spec.get("cluster") or {}, spec.get("kubelet") or {}
    for member, said in (
        ("name", "Name"),
        ("apiServerEndpoint", "Apiserver endpoint"),
        ("certificateAuthority", "Certificate authority"),
        ("cidr", "CIDR"),
    ):
        if not cluster.get(member):
            raise Misled(f"{said} is missing in cluster configuration")
    try:
        # The cluster's DNS has the tenth address of it.
        ipaddress.ip_network(cluster["cidr"])
        authority = base64.b64decode(cluster["certificateAuthority"], validate=True)
    except (ValueError, binascii.Error) as error:
        raise Misled(f"cluster configuration: {error}") from error
    config = NodeConfig(
        cluster=cluster["name"],
        endpoint=cluster["apiServerEndpoint"],
        authority=authority,
        kubelet=kubelet.get("config") or {},
        flags=tuple(kubelet.get("flags") or ()),
    )
    _check_labels(config.labels)
    return config


def _node_configs(document: bytes) -> list[bytes]:
    message = email.message_from_bytes(document, policy=email.policy.compat32)
    if not message.get_content_type().startswith("multipart/"):
        return [document]
    found = [
        part.get_payload(decode=True)
        for part in message.walk()
        if part.get_content_type() == MEDIA_TYPE
    ]
    if not found:
        raise Misled("could not find NodeConfig within UserData")
    return [text for text in found if isinstance(text, bytes)]


def _decoded(text: bytes) -> Json:
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Misled(f"NodeConfig: {error}") from error
    if not isinstance(told, dict):
        raise Misled("NodeConfig: not an object")
    if (told.get("apiVersion"), told.get("kind")) != (API_VERSION, KIND):
        raise Misled(f"no kind {told.get('kind')!r} is known in {told.get('apiVersion')!r}")
    return told


def _merged(under: Json, over: Json, *, within: str = "") -> Json:
    merged = dict(under)
    for key, value in over.items():
        path, there = f"{within}/{key}", under.get(key)
        if path == "/kubelet/flags":
            merged[key] = [*(there or ()), *(value or ())]
        elif isinstance(value, dict) and isinstance(there, dict):
            merged[key] = _merged(there, value, within=path)
        elif value or there is None:
            merged[key] = value
    return merged


def _labels_of(flags: Iterable[str]) -> dict[str, str]:
    pairs = [
        pair.partition("=")
        for flag in flags
        if flag.startswith(LABELS_FLAG)
        for pair in flag.removeprefix(LABELS_FLAG).split(",")
    ]
    return {key: value for key, _, value in pairs if key}


def _check_labels(labels: Mapping[str, str]) -> None:
    for label in labels:
        prefix, slash, _ = label.partition("/")
        is_theirs = slash and any(prefix == k or prefix.endswith(f".{k}") for k in KUBERNETES)
        is_own = any(prefix == own or prefix.endswith(f".{own}") for own in OWN_PREFIXES)
        if is_theirs and not is_own and label not in OWN_LABELS:
            raise Misled(
                f"unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: {label}"
            )
