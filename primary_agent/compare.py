"""Which blocks of a range differ, and their contents as BLOCKS frames: pure comparison and blocking reads.

A hole reads as zeroes: one side's hole and the other side's block of zeroes are equal, and a hole here that differs
is sent as zeroes (R45). A block that can't be read fails the resync by name; it never counts as equal (R24).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.bulk import Manifest, encode_blocks, encode_blocks_entry
from protocol.compression import compress
from protocol.errors import ProtocolError
from protocol.frames import MAX_MANIFEST_BLOCKS
from protocol.hrl import MAX_ENTRIES, MAX_PAYLOAD
from protocol.messages import BLOCK_SIZE, Run
from shared.errors import StorageError
from shared.ports import Buffer, File

if TYPE_CHECKING:
    from numpy.typing import NDArray


RANGE_BYTES = 64 << 20
"""Length of the ranges that are compared one by one."""
assert RANGE_BYTES // BLOCK_SIZE <= MAX_MANIFEST_BLOCKS


@dataclass(frozen=True, slots=True)
class Span:
    """A run of differing blocks of a disk, in bytes; ``hole`` where it is a hole at this side."""

    offset: int
    length: int
    hole: bool


def check_scope(manifest: Manifest, expected: Manifest) -> None:
    """Refuse an answer that is not about exactly what was asked (R23). Tags and holes are not looked at."""
    for field in ("id", "key_id", "round", "disk", "block_size", "offset", "length"):
        theirs, ours = getattr(manifest, field), getattr(expected, field)
        if theirs != ours:
            raise ProtocolError(f"MANIFEST with another {field} than was asked for")


def differing_spans(ours: Manifest, theirs: Manifest, zero_tags: tuple[bytes, bytes]) -> list[Span]:
    """The runs of blocks that differ. ``zero_tags`` are the tags of a whole and of the last block of zeroes."""
    check_scope(theirs, ours)
    different = (_filled(ours, zero_tags) != _filled(theirs, zero_tags)).any(axis=1)
    if not different.any():
        return []
    # A run ends where the next block is equal, or is a hole where this one is not.
    state = np.where(different, 1 + ours.holes.astype(np.int8), 0)
    starts = np.flatnonzero(np.diff(state, prepend=0))
    ends = np.append(starts[1:], len(state))
    size, limit = ours.block_size, ours.offset + ours.length
    return [
        Span(
            ours.offset + first * size,
            min(ours.offset + end * size, limit) - (ours.offset + first * size),
            bool(ours.holes[first]),
        )
        for first, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if different[first]
    ]


def _filled(manifest: Manifest, zero_tags: tuple[bytes, bytes]) -> NDArray[Any]:
    """The tags as rows of two u64, with a hole's replaced by that of zeroes."""
    table = manifest.by_block()
    whole, last = (np.frombuffer(tag, "<u8") for tag in zero_tags)
    table[manifest.holes] = whole
    if manifest.holes[-1]:
        table[-1] = last
    return table


@dataclass(frozen=True, slots=True)
class BlocksPayload:
    """One BLOCKS frame: its pieces, or one zstd frame of ``raw_length`` bytes; data and zero bytes in it."""

    pieces: list[Buffer]
    raw_length: int | None
    data_bytes: int
    zero_bytes: int


@dataclass(slots=True)
class BlocksReader:
    """Reads differing spans of one disk as payloads of BLOCKS frames. Blocks: call :meth:`next` in a worker."""

    file: File
    disk: int
    spans: list[Span]
    block_size: int
    identity: bytes
    round: int
    compress: bool
    _parts: Iterator[tuple[int, int, Buffer | None]] | None = None
    _held: tuple[int, int, Buffer | None] | None = None

    def next(self) -> BlocksPayload | None:
        """The next payload, None after the last. Raises StorageError naming what can't be read."""
        if self._parts is None:
            self._parts = self._read()
        entries: list[bytes] = []
        payloads: list[Buffer] = []
        data = zero = 0
        while len(entries) < MAX_ENTRIES:
            part = self._held or next(self._parts, None)
            self._held = None
            if part is None:
                break
            offset, length, content = part
            if content is None:
                zero += length
            elif data + length > MAX_PAYLOAD:
                self._held = part
                break
            else:
                data += length
                payloads.append(content)
            entries.append(encode_blocks_entry(self.disk, offset, length, zero=content is None))
        if not entries:
            return None
        pieces = encode_blocks(self.identity, self.round, entries, payloads)
        if self.compress:
            packed = compress(pieces)
            if packed is not None:
                return BlocksPayload([packed], sum(map(len, pieces)), data, zero)
        return BlocksPayload(pieces, None, data, zero)

    def _read(self) -> Iterator[tuple[int, int, Buffer | None]]:
        """Offset, length and content (None for zeroes) of the parts; neighbours of one kind are merged."""
        for span in self.spans:
            if span.hole:
                yield span.offset, span.length, None
                continue
            for offset in range(span.offset, span.offset + span.length, MAX_PAYLOAD):
                length = min(MAX_PAYLOAD, span.offset + span.length - offset)
                yield from self._split(offset, self._read_exactly(offset, length))

    def _read_exactly(self, offset: int, length: int) -> bytes:
        try:
            content = self.file.read(offset, length)
        except OSError as error:
            raise unreadable(self.file.path, self.disk, offset, length, error.strerror or str(error)) from error
        if len(content) != length:
            raise unreadable(self.file.path, self.disk, offset, length, "the file is shorter than the disk")
        return content

    def _split(self, offset: int, content: bytes) -> Iterator[tuple[int, int, Buffer | None]]:
        """The parts of what was read: runs of zero blocks and runs of others."""
        view = memoryview(content)
        zeroes = bytes(self.block_size)
        start, start_zero = 0, False
        for at in range(0, len(content), self.block_size):
            block = content[at : at + self.block_size]
            is_zero = block == zeroes[: len(block)]
            if at == 0:
                start_zero = is_zero
            elif is_zero is not start_zero:
                yield offset + start, at - start, None if start_zero else view[start:at]
                start, start_zero = at, is_zero
        yield offset + start, len(content) - start, None if start_zero else view[start:]


def unreadable(path: str, disk: int, offset: int, length: int, reason: str) -> StorageError:
    """The error for blocks that can't be read (R24)."""
    return StorageError(
        f"Disk {disk} ({path}) can't be read at bytes {offset} to {offset + length}: {reason}.",
        "Repair or replace the disk, then run `vmreplica resume VM`. The resynchronization goes on where it stopped.",
        code="block_unreadable",
    )


def ranges_to_compare(
    size: int, settled: list[Run], scope: Sequence[tuple[int, int]] | None = None
) -> Iterator[tuple[int, int]]:
    """Offset and length of the ranges of a disk of ``size`` bytes that are not yet settled, in order.

    ``scope`` are the ranges that have to be compared at all, in order and apart, at multiples of the block size; None
    for the whole disk. Settled ranges are those of an earlier session, so they begin and end at multiples of the block
    size or at the disk's end; others are compared again rather than trusted.
    """
    for start, length in ((0, size),) if scope is None else scope:
        yield from _unsettled(start, start + length, size, settled)


def _unsettled(at: int, limit: int, size: int, settled: list[Run]) -> Iterator[tuple[int, int]]:
    for run in sorted(settled, key=lambda run: run.offset):
        end = run.offset + run.length
        if end > size or run.offset % BLOCK_SIZE or (end % BLOCK_SIZE and end != size):
            continue
        if run.offset >= limit:
            break
        if run.offset > at:
            yield from _cut_up(at, run.offset)
        at = max(at, end)
    yield from _cut_up(at, limit)


def _cut_up(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        length = min(RANGE_BYTES, end - start)
        yield start, length
        start += length
