"""Disks in layers on simulated files: what is read, that an undo finds the disk as it was, settling, and crashes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from primary_agent.tap import layered, settling
from primary_agent.tap.disks import Disk
from primary_agent.tap.engine import TapEngine
from primary_agent.tap.ports import OwnPorts
from primary_agent.tap.settling import Settling
from primary_agent.tap.watch import Watch
from protocol.position import Position
from replica_agent.undo_writer import UndoWriter
from shared.errors import StorageError
from shared.nbd.backend import Mutation
from shared.overlay import Overlay, map_path
from shared.overlay_map import PAGE, Blocks, OverlayMap, _page
from shared.ports import Buffer
from shared.tap_config import TapConfig, TapLayer, TapOverlay
from shared.tap_control import LostReason, Tracking
from shared.undo_log import Link
from tests.unit.tap.life import epoch_of
from tests.unit.tap.rig import KIB, Images, apply, copy, make_config, trim, write, zeroes
from tests.unit.tap.world import World

pytestmark = pytest.mark.usefixtures("small_maps_of_taps")

SIZES = (96 * KIB, 40 * KIB + 512)
SECTOR = 512
IDENTITY = b"o" * 16
DIE_AT_MOST = 600


def position(number: int) -> Position:
    return Position(b"e" * 16, number, number, bytes([number]) * 16)


class Layers:
    """A VM that was failed over to a point from which two undo logs lead to what the disks hold."""

    def __init__(self, seed: int, *, logs: int = 2) -> None:
        self.rng = random.Random(seed)
        plain = make_config("/vm", SIZES, log_file_bytes=64 * KIB, log_limit_bytes=20 * 64 * KIB)
        self.world = World(plain, seed)
        self.plain = plain
        self.base = self.world.images()
        self.world.volume.folders.add("/vm/undo")
        point: Images = {index: bytearray(image) for index, image in self.base.items()}
        layers = [self._undo(number, point) for number in range(logs, 0, -1)][::-1]
        self.point = copy(point)
        self.model = point
        self.allowed: list[dict[int, bytes]] = []
        """What the disks held at any moment since the last flush: power loss may leave any of it, sector by sector."""
        disks = []
        for disk in plain.disks:
            path = f"/vm/tap/overlay-{disk.index}.raw"
            base = self.world.files.open(disk.path)
            Overlay.create(self.world.files, path, plain.vm_id, disk.geometry, IDENTITY, base.identity())
            disks.append(msgspec.structs.replace(disk, overlay=TapOverlay(path=path, id=IDENTITY.hex())))
        self.world.files.sync_folder("/vm/tap")
        self.times = {disk.index: self.world.volume.entries[disk.path].mtime_ns for disk in plain.disks}
        self.config = msgspec.structs.replace(plain, disks=disks, layers=layers)
        self.began = False
        """Whether tracking had begun: a kill before that leaves none, whatever the disks are."""
        self.lost: list[str] = []

    def _undo(self, number: int, point: Images) -> TapLayer:
        """A log that leads back from what ``point`` holds, which becomes what it leads to."""
        path = f"/vm/undo/{number}.undo"
        link = Link(position(number), position(number + 1))
        writer = UndoWriter(self.world.files, path, self.plain.vm_id, link, reserve=0)
        for index, image in sorted(point.items()):
            at = 0
            while at < len(image):
                length = min(SECTOR * self.rng.randrange(1, 30), len(image) - at)
                kind = self.rng.random()
                if kind < 0.4:
                    old = self.rng.randbytes(length)
                    writer.room(index, at, length)[:] = old
                    image[at : at + length] = old
                elif kind < 0.5:
                    writer.hole(index, at, length)
                    image[at : at + length] = bytes(length)
                at += length
        sealed = writer.finish()
        return TapLayer(path=path, length=sealed.length, chain=sealed.chain.hex())

    # --- lives -----------------------------------------------------------------------------------------------------

    async def start(self, ports: OwnPorts, config: TapConfig | None = None) -> TapEngine:
        tap = TapEngine(self.world.folder, config or self.config, ports)
        await tap.start()
        loss = tap.tracker.loss
        if self.began and tap.tracker.tracking is Tracking.LOST and loss is not None:
            # Power loss may tear a log of such small files in the middle, whatever the disks are.
            self.lost += [loss.text] if loss.reason is not LostReason.LOG_DAMAGED else []
        return tap

    async def change(self, tap: TapEngine, count: int, pause: float = 0.0) -> None:
        for _ in range(count):
            index = self.rng.randrange(len(SIZES))
            batch = self._batch(SIZES[index])
            for mutation in batch:
                apply(self.model[index], mutation)
            self.allowed.append(copy(self.model))
            done = tap.mutate(tap.disks[index], batch)
            if done is not None:
                await done
            assert [mutation.error for mutation in batch] == [0] * len(batch)
            if self.rng.random() < 0.3:
                flushed = copy(self.model)
                for disk in tap.disks:
                    assert await tap.flush(disk) == 0
                self.allowed = [flushed]
            if pause:
                await asyncio.sleep(self.rng.uniform(0, pause))

    def _batch(self, size: int) -> list[Mutation]:
        rng = self.rng
        offset = SECTOR * rng.randrange(size // SECTOR)
        length = min(SECTOR * rng.choice((1, 1, 8, 8, 24, 60)), size - offset)
        match rng.randrange(8):
            case 0:
                return [zeroes(offset, length, no_hole=rng.random() < 0.5)]
            case 1:
                return [trim(offset, length)]
            case _:
                return [write(offset, rng.randbytes(length))]

    async def check(self, tap: TapEngine) -> None:
        """What is served is the model: read whole, in pieces, and by its extents."""
        for disk in tap.disks:
            image = bytes(self.model[disk.index])
            assert await tap.read(disk, 0, disk.size) == image
            at = 0
            while at < disk.size:
                length = min(SECTOR * self.rng.randrange(1, 40), disk.size - at)
                cached = tap.read_cached(disk, at, length)
                assert cached in (None, image[at : at + length])
                assert await tap.read(disk, at, length) == image[at : at + length]
                at += length
            for extent in disk.file.extents(0, disk.size):
                part = image[extent.offset : extent.offset + extent.length]
                assert not extent.hole or part == bytes(extent.length)

    async def adopt(self, tap: TapEngine) -> None:
        """After a crash: every sector is something that it held since the last flush, and from now on it is that."""
        for disk in tap.disks:
            found = await tap.read(disk, 0, disk.size)
            for at in range(0, disk.size, SECTOR):
                sector = found[at : at + SECTOR]
                assert any(image[disk.index][at : at + SECTOR] == sector for image in self.allowed), (
                    f"I6: disk {disk.index} at {at} is something that it never was"
                )
            self.model[disk.index][:] = found
        self.allowed = [copy(self.model)]

    def check_untouched(self) -> None:
        """What an undo goes back to: content, and the times by which a foreign change would be noticed."""
        assert self.world.images() == self.base
        assert {d.index: self.world.volume.entries[d.path].mtime_ns for d in self.plain.disks} == self.times

    async def guest(self, ports: OwnPorts) -> None:
        """A life before the commit."""
        self.allowed = [copy(self.model)]
        tap = await self.start(ports)
        await tap.begin(epoch_of(1))
        self.began = True
        await self.change(tap, 30)
        await self.check(tap)
        self.check_untouched()
        await tap.stop()

    async def committed(self, ports: OwnPorts) -> None:
        """Some writes, then a commit that settles while others are made."""
        self.allowed = [copy(self.model)]
        tap = await self.start(ports)
        await tap.begin(epoch_of(1))
        self.began = True
        await self.change(tap, 10)
        await self.settle(tap, ports)
        await self.check(tap)
        await tap.stop()

    async def settle(self, tap: TapEngine, ports: OwnPorts) -> None:
        work = Settling(tap, ports)
        assert tap.disks and (work.status() is not None or all(disk.layers is None for disk in tap.disks))
        work.begin()
        await self.change(tap, 12, pause=0.004)
        while work.status() is not None:
            await asyncio.sleep(0.01)
            await self.change(tap, 1)
        assert all(disk.layers is None for disk in tap.disks)
        await self.change(tap, 3)
        await work.end()

    def run(self, main: Callable[[OwnPorts], Coroutine[Any, Any, Any]], die_at: int | None = None) -> bool:
        return self.world.run(main, die_at=die_at)


def test_reads_and_writes_through_layers() -> None:
    """I1, I6: the chosen point and what was written since; the disk below is never written."""
    for seed in range(6):
        layers = Layers(seed, logs=seed % 3)
        assert layers.run(layers.guest)
        layers.check_untouched()

        async def again(ports: OwnPorts, layers: Layers = layers) -> None:
            tap = await layers.start(ports)
            assert tap.tracker.tracking is Tracking.ON
            await layers.check(tap)
            await tap.stop()

        assert layers.run(again)
        layers.world.lose_power()
        assert layers.run(again)
        assert layers.lost == []
        layers.check_untouched()
        layers.world.close()


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power loss"])
def test_crash_before_the_commit(power: bool) -> None:
    """I4, I6: whatever was flushed is there, nothing is what it never was, and the failover can still be undone."""
    for die_at in range(3, DIE_AT_MOST, 29):
        layers = Layers(die_at, logs=die_at % 3)
        lived = layers.run(layers.guest, die_at)
        if power:
            layers.world.lose_power()

        async def again(ports: OwnPorts, layers: Layers = layers, lived: bool = lived) -> None:
            tap = await layers.start(ports)
            if lived:
                await layers.check(tap)
            await layers.adopt(tap)
            await layers.change(tap, 6)
            await layers.check(tap)
            await tap.stop()

        assert layers.run(again)
        layers.check_untouched()
        assert layers.lost == []
        layers.world.close()


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power loss"])
def test_crash_while_a_commit_settles(monkeypatch: pytest.MonkeyPatch, power: bool) -> None:
    """I4, I6: at every instant the guest reads what it wrote, and in the end the plain disk has it, tracked as ever."""
    monkeypatch.setattr(layered, "WINDOW", 8 * KIB)
    monkeypatch.setattr(layered, "GAP", KIB)
    monkeypatch.setattr(settling, "RETRY_SECONDS", 0.1)
    for die_at in range(150, 5 * DIE_AT_MOST, 97):
        layers = Layers(die_at, logs=die_at % 3)
        layers.world.latency = 0.0005
        lived = layers.run(layers.committed, die_at)
        if power:
            layers.world.lose_power()

        async def again(ports: OwnPorts, layers: Layers = layers) -> None:
            tap = await layers.start(ports)
            await layers.adopt(tap)
            await layers.settle(tap, ports)
            await layers.check(tap)
            layers.world.process.kill()

        layers.run(again)

        async def plain(ports: OwnPorts, layers: Layers = layers) -> None:
            tap = await layers.start(ports, layers.plain)
            await layers.check(tap)
            await tap.stop()

        assert layers.run(plain)
        assert layers.world.images() == copy(layers.model)
        assert layers.lost == []
        layers.world.close()
        if lived:
            break
    else:
        raise AssertionError("no life was long enough to end by itself")


def test_change_during_a_copy_is_not_overwritten_by_it() -> None:
    """R5: the copy has read a block, the guest writes it, and only then the copy arrives below."""
    layers = Layers(11)

    async def life(ports: OwnPorts) -> None:
        tap = await layers.start(ports)
        disk = tap.disks[0]
        file = disk.layers
        assert file is not None
        write_below, late = file.base.write, [write(4 * KIB + SECTOR, b"guest" + bytes(507)), zeroes(16 * KIB, 8 * KIB)]

        def arrive(offset: int, data: Buffer) -> None:
            while late:
                mutation = late.pop()
                apply(layers.model[0], mutation)
                assert tap.mutate(disk, [mutation]) is None
            write_below(offset, data)

        file.commit()
        file.mirror()
        monkey = pytest.MonkeyPatch()
        monkey.setattr(file.base, "write", arrive)
        file.open_window([(0, disk.size)])
        file.copy([(0, disk.size)])
        monkey.undo()
        file.close_window()
        assert file.base.read(0, disk.size) == layers.model[0]
        await tap.stop()

    assert layers.run(life)
    layers.world.close()


def test_what_was_flushed_while_the_copy_was_synced_survives_power_loss() -> None:
    """I4: once a disk counts as settled, only it is read, so that all of it has to be durable."""
    layers = Layers(12)

    async def life(ports: OwnPorts) -> None:
        tap = await layers.start(ports)
        for disk in tap.disks:
            file = disk.layers
            assert file is not None
            file.commit()
            file.mirror()
            for window in file.unsettled():
                file.copy(window)
            file.base.sync()
            await layers.change(tap, 8)
            for other in tap.disks:
                await tap.flush(other)
            disk.unlay(*file.settle())
        layers.allowed = [copy(layers.model)]
        layers.world.process.kill()

    layers.run(life)
    layers.world.lose_power()
    assert layers.world.images() == copy(layers.model)
    layers.world.close()


def test_kill_between_settled_and_the_witness_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """R27: the disk has other times from one moment to the next, and nobody else gave it them."""
    layers = Layers(13)
    renamed = set()
    saw_through = Watch.saw_through

    def die(watch: Watch, disk: Disk, time_ns: int) -> None:
        if disk.renamed is not None and layers.world.process.die_at is None:
            renamed.add(disk.renamed)
            layers.world.process.kill()
        saw_through(watch, disk, time_ns)

    async def life(ports: OwnPorts) -> None:
        layers.allowed = [copy(layers.model)]
        tap = await layers.start(ports)
        await tap.begin(epoch_of(1))
        layers.began = True
        await layers.change(tap, 10)
        # Nobody writes while it settles: a write would give both files the same time.
        await asyncio.sleep(1)
        work = Settling(tap, ports)
        work.begin()
        while work.status() is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def again(ports: OwnPorts) -> None:
        tap = await layers.start(ports)
        assert tap.disks[0].renamed is not None
        assert tap.tracker.tracking is Tracking.ON
        await layers.check(tap)
        await tap.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "saw_through", die)
        layers.run(life)
    assert all(told != base for told, base in renamed) and len(renamed) == 1
    assert layers.run(again)
    assert layers.lost == []
    layers.world.close()


def test_map_after_power_loss_is_what_it_was() -> None:
    """I4: a page that was being written is torn; what was durable before it is still there."""
    torn = 0
    for seed in range(40):
        layers = Layers(seed, logs=0)
        path = map_path("/vm/tap/overlay-0.raw")

        def opened(layers: Layers = layers, path: str = path) -> OverlayMap:
            config = layers.config
            return OverlayMap.open(layers.world.files, path, config.vm_id, config.disks[0].geometry, IDENTITY)

        blocks, states = Blocks(), []
        found = opened()
        for number in (3, 17, 5):
            page = blocks.missing(number, number + 1)
            blocks.take(page)
            found.put(page)
            states.append(bytes(blocks.pages[0]))
            if number != 5:
                found.sync()
        layers.world.lose_power()
        again = opened()
        content = bytes(again.load()[0])
        assert content in states[1:]
        image = layers.world.volume.entries[path].image()
        slots = {number: image[number * PAGE : (number + 1) * PAGE] for number in (3, 4)}
        torn += any(slot not in (_page(number, slot[:-8]), bytes(PAGE)) for number, slot in slots.items())
        # And what is written next does not go over the only one that is sound.
        again.put(blocks.missing(9, 9))
        layers.world.lose_power()
        assert bytes(opened().load()[0]) in (content, blocks.missing(9, 9)[0][1])
        layers.world.close()
    assert torn


def test_kill_and_then_power_loss() -> None:
    """I4: what a killed tap had not brought to its map is flushed by the next one."""
    layers = Layers(14)

    async def killed(ports: OwnPorts) -> None:
        tap = await layers.start(ports)
        await layers.change(tap, 1)
        layers.model[0][: 4 * KIB] = b"k" * 4 * KIB
        tap.mutate(tap.disks[0], [write(0, b"k" * 4 * KIB)])
        layers.world.process.kill()

    async def flushed(ports: OwnPorts) -> None:
        tap = await layers.start(ports)
        for disk in tap.disks:
            assert await tap.flush(disk) == 0
        layers.world.process.kill()

    async def again(ports: OwnPorts) -> None:
        tap = await layers.start(ports)
        await layers.check(tap)
        await tap.stop()

    layers.run(killed)
    layers.run(flushed)
    layers.world.lose_power()
    assert layers.run(again)
    layers.check_untouched()
    layers.world.close()


def test_what_lies_below_changed_behind_our_back() -> None:
    """I10: the disk below of a failover that can be undone was written while no tap held it."""
    layers = Layers(5)
    assert layers.run(layers.guest)
    file = layers.world.files.open(layers.plain.disks[0].path, write=True)
    file.write(0, b"foreign!" * 64)

    async def again(ports: OwnPorts) -> None:
        tap = await layers.start(ports)
        assert tap.tracker.tracking is Tracking.LOST
        assert tap.tracker.loss is not None
        assert "disk-0.raw" in tap.tracker.loss.text
        await tap.stop()

    assert layers.run(again)
    layers.world.close()


@pytest.mark.parametrize("victim", ["overlay-0.raw", "overlay-1.raw.map", "1.undo"])
def test_missing_or_foreign_layer_is_refused(victim: str) -> None:
    """I1: rather nothing than a disk without what the guest wrote, or without a part of its point."""
    layers = Layers(6)
    assert layers.run(layers.guest)
    folder = "/vm/undo" if victim.endswith(".undo") else "/vm/tap"
    entry = layers.world.volume.entries[f"{folder}/{victim}"]
    if victim.endswith(".map"):
        entry.data[:8] = b"nonsense"
    else:
        layers.world.files.remove(f"{folder}/{victim}")

    async def again(ports: OwnPorts) -> None:
        with pytest.raises(StorageError, match=victim):
            await layers.start(ports)

    assert layers.run(again)
    layers.check_untouched()
    layers.world.close()
