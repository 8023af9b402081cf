"""What a replica durably knows about one VM: typed records, read strictly, written in single transactions.

The names of the records in the store are ``vm`` (whose copy this is), ``replication`` (how far it has got),
``resync``, ``promotion``, ``prepared`` (the promote token of a planned failover), ``points`` (the older recovery
points), ``exports``, ``companions`` (what came beside the log) and ``statistics``. ``docs/replica-store.md`` tells what
each field promises.
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


class FormerSizeRecord(Record):
    """Points of epochs before ``until`` have the disk with ``size`` bytes; of all epochs while that is NO_EPOCH."""

    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]
    until: Id16 = NO_EPOCH


class DiskRecord(Record):
    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uuid: Id16
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]
    before: Annotated[int, msgspec.Meta(ge=0, le=MAX_DISK_BYTES)] = 0
    """While the disk is being grown: the size that its file may still have; else 0."""
    path: str = ""
    """Where its file is, if not in the VM's folder: the VM ran on it on this host before the direction was reversed.
    Only ever taken from the primary agent of this host, never from a peer."""
    since: Id16 = NO_EPOCH
    """The epoch from which on points have it; NO_EPOCH for all."""
    sizes: list[FormerSizeRecord] = []
    """The sizes that it had before, the oldest first: older points keep theirs."""

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.index, self.size, self.uuid)


class FormerDiskRecord(Record):
    """A disk that was removed: points of epochs from ``since`` on have it, but not those from ``until`` on."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    uuid: Id16
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]
    since: Id16
    until: Id16
    path: str = ""
    """Where its file is, if not in the VM's folder (DiskRecord.path); that one is never deleted here."""
    sizes: list[FormerSizeRecord] = []


class VmRecord(Record):
    """Which VM this is a copy of (I9). Its disks grow, come and go only by a resync (replica_agent.disk_sets)."""

    vm: Id16
    name: str
    disks: Annotated[list[DiskRecord], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    created_time: float
    version: int = RECORD_VERSION
    peer: str = ""
    """Fingerprint of the certificate that created it; for people, since authorization alone decides."""
    disk_set: Count = 0
    """The number of the set of disks that the newest points have, as the primary counts them."""
    former: list[FormerDiskRecord] = []
    """Removed disks that older points have; their files are kept."""
    next_index: Count = 0
    """No disk ever had this index or a higher one, as far as this side knows: a primary here does not use one anew."""
    apart: Annotated[list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]], msgspec.Meta(max_length=1 << 16)] = []
    """Indexes whose files in the folder are no part of the copy: disks that were removed from the VM while it ran on
    this host. They are left as they are, until one of the disks comes back (replica_agent.coming_back)."""
    handover: str = ""
    """The id of the hand-over by which it came (shared.handover)."""
    epochs: list[Id16] = []
    """Epochs of points, and of changes of the disks, that the lineage does not tell any more, the oldest first: which
    disks a point has follows from their order."""

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        return tuple(disk.geometry for disk in self.disks)

    @property
    def all_sizes(self) -> dict[int, int]:
        """Of the present disks and the former ones: undo logs may be about both."""
        return {disk.index: disk.size for disk in self.former} | {disk.index: disk.size for disk in self.disks}

    def order(self, lineage: Lineage) -> dict[bytes, int]:
        """The place of each known epoch: a later one has a higher number."""
        return {epoch: number for number, epoch in enumerate([*self.epochs, *(step.epoch for step in lineage)])}

    def disks_at(self, lineage: Lineage, epoch: bytes) -> dict[int, int]:
        """Index and size of the disks that a point of ``epoch`` has."""
        order = self.order(lineage)
        # What is not told any more is older than all that is.
        at = order.get(epoch, -1)
        found = {disk.index: _size_at(disk, order, at) for disk in self.disks if order.get(disk.since, -1) <= at}
        for disk in self.former:
            if order.get(disk.since, -1) <= at < order.get(disk.until, -1):
                found[disk.index] = _size_at(disk, order, at)
        return found


def _size_at(disk: DiskRecord | FormerDiskRecord, order: dict[bytes, int], at: int) -> int:
    """Bytes of the disk at points whose epoch is the one at place ``at``."""
    for former in disk.sizes:
        if former.until == NO_EPOCH or at < order.get(former.until, -1):
            return former.size
    return disk.size


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


class MarkRecord(Record):
    """What an administrator gave a recovery point, older or the newest: a name (empty: none), a pin, or both."""

    position: PositionRecord
    time: float
    name: str = ""
    pinned: bool = False
    """No rule ends it: it goes last where bytes are short."""


class ImageRecord(Record):
    """The SHA-256 of the SHA-256 digests of a disk's blocks (shared.disks.leaves)."""

    disk: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class ProofRecord(Record):
    """What a point's disks have to be: a verify found both sides equal at its cut, by the digests of their blocks."""

    position: PositionRecord
    time: float
    images: Annotated[list[ImageRecord], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]


class WrongRecord(Record):
    """A point that was read to its end, and is not what a verify found on both sides at its cut; ``cause`` tells it."""

    position: PositionRecord
    cause: Cause


class PointsRecord(Record):
    """The older recovery points: ``logs`` lead one after another from the oldest to the newest point.

    ``newest`` to ``age_seconds`` are this VM's own retention, None where the agent's configuration decides. ``marks``
    and ``proofs`` are of points that are there, the newest among them.
    """

    logs: list[UndoRecord] = []
    newest: Count | None = None
    hourly: Count | None = None
    daily: Count | None = None
    weekly: Count | None = None
    limit_bytes: Count | None = None
    age_seconds: Annotated[float, msgspec.Meta(ge=0)] | None = None
    marks: list[MarkRecord] = []
    proofs: list[ProofRecord] = []
    last_test_time: float | None = None
    """When a test failover was begun last."""
    wrong: list[WrongRecord] = []
    """Points that were read, and are not what they have to be."""


class ExportedDiskRecord(Record):
    """A disk as it is exported: its copy may grow meanwhile."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]


class ExportRecord(Record):
    """One export of a recovery point: served from when this is durable, again after every start, until it is removed.

    ``position`` is its point, ``time`` when that was sealed at the primary, if that is known.
    """

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]
    """Names its socket, too."""
    position: PositionRecord
    time: float | None
    disks: Annotated[list[ExportedDiskRecord], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    created_time: float
    lost: Cause | None = None
    """Why its point is gone for good; such an export keeps nothing, and only tells so."""
    writable: bool = False
    """What its clients write lies in files of its own over the point, which go with it."""
    test: bool = False
    """It is the VM's test failover."""


class ExportsRecord(Record):
    """The exports, the oldest first."""

    exports: list[ExportRecord] = []

    @property
    def kept(self) -> list[ExportRecord]:
        """Those whose point is kept."""
        return [export for export in self.exports if export.lost is None]

    def find(self, identity: str) -> ExportRecord | None:
        return next((export for export in self.exports if export.id == identity), None)

    @property
    def test(self) -> ExportRecord | None:
        """The test failover, if there is one."""
        return next((export for export in self.exports if export.test), None)


class ReversalRecord(Record):
    """The VM ran on these disks before the direction was reversed: they are as of ``common``, a cut of both sides'
    histories, but in the ranges of the file ``doubt.map``, which have so many bytes.
    """

    common: PositionRecord
    bytes: Count


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
    reversal: ReversalRecord | None = None
    """Set from a reversal to the first baseline after it."""
    seeded: bool = False
    """Before the first baseline: a copy from elsewhere was imported into the disks."""

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
    disks: list[DiskRecord] | None = None
    """The set of disks that its commit brings; None where it stays the same."""
    disk_set: Count = 0
    """The number of that set."""
    through: AncestorRecord | None = None
    """After a reversal: the failover that led from this side's baseline to the parent, which the primary told."""


class BeforeRecord(Record):
    """What a failover replaced in the record ``replication``: an undo brings it back."""

    epoch: Id16
    lineage: Annotated[list[AncestorRecord], msgspec.Meta(max_length=MAX_LINEAGE)]
    state: ReplicationState


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
    """The disks were handed to the tap, which shows the promoted cut; only the tap may open them now."""
    cut: PositionRecord | None = None
    """The promoted cut, with its chain; None where it is not known."""
    received: PositionRecord | None = None
    """The newest cut that was here then: the same, or a later one. ``reverse.map`` names where they differ."""
    layered: bool = False
    """The tap writes overlays, and the disks are what they were, until what lies over them has settled in them."""
    before: BeforeRecord | None = None
    undoing: bool = False
    """It is being undone, which can't be stopped any more."""
    committed_time: float | None = None
    """Since when it can't be undone; None while it can, or where an older version made it."""
    handed_over: bool = False
    """The primary agent of this host has the VM, or is about to: nothing is done for it here any more."""
    written: bool = True
    """With ``handed_over``: whether anything was written since the failover; else the tap tells."""
    planned: PreparedRecord | None = None
    """The token by which it lost nothing; None where it was not a planned one."""
    smaller: list[ExportedDiskRecord] = []
    """Disks that the promoted cut has with fewer bytes than by now: clients see these, until the direction is
    reversed."""
    disks: list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]] | None = None
    """The disks that the promoted cut has, by index, where these are others than the newest point's; they become the
    VM's when what was written has settled."""

    @property
    def older(self) -> bool:
        """Whether it is an older point than the newest that was received: nothing is applied then."""
        return self.layered and self.cut != self.received

    @property
    def undoable(self) -> bool:
        return self.layered and self.committed_time is None and not self.undoing


class ConsistentRecord(Record):
    """An application-consistent cut."""

    position: PositionRecord


class FileRecord(Record):
    """A file of a definition: its path at the primary, for people; its SHA-256, which names its file here; its size."""

    path: str
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    size: Count


class DefinitionDiskRecord(Record):
    """A disk as a definition may name it, by its path or its export at the primary."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    path: str
    export: str


class DefinitionRecord(Record):
    """A version of a VM's definition, the first of ``files``; it belongs to cut ``segment`` of ``epoch`` and later."""

    epoch: Id16
    segment: Count
    files: Annotated[list[FileRecord], msgspec.Meta(min_length=1)]
    disks: list[DefinitionDiskRecord]
    time: float
    """When it was received, in seconds since the Unix epoch."""


class CompanionsRecord(Record):
    """What came beside the log: marks of cuts, and the versions of the definition, in the order of their coming."""

    marks: list[ConsistentRecord] = []
    definitions: list[DefinitionRecord] = []


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
