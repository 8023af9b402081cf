"""What the disks hold is logged again, in order; and a place up to which all is on the disks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from primary_agent.tap.log_files import LogFiles
from primary_agent.tap.relog import relog
from protocol.hrl import SealReason
from shared.errors import InvalidStateError, NoSpaceError, StorageError, UsageError
from shared.tap_control import RELOG_BYTES_MAX
from tests.unit.tap.rig import EPOCH, KIB, MIB, make_box, write, zeroes


async def test_content_is_logged_again_and_the_disk_stays(tmp_path: Path) -> None:
    async with make_box(tmp_path, (4 * MIB, MIB)) as box, box.running() as engine:
        box.disk(0).write_bytes(b"a" * MIB + bytes(3 * MIB))
        await engine.begin(EPOCH)
        before = box.images()
        index = engine.disks[0].index
        wrong = {disk: bytearray(content) for disk, content in before.items()}
        wrong[index][5000:6000] = b"x" * 1000
        wrong[index][2 * MIB : 2 * MIB + 9] = b"y" * 9
        place = await relog(engine, index, [(4 * KIB, 8 * KIB), (2 * MIB, 64 * KIB)])
        assert engine.tracker.log is not None
        assert place.position == engine.tracker.log.position
        assert place.position.entry > 0
        await engine.cut(SealReason.COMMAND)
        assert box.images() == before
        # A replica that was wrong in these ranges is right after them.
        healed = box.replay({disk: bytes(content) for disk, content in wrong.items()})
        assert {disk: bytes(image) for disk, image in healed.images.items()} == before


async def test_nothing_is_logged_for_no_ranges_and_the_place_is_settled(tmp_path: Path) -> None:
    async with make_box(tmp_path, (64 * MIB,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        (disk,) = engine.disks
        engine.mutate(disk, [write(0, b"d" * MIB)])
        # A long zeroing is in the log at once, and on the disk when its turn is over.
        done = engine.mutate(disk, [zeroes(0, 64 * MIB)])
        assert done is not None
        place = await relog(engine, 0, [])
        assert done.done()
        assert box.disk(0).read_bytes() == bytes(64 * MIB)
        assert place.position.entry == 2
        assert (await relog(engine, 0, [])).position == place.position


async def test_guest_and_repair_are_one_order(tmp_path: Path) -> None:
    async with make_box(tmp_path, (MIB,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        base = box.images()
        (disk,) = engine.disks
        for number in range(50):
            engine.mutate(disk, [write(4096 * number, bytes([number + 1]) * 5120)])
            relogging = asyncio.ensure_future(relog(engine, disk.index, [(0, 256 * KIB)]))
            await asyncio.sleep(0)
            done = engine.mutate(disk, [write(4096 * number + 512, b"z" * 1024), zeroes(0, 1536)])
            await relogging
            if done is not None:
                await done
        await engine.cut(SealReason.COMMAND)
        images = box.images()
        assert {disk: bytes(image) for disk, image in box.replay(base).images.items()} == images


@pytest.mark.parametrize(
    "ranges", [[(MIB, 1)], [(MIB - 1, 2)], [(0, 0)], [(0, RELOG_BYTES_MAX), (0, 1)]], ids=["end", "over", "0", "long"]
)
async def test_wrong_ranges_are_refused(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    async with make_box(tmp_path, (MIB,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        with pytest.raises(UsageError):
            await relog(engine, engine.disks[0].index, ranges)
        with pytest.raises(UsageError):
            await relog(engine, 7, [(0, 1)])


async def test_untracked_unreadable_and_full_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with make_box(tmp_path, (MIB,)) as box, box.running() as engine:
        (disk,) = engine.disks
        with pytest.raises(InvalidStateError):
            await relog(engine, disk.index, [(0, 512)])
        await engine.begin(EPOCH)
        before = await relog(engine, disk.index, [])

        def broken(*_: object) -> list[object]:
            raise OSError(5, "bad sector")

        with monkeypatch.context() as patch:
            patch.setattr(type(disk), "read_anew", broken)
            with pytest.raises(StorageError, match="bad sector"):
                await relog(engine, disk.index, [(0, 512)])
        with monkeypatch.context() as patch:
            patch.setattr(LogFiles, "used_bytes", property(lambda files: files.limit))
            with pytest.raises(NoSpaceError):
                await relog(engine, disk.index, [(0, 512)])
        # It is no loss of tracking, which it would be for a guest's write.
        assert await relog(engine, disk.index, []) == before


async def test_weak_lease_gives_way_to_the_guest(tmp_path: Path) -> None:
    """I14: a reader that is slow costs itself its place, and never the tracking."""
    async with make_box(tmp_path, (8 * MIB,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        (disk,) = engine.disks
        files = engine.tracker.files
        files.lease("slow", 0, 3600.0, weak=True)
        for number in range(3 * files.limit // MIB):
            engine.mutate(disk, [write(MIB * (number % 8), bytes([number % 255]) * MIB)])
            cut = await engine.cut(SealReason.COMMAND)
            engine.tracker.release(EPOCH, cut.position.segment)
        assert engine.tracker.log is not None
        # What the log's reader leases does not.
        files.lease("reader", 0, 3600.0)
        with pytest.raises(InvalidStateError):
            for number in range(3 * files.limit // MIB):
                engine.mutate(disk, [write(MIB * (number % 8), bytes([number % 255]) * MIB)])
                cut = await engine.cut(SealReason.COMMAND)
                engine.tracker.release(EPOCH, cut.position.segment)
