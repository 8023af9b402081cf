"""Tests of writable exports and test failovers, with real NBD clients and files, and agents that end in any way."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replica_agent.authorize import Authorization
from replica_agent.overlay_room import DISTANCE_BYTES
from replica_agent.record import ExportRecord, PositionRecord
from replica_agent.sessions import Sessions
from replica_agent.test_failover import begin_test, end_test
from replica_agent.vm_status import status_of
from replica_agent.writable import OverlayLostError, WritableDisk, create_overlay, open_overlay
from shared.config_sections import AuthorizeSection, ReplicaConfig
from shared.errors import InvalidStateError, NotFoundError
from shared.events import EventId
from shared.nbd.backend import CommandKind, Mutation
from shared.ports import Extent
from shared.ports.file_system import RealFileSystem
from shared.status import ExportStatus
from tests.unit.replica.logs import VM
from tests.unit.replica.rig import DISKS, World
from tests.unit.replica.test_exports import read_export, run
from tests.unit.replica.test_points import cuts, texts
from tests.unit.replica.test_sessions import replicating

needs_qemu = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed (qemu-utils)")
SIZE = (1 << 20) + 512
"""Of the disk below: its last block is a short one."""
RECORD = ExportRecord(
    id="0123abcd",
    position=PositionRecord(epoch=b"e" * 16, segment=3, entry=9, chain=b"c" * 16),
    time=None,
    disks=[],
    created_time=1.0,
    writable=True,
)


async def io(uri: str, *commands: str) -> str:
    code, output = await run("qemu-io", "-f", "raw", *(word for each in commands for word in ("-c", each)), uri)
    assert code == 0, output
    return output


class Point:
    """A point of random content, in the place of a PointReader."""

    def __init__(self, rng: random.Random) -> None:
        self.content = rng.randbytes(SIZE)
        self.failed = ""

    def read(self, disk: int, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    def read_cached(self, disk: int, offset: int, length: int) -> bytes | None:
        return self.read(disk, offset, length)

    def extents(self, disk: int, offset: int, length: int) -> list[Extent]:
        return [Extent(offset, length, False)]


async def anything(count: int) -> None:
    """There is room for all of it."""


class Bench:
    """One writable disk over a random point, and what it has to hold."""

    def __init__(self, world: World, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = world
        self.point: Any = Point(self.rng)
        self.truth = bytearray(self.point.content)
        self.agent, self.workers = world.build()
        self.ports = self.agent.ports
        self.raw = str(world.folder / "0123abcd-0.raw")
        self.disk = self.open(fresh=True)

    def open(self, *, fresh: bool = False) -> WritableDisk:
        make = create_overlay if fresh else open_overlay
        files = make(self.ports, self.raw, VM, RECORD, 0, SIZE)
        return WritableDisk(self.ports, self.point, 0, SIZE, "disk0", "", files, anything)

    def change(self, *, fua: float = 0.1) -> Mutation:
        """A random one, mostly not in whole blocks, with that chance of FUA; the truth follows it."""
        rng = self.rng
        kind = rng.choice([CommandKind.WRITE, CommandKind.WRITE, CommandKind.ZEROES, CommandKind.TRIM])
        offset = rng.randrange(SIZE // 512) * 512
        length = min(rng.choice([512, 1024, 4096, 12288, 65536]), SIZE - offset)
        payload = rng.randbytes(length) if kind is CommandKind.WRITE else None
        self.truth[offset : offset + length] = payload or bytes(length)
        view = memoryview(payload) if payload is not None else None
        return Mutation(kind, offset, length, view, rng.random() < fua, rng.random() < 0.3, fast=False)

    async def mutate(self, batch: list[Mutation]) -> None:
        waiting = self.disk.mutate(batch)
        assert waiting is not None
        await waiting

    async def check(self) -> None:
        assert await self.disk.read(0, SIZE) == self.truth
        offset = self.rng.randrange(SIZE // 512) * 512
        length = min(20480, SIZE - offset)
        assert self.disk.read_cached(offset, length) in (None, self.truth[offset : offset + length])
        covered = 0
        for extent in await self.disk.extents(0, SIZE):
            assert extent.offset == covered
            covered += extent.length
            if extent.hole:
                assert not any(self.truth[extent.offset : covered])
        assert covered == SIZE

    async def close(self) -> None:
        await self.disk.close()
        await self.workers.close()


async def test_what_is_written_lies_over_the_point(world: World) -> None:
    """Writes, zeroes and trims of any alignment; the point stays as it was."""
    bench = Bench(world, 1)
    before = bytes(bench.point.content)
    for _ in range(60):
        batch = [bench.change() for _ in range(bench.rng.randint(1, 4))]
        await bench.mutate(batch)
        assert all(mutation.error == 0 for mutation in batch)
        await bench.check()
    assert bench.point.content == before
    assert bench.disk.written_bytes > 0
    await bench.close()


async def test_it_comes_back_with_all_that_was_answered_after_the_agent_was_killed(world: World) -> None:
    """Nothing is synced or closed in between: what the clients were told is there, flushed or not."""
    bench = Bench(world, 2)
    for _ in range(5):
        for _ in range(10):
            await bench.mutate([bench.change()])
        killed, bench.disk = bench.disk, bench.open()
        await bench.check()
        killed._files.close()
    await bench.close()


async def test_after_power_loss_it_has_what_was_flushed_and_of_the_rest_old_or_new(world: World) -> None:
    """I4: FLUSH is durable; a block that was not flushed is never anything but the point's or what was written."""
    bench = Bench(world, 3)
    for _ in range(20):
        await bench.mutate([bench.change()])
    assert await bench.disk.flush() == 0
    flushed, raw = bytes(bench.truth), Path(bench.raw)
    durable, map_path = raw.read_bytes(), raw.with_suffix(".map")
    synced = map_path.read_bytes()
    for _ in range(20):
        await bench.mutate([bench.change(fua=0)])
    assert map_path.read_bytes() == synced, "the durable map says only what is durable"
    # The page cache is lost but for some pages of the data; the live map, whatever is left of it, counts no more.
    bench.disk._files.close()
    cached, later = raw.read_bytes(), bytes(bench.truth)
    pages = range(0, SIZE, 4096)
    left = b"".join(bench.rng.choice([durable, cached])[at : min(at + 4096, SIZE)] for at in pages)
    raw.write_bytes(left)
    world.boot = "another"
    agent, workers = world.build()
    bench.ports = agent.ports
    bench.disk = bench.open()
    found = await bench.disk.read(0, SIZE)
    for at in pages:
        assert found[at : at + 4096] in (flushed[at : at + 4096], later[at : at + 4096])
    assert found != later
    bench.truth = bytearray(found)
    for _ in range(5):
        await bench.mutate([bench.change()])
        await bench.check()
    await bench.close()
    await workers.close()


async def test_damaged_or_foreign_overlays_are_lost_rather_than_read(world: World) -> None:
    bench = Bench(world, 4)
    await bench.mutate([bench.change()])
    await bench.disk.close()
    map_path = Path(bench.raw.replace(".raw", ".map"))
    content = map_path.read_bytes()
    map_path.write_bytes(content[: 3 * 4096] + b"\xff" * 64 + content[3 * 4096 + 64 :])
    with pytest.raises(OverlayLostError, match="can't be told"):
        bench.open()
    map_path.write_bytes(content)
    # The map of this boot is all that tells what was answered: it is not replaced by the durable one.
    live_path = map_path.with_suffix(".live")
    live = live_path.read_bytes()
    live_path.write_bytes(live[: 3 * 4096] + b"\xff" * 64 + live[3 * 4096 + 64 :])
    with pytest.raises(OverlayLostError, match="can't be told"):
        bench.open()
    live_path.write_bytes(live)
    other = ExportRecord(**{**{n: getattr(RECORD, n) for n in RECORD.__struct_fields__}, "id": "ffffffff"})
    with pytest.raises(OverlayLostError, match="can't be told"):
        open_overlay(bench.ports, bench.raw, VM, other, 0, SIZE)
    os.truncate(bench.raw, SIZE - 512)
    with pytest.raises(OverlayLostError, match="another size"):
        bench.open()
    map_path.unlink()
    with pytest.raises(OverlayLostError, match="missing"):
        bench.open()
    await bench.workers.close()


class FullVolume(RealFileSystem):
    """A volume with as much room as is told."""

    free = 1 << 40

    def free_space(self, path: str) -> int:
        return self.free


@needs_qemu
async def test_writable_exports_beside_replication(world: World, tmp_path: Path) -> None:
    """R22, R37: several at once, each over its point; the point, the others and the replica see nothing of it."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 3)
        older = vm.parts.history.positions()[-2]
        one = await vm.exports.start(vm.describe, older, writable=True)
        two = await vm.exports.start(vm.describe, writable=True)
        plain = await vm.exports.start(vm.describe, older)
        await io(
            one.uris[0], "write -P 0x11 0 4k", "write -P 0x12 10k 1k", "write -z 32k 16k", "discard 64k 32k", "flush",
            "write -f -P 0x13 100k 512",
        )  # fmt: skip
        await io(two.uris[0], "write -P 0x21 0 64k", "flush")
        await cuts(pair, 6)
        expected = {index: bytearray(content) for index, content in pair.tap.cuts[older.segment].items()}
        for offset, length, byte in (
            (0, 4096, 0x11), (10240, 1024, 0x12), (32768, 16384, 0), (65536, 32768, 0), (102400, 512, 0x13),
        ):  # fmt: skip
            expected[0][offset : offset + length] = bytes([byte]) * length
        assert await read_export(one, tmp_path) == expected
        assert await read_export(plain, tmp_path) == pair.tap.cuts[older.segment]
        newest = {index: bytearray(content) for index, content in pair.tap.cuts[two.cut.segment].items()}
        newest[0][: 64 << 10] = b"\x21" * (64 << 10)
        assert await read_export(two, tmp_path) == newest
        assert vm.point() == pair.tap.position
        shown = {export.id: export for export in vm.exports.status()}
        assert shown[one.id].writable and shown[one.id].written_bytes > 0
        assert not shown[plain.id].writable
        code, output = await run("qemu-img", "map", "--output=json", "-f", "raw", one.uris[0])
        assert code == 0 and '"zero": true' in output
        overlays = world.folder_of() / "overlays"
        assert len(list(overlays.iterdir())) == 2 * 3 * len(DISKS)
        await vm.exports.stop(one.id)
        assert {path.name[:8] for path in overlays.iterdir()} == {two.id}
        await vm.exports.stop()
        assert not list(overlays.iterdir())


@needs_qemu
async def test_writable_export_outlasts_the_agent_and_its_rests_do_not(world: World, tmp_path: Path) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 2)
        await begin_test(vm, None)
        test = status_of(vm).test_failover
        assert test is not None and test.name == "web - Test"
        await io(test.uris[0], "write -P 0x31 4k 8k")
        tap = pair.tap
    overlays = world.folder_of() / "overlays"
    (overlays / "00000000-0.raw").write_bytes(b"left by a crash")
    async with world.agent() as agent:
        vm = agent.vms[VM]
        again = status_of(vm).test_failover
        assert again is not None
        assert (again.export, again.uris, again.error) == (test.export, test.uris, "")
        expected = {index: bytearray(content) for index, content in tap.cuts[test.cut.segment].items()}
        expected[0][4096:12288] = b"\x31" * 8192
        found = await read_export(ExportStatus(id=again.export, uris=again.uris, cut=again.cut), tmp_path)
        assert found == expected
        assert not (overlays / "00000000-0.raw").exists()
        (overlays / f"{again.export}-0.map").unlink()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        lost = status_of(vm).test_failover
        assert lost is not None and "is gone" in lost.error
        await end_test(vm)
        assert status_of(vm).test_failover is None
        assert not list(overlays.iterdir())


@needs_qemu
async def test_a_full_volume_is_felt_by_the_clients_alone(world: World, tmp_path: Path) -> None:
    """Their writes fail while replication still has its room; when that needs it, the overlay goes before any point."""
    world.files = files = FullVolume()
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 3)
        export = await vm.exports.start(vm.describe, writable=True)
        await io(export.uris[0], "write -P 1 0 4k")
        files.free = DISTANCE_BYTES + 1024
        await asyncio.sleep(1.1)
        code, output = await run("qemu-io", "-f", "raw", "-c", "write -P 2 8k 64k", export.uris[0])
        assert code != 0 and "No space left" in output
        assert vm.exports.status()[0].full
        # What is there can be read, and room be given back.
        assert "0x" not in await io(export.uris[0], "read -P 1 0 4k", "discard 0 4k")
        await cuts(pair, 2)
        points = vm.parts.history.positions()
        assert await vm.parts.history.give_way("The volume is full.")
        assert vm.parts.history.positions() == points
        assert "give" in vm.exports.status()[0].error
        assert not list((world.folder_of() / "overlays").iterdir())
        assert await vm.parts.history.give_way("The volume is full.")
        assert vm.parts.history.positions() == points[1:]
        assert sum("can't be read any more" in text for text in await texts(pair)) == 1


@needs_qemu
async def test_quota_holds_for_writable_exports_and_is_never_used_up_by_them(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 1)
        export = await vm.exports.start(vm.describe, writable=True)
        sessions = pair.agent.sessions
        entry = msgspec.structs.replace(world.entry("primary"), quota_bytes=1 << 40)
        used = await _used(sessions, pair.agent.config, entry)
        entry = msgspec.structs.replace(entry, quota_bytes=used + (96 << 10))
        await _used(sessions, pair.agent.config, entry)
        pair.agent.surroundings.overlay_room._volumes.clear()
        await io(export.uris[0], "write -P 1 0 64k")
        code, output = await run("qemu-io", "-f", "raw", "-c", "write -P 2 64k 64k", export.uris[0])
        assert code != 0 and "No space left" in output
        # What the overlay takes is not taken from replication.
        await sessions.quotas.admit(sessions.authorization.grants[0], 80 << 10)


async def _used(sessions: Sessions, config: ReplicaConfig, entry: AuthorizeSection) -> int:
    """Put an entry in force, and say what counts for its quota, overlays among it."""
    sessions.reauthorize(Authorization.of(msgspec.structs.replace(config, authorize=[entry])))
    left = await sessions.quotas.left(sessions.authorization.grants)
    assert left is not None
    return entry.quota_bytes - left


async def test_one_test_at_a_time_and_none_of_a_point_that_is_resynchronized(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await cuts(pair, 2)
        older = vm.parts.history.positions()[-1]
        with pytest.raises(NotFoundError, match="no test failover"):
            await end_test(vm)
        await begin_test(vm, older)
        assert status_of(vm).statistics.last_test_failover_time is not None
        with pytest.raises(InvalidStateError, match="already"):
            await begin_test(vm, None)
        with pytest.raises(InvalidStateError, match="already"):
            await vm.exports.start(vm.describe, writable=True, test=True)
        await end_test(vm)
        resync: Any = object()
        vm.parts.resync = resync
        try:
            for position in (None, vm.point()):
                with pytest.raises(InvalidStateError, match="being resynchronized"):
                    await begin_test(vm, position)
            await begin_test(vm, older)
        finally:
            vm.parts.resync = None
        await end_test(vm)
        numbers = [event["event"] for event in (await pair.agent.events(None, limit=100, after=0)).events]
        assert [numbers.count(number) for number in (EventId.TEST_FAILOVER_STARTED, EventId.TEST_FAILOVER_ENDED)] == [
            2,
            2,
        ]
