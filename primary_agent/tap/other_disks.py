"""A start with other disks, or larger ones, than the tap was stopped with: what was known goes on to be known.

The order that makes this sound is the agent's: the running tap leaves its log, so that the dirty map names all that the
replica may lack; it is stopped in order; only then are its disks configured anew. The start after that makes the maps
anew for the new disks, each in one step: what they said of the disks that stay, every block of a disk that came, and
of one that grew whatever lies behind its old end and is no hole, which the replica has there.
A crash anywhere leaves the old maps with the old state, or the new ones, which this finds just the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from primary_agent.tap.dirty_map import DirtyMap
from primary_agent.tap.disks import Disk
from primary_agent.tap.state import Status, TapState
from shared.map_file import MapDamagedError, MapFile, MapKind
from shared.ports import FileSystem
from shared.tap_control import Tracking


def map_of_other_disks(
    files: FileSystem, path: str, kind: MapKind, vm: bytes, region_bits: int, disks: Sequence[Disk]
) -> MapFile | None:
    """The map at ``path``, which is about other disks, made anew for ``disks``; None where it says nothing of them.

    Of a dirty map all blocks of a disk that came are set: whatever it holds, the replica does not have it. Blocks.
    Raises OSError where it can't be made; the old one stays then.
    """
    geometry = [disk.config.geometry for disk in disks]
    try:
        known = MapFile.disks_of(files, path, kind, vm, region_bits)
        sizes = {disk.index: disk.size for disk in known}
        staying = [disk.index for disk in disks if disk.index in sizes]
        if not staying or any(disk.size < sizes[disk.index] for disk in disks if disk.index in sizes):
            return None
        former = MapFile.open(files, path, kind, vm, region_bits, known, write=False)
    except MapDamagedError:
        return None
    try:
        behind: list[tuple[int, int, int]] = []
        if kind is MapKind.DIRTY:
            behind = [part for disk in disks for part in _unknown(disk, sizes.get(disk.index))]
        return MapFile.create(files, path, kind, vm, region_bits, geometry, like=former, also=behind)
    finally:
        former.close()


def _unknown(disk: Disk, end: int | None) -> Iterator[tuple[int, int, int]]:
    """What the former map, of a disk that ended at ``end``, can't tell: index, offset and length.

    All of a disk that came (None); of one that grew what is no hole behind its end, which is all of a block device.
    """
    if end is None:
        yield disk.index, 0, disk.size
    elif disk.size > end:
        for extent in disk.file.extents(end, disk.size - end):
            if not extent.hole:
                yield disk.index, extent.offset, extent.length


def as_it_was(state: TapState, disks: Sequence[Disk], dirty: DirtyMap | None) -> tuple[TapState, Sequence[Disk]]:
    """State and disks, for checking, without those disks that came or went in order since the state was written.

    Anything but an order is left as it is: the check then finds that the disks are others.
    """
    stamped, present = {stamp.index for stamp in state.disks}, {disk.index for disk in disks}
    ordered = state.status is Status.CLEAN and state.tracking is Tracking.MAP
    if stamped == present or not ordered or dirty is None or not dirty.is_complete(state.epoch):
        return state, disks
    stamps = [stamp for stamp in state.disks if stamp.index in present]
    if not stamps:
        return state, disks
    return msgspec.structs.replace(state, disks=stamps), [disk for disk in disks if disk.index in stamped]
