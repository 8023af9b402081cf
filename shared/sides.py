"""Where primary and replica say that they stand when a session opens: what a decision about it is made from."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.hrl import Geometry
from protocol.position import NO_EPOCH, Lineage, Position


@dataclass(frozen=True, slots=True)
class OpenResync:
    """A resync (or initial replication) that a side holds open, in a round of it.

    ``former`` is the epoch of the round before, at the primary; ``unsettle`` that the replica has not heard all of what
    was written before this round.
    """

    id: bytes
    epoch: bytes
    settled_bytes: int = 0
    round: int = 1
    former: bytes = NO_EPOCH
    unsettle: bool = False


@dataclass(frozen=True, slots=True)
class PrimaryView:
    """Where the primary stands.

    ``epoch`` is the committed baseline (NO_EPOCH before the first), ``proposed`` an epoch whose commit may
    have been sent (R33). ``tracking`` is the tap's word (on, off, lost, map); ``log_epoch``, ``first_segment`` and
    ``log_end`` say what its log holds; ``acked`` is the last cut known to be durable at the replica.
    ``required`` says that a cause for a resync is already on record, ``rebuilt`` that ``epoch`` and ``lineage`` may
    lack what was newest when the state was lost. ``disk_set`` numbers its set of disks; ``reversal``: the newest cut of
    the former primary that was here.
    """

    disks: tuple[Geometry, ...]
    disk_set: int = 0
    epoch: bytes = NO_EPOCH
    proposed: bytes | None = None
    lineage: Lineage = ()
    tracking: str = "off"
    lost_reason: str = ""
    log_epoch: bytes = NO_EPOCH
    first_segment: int = 0
    log_end: Position | None = None
    acked: Position | None = None
    resync: OpenResync | None = None
    required: bool = False
    rebuilt: bool = False
    reversal: Position | None = None


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """Where the replica says it stands (the content of OPENED); without a ``disk_set`` it can't take over others."""

    disks: tuple[Geometry, ...]
    disk_set: int | None = None
    epoch: bytes = NO_EPOCH
    lineage: Lineage = ()
    promoted: bool = False
    received: Position | None = None
    cut: Position | None = None
    applied: Position | None = None
    resync: OpenResync | None = None
    needs_resync: bool = False
    host: str = ""
    causes: tuple[tuple[str, str], ...] = ()
    """Why it needs one: words and what it found."""
    common: Position | None = None
    """The VM ran on its disks before: they are as of this cut but in what it will tell."""
