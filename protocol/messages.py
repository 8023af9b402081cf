"""The messages of the wire: their types, and every control body as a strict struct.

Control bodies are msgpack maps. :func:`decode_body` bounds sizes first, then checks every field's presence, type and
range; an unknown field is an error, since both sides agreed on one version. ``docs/protocol.md`` describes each.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Any

import msgpack
import msgspec

from protocol.errors import ProtocolError
from protocol.hrl import MAX_DISK_BYTES, MAX_DISKS, Geometry
from protocol.position import MAX_LINEAGE, Ancestor, Lineage, Position

PROTOCOL_VERSIONS = (1,)
PLANNED = "planned"
"""The capability of a side that knows planned failovers: PLANNED_TYPES are sent to no other."""
MAX_CONTROL_BODY = 64 << 10
MAX_HELLO_BODY = 16 << 10
MAX_SETTLED_RUNS = 1024
BLOCK_SIZE = 64 << 10
DETAIL_BYTES = 4096
"""The blocks into which a differing block is divided at the second level, in bytes."""
GROUP_BLOCKS = 64
"""Blocks whose tags one digest of a MANIFEST_REQUEST stands for."""
MAX_GROUPS = 64
MAX_VERIFY_GROUPS = 16
"""Groups of one VERIFY_REQUEST, so that its answer fits into a control body."""
MAX_ASKED_BYTES = 512
"""The longest bitmap of a DETAIL_REQUEST."""
MAX_U63 = (1 << 63) - 1
DISK_SETS = "disk-sets"
"""The capability of both sides to have a disk added or removed by a resync."""
DISK_SIZES = "disk-sizes"
"""Capability: a bounded resync of a newer set of disks may bring larger ones; points from before keep their sizes."""
MAX_SAMPLED = 512
"""Places of one SAMPLE_REQUEST."""
SEED = "seed"
"""Capability: knows of first copies that came another way."""
REVERSE = "reverse"
"""The capability of peers that know of reversed directions: the fields ``fence``, ``common`` and ``doubt``."""
MAX_CAUSES = 8
MAX_CAUSE_TEXT = 512
"""Causes that a replica tells, and characters of each: OPENED has to fit its limit."""
MAX_DEFINITION_FILES = 32
"""Files of one version of a VM's definition, the definition itself among them."""
MAX_DEFINITION_FILE = 64 << 20
MAX_DEFINITION_BYTES = 128 << 20
MAX_DEFINITION_TEXT = 1 << 20
"""Bytes of one of its files, of all of them together, and of the definition itself."""
MAX_DEFINITION_PART = 48 << 10
"""Bytes of a file that one DEFINITION_PART carries, so that it fits a control message."""


class MessageType(IntEnum):
    """Type byte of a frame. The numbers never change and are never reused."""

    HELLO = 1
    WELCOME = 2
    ERROR = 3
    OPEN = 4
    OPENED = 5
    HEARTBEAT = 6
    CLOSE = 7
    LOG = 16
    SEAL = 17
    RECEIVED = 18
    APPLIED = 19
    RESYNC_BEGIN = 32
    RESYNC_READY = 33
    MANIFEST_REQUEST = 34
    MANIFEST = 35
    BLOCKS = 36
    RANGE_DONE = 37
    RANGE_SETTLED = 38
    COMMIT = 39
    COMMITTED = 40
    RESYNC_CANCEL = 41
    RESYNC_CANCELLED = 42
    DETAIL_REQUEST = 43
    DETAIL = 44
    HOLES_REQUEST = 45
    HOLES = 46
    UNSETTLE = 47
    UNSETTLED = 48
    VERIFY_BEGIN = 49
    VERIFY_READY = 50
    VERIFY_CUT = 51
    VERIFY_HELD = 52
    VERIFY_REQUEST = 53
    VERIFY_ANSWER = 54
    VERIFY_END = 55
    VERIFY_ENDED = 56
    VERIFY_LOST = 57
    SAMPLE_REQUEST = 64
    SAMPLE = 65
    FAILOVER_PREPARE = 72
    FAILOVER_PREPARED = 73
    FAILOVER_VOID = 74
    FAILOVER_VOIDED = 75
    CUT_MARK = 80
    CUT_MARKED = 81
    DEFINITION = 82
    DEFINITION_WANTED = 83
    DEFINITION_PART = 84
    DEFINITION_KEPT = 85


BULK_TYPES = frozenset(
    {MessageType.LOG, MessageType.SEAL, MessageType.MANIFEST, MessageType.BLOCKS, MessageType.DETAIL}
)


PLANNED_TYPES = frozenset(
    {
        MessageType.FAILOVER_PREPARE,
        MessageType.FAILOVER_PREPARED,
        MessageType.FAILOVER_VOID,
        MessageType.FAILOVER_VOIDED,
    }
)


class ErrorCode(StrEnum):
    """Codes of ERROR messages. ``RETRYABLE`` below says which can heal by themselves."""

    PROTOCOL = "protocol"
    VERSION = "version"
    UNAUTHORIZED = "unauthorized"
    BUSY = "busy"
    GEOMETRY = "geometry"
    UNRELATED = "unrelated"
    FENCED = "fenced"
    GAP = "gap"
    CHAIN = "chain"
    STATE = "state"
    NO_SPACE = "no_space"
    STORAGE = "storage"
    DAMAGED = "damaged"
    STALE = "stale"
    SHUTDOWN = "shutdown"
    QUEUED = "queued"


RETRYABLE = frozenset(
    {ErrorCode.BUSY, ErrorCode.QUEUED, ErrorCode.NO_SPACE, ErrorCode.STALE, ErrorCode.SHUTDOWN, ErrorCode.PROTOCOL}
)

Text = Annotated[str, msgspec.Meta(max_length=2048)]
MAX_NAME = 128
"""Characters of a name, of a VM or of a host."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Id16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Id32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, msgspec.Meta(min_length=16, max_length=32)]
U16 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=MAX_U63)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400 * 366)]
DiskBytes = Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]


class Role(StrEnum):
    """What a connection is for: of CONTROL and BULK one of each a VM at most."""

    CONTROL = "control"
    BULK = "bulk"
    PROBE = "probe"
    SAMPLE = "sample"
    VERIFY = "verify"


class ResyncKind(StrEnum):
    """INITIAL writes blocks in place, since there is no point to protect; the others go through a differencing file.

    RESYNC compares whole disks, and BOUNDED only what the primary has on record as in doubt.
    """

    INITIAL = "initial"
    RESYNC = "resync"
    BOUNDED = "bounded"


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all control bodies."""


class WirePosition(Body, frozen=True):
    """A position in the log; see hrl-format.md."""

    epoch: Id16
    segment: U63
    entry: U63
    chain: Id16

    @classmethod
    def of(cls, position: Position) -> WirePosition:
        return cls(epoch=position.epoch, segment=position.segment, entry=position.entry, chain=position.chain)

    def position(self) -> Position:
        return Position(self.epoch, self.segment, self.entry, self.chain)


class WireAncestor(Body, frozen=True):
    """A step of a lineage: ``epoch`` began at cut ``parent_segment`` of ``parent`` (16 zero bytes for the first)."""

    epoch: Id16
    parent: Id16
    parent_segment: U63


WireLineage = Annotated[list[WireAncestor], msgspec.Meta(max_length=MAX_LINEAGE)]


def wire_lineage(lineage: Lineage) -> list[WireAncestor]:
    return [WireAncestor(epoch=s.epoch, parent=s.parent, parent_segment=s.parent_segment) for s in lineage]


def read_lineage(steps: list[WireAncestor]) -> Lineage:
    return tuple(Ancestor(step.epoch, step.parent, step.parent_segment) for step in steps)


class WireDisk(Body, frozen=True):
    """A disk of the VM: its index, its identity and its size in bytes."""

    index: U16
    uuid: Id16
    size: DiskBytes

    @classmethod
    def of(cls, disk: Geometry) -> WireDisk:
        return cls(index=disk.index, uuid=disk.uuid, size=disk.size)

    def geometry(self) -> Geometry:
        return Geometry(self.index, self.size, self.uuid)


Disks = Annotated[list[WireDisk], msgspec.Meta(max_length=MAX_DISKS)]
Capabilities = Annotated[list[Name], msgspec.Meta(max_length=64)]


class Hello(Body, frozen=True):
    """First message of the primary. ``max_frame`` is the largest payload it accepts, in bytes."""

    versions: Annotated[list[U16], msgspec.Meta(min_length=1, max_length=16)]
    software: Name
    host: Name
    capabilities: Capabilities
    max_frame: U32
    heartbeat_seconds: Seconds


class Welcome(Body, frozen=True):
    """The replica's answer: the version and capabilities both have, and the session token (R13)."""

    version: U16
    software: Name
    host: Name
    capabilities: Capabilities
    max_frame: U32
    heartbeat_seconds: Seconds
    token: Annotated[int, msgspec.Meta(ge=1, le=MAX_U63)]


class Fence(Body, frozen=True):
    """The failover that fenced the primary off: the epoch that it began, and the cut of ``parent`` that was promoted.

    ``received`` is the newest cut of the parent's epoch that was there then, nil where it is not known any more;
    ``written`` whether anything was written there since.
    """

    epoch: Id16
    parent: Id16
    parent_segment: U63
    received: WirePosition | None
    written: bool
    wall_ns: U63
    host: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class Problem(Body, frozen=True):
    """An ERROR: the connection ends after it. ``retryable`` says whether trying again can help by itself.

    ``fence`` goes with the code ``fenced``, to a primary with the capability REVERSE; left out else.
    """

    code: ErrorCode
    text: Text
    remedy: Text
    retryable: bool
    fence: Fence | msgspec.UnsetType = msgspec.UNSET


class Open(Body, frozen=True):
    """Names the VM, its disks, and where the primary stands.

    ``epoch`` is the primary's baseline (16 zero bytes before the first), ``proposed`` an epoch whose commit was sent
    but not confirmed (R33). ``log_first_segment`` is the oldest segment in its log, ``log_position`` the log's end,
    nil where nothing is tracked. For a bulk connection ``control_token`` names the session it belongs to.
    ``disk_set`` counts how often disks were added, removed or enlarged; only with the capability DISK_SETS. ``disks``
    of the role SAMPLE may be larger than they are: that asks whether the replica would take them.
    """

    role: Role
    vm: Id16
    name: Name
    disks: Disks
    epoch: Id16
    proposed: Id16 | None = None
    lineage: WireLineage = []
    log_first_segment: U63 = 0
    log_position: WirePosition | None = None
    interval_seconds: Seconds = 0.0
    control_token: U63 = 0
    disk_set: U63 | msgspec.UnsetType = msgspec.UNSET


class ResyncState(Body, frozen=True):
    """A resync that the replica holds open. ``settled_bytes`` were compared and are durable there.

    ``unsettle``: the round's UNSETTLE is not wholly there yet.
    """

    id: Id16
    kind: ResyncKind
    epoch: Id16
    round: U32
    settled_bytes: U63
    unsettle: bool


class WireCause(Body, frozen=True):
    """Why the replica requires a resync: what it found, and a stable word for it."""

    code: Name
    text: Annotated[str, msgspec.Meta(max_length=MAX_CAUSE_TEXT)]


class Opened(Body, frozen=True):
    """The replica's answer: its own state, disks and positions. ``received`` resumes the log, also inside a segment.

    ``cut`` is the newest cut of the baseline's epoch that is received, ``causes`` why it requires a resync, if it does.
    ``disk_set`` is the number of the set of ``disks``; only with the capability DISK_SETS.
    ``common``, to a primary with the capability REVERSE and left out else: the disks are as of this cut but for what
    RESYNC_READY tells to be in doubt, since the VM ran on them before the direction was reversed. ``seeded``, to a
    primary with the capability SEED where it is true and left out else: a copy was imported into disks that have no
    baseline.
    """

    state: Name
    promoted: bool
    epoch: Id16
    lineage: WireLineage
    disks: Disks
    received: WirePosition | None
    cut: WirePosition | None
    applied: WirePosition | None
    resync: ResyncState | None
    causes: Annotated[list[WireCause], msgspec.Meta(max_length=MAX_CAUSES)] = []
    disk_set: U63 | msgspec.UnsetType = msgspec.UNSET
    common: WirePosition | msgspec.UnsetType = msgspec.UNSET
    seeded: bool | msgspec.UnsetType = msgspec.UNSET


class Heartbeat(Body, frozen=True):
    """Sent by both sides at every interval. ``echo`` is the last ``number`` seen from the other side."""

    number: U63
    echo: U63
    wall_ns: U63


class Close(Body, frozen=True):
    """The sender ends the connection in order."""

    text: Text


class Received(Body, frozen=True):
    """Everything up to this cut would survive power loss at the replica (I5)."""

    position: WirePosition


class Applied(Body, frozen=True):
    """The replica's newest recovery point is this cut."""

    position: WirePosition


class ResyncBegin(Body, frozen=True):
    """Start, or go on with, the resync ``id``. ``epoch`` is the one it will begin; the hash key is fresh (I15)."""

    id: Id16
    kind: ResyncKind
    round: U32
    epoch: Id16
    parent: Id16
    parent_segment: U63
    hash: Name
    key_id: Id16
    key: Key
    block_size: U32


class Run(Body, frozen=True):
    """A range of a disk, in bytes."""

    disk: U16
    offset: U63
    length: U63


Digests = Annotated[bytes, msgspec.Meta(max_length=16 * MAX_GROUPS)]
Asked = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_ASKED_BYTES)]
Runs = Annotated[list[Run], msgspec.Meta(max_length=MAX_SETTLED_RUNS)]
LeafDigests = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32 * MAX_VERIFY_GROUPS)]
GroupFlags = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_VERIFY_GROUPS // 8)]
Leaves = Annotated[bytes, msgspec.Meta(max_length=32 * GROUP_BLOCKS * MAX_VERIFY_GROUPS)]


class ResyncReady(Body, frozen=True):
    """The replica is ready to compare; ``settled`` need not be compared again. ``more``: further ones follow.

    ``unsettle``: the replica has to hear first, in UNSETTLE, what was written before this round; nothing counts as
    settled until then. ``doubt``, left out where there is none: ranges in which the disks may not be as OPENED's
    ``common`` says; a bounded resync compares them as well.
    """

    id: Id16
    round: U32
    key_id: Id16
    settled: Runs
    more: bool
    unsettle: bool
    doubt: Runs | msgspec.UnsetType = msgspec.UNSET


class Unsettle(Body, frozen=True):
    """These ranges were written in an earlier round whose log is lost: they are to be compared again.

    ``last``: all are told with this message; it is answered when they are durable.
    """

    id: Id16
    round: U32
    ranges: Runs
    last: bool


class Unsettled(Body, frozen=True):
    """All ranges of the round's UNSETTLE are durable at the replica. What stays settled follows in RESYNC_READY."""

    id: Id16
    round: U32


class Question(Body, frozen=True):
    """What every question about a range of a disk names, of one resync, round and hash key (R23)."""

    id: Id16
    round: U32
    key_id: Id16
    disk: U16
    offset: U63
    length: U63


class ManifestRequest(Question, frozen=True):
    """Ask for the manifest of a range of at most MAX_MANIFEST_BLOCKS whole blocks; the disk's last may be shorter.

    ``digests`` are the sender's, 16 bytes for each group of blocks: the answer leaves out groups that agree. Empty
    where all tags are wanted.
    """

    digests: Digests


class DetailRequest(Question, frozen=True):
    """Ask for the tags of the smaller blocks inside some blocks of a range whose manifest was sent.

    ``blocks`` is a bitmap: bit i % 8 of byte i / 8 asks for block i of the range.
    """

    blocks: Asked


class HolesRequest(Question, frozen=True):
    """The range, of any number of blocks, is a hole at the primary: ask where it is none at the replica."""


class Holes(Body, frozen=True):
    """What of the first ``length`` bytes of the range that was asked for is no hole here: ``data``, in order.

    The rest of these bytes is equal on both sides, and each run of it is expected in a RANGE_DONE.
    """

    id: Id16
    round: U32
    key_id: Id16
    disk: U16
    offset: U63
    length: U63
    data: Runs


class RangeDone(Body, frozen=True):
    """All differing blocks of the range were sent before this message."""

    id: Id16
    round: U32
    disk: U16
    offset: U63
    length: U63


class RangeSettled(Body, frozen=True):
    """The differences of these ranges are durable at the replica."""

    id: Id16
    round: U32
    ranges: Runs


class Commit(Body, frozen=True):
    """Make differences and tracked segments up to cut ``end`` the new baseline ``end.epoch``."""

    id: Id16
    round: U32
    end: WirePosition


class Committed(Body, frozen=True):
    """The commit is durable; it completes by itself from here (I7)."""

    id: Id16
    end: WirePosition


class ResyncCancel(Body, frozen=True):
    """End the resync before its commit; the text says why."""

    id: Id16
    text: Text


class ResyncCancelled(Body, frozen=True):
    """The resync is over; disks and recovery points are as they were before it."""

    id: Id16


class SamplePlace(Body, frozen=True):
    """A place of a disk, at most as long as a block."""

    disk: U16
    offset: U63
    length: Annotated[int, msgspec.Meta(gt=0, le=BLOCK_SIZE)]


class SampleRequest(Body, frozen=True):
    """Asks for the tags of places of the newest point, under a key of its own. Changes nothing."""

    key: Key
    hash: Name
    places: Annotated[list[SamplePlace], msgspec.Meta(min_length=1, max_length=MAX_SAMPLED)]


class Sample(Body, frozen=True):
    """The tags, 16 bytes each, in the order of the places."""

    tags: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16 * MAX_SAMPLED)]


class VerifyBegin(Body, frozen=True):
    """Announce a verify: the replica applies nothing that it receives from now on, for a short while, until VERIFY_CUT.

    ``hash`` makes the leaves of blocks of ``block_size`` bytes.
    """

    id: Id16
    hash: Name
    block_size: U32


class VerifyReady(Body, frozen=True):
    """No cut that is sealed from now on is passed over before VERIFY_CUT."""

    id: Id16


class VerifyCut(Body, frozen=True):
    """The cut at which both sides are compared."""

    id: Id16
    cut: WirePosition


class VerifyHeld(Body, frozen=True):
    """The replica has applied exactly this cut and keeps a view of it; applying goes on."""

    id: Id16
    cut: WirePosition


class VerifyRequest(Body, frozen=True):
    """Ask whether the leaves of a range of whole blocks are the same there; the disk's last block may be shorter.

    ``digests`` are the sender's, 32 bytes for each group of GROUP_BLOCKS leaves.
    """

    id: Id16
    disk: U16
    offset: U63
    length: U63
    digests: LeafDigests


class VerifyAnswer(Body, frozen=True):
    """Which groups have the digest that was sent, and the leaves of the others, in order.

    ``equal`` is a bitmap: bit i % 8 of byte i / 8 is group i. A block that can't be read has a leaf of bytes 0xff.
    """

    id: Id16
    disk: U16
    offset: U63
    length: U63
    equal: GroupFlags
    leaves: Leaves


class VerifyEnd(Body, frozen=True):
    """Nothing more is asked."""

    id: Id16


class ImageDigest(Body, frozen=True):
    """The digest of a disk's whole image: SHA-256 over the leaves of all its blocks, in order."""

    disk: U16
    digest: Id32


class VerifyEnded(Body, frozen=True):
    """The digests of the disks that were asked about wholly and could be read; the view is let go."""

    id: Id16
    images: Annotated[list[ImageDigest], msgspec.Meta(max_length=MAX_DISKS)]


class VerifyLost(Body, frozen=True):
    """The verify can't be decided: the replica has no view of the cut, or has lost it. The text says why."""

    id: Id16
    code: Name
    text: Text


class FailoverPrepare(Body, frozen=True):
    """The promote token of a planned failover: the primary's disks take no writes, and ``cut`` is their whole content.

    From the moment it is sent the primary takes no writes again before FAILOVER_VOIDED, or an administrator's force.
    """

    token: Id16
    cut: WirePosition


class FailoverPrepared(Body, frozen=True):
    """The token is durable at the replica, whose newest point is exactly ``cut``: a failover loses nothing."""

    token: Id16
    cut: WirePosition


class FailoverVoid(Body, frozen=True):
    """Take the token back, if it is there."""

    token: Id16


class FailoverVoided(Body, frozen=True):
    """The replica holds no token, durably, and was not failed over. The text says why, where it was not asked to."""

    token: Id16
    text: Text


class CutKind(StrEnum):
    """What a cut is beyond being a whole moment of all disks."""

    APPLICATION = "application"
    """Programs in the guest had written what they held back, and wrote nothing while it was taken."""


class CutMark(Body, frozen=True):
    """The cut is of that kind. Sent at any time from the cut on, and again until CUT_MARKED answers it."""

    cut: WirePosition
    kind: CutKind


class CutMarked(Body, frozen=True):
    """The mark is durable, or the replica has no such cut any more."""

    cut: WirePosition


Path = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class DefinitionFile(Body, frozen=True):
    """A file of a definition: its SHA-256, its size in bytes, and the path that it has at the primary.

    The path is for people, and to be found in the definition; nothing is ever stored or read by it at the replica.
    """

    path: Path
    digest: Id32
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_DEFINITION_FILE)]


class DefinitionDisk(Body, frozen=True):
    """A replicated disk as the definition may name it: by its path, or by its export at the primary's tap."""

    index: U16
    path: Path
    export: Name


class Definition(Body, frozen=True):
    """A version of what the VM needs to start beside its disks; it belongs to cut ``segment`` of ``epoch`` and later.

    The first of ``files`` is the definition itself. ``number`` is the sender's, and comes back in the answers.
    """

    number: U63
    epoch: Id16
    segment: U63
    files: Annotated[list[DefinitionFile], msgspec.Meta(min_length=1, max_length=MAX_DEFINITION_FILES)]
    disks: Annotated[list[DefinitionDisk], msgspec.Meta(max_length=MAX_DISKS)]


class DefinitionWanted(Body, frozen=True):
    """The contents that the replica has not: each is to be sent in parts, in this order."""

    number: U63
    digests: Annotated[list[Id32], msgspec.Meta(min_length=1, max_length=MAX_DEFINITION_FILES)]


class DefinitionPart(Body, frozen=True):
    """Bytes of the content that is sent just now, from ``offset`` on."""

    number: U63
    digest: Id32
    offset: U63
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_DEFINITION_PART)]


class DefinitionKept(Body, frozen=True):
    """The version is durable at the replica; or it is not kept, for the reason that the text tells."""

    number: U63
    kept: bool
    text: Text = ""


BODIES: dict[MessageType, type[Body]] = {
    MessageType.HELLO: Hello, MessageType.WELCOME: Welcome, MessageType.ERROR: Problem,
    MessageType.OPEN: Open, MessageType.OPENED: Opened, MessageType.HEARTBEAT: Heartbeat, MessageType.CLOSE: Close,
    MessageType.RECEIVED: Received, MessageType.APPLIED: Applied,
    MessageType.RESYNC_BEGIN: ResyncBegin, MessageType.RESYNC_READY: ResyncReady,
    MessageType.MANIFEST_REQUEST: ManifestRequest, MessageType.RANGE_DONE: RangeDone,
    MessageType.RANGE_SETTLED: RangeSettled, MessageType.COMMIT: Commit, MessageType.COMMITTED: Committed,
    MessageType.DETAIL_REQUEST: DetailRequest, MessageType.HOLES_REQUEST: HolesRequest, MessageType.HOLES: Holes,
    MessageType.RESYNC_CANCEL: ResyncCancel, MessageType.RESYNC_CANCELLED: ResyncCancelled,
    MessageType.UNSETTLE: Unsettle, MessageType.UNSETTLED: Unsettled,
    MessageType.SAMPLE_REQUEST: SampleRequest, MessageType.SAMPLE: Sample,
    MessageType.VERIFY_BEGIN: VerifyBegin, MessageType.VERIFY_READY: VerifyReady, MessageType.VERIFY_CUT: VerifyCut,
    MessageType.VERIFY_HELD: VerifyHeld, MessageType.VERIFY_REQUEST: VerifyRequest,
    MessageType.VERIFY_ANSWER: VerifyAnswer, MessageType.VERIFY_END: VerifyEnd, MessageType.VERIFY_ENDED: VerifyEnded,
    MessageType.VERIFY_LOST: VerifyLost,
    MessageType.FAILOVER_PREPARE: FailoverPrepare, MessageType.FAILOVER_PREPARED: FailoverPrepared,
    MessageType.FAILOVER_VOID: FailoverVoid, MessageType.FAILOVER_VOIDED: FailoverVoided,
    MessageType.CUT_MARK: CutMark, MessageType.CUT_MARKED: CutMarked,
    MessageType.DEFINITION: Definition, MessageType.DEFINITION_WANTED: DefinitionWanted,
    MessageType.DEFINITION_PART: DefinitionPart, MessageType.DEFINITION_KEPT: DefinitionKept,
}  # fmt: skip
TYPE_OF: dict[type[Body], MessageType] = {body: kind for kind, body in BODIES.items()}


def encode_body(body: Body) -> bytes:
    """The msgpack map of a control body."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(body, builtin_types=(bytes,)), use_bin_type=True)
    return packed


def decode_body(kind: MessageType, data: bytes | bytearray | memoryview) -> Body:
    """The strict struct of a control body. Raises ProtocolError naming the message and the field."""
    limit = MAX_HELLO_BODY if kind in (MessageType.HELLO, MessageType.WELCOME) else MAX_CONTROL_BODY
    if len(data) > limit:
        raise ProtocolError(f"{kind.name} body of {len(data)} bytes; the limit is {limit}")
    try:
        plain: Any = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_fields,
            max_map_len=64,  # everything else is bounded by the body's length
            max_ext_len=0,
        )
        return msgspec.convert(plain, BODIES[kind], strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise ProtocolError(f"{kind.name}: {error}") from None
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{kind.name} body is no valid msgpack: {type(error).__name__}: {error}") from None


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields
