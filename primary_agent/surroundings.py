"""What all VMs of a primary agent share: ports, how the agent introduces itself, deadlines, and resync slots."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from protocol.compression import CAPABILITY as ZSTD
from protocol.session import Identity
from shared.channel import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS
from shared.config import PrimaryConfig, ResyncSection
from shared.ports import Ports

RESYNCS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Given to every VM. Times in seconds."""

    ports: Ports
    host: str
    software: str = "vmreplica"
    nbd_group: str = ""
    heartbeat: float = HEARTBEAT_SECONDS
    dead_after: float = DEAD_AFTER_SECONDS
    compress: bool = True
    """Offer zstd: blocks and log are compressed where that pays."""
    resync: ResyncSection = field(default_factory=ResyncSection)
    """How required resyncs of VMs start that have no settings of their own."""
    resync_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(RESYNCS_AT_ONCE))

    @classmethod
    def of(cls, config: PrimaryConfig, ports: Ports, software: str = "vmreplica") -> Surroundings:
        """As configured; ``software`` is what the agent calls itself."""
        return cls(
            ports,
            config.host,
            software,
            config.nbd_group,
            heartbeat=config.heartbeat_seconds,
            dead_after=config.dead_after_seconds,
            resync=config.resync,
        )

    @property
    def identity(self) -> Identity:
        return Identity(self.software, self.host, self.heartbeat, (ZSTD,) if self.compress else ())
