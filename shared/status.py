"""The status of an agent and its VMs as one data object: what text, JSON and the live view only render.

Numbers are raw and carry their unit in the name. A ``*_time`` is in seconds since the Unix epoch, UTC. A
field that does not apply to the role, or is not known, is None (null).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shared.cut_status import Cause as Cause  # noqa: PLC0414 - of a status, for whoever reads one
from shared.cut_status import CutStatus as CutStatus  # noqa: PLC0414 - the same
from shared.expiry import CertificateStatus
from shared.failover_status import FailoverStatus as FailoverStatus  # noqa: PLC0414 - the same
from shared.failover_status import PlannedStatus as PlannedStatus  # noqa: PLC0414 - the same
from shared.failover_status import TestFailoverStatus as TestFailoverStatus  # noqa: PLC0414 - the same
from shared.guest_status import ConsistencyStatus, DefinitionStatus
from shared.limits import LimitsStatus
from shared.measures import Statistics
from shared.point_status import PointProof
from shared.progress_status import ProgressStatus

AgentRole = Literal["primary", "replica"]


class StatusStruct(msgspec.Struct, kw_only=True):
    """Base of all parts of a status; unknown fields are ignored by readers, so that fields can be added."""


class LinkStatus(StatusStruct):
    """The connection between primary and replica agent."""

    connected: bool = False
    """A session is open: certificates, authorization and positions were all accepted."""
    healthy: bool = False
    """Connectivity is proven in both directions right now (the gate of a resync, I20)."""
    heard_time: float | None = None
    """When the peer was last heard of in the present session, or in the one before (at a replica)."""
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
    certificates: list[CertificateStatus] = []
    """The peer's, while there is a session, and what of this host's own is soon to run out."""
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
    refused: str = ""
    """Why it takes no writes; empty while it takes them."""
    error: str = ""
    """Why the tap could not be reached or started, empty while it runs."""
    version: str = ""
    """Of the program that runs; empty while none does."""
    outdated: bool = False
    """It runs another version than the agent, which was upgraded since; its next start brings them together."""


class DiskStatus(StatusStruct):
    """One disk of the VM."""

    index: int
    uuid: str
    size_bytes: int
    """What clients see of it; after a failover to an older point that may be less than its file has."""
    path: str = ""
    export: str = ""
    uri: str = ""
    found_size_bytes: int | None = None
    """The size that it was seen to have last at the primary, where that is known."""
    block_device: bool = False


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


class ExportStatus(StatusStruct):
    """An NBD export of a recovery point at the replica."""

    id: str
    uris: list[str]
    cut: CutStatus
    clients: int = 0
    held_bytes: int = 0
    """What the undo logs that it reads through take: they are kept as long as it lasts."""
    error: str = ""
    writable: bool = False
    """What clients write is kept beside the point until the export is ended, and deleted with it."""
    written_bytes: int = 0
    """What that takes on the volume."""
    full: bool = False
    """Its clients' last write found no room: their guest sees a full disk, and nobody else is affected."""
    test: bool = False
    """It is the VM's test failover."""


class VmStatus(StatusStruct):
    """Everything about one VM on this agent. ``health`` to ``causes`` are computed by :mod:`shared.health`."""

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
    remedies: list[str] = []
    """What to do about each of them, in their order; empty where nothing has to be done."""
    causes: list[Cause] = []
    """Why a resync is required, with evidence; all of them, the oldest first."""
    resync_stopped_time: float | None = None
    """When the required resync was cancelled; it waits until it is asked for. None where it was not."""
    resync_whole: bool = False
    """At the primary: the replica does not stand where the dirty map begins, so that whole disks will be compared."""
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
    split_brain: bool = False
    """There: this side has, or may have, writes that the other one has not, and the other way about."""
    handed_over: bool = False
    """The other agent of this host has the VM, or is about to: the direction was, or is being, reversed."""
    link: LinkStatus = msgspec.field(default_factory=LinkStatus)
    tap: TapStatus | None = None
    progress: ProgressStatus | None = None
    bypasses: list[Cause] = []
    """At the primary: ways by which the VM, or somebody, writes past its tap. Nothing of that is replicated."""
    waiting: str = ""
    """For what a resync waits that is required or scheduled, in a sentence; empty where it waits for nothing."""
    export_folder: str = ""
    """At the primary: where a first copy is, or is being, written for a courier, until the replica has it."""
    export_complete: bool = False
    resync_start_time: float | None = None
    """When the resync starts that an administrator scheduled."""
    verify: VerifyStatus | None = None
    """At the primary."""
    consistency: ConsistencyStatus | None = None
    """At the primary."""
    application_cut: CutStatus | None = None
    """The newest application-consistent cut (at the replica: that is a recovery point)."""
    definition: DefinitionStatus | None = None
    """None where none is set (at the replica: where none was received)."""
    failover: FailoverStatus | None = None
    """At a replica that was failed over to."""
    planned: PlannedStatus | None = None
    """The planned failover that was prepared last; None where there was none."""
    statistics: Statistics = msgspec.field(default_factory=Statistics)
    disks: list[DiskStatus] = []
    excluded_disks: list[str] = []
    """Paths of disks of the VM that are not replicated, at the primary."""
    former_disks: list[DiskStatus] = []
    """Removed disks that older recovery points have, at the replica."""
    exports: list[ExportStatus] = []
    older_points: int = 0
    """Recovery points beside the newest."""
    oldest_point_time: float | None = None
    """When the oldest recovery point was sealed at the primary."""
    points_bytes: int = 0
    """What the undo logs of the older recovery points take."""
    points_lost_time: float | None = None
    """When recovery points were last deleted, or not kept, for want of room, since the agent started,"""
    points_lost_text: str = ""
    """and why."""
    points_limit_bytes: int = 0
    points_pinned: int = 0
    points_pinned_bytes: int = 0
    """At least so much of the undo logs is there because of pinned points."""
    points_pinned_oldest: bool = False
    """The oldest point is pinned: it is the next to go where room is short."""
    test_failover: TestFailoverStatus | None = None
    proof: PointProof | None = None
    """At the replica: the point that is being read (`prove`), or was last since the agent's start."""
    wrong_point: Cause | None = None
    """At the replica: a point that is there was read, and is not what both sides were at its cut."""
    seeded: bool = False
    """At the replica: a copy from elsewhere was imported, and there is no baseline yet."""
    promised_lag_seconds: float | None = None
    """The newest recovery point is not to be older than this: three intervals, and at least a minute."""
    caught_up_seconds: float | None = None
    """How long sending ``pending_bytes`` takes at the link's present rate, at the primary; None where unknown."""
    store_free_bytes: int | None = None
    """Free space of the volume of ``folder``; None while it was not looked at."""
    store_full_seconds: float | None = None
    """When that volume is full at the rate of the last hour; None while it does not fill, or that is not known."""
    store_reserve_bytes: int = 0
    """What of it stays free for applying, at the replica."""
    quota_limit_bytes: int | None = None
    """At the replica: what the copies of the VM's authorization entry may take together; None without a quota."""
    quota_used_bytes: int | None = None
    """What they take; None while nobody has looked."""
    quota_full_seconds: float | None = None
    """When the quota is used up at the rate of the last hour; None while it does not fill, or that is not known."""
    spool_limit_bytes: int | None = None
    """At the replica: with more than this received and not applied, the primary is made to wait."""
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
    certificates: list[CertificateStatus] = []
    """This host's own, its CAs and revocation lists."""
    limits: LimitsStatus | None = None
    """At a replica."""
    vms: list[VmStatus] = []
    unseen_processes: int = 0
    """At the primary: processes whose open files the agent could not see when it last looked who uses the disks."""
    problems: list[str] = []
    """What concerns the agent as a whole, e.g. a folder of a VM that could not be read."""


def to_plain(status: msgspec.Struct) -> dict[str, Any]:
    """The status as plain JSON-ready values."""
    plain: dict[str, Any] = msgspec.to_builtins(status)
    return plain
