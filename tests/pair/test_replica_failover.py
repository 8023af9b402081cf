"""The replica after a failover, with real taps: what it serves, and what outlives the agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from replica_agent.vm_status import status_of
from shared.errors import InvalidStateError
from shared.states import ReplicationState
from tests.pair.rig import MIB, Pair


async def qemu_io(uri: str, *commands: str) -> tuple[int, str]:
    words = [word for command in commands for word in ("-c", command)]
    process = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "raw", *words, uri, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def image_of(uri: str, folder: Path) -> bytes:
    """The whole content of an NBD export."""
    target = folder / "image.raw"
    process = await asyncio.create_subprocess_exec("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(target))
    assert await process.wait() == 0
    return target.read_bytes()


async def test_failed_over_disks_are_served_and_take_writes(pair: Pair, tmp_path: Path) -> None:
    """I6, I8, R42: exactly the cut; then the guest goes on there."""
    await pair.replicate(8 * MIB, 2 * MIB)
    await pair.write(0, "write -P 0x11 1M 1M")
    await pair.write(1, "write -P 0x12 0 64k")
    await pair.assert_same()
    truth = [pair.disk(index).read_bytes() for index in range(2)]
    await pair.vm.suspend()
    await pair.write(0, "write -P 0x99 2M 1M")
    await pair.copy.failover()
    status = status_of(pair.copy)
    assert (status.state, len(status.uris)) == ("FailedOverWaitingCompletion", 2)
    for uri, content in zip(status.uris, truth, strict=True):
        assert await image_of(uri, tmp_path) == content
    code, output = await qemu_io(status.uris[0], "write -P 0x21 3M 64k", "flush", "read -P 0x21 3M 64k")
    assert code == 0, output
    assert status_of(pair.copy).tap is not None
    tap = pair.copy.promotion.tap
    assert tap is not None
    await pair.until("tracking of the new epoch", lambda: tap.status is not None and tap.status.tracking.value == "on")
    assert tap.status is not None
    record = pair.copy.ledger.promotion
    assert record is not None
    assert tap.status.epoch == record.epoch.hex()


async def test_tap_of_a_failed_over_vm_outlives_the_agent_and_is_kept_alive(pair: Pair) -> None:
    """R42: the guest does not notice that the agent is restarted; a tap that dies is started again."""
    await pair.replicate(4 * MIB)
    await pair.copy.failover()
    first = status_of(pair.copy).tap
    assert first is not None
    assert first.pid is not None
    await pair.replica.stop()
    code, output = await qemu_io(first.uris[0], "write -P 0x31 0 64k", "flush")
    assert code == 0, output
    await pair.start_replica()

    def tap_pid() -> int | None:
        tap = status_of(pair.copy).tap
        return tap.pid if tap is not None else None

    await pair.until("the tap's status", tap_pid)
    assert tap_pid() == first.pid
    os.kill(first.pid, signal.SIGKILL)
    await pair.until("another tap", lambda: tap_pid() not in (None, first.pid))
    code, output = await qemu_io(first.uris[0], "read -P 0x31 0 64k")
    assert code == 0, output
    assert "verification failed" not in output


async def test_failed_over_disks_are_kept_when_the_vm_is_removed(pair: Pair) -> None:
    """Nothing that a guest wrote after the failover may be deleted by one verb."""
    await pair.replicate(4 * MIB)
    await pair.copy.failover()
    uri = status_of(pair.copy).uris[0]
    code, output = await qemu_io(uri, "write -P 0x41 0 64k", "flush")
    assert code == 0, output
    client = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "raw", uri, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    tap = pair.copy.promotion.tap
    assert tap is not None
    try:
        await pair.until("a client", lambda: tap.status is not None and any(disk.clients for disk in tap.status.disks))
        with pytest.raises(InvalidStateError, match="in use"):
            await pair.replica.remove("web")
    finally:
        with contextlib.suppress(ProcessLookupError):
            client.kill()
        await client.communicate()
    await pair.until("no client", lambda: tap.status is not None and not any(d.clients for d in tap.status.disks))
    with pytest.raises(InvalidStateError, match="not in its disks yet"):
        await pair.replica.remove("web")
    await pair.copy.promotion.commit()
    await pair.until("settled", lambda: not pair.copy.ledger.promotion or not pair.copy.ledger.promotion.layered)
    kept = await pair.replica.remove("web")
    assert pair.replica.vms == {}
    content = (Path(kept) / "disk-0.raw").read_bytes()
    assert content[: 64 << 10] == b"\x41" * (64 << 10)
    assert len(content) == 4 * MIB


async def test_removed_copy_is_made_anew_by_the_primary(pair: Pair) -> None:
    await pair.replicate(4 * MIB)
    folder = Path(pair.copy.parts.layout.folder)
    await pair.replica.remove("web")
    assert not folder.exists()
    pair.vm.parts.link.poke.notify()
    await pair.until("a copy", lambda: pair.replica.vms)
    await pair.state(ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
    await pair.healthy()
    await pair.vm.resume(resynchronize=True)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
