"""Which blocks of a range differ, and their contents as BLOCKS frames: pure comparison and blocking reads.

A hole reads as zeroes: one side's hole and the other side's block of zeroes are equal, and a hole here that differs
is sent as zeroes (R45). A block that can't be read fails the resync by name; it never counts as equal (R24).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.bulk import Manifest, encode_blocks, encode_blocks_entry
from protocol.compression import compress, worth_compressing
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
HOLE_BYTES = 256 << 20
"""A hole of this length is not hashed range by range: the replica is asked where it is none there."""
GLANCE_BYTES = 16
"""So many of a block's first bytes are looked at before the whole block is."""
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


def differing_blocks(
    ours: Manifest, table: NDArray[Any], theirs: Manifest, zero_tags: tuple[bytes, bytes]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Which blocks differ (bool, one each), and which of those hold data on both sides.

    ``table`` are our tags with those of zeroes for holes (RangeHasher.filled); ``zero_tags`` the tags of a whole and of
    the last block of zeroes. Raises ProtocolError where ``theirs`` is about something else than ``ours``.
    """
    check_scope(theirs, ours)
    zeroes = np.empty_like(table)
    whole, last = (np.frombuffer(tag, "<u8") for tag in zero_tags)
    zeroes[:] = whole
    zeroes[-1] = last
    other = np.where(theirs.holes[:, None], zeroes, theirs.by_block())
    different = (table != other).any(axis=1) & ~theirs.equal_blocks()
    return different, different & (table != zeroes).any(axis=1) & (other != zeroes).any(axis=1)


def spans_of(different: NDArray[Any], holes: NDArray[Any], offset: int, length: int, size: int) -> list[Span]:
    """The runs of set flags for blocks of ``size`` bytes in a range; a run ends where holes begin or end here."""
    if not different.any():
        return []
    state = np.where(different, 1 + holes.astype(np.int8), 0)
    starts = np.flatnonzero(np.diff(state, prepend=0))
    ends = np.append(starts[1:], len(state))
    chosen = state[starts] > 0
    kinds = state[starts][chosen] == 2
    starts, ends = starts[chosen] * size, np.minimum(ends[chosen] * size, length)
    return [
        Span(offset + first, end - first, hole)
        for first, end, hole in zip(starts.tolist(), ends.tolist(), kinds.tolist(), strict=True)
    ]


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
            packed = compress(pieces) if worth_compressing(payloads) else None
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
        view, size = memoryview(content), self.block_size
        zeroes = bytes(size)
        # Nearly every block that holds data tells so by its first bytes, and is not copied to be looked at.
        flags = [
            not any(view[at : at + GLANCE_BYTES]) and content[at : at + size] == zeroes[: len(content) - at]
            for at in range(0, len(content), size)
        ]
        start = 0
        for is_zero, blocks in groupby(flags):
            end = min(start + size * sum(1 for _ in blocks), len(content))
            yield offset + start, end - start, None if is_zero else view[start:end]
            start = end


def unreadable(path: str, disk: int, offset: int, length: int, reason: str) -> StorageError:
    """The error for blocks that can't be read (R24)."""
    return StorageError(
        f"Disk {disk} ({path}) can't be read at bytes {offset} to {offset + length}: {reason}.",
        "Repair or replace the disk, then run `vmreplica resume VM`. The resynchronization goes on where it stopped.",
        code="block_unreadable",
    )


def unsettled_runs(
    size: int, settled: list[Run], scope: Sequence[tuple[int, int]] | None = None
) -> Iterator[tuple[int, int]]:
    """Start and end of the runs of a disk of ``size`` bytes that are not yet settled, in order.

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
            yield at, run.offset
        at = max(at, end)
    if at < limit:
        yield at, limit


@dataclass(frozen=True, slots=True)
class Piece:
    """What is compared in one step: an ordinary range, or a long hole at this side. In bytes of the disk."""

    offset: int
    length: int
    hole: bool


class Pieces:
    """Hands out the runs of a disk (start, end) piece by piece; long holes are found as they come."""

    def __init__(self, file: File, runs: Iterable[tuple[int, int]]) -> None:
        self._file = file
        self._runs = deque(runs)

    def put_back(self, start: int, end: int, *, ordinary: bool) -> None:
        """Compare this once more; in ``ordinary`` ranges without looking for holes, or as it comes."""
        runs = _cut_up(start, end) if ordinary else ()
        self._runs.extendleft(reversed([(at, at + length) for at, length in runs] or [(start, end)]))

    def next(self, most: int = 1 << 62) -> Piece | None:
        """The next piece, None after the last; ordinary ones have up to ``most`` bytes. Blocks. Raises OSError."""
        if not self._runs:
            return None
        start, end = self._runs.popleft()
        length = self._hole(start, end) if end - start >= HOLE_BYTES else 0
        piece = Piece(start, length or min(most, RANGE_BYTES, end - start), length > 0)
        if start + piece.length < end:
            self._runs.appendleft((start + piece.length, end))
        return piece

    def _hole(self, start: int, end: int) -> int:
        """Length of the hole of whole blocks that begins here; 0 where there is none worth a question of its own."""
        first = next(iter(self._file.extents(start, end - start)))
        if not first.hole:
            return 0
        length = first.length if first.length == end - start else first.length // BLOCK_SIZE * BLOCK_SIZE
        return length if length >= HOLE_BYTES else 0


def holes_between(
    disk: int, start: int, end: int, data: Sequence[Run]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The runs between the replica's ``data`` runs, and those themselves, as start and end.

    Raises ProtocolError where they are not runs of blocks in order, apart and inside the range.
    """
    holes, runs, at = [], [], start
    for run in data:
        stop = run.offset + run.length
        if run.disk != disk or run.offset < at or run.length == 0 or stop > end:
            raise ProtocolError(
                f"HOLES with {run.length} bytes at {run.offset} of disk {run.disk}, out of order or place"
            )
        if run.offset % BLOCK_SIZE or (stop % BLOCK_SIZE and stop != end):
            raise ProtocolError(f"HOLES with {run.length} bytes at {run.offset}, which is no run of blocks")
        if run.offset > at:
            holes.append((at, run.offset))
        runs.append((run.offset, stop))
        at = stop
    if at < end:
        holes.append((at, end))
    return holes, runs


def _cut_up(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        length = min(RANGE_BYTES, end - start)
        yield start, length
        start += length
