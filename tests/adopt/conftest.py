"""Two hosts with libvirt on the primary's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adopt.libvirt import Libvirt, missing
from tests.guest.conftest import boot_image
from tests.pair.conftest import hosts
from tests.pair.hosts import Hosts

__all__ = ["boot_image", "hosts"]


@pytest.fixture
def libvirt(hosts: Hosts) -> Iterator[Libvirt]:
    """A started libvirtd, which the command of the hosts talks to."""
    if absent := missing():
        pytest.skip(f"needs {', '.join(absent)}")
    with tempfile.TemporaryDirectory(prefix="vmr-libvirt-") as folder:
        libvirt = Libvirt(Path(folder))
        hosts.environment["LIBVIRT_DEFAULT_URI"] = libvirt.uri
        libvirt.start()
        try:
            yield libvirt
        finally:
            print(libvirt.log())
            libvirt.stop()
