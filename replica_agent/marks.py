"""Names and pins of a VM's recovery points, and what verifies found of them: kept on record for as long as the points.

Changing them is part of a transaction on the record ``points``; a point that is gone takes them with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from protocol.position import Position
from replica_agent.record import ImageRecord, MarkRecord, PointsRecord, PositionRecord, ProofRecord
from shared.errors import InvalidStateError, NotFoundError, UsageError
from shared.events import EventId

if TYPE_CHECKING:
    from replica_agent.history import History
    from replica_agent.ledger import Draft

MARKS_MAX = 100
"""Points of one VM with a name or a pin."""
NEWEST = "newest"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")


def check_name(name: str) -> None:
    """Raises UsageError for what can't be told from the other ways to name a point."""
    if _NAME.fullmatch(name) is None or name.lower() == NEWEST:
        raise UsageError(
            f"{name!r} can't be the name of a recovery point.",
            "Begin with a letter; then up to 62 letters, digits, dots, underscores or dashes. `newest` is taken.",
        )


def mark_of(points: PointsRecord, position: PositionRecord) -> MarkRecord | None:
    return next((mark for mark in points.marks if mark.position == position), None)


def proof_of(points: PointsRecord, position: PositionRecord) -> ProofRecord | None:
    return next((proof for proof in points.proofs if proof.position == position), None)


def named(points: PointsRecord, name: str) -> MarkRecord | None:
    """The mark of the point with that name."""
    return next((mark for mark in points.marks if mark.name and mark.name == name), None)


def _present(draft: Draft) -> Sequence[PositionRecord]:
    """All points, the newest among them."""
    record = draft.replication
    here = [log.older for log in draft.points.logs if log.point]
    if record.undo is not None:
        here.append(record.undo.older)
    return [*here, record.applied] if record.applied is not None else here


def forget_marks(draft: Draft, reason: str) -> None:
    """Part of a transaction that may have ended points: what names or proves those goes, and is told."""
    points = draft.points
    if not points.marks and not points.proofs:
        return
    present = _present(draft)
    marks = [mark for mark in points.marks if mark.position in present]
    proofs = [proof for proof in points.proofs if proof.position in present]
    if len(marks) == len(points.marks) and len(proofs) == len(points.proofs):
        return
    for mark in points.marks:
        if mark not in marks:
            called = f" {mark.name}" if mark.name else ""
            text = (
                f"The {'pinned ' if mark.pinned else ''}recovery point{called}, cut {mark.position.position}, is gone."
            )
            told = f"{text} {reason}" if mark.pinned else text
            draft.event(EventId.POINTS, told, cause="mark_gone", level="warning" if mark.pinned else "")
    draft.points = msgspec.structs.replace(points, marks=marks, proofs=proofs)


def put_proof(draft: Draft, position: Position, images: dict[int, bytes]) -> bool:
    """Part of a transaction: both sides were equal at a point, with these digests. False where it is none any more."""
    at = PositionRecord.of(position)
    if at not in _present(draft):
        return False
    found = [ImageRecord(disk=disk, digest=digest) for disk, digest in sorted(images.items())]
    others = [proof for proof in draft.points.proofs if proof.position != at]
    proofs = [*others, ProofRecord(position=at, time=draft.now, images=found)]
    draft.points = msgspec.structs.replace(draft.points, proofs=proofs)
    return True


def set_aside(points: PointsRecord, position: Position, now: float) -> MarkRecord:
    """Pin what one side alone has after both had moved on, or had lost each other: it stays until it is unpinned.

    Part of the transaction by which that side becomes the copy of the other; the mark, with the name that it got.
    """
    name = time.strftime("set-aside-%Y%m%d-%H%M%S", time.gmtime(now))
    mark = MarkRecord(position=PositionRecord.of(position), time=now, name=name, pinned=True)
    points.marks = [*(each for each in points.marks if each.name != name), mark]
    return mark


def set_aside_text(mark: MarkRecord) -> str:
    """What an event says of it."""
    return f"What only this host has stays as the pinned recovery point {mark.name} until that is unpinned."


async def mark_point(
    history: History, position: Position | None, *, name: str | None = None, pinned: bool | None = None
) -> None:
    """Name a point (empty: no name any more), or pin it, or no longer; None leaves either as it is.

    ``position`` None is the newest point. Raises UsageError, NotFoundError, InvalidStateError.
    """
    if name:
        check_name(name)
    history.pinning += 1
    try:
        async with history.ledger.transaction() as draft:
            _mark(history, draft, position, name, pinned)
            history.prune(draft)
    finally:
        history.pinning -= 1
    await history.tidy()


def _mark(history: History, draft: Draft, position: Position | None, name: str | None, pinned: bool | None) -> None:
    vm, applied = draft.vm.name, draft.replication.applied
    at = PositionRecord.of(position) if position is not None else applied
    if at is None or at not in _present(draft):
        raise NotFoundError(f"{vm} has no such recovery point any more.", f"See `vmreplica points {vm}`.")
    if at == applied and (history.unguarded or draft.promotion is not None):
        raise InvalidStateError(
            f"The disks of {vm} change without an undo log at the moment: their point can't be kept.",
            "Try again in a while." if draft.promotion is None else "It was failed over to this host.",
        )
    before = mark_of(draft.points, at) or MarkRecord(position=at, time=draft.now)
    after = msgspec.structs.replace(
        before,
        name=before.name if name is None else name,
        pinned=before.pinned if pinned is None else pinned,
    )
    others = [mark for mark in draft.points.marks if mark.position != at]
    if after.name and named(draft.points, after.name) not in (None, before):
        raise UsageError(
            f"Another recovery point of {vm} is named {after.name}.", "Take its name away first, or choose another one."
        )
    if len(others) >= MARKS_MAX and (after.name or after.pinned):
        raise InvalidStateError(
            f"{vm} has {MARKS_MAX} named or pinned recovery points already.", "Unpin some, or take their names away."
        )
    marks = [*others, after] if after.name or after.pinned else others
    if marks != draft.points.marks:
        draft.points = msgspec.structs.replace(draft.points, marks=marks)
        was = f"{before.name or 'no name'}, {'pinned' if before.pinned else 'not pinned'}"
        now = f"{after.name or 'no name'}, {'pinned' if after.pinned else 'not pinned'}"
        text = f"Recovery point {at.position}: {now}; it was {was}."
        draft.event(EventId.POINTS, text, cause="marked", point=f"{at.epoch.hex()}/{at.segment}")
