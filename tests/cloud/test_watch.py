"""What the watch tells: full looks, ends nobody asked for, strays, and notices from the queue."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_eksbatch.cloud.aws.catalogue import SPOT_KEPT_S
from airflow_eksbatch.cloud.aws.interruptions import Kind, Notice, notice_from
from airflow_eksbatch.cloud.aws.sightings import seen_from
from airflow_eksbatch.cloud.ec2 import Ec2Settings
from airflow_eksbatch.core.engine.facts import (
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    OfferingsListed,
    RebalanceRecommended,
    SpotInterrupted,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import NodeId
from tests.cloud.account import Account, launch, terminate
from tests.cloud.door import Door
from tests.cloud.test_ec2 import opened
from tests.cloud.watching import WAIT_S, Hands, asynchronous, watching

NODE = "node-000001-ce"


@asynchronous
async def test_a_full_look_lists_the_instances_of_each_environment(account: Account) -> None:
    cloud, offerings = await opened(account)
    other = await cloud.offerings(account.environment("other"))
    (one,) = await cloud.launch([launch(offerings[0])])
    (two,) = await cloud.launch([launch(other[0], 1, "other")])
    assert isinstance(one, InstanceLaunched)
    assert isinstance(two, InstanceLaunched)
    async with watching(cloud) as watch:
        listed = await watch.until(InstancesListed, lambda f: f.compute_environment == "ce")
        assert listed.instances == {one.node_id: one.instance_id}
        listed = await watch.until(InstancesListed, lambda f: f.compute_environment == "other")
        assert listed.instances == {two.node_id: two.instance_id}


@asynchronous
async def test_an_instance_that_ended_by_itself_is_told_once_with_the_reason(
    account: Account,
) -> None:
    cloud, offerings = await opened(account)
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    async with watching(cloud) as watch:
        await watch.until(InstancesListed, lambda f: bool(f.instances))
        account.ec2.terminate_instances(InstanceIds=[fact.instance_id])
        gone = await watch.until(InstanceGone)
        assert gone.node_id == fact.node_id
        assert "User initiated shutdown" in gone.reason
        for _ in range(3):
            await watch.next(InstancesListed, lambda f: not f.instances)
            assert watch.all(InstanceGone) == []


@asynchronous
async def test_an_end_is_told_when_it_has_come_and_no_sooner(account: Account, door: Door) -> None:
    """Until the instance has certainly ended its jobs may still run, and must not be run again."""
    cloud = account.cloud(look_s=3600.0)
    offerings = await cloud.offerings(account.environment())
    effect = launch(offerings[0])
    (fact,) = await cloud.launch([effect])
    assert isinstance(fact, InstanceLaunched)
    door.ends_instances = False
    async with watching(cloud) as watch:
        await watch.until(InstancesListed)
        assert await cloud.terminate([terminate(effect, fact.instance_id)]) == []
        asked = door.asked["DescribeInstances"]
        async with asyncio.timeout(WAIT_S):
            while door.asked["DescribeInstances"] < asked + 3:
                await asyncio.sleep(0.05)
        assert watch.all(InstanceGone) == []
        door.ends_instances = True
        assert (await watch.until(InstanceGone)).node_id == effect.node_id


@asynchronous
async def test_of_two_instances_of_one_node_the_younger_is_ended_and_the_node_lives_on(
    account: Account,
) -> None:
    cloud, offerings = await opened(account)
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    (first,) = account.instances()
    twin = account.ec2.run_instances(
        ImageId=account.image,
        MinCount=1,
        MaxCount=1,
        ClientToken="another",
        TagSpecifications=[{"ResourceType": "instance", "Tags": first["Tags"]}],
    )["Instances"][0]["InstanceId"]
    async with watching(cloud) as watch:
        ended = await watch.until(InstancesListed, lambda f: bool(f.instances))
        assert len(ended.instances) == 1
        for _ in range(3):
            await watch.next(InstancesListed)
        assert watch.all(InstanceGone) == []
    # EC2 counts launch times in seconds: made within one, either may be the elder.
    (left,) = account.instances()
    assert left["InstanceId"] in (fact.instance_id, twin)


@asynchronous
async def test_a_service_that_has_just_started_says_what_is_there_but_not_what_is_missing(
    account: Account,
) -> None:
    before, offerings = await opened(account)
    await before.launch([launch(offerings[0])])
    cloud = account.cloud(settle_s=3600.0)
    await cloud.offerings(account.environment())
    async with watching(cloud) as watch:
        assert (await watch.until(InstanceLaunched)).node_id == NODE
        await watch.next(InstanceLaunched)
        assert watch.all(InstancesListed) == []


@asynchronous
async def test_an_instance_that_ec2_does_not_show_yet_is_on_the_list(
    account: Account, door: Door
) -> None:
    cloud = account.cloud(shown_s=3600.0)
    offerings = await cloud.offerings(account.environment())
    door.shows_instances = False
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    async with watching(cloud) as watch:
        listed = await watch.until(InstancesListed)
        assert listed.instances == {fact.node_id: fact.instance_id}


@asynchronous
async def test_prices_are_told_again(account: Account, door: Door) -> None:
    clock = Hands()
    cloud = account.cloud(clock=clock, offerings_s=0.1)
    environment = account.environment(market=Market.SPOT)
    offerings = await cloud.offerings(environment)
    async with watching(cloud) as watch:
        told = await watch.until(OfferingsListed)
        assert (told.offerings, told.made_from) == (offerings, environment)
        door.spot_prices["m5.large", "us-east-1a"] = 0.0123
        clock.now += SPOT_KEPT_S
        told = await watch.until(OfferingsListed, lambda f: f.offerings != offerings)
        assert 0.0123 in {offering.price_usd_hour for offering in told.offerings}
    assert Ec2Settings().offerings_s > SPOT_KEPT_S, "what is told again is asked again"


@asynchronous
async def test_prices_that_cannot_be_had_hold_up_no_other_environment(
    account: Account, door: Door
) -> None:
    cloud = account.cloud(clock=(clock := Hands()), offerings_s=0.1)
    await cloud.offerings(account.environment("dear", market=Market.SPOT))
    await cloud.offerings(account.environment("other"))
    for pool in door.spot_prices.copy():
        del door.spot_prices[pool]
    clock.now += SPOT_KEPT_S
    async with watching(cloud) as watch:
        await watch.until(OfferingsListed, lambda f: f.compute_environment == "other")
        await watch.next(OfferingsListed, lambda f: f.compute_environment == "other")
        assert {f.compute_environment for f in watch.all(OfferingsListed)} == {"other"}
    what, why, _ = account.troubles[-1]
    assert what == "offerings"
    assert re.fullmatch("dear: No zone among .* sells .* on Spot.", why)


@asynchronous
async def test_prices_that_do_not_come_hold_up_no_news(account: Account, door: Door) -> None:
    cloud = account.cloud(clock=(clock := Hands()), offerings_s=0.1)
    (offering, *_) = await cloud.offerings(account.environment(market=Market.SPOT))
    door.silent.add("DescribeSpotPriceHistory")
    clock.now += SPOT_KEPT_S
    async with watching(cloud) as watch:
        await door.is_asked("DescribeSpotPriceHistory", times=2)
        await cloud.launch([launch(offering)])
        await watch.until(InstanceLaunched)
        await watch.next(InstancesListed)


# ---- what a listing leaves out


@asynchronous
async def test_an_instance_that_a_listing_leaves_out_is_on_the_list(
    account: Account, door: Door
) -> None:
    """Its jobs would run again at once, while they still run."""
    cloud, offerings = await opened(account)
    facts = await cloud.launch([launch(offerings[0], n) for n in (1, 2)])
    ids = {f.node_id: f.instance_id for f in facts if isinstance(f, InstanceLaunched)}
    async with watching(cloud) as watch:
        assert (await watch.until(InstancesListed)).instances == ids
        door.unlisted = set(ids.values())
        for _ in range(3):
            assert (await watch.next(InstancesListed)).instances == ids
        assert watch.all(InstanceGone) == []
    assert account.troubles == [], "EC2 may take its time"


@asynchronous
async def test_an_instance_without_its_tags_is_on_the_list_and_told_as_trouble(
    account: Account,
) -> None:
    cloud, offerings = await opened(account)
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    for key in (labels.NODE_UID, labels.ENVIRONMENT_UUID, labels.MANAGED_BY):
        account.ec2.delete_tags(Resources=[fact.instance_id], Tags=[{"Key": key}])
        async with watching(cloud) as watch:
            listed = await watch.until(InstancesListed)
        assert listed.instances == {NODE: fact.instance_id}
    what, why, times = account.troubles[-1]
    assert (what, times) == ("tags", 3)
    assert f"aws ec2 create-tags --resources {fact.instance_id} --tags" in why
    (gone,) = await cloud.terminate([terminate(launch(offerings[0]), fact.instance_id)])
    assert isinstance(gone, InstanceGone)


@asynchronous
async def test_an_end_that_a_listing_leaves_out_is_told_with_its_reason(
    account: Account, door: Door
) -> None:
    """Tags of an instance go some time after it has ended."""
    cloud, offerings = await opened(account)
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    account.ec2.terminate_instances(InstanceIds=[fact.instance_id])
    door.unlisted = {fact.instance_id}
    async with watching(cloud) as watch:
        gone = await watch.until(InstanceGone)
    assert (gone.node_id, "User initiated" in gone.reason) == (NODE, True)


@asynchronous
async def test_an_instance_that_ec2_has_forgotten_is_not_on_the_list_and_holds_up_no_other(
    account: Account, door: Door
) -> None:
    cloud, offerings = await opened(account)
    facts = await cloud.launch([launch(offerings[0], n) for n in (1, 2)])
    first, second = (f.instance_id for f in facts if isinstance(f, InstanceLaunched))
    door.unlisted = {first, second}
    door.refuse(
        "DescribeInstances",
        "InvalidInstanceID.NotFound",
        message=f"The instance ID '{first}' does not exist",
        when=lambda form: first in form.values(),
    )
    async with watching(cloud) as watch:
        assert list((await watch.until(InstancesListed)).instances.values()) == [second]


# ---- troubles


@asynchronous
async def test_a_watch_that_begins_again_knows_that_everything_has_been_shown(
    account: Account,
) -> None:
    """A watch that breaks sooner than in a minute would never say what is missing."""
    cloud = account.cloud(settle_s=0.3)
    await cloud.offerings(account.environment())
    async with asyncio.timeout(WAIT_S):
        while True:
            facts = await anext(aiter(cloud.watch()))
            if any(isinstance(fact, InstancesListed) for fact in facts):
                break


@pytest.mark.parametrize(
    ("action", "code"),
    [("GetQueueUrl", "QueueDoesNotExist"), ("ReceiveMessage", "AccessDenied")],
)
@asynchronous
async def test_notices_that_cannot_be_read_hold_up_nothing_and_are_read_when_they_can_be(
    account: Account, door: Door, action: str, code: str
) -> None:
    sqs = door.client("sqs")
    queue = sqs.create_queue(QueueName="notices")["QueueUrl"]
    door.refuse(action, code)
    cloud = account.cloud(notices="notices", settle_s=0.3)
    offerings = await cloud.offerings(account.environment(market=Market.SPOT))
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    async with watching(cloud) as watch:
        listed = await watch.until(InstancesListed)
        assert listed.instances == {NODE: fact.instance_id}
        async with asyncio.timeout(WAIT_S):
            while ("notices", 2) not in [(what, times) for what, _, times in account.troubles]:
                await asyncio.sleep(0.02)
        door.faults.clear()
        kind, detail = Kind.INTERRUPTION, {"instance-action": "terminate"}
        sqs.send_message(QueueUrl=queue, MessageBody=event(kind, fact.instance_id, **detail))
        assert (await watch.until(SpotInterrupted)).node_id == NODE
    assert [(what, times) for what, _, times in account.troubles[:2]] == [
        ("notices", 1),
        ("notices", 2),
    ]
    assert account.troubles[0][1].startswith("Queue notices: ")


# ---- notices


GIVEN_AT = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp() * 1000)


def event(kind: Kind, instance_id: str, **detail: Any) -> str:
    """As EventBridge words it."""
    return json.dumps(
        {
            "version": "0",
            "source": "aws.ec2",
            "detail-type": kind.value,
            "time": "2026-11-25T12:00:00Z",
            "detail": {"instance-id": instance_id, **detail},
        }
    )


@pytest.mark.parametrize(
    ("kind", "detail"),
    [(Kind.INTERRUPTION, {"instance-action": "terminate"}), (Kind.REBALANCE, {})],
    ids=["interruption", "rebalance recommendation"],
)
@asynchronous
async def test_a_notice_is_told_with_the_time_at_which_it_was_given(
    account: Account, door: Door, kind: Kind, detail: dict[str, Any]
) -> None:
    sqs = door.client("sqs")
    queue = sqs.create_queue(QueueName="notices")["QueueUrl"]
    cloud = account.cloud(notices="notices")
    offerings = await cloud.offerings(account.environment(market=Market.SPOT))
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    async with watching(cloud) as watch:
        for body in ("no event", "[]", '{"detail-type": "Something", "detail": {}}'):
            sqs.send_message(QueueUrl=queue, MessageBody=body)
        sqs.send_message(QueueUrl=queue, MessageBody=event(kind, "i-0123456789abcdef0", **detail))
        sqs.send_message(QueueUrl=queue, MessageBody=event(kind, fact.instance_id, **detail))
        told = SpotInterrupted if kind is Kind.INTERRUPTION else RebalanceRecommended
        assert await watch.until(told) == told(node_id=NodeId(NODE), at=GIVEN_AT)
        assert len(watch.all(SpotInterrupted) + watch.all(RebalanceRecommended)) == 1


@asynchronous
async def test_a_state_change_is_told_before_the_next_full_look(
    account: Account, door: Door
) -> None:
    sqs = door.client("sqs")
    queue = sqs.create_queue(QueueName="notices")["QueueUrl"]
    cloud = account.cloud(notices=queue.replace("http://localhost:5000", door.url), look_s=3600.0)
    offerings = await cloud.offerings(account.environment())
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    async with watching(cloud) as watch:
        await watch.until(InstancesListed)
        account.ec2.terminate_instances(InstanceIds=[fact.instance_id])
        body = event(Kind.STATE, fact.instance_id, state="terminated")
        sqs.send_message(QueueUrl=queue, MessageBody=body)
        assert (await watch.until(InstanceGone)).node_id == NODE


@asynchronous
async def test_an_instance_that_somebody_stopped_is_given_back(account: Account) -> None:
    cloud, offerings = await opened(account)
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    account.ec2.stop_instances(InstanceIds=[fact.instance_id])
    async with watching(cloud) as watch:
        assert (await watch.until(InstanceGone)).node_id == NODE
    assert account.left() == {}


def test_a_reclaimed_instance_is_told_as_reclaimed() -> None:
    told = {
        "InstanceId": "i-1",
        "State": {"Name": "terminated"},
        "LaunchTime": datetime(2026, 11, 25, tzinfo=UTC),
        "StateReason": {"Code": "Server.SpotInstanceTermination", "Message": "Server.Spot..."},
        "StateTransitionReason": "Server.SpotInstanceTermination (2026-11-25 10:20:30 GMT)",
        "Tags": [{"Key": labels.NODE_UID, "Value": NODE}],
    }
    gone = seen_from(told).gone
    assert (gone.node_id, gone.reclaimed) == (NODE, True)
    assert gone.reason == "Spot instance was reclaimed"
    # Paid for until then, however much later it is seen.
    assert gone.at == datetime(2026, 11, 25, 10, 20, 30, tzinfo=UTC).timestamp() * 1000


def test_a_notice_without_a_time_counts_from_when_it_is_read() -> None:
    for time in ({}, {"time": 7}, {"time": "soon"}):
        body = {"detail-type": Kind.REBALANCE.value, "detail": {"instance-id": "i-1"}, **time}
        notice = notice_from(json.dumps(body))
        assert notice == Notice(kind=Kind.REBALANCE, instance_id="i-1")


def test_what_is_no_notice_is_passed_over() -> None:
    for body in ("", "null", "7", "{}", '{"detail-type": 1}', '{"detail-type": "x", "detail": 1}'):
        assert notice_from(body) is None
