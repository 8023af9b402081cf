"""Follows the records of a log: that each is the next one, by epoch, segment, entry, kind and chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protocol.errors import LogError
from protocol.hrl import (
    RECORD_HEADER_BYTES,
    FileHeader,
    RecordHeader,
    RecordKind,
    check_chain,
    decode_record_header,
)
from protocol.position import Position

Buffer = bytes | bytearray | memoryview


@dataclass(slots=True)
class Cursor:
    """A point between two records of a log, and what may follow it.

    ``inside`` says whether a segment is open there; None where that is not known, since neither a Position nor a file
    header tells it: then the next record decides. Segment 0 is that of differencing files: batches and settled ranges
    without segment record and seal.
    """

    epoch: bytes
    segment: int
    entry: int
    chain: bytes
    inside: bool | None = None

    @classmethod
    def at(cls, position: Position, *, inside: bool | None = None) -> Cursor:
        """The cursor at a position; ``inside`` False for a cut, True in a segment, None where not known."""
        return cls(position.epoch, position.segment, position.entry, position.chain, inside)

    @classmethod
    def of_file(cls, header: FileHeader) -> Cursor:
        """The cursor before the first record of a log file."""
        return cls(header.epoch, header.segment, header.entry, header.chain)

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.segment, self.entry, self.chain)

    def copy(self) -> Cursor:
        return Cursor(self.epoch, self.segment, self.entry, self.chain, self.inside)

    def follow(self, header: RecordHeader, record: Buffer, *, at: int = 0) -> None:
        """Step over ``record`` (header and body). Raises LogError, and stays, where it is not the next one.

        Reasons: ``epoch``, ``segment``, ``entry``, ``order`` (its kind can't stand here), ``chain``.
        """
        kind = header.kind
        if header.epoch != self.epoch:
            raise LogError(at, "epoch", f"a record of epoch {header.epoch.hex()} in the log of {self.epoch.hex()}")
        expected = self.segment + 1 if kind is RecordKind.SEGMENT else self.segment
        if header.segment != expected:
            raise LogError(
                at, "segment", f"a {kind.name} record of segment {header.segment} where {expected} comes next"
            )
        if header.entry != self.entry:
            raise LogError(at, "entry", f"a {kind.name} record of entry {header.entry} where {self.entry} comes next")
        if not self._may_follow(kind):
            where = "inside" if self.inside else "outside"
            raise LogError(at, "order", f"a {kind.name} record {where} segment {self.segment}")
        check_chain(header, self.chain, record, at=at)
        self.step(header)

    def step(self, header: RecordHeader) -> None:
        """Stand after a record that is known to be the next one."""
        kind = header.kind
        self.chain = header.chain
        self.entry = header.next_entry
        match kind:
            case RecordKind.SEGMENT:
                self.segment = header.segment
                self.inside = True
            case RecordKind.BATCH | RecordKind.SETTLED | RecordKind.UNSETTLED:
                self.inside = True
            case RecordKind.SEAL:
                self.inside = False

    def _may_follow(self, kind: RecordKind) -> bool:
        match kind:
            case RecordKind.SEGMENT:
                return not self.inside
            case RecordKind.BATCH:
                return self.inside is not False
            case RecordKind.SEAL:
                return self.inside is not False and self.segment > 0
            case RecordKind.SETTLED | RecordKind.UNSETTLED:
                return self.segment == 0
            case RecordKind.UNDO_INDEX | RecordKind.UNDO_END:
                # Undo logs have no order to follow: they are read by their index, from their end.
                return False
            case RecordKind.END_OF_FILE:
                return True


def follow_records(cursor: Cursor, data: memoryview, *, at: int = 0) -> Iterator[tuple[int, RecordHeader, memoryview]]:
    """Step ``cursor`` over the records in ``data``: offset in ``data``, header and whole record of each.

    ``at`` is where ``data`` lies in its file, for errors. Raises LogError where a record is not valid or not the next
    one, with reason ``short`` where the last one is cut off; the records before it were yielded, and the cursor stands
    after them.
    """
    offset, end = 0, len(data)
    while offset < end:
        header = decode_record_header(data, offset, at=at + offset)
        if header.length > end - offset:
            raise LogError(at + offset, "short", f"{end - offset} bytes left of a record of {header.length}")
        record = data[offset : offset + header.length]
        cursor.follow(header, record, at=at + offset)
        yield offset, header, record
        offset += header.length


def body_of(record: memoryview) -> memoryview:
    """The body of a whole record, without a copy."""
    return record[RECORD_HEADER_BYTES:]
