"""Rows A16 and A17: strangers by the thousand at the replica's port, while an authorized peer replicates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.pair.hosts import MIB, ROOT, VM, Hosts

pytestmark = pytest.mark.slow

HALF_OPEN = 64
OTHER_DESCRIPTORS = 160
"""What the replica may have open beside the half-open connections: its own files, what it accepted in one turn of its
loop, and what gave way and is closed in the next.
"""


@contextmanager
def flood(port: int, count: int) -> Iterator[dict[str, int]]:
    """Strangers for as long as the block runs; afterwards the dict has what they did."""
    result: dict[str, int] = {}
    command = [sys.executable, "-m", "scripts.flood", "--port", str(port), "--count", str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield result
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    result.update(json.loads(output.splitlines()[-1]))


def descriptors(hosts: Hosts) -> int:
    return len(os.listdir(f"/proc/{hosts.agents['replica'].pid}/fd"))


def test_a_thousand_half_open_connections_leave_an_authorized_peer_unharmed(hosts: Hosts) -> None:
    hosts.make_disks(8 * MIB)
    hosts.prepare(cuttable=False)
    hosts.start_both()
    with flood(hosts.port, 1000) as did:
        hosts.enable(interval=1.0)
        hosts.connect()
        hosts.call("primary", "vm.initial", vm=VM)
        hosts.wait("a baseline", "replica", lambda vm: vm["state"] == "Replicating" and vm["applied_cut"])
        most = descriptors(hosts)
        uri = hosts.uris[0]
        for number in range(3):
            subprocess.run(
                ["qemu-io", "-f", "raw", "-c", f"write -P {number + 1} {number}M 1M", "-c", "flush", uri],
                check=True,
                capture_output=True,
            )
            most = max(most, descriptors(hosts))
        newest = hosts.wait("a cut", "primary", lambda vm: vm["newest_cut"] and not vm["pending_bytes"])["newest_cut"]
        hosts.wait("a later cut", "replica", lambda vm: (vm["applied_cut"] or newest)["segment"] > newest["segment"])
        limits = hosts.call("replica", "status")["limits"]
    assert Path(hosts.disks[0]).read_bytes() == hosts.copy(0).read_bytes()
    assert most <= HALF_OPEN + OTHER_DESCRIPTORS
    assert limits["half_open"] <= limits["half_open_limit"] == HALF_OPEN
    # They were there: most of them gave way to others, and those who came back too often were not heard.
    assert limits["displaced"] > 500
    assert limits["arrived"] > 900
    assert did["opened"] > 900
    assert "connection refused" in hosts.logs()
