"""When a resync is required, how it begins, and that it starts anew where tracking was lost under it."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primary_agent import starting
from primary_agent.admin import with_settings
from primary_agent.starting import Starting
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import ReplicationState
from tests.pair.rig import MIB, WAIT_SECONDS, Pair


async def lose_tracking(pair: Pair) -> None:
    await pair.vm.parts.tap.require().client.stop_tracking("the test")


def causes(pair: Pair) -> list[str]:
    return [cause.code for cause in pair.vm.parts.replication.record.causes]


async def test_with_the_setting_a_required_resync_begins_by_itself(pair: Pair) -> None:
    """I12, I20."""
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await pair.vm.set(with_settings(pair.vm.record, {"resync_mode": "automatic"}), {"resync_mode": "automatic"})
    await lose_tracking(pair)
    await pair.write(0, "write -P 3 1M 64k")
    await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != before)
    await pair.assert_same()
    changes = [(event["before"], event["after"]) for event in await pair.events(EventId.STATE_CHANGED)]
    assert changes[-3:] == [
        ("Replicating", "WaitingForStartResynchronize"),
        ("WaitingForStartResynchronize", "Resynchronizing"),
        ("Resynchronizing", "Replicating"),
    ]


async def test_without_the_setting_it_waits_for_its_administrator(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await pair.until("the merge", pair.copy.point)
    point = pair.copy.point()
    await lose_tracking(pair)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    # Another session, which could begin one as well.
    await pair.healthy()
    former = pair.vm.parts.link.dialled
    pair.cut_link()
    pair.vm.parts.link.poke.notify()
    # The next session may be there at once.
    await pair.until("the end of the session", lambda: pair.vm.parts.link.dialled is not former)
    pair.vm.parts.link.poke.notify()
    await pair.healthy()
    assert pair.vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    assert pair.copy.point() == point


async def test_order_that_comes_while_the_tap_is_asked_is_not_missed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I12: a session that waits for an order asks the tap now and then, and the order may fall into that moment."""
    await pair.replicate(4 * MIB)
    is_bounded, ordered = Starting.is_bounded, False

    async def ordered_meanwhile(waiting: Starting) -> bool:
        nonlocal ordered
        answer = await is_bounded(waiting)
        if not ordered:
            ordered = True
            await pair.healthy()
            await pair.vm.resume(resynchronize=True)
        return answer

    monkeypatch.setattr(Starting, "is_bounded", ordered_meanwhile)
    await lose_tracking(pair)
    await pair.until("the order", lambda: ordered)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_suspended_and_resumed_with_a_resync_it_begins_as_soon_as_it_can(pair: Pair) -> None:
    """I20: asked for while there was no link, it is scheduled and waits."""
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    await pair.vm.suspend()
    await pair.replica.stop()
    await pair.vm.resume(resynchronize=True)
    assert pair.vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != before)
    await pair.state(ReplicationState.REPLICATING)
    assert not pair.vm.parts.replication.record.resync_wanted
    await pair.assert_same()


async def test_two_orders_at_once_are_one_resync(pair: Pair) -> None:
    """I12: the second one found the first half carried out, and the session was never told of either."""
    await pair.replicate(4 * MIB)
    epoch = pair.vm.parts.replication.record.epoch
    orders = [pair.vm.resume(resynchronize=True) for _ in range(2)]
    assert [result for result in await asyncio.gather(*orders, return_exceptions=True) if result is not None] == []
    await pair.until("the resync", lambda: pair.vm.parts.replication.record.epoch != epoch)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_a_forced_resync_compares_everything_and_sends_nothing_that_is_equal(pair: Pair) -> None:
    await pair.replicate(16 * MIB)
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.until("its end", lambda: pair.vm.parts.replication.record.causes == [])
    await pair.assert_same()
    result = (await pair.events(EventId.RESYNC_COMPARED))[-1]["data"]
    assert (result["bytes_compared"], result["bytes_sent"]) == (16 * MIB, 0)


async def test_a_replica_that_was_brought_back_to_an_earlier_state_is_noticed(pair: Pair) -> None:
    """I10: it would resume from where it stands, but it had acknowledged more."""
    await pair.replicate(4 * MIB)
    await pair.write(0, "write -P 1 0 1M")
    await pair.assert_same()
    await pair.replica.stop()
    store, kept = pair.folder / "store", pair.folder / "kept"
    shutil.copytree(store, kept)
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.write(0, "write -P 2 0 1M")
    await pair.assert_same()
    await pair.vm.parts.replication.store_progress()
    await pair.replica.stop()
    shutil.rmtree(store)
    kept.rename(store)
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    # The replica may find by itself that its disks are not the files it left.
    assert set(causes(pair)) <= {
        ResyncCause.REPLICA_REVERTED,
        ResyncCause.REPLICA_BEHIND,
        ResyncCause.REPLICA_REQUEST,
    }
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_a_replica_that_lost_its_copy_gets_a_whole_one(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await pair.replica.stop()
    shutil.rmtree(pair.folder / "store")
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    assert causes(pair) == [ResyncCause.REPLICA_EMPTY]
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_a_primary_that_was_brought_back_to_an_earlier_state_is_noticed(pair: Pair) -> None:
    """R34: the replica stands where this log never was."""
    await pair.replicate(4 * MIB)
    await pair.write(0, "write -P 1 0 1M")
    await pair.assert_same()
    folder = Path(pair.vm.folder)
    kept = pair.folder / "kept"
    await stop_primary(pair)
    shutil.copytree(folder, kept)
    disk = pair.disk(0).read_bytes()
    await pair.start_primary()
    await pair.vm.parts.tap.connected()
    await pair.write(0, "write -P 2 0 1M")
    await pair.assert_same()
    await stop_primary(pair)
    shutil.rmtree(folder)
    kept.rename(folder)
    pair.disk(0).write_bytes(disk)
    await pair.start_primary()
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    # The tap notices that its disk is not as it left it, or the session that its log is too short.
    assert set(causes(pair)) <= {ResyncCause.TRACKING_LOST, ResyncCause.PRIMARY_REVERTED}
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def stop_primary(pair: Pair) -> None:
    """Stop the agent, and its tap in order."""
    tap = pair.vm.parts.tap
    await pair.primary.stop()
    await tap.stop_tap()


async def test_an_order_is_heard_while_the_session_asks_the_tap(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that waits for the order asks the tap whether it needs one: the order may come in that moment."""
    await pair.replicate(4 * MIB)
    asking, answer = asyncio.Event(), asyncio.Event()

    async def is_bounded(*_arguments: object) -> bool:
        asking.set()
        await answer.wait()
        return False

    monkeypatch.setattr(starting, "is_bounded", is_bounded)
    await lose_tracking(pair)
    async with asyncio.timeout(WAIT_SECONDS):
        await asking.wait()
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    answer.set()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_a_resync_whose_tracking_is_lost_starts_anew_and_ends(pair: Pair) -> None:
    """R10: what was compared before the loss proves nothing."""
    await pair.replicate(192 * MIB)
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.until("the resync's epoch", lambda: pair.vm.parts.replication.record.resync)
    first = pair.vm.parts.replication.record.resync
    assert first is not None
    await pair.until("tracking", lambda: pair.vm.parts.tap.require().tracks(first.epoch))
    await lose_tracking(pair)
    await pair.write(0, "write -P 9 5M 64k")
    if pair.vm.parts.replication.record.epoch != first.epoch:
        await pair.state(ReplicationState.REPLICATING)
        assert pair.vm.parts.replication.record.epoch != first.epoch
    else:
        # It had committed already: then the loss requires another one.
        await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
        await pair.healthy()
        await pair.vm.resume(resynchronize=True)
        await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_a_block_that_cannot_be_read_stops_the_resync_by_name(pair: Pair) -> None:
    """R24."""
    await pair.replicate(4 * MIB)
    await pair.healthy()
    # A record that promises more than the file has: reading its end fails as a bad sector does.
    replication = pair.vm.parts.replication
    disk = replication.vm.disks[0]
    missing = pair.folder / "missing.raw"
    replication.vm = msgspec.structs.replace(replication.vm, disks=[msgspec.structs.replace(disk, path=str(missing))])
    await pair.vm.resume(resynchronize=True)
    await pair.until("the failure", lambda: replication.record.problem)
    status = await pair.vm.status()
    assert status.problem is not None
    assert status.problem.code == "block_unreadable"
    assert f"Disk 0 ({missing}) can't be read at bytes 0 to" in status.problem.text
    assert status.state == "Resynchronizing"
    replication.vm = msgspec.structs.replace(replication.vm, disks=[disk])
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert replication.record.problem is None


async def test_the_agent_tells_when_its_certificate_ends(pair: Pair) -> None:
    end = (await pair.primary.status()).certificate_not_after_time
    assert end is not None
    assert end - time.time() == pytest.approx(825 * 86400, abs=86400)


def test_the_words_of_causes_never_change() -> None:
    words: dict[str, Any] = {cause.name: cause.value for cause in ResyncCause}
    assert words == {name: name.lower() for name in words}
