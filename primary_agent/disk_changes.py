"""Orders to add a disk to a replicated VM, or to remove one, without another initial replication (R20).

Durable first: once the record has the other disks everything follows by itself. The tap goes over to its dirty map, is
stopped in order and started with the other disks, of which the map names an added one wholly; then a bounded resync
brings what the map names, and with its commit the replica has the other disks as well, from that cut on. The guest's
connections to the tap end for a moment and are made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from primary_agent.enabling import check_disk_path, disk_size, tap_disk
from primary_agent.planned_steps import step_of
from primary_agent.record import DiskRecord, VmRecord
from protocol.hrl import MAX_DISKS
from shared.errors import InvalidStateError, NotFoundError, UsageError
from shared.events import EventId
from shared.states import PlannedStep, ReplicationState
from shared.tap_config import TapConfig
from shared.tap_control import Tracking
from shared.tasks import uninterrupted

if TYPE_CHECKING:
    from primary_agent.vm import PrimaryVm

SERVED_SECONDS = 30.0
"""An order waits so long for the tap that serves the other disks; it goes on by itself."""

LET_GO_SECONDS, LET_GO_POLL_SECONDS = 10.0, 0.1
"""What a compare leaves is gone with the replica's next word, and an order waits for it so long."""

_READY = frozenset({ReplicationState.REPLICATING, ReplicationState.READY_FOR_INITIAL_REPLICATION})


async def add_disk(vm: PrimaryVm, path: str, export: str, others: Sequence[VmRecord]) -> None:
    """Replicate one more disk of the VM; ``others`` are all VMs of this host.

    Raises InvalidStateError where the VM does not replicate without trouble, UsageError, NotFoundError, StorageError or
    DiskInUseError where the disk can't be replicated; nothing was changed then.
    """
    async with vm.ordering:
        check_failover(vm)
        ports, record = vm.parts.surroundings.ports, vm.record
        check_disk_path(path, {disk.path: other.name for other in others for disk in other.disks})
        if len(record.disks) >= MAX_DISKS:
            raise UsageError(f"{vm.name} has {MAX_DISKS} disks, which is the most that a VM can have.")
        size = await ports.workers.run(disk_size, ports.files, path)
        index = record.index_to_come
        disk = DiskRecord(
            index=index, uuid=ports.random.bytes(16), path=path, size=size, export=export or f"disk{index}"
        )
        config = config_with(vm.parts.tap.config, [*record.disks, disk])
        await check_ready(vm)
        # Once it is on record the VM's other disks depend on it: a tap that can't have all of them serves none.
        await vm.parts.tap.require().client.try_disk(config.disks[-1])
        check_state(vm)
        changed = msgspec.structs.replace(
            record,
            disks=[*record.disks, disk],
            excluded=[each for each in record.excluded if each != path],
            disk_set=next_set(vm),
            next_index=index + 1,
        )
        data = {"disk": index, "path": path, "export": disk.export, "size_bytes": size, "disk_set": changed.disk_set}
        text = f"Disk {index} was added: {path}, of {size} bytes, is served as {disk.export}."
        await exchange(vm, changed, config, EventId.DISK_ADDED, text, data)


async def remove_disk(vm: PrimaryVm, name: str, *, exclude: bool) -> None:
    """Replicate a disk no longer: ``name`` is its number, export or path. Its file stays as it is.

    ``exclude``: it stays a disk of the VM that is not replicated. Raises NotFoundError, UsageError for the last disk,
    InvalidStateError where a client is connected to it, or the VM does not replicate without trouble: but where the tap
    does not run, perhaps for want of this very disk, that is no obstacle.
    """
    async with vm.ordering:
        check_failover(vm)
        record, tap = vm.record, vm.parts.tap
        disk = find_disk(record, name)
        if len(record.disks) == 1:
            raise UsageError(
                f"{disk.path} is the only disk of {vm.name}.", f"To end its replication: vmreplica remove {vm.name}"
            )
        if tap.connection is not None:
            await check_ready(vm)
            status = await tap.refresh()
            check_state(vm)
            clients = sum(each.clients for each in status.disks if each.index == disk.index)
            if clients:
                raise InvalidStateError(
                    f"{vm.name} uses disk {disk.index}, {disk.path}: {clients} client(s) are connected to its export "
                    f"{disk.export}.",
                    "Detach the disk from the VM, or shut the VM down, and try again.",
                )
        elif vm.parts.replication.record.resync is not None:
            check_state(vm)
        left = [each for each in record.disks if each.index != disk.index]
        changed = msgspec.structs.replace(
            record,
            disks=left,
            excluded=[*record.excluded, disk.path] if exclude and disk.path not in record.excluded else record.excluded,
            disk_set=next_set(vm),
            next_index=record.index_to_come,
        )
        data = {"disk": disk.index, "path": disk.path, "export": disk.export, "disk_set": changed.disk_set}
        text = f"Disk {disk.index} was removed: {disk.path} is not replicated any more."
        await exchange(vm, changed, config_with(tap.config, left), EventId.DISK_REMOVED, text, data)


def find_disk(vm: VmRecord, name: str) -> DiskRecord:
    """The disk with that number, export or path. Raises NotFoundError."""
    for disk in vm.disks:
        if name in (str(disk.index), disk.export, disk.path):
            return disk
    known = ", ".join(f"{disk.index} ({disk.export}, {disk.path})" for disk in vm.disks)
    raise NotFoundError(f"{vm.name} has no disk {name}.", f"Its disks: {known}.")


def next_set(vm: PrimaryVm) -> int:
    """The number of the next set of disks: records that were rebuilt after a loss may lag behind the replica."""
    dialled = vm.parts.link.dialled
    theirs = dialled.opened.disk_set if dialled is not None else 0
    return 1 + max(vm.record.disk_set, theirs if isinstance(theirs, int) else 0)


def config_with(config: TapConfig, disks: Sequence[DiskRecord]) -> TapConfig:
    """The tap's configuration with these disks. Raises UsageError."""
    changed = msgspec.structs.replace(config, disks=[tap_disk(disk) for disk in disks])
    try:
        msgspec.convert(msgspec.to_builtins(changed), TapConfig, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"The disk can't be served: {error}.", "An export's name has letters, digits, dots, dashes and underscores."
        ) from None
    changed.check()
    return changed


def check_failover(vm: PrimaryVm) -> None:
    """Raises InvalidStateError where the VM runs on the other host, or is about to: its disks there are what counts."""
    replication, name = vm.parts.replication, vm.name
    step = step_of(replication.record.planned)
    if replication.state is ReplicationState.FAILED_OVER or step is PlannedStep.FAILED_OVER:
        host = replication.record.peer_host or vm.record.replica_host
        raise InvalidStateError(
            f"{name} was failed over to {host}: its disks can't be changed here.",
            f"Run `vmreplica reverse {name}` on both hosts, and change its disks on {host}.",
        )
    if replication.state is ReplicationState.PREPARED_FOR_FAILOVER or step is not PlannedStep.GIVEN_UP:
        raise InvalidStateError(
            f"A failover of {name} is prepared: its disks can't be changed now.",
            f"Take that back first: vmreplica failover {name} --prepare --abort",
        )


def check_state(vm: PrimaryVm) -> None:
    """Raises InvalidStateError unless nothing else is going on with the VM."""
    check_failover(vm)
    replication = vm.parts.replication
    if replication.state in _READY and replication.record.resync is None and not replication.record.causes:
        return
    raise InvalidStateError(
        f"{vm.name} is in state {replication.state.title}: its disks can't be changed now.",
        f"Change them while it replicates and nothing is compared; see `vmreplica status {vm.name}`.",
    )


async def check_ready(vm: PrimaryVm, what: str = "added or removed") -> None:
    """Raises InvalidStateError unless the VM is well, and its replica, which is connected, can follow."""
    check_state(vm)
    if not vm.parts.tap.serves(vm.parts.tap.require().status):
        raise InvalidStateError(
            f"The tap of {vm.name} has not yet taken over its disks as they were changed last.", "Try again in a while."
        )
    await vm.check_gate("change of disks")
    dialled = vm.parts.link.dialled
    if dialled is None or not isinstance(dialled.opened.disk_set, int):
        host = dialled.welcome.host if dialled is not None else vm.record.replica
        raise InvalidStateError(
            f"The replica agent at {host} can't have a disk {what}: its version does not know that.",
            "Install this version there, too; then try again.",
        )
    await _map_let_go(vm)
    check_state(vm)


async def _map_let_go(vm: PrimaryVm) -> None:
    """Wait until the tap has let go of the map of a compare that has just ended. Raises InvalidStateError.

    Taken over in the middle of that, the map would begin at a cut from before the compare, where the replica does not
    stand any more: whole disks would have to be compared (R34).
    """
    tap, clock = vm.parts.tap, vm.parts.surroundings.ports.clock
    end = clock.monotonic() + LET_GO_SECONDS
    while (status := tap.require().status).tracking is Tracking.ON and status.doubt is not None:
        if clock.monotonic() > end:
            raise InvalidStateError(
                f"A compare of {vm.name} has only just ended, and its tap keeps what bounded it until the replica says "
                "that it has all of it.",
                "Try again in a while.",
            )
        await asyncio.sleep(LET_GO_POLL_SECONDS)
        await tap.refresh()


async def exchange(
    vm: PrimaryVm,
    record: VmRecord,
    config: TapConfig,
    number: EventId,
    text: str,
    data: dict[str, Any],
    *,
    cause: str = "administrator",
) -> None:
    """Put it on record, and have the tap follow; returns when it serves the other disks, or after a while."""
    parts = vm.parts
    tap, former = parts.tap, parts.tap.config
    # From here on no session begins before the tap has followed.
    tap.config = config
    event = parts.replication.event(number, text, cause=cause, data=data)
    try:
        await uninterrupted(parts.replication.set_vm(record, event))
    except BaseException:
        if parts.replication.vm is not record:
            tap.config = former
        raise
    parts.observer.forget_sizes()
    parts.replication.replan()
    tap.reconnect()
    try:
        async with asyncio.timeout(SERVED_SECONDS):
            await tap.followed()
    except TimeoutError:
        # What is in its way is told by the status.
        return
    finally:
        parts.link.poke.notify()
