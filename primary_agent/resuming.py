"""What ``resume`` means in each state of a VM's replication: go on, start the resync, or say what to do instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from primary_agent.fencing import look
from primary_agent.parts import Parts
from primary_agent.record import StartedBy
from primary_agent.replication import Replication
from primary_agent.starting import begin_wanted
from protocol.errors import ProtocolError
from protocol.position import NO_EPOCH
from shared.errors import InvalidStateError, VmreplicaError
from shared.events import EventId
from shared.planning import AwaitReverse, ResyncCause
from shared.states import PrimaryEvent, ReplicationState

_S = ReplicationState


async def resume(
    parts: Parts,
    check_gate: Callable[[str], Awaitable[None]],
    not_now: Callable[[str, str], InvalidStateError],
    *,
    resynchronize: bool,
) -> None:
    """Carry the order out. Raises InvalidStateError where the state, or the gate (I20), does not allow it."""
    replication = parts.replication
    parts.link.poke.notify()
    if resynchronize:
        await _give_up_former(parts)
    if replication.state is _S.WAITING_FOR_START_RESYNCHRONIZE or (
        replication.state is _S.REPLICATING and resynchronize
    ):
        await check_gate("resynchronization")
    # It may have moved while connectivity was being proven.
    state, record = replication.state, replication.record
    match state:
        case _S.SUSPENDED:
            # There is no session yet: a resync begins when connectivity is healthy.
            await replication.resume(asked=resynchronize)
        case _S.RESYNCHRONIZE_SUSPENDED:
            await replication.transition(
                PrimaryEvent.RESUMED, "the administrator asked for it", started_by=StartedBy.ADMINISTRATOR
            )
        case _S.WAITING_FOR_START_RESYNCHRONIZE:
            await replication.transition(
                PrimaryEvent.RESYNC_STARTED,
                "the administrator asked for it",
                started_by=StartedBy.ADMINISTRATOR,
                resync_at=None,
                stopped_time=None,
            )
        case _S.REPLICATING if resynchronize:
            await begin_wanted(parts, StartedBy.ADMINISTRATOR, "The administrator asked for it.")
        case _S.RESYNCHRONIZING if record.started_by is StartedBy.WINDOW:
            # From now on it is the administrator's, and does not rest outside of the window.
            await replication.update(started_by=StartedBy.ADMINISTRATOR)
        case _S.REPLICATING if record.problem is None and parts.link.dialled is not None:
            raise not_now("resume", "It is replicating; add --resynchronize to compare all blocks.")
        case _S.FAILED_OVER:
            await leave_failover(replication, resynchronize=resynchronize)
        case _S.READY_FOR_INITIAL_REPLICATION | _S.WAITING_FOR_INITIAL_REPLICATION:
            raise not_now("resume", f"Run `vmreplica initial {replication.vm.name}`.")
        case _S.PREPARED_FOR_FAILOVER:
            raise not_now("resume", f"Take that back: vmreplica failover {replication.vm.name} --prepare --abort")


async def _give_up_former(parts: Parts) -> None:
    """Where no copy of the VM is kept at the replica that is set, its former primary is not waited for any more.

    Else a direction that was reversed could never be replicated again once that host is gone for good.
    """
    if parts.replication.record.reversal is None or parts.link.healthy():
        return
    try:
        async with parts.surroundings.dialing.turn(parts.address):
            _, decision = await look(parts)
    except (VmreplicaError, ProtocolError, OSError):
        # What is wrong with the way there, the gate tells.
        return
    if isinstance(decision, AwaitReverse):
        # Nothing bounds the compare from here on, whoever answers next.
        await parts.replication.update(reversal=None)
        parts.link.poke.notify()


async def leave_failover(replication: Replication, *, resynchronize: bool, undone: str = "") -> None:
    """Where the failover still stands the next session is told so, and nothing was sent by then (I8).

    ``undone`` says that the replica told of its undo by itself, and what that means: an event of its own.
    """
    record, cause = replication.record, "the administrator asked for it"
    # What was told is about the record as it was then; an order is about whatever there is.
    seen = record if undone else None
    told: list[dict[str, Any]] = []
    if undone:
        cause = "undone at the replica"
        data = {"failover": record.fence.epoch.hex(), "host": record.fence.host} if record.fence is not None else {}
        told.append(replication.event(EventId.FENCE_LIFTED, undone, cause=cause, data=data))
    # What was proposed before the failover may be committed there; in Resynchronizing its answer is taken.
    settling = (PrimaryEvent.RESYNC_STARTED,) if record.proposed is not None else ()
    if record.epoch == NO_EPOCH and not settling:
        # No baseline to go on from: its initial replication was fenced.
        await replication.transition(PrimaryEvent.INITIAL_CANCELLED, cause)
    elif resynchronize:
        await replication.transition((PrimaryEvent.RETRIED, *settling), cause, resync_wanted=True)
        await replication.require_resync(ResyncCause.AFTER_FAILOVER, f"After a failover: {record.fenced}")
    elif record.causes or settling:
        path = (PrimaryEvent.UNFENCED, PrimaryEvent.RESYNC_REQUIRED, *settling)
        await replication.transition(path, cause if undone else "as before the failover", *told, seen=seen)
    else:
        await replication.transition(PrimaryEvent.UNFENCED, cause, *told, seen=seen)
