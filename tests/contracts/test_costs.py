"""Accounts in both databases: what a beat adds is added once, and sums are what was added."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.job import Job
from airflow_eksbatch.core.model.resources import NO_BILL, Bill, Cost
from airflow_eksbatch.core.world.books import HOUR_MS, Account, Entry, Use
from airflow_eksbatch.core.world.changes import Changes, Totals
from airflow_eksbatch.store import migrations
from airflow_eksbatch.store.costs import KEPT_MS
from airflow_eksbatch.store.port import Store, StoreError
from tests.build import NOW
from tests.contracts.databases import Database
from tests.contracts.nouns import a_live_job, finished
from tests.contracts.test_store import ANY

HOUR = NOW // HOUR_MS
SPOT_JOBS = Account("spot", Market.SPOT, Use.JOBS, "queue", "today", "dag")
LARGEST = 2**61
"""Half of what one number of either database holds: 2.3 billion dollars."""


@pytest.fixture
def store(database: Database) -> Store:
    return database.open()


def an_entry(account: Account = SPOT_JOBS, hour: int = HOUR, nano_usd: int = 1) -> Entry:
    return Entry(hour=hour, account=account, cost=Cost(nano_usd, 2 * nano_usd, 3 * nano_usd))


def a_paid_job(number: int, nano_usd: int, **fields: Any) -> Job:
    bill = Bill(on_demand=Cost(nano_usd, 5, 6))
    return msgspec.structs.replace(finished(a_live_job(number), **fields), bill=bill)


def all_sums(store: Store, *by: str) -> list[Entry]:
    return store.sum_costs(0, 2 * NOW, by)


def test_what_comes_later_is_added_also_what_is_taken_back(store: Store) -> None:
    idle = Account("spot", Market.SPOT, Use.IDLE)
    store.commit(Changes(costs=[an_entry(nano_usd=5), an_entry(idle, nano_usd=-5)]))
    store.commit(Changes(costs=[an_entry(nano_usd=2), an_entry(idle, nano_usd=9)]))
    store.commit(Changes(costs=[an_entry(nano_usd=LARGEST)]))
    named = ("compute_environment", "queue", "share", "dag", "hour")
    assert {(e.hour, e.account): e.cost.nano_usd for e in all_sums(store, *named)} == {
        (HOUR, SPOT_JOBS): LARGEST + 7,
        (HOUR, idle): 4,
    }


def test_sums_are_over_all_that_is_not_named(store: Store) -> None:
    other = SPOT_JOBS._replace(queue="other")
    on_demand = SPOT_JOBS._replace(compute_environment="ce", market=Market.ON_DEMAND)
    entries = [
        an_entry(), an_entry(other, nano_usd=10), an_entry(on_demand, nano_usd=100),
        an_entry(hour=HOUR + 1, nano_usd=1_000),
    ]  # fmt: skip
    store.commit(Changes(costs=entries))

    def told(*by: str) -> dict[tuple[Any, ...], int]:
        return {(e.hour, *e.account): e.cost.nano_usd for e in all_sums(store, *by)}

    spot, jobs = Market.SPOT, Use.JOBS
    assert told() == {
        (0, "", spot, jobs, "", "", ""): 1_011,
        (0, "", Market.ON_DEMAND, jobs, "", "", ""): 100,
    }
    assert told("queue")[0, "", spot, jobs, "other", "", ""] == 10
    assert told("hour")[HOUR + 1, "", spot, jobs, "", "", ""] == 1_000
    assert told("dag", "compute_environment") == {
        (0, "spot", spot, jobs, "", "", "dag"): 1_011,
        (0, "ce", Market.ON_DEMAND, jobs, "", "", "dag"): 100,
    }
    (whole, *_) = [e for e in all_sums(store) if e.account.market is spot]
    assert whole.cost == Cost(1_011, 2_022, 3_033)


@pytest.mark.parametrize(
    ("since", "until", "hours"),
    [
        (HOUR * HOUR_MS, (HOUR + 1) * HOUR_MS, [0]),
        (HOUR * HOUR_MS, (HOUR + 1) * HOUR_MS + 1, [0, 1]),
        (HOUR * HOUR_MS + 1, (HOUR + 3) * HOUR_MS, [1, 2]),
        ((HOUR + 1) * HOUR_MS, (HOUR + 1) * HOUR_MS, []),
    ],
)
def test_hours_count_that_begin_in_the_time_asked_for(
    store: Store, since: int, until: int, hours: list[int]
) -> None:
    store.commit(Changes(costs=[an_entry(hour=HOUR + number) for number in range(3)]))
    found = store.sum_costs(since, until, {"hour"})
    assert [entry.hour - HOUR for entry in found] == hours


@ANY
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.integers(-99, 99)), max_size=6),
        max_size=4,
    )
)  # fmt: skip
def test_sums_are_what_was_added(store: Store, beats: list[list[tuple[int, str, int]]]) -> None:
    before = Counter(
        {(e.hour, e.account.queue): e.cost.nano_usd for e in all_sums(store, "hour", "queue")}
    )
    for beat in beats:
        # As a beat has them: each account's hour once.
        sums: Counter[tuple[int, str]] = Counter()
        for hour, queue, nano_usd in beat:
            sums[hour, queue] += nano_usd
        entries = [
            an_entry(SPOT_JOBS._replace(queue=queue), hour, nano_usd)
            for (hour, queue), nano_usd in sums.items()
        ]
        store.commit(Changes(costs=entries))
        before.update(sums)
    found = {(e.hour, e.account.queue): e.cost.nano_usd for e in all_sums(store, "hour", "queue")}
    assert {k: n for k, n in found.items() if n} == {k: n for k, n in before.items() if n}


def test_a_commit_that_fails_adds_nothing(store: Store) -> None:
    """The number of a job is another's: the database says no to all of it."""
    store.commit(Changes(jobs_added=[a_live_job(1)], costs=[an_entry()]))
    with pytest.raises(StoreError):
        store.commit(Changes(jobs_added=[a_live_job(2, seq=1)], costs=[an_entry(nano_usd=50)]))
    assert [entry.cost.nano_usd for entry in all_sums(store)] == [1]


def test_a_job_keeps_its_bill_and_the_dearest_of_a_time_are_found(store: Store) -> None:
    cheap, dear, before = (
        a_paid_job(1, 10, at=NOW),
        a_paid_job(2, 500, at=NOW + 5),
        a_paid_job(3, 900, at=NOW - 1),
    )
    live = msgspec.structs.replace(a_live_job(4), bill=Bill(spot=Cost(9_999, 1, 1)))
    store.commit(Changes(jobs_added=[cheap, dear, before, live]))
    assert store.costly_jobs(NOW, NOW + 6, 10) == [dear, cheap]
    assert store.costly_jobs(NOW, NOW + 5, 10) == [cheap]
    assert store.costly_jobs(0, NOW + 6, 1) == [before]
    assert store.load().jobs == [live]
    richer = msgspec.structs.replace(cheap, bill=Bill(spot=Cost(7_000, 1, 1)))
    store.commit(Changes(jobs=[richer]))
    assert store.costly_jobs(NOW, NOW + 6, 1) == [richer]


def test_sums_outlive_their_jobs_for_400_days(store: Store) -> None:
    old = (NOW - KEPT_MS) // HOUR_MS
    costs = [an_entry(hour=old - 1), an_entry(hour=old, nano_usd=10), an_entry(nano_usd=100)]
    store.commit(Changes(jobs_added=[a_paid_job(1, 10, at=NOW - 1)], costs=costs))
    assert store.forget_before(NOW, 10) == 1
    assert sum(entry.cost.nano_usd for entry in all_sums(store)) == 110


def test_what_was_spent_before_there_were_accounts_is_kept_as_a_total(database: Database) -> None:
    totals = {"jobs": 3, "instance_ms": {"ce": 5}, "price_usd": {"ce": 1.25, "spot": 1e-7}}
    with database.open_raw() as connection:
        migrations.create_first(connection)
        connection.exec_driver_sql(
            "INSERT INTO eksbatch_meta (key, body) VALUES ("
            + ("?, ?)" if database.is_sqlite else "%s, %s)"),
            ("schema_version", msgspec.msgpack.encode(1)),
        )
        connection.exec_driver_sql(
            "INSERT INTO eksbatch_meta (key, body) VALUES ("
            + ("?, ?)" if database.is_sqlite else "%s, %s)"),
            ("totals", msgspec.msgpack.encode(totals)),
        )
    store = database.open()
    kept = Totals(jobs=3, instance_ms={"ce": 5}, nano_usd={"ce": 1_250_000_000, "spot": 100})
    assert store.load().totals == kept
    assert all_sums(store) == []
    store.commit(Changes(jobs_added=[a_live_job(1)]))
    assert [job.bill for job in store.load().jobs] == [NO_BILL]
