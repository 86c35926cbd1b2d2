"""Containers as processes: podProperties -> one small shell script, and its record -> how it ended.

The script supervises the containers, so their exit codes are not lost while the service is down.
It is written for any POSIX sh. Init containers run first and in order; then all containers at once.
The exit code is that of the first one, in the order of the specification, that did not end with 0.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import msgspec

from airflow_eksbatch.cluster.port import BadPod
from airflow_eksbatch.core.model.limits import CONTAINER_REASON_LENGTH_MAX
from airflow_eksbatch.core.model.retry import AttemptEnd, Cause, exited

# Names that a shell cannot export, or keeps for itself, are set by env(1) instead.
_EXPORTABLE = re.compile(
    r"(?!(?:UID|EUID|PPID|GROUPS|OPTIND|BASHOPTS|SHELLOPTS)$)[A-Za-z_]\w*\Z", re.A
)
_REFERENCE = re.compile(r"\$\$|\$\(([^()]*)\)")


class _Variable(msgspec.Struct):
    name: str
    value: str = ""


class _Container(msgspec.Struct):
    image: str = ""
    name: str = "default"
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[_Variable] | None = None


class _Pod(msgspec.Struct, rename="camel"):
    containers: list[_Container] = []
    init_containers: list[_Container] | None = None


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What one container runs, all references filled in. `label` is i0, i1, ... or c0, c1, ..."""

    label: str
    name: str
    image: str
    argv: tuple[str, ...]
    env: dict[str, str]


def read_containers(pod_properties: bytes, environment: Mapping[str, str]) -> tuple[Container, ...]:
    """Init containers, then containers; `environment` is added to each. Raises BadPod."""
    try:
        pod = msgspec.json.decode(pod_properties, type=_Pod)
    except msgspec.MsgspecError as error:
        raise BadPod(f"podProperties cannot be read: {error}") from error
    if not pod.containers:
        raise BadPod("podProperties has no containers; give at least one.")
    inits = [_resolve(f"i{n}", c, environment) for n, c in enumerate(pod.init_containers or ())]
    mains = [_resolve(f"c{n}", c, environment) for n, c in enumerate(pod.containers)]
    return (*inits, *mains)


def _resolve(label: str, container: _Container, environment: Mapping[str, str]) -> Container:
    env = dict(environment)
    for variable in container.env or ():
        env[variable.name] = expand(variable.value, env)
    words = [*(container.command or ()), *(container.args or ())]
    argv = tuple(expand(word, env) for word in words)
    if any("\0" in text for text in (*argv, *env, *env.values())):
        raise BadPod(f"Container {container.name} has a NUL character in its command or env.")
    if any(not name or "=" in name for name in env):
        raise BadPod(f"Container {container.name} has a variable without a name, or with a `=`.")
    return Container(label=label, name=container.name, image=container.image, argv=argv, env=env)


def expand(text: str, values: Mapping[str, str]) -> str:
    """$(NAME) as Kubernetes fills it in: unknown names stay as they are, $$ is one $."""

    def fill(match: re.Match[str]) -> str:
        return "$" if match[1] is None else values.get(match[1], match[0])

    return _REFERENCE.sub(fill, text)


_PROLOGUE = """\
# One pod of the embedded cluster: its containers as processes, and their exit codes on file.
eksbatch_dir={directory}
eksbatch_codes= eksbatch_stopped=
trap 'eksbatch_stopped=1' TERM
# The output is the containers'; what this shell has to say of their ends is not.
exec 3>&2 2>/dev/null
cd "$eksbatch_dir/work" && echo $$ > "$eksbatch_dir/pid" || exit 125
eksbatch_await() {{
    # A signal ends `wait` early: then the process is still there and is waited for again.
    wait "$1"; eksbatch_code=$?
    while [ "$eksbatch_code" -gt 128 ] && kill -0 "$1" 2>/dev/null; do
        wait "$1"; eksbatch_again=$?
        [ "$eksbatch_again" -eq 127 ] && kill -0 "$1" 2>/dev/null && break
        eksbatch_code=$eksbatch_again
    done
    eksbatch_codes="$eksbatch_codes $2=$eksbatch_code"
}}
eksbatch_end() {{
    echo "ended$eksbatch_codes" > "$eksbatch_dir/exit" || exit 125
    # As in a container, what was left in the background ends with it.
    kill -KILL 0
}}
eksbatch_not_started() {{
    echo "$1" >> "$eksbatch_dir/not-started"
    echo "eksbatch: the embedded cluster runs processes of this machine; image $2 is not used" >&2
}}
"""


def script_of(containers: tuple[Container, ...], directory: Path) -> str:
    """The supervising script of a pod whose files are in `directory`."""
    parts = [_PROLOGUE.format(directory=shlex.quote(str(directory)))]
    parts += [_function(container) for container in containers]
    inits = [c.label for c in containers if c.label.startswith("i")]
    mains = [c.label for c in containers if c.label.startswith("c")]
    for label in inits:
        parts.append(
            f"eksbatch_{label} & eksbatch_await $! {label}\n"
            f'[ "$eksbatch_code" -eq 0 ] && [ -z "$eksbatch_stopped" ] || eksbatch_end\n'
        )
    if inits:
        parts.append('echo > "$eksbatch_dir/running"\n')
    parts += [f"eksbatch_{label} & eksbatch_pid_{label}=$!\n" for label in mains]
    # A SIGTERM that came before them has told nobody.
    parts.append('[ -z "$eksbatch_stopped" ] || kill -TERM 0\n')
    parts += [f'eksbatch_await "$eksbatch_pid_{label}" {label}\n' for label in mains]
    return "".join([*parts, "eksbatch_end\n"])


def _function(container: Container) -> str:
    """The shell function that becomes the container's process.

    `exec` looks for programs only. If it finds none the shell ends, and its EXIT trap says so.
    """
    lost = f"eksbatch_not_started {container.label} {shlex.quote(container.image)}"
    lines = ["exec 2>&3 3>&-", f"trap {shlex.quote(lost)} EXIT"]
    odd: list[str] = []
    for name, value in container.env.items():
        if _EXPORTABLE.match(name):
            lines.append(f"export {name}={shlex.quote(value)}")
        else:
            odd.append(f"{name}={value}")
    argv = ["env", *odd, *container.argv] if odd and container.argv else container.argv
    if argv:
        lines.append(f"exec {shlex.join(argv)}")
    else:
        lines.append(f"echo eksbatch: container {shlex.quote(container.name)} has no command >&2")
        lines.append("exit 127")
    body = "\n    ".join(lines)
    return f"eksbatch_{container.label}() {{\n    {body}\n}}\n"


def read_codes(record: str) -> dict[str, int] | None:
    """The script's record -> exit code by label; None when it was not written to its end."""
    if not record.startswith("ended") or not record.endswith("\n"):
        return None
    pairs = (pair.partition("=") for pair in record.split()[1:])
    return {label: int(code) for label, _, code in pairs}


def end_of(
    codes: Mapping[str, int],
    programs: Mapping[str, str],
    not_started: frozenset[str],
    names: Mapping[str, str],
) -> AttemptEnd:
    """How the pod ended. `programs` says what each container runs, init containers first, `names` what it is called."""
    failed = next((label for label in programs if codes.get(label, 0) != 0), None)
    if failed is None and all(label in codes for label in programs):
        return AttemptEnd(cause=Cause.EXITED, exit_code=0, reason="Completed")
    if failed is None:
        # Told to stop between two init containers: all that ran ended well, but not all ran.
        return exited(143)
    reason, container = "Error", names.get(failed, "")
    if failed in not_started:
        found = f"StartError: {programs[failed]!r} cannot be run on this machine"
        reason = found if programs[failed] else "StartError: the container has no command"
    return exited(codes[failed], reason[:CONTAINER_REASON_LENGTH_MAX], container)
