"""The log as its readers use it: positions are found, leases hold, what is released is recycled, cuts come on time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from primary_agent.tap.tracker import EMPTY_CUTS_MAX
from protocol.hrl import RecordKind, SealReason
from protocol.position import Position
from shared.errors import InvalidStateError, NotFoundError, UsageError
from shared.hrl_follower import LogFollower, LogGoneError
from shared.nbd.backend import CommandKind, Mutation
from shared.nbd.constants import Errno
from shared.tap_control import Tracking
from tests.unit.tap.rig import EPOCH, KIB, OTHER_EPOCH, WarmEngine, copy, make_config, replay, trim, write, zeroes
from tests.unit.tap.world import World

SIZE = 128 * KIB
LOG_FILE = 64 * KIB


@pytest.fixture
def world() -> Iterator[World]:
    config = make_config("/vm", (SIZE,), log_file_bytes=LOG_FILE, log_limit_bytes=32 * LOG_FILE, interval_seconds=10.0)
    world = World(config)
    yield world
    world.close()


async def started(world: World, ports: OwnPorts) -> TapEngine:
    tap = WarmEngine(world.folder, world.config, ports)
    await tap.start()
    await tap.begin(EPOCH)
    return tap


async def put_later(tap: TapEngine, offset: int) -> None:
    """Write after a pause in which the hot regions' lease has ended, or the region has cooled."""
    done = tap.mutate(tap.disks[0], [write(offset, bytes([1 + offset % 251]) * 4 * KIB)])
    assert done is not None
    await done


def put(tap: TapEngine, offset: int, length: int = 4 * KIB) -> None:
    """Write at once."""
    mutation = write(offset, bytes([1 + offset % 251]) * length)
    assert tap.mutate(tap.disks[0], [mutation]) is None
    assert mutation.error == 0


async def fill(tap: TapEngine, cuts: int, writes: int = 5) -> list[Position]:
    """So many segments with so many writes each; the positions of their seals."""
    positions = []
    for _ in range(cuts):
        for number in range(writes):
            put(tap, 4 * KIB * number)
        positions.append((await tap.cut(SealReason.COMMAND)).position)
    return positions


# --- finding positions ---------------------------------------------------------------------------------------------


def test_every_position_is_found(world: World) -> None:
    """R34: behind every record of the log, in whichever file, reading goes on where the position says."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await fill(tap, 12)
        log = tap.tracker.log
        assert log is not None and len(tap.tracker.files.used) > 3
        start = await tap.locate(EPOCH, 1)
        follower = LogFollower(world.files, world.config.log_folder, tap.config.vm_id)
        follower.seek(start.file, start.offset, start.position)
        file, end = log.place
        while (run := follower.read(file, end)) is not None:
            for record in run.records:
                header = record.header
                position = Position(header.epoch, header.segment, header.next_entry, header.chain)
                place = await tap.locate(EPOCH, position.segment, position)
                assert place.position == position
                if header.kind is RecordKind.SEGMENT:
                    assert (await tap.locate(EPOCH, header.segment)).position.segment == header.segment - 1
                other = LogFollower(world.files, world.config.log_folder, tap.config.vm_id)
                other.seek(place.file, place.offset, position)
                following = other.read(file, end)
                assert following is None or following.records[0].header.chain != position.chain
                other.close()
        assert follower.position == log.position
        follower.close()
        await tap.stop()

    assert world.run(main)


def test_unknown_positions_are_not_found(world: World) -> None:
    """R34: another chain, another epoch, an entry inside a record, the future."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        cut = (await fill(tap, 3))[1]
        for wrong in (
            cut._replace(chain=bytes(16)),
            cut._replace(epoch=OTHER_EPOCH),
            cut._replace(entry=cut.entry + 1),
            cut._replace(segment=99),
        ):
            with pytest.raises(NotFoundError):
                await tap.locate(wrong.epoch, wrong.segment, wrong)
        with pytest.raises(NotFoundError):
            await tap.locate(EPOCH, 5)
        with pytest.raises(NotFoundError):
            await tap.locate(OTHER_EPOCH, 1)
        await tap.stop()

    assert world.run(main)


def test_positions_survive_restarts(world: World) -> None:
    """What a replica received before the tap was killed is still found after it."""
    known: list[Position] = []

    async def first(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        known.extend(await fill(tap, 4))
        put(tap, 0)
        assert tap.tracker.log is not None
        known.append(tap.tracker.log.position)
        world.process.kill()

    async def second(ports: OwnPorts) -> None:
        tap = WarmEngine(world.folder, world.config, ports)
        await tap.start()
        for position in known:
            assert (await tap.locate(EPOCH, position.segment, position)).position == position
        newest = tap.tracker.newest_cut
        assert newest is not None and newest.position.segment == 5
        assert tap.tracker.first_segment == 1
        tap.tracker.release(EPOCH, 5)
        await tap.stop()

    assert not world.run(first)
    assert len(known) == 5
    assert world.run(second)


def test_file_that_was_only_named_leaves_no_gap(world: World) -> None:
    """I3: killed between naming the next file and writing its header: the log goes on under that very number.

    With a number left out, the start after the next one took all before the gap for lost.
    """
    known: list[Position] = []

    async def first(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        known.extend(await fill(tap, 4))
        tap.tracker.files.next_file()
        world.process.kill()

    async def later(ports: OwnPorts) -> None:
        tap = WarmEngine(world.folder, world.config, ports)
        await tap.start()
        assert tap.tracker.tracking is Tracking.ON
        assert tap.tracker.first_segment == 1
        for position in known:
            assert (await tap.locate(EPOCH, position.segment, position)).position == position
        known.extend(await fill(tap, 12))
        await tap.stop()

    assert not world.run(first)
    assert world.run(later)
    assert world.run(later)


# --- releasing and leases ------------------------------------------------------------------------------------------


def test_released_log_is_recycled(world: World) -> None:
    """Only what is acknowledged goes, the oldest kept segment is told truly, and its start is found."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        positions = await fill(tap, 20)
        before = len(tap.tracker.files.used)
        tap.tracker.release(EPOCH, 12)
        assert len(tap.tracker.files.used) < before
        assert tap.tracker.first_segment == 13
        for position in positions[12:]:
            assert (await tap.locate(EPOCH, position.segment, position)).position == position
        assert (await tap.locate(EPOCH, 13)).position == positions[11]
        with pytest.raises(NotFoundError):
            await tap.locate(EPOCH, 2)
        # An older acknowledgement that comes late changes nothing.
        tap.tracker.release(EPOCH, 3)
        assert tap.tracker.first_segment == 13
        await tap.stop()

    assert world.run(main)


def test_release_of_what_is_not_durable_is_refused(world: World) -> None:
    """I5: a peer that acknowledges the future makes no log go."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        await fill(tap, 2)
        with pytest.raises(InvalidStateError, match="newest durable cut is 2"):
            tap.tracker.release(EPOCH, 3)
        with pytest.raises(InvalidStateError):
            tap.tracker.release(OTHER_EPOCH, 1)
        await tap.stop()

    assert world.run(main)


def test_leased_files_are_kept(world: World) -> None:
    """R36: a reader's files stay what they are until its lease ends, and not longer."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        files = tap.tracker.files
        await fill(tap, 6)
        first = files.used[0].sequence
        files.lease("reader", first, 30.0)
        start = await tap.locate(EPOCH, 1)
        follower = LogFollower(world.files, world.config.log_folder, tap.config.vm_id)
        follower.seek(start.file, start.offset, start.position)
        for _ in range(10):
            await fill(tap, 1)
            assert tap.tracker.newest_cut is not None
            tap.tracker.release(EPOCH, tap.tracker.newest_cut.position.segment)
        assert files.used[0].sequence == first
        assert tap.tracker.log is not None
        place = tap.tracker.log.place
        while follower.read(*place) is not None:
            pass
        assert follower.position == tap.tracker.log.position
        follower.seek(start.file, start.offset, start.position)
        await asyncio.sleep(31)
        await put_later(tap, 0)
        await fill(tap, 3)
        tap.tracker.release(EPOCH, (await fill(tap, 1))[0].segment)
        assert files.used[0].sequence > first
        await fill(tap, 12)
        # A lost lease reads as gone, never as damage.
        with pytest.raises(LogGoneError):
            while follower.read(*place) is not None:
                pass
        follower.close()
        await tap.stop()

    assert world.run(main)


def test_lease_of_later_files_frees_earlier_ones(world: World) -> None:
    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        files = tap.tracker.files
        positions = await fill(tap, 12)
        middle = (await tap.locate(EPOCH, 6)).file
        files.lease("reader", middle, 30.0)
        tap.tracker.release(EPOCH, positions[-1].segment)
        assert files.used[0].sequence == middle
        files.lease("reader", 0, 0)
        files.reclaim()
        assert files.used[0].sequence > middle
        await tap.stop()

    assert world.run(main)


def test_log_limit_can_be_raised(world: World) -> None:
    """A raised limit holds from then on; one that holds no two files is refused."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        with pytest.raises(UsageError):
            tap.set_log_limit(2 * LOG_FILE - 1)
        tap.set_log_limit(64 * LOG_FILE)
        for number in range(700):
            put(tap, 4 * KIB * (number % 32))
        assert tap.tracker.tracking is Tracking.ON
        assert 32 * LOG_FILE < tap.tracker.files.used_bytes <= 64 * LOG_FILE
        await tap.stop()

    assert world.run(main)


# --- cuts ----------------------------------------------------------------------------------------------------------


def test_interval(world: World) -> None:
    """R44: the tap cuts by itself, every interval, whether or not there was a write; a new interval holds at once."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        base = world.images()
        await asyncio.sleep(35)
        newest = tap.tracker.newest_cut
        assert newest is not None and newest.position.segment == 3
        tap.intervals.set(2.0)
        await put_later(tap, 0)
        await asyncio.sleep(9)
        newest = tap.tracker.newest_cut
        assert newest is not None and newest.position.segment == 7
        await tap.end_tracking()
        await asyncio.sleep(30)
        assert tap.tracker.newest_cut is None
        await tap.begin(OTHER_EPOCH)
        await asyncio.sleep(3)
        assert tap.tracker.newest_cut is not None
        await tap.stop()
        assert base != world.images()

    assert world.run(main)


def test_empty_cuts_do_not_pile_up(world: World) -> None:
    """An idle VM whose replica is away keeps a bounded number of empty segments; a write is cut in any case."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        tap.intervals.set(1.0)
        await asyncio.sleep(EMPTY_CUTS_MAX + 200)
        newest = tap.tracker.newest_cut
        assert newest is not None and newest.position.segment == EMPTY_CUTS_MAX
        await put_later(tap, 0)
        await asyncio.sleep(2)
        newest = tap.tracker.newest_cut
        assert newest is not None and newest.position.segment == EMPTY_CUTS_MAX + 1
        tap.tracker.release(EPOCH, newest.position.segment)
        await asyncio.sleep(5)
        newest = tap.tracker.newest_cut
        assert newest is not None and newest.position.segment > EMPTY_CUTS_MAX + 4
        await tap.stop()

    assert world.run(main)


def test_cut_is_durable_when_it_is_told(world: World) -> None:
    """R34, I4: power loss right after a cut or a FLUSH leaves its log, and its data, readable."""

    stages: list[dict[int, bytes]] = []
    cuts: list[Position] = []

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        stages.append(world.images())
        put(tap, 0, 20 * KIB)
        put(tap, 4 * KIB, 60 * KIB)
        stages.append(world.images())
        cuts.append((await tap.cut(SealReason.COMMAND)).position)
        put(tap, 8 * KIB)
        assert await tap.flush(tap.disks[0]) == 0
        stages.append(world.images())
        world.process.kill()

    assert not world.run(main)
    base, expected, flushed = stages
    world.lose_power()
    assert world.images() == flushed
    result = replay(world.files, world.config, EPOCH, base)
    assert result.cuts[cuts[0]] == expected
    assert copy(result.images) == flushed


# --- changes -------------------------------------------------------------------------------------------------------


def test_flushes_share_syncs(world: World) -> None:
    """Each flush is answered by a sync that began after it; many at once need but few."""
    syncs: list[str] = []
    world.volume.on_sync = lambda _process, path: syncs.append(path)

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        put(tap, 0)
        assert await tap.flush(tap.disks[0]) == 0
        syncs.clear()
        assert await tap.flush(tap.disks[0]) == 0
        assert syncs == []
        put(tap, 0)
        assert await asyncio.gather(*(tap.flush(tap.disks[0]) for _ in range(50))) == [0] * 50
        assert sum("disk-0" in path for path in syncs) <= 2
        first = asyncio.ensure_future(tap.flush(tap.disks[0]))
        await asyncio.sleep(0)
        put(tap, 4096)
        inode = world.volume.entries[world.config.disks[0].path]
        await tap.flush(tap.disks[0])
        assert inode.is_durable()
        await first
        await tap.stop()

    assert world.run(main)


def test_fua_is_answered_when_it_is_durable(world: World) -> None:
    """I4: FUA on any kind of change."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        inode = world.volume.entries[world.config.disks[0].path]
        for mutation in (
            write(0, b"f" * 512, fua=True),
            Mutation(CommandKind.ZEROES, 0, 512, None, True, False, False),
            Mutation(CommandKind.TRIM, 0, 4096, None, True, False, False),
        ):
            put(tap, 8192)
            done = tap.mutate(tap.disks[0], [mutation])
            assert done is not None
            await done
            assert mutation.error == 0 and inode.is_durable()
        await tap.stop()

    assert world.run(main)


def test_changes_behind_a_long_one_wait_in_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R31: while a long zeroing is under way others wait, reads go on; one whose client is gone does not happen."""
    monkeypatch.setattr("primary_agent.tap.batches.INLINE_ZEROES", 16 * KIB)
    monkeypatch.setattr("primary_agent.tap.engine.INLINE_ZEROES", 16 * KIB)

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        base = world.images()
        long = tap.mutate(tap.disks[0], [zeroes(0, 64 * KIB)])
        waiting = tap.mutate(tap.disks[0], [write(0, b"2" * 512)])
        gone = tap.mutate(tap.disks[0], [write(512, b"3" * 512)])
        last = tap.mutate(tap.disks[0], [write(0, b"4" * 512), zeroes(1024, 20 * KIB), write(1024, b"5" * 512)])
        assert None not in (long, waiting, gone, last)
        assert long is not None and waiting is not None and gone is not None and last is not None
        gone.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
        assert tap.read_cached(tap.disks[0], SIZE - 512, 512) == base[0][-512:]
        await asyncio.gather(long, waiting, last)
        expected = b"4" * 512 + bytes(512) + b"5" * 512 + bytes(64 * KIB - 1536) + base[0][64 * KIB :]
        assert world.images()[0] == expected
        await tap.stop()
        assert copy(replay(world.files, world.config, EPOCH, base).images) == world.images()

    assert world.run(main)


def test_begin_waits_for_what_is_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R6: what was handed over before ``begin`` is on the disk when it returns, and not in the new log."""
    monkeypatch.setattr("primary_agent.tap.batches.INLINE_ZEROES", 16 * KIB)
    monkeypatch.setattr("primary_agent.tap.engine.INLINE_ZEROES", 16 * KIB)

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        long = tap.mutate(tap.disks[0], [zeroes(0, 64 * KIB)])
        assert long is not None
        await tap.begin(OTHER_EPOCH)
        assert long.done()
        base = world.images()
        assert base[0][: 64 * KIB] == bytes(64 * KIB)
        put(tap, 0)
        await tap.stop()
        result = replay(world.files, world.config, OTHER_EPOCH, base)
        assert (result.entries, copy(result.images)) == (1, world.images())

    assert world.run(main)


def test_refused_changes_get_no_number(world: World) -> None:
    """Fast zeroing that can't be promised, and changes after the drain, are refused before they are logged."""

    async def main(ports: OwnPorts) -> None:
        tap = await started(world, ports)
        batch = [zeroes(0, 4096, no_hole=True, fast=True), trim(0, 512), zeroes(512, 512, fast=True)]
        assert tap.mutate(tap.disks[0], batch) is None
        assert [mutation.error for mutation in batch] == [Errno.ENOTSUP, 0, 0]
        assert tap.tracker.log is not None and tap.tracker.log.entry == 2
        tap.drain()
        late = write(0, b"x" * 512)
        assert tap.mutate(tap.disks[0], [late]) is None
        assert late.error == Errno.ESHUTDOWN and tap.tracker.log.entry == 2
        await tap.stop()

    assert world.run(main)
