"""Work that comes in one burst is bought for as a whole: thin and fat jobs share machines only if both are known."""

from __future__ import annotations

import msgspec

# Work may come without a pause; after so many of them it has waited long enough.
PAUSES_MAX = 3


class Gathering(msgspec.Struct):
    """When work came that nothing was bought for yet. Not kept: after a start it is bought for at once."""

    has_news: bool = False
    """Something has become runnable in this step."""
    first_at: int | None = None
    last_at: int = 0

    def due(self, now: int, pause_ms: int) -> int:
        """From when on instances may be bought (epoch ms): nothing more has come for so long."""
        if self.has_news:
            self.has_news, self.last_at = False, now
            self.first_at = now if self.first_at is None else self.first_at
        if self.first_at is None:
            return now
        due = min(self.last_at + pause_ms, self.first_at + PAUSES_MAX * pause_ms)
        if due <= now:
            self.first_at = None
        return due
