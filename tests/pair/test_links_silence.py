"""The link is there and nothing comes: a black hole, a host that is gone, lost answers, a peer that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primary_agent.admin import with_settings
from protocol.session import PrimarySession
from replica_agent.vm_status import status_of
from shared import channel
from shared.channel import Channel
from shared.events import EventId
from shared.states import ReplicationState
from tests.pair.links import LinkedPair, linked_pair, shorten
from tests.pair.rig import MIB
from tests.pair.watching import Watch


async def test_black_hole(linked: LinkedPair) -> None:
    """N2: both sides notice a peer that is silent, the guest does not, and the first attempt after it succeeds."""
    await linked.replicate(4 * MIB)
    async with Watch() as watch:
        linked.proxy.hold()
        await linked.write(0, "write -s /dev/urandom 0 4M")
        await linked.told("was silent")
        await linked.until("the replica's end of it", lambda: len(linked.copy.connections) == 0)
        # The attempts meanwhile fall into the same hole, and say so.
        for number in range(8):
            await linked.write(0, f"write -s /dev/urandom {number % 4}M 1M")
        await linked.down("does not answer")
        text = await linked.shown()
        assert text.split()[1] == "down" and "does not answer" in text, text
        status = (await linked.vm.status()).link
        assert status.since_time is not None and status.attempts > 0 and status.retryable
        theirs = status_of(linked.copy).link
        assert theirs.since_time is not None and "was silent" in theirs.last_error and not theirs.connected
        linked.proxy.release()
        await linked.ends_well()
        await linked.gave_back(watch)
    watch.assert_flat()
    assert "up" in await linked.shown()


async def test_replica_that_was_started_anew_behind_a_half_open_link(linked: LinkedPair) -> None:
    """N3: the old connection is dead, although nobody said so; its end comes by the deadline, not by a word."""
    await linked.replicate(4 * MIB)
    old = linked.vm.parts.link.dialled
    assert old is not None
    linked.proxy.forget()
    await linked.replica.stop()
    await linked.start_replica()
    await linked.write(0, "write -s /dev/urandom 1M 1M")
    await linked.told("was silent")
    await linked.ends_well()
    new = linked.vm.parts.link.dialled
    assert new is not None and new.channel.session.token != old.channel.session.token


async def test_primary_that_was_started_anew_behind_a_half_open_link(linked: LinkedPair) -> None:
    """N3, R13: the replica ends the connection of the primary that is gone for the one that is there."""
    await linked.replicate(4 * MIB)
    old = linked.copy.connections.control
    assert old is not None
    linked.proxy.hold()
    await linked.primary.stop()
    assert linked.copy.connections.control is old
    linked.proxy.stall()
    linked.proxy.release()
    await linked.start_primary()
    await linked.ends_well()
    assert linked.copy.connections.control is not old
    assert old.channel.closed and len(linked.copy.connections) == 1


async def test_only_the_acknowledgements_are_lost(linked: LinkedPair) -> None:
    """N4: what was not acknowledged is kept, and neither lost nor applied twice."""
    await linked.replicate(4 * MIB)
    await linked.until("an acknowledgement", lambda: linked.vm.parts.replication.acked)
    acknowledged = linked.vm.parts.replication.acked
    linked.proxy.hold(linked.proxy.down)
    for number in range(3):
        await linked.write(0, f"write -s /dev/urandom {number}M 512k", f"write -P {number + 1} 3M 64k")
        # It arrives there, and is applied.
        cut = await linked.cut()
    assert linked.vm.parts.replication.acked == acknowledged
    assert acknowledged is not None and cut.segment > acknowledged.position.segment
    await linked.told("was silent")
    linked.proxy.release()
    await linked.ends_well()


@pytest.fixture
async def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LinkedPair]:
    """The proxy keeps next to nothing, and the replica is patient."""
    shorten(monkeypatch)
    monkeypatch.setattr(channel, "UNREAD_SECONDS", 2.0)
    is_unread = Channel._is_unread

    def by_the_primary(one: Channel, now: float) -> bool:
        return isinstance(one.session, PrimarySession) and is_unread(one, now)

    monkeypatch.setattr(Channel, "_is_unread", by_the_primary)
    async with linked_pair(tmp_path, buffer=8192, replica_dead_after=60.0) as pair:
        yield pair


async def test_peer_that_reads_a_byte_a_second(slow: LinkedPair) -> None:
    """N8: it is cut off although it sends, and until then no more waits for it than the send queue's limit."""
    await slow.replicate(96 * MIB, log_limit_bytes=256 * MIB)
    async with Watch() as watch:
        slow.proxy.up.window, slow.proxy.up.rate = 0, 1.0
        await slow.write(0, *(f"write -s /dev/urandom {16 * number}M 16M" for number in range(6)))
        await slow.told("did not read")
        slow.proxy.order(lambda: setattr(slow.proxy.up, "rate", 0.0))
        slow.proxy.order(lambda: setattr(slow.proxy.up, "window", 1 << 20))
        watch.assert_flat(memory=40 * MIB)
    await slow.ends_well()


async def test_long_delay(linked: LinkedPair) -> None:
    """N7: 300 ms there and back cost time and nothing else, in replication and in a resync."""
    await linked.replicate(8 * MIB)
    linked.proxy.up.delay = linked.proxy.down.delay = 0.15
    linked.proxy.up.window = linked.proxy.down.window = 8 << 20
    linked.proxy.reset()
    await linked.down()
    await linked.write(0, "write -s /dev/urandom 1M 4M")
    await linked.ends_well()
    link = (await linked.vm.status()).link
    assert link.rtt_ms is not None and link.rtt_ms >= 300
    await linked.vm.suspend()
    await linked.vm.resume(resynchronize=True)
    before = linked.vm.parts.replication.record.epoch
    await linked.until("another baseline", lambda: linked.vm.parts.replication.record.epoch != before)
    await linked.ends_well()


async def test_waits_are_ended_by_an_order(linked: LinkedPair) -> None:
    """An administrator who has mended the link need not wait for the next attempt."""
    await linked.replicate(2 * MIB)
    linked.proxy.refusing = True
    linked.proxy.reset()
    await linked.down()
    linked.proxy.refusing = False
    await linked.vm.resume(resynchronize=False)
    await asyncio.sleep(0)
    await linked.ends_well()


@pytest.mark.slow
async def test_hosts_that_beat_at_other_intervals_keep_their_sessions(tmp_path: Path) -> None:
    """The replica waits a second, and the primary beats every five: it told so, and that is no silence.

    Nothing else is sent either: the next cut is far away.
    """
    async with linked_pair(
        tmp_path, heartbeat=5.0, dead_after=15.0, replica_heartbeat=0.5, replica_dead_after=1.0
    ) as pair:
        await pair.enable(8 * MIB)
        given = {"interval_seconds": 60.0}
        await pair.vm.set(with_settings(pair.vm.record, given), given)
        await pair.healthy()
        await pair.vm.initial()
        await pair.state(ReplicationState.REPLICATING)
        opened = pair.vm.parts.link.since
        await asyncio.sleep(4.0)
        assert pair.vm.parts.link.healthy()
        assert pair.vm.parts.link.since == opened
        assert await pair.events(EventId.WILL_RETRY) == []
