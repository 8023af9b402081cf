"""A resync that is cancelled, suspended, or asked for again: what is kept, what goes, and when it starts again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from primary_agent.comparing import Comparing
from primary_agent.resync import ResyncDriver
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import ReplicationState
from shared.tap_control import Tracking
from tests.pair.rig import MIB, WAIT_SECONDS, Pair

_S = ReplicationState


class Gate:
    """Holds every compare up before a range of it is compared; ``reached`` tells that one waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: str = "_compare_disks") -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        owner = Comparing if hasattr(Comparing, step) else ResyncDriver
        original = getattr(owner, step)

        async def held(driver: Comparing, *rest: Any) -> Any:
            self.reached.set()
            await self.open.wait()
            return await original(driver, *rest)

        monkeypatch.setattr(owner, step, held)

    async def wait(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            await self.reached.wait()
        self.reached.clear()


def causes(pair: Pair) -> list[str]:
    return [cause.code for cause in pair.vm.parts.replication.record.causes]


def image(pair: Pair) -> bytes:
    return Path(pair.copy.parts.layout.disk(0)).read_bytes()


async def fill_the_log(pair: Pair) -> None:
    """Without the replica, write more than the log's limit: the dirty map takes over."""
    await pair.replica.stop()
    for _ in range(3):
        await pair.write(0, *(f"write -P {number + 1} {32 + number}M 1M" for number in range(32)))
    await pair.state(_S.WAITING_FOR_START_RESYNCHRONIZE)


async def compared(pair: Pair) -> int:
    return sum(event["data"]["bytes_compared"] for event in await pair.events(EventId.RESYNC_COMPARED))


async def test_cancelled_before_its_commit_all_is_as_before(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """I7: disks, points and state; and it waits until somebody asks for it again."""
    await pair.replicate(8 * MIB)
    await pair.write(0, "write -P 3 1M 64k")
    await pair.assert_same()
    await pair.vm.parts.tap.require().client.stop_tracking("the test")
    await pair.state(_S.WAITING_FOR_START_RESYNCHRONIZE)
    before, point, disk, epoch = causes(pair), pair.copy.point(), image(pair), pair.vm.parts.replication.record.epoch
    await pair.healthy()
    # At the cut all blocks have been sent and are settled in the differencing file.
    gate = Gate(monkeypatch, step="cut")
    await pair.vm.resume(resynchronize=True)
    await pair.write(0, "write -P 9 2M 1M")
    await gate.wait()
    assert pair.copy.parts.resync is not None
    assert pair.copy.parts.resync.differences.settled_bytes == 8 * MIB
    path = Path(pair.copy.parts.resync.differences.path)
    assert path.exists()
    await pair.vm.stop_resync()
    record = pair.vm.parts.replication.record
    assert (record.state, record.resync, record.epoch) == (_S.WAITING_FOR_START_RESYNCHRONIZE, None, epoch)
    await pair.until("the replica's answer", lambda: pair.copy.parts.resync is None)
    await pair.until("the end of its file", lambda: not path.exists())
    same = image(pair) == disk
    assert same, "the disk was changed"
    assert pair.copy.point() == point
    assert causes(pair) == before
    assert pair.copy.parts.ledger.replication.state is _S.REPLICATING
    assert (await pair.vm.status()).progress is None
    assert "cancelled" in (await pair.events(EventId.ADMINISTRATOR))[-1]["text"]
    # What was written meanwhile is compared by the next one.
    gate.open.set()
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(_S.REPLICATING)
    await pair.assert_same()
    assert pair.vm.parts.replication.record.stopped_time is None


async def test_a_bounded_one_that_is_cancelled_stays_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """R32: the map, and what was written while the cancelled one ran, bound the next one."""
    await pair.replicate(256 * MIB, log_limit_bytes=64 * MIB)
    await pair.assert_same()
    await fill_the_log(pair)
    before = await compared(pair)
    gate = Gate(monkeypatch)
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await gate.wait()
    # In nobody's map yet: the log of the resync alone knows of it.
    await pair.write(0, "write -P 77 200M 1M")
    await pair.vm.stop_resync()
    await pair.until("the map", lambda: pair.vm.parts.tap.require().tracking is Tracking.MAP)
    assert causes(pair) == [ResyncCause.TRACKING_LOST]
    # By itself it would have started again as soon as the link is healthy.
    await pair.healthy()
    former = pair.vm.parts.link.dialled
    pair.cut_link()
    pair.vm.parts.link.poke.notify()
    await pair.until("another session", lambda: pair.vm.parts.link.dialled not in (None, former))
    await pair.healthy()
    await pair.until("what was dropped at the replica", lambda: pair.copy.parts.resync is None)
    assert pair.vm.parts.replication.state is _S.WAITING_FOR_START_RESYNCHRONIZE
    status = await pair.vm.status()
    assert status.remedy == "Run `vmreplica resume web`."
    assert status.reasons[0].startswith("Resynchronization is required for the virtual machine web. Resume")
    gate.open.set()
    await pair.vm.resume(resynchronize=False)
    await pair.state(_S.REPLICATING)
    await pair.assert_same()
    assert 33 * MIB <= await compared(pair) - before <= 40 * MIB


async def test_cancelled_while_disconnected_the_replica_hears_of_it_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable here first; and a restart of the agent in between changes nothing."""
    await pair.replicate(8 * MIB)
    await pair.healthy()
    gate = Gate(monkeypatch)
    await pair.vm.resume(resynchronize=True)
    await gate.wait()
    await pair.replica.stop()
    await pair.vm.suspend()
    await pair.vm.stop_resync()
    await pair.primary.stop()
    await pair.start_primary()
    await pair.vm.parts.tap.connected()
    await pair.start_replica()
    assert pair.copy.parts.resync is not None
    pair.vm.parts.link.poke.notify()
    await pair.until("the replica's answer", lambda: pair.copy.parts.resync is None)
    assert pair.vm.parts.replication.state is _S.WAITING_FOR_START_RESYNCHRONIZE
    assert causes(pair) == [ResyncCause.ADMINISTRATOR]
    await pair.healthy()
    gate.open.set()
    await pair.vm.resume(resynchronize=False)
    await pair.state(_S.REPLICATING)
    await pair.assert_same()


async def test_after_the_commit_was_proposed_it_is_too_late(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """I7, R33: the replica may have it already."""
    await pair.replicate(8 * MIB)
    await pair.healthy()
    replication = pair.vm.parts.replication
    propose = replication.propose
    refused: list[str] = []

    async def proposed(*arguments: Any) -> None:
        await propose(*arguments)
        with pytest.raises(InvalidStateError, match="can't be cancelled any more") as told:
            await pair.vm.stop_resync()
        refused.append(told.value.text)

    monkeypatch.setattr(replication, "propose", proposed)
    await pair.vm.resume(resynchronize=True)
    await pair.until("the refusal", lambda: refused)
    await pair.state(_S.REPLICATING)
    await pair.assert_same()


async def test_cancelled_in_the_moment_before_it_proposes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """I7: whichever comes first in the store counts; a session that lost that race sends no commit."""
    await pair.replicate(8 * MIB)
    await pair.healthy()
    epoch, replication = pair.vm.parts.replication.record.epoch, pair.vm.parts.replication
    propose, cancelled = replication.propose, asyncio.Event()

    async def late(*arguments: Any) -> None:
        await replication.cancel("the test cancels it")
        cancelled.set()
        await propose(*arguments)

    monkeypatch.setattr(replication, "propose", late)
    await pair.vm.resume(resynchronize=True)
    await pair.until("the cancel", cancelled.is_set)
    await pair.until("the replica's answer", lambda: pair.copy.parts.resync is None)
    assert (replication.record.epoch, replication.record.resync) == (epoch, None)
    assert pair.copy.parts.ledger.replication.epoch == epoch
    monkeypatch.setattr(replication, "propose", propose)
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(_S.REPLICATING)
    await pair.assert_same()


async def test_an_initial_replication_is_cancelled_likewise(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    await pair.enable(8 * MIB)
    await pair.healthy()
    gate = Gate(monkeypatch)
    await pair.vm.initial()
    await gate.wait()
    await pair.vm.stop_resync()
    await pair.until("the replica's answer", lambda: pair.copy.parts.resync is None)
    record = pair.vm.parts.replication.record
    assert (record.state, record.resync) == (_S.READY_FOR_INITIAL_REPLICATION, None)
    await pair.until("the end of its log", lambda: pair.vm.parts.tap.require().tracking is Tracking.OFF)
    gate.open.set()
    await pair.write(0, "write -P 5 1M 64k")
    await pair.healthy()
    await pair.vm.initial()
    await pair.state(_S.REPLICATING)
    await pair.assert_same()


async def test_without_a_compare_there_is_nothing_to_cancel_or_to_continue(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    with pytest.raises(InvalidStateError, match="stop is not possible"):
        await pair.vm.stop_resync()
    with pytest.raises(InvalidStateError, match="resume --continue is not possible"):
        await pair.vm.resume(resynchronize=False, go_on=True)


@pytest.mark.parametrize("go_on", [True, False])
async def test_suspended_it_goes_on_in_place(pair: Pair, monkeypatch: pytest.MonkeyPatch, go_on: bool) -> None:
    """R35: under the same id, and nothing that was settled is compared again."""
    await pair.replicate(192 * MIB)
    await pair.healthy()
    original, begun, held = Comparing._compare_range, 0, True

    async def counted(driver: Comparing, *rest: Any) -> None:
        nonlocal begun
        begun += 1
        if begun > 1 and held:
            await asyncio.Event().wait()
        await original(driver, *rest)

    monkeypatch.setattr(Comparing, "_compare_range", counted)
    await pair.vm.resume(resynchronize=True)
    await pair.until(
        "that they are settled", lambda: pair.copy.parts.resync and pair.copy.parts.resync.differences.settled_bytes
    )
    resync = pair.vm.parts.replication.record.resync
    assert resync is not None
    await pair.vm.suspend()
    assert pair.vm.parts.replication.state is _S.RESYNCHRONIZE_SUSPENDED
    await pair.until("the end of the session", lambda: pair.vm.parts.link.dialled is None)
    opened = pair.copy.parts.resync
    assert opened is not None
    settled, held = opened.differences.settled_bytes, False
    await pair.vm.resume(resynchronize=False, go_on=go_on)
    # Asked for again, it is the same one.
    await pair.vm.resume(resynchronize=True)
    await pair.state(_S.REPLICATING)
    await pair.assert_same()
    assert pair.vm.parts.replication.record.epoch == resync.epoch
    result = (await pair.events(EventId.RESYNC_COMPARED))[-1]["data"]
    assert 0 < settled == 192 * MIB - result["bytes_compared"]


async def test_ordered_although_nothing_is_wrong_it_suspends_first(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.until("its end", lambda: pair.vm.parts.replication.record.causes == [])
    changes = [(event["before"], event["after"]) for event in await pair.events(EventId.STATE_CHANGED)]
    assert changes[-5:] == [
        ("Replicating", "Suspended"),
        ("Suspended", "Replicating"),
        ("Replicating", "WaitingForStartResynchronize"),
        ("WaitingForStartResynchronize", "Resynchronizing"),
        ("Resynchronizing", "Replicating"),
    ]


async def test_an_order_to_a_suspended_vm_does_not_widen_what_is_bounded(pair: Pair) -> None:
    """The administrator's order is no evidence: what the map names is enough."""
    await pair.replicate(256 * MIB, log_limit_bytes=64 * MIB)
    await pair.assert_same()
    before = await compared(pair)
    await fill_the_log(pair)
    await pair.vm.suspend()
    await pair.start_replica()
    await pair.vm.resume(resynchronize=False)
    pair.vm.parts.link.poke.notify()
    await pair.state(_S.REPLICATING)
    await pair.assert_same()
    assert 0 < await compared(pair) - before <= 40 * MIB


async def test_failed_over_before_its_commit_the_point_from_before_is_served(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I7, R14: nothing of what was received of it reaches the disks, and the primary is fenced."""
    await pair.replicate(8 * MIB)
    await pair.write(0, "write -P 3 1M 64k")
    await pair.assert_same()
    await pair.healthy()
    before = image(pair)
    gate = Gate(monkeypatch, step="cut")
    await pair.vm.resume(resynchronize=True)
    await pair.write(0, "write -P 9 2M 1M")
    await gate.wait()
    opened = pair.copy.parts.resync
    assert opened is not None
    path = Path(opened.differences.path)
    await pair.copy.failover()
    gate.open.set()
    await pair.state(_S.FAILED_OVER)
    await pair.until("the end of its file", lambda: not path.exists())
    same = image(pair) == before
    assert same, "the failed over disk is not that of the point"
    with pytest.raises(InvalidStateError, match="stop is not possible"):
        await pair.vm.stop_resync()


async def test_several_causes_are_all_kept_over_a_restart_and_make_it_whole(pair: Pair) -> None:
    """What the map bounds is not enough once the replica has a reason of its own."""
    await pair.replicate(256 * MIB, log_limit_bytes=64 * MIB)
    await pair.assert_same()
    before = await compared(pair)
    await fill_the_log(pair)
    evidence = {"received": "nothing", "log_end": "something"}
    await pair.vm.parts.replication.require_resync(ResyncCause.REPLICA_BEHIND, "It stands too early.", evidence)
    await pair.primary.stop()
    await pair.start_primary()
    await pair.vm.parts.tap.connected()
    kept = pair.vm.parts.replication.record.causes
    assert [cause.code for cause in kept] == [ResyncCause.TRACKING_LOST, ResyncCause.REPLICA_BEHIND]
    assert kept[0].evidence["reason"] == "log_full"
    assert kept[0].evidence["bounded"] is True
    assert kept[1].evidence == evidence
    assert (
        (await pair.vm.status()).reasons[0].startswith("Resynchronization is required for the virtual machine web. R")
    )
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(_S.REPLICATING)
    await pair.assert_same()
    assert await compared(pair) - before == 256 * MIB
