"""Builds HRL files in memory, record by record, from plain numbers: deterministic, and able to lie where told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.hrl import (
    EntryKind,
    FileHeader,
    Geometry,
    RecordKind,
    Seal,
    SealReason,
    Settled,
    chain_seed,
    encode_entry,
    encode_file_header,
    encode_record,
    encode_seal_body,
    encode_segment_body,
    encode_settled_body,
)
from protocol.position import Position

VM = bytes(range(16))
EPOCH = bytes(range(16, 32))
OTHER_EPOCH = bytes(range(32, 48))
DISKS = (Geometry(0, 1 << 20, bytes(range(48, 64))), Geometry(3, 4 << 20, bytes(range(64, 80))))
SIZES = {disk.index: disk.size for disk in DISKS}
CAPACITY = 1 << 16
START_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Write:
    """One write; ``data`` for data, else only the length counts."""

    disk: int
    kind: EntryKind
    offset: int
    data: bytes = b""
    size: int = 0

    @property
    def length(self) -> int:
        return len(self.data) or self.size


def data(disk: int, offset: int, content: bytes) -> Write:
    return Write(disk, EntryKind.DATA, offset, content)


def zero(disk: int, offset: int, size: int) -> Write:
    return Write(disk, EntryKind.ZERO, offset, size=size)


def discard(disk: int, offset: int, size: int) -> Write:
    return Write(disk, EntryKind.DISCARD, offset, size=size)


def pattern(length: int, seed: int) -> bytes:
    """Bytes that tell from where they are."""
    return bytes((seed + 7 * number) % 251 for number in range(length))


class LogBuilder:
    """A log file being written: ``content`` is all of it, ``places`` the offset of every record."""

    def __init__(
        self,
        *,
        vm: bytes = VM,
        epoch: bytes = EPOCH,
        sequence: int = 1,
        after: Position | None = None,
        disks: Sequence[Geometry] = DISKS,
    ) -> None:
        after = after or Position(epoch, 0, 0, chain_seed(vm, epoch))
        self.vm, self.sequence, self.disks = vm, sequence, disks
        self.epoch, self.segment, self.entry, self.chain = after
        self.first_entry = after.entry
        self.segment_bytes = 0
        self.time_ns = START_NS + sequence * 1_000_000_000 + after.entry * 1_000_000
        header = FileHeader(vm, sequence, CAPACITY, self.epoch, self.segment, self.entry, self.chain)
        self.content = bytearray(encode_file_header(header))
        self.places: list[int] = []
        self.positions: list[Position] = [after]

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.segment, self.entry, self.chain)

    def record(self, index: int) -> bytes:
        """The bytes of the record ``index``, header and body."""
        ends = [*self.places[1:], len(self.content)]
        return bytes(self.content[self.places[index] : ends[index]])

    def put(self, kind: RecordKind, body: Sequence[bytes] = (), count: int = 0, segment: int | None = None) -> None:
        """Append a record as it is told, valid or not in its place."""
        number = self.segment if segment is None else segment
        self.time_ns += 1_000_000
        header, self.chain = encode_record(kind, self.epoch, number, self.entry, self.time_ns, self.chain, body, count)
        self.places.append(len(self.content))
        self.content += header + b"".join(body)
        self.segment = number
        self.segment_bytes += len(header) + sum(map(len, body))
        if kind is RecordKind.BATCH:
            self.entry += count
        self.positions.append(self.position)

    def begin(self) -> LogBuilder:
        """A segment record."""
        self.first_entry, self.segment_bytes = self.entry, 0
        self.put(RecordKind.SEGMENT, [encode_segment_body(self.disks)], len(self.disks), self.segment + 1)
        return self

    def batch(self, *writes: Write) -> LogBuilder:
        table = b"".join(encode_entry(write.disk, write.kind, write.offset, write.length) for write in writes)
        self.put(RecordKind.BATCH, [table, *(write.data for write in writes)], len(writes))
        return self

    def seal(self, reason: SealReason = SealReason.INTERVAL) -> LogBuilder:
        body = encode_seal_body(Seal(reason, self.entry - self.first_entry, self.segment_bytes))
        self.put(RecordKind.SEAL, [body])
        return self

    def settle(self, disk: int, offset: int, length: int) -> LogBuilder:
        self.put(RecordKind.SETTLED, [encode_settled_body(Settled(disk, offset, length))])
        return self

    def unsettle(self, disk: int, offset: int, length: int) -> LogBuilder:
        self.put(RecordKind.UNSETTLED, [encode_settled_body(Settled(disk, offset, length))])
        return self

    def end_file(self) -> LogBuilder:
        self.put(RecordKind.END_OF_FILE)
        return self

    def pad(self, boundary: int = 512) -> LogBuilder:
        """Zeroes up to the next boundary, as the tap writes them."""
        self.content += bytes(-len(self.content) % boundary)
        return self


def small_log() -> LogBuilder:
    """Segment 1 with three batches over two disks, sealed, and segment 2 with one batch, not sealed."""
    log = LogBuilder().begin()
    log.batch(data(0, 0, pattern(512, 1)), zero(3, 4096, 8192))
    log.batch(data(3, 1024, pattern(512, 2)), discard(0, 512, 512), data(0, 1024, pattern(512, 3)))
    log.batch(data(0, 0, pattern(512, 4))).seal()
    return log.begin().batch(data(3, 2048, pattern(512, 5)))
