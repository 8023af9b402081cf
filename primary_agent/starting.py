"""When a compare begins and rests: the gate, orders for later, and waiting, with the session open, for the moment.

Nothing begins before connectivity is proven by an exchange that is made for this very start (I20).
"""

from __future__ import annotations

import asyncio
import math

from primary_agent.bypassing import rest_text
from primary_agent.conclusions import Replan
from primary_agent.export_waiting import export_text
from primary_agent.judgement import causes_of, is_history_lost, turned_of
from primary_agent.parts import Parts
from primary_agent.record import StartedBy
from primary_agent.scheduling import Schedule, Start, paused_until, planned_start
from primary_agent.scope import is_bounded
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.schedule import NEVER, moment_text, parse_moment
from shared.sides import ReplicaView
from shared.states import PrimaryEvent, ReplicationState

HEALTH_POLL_SECONDS = 0.2
CLOCK_POLL_SECONDS = 20.0
"""The wall clock, by which windows go, may be set: it is looked at so often."""

_S = ReplicationState


class Starting:
    """The start of one session's compare: who asked for it, and whether it may begin."""

    def __init__(self, parts: Parts, replica: ReplicaView) -> None:
        self._parts = parts
        self._replication = parts.replication
        self._replica = replica

    async def until_started(self) -> None:
        """Returns once a compare is under way by the record's state."""
        while True:
            record, news = self._replication.record, self._replication.changed.upcoming()
            state = record.state
            if state in (_S.INITIAL_REPLICATION_IN_PROGRESS, _S.RESYNCHRONIZING):
                self._parts.whole = False
                return
            if state is not _S.WAITING_FOR_START_RESYNCHRONIZE:
                await news.wait()
                continue
            now = self._parts.surroundings.ports.clock.wall()
            start = planned(self._parts, now)
            waits = start.moment is None or start.moment > now
            if waits and self._replication.record.stopped_time is None:
                self._parts.whole = not await self.is_bounded()
                if not self._parts.whole:
                    # What is bounded costs little, and does not wait for anybody (I12): a catch-up runs in every mode.
                    start = Start(now, StartedBy.BOUNDED, "only what is in doubt has to be compared")
            if news.is_set():
                continue
            if start.moment is None:
                await news.wait()
            elif start.moment > now:
                await _heard(news, min(start.moment - now, CLOCK_POLL_SECONDS))
            elif not await self._parts.proven():
                # The gate (I20): a resync that starts by itself waits until connectivity is proven.
                await asyncio.sleep(HEALTH_POLL_SECONDS)
            elif not news.is_set():
                await self._replication.transition(
                    PrimaryEvent.RESYNC_STARTED,
                    f"{start.text}, and connectivity is healthy",
                    seen=record,
                    started_by=start.by,
                    resync_at=None,
                    stopped_time=None,
                )

    async def is_bounded(self) -> bool:
        """Whether a compare may be limited to what is in doubt (R28)."""
        causes, turned = causes_of(self._replication), turned_of(self._replication)
        return await is_bounded(self._parts.tap, self._replica, causes, turned)

    # --- rests: the end of the window, and somebody who writes past the tap ------------------------------------------

    def rests(self) -> str:
        """Why the running compare has to rest now; empty while it may run."""
        paused = _paused(self._parts)
        return paused[1] if paused is not None else ""

    async def until_open(self) -> None:
        """Returns when the compare may run; tells when it rests and goes on."""
        told = ""
        what = f"The {self._replication.open_work} of {self._replication.vm.name}"
        while (paused := _paused(self._parts)) is not None:
            if not told:
                told = "window" if math.isfinite(paused[0]) else "bypassed"
                await self._note(f"{what} rests: {paused[1]}.", told)
            news = self._replication.changed.upcoming()
            now = self._parts.surroundings.ports.clock.wall()
            await _heard(news, min(max(paused[0] - now, 0.0), CLOCK_POLL_SECONDS))
        if told:
            await self._note(f"{what} goes on.", told)

    async def until_closed(self) -> None:
        """Raises Replan where the running compare has to rest: at the end of the window, say."""
        while True:
            news = self._replication.changed.upcoming()
            if (paused := _paused(self._parts)) is not None:
                raise Replan(f"the compare rests: {paused[1]}")
            await _heard(news, _seconds_open(self._parts))

    async def _note(self, text: str, cause: str) -> None:
        await self._replication.note(self._replication.event(EventId.RESYNC_PAUSED, text, cause=cause))


async def _heard(news: asyncio.Event, seconds: float) -> None:
    """Returns when ``news`` is set, or after so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        pass


def _schedule(parts: Parts) -> Schedule:
    return Schedule.of(parts.replication.vm, parts.surroundings.resync)


def planned(parts: Parts, now: float) -> Start:
    """When the VM's required resync starts, by what is known at ``now`` (seconds since the Unix epoch)."""
    replication, clock = parts.replication, parts.surroundings.ports.clock
    lost = is_history_lost(causes_of(replication))
    return planned_start(replication.record, _schedule(parts), now, clock.zone(), history_lost=lost)


def _paused(parts: Parts) -> tuple[float, str] | None:
    """Until when the compare has to rest, infinity where nobody knows, and why; None where it may run."""
    if text := rest_text(parts):
        return math.inf, text
    clock = parts.surroundings.ports.clock
    return paused_until(parts.replication.record, _schedule(parts), clock.wall(), clock.zone())


def _seconds_open(parts: Parts) -> float:
    """How long to wait before the window is looked at again."""
    clock = parts.surroundings.ports.clock
    now, end = clock.wall(), _schedule(parts).end(clock.wall(), clock.zone())
    return CLOCK_POLL_SECONDS if end is None else min(max(end - now, 0.0), CLOCK_POLL_SECONDS)


def waiting_text(parts: Parts) -> str:
    """For what a resync waits that is required or scheduled, in a sentence; empty where it waits for nothing."""
    replication, clock = parts.replication, parts.surroundings.ports.clock
    record, now, zone = replication.record, clock.wall(), clock.zone()
    if record.state is _S.RESYNCHRONIZING:
        paused = _paused(parts)
        return f"The resynchronization rests: {paused[1]}." if paused is not None else ""
    if record.state is _S.INITIAL_REPLICATION_IN_PROGRESS:
        bypassed = rest_text(parts)
        return f"The initial replication rests: {bypassed}." if bypassed else export_text(record)
    if record.state is _S.WAITING_FOR_INITIAL_REPLICATION:
        return _initial_waiting_text(parts, record.resync_at, now)
    scheduled = record.resync_at is not None and record.state is _S.REPLICATING
    if record.state is not _S.WAITING_FOR_START_RESYNCHRONIZE and not scheduled:
        return ""
    start = planned(parts, now)
    if start.moment is None:
        return f"The resynchronization starts when it is ordered: {start.text}."
    if start.moment > now:
        return f"The resynchronization starts at {moment_text(start.moment, zone)}: {start.text}."
    shrunk = parts.shrunk_disk()
    if shrunk is not None:
        return f"The resynchronization starts as soon as {shrunk.path} has its size again: {start.text}."
    return f"The resynchronization starts as soon as connectivity to {parts.address} is proven: {start.text}."


def _initial_waiting_text(parts: Parts, at: float | None, now: float) -> str:
    what = f"The initial replication of {parts.replication.vm.name}"
    if at is None:
        # The time was lost with the records.
        return f"{what} starts when it is ordered."
    if at > now:
        return f"{what} starts at {_when(parts, at)}."
    return f"{what} starts as soon as connectivity to {parts.address} is proven."


# --- orders ------------------------------------------------------------------------------------------------------


async def put_off(parts: Parts, at: str) -> None:
    """Put a resync off to ``at``, or with ``never`` cancel that. Durable. Raises UsageError or InvalidStateError."""
    replication, clock = parts.replication, parts.surroundings.ports.clock
    name, state = replication.vm.name, replication.state
    if at == NEVER:
        await cancel(parts, "the administrator asked for it")
        return
    moment = parse_moment(at, clock.wall(), clock.zone())
    if state not in (_S.REPLICATING, _S.WAITING_FOR_START_RESYNCHRONIZE):
        raise InvalidStateError(
            f"{name} is in state {state.title}: a resynchronization can't be scheduled.",
            f"Schedule it while {name} is replicating or waits for its resynchronization.",
        )
    text = f"The resynchronization of {name} starts at {moment_text(moment, clock.zone())}."
    event = replication.event(EventId.RESYNC_SCHEDULED, text, cause="administrator", data={"time": moment})
    await replication.update(event, resync_at=moment, resync_wanted=False, stopped_time=None)


async def put_off_initial(parts: Parts, at: str) -> None:
    """Put the initial replication off to ``at``, or with ``never`` cancel that. Durable. Raises UsageError."""
    replication, clock = parts.replication, parts.surroundings.ports.clock
    name, state = replication.vm.name, replication.state
    if at == NEVER:
        if state is _S.WAITING_FOR_INITIAL_REPLICATION:
            text = f"The scheduled initial replication of {name} is cancelled."
            told = replication.event(EventId.RESYNC_SCHEDULED, text, cause="administrator")
            await replication.transition(PrimaryEvent.INITIAL_CANCELLED, text, told, resync_at=None)
        return
    moment = parse_moment(at, clock.wall(), clock.zone())
    text = f"The initial replication of {name} starts at {moment_text(moment, clock.zone())}."
    told = replication.event(EventId.RESYNC_SCHEDULED, text, cause="administrator", data={"time": moment})
    await replication.transition(PrimaryEvent.INITIAL_SCHEDULED, text, told, resync_at=moment)


async def hold(parts: Parts) -> None:
    """The required resync starts only when it is asked for again."""
    replication = parts.replication
    text = f"The required resynchronization of {replication.vm.name} waits until it is asked for."
    told = replication.event(EventId.ADMINISTRATOR, text, cause=PrimaryEvent.RESYNC_CANCELLED.value)
    now = parts.surroundings.ports.clock.wall()
    await replication.update(told, resync_wanted=False, resync_at=None, stopped_time=now)


async def cancel(parts: Parts, cause: str) -> None:
    """What was put off does not start any more."""
    replication = parts.replication
    if replication.record.resync_at is None:
        return
    text = f"The scheduled resynchronization of {replication.vm.name} is cancelled: {cause}."
    await replication.update(replication.event(EventId.RESYNC_SCHEDULED, text, cause=cause), resync_at=None)


async def begin_due(parts: Parts) -> None:
    """Begin the resync, or initial replication, that was put off, once it is time and connectivity is proven."""
    replication, clock = parts.replication, parts.surroundings.ports.clock
    record = replication.record
    at, state = record.resync_at, record.state
    if state not in (_S.REPLICATING, _S.WAITING_FOR_INITIAL_REPLICATION):
        return
    if at is None or at > clock.wall() or not await parts.proven():
        return
    if state is _S.WAITING_FOR_INITIAL_REPLICATION:
        cause = f"the administrator scheduled it for {_when(parts, at)}"
        await replication.transition(PrimaryEvent.INITIAL_STARTED, cause, seen=record, resync_at=None)
    elif replication.state is _S.REPLICATING and replication.record.resync_at == at:
        await begin_wanted(parts, StartedBy.SCHEDULE, f"The administrator scheduled it for {_when(parts, at)}.")


def _when(parts: Parts, moment: float) -> str:
    return moment_text(moment, parts.surroundings.ports.clock.zone())


async def begin_wanted(parts: Parts, by: StartedBy, text: str) -> None:
    """Begin a resync of a VM that replicates."""
    replication = parts.replication
    await replication.order_resync(text, started_by=by, resync_at=None)
    replication.replan()
