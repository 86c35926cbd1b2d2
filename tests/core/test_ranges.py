"""Index ranges behave as sets of whole numbers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_eksbatch.core.model import ranges
from airflow_eksbatch.core.model.ranges import Ranges

members = st.sets(st.integers(0, 40), max_size=20)
quick = settings(max_examples=150, derandomize=True, deadline=None)


def of(numbers: set[int]) -> Ranges:
    made = ranges.EMPTY
    for number in sorted(numbers, key=lambda n: (n % 7, n)):
        made = ranges.add(made, number)
    return made


def is_tidy(made: Ranges) -> bool:
    """Sorted, disjoint, never empty, neighbours merged."""
    flat = [edge for pair in made for edge in pair]
    return flat == sorted(set(flat))


@quick
@given(members, members)
def test_union_minus_and_intersect_are_those_of_sets(left: set[int], right: set[int]) -> None:
    a, b = of(left), of(right)
    for made, wanted in (
        (ranges.union(a, b), left | right),
        (ranges.minus(a, b), left - right),
        (ranges.intersect(a, b), left & right),
    ):
        assert set(ranges.indices(made)) == wanted
        assert ranges.count(made) == len(wanted)
        assert is_tidy(made)


@quick
@given(members, st.integers(0, 25))
def test_take_gives_the_lowest_and_leaves_the_rest(numbers: set[int], limit: int) -> None:
    taken, rest = ranges.take(of(numbers), limit)
    assert taken == sorted(numbers)[:limit]
    assert set(ranges.indices(rest)) == numbers - set(taken)
    assert is_tidy(rest)


@quick
@given(members, st.integers(0, 40))
def test_add_remove_and_contains(numbers: set[int], number: int) -> None:
    made = of(numbers)
    assert ranges.contains(made, number) == (number in numbers)
    assert ranges.contains(ranges.add(made, number), number)
    assert not ranges.contains(ranges.remove(made, number), number)


def test_equal_sets_are_equal_however_they_were_made() -> None:
    assert of({1, 2, 3, 7}) == ranges.union(((1, 4),), ((7, 8),)) == ((1, 4), (7, 8))


def test_ten_thousand_indices_cost_one_pair() -> None:
    assert len(ranges.whole(10_000)) == 1
    assert ranges.whole(1) is ranges.ONE
