"""Faults of log, disks and state: the guest goes on (I14), and what can't be proven is durably lost (I3, R17)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.log import Cut
from primary_agent.tap.ports import OwnPorts
from protocol.hrl import SealReason
from shared.errors import InvalidStateError, StorageError
from shared.nbd.constants import Errno
from shared.tap_control import LostReason, Tracking
from tests.unit.tap.rig import EPOCH, KIB, OTHER_EPOCH, WarmEngine, copy, make_config, replay, write, zeroes
from tests.unit.tap.world import World

SIZE = 256 * KIB
LOG_FILE = 64 * KIB


@pytest.fixture
def world() -> Iterator[World]:
    world = World(make_config("/vm", (SIZE, SIZE), log_file_bytes=LOG_FILE, log_limit_bytes=8 * LOG_FILE))
    yield world
    world.close()


@contextmanager
def failing(world: World, operation: str, part: str, number: int = errno.EIO) -> Iterator[None]:
    """Every call of this operation on a path that contains ``part`` fails."""
    world.volume.fault = lambda what, path: number if what == operation and part in path else 0
    try:
        yield
    finally:
        world.volume.fault = lambda _what, _path: 0


async def started(world: World, ports: OwnPorts, *, track: bool = True) -> TapEngine:
    tap = WarmEngine(world.folder, world.config, ports)
    await tap.start()
    if track:
        await tap.begin(EPOCH)
    return tap


def put(tap: TapEngine, index: int, offset: int, data: bytes) -> int:
    """Write at once; the error number."""
    mutation = write(offset, data)
    assert tap.mutate(tap.disks[index], [mutation]) is None
    return mutation.error


def lost(tap: TapEngine) -> LostReason | None:
    return tap.tracker.loss.reason if tap.tracker.loss else None


async def restarted(world: World, ports: OwnPorts, tap: TapEngine) -> TapEngine:
    """Stop in order and start again."""
    await tap.stop()
    return await started(world, ports, track=False)


class Heard:
    """A listener that remembers."""

    def __init__(self, tap: TapEngine) -> None:
        self.cuts: list[Cut] = []
        self.trackings: list[Tracking] = []
        self.progress = 0
        self._tap = tap
        tap.tracker.listeners.append(self)

    def progressed(self) -> None:
        self.progress += 1

    def sealed(self, cut: Cut) -> None:
        self.cuts.append(cut)

    def tracking_changed(self) -> None:
        self.trackings.append(self._tap.tracker.tracking)


# --- the log -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, reason",
    [
        (errno.EIO, LostReason.LOG_FAILED),
        (errno.ENOSPC, LostReason.LOG_FULL),
        (errno.EROFS, LostReason.LOG_FAILED),
    ],
)
def test_log_that_cannot_be_written(world: World, number: int, reason: LostReason) -> None:
    """I14, R21, R28: the guest sees no error, the dirty map takes over for good, and then the log's files go."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        heard = Heard(tap)
        with failing(world, "write", "/log/", number):
            assert put(tap, 0, 0, b"a" * 4096) == 0
        assert put(tap, 0, 4096, b"b" * 4096) == 0
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.MAP, reason)
        dirty = tap.tracker.maps.dirty
        assert dirty is not None and not dirty.is_complete(EPOCH)
        assert await tap.flush(tap.disks[0]) == 0
        await tap.tracker.settle()
        assert dirty.is_complete(EPOCH)
        # Told when it is durable, and again when it is complete.
        assert heard.trackings == [Tracking.MAP, Tracking.MAP]
        # Workers remove the files.
        await asyncio.sleep(1)
        assert world.files.list(world.config.log_folder) == []
        tap = await restarted(world, ports, tap)
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.MAP, reason)
        dirty = tap.tracker.maps.dirty
        assert dirty is not None and dirty.is_complete(EPOCH) and dirty.file.is_set(0, 0)
        with pytest.raises(InvalidStateError, match="lost"):
            await tap.cut(SealReason.COMMAND)
        with pytest.raises(InvalidStateError, match="taken up again"):
            await tap.begin(EPOCH)
        await tap.begin(OTHER_EPOCH)
        assert tap.tracker.tracking is Tracking.ON
        await tap.stop()
        assert world.images()[0][:8192] == b"a" * 4096 + b"b" * 4096

    assert world.run(main)


def test_log_that_is_full(world: World) -> None:
    """R21, R28: at its limit the log ends, and the dirty map names what changed; the guest goes on."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        for number in range(200):
            assert put(tap, 0, 0, bytes([number]) * 32 * KIB) == 0
            assert tap.tracker.files.used_bytes <= 8 * LOG_FILE
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.MAP, LostReason.LOG_FULL)
        await tap.tracker.settle()
        dirty = tap.tracker.maps.dirty
        assert dirty is not None and dirty.is_complete(EPOCH)
        assert list(dirty.file.ranges(0)) == [(0, 64 * KIB)] and not list(dirty.file.ranges(1))
        await tap.stop()

    assert world.run(main)


def test_log_that_is_released_never_fills(world: World) -> None:
    """What was acknowledged is recycled: files stay within the limit, and no new ones are made for ever."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        for number in range(200):
            assert put(tap, 0, 0, bytes([number]) * 32 * KIB) == 0
            if number % 4 == 3:
                cut = await tap.cut(SealReason.COMMAND)
                tap.tracker.release(EPOCH, cut.position.segment)
        assert tap.tracker.tracking is Tracking.ON
        assert tap.tracker.files.count <= 8
        await tap.stop()
        assert len(world.files.list(world.config.log_folder)) <= 8

    assert world.run(main)


def test_log_that_cannot_be_synced(world: World) -> None:
    """R17, I14: never tried again, the map takes over, no cut is told; the guest's FLUSH succeeds with its disk."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        heard = Heard(tap)
        assert put(tap, 0, 0, b"a" * 4096) == 0
        with failing(world, "sync", "/log/"):
            assert await tap.flush(tap.disks[0]) == 0
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.MAP, LostReason.LOG_FAILED)
        with pytest.raises(InvalidStateError):
            await tap.cut(SealReason.COMMAND)
        await tap.tracker.settle()
        dirty = tap.tracker.maps.dirty
        assert dirty is not None and dirty.is_complete(EPOCH)
        # What the log had since the last checkpoint may be gone: its regions are all in the map.
        assert list(dirty.file.ranges(0)) == [(0, SIZE)]
        await tap.stop()
        assert heard.cuts == []

    assert world.run(main)


def test_cut_whose_log_cannot_be_synced(world: World) -> None:
    """R34: a seal that is not durable is not told."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        heard = Heard(tap)
        assert put(tap, 0, 0, b"a" * 4096) == 0
        with failing(world, "sync", "/log/"), pytest.raises(InvalidStateError, match="durable"):
            await tap.cut(SealReason.COMMAND)
        assert (heard.cuts, tap.tracker.newest_cut) == ([], None)
        await tap.stop()

    assert world.run(main)


@pytest.mark.parametrize("pages, missing", [(1, "/vm/tap/tap.state"), (8, "/vm/tap/log")])
def test_no_room_at_the_first_start(world: World, pages: int, missing: str) -> None:
    """A tap that never served refuses where there is no room for its state or its log."""
    world.volume.capacity = world.volume.used() + pages * 4096

    async def main(ports: OwnPorts) -> None:
        with pytest.raises(StorageError) as refused:
            await started(world, ports)
        assert (refused.value.code, refused.value.exit_code) == ("no_space", 9)
        assert missing in refused.value.text and "Free at least" in refused.value.remedy

    assert world.run(main)


def test_no_room_at_a_later_start(world: World) -> None:
    """I14: once a guest relies on the tap it starts in any case; only tracking can't be begun, and that is said."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports, track=False)
        await tap.stop()
        world.files.remove_tree(world.config.log_folder)
        world.volume.capacity = world.volume.used() + 2 * 4096
        tap = await started(world, ports, track=False)
        with pytest.raises(StorageError) as refused:
            await tap.begin(EPOCH)
        assert refused.value.code == "no_space"
        assert tap.tracker.tracking is Tracking.OFF
        assert put(tap, 0, 0, b"a" * 4096) == 0
        await tap.stop()

    assert world.run(main)


# --- the disks -----------------------------------------------------------------------------------------------------


def test_disk_that_cannot_be_synced(world: World) -> None:
    """R17, I4: EIO to the guest, now and later; the other disk goes on; tracking is lost."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        assert put(tap, 0, 0, b"a" * 4096) == 0
        with failing(world, "sync", "disk-0"):
            assert await tap.flush(tap.disks[0]) == Errno.EIO
        assert await tap.flush(tap.disks[0]) == Errno.EIO
        assert await tap.flush(tap.disks[1]) == 0
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.LOST, LostReason.DISK_FAILED)
        fua = write(0, b"b" * 512, fua=True)
        done = tap.mutate(tap.disks[0], [fua])
        assert done is not None
        await done
        assert fua.error == Errno.EIO
        with pytest.raises(StorageError, match=r"disk-0\.raw"):
            await tap.stop()

    assert world.run(main)


@pytest.mark.parametrize("number, error", [(errno.ENOSPC, Errno.ENOSPC), (errno.EIO, Errno.EIO)])
def test_disk_that_cannot_be_written(world: World, number: int, error: Errno) -> None:
    """R26: the disk is the truth. What failed is logged anew as the disk has it, before the guest hears of it."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        base = world.images()
        assert put(tap, 0, 0, b"a" * 8192) == 0
        with failing(world, "write", "disk-0", number):
            assert put(tap, 0, 4096, b"b" * 8192) == error
        cut = await tap.cut(SealReason.COMMAND)
        assert put(tap, 0, 0, b"c" * 512) == 0
        await tap.stop()
        result = replay(world.files, world.config, EPOCH, base)
        assert result.cuts[cut.position][0] == b"a" * 8192 + base[0][8192:]
        assert copy(result.images) == world.images()

    assert world.run(main)


def test_long_zeroing_that_fails_midway(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R26: of a long zeroing that failed, the log ends with what the disk has."""
    monkeypatch.setattr("primary_agent.tap.batches.INLINE_ZEROES", 16 * KIB)
    monkeypatch.setattr("primary_agent.tap.engine.INLINE_ZEROES", 16 * KIB)
    monkeypatch.setattr("primary_agent.tap.disks.STEP_MIN", 32 * KIB)

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        base = world.images()
        punched = 0

        def third_fails(operation: str, path: str) -> int:
            nonlocal punched
            punched += operation == "punch"
            return errno.EIO if operation == "punch" and punched >= 2 else 0

        world.volume.fault = third_fails
        mutation = zeroes(0, 200 * KIB)
        done = tap.mutate(tap.disks[0], [mutation, write(200 * KIB, b"z" * 512)])
        assert done is not None
        await done
        world.volume.fault = lambda _operation, _path: 0
        assert mutation.error == Errno.EIO
        assert world.images()[0][:32768] == bytes(32768) and world.images()[0][-4096:] == base[0][-4096:]
        await tap.stop()
        assert copy(replay(world.files, world.config, EPOCH, base).images) == world.images()

    assert world.run(main)


def test_disk_that_cannot_be_read_where_it_is_in_doubt(world: World) -> None:
    """What can't be read can't be logged: tracking is lost."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        world.volume.fault = lambda what, path: errno.EIO if "disk-0" in path and what in ("read", "write") else 0
        assert put(tap, 0, 0, b"a" * 4096) == Errno.EIO
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.LOST, LostReason.DISK_FAILED)
        world.volume.fault = lambda _what, _path: 0
        await tap.stop()

    assert world.run(main)


# --- the state -----------------------------------------------------------------------------------------------------


def test_state_that_cannot_be_written(world: World) -> None:
    """I14: tracking is lost, and the guest goes on; a new beginning is refused until the state can be written."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        with failing(world, "write", "tap.state"):
            assert put(tap, 0, 0, b"a" * 4096) == 0
            assert (tap.tracker.tracking, lost(tap)) == (Tracking.LOST, LostReason.STATE_FAILED)
            assert put(tap, 0, 4096, b"a" * 4096) == 0
            with pytest.raises(StorageError, match="state"):
                await tap.begin(OTHER_EPOCH)
        await tap.begin(OTHER_EPOCH)
        assert tap.tracker.tracking is Tracking.ON
        await tap.stop()

    assert world.run(main)


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power-lost"])
@pytest.mark.parametrize("orderly", [False, True])
def test_loss_that_the_state_cannot_tell(world: World, power: bool, orderly: bool) -> None:
    """I3, R16: the hot-region map says it instead; else a start relied on a log that had ended, and on its lease."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        assert put(tap, 0, 0, b"a" * 4096) == 0
        assert await tap.flush(tap.disks[0]) == 0
        world.volume.fault = lambda what, path: errno.EIO if what == "write" and "tap.state" in path else 0
        assert put(tap, 0, 4096, b"b" * 4096) == 0
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.LOST, LostReason.STATE_FAILED)
        assert put(tap, 1, 8192, b"c" * 4096) == 0
        # A beginning that comes to nothing makes no difference.
        with pytest.raises(StorageError, match="state"):
            await tap.begin(OTHER_EPOCH)
        assert put(tap, 1, 4096, b"d" * 4096) == 0
        await asyncio.sleep(0.1)
        if orderly:
            with pytest.raises(StorageError):
                await tap.stop()
        world.process.kill()

    async def again(ports: OwnPorts) -> None:
        tap = await started(world, ports, track=False)
        assert (tap.tracker.tracking, lost(tap)) == (Tracking.LOST, LostReason.STATE_FAILED)
        await tap.begin(OTHER_EPOCH)
        await tap.stop()
        tap = await started(world, ports, track=False)
        assert tap.tracker.tracking is Tracking.ON
        await tap.stop()

    world.run(main)
    world.volume.fault = lambda _what, _path: 0
    if power:
        world.lose_power()
    assert world.run(again)


@pytest.mark.slow
def test_loss_is_durable_before_log_is_freed(world: World) -> None:
    """I3: a kill in any call after the loss finds it in the state, or finds the log whole."""
    total = 0
    for die_at in [None, *range(60, 200, 3)]:
        if die_at is not None and die_at >= total:
            break
        total = max(total, lose_and_die(die_at))


def lose_and_die(die_at: int | None) -> int:
    """Fill the log and be killed; returns the calls made."""
    world = World(make_config("/vm", (SIZE,), log_file_bytes=LOG_FILE, log_limit_bytes=2 * LOG_FILE))
    base: dict[int, bytes] = {}

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        base.update(world.images())
        for number in range(8):
            assert put(tap, 0, 4096 * number, bytes([number]) * 32 * KIB) == 0
        assert tap.tracker.tracking is Tracking.MAP
        await tap.stop()

    async def again(ports: OwnPorts) -> None:
        tap = await started(world, ports, track=False)
        if tap.tracker.tracking is Tracking.ON:
            assert copy(replay(world.files, world.config, EPOCH, base).images) == world.images(), die_at
        elif tap.tracker.tracking is Tracking.MAP:
            await tap.tracker.settle()
            dirty = tap.tracker.maps.dirty
            assert dirty is not None and dirty.is_complete(EPOCH), die_at
            found = set(dirty.file.regions(0))
            now = world.images()[0]
            assert {at >> 16 for at in range(0, SIZE, 4096) if now[at : at + 4096] != base[0][at : at + 4096]} <= found
        else:
            # Not begun yet when it was killed.
            assert lost(tap) in (None, LostReason.LOG_DAMAGED), die_at
        await tap.stop()

    world.run(main, die_at=die_at)
    calls = world.process.operations
    if base:
        assert world.run(again)
    world.close()
    return calls


def test_state_that_cannot_be_read_is_made_anew(world: World) -> None:
    """I14, A24: a bad sector under the state costs tracking, and not the guest its disks."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await tap.stop()
        with failing(world, "read", "tap.state"):
            tap = await started(world, ports, track=False)
            assert put(tap, 0, 0, b"g" * 512) == 0
            assert (tap.tracker.tracking, lost(tap)) == (Tracking.LOST, LostReason.STATE_DAMAGED)
            assert "can't be read" in (tap.tracker.loss.text if tap.tracker.loss else "")
        tap = await restarted(world, ports, tap)
        assert lost(tap) is LostReason.STATE_DAMAGED
        await tap.begin(OTHER_EPOCH)
        await tap.stop()

    assert world.run(main)
