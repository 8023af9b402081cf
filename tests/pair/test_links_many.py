"""Twenty VMs between the same two hosts, whose connections stall and are let go at random."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess

import pytest

from primary_agent.vm import PrimaryVm
from shared.admin.verbs import EnableParams
from shared.states import ReplicationState
from tests.pair.links import LinkedPair
from tests.pair.rig import MIB
from tests.pair.watching import Watch
from tests.places import is_thorough

VMS = 20
ROUNDS = 12 if is_thorough() else 6
SEED = 14


async def write(vm: PrimaryVm, number: int) -> None:
    config = vm.parts.tap.config
    uri = f"nbd+unix:///{config.disks[0].export}?socket={config.nbd_socket}"
    process = await asyncio.create_subprocess_exec(
        "qemu-io", "-f", "raw", "-c", f"write -P {number} {number % 16 * 64}k 64k", "-c", "flush", uri,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0


@pytest.mark.thorough
async def test_many_sessions_that_stall_at_random(linked: LinkedPair) -> None:
    """N14: whichever of them stall, for however long, all converge by themselves."""
    rng = random.Random(SEED)
    for number in range(VMS):
        disk = linked.disk(number)
        disk.write_bytes(os.urandom(MIB))
        address = f"localhost:{linked.route}"
        await linked.primary.enable(
            EnableParams(name=f"vm{number}", disks=[str(disk)], replica=address, interval_seconds=1.0)
        )
    vms = sorted(linked.primary.vms.values(), key=lambda vm: int(vm.record.name[2:]))

    async def until(what: str, reached: object) -> None:
        deadline = asyncio.get_running_loop().time() + 90
        while not all(reached(vm) for vm in vms):  # type: ignore[operator]
            late = [vm.record.name for vm in vms if not reached(vm)]  # type: ignore[operator]
            assert asyncio.get_running_loop().time() < deadline, f"{what}: {late}"
            await asyncio.sleep(0.05)

    await until("links", lambda vm: vm.parts.link.healthy())
    for vm in vms:
        await vm.initial()
    await until("Replicating", lambda vm: vm.parts.replication.state is ReplicationState.REPLICATING)
    epochs = [vm.parts.replication.record.epoch for vm in vms]
    stalled = 0
    async with Watch() as watch:
        for number in range(ROUNDS):
            for connection in list(linked.proxy.connections):
                connection.held = rng.random() < 0.4
                stalled += connection.held
            if number % 6 == 5:
                # Longer than the deadline: the stalled ones are given up, and dialled anew.
                await asyncio.sleep(2.0)
            await write(vms[rng.randrange(VMS)], 1 + number)
        linked.proxy.stall(held=False)
        await asyncio.gather(*(write(vm, 100 + number) for number, vm in enumerate(vms[:4])))
        cuts = {}
        for vm in vms:
            cuts[vm.record.vm] = (await vm.parts.tap.require().client.cut("test")).position()

        def is_there(vm: PrimaryVm) -> bool:
            point, cut = linked.replica.vms[vm.record.vm].point(), cuts[vm.record.vm]
            return point is not None and point.epoch == cut.epoch and point.segment >= cut.segment

        await until("the newest cut", is_there)
        await until("links", lambda vm: vm.parts.link.healthy())
    watch.assert_flat(memory=96 * MIB, descriptors=8 * VMS, tasks=12 * VMS)
    assert stalled > ROUNDS
    for vm in vms:
        ours, theirs = vm.record.disks[0].path, linked.replica.vms[vm.record.vm].parts.layout.disk(0)
        same = subprocess.run(["cmp", ours, theirs], check=False).returncode == 0
        assert same, vm.record.name
        assert vm.parts.replication.state is ReplicationState.REPLICATING
    # A link that comes and goes is no reason for a compare.
    assert [vm.parts.replication.record.epoch for vm in vms] == epochs
