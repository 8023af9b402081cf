"""Progress of a long work on a VM, and of a compare on one disk, as a status has them.

Numbers are raw and carry their unit in the name; fields are only added, and unknown ones ignored by readers.
"""

from __future__ import annotations

import msgspec


class StripStatus(msgspec.Struct, kw_only=True):
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


class DiskProgress(msgspec.Struct, kw_only=True):
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


class HeldBack(msgspec.Struct, kw_only=True):
    """Reading stands back behind the guest: to which rate, and what the guest's requests take, in seconds.

    ``measuring``: nothing is read for a moment, to learn what they take without it.
    """

    rate_bytes_per_second: int
    latency_seconds: float | None = None
    usual_latency_seconds: float | None = None
    measuring: bool = False


class ProgressStatus(msgspec.Struct, kw_only=True):
    """A long-running work on the VM."""

    kind: str
    """``initial``, ``resync``, ``merge``, ``promotion``, ``planned``, ``import``."""
    phase: str
    """``waiting``, ``starting``, ``comparing``, ``tracked writes``, ``committing``, ``merging``,
    ``applying``, ``exporting``, ``copying``; of a planned failover ``stopping writes``, ``sending``, ``confirming``,
    ``taking back``.
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
