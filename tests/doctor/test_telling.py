"""What people see: whole lines for a pipe, a width and colours for a terminal; and JSON."""

from __future__ import annotations

import io
import json
import re

import pytest

from airflow_eksbatch.doctor.findings import Report
from airflow_eksbatch.doctor.telling import json_of, lines_of, tell

LONG = "A sentence that is longer than a narrow terminal is wide, so that it has to go on below."
COMMAND = "kubectl taint node --overwrite a-node batch.amazonaws.com/batch-node:NoSchedule"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def report() -> Report:
    report = Report()
    database = report.group("database")
    database.ok("database", "It is there.")
    nodes = report.group("nodes in rig")
    nodes.wrong("taint", LONG, f"{COMMAND}\n{COMMAND}")
    nodes.unseen("quota", "It may not be seen.")
    return report


def test_in_a_pipe_a_finding_is_one_line_with_its_fix_below(report: Report) -> None:
    out = io.StringIO()
    tell(report, out)
    assert out.getvalue().splitlines() == [
        "database",
        "  ok        It is there.",
        "",
        "nodes in rig",
        f"  wrong     {LONG}",
        f"            {COMMAND}",
        f"            {COMMAND}",
        "  not seen  It may not be seen.",
        "",
        "1 ok, 1 wrong, 1 not seen.",
    ]


def test_on_a_terminal_sentences_are_as_wide_as_it_and_commands_are_whole(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    tell(report, out)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", out.getvalue())
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in out.getvalue().splitlines()]
    assert [line for line in lines if len(line) > 60] == [f"            {COMMAND}"] * 2
    assert " ".join(line.strip() for line in lines[4:6]) == f"wrong     {LONG}"


def test_colours_are_for_terminals_only(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, pipe = Terminal(), io.StringIO()
    tell(report, terminal)
    tell(report, pipe)
    assert "\x1b[1;31m  wrong" in terminal.getvalue()
    assert "\x1b" not in pipe.getvalue()


def test_as_json_every_finding_has_its_mark_and_the_exit_code_is_there(report: Report) -> None:
    told = json.loads(json.dumps(json_of(report)))
    assert told["exitCode"] == report.exit_code == 1
    assert [g["title"] for g in told["groups"]] == ["database", "nodes in rig"]
    assert told["groups"][1]["findings"][0] == {
        "check": "taint",
        "mark": "wrong",
        "sentence": LONG,
        "fix": f"{COMMAND}\n{COMMAND}",
    }


def test_what_is_not_seen_is_no_fault() -> None:
    report = Report()
    report.group("policies").unseen("policies", "They may not be read.")
    assert report.exit_code == 0
    assert lines_of(report)[-1] == "1 not seen."
