"""Reversing the direction between two hosts of real agents and taps (I6, I8, I12, R14, R15, R41)."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from primary_agent import handing_over
from protocol.position import NO_EPOCH
from replica_agent.points import points_of
from shared.admin import verbs
from shared.errors import InvalidStateError, UsageError
from shared.handover import HandOver
from shared.status import VmStatus
from tests.pair.rig import MIB
from tests.pair.two_hosts import NAME, Host, TwoHosts

BLOCK = 64 << 10


@pytest.fixture
async def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TwoHosts]:
    if shutil.which("qemu-io") is None:
        pytest.skip("needs qemu-io (Debian: qemu-utils)")
    monkeypatch.setattr("primary_agent.session_loop.BACKOFF_FIRST_SECONDS", 0.1)
    monkeypatch.setattr("replica_agent.promoted_tap.REFRESH_SECONDS", 0.2)
    with tempfile.TemporaryDirectory(prefix="vmr-") as sockets:
        hosts = TwoHosts(tmp_path, Path(sockets))
        await hosts.start()
        try:
            yield hosts
        finally:
            await hosts.stop()


def newest_run(host: Host) -> tuple[str, int, int]:
    """Kind, bytes compared and bytes sent of the primary's newest compare."""
    (run,) = host.vm.parts.replication.runs.newest(1)
    return run.kind, run.total("compared_bytes"), run.total("sent_bytes")


async def primary_status(host: Host) -> VmStatus:
    (status,) = (await host.primary.status()).vms
    return status


async def test_there_and_back_compares_only_what_changed(two: TwoHosts) -> None:
    """I12, R41: with writes between and without, and never a whole disk."""
    await two.replicate(8 * MIB, 2 * MIB)
    for target, writes in ((two.beta, 2), (two.alpha, 1), (two.beta, 0), (two.alpha, 0)):
        await two.fail_over(target)
        for number in range(writes):
            await target.write(f"write -P {0x21 + number} {3 * number + 1}M 64k", disk=number)
        await two.reverse(target)
        assert newest_run(target) == ("bounded", writes * BLOCK, writes * BLOCK)
        await two.same(target)
        (other,) = {two.alpha, two.beta} - {target}
        assert [vm.summary[:10] for vm in (await target.primary.status()).vms] == ["Protected:"]
        assert not other.primary.vms
    # The guest's disks on alpha are where they always were.
    assert two.alpha.paths() == [two.alpha.folder / f"disk{index}.raw" for index in range(2)]
