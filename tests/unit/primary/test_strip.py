"""The strip of a disk's address space: every byte is in exactly one place, and stays there through sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primary_agent.strip import CELLS_IN_ALL, DiskStrip
from protocol.messages import BLOCK_SIZE
from shared.progress_status import StripStatus

MIB = 1 << 20
GIB = 1 << 30


def total(cells: list[int]) -> int:
    return sum(cells)


def by_kind(status: StripStatus) -> tuple[int, int, int, int, int]:
    kinds = (status.equal, status.different, status.sent, status.settled, status.outside)
    equal, different, sent, settled, outside = map(total, kinds)
    return equal, different, sent, settled, outside


@pytest.mark.parametrize("size", [1, 512, BLOCK_SIZE, 128 * BLOCK_SIZE, 200 * MIB + 512, 16 << 40])
def test_few_cells_whatever_the_size(size: int) -> None:
    strip = DiskStrip(size)
    strip.begin([(0, size)], [(0, size)])
    status = strip.status()
    assert 1 <= len(status.equal) <= 128
    assert (len(status.equal) - 1) * status.cell_bytes < size <= len(status.equal) * status.cell_bytes
    assert by_kind(status) == (0, 0, 0, 0, 0)


def test_many_disks_share_the_cells() -> None:
    assert 64 * DiskStrip(GIB, 64).count <= CELLS_IN_ALL


def test_the_way_of_a_range() -> None:
    strip = DiskStrip(256 * MIB)
    strip.begin([(0, 256 * MIB)], [(0, 256 * MIB)])
    strip.compared(0, 64 * MIB, [(MIB, 3 * MIB), (40 * MIB, BLOCK_SIZE)])
    differing = 3 * MIB + BLOCK_SIZE
    assert by_kind(strip.status()) == (64 * MIB - differing, differing, 0, 0, 0)
    # Cells of 2 MiB: the difference lies across two of them.
    assert strip.status().different[:3] == [MIB, 2 * MIB, 0]
    strip.sent(0)
    assert by_kind(strip.status()) == (64 * MIB - differing, 0, differing, 0, 0)
    strip.settled(0)
    strip.settled(0)
    assert by_kind(strip.status()) == (64 * MIB - differing, 0, 0, differing, 0)


def test_a_hole_on_both_sides_is_nothing_that_was_compared() -> None:
    strip = DiskStrip(128 * MIB)
    strip.begin([(0, 128 * MIB)], [(0, 128 * MIB)])
    strip.compared(64 * MIB, 64 * MIB, [], hole=True)
    assert by_kind(strip.status()) == (0, 0, 0, 0, 64 * MIB)


def test_what_is_not_in_doubt_is_outside() -> None:
    strip = DiskStrip(128 * MIB)
    strip.begin([(0, MIB), (100 * MIB, 2 * MIB)], [(0, MIB), (100 * MIB, 2 * MIB)])
    assert by_kind(strip.status()) == (0, 0, 0, 0, 125 * MIB)
    assert strip.status().outside[:2] == [0, MIB]


def test_a_later_session_compares_again_what_was_not_settled() -> None:
    strip = DiskStrip(256 * MIB)
    strip.begin([(0, 256 * MIB)], [(0, 256 * MIB)])
    for offset in (0, 64 * MIB):
        strip.compared(offset, 64 * MIB, [(offset, MIB)])
        strip.sent(offset)
    strip.settled(0)
    strip.begin([(0, 256 * MIB)], [(64 * MIB, 192 * MIB)])
    assert by_kind(strip.status()) == (63 * MIB, 0, 0, MIB, 0)
    strip.settled(64 * MIB)
    assert by_kind(strip.status()) == (63 * MIB, 0, 0, MIB, 0)


def test_after_a_restart_settled_is_all_that_is_known() -> None:
    strip = DiskStrip(256 * MIB)
    strip.begin([(0, 256 * MIB)], [(100 * MIB, 156 * MIB)])
    assert by_kind(strip.status()) == (0, 0, 0, 100 * MIB, 0)


RANGES = st.lists(st.integers(0, 4000), min_size=2, max_size=40, unique=True).map(
    lambda points: [
        (start * 997, (end - start) * 997)
        for start, end in zip(sorted(points)[::2], sorted(points)[1::2], strict=False)
    ]
)


@given(RANGES, st.integers(1, 4_100_000))
def test_coverage_is_that_of_every_byte(ranges: list[tuple[int, int]], size: int) -> None:
    inside = [(start, min(length, size - start)) for start, length in ranges if start < size]
    strip = DiskStrip(size)
    strip.begin(inside, inside)
    expected = [strip.cell_bytes] * (strip.count - 1) + [size - (strip.count - 1) * strip.cell_bytes]
    for start, length in inside:
        at, end = start, start + length
        while at < end:
            cell = at // strip.cell_bytes
            part = min(end, (cell + 1) * strip.cell_bytes) - at
            expected[cell] -= part
            at += part
    assert strip.status().outside == expected
