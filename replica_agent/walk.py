"""Walks the records of a spool or differencing file: whole verified records, some MiB at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.chain import Cursor, follow_records
from protocol.entries import ENTRY_BYTES, decode_table
from protocol.errors import LogError
from protocol.hrl import (
    FILE_HEADER_BYTES,
    MAX_RECORD,
    RECORD_HEADER_BYTES,
    RecordHeader,
    RecordKind,
    decode_file_header,
    decode_record_header,
)
from replica_agent.changes import gather
from shared.ports import File

if TYPE_CHECKING:
    from numpy.typing import NDArray

WALK_BYTES = 4 << 20
TABLE_BYTES = 1 << 10
"""A record's header, with the table of a batch that has not many entries."""
assert WALK_BYTES >= MAX_RECORD


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some records in order: offset in ``view`` and header of each. ``view`` is valid until the next chunk is read."""

    view: memoryview
    at: int
    records: list[tuple[int, RecordHeader]]

    def batches(self) -> list[tuple[int, RecordHeader]]:
        return [record for record in self.records if record[1].kind is RecordKind.BATCH]


class LogWalk:
    """Reads a log file from ``cursor`` on. Blocking: belongs into a worker, one call at a time.

    ``stopped`` says why there is no more: the LogError of the first bytes that are not the next record, or None after
    a seal or at ``end``. ``offset`` is where the walk stands in the file.
    """

    def __init__(self, file: File, cursor: Cursor, *, end: int | None = None) -> None:
        self.file = file
        self.cursor = cursor
        self.offset = FILE_HEADER_BYTES
        self.stopped: LogError | None = None
        self.sealed: RecordHeader | None = None
        self._end = file.size() if end is None else end
        self._buffer = memoryview(bytearray(min(WALK_BYTES, max(0, self._end - self.offset))))

    def step(self) -> Chunk | None:
        """The next records, or None where there are none; then ``stopped`` and ``sealed`` say why."""
        if self.sealed is not None or self.stopped is not None:
            return None
        wanted = min(len(self._buffer), self._end - self.offset)
        view = self._buffer[: self.file.read_into(self.offset, self._buffer[:wanted]) if wanted > 0 else 0]
        at, records = self.offset, []
        try:
            for offset, header, _record in follow_records(self.cursor, view, at=at):
                records.append((offset, header))
                if header.kind is RecordKind.SEAL:
                    self.sealed = header
                    break
        except LogError as error:
            # A record that the buffer cuts off is read again as the first of the next chunk.
            if error.reason != "short" or not records:
                self.stopped = error
        if not records:
            return None
        last, header = records[-1]
        self.offset = at + last + header.length
        return Chunk(view, at, records)


def read_tables(file: File, sizes: dict[int, int], end: int) -> Iterator[tuple[NDArray[Any], int]]:
    """The entry tables of a file's batches, and the bytes that each record takes; the payloads are not read.

    Only headers and tables are judged, not the chain: whoever relies on them has to see for himself that the entries
    are the ones that a verifying walk finds. Raises LogError.
    """
    offset = FILE_HEADER_BYTES
    while offset < end:
        data = file.read(offset, min(TABLE_BYTES, end - offset))
        header = decode_record_header(data, at=offset)
        if header.kind is RecordKind.BATCH:
            table = header.count * ENTRY_BYTES
            body = data[RECORD_HEADER_BYTES : RECORD_HEADER_BYTES + table]
            if len(body) < table:
                body = file.read(offset + RECORD_HEADER_BYTES, table)
            yield decode_table(body, header.count, header.body_length, sizes, at=offset), header.length
        offset += header.length


def check_file(file: File, vm: bytes, cursor: Cursor) -> None:
    """Check that the header of ``file`` is that of the log of ``vm`` from ``cursor`` on. Raises LogError."""
    header = decode_file_header(file.read(0, FILE_HEADER_BYTES))
    if header.vm != vm:
        raise LogError(0, "file-vm", f"the file belongs to VM {header.vm.hex()}, not to {vm.hex()}")
    expected = (cursor.epoch, cursor.segment, cursor.entry, cursor.chain)
    if (header.epoch, header.segment, header.entry, header.chain) != expected:
        raise LogError(0, "file-place", "the file is that of another place in the log")


@dataclass(frozen=True, slots=True)
class ValidPart:
    """What of a spool file follows the log before it."""

    cursor: Cursor
    offset: int
    sealed: RecordHeader | None


def find_valid(file: File, vm: bytes, start: Cursor, sizes: dict[int, int]) -> ValidPart | None:
    """The valid records of a spool file that goes on from ``start``; None if there are none."""
    cursor, offset = start.copy(), FILE_HEADER_BYTES
    try:
        check_file(file, vm, start)
        walk = LogWalk(file, start.copy())
        while chunk := walk.step():
            gather(chunk.batches(), chunk.view, sizes, at=chunk.at)
            cursor, offset = walk.cursor.copy(), walk.offset
    except LogError:
        return ValidPart(cursor, offset, None) if offset > FILE_HEADER_BYTES else None
    return ValidPart(cursor, offset, walk.sealed) if offset > FILE_HEADER_BYTES else None
