"""Tests of what a start finds when somebody, or a bad disk, changed the store while the agent was away."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.messages import ResyncKind
from replica_agent.agent import ReplicaAgent
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from tests.unit.replica.failing import FailingFiles
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import DISKS, WAIT_SECONDS, Primary, Resync, World, check_points, disk_bytes, random_content
from tests.unit.replica.test_sessions import dialler_of, refused_open, until


@dataclass
class Copy:
    """A VM with a baseline and some cuts, at rest."""

    world: World
    tap: Tap
    rng: random.Random

    @property
    def folder(self) -> Path:
        return self.world.folder_of()

    async def continue_with(self, agent: ReplicaAgent) -> Primary:
        """A session that resumes, and one more cut."""
        control, opened = await dialler_of(self.world, agent).open(epoch=EPOCH)
        assert opened.received is not None
        assert opened.received.position() == self.tap.position
        await control.send_segment(self.tap, self.rng)
        await control.until_applied(self.tap.position)
        return control

    async def resynchronize(self, agent: ReplicaAgent) -> None:
        """What heals everything."""
        dialler = dialler_of(self.world, agent)
        control, opened = await dialler.open(epoch=EPOCH)
        assert opened.state == "WaitingForStartResynchronize"
        resync = Resync(dialler, control, self.tap.begin(b"n" * 16), self.rng.randbytes(16), ResyncKind.RESYNC, EPOCH)
        await resync.whole(self.rng)
        vm = agent.vms[VM]
        assert vm.ledger.replication.suspect is None
        assert vm.ledger.replication.causes == []
        assert vm.point() == resync.tap.position
        for disk in DISKS:
            assert disk_bytes(self.world, disk.index) == resync.tap.content[disk.index]


@asynccontextmanager
async def copied(world: World) -> AsyncIterator[Copy]:
    rng = random.Random(21)
    tap = Tap(DISKS)
    random_content(tap, rng)
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        await Resync(dialler, control, tap, b"1" * 16).whole(rng)
        for _ in range(3):
            await control.send_segment(tap, rng)
        await control.until_applied(tap.position)
    yield Copy(world, tap, rng)


@pytest.fixture
async def copy(world: World) -> AsyncIterator[Copy]:
    async with copied(world) as made:
        yield made


def suspect_of(vm: ReplicaVm) -> str:
    suspect = vm.ledger.replication.suspect
    return suspect.code if suspect is not None else ""


async def test_nothing_happened(copy: Copy) -> None:
    async with copy.world.agent() as agent:
        assert agent.vms[VM].point() == copy.tap.position
        await copy.continue_with(agent)
    check_points(copy.world, copy.tap)


async def test_another_boot_trusts_content_though_times_went_back(copy: Copy) -> None:
    path = copy.folder / "disk-0.raw"
    os.utime(path, ns=(0, path.stat().st_mtime_ns - 5_000_000_000))
    copy.world.boot = "another"
    async with copy.world.agent() as agent:
        assert suspect_of(agent.vms[VM]) == ""
        await copy.continue_with(agent)


def edit(copy: Copy) -> None:
    with (copy.folder / "disk-0.raw").open("r+b") as file:
        file.write(b"somebody was here")


def replace(copy: Copy) -> None:
    shutil.copyfile(copy.folder / "disk-0.raw", copy.folder / "copy")
    os.rename(copy.folder / "copy", copy.folder / "disk-0.raw")


def touch_back(copy: Copy) -> None:
    """An edit whose author puts the time back is found within one boot by the time of that."""
    before = (copy.folder / "disk-0.raw").stat()
    edit(copy)
    os.utime(copy.folder / "disk-0.raw", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [edit, replace, touch_back])
async def test_disk_changed_behind_our_back(copy: Copy, change: Callable[[Copy], None]) -> None:
    """I10, R18: noticed, shown with evidence, no promotion and no export, and a resync heals it."""
    change(copy)
    async with copy.world.agent() as agent:
        vm = agent.vms[VM]
        assert suspect_of(vm) == "disk_changed"
        assert vm.point() is None
        status = status_of(vm)
        assert status.health == "Critical"
        assert "disk 0" in status.causes[0].text
        with pytest.raises(Exception, match="not trusted"):
            await vm.failover()
        with pytest.raises(Exception, match="not trusted"):
            await vm.exports.start(vm.describe)
        await copy.resynchronize(agent)
    # It stays healed.
    async with copy.world.agent() as agent:
        assert suspect_of(agent.vms[VM]) == ""


def delete_disk(copy: Copy) -> None:
    (copy.folder / "disk-3.raw").unlink()


def shrink_disk(copy: Copy) -> None:
    os.truncate(copy.folder / "disk-3.raw", 4096)


def link_disk(copy: Copy) -> None:
    path = copy.folder / "disk-3.raw"
    os.rename(path, copy.folder / "elsewhere")
    path.symlink_to(copy.folder / "elsewhere")


def pipe_disk(copy: Copy) -> None:
    (copy.folder / "disk-3.raw").unlink()
    os.mkfifo(copy.folder / "disk-3.raw")


@pytest.mark.parametrize("change", [delete_disk, shrink_disk, link_disk, pipe_disk])
async def test_disk_that_can_not_be_used_stops_that_vm_alone(copy: Copy, change: Callable[[Copy], None]) -> None:
    """A15: refused by name, never guessed, others go on."""
    change(copy)
    other = bytes(range(50, 66))
    async with copy.world.agent() as agent:
        vm = agent.vms[VM]
        assert vm.failure is not None
        assert "disk-3.raw" in vm.failure.text
        assert vm.failure.remedy
        status = status_of(vm)
        assert (status.state, status.health) == ("Error", "Critical")
        assert (await refused_open(dialler_of(copy.world, agent), epoch=EPOCH)).code == "storage"
        _, opened = await dialler_of(copy.world, agent).open(vm=other)
        assert opened.state == "ReadyForInitialReplication"


def garble_state(folder: Path) -> None:
    data = bytearray((folder / "state.db").read_bytes())
    data[100:4096] = bytes(len(data[100:4096]))
    (folder / "state.db").write_bytes(data)


def delete_state(folder: Path) -> None:
    for path in folder.glob("state.db*"):
        path.unlink()


@pytest.mark.parametrize("change", [garble_state, delete_state])
async def test_damaged_or_missing_state_stops_that_vm_alone(copy: Copy, change: Callable[[Path], None]) -> None:
    """A24: never a guess; the copy itself is left alone."""
    before = disk_bytes(copy.world, 0)
    change(copy.folder)
    async with copy.world.agent() as agent:
        assert VM not in agent.vms
        status = agent.status().vms[0]
        assert (status.state, status.health) == ("Error", "Critical")
        assert status.problem is not None
        assert status.problem.remedy
        assert (await refused_open(dialler_of(copy.world, agent), epoch=EPOCH)).code == "damaged"
        with pytest.raises(Exception, match="not deleted"):
            await agent.remove(status.uuid)
    assert disk_bytes(copy.world, 0) == before


async def test_state_of_a_newer_version_is_refused(copy: Copy) -> None:
    store = await copy.world.stores_of_its_own().open(str(copy.folder))
    record = store.get("vm")
    await store.commit({"vm": {**record, "version": 2}})
    await store.close()
    async with copy.world.agent() as agent:
        assert VM not in agent.vms
        problem = agent.status().vms[0].problem
        assert problem is not None
        assert "version 2" in problem.text


async def test_state_with_unknown_fields_is_refused(copy: Copy) -> None:
    store = await copy.world.stores_of_its_own().open(str(copy.folder))
    await store.commit({"replication": {**store.get("replication"), "novelty": 1}})
    await store.close()
    async with copy.world.agent() as agent:
        problem = agent.status().vms[0].problem
        assert problem is not None
        assert "novelty" in problem.text


async def test_folder_of_another_vm_is_refused(copy: Copy) -> None:
    """I9: a folder that was moved to another VM's name is not that VM."""
    import uuid

    other = uuid.UUID(int=5)
    os.rename(copy.folder, copy.folder.parent / str(other))
    async with copy.world.agent() as agent:
        assert agent.vms == {}
        assert "another VM" in str(agent.damaged[other.bytes].error)


async def killed_while_applying(world: World) -> Copy:
    """A copy whose agent died between the first write of an apply and its end."""
    async with copied(world) as copy:
        pass
    files = FailingFiles()
    world.files = files
    agent, workers = world.build()
    from tests.unit.replica.test_crashes import kill

    await agent.start()
    control, _ = await dialler_of(world, agent).open(epoch=EPOCH)
    vm = agent.vms[VM]
    async with vm.parts.applier.turn:
        await control.send_segment(copy.tap, copy.rng)
        files.die_after_writes_to = "disk-"
    await until(lambda: files.dead)
    await kill(agent, workers, files)
    await world.stores.close()
    world.files = FailingFiles()
    return copy


async def test_interrupted_apply_is_done_again(world: World) -> None:
    """I6."""
    copy = await killed_while_applying(world)
    before = len(world.points)
    async with world.agent() as agent:
        vm = agent.vms[VM]
        async with asyncio.timeout(WAIT_SECONDS):
            await vm.parts.applier.caught_up()
        assert vm.point() == copy.tap.position
    assert [position for position, _ in world.points[before:]] == [copy.tap.position]
    check_points(world, copy.tap)


def lose_spool(copy: Copy) -> None:
    for path in (copy.folder / "spool").glob(f"{EPOCH.hex()}-*"):
        path.unlink()


def rot_spool(copy: Copy) -> None:
    for path in (copy.folder / "spool").glob(f"{EPOCH.hex()}-*"):
        data = bytearray(path.read_bytes())
        data[4096 + 200] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("change", [lose_spool, rot_spool])
async def test_interrupted_apply_without_its_spool_is_suspect(world: World, change: Callable[[Copy], None]) -> None:
    """I6, R15: half of an apply is never exposed as a point."""
    copy = await killed_while_applying(world)
    change(copy)
    before = len(world.points)
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert suspect_of(vm) == "spool_damaged"
        assert vm.point() is None
        with pytest.raises(Exception, match="not trusted"):
            await vm.failover()
        assert len(world.points) == before
        await copy.resynchronize(agent)


async def test_committed_resync_without_its_differencing_file_is_suspect(world: World) -> None:
    """R15: COMMIT marker but differences missing: stop, alarm, never guess."""
    async with copied(world) as copy:
        pass
    files = FailingFiles()
    world.files = files
    from tests.unit.replica.test_crashes import kill

    agent, workers = world.build()
    await agent.start()
    dialler = dialler_of(world, agent)
    control, _ = await dialler.open(epoch=EPOCH)
    resync = Resync(dialler, control, copy.tap.begin(b"n" * 16), b"2" * 16, ResyncKind.RESYNC, EPOCH)
    resync.tap.content[0][:10] = b"unlogged!!"
    await resync.begin()
    await resync.compare()
    await resync.send_tracked(copy.rng)
    async with agent.vms[VM].parts.applier.turn:
        await resync.commit()
        await kill(agent, workers, files)
    await world.stores.close()
    world.files = FailingFiles()
    (copy.folder / "resync" / f"{(b'2' * 16).hex()}.hrl").unlink()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        await until(lambda: suspect_of(vm) == "spool_damaged")
        assert vm.point() is None
        _, opened = await dialler_of(world, agent).open(epoch=resync.tap.epoch)
        assert opened.state == "WaitingForStartResynchronize"
