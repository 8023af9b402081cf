"""An order to replicate disks at the sizes that their files have now: the tap starts anew on them, and all is compared.

Of block devices that is only what lies behind their former end, for they hold what they held
(primary_agent.disk_sizes).

Only larger ones are taken: what a disk lost that became smaller is whole at the replica. Until this order the tap goes
on at the size that it knows, since a guest that is attached can't be told another one. A resync that is under way does
without the order where no guest is attached: it begins anew anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from primary_agent.disk_sizes import ask_replica, check_resizable, take_all
from primary_agent.enabling import disk_size, tap_disk
from primary_agent.record import DiskRecord
from shared.errors import InvalidStateError, NoSpaceError
from shared.events import EventId
from shared.states import ReplicationState

if TYPE_CHECKING:
    from primary_agent.vm import PrimaryVm


async def take_larger(vm: PrimaryVm) -> None:
    """Take over disks that were made larger during a resync, which begins anew with them; not from under a guest.

    Raises what looking at a disk raises.
    """
    connection = vm.parts.tap.connection
    if connection is None or vm.parts.replication.state is not ReplicationState.RESYNCHRONIZING:
        return
    disks = connection.status.disks
    larger = any(disk.found_size is not None and disk.found_size > disk.size for disk in disks)
    if not larger or any(disk.clients for disk in disks):
        return
    try:
        await take_sizes(vm, cause="resync")
    except InvalidStateError:
        # Another of its disks became smaller, or a guest has just come: that is told, and this waits for an order.
        return


async def take_sizes(vm: PrimaryVm, *, cause: str = "administrator") -> None:
    """Take over the sizes of the VM's disks; a resync is required then, and one that is open starts anew.

    Durable first: the tap is stopped when the record has the new sizes, and whatever starts it next does so with them.
    Raises InvalidStateError with the remedy, or what looking at a disk raises.
    """
    async with vm.ordering:
        parts = vm.parts
        replication, ports, tap = parts.replication, parts.surroundings.ports, parts.tap
        if replication.state in (ReplicationState.FAILED_OVER, ReplicationState.ERROR):
            raise InvalidStateError(
                f"{vm.name} is in state {replication.state.title}: its disks can't be given another size.",
                "Bring replication back first.",
            )
        found = [await ports.workers.run(disk_size, ports.files, disk.path) for disk in vm.record.disks]
        _judge(vm, found)
        if cause == "administrator" and await _take_devices(vm, found):
            return
        disks: list[DiskRecord] = []
        told = []
        for disk, size in zip(vm.record.disks, found, strict=True):
            if size != disk.size:
                told.append({"disk": disk.index, "path": disk.path, "before_bytes": disk.size, "size_bytes": size})
            disks.append(msgspec.structs.replace(disk, size=size, larger=0))
        text = "; ".join(
            f"{each['path']} is replicated with {each['size_bytes']} bytes, before {each['before_bytes']}"
            for each in told
        )
        config = msgspec.structs.replace(
            tap.config,
            disks=[tap_disk(disk) for disk in disks],
        )
        config.check()
        event = replication.event(EventId.DISK_RESIZED, f"{text}.", cause=cause, data={"disks": told})
        await replication.set_vm(msgspec.structs.replace(vm.record, disks=disks), event)
        await tap.save_disks(config)
        await tap.stop_tap()
        parts.observer.forget_sizes()
        replication.replan()
        parts.link.poke.notify()


async def _take_devices(vm: PrimaryVm, found: list[int]) -> bool:
    """Where only block devices are larger, of a VM that is well: no more is compared than what they hold there now."""
    larger = [(disk, size) for disk, size in zip(vm.record.disks, found, strict=True) if size != disk.size]
    connection = vm.parts.tap.connection
    blocks = {disk.index for disk in connection.status.disks if disk.block} if connection is not None else set()
    if not {disk.index for disk, _ in larger} <= blocks:
        return False
    try:
        await check_resizable(vm)
        await ask_replica(vm, larger)
    except (InvalidStateError, NoSpaceError):
        return False
    await take_all(vm, larger, "device")
    return True


def _judge(vm: PrimaryVm, found: list[int]) -> None:
    """Raises InvalidStateError unless some disk is larger, none is smaller, and nobody is attached."""
    for disk, size in zip(vm.record.disks, found, strict=True):
        if size < disk.size:
            raise InvalidStateError(
                f"Disk {disk.index} of {vm.name}, {disk.path}, has {size} bytes, and is replicated with {disk.size}: a "
                "replica is never made smaller.",
                f"Bring it back to {disk.size} bytes and restore what it held there; or, to replicate it with its new "
                "size, remove the VM on both hosts and enable it anew.",
            )
    if all(size == disk.size for disk, size in zip(vm.record.disks, found, strict=True)):
        raise InvalidStateError(
            f"Every disk of {vm.name} has the size that it is replicated with.", "Resize the disk's file first."
        )
    connection = vm.parts.tap.connection
    if connection is not None and any(disk.clients for disk in connection.status.disks):
        raise InvalidStateError(
            f"{vm.name} runs on its tap, and would keep the old size.", "Shut the VM down, and try again."
        )
