"""What a look has found: a line with a mark for each check, and what mends it; pure."""

from __future__ import annotations

import enum

import msgspec

ALL_WELL, SOMETHING_WRONG = 0, 1


class Mark(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    UNSEEN = "not seen"
    """Nothing is known: whoever looks may not see it. Nothing is wrong with that."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One check. `check` is its name for programs, the rest is for people."""

    check: str
    mark: Mark
    sentence: str
    fix: str = ""
    """What to do, commands as they can be run; lines."""


class Group(msgspec.Struct, kw_only=True):
    """What was looked at together."""

    title: str
    findings: list[Finding] = []

    def ok(self, check: str, sentence: str) -> None:
        self.findings.append(Finding(check=check, mark=Mark.OK, sentence=sentence))

    def warn(self, check: str, sentence: str, fix: str) -> None:
        self.findings.append(Finding(check=check, mark=Mark.WARNING, sentence=sentence, fix=fix))

    def wrong(self, check: str, sentence: str, fix: str) -> None:
        self.findings.append(Finding(check=check, mark=Mark.WRONG, sentence=sentence, fix=fix))

    def unseen(self, check: str, sentence: str, fix: str = "") -> None:
        self.findings.append(Finding(check=check, mark=Mark.UNSEEN, sentence=sentence, fix=fix))


class Report(msgspec.Struct, kw_only=True):
    groups: list[Group] = []

    def group(self, title: str) -> Group:
        """A new one, filled in by whoever looks."""
        made = Group(title=title)
        self.groups.append(made)
        return made

    def count(self, mark: Mark) -> int:
        return sum(finding.mark is mark for group in self.groups for finding in group.findings)

    @property
    def exit_code(self) -> int:
        return SOMETHING_WRONG if self.count(Mark.WRONG) else ALL_WELL
