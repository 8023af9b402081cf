"""The older recovery points of one VM: their undo logs, who reads them, and which are kept.

The state's record ``points`` names the undo logs, each only after it is durable; a log that no record names is deleted
at the next start. Readers are handed each new log before the disks change.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from protocol.position import Position
from replica_agent.disks import BaseDisks
from replica_agent.finishing import finish
from replica_agent.layers import PointReader
from replica_agent.layout import Layout, read_undo
from replica_agent.ledger import Draft, Ledger
from replica_agent.marks import forget_marks
from replica_agent.overwritten import Overwritten
from replica_agent.pump import STEP_BYTES, write_log
from replica_agent.record import PointsRecord, UndoRecord
from replica_agent.replay import Replay, Source
from replica_agent.retention import LostPoints, Retention, cut_short, exported, pinned_of, thinned, without_oldest
from replica_agent.saving import save
from replica_agent.undo_records import open_log, record_of
from replica_agent.undo_writer import UndoWriter
from shared.errors import NoSpaceError, NotFoundError
from shared.events import EventId
from shared.ports import Ports
from shared.rates import size_text
from shared.undo_log import Link, Sealed, UndoDamagedError, UndoLog

if TYPE_CHECKING:
    from numpy.typing import NDArray

TABLE_ENTRIES = 1 << 16
"""So many entries are looked at together."""


@dataclass(eq=False, slots=True)
class Reading:
    """Somebody reads the point that begins at log ``first`` (that of an apply to come, for the newest)."""

    first: int
    position: Position
    reader: PointReader


@dataclass(slots=True)
class History:
    """Keeps a VM's older points. ``reserve`` is the room on the volume that undo logs leave alone, in bytes.

    ``unguarded`` is set while the disks change without an undo log: then no point can be read.
    """

    ports: Ports
    ledger: Ledger
    layout: Layout
    disks: BaseDisks
    rules: Retention
    reserve: int
    unguarded: bool = False
    readings: list[Reading] = field(default_factory=list)
    changed: Callable[[], None] = lambda: None
    spare: Callable[[str], Awaitable[bool]] | None = None
    """Frees room that is not needed, told the reason, before a point goes for it; False where there is none."""
    chain: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while readers are given other logs than they have."""
    lost: LostPoints | None = None
    pinning: int = 0
    """So many orders are pinning a point: the next apply has to save what it overwrites."""
    _last: int = 0
    """The number of the newest apply with an undo log."""
    _unnamed: set[tuple[int, int]] = field(default_factory=set)
    """The numbers of logs that are being written, or are durable and not yet on record."""
    _files: set[tuple[int, int]] = field(default_factory=set)
    """The numbers of the logs that may have a file and were on record."""
    _open: weakref.WeakValueDictionary[tuple[int, int], UndoLog] = field(default_factory=weakref.WeakValueDictionary)
    _saved: Overwritten | None = None
    _told_unkept: bool = False

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def retention(self) -> Retention:
        """The VM's own rules, or the agent's; by default all undo logs together take as much as the disks have."""
        return self._rules(self.ledger.points)

    def _rules(self, own: PointsRecord) -> Retention:
        return self.rules.with_own(own, sum(self.ledger.vm.all_sizes.values()))  # Points have removed disks as well.

    @property
    def logs(self) -> list[UndoRecord]:
        """The undo logs that lead away from the disks, the oldest first, with that of the apply under way."""
        pending = self.ledger.replication.undo
        return [*self.ledger.points.logs, *([pending] if pending is not None else [])]

    def positions(self) -> list[Position]:
        """The older points, the oldest first."""
        points = self.ledger.replication
        logs = [log for log in self.ledger.points.logs if log.point]
        here = [points.applied.position] if points.undo is not None and points.applied is not None else []
        return [*(log.older.position for log in logs), *here]

    @property
    def wanted(self) -> bool:
        """Whether an apply has to save what it overwrites."""
        read = any(not reading.reader.failed for reading in self.readings) or bool(self.ledger.exports.kept)
        kept = self.retention.keeps_older or self.pinning > 0 or any(mark.pinned for mark in self.ledger.points.marks)
        return read or (kept and (self.ledger.promotion is None or self.ledger.frozen))

    @property
    def bytes(self) -> int:
        return sum(log.length for log in self.logs)

    def is_readable(self) -> bool:
        """Whether the newest point can be read although an apply is under way."""
        return self.ledger.replication.undo is not None and not self.unguarded

    # --- saving ----------------------------------------------------------------------------------------------------

    async def save(self, sources: Sequence[Source], link: Link) -> UndoRecord | None:
        """Write, durably, what applying ``sources`` overwrites. None where no history is kept, or no room is left.

        Raises StorageError where a source can't be read.
        """
        if not self.wanted:
            return None
        number = self._last + 1
        self._saved = None
        while True:
            try:
                sealed = await self.write(number, number, link, lambda writer: self._saving(sources, writer))
            except NoSpaceError as error:
                if await self.give_way(error.text):
                    continue
                await self._tell_unkept(error.text)
                return None
            except OSError as error:
                # A disk that can't be read, or an undo log that can't be written, costs history and nothing else.
                await self._tell_unkept(str(error))
                return None
            self._told_unkept = False
            return record_of(number, number, link, sealed)

    def _saving(self, sources: Sequence[Source], writer: UndoWriter) -> Generator[int]:
        """Blocks."""
        replay = Replay(self.ports.files, self.ledger.vm.vm, self.disks)
        overwritten = Overwritten(self.disks.sizes)
        for source in sources:
            tables: list[NDArray[Any]] = []
            count = 0
            for table, _ in replay.tables(source):
                tables.append(table)
                count += len(table)
                if count >= TABLE_ENTRIES:
                    overwritten.add(np.concatenate(tables))
                    tables, count = [], 0
                    yield STEP_BYTES
            if tables:
                overwritten.add(np.concatenate(tables))
        self._saved = overwritten
        yield from save(self.disks, overwritten.ranges(), writer)

    async def saved(self) -> Overwritten | None:
        """What the undo log of the apply under way has: nothing else may be overwritten. None without one.

        Raises UndoDamagedError.
        """
        record = self.ledger.replication.undo
        if record is None:
            return None
        if self._saved is None:
            try:
                self._saved = await finish(self.ports.workers.run(self._saved_by, record))
            except OSError as error:
                raise UndoDamagedError(
                    f"The undo log of this apply can't be read: {error}", "Check the volume."
                ) from error
        return self._saved

    def _saved_by(self, record: UndoRecord) -> Overwritten:
        """Blocks."""
        overwritten, log = Overwritten(self.disks.sizes), self.log(record)
        for table in log.tables():
            overwritten.add(table)
        return overwritten

    async def write(self, first: int, last: int, link: Link, fill: Callable[[UndoWriter], Generator[int]]) -> Sealed:
        """Write an undo log and seal it; nothing is left of it where that fails."""
        path = self.layout.undo(first, last)
        self._unnamed.add((first, last))
        try:
            return await write_log(self.ports, self.layout, path, self.ledger.vm.vm, link, self.reserve, fill)
        except BaseException:
            self._unnamed.discard((first, last))
            raise

    async def _tell_unkept(self, reason: str) -> None:
        self.lost = LostPoints(self.ports.clock.wall(), reason)
        if not self._told_unkept:
            self._told_unkept = True
            await self.ledger.note(EventId.POINTS, f"Only the newest recovery point is kept. {reason}", cause="unkept")

    async def publish(self, record: UndoRecord) -> None:
        """Hand the log of the apply that is going to begin to all readers."""
        self._last = max(self._last, record.last)
        self.named(record)
        async with self.chain:
            wanting = [reading for reading in self.readings if not reading.reader.failed]
            if wanting:
                try:
                    log = await finish(self.ports.workers.run(self.log, record))
                except (UndoDamagedError, OSError) as error:
                    for reading in wanting:
                        reading.reader.lose(f"The recovery point is lost: {error}")
                    return
                for reading in wanting:
                    if not reading.reader.failed and all(known.order < log.order for known in reading.reader.layers):
                        reading.reader.layers = (*reading.reader.layers, log)

    def abandon(self) -> None:
        """The disks are going to change without an undo log: what is read of them now can't be read any more."""
        self.unguarded = True
        for reading in self.readings:
            reading.reader.lose("The recovery point was lost: what it rests on was overwritten.")

    def withdraw(self, draft: Draft) -> None:
        """Part of a transaction: the apply that was going to begin changed nothing, and its undo log is not needed."""
        undo, draft.replication.undo = draft.replication.undo, None
        for reading in self.readings:
            if undo is not None and reading.first == undo.first:
                # The point is still the disks themselves.
                reading.first = self._last + 1

    def unguard(self, draft: Draft) -> None:
        """Part of a transaction: from it on the disks change without an undo log."""
        if draft.points.logs:
            count = sum(log.point for log in draft.points.logs)
            text = f"{count} older recovery points were deleted: what they rest on is overwritten."
            draft.event(EventId.POINTS, text, cause="overwritten")
        draft.points = msgspec.structs.replace(draft.points, logs=[])
        draft.replication.undo = None
        forget_marks(draft, "What it rests on is overwritten.")

    # --- keeping ---------------------------------------------------------------------------------------------------

    def advance(self, draft: Draft) -> None:
        """Part of the transaction that ends an apply: its undo log joins the others."""
        undo, draft.replication.undo = draft.replication.undo, None
        self._saved = None
        if undo is not None:
            draft.points = msgspec.structs.replace(draft.points, logs=[*draft.points.logs, undo])
        self.prune(draft)

    def prune(self, draft: Draft) -> None:
        """Part of a transaction: what is not kept any more loses its mark, and what leads nowhere is forgotten."""
        logs, rules, sealed = draft.points.logs, self._rules(draft.points), draft.replication.applied_time or 0.0
        held = {reading.first for reading in self.readings if not reading.reader.failed}
        held |= exported(logs, draft.exports)
        pinned = pinned_of(logs, draft.points)
        frozen = self.ledger.frozen
        kept = logs if frozen else thinned(logs, sealed, rules, held, pinned, now=draft.now)
        limit = f"undo logs have at most {size_text(rules.limit)}."
        if not frozen and cut_short(logs, sealed, rules, held, pinned, now=draft.now):
            self.lost = LostPoints(draft.now, f"The {limit}")
        draft.points = msgspec.structs.replace(draft.points, logs=kept)
        gone = {log.first for log in logs} - {log.first for log in kept}
        if held & gone:
            text = f"{len(held & gone)} exported recovery points were deleted: {limit}"
            draft.event(EventId.POINTS, text, cause="limit")
        forget_marks(draft, limit)

    async def give_way(self, reason: str) -> bool:
        """Delete the oldest point (never the newest), if there is nothing to spare. False where there is none."""
        if self.spare is not None and await self.spare(reason):
            return True
        async with self.ledger.transaction() as draft:
            logs = draft.points.logs
            if not logs or self.ledger.frozen:
                return False
            oldest = logs[0]
            self.lost = LostPoints(draft.now, reason)
            draft.points = msgspec.structs.replace(draft.points, logs=without_oldest(logs))
            text = f"The oldest recovery point, cut {oldest.older.position}, was deleted to make room. {reason}"
            draft.event(EventId.POINTS, text, cause="no_space")
            forget_marks(draft, reason)
        await self.tidy()
        return True

    async def tidy(self) -> None:
        """Delete the files that no record names any more, and end the readings that depended on them."""
        named = {(log.first, log.last) for log in self.logs}
        doomed = self._files - named - self._unnamed
        self._files -= doomed
        begins = {log.first for log in self.logs}
        for reading in self.readings:
            if reading.first <= self._last and reading.first not in begins:
                reading.reader.lose("The recovery point was deleted.")
        if doomed:
            self._files |= await finish(self.ports.workers.run(self._remove, doomed))
        self.changed()

    def named(self, record: UndoRecord) -> None:
        """A log that was written is on record, or is not going to be."""
        self._files.add((record.first, record.last))
        self._unnamed.discard((record.first, record.last))

    def _remove(self, doomed: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those that can't be removed now, which is tried again with the next ones. Blocks."""
        left = set()
        for first, last in sorted(doomed):
            try:
                self.ports.files.remove(self.layout.undo(first, last))
            except OSError:
                left.add((first, last))
        return left

    # --- reading ---------------------------------------------------------------------------------------------------

    async def read(self, position: Position | None) -> Reading | None:
        """Begin to read a point, by default the newest; None while the disks change unguarded.

        Raises NotFoundError for a position that is no point, UndoDamagedError, OSError.
        """
        async with self.chain:
            applied = self.ledger.replication.applied
            if self.unguarded or applied is None:
                return None
            if position is None:
                position = applied.position
            logs = self.logs
            at = next((i for i, log in enumerate(logs) if log.point and log.older.position == position), len(logs))
            if at == len(logs) and position != applied.position:
                raise NotFoundError(
                    f"{self.ledger.vm.name} has no recovery point {position} any more.",
                    f"See `vmreplica points {self.ledger.vm.name}`.",
                )
            first = logs[at].first if at < len(logs) else self._last + 1
            # Registered before anything is awaited: from here on applies save what they overwrite.
            reading = Reading(first, position, PointReader(self.ports.files, {}, ()))
            self.readings.append(reading)
            paths = {index: self.disks.path(index) for index in self.ledger.disks_at(position)}
            try:
                reader = await finish(self.ports.workers.run(self._reader, paths, logs[at:]))
            except BaseException:
                self.readings.remove(reading)
                raise
            if reading.reader.failed:
                reader.lose(reading.reader.failed)
            reading.reader = reader
            return reading

    def _reader(self, paths: dict[int, str], records: list[UndoRecord]) -> PointReader:
        """Blocks."""
        return PointReader(self.ports.files, paths, tuple(self.log(record) for record in records))

    def log(self, record: UndoRecord) -> UndoLog:
        """The open undo log of a record. Blocks. Raises UndoDamagedError."""
        key = (record.first, record.last)
        log = self._open.get(key)
        if log is None:
            log = open_log(self.ports, self.layout, self.ledger, record)
            self._open[key] = log
        return log

    async def end(self, reading: Reading) -> None:
        """Nobody reads it any more."""
        if reading in self.readings:
            self.readings.remove(reading)
        await finish(self.ports.workers.run(reading.reader.close))

    # --- start -----------------------------------------------------------------------------------------------------

    def found(self) -> tuple[list[UndoRecord], list[str]]:
        """Check the files at a start, and delete those that no record names: the logs that can't be used, and why.

        Blocks.
        """
        self._last = max((log.last for log in self.logs), default=0)
        named = self._files = {(log.first, log.last) for log in self.logs}
        for name in self.ports.files.list(self.layout.undo_logs):
            numbers = read_undo(name)
            if numbers is not None and numbers not in named and not self.ledger.frozen:
                self.ports.files.remove(f"{self.layout.undo_logs}/{name}")
        bad: list[UndoRecord] = []
        reasons = []
        for record in self.logs:
            try:
                open_log(self.ports, self.layout, self.ledger, record).close()
            except UndoDamagedError as error:
                bad.append(record)
                reasons.append(error.text)
        return bad, reasons
