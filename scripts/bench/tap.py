"""Measures the tap with its log against nbdkit's file plugin without one, in turn, on the same file system.

Both serve a file of the same size to fio's NBD engine: 4 KiB random writes at queue depth 32, and 1 MiB sequential
writes at queue depth 8. While the tap is measured, a client in a process of its own cuts and releases, as an agent
does, so that log files are recycled. Absolute figures move from run to run on a busy machine: ratios count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import UnreachableError, VmreplicaError
from shared.ports.file_system import RealFileSystem
from shared.ports.network import RealNetwork
from shared.tap_config import TapConfig, TapDisk, save_config
from shared.tap_control import TapClient

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of fio job. ``goal`` is the least ratio to nbdkit that we want."""

    name: str
    options: tuple[str, ...]
    goal: float


LOADS = (
    Load("4 KiB random write, qd 32", ("--rw=randwrite", "--bs=4k", "--iodepth=32"), 1.0),
    Load("1 MiB sequential write, qd 8", ("--rw=write", "--bs=1m", "--iodepth=8"), 0.75),
)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one fio run; ``memory`` is the server's resident set afterwards, in bytes."""

    iops: float
    bytes_per_second: float
    p99_ms: float
    memory: int


def fio(uri: str, load: Load, seconds: float) -> tuple[float, float, float]:
    """Operations and bytes each second, and the 99th percentile of latency in ms."""
    command = [
        "fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", "--time_based=1",
        f"--runtime={seconds:g}", "--randrepeat=1", "--refill_buffers=0", *load.options,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"fio failed: {done.stderr or done.stdout}")
    write = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]
    return write["iops"], write["bw_bytes"], write["clat_ns"]["percentile"]["99.000000"] / 1e6


def resident(pid: int) -> int:
    """The resident set of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the server has made its socket."""
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} did not start")
        time.sleep(0.02)


@contextlib.contextmanager
def running(command: list[str], socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens on ``socket``; stopped in order at the end."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(socket, process)
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def nbdkit(folder: Path, size: int) -> Iterator[tuple[str, int]]:
    """URI and process id of nbdkit's file plugin."""
    disk, socket = folder / "nbdkit.raw", folder / "nbdkit.sock"
    make_disk(disk, size)
    with running(["nbdkit", "-f", "-U", str(socket), "file", str(disk)], socket) as process:
        yield f"nbd+unix:///?socket={socket}", process.pid
    disk.unlink()
    socket.unlink(missing_ok=True)


def make_disk(path: Path, size: int) -> None:
    """A written file: holes that are filled for the first time would measure the file system."""
    chunk = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def tap(folder: Path, size: int, options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """URI and process id of a tap on a written disk."""
    disk = folder / "tap.raw"
    make_disk(disk, size)
    profile = options.profile.split() if options.profile else []
    command = [*profile, sys.executable, "-m", "primary_agent.tap.main"]
    with tap_on(folder, disk, size, options.log_limit, command) as served:
        yield served
    disk.unlink()


@contextlib.contextmanager
def tap_on(folder: Path, disk: Path, size: int, log_limit: int, command: list[str]) -> Iterator[tuple[str, int]]:
    """URI and process id of ``command`` as the tap of a disk, with a client that releases every cut it hears of.

    ``log_limit`` in MiB.
    """
    home = folder / "tap"
    config = TapConfig(
        vm=str(uuid.uuid4()),
        name="bench",
        disks=[TapDisk(index=0, uuid=os.urandom(16).hex(), path=str(disk), size=size, export="disk")],
        nbd_socket=str(folder / "tap-nbd.sock"),
        control_socket=str(folder / "tap-control.sock"),
        log_folder=str(home / "log"),
        log_limit_bytes=log_limit << 20,
        interval_seconds=1,
    )
    save_config(RealFileSystem(), str(home), config)
    with running([*command, str(home)], Path(config.control_socket)) as process:
        agent = multiprocessing.get_context("spawn").Process(target=release_cuts, args=(config.control_socket,))
        agent.start()
        try:
            wait_for_tracking(config.control_socket)
            yield f"nbd+unix:///disk?socket={config.nbd_socket}", process.pid
            check_tracking(config.control_socket)
        finally:
            agent.terminate()
            agent.join()
    shutil.rmtree(home)


def release_cuts(control: str) -> None:
    """What an agent whose replica keeps up does to a tap: begin, cut when much was written, release (a process)."""

    async def follow() -> None:
        client = await TapClient.connect(
            RealNetwork(), control, timeout=START_SECONDS, on_notification=lambda _method, _params: None
        )
        await client.begin(os.urandom(16))
        status = await client.subscribe()
        released = status.bytes_written
        while True:
            status = await client.status()
            if status.bytes_written - released > status.log.limit // 8:
                released = status.bytes_written
                cut = await client.cut()
                await client.release(bytes.fromhex(cut.epoch), cut.segment)
            await asyncio.sleep(0.02)

    with contextlib.suppress(UnreachableError, KeyboardInterrupt):
        asyncio.run(follow())


def wait_for_tracking(control: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while tracking(control) != "on":
        if time.monotonic() > deadline:
            raise SystemExit("the tap does not track")
        time.sleep(0.05)


def check_tracking(control: str) -> None:
    """A tap that lost its log was measured without one."""
    state = tracking(control)
    if state != "on":
        raise SystemExit(f"the tap did not track to the end: {state}")


def tracking(control: str) -> str:
    async def ask() -> str:
        client = await TapClient.connect(RealNetwork(), control, timeout=START_SECONDS)
        status = await client.status()
        client.close()
        return f"{status.tracking.value}{f' ({status.lost.text})' if status.lost else ''}"

    return asyncio.run(ask())


def measure(folder: Path, options: argparse.Namespace) -> bool:
    """Run all loads on one file system; whether the goals were reached."""
    print(f"\n{folder} ({file_system(folder)}), disk of {options.size} MiB, {options.rounds} rounds in turn")
    size, good = options.size << 20, True
    for load in LOADS:
        results: dict[str, list[Result]] = {"nbdkit file": [], "tap with log": []}
        for _ in range(options.rounds):
            for name, server in (("nbdkit file", nbdkit(folder, size)), ("tap with log", tap(folder, size, options))):
                with server as (uri, pid):
                    # Memory and files that are used for the first time would be measured otherwise.
                    fio(uri, load, options.warm_up)
                    results[name].append(Result(*fio(uri, load, options.seconds), resident(pid)))
        good &= show(load, results)
    return good


def show(load: Load, results: dict[str, list[Result]]) -> bool:
    """Print medians and the ratio of each round; whether the median ratio reaches the goal."""
    print(f"  {load.name}")
    for name, runs in results.items():
        iops = statistics.median(run.iops for run in runs)
        speed = statistics.median(run.bytes_per_second for run in runs) / 1e9
        p99 = statistics.median(run.p99_ms for run in runs)
        memory = max(run.memory for run in runs) / 2**20
        print(f"    {name:13} {iops:9,.0f} IOPS {speed:6.2f} GB/s  p99 {p99:7.2f} ms  RSS {memory:5.0f} MiB")
    pairs = zip(results["tap with log"], results["nbdkit file"], strict=True)
    ratios = [mine.iops / theirs.iops for mine, theirs in pairs]
    median = statistics.median(ratios)
    each = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"    ratio {median:.2f} (goal {load.goal}; rounds: {each})")
    return median >= load.goal


def file_system(folder: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("/dev/shm"), Path("/var/tmp")])
    parser.add_argument("--seconds", type=float, default=4, help="of each fio run (default 4)")
    parser.add_argument("--warm-up", type=float, default=3, help="seconds before each fio run (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="of tap and nbdkit in turn (default 3)")
    parser.add_argument("--size", type=int, default=1024, help="of the disk in MiB (default 1024)")
    parser.add_argument("--log-limit", type=int, default=1024, help="of the tap's log in MiB (default 1024)")
    parser.add_argument("--profile", default="", help="put this command before the tap's, e.g. a profiler")
    options = parser.parse_args()
    missing = [name for name in ("fio", "nbdkit") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"not installed: {' '.join(missing)}")
    good = True
    for parent in options.folders:
        folder = parent / f"vmreplica-bench-{os.getpid()}"
        folder.mkdir()
        try:
            good &= measure(folder, options)
        except VmreplicaError as error:
            raise SystemExit(str(error)) from error
        finally:
            shutil.rmtree(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
