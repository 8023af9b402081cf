"""What the description of a VM holds at the primary, and how it follows from the records."""

from __future__ import annotations

import operator

import msgspec

from primary_agent.record import RECORD_VERSION, ReplicationRecord, VmRecord
from shared.description import NAME, DescriptionDamagedError, Keeper, read
from shared.ports import FileSystem, Ports
from shared.tap_config import SECTOR

ROLE = "primary"
MAX_NAME = 256


class Description(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The VM with its settings, and how its replication stands but for what comes and goes by itself."""

    vm: VmRecord
    replication: ReplicationRecord

    @classmethod
    def of(cls, vm: VmRecord, replication: ReplicationRecord) -> Description:
        """The description of a VM whose records are these."""
        lasting = msgspec.structs.replace(
            replication, problem=None, resync_wanted=False, resync_at=None, started_by=None, recovered=None
        )
        return cls(vm=vm, replication=lasting)

    def check(self, vm: bytes) -> None:
        """What the types can't say. Raises DescriptionDamagedError."""
        reason = ""
        disks = self.vm.disks
        if self.vm.vm != vm:
            reason = f"it is that of VM {self.vm.vm.hex()}"
        elif self.vm.version > RECORD_VERSION:
            reason = f"its VM has version {self.vm.version}"
        elif any(len({key(disk) for disk in disks}) != len(disks) for key in _DISTINCT):
            reason = "two disks are the same"
        elif any(disk.size % SECTOR or not disk.path.startswith("/") or "\0" in disk.path for disk in disks):
            reason = "a disk is none"
        elif not 0 < self.vm.replica_port < 65536 or not self.vm.replica_host:
            reason = f"{self.vm.replica!r} is not the address of a replica"
        elif any(not name.isprintable() or len(name) > MAX_NAME for name in (self.vm.name, self.vm.replica_host)):
            reason = "a name is not one"
        elif not self.vm.name:
            reason = "the VM has no name"
        if reason:
            raise DescriptionDamagedError(f"{NAME} can't be believed: {reason}.", "Nothing was changed.")


_DISTINCT = tuple(operator.attrgetter(field) for field in ("index", "uuid", "path", "export"))


def keeper_of(ports: Ports, folder: str) -> Keeper[Description]:
    """The keeper of a VM's description."""
    return Keeper(ports, folder, ROLE, Description)


def read_description(files: FileSystem, folder: str, vm: bytes) -> Description | None:
    """The checked description in a VM's folder. Blocks. Raises DescriptionDamagedError or StorageError."""
    found = read(files, folder, ROLE, Description)
    if found is not None:
        found.check(vm)
    return found
