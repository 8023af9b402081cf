"""Which disks a VM has at which point, where some were added or removed at the primary.

A set of disks is exchanged by a resync, with its commit (I1, I9): every point of an older epoch has the old set, every
one from the commit on the new one. Until then an added disk is a hole that no point has, and what is received of it
lies in the differencing file; what was removed stays as it is. From then on the file of a removed disk is not changed
any more, and serves the points that have it until the last of them is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from protocol.hrl import Geometry
from protocol.messages import Open
from protocol.position import NO_EPOCH, Ancestor, Lineage, Position, extend
from replica_agent.finishing import finish
from replica_agent.ledger import Draft
from replica_agent.parts import VmParts
from replica_agent.record import (
    DiskRecord,
    ExportedDiskRecord,
    FormerDiskRecord,
    FormerSizeRecord,
    PromotionRecord,
    ResyncRecord,
    VmRecord,
    lineage_records,
)
from shared.events import EventId
from shared.geometry import compare_geometry, is_growth, is_other_set


def number_of(body: Open) -> int:
    """The number of the primary's set of disks; 0 where it does not tell."""
    return body.disk_set if isinstance(body.disk_set, int) else 0


def mismatch_of(theirs: Sequence[Geometry], number: int, vm: VmRecord) -> str:
    """What differs so that nothing may move, where the primary has ``theirs`` as its set ``number``; empty if nothing.

    A newer set may differ, in disks that came or went; an older one, or one of other disks, is somebody else's (I9).
    """
    theirs, ours = tuple(theirs), vm.geometry
    mismatch = compare_geometry(theirs, ours)
    if not mismatch or is_growth(theirs, ours):
        return ""
    if not is_other_set(theirs, ours):
        return mismatch
    if number <= vm.disk_set:
        return f"{mismatch}; the primary's set of disks is number {number}, and the replica has number {vm.disk_set}"
    reused = sorted({disk.index for disk in theirs} & {disk.index for disk in vm.former})
    return f"disk {reused[0]} was removed, and its number is used anew" if reused else ""


def changed_set(theirs: Sequence[Geometry], number: int, vm: VmRecord) -> list[DiskRecord] | None:
    """The disks that a resync is to bring, those that stay with our sizes; None where all do."""
    known = {disk.index: disk for disk in vm.disks}
    if number <= vm.disk_set or ({disk.index for disk in theirs} == set(known) and not _grows(vm)):
        return None
    fresh = (DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size) for disk in theirs)
    return [known.get(disk.index, disk) for disk in fresh]


def _grows(vm: VmRecord) -> bool:
    """Whether a disk has grown for a resync that is not committed yet."""
    return any(former.until == NO_EPOCH for disk in vm.disks for former in disk.sizes)


def joining(record: ResyncRecord, vm: VmRecord) -> list[Geometry]:
    """The disks that an open resync adds."""
    known = {disk.index for disk in vm.disks}
    return [disk.geometry for disk in record.disks or () if disk.index not in known]


def exchange(draft: Draft, record: ResyncRecord) -> None:
    """Part of the transaction that commits a resync: the set of disks that it brings is the VM's from its epoch on."""
    draft.vm.disks = [_with_sizes(disk, record.epoch) for disk in _without_old_sizes(draft)]
    if record.disks is None:
        return
    vm, staying, known = draft.vm, {disk.index for disk in record.disks}, {disk.index for disk in draft.vm.disks}
    left = [
        FormerDiskRecord(
            index=disk.index,
            uuid=disk.uuid,
            size=disk.size,
            since=disk.since,
            until=record.epoch,
            path=disk.path,
            sizes=disk.sizes,
        )
        for disk in vm.disks
        if disk.index not in staying
    ]
    came = [disk.index for disk in record.disks if disk.index not in known]
    grown = {disk.index: disk for disk in vm.disks}
    disks = [
        msgspec.structs.replace(disk, since=record.epoch) if disk.index in came else grown[disk.index]
        for disk in record.disks
    ]
    draft.vm.next_index = next_index(vm)
    draft.vm.disks, draft.vm.former, draft.vm.disk_set = disks, [*vm.former, *left], record.disk_set
    for index in came:
        text = f"Disk {index} was added: recovery points have it from now on."
        draft.event(EventId.DISK_ADDED, text, disk=index, disk_set=record.disk_set)
    for disk in left:
        text = f"Disk {disk.index} was removed: only older recovery points have it, and it goes with the last of them."
        draft.event(EventId.DISK_REMOVED, text, disk=disk.index, disk_set=record.disk_set)


def _with_sizes(disk: DiskRecord, epoch: bytes) -> DiskRecord:
    """The disk has the size that it grew to from ``epoch`` on."""
    if not any(former.until == NO_EPOCH for former in disk.sizes):
        return disk
    sizes = [
        msgspec.structs.replace(former, until=epoch) if former.until == NO_EPOCH else former for former in disk.sizes
    ]
    return msgspec.structs.replace(disk, sizes=sizes)


def _without_old_sizes(draft: Draft) -> list[DiskRecord]:
    """The disks without those former sizes that no point has any more."""
    order = draft.vm.order(draft.replication.ancestors)
    oldest = min((order.get(epoch, -1) for epoch in _epochs_of_points(draft)), default=-1)

    def is_needed(former: FormerSizeRecord) -> bool:
        return former.until == NO_EPOCH or order.get(former.until, -1) > oldest

    return [msgspec.structs.replace(disk, sizes=list(filter(is_needed, disk.sizes))) for disk in draft.vm.disks]


def _epochs_of_points(draft: Draft) -> set[bytes]:
    record = draft.replication
    epochs = {log.older.epoch for log in draft.points.logs}
    epochs |= {record.undo.older.epoch} if record.undo is not None else set()
    return epochs | ({record.applied.epoch} if record.applied is not None else set())


def begin_epoch(draft: Draft, step: Ancestor) -> None:
    """Part of a transaction: the baseline's history goes on with ``step``.

    The lineage is bounded. Of what falls out of it those epochs stay on record that tell which disks a point has: an
    older point outlives any number of baselines, and so does what it needs.
    """
    before = draft.replication.ancestors
    after = extend(before, step)
    draft.replication.lineage = lineage_records(after)
    vm, told = draft.vm, {each.epoch for each in after}
    every: list[DiskRecord | FormerDiskRecord] = [*vm.disks, *vm.former]
    changes = {disk.since for disk in every} | {former.until for disk in every for former in disk.sizes}
    changes |= {disk.until for disk in vm.former}
    needed = (changes | _epochs_of_points(draft) if changes - {NO_EPOCH} else set()) - told
    epochs = dict.fromkeys([*vm.epochs, *(each.epoch for each in before)])
    draft.vm.epochs = [epoch for epoch in epochs if epoch in needed]


def next_index(vm: VmRecord) -> int:
    """The lowest index that no disk of the VM ever had, as far as this side knows."""
    known = [*(disk.index for disk in vm.disks), *(disk.index for disk in vm.former), *vm.apart]
    return max(vm.next_index, 1 + max(known))


def forget_sets(draft: Draft) -> None:
    """Part of a transaction after which there is no point but the newest: it has these disks, and nothing has others.

    The files of former disks are deleted afterwards (:func:`remove_unnamed`).
    """
    draft.vm.next_index = next_index(draft.vm)
    draft.vm.disks = [msgspec.structs.replace(disk, since=NO_EPOCH, sizes=[]) for disk in draft.vm.disks]
    draft.vm.former, draft.vm.epochs = [], []


@dataclass(frozen=True, slots=True)
class OtherDisks:
    """What a point has else than the newest one, by index: it lacks those that were added since, and has removed ones.

    False where it has the same disks.
    """

    added: list[int]
    removed: list[int]

    @classmethod
    def of(cls, vm: VmRecord, lineage: Lineage, point: Position) -> OtherDisks:
        return cls.between(vm, set(vm.disks_at(lineage, point.epoch)))

    @classmethod
    def between(cls, vm: VmRecord, there: Collection[int]) -> OtherDisks:
        """Of a point that has the disks ``there``."""
        here = {disk.index for disk in vm.disks}
        return cls(sorted(here.difference(there)), sorted(set(there) - here))

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)

    def __str__(self) -> str:
        texts = [f"disk {index} was added since" for index in self.added]
        return ", ".join([*texts, *(f"disk {index} was removed since" for index in self.removed)])


def others_of(vm: VmRecord, record: PromotionRecord) -> OtherDisks:
    """What a promoted point has else than the newest one, as long as that one's disks are the VM's."""
    return OtherDisks.between(vm, record.disks) if record.disks is not None else OtherDisks([], [])


def promoted_disks(vm: VmRecord, record: PromotionRecord | None) -> list[DiskRecord]:
    """The disks that a failover serves: those of the promoted point. Without one the present disks."""
    if record is None or record.disks is None:
        return vm.disks
    known = {disk.index: disk for disk in [*_former(vm), *vm.disks]}
    return [known[index] for index in record.disks]


def served_size(disk: DiskRecord, record: PromotionRecord | None) -> int:
    """The bytes that clients see of one of those: an older point may have fewer than its file has by now."""
    if record is None or record.handed_over:
        return disk.size
    return next((each.size for each in record.smaller if each.index == disk.index), disk.size)


def kept_disks(vm: VmRecord, record: PromotionRecord | None) -> list[DiskRecord]:
    """The other disks, which only other points have."""
    served = {disk.index for disk in promoted_disks(vm, record)}
    return [disk for disk in [*vm.disks, *_former(vm)] if disk.index not in served]


def _former(vm: VmRecord) -> list[DiskRecord]:
    return [DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size, path=disk.path) for disk in vm.former]


def adopt_promoted(draft: Draft) -> None:
    """Part of the transaction by which a failover has settled: the disks of the promoted point are the VM's for good.

    There is no other point any more. What was added after it goes (:func:`remove_unnamed`).
    """
    record = draft.promotion
    assert record is not None
    gone = others_of(draft.vm, record).added
    kept = promoted_disks(draft.vm, record)
    draft.vm.next_index = next_index(draft.vm)
    draft.vm.disks = kept
    forget_sets(draft)
    if gone:
        names = ", ".join(str(index) for index in gone)
        text = f"Disk {names} of {draft.vm.name} was added after the promoted recovery point, and is deleted."
        draft.event(EventId.DISK_REMOVED, text, cause="failover", disks=gone)


def smaller_disks(vm: VmRecord, lineage: Lineage, point: Position) -> list[ExportedDiskRecord]:
    """Those of the point's disks that were enlarged after it, with the bytes that it has of them."""
    there = vm.disks_at(lineage, point.epoch)
    return [
        ExportedDiskRecord(index=disk.index, size=size)
        for disk in [*vm.disks, *_former(vm)]
        if (size := there.get(disk.index, disk.size)) < disk.size
    ]


async def exchange_at_once(parts: VmParts, theirs: Sequence[Geometry], number: int) -> None:
    """Before the first point there is none that has the old set: ``order`` is held. Raises OSError or StorageError."""
    vm = parts.ledger.vm
    disks = changed_set(theirs, number, vm)
    if disks is None:
        return
    known, geometry = {disk.index for disk in vm.disks}, tuple(disk.geometry for disk in disks)
    await finish(parts.ports.workers.run(parts.disks.join, [disk for disk in geometry if disk.index not in known]))
    async with parts.ledger.transaction() as draft:
        draft.vm.next_index = next_index(draft.vm)
        draft.vm.disks, draft.vm.disk_set = disks, number
        text = f"The primary has other disks now: {compare_geometry(geometry, vm.geometry)}."
        draft.event(EventId.DISK_ADDED, text, disk_set=number)
    parts.disks.settle(geometry)
    await finish(parts.ports.workers.run(remove_unnamed, parts))


async def forget_former(parts: VmParts) -> None:
    """Delete the files of removed disks that no point has any more. Raises OSError, LedgerError."""
    ledger = parts.ledger
    if not ledger.vm.former or ledger.promotion is not None:
        # All points are kept until it is undone or committed, and then it is :func:`forget_sets` that does it.
        return
    async with ledger.transaction() as draft:
        lineage = draft.replication.ancestors
        points = _epochs_of_points(draft)
        needed: set[int] = set().union(*(draft.vm.disks_at(lineage, epoch) for epoch in points))
        gone = [disk for disk in draft.vm.former if disk.index not in needed]
        if gone:
            draft.vm.former = [disk for disk in draft.vm.former if disk.index in needed]
            names = ", ".join(str(disk.index) for disk in gone)
            text = f"The last recovery point that had it is gone, and so is what was kept of disk {names}."
            draft.event(EventId.DISK_REMOVED, text, cause="deleted", disks=[disk.index for disk in gone])
    if gone:
        await finish(parts.ports.workers.run(remove_unnamed, parts))


def remove_unnamed(parts: VmParts) -> None:
    """Delete disk files that no record names: of removed disks, and of ones that were never wholly added. Blocks."""
    vm, resync, promotion = parts.ledger.vm, parts.ledger.resync, parts.ledger.promotion
    if promotion is not None and promotion.handed_over:
        # The primary agent of this host has the disks, and may have got others.
        return
    named = {*vm.all_sizes, *vm.apart}
    if resync is not None:
        named |= {disk.index for disk in resync.disks or ()}
    for name in parts.ports.files.list(parts.layout.folder):
        index = parts.layout.read_disk(name)
        if index is not None and index not in named:
            parts.ports.files.remove(f"{parts.layout.folder}/{name}")
