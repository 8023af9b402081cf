"""The steps of a planned failover at the primary, over every state and event, and on record (R43)."""

from __future__ import annotations

import pytest

from primary_agent.planned_steps import carried_on, holds, step_of, stepped
from primary_agent.record import PlannedRecord
from shared.errors import InvalidStateError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import (
    PLANNED_HOLDS,
    PLANNED_TOKEN,
    PLANNED_TRANSITIONS,
    PlannedEvent,
    PlannedStep,
    PrimaryEvent,
    ReplicationState,
)
from tests.unit.primary.test_replication import World, replicating

L, E, S, P = PlannedStep, PlannedEvent, ReplicationState, PrimaryEvent


def planned(step: PlannedStep) -> PlannedRecord:
    return PlannedRecord(id=b"i" * 16, step=step, started_time=1.0, step_time=1.0)


def test_every_step_and_event_is_in_the_table_or_refused_by_name() -> None:
    for step in L:
        for event in E:
            if (after := PLANNED_TRANSITIONS.get((step, event))) is not None:
                assert stepped(planned(step), event, "why", 2.0).step is after
            else:
                with pytest.raises(InvalidStateError, match=event.value):
                    stepped(planned(step), event, "why", 2.0)
    assert {step for step, _ in PLANNED_TRANSITIONS} | set(PLANNED_TRANSITIONS.values()) == set(L)
    assert {event for _, event in PLANNED_TRANSITIONS} == set(E)


def test_only_an_answer_of_the_replica_or_force_lets_writes_after_the_token_has_left() -> None:
    """R43: the ways from a step in which the token may be there to one in which the tap takes writes."""
    ways = {
        (before, event)
        for (before, event), after in PLANNED_TRANSITIONS.items()
        if before in PLANNED_TOKEN and after not in PLANNED_HOLDS
    }
    assert {event for _, event in ways} == {E.REFUSED, E.VOIDED, E.FORCED}
    assert (L.TAKING_BACK, E.VOIDED) in ways and (L.PROMISED, E.VOIDED) not in ways
    # Nothing that holds writes is left by a failure once the token has left.
    assert {before for (before, event) in PLANNED_TRANSITIONS if event is E.FAILED} == {L.STOPPING, L.SENDING}
    # And the token can't leave before the writes are stopped and the cut was delivered.
    assert [before for (before, _), after in PLANNED_TRANSITIONS.items() if after is L.PROMISED] == [L.SENDING]


def test_fence_ends_in_a_step_that_takes_no_writes_from_wherever() -> None:
    for step in L:
        if step is L.GIVEN_UP:
            continue
        after, events = carried_on(planned(step), (P.FENCED,), S.FAILED_OVER, "failed over at beta", 2.0)
        assert after is not None and after.step is L.FAILED_OVER and holds(after)
        assert len(events) == (step is not L.FAILED_OVER)
    after, _ = carried_on(planned(L.FAILED_OVER), (P.RETRIED,), S.WAITING_FOR_START_RESYNCHRONIZE, "", 2.0)
    assert holds(after), "whoever tries again does not know yet what the replica says to that"


@pytest.mark.parametrize("step", [L.STOPPING, L.SENDING])
async def test_whatever_ends_replication_ends_what_was_not_promised(world: World, step: PlannedStep) -> None:
    for order in ("suspend", "lost", "resync"):
        replication = await replicating(world) if order == "suspend" else world.replication
        await replication.update(planned=planned(step))
        if order == "suspend":
            await replication.transition(P.SUSPENDED, "the administrator asked for it")
        elif order == "lost":
            await replication.require_resync(ResyncCause.TRACKING_LOST, "the log is full")
        else:
            await replication.order_resync("asked")
        record = replication.record.planned
        assert record is not None and record.step is L.GIVEN_UP and record.text
        assert (await world.events(EventId.PLANNED_FAILOVER))[-1]["before"] == step.value
        await replication.update(state=S.REPLICATING, causes=[])


async def test_a_promise_outlasts_a_loss_of_tracking_and_a_restart(world: World) -> None:
    """The replica may be failed over at any moment: what is lost here is on record, and changes nothing else."""
    replication = await replicating(world)
    await replication.transition(P.PREPARED, "delivered", planned=planned(L.PROMISED))
    await replication.require_resync(ResyncCause.TRACKING_LOST, "the host lost power")
    replication = await world.reopen()
    assert replication.state is S.PREPARED_FOR_FAILOVER and len(replication.record.causes) == 1
    assert step_of(replication.record.planned) is L.PROMISED
    for order in (P.SUSPENDED, P.RESYNC_STARTED, P.RESUMED):
        with pytest.raises(InvalidStateError):
            await replication.transition(order, "asked")
    await replication.fence("failed over at beta", split=False)
    assert replication.record.state is S.FAILED_OVER and step_of(replication.record.planned) is L.FAILED_OVER


async def test_a_step_that_was_decided_by_an_older_record_is_not_taken(world: World) -> None:
    """An order and the session's own step at the same time: one of them sees what the other did."""
    replication = await replicating(world)
    seen = replication.record
    await replication.update(planned=planned(L.GIVEN_UP))
    assert not await replication.transition(P.PREPARED, "delivered", seen=seen, planned=planned(L.PROMISED))
    assert replication.state is S.REPLICATING and step_of(replication.record.planned) is L.GIVEN_UP
