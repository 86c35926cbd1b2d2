"""What a new node is told at boot, word for word. Renew: GOLDEN=write; read the difference."""

from __future__ import annotations

import email
import json
import os
from pathlib import Path

import pytest

from airflow_eksbatch.cloud.aws.user_data import (
    BYTES_MAX,
    ClusterAddress,
    node_config,
    parts_of,
    user_data,
)
from airflow_eksbatch.core.model import labels

GOLDEN = Path(__file__).parent / "golden"
CLUSTER = ClusterAddress(
    name="main",
    endpoint="https://example.eks.amazonaws.com",
    certificate_authority="Q0VSVElGSUNBVEU=",
    service_cidr="10.100.0.0/16",
)
CONFIG = node_config(
    CLUSTER,
    {labels.NODE_UID: "node-000001-1234abcd", labels.ENVIRONMENT_UUID: "1234abcd-0000"},
    58,
)
SCRIPT = "#!/bin/bash\nset -e\nmkdir -p /data\n"
CLOUD_CONFIG = "#cloud-config\npackages:\n  - htop\n"
THEIR_NODE_CONFIG = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  instance:\n    localStorage:\n      strategy: RAID0\n"
MIME = """MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="//"

--//
Content-Type: text/x-shellscript; charset="us-ascii"
MIME-Version: 1.0

#!/bin/bash
echo one

--//
Content-Type: application/node.eks.aws

kind: NodeConfig
apiVersion: node.eks.aws/v1alpha1
--//--
"""


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("plain", ""),
        ("script", SCRIPT),
        ("cloud_config", CLOUD_CONFIG),
        ("node_config", THEIR_NODE_CONFIG),
        ("mime", MIME),
    ],
)
def test_golden_user_data(name: str, theirs: str) -> None:
    written = user_data(CONFIG, theirs)
    file = GOLDEN / f"{name}.mime"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(written)
    assert written == file.read_text()


@pytest.mark.parametrize("theirs", ["", SCRIPT, CLOUD_CONFIG, THEIR_NODE_CONFIG, MIME])
def test_any_mime_reader_finds_the_parts_and_ours_is_the_last(theirs: str) -> None:
    document = email.message_from_string(user_data(CONFIG, theirs))
    parts = [part for part in document.walk() if not part.is_multipart()]
    assert len(parts) == len(parts_of(theirs)) + 1
    assert parts[-1].get_content_type() == "application/node.eks.aws"
    assert json.loads(str(parts[-1].get_payload())) == CONFIG


def test_what_nothing_on_a_node_would_read_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a MIME document"):
        user_data(CONFIG, "echo I am no script")


def test_what_ec2_would_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match=f"EC2 takes {BYTES_MAX}"):
        user_data(CONFIG, "#!/bin/bash\n" + "x" * BYTES_MAX)


def test_a_template_that_says_how_many_pods_a_node_takes_is_heeded() -> None:
    """With custom networking or prefixes the VPC CNI has other numbers of addresses than EC2 tells of."""
    theirs = f"{THEIR_NODE_CONFIG}  kubelet:\n    config:\n      maxPods: 20\n"
    assert "maxPods" not in str(json.loads(_last_part(user_data(CONFIG, theirs))))
    assert "registerWithTaints" in _last_part(user_data(CONFIG, theirs))


def _last_part(document: str) -> str:
    return str(list(email.message_from_string(document).walk())[-1].get_payload())
