"""What a VM's disks are really attached to: whether anybody writes past the tap. A judgement on what was seen.

A write that the tap does not see is not replicated, and the replica is silently not what it is said to be.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from shared.ports.disk_use import Usage
from shared.status import Cause

OPENED, OVERLAY, NO_CLIENT = "disk_opened", "overlay", "no_client"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One VM as its agent knows it: what its tap serves where, and to how many."""

    name: str
    uuid: str
    disks: tuple[str, ...]
    """Paths."""
    sockets: tuple[str, ...]
    """Paths of the NBD sockets."""
    tap: int | None
    """The tap's process; None while it does not answer: then nothing is judged."""
    clients: int
    """How many are connected to it."""


def bypasses(vm: Attachment, usage: Usage, now: float) -> list[Cause]:
    """Every way past the tap that was seen; ``now`` in seconds since the Unix epoch."""
    if vm.tap is None:
        return []
    found = [*_openers(vm, usage, now), *_overlays(vm, usage, now)]
    if not found and vm.clients == 0:
        found += _without_client(vm, usage, now)
    return found


def _openers(vm: Attachment, usage: Usage, now: float) -> list[Cause]:
    return [
        Cause(
            code=OPENED,
            text=f"{_who(user.program, user.pid)} has {user.path} open for writing, past the tap of {vm.name}: "
            "what it writes is not replicated.",
            time=now,
            remedy=f"Stop it. Attach the VM to the tap's socket {_socket(vm)} only, and then run "
            f"`vmreplica resume {vm.name} --resynchronize`: what was written meanwhile is found by a compare.",
            evidence={"pid": user.pid, "program": user.program, "path": user.path},
        )
        for user in usage.users
        if user.path in vm.disks and user.writing and user.pid != vm.tap
    ]


def _overlays(vm: Attachment, usage: Usage, now: float) -> list[Cause]:
    return [
        Cause(
            code=OVERLAY,
            text=f"{_who(over.program, over.pid)} writes into {over.path}, an overlay over the disk of {vm.name}: "
            "nothing of that is replicated. Somebody took an external snapshot.",
            time=now,
            remedy=f"Merge it back: `virsh blockcommit {vm.name} TARGET --active --pivot` under libvirt, else QEMU's "
            "block-commit. What is merged goes through the tap and is replicated.",
            evidence={"pid": over.pid, "program": over.program, "path": over.path, "backing": over.backing},
        )
        for over in usage.overlays
        if over.below in vm.disks or over.below in vm.sockets
    ]


def _without_client(vm: Attachment, usage: Usage, now: float) -> list[Cause]:
    return [
        Cause(
            code=NO_CLIENT,
            text=f"The virtual machine {vm.name} runs (process {guest.pid}), and nobody is connected to its tap: it "
            "writes somewhere else, and nothing of that is replicated.",
            time=now,
            remedy=f"Look what its disks are (`virsh domblklist {vm.name}`), shut it down, attach them to the tap's "
            f"socket {_socket(vm)}, and start it again. If it is another machine of the same name, rename one of them.",
            evidence={"pid": guest.pid, "guest": guest.name, "uuid": guest.uuid},
        )
        for guest in usage.guests
        if guest.uuid == vm.uuid or guest.name == vm.name
    ]


def _who(program: str, pid: int) -> str:
    return f"Process {pid} ({program})" if pid else program


def _socket(vm: Attachment) -> str:
    return vm.sockets[0] if vm.sockets else "(unknown)"


def paths_of(vms: Sequence[Attachment]) -> tuple[list[str], list[str]]:
    """All disks and all sockets, each once; sockets by their real path, too, as others may name them."""
    disks = dict.fromkeys(path for vm in vms for path in vm.disks)
    sockets = dict.fromkeys(path for vm in vms for path in vm.sockets)
    return list(disks), list(sockets)


def socket_of(uri: str) -> str:
    """The path in an NBD URI of a unix socket; empty where there is none."""
    _, found, path = uri.partition("socket=")
    return os.path.normpath(path.partition("&")[0]) if found else ""
