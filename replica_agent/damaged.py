"""A VM at the replica whose state can't be read."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import VmreplicaError


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
