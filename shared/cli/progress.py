"""Progress of long work as lines: a bar for a live view, single lines for a log, and how it ended.

Pure functions of a status, except :class:`PlainProgress`, which remembers what it said last.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.cli.console import Palette
from shared.cli.strip import LEGEND, strip_text
from shared.cli.text import shortened
from shared.progress_status import ProgressStatus
from shared.rates import duration_text, size_text
from shared.states import ReplicationState
from shared.status import VmStatus

KINDS = {
    "initial": "initial replication",
    "resync": "resynchronization",
    "bounded": "resynchronization of what is in doubt",
    "merge": "merge",
    "promotion": "failover",
    "planned": "planned failover",
    "import": "import of a first copy",
}
BAR_WIDTH = 30
STRIPS_SHOWN = 8
"""Strips of more disks would fill the screen."""
PLAIN = Palette(False)
PLAIN_SECONDS = 2.0
PLAIN_PERCENT = 5
PLAIN_SILENT_SECONDS = 60.0

_WORKING = (
    ReplicationState.INITIAL_REPLICATION_IN_PROGRESS,
    ReplicationState.WAITING_FOR_INITIAL_REPLICATION,
    ReplicationState.RESYNCHRONIZING,
)
_REACHED = (
    ReplicationState.REPLICATING,
    ReplicationState.PREPARED_FOR_FAILOVER,
    ReplicationState.FAILED_OVER_WAITING_COMPLETION,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long work ended."""

    succeeded: bool
    text: str
    remedy: str = ""


def is_working(vm: VmStatus) -> bool:
    """Whether long work on the VM is under way, or waits to go on by itself."""
    if vm.problem is not None:
        return False
    return vm.progress is not None or vm.state_code in _WORKING


def outcome(vm: VmStatus) -> Outcome | None:
    """How the work ended, or None while it goes on."""
    if is_working(vm):
        return None
    if vm.problem is None and vm.state_code in _REACHED:
        return Outcome(True, vm.summary, vm.remedy)
    text = vm.reasons[0] if vm.reasons else f"{vm.name} is in state {vm.state}."
    return Outcome(False, text, vm.remedy)


def percent(progress: ProgressStatus) -> float | None:
    """How much is done, 0 to 100, or None where it can't be told yet."""
    if progress.total_bytes <= 0:
        return None
    return min(100.0 * progress.done_bytes / progress.total_bytes, 100.0)


def short_progress(progress: ProgressStatus | None) -> str:
    """Progress in one cell of a table, e.g. ``52 % (9 s left)``."""
    if progress is None:
        return ""
    done = percent(progress)
    if done is None:
        return progress.phase
    left = "" if progress.seconds_left is None else f" ({duration_text(progress.seconds_left)} left)"
    return f"{int(done)} %{left}"


def progress_line(vm: VmStatus) -> str:
    """Progress in one line, for logs and pipes."""
    progress = vm.progress
    if progress is None:
        waiting = f"; {_trouble(vm)}" if _trouble(vm) else ""
        return f"{vm.name}: {vm.state}{waiting}"
    done = percent(progress)
    parts = [f"{vm.name}: {KINDS.get(progress.kind, progress.kind)}, {progress.phase}"]
    if done is not None:
        parts.append(f"{int(done)} % ({size_text(progress.done_bytes)} of {size_text(progress.total_bytes)})")
    parts.extend(_speed(progress))
    trouble = _trouble(vm) or held_back_text(progress) or progress.text
    return ", ".join(parts) + (f"; {trouble}" if trouble else "")


def progress_lines(vm: VmStatus, width: int, palette: Palette = PLAIN) -> list[str]:
    """Progress as a block of lines that is redrawn in place."""
    progress = vm.progress
    if progress is None:
        lines = [f"{vm.name}  {vm.state}"]
    else:
        lines = [
            f"{vm.name}  {KINDS.get(progress.kind, progress.kind)}: {progress.phase}{_round(progress)}",
            _bar_line(progress),
            _amounts_line(progress),
        ]
        if saved := _saved(progress):
            lines.append(f"  saved against a full copy: {saved}")
        if len(progress.disks) > 1:
            lines += [
                f"  disk {disk.index}: {_fraction(disk.compared_bytes, disk.total_bytes)} compared, "
                f"{size_text(disk.different_bytes)} different, {size_text(disk.sent_bytes)} sent"
                for disk in progress.disks
            ]
        if progress.text:
            lines.append(f"  {progress.text}")
        if held := held_back_text(progress):
            lines.append(f"  {held}")
    if trouble := _trouble(vm):
        lines.append(f"  {trouble}")
    strips = _strip_lines(progress, width, palette) if progress is not None else []
    return [*(shortened(line, width) for line in lines), *strips]


class PlainProgress:
    """Decides which lines a log gets: on news, else every 5 % but at most every 2 s, and one a minute."""

    def __init__(self) -> None:
        self._told_at: float | None = None
        self._told_phase = ""
        self._told_percent = 0.0

    def line(self, vm: VmStatus, now: float) -> str | None:
        """The line to print at ``now`` (monotonic seconds), or None when nothing is worth a line."""
        done = (percent(vm.progress) if vm.progress is not None else None) or 0.0
        phase = f"{vm.state} {vm.progress.kind} {vm.progress.phase}" if vm.progress is not None else vm.state
        if self._told_at is not None:
            silent = now - self._told_at
            moved = abs(done - self._told_percent) >= PLAIN_PERCENT and silent >= PLAIN_SECONDS
            if phase == self._told_phase and not moved and silent < PLAIN_SILENT_SECONDS:
                return None
        self._told_at, self._told_phase, self._told_percent = now, phase, done
        return progress_line(vm)


def _trouble(vm: VmStatus) -> str:
    """Why the work does not move just now."""
    link = vm.link
    if link.connected or not link.last_error:
        return ""
    wait = link.next_attempt_seconds
    again = "" if wait is None else f" (next attempt in {duration_text(wait)})"
    return f"not connected: {link.last_error.rstrip('.')}{again}"


def _speed(progress: ProgressStatus) -> list[str]:
    parts = []
    if progress.rate_bytes_per_second is not None:
        parts.append(f"{size_text(progress.rate_bytes_per_second)}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration_text(progress.seconds_left)} left")
    return parts


def held_back_text(progress: ProgressStatus) -> str:
    """That reading stands back behind the guest, and why; empty where it does not."""
    held = progress.held_back
    if held is None:
        return ""
    if held.measuring:
        return "backs off for the guest: reads nothing for a moment, to measure its latency"
    text = f"backs off for the guest: {size_text(held.rate_bytes_per_second)}/s"
    if held.latency_seconds is None or held.usual_latency_seconds is None:
        return text
    latency, usual = (f"{1000 * seconds:.3g} ms" for seconds in (held.latency_seconds, held.usual_latency_seconds))
    return f"{text}, guest latency {latency}, usual {usual}"


def _bar_line(progress: ProgressStatus) -> str:
    done = percent(progress)
    if done is None:
        return f"  [{' ' * BAR_WIDTH}]"
    filled = int(BAR_WIDTH * done / 100)
    amount = f"{size_text(progress.done_bytes)} of {size_text(progress.total_bytes)}"
    bar = "█" * filled + "░" * (BAR_WIDTH - filled)
    return "  ".join([f"  [{bar}] {done:5.1f} %", amount, *_speed(progress)])


def _amounts_line(progress: ProgressStatus) -> str:
    rate = progress.wire_rate_bytes_per_second
    return (
        f"  compared {size_text(progress.compared_bytes)}, different {size_text(progress.different_bytes)}, "
        f"sent {size_text(progress.sent_bytes)}, on the wire {size_text(progress.wire_bytes)}"
        + ("" if rate is None else f" at {size_text(rate)}/s")
    )


def _strip_lines(progress: ProgressStatus, width: int, palette: Palette) -> list[str]:
    """The address spaces of the disks; colours are in them, so they are made to fit rather than cut."""
    disks = [(disk.index, disk.strip) for disk in progress.disks if disk.strip is not None][:STRIPS_SHOWN]
    if not disks:
        return []
    labels = [f"  disk {index}  " for index, _ in disks]
    indent = max(map(len, labels))
    lines = [
        label.ljust(indent) + strip_text(strip, width - indent, palette)
        for label, (_, strip) in zip(labels, disks, strict=True)
    ]
    return [*lines, palette.dim(shortened(" " * indent + LEGEND, width))]


def _round(progress: ProgressStatus) -> str:
    return f", round {progress.round}" if progress.round > 1 else ""


def _saved(progress: ProgressStatus) -> str:
    """What a copy of all that was compared until now, without its holes, would have had to transfer more."""
    full = progress.compared_bytes - sum(disk.hole_bytes for disk in progress.disks)
    if full <= 0 or progress.kind not in ("initial", "resync", "bounded"):
        return ""
    saved = max(0, full - progress.wire_bytes)
    return f"{size_text(saved)} ({100 * saved / full:.1f} % of {size_text(full)})"


def _fraction(part: int, whole: int) -> str:
    return f"{100 * part // whole} %" if whole > 0 else "100 %"
