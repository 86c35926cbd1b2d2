"""What pods say of their end, in the words of retryStrategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from airflow_eksbatch.cluster.kube.conditions import (
    end_of_vanished,
    facts_from_pod,
    trouble_of,
)
from airflow_eksbatch.cluster.kube.objects import Pod, epoch_ms
from airflow_eksbatch.core.engine.facts import Fact, PodEnded, PodRefused, PodRunning, PodSeen
from airflow_eksbatch.core.model.job import PodName
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause
from tests.cluster.objects import a_kube_pod, ended, running, waiting

NOW = epoch_ms("2026-01-01T01:00:00Z") or 0


def facts_of(pod: Pod, *, asked: bool = False, now: int = NOW) -> list[Fact]:
    return facts_from_pod(pod, now, host="i-1", asked=asked)


def end_of(pod: Pod, *, asked: bool = False) -> AttemptEnd:
    last = facts_of(pod, asked=asked)[-1]
    assert isinstance(last, PodEnded)
    return last.end


# ---- lives


def test_a_pod_is_seen_then_runs_then_ends() -> None:
    kinds = [type(fact) for fact in facts_of(a_kube_pod(status=ended()))]
    assert kinds == [PodSeen, PodRunning, PodEnded]
    assert [type(fact) for fact in facts_of(a_kube_pod(status=running()))] == kinds[:2]
    assert [type(fact) for fact in facts_of(a_kube_pod())] == kinds[:1]


def test_times_are_the_kubelets_unless_we_have_just_seen_it_happen() -> None:
    """Kubernetes has whole seconds; what we see within two of them is ours to tell."""
    started = epoch_ms("2026-01-01T00:00:00Z")
    late, at_once = (
        facts_of(a_kube_pod(status=running()), now=now)[-1] for now in (NOW, (started or 0) + 900)
    )
    assert isinstance(late, PodRunning)
    assert late.at == started
    assert isinstance(at_once, PodRunning)
    assert at_once.at == (started or 0) + 900


@pytest.mark.parametrize("ahead_ms", [3_600_000, -3_600_000], ids=["ahead", "behind"])
def test_times_of_the_kubelet_are_told_by_our_clock(ahead_ms: int) -> None:
    """Timeouts count from when it began: an hour between two clocks is no hour of running."""
    now = NOW + ahead_ms
    pod = a_kube_pod(status=ended())
    _, began, over = facts_from_pod(pod, now, host="i-1", asked=False, ahead_ms=ahead_ms)
    _, began_there, over_there = facts_of(pod)
    assert isinstance(began, PodRunning)
    assert isinstance(began_there, PodRunning)
    assert began.at - began_there.at == ahead_ms
    assert isinstance(over, PodEnded)
    assert isinstance(over_there, PodEnded)
    assert over.at - over_there.at == ahead_ms


def test_a_running_pod_is_told_with_its_address_as_soon_as_it_has_one() -> None:
    bare, placed = (
        facts_of(a_kube_pod(status=running() | more))[-1] for more in ({}, {"podIP": "10.1.2.3"})
    )
    assert isinstance(bare, PodRunning)
    assert bare.address == ""
    assert placed == msgspec.structs.replace(bare, address="10.1.2.3")


def test_init_containers_are_no_running_yet() -> None:
    inits = [{"name": "i", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]
    status = {**waiting("PodInitializing"), "initContainerStatuses": inits}
    assert [type(fact) for fact in facts_of(a_kube_pod(status=status))] == [PodSeen]


# ---- ends that are the container's


@pytest.mark.parametrize(
    ("code", "reason"), [(1, "Error"), (137, "OOMKilled"), (139, "Error"), (143, "Error")]
)
def test_exit_codes_signals_and_memory(code: int, reason: str) -> None:
    assert end_of(a_kube_pod(status=ended(code, reason))) == AttemptEnd(
        cause=Cause.EXITED,
        exit_code=code,
        reason=reason,
        status_reason="Essential container in task exited",
        container="default",
    )


def test_an_init_container_that_fails_is_the_jobs_failure() -> None:
    spec = {"initContainers": [{"name": "i"}]}
    failed = {"terminated": {"exitCode": 5, "reason": "Error"}}
    status = {
        **waiting("PodInitializing"),
        "phase": "Failed",
        "initContainerStatuses": [{"name": "i", "state": failed}],
    }
    facts = facts_of(a_kube_pod(spec=spec, status=status))
    assert [type(fact) for fact in facts] == [PodSeen, PodEnded]
    assert end_of(a_kube_pod(spec=spec, status=status)).exit_code == 5


@pytest.mark.parametrize(("main", "init", "code"), [(3, 0, 3), (0, 5, 5), (0, 0, 143)])
def test_a_sidecar_that_was_ended_does_not_speak_for_the_others(
    main: int, init: int, code: int
) -> None:
    """Webhooks put them in (meshes, agents); the last case is a failure that nothing else explains."""
    spec = {"initContainers": [{"name": "mesh", "restartPolicy": "Always"}, {"name": "init"}]}
    codes = {"mesh": 143, "init": init, "default": main}
    states = [
        {"name": name, "state": {"terminated": {"exitCode": code, "reason": "Error"}}}
        for name, code in codes.items()
    ]
    status = {
        "phase": "Failed",
        "initContainerStatuses": states[:2],
        "containerStatuses": states[2:],
    }
    assert end_of(a_kube_pod(spec=spec, status=status)).exit_code == code


def test_of_several_containers_the_first_that_failed_in_their_order_counts() -> None:
    spec = {"containers": [{"name": name} for name in "zab"]}
    statuses = [
        {"name": name, "state": {"terminated": {"exitCode": code, "reason": "Error"}}}
        for name, code in (("a", 8), ("b", 9), ("z", 0))
    ]
    status = {"phase": "Failed", "containerStatuses": statuses}
    end = end_of(a_kube_pod(spec=spec, status=status))
    assert (end.exit_code, end.container) == (8, "a")


def test_a_program_that_does_not_exist_is_named() -> None:
    status = ended(128, "StartError")
    status["containerStatuses"][0]["state"]["terminated"]["message"] = "exec: no such file"
    assert end_of(a_kube_pod(status=status)).reason == "StartError: exec: no such file"


def test_a_container_that_could_not_be_started_did_not_begin_with_the_epoch() -> None:
    """Its neighbour began when it did, and a timeout counts from then."""
    status = running()
    state = {"exitCode": 128, "reason": "StartError", "startedAt": "1970-01-01T00:00:00Z"}
    status["containerStatuses"].append({"name": "lame", "state": {"terminated": state}})
    _, began = facts_of(a_kube_pod(status=status))
    assert began == PodRunning(pod=PodName("p"), at=epoch_ms("2026-01-01T00:00:00Z") or 0)


def test_disk_that_the_pod_took_beyond_its_limit_is_its_own_doing() -> None:
    message = "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi."
    end = end_of(a_kube_pod(status=ended(137, reason="Error", message=message) | EVICTED))
    assert (end.cause, end.exit_code) == (Cause.EXITED, 137)
    assert end.reason == f"Evicted: {message}"


EVICTED = {"reason": "Evicted"}


# ---- ends that are the platform's


@pytest.mark.parametrize(
    "status",
    [
        {**ended(137), "reason": "Evicted", "message": "The node was low on resource: memory."},
        {**ended(143), "reason": "Terminated", "message": "imminent node shutdown"},
        {"phase": "Failed", "reason": "NodeLost"},
        {"phase": "Failed"},
        ended(137, "ContainerStatusUnknown"),
        {
            **ended(143),
            "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            ],
        },
    ],
    ids=["evicted", "shutdown", "lost", "no reason", "unknown", "drained"],
)
def test_what_kubernetes_did_to_a_pod_is_the_platforms(status: dict[str, Any]) -> None:
    end = end_of(a_kube_pod(status=status))
    assert end.cause is Cause.PLATFORM
    assert end.status_reason


@pytest.mark.parametrize("reason", ["DeletionByPodGC", "DeletionByTaintManager"])
def test_a_machine_that_went_is_told_in_the_words_that_rules_match(reason: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    end = end_of(a_kube_pod(status={"phase": "Failed", "conditions": [condition]}))
    assert (end.cause, end.status_reason) == (
        Cause.PLATFORM,
        "Host EC2 (instance i-1) terminated.",
    )


@pytest.mark.parametrize("code", [0, 143])
def test_a_pod_that_somebody_else_deleted_has_not_done_its_work(code: int) -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:01:25Z", "deletionGracePeriodSeconds": 30}
    pod = a_kube_pod(metadata=metadata, status=ended(code))
    assert end_of(pod).cause is Cause.PLATFORM
    assert end_of(pod).status_reason == "Pod was deleted by somebody else"
    assert end_of(pod, asked=True).exit_code == code
    assert end_of(pod, asked=True).cause is Cause.EXITED


def test_a_pod_that_had_ended_before_it_was_deleted_has_ended_by_itself() -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:02:25Z", "deletionGracePeriodSeconds": 30}
    assert end_of(a_kube_pod(metadata=metadata, status=ended(3))).cause is Cause.EXITED


def test_a_deadline_of_kubernetes_is_a_timeout() -> None:
    end = end_of(a_kube_pod(status={**ended(143), "reason": "DeadlineExceeded"}))
    assert end.cause is Cause.TIMEOUT
    assert end.status_reason == "Job attempt duration exceeded timeout"


def test_a_pod_that_vanished_says_whose_doing_that_was() -> None:
    by_somebody = end_of_vanished(a_kube_pod(status=running()), host="i-1", host_is_gone=False)
    with_host = end_of_vanished(a_kube_pod(status=running()), host="i-1", host_is_gone=True)
    assert by_somebody.status_reason == "Pod was deleted by somebody else"
    assert with_host.status_reason == "Host EC2 (instance i-1) terminated."
    assert {by_somebody.cause, with_host.cause} == {Cause.PLATFORM}


# ---- never admitted


@pytest.mark.parametrize(
    ("reason", "permanent"),
    [
        *((reason, False) for reason in ("OutOfcpu", "OutOfmemory", "OutOfpods")),
        *((reason, False) for reason in ("OutOfnvidia.com/gpu", "UnexpectedAdmissionError")),
        *((reason, False) for reason in ("NodeAffinity", "TopologyAffinityError")),
        *((reason, True) for reason in ("SysctlForbidden", "AppArmor")),
    ],
)
def test_a_pod_that_the_kubelet_turns_away_never_ran(reason: str, permanent: bool) -> None:
    status = {"phase": "Failed", "reason": reason, "message": "Node didn't have enough"}
    (refused,) = facts_of(a_kube_pod(status=status))
    assert isinstance(refused, PodRefused)
    assert refused.permanent is permanent
    assert refused.reason == f"{reason}: Node didn't have enough"


# ---- never started


@pytest.mark.parametrize(
    ("reason", "patience_s"),
    [
        ("ErrImagePull", 300),
        ("ImagePullBackOff", 300),
        ("CreateContainerConfigError", 120),
        ("CreateContainerError", 120),
        ("InvalidImageName", 0),
        ("ErrImageNeverPull", 0),
    ],
)
def test_starts_that_do_not_come_have_a_deadline(reason: str, patience_s: int) -> None:
    trouble = trouble_of(a_kube_pod(status=waiting(reason, "no\n such  image")))
    assert trouble is not None
    assert trouble.reason == f"{reason}: no such image"
    assert trouble.patience_s == patience_s


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_still_starting_has_no_trouble(reason: str) -> None:
    assert trouble_of(a_kube_pod(status=waiting(reason))) is None


def test_volumes_that_do_not_mount_have_a_deadline_too() -> None:
    condition = {"type": "PodReadyToStartContainers", "status": "False"}
    status = {**waiting("ContainerCreating"), "conditions": [condition]}
    trouble = trouble_of(a_kube_pod(status=status))
    assert trouble is not None
    assert trouble.reason.startswith("FailedMount")


# ---- pods as a real kubelet left them (tests/kubernetes/test_kubelet.py writes them)

GOLDEN = Path(__file__).parent / "golden" / "pods"
RAN = ["PodSeen", "PodRunning"]
LEFT = {
    "exit-3": [*RAN, "PodEnded EXITED 3 Error"],
    "segv": [*RAN, "PodEnded EXITED 139 Error"],
    "oom": [*RAN, "PodEnded EXITED 137 OOMKilled"],
    "no-program": ["PodSeen", "PodEnded EXITED 128 StartError"],
    "init-fails": ["PodSeen", "PodEnded EXITED 5 Error"],
    "one-of-two": [*RAN, "PodEnded EXITED 8 Error"],
    "own-disk": [*RAN, "PodEnded EXITED 137 Evicted"],
    "evicted": [*RAN, "PodEnded PLATFORM 143 Error"],
    "drained": [*RAN, "PodEnded PLATFORM None "],
    "deleted": [*RAN, "PodEnded PLATFORM None "],
    "deadline": [*RAN, "PodEnded TIMEOUT None "],
    "node-lost": [*RAN, "PodEnded PLATFORM None "],
    "out-of-cpu": ["PodRefused OutOfcpu"],
    "out-of-memory": ["PodRefused OutOfmemory"],
    "out-of-pods": ["PodRefused OutOfpods"],
    "no-image": ["PodSeen", "stuck ErrImagePull"],
    "bad-image": ["PodSeen", "stuck InvalidImageName"],
    "never-pulled": ["PodSeen", "stuck ErrImageNeverPull"],
    "not-as-root": ["PodSeen", "stuck CreateContainerConfigError"],
    "no-such-user": ["PodSeen", "stuck CreateContainerError"],
}


def test_every_golden_pod_is_looked_at() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(LEFT)


@pytest.mark.parametrize("name", LEFT)
def test_a_pod_as_a_real_kubelet_left_it_is_understood(name: str) -> None:
    wire = msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes())
    pod, made = msgspec.convert(wire, Pod), epoch_ms(wire["metadata"]["creationTimestamp"]) or 0
    facts = facts_of(pod, now=made + 3_600_000)
    # Each in its time: a job that had begun long ago would have timed out.
    timed = [f.at for f in facts if isinstance(f, PodSeen | PodRunning | PodEnded | PodRefused)]
    assert len(timed) == len(facts)
    assert all(made <= at <= made + 3_600_000 for at in timed)
    trouble = trouble_of(pod)
    stuck = [] if trouble is None else [f"stuck {trouble.reason.partition(':')[0]}"]
    assert [said(fact) for fact in facts] + stuck == LEFT[name]


def said(fact: Fact) -> str:
    """A fact as it is written above."""
    match fact:
        case PodEnded(end=end):
            reason = (end.reason or "").partition(":")[0]
            return f"PodEnded {end.cause.value} {end.exit_code} {reason}"
        case PodRefused(reason=reason):
            return f"PodRefused {reason.partition(':')[0]}"
        case _:
            return type(fact).__name__
