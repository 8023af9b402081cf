"""Appends to the HRL: batches, seals and segments go to the end of the log, from file to file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from primary_agent.tap.log_files import LogFile, LogFiles
from protocol.chain import Cursor
from protocol.hrl import (
    MAX_ENTRIES,
    MAX_PAYLOAD,
    RECORD_HEADER_BYTES,
    FileHeader,
    Geometry,
    RecordKind,
    Seal,
    SealReason,
    chain_seed,
    encode_file_header,
    encode_record,
    encode_seal_body,
    encode_segment_body,
)
from protocol.position import Position
from shared.ports import Buffer, Clock, File

BLOCK = 4096
_ZEROES = bytes(2 * BLOCK)


class LogFullError(OSError):
    """The log has reached its limit."""


class Cut(NamedTuple):
    """A sealed segment: the position after its seal, where in the log that is, and when it was sealed."""

    position: Position
    file: int
    offset: int
    time_ns: int


class LogWriter:
    """The end of one epoch's log.

    Every append is complete when the call returns (in the page cache), or raises OSError; then this writer is not to be
    used again. Each write ends in zeroes up to a block's end, at least a record header's worth: the next reader finds
    the end of the log clean, and no block has to be read from the disk to be written.

    The records of one call of ``append`` share one time, which is later than any before: they are one group, which a
    crash leaves in doubt as a whole.
    """

    def __init__(self, files: LogFiles, clock: Clock, vm: bytes, disks: Sequence[Geometry], cursor: Cursor) -> None:
        self.files = files
        self.epoch = cursor.epoch
        self.segment = cursor.segment
        self.entry = cursor.entry
        self.chain = cursor.chain
        self.time_ns = 0
        """Time of the last group."""
        self.unsynced: list[File] = []
        """Open files that were written to since they were last synced; the last one is the current one."""
        self.folder_unsynced = True
        self.is_synced = False
        """Whether a sync has begun since the last append."""
        self._clock = clock
        self._vm = vm
        self._geometry = encode_segment_body(disks)
        self._disk_count = len(disks)
        self._file: File | None = None
        self._log_file: LogFile | None = None
        """Which of ``files.used`` is being written; None before ``begin`` or ``resume``."""
        self._capacity = 0
        self._written = 0
        self._pieces: list[Buffer] = []
        self._first_entry = cursor.entry
        self._segment_bytes = 0

    # --- start ------------------------------------------------------------------------------------------------------

    @classmethod
    def begin(cls, files: LogFiles, clock: Clock, vm: bytes, disks: Sequence[Geometry], epoch: bytes) -> LogWriter:
        """Start the log of a new epoch in the next file, with segment 1 open. Raises OSError."""
        log = cls(files, clock, vm, disks, Cursor(epoch, 0, 0, chain_seed(vm, epoch)))
        try:
            log._open_next_file()
            log.open_segment()
        except OSError:
            log.close()
            raise
        return log

    def resume(self, file: File, time_ns: int, *, ended: bool, first_entry: int = 0, segment_bytes: int = 0) -> None:
        """Go on where the last of ``files.used`` ends, which ``file`` has open.

        ``time_ns`` is the newest time in the log; ``first_entry`` and ``segment_bytes`` are those of the segment that
        is open. Where the file has ``ended`` with its mark, the log goes on in the next one. Raises OSError,
        LogFullError at the limit.
        """
        self._first_entry = first_entry
        self._segment_bytes = segment_bytes
        self._file = file
        self._log_file = self.files.used[-1]
        self._capacity = self._log_file.header.capacity
        self._written = self._log_file.end
        self.time_ns = time_ns
        self.unsynced.append(file)
        if ended:
            self._open_next_file(self.entry)

    @property
    def _current(self) -> LogFile:
        assert self._log_file is not None
        return self._log_file

    # --- where it stands --------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.segment, self.entry, self.chain)

    @property
    def place(self) -> tuple[int, int]:
        """Number of the last log file and the offset of its end."""
        return self._current.sequence, self._current.end

    @property
    def segment_is_empty(self) -> bool:
        return self.entry == self._first_entry

    def stamp(self) -> int:
        """A time for the next group: now, but later than the last one, in nanoseconds since the Unix epoch."""
        self.time_ns = max(int(self._clock.wall() * 1e9), self.time_ns + 1)
        return self.time_ns

    # --- appending --------------------------------------------------------------------------------------------------

    def append(self, entries: list[bytes], payloads: list[Buffer], sizes: list[int], time_ns: int) -> None:
        """Log entries as one group. ``sizes`` are the entries' payload bytes (0 without), none above MAX_PAYLOAD.

        The group is never parted by a cut, though it may need several records. Raises OSError, LogFullError at the
        limit.
        """
        total = sum(sizes)
        if total <= MAX_PAYLOAD and len(entries) <= MAX_ENTRIES:
            self._put_batch(entries, payloads, total, time_ns)
        else:
            self._put_batches(entries, payloads, sizes, time_ns)
        self._flush()

    def _put_batches(self, entries: list[bytes], payloads: list[Buffer], sizes: list[int], time_ns: int) -> None:
        """Part a group into records that are no larger than a record may be."""
        start = total = payload_start = payload_end = 0
        for index, size in enumerate(sizes):
            if total + size > MAX_PAYLOAD or index - start == MAX_ENTRIES:
                self._put_batch(entries[start:index], payloads[payload_start:payload_end], total, time_ns)
                start, payload_start, total = index, payload_end, 0
            total += size
            payload_end += size > 0
        self._put_batch(entries[start:], payloads[payload_start:], total, time_ns)

    def _put_batch(self, entries: list[bytes], payloads: list[Buffer], total: int, time_ns: int) -> None:
        table = b"".join(entries)
        first = self.entry
        self.entry += len(entries)
        body_length = len(table) + total
        self._put(RecordKind.BATCH, self.segment, first, [table, *payloads], body_length, time_ns, len(entries))

    def cut(self, reason: SealReason, *, go_on: bool = True) -> Cut:
        """Seal the segment and, unless this is the end, open the next one in the same write. Raises OSError."""
        time_ns = self.stamp()
        seal = Seal(reason, self.entry - self._first_entry, self._segment_bytes)
        body = encode_seal_body(seal)
        self._put(RecordKind.SEAL, self.segment, self.entry, [body], len(body), time_ns)
        position = self.position
        file, offset = self.place
        if go_on:
            self._open_segment(time_ns)
        self._flush()
        return Cut(position, file, offset, time_ns)

    def open_segment(self) -> None:
        """Begin the next segment after a seal: each start of the tap begins a new one (R34). Raises OSError."""
        self._open_segment(self.stamp())
        self._flush()

    def _open_segment(self, time_ns: int) -> None:
        self._first_entry = self.entry
        self._segment_bytes = 0
        body, number = self._geometry, self.segment + 1
        self._put(RecordKind.SEGMENT, number, self.entry, [body], len(body), time_ns, self._disk_count)
        self.segment = number

    # --- records to files -------------------------------------------------------------------------------------------

    def _put(
        self,
        kind: RecordKind,
        segment: int,
        entry: int,
        body: list[Buffer],
        body_length: int,
        time_ns: int,
        count: int = 0,
    ) -> None:
        """Append one record to what ``_flush`` writes, in the next file if this one is full."""
        length = RECORD_HEADER_BYTES + body_length
        # The mark of the file's end must always fit behind the record.
        if self._current.end + length + RECORD_HEADER_BYTES > self._capacity:
            self._end_file(entry, time_ns)
        header, self.chain = encode_record(kind, self.epoch, segment, entry, time_ns, self.chain, body, count)
        self._pieces.append(header)
        self._pieces += body
        self._current.end += length
        self._segment_bytes += length

    def _end_file(self, entry: int, time_ns: int) -> None:
        """Mark the end of the file and go on in the next one."""
        header, _ = encode_record(RecordKind.END_OF_FILE, self.epoch, self.segment, entry, time_ns, self.chain, ())
        self._pieces.append(header)
        self._current.end += RECORD_HEADER_BYTES
        self._flush()
        self._open_next_file(entry)

    def _open_next_file(self, entry: int = 0) -> None:
        file = self.files.next_file()
        if file is None:
            raise LogFullError(f"the log has reached its limit of {self.files.limit} bytes")
        self.folder_unsynced = True
        self.unsynced.append(file)
        header = FileHeader(
            self._vm,
            self.files.next_sequence,
            self.files.file_bytes,
            self.epoch,
            self.segment,
            entry,
            self.chain,
        )
        self._log_file = self.files.begin_file(header, file.path)
        self._file = file
        self._capacity = header.capacity
        self._written = 0
        self._pieces.append(encode_file_header(header))

    def _flush(self) -> None:
        """Write the pieces that were put, and zeroes up to a block's end behind a whole record header."""
        end = self._current.end
        fill = BLOCK - end % BLOCK
        if fill < RECORD_HEADER_BYTES:
            fill += BLOCK
        self._pieces.append(_ZEROES[: min(fill, self._capacity - end)])
        assert self._file is not None
        self._file.write_many(self._written, self._pieces)
        self._written = end
        self.is_synced = False
        self._pieces.clear()

    # --- durability -------------------------------------------------------------------------------------------------

    def begin_sync(self) -> list[File]:
        """The files that a worker has to sync so that everything appended until now is durable.

        The folder is to be synced as well where ``folder_unsynced`` is set, which this clears.
        """
        self.folder_unsynced = False
        self.is_synced = True
        return list(self.unsynced)

    def end_sync(self, synced: list[File]) -> None:
        """A worker has synced these; all but the current one are done with."""
        for file in synced:
            if file is not self._file:
                self.unsynced.remove(file)
                file.close()

    def close(self) -> None:
        """Close the files. No sync may be under way."""
        for file in self.unsynced:
            file.close()
        self.unsynced.clear()
