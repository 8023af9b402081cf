"""How much of what is proven by repetition a test repeats: in CI a sample, and all where somebody asks for that."""

from __future__ import annotations

import os

VARIABLE = "VMREPLICA_ALL_PLACES"
"""Set to 1 (``scripts/test --thorough``) it makes tests that kill at many places kill at all of them, and those that
repeat something repeat it more often; it takes many minutes more."""


def step(sampled: int, *, all_places: int) -> int:
    """The step from one place to the next: ``sampled``, or ``all_places`` where all are asked for."""
    return all_places if is_thorough() else sampled


def is_thorough() -> bool:
    """Whether all is asked for."""
    return os.environ.get(VARIABLE) == "1"
