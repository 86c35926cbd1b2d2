"""Results as a table: what was aimed at, what was measured, and under what conditions; pure but for the reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Result = dict[str, Any]
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
# Load average before a run from which on a machine had other work.
BUSY = 1.0


class Line(NamedTuple):
    """One promise; `aim` is empty where nothing was promised."""

    what: str
    measured: str
    aim: str = ""
    met: bool | None = None


def below(what: str, value: float, aim: float, unit: str) -> Line:
    return Line(what, f"{value:,g} {unit}".strip(), f"< {aim:,g} {unit}".strip(), value < aim)


def above(what: str, value: float, aim: float, unit: str) -> Line:
    return Line(what, f"{value:,g} {unit}".strip(), f"> {aim:,g} {unit}".strip(), value > aim)


# ---- each benchmark's own lines


def planner_lines(result: Result) -> Iterator[Line]:
    plans = {(p["scene"], p["jobs"], p["classes"], p["nodes"]): p for p in result["plans"]}
    jobs, classes, nodes = (max(key[at] for key in plans) for at in (1, 2, 3))
    size = f"{jobs:,} runnable jobs in {classes:,} classes over {nodes:,} nodes"
    largest = {
        key[0]: plan["median_ms"]
        for key, plan in plans.items()
        if key[1:] == (jobs, classes, nodes)
    }
    yield below(f"One plan for {size}, a long backlog", largest["full"], 100, "ms")
    worst = max(largest, key=lambda scene: largest[scene])
    yield below(
        f"The same in the worst of {len(largest)} scenes ({worst})", largest[worst], 100, "ms"
    )
    fewer = min(key[1] for key in plans)
    if fewer < jobs:
        times = largest["full"] / plans["full", fewer, classes, nodes]["median_ms"]
        what = f"Its cost over that of {fewer:,} jobs: a plan counts classes, not jobs"
        yield below(what, round(times, 2), 1.2, "times")


def provision_lines(result: Result) -> Iterator[Line]:
    by_queue: dict[str, list[Result]] = {}
    for row in result["purchases"]:
        by_queue.setdefault(row["queue"], []).append(row)
    for queue, rows in by_queue.items():
        price = max(row["price_joined"] for row in rows)
        what = f"What a plan buys for queue `{queue}`, over the lower bound (worst of {len(rows)})"
        yield below(what, price, 1.05, "times")
    mixed = by_queue.get("mixed", [])
    if mixed:
        what = "Planning that purchase: 33,000 jobs in 50 shapes, 600 offerings"
        yield below(what, max(row["plan_s"] for row in mixed), 2, "s")


def submit_lines(result: Result) -> Iterator[Line]:
    for row in result["submits"]:
        database, sent = row["database"], row["sent"]
        if row["connections"] == 1 and sent == "airflow":
            what = f"One SubmitJob alone on {database}: it waits for a beat and a commit"
            yield Line(what, f"{row['p50_ms']:g} ms (p99 {row['p99_ms']:g})")
        elif row["connections"] == 64:
            whose = {"airflow": "as the operator sends it", "plain": "as boto3 sends it"}[sent]
            what = f"Durable, signed SubmitJob on {database}, {whose}, 64 connections"
            yield above(what, row["submits_per_s"], 1000, "a second")
            yield Line("- CPU of the service for each", f"{row['service_cpu_ms']:g} ms")
    for row in result["services"]:
        what = f"One SubmitJob of an array of 10,000 on {row['database']}, by boto3"
        yield below(what, row["array_of_10000_ms"], 50, "ms")
    grown = max(row["bytes_per_live_job"] for row in result["services"])
    yield Line("Memory of one live job, as the process grows", f"{grown:,} bytes")


def airflow_lines(result: Result) -> Iterator[Line]:
    for row in result["ends"]:
        if row["ends_per_s"] == "at once":
            what = f"End of process to end of task, {row['tasks']:,} that end at the same moment"
            yield Line(what, f"p50 {row['p50_s']:g} s, p99 {row['p99_s']:g} s")
        elif row["started_by"] == "triggerer":
            what = f"End of process to end of task, {row['tasks']:,} deferred, {row['ends_per_s']:g} ends a second"
            yield below(f"{what}: p50", row["p50_s"], 1, "s")
            yield below(f"{what}: p99", row["p99_s"], 2, "s")
            part = f"{1000 * row['service_p50_s']:.0f} ms (p99 {1000 * row['service_p99_s']:.0f})"
            yield Line("- of which until the service has committed it", part)
    for row in result["starts"]:
        by = {"triggerer": "without a worker", "worker": "by workers"}[row["started_by"]]
        yield Line(
            f"Tasks started {by}, {row['tasks']:,} at once", f"{row['tasks_per_s']:g} a second"
        )


def start_lines(result: Result) -> Iterator[Line]:
    for row in result["start"]:
        if row["kind"] == "plain":
            what = (
                f"Start of a service that finds {row['live_jobs']:,} live jobs on {row['database']}"
            )
            yield below(what, row["total_s"], 15, "s")
            yield Line("- memory of each", f"{row['bytes_per_job']:,} bytes")
    for row in result["commit"]:
        if row["batch"] == 1000:
            what = f"Jobs through the store alone on {row['database']}, a thousand in a commit"
            yield Line(what, f"{row['new_jobs_per_s']:,} a second")


def cluster_lines(result: Result) -> Iterator[Line]:
    about = result["conditions"]
    pods, ours = f"{about['pods']:,} pods on {about['nodes']:,} KWOK nodes", result["ours"]
    yield Line(f"Pods bound, from one SubmitJob: {pods}", f"{ours['bound_per_s']:,} a second")
    for way, who, aim in (
        ("bare", "an administrator's bare client that only creates", 0.85),
        ("same", "a bare client with our rights that creates our pods", 0.85),
        ("scheduled", "plain pods through kube-scheduler", 2.0),
    ):
        if way in result:
            times = round(ours["bound_per_s"] / result[way]["bound_per_s"], 2)
            what = f"- over {who} ({result[way]['bound_per_s']:,} a second)"
            yield above(what, times, aim, "times") if aim else Line(what, f"{times:g} times")
    cpu = {way: result[way][CPU]["kube-apiserver"] for way in ("bare", "ours")}
    what = "- over the bare client by what the API server computes for each, were it alone on its machines"
    yield above(what, round(cpu["bare"] / cpu["ours"], 2), 0.85, "times")
    yield below("- API writes a pod until it is bound", ours["api_writes_per_pod"], 2, "")
    for process, cpu_ms in ours[CPU].items():
        others = [f"{result[w][CPU].get(process, 0):g}" for w in result if w in OTHER_WAYS]
        what = f"- CPU of {process} for each (bare client's, kube-scheduler's pods)"
        yield Line(what, f"{cpu_ms:g} ms ({', '.join(others)})")


def capacity_lines(result: Result) -> Iterator[Line]:
    for row in result["runs"]:
        jobs = f"{row['jobs']:,} jobs, queue `{row['queue']}`, {row['market']}"
        yield below(f"{jobs}: every instance chosen after", row["chosen_s"], 2, "s")
        yield Line(
            "- last one joined, every pod bound", f"{row['joined_s']:g} s, {row['bound_s']:g} s"
        )
        yield Line("- from the last end to zero instances", f"{row['zero_s']:g} s")
        yield below("- price over the linear-programming bound", row["price"], 1.05, "times")
        packed = max(row["packing_cpu"], row["packing_memory"])
        yield above("- packing of cpu or memory, the fuller", packed, 0.9, "")


OTHER_WAYS = ("bare", "scheduled")
CPU = "cpu_s_per_1000_pods"
LINES: dict[str, Callable[[Result], Iterator[Line]]] = {
    "planner": planner_lines,
    "provision": provision_lines,
    "start": start_lines,
    "submit": submit_lines,
    "airflow": airflow_lines,
    "cluster": cluster_lines,
    "cluster-5000": cluster_lines,
    "capacity": capacity_lines,
}


# ---- tables


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(line: Line, result: Result) -> str:
    """A machine that had other work cannot speak against us, only for us."""
    if line.met is None:
        return ""
    if line.met:
        return "yes"
    return "not here: busy" if result["conditions"]["load_before"] > BUSY else "**no**"


def promises(results: dict[str, Result]) -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for name, result in results.items():
            if name not in LINES:
                yield name, f"its numbers are in results/{name}.json", "", "", ""
                continue
            for line in LINES[name](result):
                yield name, line.what, line.measured, line.aim, verdict(line, result)

    return table(("benchmark", "what", "measured", "aim", "met"), rows())


def cpu(result: Result) -> str:
    """CPU seconds of each part, for starts, waits and ends."""
    columns: dict[str, dict[str, float]] = {}
    for row in (result["waiting"][0], result["waiting"][-1]):
        columns[f"a minute, {row['while']}"] = row["cpu_s_per_minute"]
    largest = max(row["tasks"] for row in result["starts"])
    for section, verb in (("starts", "start"), ("ends", "end")):
        for row in result[section]:
            shown = row["tasks"] == largest or row["started_by"] == "worker"
            if shown and row.get("ends_per_s") != "at once":
                by = "" if row["started_by"] == "triggerer" else " by workers"
                what = f"1,000 tasks {verb}{by} (of {row['tasks']:,})"
                columns[what] = row["cpu_s_per_1000"]
    parts = list(next(iter(columns.values())))
    rows = [[part, *(f"{column[part]:g}" for column in columns.values())] for part in parts]
    totals = ["**all**", *(f"{sum(column.values()):.0f}" for column in columns.values())]
    return table(("CPU seconds of", *columns), [*rows, totals])


def conditions_table(results: dict[str, Result]) -> str:
    hidden = {"date", "python", "machine", "processor", "cpus", "load_before", "versions"}

    def rows() -> Iterator[list[str]]:
        for name, result in results.items():
            about = result["conditions"]
            machine = f"{about['cpus']} x {about['processor'] or about['machine']}"
            versions = {"python": about["python"], **about.get("versions", {})}
            said = [f"{key} {value}" for key, value in versions.items()]
            said += [f"{key} {value}" for key, value in about.items() if key not in hidden]
            yield [name, about["date"], machine, str(about["load_before"]), ", ".join(said)]

    return table(("benchmark", "date", "machine", "load before", "with"), rows())


def read_results(directory: Path) -> dict[str, Result]:
    """By name, those with lines of their own first."""
    order = {name: number for number, name in enumerate(LINES)}
    paths = sorted(directory.glob("*.json"), key=lambda path: (order.get(path.stem, 99), path.stem))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def all_tables(results: dict[str, Result]) -> str:
    parts = [promises(results), conditions_table(results)]
    if "airflow" in results:
        parts.insert(1, cpu(results["airflow"]))
    return "\n\n".join(parts)


def refresh(readme: Path, results: Path) -> str:
    """Put the tables between their marks; the tables."""
    tables = all_tables(read_results(results))
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{tables}\n{END}{after}")
    return tables
