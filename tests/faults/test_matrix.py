"""docs/fault-matrix.md names tests and defences that exist, and misses none; some defences are taken out here."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

from tests.faults.defences import DEFENCES, run_without

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fault-matrix.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| [FNPRA]\d", line)]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
"""Rows that the page says it does not have."""


@functools.cache
def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > 40
    assert [f"{path}::{name}" for path, name in named if name not in functions(path)] == []


def test_every_row_is_there_with_a_test_and_a_defence() -> None:
    rows = {name for line in ROWS for name in line.split("|")[1].replace(" ", "").split(",")}
    assert rows == {f"P{number}" for number in range(1, 23)} | {f"R{number}" for number in range(1, 7)} | {
        f"N{number}" for number in range(1, 15)
    } | {f"A{number}" for number in range(1, 27)} | {f"F{number}" for number in range(1, 7)}
    for line in ROWS:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 6, line
        assert all(cells), line
        assert TEST.search(cells[3]), line
        words = re.findall(r"`(\w+)`", cells[5])
        assert words or TEST.search(cells[5]), line
        assert [word for word in words if word not in DEFENCES] == []


def test_every_defence_is_named_and_can_be_taken_out() -> None:
    for name, defence in DEFENCES.items():
        assert f"`{name}`" in PAGE
        module, _, path = defence.place.partition(":")
        owner = importlib.import_module(module)
        for one in path.split("."):
            assert one in vars(owner), f"{name}: there is no {defence.place}"
            owner = vars(owner)[one]
        file, _, test = defence.test.partition("::")
        assert not test or test in functions(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, defence in DEFENCES.items() if defence.quick])
def test_without_its_defence_a_row_fails(name: str) -> None:
    """The others are taken out by ``python -m tests.faults.defences``."""
    result = run_without(name)
    assert result.returncode == 1, result.stdout[-3000:] + result.stderr[-1000:]
