"""Disks read through what a resync has received, against plain bytes; and the index that finds it, within its bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import replica_agent.blocks_index
from protocol.entries import ENTRY_DTYPE, EntryKind
from replica_agent.blocks_index import UNKNOWN, ZERO, BlocksIndex
from replica_agent.overlay import OverlaidDisk, UnknownBlocksError
from shared.ports import Extent

SIZE = 64
blocks = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, 12), st.booleans()).map(
        lambda block: (block[0], min(block[1], SIZE - block[0]), block[2])
    ),
    max_size=6,
)


@dataclass
class Memory:
    """A file in memory; runs of zero bytes are holes."""

    content: bytearray
    path: str = "memory"

    def size(self) -> int:
        return len(self.content)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        part = self.content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        start = offset
        for at in range(offset, offset + length + 1):
            hole = not self.content[start]
            if at == offset + length or (not self.content[at]) != hole:
                yield Extent(start, at - start, hole)
                start = at


def table_of(entries: list[tuple[int, int, bool]]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    table = np.zeros(len(entries), ENTRY_DTYPE)
    for row, (offset, length, zero) in zip(table, entries, strict=True):
        row["offset"], row["length"] = offset, length
        row["kind"] = EntryKind.ZERO if zero else EntryKind.DATA
    return table


@given(st.lists(blocks, max_size=6), st.integers(0, SIZE - 1), st.integers(1, SIZE), st.integers(1, 8))
def test_reads_as_it_will_once_all_is_merged(
    batches: list[list[tuple[int, int, bool]]], start: int, length: int, fresh: int
) -> None:
    """R32: a newer block replaces what older ones say of its bytes, whatever was merged in the index meanwhile."""
    base, file, index = Memory(bytearray(b"b" * 40 + bytes(SIZE - 40))), Memory(bytearray()), BlocksIndex(SIZE)
    expected, holes = bytearray(base.content), [not byte for byte in base.content]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica_agent.blocks_index, "FRESH_MAX", fresh)
        for batch in filter(None, batches):
            places = []
            for offset, size, zero in batch:
                places.append(file.size())
                content = bytes(size) if zero else bytes([65 + file.size() % 26]) * size
                file.content += b"" if zero else content
                expected[offset : offset + size] = content
                holes[offset : offset + size] = [zero] * size
            index.add(table_of(batch), np.array(places, np.int64))
    length = min(length, SIZE - start)
    disk, buffer = OverlaidDisk(base, file, index.find), bytearray(length)
    assert disk.read_into(start, buffer) == length
    assert buffer == expected[start : start + length]
    found = list(disk.extents(start, length))
    assert [part.hole for part in found for _ in range(part.length)] == holes[start : start + length]
    assert all(before.hole != after.hole for before, after in itertools.pairwise(found))


def test_neighbours_are_one_row_where_they_are_neighbours_in_the_file() -> None:
    index = BlocksIndex(SIZE)
    index.add(table_of([(0, 8, False), (8, 8, False), (16, 8, True), (24, 8, True)]), np.array([100, 108, 0, 0]))
    assert [tuple(piece) for piece in index.find(4, 30)] == [(4, 16, 104), (16, 30, ZERO)]
    assert len(index) == 2


def test_past_its_bound_the_index_tells_only_that_something_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """I13: memory stays bounded; what is not known is told to differ, never to be equal."""
    monkeypatch.setattr(replica_agent.blocks_index, "FRESH_MAX", 4)
    monkeypatch.setattr(replica_agent.blocks_index, "COARSE_FIRST", 16)
    index = BlocksIndex(1 << 12, rows_max=8)
    for offset in range(0, 1 << 12, 32):
        index.add(table_of([(offset, 8, False)]), np.array([offset]))
    assert len(index) <= 8 + 4
    assert all(index.find(offset, offset + 8) for offset in range(0, 1 << 12, 32)), "a block was forgotten"
    assert index.find(0, 8)[0].place == UNKNOWN
    disk = OverlaidDisk(Memory(bytearray(1 << 12)), Memory(bytearray()), index.find)
    with pytest.raises(UnknownBlocksError):
        disk.read_into(0, bytearray(64))
    # What comes later is known again.
    index.add(table_of([(0, 64, True)]), np.array([0]))
    assert disk.read_into(0, bytearray(64)) == 64


def test_a_block_that_the_file_lost_is_an_error() -> None:
    """R24."""
    index = BlocksIndex(SIZE)
    index.add(table_of([(0, 8, False)]), np.array([0]))
    disk = OverlaidDisk(Memory(bytearray(SIZE)), Memory(bytearray(4)), index.find)
    with pytest.raises(OSError, match="shorter"):
        disk.read_into(0, bytearray(8))
