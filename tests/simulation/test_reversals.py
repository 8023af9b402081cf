"""Reversals under simulated weather that once found a bug of the product."""

from __future__ import annotations

import dataclasses

import pytest

from tests.simulation.options import calm, draw
from tests.simulation.run import run

FOUND = {
    3: (
        4.0935401521945876,
        1.0,
        "an interrupted take-over left a folder at the replica agent that was damaged ever after",
    ),
    13: (3.331076425439262, 1.0, "half of a folder that was being deleted was a damaged VM's at the primary agent"),
    25: (2.8848115119519298, 0.05, "a tap with larger log files than the kept limit allows was never connected to"),
    147: (7.729726280705816, 1.0, "a copy was taken over twice, and put on record as what it was before"),
}
"""Seeds, when they fail over, how often something dies, and what they found. Each has a test of its own as well
(tests/pair/test_reverse.py, tests/unit/primary), since what a seed does changes with the product."""


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("seed", FOUND)
def test_a_reversal_goes_on_after_whatever_death(seed: int) -> None:
    promote_at, reversals, what = FOUND[seed]
    result = run(dataclasses.replace(draw(seed), promote_at=promote_at, reversals=reversals))
    if result.failure is not None:
        pytest.fail(f"{what}? {result}", pytrace=False)
    assert result.counts["directions settled"] >= 1


@pytest.mark.slow
def test_there_and_back() -> None:
    """The settings of the host that the VM comes back to suit a tap that began without them, too."""
    weather = {"promote_at": 2.0, "reversals": 0.001, "kept": 0.0, "again": 1.0, "log_limit": 8 << 20}
    result = run(calm(4, seconds=4.0, pages=32, write_rate=15.0, slow=0.005, **weather))
    assert result.failure is None, result
    assert result.counts["directions settled"] == 2
    assert result.counts["points of a former primary kept"] == 2
