"""A real tap whose system calls fail: of its log, its disks, its folder, its descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from shared.errors import VmreplicaError
from shared.tap_control import LostReason, TapStatus, Tracking
from tests.faults.shim import Action, Operation, Shim
from tests.pair.tap_rig import EPOCH, TapRun, Writer, needs, run_client, tap_run
from tests.unit.tap.rig import MIB

pytestmark = [pytest.mark.slow, needs("qemu-io", "libnbd")]

LOG = "*/tap/log/*.hrl"
DISK = "*/disk-0.raw"
REASONS = {errno.ENOSPC: LostReason.LOG_FULL}


async def qemu(run: TapRun, *commands: str, disk: int = 0) -> str:
    """What qemu-io says to these commands, one after another."""
    words = [word for command in commands for word in ("-c", command)]
    _, text = await run_client("qemu-io", "-f", "raw", "-t", "none", *words, run.uri(disk))
    return text


async def flush(run: TapRun, disk: int = 0) -> int:
    """qemu-io's exit code for a write and a flush."""
    code, _ = await run_client("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "flush", run.uri(disk))
    return code


async def tracked(run: TapRun) -> dict[int, bytes]:
    """Start the tap and begin to track; the disks as they are."""
    client = await run.start()
    await client.begin(EPOCH)
    return run.images()


def is_map(status: TapStatus) -> bool:
    return status.tracking is Tracking.MAP


# --- the log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
async def test_log_that_cannot_be_written_costs_a_bounded_resync(shim: Shim, number: int) -> None:
    """P4, P3, P14: the client sees nothing, the dirty map takes over for good, and its client's data is on the disk."""
    with tap_run((8 * MIB, 2 * MIB), log_limit_bytes=64 * MIB) as run:
        await tracked(run)
        with Writer(run, seed=4) as writer:
            await writer.go()
            with shim.fault(Operation.WRITE, LOG, error=number, skip=3) as fault:
                status = await run.until(is_map)
                assert fault.hits >= 1
            assert status.lost is not None
            assert status.lost.reason == REASONS.get(number, LostReason.LOG_FAILED)
            await run.until(lambda status: not any(Path(run.config.log_folder).iterdir()))
            same = await writer.settle() == run.images()
            assert same
        assert (await run.status()).tracking is Tracking.MAP
        assert await run.stop() == 0


@pytest.mark.parametrize(
    "action, argument, number",
    [(Action.SHORT, 700, 0), (Action.SHORT, 1, 0), (Action.ERROR, 0, errno.EINTR)],
    ids=["700 bytes", "1 byte", "EINTR"],
)
async def test_write_that_is_cut_short_is_completed(shim: Shim, action: Action, argument: int, number: int) -> None:
    """P4: the remainder follows, of the log as of the disks; log and disks are whole, and nothing is lost."""
    with tap_run((8 * MIB,), log_limit_bytes=256 * MIB) as run:
        base = await tracked(run)
        assert run.client is not None
        with Writer(run, seed=5) as writer:
            options: dict[str, Any] = {"action": action, "argument": argument, "error": number, "times": 400}
            with (
                shim.fault(Operation.WRITE, "*/tap/log/*", **options) as log,
                shim.fault(Operation.WRITE, DISK, **options) as disk,
            ):
                await writer.go()
                await asyncio.to_thread(log.wait, 200)
                await asyncio.to_thread(disk.wait, 200)
                shadow = await writer.settle()
            cut = (await run.client.cut()).position()
        assert (await run.status()).tracking is Tracking.ON
        assert await run.stop() == 0
        same = run.images() == shadow
        assert same
        assert run.replay(base).cuts[cut] == shadow


async def test_log_whose_sync_fails_once_is_never_trusted_again(shim: Shim) -> None:
    """P5, R17: that sync is not tried again; no cut is told of that log; the guest's own flush succeeds."""
    with tap_run((8 * MIB,), log_limit_bytes=64 * MIB) as run:
        await tracked(run)
        assert run.client is not None
        with shim.fault(Operation.SYNC, "*/tap/log/0*.hrl", times=1) as fault:
            assert "failed" not in await qemu(run, "write -P 7 1M 64k", "flush")
            status = await run.until(is_map)
            assert fault.hits == 1
            with pytest.raises(VmreplicaError, match="lost"):
                await run.client.cut()
            assert "failed" not in await qemu(run, "write -P 8 2M 64k", "flush")
            assert fault.seen == 1
        assert status.lost is not None
        assert status.lost.reason == LostReason.LOG_FAILED
        assert status.sealed is None
        assert await run.stop() == 0
        assert run.images()[0][MIB : MIB + 65536] == bytes([7]) * 65536


# --- the disks -------------------------------------------------------------------------------------------------------


async def test_disk_whose_sync_fails_once_says_so_for_ever(shim: Shim) -> None:
    """P6, R17: EIO to the guest, now and later, without another try; the other disk goes on; tracking is lost."""
    with tap_run((8 * MIB, 2 * MIB), log_limit_bytes=64 * MIB) as run:
        await tracked(run)
        with shim.fault(Operation.SYNC, DISK, times=1) as fault:
            assert await flush(run) != 0
            assert await flush(run) != 0
            assert (fault.hits, fault.seen) == (1, 1)
            assert await flush(run, disk=1) == 0
        status = await run.until(lambda status: status.tracking is Tracking.LOST)
        assert status.lost is not None
        assert status.lost.reason == LostReason.DISK_FAILED
        assert await run.stop() != 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
async def test_disk_that_cannot_be_written_is_logged_as_it_is(shim: Shim, number: int) -> None:
    """P6, R26: the guest gets the error; the log says what the disk holds, not what was to be written."""
    with tap_run((8 * MIB,), log_limit_bytes=64 * MIB) as run:
        base = await tracked(run)
        assert run.client is not None
        assert "failed" not in await qemu(run, "write -P 7 1M 64k")
        with shim.fault(Operation.WRITE, DISK, error=number, span=(MIB, MIB + 1)):
            assert os.strerror(number) in await qemu(run, "write -P 8 1M 64k")
        cut = (await run.client.cut()).position()
        assert (await run.status()).tracking is Tracking.ON
        assert await run.stop() == 0
        same = run.replay(base).cuts[cut] == run.images()
        assert same
        assert run.images()[0][MIB] == 7


async def test_disk_that_stalls_holds_cuts_up_and_nothing_more(shim: Shim) -> None:
    """P11, R34: while the log's sync hangs the guest's writes go on, no cut is told; then it is, and is right."""
    with tap_run((8 * MIB,), log_limit_bytes=256 * MIB) as run:
        base = await tracked(run)
        assert run.client is not None
        with Writer(run, seed=6, pause=0.001) as writer:
            await writer.go()
            with shim.fault(Operation.SYNC, LOG, action=Action.HOLD) as fault:
                cutting = asyncio.ensure_future(run.client.cut())
                await asyncio.to_thread(fault.wait)
                before = (await run.status()).writes
                await run.until(lambda status: status.writes > before + 100)
                status = await run.status()
                assert not cutting.done(), "a cut was told that is not durable"
                assert status.sealed is None
            cut = (await cutting).position()
            shadow = await writer.settle()
            last = (await run.client.cut()).position()
        assert await run.stop() == 0
        result = run.replay(base)
        assert cut in result.cuts
        same = result.cuts[last] == shadow == run.images()
        assert same


async def test_write_that_stalls_holds_up_whatever_follows(shim: Shim) -> None:
    """P11, R31: a disk that does not take a write lets nobody overtake; afterwards log and disks agree."""
    with tap_run((8 * MIB,), log_limit_bytes=256 * MIB) as run:
        base = await tracked(run)
        assert run.client is not None
        with Writer(run, seed=7) as writer:
            with shim.fault(Operation.WRITE, DISK, action=Action.HOLD, skip=20) as fault:
                await writer.go()
                await asyncio.to_thread(fault.wait)
                cutting = asyncio.ensure_future(run.client.cut())
                await asyncio.sleep(0.2)
                assert not cutting.done()
            cut = (await cutting).position()
            shadow = await writer.settle()
        assert await run.stop() == 0
        result = run.replay(base)
        assert cut in result.cuts
        same = {disk: bytes(image) for disk, image in result.images.items()} == shadow == run.images()
        assert same


# --- descriptors, memory, threads ------------------------------------------------------------------------------------


def open_files(run: TapRun) -> list[str]:
    """What the tap has open, without sockets and pipes, whose number changes with its clients."""
    assert run.process is not None
    links = []
    for path in Path(f"/proc/{run.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(path))
    return sorted(link for link in links if link.startswith("/"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
async def test_open_that_fails_is_a_clean_error_and_leaks_nothing(shim: Shim, number: int, persistent: bool) -> None:
    """P15: at the N-th call, for each N: an error by name or success, the guest goes on, nothing stays open."""
    with tap_run((2 * MIB,), log_limit_bytes=64 * MIB, log_file_bytes=4 * MIB) as run:
        client = await run.start()
        outcomes = []
        for skip in range(60):
            epoch = bytes([skip + 1]) * 16
            opening = Operation.OPEN | Operation.CREATE
            with shim.fault(opening, "*/tap/*", error=number, skip=skip, times=-1 if persistent else 1) as fault:
                try:
                    await client.begin(epoch)
                    assert "failed" not in await qemu(run, "write -P 9 0 2M", "write -P 9 0 2M", "write -P 9 0 2M")
                    await client.cut()
                    outcomes.append("")
                except VmreplicaError as error:
                    outcomes.append(error.code)
                hits = fault.hits
            assert "failed" not in await qemu(run, f"write -P {skip} 0 2M", "flush")
            await client.stop_tracking("the test")
            await client.begin(bytes([skip + 101]) * 16)
            await client.cut()
            await client.stop_tracking("the test")
            await run.until(lambda status: not [name for name in open_files(run) if name.endswith(".hrl")])
            files = open_files(run)
            if not skip:
                first = files
            assert files == first
            if not hits:
                break
        else:
            pytest.fail("the faults never end")
        assert skip > 2
        assert any(outcomes) or not persistent
        assert await run.stop() == 0
