"""Tests of exports with real NBD clients while the replica goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from replica_agent.exports import EXPORTS_MAX
from replica_agent.retention import NEWEST_DEFAULT, Retention
from shared.errors import InvalidStateError, NotFoundError
from shared.status import ExportStatus
from tests.unit.replica.logs import EPOCH, VM, zero
from tests.unit.replica.rig import DISKS, World
from tests.unit.replica.test_sessions import dialler_of, replicating

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (qemu-utils)")


async def run(*command: str) -> tuple[int, str]:
    """Exit code and output of a program."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def read_export(export: ExportStatus, folder: Path) -> dict[int, bytes]:
    """The content of all disks, read by qemu-img."""
    content = {}
    for disk, uri in zip(DISKS, export.uris, strict=True):
        target = folder / f"read-{disk.index}.raw"
        code, output = await run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(target))
        assert code == 0, output
        content[disk.index] = target.read_bytes()
    return content


async def test_export_stays_fixed_while_applies_go_on(world: World, tmp_path: Path) -> None:
    """I1, R37."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        cut = pair.tap.segment
        export = await vm.exports.start(vm.describe)
        assert (export.cut.epoch, export.cut.segment) == (EPOCH.hex(), cut)
        for _ in range(10):
            await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)
        assert vm.point() == pair.tap.position
        assert await read_export(export, tmp_path) == pair.tap.cuts[cut]
        assert vm.exports.status()[0].held_bytes > 0
        newer = await vm.exports.start(vm.describe)
        assert await read_export(newer, tmp_path) == pair.tap.cuts[pair.tap.segment]
        assert await read_export(export, tmp_path) == pair.tap.cuts[cut]
        await vm.exports.stop(export.id)
        assert not os.path.exists(export.uris[0].split("socket=")[1])
        assert await read_export(newer, tmp_path) == pair.tap.cuts[pair.tap.segment]
    check_no_leftovers(world)


def check_no_leftovers(world: World) -> None:
    assert not list(world.sockets.rglob("*.sock"))
    assert len(list(world.folder_of().glob("undo/*"))) <= NEWEST_DEFAULT + 1


async def test_every_cut_can_be_exported(world: World, tmp_path: Path) -> None:
    """I1: at every cut the exported image equals the disks at that cut."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        for _ in range(5):
            await pair.control.send_segment(pair.tap, pair.rng)
            await pair.control.until_applied(pair.tap.position)
            export = await vm.exports.start(vm.describe)
            assert await read_export(export, tmp_path) == pair.tap.cuts[pair.tap.segment]
            await vm.exports.stop(export.id)


async def test_export_is_read_only(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        export = await vm.exports.start(vm.describe)
        code, output = await run("qemu-io", "-f", "raw", "-c", "write 0 4096", export.uris[0])
        assert code != 0
        assert any(words in output.lower() for words in ("permission denied", "read-only", "read only"))
        assert vm.point() == pair.tap.position


async def test_export_shows_holes(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        log, seal = pair.tap.whole_segment([zero(0, 0, DISKS[0].size, discard=True)])
        pair.control.log(log)
        pair.control.seal(seal)
        await pair.control.received(pair.tap.position)
        await pair.control.until_applied(pair.tap.position)
        export = await vm.exports.start(vm.describe)
        code, output = await run("qemu-img", "map", "--output=json", "-f", "raw", export.uris[0])
        assert code == 0, output
        assert '"data": false' in output


async def test_undo_logs_over_their_limit_end_that_export_alone(world: World) -> None:
    """I13: its clients get an error, the apply goes on, an event tells."""
    world.options["retention"] = Retention(limit=80 << 10)
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        export = await vm.exports.start(vm.describe)
        for _ in range(6):
            await pair.control.send_segment(pair.tap, pair.rng)
        await pair.control.until_applied(pair.tap.position)
        assert vm.point() == pair.tap.position
        assert vm.exports.status()[0].error
        code, _ = await run("qemu-img", "convert", "-f", "raw", "-O", "raw", export.uris[0], "/dev/null")
        assert code != 0
        await vm.exports.tell_failures()
        await vm.exports.tell_failures()
        events = (await pair.agent.events(None, limit=100, after=0)).events
        assert sum("can't be read any more" in event["text"] for event in events) == 1


async def test_export_without_a_point_is_refused(world: World) -> None:
    async with world.agent() as agent:
        await dialler_of(world, agent).open()
        vm = agent.vms[VM]
        with pytest.raises(InvalidStateError, match="no whole recovery point"):
            await vm.exports.start(vm.describe)


async def test_exports_are_capped(world: World) -> None:
    """I13."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        for _ in range(EXPORTS_MAX):
            await vm.exports.start(vm.describe)
        with pytest.raises(InvalidStateError, match="exports already"):
            await vm.exports.start(vm.describe)
        with pytest.raises(NotFoundError):
            await vm.exports.stop("nosuch")
        await vm.exports.stop()
        assert len(vm.exports) == 0
        assert vm.parts.history.readings == []
