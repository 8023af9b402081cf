"""Rounds of a resync over real parts: its log is overrun, and it goes on with what was written (R32, R35)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import primary_agent.compare
import primary_agent.resync
from primary_agent.comparing import Comparing
from primary_agent.forecast import forecast
from primary_agent.replication import Replication
from primary_agent.resync import ResyncDriver
from protocol.messages import RangeSettled, ResyncKind
from protocol.position import NO_EPOCH
from replica_agent.ranges import RangeSet
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import ReplicationState
from shared.tap_control import Tracking
from tests.pair.rig import MIB, WAIT_SECONDS, Pair, pace
from tests.pair.test_pair_maps import stop_the_host

_S = ReplicationState
SIZE = 128 * MIB
WRITTEN = 16 * MIB
"""The writer keeps to the first part of the disk."""
RATE = 24 * MIB
"""Bytes per second that a compare may read, so that it takes a while."""


class Watch:
    """What each round compared and settled, and what was sent; in bytes of disk 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compared: defaultdict[int, RangeSet] = defaultdict(RangeSet)
        self.settled: defaultdict[int, RangeSet] = defaultdict(RangeSet)
        monkeypatch.setattr(primary_agent.compare, "RANGE_BYTES", 4 * MIB)
        compare, take = Comparing._compare_range, Comparing._take_settled

        async def compare_range(driver: Comparing, disk: Any, file: Any, offset: int, length: int) -> None:
            self.compared[driver.resync.round].add(offset, length)
            await compare(driver, disk, file, offset, length)

        def take_settled(driver: Comparing, message: RangeSettled) -> None:
            take(driver, message)
            for run in message.ranges:
                self.settled[message.round].add(run.offset, run.length)

        monkeypatch.setattr(Comparing, "_compare_range", compare_range)
        monkeypatch.setattr(Comparing, "_take_settled", take_settled)

    def twice(self, first: int, later: int) -> int:
        """Bytes outside of what was written that the round ``first`` settled and the round ``later`` compared."""
        return sum(
            max(0, min(ends) - max(WRITTEN, *starts))
            for starts, ends in (
                zip(one, other, strict=True) for one in self.settled[first] for other in self.compared[later]
            )
        )


async def overrun(pair: Pair, rounds: int = 2) -> None:
    """Once a good part is settled, write until the log has been lost and that round of the resync is open."""

    def settled() -> int:
        resync = pair.copy.parts.resync
        return resync.differences.settled_bytes if resync is not None else 0

    await pair.until("a good part", lambda: settled() >= 3 * WRITTEN)
    resync, value = pair.vm.parts.replication.record.resync, 0
    assert resync is not None
    async with asyncio.timeout(WAIT_SECONDS):
        while (now := pair.vm.parts.replication.record.resync) is not None and now.round < rounds:
            value += 1
            await pair.write(0, *(f"write -P {(value + at) % 250 + 1} {at}M 1M" for at in range(WRITTEN // MIB)))
    assert now is not None, "the resynchronization was over before its log was"
    assert (now.id, now.round) == (resync.id, rounds)
    assert now.epoch != resync.epoch
    assert now.former != NO_EPOCH


async def start_resync(pair: Pair, watch: Watch, *, differs: bool = True) -> None:
    """A whole one, of a copy from which half differs, or nothing."""
    await pair.replicate(SIZE, log_limit_bytes=64 * MIB)
    await pace(pair, resync_read_rate=[RATE])
    await pair.vm.parts.tap.require().client.stop_tracking("the test")
    await pair.state(_S.WAITING_FOR_START_RESYNCHRONIZE)
    if differs:
        await pair.write(0, *(f"write -P {at % 250 + 1} {at}M 1M" for at in range(0, SIZE // MIB, 2)))
    await pair.healthy()
    watch.compared.clear()
    watch.settled.clear()
    await pair.vm.resume(resynchronize=True)
    await pair.state(_S.RESYNCHRONIZING)


async def finished(pair: Pair) -> None:
    await pair.state(_S.REPLICATING)
    await pair.assert_same()


async def test_a_log_that_is_overrun_costs_another_round(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id stays, what was settled and not written is not compared again, and both sides are equal."""
    watch = Watch(monkeypatch)
    await start_resync(pair, watch)
    before = [cause.code for cause in pair.vm.parts.replication.record.causes]
    await overrun(pair)
    assert [cause.code for cause in pair.vm.parts.replication.record.causes] == before, "a round needs no cause"
    await finished(pair)
    assert watch.twice(1, 2) == 0
    assert watch.compared[2].covers(0, WRITTEN), "what was written has to be compared again"
    (told,) = await pair.events(EventId.RESYNC_ROUND)
    assert "in round 2" in told["text"]
    assert told["data"]["round"] == 2
    assert 0 < told["data"]["bytes"] <= WRITTEN
    run = pair.vm.parts.replication.runs.newest(1)[0]
    assert (run.rounds, run.result) == (2, "committed")
    assert (await pair.vm.parts.tap.refresh()).doubt is None


@pytest.mark.thorough
async def test_as_many_rounds_as_it_takes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round compares what was written in the last one, and no more."""
    watch = Watch(monkeypatch)
    await start_resync(pair, watch)
    await overrun(pair)
    await overrun(pair, 3)
    await finished(pair)
    assert watch.twice(1, 2) == watch.twice(1, 3) == watch.twice(2, 3) == 0
    assert [event["data"]["round"] for event in await pair.events(EventId.RESYNC_ROUND)] == [2, 3]


async def start_bounded(pair: Pair, watch: Watch) -> None:
    """One of 96 MiB behind what the writer writes, after its log was full while the replica was away."""
    await pair.replicate(SIZE, log_limit_bytes=64 * MIB)
    await pace(pair, resync_read_rate=[RATE])
    await pair.assert_same()
    await pair.replica.stop()
    for at in range(WRITTEN // MIB, 7 * WRITTEN // MIB, 16):
        await pair.write(0, *(f"write -P {at + more + 1} {at + more}M 1M" for more in range(16)))
    await pair.until("the dirty map", lambda: pair.vm.parts.tap.require().tracking is Tracking.MAP)
    watch.compared.clear()
    watch.settled.clear()
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.state(_S.RESYNCHRONIZING)


def scope_files(pair: Pair) -> list[str]:
    return [path.name for path in Path(pair.vm.parts.tap.vm_folder).glob("scope-*")]


@pytest.mark.thorough
@pytest.mark.slow
async def test_late_rounds_of_a_bounded_resync_get_short_too(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R32: from the third on what bounds it is kept, so that the map names the writes of one round alone."""
    watch = Watch(monkeypatch)
    await start_bounded(pair, watch)

    def good_part() -> bool:
        return watch.settled[rounds - 1].bytes >= 3 * WRITTEN

    for rounds in (2, 3, 4):
        await pair.until("a good part", good_part)
        await overrun(pair, rounds)
    await finished(pair)
    run = pair.vm.parts.replication.runs.newest(1)[0]
    assert (run.kind, run.rounds, run.result) == (ResyncKind.BOUNDED.value, 4, "committed")
    assert watch.twice(2, 3) > 0, "until it is kept, what bounds it is compared in each round"
    assert watch.twice(3, 4) == 0
    assert not watch.compared[4].covers(7 * WRITTEN, WRITTEN), "only what was in doubt or written is compared"
    assert scope_files(pair) == []
    assert (await pair.vm.parts.tap.refresh()).doubt is None


@pytest.mark.slow
async def test_bounded_resync_goes_on_from_what_was_kept(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R32, R35: the agent restarts in a round whose map is forgotten: what was kept is all that names the scope."""
    watch = Watch(monkeypatch)
    await start_bounded(pair, watch)
    for rounds in (2, 3):
        await overrun(pair, rounds)
    await pair.until("the round", lambda: watch.settled[3].bytes)
    before = pair.vm.parts.replication.record.resync
    assert before is not None and before.kept_round == 3
    assert (await pair.vm.parts.tap.refresh()).doubt is None, "the tap has let go of it"
    planned = await forecast(pair.vm.parts)
    assert 6 * WRITTEN <= planned.scope_bytes <= 7 * WRITTEN + 2 * MIB, "what is in doubt, and what was written"
    await pair.primary.stop()
    await pair.start_primary()
    now = pair.vm.parts.replication.record.resync
    assert now is not None and (now.id, now.round) == (before.id, 3)
    assert len(scope_files(pair)) == 1
    await finished(pair)
    assert pair.vm.parts.replication.runs.newest(1)[0].rounds == 3
    assert scope_files(pair) == []


async def test_an_initial_replication_has_rounds_as_well(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    await pair.enable(SIZE, log_limit_bytes=64 * MIB)
    await pace(pair, initial_read_rate=[RATE])
    await pair.healthy()
    await pair.vm.initial()
    await overrun(pair)
    await finished(pair)
    assert watch.twice(1, 2) == 0


async def test_a_host_that_stopped_goes_on_in_another_round(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R35: an unclean stop of the primary unsettles its hot regions, and nothing else."""
    watch = Watch(monkeypatch)
    await start_resync(pair, watch, differs=False)
    await pair.until("a good part", lambda: watch.settled[1].bytes >= 3 * WRITTEN)
    resync = pair.vm.parts.replication.record.resync
    assert resync is not None
    await pair.write(0, "write -P 0x77 1M 1M")
    await stop_the_host(pair)
    await pair.start_primary()
    await pair.until("another round", lambda: watch.compared[2].bytes)
    now = pair.vm.parts.replication.record.resync
    assert now is not None
    assert (now.id, now.round) == (resync.id, 2)
    await finished(pair)
    assert watch.settled[2].covers(1 * MIB, MIB)
    assert watch.twice(1, 2) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "step", "side"),
    [
        # The other side at each step is what the simulation goes through.
        (Replication, "change_resync", "primary"),
        pytest.param(ResyncDriver, "begin_tracking", "primary", marks=pytest.mark.thorough),
        (ResyncDriver, "_unsettle", "replica"),
        pytest.param(primary_agent.resync, "forget_map", "primary", marks=pytest.mark.thorough),
        (Comparing, "run", "replica"),
    ],
)
async def test_interrupted_between_any_two_steps(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str, side: str
) -> None:
    """R35: either agent restarts behind a step, and the round goes on: the same resync, equal in the end."""
    watch, reached = Watch(monkeypatch), asyncio.Event()
    original, armed = getattr(owner, step), False

    async def held(*arguments: Any, **more: Any) -> Any:
        result = await original(*arguments, **more)
        if armed:
            reached.set()
            await asyncio.get_running_loop().create_future()
        return result

    async def running(*arguments: Any, **more: Any) -> Any:
        if armed:
            reached.set()
            await asyncio.get_running_loop().create_future()
        return await original(*arguments, **more)

    await start_resync(pair, watch)
    await pair.until("a good part", lambda: watch.settled[1].bytes >= 3 * WRITTEN)
    monkeypatch.setattr(owner, step, running if step == "run" else held)
    resync = pair.vm.parts.replication.record.resync
    assert resync is not None
    armed = True
    for value in range(8):
        await pair.write(0, *(f"write -P {value + at + 1} {at}M 1M" for at in range(WRITTEN // MIB)))
        if reached.is_set():
            break
    async with asyncio.timeout(WAIT_SECONDS):
        await reached.wait()
    armed = False
    if side == "primary":
        await pair.primary.stop()
        await pair.start_primary()
    else:
        await pair.replica.stop()
        await pair.start_replica()
        pair.vm.parts.link.poke.notify()
    await pair.until("the round", lambda: watch.compared[2].bytes)
    now = pair.vm.parts.replication.record.resync
    assert now is not None
    assert (now.id, now.round) == (resync.id, 2)
    await finished(pair)
    assert watch.twice(1, 2) == 0


async def test_cancelled_in_its_second_round_nothing_of_it_stays(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """I7: the point from before is untouched, all rounds are gone, and the next one is whole again."""
    await start_resync(pair, Watch(monkeypatch))
    point = pair.copy.point()
    before = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    await overrun(pair)
    await pair.until("the round there", lambda: pair.copy.parts.resync and pair.copy.parts.resync.record.round == 2)
    resync = pair.copy.parts.resync
    assert resync is not None
    path = Path(resync.differences.path)
    await pair.vm.stop_resync()
    await pair.until("the replica's answer", lambda: pair.copy.parts.resync is None)
    await pair.until("the end of its file", lambda: not path.exists())
    same = Path(pair.copy.parts.layout.disk(0)).read_bytes() == before
    assert same, "the disk was changed"
    assert pair.copy.point() == point
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await finished(pair)


async def test_what_was_sent_is_not_sent_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R35: blocks of a range that was not settled are compared where they lie, in the differencing file."""
    watch = Watch(monkeypatch)
    await start_resync(pair, watch)
    await overrun(pair)
    await finished(pair)
    run = pair.vm.parts.replication.runs.newest(1)[0]
    # Half of the disk differs; what was written again lies in its first part, and a few ranges were on their way.
    assert run.total("sent_bytes") <= SIZE // 2 + 2 * WRITTEN + 8 * MIB
    assert watch.compared[2].bytes > 0
    assert ResyncCause.TRACKING_LOST not in [cause.code for cause in run.causes]
