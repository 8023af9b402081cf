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


async def test_reverse_compares_what_either_side_changed(two: TwoHosts) -> None:
    await two.replicate(8 * MIB)
    await two.alpha.write("write -P 0x11 1M 64k")
    await two.same(two.alpha)
    await two.fail_over(two.beta)
    await two.beta.write("write -P 0x22 3M 64k")
    await two.reverse(two.beta)
    await two.same(two.beta)
