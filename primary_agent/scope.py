"""The scope of a bounded resync: what the tap's dirty map leaves in doubt, and whether the replica fits it.

A compare limited to the map is sound only where the map is complete and the replica stands at a cut of this very log,
at or after the map's base (R28, R34). After a reversal (R41) the replica stands at a cut that both sides have but for
ranges that it tells; then the map has to name all that changed on this side since that cut. Everything else needs whole
disks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from primary_agent.tap_link import TapLink
from protocol.hrl import Geometry
from protocol.position import Position
from shared.errors import NotFoundError, StorageError
from shared.map_file import MapDamagedError, MapFile, MapKind, Range
from shared.planning import ResyncCause
from shared.ports import FileSystem
from shared.sides import ReplicaView
from shared.tap_config import DIRTY_BLOCK_BITS, MAP_NAME
from shared.tap_control import Doubt, TapStatus, Tracking

JOIN_BYTES = 512 << 10
"""Ranges in doubt with no more than this between them are compared as one: hashing is cheaper than asking twice."""
REVERSE_MAP = "reverse.map"
"""In the VM's folder: where the promoted cut differs from the newest that was received (docs/maps.md)."""
POLL_SECONDS = 0.5
"""Between two questions whether the dirty map is complete."""
BOUNDED_CAUSES = frozenset({ResyncCause.TRACKING_LOST.value})
"""Causes of a resync that the map speaks about; any other one needs whole disks."""
REVERSED_CAUSES = BOUNDED_CAUSES | {ResyncCause.REVERSED.value}


@dataclass(frozen=True, slots=True)
class Turned:
    """That the direction was reversed here: the ``baseline`` that the failover to this side began, and the newest cut
    that this side had then of the other's epoch (``common``).
    """

    baseline: bytes
    common: Position


def position_to_prove(doubt: Doubt | None, replica: ReplicaView, causes: Iterable[str]) -> Position | None:
    """The cut that the tap has to know for a compare limited to the map; None where only whole disks will do."""
    cut = replica.cut
    if doubt is None or cut is None or replica.needs_resync or not set(causes) <= BOUNDED_CAUSES:
        return None
    base = bytes.fromhex(doubt.base_epoch)
    if replica.epoch != base or cut.epoch != base:
        return None
    return cut if doubt.base_segment <= cut.segment <= doubt.end_segment else None


def is_joined(doubt: Doubt | None, replica: ReplicaView, causes: Iterable[str], turned: Turned) -> bool:
    """Whether the map names all that changed on this side since the cut at which the former primary stands (R41)."""
    if doubt is None or not set(causes) <= REVERSED_CAUSES or not _is_sound(replica):
        return False
    # The failover's epoch was tracked from its beginning on, and never sent to anybody.
    whole = doubt.base_segment == 0 and bytes.fromhex(doubt.base_epoch) == turned.baseline
    return whole and replica.common == turned.common


def common_to_prove(doubt: Doubt | None, replica: ReplicaView, causes: Iterable[str]) -> Position | None:
    """The cut that the tap has to know where the replica gave up a failover: it stands at a cut of this side's log."""
    common = replica.common
    if doubt is None or common is None or not set(causes) <= REVERSED_CAUSES or not _is_sound(replica):
        return None
    base = bytes.fromhex(doubt.base_epoch)
    if common.epoch != base or replica.epoch != base:
        return None
    return common if doubt.base_segment <= common.segment <= doubt.end_segment else None


def _is_sound(replica: ReplicaView) -> bool:
    """Whether the replica requires a resync for nothing but the reversal."""
    return all(code == ResyncCause.REVERSED.value for code, _ in replica.causes)


async def completed(tap: TapLink, poll: float = POLL_SECONDS) -> TapStatus:
    """Its status once the dirty map that has taken the log's place is complete, or there is none.

    ``poll`` is in seconds. Raises what the tap raises.
    """
    status = await tap.refresh()
    while status.tracking is Tracking.MAP and status.doubt is not None and not status.doubt.complete:
        await asyncio.sleep(poll)
        status = await tap.refresh()
    return status


async def is_bounded(tap: TapLink, replica: ReplicaView, causes: Collection[str], turned: Turned | None = None) -> bool:
    """Whether a compare of what the tap's dirty map leaves in doubt is enough; waits until the map is complete.

    ``turned``: this side was the replica before.
    """
    status = await tap.refresh()
    while status.doubt is not None and not status.doubt.complete:
        await asyncio.sleep(POLL_SECONDS)
        status = await tap.refresh()
    if status.tracking is not Tracking.MAP:
        # What a log beside the map knows is not in it, and is gone once another epoch begins.
        return False
    if turned is not None:
        return is_joined(status.doubt, replica, causes, turned)
    if replica.common is not None:
        cut = common_to_prove(status.doubt, replica, causes)
    else:
        cut = position_to_prove(status.doubt, replica, causes)
    return cut is not None and await tap.require().client.knows_cut(cut)


async def is_logged(tap: TapLink, cut: Position) -> bool:
    """Whether the tap's log holds exactly this cut, chain and all (R34)."""
    try:
        place = await tap.require().client.locate(cut)
    except NotFoundError:
        return False
    return place.position.position() == cut


def read_scope(files: FileSystem, folder: str, vm: bytes, disks: Sequence[Geometry]) -> dict[int, list[Range]]:
    """The ranges in doubt of each disk, in order, with small gaps filled. ``folder`` is the tap's. Blocks.

    Raises StorageError where the map can't be read.
    """
    return ranges_in_doubt(files, f"{folder}/{MAP_NAME}", vm, disks)


def ranges_in_doubt(files: FileSystem, path: str, vm: bytes, disks: Sequence[Geometry]) -> dict[int, list[Range]]:
    """The same of the dirty map at ``path``."""
    with in_doubt(files, path, vm, disks) as found:
        return {disk.index: list(join_ranges(found.ranges(disk.index))) for disk in disks}


def read_reversed(files: FileSystem, folder: str, vm: bytes, disks: Sequence[Geometry]) -> dict[int, list[Range]]:
    """The ranges in which the promoted cut differed from the cut that both sides have. Blocks. Raises StorageError."""
    return ranges_in_doubt(files, f"{folder}/{REVERSE_MAP}", vm, disks)


def both_scopes(first: dict[int, list[Range]], second: dict[int, list[Range]]) -> dict[int, list[Range]]:
    """All that one of both names, of each disk in order, with small gaps filled."""
    return {disk: list(join_ranges(sorted([*ranges, *second.get(disk, ())]))) for disk, ranges in first.items()}


@contextmanager
def in_doubt(files: FileSystem, path: str, vm: bytes, disks: Sequence[Geometry]) -> Iterator[MapFile]:
    """The dirty map at ``path``, to be read. Blocks. Raises StorageError where it can't be."""
    try:
        found = MapFile.open(files, path, MapKind.DIRTY, vm, DIRTY_BLOCK_BITS, disks, write=False)
    except MapDamagedError as error:
        raise StorageError(f"The dirty map can't be used: {error}.", "Whole disks are compared.") from None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}.", "Check the volume.") from error
    try:
        yield found
    finally:
        found.close()


def join_ranges(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges in the order of their offsets, which may overlap, with small gaps between them filled."""
    start = end = -1
    for offset, length in ranges:
        if end >= 0 and offset - end <= JOIN_BYTES:
            end = max(end, offset + length)
            continue
        if end >= 0:
            yield start, end - start
        start, end = offset, offset + length
    if end >= 0:
        yield start, end - start
