"""A real tap whose wall clock steps, and one that the kernel kills for its memory (rows P20, P21)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.tap_control import Tracking
from tests.faults.shim import Shim
from tests.pair.tap_rig import EPOCH, TapRun, Writer, needs, tap_run
from tests.unit.tap.rig import MIB

pytestmark = [pytest.mark.slow, needs("libnbd")]

DAY = 86400.0
GROUPS = Path("/sys/fs/cgroup")


async def segment(run: TapRun) -> int:
    status = await run.status()
    return status.sealed.segment if status.sealed is not None else 0


async def cuts_go_on(run: TapRun) -> None:
    """Two more cuts come by themselves: one may have been under way."""
    before = await segment(run)
    await run.until(lambda status: status.sealed is not None and status.sealed.segment > before + 1)


@pytest.mark.parametrize("step", [DAY, -DAY], ids=["a day ahead", "a day back"])
async def test_clock_that_steps_changes_nothing(shim: Shim, step: float) -> None:
    """P20: cuts keep their interval, the steps are no foreign change of a disk, and restarts go on tracking."""
    with tap_run((8 * MIB,), log_limit_bytes=256 * MIB, interval_seconds=1.0) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        with Writer(run, seed=20, pause=0.001) as writer:
            await writer.go()
            await cuts_go_on(run)
            shim.step_clock(step)
            await cuts_go_on(run)
            assert (await run.status()).tracking is Tracking.ON
            run.kill()
            await run.start()
            assert await run.stop() == 0
            client = await run.start()
            status = await client.status()
            assert (status.tracking, status.lost) == (Tracking.ON, None)
            shim.step_clock(0.0)
            await cuts_go_on(run)
            shadow = await writer.settle()
            cut = (await client.cut()).position()
        assert await run.stop() == 0
        same = run.replay(base).cuts[cut] == shadow == run.images()
        assert same


# --- memory ----------------------------------------------------------------------------------------------------------


class MemoryGroup:
    """A control group with a limit of memory."""

    def __init__(self, folder: Path, limit: str, kills: str) -> None:
        self.folder = folder
        self._limit = folder / limit
        self._kills = folder / kills

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self, count: int) -> None:
        self._limit.write_text(str(count))

    @property
    def used(self) -> int:
        (name,) = (name for name in ("memory.current", "memory.usage_in_bytes") if (self.folder / name).exists())
        return int((self.folder / name).read_text())

    @property
    def kills(self) -> int:
        """How many of its processes the kernel killed."""
        counts = dict(line.split() for line in self._kills.read_text().splitlines())
        return int(counts["oom_kill"])


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A group of cgroup v2 or v1, whichever manages memory here; else the test is skipped by name."""
    name = f"vmr-faults-{os.getpid()}"
    for root, limit, kills in (
        (GROUPS, "memory.max", "memory.events"),
        (GROUPS / "unified", "memory.max", "memory.events"),
        (GROUPS / "memory", "memory.limit_in_bytes", "memory.oom_control"),
    ):
        folder = root / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (folder / limit).exists() and (folder / kills).exists():
                yield MemoryGroup(folder, limit, kills)
                return
        finally:
            folder.rmdir()
    pytest.skip("no control group for memory can be made here")


async def test_killed_for_its_memory_is_killed(shim: Shim) -> None:
    """P21: the kernel's killer is a kill like any other: nothing is lost, tracking goes on, the client reconnects."""
    del shim
    with memory_group() as group, tap_run((8 * MIB,), log_limit_bytes=256 * MIB) as run:
        client = await run.start()
        await client.begin(EPOCH)
        base = run.images()
        assert run.process is not None
        group.add(run.process.pid)
        with Writer(run, seed=21) as writer:
            await writer.go()
            written = (await run.status()).writes
            await run.until(lambda status: status.writes > written + 200)
            # The log lies in memory here and counts as the tap's: soon it wants more than it may have.
            group.limit(group.used + (256 << 10))
            code = await asyncio.to_thread(run.process.wait, 60)
            assert code == -signal.SIGKILL
            assert group.kills == 1
            await run.start()
            assert run.client is not None
            status = await run.status()
            assert (status.tracking, status.lost) == (Tracking.ON, None)
            shadow = await writer.settle()
            cut = (await run.client.cut()).position()
        assert await run.stop() == 0
        same = run.replay(base).cuts[cut] == shadow == run.images()
        assert same
