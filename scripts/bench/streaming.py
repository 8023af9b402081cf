"""Measures streaming: from a sealed log at the primary to "received" at the replica, beside the limit of TLS.

A real pair replicates a sparse disk. Sending is suspended, fio writes through the tap with entries of one size, and the
log is sealed. Then sending is resumed, and the time is taken until the replica has acknowledged the last of it as
durable, and until it is applied. The limit is one TLS 1.3 connection between two processes with the same certificates
and the same links, sending 64 KiB messages that are thrown away. Both ends share this machine's cores in both cases.
Absolute figures move from run to run on a busy machine: ratios count, and so do the processor seconds, user and kernel,
that each GB costs both ends together up to "received". Every round is printed, with the memory of each process.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
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
LIMIT_BYTES = 2048 * MIB
ENTRIES = {65536: 1024 * MIB, 4096: 768 * MIB}
"""Entry size in bytes: bytes of payload in the log."""
POLL_SECONDS = 0.02
"""Between two questions for the status; the primary's loop answers them, so more would slow down what is measured."""
TICKS = os.sysconf("SC_CLK_TCK")


def _processor(*pids: int) -> float:
    """Seconds of processor time, user and kernel, that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


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


class Answer:
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


def identity(folder: Path, host: str) -> TlsIdentity:
    pki = folder / "pki" / host
    return TlsIdentity(str(pki / "ca.pem"), str(pki / "certificate.pem"), str(pki / "key.pem"))


def _serve_sink(folder: Path, total: int, ready: Connection) -> None:
    async def serve() -> None:
        network = RealNetwork(identity(folder, "localhost"))
        address = Address(host="127.0.0.1", port=0, tls=True)
        listener = await network.listen(address, lambda link: link.attach(_Sink(link, total)))
        ready.send(listener.address.port)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def tls_limit(folder: Path, total: int) -> tuple[float, float]:
    """Bytes a second of one connection, and processor seconds a byte of both ends."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_serve_sink, args=(folder, total, theirs), daemon=True)
    process.start()

    async def send(port: int) -> tuple[float, float]:
        link = await RealNetwork(identity(folder, "alpha")).connect(
            Address(host="localhost", port=port, tls=True), timeout=10
        )
        answer, message = Answer(), bytes(range(256)) * (MESSAGE // 256)
        link.attach(answer)
        pids = os.getpid(), process.pid or 0
        used, started = _processor(*pids), time.perf_counter()
        for _ in range(total // MESSAGE):
            link.write(message)
            await link.drain()
        await answer.arrived.wait()
        elapsed, used = time.perf_counter() - started, _processor(*pids) - used
        link.close()
        return total / elapsed, used / total

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(send(ours.recv()))
    finally:
        process.terminate()
        process.join()


# --- streaming -------------------------------------------------------------------------------------------------------


async def _watch(pair: AgentPair, entry: int) -> tuple[float, float, float]:
    """Resume sending; seconds until everything up to ``entry`` is received, processor seconds of both agents until
    then, and seconds until it is applied.
    """
    network = RealNetwork()
    client = await JsonRpcClient.connect(network, Address(unix_path=str(pair.sockets["primary"])), 10)

    async def reaches(name: str) -> None:
        while True:
            vm: dict[str, Any] = (await client.call("status", {"vm": "demo"}))["vms"][0]
            if vm[name] and int(vm[name]["entry"]) >= entry:
                return
            await asyncio.sleep(POLL_SECONDS)

    pids = [agent.pid for agent in pair.agents.values()]
    used, started = _processor(*pids), time.perf_counter()
    await client.call("vm.resume", {"vm": "demo"})
    await reaches("acked_cut")
    received, used = time.perf_counter() - started, _processor(*pids) - used
    await reaches("applied_cut")
    applied = time.perf_counter() - started
    client.close()
    return received, used, applied


def resident_bytes(pid: int) -> int:
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
    received, used, applied = asyncio.run(_watch(pair, target))
    return {
        "received": total / received,
        "entries": entries / received,
        "applied": total / applied,
        "processor": used / total,
        "primary": resident_bytes(pair.agents["primary"].pid),
        "replica": resident_bytes(pair.agents["replica"].pid),
        "tap": resident_bytes(pair.tap_pid()),
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
            rounds = []
            for number in range(runs + 1):
                limit, limit_processor = tls_limit(folder, LIMIT_BYTES)
                result = measure(pair, uri, size, entry_bytes, total)
                result |= {"limit": limit, "limit processor": limit_processor, "ratio": result["received"] / limit}
                _report(f"  round {number}", entry_bytes, result)
                if number:  # The first round fills the log files and the page cache.
                    rounds.append(result)
            middle = {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}
            _report(f"{store}, medians", entry_bytes, middle)
    finally:
        pair.stop()


def _report(name: str, entry_bytes: int, result: dict[str, float]) -> None:
    print(
        f"{name:15} {entry_bytes // 1024:3} KiB entries: received {result['received'] / 1e6:5.0f} MB/s, "
        f"{result['entries']:7.0f} entries/s; TLS limit {result['limit'] / 1e6:5.0f} MB/s, "
        f"ratio {result['ratio']:.2f}; "
        f"processor s/GB {result['processor'] * 1e9:.2f}, of the limit {result['limit processor'] * 1e9:.2f}; "
        f"applied {result['applied'] / 1e6:5.0f} MB/s; RSS MiB: primary {result['primary'] / MIB:.0f}, "
        f"replica {result['replica'] / MIB:.0f}, tap {result['tap'] / MIB:.0f}",
        flush=True,
    )


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
