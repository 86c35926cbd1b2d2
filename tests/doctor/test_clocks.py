"""How far clocks are apart: never more certain than one question and its answer can be."""

from __future__ import annotations

import pytest

from airflow_eksbatch.doctor.clocks import (
    SIGV4,
    Patience,
    Stopwatch,
    judge_clock,
    lease_patience,
    skew_from,
    skew_from_date,
)
from airflow_eksbatch.doctor.findings import Group, Mark

PATIENCE = Patience(warning_s=5, wrong_s=10, because="it hurts")


@pytest.mark.parametrize(
    ("their_s", "asked_s", "answered_s", "certain_s"),
    [
        (100.0, 100.0, 100.1, 0.0),  # the same
        (100.0, 100.9, 101.0, 0.0),  # it says 100 up to 100.99
        (100.0, 95.0, 105.0, 0.0),  # a slow answer tells nothing
        (100.0, 110.0, 110.5, 9.0),  # we are ahead, by 9.0 to 10.5
        (100.0, 80.0, 80.5, 19.5),  # we are behind
    ],
)
def test_clocks_are_apart_only_as_far_as_is_certain(
    their_s: float, asked_s: float, answered_s: float, certain_s: float
) -> None:
    assert skew_from(their_s, asked_s, answered_s).certain_s == pytest.approx(certain_s)


def test_a_date_header_is_read_and_one_that_is_none_is_not_known() -> None:
    at = 1_795_646_137.0
    skew = skew_from_date("Wed, 25 Nov 2026 22:35:37 GMT", at + 20, at + 20)
    assert skew is not None
    assert str(skew) == "19 s ahead of"
    assert skew_from_date("soon", at, at) is None
    assert Stopwatch(lambda: at).skew_to_date("") is None


@pytest.mark.parametrize(
    ("asked_s", "mark", "words"),
    [
        (100.0, Mark.OK, "agree"),
        (108.0, Mark.WARNING, "Our clock is 7 s ahead of that of them: it hurts."),
        (80.0, Mark.WRONG, "Our clock is 20 s behind that of them: it hurts."),
    ],
)
def test_a_clock_is_judged_by_what_depends_on_it(asked_s: float, mark: Mark, words: str) -> None:
    group = Group(title="")
    judge_clock(group, "them", skew_from(100.0, asked_s, asked_s), PATIENCE)
    (found,) = group.findings
    assert found.mark is mark
    assert words in found.sentence
    assert bool(found.fix) == (mark is not Mark.OK)


def test_a_lease_hurts_after_seconds_and_a_signature_after_minutes() -> None:
    lease = lease_patience(10)
    assert lease.warning_s < lease.wrong_s < 10
    assert SIGV4.wrong_s == 300


def test_a_clock_that_is_not_told_is_not_seen() -> None:
    group = Group(title="")
    judge_clock(group, "them", None, PATIENCE)
    assert group.findings[0].mark is Mark.UNSEEN
