"""Limits of compares at a time: the queue of the primary, and a replica that has no place yet."""

from __future__ import annotations

import asyncio

from primary_agent.admin import with_settings
from shared.events import EventId
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair

OTHERS = {bytes([number]) * 16 for number in range(3)}


async def test_replica_without_a_place_is_waited_for_without_an_outage(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    before = pair.vm.parts.replication.record.epoch
    taken = pair.replica.surroundings.resyncing
    await pair.until("its own place is free", lambda: not taken)
    taken |= OTHERS
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.until("the queue", lambda: "3 other VM(s)" in getattr(pair.vm.parts.progress, "text", ""))
    assert pair.vm.parts.replication.state is ReplicationState.RESYNCHRONIZING
    status = await pair.vm.status()
    assert status.progress is not None
    assert (status.progress.phase, status.link.attempts, status.link.last_error) == ("waiting", 0, "")
    assert status.problem is None
    pair.vm.parts.link.poke.notify()
    await asyncio.sleep(1)
    assert pair.vm.parts.replication.record.epoch == before
    taken -= OTHERS
    pair.vm.parts.link.poke.notify()
    await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != before)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert not taken
    assert await pair.events(EventId.WILL_RETRY) == []


async def test_one_that_waits_at_this_host_says_its_place(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    await pair.healthy()
    before = pair.vm.parts.replication.record.epoch
    queue = pair.primary.surroundings.queue
    queue.limit = 1
    async with queue.place("mail", lambda: 0, bounded=False, told=lambda _: None):
        given = {"resync_priority": 7}
        await pair.vm.set(with_settings(pair.vm.record, given), given)
        await pair.vm.resume(resynchronize=True)
        await pair.until("the queue", lambda: pair.vm.parts.progress is not None and queue.waiting)
        await pair.until("its text", lambda: "place 1" in getattr(pair.vm.parts.progress, "text", ""))
        status = await pair.vm.status()
        assert status.progress is not None
        assert status.progress.text == "place 1 of 1 in the queue, priority 7; now: mail"
        assert status.settings["resync_priority"] == 7
        assert pair.vm.parts.replication.record.epoch == before
    await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != before)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


async def test_caps_hold_and_are_lifted_while_it_runs(pair: Pair) -> None:
    """At a byte a second nothing would ever end; without a cap it does at once."""
    await pair.replicate(4 * MIB)
    await pair.healthy()
    before = pair.vm.parts.replication.record.epoch
    given = {"resync_read_rate": [1]}
    await pair.vm.set(with_settings(pair.vm.record, given), given)
    await pair.vm.resume(resynchronize=True)
    await pair.until("the compare", lambda: getattr(pair.vm.parts.progress, "phase", "") == "comparing")
    await asyncio.sleep(1)
    assert pair.vm.parts.progress is not None
    assert pair.vm.parts.progress.compared_bytes == 0
    given = {"resync_read_rate": []}
    await pair.vm.set(with_settings(pair.vm.record, given), given)
    await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != before)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    # The log, too.
    given = {"replication_send_rate": [1]}
    await pair.vm.set(with_settings(pair.vm.record, given), given)
    await pair.write(0, "write -P 7 0 1M")
    await pair.until("pending log", lambda: pair.vm.parts.pending_bytes() > MIB // 2)
    await asyncio.sleep(2)
    assert pair.vm.parts.pending_bytes() > MIB // 2
    given = {"replication_send_rate": []}
    await pair.vm.set(with_settings(pair.vm.record, given), given)
    await pair.assert_same()
