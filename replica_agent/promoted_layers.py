"""What a promoted VM's disks are made of: overlays over undo logs over the disks, so that all of it can be undone.

Nothing here changes a disk or an undo log. Everything but what only looks at records blocks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import msgspec

from protocol.position import Position
from replica_agent.disk_sets import promoted_disks
from replica_agent.parts import VmParts
from replica_agent.point_disks import export_name
from replica_agent.record import DiskRecord, PositionRecord, PromotionRecord, UndoRecord
from replica_agent.replay import Replay, Source
from replica_agent.undo_records import open_log
from shared.errors import InvalidStateError
from shared.map_file import MapFile, MapKind
from shared.overlay import Overlay, overlay_files
from shared.ports import FileIdentity
from shared.tap_config import DIRTY_BLOCK_BITS, MAX_LAYERS, TapDisk, TapLayer, TapOverlay

Touched = tuple[int, int, int]
"""Disk, offset and length in bytes."""


def layer_records(parts: VmParts, record: PromotionRecord) -> list[UndoRecord]:
    """The undo logs through which the promoted cut is read, the oldest first; none where the disks are at it.

    Raises InvalidStateError where it is no point any more.
    """
    replication, logs = parts.ledger.replication, parts.history.logs
    at_cut = record.cut is not None and record.cut == replication.applied and replication.applying is None
    if at_cut or (record.cut is not None and record.serving and not record.older):
        return []
    if (found := _logs_to(logs, record.cut)) is not None:
        return found
    cut, name = record.cut.position if record.cut is not None else "", parts.ledger.vm.name
    raise InvalidStateError(
        f"{name} has no recovery point {cut} any more.", f"Undo the failover with `vmreplica failover {name} --undo`."
    )


def _logs_to(logs: list[UndoRecord], cut: PositionRecord | None) -> list[UndoRecord] | None:
    """Those that lead from the disks back to ``cut``, the oldest first; None where none does."""
    return next((logs[number:] for number, log in enumerate(logs) if log.older == cut), None)


def check_layers(parts: VmParts, cut: Position) -> None:
    """Whether a tap can read ``cut`` through the undo logs: asked before a failover to it is durable.

    Raises InvalidStateError where they are too many, or where what was kept of a removed disk is not there,
    UndoDamagedError where one can't be used, and OSError.
    """
    name, found = parts.ledger.vm.name, _logs_to(parts.history.logs, PositionRecord.of(cut)) or []
    if len(found) > MAX_LAYERS:
        raise InvalidStateError(
            f"{len(found)} undo logs lead to recovery point {cut} of {name}, and its disks can be read through at most "
            f"{MAX_LAYERS}.",
            "Choose a newer point; keep fewer of them from now on ([points] in the configuration).",
        )
    for log in found:
        open_log(parts.ports, parts.layout, parts.ledger, log).close()
    vm = parts.ledger.vm
    there = parts.ledger.disks_at(cut) if found else {}
    for disk in (each for each in vm.former if each.index in there):
        try:
            _identity(parts, DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size))
        except OSError as error:
            raise InvalidStateError(
                f"Recovery point {cut} of {name} has disk {disk.index}, which was removed since. What was kept of it "
                f"at {parts.disks.path(disk.index)} can't be read: {error.strerror}.",
                "Bring the file back, or choose a newer point.",
            ) from error


def tap_layers(parts: VmParts, record: PromotionRecord) -> list[TapLayer]:
    """Those undo logs as the tap's configuration names them."""
    return [
        TapLayer(path=parts.layout.undo(log.first, log.last), length=log.length, chain=log.chain.hex())
        for log in layer_records(parts, record)
    ]


def tap_disks(parts: VmParts, record: PromotionRecord) -> list[TapDisk]:
    """The disks as the tap's configuration names them, with overlays as long as they are in layers."""
    disks, smaller = [], {disk.index: disk.size for disk in record.smaller}
    for disk in promoted_disks(parts.ledger.vm, record):
        overlay = TapOverlay(path=parts.layout.promoted_overlay(disk.index), id=record.epoch.hex())
        disks.append(
            TapDisk(
                index=disk.index,
                uuid=disk.uuid.hex(),
                path=parts.disks.path(disk.index),
                size=disk.size,
                export=export_name(disk.index),
                overlay=overlay if record.layered else msgspec.UNSET,
                served=smaller.get(disk.index, msgspec.UNSET),
            )
        )
    return disks


def other_sizes(parts: VmParts, record: PromotionRecord) -> dict[int, int] | msgspec.UnsetType:
    """Sizes of disks that the tap does not serve, and that its undo logs may be about; UNSET where there are none."""
    if not layer_records(parts, record):
        return msgspec.UNSET
    served = {disk.index for disk in promoted_disks(parts.ledger.vm, record)}
    return {index: size for index, size in parts.ledger.vm.all_sizes.items() if index not in served} or msgspec.UNSET


def create_overlays(parts: VmParts, record: PromotionRecord) -> None:
    """Make empty overlays, durably, over the disks as they are now. Raises OSError."""
    files = parts.ports.files
    files.make_folder(parts.layout.tap)
    for disk in promoted_disks(parts.ledger.vm, record):
        path, identity = parts.layout.promoted_overlay(disk.index), _identity(parts, disk)
        Overlay.create(files, path, parts.vm, disk.geometry, record.epoch, identity)
    files.sync_folder(parts.layout.tap)
    files.sync_folder(parts.layout.folder)


def _identity(parts: VmParts, disk: DiskRecord) -> FileIdentity:
    """Of a disk's file. Only the present ones are open."""
    if disk.index in parts.disks.sizes:
        return parts.disks.file(disk.index).identity()
    path = parts.disks.path(disk.index)
    file = parts.ports.files.open(path)
    try:
        if file.size() != disk.size:
            raise OSError(errno.EIO, f"it has {file.size()} bytes, and must have {disk.size}", path)
        return file.identity()
    finally:
        file.close()


def remove_overlays(parts: VmParts) -> None:
    """Delete the overlays. Raises OSError."""
    for disk in parts.disks.geometry:
        for path in overlay_files(parts.layout.promoted_overlay(disk.index)):
            parts.ports.files.remove(path)


def write_reverse_map(parts: VmParts, record: PromotionRecord) -> None:
    """Note durably in which blocks the promoted cut and the newest received one may differ (R41). Raises OSError.

    What the undo logs' indexes say is enough for that, and quickly read; some blocks between are named in vain.
    """
    path, files = parts.layout.reverse_map, parts.ports.files
    if not record.older or record.disks is not None:
        # With other disks all is compared anyway.
        files.remove(path)
        return
    made = MapFile.create(files, path, MapKind.DIRTY, parts.vm, DIRTY_BLOCK_BITS, parts.disks.geometry)
    try:
        made.record(_touched(parts, record))
    finally:
        made.close()


def _touched(parts: VmParts, record: PromotionRecord) -> Iterator[Touched]:
    """What applies changed since the promoted cut, and what others would that were received."""
    for log in layer_records(parts, record):
        for disk, start, end in parts.history.log(log).spans():
            # A disk that came and went between the two is part of neither.
            if disk in parts.disks.sizes:
                yield disk, start, end - start
    spool, merge = parts.applier.spool, parts.applier.merge
    replay = Replay(parts.ports.files, parts.vm, parts.disks)
    sources = [*(merge.sources if merge is not None else ())]
    sources += [Source.of(segment) for segment in (spool.segments if spool is not None else ())]
    for source in sources:
        for table, _ in replay.tables(source):
            yield from table[["disk", "offset", "length"]].tolist()
