"""Making the replica of a VM at its primary's first OPEN, and taking it away: durable steps that a crash may part.

The store is the first thing made and the last taken away. One without any record belongs to a creation or a removal
that was interrupted: nothing in its folder is worth keeping.
"""

from __future__ import annotations

from collections.abc import Collection

from protocol.messages import ErrorCode, Open
from replica_agent.description import keeper_of
from replica_agent.disk_sets import number_of
from replica_agent.disks import BaseDisks
from replica_agent.finishing import finish
from replica_agent.layout import Layout
from replica_agent.ledger import Ledger, create_state
from replica_agent.record import DiskRecord, VmRecord
from replica_agent.refusals import Refusal
from shared.description import NAME as DESCRIPTION_NAME
from shared.errors import StoreDamagedError
from shared.handover import RANGES_NAME
from shared.ports import Ports, Store

SECTOR = 512


def plan_vm(body: Open, peer: str, now: float) -> VmRecord:
    """The record of the VM that ``body`` names. Raises Refusal for disks that can't be kept."""
    if not body.disks:
        raise Refusal(ErrorCode.GEOMETRY, f"{body.name} has no disks.", "Enable it with at least one disk.")
    if len({disk.index for disk in body.disks}) != len(body.disks):
        raise Refusal(ErrorCode.GEOMETRY, f"Two disks of {body.name} have the same index.", "Enable it anew.")
    for disk in body.disks:
        if disk.size % SECTOR:
            raise Refusal(
                ErrorCode.GEOMETRY,
                f"Disk {disk.index} of {body.name} has {disk.size} bytes, which is no multiple of {SECTOR}.",
                "Enlarge it to whole sectors.",
            )
    disks = [DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size) for disk in body.disks]
    number = number_of(body)
    return VmRecord(vm=body.vm, name=body.name, disks=disks, created_time=now, peer=peer, disk_set=number)


async def create_vm(ports: Ports, folder: str, record: VmRecord) -> Ledger:
    """Make folder, store, disks, and last of all the records. Raises VmreplicaError or OSError."""
    layout = Layout(folder)
    await finish(ports.workers.run(ports.files.make_folder, folder))
    store = await _empty_store(ports, folder)
    try:
        await finish(ports.workers.run(_make_files, ports, layout, record))
        ledger = await create_state(store, record, ports.clock)
        ledger.keeper = keeper_of(ports, folder)
        await ledger.describe()
        return ledger
    except BaseException:
        await store.close()
        raise


def _make_files(ports: Ports, layout: Layout, record: VmRecord) -> None:
    """Blocks."""
    ports.files.make_folder(layout.spool)
    ports.files.make_folder(layout.resyncs)
    BaseDisks(ports.files, layout, record.geometry).create()
    ports.files.sync_folder(layout.folder.rpartition("/")[0])


async def _empty_store(ports: Ports, folder: str) -> Store:
    """A store without records: a fresh one, or what an interrupted creation or removal left."""
    try:
        return await ports.stores.open(folder, create=True)
    except StoreDamagedError:
        store = await ports.stores.open(folder)
        if store.names():
            await store.close()
            raise
        return store


async def remove_vm(
    ports: Ports, folder: str, store: Store, *, keep_disks: str = "", only: Collection[int] | None = None
) -> None:
    """Forget a VM whose files are closed. Its disks, or ``only`` those of these indexes, are moved to the folder
    ``keep_disks``, or deleted without one.
    """
    if keep_disks:
        await finish(ports.workers.run(_move_disks, ports, Layout(folder), keep_disks, only))
    await finish(store.commit(dict.fromkeys(store.names())))
    await store.close()
    await finish(ports.workers.run(clear_folder, ports, folder))


def _move_disks(ports: Ports, layout: Layout, target: str, only: Collection[int] | None) -> None:
    """Blocks. Both folders are on one volume."""
    ports.files.make_folder(target)
    for name in ports.files.list(layout.folder):
        index = layout.read_disk(name)
        if index is not None and (only is None or index in only):
            ports.files.rename(f"{layout.folder}/{name}", f"{target}/{name}")
    ports.files.sync_folder(target)
    ports.files.sync_folder(layout.folder)


def clear_folder(ports: Ports, folder: str) -> None:
    """Delete a VM's folder, the description first, the store last. Blocks."""
    layout = Layout(folder)
    # Nobody may rebuild from it what is being deleted.
    ports.files.remove(f"{folder}/{DESCRIPTION_NAME}")
    ports.files.sync_folder(folder)
    for tree in (layout.spool, layout.resyncs, layout.undo_logs, layout.overlays, layout.tap):
        ports.files.remove_tree(tree)
    for name in ports.files.list(folder):
        if name.startswith(("disk-", "export-", "import-", "reverse.map", "doubt.map", RANGES_NAME)):
            ports.files.remove(f"{folder}/{name}")
    ports.files.sync_folder(folder)
    ports.files.remove_tree(folder)
