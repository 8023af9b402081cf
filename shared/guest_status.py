"""What a status tells of a VM beside its disks: application-consistent cuts, and its definition."""

from __future__ import annotations

import msgspec

from shared.cut_status import Cause, CutStatus


class ConsistencyStatus(msgspec.Struct, kw_only=True):
    """Application-consistent cuts of a VM, at the primary. Times are seconds since the Unix epoch."""

    setting: str = "none"
    hours: int = 0
    """One is taken after so many hours; 0: only by order."""
    running: bool = False
    newest: CutStatus | None = None
    """The newest application-consistent cut,"""
    told: bool = True
    """and whether the replica knows that it is one."""
    tried_time: float | None = None
    next_time: float | None = None
    failure: Cause | None = None
    """Why the last one that was tried is only crash-consistent."""
    frozen_since: float | None = None
    """A freeze began then, and nobody has confirmed yet that the guest is thawed."""
    frozen_text: str = ""
    """Why the last attempt to thaw it failed."""
    taken_since_start: int = 0
    """Application-consistent cuts since the agent started."""
    failures_since_start: dict[str, int] = {}
    """Cuts since then that were to be, and are only crash-consistent, by the code of the failure."""
    frozen_seconds_since_start: float = 0.0
    """How long the guest was frozen since then,"""
    last_frozen_seconds: float | None = None
    """and for the last cut."""


class DefinitionFileStatus(msgspec.Struct, kw_only=True):
    """A file of a VM's definition: its path at the primary, its size in bytes, and its SHA-256 in hex."""

    path: str
    size_bytes: int
    sha256: str


class DefinitionStatus(msgspec.Struct, kw_only=True):
    """What the VM needs to start beside its disks. At the primary as it is read, at the replica the newest version."""

    setting: str = ""
    """At the primary: where it lies."""
    files: list[DefinitionFileStatus] = []
    """The first is the definition itself."""
    cut: CutStatus | None = None
    """The first cut that it belongs to."""
    kept: bool = False
    """At the primary: the replica has it. At the replica: true."""
    failure: Cause | None = None
    """Why it can't be read, or the replica does not keep it."""


class DefinitionDiskStatus(msgspec.Struct, kw_only=True):
    """A replicated disk as the definition may name it: its path and its export at the primary."""

    index: int
    path: str
    export: str


class DefinitionReport(msgspec.Struct, kw_only=True):
    """The definition that belongs to a point, and how this host's configuration maps networks."""

    point: str
    cut: CutStatus
    since: CutStatus
    """The first cut that this version belongs to."""
    later: bool = False
    """It is from after the point, since no older one is there."""
    files: list[DefinitionFileStatus] = []
    disks: list[DefinitionDiskStatus] = []
    networks: list[str] = []
    test_networks: list[str] = []
