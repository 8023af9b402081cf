"""The hot-region map: what power loss may take from a disk is on record, durably, before it can (R2, R29, R30)."""

from __future__ import annotations

import asyncio
import errno

import pytest

from primary_agent.tap import batches, disks, engine, hot_regions
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.hot_regions import NO_LOG, HotNote, HotRegions
from primary_agent.tap.ports import OwnPorts
from shared.map_file import MapDamagedError, MapFile, MapKind
from shared.tap_control import LostReason, Tracking
from tests.places import is_thorough, step
from tests.simulation.disk import PAGE
from tests.unit.tap.life import HOT_LIMIT, REGION_BITS, Life
from tests.unit.tap.rig import KIB, write, zeroes

REGION = 1 << REGION_BITS


pytestmark = pytest.mark.usefixtures("small_maps_of_taps")


def hot_of(tap: TapEngine) -> HotRegions:
    assert tap.tracker.maps.hot is not None
    return tap.tracker.maps.hot


def on_record(life: Life) -> MapFile:
    """The map as the volume has it."""
    world = life.world
    geometry = [disk.geometry for disk in world.config.disks]
    path = f"{world.folder}/hot.map"
    return MapFile.open(world.files, path, MapKind.HOT, world.config.vm_id, REGION_BITS, geometry, write=False)


def unsynced(life: Life) -> set[tuple[int, int]]:
    """Disk and region of everything on the disks that power loss may take."""
    found = set()
    for disk in life.world.config.disks:
        inode = life.world.volume.entries[disk.path]
        for page in inode.dirty:
            now = inode.read(page * PAGE, PAGE)
            if inode.durable.get(page, bytes(PAGE)).ljust(len(now), b"\0") != now:
                found.add((disk.index, page * PAGE >> REGION_BITS))
    return found


def fail(life: Life, *operations: str, part: str = "hot.map") -> None:
    life.world.volume.fault = lambda what, path: errno.EIO if what in operations and part in path else 0


async def put(tap: TapEngine, offset: int, length: int = 512, index: int = 0) -> None:
    mutation = write(offset, b"p" * length)
    done = tap.mutate(tap.disks[index], [mutation])
    if done is not None:
        await done
    assert mutation.error == 0


# --- before the first write -----------------------------------------------------------------------------------------


def power_lost_at(seed: int, die_at: int) -> None:
    """R2: of what power loss takes, every block lies in a region that is hot in the map that it leaves."""
    life = Life(seed)
    try:
        assert not life.world.run(life.whole, die_at=die_at)
        lost = unsynced(life) if life.began else set()
        life.world.lose_power()
        if lost:
            found = on_record(life)
            assert [one for one in lost if not found.is_set(*one)] == [], f"seed {seed}, killed in call {die_at}"
    finally:
        life.world.close()


def calls(seed: int) -> int:
    life = Life(seed)
    assert life.world.run(life.whole)
    count = life.world.process.operations
    life.world.close()
    return count


@pytest.mark.slow
def test_what_power_loss_takes_was_hot_at_some_places() -> None:
    total = calls(11)
    for die_at in range(5, total, max(1, total // 80)):
        power_lost_at(11, die_at)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_what_power_loss_takes_was_hot(seed: int) -> None:
    for die_at in range(1 + seed, calls(seed), step(14, all_places=2)):
        power_lost_at(seed, die_at)


def test_first_touches_share_a_sync(life: Life) -> None:
    """R2: those that come together wait for one fsync, in regions that are hot nobody waits."""
    syncs: list[str] = []
    life.world.volume.on_sync = lambda _process, path: syncs.append(path)

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        syncs.clear()
        waiting = [tap.mutate(tap.disks[0], [write(number * REGION, b"x" * 512)]) for number in range(6)]
        assert None not in waiting
        assert tap.tracker.log is not None and tap.tracker.log.entry == 0, "R31: numbers come after the wait"
        for done in waiting:
            assert done is not None
            await done
        assert [path for path in syncs if "hot.map" in path] == [f"{life.world.folder}/hot.map"]
        assert tap.tracker.log.entry == 6
        for number in range(6):
            assert tap.mutate(tap.disks[0], [write(number * REGION + 4096, b"y" * 512)]) is None
        assert sum("hot.map" in path for path in syncs) == 1
        await tap.stop()

    assert life.world.run(main)


def test_others_go_on_while_one_waits(life: Life) -> None:
    """R31: a write into a hot region is done although an earlier one waits; one whose client is gone is not."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await put(tap, 0)
        waiting = tap.mutate(tap.disks[0], [write(REGION, b"w" * 512)])
        gone = tap.mutate(tap.disks[0], [write(2 * REGION, b"g" * 512)])
        assert waiting is not None and gone is not None
        gone.cancel()
        assert tap.mutate(tap.disks[0], [write(512, b"o" * 512)]) is None
        assert not waiting.done()
        await waiting
        image = life.world.images()[0]
        assert (image[REGION], image[512], image[2 * REGION : 2 * REGION + 512] == b"g" * 512) == (119, 111, False)
        await tap.stop()

    assert life.world.run(main)


def test_nothing_waits_while_nothing_is_tracked(life: Life) -> None:
    """What was written then is durable before tracking begins: no region names it."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        assert tap.mutate(tap.disks[0], [write(0, b"u" * 512)]) is None
        assert not life.world.volume.entries[life.world.config.disks[0].path].is_durable()
        await tap.begin(bytes(16))
        assert life.world.volume.entries[life.world.config.disks[0].path].is_durable()
        await tap.stop()

    assert life.world.run(main)


# --- cooling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_cooled_only_when_data_and_log_are_durable(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """R4, R29: a region that leaves the map would keep its content, and its record, through power loss."""
    life = Life(seed)
    cooled: list[tuple[int, int]] = []
    clear = MapFile.clear

    def watched(self: MapFile, index: int, region: int) -> None:
        if self.kind is MapKind.HOT:
            cooled.append((index, region))
            assert (index, region) not in unsynced(life)
            note = HotNote.decode(on_record(life).note)
            volume = life.world.volume
            for path, inode in () if note.file == NO_LOG else volume.entries.items():
                number = path.rpartition("/")[2].removesuffix(".hrl")
                if "/log/" in path and number.isdigit() and int(number) <= note.file and life.epochs:
                    whole = int(number) < note.file
                    assert volume.durable_entries.get(path) is inode
                    assert whole or not any(page * PAGE < note.offset // PAGE * PAGE for page in inode.dirty)
                    assert not whole or not inode.dirty
        clear(self, index, region)

    monkeypatch.setattr(MapFile, "clear", watched)
    assert life.world.run(life.whole)
    assert len(cooled) > 10
    life.world.close()


def test_hot_regions_are_bounded(life: Life) -> None:
    """I13: for the next one others cool, and what is being written stays hot."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        hot = hot_of(tap)
        for number in range(60):
            await put(tap, number * 7 % 16 * REGION, index=0)
            assert len(hot._hot) <= HOT_LIMIT
            assert hot.hot_bytes() == sum(length for _, ranges in hot.ranges() for _, length in ranges) > 0
        # One change that needs more than that is not held up for ever.
        await put(tap, 0, 13 * REGION)
        assert len(hot._hot) >= 13
        await put(tap, 15 * REGION)
        assert len(hot._hot) <= HOT_LIMIT
        await tap.stop()

    assert life.world.run(main)


def test_idle_regions_cool(life: Life) -> None:
    """What is hot is what was written lately; an idle tap ends with nothing to do."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await put(tap, 0)
        await put(tap, REGION)
        hot = hot_of(tap)
        assert hot.hot_bytes() == 2 * REGION
        for _ in range(8):
            await asyncio.sleep(hot_regions.CHECKPOINT_SECONDS)
            await put(tap, 0)
        assert hot.hot_bytes() == REGION
        await asyncio.sleep(10 * hot_regions.CHECKPOINT_SECONDS)
        assert hot.hot_bytes() == 0
        assert not list(on_record(life).regions(0))
        before = life.world.process.operations
        await asyncio.sleep(100)
        assert life.world.process.operations == before
        await tap.stop()

    assert life.world.run(main)


def test_checkpoints_do_not_mix(life: Life) -> None:
    """R4: a region that was written after a checkpoint began to sync is not let go by it, whoever cools meanwhile."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        hot = hot_of(tap)
        await put(tap, 0)
        checkpoint, gate = hot._checkpoint, asyncio.Event()

        async def held() -> HotNote | None:
            note = await checkpoint()
            await gate.wait()
            return note

        hot._checkpoint = held
        first = asyncio.ensure_future(hot._cool(pressed=True))
        await asyncio.sleep(0.01)
        assert tap.mutate(tap.disks[0], [write(512, b"later")]) is None
        second = asyncio.ensure_future(hot._cool(pressed=False))
        await asyncio.sleep(0.01)
        gate.set()
        await first
        assert (0, 0) in unsynced(life)
        assert (0, 0) in hot._hot and on_record(life).is_set(0, 0)
        await second
        hot._checkpoint = checkpoint
        await tap.stop()

    assert life.world.run(main)


# --- the lease ------------------------------------------------------------------------------------------------------


def test_lease_covers_every_write(life: Life) -> None:
    """R30: no disk is ever written later than the map on the volume vouches for."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        for _ in range(30):
            await put(tap, 0)
            lease = HotNote.decode(on_record(life).note).lease_ns
            assert life.world.volume.entries[life.world.config.disks[0].path].mtime_ns <= lease
            await asyncio.sleep(life.rng.choice((0.1, 0.9, 1.5, 5)))
        await tap.stop()

    assert life.world.run(main)


def test_lease_lasts_as_long_as_a_long_change(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """R30: a zeroing that workers do for longer than a lease is covered to its end."""
    for module in (batches, engine):
        monkeypatch.setattr(module, "INLINE_ZEROES", 4 * KIB)
    monkeypatch.setattr(disks, "STEP_MIN", 8 * KIB)
    monkeypatch.setattr(disks, "STEP_MAX", 8 * KIB)
    monkeypatch.setattr(disks, "STEPS_AT_ONCE", 1)

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        life.world.latency = 0.4
        done = tap.mutate(tap.disks[0], [zeroes(0, 160 * KIB)])
        assert done is not None
        while not done.done():
            await asyncio.sleep(0.2)
            lease = HotNote.decode(on_record(life).note).lease_ns
            assert life.world.volume.entries[life.world.config.disks[0].path].mtime_ns <= lease
        life.world.latency = 0.0
        await tap.stop()

    assert life.world.run(main)


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_map_that_fails_costs_the_guest_nothing_but_a_wait(life: Life, operation: str) -> None:
    """I14, R30: once the lease is over, writes go on without the map; what power loss leaves then is compared whole."""
    world = life.world

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await put(tap, 0)
        fail(life, operation)
        began = ports.clock.monotonic()
        await put(tap, 5 * REGION)
        assert ports.clock.monotonic() - began <= hot_regions.LEASE_SECONDS + 1
        for number in range(10):
            assert tap.mutate(tap.disks[0], [write(number * REGION, b"f" * 512)]) is None
        assert tap.tracker.tracking is Tracking.ON
        world.process.kill()

    assert not world.run(main)
    world.volume.fault = lambda _what, _path: 0
    # Some of it reached the disk, or nothing would differ.
    world.volume.entries[world.config.disks[0].path].sync()
    world.lose_power()
    life.adopt_disks()
    assert world.run(life.later)
    assert life.seen[-1] == (Tracking.LOST, LostReason.DISK_CHANGED)


def test_map_that_fails_is_found_out_by_a_stop_in_order(life: Life) -> None:
    """An orderly stop makes all durable, and then it does not matter what the map says."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await put(tap, 0)
        fail(life, "write", "sync")
        await put(tap, 5 * REGION)
        await tap.stop()

    assert life.world.run(main)
    life.world.volume.fault = lambda _what, _path: 0
    life.world.lose_power()
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1] == (Tracking.ON, None)


def survived(seed: int, fail_at: int, die_at: int, again: int) -> Life:
    """The map fails from one call on; the tap is killed, starts, and then the power goes."""
    life = Life(seed)
    try:

        def fault(what: str, path: str) -> int:
            late = life.world.process.operations >= fail_at
            return errno.EIO if late and what == "sync" and "hot.map" in path else 0

        life.world.volume.fault = fault
        life.world.run(life.whole, die_at=die_at)
        life.adopt_disks()
        life.world.volume.fault = lambda _what, _path: 0
        life.world.run(life.later, die_at=again)
        life.world.lose_power()
        life.adopt_disks()
        assert life.world.run(life.later)
    except BaseException as error:
        error.add_note(f"seed {seed}, map failed in call {fail_at}, killed in {die_at} and {again}")
        raise
    finally:
        life.world.close()
    return life


@pytest.mark.slow
def test_map_that_failed_and_works_again() -> None:
    """R30: what was written while the map failed is made durable before the next tap vouches for anything again."""
    total = calls(3)
    lives = [
        survived(3, fail_at, fail_at + die, again)
        for fail_at in range(150, total - 60, max(1, total // (25 if is_thorough() else 9)))
        for die in (40, 90, 200)
        for again in (50, 90, 130)
    ]
    assert any(life.provable for life in lives)


# --- at a start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_map_that_is_gone_after_a_kill(life: Life, how: str) -> None:
    """What was hot is not known: everything is made durable before the new map vouches for it."""
    world = life.world

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.some(tap, 8)
        world.process.kill()

    async def again(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        assert tap.tracker.tracking is Tracking.ON
        assert not unsynced(life)
        for file in tap.tracker.files.used:
            assert not world.volume.entries[file.path].dirty
        await life.some(tap, 3)
        world.process.kill()

    assert not world.run(main)
    spoil(life, how)
    life.adopt_disks()
    assert not world.run(again)
    world.lose_power()
    life.adopt_disks()
    assert world.run(life.later)
    assert life.seen[-1] == (Tracking.MAP, LostReason.UNCLEAN_STOP)
    assert life.provable


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_map_that_is_gone_after_power_loss(life: Life, how: str) -> None:
    """R3: without it nothing is bounded."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.some(tap, 8)
        life.world.process.kill()

    assert not life.world.run(main)
    life.world.lose_power()
    spoil(life, how)
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1] == (Tracking.LOST, LostReason.UNCLEAN_STOP)


def spoil(life: Life, how: str) -> None:
    path = f"{life.world.folder}/hot.map"
    if how == "missing":
        life.world.files.remove(path)
        life.world.files.sync_folder(life.world.folder)
        return
    file = life.world.files.open(path, write=True)
    file.write(0, bytes(512))
    file.sync()
    file.close()
    with pytest.raises(MapDamagedError):
        on_record(life)


def test_hot_regions_outlive_a_kill(life: Life) -> None:
    """R29: what one tap left hot the next has to cool, and power loss in between compares it."""
    world = life.world

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await put(tap, 0)
        await put(tap, 3 * REGION, index=1)
        world.process.kill()

    async def again(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        assert hot_of(tap).hot_bytes() == 2 * REGION
        assert tap.mutate(tap.disks[0], [write(0, b"h" * 512)]) is not None, "only the lease is not renewed yet"
        await asyncio.sleep(1)
        assert hot_of(tap).hot_bytes() == 0
        await tap.stop()

    assert not world.run(main)
    assert world.run(again)


def test_note_is_what_it_was() -> None:
    note = HotNote(1 << 60, 3, 4096, bytes(range(16)))
    assert HotNote.decode(note.encode()) == note
    assert HotNote.decode(b"") == HotNote() == HotNote.decode(b"short")
