"""``vmreplica disk``: adds a disk to a replicated VM, removes or enlarges one; what follows goes on by itself."""

from __future__ import annotations

import argparse
import json

from shared.admin import verbs as admin
from shared.cli.agents import connect, socket_paths
from shared.cli.attach import attachment_lines
from shared.cli.context import Context
from shared.cli.exit_codes import SUCCESS
from shared.cli.verbs.replication import ENABLE_SECONDS, print_status
from shared.status import VmStatus


def add(options: argparse.Namespace, context: Context) -> int:
    """Replicate one more disk, and tell how it is attached."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        found.call(admin.DISK_ADD, ENABLE_SECONDS, disk=options.disk)
        if options.json:
            print_status(found, context)
            return SUCCESS
        vm = found.refresh()
    path = options.disk["path"]
    added = [disk.uri for disk in vm.disks if disk.path == path and disk.uri]
    context.console.print(
        [
            f"{path} is a disk of {vm.name} from now on. Only it is copied; recovery points have it from then on.",
            "",
            *(attachment_lines(added) if added else ["The tap does not serve it yet."]),
            "",
            *_way_on(vm),
        ]
    )
    return SUCCESS


def remove(options: argparse.Namespace, context: Context) -> int:
    """Replicate a disk no longer."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        warning = (
            f"Disk {options.disk} of {found.vm.name} is not replicated any more. Its file stays as it is; at the "
            "replica only recovery points of before have it, and it is deleted with the last of them."
        )
        context.console.confirm(warning, found.vm.name, options.yes)
        found.call(admin.DISK_REMOVE, ENABLE_SECONDS, disk=options.disk, exclude=options.exclude)
        if options.json:
            print_status(found, context)
            return SUCCESS
        vm = found.refresh()
    context.console.print([f"Disk {options.disk} of {vm.name} is not replicated any more.", *_way_on(vm)])
    return SUCCESS


def resize(options: argparse.Namespace, context: Context) -> int:
    """Enlarge a disk, and tell how the guest learns of it."""
    paths, named = socket_paths(options.socket, context.environment)
    with connect(paths, named=named) as agents:
        found = agents.find_one(options.vm, "primary")
        found.call(admin.DISK_RESIZE, ENABLE_SECONDS, disk=options.disk, size=options.size)
        if options.json:
            print_status(found, context)
            return SUCCESS
        vm = found.refresh()
    disk = next(each for each in vm.disks if options.disk in (str(each.index), each.export, each.path))
    resize = {"execute": "block_resize", "arguments": {"node-name": "NODE", "size": disk.size_bytes}}
    had = f"Disk {disk.index} of {vm.name}, {disk.path}, is replicated with {disk.size_bytes} bytes from now on."
    context.console.print(
        [
            f"{had} Recovery points of before keep its former size.",
            "",
            "A virtual machine that runs goes on with the former size until it is told, which works from its next read",
            "or write on; one that is off finds the new size when it starts:",
            f"  virsh blockresize {vm.name} TARGET {disk.size_bytes}B",
            f"  without libvirt, over QMP: {json.dumps(resize)}",
            "",
            *_way_on(vm),
        ]
    )
    return SUCCESS


def _way_on(vm: VmStatus) -> list[str]:
    return [f"The replica follows by itself. To see it: vmreplica status {vm.name} --watch"]
