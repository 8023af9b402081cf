"""A copy whose database was lost: what a recover rebuilds, what it never believes, and what a kill leaves of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.hrl import FILE_HEADER_BYTES, FileHeader, encode_file_header
from protocol.messages import ResyncKind
from protocol.position import NO_EPOCH
from replica_agent.agent import ReplicaAgent
from replica_agent.description import Description, read_description
from replica_agent.vm import ReplicaVm
from replica_agent.vm_status import status_of
from shared.errors import InvalidStateError, NotFoundError, StorageError, VmreplicaError
from shared.events import EventId
from shared.ports.file_system import RealFileSystem
from shared.states import ReplicaEvent, ReplicationState, replica_transition
from tests.unit.replica.failing import FailingFiles, Killed
from tests.unit.replica.logs import EPOCH, VM
from tests.unit.replica.rig import DISKS, Certificates, Resync, World, disk_bytes
from tests.unit.replica.test_crashes import kill
from tests.unit.replica.test_failover import failover
from tests.unit.replica.test_restart import Copy, copied
from tests.unit.replica.test_sessions import dialler_of, refused_open, replicating, until

ORDER = {"uid": 0, "pid": 1}
FLIPS = 9


def delete(folder: Path) -> None:
    for path in folder.glob("state.db*"):
        path.unlink()


def flip(folder: Path) -> None:
    path = folder / "state.db"
    data = bytearray(path.read_bytes())
    for place in range(100, len(data), len(data) // FLIPS):
        data[place] ^= 0x10
    path.write_bytes(data)


def empty(folder: Path) -> None:
    (folder / "state.db").write_bytes(b"")


LOSSES = [delete, flip, empty]


def described(world: World) -> Description:
    found = read_description(RealFileSystem(), str(world.folder_of()), VM)
    assert found is not None
    return found


async def recover(agent: ReplicaAgent) -> ReplicaVm:
    return await agent.recover("web", ORDER)


def damaged_name(agent: ReplicaAgent) -> str:
    (found,) = agent.damaged.values()
    return found.name


# --- the description -----------------------------------------------------------------------------------------------


async def test_description_follows_the_records(world: World) -> None:
    """Written before anybody is answered: at the creation, with each baseline, and with a failover."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        first = described(world)
        assert first.vm == vm.ledger.vm
        assert (first.epoch, first.promotion) == (EPOCH, None)
        assert await vm.promotion.decide()
        assert described(world).promotion == vm.ledger.promotion
        assert described(world).epoch == vm.ledger.replication.epoch


async def test_description_is_written_for_a_copy_of_an_older_version(world: World) -> None:
    async with copied(world) as copy:
        (copy.folder / "vm.description").unlink()
        async with world.agent():
            assert described(world).epoch == EPOCH


async def test_description_never_beats_an_intact_state(world: World) -> None:
    """It may be older, as after a crash right behind the commit, or even tell of another epoch."""
    async with copied(world) as copy:
        older = (copy.folder / "vm.description").read_bytes()
        async with world.agent() as agent:
            assert await agent.vms[VM].promotion.decide()
        (copy.folder / "vm.description").write_bytes(older)
        async with world.agent() as agent:
            promotion = agent.vms[VM].ledger.promotion
            assert promotion is not None
            assert described(world).promotion == promotion
            with pytest.raises(InvalidStateError, match="sound"):
                await recover(agent)


async def test_description_that_cannot_be_written_stops_nothing(world: World) -> None:
    """What is durable is answered; the file follows when it can."""
    files = world.files = FailingFiles()
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        files.fail_only("vm.description", "sync")
        assert await vm.promotion.decide()
        assert described(world).promotion is None
        files.fail_nothing()
        await vm.ledger.describe()
        assert described(world).promotion == vm.ledger.promotion


# --- what is rebuilt -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", LOSSES)
async def test_lost_state_is_rebuilt_and_everything_is_compared(world: World, lose: Callable[[Path], None]) -> None:
    """A24, I6: nothing of it is served before a compare; the old database is kept; the compare makes it whole."""
    async with copied(world) as copy:
        before = [disk_bytes(world, disk.index) for disk in DISKS]
        lose(copy.folder)
        lost = (copy.folder / "state.db").read_bytes() if lose is flip else b""
        async with world.agent() as agent:
            (status,) = agent.status("web").vms
            assert (status.state, status.name, status.uuid) == ("Error", "web", copy.folder.name)
            assert status.problem is not None
            assert f"vmreplica recover {copy.folder.name}" in status.problem.remedy
            vm = await recover(agent)
            assert agent.damaged == {}
            record = vm.ledger.replication
            assert (record.epoch, record.applied) == (EPOCH, None)
            assert [cause.code for cause in record.causes] == ["state_lost"]
            assert record.causes[0].evidence["description"] == "sound"
            assert status_of(vm).state == "WaitingForStartResynchronize"
            assert vm.point() is None
            with pytest.raises(InvalidStateError, match="not trusted"):
                await vm.failover()
            with pytest.raises(InvalidStateError):
                await vm.exports.start(vm.describe)
            (event,) = [
                e for e in (await agent.events("web", limit=99, after=0)).events if e["event"] == EventId.RECOVERED
            ]
            assert (event["before"], event["after"]) == ("Error", "WaitingForStartResynchronize")
            assert event["data"]["uid"] == 0
            assert [disk_bytes(world, disk.index) for disk in DISKS] == before
            aside = [path.read_bytes() for path in copy.folder.glob("state.db.damaged-*") if path.suffix != ".db-wal"]
            assert len(aside) == (0 if lose is delete else 1)
            assert lose is not flip or aside == [lost]
            await copy.resynchronize(agent)
        async with world.agent() as agent:
            assert agent.vms[VM].point() is not None


async def test_only_what_differs_is_sent_after_a_recover(world: World) -> None:
    """The disks are suspect, not useless: where no sync had failed a compare is enough."""
    async with copied(world) as copy:
        delete(copy.folder)
        async with world.agent() as agent:
            vm = await recover(agent)
            assert not vm.ledger.replication.reread
            dialler = dialler_of(world, agent)
            control, opened = await dialler.open(epoch=EPOCH)
            assert (opened.epoch, opened.received, opened.cut) == (EPOCH, None, None)
            resync = Resync(dialler, control, copy.tap.begin(b"n" * 16), b"2" * 16, ResyncKind.RESYNC, EPOCH)
            await resync.whole(copy.rng)
            assert resync.sent == []


async def test_failed_sync_is_remembered_by_the_description(world: World) -> None:
    """R17: what can be read of the disks is not what would survive, so everything is sent."""
    async with copied(world) as copy:
        async with world.agent() as agent:
            async with agent.vms[VM].ledger.transaction() as draft:
                draft.replication.reread = True
        delete(copy.folder)
        async with world.agent() as agent:
            assert (await recover(agent)).ledger.replication.reread


async def test_received_log_is_kept_until_a_resync_begins(world: World) -> None:
    """Without the applied position nothing of it may be applied; but it may be all that is left of the last minutes."""
    async with copied(world) as copy:
        received = received_again(copy)
        delete(copy.folder)
        before = disk_bytes(world, 0)
        async with world.agent() as agent:
            vm = await recover(agent)
            assert vm.ledger.replication.causes[0].evidence["spool"] == [received.name]
            assert received.exists()
        async with world.agent() as agent:
            assert received.exists()
            assert disk_bytes(world, 0) == before
            await copy.resynchronize(agent)
            assert not received.exists()


async def test_promotion_stays_fenced(world: World) -> None:
    """I8: a failover is still one after its database was lost, at the same cut, and its disks stay the tap's."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await failover(vm)
        promotion = vm.ledger.promotion
    delete(world.folder_of())
    (world.folder_of() / "tap" / "tap.json").unlink()
    async with world.agent() as agent:
        assert (await refused_open(dialler_of(world, agent), epoch=EPOCH)).code == "damaged"
        vm = await recover(agent)
        assert vm.ledger.promotion == promotion
        assert vm.ledger.replication.suspect is None
        assert status_of(vm).state == "FailedOverWaitingCompletion"
        assert (await refused_open(dialler_of(world, agent), epoch=EPOCH)).code == "fenced"
        assert not vm.parts.disks.opened
        await until((world.folder_of() / "tap" / "tap.json").exists)


@pytest.mark.parametrize("handed_over", [False, True])
async def test_promotion_for_good_stays_one(world: World, handed_over: bool) -> None:
    """R41: committed, or handed over to the primary agent, it can be taken back, or be taken over from there again."""
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        await failover(vm)
        async with vm.ledger.transaction() as draft:
            assert draft.promotion is not None
            if handed_over:
                draft.promotion.handed_over = True
                draft.step(ReplicaEvent.HANDED_OVER, "reverse")
            else:
                draft.promotion.committed_time = draft.now
                draft.step(ReplicaEvent.FAILOVER_COMMITTED, "commit")
    delete(world.folder_of())
    async with world.agent() as agent:
        state = (await recover(agent)).ledger.replication.state
        assert state is ReplicationState.FAILED_OVER
        assert replica_transition(state, ReplicaEvent.TAKEN_OVER)


async def test_tap_proves_a_promotion_that_the_description_missed(world: World) -> None:
    """The description is older where it could not be written; a folder of the tap is made for nothing else."""
    async with replicating(world) as pair:
        older = (world.folder_of() / "vm.description").read_bytes()
        await failover(pair.agent.vms[VM])
    (world.folder_of() / "vm.description").write_bytes(older)
    delete(world.folder_of())
    async with world.agent() as agent:
        vm = await recover(agent)
        assert vm.ledger.promotion is not None
        assert (vm.ledger.promotion.serving, vm.ledger.promotion.parent) == (True, EPOCH)
        error = await refused_open(dialler_of(world, agent), epoch=EPOCH)
        assert error.code == "fenced"
        assert "not known any more" in error.text


async def test_promotion_that_was_not_complete_is_fenced_and_serves_nothing(world: World) -> None:
    """What lies between the disks and the promoted cut can't be told: never guessed, and the way out is named."""
    async with replicating(world) as pair:
        assert await pair.agent.vms[VM].promotion.decide()
    delete(world.folder_of())
    async with world.agent() as agent:
        vm = await recover(agent)
        assert vm.ledger.promotion is not None
        assert not vm.ledger.promotion.serving
        assert (await refused_open(dialler_of(world, agent), epoch=EPOCH)).code == "fenced"
        status = status_of(vm)
        assert status.state == "FailedOverWaitingCompletion"
        assert status.problem is not None
        assert "remove the VM here" in status.problem.remedy
        assert vm.promotion.tap is None
        kept = await agent.remove("web")
        assert (Path(kept) / "disk-0.raw").exists()


async def test_copy_without_a_first_point_begins_again(world: World) -> None:
    async with world.agent() as agent:
        await dialler_of(world, agent).open()
    delete(world.folder_of())
    async with world.agent() as agent:
        vm = await recover(agent)
        assert status_of(vm).state == "ReadyForInitialReplication"
        assert vm.ledger.replication.epoch == NO_EPOCH


# --- without a description -----------------------------------------------------------------------------------------


async def test_without_a_description_the_received_log_names_the_disks(world: World) -> None:
    """An older version's folder: the copy counts for nothing, and everything is sent, but it is not stuck."""
    async with copied(world) as copy:
        received_again(copy)
        (copy.folder / "vm.description").unlink()
        delete(copy.folder)
        async with world.agent() as agent:
            assert damaged_name(agent) == copy.folder.name
            vm = await agent.recover(copy.folder.name, ORDER)
            assert vm.ledger.vm.geometry == DISKS
            assert (vm.ledger.replication.epoch, vm.ledger.replication.reread) == (NO_EPOCH, True)


def received_again(copy: Copy) -> Path:
    """A segment in the spool, as it is before it is applied."""
    number = copy.tap.segment
    start = copy.tap.ends[number - 1]
    log, seal = copy.tap.sent[number]
    header = FileHeader(VM, number, 0, start.epoch, start.segment, start.entry, start.chain)
    path = copy.folder / "spool" / f"{EPOCH.hex()}-{number:012d}.hrl"
    path.write_bytes(encode_file_header(header).ljust(FILE_HEADER_BYTES, b"\0") + log + seal)
    return path


@pytest.mark.parametrize("spoil", ["missing", "damaged"])
async def test_too_little_is_left(world: World, spoil: str) -> None:
    """Nothing tells which disks these are: refused with the way out, and nothing is changed."""
    async with copied(world) as copy:
        if spoil == "missing":
            (copy.folder / "vm.description").unlink()
        else:
            data = bytearray((copy.folder / "vm.description").read_bytes())
            data[60] ^= 1
            (copy.folder / "vm.description").write_bytes(data)
        flip(copy.folder)
        listed = sorted(os.listdir(copy.folder))
        async with world.agent() as agent:
            with pytest.raises(InvalidStateError, match="Nothing in") as refused:
                await agent.recover(copy.folder.name, ORDER)
            assert "Move the folder away" in refused.value.remedy
            assert ("checksum" in refused.value.text) == (spoil == "damaged")
            assert VM in agent.damaged
        assert sorted(os.listdir(copy.folder)) == listed


async def test_disk_that_is_missing_is_named(world: World) -> None:
    async with copied(world) as copy:
        delete(copy.folder)
        (copy.folder / "disk-3.raw").rename(copy.folder / "elsewhere")
        async with world.agent() as agent:
            with pytest.raises(StorageError, match=r"Disk 3 of 98304 bytes is missing at .*disk-3\.raw"):
                await recover(agent)
            (copy.folder / "elsewhere").rename(copy.folder / "disk-3.raw")
            await recover(agent)


# --- what is not recovered -----------------------------------------------------------------------------------------


async def test_state_that_is_sound_again_is_believed(world: World) -> None:
    """An administrator may bring the right file back while the agent runs: then nothing is rebuilt."""
    async with copied(world) as copy:
        shutil.copy(copy.folder / "state.db", copy.folder.parent / "kept")
        flip(copy.folder)
        async with world.agent() as agent:
            shutil.copy(copy.folder.parent / "kept", copy.folder / "state.db")
            vm = await recover(agent)
            assert vm.point() == copy.tap.position
            assert list(copy.folder.glob("state.db.damaged-*")) == []


async def test_state_of_a_newer_version_is_not_replaced(world: World) -> None:
    async with copied(world) as copy:
        store = await world.stores_of_its_own().open(str(copy.folder))
        await store.commit({"vm": {**store.get("vm"), "version": 2}})
        await store.close()
        async with world.agent() as agent:
            with pytest.raises(VmreplicaError, match="version 2") as refused:
                await recover(agent)
            assert refused.value.code == "store_newer"
            assert list(copy.folder.glob("state.db.damaged-*")) == []


async def test_unknown_vm(world: World) -> None:
    async with world.agent() as agent:
        with pytest.raises(NotFoundError):
            await recover(agent)


# --- kills ---------------------------------------------------------------------------------------------------------


class KillingSystem:
    """Kills at the N-th rename or sync of this process: a rebuilding does all of its own through them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, die_at: int | None) -> None:
        self.count = 0
        self._die_at = die_at
        rename, fsync = os.rename, os.fsync

        def renamed(*paths: str, **folders: Any) -> None:
            self.step()
            rename(*paths, **folders)

        def synced(descriptor: int) -> None:
            self.step()
            fsync(descriptor)

        monkeypatch.setattr(os, "rename", renamed)
        monkeypatch.setattr(os, "fsync", synced)

    def step(self) -> None:
        self.count += 1
        if self._die_at is not None and self.count >= self._die_at:
            raise Killed


@pytest.mark.parametrize("promoted", [False, True], ids=["copy", "promoted"])
async def test_kill_at_each_operation_of_a_recover(
    memory_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, promoted: bool
) -> None:
    """Either still damaged or recovered, never an empty database, which the next start would delete with the copy."""
    world = World(memory_path / "whole", certificates, sockets=memory_path)
    if promoted:
        async with replicating(world) as pair:
            await failover(pair.agent.vms[VM])
    else:
        async with copied(world):
            pass
    folder = world.folder_of()
    flip(folder)
    (folder / "state.db-wal").write_bytes(b"a rest of the old log")
    states, recovered, die_at = set(), False, 0
    while not recovered:
        die_at += 1
        mine = World(memory_path / str(die_at), certificates, sockets=memory_path)
        shutil.copytree(world.storage, mine.storage)
        with monkeypatch.context() as patch:
            KillingSystem(patch, die_at)
            agent, workers = mine.build()
            await agent.start()
            try:
                await recover(agent)
                recovered = True
            except Killed:
                pass
            await kill(agent, workers, FailingFiles())
            await mine.stores.close()
        mine.files = FailingFiles()
        async with mine.agent() as agent:
            assert (mine.folder_of() / "disk-0.raw").exists()
            states.add(VM in agent.vms)
            vm = agent.vms.get(VM) or await recover(agent)
            assert (vm.ledger.promotion is not None) == promoted
            assert vm.point() is None
            assert len(list(mine.folder_of().glob("state.db.damaged-*"))) >= 1
    assert states == {False, True}
