"""Measures what strangers at the replica's port do to an authorized peer (rows A16 and A17 of docs/fault-matrix.md).

A real pair replicates several small VMs with a cut each second while fio writes to them, once with nobody else at the
port, and once under ``scripts/flood.py``: a thousand connections that never finish their handshake, opened again 10,000
times a minute, from 16 other addresses of loopback. In turn, for as many rounds as asked. Measured are the time from
the sealing of a cut to its acknowledgement, as the primary's status tells it, and how fast a log that waited is sent.
The flood runs on the same cores as both agents, so that its own processor time is in the figures, too. Prints every
round, medians and ratios; judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.agent_pair import AgentPair
from scripts.bench.streaming import resident_bytes
from shared.admin.client import JsonRpcClient
from shared.ports import Address
from shared.ports.network import RealNetwork

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
DISK_BYTES = 64 * MIB
LOG_BYTES = 256 * MIB
POLL_SECONDS = 0.01


@contextmanager
def flood(port: int, count: int, rate: float) -> Iterator[None]:
    """Strangers for as long as the block runs; what they did is printed."""
    command = [sys.executable, "-m", "scripts.flood", "--port", str(port), "--count", str(count), "--rate", str(rate)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate()
        print(f"    strangers: {json.loads(output.splitlines()[-1])}", flush=True)


def writing(uris: list[str], seconds: float) -> list[subprocess.Popen[bytes]]:
    """fio at every VM: 20 writes of 4 KiB a second."""
    return [
        subprocess.Popen(
            ["fio", f"--name=w{number}", "--ioengine=nbd", f"--uri={uri}", "--minimal", "--rw=randwrite", "--bs=4k",
             "--rate_iops=20", f"--size={DISK_BYTES}", "--time_based", f"--runtime={seconds}"],
            stdout=subprocess.DEVNULL,
        )
        for number, uri in enumerate(uris)
    ]  # fmt: skip


async def latencies(pair: AgentPair, seconds: float) -> dict[str, Any]:
    """Seconds from each cut's sealing to its acknowledgement, and the most that the replica took meanwhile."""
    client = await JsonRpcClient.connect(RealNetwork(), Address(unix_path=str(pair.sockets["primary"])), 10)
    replica = pair.agents["replica"].pid
    waiting: dict[tuple[str, int], float] = {}
    seen: dict[str, int] = {}
    """The newest cut of each VM that was seen."""
    found: list[float] = []
    resident, descriptors, end = 0, 0, time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        for vm in (await client.call("status", {}))["vms"]:
            name, newest, acked = vm["name"], vm["newest_cut"], vm["acked_cut"]
            if newest["segment"] > seen.setdefault(name, newest["segment"]):
                seen[name] = newest["segment"]
                waiting[name, newest["segment"]] = newest["time"]
            for key in [key for key in waiting if key[0] == name and key[1] <= acked["segment"]]:
                found.append(time.time() - waiting.pop(key))
        resident = max(resident, resident_bytes(replica))
        descriptors = max(descriptors, len(os.listdir(f"/proc/{replica}/fd")))
        await asyncio.sleep(max(0.0, POLL_SECONDS - (time.monotonic() - now)))
    client.close()
    return {"latencies": sorted(found), "resident": resident, "descriptors": descriptors}


def throughput(pair: AgentPair, uri: str) -> float:
    """Bytes a second at which a log that waited is sent and acknowledged."""
    pair.run("suspend", "vm0")
    before = pair.status("primary", "vm0")["newest_cut"]["entry"]
    subprocess.run(
        ["fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", "--minimal", "--rw=randwrite", "--bs=64k",
         "--iodepth=16", f"--size={DISK_BYTES}", f"--io_size={LOG_BYTES}", "--norandommap", "--refill_buffers"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    target = before + LOG_BYTES // 65536
    pair.wait("the seal", "primary", lambda vm: vm["newest_cut"]["entry"] >= target, "vm0")
    started = time.perf_counter()
    pair.run("resume", "vm0")
    pair.wait("all of it", "primary", lambda vm: vm["acked_cut"]["entry"] >= target, "vm0")
    return LOG_BYTES / (time.perf_counter() - started)


def names(uris: list[str]) -> list[str]:
    """The VMs."""
    return [f"vm{number}" for number in range(len(uris))]


def phase(pair: AgentPair, uris: list[str], seconds: float) -> dict[str, Any]:
    """One measurement of both."""
    before = {name: pair.status("primary", name)["acked_cut"]["segment"] for name in names(uris)}
    # On a busy machine it takes a while until all of them write.
    writers = writing(uris, seconds + 30)
    try:
        for name in names(uris):
            pair.wait("a new cut", "primary", lambda vm: vm["acked_cut"]["segment"] > before[vm["name"]], name)
        seen = asyncio.run(latencies(pair, seconds))
    finally:
        for writer in writers:
            writer.terminate()
            writer.wait()
    every = seen["latencies"]
    return {
        "cuts": len(every),
        "median": statistics.median(every),
        "p99": p99(every),
        "every": every,
        "rate": throughput(pair, uris[0]),
        "resident": seen["resident"],
        "descriptors": seen["descriptors"],
    }


def p99(figures: list[float]) -> float:
    """The figure that one in a hundred exceeds."""
    return sorted(figures)[min(len(figures) - 1, int(len(figures) * 0.99))]


def show(name: str, one: dict[str, Any]) -> None:
    print(
        f"  {name:18} {one['cuts']:4.0f} cuts, sealed to acknowledged: median {one['median'] * 1e3:5.1f} ms, p99 "
        f"{one['p99'] * 1e3:6.1f} ms; a waiting log {one['rate'] / 1e6:4.0f} MB/s; replica "
        f"{one['resident'] / MIB:4.0f} MiB, {one['descriptors']:4.0f} descriptors",
        flush=True,
    )


def bench(folder: Path, options: argparse.Namespace) -> None:
    pair = AgentPair(folder)
    quiet: list[dict[str, Any]] = []
    flooded: list[dict[str, Any]] = []
    try:
        pair.prepare(cuttable=False)
        pair.start("replica")
        pair.start("primary")
        uris = []
        for number in range(options.vms):
            disk = folder / f"disk{number}.raw"
            with disk.open("wb") as file:
                file.truncate(DISK_BYTES)
            name = f"vm{number}"
            pair.run("enable", name, "--disk", str(disk), "--replica", pair.address, "--interval", "1s",
                     "--log-limit", "1GiB")  # fmt: skip
            pair.run("initial", name)
            vm = pair.wait("a cut", "primary", lambda vm: vm["state"] == "Replicating" and vm["acked_cut"], name)
            uris.append(vm["tap"]["uris"][0])
        for number in range(options.rounds):
            print(f"round {number + 1}", flush=True)
            quiet.append(phase(pair, uris, options.seconds))
            show("nobody else", quiet[-1])
            with flood(pair.port, options.count, options.rate):
                flooded.append(phase(pair, uris, options.seconds))
            show(f"{options.count} half open", flooded[-1])
        limits = json.loads(pair.run("status", "--json", "--socket", str(pair.sockets["replica"])))["agents"][0][
            "limits"
        ]
    finally:
        pair.stop()
    figures = ("cuts", "median", "p99", "rate", "resident", "descriptors")
    middle = [{key: statistics.median(one[key] for one in rounds) for key in figures} for rounds in (quiet, flooded)]
    print("medians of the rounds")
    show("nobody else", middle[0])
    show(f"{options.count} half open", middle[1])
    print("  ratios: " + ", ".join(f"{key} {middle[1][key] / middle[0][key]:.2f}" for key in figures[1:]))
    pooled = [sorted(figure for one in rounds for figure in one["every"]) for rounds in (quiet, flooded)]
    medians, tails = [statistics.median(each) for each in pooled], [p99(each) for each in pooled]
    print(
        f"all cuts of all rounds together: median {medians[0] * 1e3:.1f} and {medians[1] * 1e3:.1f} ms, ratio "
        f"{medians[1] / medians[0]:.2f}; p99 {tails[0] * 1e3:.1f} and {tails[1] * 1e3:.1f} ms, ratio "
        f"{tails[1] / tails[0]:.2f}"
    )
    print(f"  what the replica counted: {limits}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/half_open.py", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--vms", type=int, default=8)
    parser.add_argument("--count", type=int, default=1000, help="connections of strangers at a time")
    parser.add_argument("--rate", type=float, default=10_000 / 60, help="further ones a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmr-", dir="/dev/shm") as folder:
        bench(Path(folder), options)


if __name__ == "__main__":
    main()
