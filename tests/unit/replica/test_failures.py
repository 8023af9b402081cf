"""Tests of disks, files and state that fail under a running replica: what is still trusted, and what heals it."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from protocol.messages import ResyncKind
from replica_agent import agent as agent_module
from replica_agent import apply
from replica_agent.agent import ReplicaAgent
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.channel import ChannelClosed
from shared.errors import InvalidStateError
from shared.events import EventId
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import DISKS, Primary, Resync, World, check_points, disk_bytes, random_content
from tests.unit.replica.test_sessions import dialler_of, refusal_of, until

NEXT = b"n" * 16


@dataclass
class Failing:
    """An agent on files that fail on demand, with a baseline and an open session."""

    world: World
    agent: ReplicaAgent
    files: FailingFiles
    control: Primary
    tap: Tap
    rng: random.Random

    @property
    def vm(self) -> ReplicaVm:
        return self.agent.vms[VM]

    async def reconnect(self) -> str:
        """A fresh session; the state that the replica tells."""
        self.control.channel.abort()
        self.control, opened = await dialler_of(self.world, self.agent).open(epoch=self.tap.epoch)
        return opened.state

    def next_resync(self) -> Resync:
        """A whole resync over the present session, not yet begun."""
        dialler, identity = dialler_of(self.world, self.agent), self.rng.randbytes(16)
        return Resync(dialler, self.control, self.tap.begin(NEXT), identity, ResyncKind.RESYNC, EPOCH)

    async def resynchronize(self) -> Resync:
        """A whole resync; afterwards everything is trusted again, and is what the primary has."""
        assert await self.reconnect() == "WaitingForStartResynchronize"
        resync = self.next_resync()
        await resync.whole(self.rng)
        record = self.vm.ledger.replication
        assert (record.suspect, record.causes, record.reread) == (None, [], False)
        assert self.vm.point() == resync.tap.position
        for disk in DISKS:
            assert disk_bytes(self.world, disk.index) == resync.tap.content[disk.index]
        return resync


@asynccontextmanager
async def failing(world: World) -> AsyncIterator[Failing]:
    rng = random.Random(41)
    tap = Tap(DISKS)
    random_content(tap, rng)
    world.files = files = FailingFiles()
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        await Resync(dialler, control, tap, b"1" * 16).whole(rng)
        await control.send_segment(tap, rng)
        await control.until_applied(tap.position)
        yield Failing(world, agent, files, control, tap, rng)


@pytest.mark.parametrize("operation", ["write", "punch_hole"])
async def test_failed_write_of_a_disk_is_suspect_until_a_resync(world: World, operation: str) -> None:
    """R17, I6: no half-applied disk is ever exposed or promoted."""
    async with failing(world) as rig:
        rig.files.fail_only("disk-", operation)
        for _ in range(4):
            try:
                await rig.control.send_segment(rig.tap, rig.rng)
            except ChannelClosed:
                break
        await until(lambda: rig.vm.ledger.replication.suspect is not None)
        assert rig.vm.point() is None
        status = status_of(rig.vm)
        assert (status.health, status.protected) == ("Critical", False)
        with pytest.raises(Exception, match="not trusted"):
            await rig.vm.failover()
        rig.files.fail_nothing()
        resync = await rig.resynchronize()
    check_points(world, rig.tap, resync.tap)


async def test_failed_sync_of_a_disk_has_everything_sent_anew(world: World) -> None:
    """R17: what can be read after a failed sync is not what would survive, so that no compare can be trusted."""
    async with failing(world) as rig:
        rig.files.fail_only("disk-", "sync")
        await rig.control.send_segment(rig.tap, rig.rng)
        await until(lambda: rig.vm.ledger.replication.suspect is not None)
        assert rig.vm.ledger.replication.reread
        rig.files.fail_nothing()
        resync = await rig.resynchronize()
        assert len(resync.sent) == sum(-(-disk.size // 65536) for disk in DISKS)
    check_points(world, rig.tap, resync.tap)


async def test_failed_sync_of_the_spool_costs_no_point(world: World) -> None:
    """R17, I5, I6: the segment is void and a resync required; the newest point can still be failed over to."""
    async with failing(world) as rig:
        point = rig.vm.point()
        rig.files.fail_only(EPOCH.hex(), "sync")
        log, seal = rig.tap.random_segment(rig.rng)
        rig.control.log(log)
        rig.control.seal(seal)
        error = await refusal_of(rig.control)
        assert (error.code, error.retryable) == ("storage", False)
        rig.files.fail_nothing()
        assert rig.vm.ledger.replication.suspect is None
        assert [cause.code for cause in rig.vm.ledger.replication.causes] == ["spool_failed"]
        assert rig.vm.point() == point
        assert status_of(rig.vm).health == "Critical"
        await rig.resynchronize()


async def test_failed_sync_of_the_differences_drops_the_resync(world: World) -> None:
    """R17, I7."""
    async with failing(world) as rig:
        point = rig.vm.point()
        dialler = dialler_of(world, rig.agent)
        resync = Resync(dialler, rig.control, rig.tap.begin(NEXT), b"2" * 16, ResyncKind.RESYNC, EPOCH)
        await resync.begin()
        rig.files.fail_only("3232", "sync")
        with pytest.raises(ChannelClosed):
            await resync.compare()
        rig.files.fail_nothing()
        await until(lambda: rig.vm.ledger.resync is None)
        assert rig.vm.point() == point
        assert list((world.folder_of() / "resync").iterdir()) == []
        rig.tap.content[0][:10] = b"unlogged!!"
        await rig.resynchronize()


async def test_failed_sync_of_an_initial_replication_starts_it_anew(world: World) -> None:
    """R17: in place as well, and then everything is sent."""
    rng = random.Random(42)
    tap = Tap(DISKS)
    random_content(tap, rng)
    world.files = files = FailingFiles()
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        first = Resync(dialler, control, tap, b"1" * 16)
        await first.begin()
        files.fail_only("disk-", "sync")
        with pytest.raises(ChannelClosed):
            await first.compare()
        files.fail_nothing()
        vm = agent.vms[VM]
        await until(lambda: vm.ledger.resync is None)
        assert vm.ledger.replication.reread
        control.channel.abort()
        control, opened = await dialler.open()
        assert opened.state == "ReadyForInitialReplication"
        second = Resync(dialler, control, tap.begin(NEXT), b"2" * 16)
        await second.whole(rng)
        assert len(second.sent) == sum(-(-disk.size // 65536) for disk in DISKS)
        assert not vm.ledger.replication.reread
    check_points(world, second.tap)


async def test_what_a_failed_apply_left_is_durable_before_it_is_compared(world: World) -> None:
    """R17, R35: it would be told equal and settled, and be gone with the next power loss."""
    async with failing(world) as rig:
        rig.files.fail_only("disk-", "punch_hole")
        for _ in range(4):
            try:
                await rig.control.send_segment(rig.tap, rig.rng)
            except ChannelClosed:
                break
        await until(lambda: rig.vm.ledger.replication.suspect is not None)
        rig.files.fail_nothing()
        await rig.reconnect()
        resync = rig.next_resync()
        rig.files.trace.clear()
        await resync.begin()
        synced = {step.split()[1] for step in rig.files.trace if step.startswith("sync disk-")}
        assert synced == {f"disk-{disk.index}.raw" for disk in DISKS}


async def test_what_can_not_be_made_durable_before_a_compare_is_sent_anew(world: World) -> None:
    """R17: and that is on record, since a second sync would prove nothing."""
    async with failing(world) as rig:
        await rig.reconnect()
        rig.files.fail_only("disk-", "sync")
        resync = rig.next_resync()
        await resync.begin()
        rig.files.fail_nothing()
        assert rig.vm.ledger.replication.reread
        await resync.compare()
        await resync.send_tracked(rig.rng)
        await resync.commit()
        await rig.control.until_applied(resync.tap.position)
        assert len(resync.sent) == sum(-(-disk.size // 65536) for disk in DISKS)
        assert not rig.vm.ledger.replication.reread
    check_points(world, rig.tap, resync.tap)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_was_written_in_place_is_synced_when_it_goes_on(world: World, fails: bool) -> None:
    """R35: the process before may have written what it never synced; it would be told equal and settled."""
    rng = random.Random(43)
    tap = Tap(DISKS)
    random_content(tap, rng)
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        await Resync(dialler, control, tap, b"1" * 16).begin()
    world.files = files = FailingFiles()
    if fails:
        files.fail_only("disk-", "sync")
    async with world.agent() as agent:
        files.fail_nothing()
        synced = {step.split()[1] for step in files.trace if step.startswith("sync disk-")}
        assert fails or synced == {f"disk-{disk.index}.raw" for disk in DISKS}
        ledger = agent.vms[VM].ledger
        assert (ledger.resync is None, ledger.replication.reread) == (fails, fails)


async def test_part_of_the_copy_that_can_not_be_read_is_sent_anew(world: World) -> None:
    """R24: an unreadable block never counts as equal, and an alarm tells of it."""
    async with failing(world) as rig:
        dialler = dialler_of(world, rig.agent)
        resync = Resync(dialler, rig.control, rig.tap.begin(NEXT), b"2" * 16, ResyncKind.RESYNC, EPOCH)
        await resync.begin()
        rig.files.fail_only("disk-0", "read")
        await resync.compare()
        rig.files.fail_nothing()
        assert {disk for disk, _ in resync.sent} == {0}
        assert len(resync.sent) == DISKS[0].size // 65536
        await resync.send_tracked(rig.rng)
        await resync.commit()
        await rig.control.until_applied(resync.tap.position)
        events = (await rig.agent.events(None, limit=100, after=0)).events
        assert any(event["event"] == EventId.DAMAGED for event in events)


async def test_spool_that_can_not_be_read_costs_no_point(world: World) -> None:
    """I6: where no disk was touched yet, the newest point stays whole."""
    async with failing(world) as rig:
        point = rig.vm.point()
        async with rig.vm.parts.applier.turn:
            await rig.control.send_segment(rig.tap, rig.rng)
            rig.files.fail_only(EPOCH.hex(), "read")
        await until(lambda: rig.vm.ledger.replication.causes)
        rig.files.fail_nothing()
        assert [cause.code for cause in rig.vm.ledger.replication.causes] == ["spool_damaged"]
        assert rig.vm.ledger.replication.suspect is None
        assert rig.vm.point() == point
        (event,) = await apply_failures(rig)
        assert (event["cause"], event["level"]) == ("spool_damaged", "error")
        assert "could not be applied" in event["text"]
        await rig.resynchronize()


async def apply_failures(rig: Failing) -> list[dict[str, Any]]:
    """The events 32056 that were recorded."""
    events = (await rig.agent.events(None, limit=100, after=0)).events
    return [event for event in events if event["event"] == EventId.APPLY_FAILED]


async def test_apply_waits_for_room_and_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """I12, R39: a full volume stops nothing for good."""
    monkeypatch.setattr(apply, "RETRY_SECONDS", 0.05)
    async with failing(world) as rig:
        rig.files.fail_only("disk-", "write", number=errno.ENOSPC)
        for _ in range(3):
            await rig.control.send_segment(rig.tap, rig.rng)
        await until(lambda: rig.vm.parts.applier.problem is not None)
        status = status_of(rig.vm)
        assert status.problem is not None
        assert (status.problem.code, status.health) == ("no_space", "Critical")
        assert rig.vm.ledger.replication.suspect is None
        # It is tried again meanwhile, and told once.
        await asyncio.sleep(0.2)
        rig.files.fail_nothing()
        await rig.control.until_applied(rig.tap.position)
        await until(lambda: rig.vm.parts.applier.problem is None)
        assert [event["cause"] for event in await apply_failures(rig)] == ["no_space"]
        assert rig.vm.point() == rig.tap.position
    check_points(world, rig.tap)


@pytest.mark.parametrize("operation", ["write", "sync"])
async def test_failover_outlives_a_failing_disk(world: World, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    """R17, I12: nobody is left to resync from, and the spool has all of it, so it is written and synced again."""
    monkeypatch.setattr(apply, "RETRY_SECONDS", 0.05)
    async with failing(world) as rig:
        applier = rig.vm.parts.applier
        async with applier.turn:
            for _ in range(3):
                await rig.control.send_segment(rig.tap, rig.rng)
            rig.files.fail_only("disk-", operation)
            assert await rig.vm.promotion.decide()
        rig.vm._spawn(rig.vm.promotion.complete())
        await until(lambda: applier.problem is not None)
        assert status_of(rig.vm).health == "Critical"
        assert rig.vm.ledger.replication.suspect is None
        rig.files.fail_nothing()
        await until(lambda: rig.vm.ledger.promotion is not None and rig.vm.ledger.promotion.serving)
        assert applier.problem is None
        for disk in DISKS:
            assert disk_bytes(world, disk.index) == rig.tap.cuts[rig.tap.segment][disk.index]


async def test_failover_does_not_count_on_what_a_failing_apply_gives_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R17, I6: decided while the failure is being put on record, it finds the disks distrusted, not a cut to go to."""
    fail = apply.Applier._fail
    deciding: list[asyncio.Task[bool]] = []
    async with failing(world) as rig:
        vm = rig.vm

        async def fail_while_deciding(applier: apply.Applier, error: Exception, *, redone: bool) -> None:
            async with vm.ledger._turn:
                failed = asyncio.create_task(fail(applier, error, redone=redone))
                await asyncio.sleep(0)
                # From here on the failure is next in turn, and the ledger does not tell of it yet.
                deciding.append(asyncio.create_task(vm.promotion.decide()))
                await until(lambda: vm.promotion.deciding.locked() and vm.parts.order.locked())
            await failed

        monkeypatch.setattr(apply.Applier, "_fail", fail_while_deciding)
        rig.files.fail_only("disk-", "sync")
        await rig.control.send_segment(rig.tap, rig.rng)
        await until(lambda: deciding and deciding[0].done())
        assert isinstance(deciding[0].exception(), InvalidStateError)
        assert vm.ledger.promotion is None


async def test_state_that_can_not_be_written_stops_the_vm_until_it_is_started_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I12: after a failed commit only the durable state counts; nobody has to act."""
    monkeypatch.setattr(agent_module, "REVIVAL_SECONDS", 0.05)
    async with failing(world) as rig:
        failed = rig.vm
        rig.files.fail_next("commit")
        with pytest.raises(ChannelClosed):
            for _ in range(100):
                await rig.control.send_segment(rig.tap, rig.rng)
                await asyncio.sleep(0.01)
        await until(lambda: VM in rig.agent.vms and rig.agent.vms[VM] is not failed)
        assert rig.vm.failure is None
        assert await rig.reconnect() == "Replicating"
        opened = rig.vm.connections.opened()
        assert opened.received is not None
        for number in range(opened.received.segment + 1, rig.tap.segment + 1):
            rig.control.log(rig.tap.sent[number][0])
            rig.control.seal(rig.tap.sent[number][1])
            await rig.control.received(rig.tap.ends[number])
        await rig.control.until_applied(rig.tap.position)
    check_points(world, rig.tap)
