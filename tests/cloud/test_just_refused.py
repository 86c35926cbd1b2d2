"""What EC2 has just said no to, and for what else that holds."""

from __future__ import annotations

from airflow_eksbatch.cloud.aws.refusals import JustRefused, Meaning
from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.model.node import NodeId
from tests.build import an_offering


def a_launch(instance_type: str, vcpus: int) -> LaunchNode:
    return LaunchNode(
        node_id=NodeId("node"),
        compute_environment="ce",
        offering=an_offering(instance_type, vcpus=vcpus),
    )


def test_a_quota_that_is_too_small_for_one_machine_is_still_asked_for_smaller_ones() -> None:
    just_refused = JustRefused(240.0)
    said = (
        "VcpuLimitExceeded",
        "You have requested more vCPU capacity than your current vCPU limit",
    )
    just_refused.note(a_launch("c5.2xlarge", 8), Meaning.QUOTA, *said)
    assert just_refused.about(a_launch("m5.4xlarge", 16)) == said
    assert just_refused.about(a_launch("m5.2xlarge", 8)) == said
    assert just_refused.about(a_launch("m5.xlarge", 4)) is None
    just_refused.note(a_launch("m5.xlarge", 4), Meaning.QUOTA, *said)
    assert just_refused.about(a_launch("c5.xlarge", 4)) == said


def test_a_pool_that_has_nothing_is_asked_for_nothing_whatever_its_size() -> None:
    just_refused = JustRefused(240.0)
    just_refused.note(
        a_launch("c5.2xlarge", 8), Meaning.ELSEWHERE, "InsufficientInstanceCapacity", "No."
    )
    assert just_refused.about(a_launch("c5.2xlarge", 8)) is not None
    assert just_refused.about(a_launch("c5.xlarge", 4)) is None
