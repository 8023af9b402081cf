"""What bounds a resync, kept by the agent itself from a late round on, so that the tap lets go of its map (R32).

While the tap's dirty map stays in force, what is written in a round comes to the same map as what bounds the resync,
and nobody can tell the two apart: each round would compare all of it again, and where that takes longer than a log
lasts it would never end. So the map is copied into a file of the resync and round, what an earlier round kept is added,
and only when that is durable and on record the tap forgets its own. The next map names the writes of one round alone.

The file is a dirty map as ``docs/maps.md`` describes it. It proves nothing by itself: it counts only for the round that
the resync's record names, and a cancel does without it.
"""

from __future__ import annotations

from collections.abc import Sequence

from primary_agent.record import ResyncRecord, VmRecord
from primary_agent.scope import in_doubt, join_ranges, ranges_in_doubt, read_scope
from primary_agent.tap_link import Connection, TapLink
from protocol.hrl import Geometry
from shared.map_file import MapFile, MapKind, Range
from shared.ports import FileSystem, Ports
from shared.tap_config import DIRTY_BLOCK_BITS, MAP_NAME

ROUNDS = 2
"""Rounds of a bounded resync for which the tap's map stays, so that a cancel finds it again."""
PREFIX = "scope-"


def is_to_be_kept(resync: ResyncRecord) -> bool:
    """Whether what bounds this round has to be kept before the tap may forget its map."""
    return resync.bounded_by_map and resync.round > ROUNDS


def keep(
    files: FileSystem, tap_folder: str, folder: str, vm: bytes, disks: Sequence[Geometry], resync: ResyncRecord
) -> None:
    """Keep the tap's map, and what was kept before, in ``folder``, durably, for the round that ``resync`` is in.

    Blocks. Raises StorageError where one of them can't be read, OSError where the file can't be written.
    """
    former = kept(files, folder, vm, disks, resync)
    with in_doubt(files, f"{tap_folder}/{MAP_NAME}", vm, disks) as dirty:
        path = _path(folder, resync.id, resync.round)
        made = MapFile.create(files, path, MapKind.DIRTY, vm, DIRTY_BLOCK_BITS, disks, like=dirty)
    try:
        made.record((disk, offset, length) for disk, ranges in former.items() for offset, length in ranges)
    finally:
        made.close()


def kept(
    files: FileSystem, folder: str, vm: bytes, disks: Sequence[Geometry], resync: ResyncRecord
) -> dict[int, list[Range]]:
    """The ranges of each disk that the record's file names; none where it has no file. Blocks. Raises StorageError."""
    if not resync.kept_round:
        return {disk.index: [] for disk in disks}
    return ranges_in_doubt(files, _path(folder, resync.id, resync.kept_round), vm, disks)


async def late_scope(
    ports: Ports, tap: TapLink, connection: Connection | None, vm: VmRecord, resync: ResyncRecord
) -> dict[int, list[Range]]:
    """What a resync whose scope was kept may have to compare: that, and what the tap's map names while it is in force.

    What is told to the replica as not settled any more is in the map until it is told, and in the file from then on.
    Raises StorageError.
    """
    in_force = connection is not None and connection.status.doubt is not None

    def read() -> dict[int, list[Range]]:
        scope = kept(ports.files, tap.vm_folder, vm.vm, vm.geometry, resync)
        for disk, ranges in read_scope(ports.files, tap.folder, vm.vm, vm.geometry).items() if in_force else ():
            scope[disk] = list(join_ranges(sorted([*scope[disk], *ranges])))
        return scope

    return await ports.workers.run(read)


def drop(files: FileSystem, folder: str, resync: ResyncRecord | None) -> None:
    """Remove the files of all other resyncs and rounds than the one on record. Blocks. Raises OSError."""
    path = _path(folder, resync.id, resync.kept_round) if resync is not None else ""
    for name in files.list(folder):
        if name.startswith(PREFIX) and f"{folder}/{name}" != path:
            files.remove(f"{folder}/{name}")


def _path(folder: str, identity: bytes, number: int) -> str:
    return f"{folder}/{PREFIX}{identity.hex()}-{number}.map"
