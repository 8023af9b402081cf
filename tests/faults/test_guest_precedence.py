"""A guest whose disk becomes slow while its VM is resynchronized: reading is held back, and goes on as before later."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest

from primary_agent import backing_off
from primary_agent.admin import with_settings
from shared.cli.progress import progress_line
from shared.progress_status import HeldBack
from shared.states import ReplicationState
from tests.faults.shim import Action, Operation, Shim
from tests.pair.rig import MIB, Pair

FLOOR = 64 << 10
READING = 4 * MIB
"""Bytes a second that the resync may read, so that it lasts."""
SLOW_MS = 20


@contextlib.asynccontextmanager
async def guest(pair: Pair) -> AsyncIterator[None]:
    """Small writes, one after the other, until the end."""
    process = await asyncio.create_subprocess_exec(
        "fio", "--name=guest", "--ioengine=nbd", f"--uri={pair.uris[0]}", "--rw=randwrite", "--bs=4k", "--iodepth=1",
        "--rate_iops=400", "--time_based=1", "--runtime=1000", stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def held_back(pair: Pair) -> HeldBack | None:
    progress = pair.vm.parts.progress
    return progress.held_back if progress is not None else None


def is_slowed(pair: Pair) -> bool:
    held = held_back(pair)
    return held is not None and not held.measuring and held.rate_bytes_per_second < READING


@pytest.mark.thorough
async def test_reading_is_held_back_while_the_guest_waits_and_rises_again(
    shim: Shim, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("fio") is None:
        pytest.skip("needs fio")
    monkeypatch.setattr(backing_off, "FLOOR", FLOOR)
    # Nothing but the slow disk is to be seen in what the guest's requests take on a busy host.
    monkeypatch.setattr(backing_off, "BEARABLE", 5.0)
    monkeypatch.setattr(backing_off, "UNNOTICED", 3.0)
    await pair.replicate(1024 * MIB, log_limit_bytes=256 * MIB)
    await pair.healthy()
    before = pair.vm.parts.replication.record.epoch
    given: dict[str, Any] = {"resync_read_rate": [READING]}
    await pair.vm.set(with_settings(pair.vm.record, given), given)
    control = pair.vm.parts.precedence.control
    async with guest(pair):
        await pair.until("what is usual", lambda: "write" in control.usual.latency)
        await pair.vm.resume(resynchronize=True)
        await pair.until("the compare", lambda: getattr(pair.vm.parts.progress, "phase", "") == "comparing")
        with shim.fault(Operation.WRITE, str(pair.disk(0)), action=Action.STALL, argument=SLOW_MS) as stall:
            await pair.until("reading to be held back", lambda: is_slowed(pair))
            assert stall.hits > 0
            held = held_back(pair)
            assert held is not None and held.latency_seconds is not None and held.usual_latency_seconds is not None
            assert held.latency_seconds > held.usual_latency_seconds
            assert control.rate is not None and control.rate >= FLOOR
            assert "backs off for the guest" in progress_line(await pair.vm.status())
        await pair.until("reading to rise again", lambda: not control.pausing and (control.rate or READING) >= READING)
        assert pair.vm.parts.replication.record.epoch == before
        assert pair.vm.parts.replication.state is ReplicationState.RESYNCHRONIZING
        given = {"resync_read_rate": [], "resync_back_off": False}
        await pair.vm.set(with_settings(pair.vm.record, given), given)
        await pair.until("another baseline", lambda: pair.vm.parts.replication.record.epoch != before)
    await pair.state(ReplicationState.REPLICATING)
    await pair.assert_same()
