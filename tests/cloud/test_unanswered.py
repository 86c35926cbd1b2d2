"""Requests whose answer was lost, or that came back in part: nothing is bought twice, and nothing stays."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from airflow_eksbatch.cloud import ec2
from airflow_eksbatch.cloud.aws import launches
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.engine.facts import (
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchAlone,
    LaunchRefused,
)
from tests.cloud.account import Account, a_lot, launch, terminate
from tests.cloud.door import Door
from tests.cloud.watching import Hands, asynchronous, watching

LONG_S = 3600.0


def lose_answer(door: Door) -> None:
    """EC2 does what it is asked, and its answer does not come."""
    door.refuse("RunInstances", "InternalError", status=500, after=True, times=1)


@asynchronous
async def test_a_no_stays_a_no_when_others_of_its_batch_have_to_come_again(
    account: Account, door: Door
) -> None:
    """It was told at once, so something else may have been bought instead."""
    cloud = account.cloud()
    large, extra = await cloud.offerings(
        account.environment(subnets=[account.subnets["us-east-1a"]])
    )
    batch = [launch(large, 1), launch(extra, 2)]
    pools = {"m5.large": "InsufficientInstanceCapacity", "m5.xlarge": "InternalError"}
    for name, code in pools.items():
        door.refuse(
            "RunInstances", code, status=500, times=1, when=lambda f, n=name: n in f.values()
        )
    with pytest.raises(CloudDown):
        await cloud.launch(batch)
    refused, launched = await cloud.launch(batch)
    assert isinstance(refused, LaunchRefused)
    assert isinstance(launched, InstanceLaunched)
    assert [i["InstanceType"] for i in account.instances()] == ["m5.xlarge"]


@asynchronous
async def test_an_instance_that_may_yet_be_shown_has_not_ended(
    account: Account, door: Door
) -> None:
    cloud = account.cloud(shown_s=LONG_S)
    (offering, *_) = await cloud.offerings(account.environment())
    effect = launch(offering)
    lose_answer(door)
    with pytest.raises(CloudDown):
        await cloud.launch([effect])
    door.shows_instances = False
    with pytest.raises(CloudDown, match="may yet show"):
        await cloud.terminate([terminate(effect, None)])
    door.shows_instances = True
    (gone,) = await cloud.terminate([terminate(effect, None)])
    assert isinstance(gone, InstanceGone)
    assert account.left() == {}


@asynchronous
async def test_a_service_that_has_just_started_does_not_say_that_an_instance_never_was(
    account: Account,
) -> None:
    """The one before may have asked for it in its last moment."""
    cloud = account.cloud(settle_s=LONG_S)
    (offering, *_) = await cloud.offerings(account.environment())
    with pytest.raises(CloudDown, match="may yet show"):
        await cloud.terminate([terminate(launch(offering), None)])


@asynchronous
async def test_an_environment_that_was_never_looked_into_leaves_nothing_either(
    account: Account,
) -> None:
    """Such as one whose cluster could not be reached since the service started."""
    before = account.cloud()
    environment = account.environment()
    (offering, *_) = await before.offerings(environment)
    await before.launch([launch(offering)])
    await account.cloud().delete_environment(environment.name, environment.uuid)
    assert account.left() == {}


@asynchronous
async def test_what_may_have_been_made_in_one_subnet_is_not_asked_for_in_another(
    account: Account, door: Door
) -> None:
    """
    1. The first subnet has no address. In the second the instance is made, and the answer lost.
    2. When it is asked for again the first subnet has an address, and EC2 does not show the instance yet.
    """
    zone = "us-east-1a"
    second = account.another_subnet(zone)
    cloud = account.cloud(shown_s=LONG_S)
    subnets = [account.subnets[zone], second]
    (offering, *_) = await cloud.offerings(account.environment(subnets=subnets))
    effect = launch(offering)
    door.refuse("RunInstances", "InsufficientFreeAddressesInSubnet", times=1)
    lose_answer(door)
    with pytest.raises(CloudDown):
        await cloud.launch([effect])
    door.shows_instances = False
    (fact,) = await cloud.launch([effect])
    door.shows_instances = True
    assert isinstance(fact, InstanceLaunched)
    assert [i["InstanceId"] for i in account.instances()] == [fact.instance_id]


@asynchronous
async def test_a_clock_that_is_fast_makes_nothing_older(
    account: Account, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a lot whose answer was lost EC2 shows one instance: the other may be there as well."""
    monkeypatch.setattr(launches, "now_ms", lambda: int((time.time() + 200) * 1000))
    cloud = account.cloud(shown_s=60.0, skew_s=300.0)
    (offering, *_) = await cloud.offerings(account.environment())
    lot = a_lot(offering, 1, 2)
    lose_answer(door)
    with pytest.raises(CloudDown):
        await cloud.launch(lot)
    door.unlisted = {i["InstanceId"] for i in account.instances() if i["AmiLaunchIndex"] == 1}
    facts = await cloud.launch(lot)
    door.unlisted.clear()
    assert not [fact for fact in facts if isinstance(fact, LaunchAlone)]
    assert len(account.instances()) == 2


@asynchronous
async def test_of_two_instances_of_one_node_the_one_that_was_told_counts(
    account: Account, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    1. EC2 forgets the token of the first before it shows the instance.
    2. The second is told; its node may have joined already. The first is ended, and takes its time.
    3. Nothing is different when it is forgotten that the second is new.
    """
    monkeypatch.setattr(ec2, "time", SimpleNamespace(monotonic=(clock := Hands())))
    cloud = account.cloud(shown_s=60.0)
    (offering, *_) = await cloud.offerings(account.environment())
    effect = launch(offering)
    lose_answer(door)
    with pytest.raises(CloudDown):
        await cloud.launch([effect])
    door.tokens.clear()
    door.shows_instances = False
    (told,) = await cloud.launch([effect])
    door.shows_instances = True
    assert isinstance(told, InstanceLaunched)
    assert len(account.instances()) == 2
    door.ends_instances = False
    async with watching(cloud) as watch:
        for _ in range(3):
            listed = await watch.next(InstancesListed)
            assert listed.instances == {effect.node_id: told.instance_id}
            clock.now += 61
        assert watch.all(InstanceGone) == []
    door.ends_instances = True
    assert [i["InstanceId"] for i in account.instances()] == [told.instance_id]
