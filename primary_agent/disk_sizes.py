"""Orders to enlarge a disk while it is replicated, without comparing what it holds (R20).

It is the tap that enlarges a file, as a write of its own, so that nobody takes it for somebody else's. First it is on
record that the file may have either size; then the file grows, which can be refused, and nothing was changed then; then
the new size is on record, as another set of disks, and what follows is what follows an added disk. Whatever ends in
between, the file's size tells the way: forward where it has grown, else back. A block device was enlarged before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from primary_agent.dialing import dial, open_body
from primary_agent.disk_changes import (
    check_failover,
    check_ready,
    check_state,
    config_with,
    exchange,
    find_disk,
    next_set,
)
from primary_agent.record import DiskRecord, VmRecord
from protocol.errors import ProtocolError
from protocol.hrl import MAX_DISK_BYTES
from protocol.messages import DISK_SIZES, Role, WireDisk
from shared.channel import ChannelClosed
from shared.errors import InvalidStateError, NoSpaceError, UsageError, VmreplicaError
from shared.events import EventId
from shared.states import ReplicationState
from shared.tap_config import SECTOR
from shared.tap_control import DiskFile, TapProtocolError
from shared.tasks import uninterrupted

if TYPE_CHECKING:
    from primary_agent.vm import PrimaryVm

ASK_SECONDS = 30.0
"""The replica answers so soon whether it could take the larger disk, or the order is refused."""


async def resize_disk(vm: PrimaryVm, name: str, size: int | None) -> None:
    """Replicate a disk at ``size`` bytes, which are more than it has; ``name`` is its number, export or path.

    Of a block device the size is what it has by now; None for that. Raises InvalidStateError where the VM does not
    replicate without trouble, NotFoundError, UsageError, StorageError, and NoSpaceError where the replica has no room;
    nothing was changed then.
    """
    async with vm.ordering:
        check_failover(vm)
        disk = find_disk(vm.record, name)
        if size is not None:
            _check_size(vm, disk, size)
        await check_resizable(vm)
        found = await _look(vm, disk)
        size = _size_for(vm, disk, size, found)
        await ask_replica(vm, [(disk, size)])
        check_state(vm)
        if not found.block:
            await _enlarge(vm, disk, size)
        await take_all(vm, [(disk, size)], "device" if found.block else "administrator")


async def go_on(vm: PrimaryVm) -> None:
    """Bring an order to its end that was interrupted: forward where the file has grown, else back. Now and then."""
    if vm.ordering.locked() or not any(disk.larger for disk in vm.record.disks):
        return
    async with vm.ordering:
        for disk in [disk for disk in vm.record.disks if disk.larger]:
            with contextlib.suppress(VmreplicaError):
                await _settle(vm, disk, "It was interrupted.")


async def _settle(vm: PrimaryVm, disk: DiskRecord, reason: str) -> None:
    """Raises VmreplicaError where it can't be told yet; it is tried again."""
    found = await vm.parts.tap.require().client.enlarge(disk.index)
    if found.size == disk.size:
        await uninterrupted(_take_back(vm, disk, reason))
    elif found.size == disk.larger:
        replication = vm.parts.replication
        waits = replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
        if not waits or replication.record.resync is not None:
            check_state(vm)
        await take_all(vm, [(disk, disk.larger)], "resumed")


# --- what is refused -------------------------------------------------------------------------------------------------


def _check_size(vm: PrimaryVm, disk: DiskRecord, size: int) -> None:
    """Raises UsageError or InvalidStateError for a size that the disk can't get."""
    if size <= disk.size:
        raise UsageError(
            f"Disk {disk.index} of {vm.name} has {disk.size} bytes, and would get {size}: it can only be enlarged.",
            "Give a larger size.",
        )
    if size % SECTOR or size > MAX_DISK_BYTES:
        raise UsageError(
            f"A disk can't have {size} bytes.",
            f"Give a whole number of sectors of {SECTOR} bytes, {MAX_DISK_BYTES} bytes at most.",
        )
    if disk.larger not in (0, size):
        raise InvalidStateError(
            f"Disk {disk.index} of {vm.name} is being enlarged to {disk.larger} bytes.", "Wait until that is done."
        )


async def check_resizable(vm: PrimaryVm) -> None:
    """Raises InvalidStateError unless the VM is well, and its replica, which is connected, can follow larger disks."""
    await check_ready(vm, "resized")
    dialled = vm.parts.link.dialled
    if dialled is None or DISK_SIZES not in dialled.welcome.capabilities:
        host = dialled.welcome.host if dialled is not None else vm.record.replica
        raise InvalidStateError(
            f"The replica agent at {host} can't follow a disk that is enlarged: its version does not know that.",
            "Install this version there, too; then try again.",
        )


async def _look(vm: PrimaryVm, disk: DiskRecord) -> DiskFile:
    """The disk's file as the tap sees it. Raises InvalidStateError where the tap is too old."""
    try:
        return await vm.parts.tap.require().client.enlarge(disk.index)
    except TapProtocolError as error:
        raise InvalidStateError(
            f"The tap of {vm.name} is of an older version, which can't enlarge a disk.",
            "Shut the VM down, and restart its tap; see `vmreplica status`.",
        ) from error


def _size_for(vm: PrimaryVm, disk: DiskRecord, size: int | None, found: DiskFile) -> int:
    """The size that the disk gets. Raises UsageError or InvalidStateError."""
    if not found.block:
        if size is None:
            raise UsageError(f"{disk.path} is a file: its new size is missing.", "Give it with --size.")
        if found.size not in (disk.size, size if disk.larger else 0):
            raise InvalidStateError(
                f"{disk.path} has {found.size} bytes, and is replicated with {disk.size}: somebody has resized it.",
                f"See `vmreplica status {vm.name}`.",
            )
        return size
    if size not in (None, found.size):
        raise UsageError(
            f"The block device {disk.path} has {found.size} bytes, not {size}.",
            "Enlarge it first, for instance with lvextend; then repeat this, without --size.",
        )
    if found.size <= disk.size or found.size % SECTOR:
        raise InvalidStateError(
            f"The block device {disk.path} has {found.size} bytes, and is replicated with {disk.size}.",
            "Enlarge it first, for instance with lvextend; then repeat this.",
        )
    return found.size


async def ask_replica(vm: PrimaryVm, larger: Sequence[tuple[DiskRecord, int]]) -> None:
    """Whether the replica would take them: by its quotas, its volume and its file system; nothing is changed by that.

    Raises NoSpaceError or InvalidStateError with its reason.
    """
    parts = vm.parts
    body = open_body(parts.replication, parts.tap.require(), role=Role.SAMPLE)
    changed = vm.record
    for disk, size in larger:
        changed = _with(changed, disk, size=size)
    disks = [WireDisk.of(each.geometry) for each in changed.disks]
    body = msgspec.structs.replace(body, disks=disks, disk_set=next_set(vm))
    try:
        async with asyncio.timeout(ASK_SECONDS):
            dialled = await dial(parts.surroundings, parts.address, body)
            await dialled.channel.close("asked")
    except (VmreplicaError, ProtocolError, TimeoutError, OSError) as error:
        told = error.text if isinstance(error, VmreplicaError | ProtocolError) else str(error) or "it did not answer."
        remedy = error.remedy if isinstance(error, VmreplicaError) else ""
        sizes = ", ".join(f"disk {disk.index} of {vm.name} with {size} bytes" for disk, size in larger)
        text = f"The replica at {parts.address} can't take {sizes}: {told}"
        full = isinstance(error, ChannelClosed) and error.code == NoSpaceError.code
        kind = NoSpaceError if full else InvalidStateError
        raise kind(text, remedy or "Look at the replica, and try again.") from error


# --- steps -----------------------------------------------------------------------------------------------------------


async def _enlarge(vm: PrimaryVm, disk: DiskRecord, size: int) -> None:
    """The file has ``size`` bytes, durably, when this returns. Raises VmreplicaError; then it is taken back."""
    parts, tap = vm.parts, vm.parts.tap
    record = _with(vm.record, disk, larger=size)
    data = {"disk": disk.index, "path": disk.path, "before_bytes": disk.size, "size_bytes": size}
    text = f"Disk {disk.index}, {disk.path}, is being enlarged from {disk.size} to {size} bytes."
    event = parts.replication.event(EventId.DISK_ENLARGED, text, cause="begun", data=data)
    await uninterrupted(parts.replication.set_vm(record, event))
    try:
        await tap.save_disks(config_with(tap.config, record.disks))
        await tap.require().client.enlarge(disk.index, size)
    except (VmreplicaError, OSError) as error:
        with contextlib.suppress(VmreplicaError):
            await _settle(vm, msgspec.structs.replace(disk, larger=size), str(error))
        raise


async def _take_back(vm: PrimaryVm, disk: DiskRecord, reason: str) -> None:
    """The file has the size from before, and so it is on record."""
    parts = vm.parts
    record = _with(vm.record, disk, larger=0)
    data = {"disk": disk.index, "path": disk.path, "size_bytes": disk.size}
    text = f"Disk {disk.index}, {disk.path}, keeps its {disk.size} bytes. {reason}"
    event = parts.replication.event(EventId.DISK_ENLARGED, text, cause="taken_back", data=data)
    await parts.replication.set_vm(record, event)
    with contextlib.suppress(OSError):
        # A configuration that names the other size as well does no harm.
        await parts.tap.save_disks(config_with(parts.tap.config, record.disks))


async def take_all(vm: PrimaryVm, larger: Sequence[tuple[DiskRecord, int]], cause: str) -> None:
    """The VM has another set of disks from now on, with the larger ones in it; the tap and the replica follow.

    ``cause`` is ``device`` where they are block devices.
    """
    number, changed = next_set(vm), vm.record
    for disk, size in larger:
        changed = _with(changed, disk, size=size, larger=0)
    changed = msgspec.structs.replace(changed, disk_set=number)
    told = [
        {"disk": disk.index, "path": disk.path, "before_bytes": disk.size, "size_bytes": size} for disk, size in larger
    ]
    text = " ".join(
        f"Disk {disk.index}, {disk.path}, is replicated with {size} bytes, before {disk.size}." for disk, size in larger
    )
    if cause == "device":
        text += " What a block device holds behind its former end is compared."
    config = config_with(vm.parts.tap.config, changed.disks)
    data = {"disks": told, "disk_set": number}
    await exchange(vm, changed, config, EventId.DISK_ENLARGED, text, data, cause=cause)


def _with(record: VmRecord, disk: DiskRecord, **changes: int) -> VmRecord:
    """The record with changes of one disk."""
    disks = [msgspec.structs.replace(each, **changes) if each.index == disk.index else each for each in record.disks]
    return msgspec.structs.replace(record, disks=disks)
