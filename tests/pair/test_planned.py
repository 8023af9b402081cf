"""A planned failover with real agents, taps and NBD clients: prepared, failed over, taken back, and cut off on the way.

After each: never do both sides believe that they are the primary (I8), and a planned failover loses nothing.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from primary_agent import planned_orders, planned_session
from primary_agent.vm_status import status_of as primary_status
from replica_agent.points import points_of
from replica_agent.vm_status import status_of
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.states import PlannedStep, ReplicationState
from tests.pair.rig import MIB, Pair
from tests.pair.test_replica_failover import image_of, qemu_io

_S = ReplicationState


def step(pair: Pair) -> PlannedStep | None:
    planned = pair.vm.parts.replication.record.planned
    return planned.step if planned is not None else None


async def at(pair: Pair, wanted: PlannedStep) -> None:
    await pair.until(wanted.value, lambda: step(pair) is wanted)


async def writes(pair: Pair) -> bool:
    """Whether the primary's disk takes a write."""
    code, _ = await qemu_io(pair.uris[0], "write -P 0x77 0 4k", "flush")
    return code == 0


async def proven(pair: Pair) -> None:
    """Both sides have the same digests at the cut that is prepared, and the replica keeps that."""
    planned = pair.vm.parts.replication.record.planned
    assert planned is not None and planned.cut is not None
    await pair.until("a healthy link", pair.vm.parts.link.healthy)
    with pytest.raises(InvalidStateError, match="nothing is sent any more"):
        await pair.vm.verifier.order(repair=True)
    await pair.vm.verifier.order()
    await pair.until("the verify's end", lambda: not pair.vm.verifier.status().running)
    result = pair.vm.verifier.record.last
    assert result is not None and result.outcome == "equal", result
    assert result.cut is not None and result.cut.segment == planned.cut.segment
    newest = points_of(pair.copy).points[0]
    assert newest.cut.segment == planned.cut.segment and newest.proven_time is not None
    assert step(pair) is PlannedStep.CONFIRMED


@pytest.mark.slow
async def test_planned_failover_loses_nothing_and_its_primary_learns_of_it(pair: Pair, tmp_path: Path) -> None:
    """The whole way; the disks take no writes meanwhile, also over a kill of the tap and a restart of the agent."""
    await pair.replicate(4 * MIB, 2 * MIB)
    # Not even the cut of the interval has come: what is written now is sent by the preparation.
    await pair.write(0, "write -P 0x11 1M 1M")
    await pair.write(1, "write -P 0x12 0 64k")
    truth = [pair.disk(index).read_bytes() for index in range(2)]
    client = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "raw", pair.uris[0], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        tap = pair.vm.parts.tap

        def connected() -> bool:
            return tap.connection is not None and any(disk.clients for disk in tap.connection.status.disks)

        while not connected():
            await tap.refresh()
        with pytest.raises(InvalidStateError, match="web runs: clients are connected to its disks .1 of disk0"):
            await planned_orders.prepare(pair.vm)
    finally:
        client.kill()
        await client.communicate()
    while connected():
        await tap.refresh()
    assert step(pair) is None and await writes(pair)
    truth[0] = pair.disk(0).read_bytes()

    await planned_orders.prepare(pair.vm)
    await at(pair, PlannedStep.CONFIRMED)
    assert pair.vm.parts.replication.state is _S.PREPARED_FOR_FAILOVER
    assert not await writes(pair)
    code, output = await qemu_io(pair.uris[0], "read 0 4k")
    assert code != 0 and "can't open" in output, "a VM does not even start on its disks"
    assert await image_of(pair.uris[0], tmp_path) == truth[0], "reads go on"
    await proven(pair)
    await pair.kill_tap()
    await pair.primary.stop()
    await pair.start_primary()
    await pair.until("a session", lambda: pair.vm.parts.link.dialled)
    await proven(pair)
    assert step(pair) is PlannedStep.CONFIRMED and not await writes(pair)
    assert pair.disk(0).read_bytes() == truth[0]
    told = primary_status(pair.vm.parts, pair.vm.folder, None, pair.vm.verifier.status()).planned
    prepared = status_of(pair.copy).planned
    assert told is not None and prepared is not None and prepared.step == "prepared"
    assert (told.cut, told.chain) == (prepared.cut, prepared.chain)

    await pair.copy.failover()
    record = pair.copy.ledger.promotion
    assert record is not None and record.planned is not None
    assert record.parent_segment == record.planned.cut.segment
    status = status_of(pair.copy)
    assert status.planned is not None and "nothing is lost" in status.planned.text
    assert status.failover is not None and status.failover.proven_time is not None
    for uri, content in zip(status.uris, truth, strict=True):
        assert await image_of(uri, tmp_path) == content
    pair.vm.parts.link.poke.notify()
    await pair.state(_S.FAILED_OVER)
    assert step(pair) is PlannedStep.FAILED_OVER and not await writes(pair)
    steps = [event["after"] for event in await pair.events(EventId.PLANNED_FAILOVER)]
    assert steps == ["stopping", "sending", "promised", "confirmed", "failed over"], "each once"
    (fenced,) = await pair.events(EventId.FENCED)
    assert fenced["data"] == {"split_brain": False}
    with pytest.raises(InvalidStateError, match="It was failed over at the replica"):
        await planned_orders.abort(pair.vm, force=True)


@pytest.mark.slow
async def test_preparation_is_taken_back_before_and_after_the_token_has_left(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R43: at once while the token is here, else with the answer of the replica, or by force."""
    await pair.replicate(2 * MIB)
    arrived, go_on = asyncio.Event(), asyncio.Event()
    mint = planned_session.PlannedSession._mint

    async def held(self: planned_session.PlannedSession, cut: object) -> None:
        arrived.set()
        await go_on.wait()
        await mint(self, cut)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(planned_session.PlannedSession, "_mint", held)
        await planned_orders.prepare(pair.vm)
        await arrived.wait()
        assert step(pair) is PlannedStep.SENDING and not await writes(pair)
        await planned_orders.abort(pair.vm, force=False)
        assert step(pair) is PlannedStep.GIVEN_UP and await writes(pair)
        go_on.set()
    assert pair.vm.parts.replication.state is _S.REPLICATING and pair.copy.ledger.prepared is None
    await pair.assert_same()

    await planned_orders.prepare(pair.vm)
    await at(pair, PlannedStep.CONFIRMED)
    with pytest.raises(InvalidStateError, match="suspend"):
        await pair.vm.suspend()
    await planned_orders.abort(pair.vm, force=False)
    await at(pair, PlannedStep.GIVEN_UP)
    assert pair.copy.ledger.prepared is None and pair.vm.parts.replication.state is _S.REPLICATING
    await pair.until("writes", lambda: _taken(pair))
    assert await writes(pair)
    await pair.assert_same()

    await planned_orders.prepare(pair.vm)
    await at(pair, PlannedStep.CONFIRMED)
    await pair.replica.stop()
    await pair.until("a lost link", lambda: pair.vm.parts.link.dialled is None)
    with pytest.raises(InvalidStateError, match="may be at the replica"):
        await planned_orders.abort(pair.vm, force=False)
    assert step(pair) is PlannedStep.CONFIRMED and not await writes(pair)
    await planned_orders.abort(pair.vm, force=True)
    assert step(pair) is PlannedStep.FORCED and await writes(pair)
    (forced,) = await pair.events(EventId.PLANNED_FORCED)
    assert forced["level"] == "error" and "split brain" in forced["text"]
    # The replica holds the token until its primary is heard: a failover by it would be told to lose nothing.
    await pair.start_replica()
    assert pair.copy.ledger.prepared is not None
    pair.vm.parts.link.poke.notify()
    await at(pair, PlannedStep.GIVEN_UP)
    assert pair.copy.ledger.prepared is None
    await pair.assert_same()

    # A failover that crosses an order to take the token back: whichever comes first, one side is the primary.
    await planned_orders.prepare(pair.vm)
    await at(pair, PlannedStep.CONFIRMED)
    await asyncio.gather(pair.copy.failover(), planned_orders.abort(pair.vm, force=False), return_exceptions=True)
    pair.vm.parts.link.poke.notify()
    await pair.state(_S.FAILED_OVER)
    promoted = pair.copy.ledger.promotion
    assert promoted is not None
    assert (promoted.planned is None) == (step(pair) is PlannedStep.GIVEN_UP)
    if promoted.planned is not None:
        assert step(pair) is PlannedStep.FAILED_OVER and not await writes(pair)


def _taken(pair: Pair) -> bool:
    connection = pair.vm.parts.tap.connection
    return connection is not None and connection.status.refused is None
