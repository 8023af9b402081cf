"""Disks that come and go at the replica: which sets are refused, what no point has yet, and deaths in between (I9)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.hrl import Geometry
from protocol.messages import (
    DISK_SETS,
    Commit,
    Opened,
    ResyncCancel,
    ResyncCancelled,
    ResyncKind,
    WireDisk,
    WirePosition,
)
from protocol.session import Identity, PrimarySession
from replica_agent.vm import ReplicaVm
from shared.channel import Channel
from shared.errors import InvalidStateError
from shared.ports.clock import RealClock
from shared.ports.network import RealNetwork
from tests.unit.replica.logs import VM, Tap
from tests.unit.replica.rig import DISKS, Dialler, Primary, Resync, World, open_body
from tests.unit.replica.test_sessions import Pair, dialler_of, refusal_of, replicating, until

CAME = Geometry(7, 128 << 10, b"c" * 16)
SET = (DISKS[0], CAME)
"""Disk 3 went and disk 7 came."""


class SetDialler(Dialler):
    """Connects as a primary that knows of sets of disks."""

    async def greet(self) -> Channel:
        network = RealNetwork(self.certificates.identity(self.host))
        link = await network.connect(self.address, timeout=5)
        channel = Channel(link, PrimarySession(Identity("test", "primary.test", 5.0, (DISK_SETS,))), RealClock())
        await channel.greet()
        return channel

    async def open(self, **changes: Any) -> tuple[Primary, Opened]:
        changes = {"disks": [WireDisk.of(disk) for disk in SET], "disk_set": 1, **changes}
        return await super().open(**changes)


def setting(pair: Pair) -> SetDialler:
    return SetDialler(pair.dialler.certificates, pair.dialler.address)


def file_of(world: World, index: int) -> Path:
    return world.folder_of() / f"disk-{index}.raw"


def exchanging(pair: Pair, control: Primary, dialler: SetDialler) -> Resync:
    """A bounded resync that brings the other set."""
    content = {DISKS[0].index: bytearray(pair.tap.content[DISKS[0].index]), CAME.index: bytearray(CAME.size)}
    content[CAME.index][4096:8192] = pair.rng.randbytes(4096)
    tap = Tap(SET, epoch=b"n" * 16, content=content, time_ns=pair.tap.time_ns)
    return Resync(dialler, control, tap, pair.rng.randbytes(16), ResyncKind.BOUNDED, pair.tap.epoch)


async def points_of(vm: ReplicaVm) -> dict[tuple[int, ...], int]:
    """How many points have which disks."""
    found: dict[tuple[int, ...], int] = {}
    applied = vm.ledger.replication.applied
    assert applied is not None
    for position in [*vm.parts.history.positions(), applied.position]:
        disks = tuple(sorted(vm.ledger.disks_at(position)))
        found[disks] = found.get(disks, 0) + 1
    return found


@pytest.mark.parametrize(
    ("disks", "number"),
    [
        pytest.param(SET, 0, id="not newer"),
        pytest.param((replace(DISKS[0], uuid=b"x" * 16), CAME), 1, id="another disk"),
        pytest.param((replace(DISKS[0], size=4096), CAME), 1, id="smaller"),
        pytest.param((CAME,), 1, id="none in common"),
    ],
)
async def test_a_set_that_is_not_the_vms_own_newer_one_is_refused(
    world: World, disks: tuple[Geometry, ...], number: int
) -> None:
    async with replicating(world) as pair:
        channel = await setting(pair).greet()
        channel.send(open_body(disks=[WireDisk.of(disk) for disk in disks], disk_set=number))
        error = await refusal_of(Primary(channel))
        assert error.code == "geometry" and not error.retryable
        assert not file_of(world, CAME.index).exists()
        await pair.check_unharmed()


async def test_a_set_is_exchanged_by_the_commit_and_not_before(world: World) -> None:
    """I1: the point from before has the old set until the commit, and for ever."""
    async with replicating(world) as pair:
        vm, dialler = pair.agent.vms[VM], setting(pair)
        before, old = pair.tap.position, dict(pair.tap.cuts[pair.tap.segment])
        control, opened = await dialler.open(epoch=pair.tap.epoch)
        assert (opened.disk_set, [disk.index for disk in opened.disks]) == (0, [0, 3])
        # Dropped: nothing is left of it.
        first = exchanging(pair, control, dialler)
        await first.begin()
        assert file_of(world, CAME.index).stat().st_size == CAME.size
        assert vm.connections.opened(control.channel).disk_set == 1
        assert vm.ledger.vm.geometry == DISKS and await points_of(vm) == {(0, 3): len(vm.parts.history.positions()) + 1}
        control.channel.send(ResyncCancel(id=first.identity, text="test"))
        await control.expect(ResyncCancelled)
        assert not file_of(world, CAME.index).exists()
        # An added disk is settled wholly, or nothing is committed.
        second = exchanging(pair, control, dialler)
        await second.begin()
        await second.send_tracked(pair.rng, 1)
        control.channel.send(Commit(id=second.identity, round=1, end=WirePosition.of(second.tap.position)))
        assert (await refusal_of(control)).code == "state"
        # Committed: from here on points have the other set.
        control, opened = await dialler.open(epoch=pair.tap.epoch)
        assert opened.resync is not None and (opened.disk_set, len(opened.disks)) == (1, 2)
        second.control, second.bulk = control, None
        await second.begin()
        await second.compare_range(CAME, 0, CAME.size)
        await second.commit()
        await control.until_applied(second.tap.position)
        assert vm.ledger.vm.geometry == SET and vm.ledger.vm.disk_set == 1
        assert file_of(world, CAME.index).read_bytes() == second.tap.content[CAME.index]
        reading = await vm.parts.history.read(before)
        assert reading is not None
        assert {disk.index: reading.reader.read(disk.index, 0, disk.size) for disk in DISKS} == old
        await vm.parts.history.end(reading)
        # The former set is an older one now, and the number of a removed disk stays its own.
        for disks, number in ((DISKS, 1), ((*SET, replace(DISKS[1], uuid=b"z" * 16)), 2)):
            channel = await dialler.greet()
            channel.send(open_body(disks=[WireDisk.of(disk) for disk in disks], disk_set=number))
            assert (await refusal_of(Primary(channel))).code == "geometry"
        # A failover has the present disks, or none is made: the tap that serves them knows no others.
        with pytest.raises(InvalidStateError, match="disk 7 was added since, disk 3 was removed since") as told:
            await vm.promotion.decide(before)
        assert "--writable" in told.value.remedy and vm.ledger.promotion is None
        export = await vm.exports.start(vm.describe, before, writable=True)
        assert [uri.partition("?")[0] for uri in export.uris] == ["nbd+unix:///disk0", "nbd+unix:///disk3"]
        await vm.exports.stop(export.id)
        proof = await vm.prover.start(vm.describe, before)
        await until(lambda: not proof.running)
        assert [image.disk for image in proof.images] == [0, 3] and proof.total_bytes == sum(d.size for d in DISKS)
        assert await vm.promotion.decide()
        assert vm.parts.disks.geometry == SET and file_of(world, 3).exists(), "an undo has all points again"


@pytest.mark.parametrize("where", ["begun", "settled", "committed"])
async def test_a_restart_in_the_middle_of_an_exchange_goes_on_with_it(world: World, where: str) -> None:
    rng = random.Random(3)
    async with replicating(world) as pair:
        dialler = setting(pair)
        control, _ = await dialler.open(epoch=pair.tap.epoch)
        resync = exchanging(pair, control, dialler)
        await resync.begin()
        if where != "begun":
            await resync.compare_range(CAME, 0, CAME.size)
        await resync.send_tracked(rng, 1)
        if where == "committed":
            await resync.commit()
        before, old = pair.tap.position, dict(pair.tap.cuts[pair.tap.segment])
    if where == "begun":
        # As a death before its transaction leaves it, and of a file that never became a disk.
        file_of(world, CAME.index).unlink()
        file_of(world, 9).write_bytes(b"?")
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert not file_of(world, 9).exists()
        if where != "committed":
            assert vm.ledger.vm.geometry == DISKS and vm.point() == before
            again = SetDialler(world.certificates, dialler_of(world, agent).address)
            control, opened = await again.open(epoch=before.epoch)
            assert opened.resync is not None and opened.disk_set == 1
            resync.dialler, resync.control, resync.bulk = again, control, None
            ready = await resync.begin()
            assert [run.disk for run in ready.settled] == ([CAME.index] if where == "settled" else [])
            if where == "begun":
                await resync.compare_range(CAME, 0, CAME.size)
            await resync.commit()
            await control.until_applied(resync.tap.position)
        else:
            await vm.parts.applier.caught_up()
        assert vm.ledger.vm.geometry == SET
        assert file_of(world, CAME.index).read_bytes() == resync.tap.content[CAME.index]
        reading = await vm.parts.history.read(before)
        assert reading is not None
        assert {disk.index: reading.reader.read(disk.index, 0, disk.size) for disk in DISKS} == old
        await vm.parts.history.end(reading)


async def test_a_failover_before_the_commit_has_the_disks_of_its_point(world: World) -> None:
    async with replicating(world) as pair:
        dialler = setting(pair)
        control, _ = await dialler.open(epoch=pair.tap.epoch)
        resync = exchanging(pair, control, dialler)
        await resync.begin()
        await resync.compare_range(CAME, 0, CAME.size)
        vm = pair.agent.vms[VM]
        assert await vm.promotion.decide()
        assert vm.ledger.resync is None and vm.ledger.vm.geometry == DISKS == vm.parts.disks.geometry
        assert not file_of(world, CAME.index).exists()
        for disk in DISKS:
            assert file_of(world, disk.index).read_bytes() == pair.tap.cuts[pair.tap.segment][disk.index]
