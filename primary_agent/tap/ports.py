"""The ports that a tap needs: fewer than an agent, for it keeps no store and starts nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shared.ports import Clock, FileSystem, Network, Random, Workers


class TapPorts(Protocol):
    """What :class:`shared.ports.Ports` has as well."""

    @property
    def clock(self) -> Clock: ...

    @property
    def random(self) -> Random: ...

    @property
    def workers(self) -> Workers: ...

    @property
    def files(self) -> FileSystem: ...

    @property
    def network(self) -> Network: ...


@dataclass(frozen=True, slots=True)
class OwnPorts:
    """The ports of a tap's own process."""

    clock: Clock
    random: Random
    workers: Workers
    files: FileSystem
    network: Network
