"""A VM that changes from one agent of its host to the other: what the one says of it, and the ranges that go along.

The agents never speak with each other: ``vmreplica reverse`` carries this from the agent that lets the VM go to the one
that takes it (``docs/reversing.md``). The replica agent may have been taken over, so nothing in it that leads root
anywhere is believed: primary_agent.believing and the command itself hold it against root's own files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, Any

import msgspec

from protocol.hrl import MAX_DISK_BYTES, MAX_DISKS, Geometry
from protocol.position import MAX_LINEAGE, Ancestor, Lineage, Position
from shared.errors import UsageError
from shared.map_file import MapFile, MapKind, Range
from shared.ports import FileIdentity, FileSystem
from shared.tap_config import DIRTY_BLOCK_BITS
from shared.tap_control import Hex16

RANGES_NAME = "handover.ranges"
"""The file in the VM's folder that has the ranges of a hand-over, for ``vmreplica reverse`` to read."""
RANGES_MAX = 1 << 20
"""Above so many ranges neighbours are taken as one: more is compared then, never less."""
PLAIN_MAX = RANGES_MAX * 18

_RANGE = struct.Struct("<HQQ")

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Path = Annotated[str, msgspec.Meta(pattern=r"^/[^\0]*\Z", max_length=4096)]


def copy_disk(folder: str, index: int) -> str:
    """Where a copy in ``folder`` has a disk that was never anywhere else."""
    return f"{folder}/disk-{index}.raw"


class Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base: a field that nobody reads is a mistake worth refusing."""


class Place(Part):
    """A position as JSON."""

    epoch: Hex16
    segment: Count
    entry: Count
    chain: Hex16

    @classmethod
    def of(cls, position: Position) -> Place:
        return cls(
            epoch=position.epoch.hex(), segment=position.segment, entry=position.entry, chain=position.chain.hex()
        )

    @property
    def position(self) -> Position:
        return Position(bytes.fromhex(self.epoch), self.segment, self.entry, bytes.fromhex(self.chain))


class Step(Part):
    """A step of a lineage as JSON."""

    epoch: Hex16
    parent: Hex16
    parent_segment: Count


class HandedDisk(Part):
    """One disk: ``inode`` and ``mtime_ns`` are its file's when the tap had stopped, 0 while it runs."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uuid: Hex16
    path: Path
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]
    export: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,255}\Z")]
    inode: int = 0
    mtime_ns: int = 0

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.index, self.size, bytes.fromhex(self.uuid))


class HandOver(Part):
    """What the agent that lets a VM go says of it.

    ``to``: the role that this host gets. ``epoch`` and ``lineage`` are the baseline's. ``common`` is the cut of both
    sides' histories that the ranges are about: these disks are as of it but in them. None where there is no such cut,
    for ``reason``: then whole disks are compared. ``here`` is the position that the disks are at, None where no cut
    names it. ``peer`` is the other host, ``written`` whether anything was written here since the failover.
    """

    id: Hex16
    """Of this hand-over: by it the agent that takes the VM knows one that it has taken already."""
    vm: Hex16
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    to: str
    disks: Annotated[list[HandedDisk], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    epoch: Hex16
    lineage: Annotated[list[Step], msgspec.Meta(max_length=MAX_LINEAGE)] = []
    common: Place | None = None
    reason: str = ""
    here: Place | None = None
    peer: str = ""
    interval_seconds: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 300.0
    tap_folder: str = ""
    """Where the tap runs on that serves the disks; empty where it was stopped,"""
    runtime_folder: str = ""
    """and the folder of its sockets."""
    written: bool = False
    ranges_path: str = ""
    ranges_bytes: Count = 0
    ranges_digest: str = ""
    """Of the ranges, as they are carried: BLAKE2b-256 in hex. Empty where there are none."""
    disk_set: Count = 0
    """The number that these disks have from now on as a set: at the side that becomes the primary a higher one than its
    copy had, and 0 at the other, since what was failed over is what counts, whatever was still to come of a change."""
    next_index: Count = 0
    """No disk of the VM ever had this index or a higher one."""

    @classmethod
    def read(cls, plain: dict[str, Any]) -> HandOver:
        """As it came with an order. Raises UsageError naming the field."""
        try:
            return msgspec.convert(plain, cls, strict=True)
        except msgspec.ValidationError as error:
            raise UsageError(f"The hand-over is not valid: {error}.", "Run `vmreplica reverse` again.") from None

    @property
    def vm_id(self) -> bytes:
        return bytes.fromhex(self.vm)

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        return tuple(disk.geometry for disk in self.disks)

    @property
    def ancestors(self) -> Lineage:
        return tuple(
            Ancestor(bytes.fromhex(each.epoch), bytes.fromhex(each.parent), each.parent_segment)
            for each in self.lineage
        )


def steps(lineage: Lineage) -> list[Step]:
    """A lineage as a hand-over has it."""
    return [
        Step(epoch=each.epoch.hex(), parent=each.parent.hex(), parent_segment=each.parent_segment) for each in lineage
    ]


def is_same_file(disk: HandedDisk, found: FileIdentity) -> bool:
    """Whether nobody changed the disk since the tap had stopped (I10)."""
    return not disk.inode or (disk.inode, disk.mtime_ns, disk.size) == (found.inode, found.mtime_ns, found.size)


# --- ranges ------------------------------------------------------------------------------------------------------


def encode_ranges(ranges: dict[int, list[Range]]) -> bytes:
    """The ranges of each disk, in order, as they are carried."""
    limit, gap = max(1, RANGES_MAX // max(1, len(ranges))), 0
    plain = bytearray()
    for disk, found in sorted(ranges.items()):
        joined = found
        while len(joined) > limit:
            gap = max(1 << DIRTY_BLOCK_BITS, 2 * gap)
            joined = _joined(joined, gap)
        for offset, length in joined:
            plain += _RANGE.pack(disk, offset, length)
    return zlib.compress(bytes(plain))


def _joined(ranges: Iterable[Range], gap: int) -> list[Range]:
    joined: list[Range] = []
    for offset, length in ranges:
        if joined and offset - sum(joined[-1]) <= gap:
            start = joined[-1][0]
            joined[-1] = (start, max(sum(joined[-1]), offset + length) - start)
        else:
            joined.append((offset, length))
    return joined


def decode_ranges(data: bytes, disks: Iterable[Geometry]) -> dict[int, list[Range]]:
    """The ranges of each disk. Raises UsageError for anything but ranges of these disks."""
    sizes = {disk.index: disk.size for disk in disks}
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, PLAIN_MAX + 1)
        if len(plain) > PLAIN_MAX or not unpacker.eof or len(plain) % _RANGE.size:
            raise ValueError("its length is not possible")
        found: dict[int, list[Range]] = {index: [] for index in sizes}
        for disk, offset, length in _RANGE.iter_unpack(plain):
            if disk not in sizes or not length or offset + length > sizes[disk]:
                raise ValueError(f"{length} bytes at {offset} of disk {disk}")
            found[disk].append((offset, length))
    except (zlib.error, ValueError) as error:
        text = f"The ranges of the hand-over are not valid: {error}."
        raise UsageError(text, "Run `vmreplica reverse` again.") from None
    return found


def digest(data: bytes) -> str:
    """What a hand-over says of its ranges."""
    return blake2b(data, digest_size=32).hexdigest()


def write_map(
    files: FileSystem, path: str, vm: bytes, disks: Iterable[Geometry], ranges: dict[int, list[Range]]
) -> None:
    """Keep ranges as a dirty map (docs/maps.md), durably. Blocks. Raises OSError."""
    made = MapFile.create(files, path, MapKind.DIRTY, vm, DIRTY_BLOCK_BITS, list(disks))
    try:
        made.record((disk, offset, length) for disk, found in ranges.items() for offset, length in found)
    finally:
        made.close()


def read_map(files: FileSystem, path: str, vm: bytes, disks: Iterable[Geometry]) -> dict[int, list[Range]]:
    """The ranges of each disk in such a map, in order. Blocks. Raises MapDamagedError or OSError."""
    geometry = list(disks)
    found = MapFile.open(files, path, MapKind.DIRTY, vm, DIRTY_BLOCK_BITS, geometry, write=False)
    try:
        return {disk.index: list(found.ranges(disk.index)) for disk in geometry}
    finally:
        found.close()


def union(first: dict[int, list[Range]], second: dict[int, list[Range]]) -> dict[int, list[Range]]:
    """All that one of both names, of each disk in order."""
    return {disk: _joined(sorted([*first.get(disk, ()), *second.get(disk, ())]), 0) for disk in {*first, *second}}


def total(ranges: dict[int, list[Range]]) -> int:
    """Their bytes."""
    return sum(length for found in ranges.values() for _, length in found)
