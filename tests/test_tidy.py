"""The rules of the house that no linter knows: sizes, words, purity of core, and the truth of the map."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_eksbatch.core.model.job import TRANSITIONS
from airflow_eksbatch.core.model.node import NODE_TRANSITIONS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "airflow_eksbatch"
MODULES = sorted(PACKAGE.rglob("*.py"))
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
ROOM_MODULES_MAX = 14
POSITIONAL_MAX = 5
REFUSED_NAMES = re.compile(r"(manager|helper|util|common|misc|base)s?(_|$)|^(do|handle|process)_")
IMPURE_CALLS = frozenset({"now", "utcnow", "today", "uuid4", "open", "print", "sleep", "getenv"})


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring not counted."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_module_says_what_it_is_for_and_stays_small(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{place(path)} has no docstring"
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    assert not REFUSED_NAMES.search(path.stem), f"{place(path)}: a name that says nothing"


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_functions_fit_on_a_screen_and_take_few_positional_parameters(path: Path) -> None:
    for function in functions(path):
        where = f"{place(path)}: {function.name}"
        assert body_lines(function) <= FUNCTION_LINES_MAX, where
        positional = [a.arg for a in function.args.posonlyargs + function.args.args]
        assert len([a for a in positional if a not in ("self", "cls")]) <= POSITIONAL_MAX, where
        assert not re.match(r"(do|handle|process)_", function.name), where


def test_rooms_stay_small() -> None:
    rooms = Counter(p.parent for p in MODULES if p.name != "__init__.py")
    assert {place(r): n for r, n in rooms.items() if n > ROOM_MODULES_MAX and r != PACKAGE} == {}


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=place)
def test_core_has_no_clock_no_chance_and_no_outside(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor), place(path)
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            assert name not in IMPURE_CALLS, f"{place(path)}:{node.lineno} calls {name}()"


def module_tables() -> str:
    """Every module with its docstring's first paragraph, room by room."""
    rooms: dict[Path, list[Path]] = {}
    for path in MODULES:
        if path.name != "__init__.py":
            rooms.setdefault(path.parent, []).append(path)
    tables: list[str] = []
    for room, paths in rooms.items():
        name = "the face" if room == PACKAGE else room.relative_to(PACKAGE).as_posix()
        rows = [f"### {name}", "", "| module | what it is for |", "|---|---|"]
        for path in paths:
            sentence = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
            place = path.relative_to(PACKAGE).as_posix()
            rows.append(f"| `{place}` | {' '.join(sentence.split())} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def test_the_golden_map_has_every_module_with_its_own_sentence() -> None:
    readme = PACKAGE / "README.md"
    before, _, rest = readme.read_text().partition("<!-- modules -->\n")
    after = rest.partition("<!-- /modules -->")[2]
    meant = f"{before}<!-- modules -->\n{module_tables()}\n<!-- /modules -->{after}"
    if os.environ.get("GOLDEN") == "write":
        readme.write_text(meant)
    assert readme.read_text() == meant, "the map is old: make golden"


def test_the_map_names_no_module_that_does_not_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", (PACKAGE / "README.md").read_text()))
    assert {
        name for name in named if not ((PACKAGE / name).exists() or (ROOT / name).exists())
    } == set()


def test_no_file_carries_a_path_of_a_machine() -> None:
    machine = re.compile(r"/(work|root|farm|home/[a-z]+)/(?!\.\.\.)")
    texts = [p for p in ROOT.rglob("*") if p.suffix in (".py", ".md", ".toml", ".txt", ".yaml")]
    hidden = {".venv", ".git", ".demo", ".cache"}
    bad = [
        place(p)
        for p in texts
        if not any(part.startswith(tuple(hidden)) for part in p.relative_to(ROOT).parts)
        and p != Path(__file__)
        and machine.search(p.read_text(errors="replace"))
    ]
    assert bad == []


def test_the_pictures_of_both_lives_are_the_tables() -> None:
    readme = (PACKAGE / "core" / "README.md").read_text()
    tables: list[Mapping[Any, Iterable[Any]]] = [TRANSITIONS, NODE_TRANSITIONS]
    for table in tables:
        arrows = [f"    {a.value} --> {b.value}" for a in table for b in sorted(table[a])]
        assert "\n".join(["```mermaid", "stateDiagram-v2", *arrows, "```"]) in readme
