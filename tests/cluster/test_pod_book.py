"""What of our pods is told, once, and what follows when news were lost."""

from __future__ import annotations

import pytest

from airflow_eksbatch.cluster.kube.pod_book import Hosts, PodBook
from airflow_eksbatch.core.engine.facts import (
    Fact,
    PodEnded,
    PodRunning,
    PodSeen,
    PodsListed,
    PodStuck,
)
from airflow_eksbatch.core.model.job import PodName
from tests.cluster.objects import MANAGED, UNMANAGED, a_kube_pod, ended, running, waiting

P = PodName("p")


@pytest.fixture
def book() -> PodBook:
    book = PodBook(Hosts(host_of=lambda node: f"i-{node}", is_there=lambda node: node == "ip-1"))
    book.put_environments({MANAGED.uuid: MANAGED, UNMANAGED.uuid: UNMANAGED}, 0, 0)
    return book


def kinds(facts: list[Fact]) -> list[type[Fact]]:
    return [type(fact) for fact in facts]


def test_each_step_of_a_life_is_told_once(book: PodBook) -> None:
    assert kinds(book.put(a_kube_pod(), 0, 1)) == [PodSeen]
    assert book.put(a_kube_pod(), 0, 2) == []
    assert kinds(book.put(a_kube_pod(status=running()), 0, 3)) == [PodRunning]
    assert kinds(book.put(a_kube_pod(status=ended()), 0, 4)) == [PodEnded]
    assert book.drop(a_kube_pod(status=ended()), 0, 5) == []


def test_a_pod_that_runs_is_told_once_more_when_its_address_is_known(book: PodBook) -> None:
    """Also by a list after a gap; and who listens later is told of both at once."""
    placed = running() | {"podIP": "10.1.2.3"}
    for name, tell in (
        ("watched", lambda pod: book.put(pod, 0, 2)),
        ("listed", lambda pod: book.listed([pod], 0, 2)),
    ):
        (_, bare) = book.put(a_kube_pod(name, status=running()), 0, 1)
        assert isinstance(bare, PodRunning)
        assert bare.address == ""
        (again,) = (f for f in tell(a_kube_pod(name, status=placed)) if not isinstance(f, PodEnded))
        assert again == PodRunning(pod=PodName(name), at=bare.at, address="10.1.2.3")
        assert book.put(a_kube_pod(name, status=placed), 0, 3) == []
    assert again in book.again(4)


def test_an_address_that_is_first_seen_at_the_end_comes_before_it(book: PodBook) -> None:
    book.put(a_kube_pod(status=running()), 0, 1)
    last = book.put(a_kube_pod(status=ended() | {"podIP": "10.1.2.3"}), 0, 2)
    assert kinds(last) == [PodRunning, PodEnded]


def test_a_pod_whose_address_is_known_at_once_is_told_once(book: PodBook) -> None:
    placed = running() | {"podIP": "10.1.2.3"}
    (_, told) = book.put(a_kube_pod(status=placed), 0, 1)
    assert isinstance(told, PodRunning)
    assert told.address == "10.1.2.3"
    assert book.put(a_kube_pod(status=placed), 0, 2) == []


def test_a_pod_that_is_gone_has_ended(book: PodBook) -> None:
    book.put(a_kube_pod(status=running()), 0, 1)
    (end,) = book.drop(a_kube_pod(status=running()), 0, 2)
    assert isinstance(end, PodEnded)
    assert end.end.status_reason == "Pod was deleted by somebody else"


def test_how_a_pod_was_when_it_went_says_how_it_ended(book: PodBook) -> None:
    book.put(a_kube_pod(status=running()), 0, 1)
    (end,) = book.drop(a_kube_pod(status=ended(7)), 0, 2)
    assert isinstance(end, PodEnded)
    assert end.end.exit_code == 7


def test_after_a_gap_what_is_not_there_any_more_has_ended(book: PodBook) -> None:
    """1. two pods; 2. the watch breaks; 3. one is gone, one ended, one is new."""
    book.put(a_kube_pod("gone"), 0, 1)
    book.put(a_kube_pod("went on"), 0, 1)
    facts = book.listed([a_kube_pod("went on", status=ended(1)), a_kube_pod("new")], 0, 2)
    ends = {fact.pod: fact.end.exit_code for fact in facts if isinstance(fact, PodEnded)}
    assert ends == {"gone": None, "went on": 1}
    assert [fact.pod for fact in facts if isinstance(fact, PodSeen)] == ["new"]


def test_another_pod_of_the_same_name_is_another_pod(book: PodBook) -> None:
    book.put(a_kube_pod(), 0, 1)
    facts = book.listed([a_kube_pod(metadata={"uid": "other"})], 0, 2)
    assert kinds(facts) == [PodEnded, PodSeen]


def test_pods_wait_until_their_environment_is_known() -> None:
    book = PodBook(Hosts(host_of=str, is_there=lambda node: True))
    assert book.put(a_kube_pod(status=running()), 0, 1) == []
    assert kinds(book.put_environments({MANAGED.uuid: MANAGED}, 0, 2)) == [PodSeen, PodRunning]


def test_a_full_look_names_all_but_those_that_are_being_dropped(book: PodBook) -> None:
    book.put(a_kube_pod("a"), 0, 1)
    book.put(a_kube_pod("b", status=ended()), 0, 1)
    leaving = book.get(PodName("b"))
    assert leaving is not None
    assert book.ends() == [leaving.end]
    leaving.is_leaving = True
    assert book.ends() == []
    assert book.full_look(9) == [
        PodsListed(compute_environment="ce", pods=frozenset({PodName("a")}), at=9),
        PodsListed(compute_environment="own", pods=frozenset(), at=9),
    ]


def test_a_pod_that_does_not_start_is_stuck_after_its_patience_and_told_once(
    book: PodBook,
) -> None:
    book.put(a_kube_pod(status=waiting("ErrImagePull")), 100, 1)
    assert book.stuck(399, 2) == []
    book.put(a_kube_pod(status=waiting("ImagePullBackOff", "no such image")), 300, 3)
    assert book.stuck(400, 4) == [
        PodStuck(pod=P, at=4, reason="ImagePullBackOff: no such image"),
    ]
    assert book.stuck(500, 5) == []


def test_a_pod_that_starts_after_all_is_not_stuck(book: PodBook) -> None:
    book.put(a_kube_pod(status=waiting("ErrImagePull")), 0, 1)
    book.put(a_kube_pod(status=running()), 100, 2)
    assert book.stuck(1000, 3) == []
    book.put(a_kube_pod("q", status=waiting("ErrImagePull")), 0, 4)
    book.drop(a_kube_pod("q"), 0, 5)
    assert book.stuck(1000, 6) == []


def test_pods_are_known_by_their_node_until_they_have_ended(book: PodBook) -> None:
    book.put(a_kube_pod(status=running()), 0, 1)
    assert book.are_on("ip-1")
    book.put(a_kube_pod(status=ended()), 0, 2)
    assert not book.are_on("ip-1")


def test_a_new_listener_is_told_everything_that_is_so(book: PodBook) -> None:
    book.put(a_kube_pod("a", status=running()), 0, 1)
    book.put(a_kube_pod("b", status=ended(3)), 0, 1)
    told = {(type(fact), getattr(fact, "pod", "")) for fact in book.again(2)}
    assert told == {
        *((PodSeen, name) for name in "ab"),
        *((PodRunning, name) for name in "ab"),
        (PodEnded, "b"),
    }
