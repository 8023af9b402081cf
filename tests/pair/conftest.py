"""A started pair for each test that asks for it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.pair.hosts import Hosts
from tests.pair.links import LinkedPair, linked_pair, shorten
from tests.pair.rig import Pair

MEMORY = Path("/dev/shm")


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    if shutil.which("qemu-io") is None:
        pytest.skip("needs qemu-io (Debian: qemu-utils)")
    with tempfile.TemporaryDirectory(prefix="vmr-") as sockets:
        started = Pair(tmp_path, Path(sockets))
        await started.start()
        try:
            yield started
        finally:
            await started.stop()


@pytest.fixture
async def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LinkedPair]:
    """A pair with a proxy between, short deadlines and short waits."""
    if shutil.which("qemu-io") is None:
        pytest.skip("needs qemu-io (Debian: qemu-utils)")
    shorten(monkeypatch)
    async with linked_pair(tmp_path) as pair:
        yield pair


@pytest.fixture
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Two hosts of real processes, not started yet; their logs are shown when the test fails."""
    if shutil.which("qemu-io") is None or not Path("/usr/lib/python3/dist-packages/nbd.py").exists():
        pytest.skip("needs qemu-io and Debian's libnbd (packages qemu-utils, libnbd-bin, python3-libnbd)")
    with tempfile.TemporaryDirectory(prefix="vmr-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        hosts = Hosts(Path(folder))
        try:
            yield hosts
        finally:
            hosts.stop()
            print(hosts.logs())
