"""One example of every message: the bodies of control messages and the payloads of bulk ones."""

from __future__ import annotations

import msgspec
import numpy as np

from protocol.bulk import Detail, Manifest, encode_blocks, encode_blocks_entry, encode_detail, encode_manifest
from protocol.frames import MAX_FRAME_PAYLOAD
from protocol.messages import (
    Applied,
    Body,
    Close,
    Commit,
    Committed,
    CutKind,
    CutMark,
    CutMarked,
    Definition,
    DefinitionDisk,
    DefinitionFile,
    DefinitionKept,
    DefinitionPart,
    DefinitionWanted,
    DetailRequest,
    ErrorCode,
    FailoverPrepare,
    FailoverPrepared,
    FailoverVoid,
    FailoverVoided,
    Fence,
    Heartbeat,
    Hello,
    Holes,
    HolesRequest,
    ImageDigest,
    ManifestRequest,
    MessageType,
    Open,
    Opened,
    Problem,
    RangeDone,
    RangeSettled,
    Received,
    ResyncBegin,
    ResyncCancel,
    ResyncCancelled,
    ResyncKind,
    ResyncReady,
    ResyncState,
    Role,
    Run,
    Sample,
    SamplePlace,
    SampleRequest,
    Unsettle,
    Unsettled,
    VerifyAnswer,
    VerifyBegin,
    VerifyCut,
    VerifyEnd,
    VerifyEnded,
    VerifyHeld,
    VerifyLost,
    VerifyReady,
    VerifyRequest,
    Welcome,
    WireAncestor,
    WireCause,
    WireDisk,
    WirePosition,
)
from protocol.position import NO_EPOCH
from tests.vectors.logs import DISKS, EPOCH, OTHER_EPOCH, START_NS, VM, pattern, small_log

TOKEN = 0x1122334455667788
RESYNC = bytes(range(80, 96))
KEY_ID = bytes(range(96, 112))
PROMOTE_TOKEN = bytes(range(144, 160))
KEY = bytes(range(112, 144))
LOG = small_log()
POSITION = WirePosition.of(LOG.positions[5])
DISK_LIST = [WireDisk.of(disk) for disk in DISKS]
LINEAGE = [
    WireAncestor(epoch=OTHER_EPOCH, parent=NO_EPOCH, parent_segment=0),
    WireAncestor(epoch=EPOCH, parent=OTHER_EPOCH, parent_segment=17),
]

EXAMPLES: dict[MessageType, Body] = {
    MessageType.HELLO: Hello(
        versions=[1],
        software="vmreplica 0.1.0",
        host="alpha.example",
        capabilities=["zstd"],
        max_frame=MAX_FRAME_PAYLOAD,
        heartbeat_seconds=5.0,
    ),
    MessageType.WELCOME: Welcome(
        version=1,
        software="vmreplica 0.1.0",
        host="beta.example",
        capabilities=["zstd"],
        max_frame=MAX_FRAME_PAYLOAD,
        heartbeat_seconds=5.0,
        token=TOKEN,
    ),
    MessageType.ERROR: Problem(
        code=ErrorCode.FENCED,
        text="VM web was promoted on beta.example at 2026-11-24T03:00:00Z.",
        remedy="Run it there, or remove it here.",
        retryable=False,
    ),
    MessageType.OPEN: Open(
        role=Role.CONTROL,
        vm=VM,
        name="web",
        disks=DISK_LIST,
        epoch=EPOCH,
        proposed=OTHER_EPOCH,
        lineage=LINEAGE,
        log_first_segment=1,
        log_position=POSITION,
        interval_seconds=30.0,
        control_token=0,
    ),
    MessageType.OPENED: Opened(
        state="Replicating",
        promoted=False,
        epoch=EPOCH,
        lineage=LINEAGE,
        disks=DISK_LIST,
        received=POSITION,
        cut=POSITION,
        applied=POSITION,
        resync=ResyncState(
            id=RESYNC, kind=ResyncKind.RESYNC, epoch=OTHER_EPOCH, round=1, settled_bytes=65536, unsettle=False
        ),
        causes=[WireCause(code="disk_changed", text="Somebody else changed the replica's disks.")],
    ),
    MessageType.HEARTBEAT: Heartbeat(number=3, echo=2, wall_ns=START_NS),
    MessageType.CLOSE: Close(text="the agent is stopping"),
    MessageType.RECEIVED: Received(position=POSITION),
    MessageType.APPLIED: Applied(position=POSITION),
    MessageType.RESYNC_BEGIN: ResyncBegin(
        id=RESYNC,
        kind=ResyncKind.RESYNC,
        round=1,
        epoch=OTHER_EPOCH,
        parent=EPOCH,
        parent_segment=1,
        hash="aes-256-gmac",
        key_id=KEY_ID,
        key=KEY,
        block_size=65536,
    ),
    MessageType.RESYNC_READY: ResyncReady(
        id=RESYNC,
        round=1,
        key_id=KEY_ID,
        settled=[Run(disk=0, offset=0, length=65536)],
        more=False,
        unsettle=False,
    ),
    MessageType.MANIFEST_REQUEST: ManifestRequest(
        id=RESYNC, round=1, key_id=KEY_ID, disk=0, offset=65536, length=327680, digests=pattern(16, 10)
    ),
    MessageType.DETAIL_REQUEST: DetailRequest(
        id=RESYNC, round=1, key_id=KEY_ID, disk=0, offset=65536, length=327680, blocks=b"\x09"
    ),
    MessageType.SAMPLE_REQUEST: SampleRequest(
        key=bytes(range(32)),
        hash="aes-256-gmac",
        places=[SamplePlace(disk=3, offset=1 << 20, length=65536), SamplePlace(disk=3, offset=4096, length=4096)],
    ),
    MessageType.SAMPLE: Sample(tags=bytes(range(32))),
    MessageType.HOLES_REQUEST: HolesRequest(id=RESYNC, round=1, key_id=KEY_ID, disk=3, offset=0, length=1 << 30),
    MessageType.HOLES: Holes(
        id=RESYNC,
        round=1,
        key_id=KEY_ID,
        disk=3,
        offset=0,
        length=1 << 30,
        data=[Run(disk=3, offset=65536, length=131072)],
    ),
    MessageType.RANGE_DONE: RangeDone(id=RESYNC, round=1, disk=0, offset=65536, length=327680),
    MessageType.RANGE_SETTLED: RangeSettled(id=RESYNC, round=1, ranges=[Run(disk=0, offset=65536, length=327680)]),
    MessageType.COMMIT: Commit(id=RESYNC, round=1, end=POSITION),
    MessageType.COMMITTED: Committed(id=RESYNC, end=POSITION),
    MessageType.UNSETTLE: Unsettle(id=RESYNC, round=2, ranges=[Run(disk=0, offset=65536, length=131072)], last=True),
    MessageType.UNSETTLED: Unsettled(id=RESYNC, round=2),
    MessageType.RESYNC_CANCEL: ResyncCancel(id=RESYNC, text="an administrator asked for it"),
    MessageType.RESYNC_CANCELLED: ResyncCancelled(id=RESYNC),
    MessageType.VERIFY_BEGIN: VerifyBegin(id=RESYNC, hash="sha-256", block_size=65536),
    MessageType.VERIFY_READY: VerifyReady(id=RESYNC),
    MessageType.VERIFY_CUT: VerifyCut(id=RESYNC, cut=POSITION),
    MessageType.VERIFY_HELD: VerifyHeld(id=RESYNC, cut=POSITION),
    MessageType.VERIFY_REQUEST: VerifyRequest(
        id=RESYNC, disk=0, offset=4194304, length=4259840, digests=pattern(64, 13)
    ),
    MessageType.VERIFY_ANSWER: VerifyAnswer(
        id=RESYNC, disk=0, offset=4194304, length=4259840, equal=b"\x01", leaves=pattern(32, 14)
    ),
    MessageType.VERIFY_END: VerifyEnd(id=RESYNC),
    MessageType.VERIFY_ENDED: VerifyEnded(id=RESYNC, images=[ImageDigest(disk=0, digest=pattern(32, 15))]),
    MessageType.VERIFY_LOST: VerifyLost(id=RESYNC, code="point_lost", text="The recovery point was deleted."),
    MessageType.FAILOVER_PREPARE: FailoverPrepare(token=PROMOTE_TOKEN, cut=POSITION),
    MessageType.FAILOVER_PREPARED: FailoverPrepared(token=PROMOTE_TOKEN, cut=POSITION),
    MessageType.FAILOVER_VOID: FailoverVoid(token=PROMOTE_TOKEN),
    MessageType.FAILOVER_VOIDED: FailoverVoided(token=PROMOTE_TOKEN, text="The primary goes on writing."),
    MessageType.CUT_MARK: CutMark(cut=POSITION, kind=CutKind.APPLICATION),
    MessageType.CUT_MARKED: CutMarked(cut=POSITION),
    MessageType.DEFINITION: Definition(
        number=7,
        epoch=EPOCH,
        segment=2,
        files=[
            DefinitionFile(path="/etc/libvirt/qemu/web.xml", digest=pattern(32, 16), size=4711),
            DefinitionFile(path="/var/lib/libvirt/qemu/nvram/web_VARS.fd", digest=pattern(32, 17), size=540672),
        ],
        disks=[DefinitionDisk(index=0, path="/images/web.raw", export="disk0")],
    ),
    MessageType.DEFINITION_WANTED: DefinitionWanted(number=7, digests=[pattern(32, 17)]),
    MessageType.DEFINITION_PART: DefinitionPart(number=7, digest=pattern(32, 17), offset=49152, data=pattern(512, 18)),
    MessageType.DEFINITION_KEPT: DefinitionKept(number=7, kept=False, text="The volume is full."),
}


REVERSED_EXAMPLES: dict[MessageType, Body] = {
    MessageType.ERROR: msgspec.structs.replace(
        EXAMPLES[MessageType.ERROR],
        fence=Fence(
            epoch=OTHER_EPOCH,
            parent=EPOCH,
            parent_segment=1,
            received=POSITION,
            written=True,
            wall_ns=START_NS,
            host="beta.example",
        ),
    ),
    MessageType.OPENED: msgspec.structs.replace(
        EXAMPLES[MessageType.OPENED],
        state="WaitingForStartResynchronize",
        causes=[WireCause(code="reversed", text="The direction was reversed.")],
        common=POSITION,
    ),
    MessageType.RESYNC_READY: msgspec.structs.replace(
        EXAMPLES[MessageType.RESYNC_READY], settled=[], more=True, doubt=[Run(disk=0, offset=131072, length=65536)]
    ),
}
"""The same with what goes only to a peer that has the capability ``reverse``."""
SET_EXAMPLES: dict[MessageType, Body] = {
    kind: msgspec.structs.replace(EXAMPLES[kind], disk_set=3) for kind in (MessageType.OPEN, MessageType.OPENED)
}
"""And with what goes only to one that has ``disk-sets``."""
SEEDED_EXAMPLES: dict[MessageType, Body] = {
    MessageType.OPENED: msgspec.structs.replace(
        EXAMPLES[MessageType.OPENED],
        state="ReadyForInitialReplication",
        epoch=NO_EPOCH,
        lineage=[],
        received=None,
        cut=None,
        applied=None,
        resync=None,
        causes=[],
        seeded=True,
    ),
}
"""The same with what goes only to a peer that has the capability ``seed``."""


def manifest() -> Manifest:
    """Five blocks of 64 KiB, the second and the last of them holes."""
    holes = np.array([False, True, False, False, True])
    tags = np.frombuffer(pattern(48, 9), np.uint8).reshape(3, 16)
    return Manifest(RESYNC, KEY_ID, 1, 0, 65536, 65536, 327680, holes, tags, np.array([False]))


def long_manifest() -> Manifest:
    """130 blocks in three groups, the second of which is equal, with a hole in the first and one in the third."""
    equal = np.array([False, True, False])
    holes = np.repeat(equal, 64)[:130]
    holes[[3, 128]] = True
    tags = np.frombuffer(pattern(16 * 64, 11), np.uint8).reshape(64, 16)
    return Manifest(RESYNC, KEY_ID, 1, 0, 65536, 0, 130 * 65536, holes, tags, equal)


def detail() -> Detail:
    """The tags of 32 smaller blocks."""
    tags = np.frombuffer(pattern(512, 12), np.uint8).reshape(32, 16)
    return Detail(RESYNC, KEY_ID, 1, 0, 65536, 327680, tags)


def blocks_payload() -> bytes:
    """Two blocks of data around one of zeroes."""
    entries = [
        encode_blocks_entry(0, 65536, 512, zero=False),
        encode_blocks_entry(0, 131072, 65536, zero=True),
        encode_blocks_entry(3, 0, 1024, zero=False),
    ]
    return b"".join(encode_blocks(RESYNC, 1, entries, [pattern(512, 6), pattern(1024, 7)]))


BULK_EXAMPLES: dict[MessageType, bytes] = {
    # The segment record and the first two batches, then the seal of segment 1.
    MessageType.LOG: LOG.record(0) + LOG.record(1) + LOG.record(2),
    MessageType.SEAL: LOG.record(4),
    MessageType.MANIFEST: b"".join(encode_manifest(manifest())),
    MessageType.DETAIL: b"".join(encode_detail(detail())),
    MessageType.BLOCKS: blocks_payload(),
}
