"""Undoing and committing a failover, and a crash at each durable operation of both: always one whole point (I6)."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from protocol.position import Position
from replica_agent import agent as agents
from replica_agent import handing_over, promoted_layers, prover, reopening
from replica_agent.admin import AdminMethods
from replica_agent.points import find_point, points_of
from replica_agent.promoted_tap import is_written
from replica_agent.record import ReplicationRecord, ReversalRecord
from replica_agent.reversal import through_of
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.admin.server import Client
from shared.admin.verbs import EventsParams, ResumeParams, VmParams
from shared.disks.leaves import leaves_of
from shared.errors import InvalidStateError, NotFoundError, StoreDamagedError
from shared.map_file import MapDamagedError
from shared.tap_config import load_config
from shared.tap_control import TapStatus
from shared.undo_log import UndoDamagedError
from tests.unit.replica.failing import FailingFiles, Killed
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import DISKS, Certificates, Resync, World, disk_bytes, random_content
from tests.unit.replica.test_crashes import kill
from tests.unit.replica.test_sessions import dialler_of, refused_open, replicating, until

SEGMENTS = 4


async def serving(vm: ReplicaVm, point: Position | None = None) -> None:
    assert await vm.promotion.decide(point)
    vm._completing = vm._spawn(vm.promotion.complete())
    await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)


def contents(world: World) -> dict[int, bytes]:
    return {disk.index: disk_bytes(world, disk.index) for disk in DISKS}


async def test_an_older_point_is_promoted_while_an_apply_is_under_way(world: World) -> None:
    """R40: nothing is waited for and nothing is applied any more; undone, the replica goes on where it was."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        for _ in range(SEGMENTS):
            await pair.control.send_segment(pair.tap, pair.rng)
            await vm.parts.applier.caught_up()
        before, points = contents(world), [each.point for each in points_of(vm).points]
        point = vm.parts.history.positions()[0]
        async with vm.parts.applier.turn:
            await pair.control.send_segment(pair.tap, pair.rng)
            with pytest.raises(NotFoundError, match="no recovery point"):
                await vm.promotion.decide(Position(EPOCH, 999, 1, b"x" * 16))
            assert await vm.promotion.decide(point)
        vm._completing = vm._spawn(vm.promotion.complete())
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        record = vm.ledger.promotion
        assert record is not None
        assert (record.parent_segment, record.received.segment if record.received else 0) == (
            point.segment, pair.tap.segment,
        )  # fmt: skip
        assert contents(world) == before
        config = load_config(world.files, vm.parts.layout.tap)
        assert [layer.path for layer in config.undo_layers] == [
            vm.parts.layout.undo(log.first, log.last) for log in vm.ledger.points.logs
        ]
        assert Path(vm.parts.layout.reverse_map).exists()
        assert find_point(vm, "applied") == vm.ledger.replication.applied.position  # type: ignore[union-attr]
        with pytest.raises(InvalidStateError, match="not in its disks yet"):
            await pair.agent.remove("web")
        await vm.undo_failover()
        await until(lambda: pair.agent.vms[VM] is not vm and pair.agent.vms[VM].ledger.promotion is None)
        vm = pair.agent.vms[VM]
        await until(lambda: vm.parts.applier.spool is not None)
        await vm.parts.applier.caught_up()
        assert status_of(vm).state == "Replicating"
        # The newest is one more; the oldest goes as it does with any apply.
        assert [each.point for each in points_of(vm).points][1:SEGMENTS] == points[: SEGMENTS - 1]
        assert contents(world) == dict(pair.tap.cuts[pair.tap.segment])
        with pytest.raises(InvalidStateError, match="is not failed over"):
            await vm.promotion.commit()


async def test_an_order_that_comes_during_an_undo_meets_the_vm_as_it_is_afterwards(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits, but not for ever; and the undo is answered when the VM stands open, or with what kept it from that."""
    async with replicating(world) as pair:
        agent, vm, orders = pair.agent, pair.agent.vms[VM], AdminMethods(pair.agent)
        web, asker = VmParams(vm="web"), cast("Client", None)
        await serving(vm)
        async with agent._changing:
            # Its opening waits for another VM's order.
            given = [asyncio.ensure_future(orders.undo_failover(web, asker)) for _ in range(2)]
            await until(lambda: vm.ledger.promotion is None)
            with monkeypatch.context() as patch:
                patch.setattr(reopening, "ORDER_SECONDS", 0.05)
                with pytest.raises(InvalidStateError, match="still being undone") as info:
                    await orders.suspend(web, asker)
                assert info.value.remedy == "It goes on by itself; look again: vmreplica status web"
            early = asyncio.ensure_future(orders.suspend(web, asker))
            told = asyncio.ensure_future(orders.events(EventsParams(), asker))
            await until(told.done)
            assert not any(order.done() for order in [*given, early])
        for order in given:
            status = await order
            assert (status.failover, status.problem) == (None, None)
        assert agent.vms[VM] is not vm
        assert (await early).state == "Suspended"
        assert agent.status("web").vms[0].state == "Suspended"

        vm = agent.vms[VM]
        await serving(vm)

        async def unopened(*_: object, **__: object) -> None:
            raise StoreDamagedError("The state can't be read.", "Look into it.")

        monkeypatch.setattr(vm.parts.ports.stores, "open", unopened)
        with pytest.raises(StoreDamagedError, match="can't be read"):
            await orders.undo_failover(web, asker)


async def test_a_point_of_an_earlier_baseline_settles_and_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R40, R41: promoted while a resync merges. The old primary stands at the later baseline, and both ways back lead
    from there.
    """
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]

        def until_ended(*given: Any) -> Any:
            for _ in range(500):
                if vm.prover._task is None or not vm.prover._task.cancelling():
                    time.sleep(0.01)
            return leaves_of(*given)

        monkeypatch.setattr(prover, "leaves_of", until_ended)
        await pair.control.send_segment(pair.tap, pair.rng)
        await vm.parts.applier.caught_up()
        point = vm.parts.history.positions()[0]
        sealed = vm.parts.time_of(point)
        await vm.prover.start(vm.describe, point)
        async with vm.parts.applier.turn:
            resync = pair.next_resync()
            await resync.begin()
            await resync.compare()
            await resync.send_tracked(pair.rng)
            await resync.commit()
            assert await vm.promotion.decide(point)
        vm._completing = vm._spawn(vm.promotion.complete())
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        assert vm.prover.status is not None and vm.prover.status.outcome == "undecided"
        record, replication, logs = vm.ledger.promotion, vm.ledger.replication, vm.ledger.points.logs
        assert record is not None and record.before is not None and record.received is not None
        assert (record.parent, record.received.epoch) == (EPOCH, resync.tap.epoch)

        await vm.parts.applier._go_on_unsaved(UndoDamagedError("an apply under way has met it"))
        assert vm.ledger.points.logs == logs != []

        copy = ReplicationRecord(epoch=resync.tap.epoch, reversal=ReversalRecord(common=record.received, bytes=0))
        through = through_of(copy, record.epoch, replication.ancestors)
        assert through is not None and (through.epoch, through.parent) == (record.epoch, EPOCH)
        copy.epoch = b"s" * 16
        assert through_of(copy, record.epoch, replication.ancestors) is None

        reverse_map = Path(vm.parts.layout.reverse_map)
        named = reverse_map.read_bytes()
        assert handing_over._between(vm)
        reverse_map.unlink()
        with pytest.raises(MapDamagedError, match="missing"):
            handing_over._between(vm)
        reverse_map.write_bytes(named)

        await vm.promotion.commit()
        tap = vm.promotion.tap
        assert tap is not None
        tap.settled.set()
        await until(lambda: vm.ledger.promotion is not None and not vm.ledger.promotion.layered)
        await until(lambda: vm.parts.applier.merge is None)
        assert vm.ledger.resync is None
        assert vm.ledger.replication.applied_time == sealed != replication.applied_time

        await vm.leave_tap()
        tracked = handing_over.Tracked("no tap ran", written=True)
        await handing_over._take_disks_back(vm, record, tracked)
        replication = vm.ledger.replication
        assert (replication.epoch, replication.lineage) == (resync.tap.epoch, record.before.lineage)
        assert vm.ledger.promotion is None and not reverse_map.exists()
        await pair.agent.revive(vm, failed=False)
        assert status_of(pair.agent.vms[VM]).state == "WaitingForStartResynchronize"
        assert pair.agent.vms[VM].failure is None


@pytest.mark.slow
async def test_what_a_tap_could_not_read_is_refused_or_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: before the promotion is durable where that can be known; else undoing it is the way out."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        for _ in range(2):
            await pair.control.send_segment(pair.tap, pair.rng)
            await vm.parts.applier.caught_up()
        point = vm.parts.history.positions()[0]
        with monkeypatch.context() as patch:
            patch.setattr(promoted_layers, "MAX_LAYERS", 1)
            with pytest.raises(InvalidStateError, match="can be read through at most 1"):
                await vm.promotion.decide(point)
        log = vm.ledger.points.logs[-1]
        path = Path(vm.parts.layout.undo(log.first, log.last))
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(UndoDamagedError, match="can't be used"):
            await vm.promotion.decide(point)
        assert vm.ledger.promotion is None
        path.write_bytes(whole)
        assert await vm.promotion.decide(point)
        path.write_bytes(whole[:-1])
        vm._completing = vm._spawn(vm.promotion.complete())
        await until(lambda: vm.failure is not None)
        status = await AdminMethods(pair.agent).undo_failover(VmParams(vm="web"), cast("Client", None))
        assert status.state == "Replicating" and pair.agent.vms[VM] is not vm
        assert contents(world) == dict(pair.tap.cuts[pair.tap.segment])


async def test_an_undo_comes_to_its_end_although_a_disk_is_gone(world: World) -> None:
    """What is wrong with it is told by the VM's start, and no order waits for an undo for ever."""
    async with replicating(world) as pair:
        agent, orders, asker = pair.agent, AdminMethods(pair.agent), cast("Client", None)
        await serving(agent.vms[VM])
        disk = world.folder_of() / f"disk-{DISKS[1].index}.raw"
        aside = disk.rename(disk.with_name("aside"))
        with pytest.raises(InvalidStateError, match="can't be opened"):
            await orders.undo_failover(VmParams(vm="web"), asker)
        assert agent.vms[VM].ledger.promotion is None
        aside.rename(disk)
        # That somebody had it elsewhere is seen by its times, and compared.
        assert (await orders.resume(ResumeParams(vm="web"), asker)).state == "WaitingForStartResynchronize"
        assert contents(world) == dict(pair.tap.cuts[pair.tap.segment])


def test_a_complete_dirty_map_tells_whether_anything_was_written() -> None:
    """R15: what is not known counts as written, and nothing else does."""
    epoch = b"p" * 16
    doubt = {"base_epoch": epoch.hex(), "base_segment": 0, "end_segment": 1, "complete": True, "catch_up": False}
    none = dict.fromkeys(("lost", "epoch", "position", "sealed", "last_write_time"))
    plain = none | {
        "vm": "", "name": "web", "pid": 1, "version": "", "boot_id": "", "tracking": "map", "first_segment": 0,
        "log": {"used": 0, "limit": 0, "files": 0, "file_bytes": 0, "folder": ""}, "disks": [], "interval": 30.0,
        "nbd_uri": "", "writes": 0, "bytes_written": 0,
    }  # fmt: skip

    def written(**changes: Any) -> bool:
        return is_written(msgspec.convert(plain | {"doubt": doubt | {"bytes": 0} | changes}, TapStatus), epoch)

    assert not written()
    assert written(bytes=65536)
    assert written(complete=False)
    assert written(base_segment=1)
    assert written(base_epoch="00" * 16)
    assert is_written(msgspec.convert(plain, TapStatus), epoch)


async def prepared(world: World) -> Tap:
    """A copy with older points and something that was received and not applied, in a store that nobody has open."""
    rng, tap = random.Random(41), Tap(DISKS)
    random_content(tap, rng)
    files = world.files = FailingFiles()
    agent, workers = world.build()
    await agent.start()
    dialler = dialler_of(world, agent)
    control, _ = await dialler.open()
    await Resync(dialler, control, tap, b"1" * 16).whole(rng)
    vm = agent.vms[VM]
    for _ in range(2):
        await control.send_segment(tap, rng)
        await vm.parts.applier.caught_up()
    async with vm.parts.applier.turn:
        await control.send_segment(tap, rng)
        await kill(agent, workers, files)
    await world.stores.close()
    return tap


async def life(world: World, die_at: int | None, *, commit: bool) -> FailingFiles:
    """Fail over to the oldest point, and undo that, or commit it as if a tap had settled it; die somewhere."""
    files = FailingFiles()
    files.die_at = die_at
    died = asyncio.Event()
    files.on_death = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, died.set)
    world.files = files
    agent, workers = world.build()

    async def work() -> None:
        vm = agent.vms[VM]
        await serving(vm, vm.parts.history.positions()[0])
        if commit:
            await vm.promotion.commit()
            await until(lambda: vm.promotion.tap is not None)
            assert vm.promotion.tap is not None
            vm.promotion.tap.settled.set()
            await until(lambda: vm.ledger.promotion is not None and not vm.ledger.promotion.layered)
        else:
            await vm.undo_failover()
            await until(lambda: agent.vms[VM] is not vm and agent.vms[VM].parts.applier.spool is not None)

    try:
        await agent.start()
        tasks = {asyncio.ensure_future(work()), asyncio.ensure_future(died.wait())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert files.dead or not [each for each in results if isinstance(each, AssertionError)]
    except Killed:
        pass
    finally:
        await kill(agent, workers, files)
        await world.stores.close()
    return files


@pytest.mark.slow
@pytest.mark.parametrize("commit", [False, True], ids=["undo", "commit"])
async def test_kill_at_each_durable_operation(memory_path: Path, certificates: Certificates, commit: bool) -> None:
    """I6, I8: promoted to one point, or wholly a replica at its points; the disks never change without a tap."""
    promoted = replicas = died = 0
    whole = World(memory_path / "whole", certificates)
    await prepared(whole)
    total = (await life(whole, None, commit=commit)).operations
    for die_at in range(total - 13 * (total // 14), total + 1, total // 14):
        world = World(memory_path / str(die_at), certificates)
        tap = await prepared(world)
        files = await life(world, die_at, commit=commit)
        world.files = FailingFiles()
        async with world.agent() as agent:
            vm = agent.vms[VM]
            await until(
                lambda agent=agent: (
                    agent.vms[VM].ledger.promotion is None  # type: ignore[misc]
                    or (not agent.vms[VM].ledger.promotion.undoing and agent.vms[VM].ledger.promotion.serving)
                )
            )
            vm = agent.vms[VM]
            record = vm.ledger.promotion
            if record is None:
                replicas += 1
                await until(lambda agent=agent: agent.vms[VM].parts.applier.spool is not None)  # type: ignore[misc]
                vm = agent.vms[VM]
                await vm.parts.applier.caught_up()
                assert contents(world) == dict(tap.cuts[tap.segment])
                assert not Path(vm.parts.layout.tap).exists()
                assert vm.ledger.replication.epoch == EPOCH
            else:
                promoted += 1
                assert (await refused_open(dialler_of(world, agent), epoch=EPOCH)).code == "fenced"
                assert record.cut is not None
                config = load_config(world.files, vm.parts.layout.tap)
                # A tap that has settled them is configured plainly before the record says so.
                assert not record.layered or config.undo_layers or record.committed_time is not None
                assert all(Path(layer.path).exists() for layer in config.undo_layers)
                assert record.committed_time is None or commit
            assert vm.failure is None
        # How far an apply gets before the failover halts it differs, and with it what a life counts: the last few
        # operations of the whole one may not be reached.
        died += files.dead
    assert died > 10
    assert promoted
    assert commit or replicas


async def test_events_of_all_vms_are_told_while_one_is_being_opened_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' are, at once; of the one that takes long it is told that they are missing."""
    monkeypatch.setattr(agents, "LOOK_SECONDS", 0.05)
    async with replicating(world) as pair:
        agent, vm, orders = pair.agent, pair.agent.vms[VM], AdminMethods(pair.agent)
        asker = cast("Client", None)
        other = msgspec.structs.replace(vm.ledger.vm, vm=b"o" * 16, name="other")
        await agent._make(other, agent.sessions.authorization.storages[0])
        with agent.reopening.of(vm):
            told = await orders.events(EventsParams(), asker)
            (missing,) = told.missing
            assert (missing.vm, missing.uuid, missing.code) == ("web", vm.parts.uuid, "invalid_state")
            assert "still being opened anew" in missing.text
            assert {event["vm"] for event in told.events} == {"other"}
            del agent.vms[VM]
            assert [each.vm for each in (await orders.events(EventsParams(), asker)).missing] == ["web"]
            agent.vms[VM] = vm
        told = await orders.events(EventsParams(), asker)
        assert (told.missing, {event["vm"] for event in told.events}) == ([], {"web", "other"})
