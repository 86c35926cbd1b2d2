"""What SQLite and PostgreSQL both keep to: the memory of the world loses nothing, and has one owner."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airflow_eksbatch.api.job_reads import matches
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment
from airflow_eksbatch.core.model.job import TERMINAL, Attempt, Ended, Job, JobEvent, JobId, ended
from airflow_eksbatch.core.model.job_definition import JobDefinition
from airflow_eksbatch.core.model.job_queue import JobQueue
from airflow_eksbatch.core.model.node import Node
from airflow_eksbatch.core.model.share import SchedulingPolicy, ShareUsage
from airflow_eksbatch.core.world.changes import Changes, Counters, Totals
from airflow_eksbatch.store import rows, sql
from airflow_eksbatch.store.port import (
    AccessKey,
    Fenced,
    JobQuery,
    Rights,
    SigningKey,
    Store,
    StoreError,
)
from tests.build import NOW, a_node, a_policy, a_queue, an_environment
from tests.contracts import writer
from tests.contracts.databases import Database
from tests.contracts.nouns import a_live_job, an_attempt, an_event, any_struct, finished

WAIT_S = 120.0
KILLS = 4
ROOT = Path(__file__).resolve().parents[2]
ANY = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # Not shrunk: each example finds what the ones before it have left.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
LATER = 100_000


@pytest.fixture
def store(database: Database) -> Store:
    return database.open()


def some_changes() -> Changes:
    """One of everything."""
    live, ended = a_live_job(1), finished(a_live_job(2))
    return Changes(
        jobs_added=[live, ended],
        attempts=[an_attempt(live), an_attempt(ended, ended=True)],
        nodes=[a_node("node")],
        queues=[a_queue()],
        compute_environments=[an_environment()],
        policies=[a_policy(today=0.1)],
        definitions=[JobDefinition(name="work", revision=1, arn="arn")],
        usages=[ShareUsage(queue="queue", share="today", vcpu_s=1.5)],
        events=[an_event(1, "job-000001"), an_event(2, "job-000002")],
        totals=Totals(jobs=2, succeeded=1, nano_usd={"ce": 250_000_000}),
        counters=Counters(job_seq=2, event_seq=2, node=1),
    )


# ---- keeping and finding again


def test_a_look_changes_nothing_and_tells_who_leads(database: Database) -> None:
    looker = database.store()
    empty = looker.look()
    assert (empty.schema_version, empty.compute_environments) == (0, ())
    assert looker.look().schema_version == 0
    store = database.open()
    store.commit(some_changes())
    assert store.take_lease("http://here:1#a", NOW, 10) is not None
    view = looker.look()
    looker.close()
    assert view.schema_version == view.newest_version > 0
    assert (view.leader, view.leads_until) == ("http://here:1#a", NOW + 10_000)
    assert view.compute_environments == (an_environment(),)


def test_an_empty_database_is_an_empty_world(store: Store) -> None:
    snapshot = store.load()
    assert not any(getattr(snapshot, name) for name in ("jobs", "attempts", "nodes", "queues"))
    assert (snapshot.totals, snapshot.counters) == (Totals(), Counters())
    assert (store.events_since(0, 10), store.first_event_seq()) == ([], 0)


def test_everything_alive_is_there_after_a_new_start(database: Database) -> None:
    meant = some_changes()
    first = database.open()
    first.commit(meant)
    first.close()
    snapshot = database.open().load()
    assert snapshot.jobs == meant.jobs_added[:1]
    assert snapshot.attempts == meant.attempts[:1]
    for name in ("nodes", "queues", "compute_environments", "policies", "definitions", "usages"):
        assert getattr(snapshot, name) == getattr(meant, name), name
    assert (snapshot.totals, snapshot.counters) == (meant.totals, meant.counters)


@ANY
@given(data=st.data())
def test_a_job_comes_back_as_it_was_with_all_its_attempts(
    store: Store, data: st.DataObject
) -> None:
    number = len(store.list_jobs(JobQuery())) + 1
    job = data.draw(any_struct(Job))
    spec = msgspec.structs.replace(job.spec, job_id=JobId(f"job-{number}"), seq=number)
    job = msgspec.structs.replace(job, spec=spec)
    attempt = msgspec.structs.replace(data.draw(any_struct(Attempt)), job_id=job.job_id)
    store.commit(Changes(jobs_added=[job], attempts=[attempt]))
    assert store.find_jobs([job.job_id]) == [job]
    assert store.find_attempts([job.job_id], [attempt.index]) == [attempt]
    snapshot = store.load()
    assert (job in snapshot.jobs) == (job.stopped_at is None)
    assert (attempt in snapshot.attempts) == (attempt.end is None)
    later = data.draw(any_struct(Job, spec=st.just(spec)))
    store.commit(Changes(jobs=[later]))
    assert store.find_jobs([job.job_id]) == [later]


@ANY
@given(data=st.data())
def test_every_other_noun_comes_back_as_it_was(store: Store, data: st.DataObject) -> None:
    kinds: dict[str, Any] = {
        "nodes": Node,
        "queues": JobQueue,
        "compute_environments": ComputeEnvironment,
        "policies": SchedulingPolicy,
        "definitions": JobDefinition,
        "usages": ShareUsage,
        "totals": Totals,
        "counters": Counters,
    }
    name = data.draw(st.sampled_from(sorted(kinds)))
    noun = data.draw(any_struct(kinds[name]))
    is_one = name in ("totals", "counters")
    changes = Changes()
    setattr(changes, name, noun if is_one else [noun])
    store.commit(changes)
    found = getattr(store.load(), name)
    if is_one:
        assert found == noun
    elif name == "nodes":
        assert (noun in found) == (noun.ended_at is None)
    else:
        assert noun in found


@ANY
@given(data=st.data())
def test_an_event_comes_back_as_it_was(store: Store, data: st.DataObject) -> None:
    last = store.events_since(0, LATER)
    seq = last[-1].seq + 1 if last else 1
    event = msgspec.structs.replace(data.draw(any_struct(JobEvent)), seq=seq)
    store.commit(Changes(events=[event]))
    assert store.events_since(seq - 1, 10) == [event]


def test_what_is_committed_twice_is_there_once(database: Database) -> None:
    store = database.open()
    store.commit(some_changes())
    once = database.rows()
    store.commit(some_changes())
    assert database.rows() == once


def test_a_finished_job_leaves_the_living_and_is_still_found(store: Store) -> None:
    job = a_live_job(1)
    attempt = an_attempt(job)
    store.commit(Changes(jobs_added=[job], attempts=[attempt], nodes=[a_node("node")]))
    done, ended = finished(job), an_attempt(job, ended=True)
    gone = msgspec.structs.replace(a_node("node"), ended_at=NOW)
    store.commit(Changes(jobs=[done], attempts=[ended], nodes=[gone]))
    snapshot = store.load()
    assert (snapshot.jobs, snapshot.attempts, snapshot.nodes) == ([], [], [])
    assert store.find_jobs([job.job_id]) == [done]
    assert store.find_attempts([job.job_id]) == [ended]
    assert store.list_jobs(JobQuery(statuses=("SUCCEEDED",))) == [done]


def test_what_is_deleted_is_gone_and_nothing_else(store: Store) -> None:
    store.commit(Changes(queues=[a_queue("one"), a_queue("two")], policies=[a_policy("one")]))
    store.commit(Changes(deleted=[("job_queue", "one"), ("job_queue", "never was")]))
    snapshot = store.load()
    assert [queue.name for queue in snapshot.queues] == ["two"]
    assert [policy.name for policy in snapshot.policies] == ["one"]


def test_equal_parts_of_many_jobs_are_loaded_once_and_what_changes_is_not_shared(
    store: Store,
) -> None:
    """A million jobs of one definition fit in memory because they carry it once."""
    store.commit(Changes(jobs_added=[a_live_job(n, pod=b"p" * 1_000) for n in (1, 2)]))
    one, two = store.load().jobs
    assert one.spec.pod is two.spec.pod
    assert one.spec.resources is two.spec.resources
    assert one.running is not two.running
    assert one.tries is not two.tries


def test_everything_that_changes_about_a_job_is_kept(store: Store) -> None:
    assert {"spec", *rows.STATE_FIELDS} == set(Job.__struct_fields__)
    job = a_live_job(1)
    job.runnable_at, job.runnable_again_at = 1, 2
    store.commit(Changes(jobs_added=[job]))
    assert store.load().jobs == [job]


# ---- looking for jobs


def test_only_finished_jobs_have_an_end(store: Store) -> None:
    good, bad, live = (
        finished(a_live_job(1)),
        finished(a_live_job(2), succeeded=False),
        a_live_job(3),
    )
    store.commit(Changes(jobs_added=[good, bad, live]))
    asked = [good.job_id, bad.job_id, live.job_id, JobId("nobody")]
    ends = store.find_ends(asked)
    assert ends == {job.job_id: ended(job) for job in (good, bad)}
    assert [end.succeeded for end in ends.values()] == [True, False]
    assert store.find_ends([]) == {}


def test_the_end_of_an_array_says_which_of_its_children_failed(store: Store) -> None:
    array = finished(a_live_job(1, size=3), succeeded=False)
    array.succeeded, array.failed = ((0, 1), (2, 3)), ((1, 2),)
    store.commit(Changes(jobs_added=[array]))
    end = Ended(succeeded=False, array_size=3, failed=((1, 2),))
    assert store.find_ends([array.job_id]) == {array.job_id: end}


def test_a_token_finds_its_job_alive_or_finished(store: Store) -> None:
    jobs = [a_live_job(1, token="one"), finished(a_live_job(2, token="two")), a_live_job(3)]
    store.commit(Changes(jobs_added=jobs))
    found = store.find_tokens(["one", "two", "three", "ONE"])
    assert found == {"one": "job-000001", "two": "job-000002"}


def test_a_task_finds_its_newest_job(store: Store) -> None:
    """In whatever order its tries were committed."""
    jobs = [a_live_job(n, task_key="a|task") for n in (2, 3, 1)]
    store.commit(Changes(jobs_added=[*jobs, finished(a_live_job(4, task_key="another"))]))
    found = store.find_task_jobs(["a|task", "another", "nobody's"])
    assert found == {"a|task": "job-000003", "another": "job-000004"}


def test_as_many_ids_may_be_asked_for_as_one_likes(store: Store) -> None:
    jobs = [a_live_job(number) for number in range(1, 2_501)]
    store.commit(Changes(jobs_added=jobs))
    found = store.find_jobs([*(job.job_id for job in jobs), JobId("nobody")])
    assert sorted(job.job_id for job in found) == [job.job_id for job in jobs]


def test_attempts_of_a_job_or_of_one_index_come_oldest_first(store: Store) -> None:
    job = a_live_job(1, size=3)
    attempts = [an_attempt(job, number, index=index) for number in (2, 1) for index in (2, 0)]
    store.commit(Changes(jobs_added=[job], attempts=attempts))
    found = [(attempt.index, attempt.number) for attempt in store.find_attempts([job.job_id])]
    assert found == [(0, 1), (0, 2), (2, 1), (2, 2)]
    assert [attempt.number for attempt in store.find_attempts([job.job_id], [2])] == [1, 2]
    assert store.find_attempts([job.job_id], [1]) == []


NAMES = ("load", "Load", "load_1", "loadX1", "50%", "reload", "")
PATTERNS = (*NAMES, "load*", "LOAD_*", "*", "5*", "load_*", "%", "_oad")
DEFINITIONS = ("work:1", "work:10", "Work:1", "work_2:1", "workX2:1")
DEFINITION_PATTERNS = ("work", "work:1", "work*", "Work", "work_2", "work_*", "work:1*", "none")


@ANY
@given(
    name=st.none() | st.sampled_from(PATTERNS),
    definition=st.none() | st.sampled_from(DEFINITION_PATTERNS),
    queue=st.sampled_from(["queue", "other"]),
    share=st.sampled_from([None, None, "", "today"]),
    before=st.none() | st.integers(NOW, NOW + 45),
    after=st.none() | st.integers(NOW, NOW + 45),
    before_seq=st.none() | st.integers(1, 45),
    statuses=st.sets(st.sampled_from([s.value for s in TERMINAL])),
    limit=st.integers(1, 50),
)
def test_a_list_from_the_store_is_what_the_same_filters_leave_of_the_jobs_in_memory(
    database: Database, statuses: set[str], limit: int, before: Any, after: Any, **asked: Any
) -> None:
    """ListJobs joins both, so they must mean the same."""
    jobs, store = listed_jobs(database)
    query = JobQuery(
        statuses=tuple(sorted(statuses)),
        limit=limit,
        created_before=before,
        created_after=after,
        **asked,
    )
    meant = [
        job
        for job in reversed(jobs)
        if job.spec.queue == query.queue
        and matches(job, query)
        and (not statuses or (job.is_finished and job.end_status in statuses))
    ]
    assert store.list_jobs(query) == meant[:limit]


def listed_jobs(database: Database) -> tuple[list[Job], Store]:
    """Forty jobs of all kinds, committed when they are first asked for."""
    store = database.open()
    draw = random.Random(1)
    jobs: list[Job] = []
    for number in range(1, 41):
        job = a_live_job(
            number,
            name=draw.choice(NAMES),
            definition=draw.choice(DEFINITIONS),
            queue=draw.choice(["queue", "other"]),
            share=draw.choice(["", "today"]),
        )
        end = draw.choice([None, True, False])
        jobs.append(job if end is None else finished(job, succeeded=end))
    if not store.find_jobs([jobs[0].job_id]):
        store.commit(Changes(jobs_added=jobs))
    return jobs, store


def test_pages_give_every_job_once_while_new_ones_arrive(store: Store) -> None:
    store.commit(Changes(jobs_added=[a_live_job(number) for number in range(1, 26)]))
    seen: list[int] = []
    page = store.list_jobs(JobQuery(queue="queue", limit=10))
    while page:
        seen += [job.spec.seq for job in page]
        store.commit(Changes(jobs_added=[a_live_job(100 + len(seen))]))
        page = store.list_jobs(JobQuery(queue="queue", limit=10, before_seq=seen[-1]))
    assert seen == list(range(25, 0, -1))


# ---- events, and forgetting


def test_events_are_read_on_from_a_cursor_in_order(store: Store) -> None:
    job_ids = ["job-000001", "job-000002"]
    store.commit(Changes(events=[an_event(seq, job_ids[seq % 2]) for seq in (3, 1, 2, 5, 4)]))
    assert [event.seq for event in store.events_since(0, 3)] == [1, 2, 3]
    assert [event.seq for event in store.events_since(3, 3)] == [4, 5]
    assert store.events_since(5, 3) == []
    assert [event.seq for event in store.events_since(1, 9, JobId(job_ids[1]))] == [3, 5]
    assert store.first_event_seq() == 1


def with_old_jobs(store: Store) -> None:
    """Job n of five ended at NOW + n, with an attempt and the events 2n - 1 and 2n; job 6 lives on."""
    jobs = [finished(a_live_job(number), at=NOW + number) for number in range(1, 6)]
    attempts = [an_attempt(job, ended=True) for job in jobs]
    events = [
        an_event(2 * number - k, job.job_id) for number, job in enumerate(jobs, 1) for k in (1, 0)
    ]
    live = a_live_job(6)
    store.commit(
        Changes(
            jobs_added=[*jobs, live],
            attempts=[*attempts, an_attempt(live)],
            events=[*events, an_event(11, live.job_id)],
        )
    )


def test_old_jobs_are_forgotten_in_small_pieces_the_oldest_first(store: Store) -> None:
    with_old_jobs(store)
    assert store.forget_before(NOW + 4, 2) == 2
    assert [job.spec.seq for job in store.list_jobs(JobQuery())] == [6, 5, 4, 3]
    assert store.forget_before(NOW + 4, 2) == 1
    assert store.forget_before(NOW + 4, 2) == 0
    assert [job.spec.seq for job in store.list_jobs(JobQuery())] == [6, 5, 4]


def test_with_a_job_go_its_attempts_and_events_and_nobody_elses(store: Store) -> None:
    with_old_jobs(store)
    store.forget_before(NOW + 4, 100)
    assert store.find_attempts([JobId("job-000003")]) == []
    assert len(store.find_attempts([JobId("job-000004")])) == 1
    assert [event.seq for event in store.events_since(0, 100)] == [7, 8, 9, 10, 11]
    assert len(store.load().attempts) == 1


def test_what_lives_is_never_forgotten(store: Store) -> None:
    node = a_node("node")
    store.commit(Changes(jobs_added=[a_live_job(1)], nodes=[node]))
    assert store.forget_before(NOW * 2, 100) == 0
    assert store.load().nodes == [node]
    store.commit(Changes(nodes=[msgspec.structs.replace(node, ended_at=NOW)]))
    store.forget_before(NOW * 2, 100)
    assert len(store.load().jobs) == 1


def test_a_cursor_before_anything_forgotten_has_a_gap_even_if_older_events_are_kept(
    store: Store,
) -> None:
    """1 an old job lives on 2 a later one is forgotten 3 who read only up to the first has missed something."""
    live, ended = a_live_job(1), finished(a_live_job(2))
    events = [an_event(1, live.job_id), an_event(2, ended.job_id), an_event(3, live.job_id)]
    store.commit(Changes(jobs_added=[live, ended], events=events))
    store.forget_before(NOW + 1, 10)
    assert store.first_event_seq() == 3


def test_after_all_events_are_forgotten_old_cursors_still_have_a_gap(database: Database) -> None:
    store = database.open()
    store.commit(Changes(jobs_added=[finished(a_live_job(1))], events=[an_event(7, "job-000001")]))
    store.forget_before(NOW + 1, 10)
    store.close()
    assert database.open().first_event_seq() == 8


# ---- all or nothing


@contextmanager
def failing_events(database: Database) -> Iterator[None]:
    """The database refuses the table that is written last."""
    if database.is_sqlite:
        database.run(
            "CREATE TRIGGER broken BEFORE INSERT ON eksbatch_events "
            "BEGIN SELECT RAISE(ABORT, 'broken'); END"
        )
    else:
        database.run(
            "CREATE FUNCTION breaks() RETURNS trigger LANGUAGE plpgsql "
            "AS $$ BEGIN RAISE EXCEPTION 'broken'; END $$",
            "CREATE TRIGGER broken BEFORE INSERT ON eksbatch_events EXECUTE FUNCTION breaks()",
        )
    yield
    database.run("DROP TRIGGER broken" + ("" if database.is_sqlite else " ON eksbatch_events"))


def test_a_commit_that_fails_half_way_leaves_nothing(database: Database) -> None:
    store = database.open()
    store.commit(Changes(queues=[a_queue()], counters=Counters(job_seq=0)))
    before = database.rows()
    with failing_events(database):
        with pytest.raises(StoreError, match="broken"):
            store.commit(some_changes())
        assert database.rows() == before
    store.commit(some_changes())
    assert len(store.load().jobs) == 1


def test_two_jobs_never_get_one_number(database: Database) -> None:
    store = database.open()
    store.commit(Changes(jobs_added=[a_live_job(1)]))
    twin = a_live_job(2, seq=1)
    with pytest.raises(StoreError):
        store.commit(Changes(jobs_added=[twin], queues=[a_queue()]))
    assert store.load().queues == []


def test_readers_see_whole_commits_and_wait_for_none(database: Database) -> None:
    """1 one commits job after job 2 others load meanwhile: jobs, attempts and counters of one moment."""
    store = database.open()
    done = threading.Event()

    def look() -> int:
        reader, looks = database.open(), 0
        while not done.is_set() or not looks:
            snapshot = reader.load()
            assert len(snapshot.jobs) == len(snapshot.attempts) == snapshot.counters.job_seq
            looks += 1
        return looks

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(look) for _ in range(2)]
        try:
            for number in range(1, 151):
                job = a_live_job(number)
                counters = Counters(job_seq=number)
                store.commit(
                    Changes(jobs_added=[job], attempts=[an_attempt(job)], counters=counters)
                )
        finally:
            done.set()
        assert all(reader.result(WAIT_S) for reader in readers)


def test_a_transaction_under_way_keeps_no_reader_waiting(database: Database) -> None:
    store = database.open()
    store.commit(Changes(queues=[a_queue()]))
    with database.engine.connect() as other:
        if database.is_sqlite:
            other.exec_driver_sql("BEGIN IMMEDIATE")
        other.execute(sqlalchemy.text("DELETE FROM eksbatch_nouns"))
        assert len(store.load().queues) == 1
        other.rollback()


def test_what_was_acknowledged_is_there_after_kill_9(database: Database) -> None:
    """1 a process commits and says so 2 kill -9, again and again 3 all it said is there, and nothing by half."""
    database.open().close()
    said, draw = 0, random.Random(20261125)
    for _ in range(KILLS):
        said = kill_after(database.url, said + draw.randrange(1, 40))
        database.wait_until_alone()
        store = database.open()
        writer.check(store, at_least=said)
        store.close()


def kill_after(url: str, number: int) -> int:
    """Let a writer commit up to that number and kill it; the last number that it said."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.contracts.writer", url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(WAIT_S, process.kill)
        timer.start()
        last = 0
        for line in process.stdout:
            last = int(line)
            if last >= number:
                process.kill()
        timer.cancel()
    assert last >= number, "the writer ended by itself, or said nothing"
    return last


# ---- one owner


def test_a_lease_is_taken_kept_and_given_back(database: Database) -> None:
    one, two = database.open(), database.open()
    assert one.lease_owner() is None
    assert one.take_lease("one", NOW, 10) == 1
    assert one.take_lease("one", NOW + 9_000, 10) == 1
    assert two.take_lease("two", NOW + 18_999, 10) is None
    assert two.lease_owner() == "one"
    assert one.take_lease("one", NOW + 15_000, 0) == 1
    assert two.take_lease("two", NOW + 15_000, 10) == 2
    assert one.lease_owner() == "two"


def test_a_lease_that_ran_out_may_be_taken_and_its_old_owner_knows(database: Database) -> None:
    one, two = database.open(), database.open()
    one.take_lease("one", NOW, 10)
    assert two.take_lease("two", NOW + 10_000, 10) == 2
    assert one.take_lease("one", NOW + 10_001, 10) is None
    assert one.take_lease("one", NOW + 20_000, 10) == 3


def test_of_many_that_begin_at_once_one_gets_the_lease(database: Database) -> None:
    stores = {f"service-{number}": database.open() for number in range(4)}
    for round_ in range(10):
        database.run("DELETE FROM eksbatch_leases")
        together = threading.Barrier(len(stores))

        def take(name: str, now: int = NOW + round_, start: threading.Barrier = together) -> bool:
            start.wait(WAIT_S)
            return stores[name].take_lease(name, now, 10) is not None

        with ThreadPoolExecutor(len(stores)) as pool:
            took = dict(zip(stores, pool.map(take, stores), strict=True))
        owners = [name for name, has in took.items() if has]
        assert owners == [stores["service-0"].lease_owner()]


def test_who_lost_the_lease_writes_nothing_any_more(database: Database) -> None:
    old, new = database.open(), database.open()
    old.take_lease("old", NOW, 10)
    with_old_jobs(old)
    new.take_lease("new", NOW + 10_000, 10)
    before = database.rows()
    for _ in range(2):
        with pytest.raises(Fenced):
            old.commit(some_changes())
        with pytest.raises(Fenced):
            old.forget_before(NOW * 2, 10)
    assert old.take_lease("old", NOW + 10_000, 10) is None
    with pytest.raises(Fenced):
        old.commit(some_changes())
    assert database.rows() == before
    assert len(old.load().jobs) == 1
    new.commit(Changes(queues=[a_queue()]))


def test_who_takes_the_lease_back_may_write_again(database: Database) -> None:
    one, two = database.open(), database.open()
    one.take_lease("one", NOW, 10)
    two.take_lease("two", NOW + 10_000, 10)
    one.take_lease("one", NOW + 30_000, 10)
    one.commit(Changes(queues=[a_queue()]))
    with pytest.raises(Fenced):
        two.commit(Changes(queues=[a_queue("another")]))
    assert [queue.name for queue in two.load().queues] == ["queue"]


def test_a_lease_that_was_lost_with_its_row_fences_too(database: Database) -> None:
    """Somebody restored a backup under a running service."""
    store = database.open()
    store.take_lease("one", NOW, 10)
    database.run("DELETE FROM eksbatch_leases")
    with pytest.raises(Fenced):
        store.commit(Changes(queues=[a_queue()]))


# ---- keys


def test_keys_are_kept_replaced_and_deleted(store: Store) -> None:
    held = Rights(role="user", queues=("one", "two"))
    first = AccessKey(access_key="A", note="a note", created_at=0)
    second = AccessKey(access_key="B", note="", created_at=0, rights=held)
    replaced = AccessKey(access_key="A", note="replaced", created_at=NOW)
    for key, secret in ((first, "secret"), (second, "another"), (replaced, "new")):
        store.put_key(key, secret)
    assert store.list_keys() == [second, replaced]
    assert store.keys() == {
        "A": SigningKey(secret="new"),
        "B": SigningKey(secret="another", rights=held),
    }
    assert store.delete_key("A")
    assert not store.delete_key("A")
    assert store.keys().keys() == {"B"}


# ---- start-up does not read what is over


def test_a_load_reads_the_living_by_their_index(database: Database) -> None:
    """Finished jobs and their attempts are kept for days: there are many more of them."""
    database.open()
    with database.engine.connect() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET enable_seqscan = off")
        for what, condition in (
            ("jobs", "stopped_at IS NULL"),
            ("attempts", "live"),
            ("nodes", "ended_at IS NULL"),
        ):
            plan = plan_of(database, connection, load_query(what))
            assert f"eksbatch_{what}_live" in plan, (condition, plan)


def load_query(what: str) -> str:
    queries = {"jobs": sql.LIVE_JOBS, "attempts": sql.LIVE_ATTEMPTS, "nodes": sql.LIVE_NODES}
    return str(queries[what])


def plan_of(database: Database, connection: sqlalchemy.Connection, query: str) -> str:
    explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
    found: Iterable[Any] = connection.exec_driver_sql(f"{explain} {query}")
    return "\n".join(str(tuple(row)) for row in found)
