"""SigV4, or open to this machine: who may ask."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import quote

import msgspec
from starlette.datastructures import Headers
from starlette.types import Scope

from airflow_eksbatch.core.model.errors import Denied, Rejected

SKEW_S = 15 * 60
ALGORITHM = "AWS4-HMAC-SHA256"
# Where a port-forward of Kubernetes, or an SSH tunnel, comes out. Not all of 127/8: Istio's sidecar hands on from 127.0.0.6.
HERE = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})
# By one of these a proxy says that it asks for somebody else.
HANDED_ON = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
)
# Hosts that no name server can make up: a web page may have its own name point at this machine.
LOOPBACK_HOST = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]+)?", re.IGNORECASE)
VOUCHED = "eksbatch.local"
"""Key of an ASGI scope: another replica has seen that the caller is on its machine."""


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it came over the wire; header names in lower case."""

    method: str
    raw_path: str
    raw_query: str
    headers: Mapping[str, str]
    body: bytes


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    access_key: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


def is_local(scope: Scope) -> bool:
    """Whether whoever asks is on this machine, and no proxy or web page asks for somebody else."""
    if scope.get(VOUCHED):
        return True
    client, headers = scope.get("client"), Headers(scope=scope)
    return (
        client is not None
        and client[0] in HERE
        and names_loopback(headers)
        and not any(name in headers for name in HANDED_ON)
    )


def names_loopback(headers: Mapping[str, str]) -> bool:
    """Whether the caller calls this service by a name of its own machine."""
    return LOOPBACK_HOST.fullmatch(headers.get("host", "")) is not None


def check_not_a_web_page(headers: Mapping[str, str]) -> None:
    """Where nothing is signed, a page in this machine's browser must not get in either; raises Rejected.

    Same-origin reads name no origin, so what keeps out a page whose name was made to point here is the Host.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if not names_loopback(headers):
        raise Denied(
            "While requests need no signature this service answers to localhost, 127.0.0.1 and [::1] only, "
            f"and not as {host or 'nobody'}: ask it by such a URL, or start it with --auth sigv4."
        )
    is_ours = origin is None or origin.partition("://")[2] == host
    if not is_ours or headers.get("sec-fetch-site") == "cross-site":
        raise Denied("Requests from other web pages are refused while requests need no signature.")


def credential_of(headers: Mapping[str, str]) -> Credential:
    """What the signature says of itself, before anything is looked up; raises Rejected."""
    header = headers.get("authorization")
    if header is None:
        raise Rejected(
            "The request is not signed. Create a key with `eksbatch keys create` and give it to "
            "the client.",
            "MissingAuthenticationTokenException",
        )
    credential = parse_credential(header)
    check_date(headers.get("x-amz-date", ""), credential)
    return credential


def new_key() -> tuple[str, str]:
    """An access key id and its secret; neither has a character that a shell or a URL would want quoted."""
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ234567"
    return "EKSB" + "".join(secrets.choice(letters) for _ in range(16)), secrets.token_urlsafe(30)


def unknown_key(credential: Credential) -> Rejected:
    return Rejected(
        f"The access key {credential.access_key} is not known here. "
        "`eksbatch keys list` shows the keys there are.",
        "UnrecognizedClientException",
    )


def check_signature(request: Signed, credential: Credential, secret: str) -> None:
    """Raises Rejected."""
    expected = signature_of(request, credential, secret)
    if not hmac.compare_digest(expected.encode(), credential.signature.encode()):
        raise Rejected(
            "The signature does not match: the secret key is wrong, or the request was changed "
            "on its way.",
            "InvalidSignatureException",
        )


def access_key_of(header: str | None) -> str:
    """The name a caller goes by where signatures are not checked."""
    try:
        return parse_credential(header).access_key if header else ""
    except Rejected:
        return ""


def parse_credential(header: str) -> Credential:
    try:
        algorithm, _, rest = header.partition(" ")
        parts = dict(part.strip().split("=", 1) for part in rest.split(","))
        access_key, date, region, service, _ = parts["Credential"].rsplit("/", 4)
        if algorithm != ALGORITHM:
            raise ValueError(algorithm)
        return Credential(
            access_key=access_key,
            date=date,
            region=region,
            service=service,
            signed_headers=tuple(parts["SignedHeaders"].split(";")),
            signature=parts["Signature"],
        )
    except (KeyError, ValueError) as error:
        raise Rejected(
            f"The Authorization header is not AWS Signature Version 4 ({ALGORITHM}).",
            "IncompleteSignatureException",
        ) from error


def check_date(stamp: str, credential: Credential) -> None:
    """A signature is good for 15 minutes either way."""
    try:
        apart_s = abs((datetime.now(UTC) - time_of(stamp)).total_seconds())
    except ValueError:
        raise Rejected(
            "The x-amz-date header is missing or malformed.", "IncompleteSignatureException"
        ) from None
    if apart_s > SKEW_S or not stamp.startswith(credential.date):
        raise Rejected(
            f"The request was signed {int(apart_s)} s away from now; at most {SKEW_S} s are "
            "allowed. Set the clock of the client or of this machine.",
            "InvalidSignatureException",
        )


@lru_cache(maxsize=256)
def time_of(stamp: str) -> datetime:
    """Whoever signs much signs much in one second, and strptime is slow. Raises ValueError."""
    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def signature_of(request: Signed, credential: Credential, secret: str) -> str:
    """The signature this request must have (AWS Signature Version 4)."""
    headers = "".join(
        f"{name}:{' '.join(request.headers.get(name, '').split())}\n"
        for name in credential.signed_headers
    )
    canonical = "\n".join(
        (
            request.method,
            quote(request.raw_path, safe="/-_.~"),
            canonical_query(request.raw_query),
            headers,
            ";".join(credential.signed_headers),
            hashlib.sha256(request.body).hexdigest(),
        )
    )
    scope = f"{credential.date}/{credential.region}/{credential.service}/aws4_request"
    to_sign = "\n".join(
        (
            ALGORITHM,
            request.headers.get("x-amz-date", ""),
            scope,
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    key = signing_key(secret, credential.date, credential.region, credential.service)
    return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


def canonical_query(raw: str) -> str:
    """Sorted by name, then value, as it came (AWS Signature Version 4)."""
    pairs = sorted(part.partition("=")[::2] for part in raw.split("&") if part)
    return "&".join(f"{name}={value}" for name, value in pairs)


@lru_cache(maxsize=256)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """Derived once a day and client."""
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
