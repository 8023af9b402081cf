"""Tests of imports at the replica: what is refused, what a crash leaves, and where a VM that is new here is kept."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from protocol.errors import ProtocolError
from protocol.messages import ResyncBegin, ResyncKind
from protocol.position import NO_EPOCH
from replica_agent.agent import ReplicaAgent
from replica_agent.import_methods import Imports
from replica_agent.importing import export_plan, seed_plan
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.admin.verbs import ImportParams, ImportSeedParams, SeedParams
from shared.courier import MANIFEST_NAME, ExportedDisk, Manifest, disk_file, encode, read_manifest
from shared.disks.hashing import HASH_NAME
from shared.errors import InvalidStateError, NoSpaceError, NotFoundError, StorageError, UsageError
from shared.import_status import ImportStatus
from shared.states import ReplicationState
from tests.unit.replica.logs import EPOCH, VM
from tests.unit.replica.rig import DISKS, World, disk_bytes
from tests.unit.replica.test_sessions import dialler_of, until

READY, IN_PROGRESS = (
    ReplicationState.READY_FOR_INITIAL_REPLICATION,
    ReplicationState.INITIAL_REPLICATION_IN_PROGRESS,
)


def make_export(folder: Path, vm: bytes = VM) -> list[bytes]:
    """An export of random disks; their content."""
    folder.mkdir()
    contents = [os.urandom(disk.size) for disk in DISKS]
    disks = []
    for disk, content in zip(DISKS, contents, strict=True):
        (folder / disk_file(disk.index)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        disks.append(ExportedDisk(index=disk.index, uuid=disk.uuid.hex(), size_bytes=disk.size, ranges=[digest]))
    manifest = Manifest(
        vm=vm.hex(),
        name="web",
        host="primary.test",
        epoch=EPOCH.hex(),
        began_time=1.0,
        ended_time=2.0,
        range_bytes=64 << 20,
        disks=disks,
    )
    (folder / MANIFEST_NAME).write_bytes(encode(manifest))
    return contents


async def imported(agent: ReplicaAgent, folder: Path) -> ImportStatus:
    status = await Imports(agent).start_export(ImportParams(folder=str(folder)))
    await until(lambda: not status.running)
    return status


def contents_of(world: World) -> list[bytes]:
    return [disk_bytes(world, disk.index) for disk in DISKS]


async def known_vm(world: World, agent: ReplicaAgent) -> ReplicaVm:
    """The VM, made by its primary's first OPEN."""
    control, _ = await dialler_of(world, agent).open()
    await control.channel.close("seen")
    vm = agent.vms[VM]
    await until(lambda: vm.connections.control is None)
    return vm


async def test_a_vm_that_is_new_here_is_kept_where_its_entry_says(world: World, tmp_path: Path) -> None:
    contents = make_export(tmp_path / "medium")
    world.authorize = [world.entry("primary", [str(VM.hex())])]
    other = msgspec.structs.replace(world.entry("other"), storage=str(tmp_path / "elsewhere"))
    async with world.agent() as agent:
        status = await imported(agent, tmp_path / "medium")
        assert (status.outcome, status.name) == ("imported", "web"), status
        vm = agent.vms[VM]
        assert (vm.ledger.replication.state, vm.ledger.replication.epoch) == (IN_PROGRESS, NO_EPOCH)
        assert vm.parts.resync is not None
        assert vm.parts.resync.state.settled_bytes == sum(disk.size for disk in DISKS)
        assert contents_of(world) == contents
        with pytest.raises(InvalidStateError, match="no recovery point"):
            await vm.failover()
        with pytest.raises(InvalidStateError, match="only before its initial replication"):
            await imported(agent, tmp_path / "medium")
    # Another start finds it as it was, and believes it.
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert vm.parts.resync is not None
        assert vm.parts.resync.state.settled_bytes == sum(disk.size for disk in DISKS)
        await agent.remove("web")
    world.authorize = [world.entry("primary"), other]
    async with world.agent() as agent:
        with pytest.raises(UsageError, match="which is meant can't be told"):
            await imported(agent, tmp_path / "medium")
        status = await Imports(agent).start_export(
            ImportParams(folder=str(tmp_path / "medium"), storage=str(world.storage))
        )
        await until(lambda: not status.running)
        assert status.outcome == "imported"
    world.authorize = [world.entry("primary", ["ffffffff-ffff-ffff-ffff-ffffffffffff"])]
    make_export(tmp_path / "third", vm=b"z" * 16)
    async with world.agent() as agent:
        with pytest.raises(UsageError, match="No entry allows"):
            await imported(agent, tmp_path / "third")


async def test_damage_and_what_does_not_fit_is_named_and_changes_nothing(world: World, tmp_path: Path) -> None:
    medium = tmp_path / "medium"
    contents = make_export(medium)
    async with world.agent() as agent:
        vm = await known_vm(world, agent)
        before = contents_of(world)
        path = medium / disk_file(3)
        path.write_bytes(contents[1][:-1] + bytes([contents[1][-1] ^ 1]))
        status = await imported(agent, medium)
        assert status.outcome == "failed"
        assert f"{path} is damaged: bytes 0 to {DISKS[1].size - 1} of disk 3" in status.text
        path.write_bytes(contents[1][:-512])
        with pytest.raises(StorageError, match=f"has {DISKS[1].size - 512} bytes, and disk 3 of"):
            await imported(agent, medium)
        path.unlink()
        with pytest.raises(StorageError, match="does not exist"):
            await imported(agent, medium)
        manifest, _ = read_manifest(agent.ports.files, str(medium))
        disks = [msgspec.structs.replace(manifest.disks[0], uuid="e" * 32), manifest.disks[1]]
        (medium / MANIFEST_NAME).write_bytes(encode(msgspec.structs.replace(manifest, disks=disks)))
        with pytest.raises(StorageError, match="disk 0 is another disk"):
            await imported(agent, medium)
        assert contents_of(world) == before
        assert (vm.ledger.replication.state, vm.ledger.replication.seeded) == (READY, False)
        assert not list(world.folder_of().glob("import-*"))
        vm.parts.surroundings.reserve = 1 << 62
        make_export(tmp_path / "again")
        with pytest.raises(NoSpaceError):
            await imported(agent, tmp_path / "again")
        assert vm.parts.importing is None


async def test_a_crash_leaves_nothing_half(world: World, tmp_path: Path) -> None:
    """Before the files change places, and between that and the record: no record, so nothing is believed."""
    medium = tmp_path / "medium"
    make_export(medium)
    async with world.agent() as agent:
        await known_vm(world, agent)
        before = contents_of(world)
    (world.folder_of() / "import-0.raw").write_bytes(b"half")
    async with world.agent() as agent:
        assert not list(world.folder_of().glob("import-*"))
        assert contents_of(world) == before
        vm = agent.vms[VM]
        plan = export_plan(str(medium), *read_manifest(agent.ports.files, str(medium)))
        for source in plan.sources:
            Path(vm.parts.layout.imported(source.disk)).write_bytes(Path(source.path).read_bytes())
        opened = await agent.ports.workers.run(vm.importer._exchange, plan)
        assert opened is not None
        opened.close()
    async with world.agent() as agent:
        vm = agent.vms[VM]
        assert (vm.parts.resync, vm.ledger.replication.state, vm.ledger.replication.seeded) == (None, READY, False)
        assert list((world.folder_of() / "resync").iterdir()) == []
        status = await imported(agent, medium)
        assert status.outcome == "imported", status


async def test_no_resync_begins_while_one_is_imported_and_it_can_be_ended(world: World, tmp_path: Path) -> None:
    make_export(tmp_path / "medium")
    async with world.agent() as agent:
        vm = await known_vm(world, agent)
        before = contents_of(world)
        status = await Imports(agent).start_export(ImportParams(folder=str(tmp_path / "medium")))
        shown = status_of(vm).progress
        assert shown is not None
        assert (shown.kind, shown.phase, shown.total_bytes) == ("import", "copying", sum(d.size for d in DISKS))
        with pytest.raises(InvalidStateError, match="being imported already"):
            await Imports(agent).start_export(ImportParams(folder=str(tmp_path / "medium")))
        body = ResyncBegin(
            id=b"r" * 16,
            kind=ResyncKind.INITIAL,
            round=1,
            epoch=EPOCH,
            parent=NO_EPOCH,
            parent_segment=0,
            hash=HASH_NAME,
            key_id=b"k" * 16,
            key=b"k" * 32,
            block_size=65536,
        )
        with pytest.raises(ProtocolError, match="a first copy is being imported"):
            vm.baseline._judge(body, None)
        for turns in (0, 3):
            for _ in range(turns):
                await asyncio.sleep(0)
            await vm.importer.stop()
            assert (status.outcome, status.running) == ("failed", False)
            assert "nothing was changed" in status.text
            assert (vm.parts.importing, contents_of(world)) == (None, before)
            assert not list(world.folder_of().glob("import-*"))
            status = await Imports(agent).start_export(ImportParams(folder=str(tmp_path / "medium")))
        await until(lambda: not status.running)
        assert status.outcome == "imported"


async def test_seeds_are_named_by_disk_or_in_order(world: World, tmp_path: Path) -> None:
    plan = seed_plan([0, 3], [(3, "/c"), (None, "/a")], move=False)
    assert [(source.disk, source.path) for source in plan.sources] == [(3, "/c"), (0, "/a")]
    for seeds in ([(None, "/a")] * 3, [(7, "/a")], [(3, "/a"), (3, "/b")], []):
        with pytest.raises(UsageError, match="no disk to be a seed of|No seed is named"):
            seed_plan([0, 3], seeds, move=False)
    async with world.agent() as agent:
        with pytest.raises(NotFoundError, match="No VM web"):
            await Imports(agent).start_seed(ImportSeedParams(vm="web", seeds=[SeedParams(path="/a")]))
        vm = await known_vm(world, agent)
        seed = tmp_path / "seed.raw"
        seed.write_bytes(os.urandom(DISKS[1].size))
        seed.with_name("copy.raw").write_bytes(seed.read_bytes())
        params = ImportSeedParams(vm=vm.name, seeds=[SeedParams(path=str(seed), disk=3)], move=True)
        status = await Imports(agent).start_seed(params)
        await until(lambda: not status.running)
        assert (status.outcome, seed.exists(), vm.ledger.replication.seeded) == ("imported", False, True), status
        assert disk_bytes(world, 3) == seed.with_name("copy.raw").read_bytes()
        assert not any(disk_bytes(world, 0))
        assert vm.ledger.replication.state is READY
        with pytest.raises(StorageError, match="not lie in the same file system"):
            shm = Path("/dev/shm") / f"vmr-seed-{os.getpid()}"
            shm.write_bytes(bytes(DISKS[1].size))
            try:
                away = [SeedParams(path=str(shm), disk=3)]
                await Imports(agent).start_seed(ImportSeedParams(vm=vm.name, seeds=away, move=True))
            finally:
                shm.unlink()
    assert replace(plan, move=True).where == "/c, /a"
