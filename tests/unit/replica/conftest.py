"""Fixtures: certificates once for all tests, and a replica host for each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.replica.rig import Certificates, World, make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where there is one: for tests that sync thousands of times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="vr-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def world(tmp_path: Path, certificates: Certificates) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="vr-") as sockets:
        yield World(tmp_path, certificates, sockets=Path(sockets))
