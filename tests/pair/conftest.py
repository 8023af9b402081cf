"""A started pair for each test that asks for it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.pair.rig import Pair


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
