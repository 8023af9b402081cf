"""A disk that is resized while its VM runs: noticed, told with the way out, not taken for what it was (R20, P19)."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primary_agent.comparing import Comparing
from primary_agent.resizing import take_sizes
from primary_agent.resync_report import history
from replica_agent.disks import BaseDisks
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.resync_runs import COMMITTED, RESTARTED
from shared.schedule import ResyncMode
from shared.states import ReplicationState
from shared.status import VmStatus
from tests.pair.rig import WAIT_SECONDS, Pair
from tests.pair.test_pair_identity import stop_primary

MIB = 1 << 20
SIZE = 4 * MIB


async def resized(pair: Pair, size: int) -> VmStatus:
    """Give the disk's file another size; the status once that is told. Nobody writes, and no order is given."""
    told = len(await resize_events(pair))
    os.truncate(pair.disk(0), size)
    deadline = time.monotonic() + WAIT_SECONDS
    while len(await resize_events(pair)) == told:
        assert time.monotonic() < deadline, await pair.vm.status()
        await asyncio.sleep(0.05)
    return await pair.vm.status()


async def resize_events(pair: Pair) -> list[dict[str, object]]:
    return [event["data"] for event in await pair.events(EventId.DISK_RESIZED)]


async def test_a_disk_made_larger_goes_on_at_its_size(pair: Pair) -> None:
    await pair.replicate(SIZE, MIB)
    await pair.write(0, "write -P 1 0 1M")
    await pair.assert_same()
    status = await resized(pair, SIZE + MIB)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    (cause,) = pair.vm.parts.replication.record.causes
    assert cause.code == ResyncCause.TRACKING_LOST
    assert f"its size was {SIZE} and is {SIZE + MIB}" in cause.text
    assert await resize_events(pair) == [
        {"disk": 0, "size_bytes": SIZE, "before_bytes": SIZE, "found_bytes": SIZE + MIB}
    ]
    assert status.health == "Critical"
    assert any(f"{SIZE} to {SIZE + MIB} bytes" in reason for reason in status.reasons)
    await pair.write(0, "write -P 2 3M 1M")
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.write(0, "write -P 3 1M 64k")
    await pair.cut()
    theirs = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    assert pair.disk(0).read_bytes()[:SIZE] == theirs
    status = await pair.vm.status()
    assert (status.state, status.protected, status.health) == ("Replicating", True, "Critical")
    assert f"truncate --size {SIZE} {pair.disk(0)}" in status.remedy
    # Back at its size it is well again, once it was compared: nothing shows that only the end was cut off.
    await resized(pair, SIZE)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert (await pair.vm.status()).health == "Normal"


async def test_a_disk_made_smaller_does_not_spoil_its_copy(pair: Pair) -> None:
    """What the disk lost is whole at the replica: no resync begins, ordered or by itself, until the size is back."""
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    before = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    vm = pair.vm
    # No cut looks at the disks: whoever asks how the tap is does.
    await vm.set(msgspec.structs.replace(vm.record, interval_seconds=3600.0), {"interval_seconds": 3600.0})
    status = await resized(pair, SIZE - MIB)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.healthy()
    assert any("what lay behind that is lost" in reason for reason in status.reasons)
    with pytest.raises(InvalidStateError, match=f"has {SIZE - MIB} bytes, and must have {SIZE}"):
        await vm.resume(resynchronize=True)
    await vm.set(msgspec.structs.replace(vm.record, resync_mode=ResyncMode.AUTOMATIC), {"resync_mode": "automatic"})
    # The guest goes on where there is something left.
    await pair.write(0, "write -P 4 1M 64k")
    await pair.write(1, "write -P 5 0 64k")
    assert vm.parts.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
    assert Path(pair.copy.parts.layout.disk(0)).read_bytes() == before
    await resized(pair, SIZE)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    events = [(event["before_bytes"], event["found_bytes"]) for event in await resize_events(pair)]
    assert events == [(SIZE, SIZE - MIB), (SIZE - MIB, SIZE)]


# --- taking the new size over ----------------------------------------------------------------------------------------


def theirs(pair: Pair, index: int = 0) -> bytes:
    return Path(pair.copy.parts.layout.disk(index)).read_bytes()


async def test_a_larger_disk_is_taken_over_and_grows_at_the_replica(pair: Pair) -> None:
    """The order, then the compare of everything: the replica's disk grows with it."""
    await pair.replicate(SIZE, MIB)
    await pair.write(0, "write -P 1 0 1M")
    await pair.assert_same()
    before = theirs(pair)
    with pytest.raises(InvalidStateError, match="has the size that it is replicated with"):
        await take_sizes(pair.vm)
    await resized(pair, SIZE + MIB)
    await take_sizes(pair.vm)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.until("the cause", lambda: ResyncCause.DISK_GROWN in causes(pair))
    (grown,) = (cause for cause in pair.vm.parts.replication.record.causes if cause.code == ResyncCause.DISK_GROWN)
    assert f"{SIZE + MIB} bytes at the primary, {SIZE} bytes at the replica" in grown.text
    assert grown.evidence["changes"] == [{"disk": 0, "part": "size_bytes", "old": SIZE, "new": SIZE + MIB}]
    assert theirs(pair) == before, "nothing grows before the resync begins"
    await pair.until("the tap", lambda: pair.vm.parts.tap.connection)
    await pair.write(0, f"write -P 2 {SIZE} 64k", f"write -P 3 {SIZE + MIB - 4096} 4k")
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert len(theirs(pair)) == SIZE + MIB
    await pair.write(0, f"write -P 4 {SIZE + 512 * 1024} 64k")
    await pair.assert_same()
    status = await pair.vm.status()
    assert (status.health, status.disks[0].size_bytes) == ("Normal", SIZE + MIB)
    # Both sides know it after a restart, and nobody takes it for somebody else's change.
    await pair.replica.stop()
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.assert_same()
    assert pair.copy.ledger.replication.causes == [] == pair.vm.parts.replication.record.causes


@pytest.mark.parametrize("ordered", [True, False], ids=["by order", "by itself"])
async def test_a_disk_that_grows_in_the_middle_of_a_resync_aborts_it_and_it_begins_at_the_new_size(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    """Nobody is attached, and everything is compared anew: then it is at the new size, without an order too."""
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    reached, go = asyncio.Event(), asyncio.Event()
    run = Comparing.run

    async def held(comparing: Comparing, *rest: Any) -> None:
        reached.set()
        await go.wait()
        await run(comparing, *rest)

    monkeypatch.setattr(Comparing, "run", held)
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    async with asyncio.timeout(WAIT_SECONDS):
        await reached.wait()
    first = pair.vm.parts.replication.record.resync
    assert first is not None
    os.truncate(pair.disk(0), SIZE + MIB)
    if ordered:
        await take_sizes(pair.vm)
    else:
        await pair.until("the new size on record", lambda: pair.vm.record.disks[0].size == SIZE + MIB)
    go.set()
    await pair.until("another run", lambda: pair.vm.parts.replication.record.epoch not in (first.epoch, first.parent))
    await pair.state(ReplicationState.REPLICATING)
    await pair.write(0, f"write -P 5 {SIZE} 64k")
    await pair.assert_same()
    runs = history(pair.vm, 10).runs
    assert [each.result for each in runs[:2]] == [COMMITTED, RESTARTED]
    assert runs[0].total("compared_bytes") == SIZE + 2 * MIB
    (taken,) = [each for each in await pair.events(EventId.DISK_RESIZED) if "is replicated with" in each["text"]]
    assert taken["cause"] == ("administrator" if ordered else "resync")
    told = [event["text"] for event in await pair.events(EventId.RESYNC_REQUIRED)]
    assert any("starts anew" in text and ("larger" in text or f"is {SIZE + MIB}" in text) for text in told), told


async def test_sizes_are_not_taken_over_from_under_a_guest_nor_when_they_became_smaller(pair: Pair) -> None:
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    before = theirs(pair)
    await resized(pair, SIZE - MIB)
    with pytest.raises(InvalidStateError, match=f"has {SIZE - MIB} bytes, and is replicated with {SIZE}") as refused:
        await take_sizes(pair.vm)
    assert "remove the VM on both hosts" in refused.value.remedy
    await resized(pair, SIZE + MIB)
    guest = await asyncio.create_subprocess_exec("qemu-io", "-f", "raw", pair.uris[0], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (await pair.vm.parts.tap.refresh()).disks[0].clients:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        with pytest.raises(InvalidStateError, match="runs on its tap"):
            await take_sizes(pair.vm)
    finally:
        await guest.communicate(b"quit\n")
    assert pair.vm.record.disks[0].size == SIZE
    assert theirs(pair) == before


@pytest.mark.parametrize("grown", [False, True], ids=["before the file grew", "after it"])
async def test_a_replica_that_stops_while_a_disk_grows_goes_on_with_that(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, grown: bool
) -> None:
    """The size on record is the new one, the file's perhaps not: that is no change by somebody else."""
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    grow = BaseDisks.grow

    def fails(disks: BaseDisks) -> None:
        if grown:
            grow(disks)
        raise RuntimeError("the test's crash")

    monkeypatch.setattr(BaseDisks, "grow", fails)
    os.truncate(pair.disk(0), SIZE + MIB)
    await take_sizes(pair.vm)
    await pair.until("the cause", lambda: ResyncCause.DISK_GROWN in causes(pair))
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.until("the new size on record", lambda: pair.copy.ledger.vm.disks[0].before == SIZE)
    await pair.replica.stop()
    monkeypatch.undo()
    await pair.start_replica()
    assert pair.copy.ledger.replication.causes == []
    assert pair.copy.point() is not None
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert [(disk.size, disk.before) for disk in pair.copy.ledger.vm.disks] == [(SIZE + MIB, 0), (MIB, 0)]


async def test_a_tap_that_refuses_a_larger_disk_starts_after_the_order(pair: Pair) -> None:
    """Resized while nothing ran: the refusal names the way out, and that needs no tap."""
    await pair.replicate(SIZE, MIB)
    await pair.assert_same()
    await stop_primary(pair)
    os.truncate(pair.disk(0), SIZE + MIB)
    await pair.start_primary()
    await pair.until("the refusal", lambda: pair.vm.parts.tap.failure and pair.vm.parts.tap.failure.code == "disk_size")
    assert pair.vm.parts.tap.failure is not None
    assert "vmreplica resize" in pair.vm.parts.tap.failure.remedy
    await take_sizes(pair.vm)
    await pair.until("the tap", lambda: pair.vm.parts.tap.connection)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.healthy()
    await pair.vm.resume(resynchronize=False)
    await pair.state(ReplicationState.REPLICATING)
    await pair.write(0, f"write -P 6 {SIZE} 64k")
    await pair.assert_same()
    assert len(theirs(pair)) == SIZE + MIB


def causes(pair: Pair) -> list[str]:
    return [cause.code for cause in pair.vm.parts.replication.record.causes]
