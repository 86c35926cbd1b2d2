"""An AWS account behind a door that also knows rights and quotas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cloud.account import Account
from tests.doctor.rights_door import RightsDoor


@pytest.fixture(scope="session")
def open_door() -> Iterator[RightsDoor]:
    with RightsDoor().open() as door:
        assert isinstance(door, RightsDoor)
        yield door


@pytest.fixture
def door(open_door: RightsDoor) -> RightsDoor:
    open_door.empty()
    return open_door


@pytest.fixture
def account(door: RightsDoor) -> Account:
    return Account(door)
