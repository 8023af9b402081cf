"""Whether a running QEMU keeps the guest's requests while a tap restarts, and the order by which it does.

libvirt 9.0, as of Debian 12, drops `<reconnect>` silently, and QEMU's default is to fail such requests at once. There,
a second connection to the same export is opened beside libvirt's, with the delay, and takes its place below the node
that the guest's device has: QEMU ends what is under way, swaps, and goes on. libvirt's own nodes keep their names, so
that its block jobs, snapshots and detaching work as ever.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

from shared.cli.domain_xml import ERROR_POLICY, RECONNECT_SECONDS, DomainDisk, Place
from shared.cli.virsh import QemuError, Virsh
from shared.errors import InvalidStateError

OPEN_SECONDS = 10
"""How long QEMU waits for the tap when it opens the connection."""
TRIES = 3
TRY_SECONDS = 0.5
_PREFIX = f"vmreplica-{RECONNECT_SECONDS}s-"
"""The delay is in the node's name: QEMU tells of a node's options neither this nor any other."""


class Delay(StrEnum):
    """How it was found that requests are kept."""

    LIBVIRT = "by libvirt"
    SWAPPED = "by an order of vmreplica to QEMU"
    ABSENT = "not at all"


@dataclass(frozen=True, slots=True)
class Attached:
    """What a running QEMU does with a disk behind a tap."""

    target: str
    delay: Delay
    write_errors: str
    read_errors: str

    @property
    def keeps_requests(self) -> bool:
        return self.delay is not Delay.ABSENT

    @property
    def pauses(self) -> bool:
        """Whether an error pauses the guest, rather than being the guest's."""
        return self.write_errors == self.read_errors == ERROR_POLICY


def look(virsh: Virsh, domain: str, disk: DomainDisk) -> Attached:
    """How the running QEMU has this disk. Raises InvalidStateError where it has it otherwise than libvirt says."""
    place = disk.place
    if place is None:
        raise InvalidStateError(f"The disk {disk.target} of {domain} does not come from a tap.")
    policies = [_policy(virsh, domain, disk, name) for name in ("werror", "rerror")]
    if disk.reconnect_seconds is not None:
        # What the running domain's XML has is what QEMU was told: where libvirt drops the delay it is not there.
        return Attached(disk.target, Delay.LIBVIRT, *policies)
    below = _below(virsh, domain, disk)
    swapped = below == _node(disk) and _serves(virsh, domain, below, place)
    return Attached(disk.target, Delay.SWAPPED if swapped else Delay.ABSENT, *policies)


def keep_requests(virsh: Virsh, domain: str, disk: DomainDisk) -> Attached:
    """Have the running QEMU keep requests for this disk, if it does not yet; what it does then."""
    found = look(virsh, domain, disk)
    if found.keeps_requests or disk.place is None:
        return found
    for left in reversed(range(TRIES)):
        try:
            _swap(virsh, domain, disk, disk.place)
            break
        except QemuError:
            # libvirt's hook may do the same at this moment, after a start.
            if not left:
                raise
            time.sleep(TRY_SECONDS)
    return look(virsh, domain, disk)


def leave(virsh: Virsh, domain: str, target: str) -> None:
    """Close the connection that was opened for a disk, once nothing uses it any more."""
    with suppress(QemuError):
        virsh.qmp(domain, "blockdev-del", {"node-name": _PREFIX + target})


def _swap(virsh: Virsh, domain: str, disk: DomainDisk, place: Place) -> None:
    node, format_node = _node(disk), _format_node(disk)
    nodes = {each["node-name"]: each for each in _nodes(virsh, domain)}
    if format_node not in nodes:
        raise InvalidStateError(
            f"QEMU has no node {format_node} for the disk {disk.target} of {domain}.",
            "Start the domain anew; if it stays, libvirt has another way with disks than this knows.",
        )
    now = nodes[format_node]
    cache = {key: now["cache"][key] for key in ("direct", "no-flush")}
    discard = {"discard": disk.discard} if disk.discard else {}
    if node in nodes and not _serves(virsh, domain, node, place):
        # Left by an earlier disk of that name.
        virsh.qmp(domain, "blockdev-del", {"node-name": node})
        del nodes[node]
    if node not in nodes:
        connection = {
            "driver": "nbd",
            "node-name": node,
            "server": {"type": "unix", "path": place.socket},
            "export": place.export,
            "reconnect-delay": RECONNECT_SECONDS,
            "open-timeout": OPEN_SECONDS,
            "read-only": False,
            "discard": "unmap",
            "cache": cache,
        }
        virsh.qmp(domain, "blockdev-add", connection)
    options: dict[str, Any] = {
        "driver": "raw",
        "node-name": format_node,
        "file": node,
        "read-only": False,
        "detect-zeroes": now["detect_zeroes"],
        "cache": cache,
        **discard,
    }
    try:
        virsh.qmp(domain, "blockdev-reopen", {"options": [options]})
    except BaseException:
        leave(virsh, domain, disk.target)
        raise


def _node(disk: DomainDisk) -> str:
    return _PREFIX + disk.target


def _format_node(disk: DomainDisk) -> str:
    return f"libvirt-{disk.index}-format"


def _nodes(virsh: Virsh, domain: str) -> list[dict[str, Any]]:
    return list(virsh.qmp(domain, "query-named-block-nodes", {"flat": True}))


def _serves(virsh: Virsh, domain: str, node: str, place: Place) -> bool:
    """Whether the node is a connection to this place."""
    files = [unquote(each["file"]) for each in _nodes(virsh, domain) if each["node-name"] == node]
    return any(place.socket in file and place.export in file for file in files)


def _below(virsh: Virsh, domain: str, disk: DomainDisk) -> str:
    """The name of the node from which the disk's raw node reads."""
    graph = virsh.qmp(domain, "x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    for edge in graph["edges"]:
        if names[edge["parent"]] == _format_node(disk) and edge["name"] == "file":
            return str(names[edge["child"]])
    return ""


def _policy(virsh: Virsh, domain: str, disk: DomainDisk, name: str) -> str:
    """What the device does about errors; empty where it does not tell."""
    try:
        return str(virsh.qmp(domain, "qom-get", {"path": disk.alias, "property": name}))
    except QemuError:
        return ""
