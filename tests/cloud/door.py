"""moto's server as AWS, behind a door of ours: what moto lacks is answered there, and faults are put in there.

moto starts no machines, takes every RunInstances for a new one and knows no prices. The door keeps client tokens as EC2
does, lets ended instances be ended again, sells Spot at prices that differ, scores zones for it, and knows EKS images and
access entries. Its price list holds what one must not take for the price, and both lists of prices take no filter that they
do not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import re
import threading
import time
import urllib.request
import xml.etree.ElementTree as Xml
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode

import boto3
import msgspec
from botocore.config import Config
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Request, Response

REGION = "us-east-1"
ASKED_WITHIN_S = 60.0
Form = dict[str, str]
# A small region: listing the 900 types that moto knows takes seconds.
TYPES = (
    *("m5.large", "m5.xlarge", "m5.2xlarge", "m5.metal", "c5.large", "c5.xlarge", "r5.large"),
    *("g4dn.xlarge", "g4dn.12xlarge", "m6g.large", "m6g.xlarge", "mac1.metal"),
)
STATIC = ("DescribeInstanceTypes", "DescribeInstanceTypeOfferings", "DescribeImages")


class Fault(msgspec.Struct, kw_only=True):
    """What happens to requests for an action instead of what should."""

    action: str
    code: str
    message: str = "No."
    status: int = 400
    times: int = 1 << 30
    when: Callable[[Form], bool] = lambda form: True
    after: bool = False
    """The request is carried out and its answer lost."""


class Scores(msgspec.Struct):
    """What GetSpotPlacementScores answers, and within which limits."""

    by_zone: dict[str, int] = {}
    """Zones that are not named have ten."""
    a_page: int = 1_000
    capacity_most: int = 10_000
    """By what the account has used lately, says EC2."""
    configurations_most: int = 10
    """New ones within a day."""
    asked: set[str] = msgspec.field(default_factory=set)


class Door:
    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.RLock()
        self._server: Any = None
        self._static: dict[str, Response] = {}
        # One for all: a session reads the models of AWS's services, which takes longer than most tests.
        self.session = boto3.Session("testing", "testing", "testing", region_name=REGION)
        self.url = ""
        self._came = threading.Condition()
        self.reset()

    def reset(self) -> None:
        self._emptied = threading.Event()
        self.faults: list[Fault] = []
        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[str, Form]] = []
        self.tokens: dict[str, tuple[str, bytes, int]] = {}
        self.prices: dict[str, float] = {}
        self.spot_prices: dict[tuple[str, str], float] = {}
        self.scores = Scores()
        self.usage_classes: dict[str, list[str]] = {}
        """Instance type -> how it is sold, where that is not as moto says."""
        self.images: dict[str, str] = {}
        self.access_entries: dict[str, str] = {}
        self.authentication_mode = "API_AND_CONFIG_MAP"
        self.cluster: dict[str, Any] = {}
        self.shows_instances = True
        self.unlisted: set[str] = set()
        """Instances that listings leave out, and that are there when they are asked for by their ids."""
        self.ends_instances = True
        self.silent: set[str] = set()
        """Actions that are not answered before the door is emptied."""
        self.ahead_s = 0.0
        self.room: Callable[[Form], int] = lambda form: 1_000
        """How many instances of a request there is capacity for."""

    def empty(self) -> None:
        """Of an open door: nothing is left, behind it neither."""
        self._emptied.set()
        self.reset()
        request = urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(request).close()

    async def is_asked(self, action: str, *, times: int = 1) -> None:
        """Waits for it."""

        def wait() -> bool:
            with self._came:
                return self._came.wait_for(lambda: self.asked[action] >= times, ASKED_WITHIN_S)

        assert await asyncio.to_thread(wait), f"{action} was not asked for"

    def refuse(self, action: str, code: str, **how: Any) -> Fault:
        fault = Fault(action=action, code=code, **how)
        self.faults.append(fault)
        return fault

    def client(self, service: Any) -> Any:
        return self.session.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            config=Config(retries={"total_max_attempts": 1}),
        )

    # ---- requests

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        body = request.get_data()
        environ["wsgi.input"] = io.BytesIO(body)  # To be read again by moto
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        form: Form = dict(parse_qsl(body.decode("utf-8", "replace"))) if not target else {}
        action = (
            target.rpartition(".")[2] or form.get("Action") or f"{request.method} {request.path}"
        )
        self.asked[action] += 1
        self.requests.append((action, form))
        with self._came:
            self._came.notify_all()
        if action in self.silent:
            self._emptied.wait()
            # Nobody waits any more, and nothing may be asked again in the next test.
            return error("AccessDenied", "Too late.")(environ, start_response)
        # A wait for messages must not keep those out who send them.
        with contextlib.nullcontext() if action == "ReceiveMessage" else self._lock:
            response = self._answer(action, form, body, environ)
        return response(environ, start_response)

    def _answer(self, action: str, form: Form, body: bytes, environ: dict[str, Any]) -> Response:
        fault = self._fault_for(action, form)
        if fault is not None and not fault.after:
            return error(fault.code, fault.message, fault.status)
        response = self._own_answer(action, form, body) or self._moto_answer(action, form, environ)
        if fault is not None:
            return error(fault.code, fault.message, fault.status)
        return response

    def _fault_for(self, action: str, form: Form) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.fullmatch(fault.action, action) and fault.when(form):
                fault.times -= 1
                return fault
        return None

    def _own_answer(self, action: str, form: Form, body: bytes) -> Response | None:
        if action == "GetParameter":
            name = json.loads(body)["Name"]
            if name not in self.images:
                return json_error("ParameterNotFound", name)
            return as_json({"Parameter": {"Name": name, "Value": self.images[name]}})
        if action == "GetProducts":
            return price_list(json.loads(body), self.prices)
        if action == "DescribeSpotPriceHistory":
            return spot_history(form, self.spot_prices)
        if action == "GetSpotPlacementScores":
            return placement_scores(form, self.scores)
        if action == "DescribeInstances" and not self.shows_instances:
            if "InstanceId.1" in form:
                ids = ", ".join(listed(form, "InstanceId"))
                message = f"The instance IDs '{ids}' do not exist"
                return error("InvalidInstanceID.NotFound", message)
            return xml("<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>")
        if re.fullmatch(r"POST /clusters/[^/]+/access-entries", action):
            wanted = json.loads(body)
            self.access_entries[wanted["principalArn"]] = wanted.get("type", "STANDARD")
            return as_json({"accessEntry": wanted})
        entry = re.fullmatch(r"GET /clusters/[^/]+/access-entries/(.+)", action)
        if entry:
            kind = self.access_entries.get(entry[1])
            if kind is None:
                return json_error("ResourceNotFoundException", "no such entry", 404)
            return as_json({"accessEntry": {"principalArn": entry[1], "type": kind}})
        if action == "RunInstances" and (known := self.tokens.get(form["ClientToken"])):
            if known[0] != fingerprint(form):
                return error(
                    "IdempotentParameterMismatch", "The token was used for another request."
                )
            return Response(known[1], status=known[2], mimetype="text/xml")
        return None

    def _moto_answer(self, action: str, form: Form, environ: dict[str, Any]) -> Response:
        """What never changes is asked for once: moto takes seconds to list instance types."""
        if action not in STATIC:
            return self._fresh_answer(action, form, environ)
        key = f"{action} {fingerprint(form)}"
        if key not in self._static:
            self._static[key] = self._fresh_answer(action, form, environ)
        kept = self._static[key]
        if action == "DescribeInstanceTypes" and self.usage_classes:
            return xml(with_usage_classes(kept.data, self.usage_classes))
        return Response(kept.data, status=kept.status, headers=kept.headers)

    def _fresh_answer(self, action: str, form: Form, environ: dict[str, Any]) -> Response:
        if action == "DescribeInstanceTypes":
            say(environ, form | {f"InstanceType.{n}": name for n, name in enumerate(TYPES, 1)})
        if action == "TerminateInstances":
            form = without_ended(form)
            say(environ, form)
            if "InstanceId.1" not in form:
                return xml(
                    "<TerminateInstancesResponse><instancesSet/></TerminateInstancesResponse>"
                )
        if action == "RunInstances":
            # EC2 makes as many as it can; moto as few as it may.
            room = min(int(form["MaxCount"]), self.room(form))
            if room < int(form["MinCount"]):
                return error("InsufficientInstanceCapacity", "There is no such capacity.", 500)
            say(environ, form | {"MinCount": str(room)})
        chunks, status, headers = run_wsgi_app(self._moto, environ, buffered=True)
        response = Response(b"".join(chunks), status=status, headers=list(headers))
        if action == "RunInstances" and response.status_code == 200:
            give_profile(form, response.get_data(as_text=True))
            self.tokens[form["ClientToken"]] = (fingerprint(form), response.data, 200)
        if action == "DescribeInstances" and not self.ends_instances:
            response.data = response.data.replace(b"<name>terminated<", b"<name>shutting-down<")
        if action == "DescribeInstances" and self.unlisted and "InstanceId.1" not in form:
            response.data = without(response.data, self.unlisted)
        if re.fullmatch(r"GET /clusters/[^/]+", action) and response.status_code == 200:
            told: Any = response.json
            told["cluster"]["accessConfig"] = {"authenticationMode": self.authentication_mode}
            told["cluster"] |= self.cluster
            return as_json(told)
        return response

    # ---- the server

    @contextmanager
    def open(self) -> Iterator[Door]:
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


class Quiet(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        return None

    def date_time_string(self, timestamp: float | None = None) -> str:
        door: Any = self.server
        return super().date_time_string(time.time() + door.app.ahead_s)


def say(environ: dict[str, Any], form: Form) -> None:
    """Ask moto this instead."""
    body = urlencode(form).encode()
    environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))


def give_profile(form: Form, answer: str) -> None:
    """moto gives the instance profile to the first instance of a request only."""
    backend = ec2_backends[DEFAULT_ACCOUNT_ID][REGION]
    name, arn = (form.get(f"IamInstanceProfile.{key}") for key in ("Name", "Arn"))
    if name or arn:
        for instance_id in re.findall(r"<instanceId>(i-[0-9a-f]+)</instanceId>", answer)[1:]:
            backend.associate_iam_instance_profile(
                instance_id, iam_instance_profile_name=name, iam_instance_profile_arn=arn
            )


def without_ended(form: Form) -> Form:
    """moto stumbles over the interfaces of an instance that has ended; EC2 does not."""
    backend = ec2_backends[DEFAULT_ACCOUNT_ID][REGION]
    ended = {i.id for i in backend.all_instances() if i.state == "terminated"}
    ids = [value for key, value in form.items() if key.startswith("InstanceId.")]
    kept = {key: value for key, value in form.items() if not key.startswith("InstanceId.")}
    live = [i for i in ids if i not in ended]
    return kept | {f"InstanceId.{number}": i for number, i in enumerate(live, 1)}


def fingerprint(form: Form) -> str:
    return hashlib.sha256(repr(sorted(form.items())).encode()).hexdigest()


def error(code: str, message: str, status: int = 400) -> Response:
    """As EC2 says it; as JSON services do where it is asked for."""
    return xml(
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        f"<RequestID>request</RequestID></Response>",
        status,
    )


def json_error(code: str, message: str, status: int = 400) -> Response:
    response = as_json({"__type": code, "message": message}, status)
    response.headers["x-amzn-ErrorType"] = code
    return response


def as_json(body: Any, status: int = 200) -> Response:
    return Response(json.dumps(body), status=status, mimetype="application/x-amz-json-1.1")


def xml(body: str, status: int = 200) -> Response:
    return Response(body, status=status, mimetype="text/xml")


def listed(form: Form, name: str) -> list[str]:
    """Values of a list in a request: name.1, name.2, ..."""
    numbered = [(key.rpartition("."), value) for key, value in form.items()]
    found = [(int(number), value) for (key, _, number), value in numbered if key == name]
    return [value for _, value in sorted(found)]


def without(answer: bytes, instance_ids: set[str]) -> bytes:
    """A listing of instances that leaves these out."""
    tree = Xml.fromstring(answer)
    namespace = tree.tag.partition("}")[0] + "}" if "}" in tree.tag else ""
    Xml.register_namespace("", namespace.strip("{}"))
    for instances in tree.iter(f"{namespace}instancesSet"):
        for item in list(instances):
            if item.findtext(f"{namespace}instanceId") in instance_ids:
                instances.remove(item)
    return Xml.tostring(tree)


def with_usage_classes(answer: bytes, classes: dict[str, list[str]]) -> str:
    """DescribeInstanceTypes that says how these types are sold."""
    text = answer.decode()
    for name, words in classes.items():
        said = "".join(f"<item>{word}</item>" for word in words)
        place = rf"(<instanceType>{re.escape(name)}</instanceType>.*?<supportedUsageClasses>)(<item>[^<]*</item>)*"
        text, found = re.subn(place, rf"\g<1>{said}", text, count=1)
        assert found == 1, name
    return text


SHARED = {
    "regionCode": REGION,
    "operatingSystem": "Linux",
    "preInstalledSw": "NA",
    "tenancy": "Shared",
    "capacitystatus": "Used",
}
# What else the price list has of each type, each at a price of its own.
OTHERS = (
    {"regionCode": "eu-central-1"},
    {"operatingSystem": "Windows"},
    {"preInstalledSw": "SQL Web"},
    {"tenancy": "Dedicated"},
    {"capacitystatus": "AllocatedCapacityReservation"},
)


def price_list(asked: dict[str, Any], prices: dict[str, float]) -> Response:
    """GetProducts of AmazonEC2."""
    if asked.get("ServiceCode") != "AmazonEC2" or set(asked) - {"ServiceCode", "Filters"}:
        return json_error("InvalidParameterException", f"The door does not know {sorted(asked)}.")
    wanted: dict[str, str] = {}
    for one in asked.get("Filters", []):
        if one["Type"] != "TERM_MATCH" or one["Field"] not in ("instanceType", *SHARED):
            return json_error("InvalidParameterException", f"The door does not know {one}.")
        wanted[one["Field"]] = one["Value"]
    products = [
        product({"instanceType": name, **SHARED, **other}, price * factor)
        for name, price in sorted(prices.items())
        for factor, other in enumerate(({}, *OTHERS), 1)
    ]
    found = [p for p in products if wanted.items() <= p["product"]["attributes"].items()]
    return as_json({"FormatVersion": "aws_v1", "PriceList": [json.dumps(p) for p in found]})


def product(attributes: dict[str, str], price: float) -> dict[str, Any]:
    """One entry of the price list."""
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{price:.10f}"}}
    return {
        "product": {"attributes": attributes},
        "terms": {"OnDemand": {"T": {"priceDimensions": {"D": dimension}}}},
    }


def spot_history(form: Form, prices: dict[tuple[str, str], float]) -> Response:
    """DescribeSpotPriceHistory: prices changed an hour and a day ago; Windows costs more."""
    if form.get("DryRun") == "true":
        return error(
            "DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412
        )
    known = {"Action", "Version", "StartTime"}
    unknown = {
        key
        for key in form
        if key not in known and key.rpartition(".")[0] not in ("InstanceType", "ProductDescription")
    }
    if unknown:
        return error("UnknownParameter", f"The door does not know {sorted(unknown)}.")
    types, systems = listed(form, "InstanceType"), listed(form, "ProductDescription")
    now = datetime.now(UTC)
    start = datetime.fromisoformat(form["StartTime"]) if "StartTime" in form else None
    items = ""
    for (name, zone), price in prices.items():
        for system, times in (("Windows", 3), ("Linux/UNIX", 1)):
            if (types and name not in types) or (systems and system not in systems):
                continue
            changes = [
                (now - timedelta(days=1), price * times * 2),
                (now - timedelta(hours=1), price * times),
            ]
            if start is not None:  # What was changed since, and what counted then
                before = [change for change in changes if change[0] <= start]
                changes = before[-1:] + [change for change in changes if change[0] > start]
            for at, then in changes:
                items += (
                    f"<item><instanceType>{name}</instanceType><productDescription>{system}</productDescription>"
                    f"<spotPrice>{then}</spotPrice><timestamp>{at:%Y-%m-%dT%H:%M:%S.000Z}</timestamp>"
                    f"<availabilityZone>{zone}</availabilityZone></item>"
                )
    return xml(
        f"<DescribeSpotPriceHistoryResponse><spotPriceHistorySet>{items}</spotPriceHistorySet>"
        "<nextToken/></DescribeSpotPriceHistoryResponse>"
    )


SCORES_ASKED = ("DryRun", "MaxResults", "NextToken", "SingleAvailabilityZone", "TargetCapacity")
UNITS = ("vcpu", "memory-mib", "units")
# Of ten.
LOW_SCORE = 1


def placement_scores(form: Form, scores: Scores) -> Response:
    """GetSpotPlacementScores, for zones of this region."""
    if form.get("DryRun") == "true":
        return error(
            "DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412
        )
    refusal = refusal_of_scores(form, scores)
    if refusal is not None:
        return refusal
    scores.asked.add(configuration_of(form))
    few = len(set(listed(form, "InstanceType"))) < 3
    zones = ec2_backends[DEFAULT_ACCOUNT_ID][REGION].zones[REGION]
    told = [
        (zone.zone_id, LOW_SCORE if few else scores.by_zone.get(zone.name, 10)) for zone in zones
    ]
    told.sort(key=lambda one: (-one[1], one[0]))
    start = int(form.get("NextToken", "0"))
    end = start + min(int(form.get("MaxResults", "1000")), scores.a_page)
    items = "".join(
        f"<item><region>{REGION}</region><availabilityZoneId>{zone_id}</availabilityZoneId>"
        f"<score>{score}</score></item>"
        for zone_id, score in told[start:end]
    )
    token = f"<nextToken>{end}</nextToken>" if end < len(told) else ""
    return xml(
        f"<GetSpotPlacementScoresResponse><spotPlacementScoreSet>{items}</spotPlacementScoreSet>"
        f"{token}</GetSpotPlacementScoresResponse>"
    )


def refusal_of_scores(form: Form, scores: Scores) -> Response | None:
    """What EC2 says no to, in its words as far as they are known."""
    known = {"Action", "Version", "TargetCapacityUnitType", *SCORES_ASKED}
    unknown = {
        key
        for key in form
        if key not in known and key.rpartition(".")[0] not in ("InstanceType", "RegionName")
    }
    if unknown:
        return error("UnknownParameter", f"The door does not know {sorted(unknown)}.")
    if "TargetCapacity" not in form:
        return error("MissingParameter", "The request must contain the parameter targetCapacity")
    wrong = [
        key
        for key, is_right in {
            "targetCapacity": 1 <= int(form["TargetCapacity"]) <= 2_000_000_000,
            "targetCapacityUnitType": form.get("TargetCapacityUnitType", "units") in UNITS,
            "maxResults": 10 <= int(form.get("MaxResults", "10")) <= 1_000,
            "instanceTypes": 1 <= len(listed(form, "InstanceType")) <= 1_000,
            "regionNames": set(listed(form, "RegionName")) == {REGION},
            "singleAvailabilityZone": form.get("SingleAvailabilityZone") == "true",
        }.items()
        if not is_right
    ]
    if wrong:
        return error("InvalidParameterValue", f"Invalid value for {', '.join(wrong)}.")
    if int(form["TargetCapacity"]) > scores.capacity_most:
        return error(
            "TargetCapacityLimitExceeded",
            "The value for targetCapacity exceeds your limit on the amount of Spot placement "
            "target capacity you can explore. Reduce the targetCapacity value, and try again.",
        )
    is_new = configuration_of(form) not in scores.asked
    if is_new and len(scores.asked) >= scores.configurations_most:
        return error(
            "MaxConfigLimitExceeded",
            "You have exceeded your maximum allowed Spot placement configurations. You can retry "
            "configurations that you used within the last 24 hours, or wait for 24 hours before "
            "specifying a new configuration.",
        )
    return None


def configuration_of(form: Form) -> str:
    pages = ("MaxResults", "NextToken")
    return fingerprint({key: value for key, value in form.items() if key not in pages})
