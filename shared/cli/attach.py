"""How a VM is put behind its tap: the lines for QEMU and libvirt that use an NBD URI."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from shared.cli.domain_xml import ERROR_POLICY, RECONNECT_SECONDS
from shared.errors import UsageError


def nbd_place(uri: str) -> tuple[str, str]:
    """Socket path and export name of an ``nbd+unix:///EXPORT?socket=PATH``. Raises UsageError for others."""
    parts = urlsplit(uri)
    sockets = parse_qs(parts.query).get("socket", [])
    if parts.scheme != "nbd+unix" or len(sockets) != 1:
        raise UsageError(f"{uri!r} is no NBD URI of a unix socket.")
    return sockets[0], unquote(parts.path.removeprefix("/"))


def attachment_lines(uris: Sequence[str]) -> list[str]:
    """The URIs, and the lines of QEMU's command line and of libvirt's domain that use them."""
    lines = ["NBD:"]
    lines += [f"  {uri}" for uri in uris]
    lines += ["", "QEMU:"]
    for at, uri in enumerate(uris):
        lines += [f"  {line}" for line in qemu_lines(uri, at)]
    lines += ["", "libvirt (`vmreplica adopt` does it; by hand, with virsh edit):"]
    for at, uri in enumerate(uris):
        lines += [f"  {line}" for line in libvirt_lines(uri, at)]
    return lines


def qemu_lines(uri: str, at: int) -> list[str]:
    """QEMU's options for disk number ``at``; a comma in a value is doubled, as QEMU wants it."""
    path, export = (part.replace(",", ",,") for part in nbd_place(uri))
    server = f"server.type=unix,server.path={path},export={export}"
    behaviour = f"reconnect-delay={RECONNECT_SECONDS},open-timeout=10,discard=unmap"
    return [
        f"-blockdev driver=nbd,node-name=replicated{at},{server},{behaviour}",
        f"-device virtio-blk-pci,drive=replicated{at},werror={ERROR_POLICY},rerror={ERROR_POLICY}",
    ]


def libvirt_lines(uri: str, at: int) -> list[str]:
    """A disk of a libvirt domain for disk number ``at``."""
    path, export = nbd_place(uri)
    policies = f"error_policy='{ERROR_POLICY}' rerror_policy='{ERROR_POLICY}'"
    return [
        "<disk type='network' device='disk'>",
        f"  <driver name='qemu' type='raw' discard='unmap' {policies}/>",
        f"  <source protocol='nbd' name={quoteattr(export)}>",
        f"    <host transport='unix' socket={quoteattr(path)}/>",
        f"    <reconnect delay='{RECONNECT_SECONDS}'/>",
        "  </source>",
        f"  <target dev='{_target(at)}' bus='virtio'/>",
        "</disk>",
    ]


def _target(at: int) -> str:
    """``vda`` to ``vdz``, then ``vdaa`` and on."""
    name = ""
    at += 1
    while at:
        at, letter = divmod(at - 1, 26)
        name = chr(ord("a") + letter) + name
    return f"vd{name}"
