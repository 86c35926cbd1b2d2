"""When a node counts, what it has room for, when it is closed, and when it is given up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.cluster.kube.node_book import (
    DAEMONS_S_MAX,
    NOT_READY_S_MAX,
    PARTITION_S_MAX,
    UNREACHABLE_S_MAX,
    NodeBook,
)
from airflow_eksbatch.cluster.kube.objects import Condition, ResourceLists
from airflow_eksbatch.core.engine.facts import (
    Fact,
    NodeClosed,
    NodeFound,
    NodeLost,
    NodeReady,
    NodesListed,
)
from airflow_eksbatch.core.model.compute_environment import Market
from airflow_eksbatch.core.model.node import NodeId
from airflow_eksbatch.core.model.resources import Resources
from tests.cluster.objects import (
    MANAGED,
    TAINTS,
    UNMANAGED,
    a_daemon_set,
    a_kube_node,
    a_pod_beside,
    own_node,
)

WHOLE = Resources(cpu_m=4000, memory_mib=8192, pods=58)


class Bench:
    """A book with a clock of its own."""

    def __init__(self) -> None:
        self.busy: set[str] = set()
        self.book = NodeBook(self.busy.__contains__)
        self.book.put_environments({e.uuid: e for e in (MANAGED, UNMANAGED)})
        self.book.is_complete = True
        self.now_s = 1000.0

    def news(self, *, after_s: float = 0.0) -> list[Fact]:
        self.now_s += after_s
        self.book.tick()
        return self.book.news(self.now_s, int(self.now_s * 1000))

    def join(self, name: str = "ip-1", **fields: Any) -> None:
        """A node that counts."""
        self.book.put_node(a_kube_node(name, **fields))
        self.news()

    def room(self) -> Resources:
        """As it was told last, in this look."""
        ready = [fact for fact in self.news() if isinstance(fact, NodeReady)]
        return ready[-1].allocatable


@pytest.fixture
def bench() -> Bench:
    return Bench()


def closed_reasons(facts: list[Fact]) -> list[str | None]:
    return [fact.reason for fact in facts if isinstance(fact, NodeClosed)]


# ---- joining


def test_a_ready_node_with_our_labels_and_taint_counts(bench: Bench) -> None:
    bench.book.put_node(a_kube_node())
    ready, opened = bench.news()
    assert ready == NodeReady(
        node_id=NodeId("node-1"), node_name="ip-1", allocatable=WHOLE, at=1_000_000
    )
    assert opened == NodeClosed(node_id=NodeId("node-1"), reason=None, at=1_000_000)
    assert bench.news() == []


def test_a_node_that_was_told_no_node_id_is_called_by_its_instance(bench: Bench) -> None:
    bench.join(node_id=None, providerID="aws:///us-east-1a/i-0123")
    (fact,) = bench.book.full_look(0)[:1]
    assert isinstance(fact, NodesListed)
    assert fact.nodes == {NodeId("i-0123")}
    assert bench.book.takes_pods(NodeId("i-0123"), "ip-1")
    assert not bench.book.takes_pods(NodeId("i-4567"), "ip-1")


@pytest.mark.parametrize("kept", [[], TAINTS[:1], TAINTS[1:]])
def test_a_managed_node_without_its_whole_taint_does_not_count(
    bench: Bench, kept: list[dict[str, str]]
) -> None:
    bench.book.put_node(a_kube_node(taints=kept))
    assert bench.news() == []
    bench.book.put_node(a_kube_node())
    assert isinstance(bench.news()[0], NodeReady)


def test_nodes_of_nobody_we_know_are_left_alone_until_we_hear_of_their_environment() -> None:
    bench = Bench()
    bench.book.put_environments({})
    bench.book.put_node(a_kube_node())
    assert bench.news() == []
    bench.book.put_environments({MANAGED.uuid: MANAGED})
    assert isinstance(bench.news()[0], NodeReady)


def test_nothing_counts_before_everything_was_listed_once(bench: Bench) -> None:
    bench.book.is_complete = False
    bench.book.put_node(a_kube_node())
    assert bench.news() == []
    bench.book.is_complete = True
    assert isinstance(bench.news()[0], NodeReady)


def test_a_node_counts_when_its_daemon_sets_run(bench: Bench) -> None:
    bench.book.put_daemon_set(a_daemon_set())
    bench.book.put_node(a_kube_node())
    assert bench.news() == []
    bench.book.put_pod(a_pod_beside(ready=False))
    assert bench.news() == []
    bench.book.put_pod(a_pod_beside())
    assert bench.room() == WHOLE.minus(Resources(cpu_m=100, memory_mib=64, pods=1))


def test_a_daemon_set_that_never_runs_does_not_keep_a_node_from_working(bench: Bench) -> None:
    bench.book.put_daemon_set(a_daemon_set())
    bench.book.put_node(a_kube_node())
    assert bench.news(after_s=1) == []
    assert bench.news(after_s=DAEMONS_S_MAX - 1) == []
    ready = bench.news(after_s=1)[0]
    assert isinstance(ready, NodeReady)
    assert ready.allocatable == WHOLE.minus(Resources(cpu_m=100, memory_mib=64, pods=1))


def test_a_node_with_a_start_up_taint_waits_until_it_is_taken_away(bench: Bench) -> None:
    young = [*TAINTS, {"key": "node.cilium.io/agent-not-ready", "effect": "NoExecute"}]
    bench.book.put_node(a_kube_node(taints=young))
    assert not any(isinstance(fact, NodeReady) for fact in bench.news())
    bench.book.put_node(a_kube_node())
    assert [type(fact) for fact in bench.news()] == [NodeReady, NodeClosed]


# ---- room


def test_what_others_take_and_daemon_sets_owe_is_not_ours(bench: Bench) -> None:
    """1. a pod of others; 2. a new DaemonSet owes a pod; 3. the pod comes, larger; 4. the others' pod ends."""
    bench.join()
    bench.book.put_pod(a_pod_beside(of=None, name="stranger", cpu="1", memory="1Gi"))
    assert bench.room() == Resources(cpu_m=3000, memory_mib=7168, pods=57)
    bench.book.put_daemon_set(a_daemon_set("logs", cpu="200m"))
    assert bench.room() == Resources(cpu_m=2800, memory_mib=7104, pods=56)
    bench.book.put_pod(a_pod_beside(of="logs", cpu="250m", ready=False))
    assert bench.room() == Resources(cpu_m=2750, memory_mib=7104, pods=56)
    bench.book.put_pod(a_pod_beside(of=None, name="stranger", phase="Succeeded"))
    assert bench.room() == Resources(cpu_m=3750, memory_mib=8128, pods=57)
    bench.book.drop_daemon_set("uid-logs")
    bench.book.drop_pod("uid-logs-ip-1")
    assert bench.room() == WHOLE


def test_a_daemon_set_that_replaces_its_pod_changes_nothing(bench: Bench) -> None:
    bench.book.put_daemon_set(a_daemon_set())
    bench.book.put_pod(a_pod_beside())
    bench.join()
    bench.book.drop_pod("uid-cni-ip-1")
    assert bench.news() == []
    bench.book.put_pod(a_pod_beside(ready=False))
    assert bench.news() == []


def test_room_is_rounded_down_and_never_below_nothing(bench: Bench) -> None:
    bench.join(cpu="3920m", memory="7934588Ki", devices={"nvidia.com/gpu": "2"})
    bench.book.put_pod(a_pod_beside(of=None, cpu="5", memory="1000001"))
    assert bench.room() == Resources(cpu_m=0, memory_mib=7747, gpu=2, pods=57)


def test_what_the_kubelet_offers_is_followed(bench: Bench) -> None:
    bench.join()
    bench.book.put_node(a_kube_node(memory="7Gi"))
    assert bench.room() == Resources(cpu_m=4000, memory_mib=7168, pods=58)


@pytest.mark.parametrize(
    ("spec", "runs"),
    [
        ({}, True),
        ({"tolerations": []}, False),
        ({"tolerations": [{"key": TAINTS[0]["key"], "operator": "Exists"}]}, True),
        ({"tolerations": [{**TAINTS[0], "operator": "Exists"}]}, False),
        ({"nodeSelector": {"kubernetes.io/arch": "arm64"}}, True),
        ({"nodeSelector": {"kubernetes.io/arch": "amd64"}}, False),
    ],
)
def test_only_daemon_sets_that_come_are_waited_for(
    bench: Bench, spec: dict[str, Any], runs: bool
) -> None:
    bench.book.put_daemon_set(a_daemon_set(**spec))
    bench.book.put_node(a_kube_node(labels={"kubernetes.io/arch": "arm64"}))
    assert (bench.news() == []) is runs


@pytest.mark.parametrize(
    ("operator", "values", "runs"),
    [
        ("In", ["a", "b"], True),
        ("In", ["b"], False),
        ("NotIn", ["b"], True),
        ("NotIn", ["a"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
        ("Gt", ["1"], False),
        ("Lt", ["1"], False),
    ],
)
@pytest.mark.parametrize("field", ["matchExpressions", "matchFields"])
def test_daemon_sets_follow_node_affinity(
    bench: Bench, operator: str, values: list[str], runs: bool, field: str
) -> None:
    key = "zone" if field == "matchExpressions" else "metadata.name"
    term = {field: [{"key": key, "operator": operator, "values": values}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    bench.book.put_daemon_set(a_daemon_set(affinity={"nodeAffinity": required}))
    bench.book.put_node(a_kube_node("a", labels={"zone": "a"}))
    assert (bench.news() == []) is runs


# ---- closing


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unschedulable": True}, "cordoned"),
        ({"conditions": [{"type": "DiskPressure", "status": "True"}]}, "DiskPressure"),
        (
            {"taints": [*TAINTS, {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]},
            "taint karpenter.sh/disrupted",
        ),
        ({"ready": "False"}, "the node is not ready"),
        ({"ready": "Unknown"}, "the node is not ready"),
        (
            {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
            "the node is being deleted",
        ),
    ],
)
def test_a_node_in_trouble_is_closed_and_opened_again(
    bench: Bench, change: dict[str, Any], reason: str
) -> None:
    bench.join()
    bench.book.put_node(a_kube_node(**change))
    assert closed_reasons(bench.news()) == [reason]
    bench.book.put_node(a_kube_node())
    assert closed_reasons(bench.news()) == [None]


def test_a_preference_not_to_be_used_closes_nothing(bench: Bench) -> None:
    bench.join()
    bench.book.put_node(
        a_kube_node(taints=[*TAINTS, {"key": "soft", "effect": "PreferNoSchedule"}])
    )
    assert bench.news() == []


def test_a_service_that_starts_anew_tells_of_nodes_that_are_closed(bench: Bench) -> None:
    bench.book.put_node(a_kube_node(unschedulable=True))
    assert closed_reasons(bench.news()) == ["cordoned"]


# ---- loss


def test_a_deleted_node_is_lost(bench: Bench) -> None:
    bench.join()
    bench.book.drop_node("ip-1")
    (lost,) = bench.news()
    assert isinstance(lost, NodeLost)
    assert lost.node_id == "node-1"


def test_an_unreachable_node_is_lost_after_a_while_and_may_come_back(bench: Bench) -> None:
    bench.join()
    bench.book.put_node(a_kube_node(ready="Unknown"))
    assert closed_reasons(bench.news()) == ["the node is not ready"]
    assert bench.news(after_s=UNREACHABLE_S_MAX - 1) == []
    (lost,) = bench.news(after_s=1)
    assert isinstance(lost, NodeLost)
    assert not bench.book.takes_pods(NodeId("node-1"), "ip-1")
    assert bench.news(after_s=1000) == []
    bench.book.put_node(a_kube_node())
    assert [type(fact) for fact in bench.news()] == [NodeReady, NodeClosed]


def test_a_node_that_is_not_ready_gets_more_time_than_one_that_is_silent(bench: Bench) -> None:
    bench.join()
    bench.book.put_node(a_kube_node(ready="False"))
    bench.news()
    assert bench.news(after_s=NOT_READY_S_MAX - 1) == []
    assert isinstance(bench.news(after_s=1)[0], NodeLost)


def test_a_short_silence_is_forgotten(bench: Bench) -> None:
    bench.join()
    for ready in ("Unknown", "True", "Unknown"):
        bench.book.put_node(a_kube_node(ready=ready))
        assert closed_reasons(bench.news(after_s=UNREACHABLE_S_MAX - 1)) != []
    assert bench.news(after_s=UNREACHABLE_S_MAX - 1) == []


def test_when_most_nodes_are_silent_at_once_it_is_the_network_and_they_are_kept(
    bench: Bench,
) -> None:
    names = [f"ip-{number}" for number in range(5)]
    for name in names:
        bench.join(name, node_id=name)
    for name in names[:3]:
        bench.book.put_node(a_kube_node(name, node_id=name, ready="Unknown"))
    assert len(bench.news()) == 3
    assert bench.news(after_s=PARTITION_S_MAX - 1) == []
    assert len(bench.news(after_s=1)) == 3


class Counted(list[Condition]):
    """Conditions that count how often they are read."""

    reads = 0

    def __iter__(self) -> Iterator[Condition]:
        Counted.reads += 1
        return super().__iter__()


def reads_in_a_partition(nodes: int) -> int:
    """All nodes fall silent one after the other, as a watch tells it, and time passes."""
    bench = Bench()
    for number in range(nodes):
        bench.join(f"ip-{number}", node_id=f"node-{number}")
    Counted.reads = 0
    for number in range(nodes):
        silent = a_kube_node(f"ip-{number}", node_id=f"node-{number}", ready="Unknown")
        counted = Counted(silent.status.conditions)
        status = msgspec.structs.replace(silent.status, conditions=counted)
        bench.book.put_node(msgspec.structs.replace(silent, status=status))
        assert len(bench.book.news(bench.now_s, 0)) == 1
    assert bench.news(after_s=PARTITION_S_MAX - 1) == []
    assert len(bench.news(after_s=1)) == nodes
    return Counted.reads


def test_a_partition_costs_each_node_the_same_however_many_there_are() -> None:
    few, many = reads_in_a_partition(200), reads_in_a_partition(400)
    assert few > 200
    assert many == 2 * few


def test_another_node_of_the_same_name_is_another_node(bench: Bench) -> None:
    bench.join()
    bench.book.put_node(a_kube_node(node_id="node-2"))
    assert [type(fact) for fact in bench.news()] == [NodeLost, NodeReady, NodeClosed]
    assert bench.book.takes_pods(NodeId("node-2"), "ip-1")
    assert not bench.book.takes_pods(NodeId("node-1"), "ip-1")


def test_a_full_look_names_the_nodes_that_are_there(bench: Bench) -> None:
    bench.join()
    bench.join("ip-2", node_id="node-2")
    bench.book.drop_node("ip-2")
    assert bench.book.full_look(5) == [
        NodesListed(compute_environment="ce", nodes=frozenset({NodeId("node-1")}), at=5),
        NodesListed(compute_environment="own", nodes=frozenset(), at=5),
    ]


# ---- nodes of others


def test_a_node_of_an_unmanaged_environment_needs_no_taint_and_says_what_it_is(
    bench: Bench,
) -> None:
    bench.book.put_node(
        own_node(
            labels={
                "node.kubernetes.io/instance-type": "rack-7",
                "topology.kubernetes.io/zone": "hall-2",
                "eks.amazonaws.com/capacityType": "SPOT",
            }
        )
    )
    found = bench.news()[0]
    assert isinstance(found, NodeFound)
    assert (found.node_id, found.compute_environment) == ("uid-ip-1", "own")
    assert found.offering.pool == "rack-7/hall-2/SPOT"
    assert (found.offering.vcpus, found.offering.market) == (4, Market.SPOT)
    assert found.offering.price_usd_hour == 0


def test_what_a_pod_asks_for_as_a_whole_counts_for_its_containers(bench: Bench) -> None:
    """Pod-level resources, of Kubernetes 1.34; memory is not among them here."""
    bench.join()
    beside = a_pod_beside(of=None, cpu="100m", memory="64Mi")
    spec = msgspec.structs.replace(beside.spec, resources=ResourceLists(requests={"cpu": "1"}))
    bench.book.put_pod(msgspec.structs.replace(beside, spec=spec))
    assert bench.room() == Resources(cpu_m=3000, memory_mib=8192 - 64, pods=57)


def test_a_node_whose_label_is_taken_away_works_off_what_it_has(bench: Bench) -> None:
    bench.book.put_node(own_node())
    bench.busy.add("ip-1")
    bench.news()
    bench.book.release_node("ip-1", a_kube_node(environment="", node_id=None))
    assert closed_reasons(bench.news()) == ["its label was taken away"]
    bench.busy.clear()
    bench.book.touch({"ip-1"})
    assert [type(fact) for fact in bench.news()] == [NodeLost]
    assert bench.book.names() == set()


def test_a_node_without_its_label_that_is_lost_holds_no_jobs_for_ever(bench: Bench) -> None:
    """Our watch does not tell of it any more: it is looked at, and how it is counts."""
    bench.book.put_node(own_node())
    bench.busy.add("ip-1")
    bench.news()
    bench.book.release_node("ip-1", own_node())
    assert bench.book.released() == {"ip-1"}
    bench.book.release_node("ip-1", own_node(ready="Unknown"))
    bench.news()
    assert [type(fact) for fact in bench.news(after_s=UNREACHABLE_S_MAX)] == [NodeLost]


def test_a_node_that_is_given_another_environment_works_off_what_it_has_and_is_found_there() -> (
    None
):
    bench = Bench()
    other = msgspec.structs.replace(UNMANAGED, name="other", uuid="uuid-other")
    bench.book.put_environments({e.uuid: e for e in (UNMANAGED, other)})
    bench.book.put_node(own_node())
    bench.busy.add("ip-1")
    bench.news()
    bench.book.put_node(own_node(environment=other.uuid))
    assert closed_reasons(bench.news()) == ["its label was taken away"]
    assert [set(f.nodes) for f in bench.book.full_look(0) if isinstance(f, NodesListed)] == [
        {"uid-ip-1"},
        set(),
    ]
    bench.busy.clear()
    bench.book.touch({"ip-1"})
    lost, found, _ = bench.news()
    assert isinstance(lost, NodeLost)
    assert isinstance(found, NodeFound)
    assert found.compute_environment == "other"


def test_a_node_is_not_given_up_on_old_news(bench: Bench) -> None:
    """
    1. It was unreachable when we last heard of it, longer ago than it is waited for.
    2. The API server is away: it may be well by now.
    3. It says that it is.
    """
    bench.join()
    bench.book.put_node(a_kube_node(ready="Unknown"))
    bench.news()
    assert bench.book.given_up(bench.now_s) == []
    bench.now_s += UNREACHABLE_S_MAX
    assert bench.book.given_up(bench.now_s) == ["ip-1"]
    bench.book.tick(["ip-1"])
    assert bench.book.news(bench.now_s, 0) == []
    bench.book.put_node(a_kube_node())
    assert closed_reasons(bench.news()) == [None]


def test_a_new_listener_is_told_everything_that_is_so(bench: Bench) -> None:
    bench.join()
    bench.join("ip-2", node_id="node-2", unschedulable=True)
    bench.book.put_node(a_kube_node(unschedulable=True))
    bench.news()
    assert [type(fact) for fact in bench.book.again(7)] == [NodeReady, NodeClosed]
    assert closed_reasons(bench.book.again(7)) == ["cordoned"]
