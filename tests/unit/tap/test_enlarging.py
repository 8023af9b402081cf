"""A disk's file that the tap enlarges: no change by somebody else, wherever it dies, and known to its next start."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.enlarging import enlarge
from primary_agent.tap.exports import DiskDirectory
from primary_agent.tap.other_disks import map_of_other_disks
from primary_agent.tap.ports import OwnPorts
from protocol.hrl import SealReason
from shared.errors import InvalidStateError, StorageError, UsageError
from shared.map_file import MapFile, MapKind
from shared.ports.file_system import RealFileSystem
from shared.tap_config import DIRTY_BLOCK_BITS, TapConfig
from shared.tap_control import DiskFile, LostReason, Tracking
from tests.places import step
from tests.unit.tap.rig import EPOCH, KIB, make_box, make_config, write
from tests.unit.tap.world import World

pytestmark = pytest.mark.usefixtures("small_maps_of_taps")

SIZE, LARGER = 256 * KIB, 1024 * KIB


def at(config: TapConfig, **changes: int) -> TapConfig:
    """The configuration with changes of the first disk."""
    return msgspec.structs.replace(config, disks=[msgspec.structs.replace(config.disks[0], **changes)])


class Order:
    """A tap that tracks a disk, enlarges its file, leaves its log, is stopped, and then served at the new size."""

    def __init__(self) -> None:
        config = make_config("/vm", (SIZE,), log_file_bytes=64 * KIB, log_limit_bytes=512 * KIB)
        self.world = World(at(config, larger=LARGER))
        self.plain = at(config, size=LARGER)
        self.at_cut = b""
        self.result = ""
        self.stopped = self.followed = False

    @property
    def image(self) -> bytes:
        return self.world.images()[0]

    async def begin(self, ports: OwnPorts) -> None:
        tap = TapEngine(self.world.folder, self.world.config, ports)
        await tap.start()
        await tap.begin(EPOCH)
        await self._write(tap, 4 * KIB)
        await tap.cut(SealReason.COMMAND)
        self.at_cut = self.image
        await self._write(tap, 40 * KIB)
        await tap.stop()

    async def enlarge(self, ports: OwnPorts) -> None:
        tap = TapEngine(self.world.folder, self.world.config, ports)
        await tap.start()
        loss = tap.tracker.loss
        self.result = f"{tap.tracker.tracking} {loss.text if loss is not None else ''}"
        assert await enlarge(tap, 0, LARGER) == DiskFile(size=LARGER, block=False)
        await self._write(tap, 70 * KIB)
        await tap.leave_log("disk 0 was enlarged")
        await self._write(tap, 90 * KIB)
        await tap.stop()
        self.stopped = True

    async def follow(self, ports: OwnPorts) -> None:
        """With the new size; then what is known of the disk is checked against what it holds (I3)."""
        tap = TapEngine(self.world.folder, self.plain, ports)
        await tap.start()
        await tap.tracker.settle()
        tracker = tap.tracker
        assert tracker.tracking is Tracking.MAP, tracker.loss
        dirty, now = tracker.maps.dirty, self.image
        assert dirty is not None and len(now) == LARGER and tap.disks[0].size == LARGER
        assert self._compared(dirty.file) == now[:SIZE]
        behind = any(offset + length > SIZE for offset, length in dirty.file.ranges(0))
        assert behind is self.followed, "what is a hole is not compared"
        self.followed = True
        await self._write(tap, LARGER - 8 * KIB)
        assert any(offset + length > SIZE for offset, length in dirty.file.ranges(0))
        await tap.stop()

    def _compared(self, found: MapFile) -> bytes:
        """What the cut becomes by what the map names."""
        compared, now = bytearray(self.at_cut), self.image
        for offset, length in found.ranges(0):
            compared[offset : offset + length] = now[offset : offset + length]
        return bytes(compared[:SIZE])

    async def _write(self, tap: TapEngine, offset: int) -> None:
        done = tap.mutate(tap.disks[0], [write(offset, self.world.rng.randbytes(5 * KIB))])
        if done is not None:
            await done


def test_an_enlarged_disk_is_no_foreign_change_and_only_what_was_written_is_compared() -> None:
    order = Order()
    for part in (order.begin, order.enlarge, order.follow, order.follow):
        assert order.world.run(part)
    assert order.result == "on "
    order.world.close()


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
def test_a_death_anywhere_in_the_order_leaves_it_to_the_next_start(power: bool) -> None:
    """Each call of a port is a place to die at; the file has either size, and nothing was done by somebody else."""
    sizes: list[int] = []
    for die_at in range(1, 2000, step(17, all_places=1)):
        order = Order()
        try:
            assert order.world.run(order.begin)
            lived = order.world.run(order.enlarge, die_at=die_at)
            if not lived:
                if power:
                    order.world.lose_power()
                sizes.append(len(order.image))
                assert sizes[-1] in (SIZE, LARGER)
                assert order.world.run(order.enlarge)
                assert order.result.startswith(("on", "map")), (die_at, order.result)
            assert order.stopped and order.world.run(order.follow)
        finally:
            order.world.close()
        if lived:
            break
    assert {SIZE, LARGER} == set(sizes), "it died before and after"


async def test_what_the_tap_does_not_enlarge(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        box.config = at(box.config, larger=LARGER)
        async with box.running() as engine:
            await engine.begin(EPOCH)
            with pytest.raises(UsageError, match="no disk 4"):
                await enlarge(engine, 4, LARGER)
            with pytest.raises(InvalidStateError, match="would get"):
                await enlarge(engine, 0, SIZE - 512)
            before = box.disk(0).stat()
            with pytest.raises(StorageError, match="can't be enlarged") as refused:
                await enlarge(engine, 0, (1 << 63) - 512)
            assert "less" in refused.value.remedy or "volume" in refused.value.remedy
            assert await enlarge(engine, 0, 0) == DiskFile(size=SIZE, block=False)
            assert box.disk(0).stat().st_size == before.st_size
            await engine.cut(SealReason.COMMAND)
            assert engine.tracker.tracking is Tracking.ON
        # Enlarged by somebody else while no tap ran: to the very size that was meant, and still nothing vouches for it.
        os.truncate(box.disk(0), LARGER)
        async with box.running() as engine:
            assert engine.tracker.loss is not None and engine.tracker.loss.reason is LostReason.DISK_CHANGED


async def test_a_write_by_somebody_else_to_a_disk_that_is_being_enlarged_is_found_out(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box:
        box.config = at(box.config, larger=LARGER)
        engine = box.engine()
        await engine.start()
        await engine.begin(EPOCH)
        await enlarge(engine, 0, LARGER)
        await engine.cut(SealReason.COMMAND)
        assert engine.tracker.tracking is Tracking.ON
        await box.killed(engine)
        later = box.disk(0).stat().st_mtime_ns + 10**9
        os.utime(box.disk(0), ns=(later, later))
        async with box.running() as engine:
            assert engine.tracker.loss is not None and engine.tracker.loss.reason is LostReason.DISK_CHANGED


async def test_a_disk_that_somebody_else_has_just_written_is_not_enlarged(tmp_path: Path) -> None:
    """The times that the tap sets would hide it."""
    async with make_box(tmp_path, (SIZE,)) as box:
        box.config = at(box.config, larger=LARGER)
        async with box.running() as engine:
            await engine.begin(EPOCH)
            later = box.disk(0).stat().st_mtime_ns + 10**9
            os.utime(box.disk(0), ns=(later, later))
            with pytest.raises(InvalidStateError, match="somebody else"):
                await enlarge(engine, 0, LARGER)
            assert engine.tracker.tracking is Tracking.LOST
            assert box.disk(0).stat().st_size == SIZE


async def test_clients_see_no_more_than_is_to_be_served(tmp_path: Path) -> None:
    """Of a disk that a recovery point has smaller (shared.tap_config.TapDisk.served)."""
    async with make_box(tmp_path, (LARGER,)) as box:
        box.config = at(box.config, served=SIZE)
        async with box.running() as engine:
            found = DiskDirectory(engine).find("disk0")
            assert found is not None and (found.size, engine.disks[0].size) == (SIZE, LARGER)


def test_of_a_larger_disk_all_that_is_no_hole_behind_its_former_end_is_compared(tmp_path: Path) -> None:
    """As of a block device, whose extents behind it hold whatever was there before."""
    files, vm = RealFileSystem(), bytes(16)
    config = make_config(str(tmp_path), (SIZE,))
    path, disk = f"{tmp_path}/map", Path(config.disks[0].path)
    former = MapFile.create(files, path, MapKind.DIRTY, vm, DIRTY_BLOCK_BITS, [config.disks[0].geometry])
    former.set_range(0, 0, 1)
    former.write()
    former.close()
    disk.write_bytes(bytes(SIZE))
    os.truncate(disk, LARGER)
    with disk.open("r+b") as file:
        file.seek(512 * KIB)
        file.write(b"?" * (64 * KIB))
    opened = Disk.open(files, 0, at(config, size=LARGER).disks[0])
    made = map_of_other_disks(files, path, MapKind.DIRTY, vm, DIRTY_BLOCK_BITS, [opened])
    assert made is not None
    assert list(made.ranges(0)) == [(0, 64 * KIB), (512 * KIB, 64 * KIB)]
    made.close()
    opened.file.close()
