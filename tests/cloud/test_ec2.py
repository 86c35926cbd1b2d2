"""EC2 through moto: one instance for each node whatever goes wrong on the way, refusals by type, and nothing left."""

from __future__ import annotations

import asyncio
import base64
import email
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.cloud.aws import launches
from airflow_eksbatch.cloud.aws.catalogue import SPOT_KEPT_S
from airflow_eksbatch.cloud.aws.sightings import seen_from
from airflow_eksbatch.cloud.ec2 import Ec2Cloud
from airflow_eksbatch.cloud.port import CloudDown
from airflow_eksbatch.core.engine.effects import TerminateStray
from airflow_eksbatch.core.engine.facts import (
    Fact,
    InstanceGone,
    InstanceLaunched,
    InstancesListed,
    LaunchAlone,
    LaunchRefused,
    OfferingsListed,
)
from airflow_eksbatch.core.model import labels
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.floor.clock import Backoff
from tests.cloud.account import PRICES, ZONES, Account, a_lot, launch, terminate
from tests.cloud.door import Door
from tests.cloud.watching import Hands, asynchronous, watching

QUOTAS = ("MaxSpotInstanceCountExceeded", "NetworkInterfaceLimitExceeded", "VcpuLimitExceeded")


async def opened(account: Account, **resources: Any) -> tuple[Ec2Cloud, tuple[Offering, ...]]:
    """A cloud with the environment `ce`, and what it may buy."""
    cloud = account.cloud()
    return cloud, await cloud.offerings(account.environment(**resources))


# ---- what an instance is


@asynchronous
async def test_an_instance_says_from_the_start_whose_it_is(account: Account) -> None:
    cloud, offerings = await opened(account, tags={"team": "weather"})
    effect = launch(offerings[1])
    (fact,) = await cloud.launch([effect])
    assert isinstance(fact, InstanceLaunched)
    (instance,) = account.instances()
    assert instance["InstanceId"] == fact.instance_id
    assert instance["InstanceType"] == "m5.large"
    assert instance["Placement"]["AvailabilityZone"] == "us-east-1b"
    assert account.tags(instance) == {
        "Name": "eksbatch ce",
        "team": "weather",
        "eksbatch/compute-environment": "ce",
        "kubernetes.io/cluster/main": "owned",
        labels.MANAGED_BY: labels.OURS,
        labels.ENVIRONMENT_UUID: "ce-0000-0000",
        labels.NODE_UID: effect.node_id,
    }


@asynchronous
async def test_an_instance_is_told_its_cluster_its_labels_and_our_taint(account: Account) -> None:
    cloud, offerings = await opened(account)
    await cloud.launch([launch(offerings[0])])
    (instance,) = account.instances()
    told = account.ec2.describe_instance_attribute(
        InstanceId=instance["InstanceId"], Attribute="userData"
    )
    document = email.message_from_bytes(base64.b64decode(told["UserData"]["Value"]))
    (part,) = [part for part in document.walk() if not part.is_multipart()]
    assert part.get_content_type() == "application/node.eks.aws"
    text = str(part.get_payload())
    assert '"name": "main"' in text
    assert '"maxPods": 29' in text
    assert f"{labels.NODE_UID}=node-000001-ce" in text
    assert f"{labels.ENVIRONMENT_UUID}=ce-0000-0000" in text
    assert text.count(labels.TAINT) == 2


@asynchronous
async def test_spot_is_bought_as_spot_and_never_above_the_bid(account: Account, door: Door) -> None:
    cloud, offerings = await opened(account, market=Market.SPOT, bidPercentage=50)
    assert {offering.price_usd_hour for offering in offerings} <= set(door.spot_prices.values())
    await cloud.launch([launch(offerings[0])])
    form = dict(door.requests)["RunInstances"]
    assert form["InstanceMarketOptions.MarketType"] == "spot"
    assert form["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert form["InstanceMarketOptions.SpotOptions.MaxPrice"] == "0.04800"


@asynchronous
async def test_what_was_too_dear_when_the_environment_was_checked_is_bought_within_the_bid(
    account: Account, door: Door
) -> None:
    """
    1. At the check m5.large costs more than the bid, and so does the only type with a GPU.
    2. Their prices fall, and are told.
    3. They are bought of their own image, and never above the bid.
    """
    clock = Hands()
    cloud = account.cloud(clock=clock, offerings_s=0.1)
    types = ["m5.large", "m5.xlarge", "g4dn.xlarge"]
    for name in ("m5.large", "g4dn.xlarge"):
        for zone in ZONES:
            door.spot_prices[name, zone] = PRICES[name] * 0.9
    environment = account.environment(market=Market.SPOT, instanceTypes=types, bidPercentage=50)
    offerings = await cloud.offerings(environment)
    assert {o.instance_type for o in offerings} == {"m5.xlarge"}
    for name in ("m5.large", "g4dn.xlarge"):
        for zone in ZONES:
            door.spot_prices[name, zone] = PRICES[name] * 0.4
    clock.now += SPOT_KEPT_S
    async with watching(cloud) as watch:
        told = await watch.until(OfferingsListed, lambda f: len(f.offerings) == 6)
    for number, name in enumerate(("m5.large", "g4dn.xlarge")):
        offering = next(o for o in told.offerings if o.instance_type == name)
        (fact,) = await cloud.launch([launch(offering, number)])
        assert isinstance(fact, InstanceLaunched)
        form = [form for action, form in door.requests if action == "RunInstances"][-1]
        most = float(form["InstanceMarketOptions.SpotOptions.MaxPrice"])
        assert most == pytest.approx(PRICES[name] / 2)
        assert form["ImageId"] == account.image


# ---- together


def ids_of(facts: list[Fact]) -> dict[str, str]:
    """Instance ids by node id."""
    return {f.node_id: f.instance_id for f in facts if isinstance(f, InstanceLaunched)}


@asynchronous
async def test_equal_machines_are_one_request_and_each_says_which_node_it_is(
    account: Account, door: Door
) -> None:
    cloud, offerings = await opened(account)
    lot = a_lot(offerings[0], 0, 3)
    facts = await cloud.launch(lot)
    assert door.asked["RunInstances"] == 1
    assert list(ids_of(facts)) == [effect.node_id for effect in lot]
    assert {seen_from(i).node_id: i["InstanceId"] for i in account.instances()} == ids_of(facts)
    told = account.ec2.describe_instance_attribute(
        InstanceId=account.instances()[0]["InstanceId"], Attribute="userData"
    )
    assert labels.NODE_UID.encode() not in base64.b64decode(told["UserData"]["Value"])


@pytest.mark.parametrize("shown", [True, False], ids=["by tags", "by token"])
@asynchronous
async def test_a_lot_that_is_asked_for_again_buys_nothing(
    account: Account, door: Door, shown: bool
) -> None:
    """
    1. EC2 makes all, and its answer is lost.
    2. The next service asks for them in other batches: the one, then the others.
    """
    cloud, offerings = await opened(account)
    lot = a_lot(offerings[0], 0, 3)
    door.refuse("RunInstances", "Unavailable", status=503, times=1, after=True)
    with pytest.raises(CloudDown):
        await cloud.launch(lot)
    if shown:
        door.tokens.clear()
    door.shows_instances = shown
    revived, _ = await opened(account)
    facts = [*await revived.launch(lot[1:2]), *await revived.launch([lot[0], lot[2]])]
    door.shows_instances = True
    assert ids_of(facts) == {seen_from(i).node_id: i["InstanceId"] for i in account.instances()}
    assert len(facts) == 3


@asynchronous
async def test_what_ec2_does_not_make_of_a_lot_is_to_be_asked_for_alone(
    account: Account, door: Door
) -> None:
    """That asks for the reason, too. It is told when the batch is done: until then they are being asked for together."""
    cloud, offerings = await opened(account)
    lot = a_lot(offerings[0], 0, 3)
    door.room = lambda form: 2
    async with watching(cloud) as watch:
        facts = await cloud.launch(lot)
        await watch.until(InstanceLaunched, lambda f: f.node_id == lot[1].node_id)
        assert not any(isinstance(fact, LaunchAlone) for fact in watch.facts)
    assert list(ids_of(facts)) == [lot[0].node_id, lot[1].node_id]
    assert facts[2:] == [LaunchAlone(node_id=lot[2].node_id)]
    door.room = lambda form: 0
    (refused,) = await cloud.launch([msgspec.structs.replace(lot[2], together=())])
    assert isinstance(refused, LaunchRefused)
    assert refused.code == "InsufficientInstanceCapacity"


@asynchronous
async def test_what_ec2_does_not_show_of_a_lot_it_has_not_made(
    account: Account, door: Door
) -> None:
    """
    1. Two of three are made; the service dies before it has noted any answer, and EC2 has forgotten the token.
    2. The next one may not ask for the three again.
    """
    cloud, offerings = await opened(account)
    lot = a_lot(offerings[0], 0, 3)
    door.room = lambda form: 2
    made = ids_of(await cloud.launch(lot))
    door.tokens.clear()
    revived, _ = await opened(account)
    facts = await revived.launch(lot[1:])
    assert facts[1:] == [LaunchAlone(node_id=lot[2].node_id)]
    assert ids_of(facts) == {lot[1].node_id: made[lot[1].node_id]}
    assert len(account.instances()) == 2


@asynchronous
async def test_a_lot_that_is_beyond_a_quota_may_fit_in_part(account: Account, door: Door) -> None:
    cloud = account.cloud(refused_s=240.0)
    offerings = await cloud.offerings(account.environment())
    lot = a_lot(offerings[0], 0, 3)
    door.refuse("RunInstances", "VcpuLimitExceeded", when=lambda form: form["MaxCount"] != "1")
    assert await cloud.launch(lot) == [LaunchAlone(node_id=effect.node_id) for effect in lot]
    alone = [msgspec.structs.replace(effect, together=()) for effect in lot]
    assert len(ids_of(await cloud.launch(alone))) == 3


@pytest.mark.parametrize("code", ["InsufficientInstanceCapacity", "VcpuLimitExceeded"])
@asynchronous
async def test_of_the_nodes_of_one_job_all_are_made_or_none(
    account: Account, door: Door, code: str
) -> None:
    """And what is refused to several says nothing of one: the next is asked for at once."""
    cloud = account.cloud(refused_s=240.0)
    offerings = await cloud.offerings(account.environment())
    lot = [
        msgspec.structs.replace(effect, all_or_none=True) for effect in a_lot(offerings[0], 0, 3)
    ]
    if code == "InsufficientInstanceCapacity":
        door.room = lambda form: 2
    else:
        door.refuse("RunInstances", code, when=lambda form: form["MaxCount"] != "1")
    refused = [f for f in await cloud.launch(lot) if isinstance(f, LaunchRefused)]
    assert [(f.node_id, f.code) for f in refused] == [(e.node_id, code) for e in lot]
    assert not account.instances()
    alone = launch(offerings[0], 7)
    assert ids_of(await cloud.launch([alone])).keys() == {alone.node_id}
    asked = door.asked["RunInstances"]
    others = (launch(offerings[0], 8).node_id, launch(offerings[0], 9).node_id)
    await cloud.launch([msgspec.structs.replace(lot[0], node_id=others[0], together=others)])
    assert door.asked["RunInstances"] == asked, "another lot would hear the same"


@asynchronous
async def test_a_refused_lot_is_refused_for_each(account: Account, door: Door) -> None:
    cloud, offerings = await opened(account)
    lot = a_lot(offerings[0], 0, 3)
    door.refuse("RunInstances", "InsufficientInstanceCapacity", status=500)
    refused = [f for f in await cloud.launch(lot) if isinstance(f, LaunchRefused)]
    assert [f.node_id for f in refused] == [effect.node_id for effect in lot]
    assert door.asked["RunInstances"] == 1


@asynchronous
async def test_one_of_a_lot_is_ended_by_its_node_id_alone(account: Account) -> None:
    """By a service that was never told its instance."""
    cloud, offerings = await opened(account)
    lot = a_lot(offerings[0], 0, 3)
    made = ids_of(await cloud.launch(lot))
    revived, _ = await opened(account)
    await revived.terminate([terminate(lot[1], None)])
    assert {i["InstanceId"] for i in account.instances()} == {
        made[lot[0].node_id],
        made[lot[2].node_id],
    }


# ---- one instance for each node


@asynchronous
async def test_a_launch_that_is_repeated_buys_nothing(account: Account) -> None:
    cloud, offerings = await opened(account)
    first = await cloud.launch([launch(offerings[0], n) for n in (1, 2, 3)])
    again = await cloud.launch([launch(offerings[0], n) for n in (1, 2, 3, 4)])
    ids = [fact.instance_id for fact in again if isinstance(fact, InstanceLaunched)]
    assert ids[:3] == [fact.instance_id for fact in first if isinstance(fact, InstanceLaunched)]
    assert len(account.instances()) == 4


@asynchronous
async def test_after_a_crash_instances_are_found_by_their_tags(
    account: Account, door: Door
) -> None:
    cloud, offerings = await opened(account)
    first = await cloud.launch([launch(offerings[0])])
    door.tokens.clear()  # EC2 forgets tokens; tags stay
    revived, _ = await opened(account)
    again = await revived.launch([launch(offerings[0])])
    assert [f.instance_id for f in again if isinstance(f, InstanceLaunched)] == [
        f.instance_id for f in first if isinstance(f, InstanceLaunched)
    ]
    assert len(account.instances()) == 1


@asynchronous
async def test_an_answer_that_is_lost_costs_no_second_instance(
    account: Account, door: Door
) -> None:
    """
    1. EC2 launches, its answer is lost, and it does not show the instance yet.
    2. The service dies; the next one asks again.
    3. The token is the same: EC2 answers with the same instance.
    """
    cloud, offerings = await opened(account)
    door.refuse("RunInstances", "Unavailable", status=503, times=1, after=True)
    with pytest.raises(CloudDown):
        await cloud.launch([launch(offerings[0])])
    door.shows_instances = False
    revived, _ = await opened(account)
    (fact,) = await revived.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    door.shows_instances = True
    assert [i["InstanceId"] for i in account.instances()] == [fact.instance_id]


@asynchronous
async def test_a_token_that_was_used_for_another_request_waits_until_the_instance_is_shown(
    account: Account, door: Door
) -> None:
    cloud, offerings = await opened(account)
    door.refuse("RunInstances", "Unavailable", status=503, times=1, after=True)
    with pytest.raises(CloudDown):
        await cloud.launch([launch(offerings[0])])
    changed, _ = await opened(account, tags={"changed": "meanwhile"})
    door.shows_instances = False
    with pytest.raises(CloudDown):
        await changed.launch([launch(offerings[0])])
    door.shows_instances = True
    (fact,) = await changed.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    assert len(account.instances()) == 1


@asynchronous
async def test_a_node_whose_instance_has_ended_gets_no_other(account: Account) -> None:
    cloud, offerings = await opened(account)
    effect = launch(offerings[0])
    await cloud.launch([effect])
    account.ec2.terminate_instances(InstanceIds=[account.instances()[0]["InstanceId"]])
    (fact,) = await cloud.launch([effect])
    assert isinstance(fact, InstanceGone)
    assert account.left() == {}


@asynchronous
async def test_nothing_is_launched_before_the_environment_was_looked_into(account: Account) -> None:
    _, offerings = await opened(account)
    with pytest.raises(CloudDown):
        await account.cloud().launch([launch(offerings[0])])
    assert account.left() == {}


# ---- refusals


@pytest.mark.parametrize(
    ("code", "status", "for_good"),
    [
        ("InsufficientInstanceCapacity", 500, False),
        ("InsufficientVolumeCapacity", 500, False),
        ("MaxSpotInstanceCountExceeded", 400, False),
        ("VcpuLimitExceeded", 400, False),
        ("NetworkInterfaceLimitExceeded", 400, False),
        ("UnfulfillableCapacity", 400, False),
        ("SpotMaxPriceTooLow", 400, False),
        ("Unsupported", 400, False),
        ("UnauthorizedOperation", 403, True),
        ("InvalidSubnetID.NotFound", 400, True),
        ("InvalidAMIID.NotFound", 400, True),
        ("InvalidParameterValue", 400, False),
        ("UnsupportedOperation", 400, False),
        ("InvalidGroup.NotFound", 400, True),
        ("InvalidKeyPair.NotFound", 400, True),
    ],
)
@asynchronous
async def test_ec2s_no_is_understood(
    account: Account, door: Door, code: str, status: int, for_good: bool
) -> None:
    cloud, offerings = await opened(account)
    door.refuse("RunInstances", code, status=status, message="So it is.")
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, LaunchRefused)
    assert (fact.code, fact.for_good) == (code, for_good)
    assert fact.quota == (code in QUOTAS)
    assert fact.message.startswith("So it is.")
    assert door.asked["RunInstances"] == 1, "a refusal is not asked for again"
    assert account.left() == {}


@asynchronous
async def test_an_image_that_is_not_ours_is_a_no_for_good_and_bad_credentials_are_not(
    account: Account, door: Door
) -> None:
    cloud, offerings = await opened(account)
    door.refuse(
        "RunInstances", "AuthFailure", message=f"Not authorized for images: [{account.image}]"
    )
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, LaunchRefused)
    assert fact.for_good
    assert fact.message.endswith("Share the image with this account, or update imageIdOverride.")
    door.faults.clear()
    door.refuse(
        "RunInstances", "AuthFailure", message="AWS was not able to validate the access credentials"
    )
    with pytest.raises(CloudDown):
        await cloud.launch([launch(offerings[0], 2)])


@asynchronous
async def test_a_type_that_does_not_go_with_the_request_leaves_the_others(
    account: Account, door: Door
) -> None:
    """As long as one type is made, the request is not wrong."""
    types = ["m5.large", "m5.xlarge", "m5.2xlarge", "c5.large", "r5.large"]
    cloud, offerings = await opened(account, instanceTypes=types)
    first = {o.instance_type: o for o in offerings if o.zone == "us-east-1a"}
    door.refuse(
        "RunInstances",
        "InvalidParameterCombination",
        when=lambda form: form["InstanceType"] != "r5.large",
    )

    async def for_good(instance_type: str, number: int) -> bool | None:
        (fact,) = await cloud.launch([launch(first[instance_type], number)])
        return fact.for_good if isinstance(fact, LaunchRefused) else None

    assert [await for_good(t, n) for n, t in enumerate(types)] == [False] * 4 + [None]
    # None was made since: three types of three families are enough to say that it is the request.
    door.faults.clear()
    door.refuse("RunInstances", "InvalidParameterCombination")
    order = ["m5.large", "m5.xlarge", "m5.2xlarge", "c5.large", "r5.large"]
    said = [await for_good(t, n) for n, t in enumerate(order, 10)]
    assert said == [False] * 4 + [True]


@asynchronous
async def test_a_node_whose_token_ec2_knows_of_an_ended_instance_is_gone(
    account: Account, door: Door
) -> None:
    """Its tag is forgotten, and its token is not: that says nothing of the environment."""
    cloud, offerings = await opened(account)
    door.refuse("RunInstances", "IdempotentInstanceTerminated", times=1)
    (gone,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(gone, InstanceGone)
    assert gone.node_id == launch(offerings[0]).node_id
    (other,) = await cloud.launch([launch(offerings[0], 2)])
    assert isinstance(other, InstanceLaunched)


@asynchronous
async def test_a_refusal_of_one_pool_is_not_the_others(account: Account, door: Door) -> None:
    cloud, offerings = await opened(account)
    door.refuse(
        "RunInstances",
        "InsufficientInstanceCapacity",
        status=500,
        when=lambda form: form["InstanceType"] == "m5.large",
    )
    facts = await cloud.launch([launch(o, n) for n, o in enumerate(offerings)])
    assert [type(fact) for fact in facts] == [LaunchRefused] * 2 + [InstanceLaunched] * 2


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("InsufficientInstanceCapacity", {"c5.large", "g4dn.xlarge"}),
        ("VcpuLimitExceeded", {"c5.large", "g4dn.xlarge"}),
        ("UnauthorizedOperation", {"c5.large"}),
    ],
)
@asynchronous
async def test_what_is_in_line_when_a_refusal_comes_is_not_asked_for(
    account: Account, door: Door, code: str, asked: set[str]
) -> None:
    """A hundred launches in four pools, at EC2's pace: the first no speaks for all that it holds for."""
    cloud = account.cloud(launch_burst=1, launches_per_s=8.0, refused_s=240.0)
    environment = account.environment(instanceTypes=["c5.large", "g4dn.xlarge"])
    offerings = await cloud.offerings(environment)
    door.refuse("RunInstances", code)
    pools = sorted(offerings, key=lambda offering: offering.pool) * 25
    effects = [launch(o, n) for n, o in enumerate(sorted(pools, key=lambda o: o.pool))]
    facts = await cloud.launch(effects)
    assert [f.node_id for f in facts if isinstance(f, LaunchRefused)] == [
        effect.node_id for effect in effects
    ]
    assert {f.code for f in facts if isinstance(f, LaunchRefused)} == {code}
    requests = [form for action, form in door.requests if action == "RunInstances"]
    assert {request["InstanceType"] for request in requests} == asked
    # Few more than one for each: what was under way when the no came.
    assert len(requests) < 40


@asynchronous
async def test_who_mends_an_environment_is_not_told_the_old_refusal(
    account: Account, door: Door
) -> None:
    cloud = account.cloud(refused_s=240.0)
    offerings = await cloud.offerings(account.environment())
    door.refuse("RunInstances", "UnauthorizedOperation", times=1)
    for number, kind in enumerate((LaunchRefused, LaunchRefused, InstanceLaunched)):
        if kind is InstanceLaunched:
            await cloud.offerings(account.environment())
        (fact,) = await cloud.launch([launch(offerings[0], number)])
        assert isinstance(fact, kind)
    assert door.asked["RunInstances"] == 2


@asynchronous
async def test_answers_are_told_as_they_come(account: Account, door: Door) -> None:
    """At EC2's pace a batch takes long, and the second of two that are in line must not hold up the first."""
    cloud = account.cloud(launch_burst=1, launches_per_s=1e-3)
    offerings = await cloud.offerings(account.environment())
    async with watching(cloud) as watch:
        await watch.until(InstancesListed)
        batch = asyncio.create_task(cloud.launch([launch(offerings[0], n) for n in (1, 2)]))
        told = await watch.until(InstanceLaunched)
        assert [told.instance_id] == [i["InstanceId"] for i in account.instances()]
        assert not batch.done()
        batch.cancel()
    await cloud.delete_environment("ce", "ce-0000-0000")
    assert account.left() == {}


@asynchronous
async def test_a_zone_without_addresses_uses_its_other_subnet(account: Account, door: Door) -> None:
    second = account.another_subnet("us-east-1a")
    full = account.subnets["us-east-1a"]
    cloud, offerings = await opened(account, subnets=[full, second])
    door.refuse(
        "RunInstances",
        "InsufficientFreeAddressesInSubnet",
        when=lambda form: full in form.values(),
    )
    facts = await cloud.launch([launch(offerings[0], n) for n in range(6)])
    assert {type(fact) for fact in facts} == {InstanceLaunched}
    assert {i["SubnetId"] for i in account.instances()} == {second}


@asynchronous
async def test_a_throttled_launch_is_asked_for_again_and_is_no_refusal(
    account: Account, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "PAUSE", Backoff(first_s=0.01))
    cloud, offerings = await opened(account)
    door.refuse("RunInstances", "RequestLimitExceeded", status=503, times=5)
    facts = await cloud.launch([launch(offerings[0], n) for n in range(4)])
    assert {type(fact) for fact in facts} == {InstanceLaunched}
    assert len(account.instances()) == 4


@asynchronous
async def test_an_environment_that_became_invalid_buys_nothing_and_says_why(
    account: Account,
) -> None:
    cloud, offerings = await opened(account)
    with pytest.raises(ValueError, match="does not exist"):
        await cloud.offerings(account.environment(instanceRole="nobody"))
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, LaunchRefused)
    assert fact.for_good
    assert "nobody does not exist" in fact.message
    assert account.left() == {}


# ---- ends


@asynchronous
async def test_an_end_is_told_and_may_be_asked_for_twice(account: Account) -> None:
    cloud, offerings = await opened(account)
    effect = launch(offerings[0])
    (fact,) = await cloud.launch([effect])
    assert isinstance(fact, InstanceLaunched)
    for _ in range(2):
        (gone,) = await cloud.terminate([terminate(effect, fact.instance_id)])
        assert isinstance(gone, InstanceGone)
        assert gone.node_id == effect.node_id
        assert not gone.reclaimed
    assert account.left() == {}


@asynchronous
async def test_an_instance_that_ec2_does_not_know_is_gone_and_holds_no_other_up(
    account: Account,
) -> None:
    cloud, offerings = await opened(account)
    effects = [launch(offerings[0], n) for n in (1, 2)]
    (first, _) = await cloud.launch(effects)
    assert isinstance(first, InstanceLaunched)
    unknown = terminate(launch(offerings[0], 9), "i-0123456789abcdef0")
    facts = await cloud.terminate(
        [unknown, terminate(effects[0], first.instance_id), terminate(effects[1], None)]
    )
    assert {fact.node_id for fact in facts if isinstance(fact, InstanceGone)} == {
        unknown.node_id,
        effects[0].node_id,
        effects[1].node_id,
    }
    assert account.left() == {}


@asynchronous
async def test_an_instance_that_is_not_shown_yet_is_not_said_to_be_gone(
    account: Account, door: Door
) -> None:
    cloud = account.cloud(shown_s=3600.0)
    offerings = await cloud.offerings(account.environment())
    effect = launch(offerings[0])
    (fact,) = await cloud.launch([effect])
    assert isinstance(fact, InstanceLaunched)
    message = f"The instance ID '{fact.instance_id}' does not exist"
    door.refuse("TerminateInstances", "InvalidInstanceID.NotFound", message=message, times=1)
    with pytest.raises(CloudDown):
        await cloud.terminate([terminate(effect, fact.instance_id)])
    (gone,) = await cloud.terminate([terminate(effect, fact.instance_id)])
    assert isinstance(gone, InstanceGone)
    assert account.left() == {}


@asynchronous
async def test_an_instance_that_is_protected_holds_up_no_other_and_is_ended_when_it_may_be(
    account: Account, door: Door
) -> None:
    cloud, offerings = await opened(account)
    effects = [launch(offerings[0], n) for n in (1, 2, 3)]
    facts = await cloud.launch(effects)
    ids = [fact.instance_id for fact in facts if isinstance(fact, InstanceLaunched)]
    account.ec2.modify_instance_attribute(InstanceId=ids[1], DisableApiTermination={"Value": True})
    facts = await cloud.terminate([terminate(e, i) for e, i in zip(effects, ids, strict=True)])
    assert {f.node_id for f in facts if isinstance(f, InstanceGone)} == {
        effects[0].node_id,
        effects[2].node_id,
    }
    assert [i["InstanceId"] for i in account.instances()] == [ids[1]]
    what, why, times = account.troubles[-1]
    assert (what, times) == ("end", 1)
    assert why.startswith(f"{ids[1]}: ")
    assert "--no-disable-api-termination" in why
    async with watching(cloud) as watch:
        listed = await watch.until(InstancesListed)
        assert list(listed.instances.values()) == [ids[1]]
        account.ec2.modify_instance_attribute(
            InstanceId=ids[1], DisableApiTermination={"Value": False}
        )
        assert (await watch.until(InstanceGone)).node_id == effects[1].node_id
    assert account.left() == {}


@asynchronous
async def test_a_users_template_does_not_keep_instances_from_being_ended(account: Account) -> None:
    account.ec2.create_launch_template(
        LaunchTemplateName="mine",
        LaunchTemplateData={"ImageId": account.image, "DisableApiTermination": True},
    )
    cloud, offerings = await opened(account, launchTemplate={"launchTemplateName": "mine"})
    await cloud.launch([launch(offerings[0])])
    assert dict(account.door.requests)["RunInstances"]["DisableApiTermination"] == "false"


@asynchronous
async def test_ends_that_our_role_may_not_ask_for_hold_up_no_others(
    account: Account, door: Door
) -> None:
    """EC2 names the instance, or none: then each is asked for alone."""
    cloud, offerings = await opened(account)
    effects = [launch(offerings[0], n) for n in range(4)]
    facts = await cloud.launch(effects)
    ids = [fact.instance_id for fact in facts if isinstance(fact, InstanceLaunched)]
    for message, forbidden in (
        (f"You are not authorized: arn:aws:ec2:us-east-1:1:instance/{ids[0]}", ids[0]),
        ("You are not authorized.", ids[1]),
    ):
        door.refuse(
            "TerminateInstances",
            "UnauthorizedOperation",
            status=403,
            message=message,
            when=lambda form, forbidden=forbidden: forbidden in form.values(),
        )
    await cloud.terminate([terminate(e, i) for e, i in zip(effects, ids, strict=True)])
    assert {i["InstanceId"] for i in account.instances()} == {ids[0], ids[1]}


@asynchronous
async def test_a_stray_is_ended_by_its_instance_id(account: Account) -> None:
    cloud, offerings = await opened(account)
    (fact,) = await cloud.launch([launch(offerings[0])])
    assert isinstance(fact, InstanceLaunched)
    stray = TerminateStray(instance_id=fact.instance_id, compute_environment="ce")
    await cloud.terminate([stray])
    await cloud.terminate([stray])
    assert account.left() == {}


@asynchronous
async def test_nothing_is_left_of_an_environment_that_is_deleted(account: Account) -> None:
    cloud, offerings = await opened(account)
    await cloud.launch([launch(offerings[n % 4], n) for n in range(8)])
    other = await cloud.offerings(account.environment("other"))
    await cloud.launch([launch(other[0], 1, "other")])
    assert account.left()["instances"] == 9
    await cloud.delete_environment("ce", "ce-0000-0000")
    assert [account.tags(i)[labels.ENVIRONMENT_UUID] for i in account.instances()] == [
        "other-0000-0000"
    ]
    await cloud.delete_environment("other", "other-0000-0000")
    await cloud.delete_environment("other", "other-0000-0000")
    assert account.left() == {}
