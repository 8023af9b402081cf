"""Alarms: events on their way to people, held until they last, counted together, tried again, in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from shared.config_sections import AlarmSection
from shared.errors import NotFoundError, VmreplicaError
from shared.events import EventId, make_event
from shared.ports import Clock
from shared.ports.alarm_ways import AlarmWays
from shared.states import Health
from shared.status import StatusStruct
from shared.tasks import Signal
from shared.telling import Told

WAITING_MAX = 1000
"""Alarms of one entry that wait; one more drops the oldest, which is counted and told."""
RETRY_SECONDS = (2.0, 10.0, 60.0, 300.0)
"""After a failed attempt the next one comes so much later; then the alarm is given up, and that is an event."""
HOUR = 3600.0
UNKNOWN = Health.NOT_APPLICABLE.title

log = structlog.get_logger(__name__)

Blocking = Callable[..., Awaitable[Any]]
"""Runs a blocking call in a thread."""
Failed = Callable[[str, str], Awaitable[None]]
"""Told the alarm's name and the reason when one is given up."""


class AlarmStatus(StatusStruct):
    """How one entry does."""

    name: str
    way: str
    """``command`` or ``webhook``."""
    waiting: int = 0
    sent: int = 0
    failed: int = 0
    """Given up after all attempts."""
    dropped: int = 0
    """Never tried, since too many waited."""
    over: int = 0
    """Not told, since it was over before ``hold_seconds`` were."""
    last_sent_time: float | None = None
    last_error: str = ""
    """Of the last attempt; empty after one that arrived."""


@dataclass(slots=True)
class _Waiting:
    """One alarm that waits: the newest event, the first one's state before, and how many it stands for."""

    told: Told
    before: str
    due: float
    count: int = 1


@dataclass(slots=True)
class Alarm:
    """One entry of the configuration, with what waits for its way."""

    section: AlarmSection
    status: AlarmStatus
    waiting: OrderedDict[tuple[str, int], _Waiting] = field(default_factory=OrderedDict)
    sent_at: list[float] = field(default_factory=list)
    """Monotonic seconds of what was sent within the last hour."""
    changed: Signal = field(default_factory=Signal)

    def wants(self, told: Told) -> bool:
        """Whether the entry is about this event."""
        section, event = self.section, told.event
        if section.vms and told.vm not in section.vms and told.uuid not in section.vms:
            return False
        number = event["event"]
        if number == EventId.ALARM_FAILED and event["data"].get("alarm") == section.name:
            # An alarm can't tell that it itself fails.
            return False
        if number == EventId.HEALTH_CHANGED and event["before"] == UNKNOWN and event["after"] == Health.NORMAL.title:
            # A VM that is new here, and well.
            return False
        if number == EventId.HEALTH_CHANGED and event["after"] in section.health:
            return True
        if number == EventId.HEALTH_CHANGED and section.health:
            return False
        return number in section.events or event["level"] in section.levels

    def take(self, told: Told, now: float) -> None:
        """Have an event wait, or join what waits of the same VM and number. ``now`` in monotonic seconds."""
        key = (told.uuid or told.vm, told.event["event"])
        known = self.waiting.get(key)
        if known is not None:
            known.told, known.count = told, known.count + 1
        elif self.wants(told):
            self.waiting[key] = _Waiting(told, told.event.get("before", ""), now + self.section.hold_seconds)
            if len(self.waiting) > WAITING_MAX:
                self.waiting.popitem(last=False)
                self.status.dropped += 1
        self.changed.notify()

    def due(self, now: float) -> tuple[_Waiting | None, float]:
        """What is to be sent now, taken out; else None, and seconds until there may be something."""
        self.sent_at = [time for time in self.sent_at if now - time < HOUR]
        room = max(0.0, self.sent_at[0] + HOUR - now) if len(self.sent_at) >= self.section.per_hour else 0.0
        soonest = HOUR
        for key, each in list(self.waiting.items()):
            left = max(each.due - now, room)
            if left > 0:
                soonest = min(soonest, left)
                continue
            del self.waiting[key]
            if self._is_over(each):
                self.status.over += 1
                continue
            self.sent_at.append(now)
            return each, 0.0
        return None, soonest

    def _is_over(self, waiting: _Waiting) -> bool:
        """A VM's health is again what it was before: whoever was not told of the one need not be of the other."""
        event = waiting.told.event
        if event["event"] != EventId.HEALTH_CHANGED:
            return False
        return (waiting.count > 1 and event["after"] == waiting.before) or event["after"] not in self.section.health


class Alarms:
    """All entries of an agent. ``take`` is given every event; ``start`` and ``stop`` own the tasks that send."""

    def __init__(self, clock: Clock, ways: AlarmWays, blocking: Blocking, host: str, role: str, failed: Failed) -> None:
        self._clock = clock
        self._ways = ways
        self._blocking = blocking
        self._host = host
        self._role = role
        self._failed = failed
        self._alarms: dict[str, Alarm] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def configure(self, sections: Sequence[AlarmSection]) -> None:
        """Take over the entries of a configuration; what waits for one that stays goes on waiting."""
        sections_by_name = {section.name: section for section in sections}
        for name in [name for name in self._alarms if name not in sections_by_name]:
            self._tasks.pop(name).cancel()
            del self._alarms[name]
        for name, section in sections_by_name.items():
            known = self._alarms.get(name)
            if known is None:
                status = AlarmStatus(name=name, way="")
                known = self._alarms[name] = Alarm(section, status)
                self._tasks[name] = asyncio.get_running_loop().create_task(self._send_all(known))
            known.section = section
            known.status.way = "command" if section.command else "webhook"
            known.changed.notify()

    async def stop(self) -> None:
        """End all tasks; what waits is lost, and stands in the events."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self._alarms.clear()

    def take(self, told: Told) -> None:
        """An event happened. Neither blocks nor raises."""
        now = self._clock.monotonic()
        for alarm in self._alarms.values():
            alarm.take(told, now)

    def statuses(self) -> list[AlarmStatus]:
        for alarm in self._alarms.values():
            alarm.status.waiting = len(alarm.waiting)
        return [alarm.status for alarm in self._alarms.values()]

    async def test(self, name: str) -> list[AlarmStatus]:
        """Send a test by the entry of that name, or by all, at once and without another try.

        Raises NotFoundError for a name that is none; what fails stands in the statuses.
        """
        if name and name not in self._alarms:
            known = ", ".join(self._alarms) or "none"
            raise NotFoundError(f"There is no alarm {name}.", f"Configured alarms: {known}.")
        asked = [alarm for alarm in self._alarms.values() if name in ("", alarm.section.name)]
        text = f"This is a test of the alarms of {self._host}. Nothing is wrong."
        event = make_event(EventId.ALARM_TEST, text, time=self._clock.wall())
        for alarm in asked:
            with contextlib.suppress(VmreplicaError):
                await self._attempt(alarm, self.payload(alarm, Told(event), 1))
        return [each for each in self.statuses() if name in ("", each.name)]

    def payload(self, alarm: Alarm, told: Told, count: int) -> dict[str, Any]:
        """What is sent: the event, whose it is, and for how many like it this one stands."""
        return {
            "alarm": alarm.section.name,
            "host": self._host,
            "role": self._role,
            "vm": told.vm,
            "uuid": told.uuid,
            "count": count,
            **told.event,
        }

    async def _send_all(self, alarm: Alarm) -> None:
        """Send what is due, one after the other, until cancelled."""
        while True:
            waiting, left = alarm.due(self._clock.monotonic())
            if waiting is None:
                await alarm.changed.wait_for(left)
                continue
            try:
                await self._send(alarm, self.payload(alarm, waiting.told, waiting.count))
            except Exception:
                log.exception("an alarm failed unexpectedly", alarm=alarm.section.name)

    async def _send(self, alarm: Alarm, payload: dict[str, Any]) -> None:
        for pause in (*RETRY_SECONDS, None):
            try:
                await self._attempt(alarm, payload)
                return
            except VmreplicaError as error:
                log.warning("an alarm did not arrive", alarm=alarm.section.name, reason=error.text)
                if pause is None:
                    alarm.status.failed += 1
                    await self._failed(alarm.section.name, str(error))
                    return
            await asyncio.sleep(pause)

    async def _attempt(self, alarm: Alarm, payload: dict[str, Any]) -> None:
        section, status = alarm.section, alarm.status
        data = json.dumps(payload, default=str, ensure_ascii=False).encode("utf-8", "surrogateescape")
        try:
            if section.command:
                environment = {
                    f"VMREPLICA_{name.upper()}": str(payload[name])
                    for name in ("alarm", "host", "role", "vm", "uuid", "event", "name", "level", "text", "before",
                                 "after", "cause")
                }  # fmt: skip
                await self._blocking(self._ways.run, section.command, environment, data, section.timeout_seconds)
            else:
                await self._blocking(
                    self._ways.post, section.webhook, data, section.timeout_seconds, section.webhook_ca
                )
        except VmreplicaError as error:
            status.last_error = str(error)
            raise
        status.sent += 1
        status.last_sent_time = self._clock.wall()
        status.last_error = ""
