"""The record of a run on real agents: interrupted by a lost link and a restart of the agent, complete at its end."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from primary_agent.comparing import Comparing
from primary_agent.resync_report import history, plan, report
from shared.events import EventId
from shared.resync_runs import COMMITTED
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair


async def test_the_record_of_a_run_survives_a_lost_link_and_a_restarted_agent(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two disks; after the first one the link is lost, and then the agent ends."""
    await pair.replicate(128 * MIB, 4 * MIB)
    await pair.healthy()
    compare_disk, reached = Comparing._compare_disk, False

    async def held(comparing: Comparing, disk: object, *rest: object) -> None:
        nonlocal reached
        if getattr(disk, "index", None) == 1:
            reached = True
            await asyncio.Event().wait()
        await compare_disk(comparing, disk, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Comparing, "_compare_disk", held)
        await pair.vm.resume(resynchronize=True)
        await pair.until("the second disk", lambda: reached)
        reached = False
        pair.cut_link()
        pair.vm.parts.link.poke.notify()
        await pair.until("the second disk again", lambda: reached)
        (interrupted,) = pair.vm.parts.replication.runs.newest(1)
        await pair.until("the record goes on", lambda: interrupted.interruptions[0].resumed_time)
        await pair.primary.stop()
    await pair.start_primary()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    await pair.until("the merge", lambda: _last_step(pair) == "merged")

    runs = pair.vm.parts.replication.runs.newest(10)
    assert [(run.number, run.kind, run.result) for run in runs] == [(2, "resync", COMMITTED), (1, "initial", COMMITTED)]
    run = runs[0]
    assert run.started_by == "The administrator asked for it."
    assert [cause.code for cause in run.causes] == ["administrator"]
    assert [disk.scope_bytes for disk in run.disks] == [128 * MIB, 4 * MIB]
    # The first disk was compared once: what was settled was not compared again.
    assert [disk.compared_bytes for disk in run.disks] == [128 * MIB, 4 * MIB]
    assert run.total("sent_bytes") == 0
    assert run.read_bytes < run.total("compared_bytes")
    assert run.wire_bytes > 0
    assert 0 < run.compare_seconds <= run.active_seconds
    assert run.interruption_count == 2
    assert run.interruptions[1].reason == "the agent stopped"
    assert all(each.resumed_time is not None for each in run.interruptions)
    names = [step.name for step in run.steps]
    assert names[0] == "sizes checked"
    assert names[1] == "tracking begun"
    assert names[-4:] == ["tracked writes", "committing", "merging", "merged"]
    ended = {step.disk: step.data for step in run.steps if step.name == "compare ended"}
    assert {disk: (data["bytes_compared"], data["result"]) for disk, data in ended.items()} == {
        0: (128 * MIB, "success"),
        1: (4 * MIB, "success"),
    }
    events = [event["data"] for event in await pair.events(EventId.RESYNC_COMPARED)]
    assert events[-1] == {"disk": 1, **ended[1]}


def _last_step(pair: Pair) -> str:
    run = pair.vm.parts.replication.runs.last
    return run.steps[-1].name if run is not None else ""


async def test_plan_and_record_say_the_same_of_a_resync(pair: Pair) -> None:
    """A plan before, the forecast at its start, and what it did: holes are not read, and what is equal is not sent."""
    await pair.replicate(96 * MIB)
    await pair.healthy()
    before = await plan(pair.vm, sample=True)
    assert (before.required, before.may_start, before.obstacle) == (False, True, "")
    assert before.disk_bytes == before.forecast.scope_bytes == 96 * MIB
    assert before.forecast.read_bytes == 32 * MIB
    assert before.forecast.seconds is not None
    assert "resume web --resynchronize" in before.starts
    assert not report(pair.vm).required
    await pair.vm.resume(resynchronize=True)
    await pair.until("its end", lambda: pair.vm.parts.replication.record.causes == [])
    await pair.assert_same()
    run = history(pair.vm, 1).runs[0]
    assert run.forecast is not None
    assert run.forecast.read_bytes == run.read_bytes == 32 * MIB
    assert run.forecast.different_bytes == run.total("sent_bytes") == 0
    # The next one learns from this one.
    after = (await plan(pair.vm, sample=False, blocks=0)).forecast
    assert abs(after.wire_bytes - run.wire_bytes) <= 1
    assert any("median of the last 1 such runs" in line for line in after.basis)


async def test_plan_is_bounded_by_the_map_and_tells_what_is_in_the_way(pair: Pair) -> None:
    await pair.replicate(128 * MIB, log_limit_bytes=64 * MIB)
    await pair.assert_same()
    await pair.replica.stop()
    for _ in range(3):
        await pair.write(0, *(f"write -P {number + 1} {32 + number}M 1M" for number in range(32)))
    await pair.until("the causes", lambda: pair.vm.parts.replication.record.causes)
    await pair.until("the map", lambda: _is_map_complete(pair))
    told = await plan(pair.vm, sample=False)
    assert (told.forecast.kind, told.required, told.may_start) == ("bounded", True, False)
    assert 32 * MIB <= told.forecast.scope_bytes <= 40 * MIB
    assert "connectivity" in told.obstacle
    assert "by itself" in told.starts
    shown = report(pair.vm)
    assert (shown.scope, shown.required, shown.run) == ("what is in doubt", True, None)
    assert [cause.code for cause in shown.causes] == ["tracking_lost"]
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    run = history(pair.vm, 1).runs[0]
    assert (run.kind, run.result) == ("bounded", COMMITTED)
    assert run.total("scope_bytes") == told.forecast.scope_bytes


def _is_map_complete(pair: Pair) -> bool:
    connection = pair.vm.parts.tap.connection
    doubt = connection.status.doubt if connection is not None else None
    return doubt is not None and doubt.complete


async def test_a_plan_asks_the_replica_how_much_differs_and_the_run_shows_how_good_that_was(pair: Pair) -> None:
    """Blocks that differ in a few places, and a run that is foreseen by them; nothing is changed by the question."""
    await pair.replicate(12 * MIB, MIB)
    await pair.assert_same()
    await pair.vm.parts.tap.require().client.stop_tracking("the test")
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.write(0, "write -P 0x41 0 64k", "write -P 0x42 256k 4k", "write -P 0x43 9M 8k")
    await pair.healthy()
    before = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    told = (await plan(pair.vm, sample=False)).forecast
    assert Path(pair.copy.parts.layout.disk(0)).read_bytes() == before
    # 4 MiB and 1 MiB are no holes: all of their blocks were compared.
    assert (told.sampled_blocks, told.sampled_different) == (80, 3)
    assert told.different_low_bytes == told.different_bytes == told.different_high_bytes
    assert told.different_bytes == (64 + 4 + 8) << 10
    few = (await plan(pair.vm, sample=False, blocks=16)).forecast
    assert few.sampled_blocks == 16
    assert few.different_low_bytes is not None and few.different_high_bytes is not None
    assert few.different_low_bytes < few.different_high_bytes
    assert pair.copy.point() is not None and pair.copy.parts.resync is None
    await plan(pair.vm, sample=False)
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    run = history(pair.vm, 1).runs[0]
    assert run.forecast is not None
    assert run.forecast.sampled_blocks == 80
    assert run.forecast.different_bytes == run.total("different_bytes") == told.different_bytes


async def test_a_plan_without_the_replica_says_what_it_rests_on_instead(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    asked = (await plan(pair.vm, sample=False, blocks=0)).forecast
    assert asked.sampled_blocks == 0 and not any("sample:" in line for line in asked.basis)
    await pair.replica.stop()
    told = (await plan(pair.vm, sample=False)).forecast
    assert told.sampled_blocks == 0
    assert any("could not be asked for a sample: localhost" in line for line in told.basis), told.basis
    await pair.start_replica()
    # A replica that does not know the VM, or may not tell of it, gives no sample, and makes no VM for the question.
    await pair.replica.stop()
    shutil.rmtree(pair.folder / "store")
    await pair.start_replica(authorized="somebody else")
    told = (await plan(pair.vm, sample=False)).forecast
    assert any("not authorized" in line for line in told.basis), told.basis
    await pair.replica.stop()
    await pair.start_replica()
