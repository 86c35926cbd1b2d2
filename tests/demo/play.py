"""The main job: a backfill, a run of today in the middle of it, a Spot instance lost, a chart."""

from __future__ import annotations

import calendar
import time
from typing import Any

from tests.airflow.rig import Airflow
from tests.demo.place import Trouble
from tests.demo.screen import Progress, Screen
from tests.demo.service import Service
from tests.demo.story import Story

Json = dict[str, Any]
DAG, CHART_DAG = "seattle_weather", "seattle_weather_chart"
TODAY = "today"
MONTHS = [(year, month) for year in range(2012, 2016) for month in range(1, 13)]
RUNS_AT_ONCE = 16
UNDER_WAY = 50  # so many have ended: every instance is there and full
BACKLOG = 150  # jobs that wait when the run of today arrives: three times what runs at once
DAYS = sum(calendar.monthrange(*month)[1] for month in MONTHS)
TODAY_DAYS = 31  # it looks at December 2015, the newest month there is
JOBS = DAYS + len(MONTHS) + TODAY_DAYS + 1
ENDS_WITHIN_S = 900.0
EMPTY_WITHIN_S = 60.0
RECLAIM_AGAIN_S = 5.0  # by then it is known whom the last one hit
LOOK_S = 0.5
RUNS_LOOK_S = 2.0  # Airflow's API works for its answers; the service's does not


class Play:
    """One demo, act by act."""

    def __init__(self, airflow: Airflow, service: Service, story: Story, screen: Screen) -> None:
        self.airflow = airflow
        self.service = service
        self.story = story
        self.screen = screen
        self.states: dict[str, str] = {}
        self._began = time.monotonic()
        self._runs_looked = 0.0
        self._reclaimed = float("-inf")
        self._today_came = False
        self._reclaim_told = False

    def perform(self) -> None:
        self.airflow.wait_for_dag(DAG)
        self.create_backfill()
        with self.screen:
            self.watch_backfill()
        self.draw_chart()
        self.wait_until_empty()

    def create_backfill(self) -> None:
        self.airflow.rest.create_backfill(
            DAG,
            from_date="2012-01-01T00:00:00Z",
            to_date="2015-12-01T00:00:00Z",
            max_active_runs=RUNS_AT_ONCE,
            reprocess_behavior="none",
        )
        self._began = time.monotonic()
        self.screen.note(f"backfill of {len(MONTHS)} months asked for: {DAYS} days to compute")

    def watch_backfill(self) -> None:
        until = time.monotonic() + ENDS_WITHIN_S
        while not self.is_over():
            if time.monotonic() > until:
                raise Trouble(f"the backfill did not end within {ENDS_WITHIN_S:.0f} s")
            self.airflow.check()
            self.service.child.check()
            summary = self.service.summary()
            self.intervene(summary)
            self.look_at_runs()
            self.screen.show(self.progress(summary))
            time.sleep(LOOK_S)

    def is_over(self) -> bool:
        """All runs have ended, well or not; the first that did not ends the demo."""
        failed = [run for run, state in self.states.items() if state == "failed"]
        if failed:
            raise Trouble(f"run {failed[0]} of {DAG} failed: see its task logs below .demo/airflow")
        ended = [run for run, state in self.states.items() if state == "success"]
        return len(ended) == len(MONTHS) + 1

    def progress(self, summary: Json) -> Progress:
        since_s = time.monotonic() - self._began
        months = [s for run, s in self.states.items() if run != TODAY and s == "success"]
        return Progress(summary, runs=(len(months), len(MONTHS)), jobs=JOBS, since_s=since_s)

    def look_at_runs(self) -> None:
        if time.monotonic() - self._runs_looked < RUNS_LOOK_S:
            return
        self.states = {run["dag_run_id"]: run["state"] for run in self.airflow.rest.runs(DAG)}
        self._runs_looked = time.monotonic()
        if self.states.get(TODAY) == "success" and self._today_came:
            self._today_came = False
            self.screen.note("the run of today is done, the backfill goes on")

    # -- what happens to the backfill --

    def intervene(self, summary: Json) -> None:
        if TODAY not in self.states and not self._today_came:
            jobs = summary["jobs"]
            if jobs["SUCCEEDED"] >= UNDER_WAY and jobs["RUNNABLE"] >= BACKLOG:
                self.let_today_arrive(jobs["RUNNABLE"])
        elif not self.story.hit_by_reclaim():
            self.reclaim(summary)
        elif not self._reclaim_told:
            self._reclaim_told = True
            self.screen.note(f"{len(self.story.hit_by_reclaim())} of its jobs wait to run again")

    def let_today_arrive(self, waiting: int) -> None:
        self.airflow.rest.trigger(
            DAG,
            dag_run_id=TODAY,
            logical_date="2015-12-31T00:00:00Z",
            data_interval_start="2015-12-01T00:00:00Z",
            data_interval_end="2016-01-01T00:00:00Z",
        )
        self._today_came = True
        self.screen.note(
            f"a run that is not part of it is triggered; {waiting} jobs wait before it"
        )

    def reclaim(self, summary: Json) -> None:
        """Again when all that ran there ended in time: the point is to take a machine that works."""
        soon = time.monotonic() - self._reclaimed < RECLAIM_AGAIN_S
        if soon or summary["jobs"]["RUNNING"] < 8:
            return
        if node := self.service.reclaim_busiest_spot():
            self._reclaimed = time.monotonic()
            self.screen.note(f"Spot instance of node {node} is reclaimed while it works")

    # -- the end --

    def draw_chart(self) -> None:
        self.airflow.rest.trigger(CHART_DAG, dag_run_id=TODAY)
        state = self.airflow.wait_for_run(CHART_DAG, TODAY)
        if state != "success":
            raise Trouble(f"the run of {CHART_DAG} failed: see its task log below .demo/airflow")
        self.screen.note("the chart is drawn")

    def wait_until_empty(self) -> None:
        until = time.monotonic() + EMPTY_WITHIN_S
        while number := self.service.summary()["instances"]["now"]:
            if time.monotonic() > until:
                raise Trouble(f"{number} instances are still there {EMPTY_WITHIN_S:.0f} s later")
            time.sleep(LOOK_S)
        self.screen.note("nothing to do: the last instance is given back")
