"""What concerns a VM beside its disks makes its health worse, with a remedy, and only where something was promised."""

from __future__ import annotations

from shared.guest_health import judge_guest
from shared.guest_status import ConsistencyStatus, DefinitionStatus
from shared.states import Health, ReplicationState
from shared.status import Cause, VmStatus

NOW = 1_000_000.0
CAUSE = Cause(code="freeze_failed", text="The guest agent did not answer.", time=NOW, remedy="Is it running?")


def judged(
    consistency: ConsistencyStatus | None = None, definition: DefinitionStatus | None = None
) -> list[tuple[Health, str, str]]:
    state = ReplicationState.REPLICATING
    status = VmStatus(name="web", uuid="u", role="primary", state=state.title, state_code=int(state))
    status.consistency, status.definition = consistency, definition
    return list(judge_guest(status, NOW))


def test_nothing_set_and_nothing_wrong_is_nothing() -> None:
    assert judged() == judged(ConsistencyStatus(hours=4, next_time=NOW - 3600.0), DefinitionStatus(kept=True)) == []


def test_a_frozen_guest_is_critical_and_comes_with_its_reason() -> None:
    ((health, text, remedy),) = judged(ConsistencyStatus(frozen_since=NOW - 60.0, frozen_text="It refuses."))
    assert health is Health.CRITICAL and "1 min 0 s ago and is not thawed yet: It refuses." in text
    assert "Thaw it" in remedy


def test_what_is_only_crash_consistent_or_late_is_a_warning() -> None:
    assert judged(ConsistencyStatus(failure=CAUSE)) == [
        (
            Health.WARNING,
            f"The last cut that was to be application-consistent is only crash-consistent: {CAUSE.text}",
            CAUSE.remedy,
        )
    ]
    ((health, text, _),) = judged(ConsistencyStatus(hours=4, next_time=NOW - 4 * 3600.0 - 1.0))
    assert health is Health.WARNING and "more than 8 hours" in text


def test_a_definition_that_does_not_travel_is_a_warning() -> None:
    ((health, text, remedy),) = judged(definition=DefinitionStatus(failure=CAUSE))
    assert health is Health.WARNING and CAUSE.text in text and remedy == CAUSE.remedy
