"""A VM at the replica whose state can't be read."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from replica_agent.description import read_description
from replica_agent.finishing import finish
from replica_agent.rebuilding import RECOVERABLE
from shared.errors import StorageError, StoreDamagedError, VmreplicaError
from shared.ports import Ports


@dataclass(slots=True)
class DamagedVm:
    """A VM whose state can't be read: listed with its remedy, while the others go on."""

    vm: bytes
    name: str
    """As its description tells it, else its UUID."""
    folder: str
    error: VmreplicaError

    @property
    def identity(self) -> str:
        return self.folder.rpartition("/")[2]


async def damaged_vm(ports: Ports, vm: bytes, folder: str, error: VmreplicaError | OSError) -> DamagedVm:
    """What is listed of the VM in ``folder``, and what is to be done about it."""
    if isinstance(error, OSError):
        error = StorageError(f"{folder} can't be read: {error.strerror}.", "Look into that folder.")
    identity = name = folder.rpartition("/")[2]
    with contextlib.suppress(VmreplicaError, OSError):
        found = await finish(ports.workers.run(read_description, ports.files, folder, vm))
        name = found.vm.name if found is not None else name
    if error.code in RECOVERABLE:
        remedy = (
            f"Its disks were not touched. Run `vmreplica recover {identity} --role replica`: it makes the state "
            "anew from the copy's own files, and keeps the old one aside; all blocks are compared afterwards."
        )
        error = StoreDamagedError(error.text, remedy)
    return DamagedVm(vm, name, folder, error)
