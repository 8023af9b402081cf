"""What the tests of the ports share: a folder on each of two file systems."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

FILE_SYSTEMS = {"tmpfs": "/dev/shm", "disk": "/var/tmp"}


@pytest.fixture(params=FILE_SYSTEMS)
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh folder, once in memory and once on the disk's file system."""
    path = Path(tempfile.mkdtemp(prefix="vmreplica-test-", dir=FILE_SYSTEMS[request.param]))
    yield path
    shutil.rmtree(path)


BOTH_LOOPS = {"test_network", "test_tls_links", "test_workers", "test_launcher"}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What talks to the event loop's transports and threads is tested on both loops."""
    if item.path.stem in BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
