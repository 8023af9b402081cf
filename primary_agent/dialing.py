"""Connecting to a replica agent: link, handshake, and the OPEN of a connection for a role."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from primary_agent.replication import Replication
from primary_agent.surroundings import Surroundings
from primary_agent.tap_link import Connection
from protocol.bulk import Bulk
from protocol.errors import ProtocolError
from protocol.hrl import Geometry
from protocol.messages import (
    DISK_SETS,
    Body,
    Open,
    Opened,
    ResyncState,
    Role,
    Welcome,
    WireDisk,
    WirePosition,
    read_lineage,
    wire_lineage,
)
from protocol.session import Message, PrimarySession
from shared.channel import Channel, ChannelClosed
from shared.ports import Address
from shared.sides import OpenResync, ReplicaView
from shared.states import ReplicationState

CONNECT_SECONDS = 10.0
OPENING_SECONDS = 30.0
"""How long the replica may take from OPEN to OPENED: it may have to end an older session first (R13)."""


@dataclass(slots=True)
class Dialled:
    """An open connection to the replica, and what it said of itself."""

    channel: Channel
    welcome: Welcome
    opened: Opened

    def view(self, peer: str) -> ReplicaView:
        """The replica's OPENED as the decision takes it."""
        opened = self.opened
        resync = opened.resync
        return ReplicaView(
            disks=tuple(disk.geometry() for disk in opened.disks),
            disk_set=opened.disk_set if isinstance(opened.disk_set, int) else None,
            epoch=opened.epoch,
            lineage=read_lineage(opened.lineage),
            promoted=opened.promoted,
            received=opened.received.position() if opened.received is not None else None,
            cut=opened.cut.position() if opened.cut is not None else None,
            applied=opened.applied.position() if opened.applied is not None else None,
            resync=_open_resync(resync) if resync is not None else None,
            needs_resync=opened.state == ReplicationState.WAITING_FOR_START_RESYNCHRONIZE.title,
            host=self.welcome.host or peer,
            causes=tuple((each.code, each.text) for each in opened.causes),
            common=opened.common.position() if isinstance(opened.common, WirePosition) else None,
        )


def _open_resync(state: ResyncState) -> OpenResync:
    return OpenResync(state.id, state.epoch, state.settled_bytes, state.round, unsettle=state.unsettle)


async def greet(surroundings: Surroundings, address: Address) -> tuple[Channel, Welcome]:
    """Connect, and exchange HELLO and WELCOME.

    Raises UnreachableError, ForbiddenError, ChannelClosed or ProtocolError; nothing stays open then.
    """
    ports = surroundings.ports
    link = await ports.network.connect(address, timeout=CONNECT_SECONDS)
    session = PrimarySession(surroundings.identity)
    channel = Channel(link, session, ports.clock, heartbeat=surroundings.heartbeat, dead_after=surroundings.dead_after)
    try:
        welcome = await channel.greet()
        assert isinstance(welcome, Welcome)
    except BaseException:
        channel.abort()
        raise
    return channel, welcome


async def dial(surroundings: Surroundings, address: Address, body: Open) -> Dialled:
    """Connect and open a connection as ``body`` says. Raises as :func:`greet`; nothing stays open then."""
    channel, welcome = await greet(surroundings, address)
    if DISK_SETS not in welcome.capabilities:
        body = msgspec.structs.replace(body, disk_set=msgspec.UNSET)
    try:
        channel.send(body)
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                opened = await channel.receive()
        except TimeoutError:
            raise ChannelClosed(
                f"The replica at {address} did not answer OPEN within {OPENING_SECONDS:g} s.", code="unreachable"
            ) from None
        if not isinstance(opened, Opened):
            raise ProtocolError(f"{name_of(opened)} came instead of OPENED", code="state")
    except BaseException:
        channel.abort()
        raise
    return Dialled(channel, welcome, opened)


def open_body(replication: Replication, connection: Connection, *, role: Role = Role.CONTROL, token: int = 0) -> Open:
    """The OPEN of a VM as it stands now."""
    record, vm, status = replication.record, replication.vm, connection.status
    tracked = status.position is not None and connection.tracks(replication.tracked_epoch)
    return Open(
        role=role,
        vm=vm.vm,
        name=vm.name,
        disks=[WireDisk.of(disk.geometry) for disk in vm.disks],
        epoch=record.epoch,
        proposed=record.proposed,
        lineage=wire_lineage(record.ancestors),
        log_first_segment=status.first_segment if tracked else 0,
        log_position=WirePosition.of(status.position.position()) if tracked and status.position is not None else None,
        interval_seconds=vm.interval_seconds,
        disk_set=vm.disk_set,
        control_token=token,
    )


def geometry_of(opened: Opened) -> tuple[Geometry, ...]:
    """The replica's disks."""
    return tuple(disk.geometry() for disk in opened.disks)


def name_of(message: Message) -> str:
    """The message's name, for errors."""
    return message.type.name if isinstance(message, Bulk) else type(message).__name__.upper()


def expect(message: Message, kind: type[Body]) -> None:
    """Raises ProtocolError unless the message is of that kind."""
    if not isinstance(message, kind):
        raise ProtocolError(f"{name_of(message)} came instead of {kind.__name__.upper()}", code="state")
