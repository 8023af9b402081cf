"""The simulation notices every planted bug, soon, and by what that bug breaks: else it proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.places import is_thorough
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import run

RARE = ("differencing_nosync", "rests_for_ever")
"""Noticed by few seeds only, so that they are looked for with --thorough; test_sweep.py tells the first one."""
SEEDS = 400 if is_thorough() else 40
"""A bug has to be noticed within so many seeds from the one that found it when it was planted."""
LEAST = 14
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "simulation.md"
QUICK = "answer_early"


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    """When a bug is planted."""
    marks = [] if name == QUICK else [pytest.mark.slow]
    return [*marks, pytest.mark.thorough] if name in RARE else marks


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(mutant, marks=marks_of(name), id=name) for name, mutant in MUTANTS.items()],
)
def test_planted_bug_is_noticed(mutant: Mutant) -> None:
    for seed in range(mutant.first, mutant.first + SEEDS):
        result = run(mutant.options(seed), patches=(mutant.planted(),))
        if result.failure is not None:
            assert mutant.is_told_by(result.failure), f"{mutant.name} must break one of {mutant.breaks}: {result}"
            return
    pytest.fail(f"{mutant.name} goes unnoticed for {SEEDS} seeds from {mutant.first}: {mutant.rule}")


def test_enough_bugs_are_planted() -> None:
    assert len(MUTANTS) >= LEAST
    assert all(mutant.rule and mutant.breaks for mutant in MUTANTS.values())


def test_documentation_has_them_all() -> None:
    shown = DOCUMENTATION.read_text().splitlines()
    missing = [mutant.row() for mutant in MUTANTS.values() if mutant.row() not in shown]
    assert not missing, "print them with python -m tests.simulation --table"


def test_planting_leaves_nothing_behind() -> None:
    before = [vars(owner).get(attribute) for m in MUTANTS.values() for owner, attribute, _ in m.plant()]
    for mutant in MUTANTS.values():
        with mutant.planted():
            pass
    after = [vars(owner).get(attribute) for m in MUTANTS.values() for owner, attribute, _ in m.plant()]
    assert after == before
