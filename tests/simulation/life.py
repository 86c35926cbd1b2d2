"""One simulated life from a seed, with everything counted again at every beat and audited."""

from __future__ import annotations

from airflow_eksbatch.core.engine.facts import Fact, JobSubmitted
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import JobId
from airflow_eksbatch.sim.faults import Faults
from airflow_eksbatch.sim.simulator import SimSettings, Simulator
from tests.simulation.auditor import LATER_S, Auditor
from tests.simulation.draw import Draw

JOBS = 25
SUBMITTED_WITHIN_S = 900.0
# From then on nothing goes wrong any more; what is left must end within the limit.
CALM_AFTER_S = 1_500.0
LIMIT_S = 12 * 3600.0


def live(seed: int, faults: Faults) -> Auditor:
    """Raises AssertionError for whatever must not be; the audited life otherwise."""
    workload = Draw(seed).workload(JOBS, SUBMITTED_WITHIN_S)
    settings = SimSettings(seed=seed, is_checked=True)
    simulator = Simulator(workload.offerings, faults, settings, workload.capacity)
    auditor = Auditor(simulator, workload)
    for fact in workload.setup:
        simulator.ask(fact)
    answers: dict[int, object] = {}
    for number, request in enumerate(workload.requests):

        def heard(answer: object, number: int = number, fact: Fact = request.fact) -> None:
            answers[number] = answer
            auditor.on_answer(fact, answer)

        simulator.ask_at(1 + request.at_s, request.fact, heard)
    wanted = len(workload.requests)
    ended = simulator.run(lambda: len(answers) == wanted and simulator.is_quiet, LIMIT_S)
    assert ended, (
        f"after {LIMIT_S:.0f} s it has not ended: {simulator.world and simulator.world.jobs}"
    )
    told = len(simulator.ledger.events)
    until = simulator.timeline.elapsed_s + LATER_S
    simulator.run(lambda: simulator.timeline.elapsed_s > until, until + 1)
    assert simulator.run(lambda: simulator.is_quiet and not simulator.cluster.pods, LIMIT_S), (
        "pods that have ended are never dropped"
    )
    assert len(simulator.ledger.events) == told, "it began again"
    accepted = {
        JobId(str(answers[number]))
        for number, request in enumerate(workload.requests)
        if isinstance(request.fact, JobSubmitted) and not isinstance(answers[number], Rejected)
    }
    auditor.check_end(accepted)
    return auditor
