"""Hypothesis strategies for control messages: every field over its whole range."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from protocol.hrl import MAX_DISK_BYTES
from protocol.messages import (
    BLOCK_SIZE,
    MAX_DEFINITION_FILE,
    MAX_U63,
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
    Heartbeat,
    Hello,
    Holes,
    HolesRequest,
    ImageDigest,
    ManifestRequest,
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
    WireDisk,
    WirePosition,
)

id16 = st.binary(min_size=16, max_size=16)
id32 = st.binary(min_size=32, max_size=32)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u63 = st.integers(0, MAX_U63)
text = st.text(max_size=60)
name = st.text(min_size=1, max_size=128)
seconds = st.floats(0, 86400 * 366)
capabilities = st.lists(name, max_size=5)
position = st.builds(WirePosition, epoch=id16, segment=u63, entry=u63, chain=id16)
lineage = st.lists(st.builds(WireAncestor, epoch=id16, parent=id16, parent_segment=u63), max_size=3)
disks = st.lists(st.builds(WireDisk, index=u16, uuid=id16, size=st.integers(1, MAX_DISK_BYTES)), max_size=3)
runs = st.lists(st.builds(Run, disk=u16, offset=u63, length=u63), max_size=5)
kind = st.sampled_from(ResyncKind)
resync_state = st.builds(
    ResyncState, id=id16, kind=kind, epoch=id16, round=u32, settled_bytes=u63, unsettle=st.booleans()
)


def maybe(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | of


bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(
        Hello,
        versions=st.lists(u16, min_size=1, max_size=16),
        software=name,
        host=name,
        capabilities=capabilities,
        max_frame=u32,
        heartbeat_seconds=seconds,
    ),
    st.builds(
        Welcome,
        version=u16,
        software=name,
        host=name,
        capabilities=capabilities,
        max_frame=u32,
        heartbeat_seconds=seconds,
        token=st.integers(1, MAX_U63),
    ),
    st.builds(Problem, code=st.sampled_from(ErrorCode), text=text, remedy=text, retryable=st.booleans()),
    st.builds(
        Open,
        role=st.sampled_from(Role),
        vm=id16,
        name=name,
        disks=disks,
        epoch=id16,
        proposed=maybe(id16),
        lineage=lineage,
        log_first_segment=u63,
        log_position=maybe(position),
        interval_seconds=seconds,
        control_token=u63,
    ),
    st.builds(
        Opened,
        state=name,
        promoted=st.booleans(),
        epoch=id16,
        lineage=lineage,
        disks=disks,
        received=maybe(position),
        cut=maybe(position),
        applied=maybe(position),
        resync=maybe(resync_state),
    ),
    st.builds(Heartbeat, number=u63, echo=u63, wall_ns=u63),
    st.builds(Close, text=text),
    st.builds(Received, position=position),
    st.builds(Applied, position=position),
    st.builds(
        ResyncBegin,
        id=id16,
        kind=kind,
        round=u32,
        epoch=id16,
        parent=id16,
        parent_segment=u63,
        hash=name,
        key_id=id16,
        key=st.binary(min_size=16, max_size=32),
        block_size=u32,
    ),
    st.builds(ResyncReady, id=id16, round=u32, key_id=id16, settled=runs, more=st.booleans(), unsettle=st.booleans()),
    st.builds(Unsettle, id=id16, round=u32, ranges=runs, last=st.booleans()),
    st.builds(Unsettled, id=id16, round=u32),
    st.builds(
        ManifestRequest,
        id=id16,
        round=u32,
        key_id=id16,
        disk=u16,
        offset=u63,
        length=u63,
        digests=st.binary(max_size=1024),
    ),
    st.builds(
        DetailRequest,
        id=id16,
        round=u32,
        key_id=id16,
        disk=u16,
        offset=u63,
        length=u63,
        blocks=st.binary(min_size=1, max_size=512),
    ),
    st.builds(HolesRequest, id=id16, round=u32, key_id=id16, disk=u16, offset=u63, length=u63),
    st.builds(
        SampleRequest,
        key=st.binary(min_size=16, max_size=32),
        hash=st.text(min_size=1, max_size=128),
        places=st.lists(
            st.builds(SamplePlace, disk=u16, offset=u63, length=st.integers(1, BLOCK_SIZE)), min_size=1, max_size=512
        ),
    ),
    st.builds(Sample, tags=st.binary(min_size=16, max_size=16 * 512)),
    st.builds(Holes, id=id16, round=u32, key_id=id16, disk=u16, offset=u63, length=u63, data=runs),
    st.builds(RangeDone, id=id16, round=u32, disk=u16, offset=u63, length=u63),
    st.builds(RangeSettled, id=id16, round=u32, ranges=runs),
    st.builds(Commit, id=id16, round=u32, end=position),
    st.builds(Committed, id=id16, end=position),
    st.builds(ResyncCancel, id=id16, text=text),
    st.builds(ResyncCancelled, id=id16),
    st.builds(VerifyBegin, id=id16, hash=name, block_size=u32),
    st.builds(VerifyReady, id=id16),
    st.builds(VerifyCut, id=id16, cut=position),
    st.builds(VerifyHeld, id=id16, cut=position),
    st.builds(VerifyRequest, id=id16, disk=u16, offset=u63, length=u63, digests=st.binary(min_size=32, max_size=512)),
    st.builds(
        VerifyAnswer,
        id=id16,
        disk=u16,
        offset=u63,
        length=u63,
        equal=st.binary(min_size=1, max_size=2),
        leaves=st.binary(max_size=32768),
    ),
    st.builds(VerifyEnd, id=id16),
    st.builds(
        VerifyEnded,
        id=id16,
        images=st.lists(st.builds(ImageDigest, disk=u16, digest=st.binary(min_size=32, max_size=32)), max_size=64),
    ),
    st.builds(VerifyLost, id=id16, code=name, text=text),
    st.builds(FailoverPrepare, token=id16, cut=position),
    st.builds(FailoverPrepared, token=id16, cut=position),
    st.builds(FailoverVoid, token=id16),
    st.builds(FailoverVoided, token=id16, text=text),
    st.builds(CutMark, cut=position, kind=st.sampled_from(CutKind)),
    st.builds(CutMarked, cut=position),
    st.builds(
        Definition,
        number=u63,
        epoch=id16,
        segment=u63,
        files=st.lists(
            st.builds(DefinitionFile, path=name, digest=id32, size=st.integers(0, MAX_DEFINITION_FILE)),
            min_size=1,
            max_size=3,
        ),
        disks=st.lists(st.builds(DefinitionDisk, index=u16, path=name, export=name), max_size=3),
    ),
    st.builds(DefinitionWanted, number=u63, digests=st.lists(id32, min_size=1, max_size=3)),
    st.builds(DefinitionPart, number=u63, digest=id32, offset=u63, data=st.binary(max_size=200)),
    st.builds(DefinitionKept, number=u63, kept=st.booleans(), text=text),
)
