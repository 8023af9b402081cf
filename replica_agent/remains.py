"""What is left of a VM's copy when its database is not: read from the folder, changed in nothing.

The description says most; what it can't say, or where there is none, is told by names and headers of the other files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from protocol.chain import Cursor
from protocol.errors import LogError
from protocol.hrl import (
    FILE_HEADER_BYTES,
    RECORD_HEADER_BYTES,
    FileHeader,
    Geometry,
    RecordKind,
    decode_file_header,
    decode_segment_body,
)
from protocol.position import Position
from replica_agent.description import Description, read_description
from replica_agent.layout import Layout, read_resync, read_segment, read_undo
from replica_agent.walk import LogWalk
from shared.description import DescriptionDamagedError
from shared.errors import StorageError, VmreplicaError
from shared.hrl_files import log_file_sequence
from shared.ports import FileSystem
from shared.tap_config import TapConfig, load_config

EVIDENCE_MAX = 32
"""Files of one kind that are named in the evidence."""


@dataclass(slots=True)
class Remains:
    """What was found. ``geometry`` is empty, and ``name`` as well, where nothing tells it.

    ``promoted``: the disks were handed to a tap on this host; ``tap_epoch`` is what its log tracks, if that is known.
    """

    description: Description | None = None
    doubt: str = ""
    """What is wrong with the description."""
    name: str = ""
    geometry: tuple[Geometry, ...] = ()
    promoted: bool = False
    layered: bool = False
    """The tap writes overlays: what was written since the failover is not in the disks."""
    tap_epoch: bytes | None = None
    spool: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    disks: dict[int, int] = field(default_factory=dict)
    """Size in bytes of each disk file, by index."""
    points: list[str] = field(default_factory=list)

    @property
    def evidence(self) -> dict[str, object]:
        """For causes and events: plain, and bounded."""
        told = "missing" if self.description is None and not self.doubt else self.doubt or "sound"
        return {
            "description": told,
            "disks": [f"disk-{index}.raw: {size} bytes" for index, size in sorted(self.disks.items())][:EVIDENCE_MAX],
            "spool": self.spool[-EVIDENCE_MAX:],
            "differences": self.differences[:EVIDENCE_MAX],
            "points": self.points[:EVIDENCE_MAX],
            "promoted": self.promoted,
        }


def read_remains(files: FileSystem, layout: Layout, vm: bytes) -> Remains:
    """Everything that tells of the VM in its folder. Blocks. Raises StorageError where the volume fails."""
    found = Remains()
    try:
        found.description = read_description(files, layout.folder, vm)
    except DescriptionDamagedError as error:
        found.doubt = error.text
    try:
        _read_disks(files, layout, found)
        found.spool = sorted(name for name in files.list(layout.spool) if read_segment(name) is not None)
        found.differences = [name for name in files.list(layout.resyncs) if read_resync(name) is not None]
        found.points = surviving_points(files, layout)
        tap = _read_tap(files, layout, vm, found)
        if found.description is not None:
            found.name = found.description.vm.name
            found.geometry = found.description.vm.geometry
            for disk in found.description.vm.disks:
                # The VM ran on it on this host, before the direction was reversed.
                if disk.path and files.exists(disk.path):
                    found.disks[disk.index] = _size(files, disk.path)
        elif tap is not None:
            found.name = tap.name
            found.geometry = tuple(disk.geometry for disk in tap.disks)
        else:
            found.geometry = _geometry_of_spool(files, layout, vm, found.spool)
    except OSError as error:
        raise StorageError(f"{layout.folder} can't be read: {error.strerror}.", "Check the volume.") from error
    return found


def surviving_points(files: FileSystem, layout: Layout) -> list[str]:
    """The undo logs of older recovery points that are still there, for the evidence. Blocks.

    None of them survives: what they rest on, the disks, can't be trusted any more once nothing tells how they should
    look (R38). The next start deletes them.
    """
    return [name for name in files.list(layout.undo_logs) if read_undo(name) is not None]


def _read_disks(files: FileSystem, layout: Layout, found: Remains) -> None:
    for name in files.list(layout.folder):
        number = name.removeprefix("disk-").removesuffix(".raw")
        if number.isascii() and number.isdecimal() and name == f"disk-{int(number)}.raw":
            found.disks[int(number)] = _size(files, layout.disk(int(number)))


def _size(files: FileSystem, path: str) -> int:
    file = files.open(path)
    try:
        return file.size()
    finally:
        file.close()


def _read_tap(files: FileSystem, layout: Layout, vm: bytes, found: Remains) -> TapConfig | None:
    """A folder for the tap is made only when the disks stand at the promoted cut and are being handed over."""
    found.promoted = files.exists(layout.tap)
    if not found.promoted:
        return None
    for header in _headers(files, f"{layout.tap}/log"):
        if header.vm == vm:
            found.tap_epoch = header.epoch
    try:
        config = load_config(files, layout.tap)
    except VmreplicaError:
        found.layered = any(name.startswith("overlay-") for name in files.list(layout.tap))
        return None
    found.layered = any(disk.overlay is not msgspec.UNSET for disk in config.disks)
    return config if config.vm_id == vm else None


def _headers(files: FileSystem, folder: str) -> Iterator[FileHeader]:
    """The headers of a log's files, in their order."""
    for name in files.list(folder):
        if log_file_sequence(name) is None:
            continue
        file = files.open(f"{folder}/{name}")
        try:
            yield decode_file_header(file.read(0, FILE_HEADER_BYTES))
        except LogError:
            continue
        finally:
            file.close()


def _geometry_of_spool(files: FileSystem, layout: Layout, vm: bytes, names: list[str]) -> tuple[Geometry, ...]:
    """The disks as the newest received segment that can be read names them; empty where there is none."""
    for name in reversed(names):
        file = files.open(f"{layout.spool}/{name}")
        try:
            header = decode_file_header(file.read(0, FILE_HEADER_BYTES))
            if header.vm != vm:
                continue
            start = Position(header.epoch, header.segment, header.entry, header.chain)
            chunk = LogWalk(file, Cursor.at(start, inside=False)).step()
            if chunk is None:
                continue
            offset, record = chunk.records[0]
            if record.kind is RecordKind.SEGMENT:
                body = chunk.view[offset + RECORD_HEADER_BYTES : offset + record.length]
                return decode_segment_body(record, body, at=offset)
        except LogError:
            continue
        finally:
            file.close()
    return ()
