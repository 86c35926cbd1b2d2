"""Where a service is, how requests to it are signed, and what its refusals mean; without Airflow, for all who ask one."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

DEFAULT_REGION = "us-east-1"
ANNOUNCEMENT = "service.json"
EMBEDDED_PLACE = "embedded"
LOOK_S = 2
# How long it is worth asking again where a person has to mend something first.
PATIENCE_S = 300.0


class ServiceAway(Exception):
    """The service did not answer, or not now: asking again later may help."""

    patience_s = float("inf")
    """How long at most."""


def reason_of(error: Exception) -> str:
    """Why nothing came of a request; a time limit of our own has no words."""
    return str(error) or "no answer in time"


class ServiceNotNamed(ServiceAway):
    """There is no such connection: misspelt, or whatever keeps connections does not answer."""

    patience_s = PATIENCE_S


ACCESS_DENIED = "AccessDeniedException"
"""Understood, and not allowed: to this key, or by this name of a service that is open. All other codes of 403 say that
the key is not known, or the signature wrong."""


class NotLetIn(ServiceAway):
    """The key is not known (any more), or a clock is wrong: another look at the connection may help."""

    patience_s = PATIENCE_S


class NotOurService(ServiceAway):
    """Something answers that knows no such page: a proxy before the service, or the URL leads elsewhere."""

    patience_s = PATIENCE_S


class ServiceRefused(Exception):
    """The service understood and said no: asking again gives the same answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where the service is and how to sign."""

    url: str
    access_key_id: str | None = None
    secret_access_key: str | None = None
    region: str = DEFAULT_REGION
    verify: bool = True
    embedded: bool = False
    """The service of this machine's home directory, which may come back at another URL."""
    deployment: str = ""
    """Name of the Airflow that asks, where several with the same DAGs use one service."""
    conn_id: str = ""
    """The connection that led here."""
    dashboard_url: str = ""
    """Where people see the dashboard, if not in Airflow."""

    @property
    def place(self) -> str:
        """What stays the same as long as it is the same service, as far as one can say."""
        return EMBEDDED_PLACE if self.embedded else self.url


# ---- the embedded service


def default_home(environ: Mapping[str, str]) -> Path:
    """Where the embedded service lives when nothing is said."""
    named = environ.get("EKSBATCH_HOME")
    return Path(named).expanduser() if named else Path.home() / ".local" / "share" / "eksbatch"


def announced(announcement: Path) -> Endpoint | None:
    """Where a service said it listens, and its key if it wants one; it may have died since."""
    try:
        told = json.loads(announcement.read_text())
        return Endpoint(
            url=str(told["url"]),
            access_key_id=told.get("access_key"),
            secret_access_key=told.get("secret_key"),
            embedded=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def named(url: str, environ: Mapping[str, str]) -> Endpoint:
    """The service at that URL; if it is the embedded one, with the key that it has told its owner."""
    url = url.rstrip("/")
    own = announced(default_home(environ) / ANNOUNCEMENT)
    if own is not None and own.url == url.replace("//localhost:", "//127.0.0.1:"):
        return msgspec.structs.replace(own, url=url, embedded=False)
    return Endpoint(url=url)


def is_url(url: str) -> bool:
    """Whether it can be that of a service."""
    try:
        parts = urlsplit(url)
        # Of a port that is none asking already raises.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def answers(url: str, path: str = "/readyz") -> bool:
    """Whether a service is ready there; with /healthz, whether one is there at all."""
    try:
        with urllib.request.urlopen(url + path, timeout=LOOK_S) as reply:
            return reply.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


# ---- requests and answers


def signed_headers(
    endpoint: Endpoint, method: str, url: str, data: bytes, headers: Mapping[str, str]
) -> dict[str, str]:
    """These headers and, if there is a key, those of AWS Signature Version 4."""
    if not endpoint.access_key_id:
        return dict(headers)
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    keys = Credentials(endpoint.access_key_id, endpoint.secret_access_key or "")
    request = AWSRequest(method=method, url=url, data=data, headers=dict(headers))
    SigV4Auth(keys, "batch", endpoint.region).add_auth(request)
    return dict(request.headers.items())


def raise_for_answer(status: int, kind: str, text: str) -> None:
    """Turn an error answer into what the caller can do about it; `kind` is its x-amzn-ErrorType."""
    if status < 400:
        return
    code = kind.split(":")[0] or f"HTTP {status}"
    try:
        body = json.loads(text)
        message = body.get("message") or body.get("Message") or text
    except (ValueError, AttributeError):
        message = text[:500] or "no further explanation"
    if kind and status == 403 and code != ACCESS_DENIED:
        raise NotLetIn(f"{code}: {message}")
    # Our service names every refusal; whatever else says no stands between us and it.
    if not kind and status == 404:
        raise NotOurService(f"{code}: {message} (does the URL lead to the service?)")
    if not kind or status == 429 or status >= 500:
        raise ServiceAway(f"{code}: {message}")
    raise ServiceRefused(code, message)
