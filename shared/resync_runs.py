"""What is told and kept of each run of a resync: its steps, counts, interruptions, result, and its forecast.

A run is one resync, catch-up or initial replication from its order to its end, over all its sessions. Numbers are raw
and carry their unit in the name; a ``*_time`` is in seconds since the Unix epoch, UTC. The primary agent keeps these
very objects in the VM's store, so they only ever gain fields that have a default.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shared.progress_status import ProgressStatus
from shared.status import Cause

COMMITTED = "committed"
CANCELLED = "cancelled"
RESTARTED = "restarted"
"""Tracking was lost under it, or what bounded it: another run took its place."""
FAILED_OVER = "failed over"


class RunStruct(msgspec.Struct, kw_only=True):
    """Base of all parts; unknown fields are ignored by readers, so that fields can be added."""


class RunStep(RunStruct):
    """One step of a run: ``sizes checked``, ``tracking begun``, ``compare begun`` and ``compare ended`` (of one disk,
    with the data of events 29242 and 29244), ``tracked writes``, ``committing``, ``merging``, ``merged``.
    """

    name: str
    time: float
    disk: int | None = None
    data: dict[str, Any] = {}


class RunDisk(RunStruct):
    """What was done on one disk in all sessions of a run; a range that is compared twice counts twice."""

    index: int
    scope_bytes: int = 0
    """What has to be compared in all: the whole disk, or what is in doubt of it."""
    compared_bytes: int = 0
    hole_bytes: int = 0
    """Compared bytes that are holes on both sides: nothing was read for them."""
    different_bytes: int = 0
    sent_bytes: int = 0
    settled_bytes: int = 0
    """Bytes of ranges that the replica has told to be durable."""


class Interruption(RunStruct):
    """Why a run stood still, and since when it goes on, None while it does not."""

    time: float
    reason: str
    resumed_time: float | None = None


class Forecast(RunStruct):
    """What a run is expected to cost; ``seconds`` is None where no rate of this pair is known."""

    kind: str = ""
    scope_bytes: int = 0
    read_bytes: int = 0
    """What this side reads: the scope without the holes. The replica reads as much, unless it has other holes."""
    different_bytes: int = 0
    wire_bytes: int = 0
    least_wire_bytes: int = 0
    """On the wire if nothing differs,"""
    most_wire_bytes: int = 0
    """and if everything does that is no hole."""
    seconds: float | None = None
    sampled_blocks: int = 0
    """So many random blocks were compared with the replica before;"""
    sampled_different: int = 0
    """so many of them differed. The ranges below hold with 90 % certainty; None where nothing was sampled."""
    different_low_bytes: int | None = None
    different_high_bytes: int | None = None
    wire_low_bytes: int | None = None
    wire_high_bytes: int | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    basis: list[str] = []
    """What this rests on, a sentence each."""


class Run(RunStruct):
    """One run. ``result`` is empty while it is open, else one of the words above."""

    number: int
    id: str
    epoch: str
    kind: str
    """``initial``, ``resync`` (whole disks) or ``bounded`` (what the dirty map leaves in doubt)."""
    started_time: float
    started_by: str = ""
    """Who or what started it, in words."""
    causes: list[Cause] = []
    steps: list[RunStep] = []
    disks: list[RunDisk] = []
    wire_bytes: int = 0
    active_seconds: float = 0.0
    """Time in which a session worked on it; waiting, suspensions and outages are not in it."""
    compare_seconds: float = 0.0
    """Of these, those of the compare."""
    interruptions: list[Interruption] = []
    """The first ones and the newest ones."""
    interruption_count: int = 0
    rounds: int = 1
    """How many it took: one more each time that its log was lost and the dirty map named what was written."""
    forecast: Forecast | None = None
    result: str = ""
    ended_time: float | None = None
    kept_time: float = 0.0
    """When this was written down last."""

    def total(self, field: str) -> int:
        """The sum of one field over the disks."""
        return sum(getattr(disk, field) for disk in self.disks)

    @property
    def read_bytes(self) -> int:
        """Bytes that were read and hashed at this side."""
        return self.total("compared_bytes") - self.total("hole_bytes")


class RunHistory(RunStruct):
    """The answer of ``vm.resync_history``: the newest runs, the newest first; an open one is among them."""

    runs: list[Run] = []


class ResyncReport(RunStruct):
    """The answer of ``vm.resync_show``."""

    state: str = ""
    required: bool = False
    causes: list[Cause] = []
    scope: str = ""
    """``whole disks``, ``what is in doubt``, or empty where nothing is to be compared."""
    scope_bytes: int | None = None
    disk_bytes: int = 0
    """Size of all disks."""
    starts: str = ""
    """What starts a required one, in words."""
    excluded: list[str] = []
    """Paths of disks that take no part."""
    run: Run | None = None
    """The open run."""
    progress: ProgressStatus | None = None
    last: Run | None = None
    """The last run that ended."""


class ResyncPlan(RunStruct):
    """The answer of ``vm.resync_plan``."""

    state: str = ""
    required: bool = False
    forecast: Forecast = msgspec.field(default_factory=Forecast)
    disk_bytes: int = 0
    may_start: bool = False
    obstacle: str = ""
    """Why it could not start now,"""
    remedy: str = ""
    """and what to do about it."""
    starts: str = ""
    """What starts it, in words."""
