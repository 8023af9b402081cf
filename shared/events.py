"""Events: what happened to a VM, with number, cause, state before and after (I16).

An event is stored as a plain record through :class:`shared.ports.Store`. Numbers that Hyper-V Replica's users
know are kept; our own begin at 60001. A number is never reused.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class EventId(IntEnum):
    """The numbers of events."""

    STATISTICS = 29174
    RESYNC_STARTED = 29242
    RESYNC_COMPARED = 29244
    COULD_NOT_REPLICATE = 32022
    APPLY_FAILED = 32056
    SUSPENDED_NOT_RECOVERABLE = 32086
    WILL_RETRY = 32315
    INVALID_STATE = 32546
    STATE_CHANGED = 60001
    RESYNC_REQUIRED = 60002
    BASELINE_COMMITTED = 60003
    FENCED = 60004
    TAP = 60005
    SETTINGS = 60006
    CONNECTED = 60007
    PROMOTED = 60008
    EXPORT = 60009
    ADMINISTRATOR = 60010
    DAMAGED = 60011
    POINTS = 60012
    RECOVERED = 60015
    RESYNC_BOUNDED = 60016
    FAILOVER_UNDONE = 60021
    FAILOVER_COMMITTED = 60022
    PLANNED_FAILOVER = 60023
    PLANNED_FORCED = 60024
    FENCE_LIFTED = 60025
    """At the former primary: the failover was undone at the replica."""
    LOG_FILLING = 60031
    DISK_RESIZED = 60032
    DISK_ADDED = 60033
    DISK_REMOVED = 60034
    RESYNC_SCHEDULED = 60061
    RESYNC_PAUSED = 60062
    RESYNC_ROUND = 60063
    VERIFY_STARTED = 60071
    VERIFY_ENDED = 60072
    VERIFY_DIFFERENT = 60073
    VERIFY_SCHEDULED = 60074
    TEST_FAILOVER_STARTED = 60081
    TEST_FAILOVER_ENDED = 60082
    POINT_READ = 60083
    CUT_CONSISTENT = 60091
    CUT_NOT_CONSISTENT = 60092
    GUEST_NOT_THAWED = 60093
    DEFINITION_SENT = 60094
    DEFINITION_NOT_SENT = 60095
    EXPORTED = 60101
    """A first copy for a courier is complete."""
    EXPORT_FAILED = 60102
    IMPORTED = 60103
    IMPORT_FAILED = 60104
    AGENT_STARTED = 60201
    AGENT_STOPPED = 60202
    RELOADED = 60203
    NOT_RELOADED = 60204
    HEALTH_CHANGED = 60205
    ALARM_FAILED = 60206
    PEER_REFUSED = 60207
    CERTIFICATE_ENDS = 60208
    ALARM_TEST = 60209
    BYPASSED = 60210
    REVERSED = 60341
    """The direction of replication was, or is being, reversed on this host."""
    SPLIT_BRAIN = 60342
    """Both sides have moved on since the failover."""


_ERRORS = frozenset(
    {
        EventId.COULD_NOT_REPLICATE,
        EventId.APPLY_FAILED,
        EventId.SUSPENDED_NOT_RECOVERABLE,
        EventId.RESYNC_REQUIRED,
        EventId.FENCED,
        EventId.DAMAGED,
        EventId.DISK_RESIZED,
        EventId.VERIFY_DIFFERENT,
        EventId.PLANNED_FORCED,
        EventId.NOT_RELOADED,
        EventId.BYPASSED,
        EventId.GUEST_NOT_THAWED,
        EventId.SPLIT_BRAIN,
        EventId.EXPORT_FAILED,
        EventId.IMPORT_FAILED,
    }
)
_WARNINGS = frozenset(
    {
        EventId.WILL_RETRY,
        EventId.INVALID_STATE,
        EventId.PROMOTED,
        EventId.FAILOVER_UNDONE,
        EventId.FAILOVER_COMMITTED,
        EventId.FENCE_LIFTED,
        EventId.RECOVERED,
        EventId.LOG_FILLING,
        EventId.ALARM_FAILED,
        EventId.PEER_REFUSED,
        EventId.CERTIFICATE_ENDS,
        EventId.CUT_NOT_CONSISTENT,
        EventId.DEFINITION_NOT_SENT,
        EventId.REVERSED,
    }
)
LEVELS = ("info", "warning", "error")
"""From the least to the worst."""


def level_of(number: EventId) -> str:
    """``error``, ``warning`` or ``info``."""
    if number in _ERRORS:
        return "error"
    return "warning" if number in _WARNINGS else "info"


def make_event(
    number: EventId,
    text: str,
    *,
    time: float,
    cause: str = "",
    before: str = "",
    after: str = "",
    data: dict[str, Any] | None = None,
    level: str = "",
) -> dict[str, Any]:
    """One event as a plain record: ``time`` in seconds since the Unix epoch; ``before`` and ``after`` name
    states. ``level`` is for one whose number does not tell how bad it is.
    """
    return {
        "time": time,
        "event": int(number),
        "name": number.name.lower(),
        "level": level or level_of(number),
        "text": text,
        "cause": cause,
        "before": before,
        "after": after,
        "data": data or {},
    }
