"""Every operation of every durable path fails in turn, once and for good: of the tap, and of the replica (row P15)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from pathlib import Path

import pytest

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from protocol.position import Position
from replica_agent import agent as agent_module
from replica_agent import apply
from shared.channel import ChannelClosed
from shared.errors import VmreplicaError
from shared.tap_control import Tracking
from tests.faults.nth import NthFailure, every_failure, on
from tests.places import step
from tests.unit.replica.failing import FailingFiles, Killed
from tests.unit.replica.rig import Certificates, Dialler, World, check_points
from tests.unit.replica.test_crashes import Story
from tests.unit.tap.life import Life, epoch_of, small_maps
from tests.unit.tap.rig import KIB, write

CHANGES = ("write", "sync", "allocate", "truncate", "rename", "open", "punch", "zero", "sync_folder")


# --- the tap ---------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """The tap did not start."""


class FailingLife(Life):
    """A life in which orders may be refused; the guest's changes never are (I14), unless its disk fails."""

    async def whole(self, ports: OwnPorts) -> None:
        try:
            tap = await self.start(ports)
        except VmreplicaError as error:
            raise Refused from error
        await self.try_to_begin(tap)
        await self.some(tap, 5)
        for number in range(6):
            await self.change(tap, 0, [write(4 * KIB * number, bytes([number]) * 48 * KIB)])
        with contextlib.suppress(TimeoutError):
            # What can't be made durable at all is tried for ever.
            async with asyncio.timeout(30):
                await tap.tracker.settle()
        await self.some(tap, 2)
        await self.try_to_begin(tap)
        await self.some(tap, 3)
        with contextlib.suppress(VmreplicaError, TimeoutError):
            async with asyncio.timeout(30):
                await tap.stop()

    async def try_to_begin(self, tap: TapEngine) -> None:
        with contextlib.suppress(VmreplicaError):
            await self.begin(tap)
            return
        self.began.pop(epoch_of(self.epochs), None)

    async def cut(self, tap: TapEngine) -> Position:
        with contextlib.suppress(VmreplicaError):
            return await super().cut(tap)
        return Position(b"", 0, 0, b"")


def fail_in_a_life(failure: NthFailure, seed: int, *, power: bool) -> str:
    """Live with the failure, stop or lose power, and start again; how the next start saw it."""
    life = FailingLife(seed)
    try:
        life.world.volume.fault = failure
        try:
            life.world.run(life.whole)
        except Refused:
            assert not life.began, "a tap that served before must start"
        failure.lifted = True
        if power:
            life.world.lose_power()
            life.adopt_disks()
        assert life.world.run(life.later)
        return life.seen[-1][0].value
    finally:
        life.world.close()


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("part", ["/log", "hot.map", "dirty.map", "tap.state"])
def test_tap_whose_nth_operation_fails(part: str, error: int) -> None:
    """I3, I14, R17, R28: no guest sees it; what was not tracked is known not to be, before and after power loss."""
    outcomes = []
    with small_maps():
        stride = step(5, all_places=3) if error == errno.EIO else step(17, all_places=11)
        for failure in every_failure(on(*CHANGES, path=part), error=error, stride=stride):
            outcomes.append(fail_in_a_life(failure, 3, power=failure.number % 2 == 0))
    assert len(outcomes) > 3
    assert set(outcomes) <= {tracking.value for tracking in Tracking}


# --- the replica -----------------------------------------------------------------------------------------------------


async def fail_in_a_story(folder: Path, certificates: Certificates, failure: NthFailure) -> bool:
    """Live with the failure for as long as something goes on, then without it; whether that ended by itself.

    I1, I6: whatever is exposed, at any time, is one whole cut.
    """
    world, story = World(folder, certificates), Story.begin(7)
    world.files = files = FailingFiles()
    files.fault = failure
    agent, workers = world.build()
    try:
        with contextlib.suppress(OSError, VmreplicaError):
            await agent.start()
        if agent.sessions.listener is None:
            return False
        dialler = Dialler(certificates, agent.sessions.listener.address)
        with contextlib.suppress(ChannelClosed, TimeoutError, AssertionError, OSError, Killed):
            # Where it stalls, another connection would be made in life; what is checked does not need it.
            async with asyncio.timeout(1.0):
                await story.go_on(dialler)
        failure.lifted = True
        return story.done
    finally:
        failure.lifted = True
        await agent.stop()
        await workers.close()
        await world.stores.close()
        if world.points:
            check_points(world, *story.taps)
        await reopened(folder, certificates, story)


async def reopened(folder: Path, certificates: Certificates, story: Story) -> None:
    """After a start without the failure: one whole cut, none older than what was acknowledged, or a cause on record."""
    world = World(folder, certificates)
    world.files = FailingFiles()
    async with world.agent() as agent:
        for vm in agent.vms.values():
            replication = vm.ledger.replication
            if not vm.has_baseline or replication.suspect is not None:
                continue
            if not replication.causes:
                async with asyncio.timeout(20):
                    await vm.parts.applier.caught_up()
            point = vm.point()
            if point is not None and story.acked is not None and not replication.causes:
                assert point.epoch != story.acked.epoch or point.segment >= story.acked.segment, "I5"
    if world.points:
        check_points(world, *story.taps)


@pytest.mark.slow
@pytest.mark.parametrize("part, stride", [("spool", 29), ("/disk-", 97), ("/resync/", 9), ("store", 151)])
async def test_replica_whose_nth_operation_fails(
    memory_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, part: str, stride: int
) -> None:
    """I1, I5, I6, R17: in the spool, in the disks, in the differencing file, in the store."""
    monkeypatch.setattr(apply, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(agent_module, "REVIVAL_SECONDS", 0.05)
    tried = 0
    changes = (*CHANGES, "write_many", "punch_hole", "write_zeroes", "create", "remove", "commit")
    for failure in every_failure(on(*changes, path=part), stride=stride, first=2):
        await fail_in_a_story(memory_path / f"{failure.number}-{failure.persistent}", certificates, failure)
        tried += 1
    assert tried > 2


# --- the loop itself -------------------------------------------------------------------------------------------------


def test_loop_meets_every_operation_in_both_ways() -> None:
    met = []
    for failure in every_failure(on("write", path="x")):
        for number in range(4):
            failure("read", "x")
            failure("write", "y")
            if failure("write", "x"):
                met.append((failure.persistent, failure.number, number))
    once = [(False, number + 1, number) for number in range(4)]
    for_good = [(True, first + 1, number) for first in range(4) for number in range(first, 4)]
    assert met == once + for_good
    with pytest.raises(AssertionError, match="still failed"):
        for failure in every_failure(on(), most=9):
            for _ in range(20):
                failure("any", "where")
