"""Work that comes in one burst is bought for as a whole, and nobody waits long for that."""

from __future__ import annotations

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.turn import StepSettings
from airflow_eksbatch.core.model.node import Node
from tests.build import a_node, a_world, an_offering
from tests.core.stage import Stage

OFFERINGS = (
    an_offering("thin.xlarge", vcpus=4, memory_mib=8_192, price=0.16),
    an_offering("wide.2xlarge", vcpus=8, memory_mib=32_768, price=0.30),
    an_offering("fat.xlarge", vcpus=4, memory_mib=32_768, price=0.25),
)


def gathering(*nouns: Node) -> Stage:
    stage = Stage(a_world(*nouns, offerings=OFFERINGS))
    stage.settings = StepSettings(gather_s=0.5, check_plans=True)
    return stage


def bought(stage: Stage) -> list[str]:
    return [effect.offering.instance_type for effect in stage.of(LaunchNode)]


def test_what_is_submitted_in_one_burst_shares_a_machine() -> None:
    """
    1. a job that wants cpu, and soon after it one that wants memory: nothing is bought yet
    2. half a second after the last of them, one machine is bought for both
    """
    stage = gathering()
    stage.submit("cpu", vcpus=4, memory_mib=4_096)
    stage.wait(0.3)
    stage.submit("memory", vcpus=1, memory_mib=20_480)
    assert bought(stage) == []
    stage.wait(0.4)
    assert bought(stage) == []
    stage.wait(0.1)
    assert bought(stage) == ["wide.2xlarge"]


def test_work_that_never_stops_coming_is_bought_for_after_three_pauses() -> None:
    stage = gathering()
    for number in range(5):
        stage.submit(f"job-{number}", vcpus=4, memory_mib=4_096)
        stage.wait(0.3)
    assert stage.world.nodes


def test_the_loop_is_woken_when_the_time_has_come() -> None:
    stage = gathering()
    stage.submit("cpu", vcpus=4, memory_mib=4_096)
    assert stage.world.deadlines[0][0] == stage.now + 500


def test_what_has_room_on_machines_that_are_there_does_not_wait() -> None:
    stage = gathering(a_node("n1"))
    stage.submit("first")
    assert stage.live("first").node_id == "n1"
