"""Services for tests, each in a directory of its own, all ended afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service.running import RunningService

MakeService = Callable[..., RunningService]


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[MakeService]:
    """Start `eksbatch local` in a home, by default the test's own."""
    made: list[RunningService] = []

    def make(*options: str, home: Path | None = None, command: str = "local") -> RunningService:
        service = RunningService(home or tmp_path / "home", *options, command=command)
        made.append(service)
        return service

    yield make
    for service in made:
        service.end()


@pytest.fixture
def service(make_service: MakeService) -> RunningService:
    """A service that is ready, with instances that come at once."""
    return make_service("--launch-delay-s", "0.1", "--idle-s", "5").start()
