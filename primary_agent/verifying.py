"""The verifies of one VM: orders and schedule, one run after the other, and its result, which is durable.

A verify never runs beside a resync, and whatever ends its ground ends it as "undecided". One VM of a host is verified
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from primary_agent.block_map import BlockMap
from primary_agent.parts import Parts
from primary_agent.planned_steps import step_of
from primary_agent.record import VerifyRecord, load, plain
from primary_agent.undecided import UndecidedError
from primary_agent.verify_comparing import Finding
from primary_agent.verify_files import remove_files
from primary_agent.verify_repair import check_size, repair
from primary_agent.verify_run import RunProgress, Scope, Verified, VerifyRun
from protocol.errors import ProtocolError
from protocol.messages import BLOCK_SIZE
from shared.errors import InvalidStateError, StoreDamagedError, VmreplicaError
from shared.events import EventId
from shared.rates import duration_text, size_text
from shared.schedule import NEVER, Recurrence, moment_text, parse_moment
from shared.states import PlannedStep, ReplicationState
from shared.status import CutStatus, ImageStatus, VerifyRange, VerifyResult, VerifyStatus
from shared.tap_control import Sealed
from shared.tasks import Signal, together
from shared.verify_outcomes import DIFFERENT, EQUAL, REPAIRED, UNDECIDED

POLL_SECONDS = 1.0
"""Between two looks at the clock, while one is to come,"""
IDLE_SECONDS = 60.0
"""and where none is."""
LATE_SECONDS = 3600.0
"""A verify that can't begin when it is due is waited for so long."""
RANGES_TOLD = 256
RESYNC_REMEDY = "Resynchronize the VM: `vmreplica resume VM --resynchronize`."

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Order:
    """What the next run, or the one that runs, is to do."""

    started_by: str
    repair: bool


@dataclass(slots=True)
class Verifier:
    """The verifies of a VM whose folder is ``folder``."""

    parts: Parts
    folder: str
    record: VerifyRecord = field(init=False)
    _order: _Order | None = None
    _running: RunProgress | None = None
    _cancelled: str = ""
    _news: Signal = field(default_factory=Signal)

    def __post_init__(self) -> None:
        """Raises StoreDamagedError."""
        self.record = load(self.parts.replication.store, "verify", VerifyRecord) or VerifyRecord()

    # --- what is shown ---------------------------------------------------------------------------------------------

    def status(self) -> VerifyStatus:
        """The verify as the VM's status has it."""
        running = self._running
        return VerifyStatus(
            running=running is not None or self._order is not None,
            phase=running.phase if running is not None else "waiting for its turn" if self._order is not None else "",
            done_bytes=running.done if running is not None else 0,
            total_bytes=running.total if running is not None else 0,
            next_time=self._next(),
            last=self.record.last,
        )

    def _next(self) -> float | None:
        """When the next one is due."""
        if self.record.at is not None:
            return self.record.at
        clock, schedule = self.parts.surroundings.ports.clock, self.parts.replication.vm.verify_schedule
        recurrence = Recurrence.parse(schedule)
        if recurrence is None:
            return None
        # What a schedule asks for counts from when it was set.
        since = self.record.since if schedule == self.record.schedule else clock.wall()
        return recurrence.after(since, clock.zone())

    def reconsider(self) -> None:
        """The VM's settings have changed."""
        self._news.notify()

    # --- orders ----------------------------------------------------------------------------------------------------

    async def order(self, *, at: str = "", repair: bool = False, stop: bool = False) -> None:
        """Start a verify, or join the one that runs; ``at`` puts it off, or with ``never`` cancels that; ``stop`` ends
        the one that runs.

        Raises UsageError, or InvalidStateError where the VM does not replicate just now.
        """
        if stop:
            self._cancelled = "The administrator ended it."
            self._news.notify()
            return
        if at:
            await self._put_off(at, repair=repair)
            return
        if self._order is not None:
            self._check_ready(repair=repair)
            self._order.repair = self._order.repair or repair
            return
        self._check_ready(repair=repair)
        self._order = _Order("administrator", repair)
        self._news.notify()

    async def _put_off(self, at: str, *, repair: bool) -> None:
        clock, name = self.parts.surroundings.ports.clock, self.parts.replication.vm.name
        moment = None if at == NEVER else parse_moment(at, clock.wall(), clock.zone())
        if moment is None and self.record.at is None:
            return
        text = f"The verify of {name} that was ordered for a time is cancelled."
        if moment is not None:
            text = f"The verify of {name} starts at {moment_text(moment, clock.zone())}."
        await self._store(EventId.VERIFY_SCHEDULED, text, cause="administrator", at=moment, repair=repair)

    def _check_ready(self, *, repair: bool) -> None:
        """Raises InvalidStateError."""
        replication, link = self.parts.replication, self.parts.link
        name = replication.vm.name
        # Both sides stand at the last cut: the best moment to compare them.
        prepared = step_of(replication.record.planned) is PlannedStep.CONFIRMED
        if prepared and repair:
            raise InvalidStateError(
                f"{name} is prepared for a failover: nothing is sent any more that would repair the replica.",
                f"Verify it without --repair, or take that back: vmreplica failover {name} --prepare --abort",
            )
        if replication.state is not ReplicationState.REPLICATING and not prepared:
            raise InvalidStateError(
                f"{name} is in state {replication.state.title}: it can't be verified.",
                f"Verify it while it replicates; `vmreplica status {name}` says what to do.",
            )
        if not link.healthy():
            raise InvalidStateError(
                f"{name} can't be verified: connectivity to {self.parts.address} is not healthy.",
                "Try again when it is.",
            )

    # --- running ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out orders and the schedule, until cancelled."""
        await self._recover()
        while True:
            await self._look_at_clock()
            if self._order is None:
                await self._news.wait_for(POLL_SECONDS if self._next() is not None else IDLE_SECONDS)
                continue
            self._cancelled = ""
            try:
                async with self.parts.surroundings.verifying:
                    await self._carry_out(self._order)
            finally:
                self._order = self._running = None

    async def _recover(self) -> None:
        """An agent that ended in the middle of one has left its files, and its result has to be told."""
        if self.record.running is None:
            return
        files = self.parts.surroundings.ports.files
        try:
            await self.parts.surroundings.ports.workers.run(remove_files, files, self.folder)
        except OSError as error:
            log.warning("files of a verify can't be removed", folder=self.folder, reason=str(error))
        order = _Order("administrator", repair=False)
        await self._conclude(self._undecided(order, self.record.running, "The agent was started anew meanwhile."))

    async def _look_at_clock(self) -> None:
        schedule = self.parts.replication.vm.verify_schedule
        if schedule != self.record.schedule:
            record = msgspec.structs.replace(
                self.record, schedule=schedule, since=self.parts.surroundings.ports.clock.wall()
            )
            await self.parts.replication.store.commit({"verify": plain(record)})
            self.record = record
        due, now = self._next(), self.parts.surroundings.ports.clock.wall()
        if self._order is not None or due is None or now < due:
            return
        ordered = self.record.at is not None
        try:
            self._check_ready(repair=ordered and self.record.repair)
        except InvalidStateError as error:
            if now < due + LATE_SECONDS:
                return
            order = _Order("administrator" if ordered else "schedule", repair=False)
            text = f"It was due and could not begin within {duration_text(LATE_SECONDS)}: {error.text}"
            await self._conclude(self._undecided(order, now, text), at=None, since=now)
            return
        self._order = _Order("administrator" if ordered else "schedule", ordered and self.record.repair)

    async def _carry_out(self, order: _Order) -> None:
        clock, name = self.parts.surroundings.ports.clock, self.parts.replication.vm.name
        started = clock.wall()
        text = f"The verify of {name} begins: both sides are compared at a cut, while replication goes on."
        fields: dict[str, Any] = {"running": started, "at": None, "repair": False, "since": started}
        await self._store(EventId.VERIFY_STARTED, text, cause=order.started_by, **fields)
        try:
            result = await together(self._work(order, started), self._until_cancelled())
        except StoreDamagedError:
            raise
        except ProtocolError as error:
            result = self._undecided(order, started, f"The replica broke the protocol: {error.text}")
        except VmreplicaError as error:
            result = self._undecided(order, started, error.text, error.remedy)
        except OSError as error:
            result = self._undecided(order, started, f"{error.filename or 'A file'}: {error.strerror or error}.")
        await self._conclude(result)

    async def _until_cancelled(self) -> None:
        while not self._cancelled:
            await self._news.wait()
        raise UndecidedError(self._cancelled)

    async def _work(self, order: _Order, started: float) -> VerifyResult:
        self._check_ready(repair=order.repair)
        verified = await self._verify(None)
        wrong = _union(verified.finding.different, verified.finding.unreadable_there)
        result = self._result(order, started, verified)
        if result.outcome != DIFFERENT or not order.repair:
            return result
        try:
            check_size(wrong)
            pacer = self.parts.surroundings.pacing.pacer(lambda: self.parts.replication.vm, initial=False)
            self._phase("repairing")
            repaired = await repair(self.parts, wrong, pacer)
            again = await self._verify(wrong)
        except UndecidedError as error:
            text = f"{result.text} They could not be repaired: {error.text}"
            return msgspec.structs.replace(result, text=text, remedy=error.remedy or RESYNC_REMEDY)
        left = self._result(order, started, again)
        if left.outcome == DIFFERENT:
            text = f"{result.text} After the repair {left.different_ranges} of these ranges still do."
            return msgspec.structs.replace(left, text=text, remedy=RESYNC_REMEDY)
        if left.outcome == UNDECIDED:
            return msgspec.structs.replace(result, text=f"{result.text} {left.text}", remedy=left.remedy)
        text = f"{result.text} They were sent again, and were equal at cut {again.cut.segment}."
        return msgspec.structs.replace(
            result, outcome=REPAIRED, text=text, remedy="", repaired_bytes=repaired, ended_time=left.ended_time
        )

    async def _verify(self, scope: Scope) -> Verified:
        self._running = RunProgress()
        return await VerifyRun(self.parts, self.folder, scope, self._running).run()

    def _phase(self, phase: str) -> None:
        if self._running is not None:
            self._running.phase = phase

    # --- results ---------------------------------------------------------------------------------------------------

    def _result(self, order: _Order, started: float, verified: Verified) -> VerifyResult:
        finding, cut = verified.finding, verified.cut
        wrong, here = _union(finding.different, finding.unreadable_there), finding.unreadable_here
        ranges, count, size = self._ranges(wrong)
        ranges_here, _, size_here = self._ranges(here)
        moment = moment_text(cut.time_ns / 1e9, self.parts.surroundings.ports.clock.zone())
        at = f"at cut {cut.segment} of {moment}"
        if size:
            _, _, lost = self._ranges(finding.unreadable_there)
            outcome = DIFFERENT
            unread = f", of which {size_text(lost)} can't be read there" if lost else ""
            text = f"{size_text(size)} of the replica differed {at}, in {count} ranges{unread}."
            remedy = f"Repair them: `vmreplica verify {self.parts.replication.vm.name} --repair`."
        elif size_here:
            outcome = UNDECIDED
            text = f"{size_text(size_here)} can't be read at the primary; all else was equal {at}."
            remedy = "Repair or replace the disk."
        else:
            outcome, remedy = EQUAL, ""
            text = f"The replica equalled the primary {at}: {size_text(finding.compared_bytes)} were compared."
        return VerifyResult(
            outcome=outcome,
            text=text,
            remedy=remedy,
            started_time=started,
            ended_time=self.parts.surroundings.ports.clock.wall(),
            started_by=order.started_by,
            epoch=cut.epoch,
            cut=_cut_status(cut),
            compared_bytes=finding.compared_bytes,
            different=ranges,
            different_ranges=count,
            different_bytes=size,
            unreadable_bytes=self._ranges(finding.unreadable_there)[2],
            unreadable_here=ranges_here,
            unreadable_here_bytes=size_here,
            images=_images(finding),
        )

    def _undecided(self, order: _Order, started: float, text: str, remedy: str = "") -> VerifyResult:
        return VerifyResult(
            outcome=UNDECIDED,
            text=f"Not decided: {text}",
            remedy=remedy,
            started_time=started,
            ended_time=self.parts.surroundings.ports.clock.wall(),
            started_by=order.started_by,
            epoch=self.parts.replication.record.epoch.hex(),
        )

    def _ranges(self, blocks: dict[int, BlockMap]) -> tuple[list[VerifyRange], int, int]:
        """The first of the ranges, how many there are, and their bytes."""
        sizes = {disk.index: disk.size for disk in self.parts.replication.vm.disks}
        told: list[VerifyRange] = []
        count = total = 0
        for disk in sorted(blocks):
            for first, end in blocks[disk].runs():
                length = min(end * BLOCK_SIZE, sizes[disk]) - first * BLOCK_SIZE
                count, total = count + 1, total + length
                if len(told) < RANGES_TOLD:
                    told.append(VerifyRange(disk=disk, offset=first * BLOCK_SIZE, length=length))
        return told, count, total

    async def _conclude(self, result: VerifyResult, **fields: Any) -> None:
        """Make a result durable, with its event."""
        number = EventId.VERIFY_DIFFERENT if result.outcome in (DIFFERENT, REPAIRED) else EventId.VERIFY_ENDED
        text = f"{self.parts.replication.vm.name}: {result.text}"
        if number is EventId.VERIFY_DIFFERENT:
            text += " Older recovery points may differ in the same places."
        data = msgspec.to_builtins(result)
        await self._store(number, text, cause=result.outcome, data=data, last=result, running=None, **fields)

    async def _store(
        self, number: EventId, text: str, *, cause: str, data: dict[str, Any] | None = None, **fields: Any
    ) -> None:
        """Change the record, in one transaction with the event that tells it (I16)."""
        replication = self.parts.replication
        record: VerifyRecord = msgspec.structs.replace(self.record, **fields)
        await replication.store.commit(
            {"verify": plain(record)}, [replication.event(number, text, cause=cause, data=data)]
        )
        self.record = record
        replication.changed.notify()
        self._news.notify()


def _union(*maps: dict[int, BlockMap]) -> dict[int, BlockMap]:
    result = {disk: BlockMap(blocks.blocks) for disk, blocks in maps[0].items()}
    for each in maps:
        for disk, blocks in each.items():
            result[disk].merge(blocks)
    return result


def _cut_status(cut: Sealed) -> CutStatus:
    return CutStatus(epoch=cut.epoch, segment=cut.segment, entry=cut.entry, time=cut.time_ns / 1e9)


def _images(finding: Finding) -> list[ImageStatus]:
    return [ImageStatus(disk=disk, sha256=digest.hex()) for disk, digest in sorted(finding.images.items())]
