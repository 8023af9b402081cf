"""The lines that put a VM behind its tap."""

from __future__ import annotations

import pytest

from shared.cli.attach import attachment_lines, libvirt_lines, nbd_place, qemu_lines
from shared.errors import UsageError

BLOCK_DEVICE = (
    "driver=nbd,node-name=replicated0,server.type=unix,server.path=/run/vm/nbd.sock,export=disk0,"
    "reconnect-delay=30,open-timeout=10,discard=unmap"
)


def test_lines_of_one_disk() -> None:
    assert attachment_lines(["nbd+unix:///disk0?socket=/run/vm/nbd.sock"]) == [
        "NBD:",
        "  nbd+unix:///disk0?socket=/run/vm/nbd.sock",
        "",
        "QEMU:",
        f"  -blockdev {BLOCK_DEVICE}",
        "  -device virtio-blk-pci,drive=replicated0,werror=stop,rerror=stop",
        "",
        "libvirt (`vmreplica adopt` does it; by hand, with virsh edit):",
        "  <disk type='network' device='disk'>",
        "    <driver name='qemu' type='raw' discard='unmap' error_policy='stop' rerror_policy='stop'/>",
        "    <source protocol='nbd' name=\"disk0\">",
        "      <host transport='unix' socket=\"/run/vm/nbd.sock\"/>",
        "      <reconnect delay='30'/>",
        "    </source>",
        "    <target dev='vda' bus='virtio'/>",
        "  </disk>",
    ]


def test_names_are_quoted_for_their_reader() -> None:
    uri = "nbd+unix:///a%2Cb%22%3C?socket=/run/x%2Cy.sock"
    assert nbd_place(uri) == ("/run/x,y.sock", 'a,b"<')
    assert 'server.path=/run/x,,y.sock,export=a,,b"<,' in qemu_lines(uri, 0)[0]
    assert any("name='a,b\"&lt;'" in line for line in libvirt_lines(uri, 0))


@pytest.mark.parametrize("at, target", [(0, "vda"), (1, "vdb"), (25, "vdz"), (26, "vdaa"), (63, "vdbl")])
def test_disks_are_lettered(at: int, target: str) -> None:
    assert f"dev='{target}'" in libvirt_lines("nbd+unix:///d?socket=/s", at)[-2]


@pytest.mark.parametrize("uri", ["nbd://host/disk0", "nbd+unix:///disk0", "", "/run/nbd.sock"])
def test_what_is_no_uri_of_a_unix_socket(uri: str) -> None:
    with pytest.raises(UsageError):
        nbd_place(uri)
