"""Statistics and churn as lines: pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo

from shared.churn import ChurnReport, DiskChurn
from shared.cli.console import Palette
from shared.cli.text import columns, joined, time_text, wrapped
from shared.measures import Statistics
from shared.rates import duration_text, size_text
from shared.status import VmStatus

LABEL_WIDTH = 16


def measure_lines(
    vm: VmStatus, figures: Statistics, width: int | None, palette: Palette, zone: tzinfo | None = None
) -> list[str]:
    """The figures of one VM at one agent; those that are not known are left out."""
    lines = [f"{palette.strong(vm.name)}  {vm.role}"]
    for label, text in _facts(figures, zone):
        lines += wrapped(text, width, LABEL_WIDTH + 2, f"  {label.ljust(LABEL_WIDTH)}")
    return lines


def _facts(figures: Statistics, zone: tzinfo | None) -> Iterator[tuple[str, str]]:
    start, end = figures.monitoring_start_time, figures.monitoring_end_time
    if start is not None and end is not None:
        yield "monitored", f"{time_text(start, zone)} to {time_text(end, zone)} ({duration_text(end - start)})"
    if figures.replication_health:
        yield "health", figures.replication_health
    for at, text in enumerate(figures.replication_health_details):
        yield "" if at else "details", text
    cuts, missed = figures.successful_replication_count, figures.missed_replication_count
    yield "replicated", f"{cuts} {'cut' if cuts == 1 else 'cuts'}"
    share = f" ({100 * missed / (cuts + missed):.1f} %)" if missed else ""
    yield "missed", f"{missed} {'cycle' if missed == 1 else 'cycles'}{share}"
    yield "errors", str(figures.replication_errors)
    if figures.average_replication_bytes is not None:
        most = size_text(figures.maximum_replication_bytes or 0)
        yield "size of a cut", f"{size_text(figures.average_replication_bytes)} on average, {most} at most"
    if figures.average_replication_latency_seconds is not None:
        most = _latency(figures.maximum_replication_latency_seconds or 0.0)
        yield "latency", f"{_latency(figures.average_replication_latency_seconds)} on average, {most} at most"
    yield "pending", size_text(figures.pending_replication_bytes)
    if figures.initial_replication_bytes is not None:
        yield "initial copy", size_text(figures.initial_replication_bytes)
    for label, time in (
        ("last replicated", figures.last_replication_time),
        ("last applied", figures.last_applied_time),
        ("last snapshot", figures.last_snapshot_time),
        ("last test", figures.last_test_failover_time),
    ):
        if time is not None:
            yield label, time_text(time, zone)


def _latency(seconds: float) -> str:
    return duration_text(seconds) if seconds >= 1 or seconds == 0 else f"{1000 * seconds:.0f} ms"


def churn_lines(reports: Sequence[ChurnReport], palette: Palette) -> list[str]:
    """All VMs, the one that is written most first."""
    if not reports:
        return ["No VM is replicated from this host."]
    rows = [["VM", "IN THE INTERVAL", "LATELY", "A DAY", "BUSIEST REGION"]]
    for report in sorted(reports, key=lambda each: -each.bytes_per_day):
        disk = max(report.disks, key=lambda each: each.regions[0].bytes_per_second if each.regions else 0, default=None)
        rows.append(
            [
                report.name,
                "-" if report.monitoring_bytes_per_second is None else _rate(report.monitoring_bytes_per_second),
                _rate(report.bytes_per_second),
                size_text(report.bytes_per_day),
                f"{disk.path or disk.index} {_region(disk, 0)}" if disk is not None and disk.regions else "-",
            ]
        )
    table = columns(rows, right=[1, 2, 3])
    return [palette.strong(joined(table[0])), *(joined(row) for row in table[1:])]


def churn_page(report: ChurnReport, palette: Palette) -> list[str]:
    """One VM with its disks and their busiest regions."""
    interval = report.monitoring_bytes_per_second
    told = "" if interval is None else f"{_rate(interval)} in the monitoring interval, "
    lines = [
        (
            f"{palette.strong(report.name)}  {told}{_rate(report.bytes_per_second)} lately, "
            f"{size_text(report.bytes_per_day)} a day at this rate"
        )
    ]
    for disk in report.disks:
        share = f", in {disk.written_regions} regions of {size_text(disk.region_bytes)}"
        lines.append(f"  disk {disk.index}  {disk.path}  {_rate(disk.bytes_per_second)}{share}")
        rows = [
            [_region(disk, at), _rate(region.bytes_per_second), _percent(region.bytes_per_second, disk)]
            for at, region in enumerate(disk.regions)
        ]
        lines += [f"    {joined(row)}" for row in columns(rows, right=[1, 2])]
    lines.append(
        f"  Regions are counted since the agent started, {duration_text(report.counted_seconds)} ago; what was written "
        "an hour ago counts half."
    )
    return lines


def _region(disk: DiskChurn, at: int) -> str:
    region = disk.regions[at]
    return f"{size_text(region.offset)} to {size_text(region.offset + region.length)}"


def _percent(rate: float, disk: DiskChurn) -> str:
    return f"{100 * rate / disk.bytes_per_second:.0f} %" if disk.bytes_per_second else ""


def _rate(rate: float) -> str:
    return f"{size_text(rate)}/s"
