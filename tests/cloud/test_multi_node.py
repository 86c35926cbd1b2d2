"""Machines of a multi-node job, from the plan to EC2: all in one zone, of one type, in the placement group that was named."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.model.job import MultiNode
from tests.build import a_world
from tests.cloud.account import Account
from tests.cloud.door import Door
from tests.cloud.watching import asynchronous
from tests.core.stage import Stage

NODES = 4


@asynchronous
async def test_machines_for_one_job_are_bought_in_one_zone_and_in_its_placement_group(
    account: Account, door: Door
) -> None:
    """
    1. the plan asks for all nodes, though other zones and types are sold for the same money
    2. EC2 makes them by one request
    """
    cloud = account.cloud()
    environment = account.environment(placementGroup="close")
    offerings = await cloud.offerings(environment)
    assert len({offering.zone for offering in offerings}) > 1
    stage = Stage(a_world(offerings=offerings).with_(environment))
    stage.submit(multi_node=MultiNode(nodes=NODES, pods=((0, b"{}"),)))
    asked = stage.of(LaunchNode)
    assert len(asked) == NODES
    assert len({effect.offering for effect in asked}) == 1
    await cloud.launch(asked)
    made = account.instances()
    assert len(made) == NODES
    assert {i["Placement"]["AvailabilityZone"] for i in made} == {asked[0].offering.zone}
    assert {i["InstanceType"] for i in made} == {asked[0].offering.instance_type}
    groups = [
        form.get("Placement.GroupName") for name, form in door.requests if name == "RunInstances"
    ]
    assert groups == ["close"]
