"""What ``resume`` means in each state of a VM's replication: go on, start the resync, or say what to do instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from primary_agent.parts import Parts
from primary_agent.record import StartedBy
from primary_agent.replication import Replication
from primary_agent.starting import begin_wanted
from shared.errors import InvalidStateError
from shared.planning import ResyncCause
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
            # Where the failover still stands the next session is told so, and nothing was sent by then (I8).
            await _unfence(replication, asked=resynchronize)
        case _S.READY_FOR_INITIAL_REPLICATION | _S.WAITING_FOR_INITIAL_REPLICATION:
            raise not_now("resume", f"Run `vmreplica initial {replication.vm.name}`.")
        case _S.PREPARED_FOR_FAILOVER:
            raise not_now("resume", f"Take that back: vmreplica failover {replication.vm.name} --prepare --abort")


async def _unfence(replication: Replication, *, asked: bool) -> None:
    """Try again after a failover, which may have been undone, or, ``asked``, with a resync.

    A resync that was open goes on where the replica may have its commit, which can't be taken back. Else it is given
    up: the replica's part of it went with the failover, and what required it is on record.
    """
    step, done = PrimaryEvent, False
    while not done:
        record = replication.record
        proposed = record.resync if record.resync is not None and record.resync.end is not None else None
        path = [step.RETRIED] if asked else [step.UNFENCED]
        if not asked and (record.causes or proposed):
            path.append(step.RESYNC_REQUIRED)
        if proposed:
            path.append(step.RESYNC_STARTED)
        fields = {"resync": proposed, "stopped_time": None} | ({"resync_wanted": True} if asked else {})
        done = await replication.transition(path, "the administrator asked for it", seen=record, **fields)
    if asked:
        await replication.require_resync(ResyncCause.AFTER_FAILOVER, f"After a failover: {replication.record.fenced}")
