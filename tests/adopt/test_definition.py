"""libvirt takes the definition of a VM as this host has to have it, for a failover and for a test beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from shared.cli.virsh import Virsh
from tests.adopt.libvirt import Libvirt, missing
from tests.unit.cli.test_definition_mapping import DOMAIN, NVRAM, here


@pytest.mark.slow
def test_libvirt_defines_what_was_mapped() -> None:
    if absent := missing():
        pytest.skip(f"needs {', '.join(absent)}")
    with tempfile.TemporaryDirectory(prefix="vmr-libvirt-") as folder:
        libvirt = Libvirt(Path(folder))
        libvirt.start()
        try:
            virsh = Virsh(os.environ, libvirt.uri)
            # Not every host of the test has KVM.
            virsh.define(here()[2].text.replace('type="kvm"', 'type="qemu"'))
            other = here(test=True, uuid="00000000-0000-4000-8000-000000000001")[2]
            virsh.define(other.text.replace('type="kvm"', 'type="qemu"'))
            # What libvirt makes of it can be mapped again.
            text, domain = virsh.domain("web", inactive=True)
            assert [disk.place.export for disk in domain.disks if disk.place] == ["disk-0", "disk-1"]
            assert virsh.domain("web - Test")[1].uuid.endswith("1")
            assert NVRAM in DOMAIN and NVRAM not in text
        finally:
            libvirt.stop()
