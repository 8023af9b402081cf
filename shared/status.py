"""The status of an agent and its VMs as one data object: what text, JSON and the live view only render.

Numbers are raw and carry their unit in the name. A ``*_time`` is in seconds since the Unix epoch, UTC. A
field that does not apply to the role, or is not known, is None (null).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

AgentRole = Literal["primary", "replica"]


class StatusStruct(msgspec.Struct, kw_only=True):
    """Base of all parts of a status; unknown fields are ignored by readers, so that fields can be added."""


class CutStatus(StatusStruct):
    """One cut: ``epoch`` in hex, the number of its ``segment``, ``entry`` = writes of the epoch before it."""

    epoch: str
    segment: int
    entry: int
    time: float | None
    """When the segment was sealed at the primary, seconds since the Unix epoch."""


class LinkStatus(StatusStruct):
    """The connection between primary and replica agent."""

    connected: bool = False
    """A session is open: certificates, authorization and positions were all accepted."""
    healthy: bool = False
    """Connectivity is proven in both directions right now (the gate of a resync, I20)."""
    peer: str = ""
    """``host:port`` of the replica, or address and name of the primary that is connected."""
    since_time: float | None = None
    """When the present session opened, or since when there is none."""
    last_error: str = ""
    last_error_code: str = ""
    retryable: bool = True
    """Whether the last error can heal by itself (retried within 30 s) or waits for an administrator."""
    attempts: int = 0
    """Failed attempts since the last session."""
    next_attempt_seconds: float | None = None
    """None while there is a session, or an attempt is under way."""
    damaged: int = 0
    """How many sessions ended because TLS found data damaged on its way, since the agent started."""
    rtt_ms: float | None = None
    clock_difference_seconds: float | None = None
    """How much the peer's clock is ahead of ours, by its last heartbeat; None without a session."""
    bytes_sent: int = 0
    bytes_received: int = 0


class TapStatus(StatusStruct):
    """The tap process of the VM on this host."""

    running: bool = False
    pid: int | None = None
    tracking: str = "off"
    """``off``, ``on``, ``lost``, or ``map``: the log could not go on, and the dirty map tells what changes."""
    lost_reason: str = ""
    lost_text: str = ""
    uris: list[str] = []
    """NBD URIs of the VM's disks, in the order of the disks."""
    clients: int = 0
    log_used_bytes: int = 0
    log_limit_bytes: int = 0
    log_full_seconds: float | None = None
    """When the log reaches its limit at the present rate; None while it does not grow, or that is not known."""
    writes: int = 0
    bytes_written: int = 0
    last_write_time: float | None = None
    doubt_bytes: int | None = None
    """What the dirty map says is in doubt, and will be compared; None while it says nothing."""
    hot_bytes: int = 0
    """What a power loss now would leave in doubt."""
    error: str = ""
    """Why the tap could not be reached or started, empty while it runs."""


class DiskStatus(StatusStruct):
    """One disk of the VM."""

    index: int
    uuid: str
    size_bytes: int
    path: str = ""
    export: str = ""
    uri: str = ""
    found_size_bytes: int | None = None
    """The size that it was seen to have last at the primary, where that is known."""
    block_device: bool = False


class StripStatus(StatusStruct):
    """The address space of one disk in cells of ``cell_bytes`` (the last may be shorter): bytes of each cell that were
    found equal; that differ and are still here; that were sent; that the replica has made durable; and that are holes
    on both sides or not to be compared. What is left of a cell was not compared yet.
    """

    cell_bytes: int
    equal: list[int] = []
    different: list[int] = []
    sent: list[int] = []
    settled: list[int] = []
    outside: list[int] = []


class DiskProgress(StatusStruct):
    """Progress of a compare on one disk, in bytes of the disk."""

    index: int
    total_bytes: int
    compared_bytes: int = 0
    different_bytes: int = 0
    sent_bytes: int = 0
    settled_bytes: int = 0
    hole_bytes: int = 0
    """Holes on both sides, skipped."""
    size_bytes: int = 0
    strip: StripStatus | None = None


class HeldBack(StatusStruct):
    """Reading stands back behind the guest: to which rate, and what the guest's requests take, in seconds.

    ``measuring``: nothing is read for a moment, to learn what they take without it.
    """

    rate_bytes_per_second: int
    latency_seconds: float | None = None
    usual_latency_seconds: float | None = None
    measuring: bool = False


class ProgressStatus(StatusStruct):
    """A long-running work on the VM."""

    kind: str
    """``initial``, ``resync``, ``merge``, ``promotion``."""
    phase: str
    """``waiting``, ``starting``, ``comparing``, ``tracked writes``, ``committing``, ``merging``,
    ``applying``.
    """
    text: str = ""
    """What it waits for, or what it is doing, in words."""
    round: int = 1
    """Of a resync: one more each time that its log was lost and the dirty map named what was written."""
    started_time: float | None = None
    total_bytes: int = 0
    done_bytes: int = 0
    compared_bytes: int = 0
    different_bytes: int = 0
    sent_bytes: int = 0
    """Bytes of differing blocks sent, before compression."""
    wire_bytes: int = 0
    """Everything that went over the wire for it, both ways."""
    active_seconds: float = 0.0
    """How long sessions of this agent's process have worked on it."""
    rate_bytes_per_second: float | None = None
    """Of the compare, in bytes of the disks; holes count."""
    wire_rate_bytes_per_second: float | None = None
    seconds_left: float | None = None
    held_back: HeldBack | None = None
    """None where the guest does not hold it back."""
    disks: list[DiskProgress] = []


class Cause(StatusStruct):
    """One reason why a resync is required or why the VM is in trouble: ``code`` is stable, the text is for
    people.
    """

    code: str
    text: str
    time: float
    remedy: str = ""
    evidence: dict[str, Any] = {}


class VerifyRange(StatusStruct):
    """A run of blocks of a disk, in bytes."""

    disk: int
    offset: int
    length: int


class ImageStatus(StatusStruct):
    """A disk's whole image at the cut of a verify: the SHA-256 of its blocks' SHA-256, as docs/verify.md has it."""

    disk: int
    sha256: str


class VerifyResult(StatusStruct):
    """How a verify ended."""

    outcome: str
    """``equal``, ``different``, ``repaired`` (it differed, and was brought right) or ``undecided``."""
    text: str
    started_time: float
    ended_time: float
    remedy: str = ""
    started_by: str = "administrator"
    """``administrator`` or ``schedule``."""
    epoch: str = ""
    """The baseline that was verified."""
    cut: CutStatus | None = None
    """The cut at which both sides were compared."""
    compared_bytes: int = 0
    different: list[VerifyRange] = []
    """The first of the ranges that differ or can't be read at the replica,"""
    different_ranges: int = 0
    """of so many,"""
    different_bytes: int = 0
    """with so many bytes."""
    unreadable_bytes: int = 0
    """Of them, those that can't be read at the replica."""
    unreadable_here: list[VerifyRange] = []
    """The first of the ranges that can't be read at the primary: nothing is known about them,"""
    unreadable_here_bytes: int = 0
    """so many bytes."""
    repaired_bytes: int = 0
    images: list[ImageStatus] = []
    """The proof: the digests to which both sides came, each on its own."""


class VerifyStatus(StatusStruct):
    """The verify of a VM: the last result, the one that runs, and when the next one is due."""

    running: bool = False
    phase: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    next_time: float | None = None
    """When the next one is due that was ordered for a time, or that the schedule asks for."""
    last: VerifyResult | None = None


class Statistics(StatusStruct):
    """What Hyper-V Replica's Measure-VMReplication tells, over the monitoring interval."""

    monitoring_start_time: float | None = None
    monitoring_end_time: float | None = None
    successful_replication_count: int = 0
    """Cuts acknowledged by the replica as durable."""
    missed_replication_count: int = 0
    """Cycles in which no cut was acknowledged within the interval."""
    replication_errors: int = 0
    pending_replication_bytes: int = 0
    average_replication_bytes: float | None = None
    maximum_replication_bytes: int | None = None
    average_replication_latency_seconds: float | None = None
    """From seal to the replica's acknowledgement."""
    maximum_replication_latency_seconds: float | None = None
    initial_replication_bytes: int | None = None
    last_replication_time: float | None = None
    last_applied_time: float | None = None


class PointStatus(StatusStruct):
    """A recovery point at the replica."""

    point: str
    """Its name for commands: the first digits of the epoch, and the cut."""
    cut: CutStatus
    newest: bool = False
    hourly: bool = False
    """It stands for its hour."""
    bytes: int = 0
    """What the undo logs that lead from the next newer point to it take; 0 for the newest."""
    exports: list[str] = []


class PointsStatus(StatusStruct):
    """The recovery points of a VM at the replica, the newest first, and the rules by which they are kept."""

    points: list[PointStatus] = []
    keep_newest: int = 0
    keep_hourly: int = 0
    bytes: int = 0
    """What all undo logs together take."""
    limit_bytes: int = 0


class ExportStatus(StatusStruct):
    """An NBD export of a recovery point at the replica."""

    id: str
    uris: list[str]
    cut: CutStatus
    clients: int = 0
    held_bytes: int = 0
    """What the undo logs that it reads through take: they are kept as long as it lasts."""
    error: str = ""


class VmStatus(StatusStruct):
    """Everything about one VM on this agent. ``health`` to ``causes`` are computed by
    :mod:`shared.health`.
    """

    name: str
    uuid: str
    role: AgentRole
    state: str
    """Hyper-V Replica's name of the state, e.g. ``Replicating``."""
    state_code: int
    health: str = "NotApplicable"
    protected: bool = False
    """A whole recovery point exists at the replica, is not older than the settings promise, and is kept up to date."""
    summary: str = ""
    """One sentence for people: protected or not, how far behind."""
    remedy: str = ""
    """What to do, empty when nothing needs to be done."""
    reasons: list[str] = []
    """Every reason that makes the health worse than Normal, the worst first."""
    causes: list[Cause] = []
    """Why a resync is required, with evidence; all of them, the oldest first."""
    resync_stopped_time: float | None = None
    """When the required resync was cancelled; it waits until it is asked for. None where it was not."""
    problem: Cause | None = None
    """A failure that does not heal by itself."""
    baseline: bool = False
    """An initial replication was completed: the replica can be promoted."""
    suspended: bool = False
    interval_seconds: float = 0.0
    lag_seconds: float | None = None
    """Age of the newest cut that the replica holds durably (at the replica: that it has applied)."""
    pending_bytes: int | None = None
    """Bytes of log not yet acknowledged (at the replica: not yet applied)."""
    newest_cut: CutStatus | None = None
    """The newest cut at this side (at the replica: received)."""
    acked_cut: CutStatus | None = None
    """The newest cut that the replica acknowledged as durable (at the replica: the same)."""
    applied_cut: CutStatus | None = None
    """The newest cut applied to the replica's disks: what a promotion and an export have at least."""
    epoch: str = ""
    peer_host: str = ""
    """The other side's host name as it told it, or where it is configured."""
    fenced: str = ""
    """At a primary that was failed over elsewhere: where, when and to which epoch."""
    link: LinkStatus = msgspec.field(default_factory=LinkStatus)
    tap: TapStatus | None = None
    progress: ProgressStatus | None = None
    bypasses: list[Cause] = []
    """At the primary: ways by which the VM, or somebody, writes past its tap. Nothing of that is replicated."""
    waiting: str = ""
    """For what a resync waits that is required or scheduled, in a sentence; empty where it waits for nothing."""
    resync_start_time: float | None = None
    """When the resync starts that an administrator scheduled."""
    verify: VerifyStatus | None = None
    """At the primary."""
    statistics: Statistics = msgspec.field(default_factory=Statistics)
    disks: list[DiskStatus] = []
    excluded_disks: list[str] = []
    """Paths of disks of the VM that are not replicated, at the primary."""
    exports: list[ExportStatus] = []
    older_points: int = 0
    """Recovery points beside the newest."""
    oldest_point_time: float | None = None
    """When the oldest recovery point was sealed at the primary."""
    points_bytes: int = 0
    """What the undo logs of the older recovery points take."""
    uris: list[str] = []
    """Where the VM's disks are served over NBD on this host (at a replica: once it was promoted)."""
    folder: str = ""
    settings: dict[str, Any] = {}
    pending_settings: list[str] = []
    """Those of them that take effect at the tap's next start."""


class AgentStatus(StatusStruct):
    """The answer of ``status``: the agent and all its VMs (or the one asked for)."""

    role: AgentRole
    host: str
    version: str
    pid: int
    started_time: float
    time: float
    """When the status was taken."""
    listening: list[str] = []
    certificate_not_after_time: float | None = None
    vms: list[VmStatus] = []
    unseen_processes: int = 0
    """At the primary: processes whose open files the agent could not see when it last looked who uses the disks."""
    problems: list[str] = []
    """What concerns the agent as a whole, e.g. a folder of a VM that could not be read."""


def to_plain(status: msgspec.Struct) -> dict[str, Any]:
    """The status as plain JSON-ready values."""
    plain: dict[str, Any] = msgspec.to_builtins(status)
    return plain
