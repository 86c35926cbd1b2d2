"""The jobs of seattle_weather: `day` compares one day with its time of the year, `month` sums days up.

Standard library only. `day` is a child of an array job: AWS_BATCH_JOB_ARRAY_INDEX says which day.
"""

from __future__ import annotations

import calendar
import csv
import json
import os
import random
import statistics
import sys
from datetime import date, datetime
from pathlib import Path

WINDOW_DAYS = 10  # to both sides; with three other years, some 63 days to compare with
RESAMPLES = 1_000  # enough for two steady digits of a 90 % interval
WET_MM = 0.2  # what meteorologists call a wet day


def main(what: str) -> None:
    year, month = map(int, os.environ["WEATHER_MONTH"].split("-"))
    results = Path(os.environ["WEATHER_RESULTS"]) / os.environ["WEATHER_RUN_TYPE"]
    if what == "day":
        day = date(year, month, 1 + int(os.environ["AWS_BATCH_JOB_ARRAY_INDEX"]))
        found = compare_day(observations(), day)
        write(results / day.strftime("%Y-%m") / f"{day.day:02}.json", found)
    else:
        found = reduce_month(results, year, month)
        write(results / f"{year}-{month:02}.json", found)
    print(json.dumps(found))


def observations() -> dict[date, dict[str, float]]:
    """Precipitation (mm) and mean temperature (degrees Celsius) of every day."""
    with open(os.environ["WEATHER_CSV"], newline="") as lines:
        return {
            datetime.strptime(row["date"].replace("/", "-"), "%Y-%m-%d").date(): {
                "rain_mm": float(row["precipitation"]),
                "temp_c": (float(row["temp_max"]) + float(row["temp_min"])) / 2,
            }
            for row in csv.DictReader(lines)
        }


def compare_day(observed: dict[date, dict[str, float]], day: date) -> dict[str, object]:
    """The day against the same time of the other years, with a bootstrapped 90 % interval."""
    if day not in observed:
        sys.exit(
            f"there is no observation of {day}: the data cover {min(observed)} to {max(observed)}"
        )
    others = [
        seen["temp_c"]
        for other, seen in observed.items()
        if other.year != day.year and days_apart(other, day) <= WINDOW_DAYS
    ]
    low, high = interval(others, random.Random(day.toordinal()))
    return {
        "date": day.isoformat(),
        **observed[day],
        "normal_c": round(statistics.fmean(others), 2),
        "normal_low_c": round(low, 2),
        "normal_high_c": round(high, 2),
        "warmer_than": round(sum(one < observed[day]["temp_c"] for one in others) / len(others), 3),
    }


def days_apart(one: date, other: date) -> int:
    """In the circle of the year, so that New Year is near Christmas."""
    apart = abs(one.timetuple().tm_yday - other.timetuple().tm_yday)
    return min(apart, 365 - apart)


def interval(sample: list[float], chance: random.Random) -> tuple[float, float]:
    means = sorted(
        statistics.fmean(chance.choices(sample, k=len(sample))) for _ in range(RESAMPLES)
    )
    return means[RESAMPLES // 20], means[-RESAMPLES // 20]


def reduce_month(results: Path, year: int, month: int) -> dict[str, object]:
    """The days' results as one; every day must be there."""
    wanted = calendar.monthrange(year, month)[1]
    files = sorted((results / f"{year}-{month:02}").glob("*.json"))
    if len(files) != wanted:
        sys.exit(f"{year}-{month:02} has {wanted} days, but there are results of {len(files)}")
    days = [json.loads(file.read_text()) for file in files]
    mean = {key: statistics.fmean(day[key] for day in days) for key in MEANS}
    return {
        "month": f"{year}-{month:02}",
        "days": wanted,
        "rain_mm": round(sum(day["rain_mm"] for day in days), 1),
        "wet_days": sum(day["rain_mm"] >= WET_MM for day in days),
        **{key: round(value, 2) for key, value in mean.items()},
        "most_unusual_day": max(days, key=lambda day: abs(day["temp_c"] - day["normal_c"]))["date"],
    }


MEANS = ("temp_c", "normal_c", "normal_low_c", "normal_high_c", "warmer_than")


def write(path: Path, found: dict[str, object]) -> None:
    """Whole or not at all: an attempt that ran twice leaves the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(json.dumps(found))
    new.replace(path)


if __name__ == "__main__":
    if sys.argv[1:] not in (["day"], ["month"]):
        sys.exit("say what to do: weather.py day|month")
    main(sys.argv[1])
