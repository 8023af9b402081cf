"""How two sides that beat at different intervals bear with each other: what a peer told of its heartbeats counts."""

from __future__ import annotations

from shared.rates import Ration

BEATS = 3
"""Heartbeats of a peer that may be missing before it is dead."""
PATIENCE_MAX_SECONDS = 120.0
"""However rarely a peer says that it beats, its silence is found in so long, or in ``dead_after`` if that is more."""
ANSWERS = 4
"""Heartbeats that are answered within one interval: the peer's own, and those by which it asks for a proof."""
SHORTEST_INTERVAL_SECONDS = 0.1
"""A peer that tells a shorter interval gets no more answers for it."""


def patience(dead_after: float, told: float) -> float:
    """Seconds of silence after which a peer is dead that told to beat every ``told`` seconds."""
    return max(dead_after, min(BEATS * told, PATIENCE_MAX_SECONDS))


def answers(heartbeat: float, told: float, now: float) -> Ration:
    """The ration of answers for a peer that beats every ``told`` seconds; this side does so every ``heartbeat``.

    By the shorter one of both, so that the side which beats more often gets each of its own answered.
    """
    return Ration(ANSWERS, ANSWERS / min(heartbeat, max(told, SHORTEST_INTERVAL_SECONDS)), now)
