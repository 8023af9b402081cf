"""Reversing the direction between two hosts of real agents and taps (I8, I12, R14, R41)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.pair.rig import MIB
from tests.pair.two_hosts import TwoHosts


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[TwoHosts]:
    if shutil.which("qemu-io") is None:
        pytest.skip("needs qemu-io (Debian: qemu-utils)")
    with tempfile.TemporaryDirectory(prefix="vmr-") as sockets:
        hosts = TwoHosts(tmp_path, Path(sockets))
        await hosts.start()
        try:
            yield hosts
        finally:
            await hosts.stop()


def compared(two: TwoHosts) -> tuple[str, int, int]:
    """Kind, bytes compared and bytes sent of the newest run of the primary that there is."""
    (host,) = [host for host in two.hosts if host.primary.vms]
    runs = host.vm.parts.replication.runs.newest(1)
    run = runs[0]
    return run.kind, sum(disk.compared_bytes for disk in run.disks), sum(disk.sent_bytes for disk in run.disks)


async def test_reverse_compares_what_either_side_changed(two: TwoHosts) -> None:
    import time
    t=time.monotonic()
    def lap(w):
        nonlocal t
        n=time.monotonic(); print(w, round(n-t,2)); t=n
    await two.replicate(8 * MIB); lap("replicate")
    await two.alpha.write("write -P 0x11 1M 64k"); lap("write")
    await two.same(two.alpha); lap("same")
    await two.fail_over(two.beta); lap("failover")
    await two.beta.write("write -P 0x22 3M 64k"); lap("write")
    await two.reverse(two.beta); lap("reverse")
    await two.same(two.beta); lap("same")
    print(compared(two))
    await two.fail_over(two.alpha); lap("failover")
    await two.alpha.write("write -P 0x23 4M 64k"); lap("write")
    await two.reverse(two.alpha); lap("reverse")
    await two.same(two.alpha); lap("same")
    print(compared(two))
    await two.fail_over(two.beta); lap("failover")
    await two.reverse(two.beta); lap("reverse")
    await two.same(two.beta); lap("same")
    print(compared(two))
