"""Memory of real agents through a resync in which everything differs, and through its merge (I13)."""

from __future__ import annotations

import os

from scripts.bench.processes import forget_peak, peak_bytes
from tests.pair.hosts import MIB, VM, Hosts

DISK_BYTES = 160 * MIB
GROWTH_MAX = 96 * MIB
"""More than any buffer that either side has, and far less than what differs."""


def test_memory_does_not_grow_with_what_differs(hosts: Hosts) -> None:
    """One run of changes as long as the disk is saved in an undo log, written and merged piece by piece."""
    hosts.replicate(DISK_BYTES)
    hosts.assert_same()
    with hosts.disks[0].open("r+b") as disk:
        for _ in range(DISK_BYTES // MIB):
            disk.write(os.urandom(MIB))
    pids = {role: agent.pid for role, agent in hosts.agents.items()}
    for pid in pids.values():
        forget_peak(pid)
    before = {role: peak_bytes(pid) for role, pid in pids.items()}
    epoch = hosts.status("replica")["applied_cut"]["epoch"]
    hosts.call("primary", "vm.resume", vm=VM, resynchronize=True)

    def merged(status: dict[str, object]) -> bool:
        point = status["applied_cut"]
        return isinstance(point, dict) and point["epoch"] != epoch and status["progress"] is None

    hosts.wait("the merge", "replica", merged)
    growth = {role: peak_bytes(pid) - before[role] for role, pid in pids.items()}
    assert max(growth.values()) < GROWTH_MAX, {role: f"{count / MIB:.0f} MiB" for role, count in growth.items()}
    hosts.assert_same()
