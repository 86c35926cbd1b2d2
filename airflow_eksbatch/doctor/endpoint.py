"""The service itself looked at, where one runs: it answers, it is ready, its release and its clock."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from email.message import Message
from urllib.parse import urlsplit

import airflow_eksbatch
from airflow_eksbatch.doctor.clocks import Stopwatch, judge_clock, lease_patience
from airflow_eksbatch.doctor.findings import Group
from airflow_eksbatch.service.settings import Settings, is_loopback

ANSWER_S = 5.0


def look_at_service(group: Group, url: str, settings: Settings) -> None:
    """The probes of the replica at that URL; nothing of them is signed."""
    watch = Stopwatch()
    try:
        _, headers, health = _ask(f"{url}/healthz")
        status, _, readiness = _ask(f"{url}/readyz")
    except (OSError, http.client.HTTPException, ValueError) as error:
        _judge_silence(group, url, settings, getattr(error, "reason", error))
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


def _judge_silence(group: Group, url: str, settings: Settings, reason: object) -> None:
    """From outside a cluster addresses of its pods lead nowhere, which says nothing about the service."""
    said = f"{url} holds the lease and does not answer here ({reason})"
    if settings.cluster == "in-cluster" or is_loopback(urlsplit(url).hostname or ""):
        group.wrong(
            "service",
            f"{said}: a standby could not hand requests to it.",
            "kubectl -n eksbatch get pods; kubectl -n eksbatch logs deploy/eksbatch\n"
            "Then the NetworkPolicy of docker/service.yaml, and EKSBATCH_ADVERTISE.",
        )
    else:
        group.unseen(
            "service",
            f"{said}, and renews it, so it runs.",
            "kubectl -n eksbatch exec deploy/eksbatch -- eksbatch doctor --cluster in-cluster",
        )


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
