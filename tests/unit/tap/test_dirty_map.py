"""The dirty map: it names all that changed since its base, through kills and power loss, or says nothing (R28)."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from primary_agent.tap.dirty_map import CUTS_MAX, DirtyMap, DirtyNote, Force
from primary_agent.tap.ports import OwnPorts
from protocol.hrl import Geometry
from protocol.position import Position
from shared.map_file import MapFile, MapKind
from shared.tap_control import LostReason, Tracking
from tests.places import is_thorough, step
from tests.unit.tap.life import Life, epoch_of
from tests.unit.tap.rig import KIB, write

E1, E2, E3 = (epoch_of(number) for number in (1, 2, 3))


pytestmark = pytest.mark.usefixtures("small_maps_of_taps")


def operations(seed: int) -> int:
    """How many calls of ports the whole life makes."""
    life = Life(seed)
    assert life.world.run(life.whole)
    count = life.world.process.operations
    life.world.close()
    return count


def killed_at(seed: int, die_at: int, *again: int, power: str) -> Life:
    """Live until this call, and for a while once more for each of ``again``; ``power`` has 1 where power is lost."""
    life = Life(seed)
    try:
        for number, call in enumerate((die_at, *again)):
            life.world.run(life.later if number else life.whole, die_at=call)
            if power[number] == "1":
                life.world.lose_power()
            life.adopt_disks()
        assert life.world.run(life.later)
        assert life.world.run(life.later)
    except BaseException as error:
        error.add_note(f"seed {seed}, killed in calls {(die_at, *again)}, power lost {power}")
        raise
    finally:
        life.world.close()
    return life


# --- at every point -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", ["0", "1"], ids=["killed", "power-lost"])
@pytest.mark.slow
def test_stopped_at_some_places(power: str) -> None:
    """R28, I3: the quick version of the one below; most of the time something is bounded."""
    total = operations(5)
    lives = [killed_at(5, die_at, power=power) for die_at in range(3, total, max(1, total // 60))]
    outcomes = [life.seen[-1][0] for life in lives]
    assert sum(life.provable > 0 for life in lives) > len(lives) // 4
    assert outcomes.count(Tracking.LOST) < len(lives) // 4


@pytest.mark.parametrize("seed, places", [(0, 3), (1, 5), (2, 5), (3, 7)])
@pytest.mark.parametrize("power", ["0", "1"], ids=["killed", "power-lost"])
@pytest.mark.slow
def test_stopped_anywhere(seed: int, places: int, power: str) -> None:
    """R28, I3: after a stop in any call all that changed since the map's base is in it, or tracking is lost."""
    for die_at in range(1 + seed, operations(seed), step(6 * places, all_places=places)):
        killed_at(seed, die_at, power=power)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_stopped_again_while_starting(seed: int) -> None:
    """R28: the same, where the starts after it are stopped as well."""
    total = operations(seed)
    rng = random.Random(seed)
    for _ in range(80 if is_thorough() else 30):
        power = "".join(rng.choice("01") for _ in range(3))
        killed_at(seed, rng.randrange(3, total), rng.randrange(3, 120), rng.randrange(3, 120), power=power)


def test_undisturbed_life(life: Life) -> None:
    assert life.world.run(life.whole)
    assert life.world.run(life.later)
    assert life.seen == [(Tracking.OFF, None), (Tracking.ON, None)]
    assert len(life.cuts) > 4


# --- taking over ----------------------------------------------------------------------------------------------------


def test_log_is_freed_only_when_the_map_is_complete_and_durable(life: Life) -> None:
    """R28: as long as a log file is missing, what the map says would survive power loss."""
    world = life.world
    freed: list[str] = []

    def durable_map() -> MapFile:
        inode = world.volume.durable_entries[f"{world.folder}/dirty.map"]
        keep = inode.data, inode.size
        image = bytearray(inode.size)
        for page, content in inode.durable.items():
            image[page * 4096 : page * 4096 + len(content)] = content
        inode.data = image
        try:
            disks = [disk.geometry for disk in world.config.disks]
            path = f"{world.folder}/dirty.map"
            return MapFile.open(world.files, path, MapKind.DIRTY, world.config.vm_id, 12, disks)
        finally:
            inode.data, inode.size = keep

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.some(tap, 4)
        await life.overflow(tap)
        numbers = {file.path for file in tap.tracker.files.used}
        changed = {(offset, length) for offset, length in _changed(life, E1)}
        remove = world.volume.change

        def watched(names: dict[str, object]) -> None:
            for path, inode in names.items():
                if inode is None and path in numbers:
                    freed.append(path)
                    found = durable_map()
                    note = DirtyNote.decode(found.note)
                    assert (note.force, note.epoch, note.log_epoch) == (Force.COMPLETE, E1, E1)
                    for offset, _ in changed:
                        assert found.is_set(0, offset >> 12)
            remove(names)  # type: ignore[arg-type]

        world.volume.change = watched  # type: ignore[method-assign, assignment]
        await tap.tracker.settle()
        await tap.stop()

    assert world.run(main)
    assert len(freed) >= 4


def _changed(life: Life, epoch: bytes) -> list[tuple[int, int]]:
    """The blocks of disk 0 that differ from when ``epoch`` began."""
    before, now = life.began[epoch][0], bytes(life.model[0])
    return [(at, 4096) for at in range(0, len(now), 4096) if before[at : at + 4096] != now[at : at + 4096]]


def test_new_epoch_keeps_the_map_until_it_is_released(life: Life) -> None:
    """R28: until the replica has committed, it stands where the map's base is; a loss meanwhile keeps that base."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        dirty = tap.tracker.maps.dirty
        assert dirty is not None
        await life.begin(tap)
        await life.some(tap, 3)
        first = await life.cut(tap)
        await life.overflow(tap)
        await tap.tracker.settle()
        assert dirty.knows(*_cut(first))
        await life.begin(tap)
        assert tap.tracker.tracking is Tracking.ON and dirty.in_force and dirty.note.epoch == E1
        second = await life.cut(tap)
        await life.overflow(tap)
        assert dirty.note.force is Force.OPEN
        await tap.tracker.settle()
        assert (dirty.note.epoch, dirty.note.log_epoch, dirty.note.force) == (E1, E2, Force.COMPLETE)
        assert dirty.knows(*_cut(first)) and not dirty.knows(*_cut(second))
        life.check(tap)
        assert life.provable
        await life.begin(tap)
        third = await life.cut(tap)
        tap.tracker.release(E3, third.segment)
        await asyncio.sleep(1)
        assert not dirty.in_force and not dirty.cuts()
        assert not list(dirty.file.ranges(0))
        await tap.stop()

    assert life.world.run(main)


def _cut(position: Position) -> tuple[bytes, int, bytes]:
    return position.epoch, position.segment, position.chain


@pytest.mark.parametrize("stopped", [False, True], ids=["power-lost", "stopped"])
def test_bits_are_durable_before_their_regions_cool_in_a_new_epoch(life: Life, stopped: bool) -> None:
    """R29: a bit that was set just before the new epoch began is in no log, and so keeps its region hot."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.cut(tap)
        await life.overflow(tap)
        await tap.tracker.settle()
        await life.change(tap, 1, [write(96 * KIB, b"late" * 1024)])
        await life.begin(tap)
        if stopped:
            await tap.stop()
            return
        await asyncio.sleep(1)
        assert tap.tracker.maps.hot is not None and tap.tracker.maps.hot.hot_bytes() == 0
        life.world.process.kill()

    assert life.world.run(main) is stopped
    # Of what was not synced only the clearing of hot bits gets to the disk.
    for path, inode in life.world.volume.entries.items():
        if path.endswith("hot.map"):
            inode.sync()
        inode.dirty.clear()
    life.world.lose_power()
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1][0] is (Tracking.ON if stopped else Tracking.MAP)
    assert life.provable


def test_older_map_that_cannot_be_synced(life: Life) -> None:
    """R17: it proves nothing from then on, durably; the log of the new epoch goes on."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.cut(tap)
        await life.overflow(tap)
        await tap.tracker.settle()
        await life.change(tap, 1, [write(96 * KIB, b"late" * 1024)])
        await life.begin(tap)
        life.world.volume.fault = lambda what, path: errno.EIO if what == "sync" and "dirty.map" in path else 0
        await asyncio.sleep(1)
        assert tap.tracker.tracking is Tracking.ON and not tap.tracker.maps.in_force()
        await life.some(tap, 3)
        life.world.process.kill()

    assert not life.world.run(main)
    life.world.volume.fault = lambda _what, _path: 0
    for inode in life.world.volume.entries.values():
        inode.dirty.clear()
    life.world.lose_power()
    life.adopt_disks()
    assert life.world.run(life.later)
    assert not any(cut.epoch == E1 for cut in life.bounded)


def test_only_cuts_of_this_log_are_known(life: Life) -> None:
    """R34: another chain, another epoch, a segment that never was sealed."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        dirty = tap.tracker.maps.dirty
        assert dirty is not None
        await life.begin(tap)
        await life.some(tap, 5)
        epoch, segment, chain = _cut(await life.cut(tap))
        assert not dirty.knows(epoch, segment, chain)
        await life.overflow(tap)
        await tap.tracker.settle()
        assert dirty.knows(epoch, segment, chain)
        assert not dirty.knows(epoch, segment, bytes(16))
        assert not dirty.knows(epoch, segment + 1, chain)
        assert not dirty.knows(E2, segment, chain)
        await tap.stop()
        tap = await life.start(ports)
        assert tap.tracker.maps.dirty is not None and tap.tracker.maps.dirty.knows(epoch, segment, chain)
        await tap.stop()

    assert life.world.run(main)


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["write", "sync"])
@pytest.mark.parametrize("when", ["before", "while filled", "after"])
def test_map_that_cannot_be_written(life: Life, operation: str, when: str) -> None:
    """I14: tracking is lost, durably, and the guest sees nothing of it."""
    world = life.world

    def fail(what: str, path: str) -> int:
        return errno.EIO if what == operation and "dirty.map" in path else 0

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.some(tap, 3)
        if when == "before":
            world.volume.fault = fail
        await life.overflow(tap)
        if when == "while filled":
            world.volume.fault = fail
        await tap.tracker.settle()
        if when == "after":
            world.volume.fault = fail
        await life.some(tap, 6)
        assert await tap.flush(tap.disks[0]) == 0
        await tap.tracker.settle()
        assert tap.tracker.tracking is Tracking.LOST
        assert not tap.tracker.maps.in_force()
        world.volume.fault = lambda _what, _path: 0
        await tap.stop()

    assert world.run(main)
    assert world.run(life.later)
    assert life.seen[-1][0] is Tracking.LOST


def test_full_volume_of_the_log(life: Life) -> None:
    """R21, R28: ENOSPC ends the log; the map was made ahead, needs no space, and is completed."""
    world = life.world

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.some(tap, 3)
        world.volume.capacity = world.volume.used()
        await life.overflow(tap)
        assert tap.tracker.loss is not None and tap.tracker.loss.reason is LostReason.LOG_FULL
        await tap.tracker.settle()
        await life.some(tap, 4)
        assert tap.tracker.tracking is Tracking.MAP
        life.check(tap)
        assert life.provable
        await tap.stop()

    assert world.run(main)
    assert world.run(life.later)
    assert life.seen[-1] == (Tracking.MAP, LostReason.LOG_FULL)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_map_that_is_gone_at_the_next_start(life: Life, kill: bool) -> None:
    """A map in force that is missing says nothing: tracking is lost, never taken for empty."""

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.overflow(tap)
        await tap.tracker.settle()
        if kill:
            life.world.process.kill()
        else:
            await tap.stop()

    assert life.world.run(main) is not kill
    life.world.files.remove(f"{life.world.folder}/dirty.map")
    life.adopt_disks()
    assert life.world.run(life.later)
    assert life.seen[-1] == (Tracking.LOST, LostReason.MAP_FAILED)


def test_log_that_failed_while_no_region_was_hot(life: Life) -> None:
    """R17, R30: a log that can't be synced may lack anything, and without hot regions nobody knows what."""
    world = life.world

    async def main(ports: OwnPorts) -> None:
        tap = await life.start(ports)
        await life.begin(tap)
        await life.some(tap, 3)
        world.volume.fault = lambda what, path: errno.EIO if what == "sync" and "hot.map" in path else 0
        await life.change(tap, 0, [write(200 * KIB, b"x" * 512)])
        await life.some(tap, 3)
        hot = tap.tracker.maps.hot
        assert hot is not None and hot.failure and not hot.active
        assert (tap.tracker.tracking, tap.tracker.loss) == (Tracking.ON, None)
        world.volume.fault = lambda what, path: errno.EIO if what == "sync" and "/log/" in path else 0
        await life.change(tap, 0, [write(100 * KIB, b"x" * 512)])
        await tap.flush(tap.disks[0])
        loss = tap.tracker.loss
        assert (tap.tracker.tracking, loss and loss.reason) == (Tracking.LOST, LostReason.LOG_FAILED)
        world.volume.fault = lambda _what, _path: 0
        await tap.stop()

    assert world.run(main)


# --- the note -------------------------------------------------------------------------------------------------------


def a_map(life: Life, note: DirtyNote) -> DirtyMap:
    geometry = [Geometry(0, 1 << 20, bytes(16))]
    file = MapFile.create(life.world.files, f"{life.world.folder}/some.map", MapKind.DIRTY, bytes(16), 12, geometry)
    file.set_range(0, 0, 4096)
    file.write_note(note.encode())
    return DirtyMap(file)


@pytest.mark.parametrize("tracks", [False, True])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("force", [Force.OPEN, Force.COMPLETE])
@pytest.mark.parametrize("log_epoch", [E1, E2])
def test_what_of_a_note_counts(life: Life, tracks: bool, older: bool, force: Force, log_epoch: bytes) -> None:
    """The state says whether the map took the place of E2's log, and whether an older one was in force before.

    Each of the two files may be older than the other where power was lost.
    """
    dirty = a_map(life, DirtyNote(force, False, 3, 7, E1, log_epoch))
    dirty.take_up(E2, tracks=tracks, older=older)
    if log_epoch == E2 and (tracks or force is Force.COMPLETE):
        # The map has taken the log's place, whether or not the state says so yet.
        assert dirty.note == DirtyNote(force, False, 3, 7, E1, E2)
    elif not older:
        assert not dirty.in_force and not list(dirty.file.ranges(0))
    elif log_epoch == E2:
        # That it takes the place of E2's log is undone; what it named before it still names.
        assert dirty.note == DirtyNote(Force.COMPLETE, False, 3, 7, E1, E1)
    else:
        assert dirty.note == DirtyNote(force, False, 3, 7, E1, E1)
    assert dirty.is_complete(E2) == (log_epoch == E2 and force is Force.COMPLETE)


@pytest.mark.parametrize("note", [b"", b"x", DirtyNote().encode()[:-1], b"\x07" + DirtyNote().encode()[1:]])
def test_note_of_another_kind_says_nothing(note: bytes) -> None:
    assert DirtyNote.decode(note) == DirtyNote()


def test_note_is_what_it_was() -> None:
    note = DirtyNote(Force.OPEN, True, 1 << 60, 2, E1, E2)
    assert DirtyNote.decode(note.encode()) == note


def test_newest_cuts_are_kept(life: Life) -> None:
    """I13: as many as the annex holds."""
    dirty = a_map(life, DirtyNote(Force.OPEN, False, 0, 1 << 40, E1, E1))
    dirty.keep_cuts([(segment, segment.to_bytes(16, "big")) for segment in range(CUTS_MAX)])
    dirty.keep_cuts([(segment, segment.to_bytes(16, "big")) for segment in range(CUTS_MAX, CUTS_MAX + 5)])
    assert [segment for segment, _ in dirty.cuts()] == list(range(5, CUTS_MAX + 5))
    assert dirty.knows(E1, CUTS_MAX + 4, (CUTS_MAX + 4).to_bytes(16, "big"))
    assert not dirty.knows(E1, 4, (4).to_bytes(16, "big"))


def test_log_that_begins_behind_the_base_leaves_a_gap(life: Life) -> None:
    """R28: what was released is in no file any more, so an older base can't be told from it."""
    dirty = a_map(life, DirtyNote(Force.OPEN, False, 3, 7, E1, E1))
    assert dirty.reaches(E1, 3) and dirty.reaches(E1, 0)
    assert not dirty.reaches(E1, 4)
    # Of a later log nothing may be missing.
    assert dirty.reaches(E2, 0) and not dirty.reaches(E2, 1)
