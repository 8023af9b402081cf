"""What the rooms of one VM at the replica have in common, and the settings that all VMs share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from protocol.hrl import Geometry, chain_seed
from protocol.position import Position
from protocol.session import Identity, capabilities
from replica_agent.apply import Applier
from replica_agent.differencing import DifferencingFile
from replica_agent.disks import BaseDisks
from replica_agent.history import History
from replica_agent.layout import Layout
from replica_agent.ledger import Ledger
from replica_agent.overlay_room import OverlayRoom
from replica_agent.pool import SpoolPool
from replica_agent.quota import QuotaFigures
from replica_agent.record import ResyncRecord
from replica_agent.resync import OpenResync
from replica_agent.retention import Retention
from replica_agent.spool import Spool
from shared.budget import Budget
from shared.channel import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS
from shared.config_sections import DefinitionSection, LimitsSection, ReplicaConfig
from shared.import_status import ImportStatus
from shared.map_file import Range
from shared.ports import Ports
from shared.stats import MONITORING_SECONDS
from shared.tasks import Signal
from shared.volumes import VolumeWatch

RESERVE_BYTES = 64 << 20
SPOOL_LIMIT_BYTES = 4 << 30
RETENTION = Retention()
LIMITS = LimitsSection()
DEFINITION_DEFAULT = DefinitionSection()


@dataclass(slots=True, eq=False)
class Surroundings:
    """What all VMs of a replica agent share. Sizes in bytes, times in seconds. It is never replaced: ``adopt`` changes
    what a reload brings into force.

    ``reserve`` is kept free on every volume, so that what was acknowledged can always be applied. A VM's spool above
    ``spool_limit`` makes its primary wait. ``retention`` says which recovery points are kept where a VM has no rules
    of its own.
    """

    ports: Ports
    host: str
    runtime_folder: str
    software: str = "vmreplica"
    nbd_group: str = ""
    reserve: int = RESERVE_BYTES
    spool_limit: int = SPOOL_LIMIT_BYTES
    retention: Retention = RETENTION
    heartbeat: float = HEARTBEAT_SECONDS
    dead_after: float = DEAD_AFTER_SECONDS
    compress: bool = True
    resyncs_at_once: int = 3
    limits: LimitsSection = LIMITS
    definition: DefinitionSection = DEFINITION_DEFAULT
    """How definitions of VMs are changed for this host."""
    memory: Budget = field(default_factory=Budget)
    """What all connections received and is not stored yet."""
    resyncing: set[bytes] = field(default_factory=set)
    """The VMs that are compared just now."""
    verifying: set[bytes] = field(default_factory=set)
    """The VMs of which a view is held for a verify just now."""
    monitoring: float = MONITORING_SECONDS
    """The interval of the statistics, in seconds."""
    quota_of: Callable[[bytes], QuotaFigures | None] = lambda _vm: None
    """How full the quota is that a VM's copy counts for; None where there is none."""
    volumes: VolumeWatch = field(init=False)
    overlay_room: OverlayRoom = field(init=False)
    """That of all writable exports."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "volumes", VolumeWatch(self.ports))
        self.overlay_room = OverlayRoom(self.ports)

    @classmethod
    def of(cls, config: ReplicaConfig, ports: Ports, software: str = "vmreplica") -> Surroundings:
        """As configured; ``software`` is how the agent calls itself."""
        return cls(
            ports,
            config.host,
            config.runtime_dir,
            software,
            config.nbd_group,
            reserve=config.storage.reserve_bytes,
            resyncs_at_once=config.storage.resyncs_at_once,
            retention=_retention(config),
            heartbeat=config.heartbeat_seconds,
            dead_after=config.dead_after_seconds,
            monitoring=config.monitoring_seconds,
            limits=config.limits,
            definition=config.definition,
            memory=Budget(config.limits.memory_bytes),
        )

    def adopt(self, config: ReplicaConfig) -> None:
        """Take over a new configuration. Heartbeats and deadlines are those of sessions that open from now on."""
        self.reserve = config.storage.reserve_bytes
        self.resyncs_at_once = config.storage.resyncs_at_once
        self.retention = _retention(config)
        self.heartbeat = config.heartbeat_seconds
        self.dead_after = config.dead_after_seconds
        self.definition = config.definition

    @property
    def identity(self) -> Identity:
        return Identity(self.software, self.host, self.heartbeat, capabilities(compress=self.compress))


def _retention(config: ReplicaConfig) -> Retention:
    points = config.points
    return Retention(points.newest, points.hourly, points.limit_bytes, points.daily, points.weekly, points.age_seconds)


@dataclass(slots=True)
class VmParts:
    """One VM's state and files.

    ``order`` is held by whatever changes what the VM is: steps of a resync, promotion, verbs.
    """

    surroundings: Surroundings
    ledger: Ledger
    layout: Layout
    disks: BaseDisks
    pool: SpoolPool
    applier: Applier
    history: History
    resync: OpenResync | None = None
    """The resync that has begun and not committed."""
    order: asyncio.Lock = field(default_factory=asyncio.Lock)
    importing: ImportStatus | None = None
    """The import that is under way: no resync begins meanwhile."""
    closing: bool = False
    """Its tasks are being ended: what is durable may be ahead of what they leave in memory. Nothing is decided then."""
    changed: Signal = field(default_factory=Signal)
    """Notified when anything that a status shows may have changed."""

    @property
    def ports(self) -> Ports:
        return self.surroundings.ports

    @property
    def vm(self) -> bytes:
        return self.ledger.vm.vm

    @property
    def uuid(self) -> str:
        """The VM's UUID as people write it."""
        return str(UUID(bytes=self.vm))

    def spool_from(self, start: Position, geometry: tuple[Geometry, ...] | None = None) -> Spool:
        """The spool of ``start``'s epoch from there on; nothing is read yet. Its log may be about other disks."""
        return Spool(
            self.ports.files,
            self.layout,
            self.vm,
            self.disks.geometry if geometry is None else geometry,
            start,
            self.pool,
            reserve=self.surroundings.reserve,
        )

    def time_of(self, position: Position) -> float | None:
        """When a cut was sealed, where that is known: of a point, and of what waits in the spool."""
        record, spool, time = self.ledger.replication, self.applier.spool, None
        if record.applied is not None and record.applied.position == position:
            time = record.applied_time
        for log in self.history.logs:
            if log.older.position == position:
                time = log.older_time or None
        for segment in spool.segments if spool is not None else []:
            if segment.end == position:
                time = segment.time_ns / 1e9
        return time

    def start_of(self, epoch: bytes) -> Position:
        """The position before the first record of an epoch's log."""
        return Position(epoch, 0, 0, chain_seed(self.vm, epoch))

    def differencing_file(self, identity: bytes, sizes: dict[int, int] | None = None) -> DifferencingFile:
        """The differencing file of a resync, which may be about other disks; nothing is read or made yet."""
        return DifferencingFile(
            self.ports.files,
            self.ports.clock,
            self.layout.resync(identity),
            self.vm,
            identity,
            self.disks.sizes if sizes is None else sizes,
            reserve=self.surroundings.reserve,
        )

    def open_resync(self, record: ResyncRecord, doubt: dict[int, list[Range]]) -> OpenResync:
        """The open resync of that record, which has to settle ``doubt`` for this side's sake; nothing is made yet."""
        geometry = self.disks.geometry if record.disks is None else tuple(disk.geometry for disk in record.disks)
        return OpenResync(
            ports=self.ports,
            record=record,
            disks=self.disks,
            differences=self.differencing_file(record.id, {disk.index: disk.size for disk in geometry}),
            tracked=self.spool_from(self.start_of(record.epoch), geometry),
            in_place=record.in_place,
            reread=self.ledger.replication.reread,
            geometry=geometry,
            doubt=doubt,
        )


def assemble(surroundings: Surroundings, folder: str, ledger: Ledger) -> VmParts:
    """The parts of a VM whose state is ``ledger``; no file is touched."""
    ports, layout = surroundings.ports, Layout(folder)
    growing = {disk.index: disk.before for disk in ledger.vm.disks if disk.before}
    paths = {disk.index: disk.path for disk in ledger.vm.former if disk.path}
    paths |= {disk.index: disk.path for disk in ledger.vm.disks if disk.path}
    disks = BaseDisks(ports.files, layout, ledger.vm.geometry, growing, paths)
    pool = SpoolPool(ports.files, layout)
    history = History(ports, ledger, layout, disks, surroundings.retention, surroundings.reserve)
    applier = Applier(ports, ledger, disks, layout, history, surroundings.reserve)
    return VmParts(surroundings, ledger, layout, disks, pool, applier, history)
