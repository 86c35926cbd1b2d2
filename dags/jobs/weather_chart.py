"""The job of seattle_weather_chart: all reduced months of the backfill as one picture."""

from __future__ import annotations

import json
import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates
import matplotlib.pyplot as plt

WARM, COLD, RAIN, INK = "#c8553d", "#3d6b99", "#8fb3cf", "#333333"


def main() -> None:
    results = Path(os.environ["WEATHER_RESULTS"])
    months = [
        json.loads(file.read_text()) for file in sorted((results / "backfill").glob("*.json"))
    ]
    if not months:
        sys.exit(f"no reduced months below {results}: run a backfill of seattle_weather first")
    chart = results / "seattle_weather.png"
    draw(months, chart)
    print(f"{len(months)} months, {sum(one['days'] for one in months)} days: {chart}")


def draw(months: list[dict[str, Any]], chart: Path) -> None:
    figure, (warmth, rain) = plt.subplots(
        2, 1, figsize=(12, 6.5), sharex=True, height_ratios=[2, 1], layout="constrained"
    )
    when = [date.fromisoformat(f"{one['month']}-01") for one in months]
    draw_warmth(warmth, when, months)
    draw_rain(rain, when, months)
    first, last = months[0]["month"], months[-1]["month"]
    figure.suptitle(
        f"Seattle {first} to {last}: months warmer and colder than their time of the year"
    )
    figure.savefig(chart, dpi=110)


def draw_warmth(axes: Any, when: list[date], months: list[dict[str, Any]]) -> None:
    excess = [one["temp_c"] - one["normal_c"] for one in months]
    colors = [WARM if one > 0 else COLD for one in excess]
    axes.bar(when, excess, width=26, bottom=[one["normal_c"] for one in months], color=colors)
    low, high = ([one[f"normal_{side}_c"] for one in months] for side in ("low", "high"))
    axes.fill_between(when, low, high, color=INK, alpha=0.18, label="usual, 90 % interval")
    axes.plot(when, [one["temp_c"] for one in months], color=INK, linewidth=1, label="observed")
    axes.set_ylabel("mean temperature, °C")
    axes.legend(loc="upper left", frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def draw_rain(axes: Any, when: list[date], months: list[dict[str, Any]]) -> None:
    axes.bar(when, [one["rain_mm"] for one in months], width=26, color=RAIN)
    axes.set_ylabel("rain, mm a month")
    axes.xaxis.set_major_locator(matplotlib.dates.MonthLocator(bymonth=(1, 7)))
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%Y-%m"))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
