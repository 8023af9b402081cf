"""Tests of the spool on real files: what it takes, what it refuses, and what a start finds after any end."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from protocol.bulk import Bulk
from protocol.errors import ProtocolError
from protocol.hrl import Geometry, chain_seed
from protocol.position import Position
from replica_agent.layout import Layout
from replica_agent.pool import SpoolPool
from replica_agent.spool import Spool, SyncFailedError
from shared.errors import NoSpaceError, StorageError
from shared.ports.file_system import RealFileSystem
from tests.faults.nth import every_failure, on
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import EPOCH, VM, Tap, log_frame, seal_frame, write, zero

DISKS = (Geometry(0, 64 << 10, b"a" * 16), Geometry(3, 32 << 10, b"b" * 16))
START = Position(EPOCH, 0, 0, chain_seed(VM, EPOCH))


class Rig:
    """A spool in a folder, which can be opened again and again."""

    def __init__(self, folder: Path, files: RealFileSystem | None = None) -> None:
        self.files = files or RealFileSystem()
        self.layout = Layout(str(folder))
        self.files.make_folder(self.layout.spool)

    def open(self, start: Position = START, reserve: int = 0, *, torn: bool = False) -> Spool:
        pool = SpoolPool(self.files, self.layout)
        pool.load()
        spool = Spool(self.files, self.layout, VM, DISKS, start, pool, reserve=reserve)
        spool.load(torn=torn)
        return spool

    def names(self) -> list[str]:
        return self.files.list(self.layout.spool)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def tap() -> Tap:
    return Tap(DISKS)


def feed(spool: Spool, log: bytes, seal: bytes | None = None) -> Position | None:
    assert spool.take(log_frame(log)) is None
    return spool.take(seal_frame(seal)) if seal is not None else None


def test_segment_is_received_with_its_seal(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    log, seal = tap.whole_segment([write(0, 0, b"x" * 4096)])
    assert feed(spool, log) is None
    assert spool.received == START
    assert spool.position.segment == 1
    assert spool.take(seal_frame(seal)) == tap.position == spool.received
    assert [segment.end for segment in spool.segments] == [tap.position]


def test_restart_finds_received_segments_and_the_partial(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    rng = random.Random(1)
    for _ in range(3):
        feed(spool, *tap.random_segment(rng))
    received = tap.position
    feed(spool, tap.open() + tap.batch(write(3, 512, b"p" * 512)))
    spool.close()
    again = rig.open()
    assert again.received == received
    assert again.position == tap.position
    assert [segment.number for segment in again.segments] == [1, 2, 3]
    assert again.damaged == []
    feed(again, tap.batch(zero(0, 0, 4096)), tap.seal())
    assert again.received == tap.position


def test_restart_goes_on_from_what_was_applied(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    rng = random.Random(2)
    for _ in range(3):
        feed(spool, *tap.random_segment(rng))
    spool.close()
    again = rig.open(tap.ends[2])
    assert [segment.number for segment in again.segments] == [3]
    assert again.segments[0].start == tap.ends[2]
    # The applied ones went to the pool.
    assert len(rig.names()) == 3


@pytest.mark.slow
def test_torn_tail_is_cut_at_every_byte(rig: Rig, tap: Tap) -> None:
    """P7: whatever part of the last records a crash left, only whole ones count."""
    spool = rig.open()
    first = tap.open() + tap.batch(write(0, 0, b"x" * 512))
    middle = tap.position
    second = tap.batch(write(0, 512, b"y" * 512), zero(3, 0, 512))
    feed(spool, first)
    feed(spool, second)
    path = spool._open.file.path if spool._open is not None else ""
    spool.close()
    whole = Path(path).read_bytes()[: 4096 + len(first) + len(second)]
    for length in range(4096 + len(first), len(whole) + 1):
        Path(path).write_bytes(whole[:length])
        found = rig.open()
        assert found.position == (tap.position if length == len(whole) else middle)
        assert found.damaged == []
        found.close()


@pytest.mark.parametrize("at", range(0, 4096 + 1200, 97))
def test_flipped_bit_ends_the_valid_part(rig: Rig, tap: Tap, at: int) -> None:
    spool = rig.open()
    log = tap.open() + tap.batch(write(0, 0, b"x" * 512))
    log += tap.batch(write(0, 512, b"y" * 512))
    feed(spool, log)
    path = Path(spool._open.file.path if spool._open is not None else "")
    spool.close()
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    found = rig.open()
    assert found.position.entry <= 2
    if at < 4096:
        assert found.position == START
    else:
        assert found.position != tap.position or at >= 4096 + len(log)
    found.close()


def test_damage_in_a_received_segment_is_told(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    rng = random.Random(3)
    feed(spool, *tap.random_segment(rng))
    feed(spool, *tap.random_segment(rng))
    first = Path(spool.segments[0].path)
    spool.close()
    data = bytearray(first.read_bytes())
    data[4096 + 300] ^= 1
    first.write_bytes(data)
    found = rig.open()
    assert found.received == START
    assert any("damaged at offset" in text for text in found.damaged)
    assert any("segment 2" in text for text in found.damaged)
    found.close()


@pytest.mark.parametrize("sealed", [False, True])
def test_hole_that_power_loss_left_in_the_last_segment_is_no_damage(rig: Rig, tap: Tap, sealed: bool) -> None:
    """P2, R12: it was not synced, so not acknowledged; what is before the hole stays, the rest is sent again."""
    spool = rig.open()
    feed(spool, *tap.whole_segment([write(0, 0, b"1" * 512)]))
    before = tap.position
    log, seal = tap.whole_segment([write(0, at * 4096, bytes([65 + at]) * 4096) for at in range(6)])
    feed(spool, log, seal if sealed else None)
    path = Path(spool.segments[-1].path) if sealed else Path(spool._open.file.path if spool._open else "")
    spool.close()
    data = bytearray(path.read_bytes())
    data[8192:12288] = bytes(4096)
    path.write_bytes(data)
    found = rig.open(torn=True)
    assert found.damaged == []
    assert found.received == before
    found.close()
    # A kill later on is told from damage by what lies behind: nothing of that is left.
    found = rig.open()
    assert found.damaged == []
    assert feed(found, log, seal) == tap.position
    found.close()


def test_damage_before_the_last_segment_is_told_after_power_loss_too(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    rng = random.Random(3)
    feed(spool, *tap.random_segment(rng))
    feed(spool, *tap.random_segment(rng))
    first = Path(spool.segments[0].path)
    spool.close()
    data = bytearray(first.read_bytes())
    data[4096 + 300] ^= 1
    first.write_bytes(data)
    found = rig.open(torn=True)
    assert len(found.damaged) == 2
    found.close()


def test_missing_segment_is_told_and_later_ones_are_not_used(rig: Rig, tap: Tap) -> None:
    """R11: contiguous or nothing."""
    spool = rig.open()
    rng = random.Random(4)
    for _ in range(3):
        feed(spool, *tap.random_segment(rng))
    os.unlink(spool.segments[1].path)
    spool.close()
    found = rig.open()
    assert [segment.number for segment in found.segments] == [1]
    assert any("segment 3" in text for text in found.damaged)


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(spool: Spool, frame: Bulk) -> str:
    """The code of the refusal; nothing may have changed."""
    before = (spool.position, spool.received, list(spool.segments))
    with pytest.raises(ProtocolError) as info:
        spool.take(frame)
    assert (spool.position, spool.received, list(spool.segments)) == before
    return info.value.code


def test_gap_in_segments_is_refused(rig: Rig, tap: Tap) -> None:
    """R11, I11, N12."""
    spool = rig.open()
    tap.whole_segment()
    log, _ = tap.whole_segment()
    assert refused(spool, log_frame(log)) == "gap"


def test_gap_in_entries_is_refused(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    feed(spool, tap.open())
    tap.batch(write(0, 0, b"x" * 512))
    assert refused(spool, log_frame(tap.batch(write(0, 512, b"y" * 512)))) == "gap"


def test_other_content_with_the_same_numbers_is_refused(rig: Rig, tap: Tap) -> None:
    """R34: the chain tells two histories apart."""
    spool = rig.open()
    feed(spool, tap.open())
    other = Tap(DISKS)
    other.time_ns += 5
    other.open()
    assert refused(spool, log_frame(other.batch(write(0, 0, b"x" * 512)))) == "chain"


def test_other_epoch_is_refused(rig: Rig) -> None:
    spool = rig.open()
    assert refused(spool, log_frame(Tap(DISKS, epoch=b"z" * 16).open())) == "chain"


def test_other_vm_is_refused(rig: Rig) -> None:
    """I9: the chain begins with the VM."""
    spool = rig.open()
    assert refused(spool, log_frame(Tap(DISKS, vm=b"w" * 16).open())) == "chain"


@pytest.mark.parametrize(
    "disks",
    [
        DISKS[:1],
        (DISKS[0], Geometry(3, 64 << 10, b"b" * 16)),
        (DISKS[0], Geometry(3, 32 << 10, b"c" * 16)),
        (*DISKS, Geometry(4, 512, b"d" * 16)),
    ],
    ids=["fewer", "size", "uuid", "more"],
)
def test_segment_of_other_disks_is_refused(rig: Rig, disks: tuple[Geometry, ...]) -> None:
    """I9."""
    assert refused(rig.open(), log_frame(Tap(disks).open())) == "geometry"


def test_entry_outside_its_disk_is_refused(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    feed(spool, tap.open())
    tap.content[0].extend(bytes(8192))
    assert refused(spool, log_frame(tap.batch(write(0, 60 << 10, b"x" * 8192)))) == "protocol"


def test_entry_of_an_unknown_disk_is_refused(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    feed(spool, tap.open())
    tap.content[9] = bytearray(4096)
    assert refused(spool, log_frame(tap.batch(write(9, 0, b"x" * 512)))) == "protocol"


def test_seal_for_another_number_of_entries_is_refused(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    feed(spool, tap.open() + tap.batch(write(0, 0, b"x" * 512)))
    tap.start_entry = 1
    assert refused(spool, seal_frame(tap.seal())) == "gap"


def test_damaged_frame_is_refused_whole(rig: Rig, tap: Tap) -> None:
    """I18: the records before the damaged one are not kept either."""
    spool = rig.open()
    log = bytearray(tap.open() + tap.batch(write(0, 0, b"x" * 512)))
    log[-1] ^= 1
    assert refused(spool, log_frame(bytes(log))) == "chain"


@pytest.mark.parametrize("content", [b"x", b"x" * 79, b"x" * 80, bytes(80), b"HRLR" + bytes(100)])
def test_garbage_is_refused(rig: Rig, content: bytes) -> None:
    assert refused(rig.open(), log_frame(content)) == "protocol"


def test_batch_without_segment_is_refused(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    tap.segment = 1
    assert refused(spool, log_frame(tap.batch(write(0, 0, b"x" * 512)))) in ("gap", "protocol")


# --- repetition -----------------------------------------------------------------------------------------------------


def test_stale_segment_is_ignored_and_acknowledged_again(rig: Rig, tap: Tap) -> None:
    """R11, I11, N11: duplicates change nothing."""
    spool = rig.open()
    one, two = tap.whole_segment([write(0, 0, b"1" * 512)]), tap.whole_segment([write(0, 0, b"2" * 512)])
    feed(spool, *one)
    feed(spool, *two)
    assert feed(spool, *one) == tap.ends[1]
    assert feed(spool, *two) == tap.ends[2]
    assert spool.position == tap.position
    assert len(spool.segments) == 2


def test_stale_seal_of_other_content_is_refused(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    feed(spool, *tap.whole_segment([write(0, 0, b"1" * 512)]))
    _, other = Tap(DISKS).whole_segment([write(0, 0, b"2" * 512)])
    assert refused(spool, seal_frame(other)) == "chain"


def test_segment_that_starts_over_voids_the_partial(rig: Rig, tap: Tap) -> None:
    """R34: after a restart of the tap its open segment may come in another form."""
    spool = rig.open()
    feed(spool, *tap.whole_segment([write(0, 0, b"1" * 512)]))
    other = Tap(DISKS, segment=1, entry=tap.entry, chain=tap.chain, time_ns=tap.time_ns + 77)
    feed(spool, tap.open() + tap.batch(write(0, 0, b"x" * 512), write(0, 0, b"y" * 4096)))
    feed(spool, other.open() + other.batch(write(0, 0, b"z" * 512)), other.seal())
    assert spool.received == other.position
    spool.close()
    again = rig.open()
    assert again.received == other.position
    assert again.position == other.position


def test_voided_partial_survives_a_refused_restart(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    other = Tap(DISKS, time_ns=tap.time_ns + 77)
    feed(spool, tap.open() + tap.batch(write(0, 0, b"x" * 512)))
    frame = bytearray(other.open() + other.batch(write(0, 0, b"z" * 512)))
    frame[-1] ^= 1
    assert refused(spool, log_frame(bytes(frame))) == "chain"
    feed(spool, tap.batch(write(0, 512, b"y" * 512)), tap.seal())
    assert spool.received == tap.position


# --- files ----------------------------------------------------------------------------------------------------------


def test_applied_files_are_used_again(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    rng = random.Random(5)
    for number in range(1, 20):
        feed(spool, *tap.random_segment(rng))
        spool.recycle(spool.segments.pop())
        assert len(rig.names()) == 1, number
    feed(spool, *tap.random_segment(rng))
    spool.close()
    # Old records behind the new ones are not taken for a continuation.
    again = rig.open(tap.ends[19])
    assert again.received == tap.position
    assert again.position == tap.position
    assert again.damaged == []


def test_partial_in_a_recycled_file_ends_where_it_ends(rig: Rig, tap: Tap) -> None:
    """P10: bytes of an older segment are rejected by the chain."""
    spool = rig.open()
    feed(spool, *tap.whole_segment([write(0, 512 * n, b"x" * 512) for n in range(20)], [zero(0, 0, 512)] * 9))
    spool.recycle(spool.segments.pop())
    feed(spool, tap.open() + tap.batch(write(0, 0, b"y" * 512)))
    spool.close()
    again = rig.open(tap.ends[1])
    assert again.position == tap.position
    assert again.damaged == []


def test_drop_leaves_no_segment(rig: Rig, tap: Tap) -> None:
    spool = rig.open()
    rng = random.Random(6)
    for _ in range(7):
        feed(spool, *tap.random_segment(rng))
    feed(spool, tap.open())
    spool.drop()
    assert all(name.startswith("free-") for name in rig.names())
    assert rig.open().position == START


def test_reserve_is_never_used(rig: Rig, tap: Tap) -> None:
    spool = rig.open(reserve=1 << 60)
    log, _ = tap.whole_segment()
    with pytest.raises(NoSpaceError, match="bytes .* are missing"):
        spool.take(log_frame(log))
    assert spool.position == START


def plant(kind: str, path: Path, outside: Path) -> None:
    if kind == "symlink":
        path.symlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_something_else_in_place_of_a_segment_is_refused(rig: Rig, tmp_path: Path, kind: str) -> None:
    """A15."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    plant(kind, Path(rig.layout.segment(EPOCH, 1)), outside)
    with pytest.raises(StorageError, match="not a regular file"):
        rig.open()
    assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_something_else_in_the_pool_is_never_written(rig: Rig, tap: Tap, tmp_path: Path, kind: str) -> None:
    """A15."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    plant(kind, Path(rig.layout.pooled(3)), outside)
    spool = rig.open()
    feed(spool, *tap.whole_segment([write(0, 0, b"1" * 512)]))
    assert spool.received == tap.position
    assert outside.read_bytes() == b"precious"


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["sync", "sync_folder"])
def test_failed_sync_voids_the_segment(tmp_path: Path, tap: Tap, operation: str) -> None:
    """R17, I5: nothing is acknowledged that was not synced, and the file is not used again."""
    files = FailingFiles(RealFileSystem())
    rig = Rig(tmp_path, files)
    spool = rig.open()
    feed(spool, *tap.whole_segment([write(0, 0, b"1" * 512)]))
    before = spool.received
    log, seal = tap.whole_segment([write(0, 0, b"2" * 512)])
    feed(spool, log)
    files.fail_next(operation)
    with pytest.raises(SyncFailedError):
        spool.take(seal_frame(seal))
    assert spool.received == before == spool.position
    assert len(rig.names()) == 1
    # What is sent again goes to another file and counts.
    assert feed(spool, log, seal) == tap.position


@pytest.mark.parametrize("operation", ["open", "write", "allocate", "rename", "size"])
def test_failed_operation_changes_nothing(tmp_path: Path, tap: Tap, operation: str) -> None:
    failed = 0
    for failure in every_failure(on(operation)):
        folder = tmp_path / f"{failure.number}-{failure.persistent}"
        files = FailingFiles(RealFileSystem())
        rig, tap = Rig(folder, files), Tap(DISKS)
        spool = rig.open()
        feed(spool, *tap.whole_segment([write(0, 0, b"1" * 512)]))
        spool.recycle(spool.segments.pop())
        before = spool.position
        log, seal = tap.whole_segment([write(0, 0, b"2" * 512)])
        files.fault = failure
        try:
            feed(spool, log)
        except OSError:
            failed += 1
            assert spool.position == before
            failure.lifted = True
            feed(spool, log)
        failure.lifted = True
        assert spool.take(seal_frame(seal)) == tap.position
        spool.close()
    assert failed or operation in ("allocate", "size")
