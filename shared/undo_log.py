"""Undo logs: written before an apply overwrites anything, and read to see the disks as they were.

The format is that of :mod:`protocol.undo`. Everything here blocks and belongs into a worker. A log is written once, by
:mod:`replica_agent.undo_writer`, and is never changed after that; any number of readers may read it at the same time.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from protocol.entries import ENTRY_BYTES, EntryKind, decode_table
from protocol.errors import LogError
from protocol.hrl import (
    FILE_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    UNDO_INDEX_ENTRY_BYTES,
    RecordKind,
    check_chain,
    decode_file_header,
    decode_record_header,
)
from protocol.position import Position
from protocol.undo import (
    END_RECORD_BYTES,
    INDEX_DTYPE,
    MAX_INDEX_ENTRIES,
    decode_end_body,
    decode_index,
    undo_seed,
)
from shared.errors import StorageError
from shared.ports import FileSystem

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_BYTES = 256 << 10
"""Payload of a batch: what a reader reads and verifies to get at any byte of it."""


TRANSIENT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What a log can't be opened for although nothing is wrong with it."""


class UndoDamagedError(StorageError):
    """An undo log is missing, damaged, or not the one that it should be."""

    code = "undo_damaged"


class UndoUnreadableError(OSError):
    """A part of an undo log is damaged; ``filename`` is its path."""


class Piece(NamedTuple):
    """A part of a disk as an undo log has it: ``data`` is None where there was a hole."""

    start: int
    end: int
    data: memoryview | None


@dataclass(frozen=True, slots=True)
class Link:
    """Between which cuts an undo log leads, and when each was sealed (seconds since the Unix epoch, 0 if unknown)."""

    older: Position
    newer: Position
    older_time: float = 0.0
    newer_time: float = 0.0


@dataclass(frozen=True, slots=True)
class Sealed:
    """A finished undo log: its size in bytes, the chain after its last record, and how many entries it has."""

    length: int
    chain: bytes
    entries: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A verified batch: where its ranges begin and end on the disk, and where each payload begins in ``payload``."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    zero: NDArray[np.bool_]
    at: NDArray[np.int64]
    payload: memoryview

    def pieces(self, start: int, end: int) -> list[Piece]:
        """The parts of the range that the batch has."""
        found = []
        row = int(np.searchsorted(self.ends, start, "right"))
        while row < len(self.starts) and self.starts[row] < end:
            low, high = max(start, int(self.starts[row])), min(end, int(self.ends[row]))
            data = None
            if not self.zero[row]:
                place = int(self.at[row]) + low - int(self.starts[row])
                data = self.payload[place : place + high - low]
            found.append(Piece(low, high, data))
            row += 1
        return found


class UndoLog:
    """A sealed undo log, open for reading: its index is in memory, batches are read and verified when they are needed.

    ``order`` tells newer logs from older ones: it rises from log to log along a VM's history. The file is closed with
    :meth:`close`, or when the last reference is gone.
    """

    def __init__(self, files: FileSystem, path: str, vm: bytes, sizes: dict[int, int], order: int) -> None:
        """Open the log and verify header, index and end. Raises UndoDamagedError, or OSError for want of means."""
        self.path = path
        self.order = order
        self._kept: tuple[int, Batch] | None = None
        try:
            self._file = files.open(path)
        except (OSError, StorageError) as error:
            if isinstance(error, OSError) and error.errno in TRANSIENT:
                raise
            raise self._damaged(str(error)) from error
        try:
            self._sizes = sizes
            self._read_frame(vm)
        except (LogError, OSError) as error:
            self._file.close()
            raise self._damaged(str(error)) from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def close(self) -> None:
        self._file.close()

    def _damaged(self, reason: str) -> UndoDamagedError:
        return UndoDamagedError(
            f"The undo log {self.path} can't be used: {reason}.", "Use a newer recovery point; check the volume."
        )

    def _read_frame(self, vm: bytes) -> None:
        file = self._file
        header = decode_file_header(file.read(0, FILE_HEADER_BYTES))
        if header.vm != vm:
            raise LogError(0, "file-vm", f"the file belongs to VM {header.vm.hex()}, not to {vm.hex()}")
        older = Position(header.epoch, header.segment, header.entry, header.chain)
        self.length = file.size()
        end_at = self.length - END_RECORD_BYTES
        if end_at < FILE_HEADER_BYTES:
            raise LogError(0, "undo-end", f"{self.length} bytes are too few for an undo log")
        data = file.read(end_at, END_RECORD_BYTES)
        end_header = decode_record_header(data, at=end_at)
        if end_header.kind is not RecordKind.UNDO_END or end_header.length != END_RECORD_BYTES:
            raise LogError(end_at, "undo-end", "the file does not end with an end record")
        self.end = decode_end_body(memoryview(data)[RECORD_HEADER_BYTES:], at=end_at)
        self.chain = end_header.chain
        self.link = Link(older, self.end.newer, self.end.older_time_ns / 1e9, self.end.newer_time_ns / 1e9)
        chain = self._read_index(undo_seed(vm, older, self.end.newer), end_at)
        check_chain(end_header, chain, data, at=end_at)

    def _read_index(self, chain: bytes, end_at: int) -> bytes:
        """Read the index; returns the chain after it."""
        at, size = self.end.index_at, end_at - self.end.index_at
        records = -(-self.end.batches // MAX_INDEX_ENTRIES)
        if size != records * RECORD_HEADER_BYTES + self.end.batches * UNDO_INDEX_ENTRY_BYTES:
            raise LogError(at, "undo-index", f"an index of {self.end.batches} batches has not {size} bytes")
        data = memoryview(self._file.read(at, size))
        tables: list[NDArray[Any]] = []
        whole = []
        offset = 0
        while offset < size:
            header = decode_record_header(data, offset, at=at + offset)
            if header.kind is not RecordKind.UNDO_INDEX or header.length > size - offset:
                raise LogError(at + offset, "undo-index", "the index is not whole")
            body = data[offset + RECORD_HEADER_BYTES : offset + header.length]
            tables.append(decode_index(body, header.count, self._sizes, at, at=at + offset))
            whole.append((header, data[offset : offset + header.length], at + offset))
            offset += header.length
        index = np.concatenate(tables) if tables else np.empty(0, INDEX_DTYPE)
        if len(index) != self.end.batches:
            raise LogError(at, "undo-index", f"the index has {len(index)} batches of {self.end.batches}")
        if len(index):
            last = int(index["at"][-1])
            chain = decode_record_header(self._file.read(last, RECORD_HEADER_BYTES), at=last).chain
        for header, record, place in whole:
            chain = check_chain(header, chain, record, at=place)
        self._index = index
        self._places: dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]] = {}
        for disk in np.unique(index["disk"]).tolist():
            rows = np.flatnonzero(index["disk"] == disk)
            firsts, ends = index["first"][rows].astype(np.int64), index["end"][rows].astype(np.int64)
            if rows[-1] - rows[0] + 1 != len(rows) or (firsts[1:] < ends[:-1]).any():
                raise LogError(at, "undo-index", f"the batches of disk {disk} are not in order")
            self._places[disk] = int(rows[0]), firsts, ends
        return chain

    # --- reading ---------------------------------------------------------------------------------------------------

    @property
    def disks(self) -> list[int]:
        """The disks of which it has anything."""
        return sorted(self._places)

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Disk, beginning and end of each batch, in order: all that it has lies within, and in between what it has not.

        From memory.
        """
        yield from self._index[["disk", "first", "end"]].tolist()

    def batches(self, disk: int, start: int = 0, end: int = 1 << 63) -> range:
        """The numbers of the batches that may hold parts of a range."""
        place = self._places.get(disk)
        if place is None:
            return range(0)
        base, firsts, ends = place
        low = int(np.searchsorted(ends, start, "right"))
        high = int(np.searchsorted(firsts, end, "left"))
        return range(base + low, base + max(low, high))

    def pieces(self, disk: int, start: int, end: int) -> list[Piece]:
        """The parts of the range that the log has, in order. Raises OSError EIO where they are damaged."""
        found: list[Piece] = []
        for number in self.batches(disk, start, end):
            found += self.batch(number).pieces(start, end)
        return found

    def tables(self) -> Iterator[NDArray[Any]]:
        """The entry tables of all batches, verified. Raises OSError EIO where one is damaged."""
        for number in range(len(self._index)):
            yield self._read(number)[0]

    def batch(self, number: int) -> Batch:
        """A batch, verified. Raises OSError EIO where it is damaged. The one that was read last is kept."""
        kept = self._kept
        if kept is not None and kept[0] == number:
            return kept[1]
        table, payloads = self._read(number)
        starts = table["offset"].astype(np.int64)
        payload = table["payload"].astype(np.int64)
        batch = Batch(
            starts,
            starts + table["length"].astype(np.int64),
            table["kind"] != EntryKind.DATA,
            np.cumsum(payload) - payload,
            payloads,
        )
        self._kept = number, batch
        return batch

    def _read(self, number: int) -> tuple[NDArray[Any], memoryview]:
        """Table and payload of a batch."""
        row = self._index[number]
        at = int(row["at"])
        try:
            header = decode_record_header(self._file.read(at, RECORD_HEADER_BYTES), at=at)
            if header.kind is not RecordKind.BATCH:
                raise LogError(at, "undo-index", "no batch begins where the index says so")
            record = memoryview(self._file.read(at, header.length))
            if len(record) < header.length:
                raise LogError(at, "short", "the batch is cut off")
            check_chain(header, row["chain"].tobytes(), record, at=at)
            body = record[RECORD_HEADER_BYTES:]
            table = decode_table(body, header.count, header.body_length, self._sizes, at=at)
        except (LogError, OSError) as error:
            raise UndoUnreadableError(errno.EIO, self._damaged(str(error)).text, self.path) from error
        return table, body[header.count * ENTRY_BYTES :]
