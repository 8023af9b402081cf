"""Keeps a VM that was failed over from being started here again: its tap serves whoever connects for reading only (I8).

A guest that is connected goes on (I14): cutting off a running guest's disk because of a message from another host would
let a mistaken or hostile replica stop any VM. But nobody can start the VM here from then on, also after a restart of
the tap or the host, until an administrator says that this side counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from primary_agent.dialing import dial, open_body
from primary_agent.judgement import view_of
from primary_agent.parts import Parts
from primary_agent.record import FenceRecord, fence_record
from primary_agent.replication import Replication
from protocol.messages import ErrorCode, Fence
from shared.channel import ChannelClosed
from shared.planning import Decision, Fenced, SplitBrain, decide
from shared.sides import ReplicaView
from shared.states import ReplicationState
from shared.tap_config import TapConfig

TEXT_MAX = 256


def fenced_config(config: TapConfig, replication: Replication) -> TapConfig:
    """The tap's configuration as the state asks for it."""
    return msgspec.structs.replace(config, fenced=fence_text(replication))


def fence_text(replication: Replication) -> str:
    """Why the tap has to refuse changes; empty where it has not to."""
    told = replication.record.fenced
    if replication.state is ReplicationState.FAILED_OVER:
        told = told or "The VM was failed over to its replica's host."
    # Where an administrator had it tried again it stays so until a session begins that the replica does not refuse.
    return told[:TEXT_MAX]


async def follow(parts: Parts) -> None:
    """Bring the tap in line with the state; called now and then. Raises VmreplicaError or OSError."""
    tap, wanted = parts.tap, fence_text(parts.replication)
    if tap.config.fenced != wanted:
        # Not the disks that an order has just changed: the tap was not stopped for them yet.
        await tap.save(msgspec.structs.replace(tap.config, fenced=wanted))
    connection = tap.connection
    if connection is not None and connection.alive and connection.status.fenced not in (None, wanted):
        status = await connection.client.set(fenced=wanted)
        connection.adopt(status, parts.surroundings.ports.clock.monotonic())


@dataclass(frozen=True, slots=True)
class Told:
    """What the replica says of the failover now; ``fence`` is None where there is none, or an older one tells none."""

    promoted: bool
    fence: FenceRecord | None = None


def is_fenced(error: Exception) -> bool:
    """Whether the replica refuses since the VM is failed over to it."""
    return isinstance(error, ChannelClosed) and error.problem is not None and error.problem.code is ErrorCode.FENCED


async def look(parts: Parts) -> tuple[ReplicaView, Decision]:
    """How the replica stands now, and what a session would be for.

    Raises what dialling raises: ChannelClosed with the code ``fenced`` where the VM is failed over to it.
    """
    connection = parts.tap.require()
    dialled = await dial(parts.surroundings, parts.address, open_body(parts.replication, connection))
    await dialled.channel.close("only the failover was asked about")
    view = dialled.view(str(parts.address))
    return view, decide(view_of(parts.replication, connection), view)


async def ask(parts: Parts) -> Told:
    """Ask the replica whether the VM is failed over to it. Raises what dialling raises."""
    try:
        _, decision = await look(parts)
    except ChannelClosed as error:
        if not is_fenced(error):
            raise
        fence = error.problem.fence if error.problem is not None else None
        return Told(True, fence_record(fence) if isinstance(fence, Fence) else None)
    # One whose history goes on from ours was promoted, whatever it knows of that.
    return Told(isinstance(decision, (Fenced, SplitBrain)))
