"""The durable state of one VM's replication at the primary: every change is one transaction with its event (I16)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from primary_agent.conclusions import Replan
from primary_agent.description import Description
from primary_agent.planned_steps import carried_on
from primary_agent.record import (
    MAX_CAUSES,
    AckedRecord,
    FenceRecord,
    PositionRecord,
    ReplicationRecord,
    ResyncRecord,
    VmRecord,
    lineage_records,
    load,
    load_vm,
    moved_text,
    plain,
)
from primary_agent.run_journal import RunJournal
from protocol.position import NO_EPOCH, Ancestor, Position, extend
from shared.description import Keeper
from shared.errors import InvalidStateError
from shared.events import EventId, make_event
from shared.planning import ResyncCause
from shared.ports import Clock, Store
from shared.sides import OpenResync
from shared.states import PrimaryEvent, ReplicationState, primary_transition
from shared.stats import MONITORING_SECONDS, ReplicationStatistics
from shared.status import Cause
from shared.tasks import Signal, uninterrupted

RESYNCING = (ReplicationState.RESYNCHRONIZING, ReplicationState.RESYNCHRONIZE_SUSPENDED)
INITIAL = (ReplicationState.READY_FOR_INITIAL_REPLICATION, ReplicationState.INITIAL_REPLICATION_IN_PROGRESS)
COMPARING = (*RESYNCING, ReplicationState.INITIAL_REPLICATION_IN_PROGRESS, ReplicationState.SUSPENDED)
"""States in which a resync or initial replication may be open."""
Way = PrimaryEvent | tuple[PrimaryEvent, ...] | None
_REBUILT = frozenset({ResyncCause.STATE_LOST.value, ResyncCause.HISTORY_LOST.value})


@dataclass(slots=True)
class Acked:
    """The newest cut known to be durable at the replica, and when it was sealed (nanoseconds, Unix epoch).

    ``place`` is the log file and the offset in it behind that cut, None where that is not known.
    """

    position: Position
    time_ns: int
    place: tuple[int, int] | None = None


class Replication:
    """What is known durably, and the transitions. Fields change only after the store has made the change durable."""

    def __init__(self, store: Store, clock: Clock, monitoring_seconds: float = MONITORING_SECONDS) -> None:
        """Raises StoreDamagedError where the records are missing, not valid or newer."""
        self.store = store
        self.vm: VmRecord = load_vm(store)
        self.record = load(store, "replication", ReplicationRecord) or ReplicationRecord()
        acked = load(store, "acked", AckedRecord)
        self.acked = Acked(acked.position.position, acked.time_ns) if acked is not None else None
        self.statistics = ReplicationStatistics(
            store.get("statistics"), clock.wall(), monitoring_seconds=monitoring_seconds
        )
        self.runs = RunJournal(store, clock)
        self.changed = Signal()
        """Notified after every change."""
        self.orders = 0
        """Rises with every order that the running session has to be planned anew for."""
        self.keeper: Keeper[Description] | None = None
        """Keeps what ``recover`` would need; a change is complete only when it has been told."""
        self._clock = clock
        self._lock = asyncio.Lock()

    # --- reading ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> ReplicationState:
        return self.record.state

    @property
    def tracked_epoch(self) -> bytes:
        """The epoch that the tap has to track: that of the open resync, else the baseline's."""
        begun = self.record.resync or self.record.export
        return begun.epoch if begun is not None else self.record.epoch

    @property
    def open_resync(self) -> OpenResync | None:
        resync = self.record.resync
        return OpenResync(resync.id, resync.epoch, round=resync.round, former=resync.former) if resync else None

    @property
    def rebuilt(self) -> bool:
        """Whether these records were rebuilt after a loss, and no compare and no proof has made that good yet."""
        codes = {cause.code for cause in self.record.causes}
        return self.record.recovered is not None or not codes.isdisjoint(_REBUILT)

    # --- changing --------------------------------------------------------------------------------------------------

    async def transition(
        self, event: Way, cause: str, *told: Any, seen: ReplicationRecord | None = None, **fields: Any
    ) -> bool:
        """Move the state machine, or leave it, and replace ``fields`` of the record. Raises InvalidStateError.

        With ``seen`` only where that still is the record, else False: what was decided by it may not hold any more.
        """
        async with self._lock:
            if seen is not None and seen is not self.record:
                return False
            await self._walk((event,) if isinstance(event, PrimaryEvent) else event or (), cause, told, fields)
            return True

    async def update(self, *events: dict[str, Any], **fields: Any) -> None:
        """Replace ``fields`` of the record without moving the state machine."""
        async with self._lock:
            await self._store(events, fields)

    async def set_vm(self, vm: VmRecord, event: dict[str, Any]) -> None:
        """Replace the VM's settings."""
        async with self._lock:
            await self.store.commit({"vm": plain(vm)}, [event])
            self.vm = vm
            self.changed.notify()
            await self._keep()

    async def require_resync(self, cause: ResyncCause | str, text: str, evidence: dict[str, Any] | None = None) -> None:
        """Put one more cause for a resync on record, with its evidence, and move to the state that says so."""
        found = Cause(code=str(cause), text=text, time=self._clock.wall(), evidence=evidence or {})
        async with self._lock:
            once = found.code == ResyncCause.TRACKING_OFF.value  # One loss, in whatever words it is told.
            if any(known.code == found.code and (once or known.text == found.text) for known in self.record.causes):
                return
            await self._require((PrimaryEvent.RESYNC_REQUIRED,), found, {})

    async def amend_cause(self, cause: Cause, event: dict[str, Any]) -> None:
        """Put down more of a cause that is on record; it is known by its code and time."""
        async with self._lock:
            same, causes = (cause.code, cause.time), self.record.causes
            await self._store([event], {"causes": [cause if (e.code, e.time) == same else e for e in causes]})

    async def order_resync(self, text: str, **fields: Any) -> None:
        """An administrator asks for a resync of a VM that replicates: it is suspended first, and resumed with it.

        All in one transaction, so that no crash leaves it suspended.
        """
        step = PrimaryEvent
        path = (step.SUSPENDED, step.RESUMED, step.RESYNC_REQUIRED, step.RESYNC_STARTED)
        async with self._lock:
            found = Cause(code=ResyncCause.ADMINISTRATOR.value, text=text, time=self._clock.wall())
            await self._require(path, found, {**fields, "stopped_time": None})

    async def _require(self, path: Sequence[PrimaryEvent], found: Cause, fields: dict[str, Any]) -> None:
        # The first causes tell what began it, the last ones what is going on.
        causes = [*self.record.causes, found]
        if len(causes) > MAX_CAUSES:
            causes = [*causes[: MAX_CAUSES // 2], *causes[-MAX_CAUSES // 2 :]]
        data = {"code": found.code, "evidence": found.evidence}
        event = self.event(EventId.RESYNC_REQUIRED, found.text, cause=found.code, data=data)
        await self._walk(path, found.text, [event], {**fields, "causes": causes})

    async def resume(self, *, asked: bool) -> None:
        """Go on after a suspension, with the resync on record, or ``asked`` for; no crash leaves half of that.

        What is on record by then counts, not what whoever resumes saw: tracking may have been lost meanwhile.
        """
        text = "The administrator asked for it."
        path = (PrimaryEvent.RESUMED, PrimaryEvent.RESYNC_REQUIRED)
        wanted: dict[str, Any] = {"resync_wanted": True, "stopped_time": None}
        async with self._lock:
            if self.record.causes and (self.record.epoch != NO_EPOCH or self.rebuilt):
                await self._walk(path, text, (), wanted)
            elif self.record.epoch == NO_EPOCH:
                await self._walk((PrimaryEvent.INITIAL_RESUMED,), text, (), {})
            elif asked:
                found = Cause(code=ResyncCause.ADMINISTRATOR.value, text=text, time=self._clock.wall())
                await self._require(path, found, wanted)
            else:
                await self._walk((PrimaryEvent.RESUMED,), text, (), {})

    async def tell_restart(self, reason: str) -> None:
        """The open resync starts anew, since tracking was lost meanwhile."""
        text = f"The compare starts anew, since tracking was lost meanwhile: {reason}"
        if self.state is ReplicationState.RESYNCHRONIZING:
            await self.require_resync(ResyncCause.TRACKING_LOST, text)
        else:
            await self.note(self.event(EventId.RESYNC_REQUIRED, text, cause=ResyncCause.TRACKING_LOST.value))

    async def begin_resync(self, resync: ResyncRecord) -> None:
        """Put an open resync (or initial replication) on record, before the tap is told its epoch.

        Raises Replan where it was cancelled meanwhile, or is made another way.
        """
        async with self._lock:
            if self.record.state not in COMPARING or self.record.export is not None:
                raise Replan("the resynchronization was cancelled")
            await self._store((), {"resync": resync})

    async def change_resync(self, resync: ResyncRecord, *events: dict[str, Any]) -> None:
        """Replace the record of the open resync. Raises Replan where that one is open no longer."""
        async with self._lock:
            if self.record.resync is None or self.record.resync.id != resync.id:
                raise Replan("the resynchronization was cancelled")
            await self._store(events, {"resync": resync})

    async def propose(self, end: Position) -> None:
        """Put the end cut on record before the commit is sent (R33): from then on nothing cancels it.

        Raises Replan where it was cancelled before.
        """
        async with self._lock:
            if self.record.resync is None:
                raise Replan("the resynchronization was cancelled")
            await self._store((), {"resync": msgspec.structs.replace(self.record.resync, end=PositionRecord.of(end))})

    async def cancel(self, text: str) -> None:
        """Cancel the open resync or initial replication; what it began is given up afterwards (I7).

        All causes stay. Raises InvalidStateError after its commit was proposed, or where none is open.
        """
        async with self._lock:
            record = self.record
            if self.record.proposed is not None:
                raise InvalidStateError(
                    f"The {self.open_work} of {self.vm.name} can't be cancelled any more: its commit was proposed to "
                    "the replica, which may have it already.",
                    "It completes as soon as the replica answers.",
                )
            # Suspended in its initial replication, a VM has no baseline yet, and nothing is required of it.
            initial = record.epoch == NO_EPOCH and record.state not in RESYNCING
            event = PrimaryEvent.INITIAL_CANCELLED if initial else PrimaryEvent.RESYNC_CANCELLED
            fields: dict[str, Any] = {"resync": None, "export": None, "resync_wanted": False, "resync_at": None}
            if not initial:
                fields["stopped_time"] = self._clock.wall()
            await self._walk((event,), text, [self.event(EventId.ADMINISTRATOR, text, cause=event.value)], fields)

    @property
    def open_work(self) -> str:
        """What to call the open compare."""
        return "initial replication" if self.record.epoch == NO_EPOCH else "resynchronization"

    async def adopt(self, cause: str) -> Position:
        """The commit of the open resync is durable at the replica: its epoch is the baseline. Returns its end."""
        async with self._lock:
            record = self.record
            resync, state = record.resync, record.state
            assert resync is not None and resync.end is not None
            end = resync.end.position
            step = Ancestor(resync.epoch, resync.parent, resync.parent_segment)
            event = PrimaryEvent.INITIAL_COMPLETED if state in INITIAL else PrimaryEvent.RESYNC_COMPLETED
            if state in (ReplicationState.SUSPENDED, ReplicationState.RESYNCHRONIZE_SUSPENDED):
                # The commit can't be taken back (I7): it is adopted, and the VM stays suspended.
                fields: dict[str, Any] = {"state": ReplicationState.SUSPENDED}
            else:
                fields = {"state": primary_transition(state, event)}
            if record.outlasting:
                fields["state"] = primary_transition(fields["state"], PrimaryEvent.RESYNC_REQUIRED)
                self.orders += 1
            none = ("resync", "reversal", "problem", "resync_at", "started_by", "stopped_time")
            fields |= dict.fromkeys(none) | {
                "epoch": resync.epoch,
                "lineage": lineage_records(extend(record.ancestors, step)),
                "causes": record.outlasting,
                "resync_wanted": False,
            }
            text = f"The baseline {resync.epoch.hex()[:8]} is committed at the replica, up to cut {end.segment}."
            committed = self.event(EventId.BASELINE_COMMITTED, text, cause=cause, data={"epoch": resync.epoch.hex()})
            await self._store([committed, self._state_event(state, fields["state"], cause)], fields)
        return end

    async def prove(self, text: str) -> None:
        """The rebuilt records are proven to fit the replica."""
        event = self.event(EventId.RECOVERED, text, cause=ResyncCause.STATE_LOST.value)
        await self.update(event, recovered=None)

    async def distrust(self, cause: ResyncCause, text: str, evidence: dict[str, Any]) -> None:
        """The rebuilt records can't be proven to fit the replica: a compare of everything is required.

        Each step is durable by itself, and the last one ends the judgement: a crash has it begin anew.
        """
        if self.state is ReplicationState.RESYNCHRONIZING:
            await self.transition(PrimaryEvent.RESYNC_CANCELLED, text, resync=None)
        await self.require_resync(cause, text, evidence)
        # Whoever asked for a resync before did not know whose history it would replace.
        wanted = self.record.resync_wanted and cause is not ResyncCause.HISTORY_LOST
        at = self.record.resync_at if wanted or cause is not ResyncCause.HISTORY_LOST else None
        await self.update(recovered=None, resync=None, resync_wanted=wanted, resync_at=at)

    async def fence(self, text: str, *, split: bool, fence: FenceRecord | None = None) -> None:
        """The replica was failed over: nothing is sent any more until an administrator says so (I8).

        It drops a resync that is not committed. ``split``: this side may have writes that are not in what it promoted.
        """
        told = f"{text} {moved_text(split=split)}"
        async with self._lock:
            known = self.record.state is ReplicationState.FAILED_OVER and self.record.fenced == text
            # Suspended meanwhile nothing is sent anyway; whoever resumes it is told then.
            if known or self.record.state in (ReplicationState.SUSPENDED, ReplicationState.RESYNCHRONIZE_SUSPENDED):
                return
            event = self.event(EventId.FENCED, told, cause="fenced", data={"split_brain": split})
            kept = self.record.resync if self.record.proposed else None
            fields = {"fenced": text, "fence": fence, "problem": None, "resync": kept}
            await self._walk((PrimaryEvent.FENCED,), told, [event], fields)

    async def store_progress(self) -> None:
        """Write down the acknowledged cut and the statistics; called now and then, and at an orderly stop."""
        records: dict[str, Any] = {"statistics": self.statistics.plain()}
        if self.acked is not None:
            acked = AckedRecord(position=PositionRecord.of(self.acked.position), time_ns=self.acked.time_ns)
            records["acked"] = plain(acked)
        await self.store.commit(records | self.runs.pending())

    async def store_runs(self) -> None:
        """Write down what was counted of the open run, where that is due; called every second."""
        if changes := self.runs.due():
            await self.store.commit(changes)

    async def reset_statistics(self, order: dict[str, Any]) -> None:
        """Begin a new monitoring interval; ``order`` says who asked. One transaction with its event."""
        self.statistics.reset(self._clock.wall())
        text = f"The statistics of {self.vm.name} were reset."
        event = self.event(EventId.ADMINISTRATOR, text, cause="statistics reset", data=order)
        await self.store.commit({"statistics": self.statistics.plain()}, [event])

    async def note(self, *events: dict[str, Any]) -> None:
        """Append events that go with no change of a record."""
        self.runs.see(events)
        await self.store.commit(self.runs.pending(), events)

    def event(
        self, number: EventId, text: str, *, cause: str = "", data: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return make_event(number, text, time=self._clock.wall(), cause=cause, data=data)

    def replan(self) -> None:
        """Tell the running session that what it does no longer fits."""
        self.orders += 1
        self.changed.notify()

    # --- inner parts -----------------------------------------------------------------------------------------------

    async def _walk(
        self, path: Sequence[PrimaryEvent], cause: str, events: Sequence[dict[str, Any]], fields: dict[str, Any]
    ) -> None:
        """Take several transitions in one transaction, each with its event."""
        state, changes = self.record.state, []
        for event in path:
            after = primary_transition(state, event)
            if after is not state:
                changes.append(self._state_event(state, after, cause))
            state = after
        if "planned" not in fields:
            fields["planned"], told = carried_on(self.record.planned, path, state, cause, self._clock.wall())
            changes += told
        await self._store([*events, *changes], {**fields, "state": state})

    async def _store(self, events: Sequence[dict[str, Any]], fields: dict[str, Any]) -> None:
        """To its end even when a session is cancelled in it: what is durable and what is known here stay one."""
        await uninterrupted(self._store_all(events, fields))

    async def _store_all(self, events: Sequence[dict[str, Any]], fields: dict[str, Any]) -> None:
        record: ReplicationRecord = msgspec.structs.replace(self.record, **fields)
        changes: dict[str, Any] = {"replication": plain(record)}
        if record.epoch != self.record.epoch:
            # The acknowledgements of an older baseline say nothing about this one.
            changes["acked"] = None
        await self.store.commit(changes | self.runs.changes(record, events), events)
        if record.epoch != self.record.epoch:
            self.acked = None
        self.record = record
        self.changed.notify()
        await self._keep()

    async def describe(self) -> None:
        """Bring the description in line with the records, where an earlier attempt failed or a crash came between."""
        async with self._lock:
            await self._keep()

    async def _keep(self) -> None:
        if self.keeper is not None:
            await self.keeper.keep(Description.of(self.vm, self.record))

    def _state_event(self, before: ReplicationState, after: ReplicationState, cause: str) -> dict[str, Any]:
        return make_event(
            EventId.STATE_CHANGED,
            f"{self.vm.name}: {before.title} -> {after.title}.",
            time=self._clock.wall(),
            cause=cause,
            before=before.title,
            after=after.title,
        )
