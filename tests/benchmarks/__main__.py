"""All benchmarks by name: `python -m tests.benchmarks` lists them, `... NAME [its options]` or `... all` runs them.

Each runs in a process of its own and keeps its result, with the conditions, in results/NAME.json; `... --table` writes
the tables of README.md anew from those.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.table import refresh

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"


def benchmarks() -> dict[str, Path]:
    return {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}


def purpose(path: Path) -> str:
    """The first line of a benchmark's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def run(name: str, options: list[str]) -> int:
    RESULTS.mkdir(exist_ok=True)
    out = [] if "--out" in options else ["--out", str(RESULTS / f"{name}.json")]
    module = f"tests.benchmarks.bench_{name}"
    print(f"== {name}", flush=True)
    return subprocess.run([sys.executable, "-m", module, *options, *out], cwd=ROOT).returncode


def main(arguments: list[str]) -> int:
    known = benchmarks()
    name, options = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name == "--table":
        print(refresh(HERE / "README.md", RESULTS))
        return 0
    if name == "all":
        return max([run(each, options) for each in known], default=0)
    if name in known:
        return run(name, options)
    for each, path in known.items():
        print(f"{each:12} {purpose(path)}")
    if name:
        print(f"There is no benchmark {name}. Give one of these, or all.", file=sys.stderr)
    return 2 if name else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
