"""What the tests with a guest share: two hosts, and what the guest boots from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.initramfs import initramfs, missing
from tests.pair.conftest import hosts

__all__ = ["hosts"]


@pytest.fixture(scope="session")
def boot_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's initramfs; the test is skipped by name where something is missing."""
    if absent := missing():
        pytest.skip(f"needs {', '.join(absent)}")
    path = tmp_path_factory.mktemp("guest") / "initramfs"
    path.write_bytes(initramfs())
    return path
