"""What a hand-over by the primary agent finds at the replica agent of the same host, and what it leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from replica_agent.agent import ReplicaAgent
from replica_agent.taking_over import take_over
from shared.errors import InvalidStateError, StoreDamagedError
from shared.handover import HandedDisk, HandOver, digest, encode_ranges
from shared.states import ReplicationState
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import DISKS, Resync, World
from tests.unit.replica.test_sessions import dialler_of

NOTHING = encode_ranges({})


def handed(folder: Path) -> HandOver:
    """A VM whose disks are in ``folder``."""
    disks = []
    for disk in DISKS:
        path = folder / f"guest-{disk.index}.raw"
        path.write_bytes(bytes(disk.size))
        disks.append(
            HandedDisk(
                index=disk.index, uuid=disk.uuid.hex(), path=str(path), size=disk.size, export=f"disk{disk.index}"
            )
        )
    return HandOver(
        id="a" * 32,
        vm=VM.hex(),
        name="web",
        to="replica",
        disks=disks,
        epoch=EPOCH.hex(),
        reason="tracking is off",
        ranges_bytes=len(NOTHING),
        ranges_digest=digest(NOTHING),
    )


def made(world: World) -> list[Path]:
    return sorted(world.folder_of().glob("disk-*.raw"))


async def opened(world: World, agent: ReplicaAgent) -> Resync:
    """The other host has connected before the order came."""
    dialler = dialler_of(world, agent)
    control, _ = await dialler.open()
    return Resync(dialler, control, Tap(DISKS), b"1" * 16)


async def test_disks_of_the_other_hosts_first_connection_make_room(world: World, tmp_path: Path) -> None:
    async with world.agent() as agent:
        await opened(world, agent)
        assert len(made(world)) == len(DISKS)
        order = handed(tmp_path)
        vm = await take_over(agent, order, NOTHING)
        assert vm.ledger.replication.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
        assert [vm.parts.disks.path(disk.index) for disk in DISKS] == [disk.path for disk in order.disks]
        assert made(world) == [] and all(Path(disk.path).exists() for disk in order.disks)


async def test_first_copy_under_way_is_not_taken_away(world: World, tmp_path: Path) -> None:
    """Refused before anything of it was touched."""
    async with world.agent() as agent:
        resync = await opened(world, agent)
        await resync.begin()
        before = made(world)
        with pytest.raises(InvalidStateError, match="not possible in state InitialReplicationInProgress"):
            await take_over(agent, handed(tmp_path), NOTHING)
        assert made(world) == before and len(before) == len(DISKS)
        assert agent.vms[VM].ledger.replication.state is ReplicationState.INITIAL_REPLICATION_IN_PROGRESS


async def test_copy_whose_state_is_damaged_is_not_replaced(world: World, tmp_path: Path) -> None:
    """What it was is not known: it may be the copy that counts."""
    async with world.agent() as agent:
        await opened(world, agent)
    (world.folder_of() / "state.db").write_bytes(b"no database" * 999)
    before = made(world)
    async with world.agent() as agent:
        with pytest.raises(StoreDamagedError) as refused:
            await take_over(agent, handed(tmp_path), NOTHING)
        assert "vmreplica recover" in refused.value.remedy
        assert made(world) == before and not agent.vms
