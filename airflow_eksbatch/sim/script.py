"""A small command language for the simulator: stories that people tell, and that tests hold word for word."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from airflow_eksbatch.core.engine.facts import (
    ComputeEnvironmentPut,
    Fact,
    JobStopped,
    JobSubmitted,
    PolicyPut,
    QueuePut,
)
from airflow_eksbatch.core.model import limits
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.errors import Rejected
from airflow_eksbatch.core.model.job import Dependency, DependencyType, JobId, MultiNode
from airflow_eksbatch.core.model.retry import RetryStrategy
from airflow_eksbatch.core.model.share import SchedulingPolicy
from airflow_eksbatch.core.planner.explain import explain
from airflow_eksbatch.sim.cluster import Program
from airflow_eksbatch.sim.report import Watcher, clock, text_of
from airflow_eksbatch.sim.scenario import (
    LIMIT_S,
    STALLED,
    BadScenario,
    Group,
    check_fits,
    check_group,
    offerings_by_types,
    read_weight,
    run_to_end,
    shape_of,
)
from airflow_eksbatch.sim.simulator import Simulator
from airflow_eksbatch.sim.story import Story, jobs_table, nodes_table
from airflow_eksbatch.sim.workload import ARN, a_queue, a_spec, an_environment

PROMPT = "> "
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
Words = Sequence[str]
Named = Mapping[str, str]


class Script:
    """One simulated service and a person who types."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.offerings = simulator.offerings
        self.watcher = Watcher(simulator)
        self.story = Story(simulator)
        self._environments: dict[str, ComputeEnvironment] = {}
        self._queues: dict[str, tuple[str, ...]] = {}
        self._fair: set[str] = set()
        self._tokens = itertools.count(1)

    def play(self, text: str) -> Iterator[str]:
        """Each command behind a prompt, then its answer; answers that are in the text already are passed over."""
        for number, line in commands_of(text):
            yield f"{PROMPT}{line}"
            try:
                yield from () if line.startswith("#") else self.obey(line)
            except BadScenario as error:
                raise BadScenario(f"line {number}, {line!r}: {error.message}") from None

    def obey(self, line: str) -> Iterator[str]:
        (name, *words), named = read_line(line)
        command = COMMANDS.get(name)
        if command is None:
            raise BadScenario(f"there is no such command; there are {', '.join(COMMANDS)}.")
        for unknown in named.keys() - set(command.named):
            raise BadScenario(f"{unknown}= is not understood here.")
        try:
            yield from command.run(self, words, named)
        except BadScenario:
            raise
        except (ValueError, KeyError, msgspec.ValidationError):
            raise BadScenario(f"say {' '.join(f'{name} {command.usage}'.split())}") from None

    # ---- set-up

    def _environment(self, words: Words, named: Named) -> Iterator[str]:
        name, market, most = words
        before = self._environments.get(name)
        made = an_environment(
            name,
            Market(market),
            whole(most),
            min_vcpus=whole(named.get("min", "0")),
            idle_s=seconds(named["idle"]) if "idle" in named else None,
        )
        types = named.get("types", "optimal").split(",")
        self.offerings[name] = offerings_by_types(types, made.market, name)
        self._environments[name] = made
        yield from self._put(ComputeEnvironmentPut(compute_environment=made, create=before is None))

    def _switch(self, words: Words, _: Named, *, state: str) -> Iterator[str]:
        name = self._known_environment(words)
        made = msgspec.structs.replace(self._environments[name], state=state)
        self._environments[name] = made
        yield from self._put(ComputeEnvironmentPut(compute_environment=made, create=False))

    def _queue(self, words: Words, named: Named) -> Iterator[str]:
        name, listed = words
        environments = listed.split(",")
        is_fair = named.get("fifo") != "yes"
        texts = named["weights"].split(",") if "weights" in named else []
        weights = tuple(read_weight(text, "weights") for text in texts)
        is_new = name not in self._queues
        if is_fair:
            policy = SchedulingPolicy(
                name=name, arn=f"{ARN}:scheduling-policy/{name}", shares=weights
            )
            yield from self._put(PolicyPut(policy=policy, create=is_new))
            self._fair.add(name)
        queue = a_queue(
            name,
            environments,
            priority=whole(named.get("priority", "1")),
            policy=name if is_fair else None,
        )
        self._queues[name] = tuple(environments)
        yield from self._put(QueuePut(queue=queue, create=is_new))

    # ---- jobs

    def _submit(self, words: Words, named: Named) -> Iterator[str]:
        name, queue = words
        group = Group(
            count=whole(named.get("count", "1")),
            run_s=seconds(named.get("run", "60s")),
            vcpus=float(named.get("vcpus", "1")),
            memory_mib=whole(named.get("memory", "2048")),
        )
        check_group(group, name)
        if queue in self._queues:
            of = [self.offerings.get(environment, ()) for environment in self._queues[queue]]
            check_fits(shape_of(group), [offering for found in of for offering in found])
        exits = tuple(int(code) for code in named.get("exits", "0").split(","))
        program = Program(run_s=(group.run_s,), exit_codes=exits)
        spec = a_spec(
            name,
            queue,
            shape_of(group),
            program,
            multi_node=multi_node_of(named, group, program),
            share=named.get("share", "today") if queue in self._fair else "",
            array_size=group.count if group.count > 1 else None,
            priority=whole(named.get("priority", "0")),
            retry=RetryStrategy(attempts=whole(named.get("attempts", "1"))),
            timeout_s=round(seconds(named["timeout"])) if "timeout" in named else None,
            depends_on=dependencies_of(named),
        )
        self.watcher.expect(spec, self.simulator.timeline.elapsed_s)
        yield from self._put(JobSubmitted(spec=spec))

    def _stop(self, words: Words, _: Named, *, terminate: bool) -> Iterator[str]:
        (job,) = words
        name, colon, index = job.partition(":")
        fact = JobStopped(
            job_id=JobId(name),
            index=whole(index) if colon else None,
            reason="terminated by the script" if terminate else "cancelled by the script",
            terminate=terminate,
        )
        yield from self._put(fact)

    # ---- what goes wrong

    def _refuse(self, words: Words, _: Named) -> Iterator[str]:
        self.simulator.cloud.refusing.add(self._known_environment(words))
        yield from ()

    def _allow(self, words: Words, _: Named) -> Iterator[str]:
        self.simulator.cloud.refusing.discard(self._known_environment(words))
        yield from ()

    def _reclaim(self, words: Words, _: Named) -> Iterator[str]:
        name, number = self._known_environment(words[:1]), how_many(words)
        if self._environments[name].market is not Market.SPOT:
            raise BadScenario("only Spot instances are taken back.")
        yield f"{self.simulator.cloud.reclaim(name, number)} of {name} are given notice"

    def _silence(self, words: Words, _: Named) -> Iterator[str]:
        name, number = self._known_environment(words[:1]), how_many(words)
        yield f"{self.simulator.cloud.silence(name, number)} of {name} fall silent"

    def _crash(self, words: Words, _: Named) -> Iterator[str]:
        nothing(words)
        self.simulator.crash()
        yield "the service is killed"

    # ---- time and questions

    def _wait(self, words: Words, _: Named) -> Iterator[str]:
        (how_long,) = words
        simulator, timeline = self.simulator, self.simulator.timeline
        if how_long == "end":
            if any(environment.min_vcpus for environment in self._environments.values()):
                raise BadScenario("min= keeps instances for ever: wait for a time, such as 1h.")
            # What was asked for last is on its way for a moment.
            begin = timeline.now + 1000
            if not run_to_end(simulator, lambda: timeline.now >= begin and simulator.is_quiet):
                raise BadScenario(STALLED)
        else:
            until = timeline.now + round(seconds(how_long) * 1000)
            simulator.run(lambda: (timeline.next_at or until + 1) > until, LIMIT_S)
            timeline.move_to(until)
        yield from self.story.lines()
        yield f"it is {clock(timeline.elapsed_s)}"

    def _show(self, words: Words, _: Named) -> Iterator[str]:
        nothing(words)
        yield from jobs_table(self.simulator.ledger)
        yield from nodes_table(self.simulator.ledger)

    def _why(self, words: Words, _: Named) -> Iterator[str]:
        (name,) = words
        world = self.simulator.world
        if world is None:
            yield "nobody knows: the service is down"
            return
        job = world.jobs.get(JobId(name)) or self.simulator.ledger.find_job(JobId(name))
        if job is None:
            raise BadScenario("there is no such job.")
        yield from explain(world, job, self.simulator.timeline.now)

    def _report(self, words: Words, _: Named) -> Iterator[str]:
        nothing(words)
        yield from text_of(self.watcher.answer()).splitlines()

    def _help(self, words: Words, _: Named) -> Iterator[str]:
        nothing(words)
        for name, command in COMMANDS.items():
            yield f"{name:<12} {command.usage}".rstrip()

    # ---- with the service

    def _put(self, fact: Fact) -> Iterator[str]:
        """Ask, and let time pass until there is an answer; a refusal is told as the caller hears it."""
        answers: list[object] = []
        self.simulator.ask(fact, answers.append)
        self.simulator.run(lambda: bool(answers), self.simulator.timeline.elapsed_s + LIMIT_S)
        for answer in answers:
            if isinstance(answer, Rejected):
                yield f"refused: {answer.message}"

    def _known_environment(self, words: Words) -> str:
        (name,) = words
        if name not in self._environments:
            raise BadScenario("there is no such compute environment.")
        return name


# ---- reading


class Command(msgspec.Struct, frozen=True):
    usage: str
    run: Callable[[Script, Words, Named], Iterator[str]]
    named: tuple[str, ...] = ()


COMMANDS = {
    "environment": Command(
        "NAME EC2|SPOT MAX_VCPUS [types=m6i,c6i] [min=VCPUS] [idle=60s]   make one, or change it",
        Script._environment,
        ("types", "min", "idle"),
    ),
    "enable": Command("ENVIRONMENT", partial(Script._switch, state="ENABLED")),
    "disable": Command(
        "ENVIRONMENT                  it buys nothing more; what it has goes on",
        partial(Script._switch, state="DISABLED"),
    ),
    "queue": Command(
        "NAME ENVIRONMENT,... [priority=1] [weights=SHARE=FACTOR,...] [fifo=yes]",
        Script._queue,
        ("priority", "weights", "fifo"),
    ),
    "submit": Command(
        "NAME QUEUE [count=1] [run=60s] [vcpus=1] [memory=2048] [share=today] [after=JOB,...]\n"
        "              [each=yes]  child i waits for child i only   [in-order=yes]  children one by one\n"
        "              [attempts=1] [exits=1,0]  exit code of each attempt   [timeout=10m] [priority=0]\n"
        "              [nodes=4]  one job on so many nodes at once, each to itself",
        Script._submit,
        (
            *("count", "run", "vcpus", "memory", "share", "after", "each", "in-order"),
            *("attempts", "exits", "timeout", "priority", "nodes"),
        ),
    ),
    "cancel": Command("JOB[:INDEX]", partial(Script._stop, terminate=False)),
    "terminate": Command("JOB[:INDEX]", partial(Script._stop, terminate=True)),
    "refuse": Command("ENVIRONMENT                  there is no capacity for it", Script._refuse),
    "allow": Command("ENVIRONMENT                   there is again", Script._allow),
    "reclaim": Command(
        "ENVIRONMENT [COUNT]         Spot instances are taken back, with two minutes' notice",
        Script._reclaim,
    ),
    "silence": Command("ENVIRONMENT [COUNT]         the kubelets of nodes die", Script._silence),
    "crash": Command(
        "                              kill -9 of the service; it comes back", Script._crash
    ),
    "wait": Command(
        "5m | end                       let time pass, and tell what happens; end: until nothing lives",
        Script._wait,
    ),
    "show": Command("                               jobs, and nodes", Script._show),
    "why": Command("JOB                             why is it not running?", Script._why),
    "report": Command("                             what it came to so far", Script._report),
    "help": Command("                               this list", Script._help),
}


def commands_of(text: str) -> list[tuple[int, str]]:
    """Numbered lines that are commands or comments: those behind a prompt if there are any, else all."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    prompted = [(n, line[len(PROMPT) :]) for n, line in lines if line.startswith(PROMPT)]
    return prompted or [(number, line) for number, line in lines if line]


def read_line(line: str) -> tuple[list[str], dict[str, str]]:
    try:
        parts = shlex.split(line)
    except ValueError as error:
        raise BadScenario(f"it cannot be read: {error}.") from None
    words = [part for part in parts if "=" not in part]
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    if not words:
        raise BadScenario("it begins with no command.")
    return words, named


def nothing(words: Words) -> None:
    if words:
        raise ValueError


def how_many(words: Words) -> int:
    """The second word, or one."""
    return whole(words[1]) if len(words) == 2 else len(words)


def whole(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise BadScenario(f"{text} is not a whole number.")
    return int(text)


def seconds(text: str) -> float:
    """90, 90s, 5m, 1.5h, 2d."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS_S else (text, "s")
    try:
        found = float(number) * UNITS_S[unit]
    except ValueError:
        found = -1.0
    if not 0 <= found <= LIMIT_S:
        raise BadScenario(f"{text} is no time: say 90s, 5m or 2h, up to 30 days.")
    return found


def multi_node_of(named: Named, group: Group, program: Program) -> MultiNode | None:
    """The first node is the main one; all do the same, for as long as that one does."""
    if "nodes" not in named:
        return None
    nodes = whole(named["nodes"])
    if not 0 < nodes <= limits.NODES_MAX:
        raise BadScenario(f"a job has at least one node and at most {limits.NODES_MAX:,}.")
    if group.count > 1:
        raise BadScenario("an array has no nodes= (as in AWS): submit several jobs.")
    return MultiNode(nodes=nodes, pods=((0, msgspec.json.encode(program)),))


def dependencies_of(named: Named) -> tuple[Dependency, ...]:
    kind = DependencyType.N_TO_N if named.get("each") == "yes" else DependencyType.PLAIN
    awaited = named["after"].split(",") if "after" in named else []
    found = [Dependency(type=kind, job_id=JobId(name)) for name in awaited]
    if named.get("in-order") == "yes":
        found.append(Dependency(type=DependencyType.SEQUENTIAL))
    return tuple(found)
