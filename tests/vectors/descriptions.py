"""The test vectors of descriptions: one of each role, made from fixed values."""

from __future__ import annotations

from pathlib import Path

import primary_agent.description
import primary_agent.record
import replica_agent.description
import replica_agent.record
from protocol.messages import ResyncKind
from shared.description import encode
from shared.states import ReplicationState
from shared.status import Cause
from tests.vectors.logs import EPOCH, OTHER_EPOCH, VM

FOLDER = Path(__file__).parent
DISK = bytes(range(48, 64))

REPLICA = replica_agent.description.Description(
    vm=replica_agent.record.VmRecord(
        vm=VM,
        name="web",
        disks=[replica_agent.record.DiskRecord(index=0, uuid=DISK, size=1 << 20)],
        created_time=1_700_000_000.5,
        peer="ab" * 32,
    ),
    epoch=OTHER_EPOCH,
    lineage=[
        replica_agent.record.AncestorRecord(epoch=EPOCH, parent=bytes(16), parent_segment=0),
        replica_agent.record.AncestorRecord(epoch=OTHER_EPOCH, parent=EPOCH, parent_segment=7),
    ],
    interval_seconds=30.0,
    peer_host="alpha",
    promotion=replica_agent.record.PromotionRecord(
        epoch=OTHER_EPOCH, parent=EPOCH, parent_segment=7, entry=99, time=1_700_000_100.0, host="beta", serving=True
    ),
)
PRIMARY = primary_agent.description.Description(
    vm=primary_agent.record.VmRecord(
        vm=VM,
        name="web",
        disks=[
            primary_agent.record.DiskRecord(index=0, uuid=DISK, path="/srv/web.raw", size=1 << 20, export="disk0"),
        ],
        replica_host="beta",
        replica_port=8475,
        interval_seconds=30.0,
        log_limit_bytes=64 << 20,
        created_time=1_700_000_000.5,
    ),
    replication=primary_agent.record.ReplicationRecord(
        state=ReplicationState.RESYNCHRONIZING,
        epoch=EPOCH,
        lineage=[primary_agent.record.AncestorRecord(epoch=EPOCH, parent=bytes(16), parent_segment=0)],
        resync=primary_agent.record.ResyncRecord(
            id=DISK,
            kind=ResyncKind.RESYNC,
            epoch=OTHER_EPOCH,
            parent=EPOCH,
            parent_segment=7,
            started_time=1_700_000_050.0,
            end=primary_agent.record.PositionRecord(epoch=OTHER_EPOCH, segment=3, entry=12, chain=bytes(16)),
        ),
        causes=[Cause(code="tracking_lost", text="the log is full", time=1_700_000_040.0, evidence={"bounded": False})],
        peer_host="beta",
    ),
)
VECTORS = {
    "replica.description": encode(replica_agent.description.ROLE, REPLICA),
    "primary.description": encode(primary_agent.description.ROLE, PRIMARY),
}


def write_all() -> None:
    for name, content in VECTORS.items():
        (FOLDER / name).write_bytes(content)
