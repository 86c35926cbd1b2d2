"""One copy of what many jobs say in the same words, for as long as one of them is alive."""

from __future__ import annotations


class KeptOnce:
    """Counts who has a value: a million jobs of one definition carry its pod once, and one of last year not at all."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, value: bytes) -> bytes:
        """The copy that is there, or else this one."""
        return self._kept.get(value, (value, 0))[0]

    def enter(self, value: bytes) -> None:
        """One more has it."""
        copy, number = self._kept.get(value, (value, 0))
        self._kept[copy] = (copy, number + 1)

    def leave(self, value: bytes) -> None:
        """One that had entered has it no more."""
        copy, number = self._kept[value]
        if number > 1:
            self._kept[copy] = (copy, number - 1)
        else:
            del self._kept[value]
