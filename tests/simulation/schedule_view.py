"""When resyncs begin and rest at the primary, held against what was ordered, the settings and the network (I20).

What is judged are the primary's durable records, at the moment at which each change of them is durable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from primary_agent.record import StartedBy, VmRecord
from primary_agent.scheduling import Schedule
from shared.config_sections import ResyncSection
from shared.ports import Clock
from shared.schedule import PastWindow, ResyncMode, is_within
from shared.states import ReplicationState
from tests.simulation.oracle import Violation
from tests.simulation.services import StoreContent

GRACE_SECONDS = 1.5
"""What was decided by the settings and the hour of a moment may be durable, or on its way, so much later."""
STALLED_SECONDS = 9.0
"""The same where a disk may stall."""
EXCHANGE_SECONDS = 0.5
"""A start is durable so soon after the exchange that proved connectivity, where no disk stalls."""

_S = ReplicationState
_BEFORE = (_S.WAITING_FOR_START_RESYNCHRONIZE, _S.REPLICATING)


class ScheduleView:
    """Looks on for one run. ``heard_at`` tells when the primary's agent last got bytes from the replica."""

    def __init__(
        self, clock: Clock, heard_at: Callable[[], float], fail: Callable[[BaseException], None], *, stalls: bool
    ) -> None:
        self.starts = 0
        """Starts of a resync or initial replication that were judged."""
        self.asked = 0
        """Questions of a compare that were judged."""
        self._clock = clock
        self._heard_at = heard_at
        self._fail = fail
        self._stalls = stalls
        self._settings: list[tuple[float, VmRecord]] = []
        """What held since when, oldest first."""
        self._packed = b""
        self._record: dict[str, Any] = {}

    @property
    def mode(self) -> ResyncMode | None:
        """The mode on record."""
        return self._settings[-1][1].resync_mode if self._settings else None

    @property
    def _grace(self) -> float:
        return STALLED_SECONDS if self._stalls else GRACE_SECONDS

    def committed(self, content: StoreContent) -> None:
        """Something became durable at the primary."""
        packed = content.records.get("vm")
        if packed is None:
            return
        if packed != self._packed:
            self._packed = packed
            vm = msgspec.convert(content.record("vm"), VmRecord, strict=True, builtin_types=(bytes,))
            self._settings.append((self._clock.wall(), vm))
        before, self._record = self._record, content.record("replication") or {}
        if before and self._record:
            self._judge(before, self._record)

    def _judge(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        was, now = _S(before["state"]), _S(after["state"])
        if was is _S.READY_FOR_INITIAL_REPLICATION and now is _S.INITIAL_REPLICATION_IN_PROGRESS:
            self._judge_exchange()
        if was not in _BEFORE or now is not _S.RESYNCHRONIZING:
            return
        self.starts += 1
        self._judge_exchange()
        by, moment = StartedBy(after["started_by"]), self._clock.wall()
        if before["stopped_time"] is not None and by is not StartedBy.ADMINISTRATOR:
            self._tell(f"started by the {by.value} although an administrator cancelled it")
        match by:
            case StartedBy.SCHEDULE if before["resync_at"] is None or before["resync_at"] > moment:
                self._tell(f"started by the schedule at {moment}, which says {before['resync_at']}")
            case StartedBy.AUTOMATIC if not any(
                schedule.mode is ResyncMode.AUTOMATIC for schedule in self._schedules(moment - self._grace)
            ):
                self._tell("started by itself although the mode was not automatic")
            case StartedBy.WINDOW if not self._was_open(moment):
                self._tell("started by a window that was closed")

    def _judge_exchange(self) -> None:
        """I20: connectivity was proven for this very start."""
        silent = self._clock.monotonic() - self._heard_at()
        if not self._stalls and silent > EXCHANGE_SECONDS:
            self._fail(Violation(f"I20: a compare starts although nothing came from the replica for {silent:.3f} s"))

    def asking(self) -> None:
        """A compare asks the replica about a range."""
        self.asked += 1
        record = self._record
        if not record or record["started_by"] != StartedBy.WINDOW.value:
            return
        if _S(record["state"]) is not _S.RESYNCHRONIZING:
            return
        moment = self._clock.wall()
        if all(self._is_closed(schedule, moment) for schedule in self._schedules(moment - self._grace)) and all(
            self._is_closed(schedule, moment - self._grace) for schedule in self._schedules(moment - self._grace)
        ):
            self._tell("a resynchronization that the window started goes on outside of it")

    def _is_closed(self, schedule: Schedule, moment: float) -> bool:
        return (
            schedule.mode is ResyncMode.WINDOW
            and schedule.past_window is PastWindow.PAUSE
            and not is_within(schedule.window, moment, self._clock.zone())
        )

    def _was_open(self, moment: float) -> bool:
        zone = self._clock.zone()
        return any(
            schedule.mode is ResyncMode.WINDOW
            and (is_within(schedule.window, moment, zone) or is_within(schedule.window, moment - self._grace, zone))
            for schedule in self._schedules(moment - self._grace)
        )

    def _schedules(self, since: float) -> list[Schedule]:
        """Every schedule that held at any moment since then."""
        found = []
        for (_, vm), end in zip(self._settings, [*(start for start, _ in self._settings[1:]), None], strict=True):
            if end is None or end > since:
                found.append(Schedule.of(vm, ResyncSection()))
        return found

    def _tell(self, text: str) -> None:
        self._fail(Violation(f"schedule: {text}"))
