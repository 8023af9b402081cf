"""What a primary makes of each error that a replica tells: tried again by itself, or left to an administrator.

``docs/monitoring.md`` shows the table. What a session finds out by itself is judged by
:mod:`primary_agent.session_loop`.
"""

from __future__ import annotations

from enum import Enum

from protocol.messages import ErrorCode


class Recovery(Enum):
    """How it goes on after an error; the value says it to people."""

    RETRIED = "tried again by itself, after 1, 2, 4 ... 30 s"
    QUEUED = "asked again every 5 s; no failure"
    COMPARED = "put on record as the cause of a resync, and tried again by itself"
    WAITS = "put on record once, Critical; tried every 5 minutes, or at once with `vmreplica resume`"
    FENCED = "nothing is sent until an administrator says so"

    @property
    def recoverable(self) -> bool:
        """Whether it heals without an administrator."""
        return self not in (Recovery.WAITS, Recovery.FENCED)


RECOVERY: dict[ErrorCode, Recovery] = {
    ErrorCode.PROTOCOL: Recovery.RETRIED,
    ErrorCode.VERSION: Recovery.WAITS,
    ErrorCode.UNAUTHORIZED: Recovery.WAITS,
    ErrorCode.BUSY: Recovery.RETRIED,
    ErrorCode.GEOMETRY: Recovery.WAITS,
    ErrorCode.UNRELATED: Recovery.WAITS,
    ErrorCode.FENCED: Recovery.FENCED,
    ErrorCode.GAP: Recovery.COMPARED,
    ErrorCode.CHAIN: Recovery.COMPARED,
    ErrorCode.STATE: Recovery.WAITS,
    ErrorCode.NO_SPACE: Recovery.RETRIED,
    ErrorCode.STORAGE: Recovery.WAITS,
    ErrorCode.DAMAGED: Recovery.WAITS,
    ErrorCode.STALE: Recovery.RETRIED,
    ErrorCode.SHUTDOWN: Recovery.RETRIED,
    ErrorCode.QUEUED: Recovery.QUEUED,
}
"""By the code of the ERROR that ended a session."""


def recovery_of(code: str) -> Recovery | None:
    """How it goes on after an error with this code; None for one that no replica tells."""
    return RECOVERY.get(ErrorCode(code)) if code in ErrorCode._value2member_map_ else None
