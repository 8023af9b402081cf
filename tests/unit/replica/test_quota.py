"""Tests of what an authorization entry limits, and of trust groups."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import shutil
from typing import Any

import msgspec
import pytest

from protocol.hrl import Geometry
from protocol.messages import Role, WireDisk
from replica_agent.quota import QuotaFigures, Quotas
from replica_agent.vm_status import status_of
from shared.channel import ChannelClosed
from shared.config_sections import AuthorizeSection
from shared.ports.clock import RealClock
from shared.volumes import RATE_KNOWN_SECONDS
from tests.unit.replica.logs import EPOCH, VM, Tap
from tests.unit.replica.rig import DISKS, Resync, World, disk_bytes, random_content
from tests.unit.replica.test_sessions import OTHER_VM, dialler_of, refusal_of, refused_open, replicating, until

NOMINAL = sum(disk.size for disk in DISKS)


def limited(world: World, host: str = "primary", **limits: Any) -> AuthorizeSection:
    return msgspec.structs.replace(world.entry(host), **limits)


async def test_vm_that_does_not_fit_is_refused_with_the_missing_bytes(world: World) -> None:
    world.authorize = [limited(world, quota_bytes=2 * NOMINAL - 4096)]
    async with world.agent() as agent:
        await dialler_of(world, agent).open()
        refused = await refused_open(dialler_of(world, agent), vm=OTHER_VM)
        assert (refused.code, refused.retryable) == ("no_space", True)
        assert "do not fit into the quota" in refused.text and "4096 bytes (4.0 KiB) are missing" in refused.text
        assert "quota_bytes" in refused.remedy
        assert set(agent.vms) == {VM}
        world.authorize = [limited(world, quota_bytes=2 * NOMINAL)]
        await agent.reload(world.config())
        await dialler_of(world, agent).open(vm=OTHER_VM)
        assert set(agent.vms) == {VM, OTHER_VM}


async def test_vm_that_grows_past_the_quota_is_refused_and_one_that_is_there_is_not(world: World) -> None:
    world.authorize = [limited(world, quota_bytes=NOMINAL + 4096)]
    async with world.agent() as agent:
        await dialler_of(world, agent).open()
        large, small = DISKS
        grown = [WireDisk.of(Geometry(large.index, large.size + 8192, large.uuid)), WireDisk.of(small)]
        refused = await refused_open(dialler_of(world, agent), disks=grown)
        assert refused.code == "no_space" and "4096 bytes" in refused.text
        world.authorize = [limited(world, quota_bytes=4096)]
        await agent.reload(world.config())
        await dialler_of(world, agent).open()


async def test_number_of_vms_is_limited(world: World) -> None:
    world.authorize = [limited(world, vms_max=1)]
    async with world.agent() as agent:
        await dialler_of(world, agent).open()
        refused = await refused_open(dialler_of(world, agent), vm=OTHER_VM)
        assert refused.code == "no_space" and "one more than the 1 VM(s)" in refused.text
        assert "vms_max" in refused.remedy
        await dialler_of(world, agent).open()


async def test_quota_that_is_used_up_refuses_log_and_leaves_the_newest_point_whole(world: World) -> None:
    async with replicating(world) as pair:
        vm = pair.agent.vms[VM]
        newest = vm.point()
        world.authorize = [limited(world, quota_bytes=4096)]
        await pair.agent.reload(world.config())
        log, seal = pair.tap.random_segment(pair.rng)
        pair.control.log(log)
        pair.control.seal(seal)
        refused = await refusal_of(pair.control)
        assert (refused.code, refused.retryable) == ("no_space", True)
        assert "is used up" in refused.text and "bytes (" in refused.text and "quota_bytes" in refused.remedy
        assert vm.connections.trouble is not None and vm.connections.trouble.code == "no_space"
        assert vm.point() == newest
        cut = pair.tap.cuts[pair.tap.segment - 1]
        assert all(disk_bytes(world, disk.index) == cut[disk.index] for disk in DISKS)
        # With another quota the same segment is taken.
        world.authorize = [limited(world, quota_bytes=1 << 30)]
        await pair.agent.reload(world.config())
        pair.control, _ = await pair.dialler.open(epoch=EPOCH)
        pair.control.log(log)
        pair.control.seal(seal)
        await pair.control.received(pair.tap.position)
        await pair.control.until_applied(pair.tap.position)
        assert vm.connections.trouble is None


async def test_quota_is_looked_at_while_an_initial_replication_comes(world: World) -> None:
    rng = random.Random(5)
    tap = Tap(DISKS)
    random_content(tap, rng)
    world.authorize = [limited(world, quota_bytes=4 * NOMINAL)]
    async with world.agent() as agent:
        dialler = dialler_of(world, agent)
        control, _ = await dialler.open()
        ballast = world.folder_of() / "undo" / "000000000001-000000000001.undo"
        ballast.parent.mkdir(exist_ok=True)
        ballast.write_bytes(bytes(4 * NOMINAL))
        resync = Resync(dialler, control, tap, b"1" * 16)
        await resync.begin()
        with pytest.raises(ChannelClosed) as refused:
            await resync.compare()
        assert refused.value.code == "no_space" and "is used up" in refused.value.text
        assert all(disk_bytes(world, disk.index) == bytes(disk.size) for disk in DISKS)
        ballast.unlink()
        control.channel.abort()
        again, _ = await dialler.open()
        await Resync(dialler, again, tap, b"1" * 16).whole(rng)
        assert agent.vms[VM].point() == tap.position


async def test_copies_of_others_do_not_count(world: World) -> None:
    elsewhere = str(world.folder / "elsewhere")
    world.authorize = [limited(world, quota_bytes=NOMINAL), limited(world, "other", storage=elsewhere, vms_max=1)]
    async with world.agent() as agent:
        await dialler_of(world, agent, "other").open(vm=OTHER_VM)
        await dialler_of(world, agent).open()
        assert set(agent.vms) == {VM, OTHER_VM}


async def test_usage_is_what_the_files_take(world: World) -> None:
    world.authorize = [limited(world, quota_bytes=1 << 40)]
    async with replicating(world) as pair:
        quotas: Quotas = pair.agent.sessions.quotas
        (grant,) = pair.agent.sessions.authorization.grants
        quotas.forget()
        await quotas.admit(grant, 100)
        usage = quotas._usages[grant]
        folder = world.folder_of()
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("free-")]
        files = [path for path in files if path.parent.name != "tap"]
        assert usage.measured == sum(path.stat().st_blocks * 512 for path in files) > 0
        assert usage.admitted == 100


class LaterClock(RealClock):
    """The real clock, and the time that a test lets pass."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


async def test_figures_tell_how_full_a_quota_is_and_when_it_is_used_up(world: World) -> None:
    quota = 64 << 20
    world.authorize = [limited(world, quota_bytes=quota)]
    async with replicating(world) as pair:
        clock, sessions = LaterClock(), pair.agent.sessions
        ports = dataclasses.replace(pair.agent.ports, clock=clock)
        (grant,) = sessions.authorization.grants
        quotas = Quotas(ports, lambda: [grant], sessions._copies_of)
        assert quotas.figures(grant) == QuotaFigures(quota, None, None)
        await quotas.look()
        before = quotas.figures(grant)
        assert before is not None and before.used and before.full_seconds is None
        (world.folder_of() / "undo" / "000000000098-000000000099.undo").write_bytes(bytes(1 << 20))
        clock.ahead = RATE_KNOWN_SECONDS + 100
        await quotas.look()
        after = quotas.figures(grant)
        assert after is not None and after.used == before.used + (1 << 20)
        assert after.full_seconds == pytest.approx((quota - after.used) / ((1 << 20) / clock.ahead), rel=0.01)
        await quotas.admit(grant, 4096)
        admitted = quotas.figures(grant)
        assert admitted is not None and admitted.used == after.used + 4096
        assert quotas.figures(dataclasses.replace(grant, quota=0)) is None


async def test_status_shows_the_quota_that_the_copy_counts_for(world: World) -> None:
    """That of the entry by which it is replicated; without a session that of the first that is for it."""
    entries = [limited(world, "other", trust_group="all", quota_bytes=1 << 30), limited(world, trust_group="all")]
    world.authorize = entries
    async with replicating(world) as pair:
        vm, quotas = pair.agent.vms[VM], pair.agent.sessions.quotas
        watching = asyncio.create_task(quotas.run())
        try:
            assert status_of(vm).quota_limit_bytes is None
            world.authorize = [entries[0], msgspec.structs.replace(entries[1], quota_bytes=2 << 30)]
            await pair.agent.reload(world.config())
            # It is looked at right after the reload.
            await until(lambda: status_of(vm).quota_used_bytes is not None)
            shown = status_of(vm)
            assert shown.quota_limit_bytes == 2 << 30 and (shown.quota_used_bytes or 0) > 0
        finally:
            watching.cancel()
    async with world.agent() as agent:
        await agent.sessions.quotas.look()
        shown = status_of(agent.vms[VM])
        assert shown.quota_limit_bytes == 1 << 30 and (shown.quota_used_bytes or 0) > 0


async def test_host_of_the_same_trust_group_goes_on_with_a_vm_that_moved(world: World) -> None:
    """As among Hyper-V hosts: a VM moves, its copy stays; no other host may have it."""
    own, shared = str(world.folder / "own"), str(world.storage)
    for storage in (shared, own):
        world.authorize = [
            limited(world, trust_group="cluster"),
            limited(world, "other", storage=storage, trust_group="cluster"),
        ]
        async with replicating(world) as pair:
            folder = pair.agent.vms[VM].parts.layout.folder
            pair.control.channel.abort()
            moved = dialler_of(world, pair.agent, "other")
            await until(lambda: pair.agent.vms[VM].connections.control is None)
            pair.control, opened = await moved.open(epoch=EPOCH)
            assert opened.epoch == EPOCH
            await pair.control.send_segment(pair.tap, pair.rng)
            assert pair.agent.vms[VM].parts.layout.folder == folder
            # The group is dissolved: its session ends, and it has no way in any more.
            world.authorize = [limited(world), limited(world, "other", storage=own, trust_group="cluster")]
            await pair.agent.reload(world.config())
            assert (await refusal_of(pair.control)).code == "unauthorized"
            connections = pair.agent.vms[VM].connections
            await until(lambda: connections.trouble is not None)  # noqa: B023
            assert connections.trouble is not None and connections.trouble.code == "unauthorized"
            for role in (Role.CONTROL, Role.SAMPLE):
                assert (await refused_open(moved, role=role, epoch=EPOCH)).code == "unauthorized"
        shutil.rmtree(world.storage)
