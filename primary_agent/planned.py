"""A planned failover at the primary: its steps on record, and the tap kept in line with them.

The records come first: an order is durable before the tap hears of it, and the tap takes no writes before anything is
promised to the replica. Whatever a crash leaves is brought in line every second (:func:`keep`).
"""

from __future__ import annotations

import structlog

from primary_agent.parts import Parts
from primary_agent.planned_steps import event_of, holds, step_of, stepped
from primary_agent.record import PlannedRecord, PositionRecord
from protocol.position import Position
from shared.errors import InvalidStateError, UnreachableError, VmreplicaError
from shared.progress_status import ProgressStatus
from shared.rates import duration_text
from shared.states import PLANNED_TOKEN, PlannedEvent, PlannedStep, PrimaryEvent, ReplicationState
from shared.status import CutStatus, PlannedStatus

log = structlog.get_logger(__name__)

_OFF = frozenset({PlannedStep.GIVEN_UP, PlannedStep.FORCED})


async def advance(
    parts: Parts, event: PlannedEvent, text: str, *, cut: Position | None = None, token: bytes | None = None
) -> PlannedRecord:
    """Take a step, durably and with its event; the VM's state goes with it where the token leaves, or is void.

    Raises InvalidStateError where the table has no such step by now.
    """
    replication = parts.replication
    while True:
        record = replication.record
        planned, now = record.planned, parts.surroundings.ports.clock.wall()
        if planned is None or event is PlannedEvent.ORDERED:
            stepped(_none(), event, text, now) if planned is None else stepped(planned, event, text, now)
            identity = parts.surroundings.ports.random.bytes(16)
            after = PlannedRecord(id=identity, step=PlannedStep.STOPPING, started_time=now, step_time=now, text=text)
        else:
            changes = {"cut": PositionRecord.of(cut)} if cut is not None else {}
            after = stepped(planned, event, text, now, **changes, **({"token": token} if token is not None else {}))
        told = event_of(step_of(planned), after, event, text, now)
        moved = _moved(record.state, after.step, required=bool(record.causes))
        if await replication.transition(moved, text, told, seen=record, planned=after):
            return after


def _none() -> PlannedRecord:
    return PlannedRecord(id=bytes(16), step=PlannedStep.GIVEN_UP, started_time=0.0, step_time=0.0)


def _moved(state: ReplicationState, after: PlannedStep, *, required: bool) -> PrimaryEvent | None:
    """How the VM's state goes on when the preparation is at ``after``."""
    prepared = state is ReplicationState.PREPARED_FOR_FAILOVER
    if after is PlannedStep.PROMISED:
        return PrimaryEvent.PREPARED
    if prepared and after in _OFF:
        return PrimaryEvent.PREPARATION_LOST if required else PrimaryEvent.PREPARATION_ENDED
    return None


# --- the tap -----------------------------------------------------------------------------------------------------


async def stop_writes(parts: Parts) -> None:
    """Have the tap take no writes, and seal the cut behind the last one.

    Raises what keeps it from that: UnreachableError where it is tried again; with others it is given up.
    """
    planned = parts.replication.record.planned
    if planned is None or planned.step is not PlannedStep.STOPPING:
        return
    client = parts.tap.require().client
    try:
        await client.refuse_writes(planned.id, _refusal_text(parts))
        cut = (await client.cut("planned failover")).position()
        await parts.tap.refresh()
    except UnreachableError:
        raise
    except VmreplicaError as error:
        await fail(parts, error.text)
        raise
    if cut.epoch != parts.replication.record.epoch:
        text = f"The tap's cut {cut} is not one of the baseline."
        await fail(parts, text)
        raise InvalidStateError(text, "Look at `vmreplica status`.")
    await advance(parts, PlannedEvent.STOPPED, f"No writes are taken since cut {cut}.", cut=cut)


async def fail(parts: Parts, text: str) -> None:
    """What was not promised yet can't go on: it is given up, and writes are taken again."""
    name = parts.replication.vm.name
    told = f"The planned failover of {name} is given up: {text}"
    await advance(parts, PlannedEvent.FAILED, told)
    await let_writes(parts)


async def let_writes(parts: Parts) -> None:
    """Have the tap take writes again, as far as the records say so; what fails is tried again by :func:`keep`."""
    try:
        await _let_writes(parts)
    except VmreplicaError as error:
        log.warning("the tap could not be told to take writes", vm=parts.replication.vm.name, reason=str(error))


async def _let_writes(parts: Parts) -> None:
    planned, connection = parts.replication.record.planned, parts.tap.connection
    if planned is None or planned.step not in _OFF or connection is None:
        return
    status = await parts.tap.refresh()
    if status.refused is not None and status.refused.id == planned.id.hex():
        connection.adopt(
            await connection.client.allow_writes(status.refused.id), parts.surroundings.ports.clock.monotonic()
        )


async def keep(parts: Parts) -> None:
    """Bring the tap in line with the records; called every second. Whatever fails now is tried then."""
    planned, connection = parts.replication.record.planned, parts.tap.connection
    if planned is None or connection is None or not connection.alive:
        return
    refused = connection.status.refused
    try:
        if planned.step is PlannedStep.STOPPING:
            await stop_writes(parts)
        elif holds(planned) and refused is None:
            # Also where somebody is connected: the VM may run elsewhere by now.
            await connection.client.refuse_writes(planned.id, _refusal_text(parts), used=True)
            await parts.tap.refresh()
        elif refused is not None and refused.id == planned.id.hex():
            await _let_writes(parts)
    except VmreplicaError as error:
        log.warning("the tap is not as the planned failover needs it", vm=parts.replication.vm.name, reason=str(error))


def _refusal_text(parts: Parts) -> str:
    return f"{parts.replication.vm.name} is prepared for a failover to {parts.replication.record.peer_host}"


# --- what is shown -----------------------------------------------------------------------------------------------


def planned_status(parts: Parts) -> PlannedStatus | None:
    """The preparation as the VM's status has it."""
    planned = parts.replication.record.planned
    if planned is None:
        return None
    cut = planned.cut.position if planned.cut is not None else None
    return PlannedStatus(
        step=planned.step.value,
        text=planned.text,
        started_time=planned.started_time,
        step_time=planned.step_time,
        cut=CutStatus(epoch=cut.epoch.hex(), segment=cut.segment, entry=cut.entry, time=None) if cut else None,
        chain=cut.chain.hex() if cut is not None else "",
        token_sent=planned.step in PLANNED_TOKEN,
        holds_writes=holds(planned),
    )


def planned_progress(parts: Parts) -> ProgressStatus | None:
    """The work that the preparation is at; None where it waits for nobody but the administrator."""
    planned = parts.replication.record.planned
    if planned is None:
        return None
    now, left = parts.surroundings.ports.clock.wall(), parts.pending_bytes()
    told = {
        PlannedStep.STOPPING: ("stopping writes", "the tap is told to take no writes"),
        PlannedStep.SENDING: ("sending", "the replica has to receive and apply the cut"),
        PlannedStep.PROMISED: ("confirming", "the replica has to confirm the token"),
        PlannedStep.TAKING_BACK: ("taking back", "the replica has to answer that the token is void"),
    }.get(planned.step)
    if told is None:
        return None
    phase, text = told
    since = duration_text(max(0.0, now - planned.step_time))
    return ProgressStatus(
        kind="planned",
        phase=phase,
        text=f"{text}, for {since} now; {left} bytes are to be acknowledged" if left else f"{text}, for {since} now",
        started_time=planned.started_time,
    )
