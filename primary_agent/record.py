"""What the primary agent durably knows about one VM: typed records, read strictly, written in single transactions.

The names of the records in the store are ``vm`` (which VM, and its settings), ``replication`` (state, baseline, open
resync, causes), ``acked`` (evidence only: the newest cut that the replica acknowledged), ``verify``, ``consistency``
(application-consistent cuts), ``statistics``, and ``handover`` (shared.handover: the VM is let go to this host's
replica agent).

Nothing has to be durable here before log is released: when a session opens the replica tells its own position, which
is durable there (I5). ``acked`` is written now and then, so that a replica that stands *before* it is known to have
been brought back to an earlier state.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, TypeVar

import msgspec

from protocol.hrl import MAX_DISK_BYTES, MAX_DISKS, Geometry
from protocol.messages import Fence, ResyncKind
from protocol.position import MAX_LINEAGE, NO_EPOCH, Ancestor, Lineage, Position
from shared.block_devices import BlockDevicePolicy
from shared.config_sections import Rate
from shared.errors import StoreDamagedError
from shared.guest_settings import FILES_MAX, HOURS_MAX, NONE, FreezeKind
from shared.ports import Store
from shared.schedule import NEVER, PastWindow, ResyncMode
from shared.states import PlannedStep, ReplicationState
from shared.status import Cause, VerifyResult

RECORD_VERSION = 1
MAX_CAUSES = 32
SPLIT_TEXT = "This side has writes that are not part of it: both sides may have moved on (split brain)."
AHEAD_TEXT = (
    "This side has, or may have, writes that are not part of it; nothing had been written there when it told that."
)
UNMOVED_TEXT = "Nothing was written here since the last cut that the replica acknowledged."
DURING = "during"
"""Evidence of a cause: the id of the resync whose commit was proposed already when it came."""
MAX_UNTOLD = 64
"""Marks of cuts that wait for the replica; of more the oldest are forgotten."""

Id16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class StartedBy(enum.StrEnum):
    """What started a resync: the window pauses only what it started."""

    ADMINISTRATOR = "administrator"
    SCHEDULE = "schedule"
    AUTOMATIC = "automatic"
    WINDOW = "window"
    BOUNDED = "bounded"


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of the records; an unknown field means that a newer version wrote it."""


class DiskRecord(Record):
    """One disk: ``path`` of the raw file, ``export`` its name in the tap's NBD server, ``size`` in bytes."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uuid: Id16
    path: str
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]
    export: str
    larger: Annotated[int, msgspec.Meta(ge=0, le=MAX_DISK_BYTES)] = 0
    """While its file is being enlarged by order: the bytes that it may have instead; else 0."""

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.index, self.size, self.uuid)


class TapPlace(Record):
    """Where the tap of a VM is that this host promoted: its folder and that of its sockets stay those of the copy."""

    folder: str
    runtime_folder: str


class VmRecord(Record):
    """Which VM this is, where its replica is, and its settings."""

    vm: Id16
    name: str
    disks: Annotated[list[DiskRecord], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    replica_host: str
    replica_port: int
    interval_seconds: float
    log_limit_bytes: int
    """0 stands for the tap's default, half of the disks."""
    created_time: float
    resync_mode: ResyncMode | None = None
    """How a required resync starts; None, and an empty time, stand for the agent's default."""
    resync_window_start: str = ""
    resync_window_end: str = ""
    resync_past_window: PastWindow | None = None
    resync_back_off: bool | None = None
    """Whether reading stands back behind the guest; None stands for the agent's default."""
    resync_priority: int = 0
    """Higher ones come first in the queue."""
    resync_read_rate: Rate = []
    resync_send_rate: Rate = []
    initial_read_rate: Rate = []
    initial_send_rate: Rate = []
    replication_send_rate: Rate = []
    """Caps of this VM in bytes per second, as in the agent's configuration."""
    hot_region_bytes: int = 0
    hot_regions: int = 0
    """0 stands for the tap's default, here and of the size of a region."""
    block_device_policy: BlockDevicePolicy = BlockDevicePolicy.COMPARE
    excluded: Annotated[list[str], msgspec.Meta(max_length=MAX_DISKS)] = []
    """Paths of disks of the VM that are not replicated: no tap serves them, and the replica does not have them."""
    disk_set: Count = 0
    """How often a disk was added or removed: of two sets of disks the one with the higher number is the newer (I9)."""
    next_index: Count = 0
    """No disk ever had this index or a higher one; 0 where none was ever added or removed. Indexes are not reused."""
    verify_schedule: str = NEVER
    """When both sides are compared by themselves (shared.schedule.Recurrence)."""
    consistency: str = NONE
    """How the guest is frozen for an application-consistent cut (shared.guest_settings)."""
    consistency_hours: Annotated[int, msgspec.Meta(ge=0, le=HOURS_MAX)] = 0
    """One is taken after so many hours; 0: only by order."""
    definition: str = NONE
    """Where the VM's definition lies (shared.guest_settings),"""
    definition_files: Annotated[list[str], msgspec.Meta(max_length=FILES_MAX)] = []
    """and the small files that go with it."""
    tap: TapPlace | None = None
    """None: in the VM's own folder."""
    handover: str = ""
    """The id of the hand-over by which the VM came from this host's replica agent (shared.handover)."""
    version: int = RECORD_VERSION

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        return tuple(disk.geometry for disk in self.disks)

    @property
    def replica(self) -> str:
        return f"{self.replica_host}:{self.replica_port}"

    @property
    def index_to_come(self) -> int:
        """The index of the next disk: points of the replica may still have one of any number below."""
        return max(self.next_index, 1 + max(disk.index for disk in self.disks))


class PositionRecord(Record):
    epoch: Id16
    segment: Count
    entry: Count
    chain: Id16

    @classmethod
    def of(cls, position: Position) -> PositionRecord:
        return cls(epoch=position.epoch, segment=position.segment, entry=position.entry, chain=position.chain)

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.segment, self.entry, self.chain)


class AncestorRecord(Record):
    epoch: Id16
    parent: Id16
    parent_segment: Count


class ResyncRecord(Record):
    """The open resync or initial replication; ``end`` is set before its commit is sent (R33)."""

    id: Id16
    kind: ResyncKind
    epoch: Id16
    parent: Id16
    parent_segment: Count
    started_time: float
    round: Count = 1
    former: Id16 = NO_EPOCH
    """The epoch of the round before (R32)."""
    kept_round: Count = 0
    """The round for which what bounds the resync was kept (primary_agent.kept_scope); 0 while the tap's map has it."""
    end: PositionRecord | None = None
    exported: str = ""
    """The folder into which the first copy was written for a courier: the replica has to import it."""

    @property
    def bounded_by_map(self) -> bool:
        """Whether only the tap's map names what bounds this round, so that it must stay."""
        return self.kind is ResyncKind.BOUNDED and self.kept_round != self.round


class ExportRecord(Record):
    """A first copy that is being written into ``folder`` for a courier, while ``epoch`` is tracked."""

    folder: str
    epoch: Id16
    started_time: float
    tracked: bool = False
    """The tap has begun to track the epoch: what was written since must not be lost."""


class FenceRecord(Record):
    """The failover that fenced this side off, as the replica told it (protocol.messages.Fence)."""

    epoch: Id16
    parent: Id16
    parent_segment: Count
    received: PositionRecord | None
    written: bool
    time: float
    """Seconds since the Unix epoch, by the clock of the replica's host."""
    host: str


class ReversalRecord(Record):
    """This side was the replica until the direction was reversed.

    ``common`` is the newest cut of the other side's epoch that was here at the failover. ``mapped``: the file
    ``reverse.map`` in the VM's folder names where the promoted cut differs from it.
    """

    common: PositionRecord
    mapped: bool = False


class PlannedRecord(Record):
    """The preparation of a planned failover; ``id`` is the order by which the tap takes no writes.

    ``cut`` is known from the step SENDING on, ``token`` from PROMISED on: it is durable here before it is sent (R43).
    ``text`` says why it is at its step, where that needs words.
    """

    id: Id16
    step: PlannedStep
    started_time: float
    step_time: float
    cut: PositionRecord | None = None
    token: Id16 | None = None
    text: str = ""


class ReplicationRecord(Record):
    """How replication stands.

    ``epoch`` is the committed baseline, NO_EPOCH before the first. ``resync`` is the one that is open; its epoch
    becomes the baseline with its commit. ``causes`` say why a resync is required, ``problem`` what does not heal by
    itself, ``fenced`` where the VM was failed over to.
    """

    state: ReplicationState = ReplicationState.DISABLED
    epoch: Id16 = NO_EPOCH
    lineage: Annotated[list[AncestorRecord], msgspec.Meta(max_length=MAX_LINEAGE)] = []
    resync: ResyncRecord | None = None
    causes: list[Cause] = []
    problem: Cause | None = None
    fenced: str = ""
    fence: FenceRecord | None = None
    """The same as data, where the replica told that."""
    reversal: ReversalRecord | None = None
    """Set until the first baseline after a reversal is committed."""
    resync_wanted: bool = False
    """The administrator asked for the required resync while it could not begin: it does as soon as it can."""
    resync_at: float | None = None
    """When an administrator's resync is to start, seconds since the Unix epoch."""
    started_by: StartedBy | None = None
    """What started the resync that is running."""
    stopped_time: float | None = None
    """When the administrator cancelled the resync; until one is asked for again none starts by itself."""
    peer_host: str = ""
    """The replica's host name, as it told it last."""
    recovered: Cause | None = None
    """The records were rebuilt after a loss, and nothing has proven yet that the log goes on from the replica."""
    planned: PlannedRecord | None = None
    """The planned failover that was ordered last, unless there never was one."""
    export: ExportRecord | None = None
    """The first copy that is being written for a courier; once it is complete ``resync`` is what goes on from it."""

    @property
    def ancestors(self) -> Lineage:
        return tuple(Ancestor(step.epoch, step.parent, step.parent_segment) for step in self.lineage)

    @property
    def proposed(self) -> bytes | None:
        """The epoch whose commit may have been sent."""
        return self.resync.epoch if self.resync is not None and self.resync.end is not None else None

    @property
    def outlasting(self) -> list[Cause]:
        """The causes that the commit of the open resync does not make good: they came when it was proposed already."""
        return [each for each in self.causes if self.resync and each.evidence.get(DURING) == self.resync.id.hex()]


class AckedRecord(Record):
    """The newest cut known to be durable at the replica, and when it was sealed (nanoseconds, Unix epoch)."""

    position: PositionRecord
    time_ns: Count


class VerifyRecord(Record):
    """The verify of a VM: the last result, the order for a time to come, and the run that is under way.

    Times are seconds since the Unix epoch.
    """

    last: VerifyResult | None = None
    at: float | None = None
    """When one is to start that was ordered,"""
    repair: bool = False
    """and whether it is to repair what it finds."""
    schedule: str = NEVER
    """The schedule as it was seen last,"""
    since: float = 0.0
    """whose moments up to then are past."""
    running: float | None = None
    """Since when one runs."""


class FreezeRecord(Record):
    """A freeze that was begun: whoever finds it has the guest thawed before anything else (R44)."""

    kind: FreezeKind
    target: str
    time: float
    """When it began, in seconds since the Unix epoch."""


class MarkRecord(Record):
    """An application-consistent cut, and when it was sealed (nanoseconds, Unix epoch)."""

    position: PositionRecord
    time_ns: Count


class ConsistencyRecord(Record):
    """Application-consistent cuts: the freeze under way, the cuts that the replica has to be told of, the last one.

    Times are seconds since the Unix epoch.
    """

    freeze: FreezeRecord | None = None
    untold: Annotated[list[MarkRecord], msgspec.Meta(max_length=MAX_UNTOLD)] = []
    """Marks that the replica has not confirmed, the oldest first."""
    newest: MarkRecord | None = None
    """The newest application-consistent cut."""
    tried_time: float | None = None
    """When one was tried last,"""
    failure: Cause | None = None
    """and why it became a crash-consistent one."""


def fence_record(fence: Fence) -> FenceRecord:
    """The failover that a replica told, as it is kept."""
    return FenceRecord(
        epoch=fence.epoch,
        parent=fence.parent,
        parent_segment=fence.parent_segment,
        received=PositionRecord.of(fence.received.position()) if fence.received is not None else None,
        written=fence.written,
        time=fence.wall_ns / 1e9,
        host=fence.host,
    )


def mint(
    *, identity: bytes, epoch: bytes, kind: ResyncKind, replication: ReplicationRecord, parent_segment: int, now: float
) -> ResyncRecord:
    """A fresh resync: ``epoch`` will follow the present baseline at ``parent_segment``."""
    return ResyncRecord(
        id=identity,
        kind=kind,
        epoch=epoch,
        parent=replication.epoch,
        parent_segment=parent_segment if replication.epoch != NO_EPOCH else 0,
        started_time=now,
    )


def moved_text(*, split: bool) -> str:
    """What is told of a failover elsewhere: whether this side has writes that are not part of it."""
    return SPLIT_TEXT if split else UNMOVED_TEXT


R = TypeVar("R", bound=Record)


def load(store: Store, name: str, kind: type[R]) -> R | None:
    """The record of that name, None where there is none. Raises StoreDamagedError for one that is not valid."""
    plain = store.get(name)
    if plain is None:
        return None
    try:
        return msgspec.convert(plain, kind, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise StoreDamagedError(
            f"The record {name!r} of the VM's state is not valid: {error}.",
            "If a newer version of vmreplica wrote it, install that version. Otherwise remove the VM and enable "
            "it again; its disks stay as they are.",
        ) from None


def load_vm(store: Store) -> VmRecord:
    """The record ``vm``. Raises StoreDamagedError where it is missing, not valid or newer."""
    record = load(store, "vm", VmRecord)
    if record is None:
        raise StoreDamagedError(
            "The state does not say which VM it belongs to.",
            "Remove the VM and enable it again; its disks stay as they are.",
        )
    if record.version > RECORD_VERSION:
        raise StoreDamagedError(
            f"The state has version {record.version}; this program reads up to {RECORD_VERSION}.",
            "Install the version of vmreplica that wrote it.",
            code="store_newer",
        )
    return record


def plain(record: Record) -> Any:
    """The record as the store keeps it."""
    return msgspec.to_builtins(record, builtin_types=(bytes,))


def lineage_records(lineage: Lineage) -> list[AncestorRecord]:
    return [
        AncestorRecord(epoch=step.epoch, parent=step.parent, parent_segment=step.parent_segment) for step in lineage
    ]
