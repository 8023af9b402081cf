"""What a start concludes after power loss from a log, maps and disks that are torn, stale or forged (R3, R28, R30)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from primary_agent.tap import hot_regions
from primary_agent.tap.hot_regions import HotNote
from primary_agent.tap.log_files import LogFile
from primary_agent.tap.ports import OwnPorts
from protocol.hrl import FILE_HEADER_BYTES
from protocol.position import Position
from shared.map_file import MapFile, MapKind
from shared.tap_control import LostReason, Tracking
from tests.simulation.disk import Inode
from tests.unit.tap.life import REGION_BITS, Life, epoch_of
from tests.unit.tap.rig import KIB, write

E1 = epoch_of(1)


pytestmark = pytest.mark.usefixtures("small_maps_of_taps")


@pytest.fixture
def seed() -> int:
    """Of this module's lives."""
    return 4


class Stopped:
    """A tap that the power has left: all that it wrote is on the volume, as far as nobody spoils it."""

    def __init__(self, life: Life, *, cool: bool = True) -> None:
        self.life = life
        self.log: list[LogFile] = []
        self.end = (0, 0)
        assert not life.world.run(self._live if cool else self._live_hot)
        for inode in life.world.volume.entries.values():
            inode.sync()
        for folder in (life.world.folder, life.world.config.log_folder, "/vm"):
            life.world.files.sync_folder(folder)
        life.world.lose_power()
        life.adopt_disks()

    async def _live_hot(self, ports: OwnPorts) -> None:
        tap = await self.life.start(ports)
        await self.life.begin(tap)
        await self.life.change(tap, 0, [write(0, b"a" * 4096)])
        await self.life.cut(tap)
        self.log = list(tap.tracker.files.used)
        self.life.world.process.kill()

    async def _live(self, ports: OwnPorts) -> None:
        """Something that has cooled, and behind it in the log something that is hot."""
        tap = await self.life.start(ports)
        await self.life.begin(tap)
        for number in range(4):
            await self.life.change(tap, 0, [write(number * 16 * KIB, bytes([65 + number]) * 8192)])
        await self.life.cut(tap)
        await asyncio.sleep(12 * hot_regions.CHECKPOINT_SECONDS)
        assert not tap.tracker.maps.hot or tap.tracker.maps.hot.hot_bytes() == 0
        for number in range(6):
            await self.life.change(tap, 1, [write(8 * KIB * number, bytes([97 + number]) * 4096)])
        assert tap.tracker.log is not None
        self.log, self.end = list(tap.tracker.files.used), tap.tracker.log.place
        self.life.world.process.kill()

    def note(self) -> HotNote:
        world = self.life.world
        disks = [disk.geometry for disk in world.config.disks]
        path = f"{world.folder}/hot.map"
        return HotNote.decode(MapFile.open(world.files, path, MapKind.HOT, world.config.vm_id, REGION_BITS, disks).note)

    def inode(self, path: str) -> Inode:
        return self.life.world.volume.entries[path]

    def spoil(self, path: str, offset: int, data: bytes) -> None:
        """Change a file without a trace in its times."""
        inode = self.inode(path)
        inode.write(offset, data)
        inode.dirty.update(range(offset // 4096, (offset + len(data) - 1) // 4096 + 1))
        inode.sync()

    def outcome(self) -> tuple[Tracking, LostReason | None]:
        """How the next start sees it; with the check that what it bounds is sound."""
        assert self.life.world.run(self.life.later)
        return self.life.seen[-1]


BOUNDED = (Tracking.MAP, LostReason.UNCLEAN_STOP)


def test_nothing_is_spoiled(life: Life) -> None:
    assert Stopped(life).outcome() == BOUNDED
    assert life.provable == 1


def test_power_loss_before_anything_was_written(life: Life) -> None:
    """A start after an orderly stop, and nothing else: nothing is in doubt, and the disks are vouched for."""

    async def main(ports: OwnPorts) -> None:
        await life.start(ports)
        life.world.process.kill()

    assert life.world.run(life.whole)
    assert not life.world.run(main)
    life.world.lose_power()
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1] == BOUNDED


@pytest.mark.parametrize("forge", ["missing", "cut off"])
def test_log_that_was_durable_at_an_orderly_stop(life: Life, forge: str) -> None:
    """What an orderly stop made durable must still be there after the power loss that ends the next tap."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.change(tap, 0, [write(0, b"a" * 4096)])
        paths.extend(file.path for file in tap.tracker.files.used)
        life.world.process.kill()

    paths: list[str] = []
    assert life.world.run(life.whole)
    assert not life.world.run(main)
    life.world.lose_power()
    for path in paths:
        if forge == "missing":
            life.world.files.remove(path)
        else:
            inode = life.world.volume.entries[path]
            inode.zero(FILE_HEADER_BYTES, inode.size)
            inode.dirty.update(range(1, inode.size // 4096))
            inode.sync()
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1] == (Tracking.LOST, LostReason.LOG_DAMAGED)


# --- the log's tail -------------------------------------------------------------------------------------------------


def zeroes_behind(content: bytearray, at: int, end: int) -> None:
    content[at:] = bytes(len(content) - at)


def noise_behind(content: bytearray, at: int, end: int) -> None:
    content[at:] = random.Random(1).randbytes(len(content) - at)


def one_bit(content: bytearray, at: int, end: int) -> None:
    """Of the first record; later ones are whole."""
    content[at + 90] ^= 4


def hole(content: bytearray, at: int, end: int) -> None:
    """The first pages did not get to the disk, later ones did."""
    first = -(-at // 512) * 512
    content[first : first + 1024] = bytes(1024)


def half(content: bytearray, at: int, end: int) -> None:
    content[at + (end - at) // 2 :] = bytes(len(content) - at - (end - at) // 2)


def repeated(content: bytearray, at: int, end: int) -> None:
    """What lies there are records of this log, but not the next ones."""
    length = min(at - FILE_HEADER_BYTES, len(content) - at)
    content[at : at + length] = content[FILE_HEADER_BYTES : FILE_HEADER_BYTES + length]


def huge_length(content: bytearray, at: int, end: int) -> None:
    content[at : at + 16] = b"\xff" * 16


FORGERIES = [zeroes_behind, noise_behind, one_bit, hole, half, repeated, huge_length]


@pytest.mark.parametrize("forge", FORGERIES)
def test_forged_tail_behind_the_checkpoint(life: Life, forge: Callable[[bytearray, int, int], None]) -> None:
    """R3: behind the last checkpoint's place anything may be missing from the log, for the regions tell of it."""
    stopped = Stopped(life)
    place = stopped.note()
    assert place.epoch == E1 and (place.file, place.offset) < stopped.end
    path = next(file.path for file in stopped.log if file.sequence == place.file)
    content = bytearray(stopped.inode(path).image())
    forge(content, place.offset, stopped.end[1])
    stopped.spoil(path, 0, bytes(content))
    assert stopped.outcome() == BOUNDED
    assert life.provable == 1


@pytest.mark.parametrize("forge", FORGERIES)
def test_forged_log_before_the_checkpoint(life: Life, forge: Callable[[bytearray, int, int], None]) -> None:
    """What was durable at the last checkpoint must be there: its regions are not hot any more."""
    stopped = Stopped(life)
    path = stopped.log[0].path
    content = bytearray(stopped.inode(path).image())
    # Behind the segment record and the first batches.
    forge(content, FILE_HEADER_BYTES + 9 * KIB, stopped.note().offset)
    stopped.spoil(path, 0, bytes(content))
    assert stopped.outcome() == (Tracking.LOST, LostReason.LOG_DAMAGED)


@pytest.mark.parametrize("which", ["all", "newest"])
def test_log_files_that_are_missing(life: Life, which: str) -> None:
    stopped = Stopped(life)
    for file in stopped.log if which == "all" else stopped.log[-1:]:
        life.world.files.remove(file.path)
    assert stopped.outcome() == (Tracking.LOST, LostReason.LOG_DAMAGED)


@pytest.mark.parametrize("which", [1, 2])
def test_file_behind_the_checkpoint_is_lost_and_later_ones_are_not(life: Life, which: int) -> None:
    """R34, P2: what was durable before stays the log; it was thrown away for the files behind the one that was lost."""
    paths: list[str] = []

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.change(tap, 0, [write(0, b"a" * 4096)])
        await life.cut(tap)
        for number in range(10):
            await life.change(tap, 0, [write(16 * KIB * (number % 4), bytes([98 + number]) * 16 * KIB)])
        paths.extend(file.path for file in tap.tracker.files.used)
        life.world.process.kill()

    assert not life.world.run(main)
    for inode in life.world.volume.entries.values():
        inode.sync()
    for folder in (life.world.folder, life.world.config.log_folder):
        life.world.files.sync_folder(folder)
    life.world.lose_power()
    assert len(paths) > 3
    inode = life.world.volume.entries[paths[which]]
    inode.zero(0, FILE_HEADER_BYTES)
    inode.dirty.add(0)
    inode.sync()
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1] == BOUNDED
    assert life.provable == 1


def test_log_that_never_was_durable(life: Life) -> None:
    """Before the first checkpoint everything that was written is hot, and no cut is needed from the log."""
    stopped = Stopped(life, cool=False)
    assert stopped.note().epoch != E1
    for file in stopped.log:
        life.world.files.remove(file.path)
    assert stopped.outcome() == BOUNDED
    assert life.provable == 0, "a cut that only the lost log knew proves nothing"


# --- the disks ------------------------------------------------------------------------------------------------------


def test_disk_written_after_the_lease(life: Life) -> None:
    """R30: with the evidence, disk and both times."""
    stopped = Stopped(life)
    lease_ns = stopped.note().lease_ns
    inode = stopped.inode(life.world.config.disks[1].path)
    inode.mtime_ns = inode.durable_mtime_ns = lease_ns + 1
    texts: list[str] = []

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        assert tap.tracker.loss is not None
        texts.append(tap.tracker.loss.text)
        await tap.stop()

    assert life.world.run(main)
    assert life.seen[-1] == (Tracking.LOST, LostReason.DISK_CHANGED)
    assert life.world.config.disks[1].path in texts[0] and "later than its hot regions" in texts[0]


def test_disk_written_at_the_end_of_the_lease(life: Life) -> None:
    stopped = Stopped(life)
    inode = stopped.inode(life.world.config.disks[1].path)
    inode.mtime_ns = inode.durable_mtime_ns = stopped.note().lease_ns
    assert stopped.outcome() == BOUNDED


def test_disk_that_is_another_file(life: Life) -> None:
    """I10: brought back from a copy."""
    stopped = Stopped(life)
    path = life.world.config.disks[0].path
    content = stopped.inode(path).image()
    life.world.files.remove(path)
    file = life.world.files.open(path, write=True, create=True)
    file.write(0, content)
    file.sync()
    file.close()
    assert stopped.outcome() == (Tracking.LOST, LostReason.DISK_CHANGED)


# --- stale files ----------------------------------------------------------------------------------------------------


def content_of(life: Life, part: str) -> dict[str, bytes]:
    return {path: inode.image() for path, inode in life.world.volume.entries.items() if part in path}


def bring_back(life: Life, contents: dict[str, bytes]) -> None:
    for path, content in contents.items():
        inode = life.world.volume.entries[path]
        inode.write(0, content)
        inode.dirty.update(range(-(-len(content) // 4096)))
        inode.sync()


@pytest.mark.parametrize(
    "part, outcome",
    [
        ("hot.map", (Tracking.LOST, LostReason.DISK_CHANGED)),
        ("/log/", (Tracking.LOST, LostReason.LOG_DAMAGED)),
    ],
)
def test_file_that_was_rolled_back(life: Life, part: str, outcome: tuple[Tracking, LostReason]) -> None:
    """A map from before knows an older lease, a log from before ends before the last checkpoint."""
    old: dict[str, bytes] = {}

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.change(tap, 0, [write(0, b"a" * 4096)])
        await life.cut(tap)
        old.update(content_of(life, part))
        await asyncio.sleep(5)
        for number in range(4):
            await life.change(tap, 0, [write(16 * KIB * number, b"b" * 4096)])
        await life.cut(tap)
        await asyncio.sleep(12 * hot_regions.CHECKPOINT_SECONDS)
        await life.change(tap, 1, [write(0, b"c" * 4096)])
        life.world.process.kill()

    assert not life.world.run(main)
    for inode in life.world.volume.entries.values():
        inode.sync()
    life.world.lose_power()
    bring_back(life, {path: content for path, content in old.items() if path in life.world.volume.entries})
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1] == outcome


@pytest.mark.parametrize("moment", ["before", "while it is filled"])
def test_dirty_map_that_was_rolled_back(life: Life, moment: str) -> None:
    """R28: what it said before it was complete is not enough once the log is gone."""
    old: dict[str, bytes] = {}

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.some(tap, 4)
        if moment == "before":
            old.update(content_of(life, "dirty.map"))
        await life.overflow(tap)
        if moment != "before":
            old.update(content_of(life, "dirty.map"))
        await tap.tracker.settle()
        await life.some(tap, 5)
        await asyncio.sleep(1)
        life.world.process.kill()

    assert not life.world.run(main)
    for inode in life.world.volume.entries.values():
        inode.sync()
    for folder in (life.world.folder, life.world.config.log_folder):
        life.world.files.sync_folder(folder)
    life.world.lose_power()
    bring_back(life, old)
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1][0] is Tracking.LOST


def test_everything_rolled_back_together(life: Life) -> None:
    """R34: a host restored from an old copy does not know the cuts that its replica has by now."""
    copies: list[dict[str, bytes]] = []

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.change(tap, 0, [write(0, b"a" * 4096)])
        early = await life.cut(tap)
        copies.append(content_of(life, "/vm"))
        await life.change(tap, 0, [write(64 * KIB, b"b" * 4096)])
        late = await life.cut(tap)
        known.extend([early, late])
        life.world.process.kill()

    async def again(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await tap.tracker.settle()
        dirty = tap.tracker.maps.dirty
        if tap.tracker.tracking is Tracking.MAP:
            assert dirty is not None
            found.extend(dirty.knows(cut.epoch, cut.segment, cut.chain) for cut in known)
        await tap.stop()

    known: list[Position] = []
    found: list[bool] = []
    assert not life.world.run(main)
    times = {path: inode.mtime_ns for path, inode in life.world.volume.entries.items()}
    for inode in life.world.volume.entries.values():
        inode.sync()
    life.world.lose_power()
    bring_back(life, copies[0])
    for path, inode in life.world.volume.entries.items():
        inode.mtime_ns = inode.durable_mtime_ns = times[path]
    life.adopt_disks()
    assert life.world.run(again)
    assert life.seen[-1] == BOUNDED
    assert found == [True, False]
