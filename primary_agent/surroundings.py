"""What all VMs of a primary agent share: ports, how it introduces itself, deadlines, and the queue of resyncs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from primary_agent.dialing_queue import DialingQueue
from primary_agent.pacing import Rates
from primary_agent.resync_queue import ResyncQueue
from protocol.session import Identity, capabilities
from shared.channel import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS
from shared.config_sections import ConsistencySection, PrimaryConfig, RatesSection, ResyncSection
from shared.ports import Ports
from shared.ports.freezing import Freezer, GuardedFreezer
from shared.schedule import Window
from shared.stats import MONITORING_SECONDS
from shared.volumes import VolumeWatch


@dataclass(slots=True, eq=False)
class Surroundings:
    """Given to every VM, and never replaced: ``adopt`` changes what a reload brings into force. Times in seconds."""

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
    rates: RatesSection = field(default_factory=RatesSection)
    """Caps of all VMs together."""
    queue: ResyncQueue = field(default_factory=lambda: ResyncQueue(ResyncSection().at_once))
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a VM is verified."""
    monitoring: float = MONITORING_SECONDS
    """The interval of the statistics."""
    dialing: DialingQueue = field(default_factory=DialingQueue)
    freezer: Freezer = field(default_factory=GuardedFreezer)
    consistency: ConsistencySection = field(default_factory=ConsistencySection)
    """How long a guest may be frozen."""

    pacing: Rates = field(init=False)
    volumes: VolumeWatch = field(init=False)

    def __post_init__(self) -> None:
        self.pacing = Rates(self.ports.clock, self.rates, Window.parse(self.resync.window))
        self.volumes = VolumeWatch(self.ports)

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
            rates=config.rates,
            queue=ResyncQueue(config.resync.at_once),
            monitoring=config.monitoring_seconds,
            consistency=config.consistency,
        )

    def adopt(self, config: PrimaryConfig) -> None:
        """Take over a new configuration. Heartbeats and deadlines are those of sessions that open from now on."""
        self.heartbeat = config.heartbeat_seconds
        self.dead_after = config.dead_after_seconds
        self.resync = config.resync
        self.consistency = config.consistency
        self.rates = self.pacing.caps = config.rates
        self.pacing.window = Window.parse(config.resync.window)
        self.queue.limit = config.resync.at_once
        self.queue.reconsider()

    @property
    def version(self) -> str:
        """Of this program."""
        return self.software.removeprefix("vmreplica ")

    @property
    def identity(self) -> Identity:
        return Identity(self.software, self.host, self.heartbeat, capabilities(compress=self.compress))
