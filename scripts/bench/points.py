"""Measures what older recovery points cost: a replica applying with 24 hourly points kept, and without any.

The same log is received into a replica's spool and then applied, cut by cut, with the real disk files, undo logs,
state and syncs of the replica agent, in turn without history and with 24 hourly points before it and 4 newest cuts
kept. Timed is each apply up to its point, with the merges of undo logs that run beside it. Absolute figures move from
run to run: ratios count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import time
from pathlib import Path

from protocol.bulk import Bulk
from protocol.entries import EntryKind, encode_entry
from protocol.hrl import (
    Geometry,
    RecordKind,
    Seal,
    SealReason,
    chain_seed,
    encode_record,
    encode_seal_body,
    encode_segment_body,
)
from protocol.messages import MessageType
from protocol.position import Position
from replica_agent.creating import create_vm
from replica_agent.finishing import finish
from replica_agent.parts import Surroundings, VmParts, assemble
from replica_agent.record import DiskRecord, PositionRecord, VmRecord
from replica_agent.retention import HOUR, Retention
from replica_agent.thinner import Thinner
from scripts.bench.tap import file_system
from shared.ports.real import RealPorts

VM = bytes(range(16))
EPOCH = bytes(range(16, 32))
DISK = Geometry(0, 2 << 30, bytes(16))
BATCH = 512 << 10
KEPT = Retention(newest=4, hourly=24, limit=1 << 40)
NONE = Retention(newest=1, hourly=0)


class Log:
    """Makes segments of random writes over the whole disk."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.rng = random.Random(1)
        self.data = memoryview(self.rng.randbytes(1 << 20))
        self.segment, self.entry, self.chain = 0, 0, chain_seed(VM, EPOCH)
        self.time_ns = int(1_700_000_000 // HOUR * HOUR * 1e9)

    def _record(self, kind: RecordKind, body: list[bytes], count: int = 0) -> bytes:
        header, self.chain = encode_record(kind, EPOCH, self.segment, self.entry, self.time_ns, self.chain, body, count)
        return header + b"".join(body)

    def cut(self, size: int, seconds: float) -> list[Bulk]:
        """A segment with so many bytes of writes, sealed so much later than the last one."""
        self.segment += 1
        first = self.entry
        records = [self._record(RecordKind.SEGMENT, [encode_segment_body([DISK])], 1)]
        for _ in range(size // BATCH):
            count = BATCH // self.block
            offsets = [self.block * self.rng.randrange(DISK.size // self.block) for _ in range(count)]
            table = b"".join(encode_entry(0, EntryKind.DATA, offset, self.block) for offset in offsets)
            start = 512 * self.rng.randrange(1024)
            records.append(self._record(RecordKind.BATCH, [table, bytes(self.data[start : start + BATCH])], count))
            self.entry += count
        self.time_ns += int(seconds * 1e9)
        seal = Seal(SealReason.INTERVAL, self.entry - first, sum(map(len, records)))
        sealed = self._record(RecordKind.SEAL, [encode_seal_body(seal)])
        frames = [Bulk(MessageType.LOG, record, False, len(record)) for record in records]
        return [*frames, Bulk(MessageType.SEAL, sealed, False, len(sealed))]


async def replica(real: RealPorts, folder: Path, rules: Retention, *, fill: bool) -> VmParts:
    """A replica of one disk, wholly written, at the start of an epoch."""
    ports = real.ports
    disks = [DiskRecord(index=0, uuid=DISK.uuid, size=DISK.size)]
    ledger = await create_vm(ports, str(folder), VmRecord(vm=VM, name="bench", disks=disks, created_time=0.0))
    parts = assemble(Surroundings(ports, "bench", str(folder), retention=rules, reserve=0), str(folder), ledger)
    if fill:
        with (folder / "disk-0.raw").open("r+b") as file:
            block = os.urandom(8 << 20)
            for _ in range(0, DISK.size, len(block)):
                file.write(block)
    start = Position(EPOCH, 0, 0, chain_seed(VM, EPOCH))
    async with ledger.transaction() as draft:
        draft.replication.epoch = EPOCH
        draft.replication.applied = PositionRecord.of(start)
        draft.replication.applied_time = 1_700_000_000 // HOUR * HOUR
    await finish(ports.workers.run(parts.disks.open))
    parts.applier.spool = parts.spool_from(start)
    return parts


async def apply(parts: VmParts, frames: list[Bulk]) -> float:
    """Receive the frames, apply them, and merge what is to be merged; the seconds that applying took."""
    spool, run = parts.applier.spool, parts.ports.workers.run
    assert spool is not None
    for frame in frames:
        await finish(run(spool.take, frame))
    began = time.perf_counter()
    parts.applier.changed.notify()
    await parts.applier.caught_up()
    return time.perf_counter() - began


async def measure(folder: Path, options: argparse.Namespace, rules: Retention, block: int) -> float:
    """MB of log applied in a second."""
    real = RealPorts(None, threads=8)
    parts = await replica(real, folder, rules, fill=True)
    log, applier, thinner = Log(block), parts.applier, Thinner(parts.history)
    worker = asyncio.ensure_future(applier.run())

    async def thin() -> None:
        while True:
            await applier.changed.wait()
            await thinner.run()

    thinning = asyncio.ensure_future(thin())
    if rules.keeps_older:
        for _ in range(25):
            await apply(parts, log.cut(BATCH, HOUR))
        assert sum(point.point for point in parts.ledger.points.logs) >= 23
    seconds = 0.0
    for _ in range(options.cuts):
        frames = log.cut(options.cut_bytes << 20, 30.0)
        seconds += await apply(parts, frames)
    for task in (worker, thinning):
        task.cancel()
    await asyncio.gather(worker, thinning, return_exceptions=True)
    parts.disks.close()
    await parts.ledger.store.close()
    await real.close()
    shutil.rmtree(folder)
    applied: int = options.cuts * (options.cut_bytes << 20)
    return applied / seconds / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench/points.py", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--rounds", type=int, default=3, help="of each kind in turn (default 3)")
    parser.add_argument("--cuts", type=int, default=20, help="in each round (default 20)")
    parser.add_argument("--cut-bytes", type=int, default=32, help="writes of a cut in MiB (default 32)")
    options = parser.parse_args()
    folder = options.folder / f"vmreplica-bench-{os.getpid()}"
    folder.mkdir()
    print(f"{folder} ({file_system(folder)}), {options.rounds} rounds in turn, {options.cuts} cuts of random writes")
    try:
        for block in (4096, 65536):
            rates: dict[bool, list[float]] = {True: [], False: []}
            for number in range(options.rounds):
                for kept in (True, False):
                    place = folder / f"{number}-{kept}"
                    rates[kept].append(asyncio.run(measure(place, options, KEPT if kept else NONE, block)))
            ratios = [one / other for one, other in zip(rates[True], rates[False], strict=True)]
            print(
                f"  {block >> 10:3} KiB writes: with 24 hourly points {statistics.median(rates[True]):6.0f} MB/s, "
                f"without {statistics.median(rates[False]):6.0f}; ratio {statistics.median(ratios):.2f} "
                f"(rounds: {' '.join(f'{ratio:.2f}' for ratio in ratios)})",
                flush=True,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
