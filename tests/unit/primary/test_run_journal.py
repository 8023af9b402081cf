"""The durable record of runs: what begins, interrupts and ends one, what is counted, and what a lost agent leaves."""

from __future__ import annotations

from datetime import UTC, tzinfo
from typing import Any

import msgspec
import pytest

from primary_agent.progress import COMPARING, MERGING, TRACKED_WRITES, TRACKING_BEGUN, WAITING, ResyncProgress
from primary_agent.record import ResyncRecord
from primary_agent.replication import Replication
from primary_agent.run_journal import PREFIX, RUNS_KEPT
from protocol.messages import ResyncKind
from protocol.position import Position
from shared.events import EventId
from shared.planning import ResyncCause
from shared.resync_runs import CANCELLED, COMMITTED, FAILED_OVER, RESTARTED, Forecast
from shared.states import PrimaryEvent
from tests.unit.primary.test_replication import World, replicating

MIB = 1 << 20
FIRST, SECOND = b"2" * 16, b"3" * 16


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def boot_id(self) -> str:
        return "boot"

    def zone(self) -> tzinfo:
        return UTC


def record(identity: bytes = b"r" * 16, epoch: bytes = FIRST, kind: ResyncKind = ResyncKind.RESYNC) -> ResyncRecord:
    return ResyncRecord(id=identity, kind=kind, epoch=epoch, parent=b"1" * 16, parent_segment=3, started_time=5.0)


def shown(replication: Replication, resync: ResyncRecord, clock: Clock | None = None) -> ResyncProgress:
    """The progress of a session on it."""
    geometry = list(replication.vm.geometry)
    progress = ResyncProgress.of(resync.id, resync.kind, resync.epoch, geometry, 5.0, clock or Clock())
    replication.runs.follow(progress)
    return progress


async def resynchronizing(world: World) -> Replication:
    """A resync that an administrator asked for is open."""
    replication = await replicating(world)
    await replication.require_resync(ResyncCause.GAP, "A cut is missing.", {"expected": 5})
    await replication.transition(PrimaryEvent.RESYNC_STARTED, "the administrator asked for it")
    await replication.begin_resync(record())
    return replication


def compare_some(progress: ResyncProgress, offset: int = 0) -> None:
    """Half of a disk of 1 MiB, of which 64 KiB differ."""
    progress.enter(COMPARING)
    progress.range_compared(0, offset, MIB // 2, [(offset, 65536)], 131072)
    progress.blocks_sent(0, 65536)
    progress.range_sent(0, offset, MIB // 2)
    progress.range_settled(0, offset, MIB // 2)


async def test_the_initial_replication_is_a_run(world: World) -> None:
    replication = await replicating(world)
    (run,) = replication.runs.newest(10)
    assert (run.number, run.kind, run.result, run.started_by) == (1, "initial", COMMITTED, "asked")
    assert run.ended_time is not None


async def test_a_run_is_begun_and_ended_with_the_record_it_belongs_to(world: World) -> None:
    replication = await resynchronizing(world)
    run = replication.runs.open
    assert run is not None
    assert (run.id, run.epoch, run.kind, run.result) == ((b"r" * 16).hex(), FIRST.hex(), "resync", "")
    assert run.started_by == "the administrator asked for it"
    assert [(cause.code, cause.evidence) for cause in run.causes] == [("gap", {"expected": 5})]
    assert [step.name for step in run.steps] == ["sizes checked"]
    await replication.propose(Position(FIRST, 3, 30, b"c" * 16))
    await replication.adopt("confirmed")
    assert replication.runs.open is None
    again = (await world.reopen()).runs
    assert again.open is None
    assert again.last is not None
    assert again.last == run
    assert (again.last.result, again.last.causes[0].code) == (COMMITTED, "gap")


async def test_a_round_is_a_step_of_the_same_run(world: World) -> None:
    """R32: it commits under the epoch of its last round."""
    replication = await resynchronizing(world)
    second = msgspec.structs.replace(record(), epoch=b"2" * 16, round=2, former=FIRST)
    await replication.change_resync(second)
    run = replication.runs.open
    assert run is not None
    assert (run.rounds, run.epoch) == (2, second.epoch.hex())
    assert [(step.name, step.data) for step in run.steps][-1] == ("another round", {"round": 2})
    await replication.propose(Position(second.epoch, 4, 5, bytes(16)))
    await replication.adopt("the replica confirmed the commit")
    newest = replication.runs.newest(1)[0]
    assert (newest.result, newest.rounds) == (COMMITTED, 2)


async def test_what_is_counted_survives_in_the_middle_of_a_run(world: World) -> None:
    """Written with an event of a step; the next process counts on from there."""
    replication = await resynchronizing(world)
    compare_some(shown(replication, record()))
    data = {"disk": 0, "blocks_compared": 8, "blocks_sent": 1, "seconds": 0.5}
    await replication.note(replication.event(EventId.RESYNC_COMPARED, "compared", data=data))
    replication = await world.reopen()
    run = replication.runs.open
    assert run is not None
    (disk,) = run.disks
    assert (disk.compared_bytes, disk.different_bytes, disk.sent_bytes) == (MIB // 2, 65536, 65536)
    assert (disk.settled_bytes, disk.hole_bytes, run.read_bytes) == (MIB // 2, 131072, MIB // 2 - 131072)
    assert (run.steps[-1].name, run.steps[-1].disk) == ("compare ended", 0)
    assert run.steps[-1].data == {"blocks_compared": 8, "blocks_sent": 1, "seconds": 0.5}
    # The agent ended without a word: since the last time that something was written.
    (interruption,) = run.interruptions
    assert (interruption.reason, interruption.time) == ("the agent ended", run.kept_time)
    assert interruption.resumed_time is None
    clock = Clock()
    clock.now = interruption.time + 60
    compare_some(shown(replication, record(), clock), MIB // 2)
    (counted,) = replication.runs.newest(1)
    assert (counted.disks[0].compared_bytes, counted.disks[0].sent_bytes) == (MIB, 131072)
    assert counted.interruptions[0].resumed_time == clock.now
    assert counted.interruption_count == 1


async def test_time_is_that_of_sessions_at_work(world: World) -> None:
    replication = await resynchronizing(world)
    clock = Clock()
    progress = shown(replication, record(), clock)
    progress.enter(WAITING, "others run first")
    clock.now += 100
    progress.enter("starting")
    clock.now += 1
    progress.reached(TRACKING_BEGUN)
    progress.enter(COMPARING)
    clock.now += 10
    progress.enter(TRACKED_WRITES)
    clock.now += 2
    progress.settle()
    clock.now += 1000
    (run, _) = replication.runs.newest(5)
    assert (run.active_seconds, run.compare_seconds) == (13.0, 10.0)
    assert [step.name for step in run.steps] == ["sizes checked", "tracking begun", "tracked writes"]
    progress.enter(COMPARING)
    clock.now += 5
    (run, _) = replication.runs.newest(5)
    assert (run.active_seconds, run.compare_seconds) == (18.0, 15.0)


async def test_one_interruption_until_it_goes_on(world: World) -> None:
    replication = await resynchronizing(world)
    clock = Clock()
    progress = shown(replication, record(), clock)
    progress.enter(COMPARING)
    await replication.transition(PrimaryEvent.SUSPENDED, "the administrator asked for it")
    replication.runs.interrupt("the session ends")
    run = replication.runs.open
    assert run is not None
    assert [each.reason for each in run.interruptions] == ["suspended: the administrator asked for it"]
    assert run.interruptions[0].resumed_time is None
    progress.settle()
    clock.now = run.interruptions[0].time + 60
    progress.enter(COMPARING)
    replication.runs.collect()
    assert run.interruptions[0].resumed_time == clock.now


@pytest.mark.parametrize(
    "event, changes, result",
    [
        (PrimaryEvent.RESYNC_CANCELLED, {"resync": None}, CANCELLED),
        (PrimaryEvent.FENCED, {"fenced": "elsewhere"}, FAILED_OVER),
        (PrimaryEvent.RESYNC_REQUIRED, {"resync": None}, RESTARTED),
        (PrimaryEvent.RESYNC_REQUIRED, {"resync": record(b"s" * 16, SECOND)}, RESTARTED),
    ],
)
async def test_how_a_run_ends(world: World, event: PrimaryEvent, changes: dict[str, Any], result: str) -> None:
    replication = await resynchronizing(world)
    run = replication.runs.open
    await replication.transition(event, "the test", **changes)
    assert run is not None
    assert run.result == result
    fresh = replication.runs.open
    assert (fresh is not None) is isinstance(changes.get("resync"), ResyncRecord)
    if fresh is not None:
        assert (fresh.number, fresh.epoch, fresh.disks) == (run.number + 1, SECOND.hex(), [])


async def test_the_merge_is_noted_once_and_of_this_run_only(world: World) -> None:
    replication = await resynchronizing(world)
    progress = shown(replication, record())
    await replication.propose(Position(FIRST, 3, 30, b"c" * 16))
    progress.enter(MERGING)
    await replication.adopt("confirmed")
    for epoch in (b"1" * 16, FIRST, FIRST):
        replication.runs.merged(epoch)
    await replication.store_runs()
    run = (await world.reopen()).runs.last
    assert run is not None
    assert [step.name for step in run.steps] == ["sizes checked", "merging", "merged"]


async def test_only_the_newest_runs_are_kept(world: World) -> None:
    replication = await resynchronizing(world)
    for number in range(RUNS_KEPT + 5):
        await replication.update(resync=record(number.to_bytes(16), SECOND))
    assert len(replication.store.names(PREFIX)) == RUNS_KEPT
    runs = (await world.reopen()).runs.newest(1000)
    assert len(runs) == RUNS_KEPT
    assert [run.number for run in runs] == sorted((run.number for run in runs), reverse=True)
    assert runs[0].result == ""
    assert {run.result for run in runs[1:]} == {RESTARTED}


async def test_steps_and_interruptions_are_bounded(world: World) -> None:
    replication = await resynchronizing(world)
    run = replication.runs.open
    assert run is not None
    clock = Clock()
    clock.now = 1e12
    progress = shown(replication, record(), clock)
    for number in range(1000):
        clock.now += 1
        progress.reached(f"step {number}")
        progress.settle()
        progress.enter(COMPARING)
        replication.runs.interrupt(f"cut {number}", at=clock.now)
    assert len(run.steps) <= 256
    assert len(run.interruptions) <= 32
    assert run.interruption_count == 1000
    assert (run.steps[0].name, run.steps[-1].name) == ("sizes checked", "step 999")
    assert (run.interruptions[0].reason, run.interruptions[-1].reason) == ("cut 0", "cut 999")


async def test_a_forecast_stays_with_its_run(world: World) -> None:
    replication = await resynchronizing(world)
    replication.runs.forecast(Forecast(kind="resync", wire_bytes=77))
    await replication.store_runs()
    run = (await world.reopen()).runs.open
    assert run is not None
    assert run.forecast is not None
    assert run.forecast.wire_bytes == 77


async def test_a_run_that_cannot_be_read_is_left_out(world: World) -> None:
    replication = await replicating(world)
    (name,) = replication.store.names(PREFIX)
    await replication.store.commit({name: {"number": "one"}})
    replication = await world.reopen()
    assert replication.runs.newest(5) == []
    await replication.order_resync("asked")
    await replication.begin_resync(record())
    assert replication.runs.open is not None
    assert replication.runs.open.number == 2
