"""Virtual time: a heap of what will happen, and a clock that jumps from one to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

# Epoch ms at which simulated time begins: large enough that nothing is before zero.
BEGIN = 1_700_000_000_000

Action = Callable[[], None]


class Timeline:
    """Things due at the same moment happen in the order in which they were put down."""

    def __init__(self) -> None:
        self.now = BEGIN
        self._numbers = count()
        self._heap: list[tuple[int, int, Action]] = []

    @property
    def elapsed_s(self) -> float:
        return (self.now - BEGIN) / 1000

    @property
    def next_at(self) -> int | None:
        """When the next thing happens."""
        return self._heap[0][0] if self._heap else None

    def after(self, ms: int, action: Action) -> None:
        """Let this happen so much later."""
        heapq.heappush(self._heap, (self.now + max(0, ms), next(self._numbers), action))

    def move_to(self, at: int) -> None:
        """Time passes and nothing happens."""
        assert self.next_at is None or at <= self.next_at, "time would pass over something"
        self.now = max(self.now, at)

    def run_next(self) -> None:
        """Jump to the next thing and let it happen."""
        at, _, action = heapq.heappop(self._heap)
        self.now = max(self.now, at)
        action()
