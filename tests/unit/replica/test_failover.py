"""Tests of the failover's decisions and of its crashes; the tap that serves the disks is tested with real processes."""

from __future__ import annotations

import asyncio
import functools
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import ResyncKind
from protocol.position import Position
from replica_agent import apply
from replica_agent.groups import Group
from replica_agent.history import History
from replica_agent.layers import PointReader
from replica_agent.vm import ReplicaVm
from shared.errors import InvalidStateError
from shared.tap_config import load_config
from tests.places import step
from tests.unit.replica.failing import FailingFiles, Killed
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import DISKS, WAIT_SECONDS, Certificates, Resync, World, disk_bytes, random_content
from tests.unit.replica.test_crashes import kill
from tests.unit.replica.test_sessions import dialler_of, refusal_of, refused_open, replicating, until


async def failover(vm: ReplicaVm) -> None:
    """Decide and complete, up to the point where a tap would serve."""
    assert await vm.promotion.decide()
    vm._spawn(vm.promotion.complete())
    await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)


def promoted_cut(vm: ReplicaVm) -> tuple[bytes, int]:
    record = vm.ledger.promotion
    assert record is not None
    return record.parent, record.parent_segment


def check_disks(world: World, tap: Tap, segment: int) -> None:
    for disk in DISKS:
        assert disk_bytes(world, disk.index) == tap.cuts[segment][disk.index]


async def test_failover_has_everything_that_was_acknowledged(world: World) -> None:
    """I6, I8, R14: also what was not yet applied."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        async with vm.parts.applier.turn:
            for _ in range(3):
                await pair.control.send_segment(pair.tap, pair.rng)
            assert await vm.promotion.decide()
        vm._spawn(vm.promotion.complete())
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        assert promoted_cut(vm) == (EPOCH, pair.tap.segment)
        check_disks(world, pair.tap, pair.tap.segment)
        assert (await refusal_of(pair.control)).code == "busy"
        error = await refused_open(pair.dialler, epoch=EPOCH)
        assert (error.code, error.retryable) == ("fenced", False)
        record = vm.ledger.promotion
        assert record is not None
        for part in ("replica.test", record.epoch.hex(), EPOCH.hex(), str(pair.tap.segment), "UTC"):
            assert part in error.text
        status = pair.agent.status().vms[0]
        assert (status.state, status.health) == ("FailedOverWaitingCompletion", "Warning")
        config = load_config(world.files, vm.parts.layout.tap)
        assert [disk.path for disk in config.disks] == [vm.parts.disks.path(disk.index) for disk in DISKS]


async def test_what_is_reachable_does_not_go_back_while_a_point_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I6: a point is durable before its segments leave the spool, and the applier may end in between.

    A failover that was decided then took the older point, and the disks were applied on behind it (seeds 232486 and
    221446 of the simulation).
    """
    monkeypatch.setattr(apply, "GROUP_SEGMENTS", 1)
    seen: list[tuple[Position | None, bool]] = []
    expose = apply.Applier._expose

    def look(applier: apply.Applier, group: Group) -> None:
        seen.append((applier.reachable, applier.idle))
        expose(applier, group)

    async with replicating(world) as pair:
        applier = pair.agent.vms[VM].parts.applier
        monkeypatch.setattr(apply.Applier, "_expose", look)
        async with applier.turn:
            for _ in range(3):
                await pair.control.send_segment(pair.tap, pair.rng)
            newest = applier.reachable
        assert newest is not None and newest.segment == pair.tap.segment
        await until(lambda: len(seen) == 3)
    assert seen == [(newest, False), (newest, False), (newest, True)]


async def test_failed_over_vm_is_not_exported(world: World) -> None:
    """What a tap serves changes under any export."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        export = await vm.exports.start(vm.describe)
        await failover(vm)
        assert len(vm.exports) == 0
        assert export.id
        with pytest.raises(InvalidStateError, match="was failed over"):
            await vm.exports.start(vm.describe)
        assert vm.point() is None


async def test_export_that_just_begins_does_not_outlive_a_failover(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: from the failover on the tap changes the disks, and nobody preserves what they were."""
    opening, open_reader = threading.Event(), History._reader

    def open_late(history: History, *arguments: Any) -> PointReader:
        opening.wait(WAIT_SECONDS)
        return open_reader(history, *arguments)

    monkeypatch.setattr(History, "_reader", open_late)
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        starting = vm.exports._starting
        beginning = asyncio.create_task(vm.exports.start(vm.describe))
        await until(lambda: bool(vm.parts.history.readings))
        assert await vm.promotion.decide()
        vm._spawn(vm.promotion.complete())
        promotion = vm.ledger.promotion
        assert promotion is not None
        await until(lambda: starting._waiters or promotion.serving)
        opening.set()
        with pytest.raises(InvalidStateError, match="was ended while it began|was failed over"):
            await beginning
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        assert len(vm.exports) == 0
        assert vm.failure is None


async def test_exports_may_be_ended_by_several_at_once(world: World) -> None:
    """I12: a failover that ends all exports must not stumble over somebody who ends one of them."""
    async with replicating(world) as pair:
        exports = pair.agent.vms[VM].exports
        started = [await exports.start(pair.agent.vms[VM].describe) for _ in range(3)]
        await asyncio.gather(exports.stop(), exports.stop(started[2].id), exports.stop())
        assert len(exports) == 0


async def test_failover_cuts_a_partial_segment_off(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        segment = pair.tap.segment
        log, _ = pair.tap.random_segment(pair.rng)
        pair.control.log(log)
        spool = vm.parts.applier.spool
        assert spool is not None
        await until(lambda: spool.position.segment > segment)
        await failover(vm)
        assert promoted_cut(vm) == (EPOCH, segment)
        check_disks(world, pair.tap, segment)


async def test_failover_drops_a_resync_that_has_not_committed(world: World) -> None:
    """I6, I7, R40."""
    async with replicating(world) as pair:
        vm, segment = pair.agent.vms[VM], pair.tap.segment
        resync = pair.next_resync()
        resync.tap.content[0][:10] = b"unlogged!!"
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        await failover(vm)
        assert promoted_cut(vm) == (EPOCH, segment)
        check_disks(world, pair.tap, segment)
        assert list((world.folder_of() / "resync").iterdir()) == []
        assert vm.ledger.resync is None


async def test_failover_finishes_a_resync_that_has_committed(world: World) -> None:
    """I6, I7, R40."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        resync = pair.next_resync()
        resync.tap.content[0][:10] = b"unlogged!!"
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        async with vm.parts.applier.turn:
            await resync.commit()
            assert await vm.promotion.decide()
        vm._spawn(vm.promotion.complete())
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        assert promoted_cut(vm) == (resync.tap.epoch, resync.tap.segment)
        check_disks(world, resync.tap, resync.tap.segment)
        record = vm.ledger.replication
        assert [ancestor.parent for ancestor in record.lineage][-1] == resync.tap.epoch
        assert record.lineage[-1].epoch == record.epoch


async def test_failover_is_decided_once(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        decided = await asyncio.gather(*(vm.promotion.decide() for _ in range(4)))
        assert sorted(decided) == [False, False, False, True]
        assert await vm.promotion.decide() is False


async def test_failover_before_the_first_point_is_refused(world: World) -> None:
    async with world.agent() as agent:
        control, _ = await dialler_of(world, agent).open()
        vm = agent.vms[VM]
        with pytest.raises(InvalidStateError, match="initial replication has not been completed"):
            await vm.failover()
        tap = Tap(DISKS)
        resync = Resync(dialler_of(world, agent), control, tap, b"1" * 16)
        await resync.begin()
        await resync.compare()
        with pytest.raises(InvalidStateError, match="initial replication has not been completed"):
            await vm.failover()
        assert not control.channel.closed


async def test_failover_is_not_decided_any_more_while_the_agent_stops(world: World) -> None:
    """What is durable may be ahead of what a task that was ended left in memory; the next start knows."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        async with vm.parts.order:
            deciding = asyncio.ensure_future(vm.promotion.decide())
            await pair.control.channel._ended.wait()
            ending = asyncio.ensure_future(vm.end())
            await asyncio.sleep(0)
        with pytest.raises(InvalidStateError, match="agent stops"):
            await deciding
        await ending
        assert vm.ledger.promotion is None


async def test_no_session_slips_in_while_a_failover_is_decided(world: World) -> None:
    """I8: what is acknowledged is part of the promoted cut."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        async with vm.parts.order:
            deciding = asyncio.ensure_future(vm.promotion.decide())
            await pair.control.channel._ended.wait()
            error = await refused_open(pair.dialler, epoch=EPOCH)
            assert error.code == "busy"
        assert await deciding


# --- crashes --------------------------------------------------------------------------------------------------------


async def prepared(world: World, *, resync: bool) -> tuple[Tap, Position]:
    """A copy with acknowledged cuts that are not applied, or with a committed resync that is not merged."""
    rng = random.Random(31)
    tap = Tap(DISKS)
    random_content(tap, rng)
    files = FailingFiles()
    world.files = files
    agent, workers = world.build()
    await agent.start()
    dialler = dialler_of(world, agent)
    control, _ = await dialler.open()
    await Resync(dialler, control, tap, b"1" * 16).whole(rng)
    async with agent.vms[VM].parts.applier.turn:
        if resync:
            tap.content[0][:10] = b"unlogged!!"
            tap = tap.begin(b"n" * 16)
            again = Resync(dialler, control, tap, b"2" * 16, ResyncKind.RESYNC, EPOCH)
            await again.begin()
            await again.compare()
            await again.send_tracked(rng)
            await again.commit()
        else:
            for _ in range(2):
                await control.send_segment(tap, rng)
        await kill(agent, workers, files)
    await world.stores.close()
    return tap, tap.position


async def run_failover(world: World, die_at: int | None) -> FailingFiles:
    """Start, fail over, and die at that durable operation, or when the disks are handed to the tap."""
    files = FailingFiles()
    files.die_at = die_at
    died = asyncio.Event()
    loop = asyncio.get_running_loop()
    files.on_death = functools.partial(loop.call_soon_threadsafe, died.set)
    world.files = files
    agent, workers = world.build()
    try:
        await agent.start()
        vm = agent.vms[VM]
        work = asyncio.ensure_future(until(lambda: files.dead) if vm.ledger.promotion else failover(vm))
        served = asyncio.ensure_future(until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving))
        await asyncio.wait({work, served, asyncio.ensure_future(died.wait())}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, served):
            task.cancel()
        await asyncio.gather(work, served, return_exceptions=True)
    except Killed:
        pass
    finally:
        await kill(agent, workers, files)
        await world.stores.close()
    return files


async def test_restart_applies_nothing_behind_the_promoted_cut(world: World) -> None:
    """I6, I8: a segment that is whole in the spool and was never acknowledged is found by the next start only.

    The promotion was decided without it, so that it belongs to the history that the failover has cut off. It was
    applied all the same, by the time that the disks were handed to the tap (seed 221446 of the simulation).
    """
    rng, tap = random.Random(37), Tap(DISKS)
    random_content(tap, rng)
    files = world.files = FailingFiles()
    agent, workers = world.build()
    await agent.start()
    dialler = dialler_of(world, agent)
    control, _ = await dialler.open()
    await Resync(dialler, control, tap, b"1" * 16).whole(rng)
    vm = agent.vms[VM]
    async with vm.parts.applier.turn:
        for _ in range(2):
            await control.send_segment(tap, rng)
        assert vm.parts.applier.spool is not None
        # As after an error between storing it and taking it for received.
        del vm.parts.applier.spool.segments[-1]
        assert await vm.promotion.decide()
        await kill(agent, workers, files)
    await world.stores.close()
    segment = tap.segment - 1
    assert promoted_cut(vm) == (EPOCH, segment)
    world.files = FailingFiles()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        assert promoted_cut(vm) == (EPOCH, segment)
        check_disks(world, tap, segment)
        assert vm.parts.applier.idle


@pytest.mark.slow
@pytest.mark.parametrize("resync", [False, True], ids=["cuts", "committed resync"])
async def test_kill_at_each_durable_operation_of_a_failover(
    memory_path: Path, certificates: Certificates, resync: bool
) -> None:
    """I5, I6, I8: the restart finishes it; the cut never changes; nothing acknowledged is missing."""
    whole = World(memory_path / "whole", certificates)
    await prepared(whole, resync=resync)
    total = (await run_failover(whole, None)).operations
    assert total > 15
    for die_at in range(1 + resync, total + 1, step(4, all_places=1)):
        world = World(memory_path / str(die_at), certificates)
        tap, acked = await prepared(world, resync=resync)
        await run_failover(world, die_at)
        await check_after(world, tap, acked)


async def check_after(world: World, tap: Tap, acked: Position) -> None:
    world.files = FailingFiles()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        if vm.ledger.promotion is None:
            async with asyncio.timeout(WAIT_SECONDS):
                await vm.parts.applier.caught_up()
            assert vm.point() == acked
            await failover(vm)
        else:
            promised = promoted_cut(vm)
            await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
            assert promoted_cut(vm) == promised
        assert promoted_cut(vm) == (acked.epoch, acked.segment)
        check_disks(world, tap, acked.segment)
        error = await refused_open(dialler_of(world, agent), epoch=EPOCH)
        assert error.code == "fenced"
