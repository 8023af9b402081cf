"""Tests of a whole replica agent: initial replication, streaming, resync, over TLS."""

from __future__ import annotations

import random

from protocol.messages import ResyncKind
from protocol.position import NO_EPOCH
from replica_agent.agent import ReplicaAgent
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import DISKS, Dialler, Primary, Resync, World, check_points, disk_bytes, random_content


def dialler_of(world: World, agent: ReplicaAgent, host: str = "primary") -> Dialler:
    assert agent.sessions.listener is not None
    return Dialler(world.certificates, agent.sessions.listener.address, host)


async def initial(world: World, agent: ReplicaAgent, tap: Tap, rng: random.Random) -> tuple[Dialler, Primary, Resync]:
    """An initial replication from nothing to its first point."""
    dialler = dialler_of(world, agent)
    control, opened = await dialler.open()
    assert opened.epoch == NO_EPOCH
    assert opened.state == "ReadyForInitialReplication"
    resync = Resync(dialler, control, tap, rng.randbytes(16))
    await resync.whole(rng)
    return dialler, control, resync


async def test_initial_replication_and_streaming_expose_whole_cuts(world: World) -> None:
    """I1, I6."""
    rng = random.Random(1)
    tap = Tap(DISKS)
    random_content(tap, rng)
    async with world.agent() as agent:
        _, control, _ = await initial(world, agent, tap, rng)
        for _ in range(10):
            await control.send_segment(tap, rng)
        await control.until_applied(tap.position)
        assert agent.vms[VM].point() == tap.position
    check_points(world, tap)
    for disk in DISKS:
        assert disk_bytes(world, disk.index) == tap.content[disk.index]


async def test_resync_sends_only_what_differs(world: World) -> None:
    """I1, I7: the old point stays until the commit; only differing blocks cross the wire."""
    rng = random.Random(2)
    tap = Tap(DISKS)
    random_content(tap, rng)
    async with world.agent() as agent:
        dialler, control, _ = await initial(world, agent, tap, rng)
        old = tap.position
        tap.content[0][70_000:70_010] = b"unlogged!!"
        fresh = tap.begin(b"n" * 16)
        resync = Resync(dialler, control, fresh, rng.randbytes(16), ResyncKind.RESYNC, EPOCH)
        await resync.begin()
        await resync.compare()
        assert resync.sent == [(0, 65536)]
        assert agent.vms[VM].point() == old
        assert disk_bytes(world, 0) == tap.cuts[old.segment][0]
        await resync.send_tracked(rng)
        assert agent.vms[VM].point() == old
        await resync.commit()
        await control.until_applied(fresh.position)
        for _ in range(3):
            await control.send_segment(fresh, rng)
        await control.until_applied(fresh.position)
    check_points(world, tap, fresh)
    assert world.points[-1][0] == fresh.position
