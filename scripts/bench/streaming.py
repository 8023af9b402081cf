"""Measures streaming: from a sealed log at the primary to "received" at the replica, beside the limit of TLS.

A real pair replicates a sparse disk. Sending is suspended, fio writes through the tap with entries of one size, and the
log is sealed. Then sending is resumed, and the time is taken until the replica has acknowledged the last of it as
durable, and until it is applied. The limit is one TLS 1.3 connection between two processes with the same certificates
and the same links, sending 64 KiB messages that are thrown away. Both ends share this machine's cores in both cases.
Absolute figures move from run to run on a busy machine: ratios count.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from scripts.agent_pair import AgentPair, fio
from shared.admin.client import JsonRpcClient
from shared.ports import Address, Link
from shared.ports.network import RealNetwork
from shared.ports.tls import TlsIdentity

MIB = 1 << 20
MESSAGE = 64 << 10
STORES = {"tmpfs": Path("/dev/shm"), "ext4": Path("/var/tmp")}
ENTRIES = {65536: 1024 * MIB, 4096: 768 * MIB}
"""Entry size in bytes: bytes of payload in the log."""
POLL_SECONDS = 0.005


# --- the limit -------------------------------------------------------------------------------------------------------


class _Sink:
    """Counts what a link brings; answers one byte when it has everything."""

    def __init__(self, link: Link, expected: int) -> None:
        self.link = link
        self.missing = expected
        self.buffer = bytearray(MIB)

    def get_buffer(self, _size_hint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        self.missing -= count
        if self.missing <= 0:
            self.link.write(b"!")

    def lost(self, error: Exception | None) -> None:
        pass


class _Answer:
    """Waits for the sink's byte."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.buffer = bytearray(64)

    def get_buffer(self, _size_hint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, _count: int) -> None:
        self.arrived.set()

    def lost(self, error: Exception | None) -> None:
        self.arrived.set()


def _identity(folder: Path, host: str) -> TlsIdentity:
    pki = folder / "pki" / host
    return TlsIdentity(str(pki / "ca.pem"), str(pki / "certificate.pem"), str(pki / "key.pem"))


def _serve_sink(folder: Path, total: int, ready: Connection) -> None:
    async def serve() -> None:
        network = RealNetwork(_identity(folder, "localhost"))
        address = Address(host="127.0.0.1", port=0, tls=True)
        listener = await network.listen(address, lambda link: link.attach(_Sink(link, total)))
        ready.send(listener.address.port)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def tls_limit(folder: Path, total: int) -> float:
    """Bytes a second of one connection."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_serve_sink, args=(folder, total, theirs), daemon=True)
    process.start()

    async def send(port: int) -> float:
        link = await RealNetwork(_identity(folder, "alpha")).connect(
            Address(host="localhost", port=port, tls=True), timeout=10
        )
        answer, message = _Answer(), bytes(range(256)) * (MESSAGE // 256)
        link.attach(answer)
        started = time.perf_counter()
        for _ in range(total // MESSAGE):
            link.write(message)
            await link.drain()
        await answer.arrived.wait()
        elapsed = time.perf_counter() - started
        link.close()
        return total / elapsed

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(send(ours.recv()))
    finally:
        process.terminate()
        process.join()


# --- streaming -------------------------------------------------------------------------------------------------------


async def _watch(pair: AgentPair, entry: int) -> tuple[float, float]:
    """Resume sending; seconds until everything up to ``entry`` is received, and until it is applied."""
    network = RealNetwork()
    client = await JsonRpcClient.connect(network, Address(unix_path=str(pair.sockets["primary"])), 10)

    async def cut(name: str) -> int:
        vm: dict[str, Any] = (await client.call("status", {"vm": "demo"}))["vms"][0]
        return int(vm[name]["entry"]) if vm[name] else -1

    started = time.perf_counter()
    await client.call("vm.resume", {"vm": "demo"})
    while await cut("acked_cut") < entry:
        await asyncio.sleep(POLL_SECONDS)
    received = time.perf_counter() - started
    while await cut("applied_cut") < entry:
        await asyncio.sleep(POLL_SECONDS)
    applied = time.perf_counter() - started
    client.close()
    return received, applied


def _memory(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"no VmRSS of process {pid}")


def measure(pair: AgentPair, uri: str, size: int, entry_bytes: int, total: int) -> dict[str, float]:
    """One round: suspend, write, seal, resume."""
    pair.run("suspend", "demo")
    before = pair.status("primary")["newest_cut"]["entry"]
    fio(uri, "fill", "--rw=randwrite", f"--bs={entry_bytes}", "--iodepth=32", f"--size={size}", f"--io_size={total}",
        "--norandommap", "--refill_buffers")  # fmt: skip
    entries = total // entry_bytes
    target = before + entries
    pair.wait("the seal", "primary", lambda vm: vm["newest_cut"]["entry"] >= target)
    received, applied = asyncio.run(_watch(pair, target))
    return {
        "received": total / received,
        "entries": entries / received,
        "applied": total / applied,
        "primary": _memory(pair.agents["primary"].pid),
        "replica": _memory(pair.agents["replica"].pid),
        "tap": _memory(pair.tap_pid()),
    }


def bench(store: str, folder: Path, runs: int) -> None:
    size = 2048 * MIB
    pair = AgentPair(folder)
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(size)
    try:
        pair.prepare(cuttable=False)
        pair.start("replica")
        pair.start("primary")
        pair.run("enable", "demo", "--disk", str(disk), "--replica", pair.address, "--interval", "1s",
                 "--log-limit", "6GiB")  # fmt: skip
        pair.run("initial", "demo")
        vm = pair.wait("Replicating", "primary", lambda vm: vm["state"] == "Replicating" and vm["newest_cut"])
        uri = vm["tap"]["uris"][0]
        for entry_bytes, total in ENTRIES.items():
            limits, rounds = [], []
            for number in range(runs + 1):
                limit = tls_limit(folder, 2048 * MIB)
                result = measure(pair, uri, size, entry_bytes, total)
                if number:  # The first round fills the log files and the page cache.
                    limits.append(limit)
                    rounds.append(result)
            _report(store, entry_bytes, limits, rounds)
    finally:
        pair.stop()


def _report(store: str, entry_bytes: int, limits: list[float], rounds: list[dict[str, float]]) -> None:
    middle = {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}
    ratio = statistics.median(result["received"] / limit for result, limit in zip(rounds, limits, strict=True))
    print(
        f"{store:6} {entry_bytes // 1024:3} KiB entries: received {middle['received'] / 1e6:6.0f} MB/s, "
        f"{middle['entries']:8.0f} entries/s; TLS limit {statistics.median(limits) / 1e6:6.0f} MB/s, "
        f"ratio {ratio:.2f}; applied {middle['applied'] / 1e6:6.0f} MB/s; RSS MiB: "
        f"primary {middle['primary'] / MIB:.0f}, replica {middle['replica'] / MIB:.0f}, tap {middle['tap'] / MIB:.0f}"
    )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/streaming.py", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each kind (default 3)")
    parser.add_argument("--store", choices=[*STORES, "both"], default="both", help="file system (default both)")
    options = parser.parse_args()
    for store, parent in STORES.items():
        if options.store in (store, "both"):
            with tempfile.TemporaryDirectory(prefix="vmreplica-bench-", dir=parent) as folder:
                bench(store, Path(folder), options.runs)


if __name__ == "__main__":
    main()
