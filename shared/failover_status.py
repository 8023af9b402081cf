"""What a status tells of failovers: the one to this host, one for a test, and one that is prepared."""

from __future__ import annotations

import msgspec

from shared.cut_status import CutStatus


class FailoverStatus(msgspec.Struct, kw_only=True):
    """A failover to this host: what was promoted, and whether it can still be undone."""

    time: float
    epoch: str
    """The one that began with it, in hex."""
    cut: CutStatus | None = None
    """What the disks were when it began; None where an older version made it, or its state was lost."""
    received: CutStatus | None = None
    """The newest cut that had been received then."""
    undoable: bool = False
    undoing: bool = False
    committed_time: float | None = None
    """Since when it is kept for good."""
    layered: bool = False
    """The disks are in layers: what was written here lies over what they were."""
    written_bytes: int = 0
    """What lies over the disks from here."""
    settled_bytes: int = 0
    settling_bytes: int = 0
    """After a commit: how much has settled in the disks, of about how much."""
    trouble: str = ""
    """Why settling does not go on at the moment."""
    proven_time: float | None = None
    """When a verify found both sides' disks equal at the promoted cut; None where none did, or after a commit."""
    added_disks: list[int] = []
    removed_disks: list[int] = []
    """Disks that came and went after the promoted point: it has not these, which go once it has settled, but those."""


class TestFailoverStatus(msgspec.Struct, kw_only=True):
    """A test failover at the replica: one export that is written to, and nothing else."""

    __test__ = False

    name: str
    """Of the VM to start from it."""
    export: str
    point: str
    cut: CutStatus
    started_time: float
    uris: list[str] = []
    error: str = ""


class PlannedStatus(msgspec.Struct, kw_only=True):
    """The preparation of a planned failover.

    At the primary ``step`` is one of shared.states.PlannedStep; at the replica ``prepared`` while it holds the token,
    and ``failed over`` after a failover by it.
    """

    step: str
    text: str = ""
    started_time: float | None = None
    step_time: float | None = None
    """Since when it is at this step."""
    cut: CutStatus | None = None
    """What the replica has to be promoted to,"""
    chain: str = ""
    """and the chain hash there, which proves the log up to it."""
    token_sent: bool = False
    """The replica may be failed over by the token: only its answer takes that back, or force."""
    holds_writes: bool = False
    """The VM's disks take no writes on this host."""
