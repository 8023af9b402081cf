"""Recovery points as lines: pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import tzinfo

from shared.cli.text import columns, joined, time_text
from shared.point_status import PointProof, PointsStatus, PointStatus
from shared.rates import duration_text, size_text
from shared.status import FailoverStatus, VmStatus

CRASH = "crash"
"""As a power cut would have left it: what every point is that nothing else is said of."""


def point_lines(vm: VmStatus, points: PointsStatus, now: float, zone: tzinfo | None = None) -> list[str]:
    """The recovery points of a VM, the newest first, and the rules by which they are kept."""
    if not points.points:
        return [f"{vm.name} has no recovery point yet."]
    named = any(point.name for point in points.points)
    proven = any(point.proven_time is not None for point in points.points)
    rows = [["POINT", "SEALED", "AGE", "KEPT AS", "TAKES", "EXPORTS"]]
    for point in points.points:
        age = "" if point.cut.time is None else duration_text(max(0.0, now - point.cut.time))
        size = "" if point.newest else size_text(point.bytes)
        kept = ", ".join(_kept_as(point, points)) or "cut"
        sealed, exports = time_text(point.cut.time, zone), ", ".join(point.exports)
        rows.append([point.point, sealed, age, kept, size, exports])
    if any(point.consistency != CRASH for point in points.points):
        for row, kind in zip(rows, ["CONSISTENT", *(point.consistency for point in points.points)], strict=True):
            row.append(kind)
    if named:
        for row, name in zip(rows, ["NAME", *(point.name for point in points.points)], strict=True):
            row.append(name)
    if any(other_disks(point) for point in points.points):
        for row, disks in zip(rows, ["DISKS", *(other_disks(point) for point in points.points)], strict=True):
            row.append(disks)
    if proven:
        for row, moment in zip(rows, ["PROVEN", *(_proven(point, zone) for point in points.points)], strict=True):
            row.append(moment)
    return [f"{vm.name}  {vm.role}: {_rules(points)}.", *(f"  {joined(row)}" for row in columns(rows, right=[2, 4]))]


def other_disks(point: PointStatus | FailoverStatus) -> str:
    """What disks it has else than the newest point; empty where it has the same."""
    texts = [f"without {index}" for index in point.added_disks] + [f"with {index}" for index in point.removed_disks]
    return ", ".join(texts)


def _kept_as(point: PointStatus, points: PointsStatus) -> Iterator[str]:
    if point.newest:
        yield "newest"
    if point.hourly:
        yield "hourly"
    if point.daily and points.keep_daily:
        yield "daily"
    if point.weekly and points.keep_weekly:
        yield "weekly"
    if point.pinned:
        yield "pinned"


def _proven(point: PointStatus, zone: tzinfo | None) -> str:
    return "" if point.proven_time is None else time_text(point.proven_time, zone)


def _rules(points: PointsStatus) -> str:
    counts = [f"{points.keep_newest} newest", f"{points.keep_hourly} hourly"]
    counts += [f"{points.keep_daily} daily"] if points.keep_daily else []
    counts += [f"{points.keep_weekly} weekly"] if points.keep_weekly else []
    kept = f"{', '.join(counts[:-1])} and {counts[-1]} points are kept"
    if points.keep_age_seconds:
        kept += f", none more than {duration_text(points.keep_age_seconds)} older than the newest"
    pinned = f", the pinned ones {size_text(points.pinned_bytes)} of it" if points.pinned_bytes else ""
    return f"{kept}; they take {size_text(points.bytes)} of at most {size_text(points.limit_bytes)}{pinned}"


def nearest_lines(vm: VmStatus, points: PointsStatus, zone: tzinfo | None = None) -> list[str]:
    """Which points are nearest to the moment asked for."""
    times = {point.point: time_text(point.cut.time, zone) for point in points.points}
    asked = time_text(points.at_time, zone)
    lines = [
        f"At or before {asked}: {points.nearest}, sealed {times.get(points.nearest, '-')}"
        if points.nearest
        else f"{vm.name} has no recovery point at or before {asked}."
    ]
    if points.after:
        lines.append(f"The next after it: {points.after}, sealed {times.get(points.after, '-')}")
    return lines


def proof_line(name: str, proof: PointProof) -> str:
    """One that is being read."""
    percent = 100 * proof.done_bytes // proof.total_bytes if proof.total_bytes else 0
    done = f"{size_text(proof.done_bytes)} of {size_text(proof.total_bytes)}"
    return f"{name}: recovery point {proof.point} is being read: {done}, {percent} %"


def proof_lines(name: str, proof: PointProof, zone: tzinfo | None = None) -> list[str]:
    """What came of it, and the digests."""
    when = time_text(proof.cut.time, zone)
    compared = f", compared {time_text(proof.recorded_time, zone)}" if proof.recorded_time is not None else ""
    lines = [f"{name}: recovery point {proof.point} of {when}{compared}: {proof.text}"]
    for image in proof.images:
        lines.append(f"  disk {image.disk}: sha256 of its blocks {image.digest or 'not known'}")
        if image.recorded and image.recorded != image.digest:
            lines.append(f"  disk {image.disk}: recorded was        {image.recorded}")
    return lines
