"""The command line, as typed: what it prints for people, for scripts and for other programs, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_eksbatch.cli import main
from tests.service.older import an_older_database, schema_version
from tests.service.running import RunningService, a_definition, submit

WAIT_S = 120
Cli = Callable[..., subprocess.CompletedProcess[str]]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "airflow_eksbatch.cli", *words]


def environ(**more: str) -> dict[str, str]:
    """Nothing of the caller's own, in a terminal that could show colours."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("EKSBATCH", "AWS"))}
    return {**kept, "TERM": "xterm-256color", **more}


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), capture_output=True, text=True, env=environ(**more), timeout=WAIT_S
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(tmp_path_factory.mktemp("cli"), "--launch-delay-s", "0.1") as running:
        yield running


@pytest.fixture(scope="module")
def jobs(service: RunningService) -> dict[str, str]:
    """One that succeeded, one that failed, an array, one that runs."""
    batch = service.batch()
    made = {
        "good": submit(batch, a_definition(batch, "echo", "hello", name="good"), "good-job"),
        "bad": submit(
            batch, a_definition(batch, "sh", "-c", "echo no; exit 3", name="bad"), "bad-job"
        ),
        "array": submit(
            batch,
            a_definition(batch, "sh", "-c", "exit $((AWS_BATCH_JOB_ARRAY_INDEX == 1))", name="arr"),
            "array-job",
            arrayProperties={"size": 3},
        ),
    }
    service.wait_for_ends(set(made.values()))
    made["live"] = submit(batch, a_definition(batch, "sleep", "900", name="live"), "live-job")
    service.wait_for(lambda e: e["jobId"] == made["live"] and e["status"] == "RUNNING")
    return made


@pytest.fixture
def cli(service: RunningService) -> Cli:
    """Ask the service of this file."""
    return lambda *words: run(*words, EKSBATCH_URL=service.url)


def said(ended: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one sentence on stderr of a command that did not do what was asked."""
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    return line


def columns(text: str) -> list[list[str]]:
    """The words of each line below the head of a table."""
    return [line.split() for line in text.splitlines()[1:]]


# ---- lists


def test_jobs_are_listed_newest_first_one_a_line_without_colours(
    cli: Cli, jobs: dict[str, str]
) -> None:
    ended = cli("jobs")
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert ended.stdout.splitlines()[0].split()[:4] == ["job", "id", "name", "queue"]
    rows = columns(ended.stdout)
    assert [row[1] for row in rows] == ["live-job", "array-job", "bad-job", "good-job"]
    assert {row[0] for row in rows} == set(jobs.values())
    assert all(line == line.rstrip() for line in ended.stdout.splitlines())


def test_jobs_are_chosen_by_status_name_queue_and_number(cli: Cli, jobs: dict[str, str]) -> None:
    def ids(*words: str) -> list[str]:
        return [row[0] for row in columns(cli("jobs", *words).stdout)]

    assert ids("--status", "FAILED") == [jobs["array"], jobs["bad"]]
    assert ids("--status", "RUNNING", "--status", "SUCCEEDED") == [jobs["live"], jobs["good"]]
    assert ids("--name", "GOOD*") == [jobs["good"]]
    assert ids("--name", "bad-job", "--status", "SUCCEEDED") == []
    assert ids("--name", "*", "--status", "FAILED", "--limit", "1") == [jobs["array"]]
    assert ids("--name", "*", "--status", "SUCCEEDED", "--limit", "1") == [jobs["good"]]
    assert ids("--limit", "2") == [jobs["live"], jobs["array"]]
    assert ids("--queue", "default", "--limit", "1") == [jobs["live"]]
    assert "does not exist" in said(cli("jobs", "--queue", "nowhere"), 1)


def test_json_is_what_the_api_says(cli: Cli, jobs: dict[str, str]) -> None:
    rows = json.loads(cli("jobs", "--json").stdout)
    assert [row["jobId"] for row in rows][-1] == jobs["good"]
    assert rows[0]["status"] == "RUNNING"
    job = json.loads(cli("job", jobs["good"], "--json").stdout)
    assert job["job"]["status"] == "SUCCEEDED"
    assert job["story"][-1]["status"] == "SUCCEEDED"
    queues = json.loads(cli("queues", "--json").stdout)
    assert queues["jobQueues"][0]["jobQueueName"] == "default"
    assert queues["summary"]["jobs"]["FAILED"] == 2
    why = json.loads(cli("explain", jobs["live"], "--json").stdout)
    assert why["status"] == "RUNNING"


def test_queues_and_environments_are_shown_with_their_totals(
    cli: Cli, jobs: dict[str, str]
) -> None:
    ended = cli("queues")
    assert ended.returncode == 0
    for words in ("on-demand, spot", "1 RUNNING", "2 FAILED", "EC2", "SPOT", "VALID"):
        assert words in ended.stdout


# ---- money


def test_costs_are_a_table_that_ends_with_their_sum(cli: Cli, jobs: dict[str, str]) -> None:
    ended = cli("cost")
    assert ended.returncode == 0, ended.stderr
    head, _, titles, *rows = ended.stdout.splitlines()
    assert head.startswith("instances, ")
    assert titles.split()[:2] == ["job", "queue"]
    assert rows[0].split()[:2] == ["default", "jobs"]
    assert {row.split()[1] for row in rows[1:-1]} <= {"idle", "boot"}
    usd = [float(row.split()[-4]) for row in rows]
    assert rows[-1].startswith("total ")
    assert sum(usd[:-1]) == pytest.approx(usd[-1], abs=1e-6 * len(rows))


@pytest.mark.parametrize("by", ["share", "dag", "environment", "market", "hour", "job"])
def test_costs_are_told_by_whatever_one_asks(cli: Cli, jobs: dict[str, str], by: str) -> None:
    found = json.loads(cli("cost", "--by", by, "--json").stdout)
    assert found["by"] == by
    assert found["total"]["total"]["nanoUsd"] > 0
    lines = cli("cost", "--by", by, "--csv", "--since", "2d").stdout.splitlines()
    assert len(lines) == len(found["rows"]) + 1
    assert lines[0].endswith("On-Demand USD,Spot USD,USD,% of all,instance s,vCPU h")


def test_a_job_says_what_it_cost(cli: Cli, jobs: dict[str, str]) -> None:
    (line,) = [x for x in cli("job", jobs["good"]).stdout.splitlines() if x.startswith("cost ")]
    assert " USD for " in line
    assert line.endswith((", On-Demand", ", Spot"))


def test_a_time_that_is_none_is_refused_with_an_example(cli: Cli) -> None:
    assert "2026-05-01T06:00" in said(cli("cost", "--since", "yesterday"))
    both = ("--since", "2026-05-02", "--until", "2026-05-01")
    assert "--since 2026-05-02 must be before --until 2026-05-01." in said(cli("cost", *both))
    assert "--since 2130-01-01 must be before now." in said(cli("cost", "--since", "2130-01-01"))


# ---- one job


def test_a_job_is_told_and_the_exit_code_says_whether_it_failed(
    cli: Cli, jobs: dict[str, str]
) -> None:
    good, bad = cli("job", jobs["good"]), cli("job", jobs["bad"])
    assert (good.returncode, bad.returncode, cli("job", jobs["live"]).returncode) == (0, 1, 0)
    assert "good-job" in good.stdout
    assert "SUCCEEDED" in good.stdout
    assert "bad:1" in bad.stdout
    assert "Essential container in task exited" in bad.stdout
    array = cli("job", jobs["array"])
    assert "2 SUCCEEDED, 1 FAILED" in array.stdout
    child = cli("job", f"{jobs['array']}:1")
    assert child.returncode == 1
    assert f"{jobs['array']}:1" in child.stdout


def test_output_is_printed_as_the_job_wrote_it(cli: Cli, jobs: dict[str, str]) -> None:
    assert cli("job", jobs["good"], "--log").stdout == "hello\n"
    assert cli("job", jobs["good"], "--follow").stdout == "hello\n"
    failed = cli("job", jobs["bad"], "--log", "--attempt", "1")
    assert (failed.returncode, failed.stdout) == (1, "no\n")
    assert said(cli("job", jobs["bad"], "--log", "--attempt", "2"), 1).endswith("does not exist.")
    assert f"{jobs['array']}:0" in said(cli("job", jobs["array"], "--log"))


def test_output_is_followed_until_the_job_ends(service: RunningService, cli: Cli) -> None:
    batch = service.batch()
    line = "for i in 1 2 3; do echo $i; sleep 0.3; done; exit 5"
    job_id = submit(batch, a_definition(batch, "sh", "-c", line, name="steps"))
    ended = cli("job", job_id, "--follow")
    assert (ended.returncode, ended.stdout) == (1, "1\n2\n3\n")


def begin(*program: str, **more: str) -> subprocess.Popen[str]:
    """A command in the foreground: Ctrl-C counts, also when these tests were begun in the background."""
    return subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(**more),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def interrupted(child: subprocess.Popen[str], last_words: str) -> tuple[int, str]:
    """How it ends by Ctrl-C after it said that, and what it says on stderr."""
    assert child.stdout is not None
    assert child.stdout.readline() == last_words
    child.send_signal(signal.SIGINT)
    try:
        _, errors = child.communicate(timeout=WAIT_S)
    finally:
        child.kill()
    return child.returncode, errors


def test_ctrl_c_ends_following_quietly(service: RunningService, jobs: dict[str, str]) -> None:
    batch = service.batch()
    line = "echo begun; sleep 900"
    job_id = submit(batch, a_definition(batch, "sh", "-c", line, name="endless"))
    child = begin(*command("job", job_id, "--follow"), EKSBATCH_URL=service.url)
    assert interrupted(child, "begun\n") == (-signal.SIGINT, "")


DEAF = """
import sys, time
from airflow_eksbatch import cli

class Deaf:
    def __del__(self):
        print("here", flush=True)
        time.sleep(900)

def stream(self, path):
    Deaf()
    time.sleep(900)
    yield b""

cli.Client.stream = stream
sys.argv = ["eksbatch", "job", "x", "--follow", "--endpoint-url", "http://127.0.0.1:1"]
raise SystemExit(cli.main())
"""


def test_ctrl_c_is_not_lost_where_python_loses_exceptions() -> None:
    """In a destructor, which stands for all such moments."""
    assert interrupted(begin(sys.executable, "-c", DEAF), "here\n") == (-signal.SIGINT, "")


def test_why_a_job_waits_is_said(service: RunningService, cli: Cli, jobs: dict[str, str]) -> None:
    batch = service.batch()
    waiting = submit(batch, "good", "waits", dependsOn=[{"jobId": jobs["live"]}])
    ended = cli("explain", waiting)
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"{waiting} is PENDING.\n")
    assert "live-job" in ended.stdout
    batch.terminate_job(jobId=waiting, reason="seen")
    over = cli("explain", jobs["bad"])
    assert "It has ended as FAILED: Essential container in task exited." in over.stdout


def test_a_submit_is_tried_from_options_a_file_or_standard_input(
    service: RunningService, cli: Cli, jobs: dict[str, str], tmp_path: Path
) -> None:
    """And nothing is submitted."""
    options = ("--job-queue", "default", "--job-definition", "good", "--share-identifier", "today")
    before = service.get("/v1/eksbatch/summary")["jobs"]
    told = cli("dry-run", *options)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("It would be taken by job queue default: good:")
    assert "It asks for 0.25 vCPUs, 128 MiB." in told.stdout
    request = {
        "jobQueue": "default",
        "jobDefinition": "good",
        "shareIdentifier": "today",
        "jobName": "x",
    }
    file = tmp_path / "request.json"
    file.write_text(json.dumps({**request, "arrayProperties": {"size": 2}}))
    assert cli("dry-run", str(file)).returncode == 0
    as_json = json.loads(cli("dry-run", str(file), "--json").stdout)
    assert as_json["podProperties"]["containers"][0]["image"] == "busybox"
    file.write_text(json.dumps({**request, "arrayProperties": {"size": 1}}))
    assert "arrayProperties.size must be 2" in said(cli("dry-run", str(file)), 1)
    assert "jobDefinition is required" in said(cli("dry-run", "--job-queue", "default"), 1)
    assert "does not exist" in said(cli("dry-run", *options, "--job-queue", "none"), 1)
    for content, why in (
        ("[]", "is a JSON object"),
        ("{", "is not JSON"),
        ("[" * 99_999, "is not JSON"),
    ):
        file.write_text(content)
        assert why in said(cli("dry-run", str(file)))
    assert "cannot be read" in said(cli("dry-run", str(tmp_path)))
    file.write_text(json.dumps({**request, "arrayProperties": {"size": 2}}))
    assert "It is an array of 2 children, each of which asks" in cli("dry-run", str(file)).stdout
    piped = subprocess.run(
        command("dry-run", "-"),
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environ(EKSBATCH_URL=service.url),
    )
    assert piped.stdout.splitlines()[:2] == told.stdout.splitlines()[:2]
    assert service.get("/v1/eksbatch/summary")["jobs"] == before


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"timout": {}}, 'Unknown parameter in input: "timout"'),
        ({"ArrayProperties": {"size": 2}}, 'Unknown parameter in input: "ArrayProperties"'),
        ({"retryStrategy": {"attempt": 2}}, 'Unknown parameter in retryStrategy: "attempt"'),
        ({"tags": 1, "timout": {}}, "Invalid type for parameter tags"),
        ({"jobName": None}, "Invalid type for parameter jobName"),
    ],
)
def test_a_submit_that_the_aws_cli_would_refuse_is_not_tried(
    cli: Cli, jobs: dict[str, str], tmp_path: Path, members: dict[str, Any], why: str
) -> None:
    """What the file leaves out may come by options."""
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"jobName": "x", "shareIdentifier": "today", **members}))
    options = ("--job-queue", "default", "--job-definition", "good")
    line = said(cli("dry-run", str(file), *options))
    assert f"{file} is not the input of a SubmitJob: " in line
    assert why in line


@pytest.mark.parametrize("words", [("job",), ("explain",), ("job", "--log"), ("job", "--follow")])
def test_a_job_that_does_not_exist_is_exit_code_1(cli: Cli, words: tuple[str, ...]) -> None:
    line = said(cli(*words, "no-such-job"), 1)
    assert line == "eksbatch: Job no-such-job does not exist."


def test_a_job_may_be_named_by_its_arn(cli: Cli, jobs: dict[str, str]) -> None:
    arn = "arn:aws:batch:us-east-1:000000000000:job/"
    for job_id in (jobs["good"], f"{jobs['array']}:0"):
        assert cli("job", arn + job_id).stdout == cli("job", job_id).stdout != ""
    assert cli("explain", arn + jobs["live"]).stdout.startswith(f"{jobs['live']} is RUNNING.")


@pytest.mark.parametrize("name", ["", ".", "..", "../summary", "a b", "arn:aws:batch:::job/", "é"])
def test_what_is_no_job_id_is_refused(cli: Cli, name: str) -> None:
    assert f"{name!r} is no job id" in said(cli("job", name))


# ---- where people sit


def test_a_terminal_gets_colours_and_its_own_width(
    service: RunningService, jobs: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command("jobs"), stdout=theirs, env=environ(EKSBATCH_URL=service.url, COLUMNS="200")
    )
    os.close(theirs)
    blocks: list[bytes] = []
    with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:
        while block := terminal.read(4096):
            blocks.append(block)
    assert child.wait(WAIT_S) == 0
    text = b"".join(blocks).decode()
    assert "\x1b[" in text
    assert "FAILED" in text


def test_a_reader_that_stops_early_is_no_error(
    service: RunningService, jobs: dict[str, str]
) -> None:
    line = f"{' '.join(command('jobs', '--json'))} | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        env=environ(EKSBATCH_URL=service.url),
        timeout=WAIT_S,
    )
    assert (ended.stdout.split(), ended.stderr) == (["[", "0"], "")


# ---- what can go wrong before anything is asked


def test_without_a_service_the_sentence_says_how_to_get_one(tmp_path: Path) -> None:
    line = said(run("jobs", EKSBATCH_HOME=str(tmp_path)))
    assert "eksbatch local" in line
    for url in ("http://127.0.0.1:1", "127.0.0.1:1", "nonsense", "ftp://x"):
        assert "--endpoint-url" in said(run("queues", "--endpoint-url", url))


def test_local_beside_one_that_runs_says_what_is_not_in_effect(service: RunningService) -> None:
    home = ("--home", str(service.home))
    plain = run("local", *home)
    assert (plain.returncode, plain.stdout) == (0, f"{service.url}\n")
    assert plain.stderr == "eksbatch: A service of this home runs already.\n"
    ended = run("local", *home, "--port", "5555", "--leave-when-idle", "9")
    assert (ended.returncode, ended.stdout) == (0, f"{service.url}\n")
    assert "end it first for --port, --leave-when-idle to be in effect" in ended.stderr


@pytest.mark.parametrize("place", ["/etc/passwd", "/proc/foo"])
@pytest.mark.parametrize(
    "words", [("local",), ("serve", "--database", "postgresql://u:p@127.0.0.1:1/n")]
)
def test_a_home_that_cannot_be_is_said_with_its_option(place: str, words: tuple[str, ...]) -> None:
    line = said(run(*words, EKSBATCH_HOME=place, EKSBATCH_PORT="0"))
    assert f"The directory {place} cannot be used" in line
    assert "--home or EKSBATCH_HOME" in line


@pytest.mark.parametrize("url", ["localhost:8642", "garbage", "ftp://x", "http://", "http://x:y"])
def test_a_url_that_is_none_is_said_also_where_there_are_keys(url: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    meant = f"must be http://HOST:PORT or https://HOST:PORT, not {url!r}."
    assert said(run("queues", "--endpoint-url", url, **keys)).endswith(f"--endpoint-url {meant}")
    assert said(run("queues", EKSBATCH_URL=url, **keys)).endswith(f"EKSBATCH_URL {meant}")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("jbos",),
        ("jobs", "--colour"),
        ("jobs", "--limit", "many"),
        ("jobs", "--status", "DONE"),
        ("job",),
        ("keys",),
        ("keys", "lend"),
        ("keys", "delete"),
        ("serve", "--beat-ms", "fast"),
        ("serve", "--database", "oracle://x"),
        ("migrate", "--database", "sqlite:////dev/null/x.db"),
    ],
)
def test_a_command_that_cannot_be_is_one_sentence_and_exit_code_2(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    line = said(run(*words, EKSBATCH_HOME=str(tmp_path)))
    assert line.startswith("eksbatch")
    assert "Traceback" not in line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("jobs", "--limit", "0"), "--limit: must be at least 1, not 0"),
        (("cost", "--limit", "-1"), "--limit: must be at least 1, not -1"),
        (("job", "x", "--attempt", "0"), "--attempt: must be at least 1, not 0"),
        (("local", "--leave-when-idle", "-1"), "--leave-when-idle: must be at least 0, not -1"),
        (("local", "--leave-when-idle", "nan"), "--leave-when-idle: must be at least 0, not nan"),
        (("local", "--leave-when-idle", "inf"), "--leave-when-idle: must be at most 1000000000"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_help_names_every_command_and_every_setting() -> None:
    text = run("--help").stdout
    for name in ("serve", "local", "jobs", "job", "queues", "explain", "simulate", "keys"):
        assert f"    {name}" in text
    assert "EKSBATCH_URL" in run("jobs", "--help").stdout
    assert "EKSBATCH_DATABASE" in run("serve", "--help").stdout


# ---- keys and migrate


def test_keys_are_made_listed_and_deleted(tmp_path: Path) -> None:
    def keys(*words: str) -> subprocess.CompletedProcess[str]:
        return run("keys", *words, EKSBATCH_HOME=str(tmp_path))

    began = int(time.time() * 1000)
    made = keys("create", "--note", "for tests")
    assert stat.S_IMODE((tmp_path / "eksbatch.db").stat().st_mode) == 0o600
    assert made.returncode == 0
    told = dict(line.split("=", 1) for line in made.stdout.splitlines())
    assert set(told) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, "to be evaluated by a shell"
    assert "not shown again" in made.stderr
    key = told["AWS_ACCESS_KEY_ID"]
    listed = keys("list")
    assert key in listed.stdout
    assert told["AWS_SECRET_ACCESS_KEY"] not in listed.stdout
    as_json: list[dict[str, Any]] = json.loads(keys("list", "--json").stdout)
    (row,) = as_json
    assert (row["accessKeyId"], row["note"]) == (key, "for tests")
    assert began <= row["createdAt"] <= time.time() * 1000
    assert listed.stdout.splitlines()[0].split() == [
        "access",
        "key",
        "id",
        "role",
        "job",
        "queues",
        "created",
        "note",
    ]
    assert "for tests" in listed.stdout
    assert keys("delete", key).returncode == 0
    assert said(keys("delete", key), 1) == f"eksbatch: There is no key {key}."
    assert json.loads(keys("list", "--json").stdout) == []


@pytest.mark.parametrize("options", [("--json",), ("--home", "{home}"), ("--database", "{url}")])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_key_may_be_named_before_and_behind_the_options(
    tmp_path: Path, options: tuple[str, ...], is_last: bool
) -> None:
    given = [o.format(home=tmp_path, url=f"sqlite:///{tmp_path}/eksbatch.db") for o in options]
    key = json.loads(run("keys", "create", "--json", EKSBATCH_HOME=str(tmp_path)).stdout)
    words = [*given, key["accessKeyId"]] if is_last else [key["accessKeyId"], *given]
    ended = run("keys", "delete", *words, EKSBATCH_HOME=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_only_a_new_key_makes_a_database(tmp_path: Path) -> None:
    """A mistyped place is said, and left as it was."""
    home, empty = tmp_path / "hoem", tmp_path / "empty.db"
    for words in (("list",), ("delete", "EKSBKEY")):
        line = said(run("keys", *words, "--home", str(home)))
        assert f"There is no database {home}/eksbatch.db: name another by --home" in line
        assert not home.exists()
        empty.touch()
        assert "is empty" in said(run("keys", *words, "--database", f"sqlite:///{empty}"))
    assert run("keys", "create", "--home", str(home)).returncode == 0
    assert len(json.loads(run("keys", "list", "--json", "--home", str(home)).stdout)) == 1


def test_keys_have_a_role_and_may_be_held_to_job_queues(tmp_path: Path) -> None:
    def keys(*words: str) -> subprocess.CompletedProcess[str]:
        return run("keys", *words, EKSBATCH_HOME=str(tmp_path))

    for options in (
        (),
        ("--role", "viewer"),
        ("--queue", "one", "--queue", "two", "--queue", "one"),
    ):
        assert keys("create", "--note", " ".join(options), *options).returncode == 0
    listed = json.loads(keys("list", "--json").stdout)
    assert [(row["role"], row["jobQueues"]) for row in listed] == [
        ("admin", []),
        ("viewer", []),
        ("user", ["one", "two"]),
    ]
    assert "one, two" in keys("list").stdout
    assert "leave out --role admin" in said(keys("create", "--role", "admin", "--queue", "one"))
    assert "not 'a queue'" in said(keys("create", "--queue", "a queue"))
    assert "keys create" in said(keys("list", "--queue", "one"))
    assert "leave out viewer" in said(keys("create", "viewer"))
    assert "invalid choice: 'root'" in said(keys("create", "--role", "root"))
    assert json.loads(keys("list", "--json").stdout) == listed


def test_migrate_makes_the_schema_and_is_harmless_twice(tmp_path: Path) -> None:
    for told in (
        "A new database was made: it has the newest schema.\n",
        "The database has the newest schema.\n",
    ):
        ended = run("migrate", EKSBATCH_HOME=str(tmp_path))
        assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", told)
    assert (tmp_path / "eksbatch.db").exists()
    assert json.loads(run("migrate", "--json", EKSBATCH_HOME=str(tmp_path)).stdout) == {
        "migrated": True
    }


def test_keys_leave_the_schema_of_an_older_release_alone(tmp_path: Path) -> None:
    older = an_older_database(tmp_path / "eksbatch.db")
    for words in (("list",), ("create",), ("delete", "EKSBKEY")):
        assert "eksbatch migrate" in said(run("keys", *words, EKSBATCH_HOME=str(tmp_path)))
    assert schema_version(tmp_path / "eksbatch.db") == older
    assert run("migrate", EKSBATCH_HOME=str(tmp_path)).returncode == 0
    assert schema_version(tmp_path / "eksbatch.db") == older + 1
    assert json.loads(run("keys", "list", "--json", EKSBATCH_HOME=str(tmp_path)).stdout) == []


def test_a_schema_is_not_brought_forward_under_a_service_of_an_older_release(
    tmp_path: Path,
) -> None:
    in_an_hour = (int(time.time()) + 3_600) * 1000
    older = an_older_database(tmp_path / "eksbatch.db", "http://127.0.0.1:9#older", in_an_hour)
    assert "Stop it first" in said(run("migrate", EKSBATCH_HOME=str(tmp_path)))
    assert schema_version(tmp_path / "eksbatch.db") == older


def test_the_help_of_local_says_that_it_takes_any_free_port() -> None:
    page = " ".join(run("local", "--help").stdout.split())
    assert "[EKSBATCH_PORT, default 0]" in page
    assert "[EKSBATCH_PORT, default 8642]" in " ".join(run("serve", "--help").stdout.split())
