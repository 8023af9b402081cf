"""Tests of the pool of spool files on real files: what it keeps, cuts and removes."""

from __future__ import annotations

from pathlib import Path

import pytest

from replica_agent.layout import Layout
from replica_agent.pool import LEAST_BYTES, SpoolPool
from shared.ports.file_system import RealFileSystem

EPOCH = bytes(range(16))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path))
    Path(layout.spool).mkdir()
    return layout


def make(layout: Layout, segment: int, size: int) -> str:
    path = Path(layout.segment(EPOCH, segment))
    path.write_bytes(b"x" * size)
    return str(path)


def pool_of(layout: Layout, *, room: int) -> SpoolPool:
    return SpoolPool(RealFileSystem(), layout, max_files=2, max_bytes=room)


def sizes(layout: Layout) -> list[int]:
    return sorted(path.stat().st_size for path in Path(layout.spool).iterdir())


def test_file_that_fits_is_kept_whole(layout: Layout) -> None:
    pool = pool_of(layout, room=4 * LEAST_BYTES)
    pool.put(make(layout, 1, LEAST_BYTES // 2))
    assert sizes(layout) == [LEAST_BYTES // 2] == [pool.bytes]


def test_file_larger_than_the_room_is_cut_to_it(layout: Layout) -> None:
    pool = pool_of(layout, room=4 * LEAST_BYTES)
    pool.put(make(layout, 1, LEAST_BYTES))
    pool.put(make(layout, 2, 7 * LEAST_BYTES))
    assert sizes(layout) == [LEAST_BYTES, 3 * LEAST_BYTES]
    assert pool.bytes == 4 * LEAST_BYTES
    assert pool.take(layout.segment(EPOCH, 3))
    assert Path(layout.segment(EPOCH, 3)).stat().st_size == 3 * LEAST_BYTES


def test_file_for_which_little_room_is_left_is_removed(layout: Layout) -> None:
    pool = pool_of(layout, room=2 * LEAST_BYTES - 1)
    pool.put(make(layout, 1, LEAST_BYTES))
    pool.put(make(layout, 2, LEAST_BYTES))
    assert sizes(layout) == [LEAST_BYTES]


def test_no_more_files_are_kept_than_allowed(layout: Layout) -> None:
    pool = pool_of(layout, room=100)
    for segment in range(1, 4):
        pool.put(make(layout, segment, 10))
    assert sizes(layout) == [10, 10]


def test_start_takes_over_what_is_there_within_the_bounds(layout: Layout) -> None:
    pool = pool_of(layout, room=4 * LEAST_BYTES)
    pool.put(make(layout, 1, 3 * LEAST_BYTES))
    smaller = pool_of(layout, room=2 * LEAST_BYTES)
    smaller.load()
    assert sizes(layout) == [2 * LEAST_BYTES] == [smaller.bytes]


def test_what_is_no_file_is_removed_and_not_followed(layout: Layout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"y" * 2 * LEAST_BYTES)
    Path(layout.segment(EPOCH, 1)).symlink_to(elsewhere)
    pool = pool_of(layout, room=LEAST_BYTES)
    pool.put(layout.segment(EPOCH, 1))
    assert sizes(layout) == []
    assert elsewhere.stat().st_size == 2 * LEAST_BYTES
