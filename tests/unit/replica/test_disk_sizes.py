"""Disks that are enlarged by order, at the replica: which size a point has, deaths in between, and what is refused."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from protocol.messages import Opened, ResyncCancel, ResyncCancelled, ResyncKind, Role, WireDisk
from protocol.position import Position
from replica_agent.growing import _grown
from replica_agent.promoted_layers import tap_disks
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.channel import ChannelClosed
from tests.places import is_thorough
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import VM, Tap
from tests.unit.replica.rig import DISKS, Primary, Resync, World, open_body
from tests.unit.replica.test_disk_sets import SetDialler, file_of, setting
from tests.unit.replica.test_quota import NOMINAL, limited
from tests.unit.replica.test_sessions import Pair, dialler_of, refusal_of, replicating, until

FIRST = DISKS[0]
GROWN = (replace(FIRST, size=FIRST.size + (192 << 10)), DISKS[1])
"""The first disk is larger."""
OLD_SIZES, SIZES = ({disk.index: disk.size for disk in disks} for disks in (DISKS, GROWN))


async def opened_with(dialler: SetDialler, pair: Pair, number: int = 1) -> tuple[Primary, Opened]:
    return await dialler.open(epoch=pair.tap.epoch, disks=[WireDisk.of(disk) for disk in GROWN], disk_set=number)


def enlarging(pair: Pair, control: Primary, dialler: SetDialler) -> Resync:
    """A bounded resync that brings the larger disk, with something written behind its former end."""
    content = {disk.index: bytearray(pair.tap.content[disk.index]) for disk in DISKS}
    content[FIRST.index] += bytes(GROWN[0].size - FIRST.size)
    content[FIRST.index][FIRST.size + 4096 : FIRST.size + 8192] = pair.rng.randbytes(4096)
    tap = Tap(GROWN, epoch=b"n" * 16, content=content, time_ns=pair.tap.time_ns)
    resync = Resync(dialler, control, tap, pair.rng.randbytes(16), ResyncKind.BOUNDED, pair.tap.epoch)

    async def open_bulk(**changes: Any) -> tuple[Primary, Opened]:
        return await SetDialler.open(dialler, **{"disks": [WireDisk.of(disk) for disk in GROWN], **changes})

    dialler.open = open_bulk  # type: ignore[method-assign]
    return resync


async def sizes_of(vm: ReplicaVm, position: Position) -> dict[int, int]:
    """What an export of the point serves."""
    export = await vm.exports.start(vm.describe, position)
    (record,) = vm.ledger.exports.exports
    await vm.exports.stop(export.id)
    return {disk.index: disk.size for disk in record.disks}


async def content_of(vm: ReplicaVm, position: Position, sizes: dict[int, int]) -> dict[int, bytes]:
    reading = await vm.parts.history.read(position)
    assert reading is not None
    found = {index: reading.reader.read(index, 0, size) for index, size in sizes.items()}
    await vm.parts.history.end(reading)
    return found


async def test_points_of_before_keep_the_size_that_they_had(world: World) -> None:
    """I1: until the commit that is the newest one as well, also where the resync is cancelled."""
    async with replicating(world) as pair:
        vm, dialler = pair.agent.vms[VM], setting(pair)
        before, old = pair.tap.position, dict(pair.tap.cuts[pair.tap.segment])
        control, _ = await opened_with(dialler, pair)
        first = enlarging(pair, control, dialler)
        await first.begin()
        assert vm.ledger.vm.geometry == GROWN and file_of(world, FIRST.index).stat().st_size == GROWN[0].size
        assert await sizes_of(vm, before) == OLD_SIZES
        control.channel.send(ResyncCancel(id=first.identity, text="test"))
        await control.expect(ResyncCancelled)
        assert (vm.ledger.vm.disk_set, await sizes_of(vm, before)) == (0, OLD_SIZES)
        # Another one is committed: only its points have the new size.
        second = enlarging(pair, control, dialler)
        await second.begin()
        assert vm.connections.opened(control.channel).disk_set == 1
        await second.send_tracked(pair.rng, 1)
        await second.compare_range(GROWN[0], FIRST.size & -65536, GROWN[0].size - (FIRST.size & -65536))
        await second.commit()
        after = second.tap.position
        await control.until_applied(after)
        assert vm.ledger.vm.disk_set == 1 and [former.size for former in vm.ledger.vm.disks[0].sizes] == [FIRST.size]
        assert (await sizes_of(vm, before), await sizes_of(vm, after)) == (OLD_SIZES, SIZES)
        assert await content_of(vm, before, OLD_SIZES) == old
        assert await content_of(vm, after, SIZES) == {index: bytes(data) for index, data in second.tap.content.items()}
        proof = await vm.prover.start(vm.describe, before)
        await until(lambda: not proof.running)
        assert proof.total_bytes == NOMINAL
    async with world.agent() as agent:
        # It is all on record, and a failover serves each point at its own size.
        vm = agent.vms[VM]
        assert (await sizes_of(vm, before), await sizes_of(vm, after)) == (OLD_SIZES, SIZES)
        for point, sizes in ((before, OLD_SIZES), (after, SIZES)):
            assert await vm.promotion.decide(point)
            record = vm.ledger.promotion
            assert record is not None
            served = {disk.index: disk for disk in tap_disks(vm.parts, record)}
            assert {index: disk.served_size for index, disk in served.items()} == sizes
            assert {index: disk.size for index, disk in served.items()} == SIZES, "what it is read through knows all"
            assert {disk.index: disk.size_bytes for disk in status_of(vm).disks} == sizes
            async with vm.ledger.transaction() as draft:
                assert record.before is not None
                draft.promotion = None
                draft.replication.epoch, draft.replication.lineage = record.before.epoch, record.before.lineage
                draft.replication.state = record.before.state


@pytest.mark.skipif(not is_thorough(), reason="--thorough runs it: exchanged sets of disks are killed there as well")
async def test_a_death_between_growing_and_the_commit_forgets_no_size(world: World) -> None:
    async with replicating(world) as pair:
        dialler = setting(pair)
        before, old = pair.tap.position, dict(pair.tap.cuts[pair.tap.segment])
        control, _ = await opened_with(dialler, pair)
        resync = enlarging(pair, control, dialler)
        await resync.begin()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert vm.point() == before and await sizes_of(vm, before) == OLD_SIZES
        assert await content_of(vm, before, OLD_SIZES) == old
        again = SetDialler(world.certificates, dialler_of(world, agent).address)
        control, opened = await opened_with(again, pair)
        assert opened.resync is not None and opened.disk_set == 1
        pair.dialler, resync.control, resync.bulk = again, control, None
        resync.dialler = enlarging(pair, control, again).dialler
        await resync.begin()
        await resync.send_tracked(pair.rng, 1)
        await resync.compare_range(GROWN[0], FIRST.size & -65536, GROWN[0].size - (FIRST.size & -65536))
        await resync.commit()
        await control.until_applied(resync.tap.position)
        assert await sizes_of(vm, before) == OLD_SIZES and await sizes_of(vm, resync.tap.position) == SIZES


async def asked(pair: Pair, size: int) -> ChannelClosed | None:
    """Whether the replica would take the first disk with so many bytes; why not."""
    channel = await setting(pair).greet()
    disks = [WireDisk.of(replace(FIRST, size=size)), WireDisk.of(DISKS[1])]
    channel.send(open_body(epoch=pair.tap.epoch, role=Role.SAMPLE, disks=disks, disk_set=1))
    try:
        answer = await channel.receive()
    except ChannelClosed as error:
        return error
    assert isinstance(answer, Opened)
    channel.abort()
    return None


async def test_whether_a_larger_disk_fits_is_told_before_and_changes_nothing(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        files = sorted(path.name for path in world.folder_of().iterdir())
        assert await asked(pair, GROWN[0].size) is None
        too_large = await asked(pair, 64 << 40)
        if too_large is not None:
            # A file system that takes no such files.
            assert "can't grow to" in too_large.text
        world.authorize = [limited(world, quota_bytes=NOMINAL + 4096)]
        await pair.agent.reload(world.config())
        full = await asked(pair, GROWN[0].size)
        assert full is not None and full.code == "no_space" and "do not fit into the quota" in full.text
        assert vm.ledger.vm.geometry == DISKS and file_of(world, FIRST.index).stat().st_size == FIRST.size
        assert sorted(path.name for path in world.folder_of().iterdir()) == files


async def test_a_file_that_can_not_grow_keeps_its_disk_as_it_is(world: World) -> None:
    """I6: a failover, and a start, have the disks that are there, whatever size the primary's have."""
    files = world.files = FailingFiles()

    async def as_a_death_leaves_it(vm: ReplicaVm) -> None:
        async with vm.ledger.transaction() as draft:
            draft.vm.disks = [_grown(draft.vm.disks[0], GROWN[0].size, keep=True), *draft.vm.disks[1:]]

    async with replicating(world) as pair:
        vm, dialler = pair.agent.vms[VM], setting(pair)
        control, _ = await opened_with(dialler, pair)
        resync = enlarging(pair, control, dialler)
        files.fail_only(f"disk-{FIRST.index}.raw", "truncate", number=errno.EFBIG)
        control.channel.send(resync.begin_body())
        assert (await refusal_of(control)).code == "storage"
        assert vm.ledger.vm.geometry == DISKS == vm.parts.disks.geometry
        assert not vm.ledger.vm.disks[0].before and not vm.ledger.vm.disks[0].sizes
        await as_a_death_leaves_it(vm)
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert vm.failure is None and vm.ledger.vm.geometry == DISKS and not vm.ledger.vm.disks[0].before
        await as_a_death_leaves_it(vm)
    files.fail_nothing()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert vm.ledger.vm.geometry == GROWN and not vm.ledger.vm.disks[0].before
        assert file_of(world, FIRST.index).stat().st_size == GROWN[0].size
        assert vm.ledger.disks_at(pair.tap.position) == OLD_SIZES
