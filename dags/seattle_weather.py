"""Four years of Seattle's weather, one run a month: how unusual was each day for its time of the year?

Every run is an array job with a child for each day of the month, and a job that depends on it and
reduces the days to a month. `seattle_weather_chart` draws what is there. As a backfill over
2012-01 to 2015-12 that is 48 runs and 1,461 children: the main job of this repository.

The jobs are scripts beside this file. The embedded service runs them as processes of this machine;
on a cluster their image would carry them and the data.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pendulum
from airflow.sdk import DAG, CronDataIntervalTimetable

from airflow_eksbatch import EKSBatchOperator

JOBS = Path(__file__).parent / "jobs"
# Nice, because on one machine the jobs share the cores with Airflow and the service itself;
# -I and -S, because a child needs the standard library only and starts twice as fast so.
PYTHON = ["nice", sys.executable, "-I", "-S"]
RESULTS = os.environ.get("WEATHER_RESULTS", str(Path(tempfile.gettempdir()) / "seattle_weather"))
SMALL = {"vcpus": 0.25, "memory": 256, "attempts": 2}


def weather_csv() -> str:
    """The daily observations that the package vega_datasets carries; found without importing it."""
    package = importlib.util.find_spec("vega_datasets")
    if package is None or not package.submodule_search_locations:
        raise ImportError("this DAG needs the data of vega_datasets: pip install vega_datasets")
    return str(Path(package.submodule_search_locations[0]) / "_data" / "seattle-weather.csv")


def run_script(name: str, *arguments: str) -> list[str]:
    return [*PYTHON, str(JOBS / name), *arguments]


ENV = {
    "WEATHER_CSV": weather_csv(),
    "WEATHER_RESULTS": RESULTS,
    "WEATHER_RUN_TYPE": "{{ dag_run.run_type }}",
    "WEATHER_MONTH": "{{ data_interval_start.strftime('%Y-%m') }}",
}

with DAG(
    "seattle_weather",
    description="How unusual was each day for its time of the year?",
    schedule=CronDataIntervalTimetable("@monthly", timezone="UTC"),
    start_date=pendulum.datetime(2012, 1, 1, tz="UTC"),
    end_date=pendulum.datetime(2015, 12, 31, tz="UTC"),  # the observations end there
    catchup=False,
    doc_md=__doc__,
    tags=["eksbatch", "example"],
):
    days = EKSBatchOperator(
        task_id="days",
        command=run_script("weather.py", "day"),
        env=ENV,
        array_size="{{ (data_interval_end - data_interval_start).days }}",
        **SMALL,
    )
    month = EKSBatchOperator(
        task_id="month",
        command=run_script("weather.py", "month"),
        env=ENV,
        depends_on=["days"],
        **SMALL,
    )
    days >> month

with DAG(
    "seattle_weather_chart",
    description="One picture of all months that seattle_weather has reduced.",
    schedule=None,
    doc_md=__doc__,
    tags=["eksbatch", "example"],
):
    EKSBatchOperator(
        task_id="chart",
        command=[sys.executable, str(JOBS / "weather_chart.py")],
        env={"WEATHER_RESULTS": RESULTS},
        vcpus=1,
        memory=1024,
        attempts=2,
    )
