"""Every setting of the service: its name, default, environment variable, and what it is for."""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from airflow_eksbatch.endpoint import default_home

LOG_LEVELS = ("debug", "info", "warning", "error")
# Of every number, so that what is made of it (in ms, in a database) fits 64 bits, and inf is none.
MOST = 1_000_000_000
# Less for those whose names end in a unit of time: a year, an hour, a hundred years.
MOST_BY_UNIT = {"s": 31_536_000, "ms": 3_600_000, "days": 36_500}
REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class BadSetting(Exception):
    """A setting that cannot be used; the message is one sentence that says what to do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `eksbatch serve` and `eksbatch local` can be told. `SETTINGS` says what each means."""

    home: str = ""
    database: str = ""
    host: str = "127.0.0.1"
    port: int = 8642
    advertise: str = ""
    auth: str = "auto"
    dashboard: Literal["local", "open", "off"] = "local"
    region: str = "us-east-1"
    cluster: str = "local"
    kubeconfig: str = ""
    cloud: str = "auto"
    aws_endpoint: str = ""
    notices: str = ""
    gather_s: float = 0.5
    launches_per_s: float = 2.0
    join_s: int = 900
    idle_s: float = 60.0
    keep_days: float = 30.0
    lease_s: int = 10
    beat_ms: int = 20
    beat_facts: int = 2_000
    inbox: int = 10_000
    calls: int = 32
    launch_delay_s: float = 2.0
    on_demand_vcpus: int = 8
    spot_vcpus: int = 32
    log_format: str = "text"
    log_level: str = "info"
    check_plans: bool = False
    sqlite_pages: int = 0

    @property
    def home_path(self) -> Path:
        return Path(self.home).expanduser() if self.home else default_home({})

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.home_path / 'eksbatch.db'}"

    @property
    def cloud_kind(self) -> Literal["embedded", "none", "ec2"]:
        """`auto` simulates instances for processes of this machine and buys none for a real cluster."""
        if self.cloud == "ec2":
            return "ec2"
        return "embedded" if self.cluster == "local" else "none"

    @property
    def auth_mode(self) -> Literal["open", "sigv4"]:
        """Whether requests must be signed: `auto` leaves only loopback open."""
        is_open = self.auth == "open" or (self.auth == "auto" and is_loopback(self.host))
        return "open" if is_open else "sigv4"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    group: str
    sentence: str
    choices: tuple[str, ...] = ()
    least: float = 0

    @property
    def most(self) -> int:
        return MOST_BY_UNIT.get(self.name.rpartition("_")[2], MOST)

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "EKSBATCH_" + self.name.upper()

    @property
    def default(self) -> str | int | float | bool:
        return getattr(_DEFAULTS, self.name)


_DEFAULTS = Settings()


def _setting(group: str, name: str, sentence: str, *choices: str, least: float = 0) -> Setting:
    return Setting(name=name, group=group, sentence=sentence, choices=choices, least=least)


WHERE, WHAT, PACE, TELL = "where", "capacity", "pace", "telling"
GROUPS = {
    WHERE: "where it lives",
    WHAT: "where jobs run",
    PACE: "pace and bounds",
    TELL: "logs and checks",
}
SETTINGS: tuple[Setting, ...] = (
    _setting(
        WHERE,
        "home",
        "Directory for the embedded database, outputs of jobs and service.json "
        "(empty: ~/.local/share/eksbatch).",
    ),
    _setting(
        WHERE,
        "database",
        "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME "
        "(empty: eksbatch.db in the home directory).",
    ),
    _setting(WHERE, "host", "Address to listen on."),
    _setting(WHERE, "port", "Port to listen on; 0 takes a free one.", least=0),
    _setting(
        WHERE,
        "advertise",
        "URL under which other replicas reach this one: a standby hands requests to the one that "
        "beats (empty: host and port).",
    ),
    _setting(
        WHERE,
        "auth",
        "sigv4: requests are signed with keys of `eksbatch keys`, or with that of service.json, which `eksbatch local` "
        "makes for itself; open: anybody who can connect may do anything, such as run programs in your name; auto: open "
        "on loopback, else sigv4.",
        "auto",
        "open",
        "sigv4",
    ),
    _setting(
        WHERE,
        "dashboard",
        "Who may look at the dashboard, and at the jobs and outputs it links to, without a key; local: browsers on the "
        "machine of the service, or through kubectl port-forward; open: whoever can connect, for a proxy that asks who "
        "they are; off: nobody.",
        "local",
        "open",
        "off",
    ),
    _setting(WHERE, "region", "AWS region that ARNs name."),
    _setting(
        WHERE,
        "lease_s",
        "One service beats on a database; a standby takes over this many seconds after it died.",
        least=1,
    ),
    _setting(
        WHAT,
        "cluster",
        "Where pods run; local: processes of this machine on simulated instances; kubeconfig: the "
        "clusters of a kubeconfig file, each compute environment in the context that its EKS cluster "
        "names, or in the only one; in-cluster: the cluster this service is a pod of.",
        "local",
        "kubeconfig",
        "in-cluster",
    ),
    _setting(
        WHAT,
        "kubeconfig",
        "File for --cluster kubeconfig (empty: $KUBECONFIG, or ~/.kube/config).",
    ),
    _setting(
        WHAT,
        "cloud",
        "Where instances come from; ec2: bought from Amazon EC2, for an EKS cluster; embedded: simulated, for "
        "--cluster local; none: nothing is bought, compute environments are UNMANAGED; auto: embedded with "
        "--cluster local, else none.",
        "auto",
        "embedded",
        "none",
        "ec2",
    ),
    _setting(
        WHAT,
        "aws_endpoint",
        "One URL for every AWS service that --cloud ec2 asks (empty: $AWS_ENDPOINT_URL, or AWS's own).",
    ),
    _setting(
        WHAT,
        "notices",
        "SQS queue, name or URL, into which EventBridge puts what EC2 says of instances: Spot interruptions, "
        "rebalance recommendations, state changes (empty: none are read).",
    ),
    _setting(
        WHAT,
        "launches_per_s",
        "Requests for instances, of up to ten equal ones each, in a second, after the first five: more only where AWS has "
        "raised the account's rate of RunInstances.",
        least=0.1,
    ),
    _setting(
        WHAT,
        "join_s",
        "Seconds from launch within which an instance must have joined its cluster; one that has not is ended, and "
        "another is tried elsewhere.",
        least=1,
    ),
    _setting(
        WHAT,
        "gather_s",
        "Seconds without new work before instances are bought, three times as many at most: what is submitted in one "
        "burst then shares machines.",
        least=0,
    ),
    _setting(
        WHAT,
        "idle_s",
        "Seconds an empty instance is kept, where its compute environment does not say.",
        least=0,
    ),
    _setting(
        WHAT,
        "launch_delay_s",
        "Seconds a simulated instance takes from request to ready.",
        least=0,
    ),
    _setting(
        WHAT,
        "on_demand_vcpus",
        "maxvCpus of the compute environment `on-demand` that a new embedded service begins with.",
        least=1,
    ),
    _setting(
        WHAT,
        "spot_vcpus",
        "maxvCpus of the compute environment `spot` that a new embedded service begins with.",
        least=1,
    ),
    _setting(
        PACE,
        "beat_ms",
        "Least time from one beat to the next: how long a submit waits to share a "
        "commit with others.",
        least=1,
    ),
    _setting(PACE, "beat_facts", "Most facts taken into one beat.", least=1),
    _setting(
        PACE,
        "inbox",
        "Requests that may wait for a beat; more are answered with TooManyRequestsException.",
        least=1,
    ),
    _setting(
        PACE,
        "calls",
        "Calls under way at once for the pods of one compute environment, and as many that put outputs away.",
        least=1,
    ),
    _setting(
        PACE,
        "keep_days",
        "Days that ended jobs, their attempts and events are kept.",
        least=0,
    ),
    _setting(
        PACE,
        "sqlite_pages",
        "Most pages (4 KiB) the SQLite file may have; 0: as many as the disk holds.",
        least=0,
    ),
    _setting(TELL, "log_format", "text for people, json for machines.", "text", "json"),
    _setting(TELL, "log_level", "Least severity that is logged.", *LOG_LEVELS),
    _setting(
        TELL,
        "check_plans",
        "Check every plan and the world's indexes: slow, for hunting bugs.",
    ),
)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def add_settings(parser: argparse.ArgumentParser, **preset: object) -> None:
    """An option for every setting; what is not given stays None and is looked up elsewhere.

    `preset` are defaults of this command that differ: help tells them.
    """
    for group, title in GROUPS.items():
        options = parser.add_argument_group(title)
        for setting in SETTINGS:
            if setting.group == group:
                _add_setting(options, setting, preset.get(setting.name, setting.default))


def _add_setting(options: argparse._ArgumentGroup, setting: Setting, default: object) -> None:
    default = "empty" if default == "" else default
    said = f"{setting.sentence} [{setting.variable}, default {default}]".replace("%", "%%")
    if isinstance(setting.default, bool):
        options.add_argument(setting.flag, action="store_const", const="true", help=said)
        return
    metavar = "|".join(setting.choices) or type(setting.default).__name__.upper()
    options.add_argument(setting.flag, metavar=metavar.replace("STR", "TEXT"), help=said)


def read_settings(
    given: Mapping[str, object], environ: Mapping[str, str], **preset: object
) -> Settings:
    """Settings from options, then environment variables, then `preset`, then defaults. Raises BadSetting."""
    values: dict[str, object] = dict(preset)
    for setting in SETTINGS:
        option, variable = given.get(setting.name), environ.get(setting.variable)
        if option is not None:
            values[setting.name] = _parse(setting, str(option), setting.flag)
        elif variable and not variable.startswith("tcp://"):
            # Kubernetes sets EKSBATCH_PORT=tcp://... in pods beside a Service named eksbatch.
            values[setting.name] = _parse(setting, variable, setting.variable)
    settings = Settings(**values)  # type: ignore[arg-type]
    _check_together(settings)
    return settings


def _parse(setting: Setting, text: str, said_by: str) -> object:
    kind = type(setting.default)
    if setting.choices and text not in setting.choices:
        raise BadSetting(f"{said_by} must be one of {', '.join(setting.choices)}, not {text!r}.")
    if kind is bool:
        if text.lower() not in _TRUE | _FALSE:
            raise BadSetting(f"{said_by} must be true or false, not {text!r}.")
        return text.lower() in _TRUE
    if kind is str:
        return text
    try:
        return number_from(text, int if kind is int else float, setting.least, setting.most)
    except ValueError as error:
        raise BadSetting(f"{said_by} {error}.") from None


def number_from(
    text: str, kind: type[int] | type[float], least: float, most: int = MOST
) -> int | float:
    """Raises ValueError with what is to follow the name of the number."""
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"must be {what}, not {text!r}") from None
    if not value >= least:
        raise ValueError(f"must be at least {least:g}, not {text}")
    if value > most:
        raise ValueError(f"must be at most {most}, not {text}")
    return value


_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _check_together(settings: Settings) -> None:
    if settings.port > 65_535:
        raise BadSetting(f"--port must be at most 65535, not {settings.port}.")
    if not REGION.fullmatch(settings.region):
        raise BadSetting(
            f"--region must be one like us-east-1, which ARNs name, not {settings.region!r}."
        )
    if settings.cloud == "embedded" and settings.cluster != "local":
        raise BadSetting(
            "--cloud embedded needs --cluster local: simulated instances hold no pods of Kubernetes."
        )
    if settings.cloud in ("ec2", "none") and settings.cluster == "local":
        raise BadSetting(f"--cloud {settings.cloud} needs --cluster kubeconfig or in-cluster.")
    if settings.auth == "open" and not is_loopback(settings.host):
        raise BadSetting(
            f"--auth open is for loopback only: with --host {settings.host} use --auth sigv4 and "
            "`eksbatch keys create`."
        )
