"""A first copy on its way by courier: the manifest of an export, which names the VM, its disks and what is in them.

The folder of an export has one sparse file for each disk and the manifest, which is written last. It is text in UTF-8,
three lines each ended by a line feed (``docs/export-format.md``)::

    vmreplica-export 1
    {"canonical": "JSON"}
    sha-256 CHECKSUM

The first 16 bytes of the checksum are the id under which the initial replication goes on. So whoever holds a copy under
that id has imported just this manifest, and what it says of each range.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Annotated

import msgspec

from protocol.hrl import MAX_DISK_BYTES, MAX_DISKS, Geometry
from shared.errors import StorageError
from shared.ports import FileSystem

MANIFEST_NAME = "vmreplica-export"
PART_NAME = "vmreplica-export.unfinished"
"""What is known of an export that is not complete: the same, with the ranges so far."""
RANGE_BYTES = 64 << 20
VERSION = 1
ID_BYTES = 16
MAX_BYTES = 256 << 20
_RANGES = (1 << 20, 1 << 30)
_MAGIC, _PART_MAGIC = b"vmreplica-export", b"vmreplica-export-unfinished"
_SUM = b"sha-256"
_SUM_LINE_BYTES = len(_SUM) + 1 + 64 + 1

Hex16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Digest = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]


class ExportedDisk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A disk, in the file ``disk-INDEX.raw``: the SHA-256 of each range in order, empty where it is all zeroes."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uuid: Hex16
    size_bytes: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES, multiple_of=512)]
    ranges: list[Digest] = []

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.index, self.size_bytes, bytes.fromhex(self.uuid))


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is in the folder. Every disk was read at some time after the tracking of ``epoch`` had begun: its content is
    that of the beginning, but for what the log of this epoch has from its first record on.
    """

    vm: Hex16
    name: Annotated[str, msgspec.Meta(max_length=255)]
    host: Annotated[str, msgspec.Meta(max_length=255)]
    """The primary's, as it calls itself; for people."""
    epoch: Hex16
    began_time: float
    """Seconds since the Unix epoch."""
    ended_time: float
    range_bytes: int
    disks: Annotated[list[ExportedDisk], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]

    @property
    def vm_id(self) -> bytes:
        return bytes.fromhex(self.vm)

    @property
    def identity(self) -> str:
        """The VM's UUID as people write it."""
        return str(uuid.UUID(bytes=self.vm_id))

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        return tuple(disk.geometry for disk in self.disks)


def disk_file(index: int) -> str:
    """The name of a disk's file in the folder of an export."""
    return f"disk-{index}.raw"


def encode(manifest: Manifest, *, complete: bool = True) -> bytes:
    """The file of a manifest, or of an export that is not complete."""
    body = msgspec.json.encode(manifest, order="sorted")
    text = b"%s %d\n%s\n" % (_MAGIC if complete else _PART_MAGIC, VERSION, body)
    return text + b"%s %s\n" % (_SUM, hashlib.sha256(text).hexdigest().encode())


def identity_of(data: bytes) -> bytes:
    """The id of the initial replication whose first copy this manifest, in the bytes of its file, is."""
    return bytes.fromhex(data[-65:-1].decode())[:ID_BYTES]


def decode(data: bytes, path: str, *, complete: bool = True) -> Manifest:
    """The manifest in a file's bytes; ``path`` is for the error. Raises StorageError."""
    text, line = data[:-_SUM_LINE_BYTES], data[-_SUM_LINE_BYTES:]
    if line != b"%s %s\n" % (_SUM, hashlib.sha256(text).hexdigest().encode()):
        raise _damaged(path, "its checksum is wrong")
    head, _, rest = text.partition(b"\n")
    magic, _, version = head.partition(b" ")
    if magic != (_MAGIC if complete else _PART_MAGIC):
        raise _damaged(path, "it does not begin as a manifest does")
    if version != b"%d" % VERSION:
        raise StorageError(
            f"{path} has version {version[:20].decode(errors='replace')}; this program reads {VERSION}.",
            "Install the version of vmreplica that wrote it.",
        )
    try:
        manifest = msgspec.json.decode(rest, type=Manifest, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"it is not valid: {error}") from None
    _judge(manifest, path, complete)
    return manifest


def _judge(manifest: Manifest, path: str, complete: bool) -> None:
    size = manifest.range_bytes
    if not _RANGES[0] <= size <= _RANGES[1] or size & (size - 1):
        raise _damaged(path, f"it has ranges of {size} bytes")
    if not (manifest.name.isprintable() and manifest.host.isprintable()):
        raise _damaged(path, "a name in it has characters that can't be printed")
    if [disk.index for disk in manifest.disks] != sorted({disk.index for disk in manifest.disks}):
        raise _damaged(path, "its disks are not in order")
    for disk in manifest.disks:
        count = -(-disk.size_bytes // size)
        if len(disk.ranges) > count or (complete and len(disk.ranges) != count):
            raise _damaged(path, f"disk {disk.index} has {len(disk.ranges)} ranges and not {count}")


def _damaged(path: str, reason: str) -> StorageError:
    return StorageError(f"{path} can't be used: {reason}.", "Export again, or bring the medium once more.")


def read_manifest(files: FileSystem, folder: str) -> tuple[Manifest, bytes]:
    """The manifest of an export, and the id that it stands for. Blocks. Raises StorageError."""
    path = f"{folder}/{MANIFEST_NAME}"
    data = _read(files, path)
    if data is None:
        unfinished = files.exists(f"{folder}/{PART_NAME}")
        raise StorageError(
            f"{folder} has no complete export: {'it was not finished' if unfinished else f'there is no {path}'}.",
            "Name the folder that `vmreplica initial VM --export` wrote, when it has said that it is complete.",
        )
    return decode(data, path), identity_of(data)


def read_unfinished(files: FileSystem, folder: str) -> Manifest | None:
    """What is known of an export that is not complete; None where there is nothing to go on with. Blocks."""
    path = f"{folder}/{PART_NAME}"
    try:
        data = _read(files, path)
        return decode(data, path, complete=False) if data is not None else None
    except StorageError:
        # Then it begins anew.
        return None


def _read(files: FileSystem, path: str) -> bytes | None:
    try:
        file = files.open_disk(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be opened: {error.strerror}.", _ACCESS) from error
    try:
        size = file.size()
        if size > MAX_BYTES:
            raise _damaged(path, f"it has more than {MAX_BYTES} bytes")
        return file.read(0, size)
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}.", "Check the medium.") from error
    finally:
        file.close()


def fits(disks: Sequence[Geometry], manifest: Manifest) -> str:
    """Why the disks of a VM are not those of an export, disk by disk; empty where they are."""
    for ours, theirs in zip(disks, manifest.geometry, strict=False):
        if (ours.index, ours.uuid) != (theirs.index, theirs.uuid):
            return f"disk {theirs.index} is another disk than disk {ours.index} here"
        if ours.size != theirs.size:
            return f"disk {ours.index} has {theirs.size} bytes in it, and {ours.size} here"
    if len(disks) != len(manifest.disks):
        return f"it has {len(manifest.disks)} disk(s), and the VM here {len(disks)}"
    return ""


_ACCESS = "The agent reads it as its own user: check the owner and the mode of the file and of the folders above it."
