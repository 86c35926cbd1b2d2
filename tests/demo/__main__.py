"""`make demo`: the main job of this repository on this machine, with everything real but the cloud."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from rich.table import Table

from tests.airflow.processes import Gone
from tests.airflow.rest import Refused
from tests.airflow.rig import Airflow
from tests.demo import place, verdict
from tests.demo.place import HOME, RESULTS, ROOT, Trouble
from tests.demo.play import Play
from tests.demo.screen import Screen, clock
from tests.demo.service import Service
from tests.demo.story import Story

STOP = ".venv/bin/python -m tests.demo --stop"


def main() -> int:
    options = argparse.ArgumentParser(prog="make demo", description=__doc__)
    options.add_argument("--keep", action="store_true", help="leave Airflow and the service up")
    options.add_argument("--stop", action="store_true", help="stop what --keep left up")
    given = options.parse_args()
    if given.stop:
        print("stopped" if place.stop_left() else "nothing was left up")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    screen = Screen()
    try:
        return _demo(screen, keep=given.keep)
    except (Trouble, Gone, Refused) as trouble:
        screen.note(f"[red]failed:[/red] {trouble!s}")
        return 1
    except KeyboardInterrupt:
        screen.note("interrupted; everything that was started is stopped")
        return 130


def _leave(number: int, _: object) -> NoReturn:
    """Ends the same way as Ctrl-C: through every `finally`."""
    raise KeyboardInterrupt


def _demo(screen: Screen, *, keep: bool) -> int:
    place.clean()
    screen.note("the wheel is built and installed in an environment of its own")
    python = place.install_wheel()
    with ExitStack() as stack:
        play = _set_stage(screen, python, stack)
        play.perform()
        evidence = verdict.gather(play)
        _print_report(screen, evidence)
        if wrong := verdict.objections(evidence):
            raise Trouble("; ".join(wrong))
        screen.note(f"[green]everything holds[/green], in {clock(screen.elapsed_s)}")
        if keep:
            stack.pop_all()
            _tell_what_is_up(screen, play)
    return 0


def _set_stage(screen: Screen, python: Path, stack: ExitStack) -> Play:
    service = Service(python, HOME / "service")
    stack.callback(service.stop)
    service.wait_until_ready()
    screen.note(f"the scheduler service listens at {service.url}, with no instance yet")
    airflow = Airflow(
        HOME / "airflow",
        ROOT / "dags",
        {"EKSBATCH_URL": service.url, "WEATHER_RESULTS": str(RESULTS)},
        python=str(python),
    )
    stack.callback(airflow.stop)
    airflow.start()
    version = airflow.rest.providers().get("airflow-eksbatch")
    if version is None:
        raise Trouble("Airflow does not list airflow-eksbatch among its providers")
    screen.note(f"Airflow is up at {airflow.url}, with airflow-eksbatch {version} from the wheel")
    story = Story(service.url)
    stack.callback(story.close)
    return Play(airflow, service, story, screen)


def _print_report(screen: Screen, evidence: verdict.Evidence) -> None:
    table = Table.grid(padding=(0, 2))
    for row in verdict.report(evidence):
        table.add_row(*row)
    screen.console.print()
    screen.console.print(table)
    screen.console.print()


def _tell_what_is_up(screen: Screen, play: Play) -> None:
    play.airflow.leave_running()
    place.remember_running([play.service.child.pid, *play.airflow.pids()])
    screen.note(f"Airflow stays up at {play.airflow.url}, the service at {play.service.url}")
    screen.note(f"stop both with: {STOP}")


if __name__ == "__main__":
    sys.exit(main())
