"""Kills the agent at each durable operation in turn, starts it again, and looks at what it then holds."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import replica_agent.retention
from protocol.messages import Opened, ResyncKind
from protocol.position import NO_EPOCH, Position
from replica_agent.agent import ReplicaAgent
from shared.ports.workers import ThreadWorkers
from tests.places import step
from tests.unit.replica.failing import FailingFiles, Killed
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import (
    DISKS,
    Certificates,
    Dialler,
    Primary,
    Resync,
    World,
    check_history,
    check_points,
    random_content,
)

NEXT_EPOCH = b"n" * 16
RESYNC_IDS = {EPOCH: b"1" * 16, NEXT_EPOCH: b"2" * 16}


async def kill(agent: ReplicaAgent, workers: ThreadWorkers, files: FailingFiles) -> None:
    """End the agent as SIGKILL does: no operation of it reaches the disk any more, its files and links close."""
    files.dead = True
    if agent.sessions.listener is not None:
        await agent.sessions.listener.close()
    tasks = [*agent.sessions._tasks, *agent._revivals, *(task for vm in agent.vms.values() for task in vm._tasks)]
    while any(not task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1)
    await asyncio.gather(*tasks, return_exceptions=True)
    await workers.close()
    files.close_all()


@dataclass(slots=True)
class Story:
    """The primary's side, which outlives the replica's deaths: two baselines with cuts streamed after each."""

    rng: random.Random
    first: Tap
    second: Tap | None = None
    acked: Position | None = None
    done: bool = False
    history: int = 0
    """The most recovery points that were there, and right, after a death."""
    proposed: dict[bytes, Position] = field(default_factory=dict)
    """The end of each baseline's commit that was sent."""

    @classmethod
    def begin(cls, seed: int) -> Story:
        rng = random.Random(seed)
        tap = Tap(DISKS)
        random_content(tap, rng)
        return cls(rng, tap)

    @property
    def taps(self) -> list[Tap]:
        return [self.first, *([self.second] if self.second is not None else [])]

    async def go_on(self, dialler: Dialler) -> None:
        """Do whatever is next, by what the replica says of itself, as a primary agent would."""
        while not self.done:
            control, opened = await dialler.open(epoch=self.first.epoch if opened_before(self) else NO_EPOCH)
            try:
                await self._work(dialler, control, opened)
            finally:
                control.channel.abort()

    async def _work(self, dialler: Dialler, control: Primary, opened: Opened) -> None:
        if opened.epoch == NO_EPOCH:
            await self._baseline(dialler, control, self.first, ResyncKind.INITIAL, NO_EPOCH)
            await self._stream(control, self.first, 3)
        elif opened.epoch == EPOCH and self.second is None:
            await self._resend(control, opened, self.first)
            await self._stream(control, self.first, 2)
            self.first.content[0][70_000:70_010] = b"unlogged!!"
            self.second = self.first.begin(NEXT_EPOCH)
        if opened.epoch != NO_EPOCH and self.second is not None and opened.epoch == EPOCH:
            await self._baseline(dialler, control, self.second, ResyncKind.RESYNC, EPOCH)
            await self._stream(control, self.second, 2)
            self.done = True
        elif opened.epoch == NEXT_EPOCH:
            assert self.second is not None
            await self._resend(control, opened, self.second)
            await self._stream(control, self.second, 2)
            self.done = True

    async def _baseline(self, dialler: Dialler, control: Primary, tap: Tap, kind: ResyncKind, parent: bytes) -> None:
        resync = Resync(dialler, control, tap, RESYNC_IDS[tap.epoch], kind, parent)
        try:
            await resync.begin()
            await resync.compare()
            for number in range(1, tap.segment + 1):
                control.log(tap.sent[number][0])
                control.seal(tap.sent[number][1])
                await control.received(tap.ends[number])
            await resync.send_tracked(self.rng, 2)
            self.proposed[tap.epoch] = tap.position
            await resync.commit()
            self.acked = tap.position
            await control.until_applied(tap.position)
        finally:
            if resync.bulk is not None:
                resync.bulk.channel.abort()

    async def _resend(self, control: Primary, opened: Opened, tap: Tap) -> None:
        """What the replica does not hold as whole cuts, as the primary still has it (R34)."""
        assert opened.received is not None
        received = opened.received.position()
        whole = received.segment if tap.ends.get(received.segment) == received else received.segment - 1
        if self.acked is not None and self.acked.epoch == tap.epoch:
            assert whole >= self.acked.segment, "I5: an acknowledged cut is gone"
        for number in range(whole + 1, tap.segment + 1):
            control.log(tap.sent[number][0])
            control.seal(tap.sent[number][1])
            await control.received(tap.ends[number])
            self.acked = tap.ends[number]

    async def _stream(self, control: Primary, tap: Tap, segments: int) -> None:
        for _ in range(segments):
            await control.send_segment(tap, self.rng)
            self.acked = tap.position
        await control.until_applied(tap.position)


def opened_before(story: Story) -> bool:
    return bool(story.proposed)


async def run_until_death(
    world: World,
    work: Callable[[Dialler], Awaitable[None]],
    die_at: int | None,
    files: FailingFiles | None = None,
) -> bool:
    """Run an agent and ``work`` against it; True if it was killed at its ``die_at``-th durable operation."""
    files = files if files is not None else FailingFiles()
    files.die_at = die_at
    died = asyncio.Event()
    loop = asyncio.get_running_loop()
    files.on_death = functools.partial(loop.call_soon_threadsafe, died.set)
    world.files = files
    agent, workers = world.build()
    try:
        await agent.start()
        assert agent.sessions.listener is not None
        dialler = Dialler(world.certificates, agent.sessions.listener.address)
        worker = asyncio.ensure_future(work(dialler))
        death = asyncio.ensure_future(died.wait())
        await asyncio.wait({worker, death}, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if died.is_set():
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
        else:
            await worker
    except Killed:
        assert died.is_set() or files.dead
    finally:
        await kill(agent, workers, files)
        await world.stores.close()
    return files.died


async def operations_of(world: World, work: Callable[[Dialler], Awaitable[None]]) -> int:
    assert not await run_until_death(world, work, None)
    assert isinstance(world.files, FailingFiles)
    return world.files.operations


async def check_after_death(world: World, story: Story, files: FailingFiles | None = None) -> None:
    """I6: what is there is exactly one cut, no older than what was acknowledged."""
    world.files = files if files is not None else FailingFiles()
    async with world.agent() as agent:
        vm = agent.vms.get(VM)
        if vm is None or not vm.has_baseline:
            assert story.acked is None
            return
        async with asyncio.timeout(20):
            await vm.parts.applier.caught_up()
        assert vm.failure is None
        point = vm.point()
        assert point is not None
        assert vm.ledger.replication.suspect is None
        assert vm.ledger.replication.causes == []
        if story.acked is not None:
            if point.epoch == story.acked.epoch:
                assert point.segment >= story.acked.segment
            else:
                assert point == story.proposed[NEXT_EPOCH] or (point.epoch, story.acked.epoch) == (NEXT_EPOCH, EPOCH)
        story.history = max(story.history, await check_history(vm, *story.taps))
    check_points(world, *story.taps)


@pytest.mark.slow
@pytest.mark.parametrize("residue", range(4))
async def test_kill_at_each_durable_operation(
    memory_path: Path, certificates: Certificates, residue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I5, I6, I7, I11, R25: through both baselines and streaming, kill at operation N, restart, look at every point,
    go on to the end.
    """
    # Undo logs are merged as soon as there are two to merge.
    monkeypatch.setattr(replica_agent.retention, "MERGE_AT_ONCE", 2)
    total = await operations_of(World(memory_path / "whole", certificates), Story.begin(7).go_on)
    assert total > 100
    for die_at in range(1 + residue, total + 1, step(28, all_places=4)):
        world, story = World(memory_path / str(die_at), certificates), Story.begin(7)
        await run_until_death(world, story.go_on, die_at)
        await check_after_death(world, story)
        assert not await run_until_death(world, story.go_on, None)
        assert story.done
        await check_after_death(world, story)
        assert world.points[-1][0] == story.taps[-1].position
        assert story.history >= 3


async def test_ten_deaths_in_a_row(world: World) -> None:
    """I12: whatever is interrupted, in the end the last cut is there."""
    rng = random.Random(8)
    story = Story.begin(9)
    for _ in range(10):
        if story.done or not await run_until_death(world, story.go_on, rng.randint(1, 60)):
            break
        await check_after_death(world, story)
    await run_until_death(world, story.go_on, None)
    assert story.done
    check_points(world, *story.taps)
    assert world.points[-1][0] == story.taps[-1].position
