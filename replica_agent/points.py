"""The recovery points of a VM as people and commands name them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from protocol.position import Position
from replica_agent.exports import SHORT_EPOCH_DIGITS
from replica_agent.retention import hourly_of
from replica_agent.vm import ReplicaVm
from shared.errors import NotFoundError, UsageError
from shared.status import CutStatus, PointsStatus, PointStatus

NEWEST = "newest"
APPLIED = "applied"
"""The newest that the disks are at, whatever was received beyond."""


def points_of(vm: ReplicaVm) -> PointsStatus:
    """All recovery points, the newest first."""
    history, record = vm.parts.history, vm.ledger.replication
    rules = history.retention
    found: list[PointStatus] = []
    # A log belongs to the last point before it: it is one step on the way to that from the next newer one.
    for log in vm.ledger.points.logs:
        if log.point or not found:
            found.append(_point(log.older.position, log.older_time))
        found[-1].bytes += log.length
    if record.applied is not None:
        newest = _point(record.applied.position, record.applied_time)
        newest.newest = True
        found.append(newest)
    for point, is_first in zip(found, hourly_of([point.cut.time or 0.0 for point in found]), strict=True):
        point.hourly = is_first
    for export in vm.exports.status():
        for point in found:
            if (point.cut.epoch, point.cut.segment) == (export.cut.epoch, export.cut.segment):
                point.exports.append(export.id)
    return PointsStatus(
        points=found[::-1],
        keep_newest=rules.newest,
        keep_hourly=rules.hourly,
        bytes=history.bytes,
        limit_bytes=rules.limit,
    )


def _point(position: Position, time: float | None) -> PointStatus:
    cut = CutStatus(epoch=position.epoch.hex(), segment=position.segment, entry=position.entry, time=time or None)
    return PointStatus(point=f"{cut.epoch[:SHORT_EPOCH_DIGITS]}/{position.segment}", cut=cut)


def find_point(vm: ReplicaVm, name: str) -> Position | None:
    """The point with this name: ``newest`` (None), ``applied``, the cut's number, or it after digits of its epoch.

    Raises UsageError, NotFoundError.
    """
    applied = vm.ledger.replication.applied
    if name == NEWEST:
        return None
    if name == APPLIED and applied is not None:
        return applied.position
    epoch, _, number = name.rpartition("/")
    if not number.isdecimal() or len(number) > 20 or len(epoch) > 32:
        raise UsageError(
            f"{name!r} names no recovery point.", "Give `newest`, or EPOCH/CUT as `vmreplica points` has it."
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


class _PointSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be set of the points; UNSET stays as it is."""

    points_newest: Annotated[int, msgspec.Meta(ge=1, le=1000)] | msgspec.UnsetType | None = msgspec.UNSET
    points_hourly: Annotated[int, msgspec.Meta(ge=0, le=1000)] | msgspec.UnsetType | None = msgspec.UNSET


def point_settings(settings: dict[str, Any]) -> dict[str, int | None]:
    """Settings as they came, to changes of ``newest`` and ``hourly``. Raises UsageError naming the setting."""
    try:
        given = msgspec.convert(settings, _PointSettings, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"A setting is not valid: {error}.",
            "A replica has points_newest (1 to 1000) and points_hourly (0 to 1000); the others are its primary's.",
        ) from None
    changes = {"newest": given.points_newest, "hourly": given.points_hourly}
    return {name: value for name, value in changes.items() if value is not msgspec.UNSET}
