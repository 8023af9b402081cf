"""Tests of undo logs by themselves: written, read through, merged, damaged."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from protocol.hrl import FILE_HEADER_BYTES, Geometry
from protocol.position import Position
from replica_agent.changes import Write
from replica_agent.disks import BaseDisks
from replica_agent.layers import PointReader
from replica_agent.layout import Layout
from replica_agent.overwritten import Overwritten
from replica_agent.saving import save
from replica_agent.thinning import merge, overlaid
from replica_agent.undo_writer import UndoWriter
from shared.errors import NoSpaceError
from shared.ports import Extent
from shared.ports.file_system import RealFileSystem
from shared.undo_log import BATCH_BYTES, Link, Piece, UndoDamagedError, UndoLog, UndoUnreadableError

VM = bytes(range(16))
BLOCK = 64 << 10
DISKS = (Geometry(0, 8 * BLOCK + 512, b"a" * 16), Geometry(2, 3 * BLOCK, b"b" * 16))


def position(number: int) -> Position:
    return Position(b"e" * 16, number, 10 * number, bytes([number]) * 16)


class Rig:
    """Disks, and a history of changes of them: each saves what it overwrites first."""

    def __init__(self, folder: Path) -> None:
        self.files = RealFileSystem()
        self.folder = folder
        self.disks = BaseDisks(self.files, Layout(str(folder)), DISKS)
        self.disks.create()
        self.disks.open()
        self.count = 0
        self.logs: list[UndoLog] = []
        self.contents: list[dict[int, bytes]] = []
        """What the disks held before each log."""
        self.readers: list[PointReader] = []

    def content(self) -> dict[int, bytes]:
        return {disk.index: self.disks.read(disk.index, 0, disk.size) for disk in DISKS}

    def change(self, *writes: Write) -> UndoLog:
        """Save what the writes overwrite, then make them."""
        self.contents.append(self.content())
        self.count += 1
        path = f"{self.folder}/{self.count}.undo"
        writer = UndoWriter(self.files, path, VM, self.link(self.count, self.count + 1), reserve=0)
        ranges: dict[int, list[list[int]]] = {}
        for disk in DISKS:
            mine = sorted([w.offset, w.offset + w.length] for w in writes if w.disk == disk.index)
            merged: list[list[int]] = []
            for start, end in mine:
                if merged and start <= merged[-1][1]:
                    merged[-1][1] = max(merged[-1][1], end)
                else:
                    merged.append([start, end])
            if merged:
                ranges[disk.index] = merged
        for _ in save(self.disks, ranges, writer):
            pass
        writer.finish()
        log = self.open(path, self.count)
        self.logs.append(log)
        for reader in self.readers:
            reader.layers = (*reader.layers, log)
        self.disks.write(writes)
        return log

    def link(self, older: int, newer: int) -> Link:
        return Link(position(older), position(newer), older * 60.0, newer * 60.0)

    def open(self, path: str, order: int) -> UndoLog:
        return UndoLog(self.files, path, VM, self.disks.sizes, order)

    def random_writes(self, rng: random.Random) -> list[Write]:
        writes = []
        for _ in range(rng.randint(1, 12)):
            disk = rng.choice(DISKS)
            length = min(512 * rng.choice([1, 2, 8, 8, 50, 200]), disk.size)
            offset = 512 * rng.randrange((disk.size - length) // 512 + 1)
            pieces = None if rng.random() < 0.4 else [memoryview(rng.randbytes(length))]
            writes.append(Write(disk.index, offset, length, pieces))
        return writes

    def reader(self, at: int) -> PointReader:
        """Of what the disks held before the log number ``at``; of now, without."""
        paths = {disk.index: self.disks.path(disk.index) for disk in DISKS}
        reader = PointReader(self.files, paths, tuple(self.logs[at:]))
        self.readers.append(reader)
        return reader


def whole(reader: PointReader) -> dict[int, bytes]:
    return {disk.index: reader.read(disk.index, 0, disk.size) for disk in DISKS}


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


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.mark.parametrize("seed", range(6))
def test_every_point_reads_as_it_was(rig: Rig, seed: int) -> None:
    """I1, R37: any range of any point, at any moment, also of points that are read since long before."""
    rng = random.Random(seed)
    early = [rig.reader(0)]
    expected = [rig.content()]
    for number in range(12):
        rig.change(*rig.random_writes(rng))
        if number % 4 == 3:
            early.append(rig.reader(len(rig.logs)))
            expected.append(rig.content())
        for reader, content in zip(early, expected, strict=True):
            disk = rng.choice(DISKS)
            start = rng.randrange(disk.size)
            end = rng.randint(start + 1, disk.size)
            assert reader.read(disk.index, start, end - start) == content[disk.index][start:end]
            cached = reader.read_cached(disk.index, start, end - start)
            assert cached is None or cached == content[disk.index][start:end]
            check_extents(reader.extents(disk.index, 0, disk.size), content[disk.index])
    for at, content in enumerate(rig.contents):
        assert whole(rig.reader(at)) == content
    for reader, content in zip(early, expected, strict=True):
        assert whole(reader) == content


def test_a_log_that_comes_while_a_read_is_under_way_is_looked_into(rig: Rig) -> None:
    """R37: the disk is read, overwritten meanwhile, and the undo log has what it was."""
    rig.change(Write(0, 0, 8192, [memoryview(b"o" * 8192)]))
    reader = rig.reader(1)
    file = reader._disks[0]
    read_into = file.read_into

    def late(offset: int, buffer: bytearray | memoryview) -> int:
        if rig.count == 1:
            rig.change(Write(0, 4096, 8192, [memoryview(b"n" * 8192)]))
        return read_into(offset, buffer)

    file.read_into = late  # type: ignore[method-assign]
    assert reader.read(0, 0, 12288) == b"o" * 8192 + bytes(4096)
    assert rig.count == 2


@pytest.mark.parametrize("seed", range(8))
def test_merged_logs_lead_to_the_oldest_of_their_points(rig: Rig, seed: int) -> None:
    """R25: older content wins; readers may go on with the merged log in place of its sources."""
    rng = random.Random(seed)
    for _ in range(6):
        rig.change(*rig.random_writes(rng))
    low = rng.randrange(4)
    high = rng.randint(low + 2, 6)
    path = f"{rig.folder}/merged.undo"
    writer = UndoWriter(rig.files, path, VM, rig.link(low + 1, high + 1), reserve=0)
    for _ in merge(rig.logs[low:high], writer):
        pass
    sealed = writer.finish()
    merged = rig.open(path, high)
    assert (merged.length, merged.chain) == (sealed.length, sealed.chain)
    assert merged.link == rig.link(low + 1, high + 1)
    assert merged.length <= sum(log.length for log in rig.logs[low:high])
    rig.logs[low:high] = [merged]
    for at in range(low + 1):
        assert whole(rig.reader(at)) == rig.contents[at]
    assert whole(rig.reader(low + 1)) == (rig.contents[high] if high < 6 else rig.content())


def test_holes_are_kept_as_holes(rig: Rig) -> None:
    rig.change(Write(0, 2 * BLOCK, BLOCK, [memoryview(b"x" * BLOCK)]))
    reader = rig.reader(0)
    assert reader.extents(0, 0, 8 * BLOCK) == [Extent(0, 8 * BLOCK, True)]
    log = rig.change(Write(0, 0, 8 * BLOCK, None))
    assert log.end.payload_bytes == BLOCK
    assert Extent(2 * BLOCK, BLOCK, False) in rig.reader(1).extents(0, 0, 8 * BLOCK)


def test_zeroes_over_holes_cost_nothing(rig: Rig) -> None:
    """I13: a discard of a whole empty disk must not copy it."""
    log = rig.change(Write(0, 0, DISKS[0].size, None))
    assert (log.end.entries, log.end.payload_bytes) == (1, 0)


def test_a_log_without_entries(rig: Rig) -> None:
    log = rig.change()
    assert log.disks == []
    assert whole(rig.reader(0)) == rig.contents[0]


@pytest.mark.parametrize("seed", range(4))
def test_pieces_under_pieces(seed: int) -> None:
    """Against a model of single bytes."""
    rng = random.Random(seed)
    for _ in range(200):
        layers: list[list[Piece]] = []
        model: dict[int, tuple[int, int | None]] = {}
        for layer in range(3):
            pieces, at = [], 0
            while (at := at + rng.randint(0, 4)) < 40:
                end = at + rng.randint(1, 6)
                data = None if rng.random() < 0.3 else memoryview(rng.randbytes(end - at))
                pieces.append(Piece(at, end, data))
                for place in range(at, end):
                    model.setdefault(place, (layer, None if data is None else data[place - at]))
                at = end
            layers.append(pieces)
        found: dict[int, int | None] = {}
        before = 0
        for piece in overlaid(layers):
            assert before <= piece.start < piece.end
            before = piece.end
            for place in range(piece.start, piece.end):
                found[place] = None if piece.data is None else piece.data[place - piece.start]
        assert found == {place: value for place, (_, value) in model.items()}


# --- damage ----------------------------------------------------------------------------------------------------------


def test_truncation_at_every_byte_and_every_flipped_byte_is_noticed(rig: Rig) -> None:
    """I18, A24: opened or read, never wrong content."""
    rng = random.Random(9)
    rig.change(*rig.random_writes(rng))
    rig.change(*rig.random_writes(rng))
    path = Path(f"{rig.folder}/2.undo")
    data = path.read_bytes()
    expected = rig.contents[1]

    def judge(changed: bytes) -> None:
        path.write_bytes(changed)
        try:
            log = rig.open(str(path), 2)
        except UndoDamagedError:
            return
        reader = PointReader(rig.files, {d.index: rig.disks.path(d.index) for d in DISKS}, (log,))
        try:
            assert whole(reader) == expected
            # What was changed is not read: the header's padding is, so it is under the header's checksum.
            assert changed == data
        except UndoUnreadableError:
            return
        finally:
            reader.close()

    for size in {*range(0, len(data), 509), *range(len(data) - 300, len(data)), FILE_HEADER_BYTES}:
        judge(data[:size])
    for at in {*range(0, len(data), 401), *range(len(data) - 400, len(data)), *range(FILE_HEADER_BYTES, 4500)}:
        judge(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
    judge(data + b"x")
    judge(data)


def test_a_log_of_another_vm_is_refused(rig: Rig) -> None:
    rig.change(Write(0, 0, 512, [memoryview(b"x" * 512)]))
    with pytest.raises(UndoDamagedError, match="belongs to VM"):
        UndoLog(rig.files, f"{rig.folder}/1.undo", b"z" * 16, rig.disks.sizes, 1)


def test_a_log_of_a_larger_disk_is_refused(rig: Rig) -> None:
    rig.change(Write(2, 2 * BLOCK, BLOCK, [memoryview(b"x" * BLOCK)]))
    with pytest.raises(UndoDamagedError, match="outside disk 2"):
        UndoLog(rig.files, f"{rig.folder}/1.undo", VM, {0: 8 * BLOCK, 2: BLOCK}, 1)


def test_without_room_nothing_is_left(rig: Rig) -> None:
    with pytest.raises(NoSpaceError):
        UndoWriter(rig.files, f"{rig.folder}/u.undo", VM, rig.link(1, 2), reserve=1 << 60)
    assert not Path(f"{rig.folder}/u.undo").exists()


# --- memory ----------------------------------------------------------------------------------------------------------


def test_too_many_ranges_are_rounded_out(rig: Rig) -> None:
    """I13: the ranges kept in memory are bounded; what they cover only grows."""
    import numpy as np

    from protocol.entries import ENTRY_DTYPE, EntryKind
    from replica_agent.changes import Changes

    overwritten = Overwritten({0: 1 << 30}, ranges_max=64)
    rng = random.Random(4)
    exact: set[tuple[int, int]] = set()
    for _ in range(20):
        table = np.zeros(40, ENTRY_DTYPE)
        table["kind"] = EntryKind.ZERO
        for row in range(40):
            offset = 512 * rng.randrange(1 << 20)
            table[row]["offset"], table[row]["length"] = offset, 512
            exact.add((offset, offset + 512))
        overwritten.add(table)
        assert overwritten.covers(Changes(table, np.zeros(40, np.int64), memoryview(b"")))
        assert sum(map(len, overwritten._parts[0])) <= 64 + 40
    ranges = overwritten.ranges()[0]
    assert all(any(low <= start and end <= high for low, high in ranges) for start, end in exact)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(ranges))


def test_what_was_not_saved_is_not_covered() -> None:
    """R25: an entry that the tables did not name when they were saved."""
    import numpy as np

    from protocol.entries import ENTRY_DTYPE, EntryKind
    from replica_agent.changes import Changes

    def changes(disk: int, offset: int, length: int) -> Changes:
        table = np.zeros(1, ENTRY_DTYPE)
        table["disk"], table["kind"], table["offset"], table["length"] = disk, EntryKind.ZERO, offset, length
        return Changes(table, np.zeros(1, np.int64), memoryview(b""))

    saved = Overwritten({0: 1 << 20, 2: 1 << 20})
    saved.add(changes(0, 4096, 4096).table)
    saved.add(changes(0, 8192, 4096).table)
    assert saved.covers(changes(0, 4096, 8192))
    assert saved.covers(changes(0, 8192, 512))
    for beside in ((0, 3584, 512), (0, 4096, 8704), (0, 12288, 512), (2, 4096, 512), (0, 0, 1 << 20)):
        assert not saved.covers(changes(*beside))


def test_a_large_range_is_read_in_pieces(rig: Rig) -> None:
    rig.change(Write(0, 0, 8 * BLOCK, [memoryview(bytes(range(256)) * (8 * BLOCK // 256))]))
    log = rig.change(Write(0, 0, 8 * BLOCK, None))
    assert log.end.batches == -(-8 * BLOCK // BATCH_BYTES)
    assert whole(rig.reader(1)) == rig.contents[1]


# --- format ----------------------------------------------------------------------------------------------------------


def test_the_recorded_vector() -> None:
    """docs/undo-format.md: what was written once is read for ever, and is written the same."""
    from tests.vectors.logs import VM as VECTOR_VM
    from tests.vectors.undo import LINK, PATH, RANGES, SIZES, content

    assert PATH.read_bytes() == content(), "run scripts/make-vectors"
    log = UndoLog(RealFileSystem(), str(PATH), VECTOR_VM, SIZES, 1)
    assert log.link == LINK
    assert (log.end.entries, log.end.batches) == (len(RANGES), 3)
    found = [
        (disk, piece.start, piece.end - piece.start, None if piece.data is None else bytes(piece.data[:1]))
        for disk in log.disks
        for piece in log.pieces(disk, 0, SIZES[disk])
    ]
    assert found == RANGES
    page = (Path(__file__).parents[3] / "docs/undo-format.md").read_text()
    for disk, offset, length, fill in RANGES:
        assert f"| {disk} | {offset} | {length} | {f'`{fill.decode()}`' if fill else 'hole'} |" in page
    log.close()
