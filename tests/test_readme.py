"""What READMEs show is true: the DAG is the file, every command exists, every make target and path too."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from airflow_eksbatch.cli import make_parser
from airflow_eksbatch.service.telemetry import Telemetry
from airflow_eksbatch.store.migrations import STEPS
from tests.airflow.processes import wait_for
from tests.service.running import RunningService

ROOT = Path(__file__).resolve().parent.parent
READMES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith((".", "node_modules")) for part in path.relative_to(ROOT).parts)
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for path in READMES:
        for found in BLOCK.finditer(path.read_text()):
            if found[1] == language:
                yield path, found[2]


def commands(program: str) -> Iterator[tuple[Path, list[str]]]:
    """Lines of plain blocks that call a program, without comments and environment variables."""
    for path, text in blocks(""):
        for line in text.splitlines():
            words = line.partition("  #")[0].split()
            while words and re.match(r"[A-Z_]+=", words[0]):
                del words[0]
            if words and words[0] == program:
                yield path, words[1:]


def test_the_first_screen_shows_a_dag_that_is_a_file() -> None:
    shown = [text for path, text in blocks("python") if path == ROOT / "README.md"]
    assert shown[0] == (ROOT / "dags" / "hello.py").read_text()
    assert len([line for line in shown[0].splitlines() if line.strip()]) <= 12


def test_every_python_block_compiles() -> None:
    for path, text in blocks("python"):
        compile(text, str(path), "exec")


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {(path.name, words[0]) for path, words in commands("make") if words}
    assert shown, "no README shows a make target"
    assert {(name, target) for name, target in shown if target not in targets} == set()


def test_every_command_line_that_is_shown_is_understood() -> None:
    shown = list(commands("eksbatch"))
    assert shown, "no README shows the command line"
    wrong = [
        f"{path.name}: eksbatch {' '.join(words)}" for path, words in shown if not parses(words)
    ]
    assert wrong == []


def test_every_metric_that_is_shown_exists() -> None:
    page = generate_latest(Telemetry().registry).decode()
    there = set(re.findall(r"^# HELP (\w+)", page, re.MULTILINE))
    for path in READMES:
        shown = set(re.findall(r"(?<![\w/.])eksbatch_[a-z_]+", path.read_text()))
        wrong = {name for name in shown if name.removesuffix("_bucket") not in there}
        assert wrong <= {"eksbatch_default"}, f"{path.name} names {wrong}"


def test_the_changelog_says_which_schema_a_release_has() -> None:
    said = re.findall(
        r"^Schema of the database: version (\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert said, "docker/operating.md sends people there before an upgrade"
    assert int(said[0]) == len(STEPS)


def test_the_map_shows_the_rooms_that_the_linter_keeps_apart() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    rooms, inside = (one["layers"] for one in contracts["contracts"] if one["type"] == "layers")
    shown = (ROOT / "airflow_eksbatch" / "README.md").read_text().split("```")[1].strip()
    lines = [line.partition("      ")[0] for line in shown.splitlines()]
    assert lines == [*rooms[:-1], f"{rooms[-1]}:  {' > '.join(inside)}"]


def test_every_yaml_block_can_be_read() -> None:
    for _, text in blocks("yaml"):
        assert yaml.safe_load(text)


def parses(words: list[str]) -> bool:
    try:
        make_parser().parse_args(words)
    except SystemExit as end:
        return not end.code
    return True


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_into_a_page_lead_to_one_of_its_headings(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text()):
        page = (path.parent / target) if target else path
        headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in slugs, f"{path.name} links to {target}#{anchor}"


def test_every_promise_names_tests_that_are_there() -> None:
    page = (ROOT / "README.md").read_text().partition("\n## Promises")[2]
    rows = re.findall(r"^\| (?!promise)(.+) \| (`.+`) \|$", page, re.MULTILINE)
    assert len(rows) == page.count("\n| ") - 1, "a promise without a test"
    for promise, kept_by in rows:
        for name in re.findall(r"`([^`]+)`", kept_by):
            assert name == "make demo" or (ROOT / name).exists(), f"{promise}: {name}"


def test_help_lists_every_target() -> None:
    said = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "test", "check", "bench", "serve"):
        assert f"make {target} " in said


def test_what_the_first_page_types_into_the_aws_cli_works_on_the_embedded_service(
    tmp_path: Path,
) -> None:
    """As typed, in one shell; only the port is filled in, and nothing of whoever sits here is known."""
    page = (ROOT / "README.md").read_text()
    shown = [text for _, text in BLOCK.findall(page) if "aws batch" in text]
    assert len(shown) == 2, "the README has other blocks with the AWS CLI than this test knows"
    service = RunningService(tmp_path / "home", "--launch-delay-s", "0.1")
    service.is_open = False
    with service:
        port = service.url.rpartition(":")[2]
        script = "\n".join(["set -e", *shown]).replace(":PORT", f":{port}")
        environ = {name: value for name, value in os.environ.items() if "AWS" not in name}
        path = f"{Path(sys.executable).parent}:{environ['PATH']}"
        environ |= {"HOME": str(tmp_path), "PATH": path, "EKSBATCH_HOME": str(service.home)}

        def follow(*command: str) -> str:
            done = subprocess.run(command, env=environ, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        def ended() -> list[dict[str, str]]:
            asked = ("--json", "--status", "SUCCEEDED", "--status", "FAILED")
            return json.loads(follow("eksbatch", "jobs", *asked))

        follow("bash", "-c", script)
        (job,) = wait_for("the job to end", ended, within_s=60)
        assert job["status"] == "SUCCEEDED"
