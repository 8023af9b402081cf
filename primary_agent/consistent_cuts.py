"""Application-consistent cuts: the guest is frozen, the tap cuts, the guest is thawed, and only then the cut is marked.

A freeze is on record before it begins, and off it when somebody has confirmed that the guest is thawed: whoever starts
this agent the next time thaws first (R44). Whatever goes wrong, there is a cut: a crash-consistent one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from primary_agent.parts import Parts
from primary_agent.record import (
    MAX_UNTOLD,
    ConsistencyRecord,
    FreezeRecord,
    MarkRecord,
    PositionRecord,
    load,
    plain,
)
from protocol.position import Position
from shared.cut_status import Cause, CutStatus
from shared.errors import InvalidStateError, VmreplicaError
from shared.events import EventId
from shared.guest_settings import NONE, parse_consistency
from shared.guest_status import ConsistencyStatus
from shared.ports.freezing import FREEZE_NOT_BEGUN, FreezeOrder, Frozen
from shared.states import ReplicationState
from shared.tap_control import Sealed
from shared.tasks import Signal, uninterrupted

POLL_SECONDS = 5.0
THAW_AGAIN_SECONDS = 10.0
"""A guest that could not be thawed is tried again after so long."""
HOUR_SECONDS = 3600.0
APPLICATION, CRASH = "application", "crash"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CutTaken:
    """A cut that was taken by order or by schedule, and why it is not application-consistent, where it is not."""

    sealed: Sealed
    failure: Cause | None
    frozen_seconds: float | None
    consistent: bool

    @property
    def status(self) -> CutStatus:
        """The cut for people."""
        sealed = self.sealed
        return CutStatus(epoch=sealed.epoch, segment=sealed.segment, entry=sealed.entry, time=sealed.time_ns / 1e9)


@dataclass(slots=True, eq=False)
class ConsistentCuts:
    """Those of one VM."""

    parts: Parts
    record: ConsistencyRecord = field(init=False)
    changed: Signal = field(default_factory=Signal)
    """Notified when there is a mark that the replica has to be told of."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a guest is, or may be, frozen."""
    _thaw_error: str = ""
    _taken: int = 0
    _failures: Counter[str] = field(default_factory=Counter)
    _frozen_seconds: float = 0.0
    _last_frozen_seconds: float | None = None

    def __post_init__(self) -> None:
        """Raises StoreDamagedError."""
        self.record = load(self.parts.replication.store, "consistency", ConsistencyRecord) or ConsistencyRecord()

    # --- what is shown ---------------------------------------------------------------------------------------------

    def status(self) -> ConsistencyStatus | None:
        """As the VM's status has it; None where nothing is set, and nothing was."""
        vm, record = self.parts.replication.vm, self.record
        if vm.consistency == NONE and record == ConsistencyRecord():
            return None
        newest = record.newest
        return ConsistencyStatus(
            setting=vm.consistency,
            hours=vm.consistency_hours,
            running=self._turn.locked(),
            newest=_cut_status(newest) if newest is not None else None,
            told=newest is None or newest not in record.untold,
            tried_time=record.tried_time,
            next_time=self._next(),
            # Nothing is promised any more where nothing is set.
            failure=record.failure if vm.consistency != NONE else None,
            frozen_since=record.freeze.time if record.freeze is not None and self._thaw_error else None,
            frozen_text=self._thaw_error,
            taken_since_start=self._taken,
            failures_since_start=dict(self._failures),
            frozen_seconds_since_start=self._frozen_seconds,
            last_frozen_seconds=self._last_frozen_seconds,
        )

    def _next(self) -> float | None:
        vm = self.parts.replication.vm
        if vm.consistency == NONE or not vm.consistency_hours:
            return None
        tried = self.record.tried_time
        # The first one is taken at once.
        return (
            self.parts.surroundings.ports.clock.wall() if tried is None else tried + vm.consistency_hours * HOUR_SECONDS
        )

    # --- the schedule ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Thaw what an earlier run may have left frozen, then go by the schedule, until cancelled."""
        while True:
            async with self._turn:
                await self._thaw_leftover()
            if self._is_due():
                try:
                    await self.take(consistent=True)
                except VmreplicaError as error:
                    log.info("no cut was taken", vm=self.parts.replication.vm.name, reason=str(error))
            await asyncio.sleep(THAW_AGAIN_SECONDS if self._thaw_error else POLL_SECONDS)

    def _is_due(self) -> bool:
        due, replication = self._next(), self.parts.replication
        if due is None or replication.state is not ReplicationState.REPLICATING or self._thaw_error:
            return False
        now, tried = self.parts.surroundings.ports.clock.wall(), self.record.tried_time
        # A clock that was set back must not put it off for ever.
        return now >= due or (tried is not None and tried > now)

    async def _thaw_leftover(self) -> None:
        """Thaw the guest of a freeze that is on record, and take it off when that is confirmed."""
        freeze, name = self.record.freeze, self.parts.replication.vm.name
        if freeze is None:
            return
        try:
            await self.parts.surroundings.freezer.thaw(self._order(freeze))
        except VmreplicaError as error:
            await self._note_frozen(freeze, error)
            return
        text = f"The guest of {name} is thawed: a freeze was begun, and its end had not been confirmed."
        event = self.parts.replication.event(EventId.GUEST_NOT_THAWED, text, cause="thawed") | {"level": "info"}
        await self._store(event if self._thaw_error else None, freeze=None)
        self._thaw_error = ""

    async def _note_frozen(self, freeze: FreezeRecord, error: VmreplicaError) -> None:
        """The guest may be frozen, and can't be thawed: told once for each reason."""
        told, self._thaw_error = self._thaw_error, str(error)
        if self._thaw_error != told:
            name = self.parts.replication.vm.name
            text = f"The guest of {name} was frozen for a cut and could not be thawed; it is tried again. {error.text}"
            data = {"frozen_since": freeze.time, "remedy": error.remedy}
            await self._store(self.parts.replication.event(EventId.GUEST_NOT_THAWED, text, cause=error.code, data=data))

    # --- one cut ---------------------------------------------------------------------------------------------------

    async def take(self, *, consistent: bool) -> CutTaken:
        """Take a cut; ``consistent``: with the guest frozen. Raises VmreplicaError where there can be no cut at all."""
        replication, tap = self.parts.replication, self.parts.tap
        connection = tap.require()
        if not connection.tracks(replication.record.epoch):
            raise InvalidStateError(
                f"{replication.vm.name} can't be cut in state {replication.state.title}: what is written since its "
                "baseline is not tracked.",
                f"`vmreplica status {replication.vm.name}` says what to do.",
            )
        if not consistent:
            return CutTaken(await connection.client.cut("order"), None, None, consistent=False)
        setting = parse_consistency(replication.vm.consistency)
        if setting is None:
            raise InvalidStateError(
                f"{replication.vm.name} has no way to freeze its guest.",
                f"Set one: vmreplica set {replication.vm.name} consistency=agent:/SOCKET (docs/points.md).",
            )
        async with self._turn:
            await self._thaw_leftover()
            if self._thaw_error:
                failure = self._failure("not_thawed", f"An earlier freeze has not ended: {self._thaw_error}")
                return await self._crash_consistent(failure)
            now = self.parts.surroundings.ports.clock.wall()
            freeze = FreezeRecord(kind=setting.kind, target=setting.target, time=now)
            await self._store(None, freeze=freeze, tried_time=now)
            return await self._take_frozen(freeze)

    async def _take_frozen(self, freeze: FreezeRecord) -> CutTaken:
        """Freeze, cut, thaw. The freeze is on record."""
        clock, began = self.parts.surroundings.ports.clock, self.parts.surroundings.ports.clock.monotonic()
        order = self._order(freeze)
        try:
            frozen = await self.parts.surroundings.freezer.freeze(order)
        except VmreplicaError as error:
            if error.code == FREEZE_NOT_BEGUN:
                await self._store(None, freeze=None)
            # The guard is thawing it already: the cut need not wait for that.
            taken = await self._crash_consistent(self._failure(error.code, error.text, error.remedy))
            await self._thaw_leftover()
            return taken
        try:
            return await self._cut_frozen(freeze, frozen, began + order.frozen_seconds)
        finally:
            # Also where this agent stops just now: the guard thaws, and the next start asks whether it has.
            frozen.leave()
            self._last_frozen_seconds = clock.monotonic() - began
            self._frozen_seconds += self._last_frozen_seconds
            log.debug("a freeze ended", vm=order.vm, seconds=self._last_frozen_seconds)

    async def _cut_frozen(self, freeze: FreezeRecord, frozen: Frozen, deadline: float) -> CutTaken:
        clock = self.parts.surroundings.ports.clock
        began = deadline - self.parts.surroundings.consistency.frozen_seconds
        failure: Cause | None = None
        sealed: Sealed | None = None
        try:
            async with asyncio.timeout(max(deadline - clock.monotonic(), 0.0)):
                sealed = await self.parts.tap.require().client.cut("application")
        except TimeoutError:
            failure = self._failure("cut_late", "The cut was not durable before the guest had to be thawed.")
        except VmreplicaError as error:
            failure = self._failure(error.code, error.text, error.remedy)
        # What was sealed by now was sealed while the guest was frozen, if it is found frozen now.
        try:
            thawed = await frozen.thaw()
        except VmreplicaError as error:
            await self._note_frozen(freeze, error)
            failure = failure or self._failure(error.code, f"The guest could not be thawed: {error.text}", error.remedy)
            return await self._crash_consistent(failure, sealed)
        seconds = clock.monotonic() - began
        if failure is None and not thawed.held:
            failure = self._failure("not_held", thawed.text)
        if failure is not None or sealed is None:
            await self._store(None, freeze=None)
            return await self._crash_consistent(failure, sealed, seconds)
        mark = MarkRecord(position=PositionRecord.of(sealed.position()), time_ns=sealed.time_ns)
        untold = [*self.record.untold, mark][-MAX_UNTOLD:]
        text = f"Cut {sealed.segment} of {self.parts.replication.vm.name} is application-consistent."
        event = self.parts.replication.event(
            EventId.CUT_CONSISTENT, text, data={"frozen_seconds": round(seconds, 3), "segment": sealed.segment}
        )
        await self._store(event, freeze=None, untold=untold, newest=mark, failure=None)
        self._taken += 1
        return CutTaken(sealed, None, seconds, consistent=True)

    async def _crash_consistent(
        self, failure: Cause | None, sealed: Sealed | None = None, seconds: float | None = None
    ) -> CutTaken:
        """Freezing failed: never no cut."""
        if sealed is None:
            sealed = await self.parts.tap.require().client.cut("order")
        name = self.parts.replication.vm.name
        reason = failure.text if failure is not None else ""
        text = f"Cut {sealed.segment} of {name} is only crash-consistent. {reason}"
        event = self.parts.replication.event(
            EventId.CUT_NOT_CONSISTENT,
            text,
            cause=failure.code if failure is not None else "",
            data={"segment": sealed.segment, "remedy": failure.remedy if failure is not None else ""},
        )
        await self._store(event, failure=failure)
        self._failures[failure.code if failure is not None else CRASH] += 1
        return CutTaken(sealed, failure, seconds, consistent=False)

    # --- marks -----------------------------------------------------------------------------------------------------

    async def told(self, cut: Position) -> None:
        """The replica has confirmed the mark of a cut."""
        untold = [mark for mark in self.record.untold if mark.position.position != cut]
        if len(untold) != len(self.record.untold):
            await self._store(None, untold=untold)

    # --- inner parts -----------------------------------------------------------------------------------------------

    def _order(self, freeze: FreezeRecord) -> FreezeOrder:
        limits = self.parts.surroundings.consistency
        name = self.parts.replication.vm.name
        return FreezeOrder(freeze.kind, freeze.target, name, limits.freeze_seconds, limits.frozen_seconds)

    def _failure(self, code: str, text: str, remedy: str = "") -> Cause:
        return Cause(code=code, text=text, time=self.parts.surroundings.ports.clock.wall(), remedy=remedy)

    async def _store(self, event: dict[str, Any] | None = None, **fields: Any) -> None:
        """To its end even when this agent stops meanwhile: what is durable and what is known here stay one."""
        await uninterrupted(self._commit([event] if event is not None else [], fields))

    async def _commit(self, events: list[dict[str, Any]], fields: dict[str, Any]) -> None:
        record = msgspec.structs.replace(self.record, **fields)
        await self.parts.replication.store.commit({"consistency": plain(record)}, events)
        self.record = record
        self.changed.notify()


def _cut_status(mark: MarkRecord) -> CutStatus:
    position = mark.position
    return CutStatus(
        epoch=position.epoch.hex(), segment=position.segment, entry=position.entry, time=mark.time_ns / 1e9
    )
