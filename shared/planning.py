"""What a session does next: a pure decision over what both sides say about themselves when it opens.

The primary runs :func:`decide` on the replica's OPENED; the replica validates by itself that what then
arrives fits. Nothing here touches a clock, a disk or a network, so that every table of cases is tested as
plain data (R15, R33, R34, I8, I9). Where a decision needs the log (is this chain really in it?), the primary
asks its tap afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from protocol.position import NO_EPOCH, Position, knows
from shared.geometry import compare_geometry, is_growth, is_newer_set
from shared.sides import OpenResync, PrimaryView, ReplicaView


class ResyncCause(StrEnum):
    """Why a resync is required. The words never change: they are stored, shown and counted."""

    TRACKING_LOST = "tracking_lost"
    TRACKING_OFF = "tracking_off"
    REPLICA_EMPTY = "replica_empty"
    REPLICA_BEHIND = "replica_behind"
    REPLICA_REVERTED = "replica_reverted"
    PRIMARY_REVERTED = "primary_reverted"
    CHAIN = "chain"
    GAP = "gap"
    REPLICA_REQUEST = "replica_request"
    REPLICA_DAMAGED = "replica_damaged"
    LOG_DAMAGED = "log_damaged"
    AFTER_FAILOVER = "after_failover"
    ADMINISTRATOR = "administrator"
    STATE_LOST = "state_lost"
    HISTORY_LOST = "history_lost"
    DISK_GROWN = "disk_grown"
    DISKS_CHANGED = "disks_changed"
    REVERSED = "reversed"
    BYPASSED = "bypassed"


@dataclass(frozen=True, slots=True)
class Resume:
    """Send the log from this position on, once the tap has confirmed that its chain is in the log."""

    position: Position


@dataclass(frozen=True, slots=True)
class InitialRequired:
    """Neither side has a baseline."""


@dataclass(frozen=True, slots=True)
class AwaitReverse:
    """The direction was reversed on this host, and not yet on the one that was the primary before."""


@dataclass(frozen=True, slots=True)
class CommitConfirmed:
    """The replica shows the proposed epoch: its commit is durable although the answer was lost. Adopt,
    then decide again.
    """

    epoch: bytes


@dataclass(frozen=True, slots=True)
class GoOnWithResync:
    """The open resync goes on under its id and epoch; ``known`` says whether the replica still holds its
    part.
    """

    id: bytes
    epoch: bytes
    known: bool


@dataclass(frozen=True, slots=True)
class NextRound:
    """The log of the open resync's epoch is lost, and a dirty map has taken its place: another round follows where that
    names all that was written (to be asked of the tap), else it is void as with RestartResync. ``held`` is what the
    replica has of it.
    """

    held: OpenResync
    reason: str


@dataclass(frozen=True, slots=True)
class RestartResync:
    """The open resync is void, since tracking of its epoch was lost: another id and epoch."""

    reason: str


@dataclass(frozen=True, slots=True)
class ResyncRequired:
    """The sides can't be joined by the log. ``cause`` is stable, ``text`` and ``evidence`` say what was
    found.
    """

    cause: ResyncCause
    text: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fenced:
    """The replica was promoted (I8); nothing may be sent. This side wrote nothing since the cut that was
    promoted.
    """

    epoch: bytes
    text: str


@dataclass(frozen=True, slots=True)
class SplitBrain:
    """The replica was promoted, or has another history, and this side has moved on as well."""

    epoch: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Unrelated:
    """The two sides share no history: same VM UUID, different VM."""

    text: str


@dataclass(frozen=True, slots=True)
class GeometryMismatch:
    """Disks differ in number, identity or size; each text names the disk and both sizes."""

    text: str


Decision = (
    Resume
    | InitialRequired
    | AwaitReverse
    | CommitConfirmed
    | GoOnWithResync
    | NextRound
    | RestartResync
    | ResyncRequired
    | Fenced
    | SplitBrain
    | Unrelated
    | GeometryMismatch
)


def decide(primary: PrimaryView, replica: ReplicaView) -> Decision:
    """What this session is for. The order of the questions is the order of their danger."""
    ahead = replica.epoch not in (primary.epoch, primary.proposed) and _is_ahead(primary, replica)
    if replica.promoted or (ahead and not primary.rebuilt):
        return _fenced(primary, replica)
    mismatch = compare_geometry(primary.disks, replica.disks)
    if mismatch and not (is_growth(primary.disks, replica.disks) or _is_newer(primary, replica)):
        return GeometryMismatch(mismatch)
    if primary.proposed is not None and replica.epoch == primary.proposed != primary.epoch:
        return CommitConfirmed(primary.proposed)
    if primary.rebuilt and primary.resync is None and not _is_known(primary, replica.epoch):
        return ResyncRequired(
            ResyncCause.HISTORY_LOST,
            f"The replica stands at baseline {_short(replica.epoch)}, which this side's rebuilt state does not know: "
            "one of its own that was committed when the state was lost, or another primary's.",
            {"replica_epoch": replica.epoch.hex(), "primary_epoch": primary.epoch.hex()},
        )
    if primary.epoch == NO_EPOCH and replica.epoch != NO_EPOCH and not primary.rebuilt:
        return Unrelated(
            f"The replica holds a baseline {_short(replica.epoch)} of this VM; this primary never made one."
        )
    if primary.resync is not None:
        return _open_resync(primary, primary.resync, replica)
    if primary.epoch == NO_EPOCH:
        return InitialRequired()
    if primary.reversal is not None and replica.epoch == NO_EPOCH:
        return AwaitReverse()
    if _is_reversed(primary, replica) and _is_newer(primary, replica):
        # What bounds a compare after a reversal is about disks that both sides have.
        text = f"The direction was reversed, and the disks differ: {mismatch}. All is compared."
        return ResyncRequired(ResyncCause.DISKS_CHANGED, text, {"common": str(replica.common)})
    if _is_reversed(primary, replica) and not mismatch:
        text = "The direction was reversed, and the replica is not proven to have a cut of both sides: all is compared."
        if replica.common is not None:
            text = f"The direction was reversed: what either side changed since cut {replica.common} is compared."
        return ResyncRequired(ResyncCause.REVERSED, text, {"common": str(replica.common)})
    if replica.epoch == NO_EPOCH:
        return ResyncRequired(
            ResyncCause.REPLICA_EMPTY,
            "The replica has no baseline of this VM: it was removed there or made anew.",
        )
    if replica.epoch != primary.epoch:
        return _other_epoch(primary, replica)
    return _same_epoch(primary, replica)


def wrote_since(primary: PrimaryView, cut: Position | None) -> bool:
    """Whether this side has, or may have, writes after ``cut``: unknown counts as yes."""
    if cut is None or primary.tracking != "on" or primary.log_end is None:
        return True
    return primary.log_end.epoch != cut.epoch or primary.log_end.entry != cut.entry


def _is_ahead(primary: PrimaryView, replica: ReplicaView) -> bool:
    """Whether the replica's history goes on from ours: only a promotion or another primary can do that."""
    return primary.epoch != NO_EPOCH and knows(replica.lineage, primary.epoch)


def _is_reversed(primary: PrimaryView, replica: ReplicaView) -> bool:
    """Whether the replica was the primary before, or gave a failover up, and this side's history goes on from its."""
    joined = replica.epoch == primary.epoch or knows(primary.lineage, replica.epoch)
    return joined and any(code == ResyncCause.REVERSED.value for code, _ in replica.causes)


def _is_known(primary: PrimaryView, epoch: bytes) -> bool:
    return epoch in (NO_EPOCH, primary.epoch) or knows(primary.lineage, epoch)


def _fenced(primary: PrimaryView, replica: ReplicaView) -> Decision:
    parent = next((step for step in replica.lineage if step.epoch == replica.epoch), None)
    where = f" from cut {parent.parent_segment} of epoch {_short(parent.parent)}" if parent is not None else ""
    host = replica.host or "the replica"
    text = f"The VM was failed over at {host}: epoch {_short(replica.epoch)} began there{where}."
    known = (
        primary.acked if parent is not None and _is_cut(primary.acked, parent.parent, parent.parent_segment) else None
    )
    if wrote_since(primary, known):
        return SplitBrain(replica.epoch, text)
    return Fenced(replica.epoch, text)


def _is_cut(position: Position | None, epoch: bytes, segment: int) -> bool:
    return position is not None and position.epoch == epoch and position.segment == segment


def _open_resync(primary: PrimaryView, resync: OpenResync, replica: ReplicaView) -> Decision:
    theirs = replica.resync if replica.resync is not None and replica.resync.id == resync.id else None
    if theirs is not None and theirs.round > resync.round:
        return RestartResync(f"the replica is in its round {theirs.round}, this side in {resync.round}")
    if theirs is not None and theirs.round == resync.round and theirs.epoch != resync.epoch:
        theirs = None
    if _is_newer(primary, replica):
        # It takes the set over when it hears of this resync, which it has not begun.
        theirs = None
    elif grown := compare_geometry(primary.disks, replica.disks):
        return RestartResync(f"a disk was made larger: {grown}.")
    if primary.tracking == "on" and primary.log_epoch == resync.epoch:
        return GoOnWithResync(resync.id, resync.epoch, theirs is not None)
    reason = primary.lost_reason or f"tracking is {primary.tracking}"
    if theirs is not None and primary.tracking == "map" and primary.log_epoch in (resync.epoch, resync.former):
        return NextRound(theirs, reason)
    return RestartResync(reason)


def _other_epoch(primary: PrimaryView, replica: ReplicaView) -> Decision:
    if knows(primary.lineage, replica.epoch):
        return ResyncRequired(
            ResyncCause.REPLICA_REVERTED,
            f"The replica stands at the older baseline {_short(replica.epoch)}: "
            "it was brought back to an earlier state.",
            {"replica_epoch": replica.epoch.hex(), "primary_epoch": primary.epoch.hex()},
        )
    ours = {step.epoch for step in primary.lineage}
    if any(step.epoch in ours for step in replica.lineage):
        return SplitBrain(
            replica.epoch,
            f"Both sides went on from a common baseline: the replica to {_short(replica.epoch)}, "
            f"this side to {_short(primary.epoch)}.",
        )
    return Unrelated(
        f"The replica's baseline {_short(replica.epoch)} and this side's {_short(primary.epoch)} share no history."
    )


def _same_epoch(primary: PrimaryView, replica: ReplicaView) -> Decision:
    evidence = {
        "received": str(replica.received) if replica.received is not None else None,
        "log_end": str(primary.log_end) if primary.log_end is not None else None,
        "first_segment": primary.first_segment,
    }
    if _is_newer(primary, replica):
        return _changed_set(primary, replica, evidence)
    if grown := compare_geometry(primary.disks, replica.disks):
        return _grown(primary, replica, grown)
    if replica.needs_resync:
        # Also where one is required already: what the replica found is a cause of its own.
        return _requested(replica, evidence)
    if primary.required:
        return ResyncRequired(ResyncCause.ADMINISTRATOR, "A resynchronization is already required.", evidence)
    if primary.tracking != "on" or primary.log_epoch != primary.epoch or primary.log_end is None:
        lost = primary.tracking in ("lost", "map")
        cause = ResyncCause.TRACKING_LOST if lost else ResyncCause.TRACKING_OFF
        return ResyncRequired(cause, f"Tracking is {primary.tracking}. {primary.lost_reason}".strip(), evidence)
    if replica.received is None:
        return ResyncRequired(ResyncCause.REPLICA_BEHIND, "The replica tells no position in the log.", evidence)
    received, end = replica.received, primary.log_end
    if received.epoch != primary.epoch or received.segment > end.segment or received.entry > end.entry:
        return ResyncRequired(
            ResyncCause.PRIMARY_REVERTED,
            f"The replica stands at {received}, which this primary never reached (its log ends at {end}): "
            "this side was brought back to an earlier state.",
            evidence,
        )
    if primary.acked is not None and _is_cut(primary.acked, received.epoch, primary.acked.segment):
        if (received.segment, received.entry) < (primary.acked.segment, primary.acked.entry):
            return ResyncRequired(
                ResyncCause.REPLICA_REVERTED,
                f"The replica stands at {received} but had acknowledged {primary.acked}: "
                "it was brought back to an earlier state.",
                evidence,
            )
    if received.segment + 1 < primary.first_segment:
        return ResyncRequired(
            ResyncCause.REPLICA_BEHIND,
            f"The replica stands at {received}; the oldest segment kept here is {primary.first_segment}.",
            evidence,
        )
    return Resume(received)


def _grown(primary: PrimaryView, replica: ReplicaView, text: str) -> ResyncRequired:
    """Disks are larger at the primary: they grow at the replica when the compare of everything begins."""
    theirs = {disk.index: disk.size for disk in replica.disks}
    changes = [
        {"disk": disk.index, "part": "size_bytes", "old": theirs[disk.index], "new": disk.size}
        for disk in primary.disks
        if disk.size != theirs[disk.index]
    ]
    return ResyncRequired(ResyncCause.DISK_GROWN, f"A disk was made larger: {text}.", {"changes": changes})


def _is_newer(primary: PrimaryView, replica: ReplicaView) -> bool:
    return is_newer_set(primary.disks, primary.disk_set, replica.disks, replica.disk_set)


def _changed_set(primary: PrimaryView, replica: ReplicaView, evidence: dict[str, Any]) -> ResyncRequired:
    """Disks came, went or grew by order at the primary. The tap's map, if it has one, names what the replica lacks."""
    if replica.needs_resync:
        return _requested(replica, evidence)
    text = f"The disks of the VM were changed: {compare_geometry(primary.disks, replica.disks)}."
    if primary.tracking == "map":
        return ResyncRequired(ResyncCause.TRACKING_LOST, f"{text} {primary.lost_reason}".strip(), evidence)
    return ResyncRequired(ResyncCause.DISKS_CHANGED, text, evidence)


def _requested(replica: ReplicaView, evidence: dict[str, Any]) -> ResyncRequired:
    """The replica found by itself that only a resync helps; what it found is our evidence."""
    found = "".join(f" {text.rstrip('.')}." for _, text in replica.causes)
    told = {"replica_causes": [{"code": code, "text": text} for code, text in replica.causes]} if replica.causes else {}
    text = f"The replica asks for a resynchronization.{found}"
    return ResyncRequired(ResyncCause.REPLICA_REQUEST, text, evidence | told)


def _short(epoch: bytes) -> str:
    return epoch.hex()[:8]
