"""Map files: bits and ranges against a plain set, and what damage to each page leaves of them."""

from __future__ import annotations

import errno
import random
import struct
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from primary_agent.tap.dirty_map import DirtyMap
from primary_agent.tap.hot_regions import HotNote
from protocol.hrl import MAX_DISKS, Geometry
from shared.map_file import (
    ANNEX_MAX,
    ANNEX_PAGES,
    BITS,
    FIRST_BITMAP_PAGE,
    NOTE_MAX,
    PAGE,
    MapDamagedError,
    MapFile,
    MapKind,
)
from shared.ports.file_system import RealFileSystem
from tests.simulation.disk import SimulatedFileSystem, Volume
from tests.simulation.loop import Process, SimulationLoop
from tests.vectors.logs import EPOCH, OTHER_EPOCH
from tests.vectors.logs import VM as LOG_VM
from tests.vectors.maps import CUTS, DIRTY_BITS, DIRTY_NOTE, HOT_BITS, HOT_NOTE, VECTORS, content
from tests.vectors.maps import DISKS as VECTOR_DISKS
from tests.vectors.maps import FOLDER as VECTOR_FOLDER

FILES = RealFileSystem()
VM = bytes(range(16))
BITS_OF_REGION = 9
REGION = 1 << BITS_OF_REGION
PAGE_BYTES = BITS * REGION
"""Bytes of a disk that one bitmap page is about."""
DISKS = [Geometry(0, 2 * PAGE_BYTES + 3 * REGION, bytes(16)), Geometry(7, 1000, bytes(16))]
FIRST_OF_7 = FIRST_BITMAP_PAGE + 3


def make(path: Path, kind: MapKind = MapKind.DIRTY, disks: list[Geometry] | None = None) -> MapFile:
    return MapFile.create(FILES, str(path), kind, VM, BITS_OF_REGION, disks or DISKS)


def reopened(path: Path, disks: list[Geometry] | None = None) -> MapFile:
    found = MapFile.open(FILES, str(path), MapKind.DIRTY, VM, BITS_OF_REGION, disks or DISKS)
    opened.append(found)
    return found


opened: list[MapFile] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 0x10]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.map"


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_new_map_is_empty_and_has_its_size(path: Path) -> None:
    """Nothing is added to it later, so that writing it never needs space."""
    made = make(path)
    assert made.size == path.stat().st_size == (FIRST_OF_7 + 1 + ANNEX_PAGES) * PAGE
    assert path.stat().st_blocks * 512 >= made.size
    assert not list(path.parent.glob("*.part"))
    for disk in DISKS:
        made.set_range(disk.index, 0, disk.size)
    made.write()
    made.write_annex(bytes(ANNEX_MAX))
    made.write_note(bytes(NOTE_MAX))
    assert path.stat().st_size == made.size
    made.close()


def test_everything_is_read_back(path: Path) -> None:
    made = make(path)
    made.set_range(0, 5 * REGION, 1)
    made.set_range(0, PAGE_BYTES - 1, 2)
    made.set_range(7, 999, 1)
    made.write()
    made.write_note(b"first")
    made.write_note(b"second")
    made.write_annex(b"annex")
    made.close()
    found = reopened(path)
    assert list(found.regions(0)) == [5, BITS - 1, BITS]
    assert list(found.ranges(0)) == [(5 * REGION, REGION), (PAGE_BYTES - REGION, 2 * REGION)]
    # The last region of a disk ends with it.
    assert list(found.ranges(7)) == [(REGION, 1000 - REGION)]
    assert found.set_bytes() == 4 * REGION
    assert (found.note, found.read_annex()) == (b"second", b"annex")
    found.clear(0, BITS)
    assert found.is_set(0, BITS - 1) and not found.is_set(0, BITS)
    found.clear_all()
    found.write()
    found.close()
    assert list(reopened(path).ranges(0)) == []


@pytest.mark.parametrize("bits", [20, 21, 23, 26])
def test_map_in_regions_of_another_size_says_all_that_it_said(path: Path, bits: int) -> None:
    """Every byte that was in a set region still is, the note is there in both slots, and the old file is replaced."""
    disks = [Geometry(3, (100 << 20) + 512, bytes(16)), Geometry(7, 1 << 20, bytes(16))]
    files, size = RealFileSystem(), 22
    former = MapFile.create(files, str(path), MapKind.HOT, bytes(16), size, disks)
    for region in (0, 7, 8, 25):
        former.set_range(3, region << size, 1)
    former.set_range(7, 0, 512)
    former.write_note(b"lease")
    made = MapFile.create(files, str(path), MapKind.HOT, bytes(16), bits, disks, like=former)
    made.close()
    found = MapFile.open(files, str(path), MapKind.HOT, bytes(16), bits, disks)
    assert found.note == b"lease"
    for index in (3, 7):
        ours = {byte >> bits for start, length in former.ranges(index) for byte in range(start, start + length, 512)}
        assert set(found.regions(index)) == ours
    with pytest.raises(MapDamagedError):
        MapFile.open(files, str(path), MapKind.HOT, bytes(16), size, disks)
    former.close()
    found.close()


def test_setting_tells_whether_something_changed(path: Path) -> None:
    made = make(path)
    assert made.set_range(0, 100 * REGION, 50 * REGION)
    assert not made.set_range(0, 110 * REGION, 10 * REGION)
    assert not made.set_range(0, 100 * REGION, 1)
    assert made.set_range(0, 149 * REGION, REGION + 1)
    made.close()


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    loop = SimulationLoop()
    yield Process("test", loop)
    loop.dismantle()


def simulated(process: Process) -> tuple[Volume, SimulatedFileSystem]:
    volume = Volume(random.Random(0), lambda: 0.0)
    files = SimulatedFileSystem(volume, process)
    files.make_folder("/maps")
    return volume, files


ranges = st.tuples(st.integers(0, DISKS[0].size - 1), st.integers(1, 300 * REGION))


@given(st.lists(st.tuples(st.booleans(), ranges), max_size=20))
def test_bits_are_those_of_a_set(process: Process, steps: list[tuple[bool, tuple[int, int]]]) -> None:
    """Setting and clearing, over the pages' borders, written and read back at the end."""
    _, files = simulated(process)
    made = MapFile.create(files, "/maps/some.map", MapKind.DIRTY, VM, BITS_OF_REGION, DISKS)
    size = DISKS[0].size
    expected: set[int] = set()
    for clear, (offset, length) in steps:
        length = min(length, size - offset)
        touched = set(range(offset // REGION, (offset + length - 1) // REGION + 1))
        if clear:
            region = min(touched)
            made.clear(0, region)
            expected.discard(region)
        else:
            assert made.set_range(0, offset, length) == bool(touched - expected)
            expected |= touched
    made.write()
    found = MapFile.open(files, "/maps/some.map", MapKind.DIRTY, VM, BITS_OF_REGION, DISKS)
    for one in (made, found):
        assert list(one.regions(0)) == sorted(expected)
        told = list(one.ranges(0))
        covered: set[int] = set()
        for start, length in told:
            covered.update(range(start // REGION, -(-(start + length) // REGION)))
        assert covered == expected
        assert all(start + length < after for (start, length), (after, _) in pairwise(told))
        assert one.set_bytes() == len(expected) * REGION
        assert not list(one.regions(7))


def test_huge_sparse_disk_costs_little(tmp_path: Path) -> None:
    """I13: only pages in which a bit was ever set take memory, and a new map is read in no time."""
    disks = [Geometry(0, 64 << 40, bytes(16))]
    path = str(tmp_path / "huge.map")
    tracemalloc.start()
    try:
        made = MapFile.create(FILES, path, MapKind.DIRTY, VM, 16, disks)
        for offset in (0, 1 << 40, (64 << 40) - 1):
            made.set_range(0, offset, 1)
        made.write()
        made.close()
        found = MapFile.open(FILES, path, MapKind.DIRTY, VM, 16, disks)
        assert [offset for offset, _ in found.ranges(0)] == [0, 1 << 40, (64 << 40) - (64 << 10)]
        found.close()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_as_many_disks_as_a_vm_may_have(path: Path) -> None:
    disks = [Geometry(index, 4096, bytes(16)) for index in range(MAX_DISKS)]
    made = make(path, disks=disks)
    made.set_range(MAX_DISKS - 1, 4095, 1)
    made.write()
    made.close()
    found = reopened(path, disks)
    assert [disk.index for disk in disks if list(found.ranges(disk.index))] == [MAX_DISKS - 1]
    found.close()


# --- damage ---------------------------------------------------------------------------------------------------------


def filled(path: Path) -> None:
    made = make(path)
    made.set_range(0, 5 * REGION, 1)
    made.set_range(0, 2 * PAGE_BYTES, 1)
    made.set_range(7, 0, 1)
    made.write()
    made.write_note(b"former")
    made.write_note(b"newest")
    made.write_annex(b"annex" * 1000)
    made.close()


def whole(index: int, page: int) -> list[int]:
    """The regions that a page is about."""
    regions = -(-next(disk.size for disk in DISKS if disk.index == index) // REGION)
    return list(range(page * BITS, min(regions, (page + 1) * BITS)))


@pytest.mark.parametrize("at", [0, 8, 9, 10, 100, PAGE - 1])
def test_damaged_header(path: Path, at: int) -> None:
    """It says nothing: neither whose map it is nor where its pages are."""
    filled(path)
    flip(path, at)
    with pytest.raises(MapDamagedError):
        reopened(path)


@pytest.mark.parametrize("at", [0, 8, 12, 17, 2000, PAGE - 1])
def test_damaged_note(path: Path, at: int) -> None:
    """The other slot's holds: it was in force until the damaged one was durable."""
    for page, expected in ((1, b"former"), (2, b"newest")):
        filled(path)
        flip(path, page * PAGE + at)
        found = reopened(path)
        assert found.note == expected
        found.write_note(b"next")
        found.close()
        assert reopened(path).note == b"next"


def test_both_notes_damaged(path: Path) -> None:
    filled(path)
    flip(path, PAGE)
    flip(path, 2 * PAGE)
    with pytest.raises(MapDamagedError):
        reopened(path)


@pytest.mark.parametrize("at", [0, 1, 3000, PAGE - 8, PAGE - 1])
@pytest.mark.parametrize("index, page", [(0, 0), (0, 2), (7, 0)])
def test_damaged_bitmap_page(path: Path, index: int, page: int, at: int) -> None:
    """It counts as wholly set, and only it."""
    filled(path)
    expected = {0: [5, 2 * BITS], 7: [0]}
    flip(path, ((FIRST_BITMAP_PAGE if index == 0 else FIRST_OF_7) + page) * PAGE + at)
    found = reopened(path)
    for disk, regions in expected.items():
        told = list(found.regions(disk))
        if disk == index:
            others = [region for region in regions if region // BITS != page]
            assert told == sorted(others + whole(index, page))
        else:
            assert told == regions
    # The next writing mends it.
    found.write()
    found.close()
    again = reopened(path)
    assert {disk: list(again.regions(disk)) for disk in expected} == {
        disk: list(found.regions(disk)) for disk in expected
    }


@pytest.mark.parametrize("sectors", range(1, 8))
@pytest.mark.parametrize("first", [True, False])
def test_torn_bitmap_page(path: Path, sectors: int, first: bool) -> None:
    """Of a page some sectors are new and some old: all that is set in either is set."""
    made = make(path)
    at = FIRST_BITMAP_PAGE * PAGE
    made.set_range(0, 0, REGION)
    made.set_range(0, PAGE_BYTES - REGION, REGION)
    made.write()
    before = path.read_bytes()[at : at + PAGE]
    made.set_range(0, 1000 * REGION, 2000 * REGION)
    made.write()
    made.close()
    cut = 512 * sectors
    kept = path.read_bytes()[at : at + PAGE]
    overwrite(path, at, kept[:cut] + before[cut:] if first else before[:cut] + kept[cut:])
    assert set(reopened(path).regions(0)) >= {0, BITS - 1, *range(1000, 3000)}


def test_page_in_another_place_is_damaged(path: Path) -> None:
    """The page's number is in its checksum."""
    filled(path)
    content = path.read_bytes()
    at = FIRST_BITMAP_PAGE * PAGE
    overwrite(path, at + PAGE, content[at : at + PAGE])
    assert set(reopened(path).regions(0)) == {5, 2 * BITS, *whole(0, 1)}


@pytest.mark.parametrize("at", [0, 8, 12, 16, 4500, 5015])
def test_damaged_annex(path: Path, at: int) -> None:
    """It reads as empty, never as something else; behind its end damage is none."""
    filled(path)
    flip(path, (FIRST_OF_7 + 1) * PAGE + at)
    found = reopened(path)
    assert found.read_annex() == b""
    assert (found.note, list(found.regions(7))) == (b"newest", [0])
    found.close()


@pytest.mark.parametrize("length", [0, 1, PAGE, FIRST_OF_7 * PAGE, (FIRST_OF_7 + 1 + ANNEX_PAGES) * PAGE - 1])
def test_truncated_file(path: Path, length: int) -> None:
    """What is missing must not read as clear."""
    filled(path)
    with path.open("r+b") as file:
        file.truncate(length)
    with pytest.raises(MapDamagedError):
        reopened(path)


@pytest.mark.parametrize(
    "other",
    [
        (MapKind.HOT, VM, BITS_OF_REGION, DISKS),
        (MapKind.DIRTY, bytes(16), BITS_OF_REGION, DISKS),
        (MapKind.DIRTY, VM, BITS_OF_REGION + 1, DISKS),
        (MapKind.DIRTY, VM, BITS_OF_REGION, DISKS[:1]),
        (MapKind.DIRTY, VM, BITS_OF_REGION, [DISKS[0], replace(DISKS[1], size=1001)]),
        (MapKind.DIRTY, VM, BITS_OF_REGION, [DISKS[0], replace(DISKS[1], index=8)]),
    ],
    ids=["kind", "vm", "region", "fewer disks", "size", "index"],
)
def test_map_of_something_else(path: Path, other: tuple[MapKind, bytes, int, list[Geometry]]) -> None:
    filled(path)
    with pytest.raises(MapDamagedError):
        MapFile.open(FILES, str(path), *other)


# --- a volume that fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["allocate", "write", "sync", "rename", "sync_folder"])
def test_map_that_cannot_be_made(process: Process, operation: str) -> None:
    """Nothing is left behind, and what had the name before has it still."""
    volume, files = simulated(process)
    MapFile.create(files, "/maps/some.map", MapKind.HOT, VM, BITS_OF_REGION, DISKS)
    before = volume.entries["/maps/some.map"]
    volume.fault = lambda what, _path: errno.ENOSPC if what == operation else 0
    with pytest.raises(OSError):
        MapFile.create(files, "/maps/some.map", MapKind.DIRTY, VM, BITS_OF_REGION, DISKS)
    assert files.list("/maps") == ["some.map"]
    assert operation == "sync_folder" or volume.entries["/maps/some.map"] is before


def test_what_could_not_be_written_is_written_next_time(process: Process) -> None:
    volume, files = simulated(process)
    made = MapFile.create(files, "/maps/some.map", MapKind.DIRTY, VM, BITS_OF_REGION, DISKS)
    made.set_range(0, 0, 2 * PAGE_BYTES)
    volume.fault = lambda what, _path: errno.EIO if what == "write" else 0
    with pytest.raises(OSError):
        made.write()
    volume.fault = lambda _what, _path: 0
    made.write()
    found = MapFile.open(files, "/maps/some.map", MapKind.DIRTY, VM, BITS_OF_REGION, DISKS)
    assert list(found.ranges(0)) == [(0, 2 * PAGE_BYTES)]


# --- the recorded files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_recorded_file_is_what_is_written_today(name: str) -> None:
    """A map of this version stays readable, and other programs may rely on the page that describes it."""
    assert (VECTOR_FOLDER / name).read_bytes() == content(name)


def test_recorded_hot_region_map_is_read() -> None:
    path = str(VECTOR_FOLDER / "hot.map")
    found = MapFile.open(FILES, path, MapKind.HOT, LOG_VM, HOT_BITS, VECTOR_DISKS, write=False)
    assert HotNote.decode(found.note) == HOT_NOTE
    assert list(found.ranges(0)) == [(5 << 22, 2 << 22)]
    assert list(found.ranges(2)) == [(0, (1 << 20) + 512)]
    found.close()


def test_recorded_dirty_map_is_read() -> None:
    path = str(VECTOR_FOLDER / "dirty.map")
    found = MapFile.open(FILES, path, MapKind.DIRTY, LOG_VM, DIRTY_BITS, VECTOR_DISKS, write=False)
    dirty = DirtyMap(found)
    assert (dirty.note, dirty.cuts()) == (DIRTY_NOTE, CUTS)
    assert list(found.ranges(0)) == [(0, 1 << 16), (32703 << 16, 2 << 16)]
    assert list(found.ranges(2)) == [(1 << 20, 512)]
    found.close()


def test_page_describes_the_recorded_dirty_map() -> None:
    """Read by the numbers of docs/maps.md alone."""
    raw = (VECTOR_FOLDER / "dirty.map").read_bytes()
    page = (VECTOR_FOLDER.parents[1] / "docs" / "maps.md").read_text(encoding="utf-8")
    for number in (PAGE, BITS, ANNEX_MAX, NOTE_MAX, ANNEX_PAGES):
        assert str(number) in page, number
    assert struct.unpack_from("<8sBBH4x16s", raw) == (b"VMRMAP\x01\n", 2, 16, 2, LOG_VM)
    assert struct.unpack_from("<I4xQI4xQ", raw, 32) == (0, 10 << 30, 2, (1 << 20) + 512)
    # The third note lies in the slot of odd numbers, which is the second one.
    sequence, length = struct.unpack_from("<QI", raw, 2 * PAGE)
    assert (sequence, length) == (3, 56)
    assert struct.unpack_from("<BB6xQQ16s16s", raw, 2 * PAGE + 16) == (2, 1, 3, 5, EPOCH, OTHER_EPOCH)
    # 163840 blocks take six bitmap pages, 17 blocks one more; then the annex.
    assert raw[3 * PAGE] == 1 and raw[4 * PAGE - 9] == 0x80 and raw[4 * PAGE] == 1
    assert raw[9 * PAGE + 2] == 1
    assert struct.unpack_from("<I4xQ16s", raw, 10 * PAGE + 8) == (48, 3, CUTS[0][1])
    assert len(raw) == (10 + ANNEX_PAGES) * PAGE
    for number in range(10):
        payload, check = (
            raw[number * PAGE : (number + 1) * PAGE - 8],
            raw[(number + 1) * PAGE - 8 : (number + 1) * PAGE],
        )
        blank = not any(payload + check)
        assert blank or check == struct.pack("<Q", xxhash.xxh3_64_intdigest(payload, number))
    assert raw[10 * PAGE : 10 * PAGE + 8] == struct.pack(
        "<Q", xxhash.xxh3_64_intdigest(raw[10 * PAGE + 8 : 10 * PAGE + 16 + 48], ANNEX_PAGES)
    )
