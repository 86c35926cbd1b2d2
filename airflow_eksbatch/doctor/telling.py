"""A report for people at a terminal or a pipe, and as JSON."""

from __future__ import annotations

import textwrap
from typing import TextIO

import msgspec

from airflow_eksbatch.core.planner.words import number_of
from airflow_eksbatch.doctor.findings import Finding, Mark, Report

MARKS_WIDTH = max(map(len, Mark))
INDENT = " " * (2 + MARKS_WIDTH + 2)
COLORS = {Mark.OK: "green", Mark.WARNING: "yellow", Mark.WRONG: "bold red", Mark.UNSEEN: "dim"}
# Longer lines are hard to read, however wide the terminal.
WIDTH_MAX = 110
WIDTH_MIN = 40


def tell(report: Report, out: TextIO) -> None:
    """On a terminal as wide as that, with colours; elsewhere a finding is a line, so that `grep` finds all of it."""
    if out.isatty():
        _tell_eyes(report, out)
    else:
        for line in lines_of(report):
            print(line, file=out)


def lines_of(report: Report, width: int | None = None) -> list[str]:
    lines: list[str] = []
    for group in report.groups:
        lines += [group.title]
        for finding in group.findings:
            lines += _finding_lines(finding, width)
        lines.append("")
    return [*lines, summary_of(report)]


def _finding_lines(finding: Finding, width: int | None) -> list[str]:
    """Commands are never broken: they are there to be copied."""
    first = f"  {finding.mark:<{MARKS_WIDTH}}  "
    if width is None:
        lines = [first + finding.sentence]
    else:
        lines = textwrap.wrap(
            finding.sentence,
            max(WIDTH_MIN, min(width, WIDTH_MAX)),
            initial_indent=first,
            subsequent_indent=INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines + [f"{INDENT}{line}" for line in finding.fix.splitlines()]


def summary_of(report: Report) -> str:
    counts = {mark: report.count(mark) for mark in Mark}
    words = {Mark.WARNING: number_of(counts[Mark.WARNING], "warning")}
    return ", ".join(words.get(mark, f"{n} {mark}") for mark, n in counts.items() if n) + "."


def _tell_eyes(report: Report, out: TextIO) -> None:
    """rich knows what the terminal can do, and NO_COLOR."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out, highlight=False)

    def show(*parts: Text | str) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)

    for group in report.groups:
        show(Text(group.title, "bold"))
        for finding in group.findings:
            first, *more = _finding_lines(finding, console.width)
            mark_width = 2 + MARKS_WIDTH
            show(Text(first[:mark_width], COLORS[finding.mark]), first[mark_width:])
            fixes = len(finding.fix.splitlines())
            for number, line in enumerate(more):
                show(Text(line, "cyan" if number >= len(more) - fixes else ""))
        show("")
    worst = next((m for m in (Mark.WRONG, Mark.WARNING) if report.count(m)), Mark.OK)
    show(Text(summary_of(report), COLORS[worst]))


def json_of(report: Report) -> object:
    """Groups in the order in which they were looked at."""
    groups = msgspec.to_builtins(report.groups)
    return {"groups": groups, "exitCode": report.exit_code}
