"""What a real TLS client says twice, too late, with a gap, or while an older session's merge still runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from protocol.messages import Received
from replica_agent.replay import Replay
from tests.unit.replica.logs import EPOCH, VM
from tests.unit.replica.rig import Primary, World
from tests.unit.replica.test_sessions import refusal_of, replicating, until


def is_closed(primary: Primary) -> bool:
    return primary.channel.closed


async def test_segments_that_come_again_are_acknowledged_and_nothing_more(world: World) -> None:
    """N11, R11: stale ones, the newest once more, and half of one that was received whole."""
    async with replicating(world) as pair:
        frames = []
        for _ in range(3):
            frames.append((*pair.tap.random_segment(pair.rng), pair.tap.position))
            pair.control.log(frames[-1][0])
            pair.control.seal(frames[-1][1])
            await pair.control.received(pair.tap.position)
        await pair.control.until_applied(pair.tap.position)
        exposed = len(world.points)
        for log, seal, _ in [*frames, frames[0], frames[2], frames[2]]:
            pair.control.log(log)
            pair.control.seal(seal)
            again = await pair.control.expect(Received)
            # Never less than what it knows to be there.
            assert again.position.position() in [position for _, _, position in frames]
        pair.control.log(frames[1][0])
        await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)
        assert len(world.points) == exposed + 1
        await pair.check_unharmed()


async def test_gap_is_refused_and_the_log_without_it_goes_on(world: World) -> None:
    """N12, I11: nothing behind the gap is kept, not even for later."""
    async with replicating(world) as pair:
        first, second = pair.tap.random_segment(pair.rng), pair.tap.random_segment(pair.rng)
        pair.control.log(second[0])
        error = await refusal_of(pair.control)
        assert (error.code, error.retryable) == ("gap", False)
        pair.control, opened = await pair.dialler.open(epoch=EPOCH)
        assert opened.received is not None and opened.received.segment == pair.tap.segment - 2
        for (log, seal), number in ((first, pair.tap.segment - 1), (second, pair.tap.segment)):
            pair.control.log(log)
            pair.control.seal(seal)
            await pair.control.received(pair.tap.ends[number])
        await pair.control.until_applied(pair.tap.position)
        await pair.check_unharmed()


async def test_reconnect_while_the_merge_of_an_older_session_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N13, R13: the new session's log waits behind the merge; nothing ever is applied beside it."""
    released, begun = threading.Event(), threading.Event()
    running, most = 0, 0
    apply = Replay.apply

    def slow(replay: Replay, *arguments: Any) -> Generator[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        begun.set()
        assert released.wait(30)
        try:
            yield from apply(replay, *arguments)
        finally:
            running -= 1

    async with replicating(world) as pair:
        resync = pair.next_resync()
        await resync.begin()
        await resync.compare()
        await resync.send_tracked(pair.rng)
        monkeypatch.setattr(Replay, "apply", slow)
        await resync.commit()
        assert await asyncio.to_thread(begun.wait, 30)
        for number in range(3):
            # Each ends the one before, whose merge goes on; some are lost before, others the replica has to end.
            old = pair.control
            if number == 1:
                old.channel.abort()
            pair.control, opened = await pair.dialler.open(epoch=resync.tap.epoch)
            await until(partial(is_closed, old))
            assert opened.resync is None
            await pair.control.send_segment(resync.tap, pair.rng)
        assert len(pair.agent.vms[VM].connections) == 1
        assert pair.agent.vms[VM].point() != resync.tap.position
        released.set()
        await until(lambda: pair.agent.vms[VM].point() == resync.tap.position)
        assert most == 1
        pair.tap = resync.tap
        await pair.check_unharmed()
