"""A VM's verify as text: the last result in a line or in whole, and the progress of the one that runs."""

from __future__ import annotations

from datetime import tzinfo

from shared.cli.text import time_text
from shared.rates import duration_text, size_text
from shared.status import VerifyRange, VerifyResult, VerifyStatus, VmStatus
from shared.verify_outcomes import EQUAL

BAR_WIDTH = 30
RANGES_SHOWN = 20


def verified_text(verify: VerifyStatus, now: float, zone: tzinfo | None) -> str:
    """The last result and its age: ``equal 3 h ago (cut 4711 of 2026-11-27 03:00:12)``, and the next one."""
    last = verify.last
    if last is None:
        text = "never"
    else:
        cut = "" if last.cut is None else f" (cut {last.cut.segment} of {time_text(last.cut.time, zone)})"
        text = f"{last.outcome} {duration_text(max(0.0, now - last.ended_time))} ago{cut}"
        if last.outcome != EQUAL:
            text += f": {last.text}"
    if verify.running:
        text += f"; one is running: {running_text(verify)}"
    elif verify.next_time is not None:
        text += f"; the next one {time_text(verify.next_time, zone)}"
    return text


def running_text(verify: VerifyStatus) -> str:
    """``reading, 42 %``."""
    if verify.total_bytes <= 0:
        return verify.phase
    return f"{verify.phase}, {100 * verify.done_bytes // verify.total_bytes} %"


def progress_line(vm: VmStatus) -> str:
    """The one that runs, for logs and pipes."""
    assert vm.verify is not None
    return f"{vm.name}: verify, {running_text(vm.verify)}"


def progress_lines(vm: VmStatus) -> list[str]:
    """The one that runs, redrawn in place."""
    verify = vm.verify
    assert verify is not None
    lines = [f"{vm.name}  verify: {verify.phase}"]
    if verify.total_bytes > 0:
        filled = BAR_WIDTH * verify.done_bytes // verify.total_bytes
        amount = f"{size_text(verify.done_bytes)} of {size_text(verify.total_bytes)} on both sides"
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        lines.append(f"  [{bar}] {100 * verify.done_bytes / verify.total_bytes:5.1f} %  {amount}")
    return lines


def result_lines(name: str, result: VerifyResult) -> list[str]:
    """How one ended: the sentence, the proof, and the first of the ranges."""
    lines = [f"{name}: {result.text}"]
    lines += [f"  disk {image.disk}: sha256 of its blocks {image.sha256}" for image in result.images]
    lines += _range_lines("different", result.different, result.different_ranges)
    lines += _range_lines("unreadable here", result.unreadable_here, len(result.unreadable_here))
    return lines


def _range_lines(what: str, ranges: list[VerifyRange], count: int) -> list[str]:
    lines = [f"  {what}: disk {run.disk}, {run.length} bytes at {run.offset}" for run in ranges[:RANGES_SHOWN]]
    left = count - len(lines)
    return [*lines, f"  and {left} more"] if left > 0 else lines
