"""What the description of a VM's copy holds, and how it follows from the records."""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocol.position import MAX_LINEAGE, NO_EPOCH
from replica_agent.record import AncestorRecord, Id16, PromotionRecord, VmRecord
from shared.description import NAME, DescriptionDamagedError, Keeper, read
from shared.ports import FileSystem, Ports

ROLE = "replica"
MAX_NAME = 256
SECTOR = 512


class Description(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whose copy this is, its baseline, and whether it was failed over to this host."""

    vm: VmRecord
    epoch: Id16 = NO_EPOCH
    lineage: Annotated[list[AncestorRecord], msgspec.Meta(max_length=MAX_LINEAGE)] = []
    reread: bool = False
    interval_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    peer_host: str = ""
    promotion: PromotionRecord | None = None

    def check(self, vm: bytes) -> None:
        """What the types can't say. Raises DescriptionDamagedError."""
        reason = ""
        names = (self.vm.name, self.peer_host, self.vm.peer)
        if self.vm.vm != vm:
            reason = f"it is that of VM {self.vm.vm.hex()}"
        elif len({disk.index for disk in self.vm.disks}) != len(self.vm.disks):
            reason = "two disks have the same index"
        elif any(disk.size % SECTOR for disk in self.vm.disks):
            reason = f"a disk is no whole number of sectors of {SECTOR} bytes"
        elif not self.vm.name or any(len(name) > MAX_NAME or not name.isprintable() for name in names):
            reason = "a name is not one"
        elif self.promotion is not None and self.promotion.epoch != self.epoch:
            reason = "its promotion began another epoch than it stands at"
        if reason:
            raise DescriptionDamagedError(f"{NAME} can't be believed: {reason}.", "Nothing was changed.")


def keeper_of(ports: Ports, folder: str) -> Keeper[Description]:
    """The keeper of a VM's description."""
    return Keeper(ports, folder, ROLE, Description)


def read_description(files: FileSystem, folder: str, vm: bytes) -> Description | None:
    """The checked description in a VM's folder. Blocks. Raises DescriptionDamagedError or StorageError."""
    found = read(files, folder, ROLE, Description)
    if found is not None:
        found.check(vm)
    return found
