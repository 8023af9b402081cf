"""What the maps bound, over real parts: a full log, and a host that stopped. Nobody has to act for that."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from primary_agent import starting
from primary_agent.comparing import Comparing
from primary_agent.tap.state import StateFile
from shared.errors import UnreachableError
from shared.events import EventId
from shared.ports.file_system import RealFileSystem
from shared.states import ReplicationState
from shared.tap_config import STATE_NAME
from shared.tap_control import LostReason, Tracking
from tests.pair.rig import MIB, Pair

FILES = RealFileSystem()


async def compared(pair: Pair) -> int:
    """Bytes that all compares until now have looked at."""
    return sum(event["data"]["bytes_compared"] for event in await pair.events(EventId.RESYNC_COMPARED))


async def stop_the_host(pair: Pair) -> None:
    """Kill agent and tap, and let the next start believe that the host has stopped since."""
    tap = pair.vm.parts.tap.require()
    folder, pid = pair.vm.parts.tap.folder, tap.status.pid
    await pair.primary.stop()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    state_file, loaded = StateFile.open(FILES, f"{folder}/{STATE_NAME}")
    assert loaded.state is not None
    for _ in range(2):
        state_file.write(msgspec.structs.replace(loaded.state, boot_id="the boot before"))
    state_file.sync()
    state_file.close()


async def test_a_full_log_costs_a_compare_of_what_was_written(pair: Pair) -> None:
    """I3, I12, I14, R21, R28: the dirty map takes over, and what it names is compared without anybody's order."""
    await pair.replicate(256 * MIB, log_limit_bytes=64 * MIB)
    await pair.assert_same()
    before = await compared(pair)
    await pair.replica.stop()
    for _ in range(3):
        await pair.write(0, *(f"write -P {number + 1} {32 + number}M 1M" for number in range(32)))
    await pair.until("the dirty map", lambda: pair.vm.parts.tap.require().tracking is Tracking.MAP)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    # A status of half a second ago is not asked for anew, and may be from before.
    await pair.until("what is in doubt", lambda: pair.vm.parts.tap.require().status.doubt)
    status = await pair.vm.status()
    assert status.tap is not None
    assert status.tap.doubt_bytes is not None
    assert status.tap.doubt_bytes <= 40 * MIB
    assert "compared by themselves" in status.reasons[0]
    assert status.remedy == ""
    await pair.start_replica()
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert await compared(pair) - before <= 40 * MIB
    assert (await pair.vm.parts.tap.refresh()).doubt is None


async def test_a_map_that_does_not_fit_the_replica_promises_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R34: then whole disks are compared, which waits for an order here; the status names it."""

    async def does_not_fit(*_: object) -> bool:
        return False

    await pair.replicate(4 * MIB)
    with monkeypatch.context() as patched:
        patched.setattr(starting, "is_bounded", does_not_fit)
        await pair.vm.parts.tap.require().client.leave_log("of the test")
        await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
        await pair.until("the judgement", lambda: pair.vm.parts.whole)
        status = await pair.vm.status()
        assert status.resync_whole
        assert "by themselves" not in " ".join(status.reasons)
        assert status.remedy == "Run `vmreplica resume web --resynchronize`."
    # Once it fits, nobody has to act.
    pair.vm.parts.replication.replan()
    await pair.state(ReplicationState.REPLICATING)
    assert not (await pair.vm.status()).resync_whole
    await pair.assert_same()


async def test_a_host_that_stopped_compares_what_was_hot(pair: Pair) -> None:
    """I3, R3, R26: writes that the disk lost, though the replica has them, are found among the hot regions alone."""
    await pair.replicate(256 * MIB)
    await pair.write(0, "write -P 0x11 100M 1M")
    await pair.assert_same()
    before = await compared(pair)
    disk, point = pair.disk(0), pair.copy.point()
    await pair.write(0, "write -P 0x22 200M 1M")
    await pair.assert_same()
    times = disk.stat()
    await stop_the_host(pair)
    lose_pages(disk, 200 * MIB, MIB // 2, times)
    await pair.start_primary()
    await pair.until("the catch-up", lambda: pair.vm.parts.replication.record.epoch != point.epoch if point else None)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    content = Path(pair.copy.parts.layout.disk(0)).read_bytes()
    assert content[200 * MIB : 201 * MIB] == bytes(MIB // 2) + b"\x22" * (MIB // 2)
    assert 0 < await compared(pair) - before <= 16 * MIB


async def test_a_disk_that_was_written_after_its_lease_is_compared_wholly(pair: Pair) -> None:
    """R30, I10: nothing on record explains that time, so an administrator is asked."""
    await pair.replicate(64 * MIB)
    await pair.write(0, "write -P 0x11 10M 1M")
    await pair.assert_same()
    await stop_the_host(pair)
    later = pair.disk(0).stat().st_mtime_ns + 3600 * 10**9
    os.utime(pair.disk(0), ns=(later, later))
    await pair.start_primary()
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    lost = (await pair.vm.parts.tap.refresh()).lost
    assert lost is not None
    assert lost.reason is LostReason.DISK_CHANGED
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()


def lose_pages(disk: Path, offset: int, length: int, times: os.stat_result) -> None:
    """Undo writes as power loss does: the pages are gone, and the file's times tell nothing of it."""
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    os.utime(disk, ns=(times.st_atime_ns, times.st_mtime_ns))


async def test_a_bounded_compare_that_the_replica_forgot_stays_a_whole_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I12: once whole disks are compared in its place, a later session must not take up the bounds again."""
    compare, breaks = Comparing._compare_disks, 2

    async def broken(driver: Comparing, *rest: Any) -> None:
        nonlocal breaks
        if breaks:
            breaks -= 1
            if breaks:
                await pair.copy.baseline.drop("the test: its volume is full, say")
            raise UnreachableError("the test cuts the link")
        await compare(driver, *rest)

    await pair.replicate(8 * MIB)
    before = await compared(pair)
    await pair.assert_same()
    await pair.replica.stop()
    monkeypatch.setattr(Comparing, "_compare_disks", broken)
    await pair.write(0, "write -P 3 1M 64k")
    await stop_the_host(pair)
    await pair.start_replica()
    await pair.start_primary()
    await pair.until("both breaks", lambda: not breaks)
    pair.vm.parts.link.poke.notify()
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
    assert await compared(pair) - before == 8 * MIB
