"""The promote token of a planned failover at the replica: taken for exactly one cut, voided by whatever else comes.

A token says that its primary takes no writes since the cut, so that a failover to it loses nothing. It is judged and
recorded in one transaction, and so is the failover that uses it: of a failover and an order to take the token back
exactly one comes first (R43, I8).
"""

from __future__ import annotations

from protocol.messages import FailoverPrepare, FailoverPrepared, FailoverVoid, FailoverVoided
from protocol.position import Position
from replica_agent.ledger import Draft
from replica_agent.parts import VmParts
from replica_agent.record import PositionRecord, PreparedRecord, PromotionRecord
from shared.events import EventId
from shared.states import ReplicationState
from shared.status import CutStatus, PlannedStatus

PREPARED, FAILED_OVER = "prepared", "failed over"
"""Steps of a PlannedStatus at the replica."""


async def take(parts: VmParts, body: FailoverPrepare, host: str) -> FailoverPrepared | FailoverVoided:
    """Record the token, durably, and the answer to it. With any other answer no token is here any more."""
    cut = body.cut.position()
    async with parts.order, parts.ledger.transaction() as draft:
        objection = _objection(parts, draft, cut)
        if objection:
            _drop(draft, "Another token came, which was not taken.")
            draft.event(EventId.PLANNED_FAILOVER, f"No failover is prepared: {objection}.", cause="refused")
        elif draft.prepared is None or draft.prepared.token != body.token:
            _drop(draft, "Another token came.")
            draft.prepared = PreparedRecord(token=body.token, cut=PositionRecord.of(cut), time=draft.now, host=host)
            text = f"{host} takes no writes of {draft.vm.name} any more: a failover to cut {cut} loses nothing."
            draft.event(EventId.PLANNED_FAILOVER, text, cause=PREPARED, cut=str(cut), token=body.token.hex())
    parts.changed.notify()
    if objection:
        return FailoverVoided(token=body.token, text=objection)
    return FailoverPrepared(token=body.token, cut=body.cut)


def _objection(parts: VmParts, draft: Draft, cut: Position) -> str:
    """Why a failover to ``cut`` would not be a planned one; empty where it would."""
    record = draft.replication
    if draft.promotion is not None:
        return "the VM was failed over"
    if record.state is not ReplicationState.REPLICATING or draft.resync is not None or record.causes:
        return f"the copy is in state {record.state.title}"
    if record.suspect is not None:
        return f"the disks are not trusted: {record.suspect.text}"
    applied = record.applied.position if record.applied is not None and record.applying is None else None
    if applied != cut or parts.applier.reachable != cut:
        return f"the newest point is {applied or 'being made'}, and the last cut of the primary {cut}"
    return ""


async def void(parts: VmParts, body: FailoverVoid) -> FailoverVoided:
    """Take the token back, durably: whatever token is here, since the primary knows of no other."""
    await drop(parts, "The primary took it back.")
    return FailoverVoided(token=body.token, text="")


async def drop(parts: VmParts, reason: str) -> None:
    """No token is here any more, durably."""
    async with parts.ledger.transaction() as draft:
        _drop(draft, reason)
    parts.changed.notify()


def _drop(draft: Draft, reason: str) -> None:
    if draft.prepared is not None:
        token, draft.prepared = draft.prepared.token.hex(), None
        text = f"No failover of {draft.vm.name} is prepared any more. {reason}"
        draft.event(EventId.PLANNED_FAILOVER, text, cause="void", token=token)


def claim(draft: Draft, cut: Position) -> PreparedRecord | None:
    """The token, for the failover to ``cut`` that is being made durable; None where that is not a planned one."""
    prepared, draft.prepared = draft.prepared, None
    return prepared if prepared is not None and prepared.cut.position == cut else None


def told(planned: PreparedRecord | None) -> str:
    """What kind of failover it is, in a sentence."""
    if planned is None:
        return "It was not prepared at the primary: what was written there after this cut is not part of it."
    position = planned.cut.position
    return (
        f"It is a planned one: nothing is lost, cut {position.segment} of epoch {position.epoch.hex()}, "
        f"chain {position.chain.hex()}."
    )


def planned_status(prepared: PreparedRecord | None, promotion: PromotionRecord | None) -> PlannedStatus | None:
    """As the VM's status has it."""
    planned = promotion.planned if promotion is not None else prepared
    if planned is None:
        return None
    cut = planned.cut.position
    waits = f"{planned.host} takes no writes: a failover to cut {cut.segment} loses nothing."
    return PlannedStatus(
        step=PREPARED if promotion is None else FAILED_OVER,
        text=waits if promotion is None else told(planned),
        started_time=planned.time,
        step_time=planned.time if promotion is None else promotion.time,
        cut=CutStatus(epoch=cut.epoch.hex(), segment=cut.segment, entry=cut.entry, time=None),
        chain=cut.chain.hex(),
        token_sent=promotion is None,
    )
