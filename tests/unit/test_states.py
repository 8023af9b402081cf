"""The states' numbers never change, and a transition that no table names is an error."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidStateError
from shared.states import (
    PRIMARY_TRANSITIONS,
    REPLICA_TRANSITIONS,
    Health,
    PrimaryEvent,
    ReplicaEvent,
    ReplicationState,
    primary_transition,
    replica_transition,
    tables_page,
)

HYPER_V_NUMBERS = {
    "Disabled": 0,
    "ReadyForInitialReplication": 1,
    "InitialReplicationInProgress": 2,
    "WaitingForInitialReplication": 3,
    "Replicating": 4,
    "PreparedForFailover": 5,
    "FailedOverWaitingCompletion": 6,
    "FailedOver": 7,
    "Suspended": 8,
    "Error": 9,
    "WaitingForStartResynchronize": 10,
    "Resynchronizing": 11,
    "ResynchronizeSuspended": 12,
    "RecoveryInProgress": 13,
    "FailbackInProgress": 14,
    "FailbackComplete": 15,
    "WaitingForUpdateCompletion": 16,
    "UpdateError": 17,
    "WaitingForRepurposeCompletion": 18,
    "PreparedForSyncReplication": 19,
    "PreparedForGroupReverseReplication": 20,
    "FiredrillInProgress": 21,
}


def test_names_and_numbers_are_hyper_v_replicas() -> None:
    assert {state.title: state.value for state in ReplicationState} == HYPER_V_NUMBERS
    assert {health.title: health.value for health in Health} == {
        "NotApplicable": 0,
        "Normal": 1,
        "Warning": 2,
        "Critical": 3,
    }


def test_every_undefined_transition_is_refused_and_names_event_and_state() -> None:
    for state in ReplicationState:
        for primary_event in PrimaryEvent:
            if (state, primary_event) not in PRIMARY_TRANSITIONS:
                with pytest.raises(InvalidStateError, match=state.title):
                    primary_transition(state, primary_event)
        for replica_event in ReplicaEvent:
            if (state, replica_event) not in REPLICA_TRANSITIONS:
                with pytest.raises(InvalidStateError, match=replica_event.value):
                    replica_transition(state, replica_event)


@pytest.mark.parametrize(
    ("table", "events"), [(PRIMARY_TRANSITIONS, PrimaryEvent), (REPLICA_TRANSITIONS, ReplicaEvent)]
)
def test_every_event_is_used_and_every_state_but_disabled_can_be_left(
    table: dict[Any, Any], events: type[Enum]
) -> None:
    assert {event for _, event in table} == set(events)
    reached = set(table.values())
    for state in reached - {ReplicationState.DISABLED}:
        assert any(before is state and after is not state for (before, _), after in table.items())


def test_a_replica_without_a_whole_point_is_never_promoted() -> None:
    """I6: promotion needs a completed initial replication."""
    for state in (
        ReplicationState.READY_FOR_INITIAL_REPLICATION,
        ReplicationState.INITIAL_REPLICATION_IN_PROGRESS,
        ReplicationState.ERROR,
    ):
        with pytest.raises(InvalidStateError):
            replica_transition(state, ReplicaEvent.PROMOTED)


def test_a_failed_over_primary_goes_on_only_through_its_administrator() -> None:
    """I8: from FailedOver no event but the administrator's leads to a state in which anything is sent."""
    ways = {
        event: after
        for (before, event), after in PRIMARY_TRANSITIONS.items()
        if before is ReplicationState.FAILED_OVER and after is not before
    }
    assert ways == {
        PrimaryEvent.RETRIED: ReplicationState.WAITING_FOR_START_RESYNCHRONIZE,
        PrimaryEvent.UNFENCED: ReplicationState.REPLICATING,
        PrimaryEvent.UNFENCED_EMPTY: ReplicationState.READY_FOR_INITIAL_REPLICATION,
        PrimaryEvent.REMOVED: ReplicationState.DISABLED,
    }


def test_the_page_of_states_is_drawn_from_the_tables() -> None:
    page = Path(__file__).parents[2] / "docs" / "states.md"
    assert page.read_text(encoding="utf-8") == tables_page(), "run scripts/draw-states"
