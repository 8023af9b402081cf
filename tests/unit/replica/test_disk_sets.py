"""Disks that come and go at the replica: which sets are refused, what no point has yet, and deaths in between (I9)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
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
from protocol.position import MAX_LINEAGE, Ancestor, Position
from protocol.session import Identity, PrimarySession
from replica_agent import coming_back, handing_over, retention
from replica_agent.admin import AdminMethods
from replica_agent.disk_sets import OtherDisks, _without_old_sizes, begin_epoch, forget_former, others_of
from replica_agent.marks import mark_point
from replica_agent.points import points_of as points_of_vm
from replica_agent.points import set_rules
from replica_agent.record import FormerSizeRecord
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.admin.server import Client
from shared.admin.verbs import VmParams
from shared.channel import Channel
from shared.errors import InvalidStateError
from shared.ports.clock import RealClock
from shared.ports.network import RealNetwork
from shared.tap_config import load_config
from tests.unit.replica.logs import VM, Tap
from tests.unit.replica.rig import DISKS, Dialler, Primary, Resync, World, open_body
from tests.unit.replica.test_sessions import Pair, dialler_of, refusal_of, replicating, until
from tests.unit.replica.test_undo_failover import serving

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
        export = await vm.exports.start(vm.describe, before, writable=True)
        assert [uri.partition("?")[0] for uri in export.uris] == ["nbd+unix:///disk0", "nbd+unix:///disk3"]
        await vm.exports.stop(export.id)
        proof = await vm.prover.start(vm.describe, before)
        await until(lambda: not proof.running)
        assert [image.disk for image in proof.images] == [0, 3] and proof.total_bytes == sum(d.size for d in DISKS)
        assert await vm.promotion.decide()
        assert vm.parts.disks.geometry == SET and file_of(world, 3).exists(), "an undo has all points again"
        assert vm.ledger.promotion is not None and vm.ledger.promotion.disks is None


async def test_a_disk_that_was_removed_here_comes_back_and_its_old_file_is_kept(world: World) -> None:
    """I9: it is a disk like any that is added; whoever has the old file keeps it, and no death in between loses it."""
    async with replicating(world) as pair:
        vm, dialler, old = pair.agent.vms[VM], setting(pair), file_of(world, CAME.index)
        files, content = vm.parts.ports.files, b"k" * 12345

        async def removed_while_it_ran_here() -> None:
            old.write_bytes(content)
            async with vm.ledger.transaction() as draft:
                draft.vm.apart = [CAME.index, 9]

        async def begun() -> Resync:
            control, _ = await dialler.open(epoch=pair.tap.epoch)
            resync = exchanging(pair, control, dialler)
            await resync.begin()
            return resync

        async def cancelled(resync: Resync) -> None:
            resync.control.channel.send(ResyncCancel(id=resync.identity, text="test"))
            await resync.control.expect(ResyncCancelled)

        def kept() -> list[bytes]:
            found = sorted((world.storage / "removed").glob(f"{vm.parts.uuid}-*/disk-{CAME.index}.raw"))
            return [path.read_bytes() for path in found]

        # Another VM may have it by now: it is left where it is, and nothing begins.
        await removed_while_it_ran_here()
        control, _ = await dialler.open(epoch=pair.tap.epoch)
        used = files.open(str(old), write=True)
        used.lock()
        control.channel.send(exchanging(pair, control, dialler).begin_body())
        error = await refusal_of(control)
        used.close()
        assert error.code == "storage" and error.problem is not None
        assert f"{old} is in the way" in error.problem.text and "is in use" in error.problem.text
        assert "vmreplica resume web" in error.problem.remedy
        assert vm.ledger.resync is None and vm.ledger.vm.apart == [CAME.index, 9] and old.read_bytes() == content
        # Moved, and nothing of the copy's own new file stays where that ends early.
        resync = await begun()
        assert vm.ledger.vm.apart == [9] and vm.ledger.vm.next_index == 10
        assert old.read_bytes() == bytes(CAME.size) and kept() == [content]
        await cancelled(resync)
        assert not old.exists() and kept() == [content]
        # Killed before that was on record; and what was kept before is not overwritten in the same second.
        await removed_while_it_ran_here()
        coming_back._move(vm.parts, CAME.index)
        assert not old.exists() and kept() == [content, content]
        await cancelled(await begun())
        assert vm.ledger.vm.apart == [9] and kept() == [content, content]
        # Wholly brought, it is the VM's, and goes with it: what was kept stays.
        resync = await begun()
        await resync.compare_range(CAME, 0, CAME.size)
        await resync.send_tracked(pair.rng, 1)
        await resync.commit()
        await resync.control.until_applied(resync.tap.position)
        assert vm.ledger.vm.geometry == SET and old.read_bytes() == resync.tap.content[CAME.index]
        told = [event["text"] for event in (await pair.agent.events(None, limit=200, after=0)).events]
        assert [text.rpartition(" The file that it had here ")[2][:11] for text in told if "comes back" in text] == [
            "when it was",
            "is not in t",
        ]
        await pair.agent.remove("web")
        assert kept() == [content, content] and not world.folder_of().joinpath("state.db").exists()


async def exchanged(pair: Pair) -> tuple[SetDialler, Position, Position]:
    """The other set is the VM's, with a segment more; the point before that, and the newest one."""
    dialler, before = setting(pair), pair.tap.position
    control, _ = await dialler.open(epoch=pair.tap.epoch)
    resync = exchanging(pair, control, dialler)
    await resync.begin()
    await resync.compare_range(CAME, 0, CAME.size)
    await resync.send_tracked(pair.rng, 1)
    await resync.commit()
    await control.until_applied(resync.tap.position)
    await control.send_segment(resync.tap, pair.rng)
    await control.until_applied(resync.tap.position)
    pair.control, pair.tap = control, resync.tap
    return dialler, before, resync.tap.position


async def test_a_failover_to_a_point_of_other_disks_serves_these_and_is_undone_or_settles(world: World) -> None:
    """I1, I6: undone the VM has its newest set; settled that of the point for good."""
    async with replicating(world) as pair:
        agent, orders = pair.agent, AdminMethods(pair.agent)
        vm = agent.vms[VM]
        _, before, newest = await exchanged(pair)
        listed = {each.cut.segment: each for each in points_of_vm(vm).points if each.cut.epoch == before.epoch.hex()}
        assert (listed[before.segment].added_disks, listed[before.segment].removed_disks) == ([7], [3])
        assert not points_of_vm(vm).points[0].added_disks

        kept, aside = file_of(world, 3), file_of(world, 3).with_name("aside")
        kept.rename(aside)
        with pytest.raises(InvalidStateError, match="disk 3, which was removed since"):
            await vm.promotion.decide(before)
        assert vm.ledger.promotion is None
        aside.rename(kept)

        await serving(vm, before)
        record = vm.ledger.promotion
        assert record is not None and record.disks == [0, 3]
        config = load_config(world.files, vm.parts.layout.tap)
        assert [(disk.index, Path(disk.path)) for disk in config.disks] == [(i, file_of(world, i)) for i in (0, 3)]
        assert config.other_sizes == {7: CAME.size} and config.undo_layers
        assert len(list(Path(vm.parts.layout.tap).glob("overlay-*"))) == 2 * len(config.disks)
        status = status_of(vm)
        assert [disk.index for disk in status.disks] == [0, 3]
        assert [disk.index for disk in status.former_disks] == [7]
        assert status.failover is not None
        assert (status.failover.added_disks, status.failover.removed_disks) == ([7], [3])
        await orders.undo_failover(VmParams(vm="web"), cast("Client", None))
        vm = agent.vms[VM]
        assert vm.point() == newest and vm.ledger.vm.geometry == SET
        assert [disk.index for disk in status_of(vm).disks] == [0, 7]
        assert file_of(world, 7).read_bytes() == pair.tap.cuts[newest.segment][CAME.index]

        await serving(vm, before)
        await vm.promotion.commit()
        assert vm.promotion.tap is not None
        vm.promotion.tap.settled.set()
        await until(lambda: vm.ledger.promotion is not None and not vm.ledger.promotion.layered)
        await until(lambda: not file_of(world, CAME.index).exists())
        assert vm.ledger.vm.geometry == DISKS == vm.parts.disks.geometry and not vm.ledger.vm.former
        assert vm.ledger.vm.next_index == 8 and kept.exists()
        assert not load_config(world.files, vm.parts.layout.tap).undo_layers
        record = vm.ledger.promotion
        assert record is not None and others_of(vm.ledger.vm, record) == OtherDisks([], [])

        # Given up for the primary, which has the newer set: that one is taken over with a compare of everything.
        await vm.leave_tap()
        await handing_over._take_disks_back(vm, record, handing_over.Tracked("", written=False))
        assert (vm.ledger.vm.disk_set, vm.ledger.replication.reversal) == (0, None)
        assert "has other disks" in vm.ledger.replication.causes[0].text
        await agent.revive(vm, failed=False)
        control, opened = await setting(pair).open(epoch=newest.epoch, lineage=[])
        assert (opened.disk_set, [disk.index for disk in opened.disks]) == (0, [0, 3])
        control.channel.abort()


async def test_a_point_keeps_its_disks_through_any_number_of_baselines(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: the lineage is bounded, and no pinned point is older than what is known of its disks."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        _, before, newest = await exchanged(pair)
        with monkeypatch.context() as patch:
            patch.setattr(retention, "LIMIT_LEAST", 1)
            assert vm.parts.history.retention.limit == sum(disk.size for disk in (*DISKS, CAME))
        async with vm.ledger.transaction() as draft:
            former = FormerSizeRecord(size=DISKS[0].size // 2, until=newest.epoch)
            draft.vm.disks = [msgspec.structs.replace(draft.vm.disks[0], sizes=[former]), *draft.vm.disks[1:]]
        old = {0: DISKS[0].size // 2, 3: DISKS[1].size}
        assert (vm.ledger.disks_at(before), vm.ledger.disks_at(newest)) == (
            old,
            {disk.index: disk.size for disk in SET},
        )
        async with vm.ledger.transaction() as draft:
            parent = newest.epoch
            for number in range(MAX_LINEAGE + 8):
                epoch = number.to_bytes(16, "big") if number else b"e" * 16
                begin_epoch(draft, Ancestor(epoch, parent, 1))
                parent = epoch
            draft.vm.disks = _without_old_sizes(draft)
        assert not {step.epoch for step in vm.ledger.replication.ancestors} & {before.epoch, newest.epoch}
        assert vm.ledger.vm.epochs == [before.epoch, newest.epoch], "no more is kept than tells it"
        assert (vm.ledger.disks_at(before), vm.ledger.disks_at(newest)) == (
            old,
            {disk.index: disk.size for disk in SET},
        )
        await forget_former(vm.parts)
        assert file_of(world, 3).exists() and [disk.index for disk in vm.ledger.vm.former] == [3]
        async with vm.ledger.transaction() as draft:
            vm.parts.history.unguard(draft)
            draft.vm.disks = _without_old_sizes(draft)
        await forget_former(vm.parts)
        assert not file_of(world, 3).exists() and not any(disk.sizes for disk in vm.ledger.vm.disks)


async def brought(pair: Pair, disks: tuple[Geometry, ...], number: int, epoch: bytes) -> SetDialler:
    """A bounded resync has brought this set of disks, and a segment came after it."""
    dialler = setting(pair)

    async def open_with(**changes: Any) -> tuple[Primary, Opened]:
        own = {"disks": [WireDisk.of(disk) for disk in disks], "disk_set": number}
        return await SetDialler.open(dialler, **{**own, **changes})

    dialler.open = open_with  # type: ignore[method-assign]
    control, _ = await dialler.open(epoch=pair.tap.epoch)
    content = {disk.index: bytearray(pair.tap.content.get(disk.index, pair.rng.randbytes(disk.size))) for disk in disks}
    tap = Tap(disks, epoch=epoch, content=content, time_ns=pair.tap.time_ns)
    resync = Resync(dialler, control, tap, pair.rng.randbytes(16), ResyncKind.BOUNDED, pair.tap.epoch)
    await resync.begin()
    for disk in disks:
        if disk.index not in pair.tap.content:
            await resync.compare_range(disk, 0, disk.size)
    await resync.send_tracked(pair.rng, 1)
    await resync.commit()
    await control.send_segment(tap, pair.rng)
    await control.until_applied(tap.position)
    pair.control, pair.tap = control, tap
    return dialler


async def test_a_disk_that_came_and_went_is_in_the_way_of_no_older_point(world: World) -> None:
    """I1: the point before both is failed over to, and outlives what was kept of that disk."""
    sizes = {disk.index: disk.size for disk in DISKS}
    async with replicating(world) as pair:
        agent, vm = pair.agent, pair.agent.vms[VM]
        before, old = pair.tap.position, dict(pair.tap.cuts[pair.tap.segment])
        await mark_point(vm.parts.history, before, pinned=True)
        await brought(pair, (*DISKS, CAME), 1, b"n" * 16)
        dialler = await brought(pair, DISKS, 2, b"o" * 16)
        later = pair.tap.position
        assert [disk.index for disk in vm.ledger.vm.former] == [CAME.index]

        await serving(vm, before)
        record = vm.ledger.promotion
        assert record is not None and (record.disks, record.smaller) == (None, [])
        assert handing_over._between(vm).keys() == sizes.keys()
        await AdminMethods(agent).undo_failover(VmParams(vm="web"), cast("Client", None))

        vm = agent.vms[VM]
        pair.control, _ = await dialler.open(epoch=pair.tap.epoch)
        await mark_point(vm.parts.history, later, pinned=True)
        await set_rules(vm, {"newest": 1, "hourly": 0, "daily": 0, "weekly": 0})
        await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)
        await until(lambda: len(vm.ledger.points.logs) == 2)
        await forget_former(vm.parts)
        assert not vm.ledger.vm.former and not file_of(world, CAME.index).exists()
        assert vm.parts.history.positions() == [before, later]
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert vm.parts.history.positions() == [before, later]
        reading = await vm.parts.history.read(before)
        assert reading is not None
        assert {index: reading.reader.read(index, 0, size) for index, size in sizes.items()} == old
        await vm.parts.history.end(reading)


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
