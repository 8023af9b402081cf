"""Tests that a frozen point reads the same while everything under it changes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from protocol.hrl import Geometry
from replica_agent.changes import Write
from replica_agent.disks import BaseDisks
from replica_agent.frozen import BLOCK, FrozenPoint
from replica_agent.layout import Layout
from shared.ports import Extent
from shared.ports.files import RealFileSystem

DISKS = (Geometry(0, 8 * BLOCK + 512, b"a" * 16), Geometry(2, 3 * BLOCK, b"b" * 16))


class Rig:
    def __init__(self, folder: Path, *, limit: int = 1 << 30, reserve: int = 0) -> None:
        self.files = RealFileSystem()
        self.folder = folder
        self.disks = BaseDisks(self.files, Layout(str(folder)), DISKS)
        self.disks.create()
        self.disks.open()
        self.limit, self.reserve = limit, reserve

    def freeze(self) -> FrozenPoint:
        point = FrozenPoint(
            self.files,
            {disk.index: self.disks.path(disk.index) for disk in DISKS},
            self.disks.sizes,
            str(self.folder / "export-1.spill"),
            self.limit,
            self.reserve,
        )
        self.disks.watchers = (point,)
        return point

    def write(self, disk: int, offset: int, data: bytes) -> None:
        self.disks.write([Write(disk, offset, len(data), [memoryview(data)])])

    def zero(self, disk: int, offset: int, length: int) -> None:
        self.disks.write([Write(disk, offset, length, None)])

    def content(self) -> dict[int, bytes]:
        return {disk.index: self.disks.read(disk.index, 0, disk.size) for disk in DISKS}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_point_stays_as_it_was_under_random_changes(rig: Rig) -> None:
    """R37, I1: any range, at any moment."""
    rng = random.Random(1)
    for disk in DISKS:
        for block in range(0, disk.size, 2 * BLOCK):
            rig.write(disk.index, block, rng.randbytes(min(BLOCK, disk.size - block)))
    before = rig.content()
    point = rig.freeze()
    for _ in range(200):
        disk = rng.choice(DISKS)
        length = 512 * rng.randint(1, 200)
        offset = 512 * rng.randrange(max(1, (disk.size - length) // 512))
        length = min(length, disk.size - offset)
        if rng.random() < 0.4:
            rig.zero(disk.index, offset, length)
        else:
            rig.write(disk.index, offset, rng.randbytes(length))
        start = rng.randrange(disk.size)
        end = rng.randint(start + 1, disk.size)
        assert point.read(disk.index, start, end - start) == before[disk.index][start:end]
        cached = point.read_cached(disk.index, start, end - start)
        assert cached is None or cached == before[disk.index][start:end]
    assert rig.content() != before
    for disk in DISKS:
        assert point.read(disk.index, 0, disk.size) == before[disk.index]
        check_extents(point.extents(disk.index, 0, disk.size), before[disk.index])
    point.close()


def check_extents(extents: list[Extent], content: bytes) -> None:
    """In order, without gaps, and holes are zeroes."""
    at = 0
    for extent in extents:
        assert extent.offset == at
        at += extent.length
        if extent.hole:
            assert not any(content[extent.offset : at])
    assert at == len(content)
    assert all(one.hole != two.hole for one, two in itertools.pairwise(extents))


def test_extents_show_holes_that_were_filled_since(rig: Rig) -> None:
    point = rig.freeze()
    rig.write(0, 2 * BLOCK, b"x" * BLOCK)
    assert point.extents(0, 0, 8 * BLOCK) == [Extent(0, 8 * BLOCK, True)]
    assert point.extents(0, 2 * BLOCK + 512, 512) == [Extent(2 * BLOCK + 512, 512, True)]
    point.close()


def test_extents_show_data_that_was_punched_since(rig: Rig) -> None:
    rig.write(0, 2 * BLOCK, b"x" * BLOCK)
    point = rig.freeze()
    rig.zero(0, 0, 8 * BLOCK)
    assert Extent(2 * BLOCK, BLOCK, False) in point.extents(0, 0, 8 * BLOCK)
    assert point.read(0, 2 * BLOCK, BLOCK) == b"x" * BLOCK
    point.close()


def test_zeroes_over_holes_cost_nothing(rig: Rig) -> None:
    """I13: a discard of a whole empty disk must not fill the index."""
    point = rig.freeze()
    rig.zero(0, 0, DISKS[0].size)
    assert point.used == 0
    point.close()


def test_spill_has_no_name(rig: Rig) -> None:
    point = rig.freeze()
    rig.write(0, 0, b"x" * BLOCK)
    assert not list(rig.folder.glob("*.spill"))
    point.close()


def test_past_its_limit_the_point_is_gone_and_the_apply_goes_on(tmp_path: Path) -> None:
    """I13: apply never waits for readers."""
    rig = Rig(tmp_path, limit=2 * BLOCK + 4096)
    for block in range(4):
        rig.write(0, block * BLOCK, b"o" * BLOCK)
    point = rig.freeze()
    for block in range(4):
        rig.write(0, block * BLOCK, b"n" * BLOCK)
    assert "more than" in point.failed
    assert rig.disks.read(0, 0, 4 * BLOCK) == b"n" * 4 * BLOCK
    for read in (point.read, point.read_cached, point.extents):
        with pytest.raises(OSError, match="could not be kept"):
            read(0, 0, 512)
    point.close()


def test_reserve_of_the_volume_is_not_used(tmp_path: Path) -> None:
    rig = Rig(tmp_path, reserve=1 << 60)
    rig.write(0, 0, b"o" * BLOCK)
    point = rig.freeze()
    rig.write(0, 0, b"n" * BLOCK)
    assert "too little room" in point.failed
    point.close()


def test_many_small_holes_are_bounded_too(tmp_path: Path) -> None:
    """I13: memory of the index counts."""
    rig = Rig(tmp_path, limit=4 * 512)
    point = rig.freeze()
    for block in range(5):
        rig.write(0, block * BLOCK, b"n" * 512)
    assert point.failed
    point.close()
