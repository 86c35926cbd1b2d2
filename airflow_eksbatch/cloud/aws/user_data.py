"""What a new EC2 node is told at boot: MIME parts, of which nodeadm and cloud-init take what is theirs. Pure.

Parts of a user's launch template come first: nodeadm merges NodeConfigs in order, and the later wins.
"""

from __future__ import annotations

import email
import email.policy
import json
from email.message import Message
from typing import Any

import msgspec

from airflow_eksbatch.core.model import labels

NODE_CONFIG = "application/node.eks.aws"
SHELL_SCRIPT = "text/x-shellscript"
CLOUD_CONFIG = "text/cloud-config"
MAX_PODS = "maxPods"
BOUNDARY = "==eksbatch=="
# EC2's limit, before base64.
BYTES_MAX = 16 * 1024


class ClusterAddress(msgspec.Struct, frozen=True, kw_only=True):
    """What a node must know to find its cluster and trust it."""

    name: str
    endpoint: str
    certificate_authority: str
    """Base64, as EKS tells it."""
    service_cidr: str


def node_config(
    cluster: ClusterAddress, node_labels: dict[str, str], max_pods: int
) -> dict[str, Any]:
    """The NodeConfig of one node, which keeps everybody else's pods off by our taint from the first second on."""
    said = ",".join(f"{key}={value}" for key, value in sorted(node_labels.items()))
    return {
        "apiVersion": "node.eks.aws/v1alpha1",
        "kind": "NodeConfig",
        "spec": {
            "cluster": {
                "name": cluster.name,
                "apiServerEndpoint": cluster.endpoint,
                "certificateAuthority": cluster.certificate_authority,
                "cidr": cluster.service_cidr,
            },
            "kubelet": {
                "config": {
                    MAX_PODS: max_pods,
                    "registerWithTaints": [
                        {"key": labels.TAINT, "effect": effect}
                        for effect in ("NoSchedule", "NoExecute")
                    ],
                },
                "flags": [f"--node-labels={said}"],
            },
        },
    }


def user_data(config: dict[str, Any], theirs: str = "") -> str:
    """One MIME document of what a user's template says and our NodeConfig. Raises ValueError if EC2 would not take it."""
    if MAX_PODS in theirs:
        # With custom networking or prefixes the network plugin has other numbers of addresses; nodes say what they have.
        kubelet = config["spec"]["kubelet"]
        plain = {name: value for name, value in kubelet["config"].items() if name != MAX_PODS}
        config = {**config, "spec": {**config["spec"], "kubelet": {**kubelet, "config": plain}}}
    # JSON is YAML, and has one way to be written.
    parts = [*parts_of(theirs), (NODE_CONFIG, json.dumps(config, indent=2))]
    lines = ["MIME-Version: 1.0", f'Content-Type: multipart/mixed; boundary="{BOUNDARY}"', ""]
    for kind, text in parts:
        lines += [f"--{BOUNDARY}", f"Content-Type: {kind}", "", text.strip("\n"), ""]
    document = "\n".join([*lines, f"--{BOUNDARY}--", ""])
    if len(document.encode()) > BYTES_MAX:
        raise ValueError(
            f"The launch template's user data is too long: with what a node must be told it comes to "
            f"{len(document.encode())} bytes, and EC2 takes {BYTES_MAX}."
        )
    return document


def parts_of(theirs: str) -> list[tuple[str, str]]:
    """Content type and text of each part; raw user data is one part of the kind it looks like."""
    text = theirs.strip()
    if not text:
        return []
    if text.lower().startswith(("mime-version:", "content-type:")):
        message = email.message_from_string(text, policy=email.policy.compat32)
        return [_part(part) for part in message.walk() if not part.is_multipart()]
    if text.startswith("#cloud-config"):
        return [(CLOUD_CONFIG, text)]
    if text.startswith("#!"):
        return [(SHELL_SCRIPT, text)]
    if "node.eks.aws" in text:
        return [(NODE_CONFIG, text)]
    raise ValueError(
        "The launch template's user data is neither a MIME document nor a shell script (#!), "
        "#cloud-config or NodeConfig; nothing on an EKS node would read it."
    )


def _part(part: Message) -> tuple[str, str]:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    if BOUNDARY.encode() in payload:
        raise ValueError(f"The launch template's user data must not contain {BOUNDARY}.")
    return part.get_content_type(), payload.decode(part.get_content_charset("utf-8"), "replace")
