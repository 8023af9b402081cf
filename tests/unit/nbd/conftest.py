"""A served disk on both event loops, and the tools that real clients need."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from shared.nbd.server import NbdServer
from tests.unit.nbd.file_backend import Directory, FileBackend

SIZE = 64 << 20


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Everything that runs on a loop is tested on both."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse file."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest_asyncio.fixture
async def export(disk: Path) -> AsyncIterator[FileBackend]:
    """The file as an export."""
    backend = FileBackend(disk)
    yield backend
    backend.close()


@pytest_asyncio.fixture
async def server(export: FileBackend) -> AsyncIterator[NbdServer]:
    """A server of that export which does not listen yet."""
    instance = NbdServer(Directory(export))
    yield instance
    await instance.close(grace=1.0)


@pytest_asyncio.fixture
async def socket(server: NbdServer, tmp_path: Path) -> Path:
    """Where the server listens."""
    path = tmp_path / "nbd.sock"
    await server.start_unix(path)
    return path


def require(tool: str) -> str:
    """The tool's path, preferring Debian's own; the test is skipped, by name, where it is missing."""
    found = shutil.which(tool, path="/usr/bin:/bin:/usr/sbin") or shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found
