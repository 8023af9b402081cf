"""What a replica durably knows about one VM: typed records, read strictly, written in single transactions.

The names of the records in the store are ``vm`` (whose copy this is), ``replication`` (how far it has got),
``resync``, ``promotion``, ``prepared`` (the promote token of a planned failover), ``points`` (the older recovery
points) and ``statistics``. ``docs/replica-store.md`` tells what each field promises.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from protocol.hrl import MAX_DISK_BYTES, MAX_DISKS, Geometry
from protocol.messages import ResyncKind
from protocol.position import MAX_LINEAGE, NO_EPOCH, Ancestor, Lineage, Position
from shared.errors import StoreDamagedError
from shared.ports import FileIdentity, Store
from shared.states import ReplicationState
from shared.status import Cause

RECORD_VERSION = 1

Id16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of the records; an unknown field means that a newer version wrote it."""


class DiskRecord(Record):
    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uuid: Id16
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]
    before: Annotated[int, msgspec.Meta(ge=0, le=MAX_DISK_BYTES)] = 0
    """While the disk is being grown: the size that its file may still have; else 0."""


class VmRecord(Record):
    """Which VM this is a copy of (I9). Never changes but for the name, and for disks that grow."""

    vm: Id16
    name: str
    disks: Annotated[list[DiskRecord], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    created_time: float
    version: int = RECORD_VERSION
    peer: str = ""
    """Fingerprint of the certificate that created it; for people, since authorization alone decides."""

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        return tuple(Geometry(disk.index, disk.size, disk.uuid) for disk in self.disks)


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


class IdentityRecord(Record):
    """A disk file's identity when its content was last known to be exactly the newest point (I10)."""

    index: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, index: int, identity: FileIdentity) -> IdentityRecord:
        return cls(
            index=index,
            inode=identity.inode,
            size=identity.size,
            mtime_ns=identity.mtime_ns,
            ctime_ns=identity.ctime_ns,
        )


class UndoRecord(Record):
    """A sealed undo log: it leads from the cut ``newer`` back to the cut ``older``.

    ``first`` and ``last`` number the applies whose undo logs it is, or was merged from; they name its file.
    ``length``, ``chain`` and ``level`` are its bytes, the chain after its last record, and how often it was merged.
    ``point``: ``older`` is kept as a recovery point; else it may be merged with the log before it.
    """

    first: Count
    last: Count
    older: PositionRecord
    newer: PositionRecord
    older_time: float
    newer_time: float
    length: Count
    chain: Id16
    level: Count = 0
    point: bool = True


class PointsRecord(Record):
    """The older recovery points: ``logs`` lead one after another from the oldest to the newest point.

    ``newest`` and ``hourly`` are this VM's own retention, None where the agent's configuration decides.
    """

    logs: list[UndoRecord] = []
    newest: Count | None = None
    hourly: Count | None = None


class ReplicationRecord(Record):
    """How far the copy has got.

    ``epoch`` is the baseline, NO_EPOCH before the first commit. ``applied`` is the newest point: what the disks hold
    when ``applying`` is None. While ``applying`` is set the disks may hold anything between ``applied`` and it, and
    only the spool (or differencing file and spool) brings them to a point again.
    """

    state: ReplicationState = ReplicationState.READY_FOR_INITIAL_REPLICATION
    epoch: Id16 = NO_EPOCH
    lineage: Annotated[list[AncestorRecord], msgspec.Meta(max_length=MAX_LINEAGE)] = []
    applied: PositionRecord | None = None
    applied_time: float | None = None
    """When the applied cut was sealed at the primary, seconds since the Unix epoch."""
    applying: PositionRecord | None = None
    undo: UndoRecord | None = None
    """The undo log of the apply to ``applying``: with it the disks read as ``applied``, however far it has got."""
    identities: list[IdentityRecord] | None = None
    """Of the disks as they were synced at ``applied``; None while they are being written."""
    boot_id: str = ""
    """The boot in which ``identities`` were taken: another boot may have lost times, though no content."""
    suspect: Cause | None = None
    """Why the disks are not trusted to be a whole point: no promotion, no export, until a resync commits."""
    reread: bool = False
    """What can be read from the disks may not be what would survive: a compare must send everything (R17)."""
    causes: list[Cause] = []
    """Why a resync is required, the oldest first."""
    interval_seconds: float = 0.0
    peer_host: str = ""

    @property
    def ancestors(self) -> Lineage:
        return tuple(Ancestor(step.epoch, step.parent, step.parent_segment) for step in self.lineage)


class ResyncRecord(Record):
    """The open resync or initial replication.

    ``in_place``: its blocks go straight to the disks, since there is no point to protect. ``end`` is set by its commit,
    from which on it completes by itself; ``differences_end`` and ``differences_length`` then say how far its
    differencing file reaches, so that one that lost its tail is never merged.
    """

    id: Id16
    kind: ResyncKind
    epoch: Id16
    parent: Id16
    parent_segment: Count
    round: Count
    started_time: float
    in_place: bool
    unsettle: bool = False
    """What was written before this round is not wholly told yet: until then nothing counts as settled (R32)."""
    end: PositionRecord | None = None
    differences_end: PositionRecord | None = None
    differences_length: Count = 0
    merging: bool = False
    """The merge has begun to change the disks."""
    trusted: bool = True
    """The disks were a whole point when it committed: what it overwrites may be kept as one (R38)."""


class PreparedRecord(Record):
    """The promote token of a planned failover: ``cut`` is all that its primary has, and it takes no writes (R43)."""

    token: Id16
    cut: PositionRecord
    time: float
    host: str = ""
    """The primary's, as it calls itself."""


class PromotionRecord(Record):
    """The failover to this host: written before anything else is done for it (R14)."""

    epoch: Id16
    parent: Id16
    parent_segment: Count
    entry: Count
    time: float
    host: str
    serving: bool = False
    """The disks stand at the promoted cut and were handed to the tap; only the tap may open them now."""
    planned: PreparedRecord | None = None
    """The token by which it lost nothing; None where it was not a planned one."""


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
            "If a newer version of vmreplica wrote it, install that version. Otherwise remove the VM here and "
            "start its initial replication again.",
        ) from None


def load_vm(store: Store) -> VmRecord:
    """The record ``vm``. Raises StoreDamagedError where it is missing, not valid or newer."""
    record = load(store, "vm", VmRecord)
    if record is None:
        raise StoreDamagedError(
            "The state does not say which VM it belongs to.",
            "Remove the VM here and start its initial replication again.",
        )
    if record.version > RECORD_VERSION:
        raise StoreDamagedError(
            f"The state has version {record.version}; this program reads up to {RECORD_VERSION}.",
            "Install the version of vmreplica that wrote it.",
            code="store_newer",
        )
    return record


def load_replication(store: Store) -> ReplicationRecord:
    """The record ``replication``. Raises StoreDamagedError where it is missing or not valid: never a guess."""
    record = load(store, "replication", ReplicationRecord)
    if record is None:
        raise StoreDamagedError(
            "The state does not say how far replication has got.",
            "Remove the VM here and start its initial replication again.",
        )
    return record


def plain(record: Record) -> Any:
    """The record as the store keeps it."""
    return msgspec.to_builtins(record, builtin_types=(bytes,))


def lineage_records(lineage: Lineage) -> list[AncestorRecord]:
    return [
        AncestorRecord(epoch=step.epoch, parent=step.parent, parent_segment=step.parent_segment) for step in lineage
    ]
