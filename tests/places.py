"""How many of a story's places a test dies at: in CI a sample, and all of them where somebody asks for that."""

from __future__ import annotations

import os

VARIABLE = "VMREPLICA_ALL_PLACES"
"""Set to 1 it makes tests that kill at many places kill at all of them; it takes minutes more."""


def step(sampled: int, *, all_places: int) -> int:
    """The step from one place to the next: ``sampled``, or ``all_places`` where all are asked for."""
    return all_places if os.environ.get(VARIABLE) == "1" else sampled
