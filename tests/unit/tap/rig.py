"""What tests of the tap share: a tap's configuration, changes, a model of the disks, and the log replayed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts, TapPorts
from protocol.bulk import LogRecord
from protocol.chain import body_of
from protocol.entries import EntryKind
from protocol.hrl import RecordKind, decode_entries
from protocol.position import Position
from shared.hrl_files import EndKind, log_file_sequence, scan_file
from shared.nbd.backend import CommandKind, Mutation
from shared.ports import FileSystem
from shared.ports.clock import RealClock
from shared.ports.file_system import RealFileSystem
from shared.ports.network import RealNetwork
from shared.ports.rng import SystemRandom
from shared.ports.workers import ThreadWorkers
from shared.tap_config import TapConfig, TapDisk

VM = "12345678-1234-5678-1234-567812345678"
EPOCH = bytes(range(16))
OTHER_EPOCH = bytes(range(16, 32))
KIB = 1 << 10
MIB = 1 << 20

WARM_MAX = 64 * MIB

Images = dict[int, bytearray]


def make_config(folder: str, sizes: Sequence[int], **options: object) -> TapConfig:
    """A tap of disks of these sizes, in ``folder``, with small log files."""
    fields: dict[str, object] = {
        "vm": VM,
        "name": "web",
        "disks": [
            TapDisk(
                index=index,
                uuid=f"{index + 1:032x}",
                path=f"{folder}/disk-{index}.raw",
                size=size,
                export=f"disk{index}",
            )
            for index, size in enumerate(sizes)
        ],
        "nbd_socket": f"{folder}/nbd.sock",
        "control_socket": f"{folder}/control.sock",
        "log_folder": f"{folder}/tap/log",
        "log_limit_bytes": 64 * MIB,
        "log_file_bytes": 4 * MIB,
        "interval_seconds": 3600.0,
    }
    return TapConfig(**{**fields, **options})  # type: ignore[arg-type]


def write(offset: int, data: bytes, *, fua: bool = False) -> Mutation:
    return Mutation(CommandKind.WRITE, offset, len(data), memoryview(data), fua, False, False)


def zeroes(offset: int, length: int, *, no_hole: bool = False, fast: bool = False) -> Mutation:
    return Mutation(CommandKind.ZEROES, offset, length, None, False, no_hole, fast)


def trim(offset: int, length: int) -> Mutation:
    return Mutation(CommandKind.TRIM, offset, length, None, False, False, False)


def apply(image: bytearray, mutation: Mutation) -> None:
    """Do to the model what a change does to the disk."""
    content = mutation.payload if mutation.payload is not None else bytes(mutation.length)
    image[mutation.offset : mutation.offset + mutation.length] = content


def copy(images: Images) -> dict[int, bytes]:
    return {index: bytes(image) for index, image in images.items()}


@dataclass(slots=True)
class Replayed:
    """The log, done to a copy of the images it began with: the images at each seal, and at its end."""

    images: Images
    cuts: dict[Position, dict[int, bytes]] = field(default_factory=dict)
    end: Position | None = None
    entries: int = 0


def replay(files: FileSystem, config: TapConfig, epoch: bytes, base: dict[int, bytes]) -> Replayed:
    """Verify and replay all the log there is. Raises AssertionError where it is not whole."""
    result = Replayed({index: bytearray(image) for index, image in base.items()})
    sizes = {disk.index: disk.size for disk in config.disks}

    def visit(offset: int, record: LogRecord) -> None:
        header, body = record.header, body_of(record.record)
        if header.kind is RecordKind.SEAL:
            position = Position(header.epoch, header.segment, header.entry, header.chain)
            result.cuts[position] = copy(result.images)
        if header.kind is not RecordKind.BATCH:
            return
        at = header.count * 24
        for disk, kind, _, payload, start, length in decode_entries(header, body, sizes, at=offset).tolist():
            data = body[at : at + payload] if kind == EntryKind.DATA else bytes(length)
            at += payload
            result.images[disk][start : start + length] = data
            result.entries += 1

    cursor = None
    for name in files.list(config.log_folder):
        if log_file_sequence(name) is None:
            continue
        file = files.open(f"{config.log_folder}/{name}")
        try:
            header_epoch = scan_file(file, end=4096).cursor.epoch
            if header_epoch != epoch:
                continue
            scanned = scan_file(file, visit=visit)
            if cursor is not None:
                first = scan_file(file, end=4096).cursor
                assert first.position == cursor.position, f"{name} does not follow the file before"
            cursor = scanned.cursor
            assert scanned.kind in (EndKind.CLEAN, EndKind.END_OF_FILE), (name, scanned.kind, scanned.text)
        finally:
            file.close()
    result.end = cursor.position if cursor is not None else None
    return result


class WarmEngine(TapEngine):
    """A tap all of whose small disks are hot, so that no change waits: for tests of everything but that."""

    async def start(self) -> None:
        await super().start()
        await self._warm_all()

    async def begin(self, epoch: bytes) -> None:
        await super().begin(epoch)
        await self._warm_all()

    async def _warm_all(self) -> None:
        for disk in self.disks:
            if self._hot is not None and disk.size <= WARM_MAX:
                await self._hot.warm(disk, [zeroes(0, disk.size)])


# --- on real files -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Box:
    """A tap's folder on real files, with its disks."""

    folder: Path
    config: TapConfig
    ports: OwnPorts

    @property
    def tap_folder(self) -> str:
        return str(self.folder / "tap")

    def disk(self, index: int) -> Path:
        return Path(self.config.disks[index].path)

    def images(self) -> dict[int, bytes]:
        """What the disks hold."""
        return {disk.index: Path(disk.path).read_bytes() for disk in self.config.disks}

    def engine(self) -> TapEngine:
        """A tap that is not started."""
        return WarmEngine(self.tap_folder, self.config, self.ports)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[TapEngine]:
        """A tap that runs, and is stopped in order at the end."""
        engine = self.engine()
        await engine.start()
        yield engine
        await engine.stop()

    async def killed(self, engine: TapEngine) -> None:
        """End the engine as SIGKILL would: no more of its code runs, its files are closed."""
        await abandon(engine, self.ports)

    def replay(self, base: dict[int, bytes], epoch: bytes = EPOCH) -> Replayed:
        return replay(self.ports.files, self.config, epoch, base)


async def abandon(engine: TapEngine, ports: TapPorts) -> None:
    """Leave everything of an engine as it is, but close its files, so that their locks are free."""
    engine.intervals.end()
    start, tracker = engine._start, engine.tracker
    assert start is not None
    await engine.turns.settle()
    await tracker.sync.settle()
    for disk in engine.disks:
        disk.file.close()
    if tracker.log is not None:
        tracker.log.close()
    if tracker.maps.hot is not None:
        await tracker.maps.hot.settle()
    tracker.maps.close()
    tracker.files.close()
    start.state_file.close()
    start.lock.close()


@contextlib.asynccontextmanager
async def make_box(folder: Path, sizes: Sequence[int], **options: object) -> AsyncIterator[Box]:
    """A folder with random disks, nothing started."""
    config = make_config(str(folder), sizes, **options)
    (folder / "tap").mkdir(parents=True)
    for disk in config.disks:
        Path(disk.path).write_bytes(os.urandom(disk.size))
    workers = ThreadWorkers(4)
    yield Box(folder, config, OwnPorts(RealClock(), SystemRandom(), workers, RealFileSystem(), RealNetwork()))
    await workers.close()
