"""Makes logs as a tap does: records with their chain, and the content of the disks that they lead to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol.bulk import Bulk
from protocol.entries import EntryKind, encode_entry
from protocol.hrl import (
    Geometry,
    RecordKind,
    Seal,
    SealReason,
    chain_seed,
    encode_record,
    encode_seal_body,
    encode_segment_body,
)
from protocol.messages import MessageType
from protocol.position import Position

VM = bytes(range(16))
EPOCH = bytes(range(100, 116))
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """One write: ``data`` None for zeroes."""

    disk: int
    offset: int
    length: int
    data: bytes | None
    discard: bool = False

    @property
    def entry(self) -> bytes:
        kind = EntryKind.DATA if self.data is not None else EntryKind.DISCARD if self.discard else EntryKind.ZERO
        return encode_entry(self.disk, kind, self.offset, self.length)


def write(disk: int, offset: int, data: bytes) -> Change:
    return Change(disk, offset, len(data), data)


def zero(disk: int, offset: int, length: int, *, discard: bool = False) -> Change:
    return Change(disk, offset, length, None, discard)


@dataclass(slots=True)
class Tap:
    """Writes a log in memory. ``content`` is what the disks hold; ``cuts`` what they held at each seal."""

    geometry: tuple[Geometry, ...]
    vm: bytes = VM
    epoch: bytes = EPOCH
    segment: int = 0
    entry: int = 0
    chain: bytes = b""
    time_ns: int = 1_700_000_000 * SECOND
    content: dict[int, bytearray] = field(default_factory=dict)
    cuts: dict[int, dict[int, bytes]] = field(default_factory=dict)
    ends: dict[int, Position] = field(default_factory=dict)
    start_entry: int = 0
    size: int = 0
    sent: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """LOG and SEAL contents of whole segments, to be sent again."""

    def __post_init__(self) -> None:
        self.chain = self.chain or chain_seed(self.vm, self.epoch)
        for disk in self.geometry:
            self.content.setdefault(disk.index, bytearray(disk.size))

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.segment, self.entry, self.chain)

    def begin(self, epoch: bytes) -> Tap:
        """A fresh log of another epoch over the same content."""
        content = {index: bytearray(data) for index, data in self.content.items()}
        return Tap(self.geometry, self.vm, epoch, content=content, time_ns=self.time_ns)

    def _record(self, kind: RecordKind, body: Sequence[bytes], count: int = 0) -> bytes:
        self.time_ns += 1000
        header, self.chain = encode_record(
            kind, self.epoch, self.segment, self.entry, self.time_ns, self.chain, body, count
        )
        return header + b"".join(body)

    def open(self) -> bytes:
        self.segment += 1
        self.start_entry, self.size = self.entry, 0
        record = self._record(RecordKind.SEGMENT, [encode_segment_body(self.geometry)], len(self.geometry))
        self.size += len(record)
        return record

    def batch(self, *changes: Change) -> bytes:
        body = [b"".join(change.entry for change in changes), *(c.data for c in changes if c.data is not None)]
        record = self._record(RecordKind.BATCH, body, len(changes))
        self.entry += len(changes)
        self.size += len(record)
        for change in changes:
            data = change.data if change.data is not None else bytes(change.length)
            self.content[change.disk][change.offset : change.offset + change.length] = data
        return record

    def seal(self, reason: SealReason = SealReason.INTERVAL) -> bytes:
        self.time_ns += SECOND
        body = encode_seal_body(Seal(reason, self.entry - self.start_entry, self.size))
        record = self._record(RecordKind.SEAL, [body])
        self.cuts[self.segment] = {index: bytes(data) for index, data in self.content.items()}
        self.ends[self.segment] = self.position
        return record

    def whole_segment(self, *batches: Sequence[Change]) -> tuple[bytes, bytes]:
        """The LOG and the SEAL content of a whole segment."""
        log = self.open() + b"".join(self.batch(*changes) for changes in batches)
        self.sent[self.segment] = log, self.seal()
        return self.sent[self.segment]

    def random_segment(self, rng: random.Random, batches: int = 3) -> tuple[bytes, bytes]:
        return self.whole_segment(*(random_changes(rng, self.geometry) for _ in range(batches)))


def random_changes(rng: random.Random, geometry: Sequence[Geometry], most: int = 8) -> list[Change]:
    """Some writes of all kinds that like to overlap."""
    changes = []
    for _ in range(rng.randint(1, most)):
        disk = rng.choice(list(geometry))
        length = 512 * rng.choice([1, 1, 2, 8, 8, 8, 16, 100])
        length = min(length, disk.size)
        offset = 512 * rng.randrange((disk.size - length) // 512 + 1)
        kind = rng.random()
        if kind < 0.7:
            changes.append(write(disk.index, offset, rng.randbytes(length)))
        else:
            changes.append(zero(disk.index, offset, length, discard=kind < 0.85))
    return changes


def log_frame(content: bytes) -> Bulk:
    return Bulk(MessageType.LOG, content, False, len(content))


def seal_frame(content: bytes) -> Bulk:
    return Bulk(MessageType.SEAL, content, False, len(content))
