"""Two replicas on one PostgreSQL and a real API server: one leads, and the other goes on wherever that stops."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.airflow.processes import wait_for
from tests.airflow.rig import free_port
from tests.contracts.databases import Database, Postgres, get_server
from tests.kubernetes.bed import a_plane, service_for
from tests.kubernetes.load import ENDS_WITHIN_S, PODS, Load, a_load, errors, submit
from tests.kubernetes.rig import history
from tests.kubernetes.rig.control_plane import ControlPlane
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.kubernetes.rig.proxy import Faults, Proxy
from tests.service.running import RunningService

# 100 submits are 25 arrays of 20 and 75 jobs.
SUBMITS, FEW = 100, 60
EXIT_FENCED = 3
AHEAD = ("-m", "tests.kubernetes.rig.skewed", "3600")
MakeReplica = Callable[..., RunningService]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with a_plane(tmp_path_factory.mktemp("plane"), api_flags=history.API_FLAGS) as plane:
        yield plane


@pytest.fixture(scope="module")
def nodes(plane: ControlPlane) -> FakeNodes:
    return FakeNodes(plane)


class Server:
    """A PostgreSQL of these tests' own, because it is restarted."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._running = get_server(data)

    @property
    def url(self) -> str:
        return self._running.get_uri()

    def restart(self) -> None:
        """All connections are broken, and all transactions."""
        self._running.cleanup()
        self._running = get_server(self._data)

    def close(self) -> None:
        self._running.cleanup()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="eksbatch-postgres-") as directory:
        server = Server(Path(directory) / "data")
        yield server
        server.close()


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    postgres = Postgres(server.url)
    database = postgres.database()
    yield database
    postgres.drop(database)


@pytest.fixture
def make_replica(plane: ControlPlane, database: Database, tmp_path: Path) -> Iterator[MakeReplica]:
    """Not started yet; each listens where it is known before, and may have a way to the API server of its own."""
    with ExitStack() as ends:

        def make(kubeconfig: Path | None = None, lease_s: int = 10) -> RunningService:
            port = free_port()
            options = ("--database", database.url, "--port", str(port), "--check-plans")
            options += ("--lease-s", str(lease_s))
            kubeconfig = kubeconfig or plane.kubeconfig("eksbatch")
            replica = ends.enter_context(
                service_for(kubeconfig, tmp_path / f"replica-{port}", *options)
            )
            replica.url = f"http://127.0.0.1:{port}"
            return replica

        yield make


@contextmanager
def a_burst(
    plane: ControlPlane, nodes: FakeNodes, leader: RunningService, standby: RunningService
) -> Iterator[Load]:
    """Everybody asks the standby only; when this begins some of the pods are there and most are not."""
    leader.start()
    standby.start_beside()
    with a_load(plane, nodes, standby) as load:
        load.begin(SUBMITS)
        load.wait_for_pods(FEW)
        yield load


def check(load: Load) -> None:
    """As in every load; nothing was placed a second time either: whoever led knew of every pod."""
    lives = load.check()
    assert len(lives) == sum(load.jobs.values())


def took_over(standby: RunningService, since: datetime) -> float:
    """Seconds until it was ready."""
    standby.wait_until_ready()
    lines = [json.loads(line) for line in standby.output if '"event": "ready"' in line]
    return (datetime.fromisoformat(lines[-1]["timestamp"]) - since).total_seconds()


def test_a_leader_is_killed_in_a_burst(
    plane: ControlPlane, nodes: FakeNodes, make_replica: MakeReplica
) -> None:
    leader, standby = make_replica(), make_replica()
    with a_burst(plane, nodes, leader, standby) as load:
        leader.kill()
        killed_at = datetime.now(UTC)
        print(f"the standby took over after {took_over(standby, killed_at):.1f} s")
        check(load)


@pytest.mark.parametrize("within_a_commit", [False, True], ids=["anywhere", "in a commit"])
def test_a_leader_that_was_stopped_is_fenced(
    plane: ControlPlane,
    nodes: FakeNodes,
    database: Database,
    make_replica: MakeReplica,
    within_a_commit: bool,
) -> None:
    """1. SIGSTOP; 2. the standby goes on; 3. SIGCONT: not a pod is created or deleted, not a row written; 4. it ends."""
    with Proxy(plane) as proxy:
        leader, standby = make_replica(proxy.kubeconfig("eksbatch")), make_replica()
        with a_burst(plane, nodes, leader, standby) as load:
            assert leader.process is not None
            with in_a_commit(database) if within_a_commit else nullcontext():
                stop_between_writes(proxy, leader)
            stopped_at = datetime.now(UTC)
            print(f"the standby took over after {took_over(standby, stopped_at):.1f} s")
            before = writes(proxy)
            leader.process.send_signal(signal.SIGCONT)
            proxy.faults = Faults()
            assert leader.process.wait(ENDS_WITHIN_S) == EXIT_FENCED
            assert writes(proxy) == before
            check(load)
        last = errors(leader)[-1]
        assert last["event"] == "stopped: the lease is lost"


@contextmanager
def in_a_commit(database: Database) -> Iterator[None]:
    """While the leader holds the row of the lease, as every commit does."""
    waits = (
        "SELECT count(*) FROM pg_locks WHERE relation = 'eksbatch_jobs'::regclass AND NOT granted"
    )
    with database.open_raw() as connection:
        connection.exec_driver_sql("LOCK TABLE eksbatch_jobs IN ACCESS EXCLUSIVE MODE")
        wait_for(
            "a commit to wait for the table",
            lambda: connection.exec_driver_sql(waits).scalar_one(),
            within_s=60,
        )
        yield


def stop_between_writes(proxy: Proxy, leader: RunningService) -> None:
    """Where every write under way waits for its answer: nobody can call back what a system call is about to send."""
    proxy.faults = Faults(holds_answers=True)
    before = -1

    def none_comes() -> bool:
        nonlocal before
        before, was = writes(proxy), before
        return before == was

    wait_for("all writes to be under way", none_comes, within_s=60, poll_s=0.5)
    assert leader.process is not None
    leader.process.send_signal(signal.SIGSTOP)


def writes(proxy: Proxy) -> int:
    return sum(count for asked, count in list(proxy.asked.items()) if asked.is_write)


def test_a_database_is_restarted_and_leadership_goes_on(
    plane: ControlPlane, nodes: FakeNodes, server: Server, make_replica: MakeReplica
) -> None:
    """1. it goes down at once, with every connection; 2. both replicas live; 3. the standby still takes over."""
    # Longer than a restart takes on a machine that does much else.
    leader, standby = make_replica(lease_s=20), make_replica(lease_s=20)
    with a_burst(plane, nodes, leader, standby) as load:
        server.restart()
        load.wait_for_pods(FEW * 4)
        assert leader.process is not None
        assert leader.process.poll() is None
        assert {line["event"] for line in errors(leader)} <= {"the store failed"}
        leader.kill()
        standby.wait_until_ready()
        check(load)


def test_replicas_whose_clocks_differ_do_not_take_the_lease_from_each_other(
    plane: ControlPlane, nodes: FakeNodes, make_replica: MakeReplica
) -> None:
    """1. the standby's clock is an hour ahead; 2. it stands by while jobs end; 3. it goes on when the leader is gone."""
    leader, standby = make_replica(), make_replica()
    standby.program = AHEAD
    with a_burst(plane, nodes, leader, standby) as load:
        load.wait_for_pods(FEW * 4)
        assert "ready" not in standby.text
        leader.kill()
        standby.wait_until_ready()
        check(load)


def test_what_a_job_said_is_there_after_its_pod_and_its_leader_are_gone(
    plane: ControlPlane, nodes: FakeNodes, make_replica: MakeReplica
) -> None:
    """1. a job ends, its pod goes; 2. kill -9; 3. the standby, with a disk of its own, tells the same output."""
    leader, standby = make_replica(), make_replica()
    leader.start()
    standby.start_beside()
    with a_load(plane, nodes, standby) as load:
        job_id = submit(load.batch, "work")
        assert standby.wait_for_ends({job_id}) == {job_id: "SUCCEEDED"}
        plane.wait_for("its pod to go", lambda: not plane.admin.list(PODS))
        leader.kill()
        standby.wait_until_ready()
        said = standby.get(f"/v1/eksbatch/jobs/{job_id}/log")
        # A fake node's kubelet has no output; this is what is kept instead.
        assert said.startswith(f"eksbatch: the output of {job_id}-0-1 on ")
