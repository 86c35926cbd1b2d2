"""The service itself looked at, where one runs: it answers, it is ready, its release and its clock."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from email.message import Message

import airflow_eksbatch
from airflow_eksbatch.doctor.clocks import Stopwatch, judge_clock, lease_patience
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.service.settings import Settings

ANSWER_S = 5.0


def look_at_service(group: Group, url: str, settings: Settings) -> None:
    """The probes of the replica at that URL; nothing of them is signed."""
    watch = Stopwatch()
    try:
        _, headers, health = _ask(f"{url}/healthz")
        status, _, readiness = _ask(f"{url}/readyz")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        group.wrong(
            "service",
            f"{url} holds the lease and does not answer here ({reason}).",
            "See that it runs, and that this machine may connect: in the cluster a NetworkPolicy lets only pods of\n"
            "namespaces labelled eksbatch/clients=true in.\n"
            "kubectl -n eksbatch get pods; kubectl -n eksbatch logs deploy/eksbatch",
        )
        return
    if status == 200:
        group.ok("service", f"{url} answers and is ready.")
    else:
        group.wrong(
            "service",
            f"{url} answers and is not ready: {_told(readiness, 'reason') or 'it does not say why.'}",
            "It says more in its log: kubectl -n eksbatch logs deploy/eksbatch",
        )
    _judge_release(group, _told(health, "version"))
    skew = watch.skew_to_date(headers.get("Date", ""))
    judge_clock(group, "the service", skew, lease_patience(settings.lease_s))


def _judge_release(group: Group, theirs: str) -> None:
    ours = airflow_eksbatch.__version__
    if not theirs:
        group.unseen("release", "It does not say which release it is.")
    elif theirs != ours:
        group.warn(
            "release",
            f"It is release {theirs}; this is {ours}, and judges by its own rules.",
            f"pip install 'airflow-eksbatch=={theirs}'",
        )
    else:
        group.ok("release", f"It is release {theirs}, as this is.")


def _ask(url: str) -> tuple[int, Message, bytes]:
    """Also an answer that says no is one."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_S) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def _told(body: bytes, name: str) -> str:
    """A member of the answer; empty if there is none."""
    try:
        return str(json.loads(body).get(name) or "")
    except (ValueError, AttributeError):
        return ""
