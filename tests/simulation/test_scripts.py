"""Stories told to the simulator, word for word. Renew: `make golden`; read the difference."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from airflow_eksbatch.cli import main

SCRIPTS = Path(__file__).parent / "scripts"


def played(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    assert main(["simulate", "--script", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_golden_transcript(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """A transcript is a script: what is behind its prompts is played, all of it must come out again."""
    said = played(capsys, path)
    if os.environ.get("GOLDEN") == "write":
        path.write_text(said)
    assert said == path.read_text()


def test_a_script_is_read_without_prompts_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.txt"
    lines = (SCRIPTS / "pipeline.txt").read_text().splitlines()
    commands = [line.removeprefix("> ") for line in lines if line.startswith("> ")]
    plain.write_text("\n\n".join(commands))
    assert played(capsys, plain) == (SCRIPTS / "pipeline.txt").read_text()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("fly", "line 1, 'fly': there is no such command"),
        ("queue", "say queue NAME ENVIRONMENT"),
        ("environment a EC3 8", "say environment NAME EC2|SPOT MAX_VCPUS"),
        ("environment a EC2 8 types=m99", "m99"),
        ("environment a EC2 8 color=red", "color= is not understood here"),
        ("environment a EC2 eight", "eight is not a whole number"),
        ("wait", "say wait 5m | end"),
        ("wait for-ever", "for-ever is no time"),
        ("\nwait 1m\nrefuse spot", "line 3, 'refuse spot': there is no such compute environment"),
        ("environment a EC2 8\nreclaim a", "only Spot"),
        ("environment a EC2 8\nqueue q a weights=today", "SHARE=FACTOR"),
        ("environment a EC2 8\nqueue q a\nsubmit j q vcpus=900", "No environment can hold"),
        ("environment a EC2 8\nqueue q a\nsubmit j q vcpus=nan", "must be above zero"),
        ("environment a EC2 8\nqueue q a\nsubmit j q nodes=0", "at least one node"),
        ("environment a EC2 8\nqueue q a\nsubmit j q nodes=2 count=2", "an array has no nodes="),
        ("environment a EC2 8 min=8\nwait end", "min= keeps instances"),
        (
            "environment a EC2 8 types=c6i.large\nqueue q a\nsubmit j q\nrefuse a\nwait end",
            "Jobs wait for ever",
        ),
        ("why nobody", "there is no such job"),
        ("submit 'j", "cannot be read"),
        ("a=b", "begins with no command"),
    ],
)
def test_a_line_that_cannot_be_obeyed_is_named_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, said: str
) -> None:
    path = tmp_path / "script.txt"
    path.write_text(script)
    assert main(["simulate", "--script", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_what_the_service_refuses_is_part_of_the_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("submit j nowhere\ncrash\nwhy j\n"))
    assert main(["simulate", "--script", "-"]) == 0
    said = capsys.readouterr().out
    assert "refused: Job queue nowhere does not exist" in said
    assert "nobody knows: the service is down" in said


def test_a_script_and_options_that_say_the_same_exclude_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["simulate", "--script", "-", "--jobs", "1:1:1:1"]) == 2
    assert "leave out --jobs" in capsys.readouterr().err


def test_a_script_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--script", "no/such/file"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_every_command_is_in_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("help\n"))
    assert main(["simulate", "--script", "-"]) == 0
    said = capsys.readouterr().out
    for path in SCRIPTS.glob("*.txt"):
        for line in path.read_text().splitlines():
            if line.startswith("> ") and not line.startswith("> #"):
                assert f"\n{line.split()[1]} " in said, line
