"""The steps of a planned failover at the primary, as they follow from each other; pure.

``shared.states.PLANNED_TRANSITIONS`` is the table. Before the promote token has left, whatever ends the ordinary
replication of the VM ends the preparation with it; afterwards only the replica's answer does, or force (R43).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from primary_agent.record import PlannedRecord
from shared.events import EventId, make_event
from shared.states import (
    PLANNED_HOLDS,
    PLANNED_TRANSITIONS,
    PlannedEvent,
    PlannedStep,
    PrimaryEvent,
    ReplicationState,
    planned_transition,
)

UNSENT = frozenset({PlannedStep.STOPPING, PlannedStep.SENDING})


def step_of(planned: PlannedRecord | None) -> PlannedStep:
    """The step; where nothing was ever ordered it is as if the last one was given up."""
    return planned.step if planned is not None else PlannedStep.GIVEN_UP


def holds(planned: PlannedRecord | None) -> bool:
    """Whether the tap has to take no writes."""
    return step_of(planned) in PLANNED_HOLDS


def stepped(planned: PlannedRecord, event: PlannedEvent, text: str, now: float, **fields: Any) -> PlannedRecord:
    """The record after ``event``. Raises InvalidStateError."""
    after = planned_transition(planned.step, event)
    record: PlannedRecord = msgspec.structs.replace(planned, step=after, text=text, step_time=now, **fields)
    return record


def event_of(before: PlannedStep, after: PlannedRecord, event: PlannedEvent, text: str, now: float) -> dict[str, Any]:
    """The event that tells of a step (I16)."""
    number = EventId.PLANNED_FORCED if after.step is PlannedStep.FORCED else EventId.PLANNED_FAILOVER
    data: dict[str, Any] = {"order": after.id.hex()}
    if after.cut is not None:
        data["cut"] = str(after.cut.position)
    if after.token is not None:
        data["token"] = after.token.hex()
    return make_event(number, text, time=now, cause=event.value, before=before.value, after=after.step.value, data=data)


def carried_on(
    planned: PlannedRecord | None, path: Sequence[PrimaryEvent], state: ReplicationState, cause: str, now: float
) -> tuple[PlannedRecord | None, list[dict[str, Any]]]:
    """What becomes of a preparation when the VM's state goes to ``state`` by ``path``, and the events of that."""
    if planned is None:
        return None, []
    event = None
    if PrimaryEvent.FENCED in path and (planned.step, PlannedEvent.FENCED) in PLANNED_TRANSITIONS:
        event = PlannedEvent.FENCED
    elif planned.step in UNSENT and state is not ReplicationState.REPLICATING:
        event = PlannedEvent.FAILED
    if event is None:
        return planned, []
    after = stepped(planned, event, cause, now)
    if after.step is planned.step:
        return planned, []
    return after, [event_of(planned.step, after, event, cause, now)]


def after_loss(planned: PlannedRecord | None) -> PlannedRecord | None:
    """What a preparation is taken for where the records were lost, and the last that is known may be a step too old.

    A token may have left after the step that is known to be before that: which one does not matter, it is taken back.
    """
    if planned is None or planned.step is not PlannedStep.SENDING:
        return planned
    text = "the records were lost: a token may be at the replica"
    return msgspec.structs.replace(planned, step=PlannedStep.TAKING_BACK, token=planned.token or bytes(16), text=text)
