"""The durable state of one VM in memory: always equal to what the store holds, changed one transaction at a time."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from protocol.position import Position
from replica_agent.description import Description
from replica_agent.finishing import finish
from replica_agent.record import (
    CompanionsRecord,
    ExportsRecord,
    PointsRecord,
    PreparedRecord,
    PromotionRecord,
    Record,
    ReplicationRecord,
    ResyncRecord,
    VmRecord,
    load,
    load_replication,
    load_vm,
    plain,
)
from shared.description import Keeper
from shared.errors import InvalidStateError, VmreplicaError
from shared.events import EventId, make_event
from shared.ports import Clock, Store
from shared.states import ReplicaEvent, ReplicationState, replica_transition
from shared.status import Cause

MAX_CAUSES = 16


class LedgerError(VmreplicaError):
    """The store could not commit: what it holds now is known only when it is read anew."""

    code = "state_not_written"


@dataclass(slots=True)
class Draft:
    """The records of a transaction that is being put together. Nested values are replaced, never changed in place."""

    vm: VmRecord
    replication: ReplicationRecord
    resync: ResyncRecord | None
    promotion: PromotionRecord | None
    prepared: PreparedRecord | None
    points: PointsRecord
    exports: ExportsRecord
    companions: CompanionsRecord
    statistics: Any
    now: float
    events: list[dict[str, Any]] = field(default_factory=list)

    def event(self, number: EventId, text: str, *, cause: str = "", level: str = "", **data: Any) -> None:
        """Record an event with the transaction; ``level`` is for one whose number does not tell how bad it is."""
        self.events.append(make_event(number, text, time=self.now, cause=cause, level=level, data=data))

    def step(self, event: ReplicaEvent, cause: str = "") -> None:
        """Go to the state that ``event`` leads to, and record that (I16). Raises InvalidStateError."""
        before = self.replication.state
        after = replica_transition(before, event)
        self.replication.state = after
        if after is not before:
            self.events.append(
                make_event(
                    EventId.STATE_CHANGED,
                    f"{before.title} -> {after.title}: {event.value}.",
                    time=self.now,
                    cause=cause or event.value,
                    before=before.title,
                    after=after.title,
                )
            )

    def require_resync(self, cause: Cause, *, suspect: bool = False, reread: bool = False) -> None:
        """Put ``cause`` on record: only a resync helps. ``suspect``: the disks may not be a whole point."""
        replication = self.replication
        if all(known.code != cause.code for known in replication.causes):
            replication.causes = [*replication.causes, cause][-MAX_CAUSES:]
            self.events.append(
                make_event(
                    EventId.RESYNC_REQUIRED,
                    cause.text,
                    time=self.now,
                    cause=cause.code,
                    data=dict(cause.evidence),
                )
            )
        if suspect and replication.suspect is None:
            replication.suspect = cause
        replication.reread = replication.reread or reread
        try:
            self.step(ReplicaEvent.RESYNC_REQUIRED, cause.text)
        except InvalidStateError:
            # Before the first point, and after a failover, there is nothing that a resync could bring back.
            return


class Ledger:
    """The records of one VM. Reading is plain attribute access; every change goes through :meth:`transaction`."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Read the records. Raises StoreDamagedError."""
        self.store = store
        self.vm = load_vm(store)
        self.replication = load_replication(store)
        self.resync = load(store, "resync", ResyncRecord)
        self.promotion = load(store, "promotion", PromotionRecord)
        self.prepared = load(store, "prepared", PreparedRecord)
        self.points = load(store, "points", PointsRecord) or PointsRecord()
        self.exports = load(store, "exports", ExportsRecord) or ExportsRecord()
        self.companions = load(store, "companions", CompanionsRecord) or CompanionsRecord()
        self.statistics: Any = store.get("statistics")
        self.keeper: Keeper[Description] | None = None
        """Keeps what ``recover`` would need; a transaction ends only when it has been told."""
        self._clock = clock
        self._turn = asyncio.Lock()

    def disks_at(self, position: Position) -> dict[int, int]:
        """Index and size of the disks that a point has."""
        return self.vm.disks_at(self.replication.ancestors, position.epoch)

    @property
    def frozen(self) -> bool:
        """Whether all points stay: a failover that is not settled shows one of them, and an undo has them all."""
        return self.promotion is not None and self.promotion.layered

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Draft]:
        """Change records and append events in one durable step: committed at the end of the block.

        An exception in the block changes nothing. A cancellation takes effect after the commit.
        """
        async with self._turn:
            draft = Draft(
                vm=copy.copy(self.vm),
                replication=copy.copy(self.replication),
                resync=copy.copy(self.resync),
                promotion=copy.copy(self.promotion),
                prepared=copy.copy(self.prepared),
                points=copy.copy(self.points),
                exports=copy.copy(self.exports),
                companions=copy.copy(self.companions),
                statistics=self.statistics,
                now=self._clock.wall(),
            )
            yield draft
            await finish(self._commit(draft))

    async def note(self, number: EventId, text: str, *, cause: str = "", **data: Any) -> None:
        """Append one event."""
        async with self.transaction() as draft:
            draft.event(number, text, cause=cause, **data)

    async def _commit(self, draft: Draft) -> None:
        changes: dict[str, Any] = {}
        for name in ("vm", "replication", "resync", "promotion", "prepared", "points", "exports", "companions"):
            before: Record | None = getattr(self, name)
            after: Record | None = getattr(draft, name)
            if before != after:
                changes[name] = None if after is None else plain(after)
        if draft.statistics != self.statistics:
            changes["statistics"] = draft.statistics
        if changes or draft.events:
            try:
                await self.store.commit(changes, draft.events)
            except (VmreplicaError, OSError) as error:
                raise LedgerError(
                    f"The state of {self.vm.name} can't be written: {error}", "Check its volume; it is tried again."
                ) from error
        self.vm, self.replication = draft.vm, draft.replication
        self.resync, self.promotion, self.points = draft.resync, draft.promotion, draft.points
        self.exports, self.companions = draft.exports, draft.companions
        self.prepared = draft.prepared
        self.statistics = draft.statistics
        await self._keep()

    async def describe(self) -> None:
        """Bring the description in line with the records, where an earlier attempt failed or a crash came between."""
        async with self._turn:
            await finish(self._keep())

    async def _keep(self) -> None:
        if self.keeper is None:
            return
        record = self.replication
        description = Description(
            vm=self.vm,
            epoch=record.epoch,
            lineage=record.lineage,
            reread=record.reread,
            interval_seconds=record.interval_seconds,
            peer_host=record.peer_host,
            promotion=self.promotion,
        )
        await self.keeper.keep(description)


async def create_state(store: Store, vm: VmRecord, clock: Clock) -> Ledger:
    """Write the first records of a VM into its fresh store."""
    replication = ReplicationRecord()
    created = make_event(
        EventId.STATE_CHANGED,
        f"The replica of {vm.name} was created.",
        time=clock.wall(),
        cause=ReplicaEvent.CREATED.value,
        before=ReplicationState.DISABLED.title,
        after=replication.state.title,
    )
    await finish(store.commit({"vm": plain(vm), "replication": plain(replication)}, [created]))
    return Ledger(store, clock)
