"""Another round of an open resync at the replica: what stays, what is taken back, and what is refused before (R32)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from protocol.messages import BLOCK_SIZE, MAX_SETTLED_RUNS, Commit, ResyncReady, Run, Unsettle, Unsettled, WirePosition
from replica_agent.ranges import RangeSet
from replica_agent.resync import OpenResync
from tests.unit.replica.logs import VM, Tap
from tests.unit.replica.rig import DISKS, Resync, World, check_points, disk_bytes, random_content
from tests.unit.replica.test_sessions import Pair, dialler_of, refusal_of, replicating

FIRST = DISKS[0]


def open_resync(pair: Pair) -> OpenResync:
    resync = pair.agent.vms[VM].parts.resync
    assert resync is not None
    return resync


async def next_round(pair: Pair, before: Resync, epoch: bytes = b"o" * 16) -> tuple[Resync, ResyncReady]:
    """The log of the first round is lost: a new session, and the same resync under another epoch."""
    pair.control.channel.abort()
    pair.control, _ = await pair.dialler.open()
    tap = before.tap.begin(epoch)
    again = Resync(pair.dialler, pair.control, tap, before.identity, before.kind, before.parent, before.round + 1)
    return again, await again.begin()


async def unsettle(pair: Pair, resync: Resync, *runs: Run) -> ResyncReady:
    """Tell it in as many messages as there are runs; what the replica has settled then."""
    for number, run in enumerate(runs):
        last = number == len(runs) - 1
        pair.control.channel.send(Unsettle(id=resync.identity, round=resync.round, ranges=[run], last=last))
    answer = await pair.control.expect(Unsettled)
    assert (answer.id, answer.round) == (resync.identity, resync.round)
    return await pair.control.expect(ResyncReady)


def run(offset: int, length: int, disk: int = FIRST.index) -> Run:
    return Run(disk=disk, offset=offset, length=length)


async def test_a_round_keeps_what_was_received_and_takes_back_what_was_written(world: World) -> None:
    """R32, R35: what is settled and was not written stays so; what was sent is compared where it lies."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        first.tap.content[FIRST.index][0 : 4 * BLOCK_SIZE] = pair.rng.randbytes(4 * BLOCK_SIZE)
        await first.begin()
        await first.compare()
        assert len(first.sent) >= 4
        before, path = disk_bytes(world, FIRST.index), Path(open_resync(pair).differences.path)
        # Its log is lost. Meanwhile one block was written: back to what the point below holds.
        first.tap.content[FIRST.index][BLOCK_SIZE : 2 * BLOCK_SIZE] = before[BLOCK_SIZE : 2 * BLOCK_SIZE]
        second, ready = await next_round(pair, first)
        assert (ready.unsettle, ready.settled, ready.round) == (True, [], 2)
        assert open_resync(pair).state.unsettle
        told = await unsettle(pair, second, run(BLOCK_SIZE, BLOCK_SIZE), run(3 * BLOCK_SIZE, BLOCK_SIZE))
        assert not told.unsettle
        assert {(part.disk, part.offset, part.length) for part in told.settled if part.disk == FIRST.index} >= {
            (FIRST.index, 0, BLOCK_SIZE),
            (FIRST.index, 2 * BLOCK_SIZE, BLOCK_SIZE),
        }
        assert path.exists()
        second.sent.clear()
        await second.compare_range(FIRST, BLOCK_SIZE, BLOCK_SIZE)
        await second.compare_range(FIRST, 3 * BLOCK_SIZE, BLOCK_SIZE)
        assert second.sent == [(FIRST.index, BLOCK_SIZE)], "a stale block was told equal, or one that is there was sent"
        await second.send_tracked(pair.rng)
        await second.commit()
        await pair.control.until_applied(second.tap.position)
        check_points(world, pair.tap, second.tap)


async def test_a_round_survives_a_restart_at_any_step(world: World) -> None:
    """R35: before it has heard all of what was written nothing counts as settled; then it is found as it was told."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        await first.begin()
        await first.compare()
        second, _ = await next_round(pair, first)
        part = Unsettle(id=second.identity, round=2, ranges=[run(0, BLOCK_SIZE)], last=False)
        pair.control.channel.send(part)
        await pair.control.channel.drain()
    async with world.agent() as agent:
        pair = Pair(world, agent, dialler_of(world, agent), pair.control, pair.tap, pair.rng)
        pair.control, opened = await pair.dialler.open()
        assert opened.resync is not None
        assert (opened.resync.round, opened.resync.unsettle) == (2, True)
        again = Resync(pair.dialler, pair.control, second.tap, second.identity, second.kind, second.parent, 2)
        assert (await again.begin()).unsettle
        settled = (await unsettle(pair, again, run(0, BLOCK_SIZE))).settled
    async with world.agent() as agent:
        pair = Pair(world, agent, dialler_of(world, agent), pair.control, pair.tap, pair.rng)
        pair.control, opened = await pair.dialler.open()
        assert opened.resync is not None
        assert not opened.resync.unsettle
        again = Resync(pair.dialler, pair.control, second.tap, second.identity, second.kind, second.parent, 2)
        ready = await again.begin()
        assert (ready.settled, ready.unsettle) == (settled, False)
        await again.compare_range(FIRST, 0, BLOCK_SIZE)
        await again.send_tracked(pair.rng)
        await again.commit()
        await pair.control.until_applied(again.tap.position)


async def test_an_initial_replication_has_rounds(world: World) -> None:
    """Its blocks are on the disks themselves: only what is settled is taken back."""
    tap = Tap(DISKS)
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        pair = Pair(world, agent, dialler, control, tap, random.Random(5))
        random_content(tap, pair.rng)
        first = Resync(dialler, control, tap, b"1" * 16)
        await first.begin()
        await first.compare()
        await first.send_tracked(pair.rng)
        log = f"spool/{tap.epoch.hex()}-*"
        assert list(world.folder_of().glob(log))
        tap.content[FIRST.index][0:BLOCK_SIZE] = bytes(BLOCK_SIZE)
        second, ready = await next_round(pair, first)
        assert ready.unsettle
        assert not list(world.folder_of().glob(log)), "the log of the round before stays"
        everything = [run(0, disk.size, disk.index) for disk in DISKS]
        assert (await unsettle(pair, second, *everything)).settled == []
        await second.compare()
        await second.send_tracked(pair.rng)
        await second.commit()
        await pair.control.until_applied(second.tap.position)
        check_points(world, second.tap)


@pytest.mark.parametrize("what", ["question", "holes", "commit"])
async def test_nothing_is_compared_before_all_is_told(world: World, what: str) -> None:
    """R32: a primary that forgets to tell what was written gets no answer, and no commit."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        await first.begin()
        await first.compare()
        second, _ = await next_round(pair, first)
        assert second.bulk is not None
        side = second.bulk
        if what == "question":
            side.channel.send(second.request(FIRST.index, 0, BLOCK_SIZE))
        elif what == "holes":
            side.channel.send(second.holes(FIRST.index, 0, BLOCK_SIZE))
        else:
            side = pair.control
            await second.send_tracked(pair.rng)
            end = WirePosition.of(second.tap.position)
            side.channel.send(Commit(id=second.identity, round=2, end=end))
        assert (await refusal_of(side)).code == "state"
        await pair.check_unharmed()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 3}, "stale"),
        ({"id": b"x" * 16}, "stale"),
        ({"ranges": [run(512, BLOCK_SIZE)]}, "protocol"),
        ({"ranges": [run(0, BLOCK_SIZE, disk=9)]}, "protocol"),
    ],
    ids=["round", "resync", "no blocks", "no disk"],
)
async def test_wrong_ranges_are_refused(world: World, changes: dict[str, object], code: str) -> None:
    """R23."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        await first.begin()
        second, _ = await next_round(pair, first)
        body: dict[str, object] = {"id": second.identity, "round": 2, "ranges": [run(0, BLOCK_SIZE)], "last": True}
        pair.control.channel.send(Unsettle(**{**body, **changes}))  # type: ignore[arg-type]
        assert (await refusal_of(pair.control)).code == code
        await pair.check_unharmed()


async def test_told_twice_is_refused(world: World) -> None:
    """What counts as settled since then must not be taken back by a message that comes late."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        await first.begin()
        second, _ = await next_round(pair, first)
        await unsettle(pair, second, run(0, BLOCK_SIZE))
        pair.control.channel.send(Unsettle(id=second.identity, round=2, ranges=[], last=True))
        assert (await refusal_of(pair.control)).code == "state"


async def test_an_earlier_round_begins_anew(world: World) -> None:
    """A primary whose state was brought back: nothing of a later round counts for it."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        await first.begin()
        await first.compare()
        second, _ = await next_round(pair, first)
        await unsettle(pair, second, run(0, BLOCK_SIZE))
        pair.control.channel.abort()
        pair.control, _ = await pair.dialler.open()
        back = Resync(pair.dialler, pair.control, first.tap, first.identity, first.kind, first.parent)
        ready = await back.begin()
        assert (ready.round, ready.settled, ready.unsettle) == (1, [], False)
        assert Path(open_resync(pair).differences.path).exists()
        await back.compare_range(FIRST, 0, BLOCK_SIZE)


async def test_many_settled_ranges_are_all_told(world: World) -> None:
    """R35: what is settled is told in as many messages as that takes."""
    async with replicating(world) as pair:
        first = pair.next_resync()
        await first.begin()
        settled = RangeSet()
        for number in range(MAX_SETTLED_RUNS + 3):
            settled.add(2 * number * BLOCK_SIZE, BLOCK_SIZE)
        open_resync(pair).differences.settled[FIRST.index] = settled
        parts = open_resync(pair).ready()
        assert [part.more for part in parts] == [True, False]
        told = [(part.offset, part.offset + part.length) for message in parts for part in message.settled]
        assert told == list(settled)
