"""Measures a resync from its order to its durable commit, beside its peers on the same kind of files.

Two real agents replicate an image: half of it random, a quarter compressible, a quarter holes. For each workload a part
of the image changes behind the tap's back, and a resync is ordered; its time runs until the baseline is committed, with
TLS 1.3, fsync and all bookkeeping; the merge that follows is reported beside it. The peers bring a stale copy of the
same image in line with it: rsync (a daemon over loopback) and blocksync-fast and bdsync where they are found in the
search path (``--peers`` adds a folder to it). None of them encrypts or syncs. A full copy goes over one TLS connection
of ours and is synced.
The limit is what two processes need to read and hash both files with nothing else to do. Both ends share this machine's
cores everywhere: absolute figures move on a busy machine, ratios within one run count, and so does the processor time
of both ends, which others on the machine change less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from scripts.agent_pair import AgentPair
from scripts.bench.processes import cpu_of, cpu_of_children, forget_peak, peak_bytes
from scripts.bench.streaming import Answer, identity
from scripts.bench.tap import file_system
from scripts.link_cutter import LinkCutter
from shared.admin.client import JsonRpcClient
from shared.disks.hashing import RangeHasher
from shared.events import EventId
from shared.ports import Address, Link
from shared.ports.file_system import RealFileSystem
from shared.ports.network import RealNetwork
from shared.rates import size_text

MIB = 1 << 20
PAGE = 4096
STRIPE = 8 * MIB
CLUSTER = 4 * MIB
POLL_SECONDS = 0.1
"""Between questions to an agent, each of which costs it some ms; when it committed is told by its own event."""
WORKLOADS = ("0%", "1%", "10%", "100%", "random")
WHOLE = ("100%", "random")
"""Workloads that change everything; ``random`` leaves nothing to be compressed."""
WAIT_SECONDS = 600.0

Result = dict[str, float]


# --- images ----------------------------------------------------------------------------------------------------------


def make_image(path: Path, size: int) -> None:
    """In every four stripes two random ones, a compressible one and a hole."""
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        file.truncate(size)
        for at in range(0, size, STRIPE):
            kind = at // STRIPE % 4
            if kind < 2:
                os.pwrite(file.fileno(), random.bytes(STRIPE), at)
            elif kind == 2:
                os.pwrite(file.fileno(), _compressible(at, STRIPE), at)
        os.fsync(file.fileno())


def _compressible(seed: int, length: int) -> bytes:
    return np.arange(seed, seed + length // 8, dtype=np.uint64).tobytes()


def change(path: Path, size: int, workload: str, version: int) -> int:
    """Bring the parts that the workload changes to a ``version``; returns the changed bytes."""
    random = np.random.default_rng(1000 + version)
    places = np.random.default_rng(7)
    with path.open("r+b") as file:
        match workload:
            case "0%":
                return 0
            case "1%":
                pages = places.choice(size // PAGE, size // PAGE // 100, replace=False)
                pages.sort()
                chosen = [(int(page) * PAGE, PAGE) for page in pages if int(page) * PAGE // STRIPE % 4 != 3]
            case "10%":
                clusters = places.choice(size // CLUSTER, max(1, size // CLUSTER // 10), replace=False)
                clusters.sort()
                chosen = [(int(each) * CLUSTER, CLUSTER) for each in clusters]
            case _:
                chosen = [(at, STRIPE) for at in range(0, size, STRIPE)]
        for at, length in chosen:
            compressible = at // STRIPE % 4 == 2 and workload not in ("1%", "random")
            data = _compressible(at + (version << 40) + 1, length) if compressible else random.bytes(length)
            os.pwrite(file.fileno(), data, at)
        os.fsync(file.fileno())
    return sum(length for _, length in chosen)


def forget(*paths: Path) -> None:
    """Take files out of the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(*paths: Path) -> None:
    buffer = bytearray(MIB)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


# --- the limit and the full copy -------------------------------------------------------------------------------------


def _hash_all(path: str, ready: Connection) -> None:
    hasher = RangeHasher(bytes(32), 64 << 10)
    file = RealFileSystem().open(path)
    file.expect_sequential()
    ready.send(True)
    ready.recv()
    size = file.size()
    for at in range(0, size, 64 * MIB):
        hasher.hash_range(file, at, min(64 * MIB, size - at))
    ready.send(True)
    # Alive until its processor time has been read.
    ready.recv()


def hash_limit(first: Path, second: Path) -> Result:
    """Until two processes have read and hashed one file each."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for path in (first, second):
        ours, theirs = multiprocessing.Pipe()
        process = spawn.Process(target=_hash_all, args=(str(path), theirs), daemon=True)
        process.start()
        ours.recv()
        pipes.append(ours)
        processes.append(process)
    began = time.perf_counter()
    before = sum(cpu_of(process.pid or 0) for process in processes)
    for pipe in pipes:
        pipe.send(True)
    for pipe in pipes:
        pipe.recv()
    seconds = time.perf_counter() - began
    cpu = sum(cpu_of(process.pid or 0) for process in processes) - before
    for pipe in pipes:
        pipe.send(True)
    for process in processes:
        process.join()
    return {"seconds": seconds, "cpu": cpu}


class _Writer:
    """Writes what a link brings to a file, syncs it when complete and answers one byte."""

    def __init__(self, link: Link, descriptor: int, expected: int) -> None:
        self.link, self.descriptor, self.expected = link, descriptor, expected
        self.done = 0
        self.buffer = memoryview(bytearray(MIB))

    def get_buffer(self, _size_hint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, count: int) -> None:
        os.pwrite(self.descriptor, self.buffer[:count], self.done)
        self.done += count
        if self.done == self.expected:
            os.fsync(self.descriptor)
            self.link.write(b"!")

    def lost(self, error: Exception | None) -> None:
        pass


def _serve_copy(folder: Path, target: str, size: int, ready: Connection) -> None:
    async def serve() -> None:
        network = RealNetwork(identity(folder, "localhost"))
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)
        address = Address(host="127.0.0.1", port=0, tls=True)
        listener = await network.listen(address, lambda link: link.attach(_Writer(link, descriptor, size)))
        ready.send(listener.address.port)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def full_copy(folder: Path, source: Path, target: Path, size: int) -> float:
    """Seconds of a copy of all bytes over TLS into a synced file."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_serve_copy, args=(folder, str(target), size, theirs), daemon=True)
    process.start()

    async def send(port: int) -> float:
        address = Address(host="localhost", port=port, tls=True)
        link = await RealNetwork(identity(folder, "alpha")).connect(address, timeout=10)
        answer = Answer()
        link.attach(answer)
        began = time.perf_counter()
        with source.open("rb", buffering=0) as file:
            while data := file.read(256 << 10):
                link.write(data)
                await link.drain()
        await answer.arrived.wait()
        seconds = time.perf_counter() - began
        link.close()
        return seconds

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(send(ours.recv()))
    finally:
        process.terminate()
        process.join()


# --- peers -----------------------------------------------------------------------------------------------------------


class Rsync:
    """rsync to a daemon of its own over loopback."""

    def __init__(self, folder: Path, program: str, target: Path) -> None:
        self.program, self.target = program, target
        self.port = LinkCutter.free_port()
        config = folder / "rsyncd.conf"
        config.write_text(
            f"port = {self.port}\naddress = 127.0.0.1\nuse chroot = no\nuid = {os.getuid()}\ngid = {os.getgid()}\n"
            f"[store]\npath = {target.parent}\nread only = no\n"
        )
        self.daemon = subprocess.Popen([program, "--daemon", "--no-detach", f"--config={config}"])
        time.sleep(0.5)

    def run(self, source: Path, *options: str) -> Result:
        url = f"rsync://127.0.0.1:{self.port}/store/{self.target.name}"
        before = cpu_of(self.daemon.pid) + cpu_of_children()
        began = time.perf_counter()
        told = subprocess.run(
            [self.program, "--inplace", "--no-whole-file", "--ignore-times", "--stats", *options, str(source), url],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        seconds = time.perf_counter() - began
        # The daemon counts its child only once it has noticed its end.
        time.sleep(0.3)
        cpu = cpu_of(self.daemon.pid) + cpu_of_children() - before
        wire = sum(
            int(line.split(": ")[1].replace(",", ""))
            for line in told.splitlines()
            if line.startswith(("Total bytes sent", "Total bytes received"))
        )
        return {"seconds": seconds, "cpu": cpu, "wire": wire}

    def stop(self) -> None:
        self.daemon.terminate()
        self.daemon.wait()


def blocksync_fast(program: str, folder: Path, source: Path, target: Path) -> Result:
    """Digest of the stale copy, delta of the source against it, applied at once."""
    digest = folder / "stale.digest"
    digest.unlink(missing_ok=True)
    before, began = cpu_of_children(), time.perf_counter()
    subprocess.run([program, "--make-digest", "-s", str(target), "-f", str(digest)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    wire = digest.stat().st_size
    delta = subprocess.Popen([program, "--make-delta", "-s", str(source), "-f", str(digest)],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    apply = subprocess.Popen([program, "--apply-delta", "-d", str(target)], stdin=subprocess.PIPE,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    assert delta.stdout is not None
    assert apply.stdin is not None
    while count := os.splice(delta.stdout.fileno(), apply.stdin.fileno(), MIB):
        wire += count
    apply.stdin.close()
    if delta.wait() or apply.wait():
        raise RuntimeError("blocksync-fast failed")
    return {"seconds": time.perf_counter() - began, "cpu": cpu_of_children() - before, "wire": wire}


def bdsync(program: str, source: Path, target: Path) -> Result:
    before, began = cpu_of_children(), time.perf_counter()
    delta = subprocess.Popen([program, "--hash=md5", f"{program} --server", str(source), str(target)],
                             stdout=subprocess.PIPE)  # fmt: skip
    subprocess.run([program, "--patch"], stdin=delta.stdout, check=True, stdout=subprocess.DEVNULL)
    delta.wait()
    return {"seconds": time.perf_counter() - began, "cpu": cpu_of_children() - before}


# --- ours ------------------------------------------------------------------------------------------------------------


async def _resync(pair: AgentPair) -> Result:
    """Order a resync; seconds to the commit, and of the merge behind it."""
    network = RealNetwork()
    sockets = {role: Address(unix_path=str(path)) for role, path in pair.sockets.items()}
    clients = {role: await JsonRpcClient.connect(network, address, 10) for role, address in sockets.items()}

    async def status(role: str) -> dict[str, Any]:
        vm: dict[str, Any] = (await clients[role].call("status", {"vm": "demo"}))["vms"][0]
        return vm

    before = (await status("primary"))["epoch"]
    for agent in pair.agents.values():
        forget_peak(agent.pid)
    cpu = sum(cpu_of(agent.pid) for agent in pair.agents.values())
    began = time.time()
    await clients["primary"].call("vm.resume", {"vm": "demo", "resynchronize": True})
    deadline = began + WAIT_SECONDS
    while (vm := await status("primary"))["state"] != "Replicating" or vm["epoch"] in ("", before):
        if time.time() > deadline:
            raise RuntimeError(f"no commit: {json.dumps(vm)[:3000]}")
        await asyncio.sleep(POLL_SECONDS)
    events = (await clients["primary"].call("events", {"vm": "demo", "limit": 20}))["events"]
    committed = [event["time"] for event in events if event["event"] == EventId.BASELINE_COMMITTED][-1]
    cpu = sum(cpu_of(agent.pid) for agent in pair.agents.values()) - cpu
    committing = {role: peak_bytes(agent.pid) for role, agent in pair.agents.items()}
    epoch = vm["epoch"]
    while (other := await status("replica"))["newest_cut"] is None or other["progress"] or other["epoch"] != epoch:
        if time.time() > deadline:
            raise RuntimeError(f"no merge: {json.dumps(other)[:3000]}")
        await asyncio.sleep(POLL_SECONDS)
    result = {"seconds": committed - began, "cpu": cpu, "merge": time.time() - committed}
    for client in clients.values():
        client.close()
    result |= {f"{role} MiB": committing[role] / MIB for role in pair.agents}
    return result | {f"{role} MiB, merge": peak_bytes(agent.pid) / MIB for role, agent in pair.agents.items()}


def ours(pair: AgentPair) -> Result:
    result = asyncio.run(_resync(pair))
    events = json.loads(pair.run("events", "demo", "--role", "primary", "--json", "--limit", "50"))["events"]
    data = [event["data"] for event in events if event["event"] == EventId.RESYNC_COMPARED][-1]
    return result | {"compare": data["seconds"], "wire": data["bytes_wire"]}


# --- the run ---------------------------------------------------------------------------------------------------------


def bench(folder: Path, size: int, workloads: list[str], options: argparse.Namespace) -> None:
    pair = AgentPair(folder)
    disk, stale = folder / "disk.raw", folder / "store" / "stale.raw"
    make_image(disk, size)
    print(f"\n{size_text(size)} on {file_system(folder)}, {'cold' if options.cold else 'warm'}", flush=True)
    found = {name: shutil.which(name) for name in ("rsync", "blocksync-fast", "bdsync")}
    for name, program in found.items():
        if program is None:
            print(f"  {name} is not installed: left out")
    rsync = None
    try:
        pair.prepare(cuttable=False)
        pair.start("replica")
        pair.start("primary")
        pair.run("enable", "demo", "--disk", str(disk), "--replica", pair.address, "--interval", "1s")
        began = time.monotonic()
        pair.run("initial", "demo")
        pair.wait("the first copy", "primary", lambda vm: vm["state"] == "Replicating" and vm["newest_cut"])
        print(f"  initial replication {time.monotonic() - began:.1f} s", flush=True)
        (replica,) = [path for path in pair.storage.rglob("*.raw") if path != stale]
        if options.peers_too:
            shutil.copyfile(disk, stale)
            rsync = Rsync(folder, found["rsync"], stale) if found["rsync"] else None
        for workload in workloads:
            _measure(pair, folder, disk, stale, replica, size, workload, rsync, found, options)
    finally:
        if rsync is not None:
            rsync.stop()
        pair.stop()


def _measure(
    pair: AgentPair,
    folder: Path,
    disk: Path,
    stale: Path,
    replica: Path,
    size: int,
    workload: str,
    rsync: Rsync | None,
    found: dict[str, str | None],
    options: argparse.Namespace,
) -> None:
    """One workload: rounds of all runners, one after the other, each on a copy that is stale in the same places."""
    runners: dict[str, tuple[Callable[[], Result], bool]] = {"ours": (lambda: ours(pair), True)}
    if options.peers_too:
        if rsync is not None:
            runners["rsync"] = (lambda: rsync.run(disk), False)
            runners["rsync -B 65536"] = (lambda: rsync.run(disk, "-B", "65536"), False)
        fast, slow = found["blocksync-fast"], found["bdsync"]
        if fast:
            runners["blocksync-fast"] = (lambda: blocksync_fast(fast, folder, disk, stale), False)
        if slow:
            runners["bdsync"] = (lambda: bdsync(slow, disk, stale), False)
        runners["full copy, TLS"] = (lambda: {"seconds": full_copy(folder, disk, stale, size), "wire": size}, False)
    runners["limit"] = (lambda: hash_limit(disk, replica), False)
    results: dict[str, list[Result]] = {name: [] for name in runners}
    version, changed = 2, 0
    for _ in range(options.rounds):
        for name, (run, flips_source) in runners.items():
            if flips_source:
                version += 1
                changed = change(disk, size, workload, version)
            elif name != "limit":
                change(stale, size, workload, version + 1_000_000)
            files = [disk, replica if flips_source or name == "limit" else stale]
            (forget if options.cold else warm)(*files)
            result = run()
            results[name].append(result)
    middle = {
        name: {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    base, limit = middle["ours"]["seconds"], middle["limit"]["seconds"]
    print(f"  {workload} changed: {size_text(changed)} in {options.rounds} rounds, medians", flush=True)
    for name, result in middle.items():
        parts = [f"{result['seconds']:7.2f} s"]
        if "cpu" in result:
            parts.append(f"cpu {result['cpu']:6.2f} s")
        if name not in ("ours", "limit"):
            parts.append(f"{result['seconds'] / base:5.2f} x ours")
        if name == "ours":
            parts.append(f"compare {result['compare']:.2f} s = {limit / result['compare']:.0%} of the limit")
            parts.append(f"in all {limit / base:.0%}, merge {result['merge']:.2f} s")
            parts.append(
                f"RSS MiB {result['primary MiB']:.0f} and {result['replica MiB']:.0f}, "
                f"of the replica in its merge {result['replica MiB, merge']:.0f}"
            )
        if "wire" in result:
            more = f", {result['wire'] / changed:.4f} of the changed" if changed else ""
            parts.append(f"wire {result['wire'] / 1e6:.2f} MB ({result['wire'] / size:.4%} of the disk{more})")
        print(f"    {name:15} {'; '.join(parts)}", flush=True)


def bench_sparse(folder: Path, size: int) -> None:
    """Time and memory of both agents for a huge disk that is nearly all hole, with data at its ends and its middle."""
    pair, disk = AgentPair(folder), folder / "disk.raw"
    random = np.random.default_rng(3)
    with disk.open("wb") as file:
        file.truncate(size)
        for at in (0, size // 2, size - STRIPE):
            os.pwrite(file.fileno(), random.bytes(STRIPE), at)
    try:
        pair.prepare(cuttable=False)
        pair.start("replica")
        pair.start("primary")
        pair.run("enable", "demo", "--disk", str(disk), "--replica", pair.address, "--interval", "1s",
                 "--log-limit", "1GiB")  # fmt: skip
        began = time.monotonic()
        pair.run("initial", "demo")
        pair.wait("the first copy", "primary", lambda vm: vm["state"] == "Replicating" and vm["newest_cut"])
        print(f"\n{size_text(size)} sparse: initial replication {time.monotonic() - began:.1f} s", flush=True)
        result = ours(pair)
        print(
            f"  resync {result['seconds']:.2f} s, compare {result['compare']:.2f} s, wire {result['wire']:.0f} bytes, "
            f"RSS MiB {result['primary MiB']:.0f} and {result['replica MiB']:.0f}"
        )
    finally:
        pair.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/resync.py", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/var/tmp"))
    parser.add_argument(
        "--size", type=int, default=8192, help="MiB of the image; a quarter where all changes (default 8192)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="only these; may be repeated")
    parser.add_argument("--cold", action="store_true", help="take the files out of the page cache before each run")
    parser.add_argument("--no-peers", dest="peers_too", action="store_false")
    parser.add_argument("--peers", type=Path, help="a folder with the peers' programs")
    parser.add_argument("--sparse", type=int, metavar="GIB", help="only a sparse disk of so many GiB")
    options = parser.parse_args()
    if options.peers:
        os.environ["PATH"] = f"{options.peers}:{os.environ['PATH']}"
    folder = options.folder / f"vmreplica-bench-{os.getpid()}"
    if options.sparse:
        folder.mkdir()
        try:
            bench_sparse(folder, options.sparse << 30)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return 0
    chosen = options.workload or list(WORKLOADS)
    for part, size in ((chosen, options.size), (chosen, options.size // 4)):
        workloads = [each for each in part if (each in WHOLE) == (size != options.size)]
        if workloads:
            folder.mkdir()
            try:
                bench(folder, size * MIB, workloads, options)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
