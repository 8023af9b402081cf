"""The recovery points of a VM as people and commands name them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from protocol.position import Position
from replica_agent.disk_sets import OtherDisks
from replica_agent.marks import NEWEST, mark_of, named, proof_of
from replica_agent.point_disks import point_text
from replica_agent.record import PositionRecord
from replica_agent.retention import daily_of, hourly_of, weekly_of
from replica_agent.vm import ReplicaVm
from shared.errors import NotFoundError, UsageError
from shared.events import EventId
from shared.point_status import PointsStatus, PointStatus
from shared.status import CutStatus

APPLIED = "applied"
"""The newest that the disks are at, whatever was received beyond."""


def points_of(vm: ReplicaVm, at_time: float | None = None) -> PointsStatus:
    """All recovery points, the newest first, and which are nearest to ``at_time`` (seconds since the Unix epoch)."""
    history, record, own = vm.parts.history, vm.ledger.replication, vm.ledger.points
    rules = history.retention
    found: list[PointStatus] = []
    # A log belongs to the last point before it: it is one step on the way to that from the next newer one.
    for log in own.logs:
        if log.point or not found:
            found.append(_point(log.older.position, log.older_time))
        found[-1].bytes += log.length
    if record.applied is not None:
        newest = _point(record.applied.position, record.applied_time)
        newest.newest = True
        found.append(newest)
    times = [point.cut.time or 0.0 for point in found]
    flags = zip(found, hourly_of(times), daily_of(times), weekly_of(times), strict=True)
    for point, of_hour, of_day, of_week in flags:
        point.hourly, point.daily, point.weekly = of_hour, of_day, of_week
    for point, (position, _) in zip(found, _all(vm), strict=True):
        _add_marks(vm, point, position)
        others = OtherDisks.of(vm.ledger.vm, record.ancestors, position)
        point.added_disks, point.removed_disks = others.added, others.removed
    marked = {(position.epoch.hex(), position.segment) for position in vm.companions.marked()}
    for point in found:
        if (point.cut.epoch, point.cut.segment) in marked:
            point.consistency = "application"
    for export in vm.exports.status():
        for point in found:
            if (point.cut.epoch, point.cut.segment) == (export.cut.epoch, export.cut.segment):
                point.exports.append(export.id)
    before, after = nearest(vm, at_time) if at_time is not None else (None, None)
    return PointsStatus(
        points=found[::-1],
        keep_newest=rules.newest,
        keep_hourly=rules.hourly,
        keep_daily=rules.daily,
        keep_weekly=rules.weekly,
        keep_age_seconds=rules.age,
        bytes=history.bytes,
        limit_bytes=rules.limit,
        pinned_bytes=sum(point.bytes for point in found if point.pinned),
        at_time=at_time,
        nearest=point_text(before) if before is not None else "",
        after=point_text(after) if after is not None else "",
        proof=vm.prover.status,
    )


def _point(position: Position, sealed: float | None) -> PointStatus:
    cut = CutStatus(epoch=position.epoch.hex(), segment=position.segment, entry=position.entry, time=sealed or None)
    return PointStatus(point=point_text(position), cut=cut)


def _add_marks(vm: ReplicaVm, point: PointStatus, position: Position) -> None:
    at = PositionRecord.of(position)
    mark, proof = mark_of(vm.ledger.points, at), proof_of(vm.ledger.points, at)
    if mark is not None:
        point.name, point.pinned = mark.name, mark.pinned
    if proof is not None:
        point.proven_time = proof.time


def _all(vm: ReplicaVm) -> Iterator[tuple[Position, float]]:
    """All points with the times at which they were sealed, the oldest first."""
    for index, log in enumerate(vm.ledger.points.logs):
        if log.point or index == 0:
            yield log.older.position, log.older_time
    record = vm.ledger.replication
    if record.applied is not None:
        yield record.applied.position, record.applied_time or 0.0


def nearest(vm: ReplicaVm, moment: float) -> tuple[Position | None, Position | None]:
    """The newest point that was sealed at or before a moment, and the oldest after it.

    By the primary's clock at those times: it may have been set meanwhile.
    """
    before: tuple[Position, float] | None = None
    after: tuple[Position, float] | None = None
    for position, sealed in _all(vm):
        if sealed <= moment and (before is None or sealed >= before[1]):
            before = position, sealed
        if sealed > moment and (after is None or sealed < after[1]):
            after = position, sealed
    return before[0] if before is not None else None, after[0] if after is not None else None


def find_point(vm: ReplicaVm, name: str, at_time: float | None = None) -> Position | None:
    """The point with this name: ``newest`` (None), ``applied``, a name that was given to it, the cut's number, or that
    after the first digits of its epoch. With a moment (seconds since the Unix epoch) the newest at or before it.

    Raises UsageError, NotFoundError.
    """
    if at_time is not None:
        if name != NEWEST:
            raise UsageError("A point was named, and a time was given as well.", "Give one of the two.")
        return _find_before(vm, at_time)
    applied = vm.ledger.replication.applied
    if name == NEWEST:
        return None
    if name == APPLIED and applied is not None:
        return applied.position
    mark = named(vm.ledger.points, name)
    if mark is not None:
        return mark.position.position
    epoch, _, number = name.rpartition("/")
    if not number.isdecimal() or len(number) > 20 or len(epoch) > 32:
        known = sorted(mark.name for mark in vm.ledger.points.marks if mark.name)
        raise UsageError(
            f"{name!r} names no recovery point of {vm.name}.",
            "Give `newest`, EPOCH/CUT as `vmreplica points` has it, or the name of one"
            + (f": {', '.join(known)}." if known else "."),
        )
    history = vm.parts.history
    positions = [*history.positions(), *([applied.position] if applied is not None else [])]
    fitting = {p for p in positions if p.segment == int(number) and p.epoch.hex().startswith(epoch.lower())}
    if not fitting:
        raise NotFoundError(
            f"{vm.name} has no recovery point {name}.", f"See `vmreplica points {vm.name}` for those that it has."
        )
    if len(fitting) > 1:
        raise UsageError(f"{vm.name} has {len(fitting)} recovery points {name}.", "Give more digits of the epoch.")
    return fitting.pop()


def _find_before(vm: ReplicaVm, moment: float) -> Position:
    before, after = nearest(vm, moment)
    if before is None:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
        there = f" Its oldest one after that is {point_text(after)}." if after is not None else ""
        raise NotFoundError(
            f"{vm.name} has no recovery point at or before {when}.{there}",
            f"See `vmreplica points {vm.name}` for those that it has.",
        )
    return before


Points = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class _PointSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be set of the points; UNSET stays as it is."""

    points_newest: Annotated[int, msgspec.Meta(ge=1, le=1000)] | msgspec.UnsetType | None = msgspec.UNSET
    points_hourly: Points | msgspec.UnsetType | None = msgspec.UNSET
    points_daily: Points | msgspec.UnsetType | None = msgspec.UNSET
    points_weekly: Points | msgspec.UnsetType | None = msgspec.UNSET
    points_limit_bytes: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] | msgspec.UnsetType | None = msgspec.UNSET
    points_age_seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | msgspec.UnsetType | None = msgspec.UNSET


def point_settings(settings: dict[str, Any]) -> dict[str, int | float | None]:
    """Settings as they came, to changes of the record of points. Raises UsageError naming the setting."""
    try:
        given = msgspec.convert(settings, _PointSettings, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"A setting is not valid: {error}.",
            "A replica has points_newest (1 to 1000), points_hourly, points_daily and points_weekly (0 to 1000), "
            "points_limit_bytes and points_age_seconds; the others are its primary's.",
        ) from None
    changes = {key.removeprefix("points_"): value for key, value in msgspec.structs.asdict(given).items()}
    return {key: value for key, value in changes.items() if value is not msgspec.UNSET}


async def set_rules(vm: ReplicaVm, changes: dict[str, Any]) -> None:
    """Change which points are kept, by fields of the record of points; None for the agent's own rule."""
    history = vm.parts.history
    async with vm.ledger.transaction() as draft:
        was = history.retention
        draft.points = msgspec.structs.replace(draft.points, **changes)
        told = ", ".join(f"{key} {'as configured' if value is None else value}" for key, value in changes.items())
        draft.event(
            EventId.SETTINGS,
            f"Recovery points to keep: {told}; it was newest {was.newest}, hourly {was.hourly}, daily {was.daily}, "
            f"weekly {was.weekly}, limit_bytes {was.limit}, age_seconds {was.age:g}.",
            cause="set",
        )
        history.prune(draft)
    await history.tidy()
