"""Recovery points at the replica as agents tell them: what there is, how it is kept, what it was proven to be."""

from __future__ import annotations

import msgspec

from shared.status import CutStatus


class PointStatus(msgspec.Struct, kw_only=True):
    """A recovery point at the replica."""

    point: str
    """Its name for commands: the first digits of the epoch, and the cut."""
    cut: CutStatus
    newest: bool = False
    consistency: str = "crash"
    """``crash``: as after a power cut; ``application``: the guest was frozen for it."""
    hourly: bool = False
    """It stands for its hour."""
    daily: bool = False
    """It stands for its day, in UTC."""
    weekly: bool = False
    """It stands for its week, which begins with Monday."""
    name: str = ""
    """Given by an administrator; good wherever a point is named."""
    pinned: bool = False
    """No rule ends it."""
    proven_time: float | None = None
    """When a verify found both sides equal at its cut."""
    bytes: int = 0
    """What the undo logs that lead from the next newer point to it take; 0 for the newest."""
    exports: list[str] = []
    added_disks: list[int] = []
    """Disks of the newest point that it does not have: they were added since."""
    removed_disks: list[int] = []
    """Disks that it has and the newest point has not: they were removed since, and are kept for it."""


class ImageProof(msgspec.Struct, kw_only=True):
    """One disk of a point that was read: the digest of its blocks, and the one that it has to have."""

    disk: int
    digest: str
    """SHA-256 of the SHA-256 digests of its blocks of 64 KiB, in hex; empty where a part can't be read."""
    recorded: str = ""
    """The same as a verify found it on both sides; empty where none did."""


class PointProof(msgspec.Struct, kw_only=True):
    """A point that is read from its beginning to its end, or was last, and what came of it."""

    point: str
    cut: CutStatus
    started_time: float
    running: bool = False
    done_bytes: int = 0
    total_bytes: int = 0
    ended_time: float | None = None
    outcome: str = ""
    """``proven``, ``wrong``, ``unrecorded`` (read, and nothing to compare it with) or ``undecided``."""
    text: str = ""
    remedy: str = ""
    recorded_time: float | None = None
    """When the verify compared both sides at its cut."""
    images: list[ImageProof] = []


class PointsStatus(msgspec.Struct, kw_only=True):
    """The recovery points of a VM at the replica, the newest first, and the rules by which they are kept."""

    points: list[PointStatus] = []
    keep_newest: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_age_seconds: float = 0.0
    """No point is so much older than the newest; 0: any may be."""
    bytes: int = 0
    """What all undo logs together take."""
    limit_bytes: int = 0
    pinned_bytes: int = 0
    """What those of pinned points take."""
    at_time: float | None = None
    """The moment asked for."""
    nearest: str = ""
    """The newest point at or before it; empty where there is none."""
    after: str = ""
    """The oldest point after it."""
    proof: PointProof | None = None
    """The point that is being read, or was last since the agent's start."""
