"""The shim for each test that asks for it, and fixtures of other tests that these share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.shim import Shim
from tests.pair.conftest import MEMORY, hosts, pair
from tests.unit.replica.conftest import certificates, memory_path

__all__ = ["certificates", "hosts", "memory_path", "pair"]


@pytest.fixture
def shim() -> Iterator[Shim]:
    """Processes that the test starts are under its rules."""
    with tempfile.TemporaryDirectory(prefix="vmr-faults-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        shim = Shim(Path(folder))
        with shim.installed():
            yield shim
