"""One VM at the replica: its files, tasks and connections, from start to end, and the orders it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from protocol.messages import ErrorCode, Open
from protocol.position import NO_EPOCH, Position
from replica_agent.baseline import Baseline
from replica_agent.companions import Companions
from replica_agent.connections import Connections
from replica_agent.disk_sets import forget_former, mismatch_of, number_of
from replica_agent.exports import Exports
from replica_agent.finishing import finish
from replica_agent.importing import Importer
from replica_agent.ledger import Ledger, LedgerError
from replica_agent.parts import Surroundings, VmParts, assemble
from replica_agent.promotion import Promotion, refused_after_failover
from replica_agent.prover import Prover
from replica_agent.recovery import recover
from replica_agent.refusals import Refusal
from replica_agent.settled import finish_undo, undo
from replica_agent.thinner import Thinner
from shared.errors import InvalidStateError, VmreplicaError
from shared.events import EventId
from shared.forecasts import ROOM_BYTES
from shared.rates import size_text
from shared.states import ReplicaEvent, ReplicationState
from shared.stats import ReplicationStatistics, interval_text
from shared.status import Cause, CutStatus, to_plain

HOUSEKEEPING_SECONDS = 5.0
FAILOVER_WAIT_SECONDS = 20.0
"""How long ``failover`` waits for the disks to be served before it answers; it goes on by itself."""

log = structlog.get_logger(__name__)


class ReplicaVm:
    """One VM. ``failure`` says why it can't run at all; then it answers nothing but that."""

    def __init__(self, surroundings: Surroundings, folder: str, ledger: Ledger) -> None:
        self.parts: VmParts = assemble(surroundings, folder, ledger)
        self.baseline = Baseline(self.parts)
        parts = self.parts
        self.exports = Exports(
            surroundings.ports,
            parts.applier,
            f"{surroundings.runtime_folder}/{parts.uuid}",
            group=surroundings.nbd_group,
            room=surroundings.overlay_room,
        )
        parts.history.spare = self.exports.yield_room
        self.prover = Prover(parts, self.exports.view)
        self.promotion = Promotion(parts, self.baseline, self._end_sessions_for_failover, self._end_readers, self._halt)
        now, interval = surroundings.ports.clock.wall(), surroundings.monitoring
        self.statistics = ReplicationStatistics(ledger.statistics, now, monitoring_seconds=interval)
        parts.applier.statistics = self.statistics
        parts.history.changed = parts.changed.notify
        self.failure: Cause | None = None
        self.on_failure: Callable[[ReplicaVm], None] | None = None
        self.on_undone: Callable[[ReplicaVm], None] | None = None
        """Told when a failover is undone: the VM has to be started anew."""
        self.leaving = False
        """Another object is about to take this one's place: the VM as it is after its failover was undone."""
        self.companions = Companions(parts)
        self.connections = Connections(parts, self.baseline, self.statistics, self.judge, self.fail, self.companions)
        self.importer = Importer(parts, self.connections.end)
        self._tasks: set[asyncio.Task[None]] = set()
        self._applying: asyncio.Task[None] | None = None
        self._thinning: asyncio.Task[None] | None = None
        self._completing: asyncio.Task[None] | None = None

    @property
    def ledger(self) -> Ledger:
        return self.parts.ledger

    @property
    def name(self) -> str:
        return self.ledger.vm.name

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring files and state in line, and go on where the last run stopped. Never raises for this VM's trouble."""
        promotion = self.ledger.promotion
        if promotion is not None and promotion.undoing:
            self.leaving = True
            self._completing = self._spawn(self._finish_undo())
            return
        try:
            if promotion is None or not promotion.serving:
                await recover(self.parts)
            else:
                # The disks are a tap's; no undo log is on record any more.
                await finish(self.parts.ports.workers.run(self.parts.history.found))
            await self.exports.reopen()
        except (VmreplicaError, OSError) as error:
            await self.fail(error)
            return
        applied = self.ledger.replication.applied
        if self.parts.applier.whole and applied is not None:
            for callback in list(self.parts.applier.exposed):
                callback(applied.position)
        self._applying = self._spawn(self.parts.applier.run())
        self._spawn(self._keep_house())
        self._thinning = self._spawn(self._thin())
        if promotion is not None and not promotion.handed_over:
            self._completing = self._spawn(self.promotion.complete())

    async def stop(self) -> None:
        """End connections, tasks and exports, and close files and store."""
        try:
            await self.end()
        finally:
            await self.ledger.store.close()

    async def end(self) -> None:
        """Like :meth:`stop`, but the store stays open."""
        self.parts.closing = True
        await self.connections.end(Refusal(ErrorCode.SHUTDOWN, "The replica agent stops.", "It is tried again."))
        for task in list(self._tasks):
            task.cancel()
        await settle(self._tasks)
        await asyncio.gather(self.prover.stop(), self.importer.stop())
        await self.exports.close()
        await finish(self.parts.ports.workers.run(self._close))

    def _close(self) -> None:
        """Blocks."""
        parts = self.parts
        for opened in (parts.applier.spool, parts.resync):
            if opened is not None:
                opened.close()
        parts.disks.close()

    def adopt_surroundings(self) -> None:
        """What the surroundings say has changed: the rules of points, and the room that is left alone."""
        parts, surroundings = self.parts, self.parts.surroundings
        parts.history.rules = surroundings.retention
        parts.history.reserve = parts.applier.reserve = surroundings.reserve
        if parts.applier.spool is not None:
            parts.applier.spool.reserve = surroundings.reserve
        if parts.resync is not None:
            parts.resync.differences.reserve = parts.resync.tracked.reserve = surroundings.reserve

    async def fail(self, error: Exception) -> None:
        """This VM can't go on before it was started anew; the others do."""
        text, remedy, code = f"{type(error).__name__}: {error}", "", "internal"
        if isinstance(error, VmreplicaError):
            text, remedy, code = error.text, error.remedy, error.code
        remedy = remedy or f"See the agent's log; then run `vmreplica resume {self.name}`."
        self.failure = Cause(code=code, text=text, time=self.parts.ports.clock.wall(), remedy=remedy)
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self.parts.changed.notify()
        if self.on_failure is not None:
            self.on_failure(self)
        try:
            await self.ledger.note(EventId.DAMAGED, text, cause=code)
        except (VmreplicaError, OSError):
            log.exception("the failure of a VM can't be recorded", vm=self.name, failure=text)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task of this VM; an error that it ends with is this VM's failure."""

        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                log.exception("a task of a VM failed", vm=self.name)
                await self.fail(error)
                if self.failure is not None:
                    await self.connections.end(self._refusal_of_failure())

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _halt(self, applying: bool) -> None:
        """From now on no undo log is merged, and, where that is said, nothing is applied: both go on after an undo."""
        tasks = {task for task in (self._thinning, self._applying if applying else None) if task is not None}
        for task in tasks:
            task.cancel()
        await settle(tasks)

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            await self.exports.tell_failures()
            await self.exports.reopen()
            await forget_former(self.parts)
            await self._keep_room()
            await self.companions.tidy()
            await self.promotion.look()
            await self.ledger.describe()
            self._count_cycles()
            if self.statistics.is_due(self.parts.ports.clock.wall()):
                await self._tell_statistics()

    def _count_cycles(self) -> None:
        """A cycle in which nothing new was received is missed, whatever kept the primary from sending it."""
        clock, record, waits = self.parts.ports.clock, self.ledger.replication, self.ledger.prepared is not None
        if record.state is ReplicationState.REPLICATING and record.interval_seconds > 0 and not waits:
            self.statistics.tick(clock.wall(), clock.monotonic(), record.interval_seconds)
        else:
            self.statistics.pause()

    async def _tell_statistics(self) -> None:
        """Event 29174, once a monitoring interval."""
        now = self.parts.ports.clock.wall()
        figures = self.statistics.report(now, pending_bytes=self.parts.applier.pending_bytes)
        self.statistics.told(now)
        async with self.ledger.transaction() as draft:
            draft.statistics = self.statistics.plain()
            draft.event(EventId.STATISTICS, interval_text(self.name, figures), **to_plain(figures))

    async def reset_statistics(self, order: dict[str, Any]) -> None:
        """Begin a new monitoring interval; ``order`` says who asked. One transaction with its event."""
        self.statistics.reset(self.parts.ports.clock.wall())
        async with self.ledger.transaction() as draft:
            draft.statistics = self.statistics.plain()
            text = f"The statistics of {self.name} were reset."
            draft.event(EventId.ADMINISTRATOR, text, cause="statistics reset", **order)

    async def _keep_room(self) -> None:
        """Older points make room for what arrives before it is refused for want of it."""
        parts, enough = self.parts, self.parts.surroundings.reserve + ROOM_BYTES
        if not self.ledger.points.logs and not self.ledger.exports.kept:
            return
        try:
            free = await finish(parts.surroundings.volumes.free(parts.layout.folder, enough))
        except OSError:
            # Whoever needs room will say so.
            return
        if free < enough:
            await parts.history.give_way(f"The volume has only {size_text(free)} left.")

    async def _thin(self) -> None:
        """Merge undo logs after applies. What is not merged yet only takes more room."""
        applier, thinner = self.parts.applier, Thinner(self.parts.history)
        while True:
            await applier.changed.wait()
            if self.ledger.promotion is None:
                await thinner.run()

    # --- connections -----------------------------------------------------------------------------------------------

    def judge(self, body: Open) -> None:
        """Whether a connection may be opened now. Raises Refusal or InvalidStateError."""
        if self.ledger.promotion is not None:
            raise refused_after_failover(self.ledger.promotion, self.name, body, written=self.promotion.written)
        if self.failure is not None:
            raise self._refusal_of_failure()
        if self.promotion.deciding.locked():
            raise self._failing_over()
        if self.parts.closing:
            raise Refusal(ErrorCode.SHUTDOWN, "The replica agent stops.", "It is tried again.")
        if self.ledger.replication.state is ReplicationState.SUSPENDED:
            raise Refusal(
                ErrorCode.BUSY,
                f"Replication of {self.name} is suspended at the replica.",
                f"Run `vmreplica resume {self.name}` there.",
            )
        if mismatch := mismatch_of([disk.geometry() for disk in body.disks], number_of(body), self.ledger.vm):
            raise Refusal(
                ErrorCode.GEOMETRY,
                f"The disks of {self.name} differ: {mismatch}.",
                "Bring the disks to the same sizes (a replica's only ever grow), or remove the VM at the replica and "
                "start anew.",
            )

    def _refusal_of_failure(self) -> Refusal:
        assert self.failure is not None
        match self.failure.code:
            case "store_damaged":
                code = ErrorCode.DAMAGED
            case "internal" | "no_space" | LedgerError.code:
                code = ErrorCode.BUSY
            case _:
                code = ErrorCode.STORAGE
        return Refusal(code, f"{self.name}: {self.failure.text}", self.failure.remedy)

    async def _end_sessions_for_failover(self) -> None:
        await self.connections.end(self._failing_over())

    async def _end_readers(self) -> None:
        """The disks are a tap's from now on, which writes them once the failover is committed."""
        await self.exports.stop()
        await self.prover.stop()

    def _failing_over(self) -> Refusal:
        return Refusal(ErrorCode.BUSY, f"{self.name} is being failed over.", "Look at its status on the replica.")

    # --- orders ----------------------------------------------------------------------------------------------------

    async def suspend(self) -> None:
        """Receive nothing until resumed; what was received is still applied. Raises InvalidStateError."""
        async with self.parts.order, self.ledger.transaction() as draft:
            draft.step(ReplicaEvent.SUSPENDED, "suspended by the administrator")
        await self.connections.end(
            Refusal(
                ErrorCode.BUSY,
                f"Replication of {self.name} was suspended at the replica.",
                f"Run `vmreplica resume {self.name}` there.",
            )
        )

    async def resume(self) -> None:
        """Go on after a suspension. Raises InvalidStateError."""
        async with self.parts.order, self.ledger.transaction() as draft:
            draft.step(ReplicaEvent.RESUMED, "resumed by the administrator")

    async def failover(self, point: Position | None = None) -> None:
        """Promote the newest cut, or ``point``, and serve it. Returns when that is durable and, soon, complete."""
        if self.failure is not None:
            raise InvalidStateError(f"{self.name} is in error: {self.failure.text}", self.failure.remedy)
        if await self.promotion.decide(point):
            self._completing = self._spawn(self.promotion.complete())
        await self._await_service(FAILOVER_WAIT_SECONDS)

    async def undo_failover(self) -> None:
        """Be a replica again, with everything as it was before the failover. Raises InvalidStateError.

        Also where its disks can't be served: then it is the way out.
        """
        if self.failure is not None and self.failure.code == LedgerError.code:
            raise InvalidStateError(f"{self.name} is in error: {self.failure.text}", self.failure.remedy)
        await undo(self.parts, await tap.clients() if (tap := self.promotion.tap) is not None else 0)
        if self.leaving:
            return  # Another order does it already.
        self.leaving, self.failure = True, None  # Of what it failed is over with this: orders wait for its end.
        await self.leave_tap()
        await self._halt(applying=True)
        self._completing = self._spawn(self._finish_undo())

    async def _finish_undo(self) -> None:
        await finish_undo(self.parts)
        if self.on_undone is not None:
            self.on_undone(self)

    async def leave_tap(self) -> None:
        """The tap of the promoted VM is nobody's here any more; it goes on."""
        if self._completing is not None:
            self._completing.cancel()
            await asyncio.wait({self._completing})
            self._completing = self.promotion.tap = None

    def take_tap_up(self) -> None:
        """Look after the tap of the promoted VM again."""
        if self._completing is None:
            self._completing = self._spawn(self.promotion.complete())

    async def _await_service(self, seconds: float) -> None:
        """Wait until the promoted disks are served, but no longer than this."""
        deadline = self.parts.ports.clock.monotonic() + seconds
        while (left := deadline - self.parts.ports.clock.monotonic()) > 0:
            tap = self.promotion.tap
            if tap is not None and tap.status is not None:
                return
            await (tap.changed if tap is not None else self.parts.changed).wait_for(left)

    # --- what simulation and verbs ask -----------------------------------------------------------------------------

    def on_exposed(self, callback: Callable[[Position], None]) -> None:
        """Call ``callback`` synchronously whenever the disks are exactly at a new point, and at the start."""
        self.parts.applier.exposed.append(callback)

    def point(self) -> Position | None:
        """The point that the disks are at exactly; None while they are between two, or not to be trusted."""
        applied = self.ledger.replication.applied
        return applied.position if applied is not None and self.parts.applier.whole else None

    def read_point(self, disk: int, offset: int, length: int) -> bytes:
        """A range of the newest point. Blocks; only while :meth:`point` is not None and without awaiting since."""
        return self.parts.disks.read(disk, offset, length)

    def describe(self, position: Position) -> CutStatus:
        """A cut for people. Its time is known where it is the applied one or still in the spool."""
        time = self.parts.time_of(position)
        return CutStatus(epoch=position.epoch.hex(), segment=position.segment, entry=position.entry, time=time)

    @property
    def has_baseline(self) -> bool:
        return self.ledger.replication.epoch != NO_EPOCH


async def settle(tasks: set[asyncio.Task[None]]) -> None:
    """Wait until cancelled tasks have ended; raises what one ended with, if that was not its cancellation."""
    while tasks:
        done, _ = await asyncio.wait(tasks)
        for task in done:
            if not task.cancelled():
                task.result()
        tasks.difference_update(done)
