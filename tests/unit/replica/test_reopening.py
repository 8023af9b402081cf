"""Tests of exports that outlast the agent: on record, kept by history, served again, or told why not."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from protocol.messages import ResyncKind
from replica_agent.agent import ReplicaAgent
from replica_agent.ledger import LedgerError
from replica_agent.points import points_of, set_rules
from replica_agent.vm import ReplicaVm
from shared.errors import InvalidStateError, NotFoundError, StorageError
from shared.status import ExportStatus
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import EPOCH, VM
from tests.unit.replica.rig import DISKS, Primary, Resync, World
from tests.unit.replica.test_exports import read_export
from tests.unit.replica.test_sessions import Pair, dialler_of, replicating, until


async def content_of(vm: ReplicaVm, identity: str) -> dict[int, bytes]:
    """What an export shows, read as its server does."""
    disks = vm.exports._exports[identity].disks
    return {int(disk.name.removeprefix("disk")): await disk.read(0, disk.size) for disk in disks}


@asynccontextmanager
async def again(pair: Pair) -> AsyncIterator[tuple[ReplicaAgent, ReplicaVm, Primary]]:
    """Another agent on the same host, with a session that goes on."""
    async with pair.world.agent() as agent:
        control, _ = await dialler_of(pair.world, agent).open(epoch=EPOCH)
        yield agent, agent.vms[VM], control


async def stream(control: Primary, pair: Pair, count: int) -> None:
    for _ in range(count):
        await control.send_segment(pair.tap, pair.rng)
        await control.until_applied(pair.tap.position)


def socket_of(export: ExportStatus) -> str:
    return export.uris[0].partition("socket=")[2]


async def texts(agent: ReplicaAgent) -> list[str]:
    return [event["text"] for event in (await agent.events(None, limit=1000, after=0)).events]


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (qemu-utils)")
async def test_exports_are_served_again_with_the_same_content_at_the_same_place(world: World, tmp_path: Path) -> None:
    """I1: through two restarts, while applies go on and no rule of history keeps their points."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        older_cut = pair.tap.segment
        await stream(pair.control, pair, 2)
        cut = pair.tap.segment
        older = await vm.exports.start(vm.describe, vm.parts.history.positions()[-2])
        newest = await vm.exports.start(vm.describe)
        assert (older.cut.segment, newest.cut.segment) == (older_cut, cut)
        await set_rules(vm, {"newest": 1, "hourly": 0})
    assert not os.path.exists(socket_of(newest))
    for _ in range(2):
        async with again(pair) as (_agent, vm, control):
            found = vm.exports.status()
            assert [each.id for each in found] == [older.id, newest.id]
            assert [each.uris for each in found] == [older.uris, newest.uris]
            assert [each.cut for each in found] == [older.cut, newest.cut]
            assert not any(each.error for each in found)
            await stream(control, pair, 2)
            assert await content_of(vm, older.id) == pair.tap.cuts[older_cut]
            assert await content_of(vm, newest.id) == pair.tap.cuts[cut]
            assert len(vm.parts.history.positions()) == 2
            listed = {point.cut.segment: point.exports for point in points_of(vm).points}
            assert (listed[older_cut], listed[cut]) == ([older.id], [newest.id])
    async with again(pair) as (agent, vm, control):
        assert await read_export(newest, tmp_path) == pair.tap.cuts[cut]
        await vm.exports.stop(newest.id)
        assert not os.path.exists(socket_of(newest))
        await vm.exports.stop(older.id)
        await stream(control, pair, 1)
        assert vm.parts.history.positions() == []
        assert sum("is served again" in text for text in await texts(agent)) == 6
    async with again(pair) as (_agent, vm, _control):
        assert vm.exports.status() == []


async def test_point_is_kept_while_its_export_can_not_be_served_and_that_is_tried_again(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        cut = pair.tap.segment
        export = await vm.exports.start(vm.describe)
        await set_rules(vm, {"newest": 1, "hourly": 0})
    os.mkdir(socket_of(export))
    async with again(pair) as (agent, vm, control):
        (shown,) = vm.exports.status()
        assert shown.id == export.id and "It is not served at present" in shown.error and export.id in shown.error
        await stream(control, pair, 3)
        await vm.exports.reopen()
        os.rmdir(socket_of(export))
        await vm.exports.reopen()
        assert vm.exports.status()[0].error == ""
        await stream(control, pair, 1)
        assert await content_of(vm, export.id) == pair.tap.cuts[cut]
        told = await texts(agent)
        assert sum("it is tried again" in text for text in told) == 1
        assert sum("is served again" in text for text in told) == 1


async def test_export_keeps_the_size_that_its_disks_had(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        export = await vm.exports.start(vm.describe)
        large = vm.ledger.vm.disks[0]
        path = vm.parts.disks.path(large.index)
        async with vm.ledger.transaction() as draft:
            draft.vm.disks = [
                type(large)(index=large.index, uuid=large.uuid, size=large.size + 65536),
                *draft.vm.disks[1:],
            ]
            draft.replication.identities = None
    os.truncate(path, large.size + 65536)
    async with world.agent() as agent:
        served = agent.vms[VM].exports._exports[export.id].disks
        assert [disk.size for disk in served] == [disk.size for disk in DISKS]


async def test_export_whose_disks_are_not_trusted_any_more_tells_so_until_it_is_ended(world: World) -> None:
    async with replicating(world) as pair:
        export = await pair.agent.vms[VM].exports.start(pair.agent.vms[VM].describe)
        socket = socket_of(export)
    with (world.folder_of() / "disk-0.raw").open("r+b") as file:
        file.write(b"somebody was here")
    for _ in range(2):
        async with world.agent() as agent:
            vm = agent.vms[VM]
            (shown,) = vm.exports.status()
            assert shown.id == export.id and "are not trusted" in shown.error
            assert not os.path.exists(socket)
            assert sum("can't be read any more" in text for text in await texts(agent)) == 1
    async with world.agent() as agent:
        await agent.vms[VM].exports.stop(export.id)
        assert agent.vms[VM].exports.status() == []
        with pytest.raises(NotFoundError):
            await agent.vms[VM].exports.stop(export.id)


async def test_export_whose_point_was_deleted_tells_so_after_a_restart(world: World) -> None:
    """Also where the agent ended before it could put that on record."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        told = await vm.exports.start(vm.describe)
        untold = await vm.exports.start(vm.describe)
        await stream(pair.control, pair, 1)
        while await vm.parts.history.give_way("Room is needed."):
            pass
        record = vm.ledger.exports.find(told.id)
        assert record is not None
        await vm.exports._lose(told.id, vm.exports.status()[0].error)
        assert [each.error for each in vm.exports.status()] == ["The recovery point was deleted."] * 2
    async with again(pair) as (_agent, vm, control):
        first, second = vm.exports.status()
        assert (first.id, first.error) == (told.id, "The recovery point was deleted.")
        assert second.id == untold.id and "has no recovery point" in second.error
        # Nothing is kept for them any more.
        await set_rules(vm, {"newest": 1, "hourly": 0})
        await stream(control, pair, 2)
        assert vm.parts.history.positions() == []


async def test_export_of_a_vm_that_was_failed_over_is_not_served_again(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        export = await vm.exports.start(vm.describe)
        assert await vm.promotion.decide()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        # It goes on with the failover, which ends all exports.
        assert all("was failed over" in each.error for each in vm.exports.status())
        await until(lambda: vm.ledger.promotion is not None and vm.ledger.promotion.serving)
        assert vm.exports.status() == []
        told = await texts(agent)
        assert any(export.id in text and "was failed over" in text for text in told)
        assert f"Export {export.id} ended." in told


async def test_export_that_can_not_be_put_on_record_is_not_served(world: World) -> None:
    """Nobody is told of an export that a restart would not know."""
    world.files = files = FailingFiles()
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        files.fail_next("commit")
        with pytest.raises(LedgerError):
            await vm.exports.start(vm.describe)
        assert vm.exports.status() == []
        assert vm.parts.history.readings == []
        assert not list(world.sockets.rglob("*.sock"))
        export = await vm.exports.start(vm.describe)
        files.fail_next("commit")
        with pytest.raises(LedgerError):
            await vm.exports.stop(export.id)
        # Its end was not on record either, so it goes on.
        assert await content_of(vm, export.id) == pair.tap.cuts[pair.tap.segment]
    async with again(pair) as (_agent, vm, _control):
        assert [each.id for each in vm.exports.status()] == [export.id]


async def test_export_that_begins_while_the_agent_stops_is_none(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await vm.exports.close()
        with pytest.raises(InvalidStateError):
            await vm.exports.start(vm.describe)
        assert vm.exports.status() == []
        assert vm.parts.history.readings == []


async def test_export_outlasts_a_restart_between_a_commit_and_its_merge(world: World) -> None:
    """R38: the disks still are its point then, and the merge saves what it overwrites."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        first, cut = pair.tap.cuts, pair.tap.segment
        export = await vm.exports.start(vm.describe)
        # Nothing begins to merge any more.
        await vm.parts.applier.turn.acquire()
        tap = pair.tap.begin(b"n" * 16)
        resync = Resync(pair.dialler, pair.control, tap, b"2" * 16, ResyncKind.RESYNC, EPOCH)
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        await resync.commit()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        await until(lambda: vm.point() == tap.position)
        await vm.exports.reopen()
        (shown,) = vm.exports.status()
        assert (shown.id, shown.error) == (export.id, "")
        assert await content_of(vm, export.id) == first[cut] != tap.cuts[tap.segment]


async def test_export_outlasts_a_failure_of_its_vm_and_ends_with_the_vm(world: World) -> None:
    async with replicating(world) as pair:
        vm, cut = pair.agent.vms[VM], pair.tap.segment
        export = await vm.exports.start(vm.describe)
        await vm.fail(StorageError("The volume did not answer."))
        await pair.agent.revive(vm)
        again = pair.agent.vms[VM]
        assert again is not vm and again.failure is None
        assert [(each.id, each.error) for each in again.exports.status()] == [(export.id, "")]
        assert await content_of(again, export.id) == pair.tap.cuts[cut]
        await pair.agent.remove(again.name)
        assert not os.path.exists(socket_of(export)) and not world.folder_of().exists()
