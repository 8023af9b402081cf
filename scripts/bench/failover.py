"""Measures a failover from the order to the first byte served: one sparse disk, 24 hourly points, any of them.

The replica's real disk file, undo logs, state and tap process are used; each cut writes at random places of the whole
disk. Timed are the order (its answer comes when the tap serves) and a read of one byte by a client of its own. Each is
undone, which is timed as well, and the last one is committed, which is timed until all has settled. The processor time
of the tap's start, from its exec until it serves, is told beside the waits, of which it is most: it depends less on
what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from protocol.hrl import Geometry, chain_seed
from protocol.position import Position
from replica_agent.creating import create_vm
from replica_agent.finishing import finish
from replica_agent.parts import Surroundings
from replica_agent.record import DiskRecord, PositionRecord, VmRecord
from replica_agent.retention import HOUR, Retention
from replica_agent.vm import ReplicaVm
from scripts.bench import points
from scripts.bench.points import EPOCH, VM, Log
from scripts.bench.processes import cpu_of
from scripts.bench.tap import file_system
from shared.ports.real import RealPorts
from shared.states import ReplicaEvent

POINTS = 24
RULES = Retention(newest=1, hourly=POINTS, limit=1 << 50)


async def read_byte(uri: str) -> None:
    """What a client does that comes now: connect, and read."""
    reading = await asyncio.create_subprocess_exec(
        "qemu-io", "-r", "-f", "raw", "-c", "read 0 512", uri, stdout=subprocess.DEVNULL
    )
    if await reading.wait():
        raise SystemExit("the promoted disk can't be read")


async def prepared(real: RealPorts, folder: Path, sockets: str, disk: Geometry, cut_bytes: int) -> ReplicaVm:
    """A replica with its points, as it is between two cuts."""
    record = VmRecord(
        vm=VM, name="bench", disks=[DiskRecord(index=0, uuid=disk.uuid, size=disk.size)], created_time=0.0
    )
    ledger = await create_vm(real.ports, str(folder), record)
    start = Position(EPOCH, 0, 0, chain_seed(VM, EPOCH))
    async with ledger.transaction() as draft:
        for event in (ReplicaEvent.INITIAL_STARTED, ReplicaEvent.INITIAL_COMPLETED):
            draft.step(event)
        draft.replication.epoch = EPOCH
        draft.replication.applied = PositionRecord.of(start)
        draft.replication.applied_time = 1_700_000_000 // HOUR * HOUR
    vm = ReplicaVm(Surroundings(real.ports, "bench", sockets, retention=RULES, reserve=0), str(folder), ledger)
    await vm.start()
    spool, log = vm.parts.applier.spool, Log(4096)
    assert spool is not None
    for _ in range(POINTS + 1):
        for frame in log.cut(cut_bytes, HOUR):
            await finish(real.ports.workers.run(spool.take, frame))
        vm.parts.applier.changed.notify()
        await vm.parts.applier.caught_up()
    return vm


async def measure(folder: Path, sockets: str, disk: Geometry, cut_bytes: int, *, commit: bool) -> None:
    real = RealPorts(None, threads=8)
    vm = await prepared(real, folder, sockets, disk, cut_bytes)
    positions = vm.parts.history.positions()
    undo = sum(log.length for log in vm.ledger.points.logs)
    print(f"  {len(positions)} older points, undo logs of {undo >> 20} MiB", flush=True)
    for name, point in (("newest", None), ("oldest", positions[0]), ("newest", None)):
        undone = asyncio.Event()
        vm.on_undone = lambda _vm, undone=undone: undone.set()
        began = time.perf_counter()
        await vm.failover(point)
        served = time.perf_counter() - began
        tap = vm.promotion.tap
        if tap is None or tap.status is None or not tap.uris:
            raise SystemExit(f"the promoted disk is not served: {tap.error if tap is not None else 'no tap'}")
        used = cpu_of(tap.status.pid)
        await read_byte(tap.uris[0])
        first = time.perf_counter() - began
        print(f"  {name} point: served after {served:.2f} s, first byte after {first:.2f} s; the tap used {used:.2f} s")
        began = time.perf_counter()
        await vm.undo_failover()
        await undone.wait()
        await vm.end()
        vm = ReplicaVm(vm.parts.surroundings, str(folder), vm.ledger)
        await vm.start()
        print(f"    undone after {time.perf_counter() - began:.2f} s", flush=True)
    if commit:
        await vm.failover(positions[0])
        began = time.perf_counter()
        await vm.promotion.commit()
        while vm.ledger.promotion is not None and vm.ledger.promotion.layered:
            await vm.parts.changed.wait()
        print(f"  oldest point committed: settled after {time.perf_counter() - began:.2f} s", flush=True)
    else:
        # What a VM's start began has to have run before it is ended.
        await asyncio.sleep(0)
    tap = vm.promotion.tap
    await vm.end()
    if tap is not None:
        await tap.stop_tap()
    await vm.ledger.store.close()
    await real.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/failover.py", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/var/tmp"), help="on the volume to measure")
    parser.add_argument("--size", type=int, default=1024, help="of the disk in GiB (default 1024)")
    parser.add_argument("--cut-bytes", type=int, default=16, help="writes of each cut in MiB (default 16)")
    parser.add_argument("--no-commit", action="store_true", help="leave out the last commit and its settling")
    options = parser.parse_args()
    folder = options.folder / f"vmreplica-bench-{os.getpid()}"
    disk = Geometry(0, options.size << 30, bytes(16))
    points.DISK = disk
    folder.mkdir()
    # As on an installed host, where all is compiled: the first start of a tap must not do that for itself.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-c", "import primary_agent.tap.program"], check=True)
    print(f"{folder} ({file_system(folder)}), a sparse disk of {options.size} GiB")
    try:
        with tempfile.TemporaryDirectory(prefix="vmr-") as sockets:
            asyncio.run(measure(folder / "vm", sockets, disk, options.cut_bytes << 20, commit=not options.no_commit))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
