"""Measures what a guest keeps of its operations a second while its VM is resynchronized, without and with back-off.

Two real agents replicate a disk of random bytes over TLS; fio (its NBD engine) is the guest at the tap. In each round
the tap's own counters are read over some seconds without a resync, and then over the compare of a resync: first with
back-off off, then the same with it on. What the compare did in that time is reported beside it. The agents and the tap
have sessions of their own, as services have. Both ends share this machine's cores: absolute figures move on a busy
machine, ratios count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.agent_pair import AgentPair
from scripts.bench.tap import file_system, make_disk
from shared.admin.client import JsonRpcClient
from shared.ports import Address
from shared.ports.network import RealNetwork
from shared.rates import size_text
from shared.tap_control import GuestLatency, TapClient

MIB = 1 << 20
GOAL = 0.7
POLL_SECONDS = 0.05
WAIT_SECONDS = 600.0
CALM_SECONDS = 4.0
"""After a resync and its merge: the log that was held back is sent."""


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of guest, as fio's options."""

    name: str
    options: tuple[str, ...]


LOADS = {
    "reads": Load("4 KiB random reads, qd 8", ("--rw=randread", "--bs=4k", "--iodepth=8")),
    "mixed": Load("4 KiB random, 70 % reads, qd 4", ("--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=4")),
    "direct": Load(
        "4 KiB random writes, qd 1, flush after 8", ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=8")
    ),
}


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in some time: operations of the guest a second, their mean latency in the tap in seconds, and bytes
    compared a second.
    """

    iops: float
    latency: float
    speed: float
    seconds: float


class Watch:
    """The tap's counters and the primary's progress."""

    def __init__(self, pair: AgentPair) -> None:
        self.pair = pair

    async def __aenter__(self) -> Watch:
        network = RealNetwork()
        self.agent = await JsonRpcClient.connect(network, Address(unix_path=str(self.pair.sockets["primary"])), 10)
        (control,) = (self.pair.folder / "run-primary").rglob("*control*.sock")
        self.tap = await TapClient.connect(network, str(control), timeout=10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.agent.close()
        self.tap.close()

    async def vm(self) -> dict[str, Any]:
        vm: dict[str, Any] = (await self.agent.call("status", {"vm": "demo"}))["vms"][0]
        return vm

    async def quiet(self, seconds: float) -> Window:
        """Without a resync."""
        began, first = time.monotonic(), await self.tap.latency(10)
        await asyncio.sleep(seconds)
        return _window(first, await self.tap.latency(10), time.monotonic() - began, 0)

    async def resync(self, *, back_off: bool, most: float) -> Window:
        """From the compare's begin to its end, or for so many seconds; the rest is then compared without limit."""
        await self.agent.call("vm.set", {"vm": "demo", "settings": {"resync_back_off": back_off}})
        epoch = (await self.vm())["epoch"]
        await self.agent.call("vm.resume", {"vm": "demo", "resynchronize": True})
        deadline = time.monotonic() + WAIT_SECONDS
        while not _comparing(vm := await self.vm()):
            _check(deadline, vm)
            await asyncio.sleep(POLL_SECONDS / 5)
        began, first, done = time.monotonic(), await self.tap.latency(10), vm["progress"]["done_bytes"]
        while True:
            await asyncio.sleep(POLL_SECONDS)
            vm, now, latency = await self.vm(), time.monotonic(), await self.tap.latency(10)
            if not _comparing(vm):
                break
            last = latency, now, vm["progress"]["done_bytes"]
            if now - began > most:
                break
        latency, now, through = last
        window = _window(first, latency, now - began, through - done)
        await self.agent.call("vm.set", {"vm": "demo", "settings": {"resync_back_off": False}})
        deadline = time.monotonic() + WAIT_SECONDS
        while (vm := await self.vm())["state"] != "Replicating" or vm["epoch"] == epoch or vm["progress"]:
            _check(deadline, vm)
            await asyncio.sleep(POLL_SECONDS)
        return window


def _check(deadline: float, vm: dict[str, Any]) -> None:
    if time.monotonic() > deadline:
        raise SystemExit(f"the resynchronization does not get on: {vm}")


def _comparing(vm: dict[str, Any]) -> bool:
    return vm["progress"] is not None and vm["progress"]["phase"] == "comparing"


def _window(first: GuestLatency, last: GuestLatency, seconds: float, compared: int) -> Window:
    count = sum(getattr(last, kind) - getattr(first, kind) for kind in ("reads", "writes", "flushes"))
    took = sum(
        getattr(last, kind) - getattr(first, kind) for kind in ("read_seconds", "write_seconds", "flush_seconds")
    )
    return Window(count / seconds, took / max(count, 1), compared / seconds, seconds)


async def rounds(pair: AgentPair, options: argparse.Namespace) -> dict[str, list[tuple[Window, Window]]]:
    """For each kind of resync what was seen without one, just before, and beside it."""
    found: dict[str, list[tuple[Window, Window]]] = {"back-off off": [], "back-off on": []}
    async with Watch(pair) as watch:
        for number in range(options.rounds):
            for name, windows in found.items():
                await asyncio.sleep(CALM_SECONDS)
                quiet = await watch.quiet(options.seconds)
                beside = await watch.resync(back_off=name == "back-off on", most=options.most)
                windows.append((quiet, beside))
                for what, each in (("no resync", quiet), (name, beside)):
                    print(
                        f"    round {number} {what:13} {each.iops:9,.0f} IOPS, {1000 * each.latency:7.3f} ms in the "
                        f"tap, {size_text(each.speed)}/s compared, over {each.seconds:.1f} s",
                        flush=True,
                    )
    return found


def show(found: dict[str, list[tuple[Window, Window]]]) -> bool:
    """Print medians, and the ratio of each round; whether the goal is reached."""
    good = True
    for name, pairs in found.items():
        ratios = [beside.iops / quiet.iops for quiet, beside in pairs]
        quiet, beside, speed = (
            statistics.median(each)
            for each in zip(*((quiet.iops, beside.iops, beside.speed) for quiet, beside in pairs), strict=True)
        )
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"    {name:13} {quiet:9,.0f} IOPS without, {beside:9,.0f} beside a resync at {size_text(speed)}/s; "
            f"ratio {statistics.median(ratios):.2f} ({each})"
        )
        good &= name != "back-off on" or statistics.median(ratios) >= GOAL
    return good


def measure(folder: Path, options: argparse.Namespace) -> bool:
    """All loads on one file system; whether the goal was reached in each."""
    size = options.size << 20
    print(f"\n{folder} ({file_system(folder)}), disk of {size_text(size)}, {options.rounds} rounds", flush=True)
    pair = AgentPair(folder, sessions=True)
    disk = folder / "disk.raw"
    make_disk(disk, size)
    good = True
    try:
        pair.prepare(cuttable=False)
        pair.start("replica")
        pair.start("primary")
        pair.run("enable", "demo", "--disk", str(disk), "--replica", pair.address, "--interval", "1s",
                 "--log-limit", f"{options.log_limit}MiB")  # fmt: skip
        pair.run("initial", "demo")
        vm = pair.wait("the first copy", "primary", lambda vm: vm["state"] == "Replicating" and vm["newest_cut"])
        for name in options.loads:
            load, uri = LOADS[name], vm["tap"]["uris"][0]
            print(f"  {load.name}", flush=True)
            guest = subprocess.Popen(
                ["fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--minimal", "--randrepeat=0",
                 "--time_based=1", "--runtime=100000", f"--rate_iops={options.rate_iops}", *load.options],
                stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                good &= show(asyncio.run(rounds(pair, options)))
            finally:
                guest.terminate()
                guest.wait()
    finally:
        pair.stop()
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/backoff.py", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--size", type=int, default=4096, help="of the disk in MiB (default 4096)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of a measurement without a resync (default 5)")
    parser.add_argument("--most", type=float, default=20, help="seconds of a compare that are measured (default 20)")
    parser.add_argument(
        "--log-limit", type=int, default=8192, help="MiB: what the guest writes meanwhile (default 8192)"
    )
    parser.add_argument("--rate-iops", type=int, default=0, help="what the guest asks for at most (default: no limit)")
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=["reads", "mixed"])
    options = parser.parse_args()
    folder = options.folder / f"vmreplica-bench-{os.getpid()}"
    folder.mkdir()
    try:
        good = measure(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
