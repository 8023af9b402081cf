"""What the tests of the ports share: a folder on each of two file systems."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE_SYSTEMS = {"tmpfs": "/dev/shm", "disk": "/var/tmp"}


@pytest.fixture(params=FILE_SYSTEMS)
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh folder, once in memory and once on the disk's file system."""
    path = Path(tempfile.mkdtemp(prefix="vmreplica-test-", dir=FILE_SYSTEMS[request.param]))
    yield path
    shutil.rmtree(path)
