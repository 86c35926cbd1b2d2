"""Puts the service together; only here, and for stores in store/by_url.py, concrete adapters are named."""

from __future__ import annotations

import asyncio
import socket
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow_eksbatch.api.app import make_app
from airflow_eksbatch.api.dashboard import fetch_from
from airflow_eksbatch.api.port import ApiSettings
from airflow_eksbatch.cloud.port import Cloud
from airflow_eksbatch.cluster.outputs import Outputs
from airflow_eksbatch.cluster.port import Cluster
from airflow_eksbatch.core.engine.turn import StepSettings
from airflow_eksbatch.floor.clock import Backoff
from airflow_eksbatch.service import embedded
from airflow_eksbatch.service.broadcast import Broadcast, History, StreamSettings
from airflow_eksbatch.service.desk import CloudControl, ServiceDesk
from airflow_eksbatch.service.front import listen, url_of
from airflow_eksbatch.service.inbox import Inbox
from airflow_eksbatch.service.lease import Lease
from airflow_eksbatch.service.loop import BeatSettings, Clock, Loop
from airflow_eksbatch.service.performer import Performer, PerformerSettings
from airflow_eksbatch.service.process import STANDBY, OnReady, Parts, Process, run_process
from airflow_eksbatch.service.settings import BadSetting, Settings
from airflow_eksbatch.service.store_thread import StoreThread
from airflow_eksbatch.service.telemetry import Telemetry, configure_logging
from airflow_eksbatch.service.watchers import Watchers
from airflow_eksbatch.store.by_url import is_postgres, store_at
from airflow_eksbatch.store.port import Store
from airflow_eksbatch.web.app import make_web_app

if TYPE_CHECKING:  # What needs a package that is not always there
    from airflow_eksbatch.cloud.aws.client import Aws
    from airflow_eksbatch.cluster.kube.connection import Ways


def make_store(settings: Settings) -> Store:
    """The store of the settings; nothing is opened yet. Raises BadUrl."""
    return store_at(settings.database_url, sqlite_pages=settings.sqlite_pages or None)


def make_cluster_and_cloud(
    settings: Settings, telemetry: Telemetry, may_write: Callable[[], bool] = lambda: True
) -> tuple[Cluster, Cloud, CloudControl | None]:
    """Where pods run and where nodes come from; `may_write`: whether this service leads."""
    directory = settings.home_path
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise embedded.bad_home(directory, error) from error
    if settings.cluster != "local":
        cloud = _make_ec2(settings, telemetry) if settings.cloud_kind == "ec2" else _make_no_cloud()
        return _make_kubernetes(settings, telemetry, may_write), cloud, None
    from airflow_eksbatch.cloud.embedded import CloudSettings, EmbeddedCloud
    from airflow_eksbatch.cluster.local import LocalCluster

    cluster = LocalCluster(directory)
    cloud = EmbeddedCloud(
        directory, cluster, settings=CloudSettings(launch_delay_s=settings.launch_delay_s)
    )

    async def control(request: dict[str, Any]) -> dict[str, Any]:
        return cloud.control(request)

    return cluster, cloud, control


def make_ways(settings: Settings) -> Ways:
    """To the clusters of a kubeconfig, or to the one around us; that there is a way is looked at first."""
    try:
        from airflow_eksbatch.cluster.kube.connection import BadKubeconfig, InCluster, Kubeconfig
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"--cluster {settings.cluster} needs a package that is not here ({error.name}): "
            "pip install 'airflow-eksbatch[kubernetes]'."
        ) from error

    ways = InCluster() if settings.cluster == "in-cluster" else Kubeconfig(settings.kubeconfig)
    try:
        ways.place_of("")
    except BadKubeconfig as error:
        raise BadSetting(f"--cluster {settings.cluster}: {error}") from error
    return ways


def _make_kubernetes(
    settings: Settings, telemetry: Telemetry, may_write: Callable[[], bool]
) -> Cluster:
    ways = make_ways(settings)
    from airflow_eksbatch.cluster.kubernetes import KubernetesCluster

    return KubernetesCluster(
        ways,
        settings.home_path,
        tell_trouble=lambda trouble, failures: telemetry.watch_broke("cluster", trouble, failures),
        may_write=may_write,
        outputs=_make_outputs(settings, may_write),
    )


def _make_outputs(settings: Settings, may_keep: Callable[[], bool]) -> Outputs | None:
    """Beside the jobs, where other services may need them; None: on this machine."""
    if not is_postgres(settings.database_url):
        return None
    from airflow_eksbatch.store.postgres import postgres_outputs

    return postgres_outputs(settings.database_url, may_keep)


def make_aws(settings: Settings) -> Aws:
    """Credentials are looked for when AWS is first asked, as boto3 does: environment, web identity, instance role."""
    try:
        from airflow_eksbatch.cloud.aws.client import Aws, AwsSettings
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"--cloud ec2 needs a package that is not here ({error.name}): "
            "pip install 'airflow-eksbatch[ec2]'."
        ) from error
    return Aws(AwsSettings(region=settings.region, endpoint=settings.aws_endpoint))


def _make_ec2(settings: Settings, telemetry: Telemetry) -> Cloud:
    aws = make_aws(settings)
    aws.troubles.tell = telemetry.cloud_troubled
    from airflow_eksbatch.cloud.ec2 import Ec2Cloud, Ec2Settings

    return Ec2Cloud(
        aws, Ec2Settings(notices=settings.notices, launches_per_s=settings.launches_per_s)
    )


def _make_no_cloud() -> Cloud:
    from airflow_eksbatch.cloud.none import NoCloud

    return NoCloud()


def make_process(settings: Settings, owner: str, listening: socket.socket) -> Process:
    """All parts, joined; nothing runs yet."""
    clock, telemetry, inbox = Clock(), Telemetry(), Inbox(settings.inbox)
    store = StoreThread(make_store(settings))
    broadcast = _make_broadcast(store)
    lease = _make_lease(settings, owner, store, clock, telemetry)
    loop = Loop(
        store=store,
        inbox=inbox,
        broadcast=broadcast,
        telemetry=telemetry,
        clock=clock,
        hold_lease=lease.hold,
        step_settings=_step_settings(settings),
        settings=_beat_settings(settings),
    )
    cluster, cloud, control = make_cluster_and_cloud(settings, telemetry, lease.is_sure)
    performer = Performer(
        cluster=cluster,
        cloud=cloud,
        tell=inbox.tell,
        find_environment=loop.find_environment,
        telemetry=telemetry,
        settings=PerformerSettings(at_once=settings.calls),
    )
    loop.start_effects, performer.may_act = performer.start, lease.is_sure

    def metrics_text() -> bytes:
        return telemetry.exposition(
            loop.world,
            now=clock(),
            ready=not loop.trouble
            or (loop.trouble == STANDBY and lease.standby.leader is not None),
            leader=lease.is_sure(),
            inbox=len(inbox),
            undone=len(performer),
            streams=broadcast.subscribers,
        )

    desk = ServiceDesk(
        _api_settings(settings, url_of(listening)),
        loop=loop,
        inbox=inbox,
        store=store,
        broadcast=broadcast,
        cluster=cluster,
        control=control,
        metrics_text=metrics_text,
        tell_changed=telemetry.changed,
        tell_denied=telemetry.denied,
    )
    watches = {"cluster": cluster.watch, "cloud": cloud.watch}
    return Process(
        Parts(
            store=store,
            inbox=inbox,
            loop=loop,
            performer=performer,
            watchers=Watchers(watches, tell=inbox.tell, telemetry=telemetry, backoff=Backoff()),
            lease=lease,
            broadcast=broadcast,
            telemetry=telemetry,
            cluster=cluster,
            cloud=cloud,
            desk=desk,
            app=make_app(desk, make_web_app(fetch_from(desk))),
            clock=clock,
            keep_ms=int(settings.keep_days * 86_400_000),
        )
    )


def _make_lease(
    settings: Settings, owner: str, store: StoreThread, clock: Clock, telemetry: Telemetry
) -> Lease:
    return Lease(
        owner,
        settings.lease_s,
        store=store,
        make_store=lambda: make_store(settings),
        clock=clock,
        telemetry=telemetry,
    )


def _api_settings(settings: Settings, url: str) -> ApiSettings:
    return ApiSettings(
        region=settings.region,
        auth=settings.auth_mode,
        dashboard=settings.dashboard,
        base_url=url,
    )


def _step_settings(settings: Settings) -> StepSettings:
    return StepSettings(
        idle_s=settings.idle_s,
        join_s=settings.join_s,
        gather_s=settings.gather_s,
        check_plans=settings.check_plans,
    )


def _beat_settings(settings: Settings) -> BeatSettings:
    return BeatSettings(
        interval_s=settings.beat_ms / 1000,
        facts_max=settings.beat_facts,
        check_indexes=settings.check_plans,
    )


def _make_broadcast(store: StoreThread) -> Broadcast:
    history = History(
        events_since=lambda seq, limit: store.ask(lambda s: s.events_since(seq, limit)),
        first_seq=lambda: store.ask(lambda s: s.first_event_seq()),
    )
    return Broadcast(StreamSettings(), history)


def serve_for_ever(settings: Settings) -> int:
    """`eksbatch serve`."""
    configure_logging(as_json=settings.log_format == "json", level=settings.log_level)

    async def on_ready(process: Process) -> None:
        process.parts.telemetry.log.info("ready", url=process.parts.desk.settings.base_url)

    return _run(settings, settings.port, on_ready)


def serve_embedded(
    settings: Settings, leave_after_minutes: float | None, flags: Sequence[str] = ()
) -> int:
    """`eksbatch local`: become the service of this home, or name the one that is, which knows nothing of our `flags`."""
    configure_logging(as_json=settings.log_format == "json", level=settings.log_level)
    home = embedded.Home(settings.home_path)
    try:
        url = home.lock_or_find()
    except TimeoutError:
        raise BadSetting(
            f"Another service holds {home.path / 'lock'} but does not answer; end it, or choose "
            "another --home."
        ) from None
    if url is not None:
        unheard = f"; end it first for {', '.join(flags)} to be in effect" if flags else ""
        print(f"eksbatch: A service of this home runs already{unheard}.", file=sys.stderr)
        print(url, flush=True)
        return 0
    background: set[asyncio.Task[None]] = set()

    async def on_ready(process: Process) -> None:
        await embedded.set_up(process.parts.desk, settings)
        if settings.cluster == "local":
            from airflow_eksbatch.cluster.local import NOTICE

            process.parts.telemetry.log.info(NOTICE)
        is_open = process.parts.desk.settings.auth == "open"
        key = None if is_open else await process.parts.store.ask(embedded.own_key)
        home.announce(process.parts.desk.settings.base_url, key)
        print(process.parts.desk.settings.base_url, flush=True)
        if leave_after_minutes is not None:
            background.add(
                asyncio.create_task(embedded.leave_when_idle(process, home, leave_after_minutes))
            )

    # The lock of the home keeps others out, so the lease of a killed service needs no waiting for.
    owner = f"{embedded.OWNER} {socket.gethostname()} {home.path.resolve()}".replace("#", "%23")
    try:
        return _run(settings, settings.port, on_ready, owner=owner, preferred=home.last_port())
    finally:
        home.withdraw()


def _run(
    settings: Settings, port: int, on_ready: OnReady, *, owner: str = "", preferred: int = 0
) -> int:
    """Without an owner it is a replica: named by where it is reached, and like no other."""
    listening = _listen(settings.host, port, preferred)
    owner = owner or f"{settings.advertise or url_of(listening)}#{uuid.uuid4().hex}"
    return run_process(lambda: (make_process(settings, owner, listening), listening, on_ready))


def _listen(host: str, port: int, preferred: int) -> socket.socket:
    """The port that was asked for, or else the preferred one if it is free, or else any."""
    try:
        if not port and preferred:
            try:
                return listen(host, preferred)
            except OSError:
                return listen(host, 0)
        return listen(host, port)
    except OSError as error:
        raise BadSetting(
            f"Cannot listen on {host}:{port} ({error.strerror or error}): choose another --port or --host."
        ) from error
