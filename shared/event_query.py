"""Finding events in a store that only tells its newest ones: as few are read as the question needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

EVENTS_KEPT = 10_000
"""No store keeps more."""
STEPS = (1, 10, 100)

Event = dict[str, Any]
Wants = Callable[[Event], bool]


class Read(Protocol):
    """The newest ``limit`` events with an id above ``after``, oldest first."""

    def __call__(self, *, limit: int, after: int) -> Awaitable[list[Event]]: ...


def everything(_event: Event) -> bool:
    return True


async def sought(read: Read, *, limit: int, after: int, wants: Wants = everything, since: float = 0.0) -> list[Event]:
    """The newest ``limit`` events above ``after`` that ``wants`` takes, oldest first; none is older than ``since``
    (seconds since the Unix epoch).
    """
    chosen: list[Event] = []
    for size in (*(min(limit * step, EVENTS_KEPT) for step in STEPS), EVENTS_KEPT):
        found = await read(limit=size, after=after)
        chosen = [event for event in found if event["time"] >= since and wants(event)]
        if len(chosen) >= limit or len(found) < size or found[0]["time"] < since:
            break
    return chosen[-limit:]
