"""What the kernel tells of processes: processor time, and the most memory that they had."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_of(pid: int) -> float:
    """Processor seconds of a process and of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def forget_peak(pid: int) -> None:
    """From now on :func:`peak_bytes` counts."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most that was resident of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"no VmHWM of process {pid}")


def loop_seconds() -> float:
    """Processor seconds of ten million turns of an empty loop, the best of three: what a core is worth just now.

    A core of a virtual machine is slower after minutes of full load, or when its neighbours are busy, by a factor of
    up to four on the machine that our figures are from; processor times are worth as much less then.
    """
    times = []
    for _ in range(3):
        began = time.process_time()
        for _ in range(10_000_000):
            pass
        times.append(time.process_time() - began)
    return min(times)


def cpu_of_children() -> float:
    """Processor seconds of all children of ours that ended and were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
