"""Disks that are resized while the tap runs (R20, P19), and hot regions of another size from one start to the next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from primary_agent.tap.control import Surroundings, TapControl
from primary_agent.tap.engine import TapEngine
from protocol.hrl import SealReason
from shared.admin.access import Access
from shared.errors import InvalidStateError
from shared.map_file import MapFile
from shared.ports.clock import RealClock
from shared.tap_config import TapConfig, TapDisk
from shared.tap_control import LostReason, Tracking
from tests.pair.loop_device import LoopDevice, loop_device
from tests.unit.tap.rig import EPOCH, KIB, MIB, OTHER_EPOCH, Box, make_box, write

SIZE = 2 * MIB


async def put(engine: TapEngine, offset: int = 0) -> int:
    """Write as the guest does; the error it gets."""
    mutation = write(offset, os.urandom(4 * KIB))
    done = engine.mutate(engine.disks[0], [mutation])
    if done is not None:
        await done
    return mutation.error


def told(box: Box, engine: TapEngine) -> tuple[int, int | None]:
    """Size and found size of the disk, as whoever asks for the status gets them."""
    surroundings = Surroundings(1, "", lambda _export: 0)
    control = TapControl(engine, box.ports, surroundings, authorize=Access(os.getuid()))
    (disk,) = control.status().disks
    engine.tracker.listeners.remove(control)
    return disk.size, disk.found_size


@pytest.mark.parametrize("size", [SIZE + MIB, SIZE - MIB])
async def test_a_file_that_is_resized_is_told_and_has_to_be_compared(tmp_path: Path, size: int) -> None:
    """I10, I14: no cut claims to be the disks; the guest goes on inside what is left, at the size that it knows."""
    async with make_box(tmp_path, (SIZE,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        os.truncate(box.disk(0), size)
        with pytest.raises(InvalidStateError, match=f"its size was {SIZE} and is {size}"):
            await engine.cut(SealReason.COMMAND)
        assert engine.tracker.loss is not None and engine.tracker.loss.reason is LostReason.DISK_CHANGED
        assert told(box, engine) == (SIZE, size)
        assert await put(engine) == 0
        # The whole compare that follows needs tracking; a disk that stays as it is loses it no more.
        await engine.begin(OTHER_EPOCH)
        assert await put(engine) == 0
        await engine.cut(SealReason.COMMAND)
        assert engine.tracker.tracking is Tracking.ON
        os.truncate(box.disk(0), SIZE)
        with pytest.raises(InvalidStateError, match="its size was"):
            await engine.cut(SealReason.COMMAND)
        assert told(box, engine) == (SIZE, SIZE)


async def test_a_size_is_noticed_behind_a_write_that_hides_the_time(tmp_path: Path) -> None:
    """The guest's own write sets the mtime that tells of the truncation before it."""
    async with make_box(tmp_path, (SIZE,)) as box, box.running() as engine:
        await engine.begin(EPOCH)
        assert await put(engine) == 0
        os.truncate(box.disk(0), SIZE - MIB)
        assert await put(engine) == 0
        assert engine.tracker.tracking is Tracking.LOST
        assert engine.tracker.loss is not None and f"is {SIZE - MIB}" in engine.tracker.loss.text


async def test_untracked_a_size_is_noticed_by_whoever_asks(tmp_path: Path) -> None:
    async with make_box(tmp_path, (SIZE,)) as box, box.running() as engine:
        os.truncate(box.disk(0), SIZE + MIB)
        engine.tracker.watch.look_at_sizes(engine.disks)
        assert told(box, engine) == (SIZE, SIZE + MIB)
        os.truncate(box.disk(0), SIZE)


# --- devices -------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Iterator[LoopDevice]:
    with loop_device(tmp_path, SIZE) as device:
        yield device


async def test_a_device_that_grew_holds_what_it_held(tmp_path: Path, device: LoopDevice) -> None:
    """Tracking goes on inside the known size; one that shrank below it has lost something."""
    disk = TapDisk(index=0, uuid="1" * 32, path=device.path, size=SIZE, export="disk0")
    async with make_box(tmp_path / "box", (), disks=[disk]) as box, box.running() as engine:
        await engine.begin(EPOCH)
        for size in (SIZE + MIB, SIZE + 2 * MIB, SIZE):
            device.resize(size)
            await engine.cut(SealReason.COMMAND)
            assert told(box, engine) == (SIZE, size)
            assert await put(engine) == 0
        device.resize(SIZE - MIB)
        with pytest.raises(InvalidStateError, match=f"its size was {SIZE} and is {SIZE - MIB}"):
            await engine.cut(SealReason.COMMAND)
        assert await put(engine) == 0
        device.resize(SIZE)


# --- regions of another size -----------------------------------------------------------------------------------------


class OtherBoot(RealClock):
    def boot_id(self) -> str:
        return "another boot"


def resized(config: TapConfig, region: int) -> TapConfig:
    return msgspec.structs.replace(config, hot_region_bytes=region, hot_regions=1 << 16)


@pytest.mark.parametrize("region", [1 * MIB, 16 * MIB])
@pytest.mark.parametrize("stop", ["in order", "kill", "power loss"])
async def test_hot_regions_outlive_another_size(tmp_path: Path, region: int, stop: str) -> None:
    """What is in doubt stays so: a start after power loss with another size bounds its compare all the same."""
    async with make_box(tmp_path, (32 * MIB,)) as box:
        engine = TapEngine(box.tap_folder, box.config, box.ports)
        await engine.start()
        await engine.begin(EPOCH)
        assert await put(engine, 9 * MIB) == 0
        if stop == "in order":
            await engine.stop()
        else:
            await box.killed(engine)
        ports = box.ports if stop != "power loss" else replace(box.ports, clock=OtherBoot())
        engine = TapEngine(box.tap_folder, resized(box.config, region), ports)
        await engine.start()
        await engine.tracker.settle()
        tracker = engine.tracker
        if stop == "power loss":
            assert tracker.tracking is Tracking.MAP
            assert tracker.loss is not None and tracker.loss.reason is LostReason.UNCLEAN_STOP
            dirty = tracker.maps.dirty
            assert dirty is not None
            ((start, length),) = dirty.file.ranges(0)
            assert start <= 9 * MIB < start + length <= max(16 * MIB, 13 * MIB)
        else:
            assert tracker.tracking is Tracking.ON
            assert tracker.maps.hot is not None
            assert bool(tracker.maps.hot.hot_bytes()) == (stop == "kill")
        assert await put(engine, 20 * MIB) == 0
        await engine.stop()


async def test_a_map_that_cannot_be_resized_says_nothing_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for it, say: then there is none. The old one, found when there is room, does not know this time."""
    async with make_box(tmp_path, (32 * MIB,)) as box:
        async with box.running() as engine:
            await engine.begin(EPOCH)
        before = (Path(box.tap_folder) / "hot.map").read_bytes()

        def refuse(*_arguments: object, **_options: object) -> MapFile:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(MapFile, "create", refuse)
            engine = TapEngine(box.tap_folder, resized(box.config, MIB), box.ports)
            await engine.start()
            assert engine.tracker.maps.hot is None
            assert engine.tracker.tracking is Tracking.ON
            assert await put(engine, 9 * MIB) == 0
            await box.killed(engine)
        assert (Path(box.tap_folder) / "hot.map").read_bytes() == before
        # A block device has no mtime that would tell of this write.
        monkeypatch.setattr("primary_agent.tap.start.check_lease", lambda *_arguments: None)
        engine = TapEngine(box.tap_folder, resized(box.config, MIB), replace(box.ports, clock=OtherBoot()))
        await engine.start()
        assert engine.tracker.tracking is Tracking.LOST
        assert engine.tracker.loss is not None and engine.tracker.loss.reason is LostReason.UNCLEAN_STOP
        await engine.stop()
