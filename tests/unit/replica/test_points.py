"""Tests of older recovery points at a running replica: kept, listed, exported, given up for room, lost, thinned."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

import replica_agent.retention
from protocol.messages import ResyncKind
from protocol.position import Position
from replica_agent.points import find_point, point_settings, points_of, set_rules
from replica_agent.retention import HOUR, Retention
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.errors import InvalidStateError, NotFoundError, UsageError
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import EPOCH, SECOND, VM, Tap
from tests.unit.replica.rig import DISKS, Resync, World, check_history
from tests.unit.replica.test_exports import read_export
from tests.unit.replica.test_sessions import Pair, replicating, until

NEXT_EPOCH = b"n" * 16
needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (qemu-utils)")


async def cuts(pair: Pair, count: int, *, seconds: float = 0.0) -> None:
    """So many cuts, each applied before the next, ``seconds`` further apart than by themselves."""
    for _ in range(count):
        pair.tap.time_ns += int(seconds * SECOND)
        await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)


def segments(vm: ReplicaVm) -> list[int]:
    return [position.segment for position in vm.parts.history.positions()]


def undo_files(world: World) -> list[Path]:
    return sorted((world.folder_of() / "undo").glob("*"))


async def texts(pair: Pair) -> list[str]:
    return [event["text"] for event in (await pair.agent.events(None, limit=200, after=0)).events]


async def thinned(vm: ReplicaVm) -> None:
    """Until nothing is left to merge."""
    history = vm.parts.history
    await until(lambda: replica_agent.retention.merge_next(vm.ledger.points, history.retention) is None)


async def test_newest_cuts_are_kept_and_right(world: World) -> None:
    """I1: four newest cuts by default, and the first of the hour."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 7)
        last = pair.tap.segment
        assert segments(vm)[-3:] == [last - 3, last - 2, last - 1]
        assert await check_history(vm, pair.tap) == len(segments(vm)) + 1
        listed = points_of(vm)
        assert [point.cut.segment for point in listed.points] == [last, *reversed(segments(vm))]
        assert listed.points[0].newest
        assert listed.points[-1].hourly
        assert all(point.bytes > 0 for point in listed.points[1:])
        assert (
            sum(point.bytes for point in listed.points)
            == listed.bytes
            == sum(f.stat().st_size for f in undo_files(world))
        )


async def test_hourly_points_survive_restarts_and_merges(world: World) -> None:
    """I1, R25: over many hours, with a restart in between."""
    world.options["retention"] = Retention(newest=2, hourly=5)
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 21, seconds=HOUR / 4)
        await thinned(vm)
        assert await check_history(vm, pair.tap) >= 6
        kept, tap = segments(vm), pair.tap
        times = [point.cut.time or 0 for point in points_of(vm).points if point.hourly]
        assert len({time // HOUR for time in times}) == len(times) == 5
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert segments(vm) == kept
        assert await check_history(vm, tap) == len(kept) + 1


@needs_qemu
async def test_several_points_are_exported_while_applies_and_merges_go_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1, R22, R37: with a real client, each stays what it is; a point that is exported is not deleted."""
    monkeypatch.setattr(replica_agent.retention, "MERGE_AT_ONCE", 2)
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 5)
        chosen = [find_point(vm, f"{EPOCH.hex()[:8]}/{number}") for number in segments(vm)[-3:]]
        exports = [await vm.exports.start(vm.describe, position) for position in [*chosen, None]]
        expected = [*(position.segment for position in chosen if position is not None), pair.tap.segment]
        assert [export.cut.segment for export in exports] == expected
        for _ in range(3):
            await cuts(pair, 4)
            await thinned(vm)
            for export in exports:
                assert await read_export(export, tmp_path) == pair.tap.cuts[export.cut.segment]
        assert set(expected) <= set(segments(vm))
        listed = {point.cut.segment: point.exports for point in points_of(vm).points}
        assert all(listed[export.cut.segment] == [export.id] for export in exports)
        await vm.exports.stop()
        await cuts(pair, 1)
        await thinned(vm)
        assert not set(expected) & set(segments(vm)[1:])
        assert await check_history(vm, pair.tap)


async def test_an_export_keeps_what_it_needs_although_no_history_is_kept(world: World) -> None:
    world.options["retention"] = Retention(newest=1, hourly=0)
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 2)
        assert undo_files(world) == []
        cut = pair.tap.segment
        export = await vm.exports.start(vm.describe)
        await cuts(pair, 3)
        reader = vm.exports._exports[export.id].point
        assert {d.index: reader.read(d.index, 0, d.size) for d in DISKS} == pair.tap.cuts[cut]
        await vm.exports.stop()
        await cuts(pair, 2)
        assert undo_files(world) == []


async def test_points_are_named_strictly(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 2)
        assert find_point(vm, "newest") is None
        assert find_point(vm, str(pair.tap.segment)) == pair.tap.position
        assert find_point(vm, f"{EPOCH.hex()}/{pair.tap.segment}") == pair.tap.position
        for name in ("", "x", "1/2/3", "-1", "../1", f"{EPOCH.hex()}0/1", "9" * 21):
            with pytest.raises((UsageError, NotFoundError)):
                find_point(vm, name)
        with pytest.raises(NotFoundError, match="no recovery point 4000"):
            find_point(vm, "4000")
        gone = Position(EPOCH, 4000, 0, bytes(16))
        with pytest.raises(NotFoundError, match="any more"):
            await vm.exports.start(vm.describe, gone)


async def test_rules_of_a_vm_of_its_own(world: World) -> None:
    """I16: settable, at once, durable, and recorded."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 6)
        await set_rules(vm, point_settings({"points_newest": 2, "points_hourly": 0}))
        assert segments(vm) == [pair.tap.segment - 1]
        assert any("newest 2" in text and "it was newest 4" in text for text in await texts(pair))
        await set_rules(vm, point_settings({"points_newest": None}))
        await cuts(pair, 5)
        assert len(segments(vm)) == 3
        for wrong in ({"points_newest": 0}, {"points_hourly": -1}, {"points_newest": "many"}, {"interval_seconds": 3}):
            with pytest.raises(UsageError, match="not valid"):
                point_settings(wrong)
        tap = pair.tap
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert (vm.parts.history.retention.newest, vm.parts.history.retention.hourly) == (4, 0)
        assert await check_history(vm, tap) == 4


# --- room ------------------------------------------------------------------------------------------------------------


async def test_the_oldest_points_make_room_and_replication_goes_on(world: World) -> None:
    """R4: without room for the next undo log the oldest points go, by and by, never the newest; it is told."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 6)
        before = segments(vm)
        assert len(before) >= 4
        # Room as if the volume were full until some files are deleted.
        count = len(undo_files(world))
        files.free_space = lambda path: 0 if len(undo_files(world)) == count else 1 << 40  # type: ignore[method-assign]
        await vm._keep_room()
        await vm._keep_room()
        assert segments(vm) == before[1:]
        files.free_space = lambda path: 0 if len(undo_files(world)) > 2 else 1 << 40  # type: ignore[method-assign]
        await cuts(pair, 1)
        assert vm.point() == pair.tap.position
        assert vm.parts.applier.problem is None
        told = [text for text in await texts(pair) if "deleted to make room" in text]
        assert len(told) >= 2
        assert await check_history(vm, pair.tap) >= 1
        # It is a Warning until there are as many points as the settings ask for.
        assert any("recovery points are kept of the" in reason for reason in status_of(vm).reasons)


async def test_without_any_room_only_the_newest_is_kept(world: World) -> None:
    """R4, I13: history is given up before replication is."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 4)
        files.fail_only("0", "write_many", number=errno.ENOSPC)
        await cuts(pair, 3)
        assert vm.point() == pair.tap.position
        assert segments(vm) == []
        assert undo_files(world) == []
        assert sum("Only the newest recovery point is kept" in text for text in await texts(pair)) == 1
        files.fail_nothing()
        await cuts(pair, 3)
        assert len(segments(vm)) == 3
        assert await check_history(vm, pair.tap) == 4


@pytest.mark.parametrize("operation", ["sync", "write_many", "read", "create", "sync_folder"])
async def test_an_error_while_saving_costs_history_and_nothing_else(world: World, operation: str) -> None:
    """R17, R24: whether the disk can't be read or the undo log can't be written, the cut is applied."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 4)
        # The rig would read the disks itself.
        pair.agent.exposed.clear()
        prefix = "disk-" if operation == "read" else "undo" if operation == "sync_folder" else "0"
        files.fail_only(prefix, operation)
        await cuts(pair, 1)
        files.fail_nothing()
        assert vm.point() == pair.tap.position
        assert vm.ledger.replication.causes == []
        assert segments(vm) == []
        await cuts(pair, 2)
        assert await check_history(vm, pair.tap) == 3


async def test_what_was_not_saved_is_not_overwritten_behind_history(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R25, P13: the tables were read wrongly when they were saved; the apply goes on, and the points end, visibly."""
    from replica_agent import replay, walk

    read_tables = walk.read_tables
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 3)
        monkeypatch.setattr(replay, "read_tables", lambda *a: ((t[1:], n) for t, n in read_tables(*a) if len(t) > 1))
        await cuts(pair, 1)
        monkeypatch.undo()
        assert vm.point() == pair.tap.position
        assert segments(vm) == []
        assert any("did not name when they were saved" in text for text in await texts(pair))
        await cuts(pair, 2)
        assert await check_history(vm, pair.tap) == 3


async def test_an_export_is_lost_with_the_history_that_it_reads(world: World) -> None:
    """I1: an error for its clients, never other content."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        export = await vm.exports.start(vm.describe)
        files.fail_only("0", "sync")
        await cuts(pair, 1)
        files.fail_nothing()
        reader = vm.exports._exports[export.id].point
        for read in (reader.read, reader.read_cached, reader.extents):
            with pytest.raises(OSError, match="lost"):
                read(0, 0, 4096)
        newer = await vm.exports.start(vm.describe)
        await cuts(pair, 1)
        reader = vm.exports._exports[newer.id].point
        assert reader.read(0, 0, DISKS[0].size) == pair.tap.cuts[newer.cut.segment][0]


async def test_a_dead_export_keeps_no_room(world: World) -> None:
    """I13: what was deleted to make room is free at once, although a client still holds the export."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 5)
        export = await vm.exports.start(vm.describe, vm.parts.history.positions()[0])
        while await vm.parts.history.give_way("The test wants room."):
            pass
        reader = vm.exports._exports[export.id].point
        assert reader.failed
        assert reader.layers == ()
        await cuts(pair, 2)
        assert reader.layers == ()
        gone = [file.path for file in files.opened if not file.path.endswith(".raw") and "undo" in file.path]
        assert not [path for path in gone if not Path(path).exists() and is_open(path)]


def is_open(path: str) -> bool:
    """Whether this process has the file open, or what is left of it."""
    return any(os.readlink(link).startswith(path) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link))


@pytest.mark.parametrize("operation", ["remove", "statvfs"])
async def test_what_cannot_be_deleted_costs_nothing(world: World, operation: str) -> None:
    """I14: neither a file that can't be unlinked nor a volume that can't be asked holds replication up."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await set_rules(vm, {"newest": 3, "hourly": 0})
        await cuts(pair, 4)
        if operation == "remove":
            files.fail_only("0", "remove")
        await cuts(pair, 2)
        if operation == "statvfs":
            files.fail_only("", "free_space")
        await vm._keep_room()
        files.fail_nothing()
        assert vm.failure is None
        assert vm.ledger.replication.causes == []
        assert vm.point() == pair.tap.position
        await cuts(pair, 1)
        await until(lambda: len(undo_files(world)) == len(vm.ledger.points.logs))


async def test_an_unreadable_undo_log_costs_history_and_nothing_else(world: World) -> None:
    """I14: the apply that a restart goes on with needs its own undo log, but not more than its disks."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 3)
        history = vm.parts.history
        save = history.save

        async def saved(*arguments: Any) -> Any:
            record = await save(*arguments)
            history._saved = None
            files.fail_only("0", "read")
            return record

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(history), "save", lambda self, *arguments: saved(*arguments))
            await cuts(pair, 1)
        files.fail_nothing()
        assert vm.point() == pair.tap.position
        assert vm.ledger.replication.causes == []
        assert vm.ledger.replication.suspect is None
        assert segments(vm) == []


async def test_an_export_after_a_failed_transaction_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disks did not begin to change: an export is served or refused, and the agent never hangs."""
    files = FailingFiles()
    world.files = files
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 2)
        monkeypatch.setattr(type(vm.ledger.store), "commit", failing_commit)
        files.fail_only("0", "write_many", number=errno.ENOSPC)
        log, seal = pair.tap.random_segment(pair.rng)
        pair.control.log(log)
        pair.control.seal(seal)
        await until(lambda: vm.failure is not None)
        monkeypatch.undo()
        files.fail_nothing()
        async with asyncio.timeout(20):
            export = await vm.exports.start(vm.describe)
            assert export.cut.segment == pair.tap.segment - 1


async def failing_commit(_store: object, *_arguments: object) -> None:
    raise OSError(errno.ENOSPC, "no room for the state")


def test_a_read_takes_each_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I13: many small pieces of many logs; memory and time do not grow with gaps times batches."""
    from replica_agent.changes import Write
    from shared.undo_log import UndoLog
    from tests.unit.replica import test_undo

    rig = test_undo.Rig(tmp_path)
    rng = random.Random(2)
    for _ in range(6):
        offsets = rng.sample(range(0, 8 * test_undo.BLOCK, 4096), 40)
        rig.change(*(Write(0, offset, 4096, [memoryview(rng.randbytes(4096))]) for offset in offsets))
    reader = rig.reader(0)
    reads: list[tuple[int, int]] = []
    batch = UndoLog.batch

    def counted(log: UndoLog, number: int) -> Any:
        reads.append((log.order, number))
        return batch(log, number)

    monkeypatch.setattr(UndoLog, "batch", counted)
    assert reader.read(0, 0, 8 * test_undo.BLOCK) == rig.contents[0][0][: 8 * test_undo.BLOCK]
    assert len(reads) == len(set(reads))
    reads.clear()
    test_undo.check_extents(reader.extents(0, 0, test_undo.DISKS[0].size), rig.contents[0][0])
    assert len(reads) == len(set(reads))


# --- resync, failover, damage ----------------------------------------------------------------------------------------


async def resynchronize(pair: Pair) -> Tap:
    pair.tap.content[0][70_000:70_010] = b"unlogged!!"
    second = pair.tap.begin(NEXT_EPOCH)
    await Resync(pair.dialler, pair.control, second, b"2" * 16, ResyncKind.RESYNC, EPOCH).whole(pair.rng)
    return second


async def test_points_outlive_a_resync(world: World) -> None:
    """R38, section 9: the merge writes an undo log like any apply."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await set_rules(vm, {"newest": 8})
        await cuts(pair, 3)
        before = [*segments(vm), pair.tap.segment]
        second = await resynchronize(pair)
        assert [p.segment for p in vm.parts.history.positions() if p.epoch == EPOCH] == before
        assert await check_history(vm, pair.tap, second) == len(before) + 1


async def test_points_over_untrusted_disks_end_with_the_resync(world: World) -> None:
    """R38: what they rest on may be anything; visibly."""
    async with replicating(world) as pair:
        await cuts(pair, 3)
        tap, rng = pair.tap, pair.rng
    path = world.folder_of() / "disk-0.raw"
    path.write_bytes(b"edited" + path.read_bytes()[6:])
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert vm.ledger.replication.suspect is not None
        with pytest.raises(InvalidStateError, match="not trusted"):
            await vm.exports.start(vm.describe, vm.parts.history.positions()[0])
        from tests.unit.replica.test_sessions import dialler_of

        dialler = dialler_of(world, agent)
        control, _ = await dialler.open(epoch=EPOCH)
        second = tap.begin(NEXT_EPOCH)
        await Resync(dialler, control, second, b"2" * 16, ResyncKind.RESYNC, EPOCH).whole(rng)
        assert [p for p in vm.parts.history.positions() if p.epoch == EPOCH] == []
        events = (await agent.events(None, limit=100, after=0)).events
        assert any("older recovery points were deleted" in event["text"] for event in events)
        assert await check_history(vm, second)


async def test_untrusted_disks_prove_no_cut_whatever_a_resync_has_begun(world: World) -> None:
    """I3, R28: else a primary would bound its compare by its own map, and miss what was edited here."""
    async with replicating(world) as pair:
        tap = pair.tap
    path = world.folder_of() / "disk-0.raw"
    path.write_bytes(b"edited" + path.read_bytes()[6:])
    from tests.unit.replica.test_sessions import dialler_of

    for _ in range(2):
        # The second time a resync has been begun, and the state no longer says that one is required.
        async with world.agent() as agent:
            dialler = dialler_of(world, agent)
            control, opened = await dialler.open(epoch=EPOCH)
            assert opened.cut is None
            assert opened.received is not None
            await Resync(dialler, control, tap.begin(NEXT_EPOCH), b"2" * 16, ResyncKind.RESYNC, EPOCH).begin()


async def test_a_resync_that_is_open_ends_with_the_disks_that_it_compared(world: World) -> None:
    """I10: what was settled was compared with other disks than these."""
    async with replicating(world) as pair:
        resync = Resync(pair.dialler, pair.control, pair.tap.begin(NEXT_EPOCH), b"2" * 16, ResyncKind.RESYNC, EPOCH)
        await resync.begin()
        await resync.compare()
        assert pair.agent.vms[VM].ledger.resync is not None
    path = world.folder_of() / "disk-0.raw"
    path.write_bytes(b"edited" + path.read_bytes()[6:])
    async with world.agent() as agent:
        assert agent.vms[VM].ledger.resync is None
        assert agent.vms[VM].ledger.replication.suspect is not None


async def test_an_initial_replication_does_not_rely_on_disks_that_were_written_since(world: World) -> None:
    """I10: somebody edits a disk while the agent is dead and the first copy is half made."""
    from tests.unit.replica.rig import random_content
    from tests.unit.replica.test_sessions import dialler_of

    tap = Tap(DISKS)
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        resync = Resync(dialler, control, tap, b"1" * 16)
        random_content(tap, resync_rng())
        await resync.begin()
        await resync.compare()
    for edited in (False, True):
        if edited:
            path = world.folder_of() / "disk-0.raw"
            with path.open("r+b") as file:
                file.write(b"edited")
        async with world.agent() as agent:
            dialler = dialler_of(world, agent)
            control, opened = await dialler.open()
            assert opened.resync is not None
            assert (opened.resync.settled_bytes == 0) is edited
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        resync = Resync(dialler, control, tap, b"1" * 16)
        await resync.whole(resync_rng())
        assert await check_history(agent.vms[VM], tap) == 1


def resync_rng() -> random.Random:
    return random.Random(5)


async def test_a_damaged_undo_log_costs_the_points_that_need_it(world: World) -> None:
    """A24: at a start; the newer points stay."""
    async with replicating(world) as pair:
        await cuts(pair, 5)
        tap, kept = pair.tap, segments(pair.agent.vms[VM])
    victim = undo_files(world)[-2]
    data = bytearray(victim.read_bytes())
    data[-100] ^= 1
    victim.write_bytes(data)
    stranger = victim.with_name(f"{900:012d}-{900:012d}.undo")
    stranger.write_bytes(b"left over")
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert segments(vm) == kept[-1:]
        assert await check_history(vm, tap) == 2
        assert not stranger.exists()
        assert not victim.exists()
        events = (await agent.events(None, limit=100, after=0)).events
        assert any("Older recovery points are lost" in event["text"] for event in events)


async def test_rot_inside_an_undo_log_is_an_error_and_a_merge_finds_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1, A24: reading it fails; when it is to be merged, the points that need it are given up, once."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 5)
        victim = undo_files(world)[-2]
        data = bytearray(victim.read_bytes())
        data[4096 + 80 + 30] ^= 1
        victim.write_bytes(data)
        export = await vm.exports.start(vm.describe, vm.parts.history.positions()[-2])
        with pytest.raises(OSError, match="can't be used"):
            vm.exports._exports[export.id].point.read(0, 0, DISKS[0].size)
            vm.exports._exports[export.id].point.read(3, 0, DISKS[1].size)
        await vm.exports.stop()
        monkeypatch.setattr(replica_agent.retention, "MERGE_AT_ONCE", 2)
        await cuts(pair, 4)
        await thinned(vm)
        assert not victim.exists()
        assert await check_history(vm, pair.tap) >= 2
        assert sum("Older recovery points are lost" in text for text in await texts(pair)) == 1


async def test_points_end_when_a_failover_is_committed(world: World) -> None:
    """I6: as long as it can be undone, all of them stay."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 3)
        assert await vm.promotion.decide()
        vm._spawn(vm.promotion.complete())
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        kept = segments(vm)
        assert len(kept) == len(undo_files(world)) > 1
        assert not await vm.parts.history.give_way("The volume is full.")
        await set_rules(vm, {"newest": 1, "hourly": 0})
        assert segments(vm) == kept
        await vm.promotion.commit()
        await until(lambda: undo_files(world) == [])
        assert segments(vm) == []


async def test_reads_go_on_during_an_apply(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """R37: an export may begin, of any point, while the disks are between two."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 3)
        applier, cut = vm.parts.applier, pair.tap.segment
        halfway, go_on = asyncio.Event(), asyncio.Event()
        replay = applier._replay

        async def slow(*arguments: object) -> None:
            await replay(*arguments)  # type: ignore[arg-type]
            halfway.set()
            await go_on.wait()

        monkeypatch.setattr(type(applier), "_replay", lambda self, *arguments: slow(*arguments))
        await pair.control.send_segment(pair.tap, pair.rng)
        await halfway.wait()
        assert vm.point() is None
        newest = await vm.exports.start(vm.describe)
        assert newest.cut.segment == cut
        older = await vm.exports.start(vm.describe, vm.parts.history.positions()[0])
        for export in (newest, older):
            reader = vm.exports._exports[export.id].point
            found = {disk.index: reader.read(disk.index, 0, disk.size) for disk in DISKS}
            assert found == pair.tap.cuts[export.cut.segment]
        go_on.set()
        await pair.control.until_applied(pair.tap.position)
        reader = vm.exports._exports[newest.id].point
        assert reader.read(0, 0, DISKS[0].size) == pair.tap.cuts[cut][0]
