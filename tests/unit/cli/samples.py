"""Statuses as agents tell them, for the tests of the command: a healthy VM, one that resynchronizes, a replica."""

from __future__ import annotations

from typing import Any

import msgspec

from shared.progress_status import DiskProgress, ProgressStatus
from shared.status import (
    AgentRole,
    AgentStatus,
    Cause,
    CutStatus,
    DiskStatus,
    ExportStatus,
    LinkStatus,
    TapStatus,
    VmStatus,
)

NOW = 1_900_000_000.0
"""2030-03-17 17:46:40 UTC."""
UUID = "5d2c8a3e-9f10-4b7d-8c3a-1f2e3d4c5b6a"
OTHER_UUID = "00000000-0000-4000-8000-000000000001"
EPOCH = "0123456789abcdef0123456789abcdef"
URI = f"nbd+unix:///disk0?socket=/run/vmreplica/{UUID}/nbd.sock"


def cut(segment: int, age: float) -> CutStatus:
    return CutStatus(epoch=EPOCH, segment=segment, entry=100 * segment, time=NOW - age)


def changed(status: VmStatus, **changes: Any) -> VmStatus:
    return msgspec.structs.replace(status, **changes)


def healthy(**changes: Any) -> VmStatus:
    """A VM at its primary, all well."""
    status = VmStatus(
        name="web",
        uuid=UUID,
        role="primary",
        state="Replicating",
        state_code=4,
        health="Normal",
        protected=True,
        summary="Protected: the replica at beta holds everything up to 2.1 s ago.",
        baseline=True,
        interval_seconds=30.0,
        lag_seconds=2.1,
        pending_bytes=1 << 20,
        newest_cut=cut(17, 1.0),
        acked_cut=cut(16, 31.0),
        applied_cut=cut(16, 31.0),
        epoch=EPOCH,
        peer_host="beta",
        link=LinkStatus(
            connected=True,
            healthy=True,
            peer="beta:7443",
            since_time=NOW - 3600,
            rtt_ms=0.42,
            bytes_sent=3 << 30,
            bytes_received=2048,
        ),
        tap=TapStatus(
            running=True,
            pid=4711,
            tracking="on",
            uris=[URI],
            clients=1,
            log_used_bytes=64 << 20,
            log_limit_bytes=10 << 30,
            writes=1000,
            bytes_written=5 << 30,
        ),
        disks=[DiskStatus(index=0, uuid=EPOCH, size_bytes=20 << 30, path="/images/web.raw", export="disk0", uri=URI)],
        folder="/var/lib/vmreplica/vms/x",
        settings={"interval_seconds": 30.0, "log_limit_bytes": 10 << 30, "replica": "beta:7443"},
    )
    return changed(status, **changes)


def resynchronizing(**changes: Any) -> VmStatus:
    """A VM at its primary while a resync compares."""
    status = healthy(
        name="db",
        uuid=OTHER_UUID,
        state="Resynchronizing",
        state_code=11,
        health="Warning",
        protected=False,
        summary="Not protected: resynchronizing (52 % compared); the replica at beta holds everything up to 5 min ago.",
        reasons=["A resynchronization is not complete; the replica keeps its older recovery point until then."],
        causes=[Cause(code="log_full", text="The log passed its limit of 10.0 GiB.", time=NOW - 400)],
        lag_seconds=303.0,
        progress=ProgressStatus(
            kind="resync",
            phase="comparing",
            total_bytes=8 << 30,
            done_bytes=(8 << 30) * 525 // 1000,
            compared_bytes=4 << 30,
            different_bytes=1 << 30,
            sent_bytes=1 << 30,
            wire_bytes=700 << 20,
            rate_bytes_per_second=float(400 << 20),
            seconds_left=9.0,
        ),
    )
    return changed(status, **changes)


def replica(**changes: Any) -> VmStatus:
    """A VM at its replica, all well."""
    status = healthy(
        role="replica",
        summary="Protected: this replica holds everything up to 2.1 s ago.",
        peer_host="alpha",
        tap=None,
        newest_cut=cut(16, 31.0),
        applied_cut=cut(15, 61.0),
        exports=[
            ExportStatus(
                id="1", uris=["nbd+unix:///disk0?socket=/run/e1"], cut=cut(15, 61.0), held_bytes=10 << 20,
            )
        ],
        older_points=3,
        oldest_point_time=NOW - 3600.0,
        points_bytes=20 << 20,
        disks=[DiskStatus(index=0, uuid=EPOCH, size_bytes=20 << 30, path="/replica/disk-0.raw")],
        settings={},
    )  # fmt: skip
    return changed(status, **changes)


def two_disks() -> list[DiskProgress]:
    """Progress on two disks, the second not begun."""
    return [
        DiskProgress(index=0, total_bytes=1 << 30, compared_bytes=1 << 30, different_bytes=65536, sent_bytes=65536),
        DiskProgress(index=1, total_bytes=2 << 30),
    ]


def agent(role: AgentRole = "primary", vms: list[VmStatus] | None = None, **changes: Any) -> AgentStatus:
    """An agent with these VMs."""
    status = AgentStatus(
        role=role,
        host="alpha" if role == "primary" else "beta",
        version="0.1.0",
        pid=4000,
        started_time=NOW - 7200,
        time=NOW,
        vms=[healthy()] if vms is None else vms,
    )
    return msgspec.structs.replace(status, **changes)
