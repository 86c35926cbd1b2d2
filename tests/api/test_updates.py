"""UpdateComputeEnvironment: which changes reach machines that are there, over a world that is played by hand."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.node import OUTDATED, NodeId
from tests.api.desk import StageDesk
from tests.build import a_job, a_node, a_world
from tests.core.stage import Stage

TEMPLATE = {"launchTemplateName": "mine", "version": "2"}


@pytest.fixture
def desk() -> StageDesk:
    """One node, and a job on it."""
    return StageDesk(Stage(a_world(a_node("n1")).with_running(a_job("a"), "n1")))


def update(desk: StageDesk, *, policy: dict[str, Any] | None = None, **resources: Any) -> None:
    given = {"updatePolicy": policy} if policy else {}
    desk.ask_for(
        "UpdateComputeEnvironment", computeEnvironment="ce", computeResources=resources, **given
    )


def described(desk: StageDesk) -> dict[str, Any]:
    (found,) = desk.ask_for("DescribeComputeEnvironments")["computeEnvironments"]
    return dict(found)


@pytest.mark.parametrize(
    "resources",
    [
        {"launchTemplate": TEMPLATE},
        {"securityGroupIds": ["sg-2"]},
        {"instanceTypes": ["c5"]},
        {"instanceRole": "other"},
        {"tags": {"team": "x"}},
        {"type": "SPOT"},
        {"updateToLatestImageVersion": True},
    ],
)
def test_what_changes_how_machines_are_made_closes_those_there_are(
    desk: StageDesk, resources: dict[str, Any]
) -> None:
    update(desk, **resources)
    node = desk.world.nodes[NodeId("n1")]
    assert node.closed == OUTDATED
    assert desk.stage.job("a").running, "its job runs on"
    assert described(desk)["status"] == "UPDATING"
    assert "updateToLatestImageVersion" not in described(desk)["computeResources"]


def test_what_changes_their_number_only_or_nothing_at_all_leaves_them(desk: StageDesk) -> None:
    """As Terraform does, which sends all members with each change."""
    update(desk, minvCpus=1, maxvCpus=99, desiredvCpus=1)
    update(desk, scalingPolicy={"minScaleDownDelayMinutes": 30})
    update(
        desk,
        type="EC2",
        instanceTypes=["optimal"],
        subnets=[],
        allocationStrategy="BEST_FIT_PROGRESSIVE",
        updateToLatestImageVersion=False,
    )
    assert desk.world.nodes[NodeId("n1")].is_open
    assert described(desk)["status"] == "VALID"
    update(desk, launchTemplate=TEMPLATE)
    desk.world.close_node(desk.world.nodes[NodeId("n1")], None)
    update(desk, launchTemplate=TEMPLATE)
    assert desk.world.nodes[NodeId("n1")].is_open, "the same once more is no change"


def test_the_same_told_otherwise_is_no_change(desk: StageDesk) -> None:
    """Tools tell sets in any order, and defaults or not; the order of instance types is one of preference."""
    node = desk.world.nodes[NodeId("n1")]
    update(
        desk,
        type="SPOT",
        subnets=["s-1", "s-2"],
        securityGroupIds=["sg-1", "sg-2"],
        instanceTypes=["c5", "m5"],
        launchTemplate={"launchTemplateName": "mine"},
    )
    desk.world.close_node(node, None)
    update(desk, subnets=["s-2", "s-1"], securityGroupIds=["sg-2", "sg-1"], bidPercentage=100)
    update(desk, launchTemplate={"launchTemplateName": "mine", "version": "$Default"})
    assert node.is_open
    changes: tuple[dict[str, Any], ...] = (
        {"bidPercentage": 60},
        {"subnets": ["s-2"]},
        {"instanceTypes": ["m5", "c5"]},
    )
    for resources in changes:
        update(desk, **resources)
        assert node.closed == OUTDATED, resources
        desk.world.close_node(node, None)


def test_an_update_policy_is_told_back_and_may_not_end_jobs(desk: StageDesk) -> None:
    policy = {"terminateJobsOnUpdate": False, "jobExecutionTimeoutMinutes": 60}
    update(desk, policy=policy, maxvCpus=8)
    assert described(desk)["updatePolicy"] == policy
    with pytest.raises(Rejected, match="run to their end"):
        update(desk, policy={**policy, "terminateJobsOnUpdate": True})
    with pytest.raises(Rejected, match="1 to 7200"):
        update(desk, policy={**policy, "jobExecutionTimeoutMinutes": 0})
