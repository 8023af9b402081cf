"""Measures the catch-up after power loss: a sparse disk of 64 GiB with 256 hot regions, between two real agents.

Each round writes 4 MiB into each of 256 regions, waits until the replica has them, kills tap and primary agent, takes
a page back as a lost page cache would, lets the next start believe in another boot, and times from the start of the
primary agent until the VM is Replicating on its new baseline; the compare itself is what event 29244 says of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

import msgspec

from primary_agent.tap.state import StateFile
from scripts.agent_pair import AgentPair, fio, signal_process
from scripts.bench.tap import file_system
from shared.ports.file_system import RealFileSystem
from shared.rates import size_text
from shared.tap_config import STATE_NAME

MIB = 1 << 20
SIZE = 64 << 30
REGION = 4 * MIB
REGIONS = 256


def write_regions(uri: str, first: int) -> None:
    """Fill so many regions, evenly over the disk, the first at ``first``."""
    step = SIZE // REGIONS
    fio(uri, "regions", "--rw=write", "--bs=1m", "--iodepth=4", f"--offset={first}", f"--io_size={REGIONS * REGION}",
        "--zonemode=strided", f"--zonerange={step}", f"--zonesize={REGION}", f"--zoneskip={step - REGION}",
        f"--size={SIZE - first}", "--refill_buffers")  # fmt: skip


def lose_power(pair: AgentPair, disk: Path, at: int) -> None:
    """End tap and agent, undo a write as if it had never left the page cache, and pretend that the host has booted."""
    pid = pair.tap_pid()
    pair.kill("primary")
    signal_process(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.01)
    times = disk.stat()
    with disk.open("r+b") as file:
        file.seek(at)
        file.write(bytes(4096))
        os.fsync(file.fileno())
    os.utime(disk, ns=(times.st_atime_ns, times.st_mtime_ns))
    (path,) = pair.state.rglob(STATE_NAME)
    state_file, loaded = StateFile.open(RealFileSystem(), str(path))
    assert loaded.state is not None
    for _ in range(2):
        state_file.write(msgspec.structs.replace(loaded.state, boot_id="the boot before"))
    state_file.sync()
    state_file.close()


def measure(pair: AgentPair, disk: Path, first: int) -> tuple[float, float, int]:
    """Seconds until Replicating, seconds of the compare, bytes compared."""
    vm = pair.wait(
        "Replicating", "primary", lambda vm: vm["state"] == "Replicating" and vm["tap"] and vm["tap"]["uris"]
    )
    write_regions(vm["tap"]["uris"][0], first)
    seen = pair.status("primary")["newest_cut"]["segment"]
    pair.wait("the cut", "primary", lambda vm: vm["acked_cut"]["segment"] > seen and not vm["pending_bytes"])
    before = pair.status("primary")["epoch"]
    lose_power(pair, disk, first)
    began = time.monotonic()
    pair.start("primary")
    pair.wait("the catch-up", "primary", lambda vm: vm["state"] == "Replicating" and vm["epoch"] not in ("", before))
    seconds = time.monotonic() - began
    events = json.loads(pair.run("events", "demo", "--role", "primary", "--json", "--limit", "100"))["events"]
    data = [event["data"] for event in events if event["event"] == 29244][-1]
    return seconds, data["seconds"], data["bytes_compared"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/catchup.py", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = options.folder / f"vmreplica-bench-{os.getpid()}"
    folder.mkdir()
    pair = AgentPair(folder)
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    print(f"{folder} ({file_system(folder)}): {size_text(SIZE)}, {REGIONS} regions of {size_text(REGION)}", flush=True)
    found = []
    try:
        pair.prepare(cuttable=False)
        pair.start("replica")
        pair.start("primary")
        pair.run("enable", "demo", "--disk", str(disk), "--replica", pair.address, "--interval", "1s",
                 "--log-limit", "3GiB")  # fmt: skip
        began = time.monotonic()
        pair.run("initial", "demo")
        pair.wait("the first copy", "primary", lambda vm: vm["state"] == "Replicating" and vm["newest_cut"])
        print(f"  initial replication of the empty disk: {time.monotonic() - began:.1f} s", flush=True)
        for number in range(options.rounds):
            seconds, compare, compared = measure(pair, disk, REGION * (3 + number))
            found.append((seconds, compare))
            print(
                f"  round {number}: {seconds:.2f} s from the agent's start to Replicating, of it the compare "
                f"{compare:.2f} s, {size_text(compared)} compared",
                flush=True,
            )
        middle = [statistics.median(column) for column in zip(*found, strict=True)]
        print(f"  medians: {middle[0]:.2f} s in all, {middle[1]:.2f} s the compare")
    finally:
        pair.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
