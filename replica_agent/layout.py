"""Names in a VM's folder at the replica: which file is what, and where it lies."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from protocol.position import EPOCH_BYTES
from shared.handover import copy_disk

_SEGMENT = re.compile(rf"([0-9a-f]{{{2 * EPOCH_BYTES}}})-([0-9]{{12,}})\.hrl")
_POOLED = re.compile(r"free-([0-9]+)\.hrl")
_UNDO = re.compile(r"([0-9]{12,})-([0-9]{12,})\.undo")
_DISK = re.compile(r"disk-(0|[1-9][0-9]*)\.raw")
_OVERLAY = re.compile(r"([0-9a-f]{8})-[0-9]+\.(?:raw|map|live)(?:\.part)?")
_RESYNC = re.compile(rf"([0-9a-f]{{{2 * EPOCH_BYTES}}})\.hrl")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one VM, all below ``folder``. Names come from numbers and identifiers only, never from a peer's
    text.
    """

    folder: str

    @property
    def spool(self) -> str:
        return f"{self.folder}/spool"

    @property
    def resyncs(self) -> str:
        return f"{self.folder}/resync"

    @property
    def undo_logs(self) -> str:
        return f"{self.folder}/undo"

    @property
    def overlays(self) -> str:
        return f"{self.folder}/overlays"

    @property
    def tap(self) -> str:
        return f"{self.folder}/tap"

    @property
    def definitions(self) -> str:
        """Files of definitions, each under the SHA-256 of its content."""
        return f"{self.folder}/definition"

    def definition_file(self, digest: bytes) -> str:
        return f"{self.definitions}/{digest.hex()}"

    @property
    def definition_incoming(self) -> str:
        """What is being received; nothing refers to it."""
        return f"{self.definitions}/incoming"

    @property
    def reverse_map(self) -> str:
        """Which blocks the promoted point and the newest received one may differ in; missing where they are one."""
        return f"{self.folder}/reverse.map"

    def promoted_overlay(self, index: int) -> str:
        """What a promoted VM's guest writes over a disk (shared.overlay)."""
        return f"{self.tap}/overlay-{index}.raw"

    @property
    def doubt(self) -> str:
        """Where the disks may differ from the cut that both sides have, after a reversal (docs/maps.md)."""
        return f"{self.folder}/doubt.map"

    def disk(self, index: int) -> str:
        return copy_disk(self.folder, index)

    @staticmethod
    def read_disk(name: str) -> int | None:
        """The index of a disk file's name, or None."""
        match = _DISK.fullmatch(name)
        return int(match[1]) if match else None

    def imported(self, index: int) -> str:
        """What is being imported as a disk; it takes the disk's place when all of it is there."""
        return f"{self.folder}/import-{index}.raw"

    def segment(self, epoch: bytes, number: int) -> str:
        return f"{self.spool}/{epoch.hex()}-{number:012d}.hrl"

    def undo(self, first: int, last: int) -> str:
        """The undo log of the applies with these numbers: one, or neighbours that were merged."""
        return f"{self.undo_logs}/{first:012d}-{last:012d}.undo"

    def overlay(self, export: str, disk: int) -> str:
        """What clients of an export wrote to a disk of its point; beside it its maps, ``.map`` and ``.live``."""
        return f"{self.overlays}/{export}-{disk}.raw"

    def pooled(self, number: int) -> str:
        return f"{self.spool}/free-{number}.hrl"

    def resync(self, identity: bytes) -> str:
        return f"{self.resyncs}/{identity.hex()}.hrl"


def is_pooled(name: str) -> bool:
    """Whether it is the name of a spare file of a spool."""
    return _POOLED.fullmatch(name) is not None


def vm_folder(storage: str, vm: bytes) -> str:
    """The folder of a VM in a storage location: its UUID, so that no name of a peer's choice becomes a path."""
    return f"{storage.rstrip('/')}/{uuid.UUID(bytes=vm)}"


def removed_folder(folder: str, vm: bytes, seconds: int) -> str:
    """Where disk files of a VM whose folder is ``folder`` are kept that are no part of a copy any more."""
    return f"{folder.rpartition('/')[0]}/removed/{uuid.UUID(bytes=vm)}-{seconds}"


def read_vm_folder(name: str) -> bytes | None:
    """The VM whose folder has this name, or None for anything but a UUID in its usual form."""
    try:
        vm = uuid.UUID(name)
    except ValueError:
        return None
    return vm.bytes if str(vm) == name else None


def read_segment(name: str) -> tuple[bytes, int] | None:
    """Epoch and number of a spool file's name, or None."""
    match = _SEGMENT.fullmatch(name)
    return (bytes.fromhex(match[1]), int(match[2])) if match else None


def read_pooled(name: str) -> int | None:
    """The number of a recycled spool file's name, or None."""
    match = _POOLED.fullmatch(name)
    return int(match[1]) if match else None


def read_undo(name: str) -> tuple[int, int] | None:
    """The numbers of the first and the last apply of an undo log's name, or None."""
    match = _UNDO.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def read_overlay(name: str) -> str | None:
    """The export that a file of that name in the folder of overlays belongs to, or None."""
    match = _OVERLAY.fullmatch(name)
    return match[1] if match else None


def read_resync(name: str) -> bytes | None:
    """The resync whose differencing file has this name, or None."""
    match = _RESYNC.fullmatch(name)
    return bytes.fromhex(match[1]) if match else None
