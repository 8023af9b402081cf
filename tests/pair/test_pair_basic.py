"""The whole way over real parts: enable, initial replication, writes and cuts, breaks, resync, failover."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from primary_agent import dialing, session_loop
from primary_agent.record import AHEAD_TEXT, SPLIT_TEXT
from shared.errors import InvalidStateError, NotFoundError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair, pace, past_the_fence

BLOCK = 64 << 10


@pytest.mark.quick
async def test_initial_replication_and_cuts_over_two_disks(pair: Pair) -> None:
    """I1, I2: at a cut all disks of the VM are what they were here; holes stay holes."""
    await pair.replicate(24 * MIB, 9 * MIB + 512)
    status = await pair.vm.status()
    assert status.state == "Replicating"
    assert status.statistics.initial_replication_bytes == 11 * MIB + 512
    await pair.write(0, "write -P 0x51 1M 300k", "write -z 4M 1M", "discard 7M 1M")
    await pair.write(1, "write -P 0x52 9M 512", "write -P 0x53 1k 3k")
    await pair.assert_same()
    copied = pair.copy.parts.layout.disk(0)
    assert pair.disk(0).stat().st_size == 24 * MIB
    with open(copied, "rb") as file:
        file.seek(4 * MIB)
        assert not any(file.read(MIB))
    status = await pair.vm.status()
    assert (status.health, status.protected) == ("Normal", True), status.reasons
    assert status.summary.startswith("Protected: the replica at beta holds everything up to")
    compared = await pair.events(EventId.RESYNC_COMPARED)
    assert [event["data"]["disk"] for event in compared] == [0, 1]


async def test_writes_during_the_initial_replication_are_part_of_it(pair: Pair) -> None:
    """R6, R7: blocks may be read torn, since what was written meanwhile follows in the log."""
    await pair.enable(64 * MIB)
    await pair.healthy()
    await pair.vm.initial()
    rng = random.Random(1)
    while pair.vm.parts.replication.state is not ReplicationState.REPLICATING:
        await pair.write(0, *(f"write -P {rng.randrange(256)} {rng.randrange(1000)}k 16k" for _ in range(40)))
    await pair.write(0, "write -P 7 1k 1k")
    await pair.assert_same()


async def test_waits_start_anew_after_a_session_that_got_somewhere(pair: Pair) -> None:
    """I12: a link that breaks again and again, but carries cuts between, is not waited for longer and longer."""
    await pair.replicate(4 * MIB)
    link = pair.vm.parts.link
    for number in range(5):
        await pair.write(0, f"write -P {number + 1} 0 64k")
        await pair.assert_same()
        await pair.until("the acknowledgement", lambda: pair.vm.parts.replication.acked)
        pair.cut_link()
        await pair.until("the end of the session", lambda: link.dialled is None and link.next_attempt is not None)
        assert link.attempts == 1
        link.poke.notify()
        await pair.until("another session", lambda: link.dialled)


async def test_a_tap_that_ends_costs_no_wait_for_the_replica(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    for number in range(4):
        await pair.kill_tap()
        await pair.healthy()
        await pair.write(0, f"write -P {number + 1} 0 64k")
    assert pair.vm.parts.link.attempts <= 1
    await pair.assert_same()


async def test_a_broken_link_costs_nothing_but_time(pair: Pair) -> None:
    """I12, R33, R34: the log resumes where the replica stands, also inside a segment."""
    await pair.replicate(16 * MIB)
    epoch = pair.vm.parts.replication.record.epoch
    rng = random.Random(2)
    for _ in range(6):
        await pair.healthy()
        await pair.write(0, *(f"write -P {rng.randrange(256)} {rng.randrange(2000)}k 64k" for _ in range(20)))
        pair.cut_link()
        await pair.write(0, *(f"write -P {rng.randrange(256)} {rng.randrange(2000)}k 64k" for _ in range(20)))
        pair.vm.parts.link.poke.notify()
    await pair.assert_same()
    assert pair.vm.parts.replication.record.epoch == epoch
    assert await pair.events(EventId.RESYNC_REQUIRED) == []


async def test_a_restarted_agent_finds_its_tap_and_goes_on(pair: Pair) -> None:
    """R44: the tap goes on without the agent."""
    await pair.replicate(8 * MIB)
    uri, pid = pair.uris, pair.vm.parts.tap.require().status.pid
    await pair.primary.stop()
    stopped = pair.primary
    await pair.start_primary()
    assert stopped.vms == {}
    assert pair.uris == uri
    await pair.vm.parts.tap.connected()
    assert pair.vm.parts.tap.require().status.pid == pid
    await pair.write(0, "write -P 9 1M 1M")
    await pair.assert_same()


async def test_a_killed_tap_is_started_again_and_nothing_is_lost(pair: Pair) -> None:
    """I3, R26."""
    await pair.replicate(8 * MIB)
    epoch = pair.vm.parts.replication.record.epoch
    for number in range(3):
        await pair.write(0, f"write -P {number + 1} {number}M 900k")
        await pair.kill_tap()
        await pair.write(0, f"write -P {number + 11} {number}M 100k")
    await pair.assert_same()
    assert pair.vm.parts.replication.record.epoch == epoch


async def test_a_restarted_replica_goes_on_from_its_position(pair: Pair) -> None:
    """I5."""
    await pair.replicate(8 * MIB)
    await pair.write(0, "write -P 3 0 1M")
    await pair.replica.stop()
    await pair.write(0, "write -P 4 1M 1M")
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.assert_same()


async def test_order_to_suspend_is_heard_while_it_dials(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """No session stays open that would wait for nothing."""
    await pair.replicate(MIB)
    dial, suspended = dialing.dial, False

    async def slow(*arguments: Any) -> Any:
        nonlocal suspended
        dialled = await dial(*arguments)
        if not suspended:
            suspended = True
            await pair.vm.suspend()
        return dialled

    monkeypatch.setattr(session_loop, "dial", slow)
    link = pair.vm.parts.link
    assert link.dialled is not None
    link.dialled.channel.abort("the test")
    await pair.until("the order", lambda: suspended)
    await pair.until("the end of its session", lambda: link.dialled is None)
    await pair.until("the end of that of the replica", lambda: pair.copy.connections.control is None)
    assert pair.vm.parts.replication.state is ReplicationState.SUSPENDED
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    await pair.cut()


async def test_lost_tracking_requires_a_resync_that_sends_only_what_differs(pair: Pair) -> None:
    """I3, I20: found at once, told with cause and remedy, and cured by one order."""
    await pair.replicate(32 * MIB)
    await pair.write(0, "write -P 5 0 1M")
    await pair.assert_same()
    before = pair.copy.point()
    await pair.vm.parts.tap.require().client.stop_tracking("the test")
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.write(0, "write -P 6 10M 64k", "write -P 7 20M 4k", "discard 6M 1M")
    status = await pair.vm.status()
    assert (status.health, status.protected) == ("Critical", False)
    assert [cause.code for cause in status.causes] == [ResyncCause.TRACKING_OFF]
    assert status.reasons[0].startswith("Resynchronization is required for the virtual machine web.")
    assert status.remedy == "Run `vmreplica resume web --resynchronize`."
    assert pair.copy.point() == before
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    (compared,) = (await pair.events(EventId.RESYNC_COMPARED))[1:]
    assert compared["data"]["blocks_compared"] == 32 * MIB // BLOCK
    # Two blocks were written; of the megabyte that was discarded, all 16 blocks had been random data.
    assert compared["data"]["blocks_sent"] == 18
    assert (await pair.vm.status()).causes == []


async def test_a_resync_is_resumed_where_the_link_broke(pair: Pair) -> None:
    """R35: what is settled at the replica is not compared again."""
    await pair.replicate(256 * MIB)
    await pair.healthy()
    # Slow enough that it is still under way when it is looked at.
    await pace(pair, resync_read_rate=[48 * MIB])
    await pair.vm.resume(resynchronize=True)
    parts = pair.vm.parts
    compared, epochs = 0, set()

    def goes_on() -> bool:
        under_way = parts.link.dialled is not None and parts.replication.record.resync is not None
        return under_way and parts.progress is not None and parts.progress.compared_bytes > compared

    for _ in range(3):
        await pair.until("more progress", goes_on)
        assert parts.progress is not None and parts.replication.record.resync is not None
        compared = parts.progress.compared_bytes
        epochs.add(parts.replication.record.resync.epoch)
        pair.cut_link()
        await asyncio.sleep(0)
        parts.link.poke.notify()
    await pace(pair, resync_read_rate=[])
    await pair.state(ReplicationState.REPLICATING)
    assert epochs == {parts.replication.record.epoch}
    await pair.assert_same()


async def test_suspended_tracks_but_sends_nothing(pair: Pair) -> None:
    await pair.replicate(8 * MIB)
    await pair.vm.suspend()
    await pair.until("no session", lambda: pair.vm.parts.link.dialled is None)
    # What was received before is still applied.
    applier = pair.copy.parts.applier
    await pair.until("all of it applied", lambda: applier.applied is not None and applier.applied == applier.reachable)
    point = pair.copy.point()
    await pair.write(0, "write -P 8 1M 1M")
    connection = pair.vm.parts.tap.require()
    await connection.client.cut("test")
    status = await pair.vm.status()
    assert (status.state, status.health, status.protected) == ("Suspended", "Warning", False)
    assert pair.copy.point() == point
    await pair.vm.resume(resynchronize=False)
    await pair.assert_same()


async def test_the_gate_refuses_with_reason_and_remedy(pair: Pair) -> None:
    """I20."""
    await pair.enable(1 * MIB)
    await pair.healthy()
    await pair.replica.stop()
    await pair.until("the end of the session", lambda: not pair.vm.parts.link.healthy())
    with pytest.raises(InvalidStateError) as refused:
        await pair.vm.initial()
    assert "connectivity to localhost" in refused.value.text
    assert "test-connection" in refused.value.remedy
    with pytest.raises(InvalidStateError, match="initial web"):
        await pair.vm.resume(resynchronize=True)
    assert pair.vm.parts.replication.state is ReplicationState.READY_FOR_INITIAL_REPLICATION
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.healthy()
    await pair.vm.initial()
    await pair.state(ReplicationState.REPLICATING)


async def test_a_primary_is_fenced_by_a_failover_and_sends_nothing_more(pair: Pair) -> None:
    """I8: told where and when, and whether both sides have moved on; only an administrator tries again."""
    await pair.replicate(8 * MIB)
    await pair.write(0, "write -P 1 0 1M")
    await pair.assert_same()
    await pair.copy.failover()
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.FAILED_OVER)
    status = await pair.vm.status()
    assert status.health == "Critical"
    assert "failed over to beta" in status.fenced
    assert "Nothing was written here" in status.fenced
    # Whoever connects now may only read.
    await past_the_fence(pair.vm.parts.tap, lambda: pair.write(0, "write -P 2 0 1M"))
    await pair.vm.parts.tap.refresh()
    status = await pair.vm.status()
    # Whether the other side has some as well depends on how soon its tap told.
    assert (SPLIT_TEXT if status.split_brain else AHEAD_TEXT) in status.fenced
    assert "Do not run the VM here" in status.remedy
    # Whether the failover was undone only the replica can say: it is asked, and nothing is sent.
    for number, resynchronize in enumerate((False, True)):
        await pair.vm.resume(resynchronize=resynchronize)
        await pair.state(ReplicationState.FAILED_OVER)
        assert len(await pair.events(EventId.FENCED)) == 2 + number
    assert pair.vm.parts.link.dialled is None


async def test_a_vm_that_is_removed_leaves_its_disk_and_nothing_else(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    content = pair.disk(0).read_bytes()
    folder, tap = pair.vm.folder, pair.vm.parts.tap
    await pair.primary.remove("web")
    assert pair.disk(0).read_bytes() == content
    assert not (pair.folder / folder).exists()
    with pytest.raises(NotFoundError):
        pair.primary.find("web")
    assert pair.primary.vms == {}
    assert tap.connection is None
    # The disk's lock is free again.
    await pair.enable(4 * MIB)
    await pair.healthy()


async def test_a_damaged_store_stops_its_vm_and_no_other(pair: Pair) -> None:
    """A24."""
    await pair.replicate(4 * MIB)
    folder, uuid = pair.folder / pair.vm.folder, pair.vm.uuid
    tap = pair.vm.parts.tap
    await pair.primary.stop()
    stores = [path for path in folder.iterdir() if path.is_file()]
    for path in stores:
        path.write_bytes(b"\0" * 100)
    assert stores
    await pair.start_primary()
    status = await pair.primary.status()
    (vm,) = status.vms
    assert (vm.uuid, vm.state, vm.health) == (uuid, "Error", "Critical")
    assert vm.remedy
    await pair.primary.remove(uuid)
    assert not folder.exists()
    await tap.stop_tap()
