"""Writes undo logs: ranges in order, batch by batch, then the index and the end, durably.

The format is that of :mod:`protocol.undo`. Everything here blocks and belongs into a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocol.entries import ENTRY_DTYPE, MAX_ENTRIES, EntryKind
from protocol.hrl import FileHeader, RecordKind, encode_file_header, encode_record
from protocol.undo import MAX_INDEX_ENTRIES, UndoEnd, encode_end_body, encode_index_entry, undo_seed
from replica_agent.space import require_room, space_error
from shared.ports import Buffer, File, FileSystem
from shared.undo_log import BATCH_BYTES, Link, Sealed

ROOM_STEP = 1 << 20
"""The room on the volume is looked at again after so many bytes."""


@dataclass(frozen=True, slots=True)
class Full:
    """A batch that waits to be written: where it begins and ends on its disk, its table, and its payload's bytes."""

    disk: int
    first: int
    end: int
    count: int
    table: bytes
    buffer: memoryview
    payload: int


class UndoWriter:
    """Writes one undo log to ``path``. Ranges are added in ascending order of disk and offset and do not overlap.

    Batches are gathered (:meth:`hole`, :meth:`room`, :meth:`save`) and written (:meth:`write`) in turn, or each in a
    worker of its own; whoever gathers writes what :meth:`take` gives before much is gathered, since it stays in memory.
    """

    def __init__(self, files: FileSystem, path: str, vm: bytes, link: Link, *, reserve: int) -> None:
        """Make the file. Raises OSError or NoSpaceError."""
        self.path = path
        self._files = files
        self._link = link
        self._reserve = reserve
        self._space = 0
        self._offset = 0
        self._chain = undo_seed(vm, link.older, link.newer)
        self._entries = 0
        self._payload_bytes = 0
        self._index: list[bytes] = []
        self._disk = -1
        self._offsets: list[int] = []
        self._lengths: list[int] = []
        self._holes: list[int] = []
        """Which entries of the batch are holes."""
        self._buffer = memoryview(bytearray(BATCH_BYTES))
        self._pending = 0
        self._full: list[Full] = []
        self._free: list[memoryview] = []
        files.remove(path)
        self._file: File | None = files.open(path, write=True, create=True, exclusive=True)
        older = link.older
        header = FileHeader(vm, 0, 0, older.epoch, older.segment, older.entry, older.chain)
        try:
            self._append([encode_file_header(header)])
        except BaseException:
            self.discard()
            raise

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    def hole(self, disk: int, offset: int, length: int) -> None:
        """The range was a hole. Raises OSError or NoSpaceError."""
        self._enter(disk, 1, 0)
        self._ranges([offset], [length], EntryKind.ZERO)

    def room(self, disk: int, offset: int, length: int) -> memoryview:
        """Where to put what the range held, at once; at most BATCH_BYTES. Raises OSError or NoSpaceError."""
        self._enter(disk, 1, length)
        self._ranges([offset], [length], EntryKind.DATA)
        return self._buffer[self._pending - length : self._pending]

    def save(self, file: File, disk: int, offsets: list[int], lengths: list[int]) -> None:
        """Take what ``file`` holds in these ranges, which together fit a batch. Raises OSError or NoSpaceError."""
        total = sum(lengths)
        self._enter(disk, len(offsets), total)
        file.read_ranges(offsets, lengths, self._buffer[self._pending - total : self._pending])
        self._ranges(offsets, lengths, EntryKind.DATA)

    def _enter(self, disk: int, count: int, payload: int) -> None:
        """Make place in the batch for so many entries and bytes."""
        if disk != self._disk or len(self._offsets) + count > MAX_ENTRIES or self._pending + payload > BATCH_BYTES:
            self._flush()
            self._disk = disk
        self._pending += payload

    def _ranges(self, offsets: list[int], lengths: list[int], kind: EntryKind) -> None:
        if kind is EntryKind.ZERO:
            self._holes.append(len(self._offsets))
        self._offsets += offsets
        self._lengths += lengths

    def _flush(self) -> None:
        """Put what was added aside as a batch to be written."""
        count = len(self._offsets)
        if not count:
            return
        table = np.zeros(count, ENTRY_DTYPE)
        table["disk"], table["kind"] = self._disk, EntryKind.DATA
        table["offset"], table["length"] = self._offsets, self._lengths
        table["payload"] = self._lengths if not self._holes else np.minimum(self._lengths, BATCH_BYTES)
        table["kind"][self._holes], table["payload"][self._holes] = EntryKind.ZERO, 0
        end = self._offsets[-1] + self._lengths[-1]
        self._full.append(Full(self._disk, self._offsets[0], end, count, table.tobytes(), self._buffer, self._pending))
        self._buffer = self._free.pop() if self._free else memoryview(bytearray(BATCH_BYTES))
        self._offsets, self._lengths, self._holes = [], [], []
        self._pending = 0

    def take(self) -> list[Full]:
        """The batches that were put aside since; they are to be written in this order."""
        full, self._full = self._full, []
        return full

    def write(self, batches: Sequence[Full]) -> None:
        """Write batches; more may be gathered meanwhile, in another worker. Raises OSError or NoSpaceError."""
        epoch, now = self._link.older.epoch, int(self._link.newer_time * 1e9)
        for batch in batches:
            body: list[Buffer] = [batch.table, batch.buffer[: batch.payload]]
            header, chain = encode_record(
                RecordKind.BATCH, epoch, 0, self._entries, now, self._chain, body, batch.count
            )
            self._index.append(encode_index_entry(batch.disk, batch.first, batch.end, self._offset, self._chain))
            self._append([header, *body])
            self._chain = chain
            self._entries += batch.count
            self._payload_bytes += batch.payload
            self._free.append(batch.buffer)

    def finish(self) -> Sealed:
        """Write index and end, and make the log durable. Raises OSError or NoSpaceError: then it is void."""
        self._flush()
        self.write(self.take())
        index_at = self._offset
        for start in range(0, len(self._index), MAX_INDEX_ENTRIES):
            part = self._index[start : start + MAX_INDEX_ENTRIES]
            self._record(RecordKind.UNDO_INDEX, b"".join(part), len(part))
        end = UndoEnd(
            self._link.newer,
            int(self._link.older_time * 1e9),
            int(self._link.newer_time * 1e9),
            self._entries,
            self._payload_bytes,
            len(self._index),
            index_at,
        )
        self._record(RecordKind.UNDO_END, encode_end_body(end), 0)
        assert self._file is not None
        self._file.sync()
        self._files.sync_folder(self.folder)
        self._close()
        return Sealed(self._offset, self._chain, self._entries, self._payload_bytes)

    def _record(self, kind: RecordKind, body: bytes, count: int) -> None:
        header, self._chain = encode_record(
            kind,
            self._link.older.epoch,
            0,
            self._entries,
            int(self._link.newer_time * 1e9),
            self._chain,
            [body],
            count,
        )
        self._append([header, body])

    def _append(self, pieces: Sequence[Buffer]) -> None:
        assert self._file is not None
        end = self._offset + sum(map(len, pieces))
        if end > self._space:
            # Written once and in order: taking space ahead would only touch it twice.
            require_room(self._files, self.folder, ROOM_STEP, self._reserve)
            self._space = end + ROOM_STEP
        try:
            self._file.write_many(self._offset, pieces)
        except OSError as error:
            raise space_error(error, self.folder, end - self._offset) from error
        self._offset = end

    def discard(self) -> None:
        """Close and delete the file."""
        self._close()
        self._files.remove(self.path)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
