"""What a simulated life came to: when it ended, what it cost, who waited; for people and as JSON."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from airflow_eksbatch.core.engine import views
from airflow_eksbatch.core.engine.effects import Outcome
from airflow_eksbatch.core.model.job import JobId, JobSpec, JobStatus
from airflow_eksbatch.core.world.world import World
from airflow_eksbatch.sim.simulator import Simulator
from airflow_eksbatch.sim.timeline import BEGIN

CHART_WIDTH, CHART_HEIGHT = 72, 8


class Watcher:
    """What is noted while it happens."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.waits_s: defaultdict[str, list[float]] = defaultdict(list)
        self.ended_s: dict[str, float] = {}
        self.series: list[tuple[float, float, float]] = []
        """Seconds, vCPUs bought, vCPUs that jobs use."""
        self._keys: dict[JobId, str] = {}
        self._expected_s: dict[JobId, float] = {}
        simulator.listeners.append(self.on_commit)

    def expect(self, spec: JobSpec, at_s: float) -> None:
        """A job will be submitted then; its wait counts from there."""
        self._keys[spec.job_id] = spec.share or spec.queue
        self._expected_s[spec.job_id] = at_s

    def on_commit(self, outcome: Outcome) -> None:
        now_s = self.simulator.timeline.elapsed_s
        for event in outcome.changes.events:
            if event.parent or event.status not in (JobStatus.RUNNING, JobStatus.SUCCEEDED):
                continue
            key, at_s = self._keys[event.job_id], (event.time - BEGIN) / 1000
            if event.status is JobStatus.SUCCEEDED:
                self.ended_s[key] = max(at_s, self.ended_s.get(key, 0.0))
            elif event.attempt == 1:
                self.waits_s[key].append(at_s - self._expected_s[event.job_id])
        world = self.simulator.world
        if world is not None and (outcome.changes.nodes or outcome.changes.attempts):
            used = sum(usage.running_cpu_m for usage in world.usages.values()) / 1000
            self.series.append((now_s, float(sum(world.vcpus.values())), used))

    def answer(self) -> dict[str, Any]:
        """All of it, as it is now."""
        cloud = self.simulator.cloud
        world = self.simulator.world or World(self.simulator.ledger.snapshot())
        totals = world.totals
        now_s = self.simulator.timeline.elapsed_s
        bought = area_of([(at, vcpus) for at, vcpus, _ in self.series], now_s)
        used = area_of([(at, vcpus) for at, _, vcpus in self.series], now_s)
        rows = views.environments(world, self.simulator.timeline.now)
        costs = {str(row["computeEnvironment"]): float(str(row["price_usd"])) for row in rows}
        return {
            "ends_s": round(max(self.ended_s.values(), default=0.0), 1),
            "empty_s": round(now_s, 1),
            "jobs": {
                "succeeded": totals.succeeded,
                "failed": totals.failed,
                "attempts": totals.attempts,
            },
            "price_usd": round(sum(costs.values()), 4),
            "instances": {
                "peak": cloud.bill.peak,
                "live": len(cloud.live),
                "refused": cloud.bill.refused,
                "reclaimed": cloud.bill.reclaimed,
            },
            "environments": {
                name: {"instances": number, "price_usd": round(costs.get(name, 0.0), 4)}
                for name, number in sorted(cloud.bill.launched.items())
            },
            "vcpu_use_percent": round(100 * used / bought, 1) if bought else 0.0,
            "shares": {
                key: {
                    "jobs": len(waits),
                    "wait_p50_s": round(quantile(waits, 0.5), 1),
                    "wait_p99_s": round(quantile(waits, 0.99), 1),
                    "ends_s": round(self.ended_s.get(key, 0.0), 1),
                }
                for key, waits in sorted(self.waits_s.items())
            },
            "series": [[round(at, 1), bought, used] for at, bought, used in thinned(self.series)],
        }


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def area_of(series: Sequence[tuple[float, float]], until_s: float) -> float:
    """Of a curve that stays where it is until the next point."""
    if not series:
        return 0.0
    closed = [*series, (until_s, 0.0)]
    return sum(value * (then - at) for (at, value), (then, _) in itertools.pairwise(closed))


def thinned(series: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """One point for each column of the chart: the last one that was so."""
    if not series:
        return []
    last_s, points, position = series[-1][0], list[tuple[float, float, float]](), 0
    for column in range(CHART_WIDTH + 1):
        at = last_s * column / CHART_WIDTH
        while position + 1 < len(series) and series[position + 1][0] <= at:
            position += 1
        points.append((at, *series[position][1:]) if series[position][0] <= at else (at, 0.0, 0.0))
    return points


def text_of(answer: dict[str, Any]) -> str:
    """For people."""
    jobs, instances = answer["jobs"], answer["instances"]
    left = f"; {instances['live']} live" if instances["live"] else ""
    lines = [
        f"last job ends   {clock(answer['ends_s'])}",
        f"{'now' if left else 'zero instances':<16}{clock(answer['empty_s'])}",
        f"jobs            {jobs['succeeded']} SUCCEEDED, {jobs['failed']} FAILED, {jobs['attempts']} attempts",
        f"instances       {instances['peak']} at peak, {instances['refused']} refused, "
        f"{instances['reclaimed']} reclaimed{left}",
        f"price           {answer['price_usd']:.2f} USD; jobs used {answer['vcpu_use_percent']:g} % of the vCPU time",
        "",
        f"{'environment':<16}{'instances':>12}{'USD':>12}",
    ]
    lines += [
        f"{name:<16}{row['instances']:>12}{row['price_usd']:>12.2f}"
        for name, row in answer["environments"].items()
    ]
    lines += ["", f"{'share':<16}{'jobs':>12}{'wait p50':>12}{'wait p99':>12}{'ends':>12}"]
    for share, row in answer["shares"].items():
        waits = f"{clock(row['wait_p50_s']):>12}{clock(row['wait_p99_s']):>12}{clock(row['ends_s']):>12}"
        lines.append(f"{share:<16}{row['jobs']:>12}{waits}")
    return "\n".join([*lines, "", *chart(answer["series"])]).rstrip()


def chart(series: Sequence[Sequence[float]]) -> list[str]:
    """vCPUs over time: # used by jobs, . bought and free."""
    most = max((bought for _, bought, _ in series), default=0.0)
    if not most:
        return []
    rows = [f"{most:g} vCPUs  (# used by jobs, . bought)"]
    for level in range(CHART_HEIGHT, 0, -1):
        floor = most * (level - 0.5) / CHART_HEIGHT
        rows.append(
            "".join(
                "#" if u >= floor else "." if b >= floor else " " for _, b, u in series
            ).rstrip()
        )
    return [*rows, f"0{clock(series[-1][0]):>{CHART_WIDTH}}"]


def clock(seconds: float) -> str:
    """4.2 s, 1:07 min, 2:03:09 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
