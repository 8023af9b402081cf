"""The spool: what was received of one epoch's log and is not applied yet, one file a segment.

A frame is verified wholly (headers, order, chain, entry tables, disks) before a byte of it is written. A segment is
received when its seal is in the file and file and folder are synced; until then it is a partial that the next session
goes on with, or voids by starting the segment over. All methods that touch files block and belong into a worker; they
are never called at the same time, but for :meth:`recycle`, which only touches segments that were received.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from protocol.bulk import Bulk, LogRecord, decode_log
from protocol.chain import Cursor, body_of
from protocol.errors import LogError, ProtocolError
from protocol.hrl import (
    FILE_HEADER_BYTES,
    FileHeader,
    Geometry,
    RecordHeader,
    RecordKind,
    decode_record_header,
    decode_seal_body,
    decode_segment_body,
    encode_file_header,
)
from protocol.messages import MessageType
from protocol.position import Position
from replica_agent.changes import gather
from replica_agent.layout import Layout, read_segment
from replica_agent.pool import SpoolPool
from replica_agent.space import PLENTY, grow, space_error
from replica_agent.walk import find_valid
from shared.errors import StorageError
from shared.hrl_files import find_later
from shared.ports import Buffer, File, FileSystem


class SyncFailedError(StorageError):
    """Syncing failed: what was written since the last sync is void and must never be relied on (R17)."""

    code = "sync_failed"


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """One received segment. ``start`` is the cut before it, ``end`` the cut that it makes, ``length`` the bytes of its
    file up to and including the seal.
    """

    path: str
    start: Position
    end: Position
    length: int
    time_ns: int

    @property
    def number(self) -> int:
        return self.end.segment


@dataclass(slots=True)
class _Open:
    """The partial segment: its file, how far it is written, and how much space it has."""

    file: File
    start: Cursor
    offset: int
    space: int


class Spool:
    """The received log of ``epoch`` after the cut ``start``."""

    def __init__(
        self,
        files: FileSystem,
        layout: Layout,
        vm: bytes,
        geometry: tuple[Geometry, ...],
        start: Position,
        pool: SpoolPool,
        *,
        reserve: int = 0,
    ) -> None:
        self.epoch = start.epoch
        self.segments: list[SealedSegment] = []
        """Received and not yet recycled, in order."""
        self.damaged: list[str] = []
        """What :meth:`load` found that no crash leaves behind, for people."""
        self._files = files
        self._layout = layout
        self._vm = vm
        self._geometry = geometry
        self._sizes = {disk.index: disk.size for disk in geometry}
        self._cursor = Cursor.at(start, inside=False)
        self._received = start
        self._pool = pool
        self.reserve = reserve
        self._open: _Open | None = None

    @property
    def position(self) -> Position:
        """How far the log is here, also inside a segment: where a new session goes on."""
        return self._cursor.position

    @property
    def received(self) -> Position:
        """The newest cut that would survive power loss."""
        return self._received

    @property
    def used(self) -> int:
        """Bytes of the received and the partial segments."""
        partial = self._open
        return sum(segment.length for segment in self.segments) + (partial.offset if partial is not None else 0)

    # --- start -------------------------------------------------------------------------------------------------------

    def load(self, *, torn: bool = False) -> None:
        """Find what is there: the received segments after the start, in order, and the partial after them.

        A torn tail is cut. What can't be part of the log any more is removed. ``torn``: the host may have lost power,
        which leaves any pages of what was not synced; what is not whole was then never acknowledged, and is sent again.
        """
        names = self._files.list(self._layout.spool)
        numbers = sorted(place[1] for name in names if (place := read_segment(name)) and place[0] == self.epoch)
        for number in numbers:
            expected = self._received.segment + 1
            if number == expected and self._open is None and self._load_segment(number, torn and number == numbers[-1]):
                continue
            if number > expected or (number == expected and self._open is not None):
                self.damaged.append(f"segment {number} is here, but segment {expected} before it is not whole")
            self._pool.put(self._layout.segment(self.epoch, number))
        # What was never synced is only now found to be received, and must be durable before anybody is told.
        self._files.sync_folder(self._layout.spool)

    def _load_segment(self, number: int, torn: bool) -> bool:
        """Take over one file; False if nothing in it follows what came before."""
        path = self._layout.segment(self.epoch, number)
        file = self._files.open(path, write=True)
        try:
            found = find_valid(file, self._vm, self._cursor, self._sizes)
            if found is None:
                file.close()
                return False
            if found.sealed is None and find_later(file, found.cursor, found.offset + 8, file.size()) is not None:
                if torn:
                    # Or what lies behind would look like damage once more, to a start after a kill.
                    file.truncate(found.offset)
                else:
                    self.damaged.append(f"{path} is damaged at offset {found.offset}")
            start, self._cursor = self._cursor, found.cursor
            if found.sealed is None:
                self._open = _Open(file, start, found.offset, file.size())
                return True
            file.sync()
            file.close()
        except BaseException:
            file.close()
            raise
        self._received = found.cursor.position
        self.segments.append(SealedSegment(path, start.position, self._received, found.offset, found.sealed.time_ns))
        return True

    # --- receiving ---------------------------------------------------------------------------------------------------

    def take(self, bulk: Bulk) -> Position | None:
        """Verify and store one LOG or SEAL; the cut that is to be acknowledged now (again, for a stale seal), if any.

        Raises ProtocolError for what is not the next piece of this log, NoSpaceError, SyncFailedError and OSError.
        Nothing of a frame that fails is kept.
        """
        content = bulk.content()
        view = memoryview(content)
        first = _first(view)
        step, restarts = self._place(first)
        if step is None:
            return self._known_cut(first) if bulk.type is MessageType.SEAL else None
        records = decode_log(bulk.type, content, step)
        self._judge(records, view)
        opened = self._segment_file(step, records[0], restarts=restarts)
        self._write(opened, content)
        self._cursor = step
        if records[-1].header.kind is not RecordKind.SEAL:
            return None
        self._seal(opened, records[-1])
        return self._received

    def _place(self, header: RecordHeader) -> tuple[Cursor | None, bool]:
        """Where a frame beginning with ``header`` must follow: None if it is stale, and whether it starts the partial
        segment over.
        """
        if header.epoch != self.epoch:
            raise ProtocolError(
                f"the log of epoch {header.epoch.hex()} was sent where {self.epoch.hex()} goes on", code="chain"
            )
        last_sealed = self._received.segment
        if header.segment <= last_sealed:
            return None, False
        opened = self._open
        if opened is not None and header.kind is RecordKind.SEGMENT and header.segment == last_sealed + 1:
            return opened.start.copy(), True
        return self._cursor.copy(), False

    def _known_cut(self, seal: RecordHeader) -> Position:
        """The cut that a stale seal makes, as it was received. Raises ProtocolError where the seal is another one."""
        for segment in self.segments:
            if segment.number == seal.segment:
                if segment.end != Position(seal.epoch, seal.segment, seal.entry, seal.chain):
                    raise ProtocolError(f"segment {seal.segment} was received with another content", code="chain")
                return segment.end
        return self._received

    def _judge(self, records: list[LogRecord], view: memoryview) -> None:
        """Everything about a frame's records that the chain does not say."""
        batches, offset = [], 0
        try:
            for record in records:
                header = record.header
                match header.kind:
                    case RecordKind.BATCH:
                        batches.append((offset, header))
                    case RecordKind.SEGMENT:
                        self._judge_geometry(decode_segment_body(header, body_of(record.record), at=offset))
                    case RecordKind.SEAL:
                        self._judge_seal(record, offset)
                offset += header.length
            gather(batches, view, self._sizes)
        except LogError as error:
            raise ProtocolError(f"the log that was sent is not valid: {error}") from None

    def _judge_geometry(self, disks: tuple[Geometry, ...]) -> None:
        if sorted(disks, key=_index) != sorted(self._geometry, key=_index):
            raise ProtocolError("a segment of the log names other disks than the replica has", code="geometry")

    def _judge_seal(self, record: LogRecord, offset: int) -> None:
        seal = decode_seal_body(body_of(record.record), at=offset)
        opened = self._open
        entries = record.header.entry - opened.start.entry if opened is not None else 0
        if seal.entries != entries:
            raise ProtocolError(f"a seal for {seal.entries} entries closes a segment of {entries}", code="gap")

    # --- files -------------------------------------------------------------------------------------------------------

    def _segment_file(self, step: Cursor, first: LogRecord, *, restarts: bool) -> _Open:
        """The file that the frame goes to; a new segment gets one, from the pool where there is one."""
        opened = self._open
        if opened is not None and not restarts:
            return opened
        if opened is not None:
            opened.offset = FILE_HEADER_BYTES
            return opened
        path = self._layout.segment(self.epoch, first.header.segment)
        try:
            if not self._pool.take(path):
                self._files.remove(path)
            file = self._files.open(path, write=True, create=True)
        except OSError as error:
            raise space_error(error, path, FILE_HEADER_BYTES) from error
        start = self._cursor.copy()
        opened = _Open(file, start, FILE_HEADER_BYTES, file.size())
        header = FileHeader(self._vm, first.header.segment, 0, start.epoch, start.segment, start.entry, start.chain)
        try:
            self._take_space(opened, FILE_HEADER_BYTES)
            file.write(0, encode_file_header(header))
        except BaseException:
            file.close()
            raise
        self._open = opened
        return opened

    def _write(self, opened: _Open, content: Buffer) -> None:
        end = opened.offset + len(content)
        self._take_space(opened, end)
        try:
            opened.file.write(opened.offset, content)
        except OSError as error:
            raise space_error(error, self._layout.folder, len(content)) from error
        opened.offset = end

    def _take_space(self, opened: _Open, end: int) -> None:
        """Make sure that the file has space up to ``end``. Raises NoSpaceError."""
        if end <= opened.space:
            return
        folder = self._layout.folder
        if self._files.free_space(folder) - self.reserve < PLENTY * (end - opened.space):
            self._pool.empty()
        opened.space = grow(self._files, folder, opened.file, opened.space, end, self.reserve)

    def _seal(self, opened: _Open, record: LogRecord) -> None:
        path = opened.file.path
        try:
            opened.file.sync()
            self._files.sync_folder(self._layout.spool)
        except OSError as error:
            self._void(opened)
            raise SyncFailedError(
                f"Syncing {path} failed: {error.strerror}. Segment {record.header.segment} is void here.",
                "Check the volume; then start a resynchronization at the primary.",
            ) from error
        opened.file.close()
        self._open = None
        end = self._cursor.position
        self.segments.append(SealedSegment(path, opened.start.position, end, opened.offset, record.header.time_ns))
        self._received = end

    def _void(self, opened: _Open) -> None:
        """Forget the partial segment: its file is never used again."""
        self._cursor = opened.start.copy()
        self._open = None
        opened.file.close()
        with contextlib.suppress(OSError):
            self._files.remove(opened.file.path)

    # --- end ---------------------------------------------------------------------------------------------------------

    def recycle(self, segment: SealedSegment) -> None:
        """The segment is applied, or dropped with its epoch: its file goes to the pool."""
        self._pool.put(segment.path)

    def drop(self) -> None:
        """Forget everything: all files of this epoch go."""
        self.close()
        self.segments.clear()
        for name in self._files.list(self._layout.spool):
            place = read_segment(name)
            if place is not None and place[0] == self.epoch:
                self._pool.put(f"{self._layout.spool}/{name}")

    def close(self) -> None:
        if self._open is not None:
            self._open.file.close()
            self._open = None


def _first(view: memoryview) -> RecordHeader:
    try:
        return decode_record_header(view)
    except LogError as error:
        raise ProtocolError(f"no valid record: {error}") from None


def _index(disk: Geometry) -> int:
    return disk.index
