"""One moto behind its door for all tests of this room; each test finds it empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cloud.account import Account
from tests.cloud.door import Door


@pytest.fixture(scope="session")
def open_door() -> Iterator[Door]:
    with Door().open() as door:
        yield door


@pytest.fixture
def door(open_door: Door) -> Door:
    open_door.empty()
    return open_door


@pytest.fixture
def account(door: Door) -> Account:
    return Account(door)
