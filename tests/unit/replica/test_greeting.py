"""Tests of how a real agent greets other versions, and of streams that end in the middle of a segment."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.errors import ProtocolError
from protocol.messages import MessageType, Welcome
from protocol.session import Identity, PrimarySession
from shared.channel import Channel, ChannelClosed
from shared.ports.clock import RealClock
from shared.ports.network import RealNetwork
from tests.unit.replica.logs import EPOCH, VM
from tests.unit.replica.rig import DISKS, Dialler, World, disk_bytes
from tests.unit.replica.test_sessions import dialler_of, replicating, until


async def greet(dialler: Dialler, *versions: int) -> tuple[Channel, Welcome]:
    """Greet as a primary that speaks these versions of the protocol."""
    link = await RealNetwork(dialler.certificates.identity(dialler.host)).connect(dialler.address, timeout=5)
    channel = Channel(link, PrimarySession(Identity("test", "primary.test", versions=versions)), RealClock())
    welcome = await channel.greet()
    assert isinstance(welcome, Welcome)
    return channel, welcome


@pytest.mark.parametrize("versions", [(1,), (1, 2), (9, 1, 77)])
async def test_version_that_both_speak_is_taken_among_others(world: World, versions: tuple[int, ...]) -> None:
    """A22: a newer primary offers more, and the older replica takes what it knows."""
    async with world.agent() as agent:
        channel, welcome = await greet(dialler_of(world, agent), *versions)
        assert welcome.version == 1
        channel.abort()


@pytest.mark.parametrize("versions", [(2,), (0,), (2, 3, 65535)])
async def test_versions_that_are_not_listed_are_refused_by_name(world: World, versions: tuple[int, ...]) -> None:
    """A22."""
    async with world.agent() as agent:
        with pytest.raises((ChannelClosed, ProtocolError)) as refused:
            await greet(dialler_of(world, agent), *versions)
        assert isinstance(refused.value, ChannelClosed | ProtocolError)
        assert refused.value.code == "version"
        assert str(sorted(versions)) in refused.value.text
        assert agent.vms == {}


@pytest.mark.parametrize("part", [0.5, 1.0], ids=["in a frame", "behind a frame"])
async def test_stream_that_is_cut_in_the_middle_of_a_segment(world: World, part: float) -> None:
    """A23: TCP ends, TLS has not said so; half a frame is thrown away, and a segment without its end is no cut."""
    async with replicating(world) as pair:
        vm, before = pair.agent.vms[VM], pair.tap.segment
        log, seal = pair.tap.random_segment(pair.rng)
        control, channel = vm.connections.control, pair.control.channel
        assert control is not None
        frame = b"".join(channel.session.send_bulk(MessageType.LOG, [log]))
        link: Any = channel._link
        link.write(frame[: int(len(frame) * part)])
        link._transport.write_eof()
        await until(lambda: vm.connections.control is None)
        assert "without a TLS close_notify" in control.channel.reason
        assert vm.point() == pair.tap.ends[before]
        assert all(disk_bytes(world, disk.index) == pair.tap.cuts[before][disk.index] for disk in DISKS)
        pair.control, opened = await pair.dialler.open(epoch=EPOCH)
        assert opened.cut is not None and opened.cut.position() == pair.tap.ends[before]
        assert opened.received is not None
        if part < 1:
            assert opened.received.position() == pair.tap.ends[before]
            pair.control.log(log)
        pair.control.seal(seal)
        await pair.control.received(pair.tap.position)
        await pair.control.until_applied(pair.tap.position)
        await pair.check_unharmed()
