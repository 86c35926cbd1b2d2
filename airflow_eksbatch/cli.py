"""`eksbatch`: run the service, and see what it does. Exit codes: 0 yes, 1 no, 2 a sentence says what is wrong."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, urlencode

from airflow_eksbatch.in_store import add_database_options, add_keys_options, keys, migrate
from airflow_eksbatch.service.settings import (
    SETTINGS,
    BadSetting,
    add_settings,
    number_from,
    read_settings,
)
from airflow_eksbatch.spending import COST_VIEWS, as_csv, cost_rows, cost_words, span_of
from airflow_eksbatch.store.port import StoreError
from airflow_eksbatch.terminal import (
    Client,
    Json,
    NotThere,
    Refused,
    Sentence,
    lasted,
    show,
    table,
    tail,
    when,
)

OK, NO, WRONG = 0, 1, 2
LOCAL = {"port": 0, "auth": "sigv4"}
"""Where `eksbatch local` differs from `serve` when nothing is said."""
LIVE = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
STATUSES = (*LIVE, "SUCCEEDED", "FAILED")
# Anything else would name another page of the service, or none.
JOB_ID = re.compile(r"[A-Za-z0-9_-]+([:#][A-Za-z0-9_-]+)?")


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; never ends in a traceback (EKSBATCH_DEBUG=1 shows it)."""
    if argv is None:
        _end_at_ctrl_c()
    try:
        given = make_parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        return given.run(given)
    except NotThere as answer:
        return say(str(answer), NO)
    except (Sentence, BadSetting, StoreError) as error:
        return say(str(error), WRONG)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get("EKSBATCH_DEBUG"):
            raise
        return say(f"{type(error).__name__}: {error}", WRONG)


def _end_at_ctrl_c() -> None:
    """As other programs end, by the signal itself, which shells tell as 130; a service that runs ends by its own handler.

    Python's KeyboardInterrupt is lost where exceptions are (in destructors, callbacks of weak references, which imports
    have), and not seen by a call that begins to wait just after the signal came. What a command writes is a transaction.
    A shell's background jobs ignore the signal, and go on doing so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def say(sentence: str, code: int) -> int:
    print(f"eksbatch: {' '.join(sentence.split())}", file=sys.stderr)
    return code


# ---- the service


def serve(given: argparse.Namespace) -> int:
    from airflow_eksbatch.service.wiring import serve_for_ever

    return serve_for_ever(read_settings(vars(given), os.environ))


def local(given: argparse.Namespace) -> int:
    from airflow_eksbatch.service.wiring import serve_embedded

    settings = read_settings(vars(given), os.environ, **LOCAL)
    options = {s.flag: getattr(given, s.name) for s in SETTINGS if s.name != "home"}
    options["--leave-when-idle"] = given.leave_when_idle
    flags = [flag for flag, value in options.items() if value is not None]
    return serve_embedded(settings, given.leave_when_idle, flags)


def doctor(given: argparse.Namespace) -> int:
    from airflow_eksbatch.doctor import examination, telling

    report = examination.examine(examination.question_from(given, os.environ))
    show(given, telling.json_of(report), lambda: telling.tell(report, sys.stdout))
    return report.exit_code


def simulate(given: argparse.Namespace) -> int:
    from airflow_eksbatch.sim import scenario

    try:
        return scenario.run(given)
    except scenario.BadScenario as error:
        raise Sentence(error.message) from error


# ---- what it does


def jobs(given: argparse.Namespace) -> int:
    client = Client(given)
    queues = given.queue or [
        q["jobQueueName"] for q in client.pages("describejobqueues", "jobQueues")
    ]
    statuses = given.status or list(STATUSES)
    # AWS lists by status or by filter, not by both.
    named = {"filters": [{"name": "JOB_NAME", "values": [given.name]}]}
    asked = [named] if given.name else [{"jobStatus": status} for status in statuses]
    rows: list[Json] = []
    for queue in queues:
        for wanted in asked:
            found = client.pages("listjobs", "jobSummaryList", {"jobQueue": queue, **wanted})
            kept = ({**row, "jobQueue": queue} for row in found if row["status"] in statuses)
            rows += islice(kept, given.limit)
    rows.sort(key=lambda row: row.get("createdAt", 0), reverse=True)
    rows = rows[: given.limit]
    return show(given, rows, lambda: table(
        "job id|name|queue|status|created|ran|why",
        [[r["jobId"], r["jobName"], r["jobQueue"], r["status"], when(r.get("createdAt")),
          lasted(r), r.get("statusReason", "")] for r in rows],
    ))  # fmt: skip


def job(given: argparse.Namespace) -> int:
    client = Client(given)
    if given.log or given.follow:
        asked = f"?follow={int(given.follow)}" + (
            f"&attempt={given.attempt}" if given.attempt else ""
        )
        for block in client.stream(f"{path_of(given.job_id)}/log{asked}"):
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
    found = client.get(path_of(given.job_id))
    if not given.log and not given.follow:
        show(given, found, lambda: tell_job(found))
    return NO if found["job"]["status"] == "FAILED" else OK


def path_of(job_id: str) -> str:
    """Where the service tells of a job, by id or ARN; behind a # nothing would be asked for. Raises Sentence."""
    named = tail(job_id) if job_id.startswith("arn:") else job_id
    if not JOB_ID.fullmatch(named):
        raise Sentence(f"{job_id!r} is no job id: `eksbatch jobs` lists them.")
    return f"/v1/eksbatch/jobs/{quote(named, safe=':')}"


def tell_job(found: Json) -> None:
    """One job for people: what it is, its story, its attempts."""
    detail = found["job"]
    array = detail.get("arrayProperties") or {}
    nodes = detail.get("nodeProperties")
    summary = {k: n for k, n in (array.get("statusSummary") or {}).items() if n}
    airflow = found.get("airflow") or {}
    facts = {
        "job": f"{detail['jobName']} ({detail['jobId']})",
        "queue": tail(detail["jobQueue"]),
        "share": detail.get("shareIdentifier"),
        "definition": tail(detail.get("jobDefinition", "")),
        "status": detail["status"],
        "why": detail.get("statusReason"),
        "array": ", ".join(f"{n} {k}" for k, n in summary.items()),
        "nodes": f"{nodes['numNodes']}, the main one is {nodes['mainNode']}" if nodes else None,
        "created": when(detail.get("createdAt")),
        "started": when(detail.get("startedAt")),
        "ended": when(detail.get("stoppedAt")),
        "Airflow": " ".join(
            str(airflow[k]) for k in ("dag_id", "run_id", "task_id") if k in airflow
        ),
        "cost": cost_words(found["cost"]),
    }
    for name, value in facts.items():
        if value:
            print(f"{name:<11}{value}")
    story = found.get("story") or []
    if story:
        print()
        table("time|of|status|attempt|exit|why", [
            [when(e["time"]), tail(e["jobId"], ":") if ":" in e["jobId"] else "", e["status"],
             e["attempt"] or "", "" if e["exitCode"] is None else e["exitCode"],
             e["statusReason"] or ""] for e in story
        ])  # fmt: skip


def queues(given: argparse.Namespace) -> int:
    client = Client(given)
    found = list(client.pages("describejobqueues", "jobQueues"))
    summary = client.get("/v1/eksbatch/summary")
    rows = [
        [
            q["jobQueueName"], q["state"], q["status"], q["priority"],
            ", ".join(tail(c["computeEnvironment"]) for c in
                      sorted(q["computeEnvironmentOrder"], key=lambda c: c["order"])),
            tail(q.get("schedulingPolicyArn", "")),
        ]
        for q in found
    ]  # fmt: skip

    def tell() -> None:
        table(
            "job queue|state|status|priority|compute environments|scheduling policy",
            rows,
        )
        print()
        tell_summary(summary)

    return show(given, {"jobQueues": found, "summary": summary}, tell)


def tell_summary(summary: Json) -> None:
    """Jobs by status, and what each compute environment has and has cost."""
    print(", ".join(f"{n} {k}" for k, n in summary["jobs"].items() if n) or "no jobs yet")
    print()
    table("compute environment|type|status|vCPUs|max|instances|launched|instance s|USD", [
        [e["computeEnvironment"], e["type"], e["status"], e["vcpus"], e["maxvCpus"],
         sum(e["instances"].values()), e["launched"], e["instance_seconds"], f"{e['price_usd']:.4f}"]
        for e in summary["compute_environments"]
    ])  # fmt: skip


def explain(given: argparse.Namespace) -> int:
    found = Client(given).get(f"{path_of(given.job_id)}/explain")

    def tell() -> None:
        print(f"{found['jobId']} is {found['status']}.")
        for sentence in found["sentences"]:
            print(sentence)

    return show(given, found, tell)


def dry_run(given: argparse.Namespace) -> int:
    request = _read_request(given.request) if given.request else {"jobName": "dry-run"}
    for name in ("jobQueue", "jobDefinition", "shareIdentifier"):
        if (said := getattr(given, name)) is not None:
            request[name] = said
    if given.request:
        _check_request(given.request, request)
    try:
        found = Client(given).post("/v1/eksbatch/dry-run", request)
    except Refused as refusal:
        return say(str(refusal), NO)

    def tell() -> None:
        print(f"It would be taken by job queue {found['jobQueue']}: {found['jobDefinition']}.")
        for sentence in found["sentences"]:
            print(sentence)

    return show(given, found, tell)


def _read_request(file: str) -> Json:
    """Of SubmitJob, as the AWS CLI takes it by --cli-input-json."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
        request = json.loads(text)
    except OSError as error:
        raise Sentence(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise Sentence(f"{file} is not JSON: {error}.") from None
    if not isinstance(request, dict):
        raise Sentence(f"{file} is not the input of a SubmitJob, which is a JSON object.")
    return request


def _check_request(file: str, request: Json) -> None:
    """As the AWS CLI would take it: the service leaves out what it does not know, as AWS Batch does."""
    from botocore.validate import ParamValidator

    from airflow_eksbatch.api.wire.model import service_model

    shape = service_model().operation_model("SubmitJob").input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        told = "; ".join(report.generate_report().splitlines())
        raise Sentence(f"{file} is not the input of a SubmitJob: {told}.")


def cost(given: argparse.Namespace) -> int:
    since, until = span_of(given.since, given.until)
    asked = {"by": given.by, "limit": given.limit, "since": since}
    if until is not None:
        asked["until"] = until
    found = Client(given).get(f"/v1/eksbatch/costs?{urlencode(asked)}")
    heads, rows = cost_rows(found)
    if given.csv:
        return as_csv(heads, rows)

    def tell() -> None:
        what = "jobs that ended or live" if given.by == "job" else "instances"
        print(f"{what}, {when(found['since'])} to {when(found['until'])}\n")
        table("|".join(heads), rows)

    return show(given, found, tell)


# ---- the command line


class Parser(argparse.ArgumentParser):
    """One that says in one sentence what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message}; `{self.prog} --help` says what there is.\n")


def make_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """With the options of all commands; or, where the command line is known, of those that it names."""
    parser = Parser(prog="eksbatch", description="AWS Batch on EKS, for Airflow.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, run, sentence, options in COMMANDS:
        command = commands.add_parser(name, help=sentence, description=sentence)
        command.set_defaults(run=run)
        if argv is None or name in argv:
            options(command)
    return parser


def _number(kind: type[int] | type[float], least: int) -> Callable[[str], float]:
    """For argparse, which says before what is wrong of which option it is."""

    def parse(text: str) -> float:
        try:
            return number_from(text, kind, least)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _local_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--leave-when-idle",
        type=_number(float, least=0),
        metavar="MINUTES",
        help="end after so long without jobs, instances and requests [default: stay; "
        "one that a task has started: 60]",
    )
    add_settings(command, **LOCAL)


def _client_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--endpoint-url", help="service to ask [EKSBATCH_URL, else the embedded one]"
    )
    command.add_argument("--json", action="store_true", help="the answer as JSON")


def _jobs_options(command: argparse.ArgumentParser) -> None:
    _client_options(command)
    command.add_argument("--queue", action="append", help="only this job queue (may be repeated)")
    command.add_argument("--status", action="append", choices=STATUSES, help="only this status")
    command.add_argument("--name", help="only this name; NAME* for a prefix")
    command.add_argument(
        "--limit", type=_number(int, least=1), default=50, help="at most so many [50]"
    )


def _one_job_options(command: argparse.ArgumentParser) -> None:
    _client_options(command)
    command.add_argument(
        "job_id",
        metavar="ID",
        help="job id or ARN; ID:3 for a child of an array, ID#3 for a node of a multi-node job",
    )


def _job_options(command: argparse.ArgumentParser) -> None:
    _one_job_options(command)
    command.add_argument("--log", action="store_true", help="print its output instead")
    command.add_argument("--follow", action="store_true", help="print its output until it ends")
    command.add_argument(
        "--attempt", type=_number(int, least=1), help="output of this attempt [the last]"
    )


def _dry_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "request",
        nargs="?",
        metavar="FILE",
        help="the input of SubmitJob as JSON (`aws batch submit-job --generate-cli-skeleton`); - for standard input",
    )
    for name in ("queue", "definition"):
        command.add_argument(f"--job-{name}", dest=f"job{name.title()}", help="name or ARN")
    command.add_argument("--share-identifier", dest="shareIdentifier")
    _client_options(command)


def _cost_options(command: argparse.ArgumentParser) -> None:
    _client_options(command)
    command.add_argument(
        "--by", choices=COST_VIEWS, default="queue", help="one row for each of these [queue]"
    )
    command.add_argument(
        "--since",
        default="24h",
        metavar="WHEN",
        help="from then on, by the hour: 36h, 7d, 2026-05-01, 2026-05-01T06:00 [24h]",
    )
    command.add_argument("--until", metavar="WHEN", help="up to then [now]")
    command.add_argument(
        "--limit", type=_number(int, least=1), default=50, help="with --by job: the dearest so many"
    )
    command.add_argument("--csv", action="store_true", help="the rows as CSV")


def _doctor_options(command: argparse.ArgumentParser) -> None:
    from airflow_eksbatch.doctor.examination import add_options

    add_options(command)


def _simulate_options(command: argparse.ArgumentParser) -> None:
    from airflow_eksbatch.sim.scenario import add_options

    add_options(command)


Run = Callable[[argparse.Namespace], int]
Options = Callable[[argparse.ArgumentParser], None]
COMMANDS: tuple[tuple[str, Run, str, Options], ...] = (
    ("serve", serve, "Run the service.", add_settings),
    (
        "local",
        local,
        "Run this machine's private service, ready to use.",
        _local_options,
    ),
    ("jobs", jobs, "List jobs, newest first.", _jobs_options),
    ("job", job, "Show one job; exit code 1 if it failed.", _job_options),
    (
        "queues",
        queues,
        "Show job queues, compute environments and totals.",
        _client_options,
    ),
    ("explain", explain, "Say why a job is not running.", _one_job_options),
    (
        "dry-run",
        dry_run,
        "Say what would come of a SubmitJob: where it fits, who is before it; exit code 1 if it is refused. Nothing is submitted.",
        _dry_run_options,
    ),
    (
        "cost",
        cost,
        "Show what instances cost, and for whom; On-Demand and Spot apart.",
        _cost_options,
    ),
    (
        "doctor",
        doctor,
        "Say whether all around the service is well, and what to do.",
        _doctor_options,
    ),
    ("simulate", simulate, "Run a workload in virtual time.", _simulate_options),
    ("keys", keys, "Create, list or delete access keys.", add_keys_options),
    (
        "migrate",
        migrate,
        "Bring the database's schema forward, before the service does; no older release can use it then.",
        add_database_options,
    ),
)


if __name__ == "__main__":
    raise SystemExit(main())
