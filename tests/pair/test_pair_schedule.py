"""How a required resync starts: modes, windows, times of an administrator's choice, and the gate before each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from typing import Any

import pytest

from primary_agent.admin import with_settings
from primary_agent.record import StartedBy
from shared.channel import Channel
from shared.errors import InvalidStateError, UsageError
from shared.events import EventId
from shared.ports.clock import RealClock
from shared.schedule import ResyncMode
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair
from tests.pair.test_pair_resync import lose_tracking, stop_primary

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()


class SetClock:
    """Turns the wall clock of both hosts."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._wall: Callable[[RealClock], float] = RealClock.wall

    def now(self) -> float:
        return self._wall(RealClock()) + self.ahead

    def set(self, moment: float) -> None:
        self.ahead = moment - self._wall(RealClock())

    def zone(self) -> tzinfo:
        return UTC


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """It is noon of a day in summer."""
    clock = SetClock()
    monkeypatch.setattr(RealClock, "wall", lambda _: clock.now())
    monkeypatch.setattr(RealClock, "zone", lambda _: clock.zone())
    monkeypatch.setattr("primary_agent.starting.CLOCK_POLL_SECONDS", 0.2)
    clock.set(NOON)
    return clock


async def settings(pair: Pair, **given: Any) -> None:
    await pair.vm.set(with_settings(pair.vm.record, given), given)


async def waiting(pair: Pair) -> str:
    return (await pair.vm.status()).waiting


async def resynchronized(pair: Pair, before: bytes) -> None:
    await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != before)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_window_that_is_closed_is_waited_for(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await settings(pair, resync_mode="window", resync_window="18:30-06:00")
    shown = (await pair.vm.status()).settings
    assert (shown["resync_mode"], shown["resync_window_start"], shown["resync_window_end"]) == (
        "window",
        "18:30",
        "06:00",
    )
    await lose_tracking(pair)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    text = await waiting(pair)
    assert "starts at 2026-06-01 18:30 (UTC): the window 18:30-06:00 opens" in text
    status = await pair.vm.status()
    assert text in status.reasons
    await asyncio.sleep(1)
    assert pair.vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    clock.set(NOON + 7 * 3600)
    await resynchronized(pair, before)
    assert await waiting(pair) == ""


async def test_window_that_is_open_starts_it_at_once(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await settings(pair, resync_mode="window", resync_window="11:00-13:00")
    await lose_tracking(pair)
    await resynchronized(pair, before)


async def test_settings_of_the_window_have_to_fit(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await settings(pair, resync_window="18:30-06:00")
    with pytest.raises(UsageError, match="window of .* can't be so"):
        await settings(pair, resync_window_end="18:30")
    assert pair.vm.record.resync_window_end == "06:00"
    await settings(pair, resync_window=None, resync_mode=None)
    shown = (await pair.vm.status()).settings
    assert (shown["resync_mode"], shown["resync_window_end"]) == ("manual", "06:00")


async def test_scheduled_while_replicating_it_replicates_until_then(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await pair.vm.resume(resynchronize=True, at="+2h")
    assert pair.vm.parts.replication.state is ReplicationState.REPLICATING
    assert (await waiting(pair)).startswith("The resynchronization starts at 2026-06-01 14:00")
    await pair.write(0, "write -P 5 0 64k")
    await pair.assert_same()
    assert pair.vm.parts.replication.record.epoch == before
    clock.set(NOON + 2.1 * 3600)
    await resynchronized(pair, before)
    assert pair.vm.parts.replication.record.resync_at is None
    told = [event["text"] for event in await pair.events(EventId.RESYNC_SCHEDULED)]
    assert len(told) == 1
    assert "starts at 2026-06-01 14:00" in told[0]


async def test_schedule_survives_a_restart_and_a_later_order_replaces_it(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await lose_tracking(pair)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.vm.resume(resynchronize=True, at="2026-06-02 02:00")
    await pair.vm.resume(resynchronize=True, at="15:00")
    await stop_primary(pair)
    await pair.start_primary()
    await pair.healthy()
    assert "2026-06-01 15:00" in await waiting(pair)
    await pair.vm.resume(resynchronize=True, at="never")
    assert "when it is ordered" in await waiting(pair)
    await pair.vm.resume(resynchronize=True, at="+1h")
    clock.set(NOON + 1.1 * 3600)
    await resynchronized(pair, before)


async def test_order_now_and_suspension_cancel_what_was_scheduled(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await pair.vm.resume(resynchronize=True, at="+1h")
    await pair.vm.suspend()
    assert pair.vm.parts.replication.record.resync_at is None
    with pytest.raises(InvalidStateError, match="can't be scheduled"):
        await pair.vm.resume(resynchronize=True, at="+1h")
    await pair.vm.resume(resynchronize=False)
    await pair.vm.resume(resynchronize=True, at="+1h")
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    assert pair.vm.parts.replication.record.resync_at is None
    await resynchronized(pair, before)


async def test_times_that_do_not_do_are_refused_with_the_reason(pair: Pair, clock: SetClock) -> None:
    await pair.replicate(4 * MIB)
    for at, reason in (("2026-06-01 11:59", "is past"), ("+8d", "more than 7 days ahead"), ("soon", "is not a time")):
        with pytest.raises(UsageError, match=reason):
            await pair.vm.resume(resynchronize=True, at=at)
    with pytest.raises(UsageError, match="A time is for a resync"):
        await pair.vm.resume(resynchronize=False, at="+1h")
    assert pair.vm.parts.replication.record.resync_at is None


def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """No heartbeat's echo counts from now on; those of before stay."""
    monkeypatch.setattr(Channel, "_take_heartbeat", lambda *_: None)


async def test_an_old_heartbeat_opens_no_gate(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """I20: the link was healthy a moment ago, and nothing gets through any more. An order is refused."""
    await pair.replicate(4 * MIB)
    await pair.healthy()
    deaf(monkeypatch)
    assert pair.vm.parts.link.healthy()
    with pytest.raises(InvalidStateError, match="connectivity to .* is not healthy") as refused:
        await pair.vm.resume(resynchronize=True)
    assert "test-connection" in refused.value.remedy
    assert pair.vm.parts.replication.state is ReplicationState.REPLICATING


async def test_order_between_two_sessions_waits_for_the_next_one(pair: Pair) -> None:
    """I20: a session that ends to be planned anew is no outage, and neither is one that was lost and comes back."""
    await pair.replicate(4 * MIB)
    await pair.healthy()
    before = pair.vm.parts.replication.record.epoch
    link = pair.vm.parts.link
    pair.vm.parts.replication.replan()
    while link.dialled is not None:  # noqa: ASYNC110 - it lasts for a few turns of the loop only
        await asyncio.sleep(0)
    await pair.vm.resume(resynchronize=True)
    await resynchronized(pair, before)
    pair.cut_link()
    await pair.until("the wait after a loss", lambda: link.dialled is None and link.next_attempt is not None)
    before = pair.vm.parts.replication.record.epoch
    await pair.vm.resume(resynchronize=True)
    await resynchronized(pair, before)


async def test_start_by_itself_waits_for_connectivity_and_goes(
    pair: Pair, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I20."""
    await pair.replicate(4 * MIB)
    await pair.healthy()
    before = pair.vm.parts.replication.record.epoch
    await settings(pair, resync_mode="automatic")
    with monkeypatch.context() as patch:
        deaf(patch)
        await lose_tracking(pair)
        await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
        assert "as soon as connectivity to localhost" in await waiting(pair)
        await asyncio.sleep(1)
        assert pair.vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    await resynchronized(pair, before)


async def begin_in_window(pair: Pair, size: int) -> bytes:
    """A resync that the window started, in the middle of its compare. Returns the baseline before."""
    await pair.replicate(size)
    before = pair.vm.parts.replication.record.epoch
    await settings(pair, resync_mode="window", resync_window="11:00-13:00")
    await lose_tracking(pair)
    await pair.until("settled ranges", lambda: settled(pair) > 0)
    assert pair.vm.parts.replication.record.started_by is StartedBy.WINDOW
    return before


def settled(pair: Pair) -> int:
    progress, resync = pair.vm.parts.progress, pair.vm.parts.replication.record.resync
    if progress is None or resync is None or progress.id != resync.id:
        return 0
    return sum(disk.settled_bytes for disk in progress.disks.values())


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compare that lasts: the ranges come one after the other, far apart beside how often the clock is looked at."""
    from primary_agent.comparing import Comparing

    compare, one = Comparing._compare_range, asyncio.Lock()

    async def slowly(comparing: Comparing, *arguments: Any) -> None:
        async with one:
            await asyncio.sleep(0.6)
            await compare(comparing, *arguments)

    monkeypatch.setattr(Comparing, "_compare_range", slowly)


async def test_end_of_the_window_pauses_and_the_next_goes_on(pair: Pair, clock: SetClock, slow: None) -> None:
    before = await begin_in_window(pair, 192 * MIB)
    clock.set(NOON + 3600)
    await pair.until("the rest", lambda: pair.vm.parts.progress is not None and "window" in pair.vm.parts.progress.text)
    done = settled(pair)
    assert 0 < done < 192 * MIB
    assert "opens again at 2026-06-02 11:00" in await waiting(pair)
    resync = pair.vm.parts.replication.record.resync
    assert resync is not None
    await pair.write(0, "write -P 9 1M 64k")
    await asyncio.sleep(0.5)
    assert pair.vm.parts.replication.state is ReplicationState.RESYNCHRONIZING
    assert settled(pair) == done
    clock.set(NOON + 23.5 * 3600)
    await resynchronized(pair, before)
    assert pair.vm.parts.replication.record.epoch == resync.epoch, "the same resync went on"
    compared = [event["data"]["bytes_compared"] for event in await pair.events(EventId.RESYNC_COMPARED)]
    assert compared[-1] <= 192 * MIB - done, "what was settled is not compared again"
    assert len(await pair.events(EventId.RESYNC_PAUSED)) == 2


async def test_rest_ends_by_an_order_and_by_the_setting(pair: Pair, clock: SetClock, slow: None) -> None:
    before = await begin_in_window(pair, 96 * MIB)
    clock.set(NOON + 3600)
    await pair.until("the rest", lambda: pair.vm.parts.progress is not None and "window" in pair.vm.parts.progress.text)
    await pair.vm.resume(resynchronize=False)
    assert pair.vm.parts.replication.record.started_by is StartedBy.ADMINISTRATOR
    await resynchronized(pair, before)


async def test_with_finish_it_goes_on_past_the_window(pair: Pair, clock: SetClock, slow: None) -> None:
    before = await begin_in_window(pair, 96 * MIB)
    await settings(pair, resync_past_window="finish")
    clock.set(NOON + 3600)
    await resynchronized(pair, before)
    assert await pair.events(EventId.RESYNC_PAUSED) == []


async def test_what_an_administrator_started_does_not_rest(pair: Pair, clock: SetClock, slow: None) -> None:
    await pair.replicate(96 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await settings(pair, resync_mode="window", resync_window="13:00-14:00")
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await resynchronized(pair, before)
    assert pair.vm.record.resync_mode is ResyncMode.WINDOW


@pytest.mark.slow
async def test_initial_replication_starts_at_its_time(pair: Pair, clock: SetClock) -> None:
    """WaitingForInitialReplication: over a restart of the agent, put off again, cancelled, and begun by itself."""
    await pair.enable(2 * MIB)
    await pair.healthy()
    with pytest.raises(UsageError):
        await pair.vm.initial(at="+8d")
    await pair.vm.initial(at="13:00")
    assert pair.vm.parts.replication.state is ReplicationState.WAITING_FOR_INITIAL_REPLICATION
    assert await waiting(pair) == "The initial replication of web starts at 2026-06-01 13:00 (UTC)."
    status = await pair.vm.status()
    assert status.summary == "Not protected: initial replication waits for its time."
    assert status.resync_start_time == NOON + 3600
    await pair.vm.initial(at="never")
    await pair.state(ReplicationState.READY_FOR_INITIAL_REPLICATION)
    await pair.vm.initial(at="13:00")
    await pair.vm.initial(at="14:00")
    clock.set(NOON + 3700)
    await stop_primary(pair)
    await pair.start_primary()
    await pair.healthy()
    assert pair.vm.parts.replication.state is ReplicationState.WAITING_FOR_INITIAL_REPLICATION
    clock.set(NOON + 7201)
    await pair.state(ReplicationState.REPLICATING)
    assert pair.vm.parts.replication.record.resync_at is None
    with pytest.raises(InvalidStateError):
        await pair.vm.initial(at="15:00")
    scheduled = await pair.events(EventId.RESYNC_SCHEDULED)
    assert [event["cause"] for event in scheduled] == ["administrator"] * 4
