"""Health, summary and remedy as a function of a status and the time."""

from __future__ import annotations

from typing import Any

import pytest

from shared.health import assessed, log_level
from shared.measures import Statistics
from shared.progress_status import ProgressStatus
from shared.states import ReplicationState
from shared.status import Cause, DiskStatus, LinkStatus, TapStatus, VmStatus

NOW = 1_700_000_000.0


def vm(state: ReplicationState = ReplicationState.REPLICATING, **fields: Any) -> VmStatus:
    defaults: dict[str, Any] = {
        "name": "web",
        "uuid": "u",
        "role": "primary",
        "state": state.title,
        "state_code": int(state),
        "baseline": True,
        "interval_seconds": 30.0,
        "lag_seconds": 12.0,
        "peer_host": "b",
        "link": LinkStatus(connected=True, healthy=True, peer="b:7000"),
        "tap": TapStatus(running=True, tracking="on", log_limit_bytes=1000),
    }
    return assessed(VmStatus(**(defaults | fields)), NOW)


def test_replicating_in_time_is_normal_protected_and_needs_nothing() -> None:
    status = vm()
    assert (status.health, status.protected, status.remedy, status.reasons) == ("Normal", True, "", [])
    assert status.summary == "Protected: the replica at b holds everything up to 12 s ago."


def test_resync_required_says_the_known_sentence_and_the_command() -> None:
    status = vm(
        ReplicationState.WAITING_FOR_START_RESYNCHRONIZE,
        causes=[Cause(code="tracking_lost", text="the log is full", time=NOW)],
        lag_seconds=4000.0,
    )
    assert status.health == "Critical"
    assert not status.protected
    assert status.reasons[0] == (
        "Resynchronization is required for the virtual machine web. Resume replication to start resynchronization."
    )
    assert status.remedy == "Run `vmreplica resume web --resynchronize`."
    assert status.summary.startswith("Not protected: a resynchronization is required; the replica at b holds")


def test_a_reversed_replica_is_not_said_to_hold_what_the_primary_had() -> None:
    """Its disks are as recent as they are, and are another history's."""
    status = vm(
        ReplicationState.WAITING_FOR_START_RESYNCHRONIZE,
        causes=[Cause(code="reversed", text="The direction was reversed.", time=NOW)],
    )
    assert status.summary == (
        "Not protected: a resynchronization is required; the replica at b has what was on its own disks until the "
        "compare is done."
    )


@pytest.mark.parametrize(
    "state",
    [
        ReplicationState.WAITING_FOR_START_RESYNCHRONIZE,
        ReplicationState.RESYNCHRONIZING,
        ReplicationState.SUSPENDED,
        ReplicationState.ERROR,
    ],
)
def test_a_recent_point_that_is_no_longer_followed_protects_nothing(state: ReplicationState) -> None:
    status = vm(state, lag_seconds=5.0, suspended=state is ReplicationState.SUSPENDED)
    assert not status.protected
    assert status.summary.startswith("Not protected: ")


def test_a_suspended_vm_whose_tracking_was_lost_is_critical() -> None:
    """A cause on record is told in every state."""
    cause = Cause(code="tracking_lost", text="the log is full", time=NOW)
    assert vm(ReplicationState.SUSPENDED, suspended=True, causes=[cause]).health == "Critical"


@pytest.mark.parametrize(
    ("state", "health", "remedy"),
    [
        (ReplicationState.READY_FOR_INITIAL_REPLICATION, "Warning", "Run `vmreplica initial web`."),
        (ReplicationState.INITIAL_REPLICATION_IN_PROGRESS, "Warning", ""),
        (ReplicationState.SUSPENDED, "Warning", "Run `vmreplica resume web`."),
        (ReplicationState.RESYNCHRONIZING, "Warning", ""),
        (ReplicationState.RESYNCHRONIZE_SUSPENDED, "Warning", "Run `vmreplica resume web`."),
        (ReplicationState.ERROR, "Critical", ""),
    ],
)
def test_health_by_state_at_the_primary(state: ReplicationState, health: str, remedy: str) -> None:
    status = vm(state, baseline=state.value > 3)
    assert (status.health, status.remedy) == (health, remedy)


def test_initial_replication_tells_how_far_it_got() -> None:
    status = vm(
        ReplicationState.INITIAL_REPLICATION_IN_PROGRESS,
        baseline=False,
        lag_seconds=None,
        progress=ProgressStatus(kind="initial", phase="comparing", total_bytes=200, done_bytes=86),
    )
    assert status.summary == "Not protected: initial replication is not complete (43 % compared)."


def test_a_fenced_primary_is_told_not_to_run_the_vm() -> None:
    status = vm(ReplicationState.FAILED_OVER, fenced="The VM was failed over at b: epoch 0303 began there.")
    assert status.health == "Critical"
    assert not status.protected
    assert status.remedy.startswith("Do not run the VM here.")
    assert "failed over at b" in status.summary


@pytest.mark.parametrize(("away", "health"), [(5.0, "Warning"), (29.9, "Warning"), (30.0, "Critical")])
def test_an_unreachable_replica_is_a_warning_at_first_and_then_critical(away: float, health: str) -> None:
    link = LinkStatus(peer="b:7000", attempts=2, since_time=NOW - away, last_error="refused")
    status = vm(link=link)
    assert status.health == health
    assert "b:7000" in status.reasons[0]
    assert "refused" in status.reasons[0]


def test_a_failure_on_record_is_critical_with_its_own_remedy() -> None:
    problem = Cause(code="unauthorized", text="The replica refuses this host.", time=NOW, remedy="Authorize it.")
    status = vm(problem=problem)
    assert (status.health, status.remedy, status.protected) == ("Critical", "Authorize it.", False)


@pytest.mark.parametrize(("missed", "health"), [(20, "Normal"), (21, "Warning")])
def test_more_than_a_fifth_of_the_cycles_missed_is_a_warning(missed: int, health: str) -> None:
    statistics = Statistics(successful_replication_count=100 - missed, missed_replication_count=missed)
    status = vm(statistics=statistics)
    assert status.health == health


@pytest.mark.parametrize(
    ("done", "missed", "monitored", "health"),
    [
        (3, 2, 43200.0, "Normal"),  # a new VM whose agent was started anew twice
        (0, 4, 43200.0, "Normal"),
        (0, 5, 43200.0, "Warning"),  # nothing gets through: it needs no long watch
        (15, 5, 43200.0, "Warning"),
        (16, 4, 43200.0, "Normal"),
        # Of a long interval as many cycles as there are in the whole time; one is a fifth then.
        (3, 2, 150.0, "Warning"),
        (4, 1, 150.0, "Normal"),
        (0, 1, 20.0, "Warning"),
    ],
)
def test_few_cycles_make_no_percentage(done: int, missed: int, monitored: float, health: str) -> None:
    statistics = Statistics(
        successful_replication_count=done, missed_replication_count=missed, monitoring_interval_seconds=monitored
    )
    assert vm(statistics=statistics).health == health


def test_latency_above_the_interval_is_a_warning() -> None:
    assert vm(statistics=Statistics(average_replication_latency_seconds=30.0)).health == "Normal"
    assert vm(statistics=Statistics(average_replication_latency_seconds=31.0)).health == "Warning"


def test_more_than_an_hour_behind_is_a_warning_and_not_protected() -> None:
    status = vm(lag_seconds=3601.0)
    assert (status.health, status.protected) == ("Warning", False)
    assert status.reasons == ["Replica virtual machine 'web' is behind the primary by more than an hour."]


@pytest.mark.parametrize(("lag", "protected"), [(90.0, True), (90.5, False)])
def test_protected_means_at_most_three_intervals_behind(lag: float, protected: bool) -> None:
    assert vm(lag_seconds=lag).protected is protected


def test_a_filling_log_warns_before_it_is_full() -> None:
    assert vm(tap=TapStatus(running=True, log_used_bytes=499, log_limit_bytes=1000)).health == "Normal"
    status = vm(tap=TapStatus(running=True, log_used_bytes=500, log_limit_bytes=1000))
    assert status.health == "Warning"
    assert "500 B of its limit of 1000 B (50 %). Past the limit the dirty map takes over" in status.reasons[0]
    filling = TapStatus(running=True, log_used_bytes=900, log_limit_bytes=1000, log_full_seconds=7200.0)
    assert "(90 %); at the present rate it is full in 2 h 0 min." in vm(tap=filling).reasons[0]
    assert "log-limit=SIZE" in vm(tap=filling).remedy


def test_levels_of_a_filling_log() -> None:
    assert [log_level(used, 100) for used in (0, 49, 50, 74, 75, 89, 90, 100, 120)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert log_level(5, 0) == 0


@pytest.mark.parametrize("found, words, remedy", [
    (3 << 20, "go on with 2097152 bytes", "truncate --size 2097152 /srv/web.raw"),
    (1 << 20, "what lay behind that is lost", "resume web --resynchronize"),
])  # fmt: skip
def test_a_resized_disk_is_critical(found: int, words: str, remedy: str) -> None:
    """R20: disk, both sizes, what goes on and what does not, and the way out."""
    disk = DiskStatus(index=0, uuid="1" * 32, size_bytes=2 << 20, path="/srv/web.raw", found_size_bytes=found)
    status = vm(disks=[disk])
    assert status.health == "Critical"
    assert f"/srv/web.raw, was resized: 2097152 to {found} bytes" in status.reasons[0]
    assert words in status.reasons[0] and remedy in status.remedy
    disk.found_size_bytes = disk.size_bytes
    assert vm(disks=[disk]).health == "Normal"


def test_a_tap_that_does_not_run_is_critical() -> None:
    status = vm(tap=TapStatus(error="disk /srv/web.raw is in use by another process"))
    assert status.health == "Critical"
    assert "/srv/web.raw" in status.reasons[0]


def test_a_replica_paused_is_critical_and_a_promoted_one_a_warning() -> None:
    assert vm(ReplicationState.SUSPENDED, role="replica", tap=None).health == "Critical"
    status = vm(ReplicationState.FAILED_OVER_WAITING_COMPLETION, role="replica")
    assert (status.health, status.protected) == ("Warning", False)
    assert status.summary.startswith("Failed over:")
    # The primary agent of that host says what is to be said of it from the reversal on.
    status = vm(ReplicationState.FAILED_OVER, role="replica", tap=None, handed_over=True)
    assert (status.health, status.protected, status.reasons) == ("Normal", False, [])
    assert status.summary.startswith("Handed over to the primary agent of this host")


@pytest.mark.parametrize("state", [ReplicationState.FAILED_OVER, ReplicationState.FAILED_OVER_WAITING_COMPLETION])
def test_what_the_primary_agent_of_the_host_has_is_no_warning(state: ReplicationState) -> None:
    """R41: it is protected from there, and said to be; unless nobody serves it, as where the command ended midway."""
    status = vm(state, role="replica", handed_over=True, tap=None)
    assert (status.health, status.reasons) == ("Normal", [])
    assert status.summary == "Handed over to the primary agent of this host, which serves the VM's disks now."
    status = vm(state, role="replica", handed_over=True, tap=TapStatus(error="it does not answer"))
    assert status.health == "Critical" and "are not served" in status.reasons[0]
    assert "run `vmreplica reverse web` again" in status.remedy


def test_the_worst_reason_comes_first() -> None:
    status = vm(problem=Cause(code="x", text="bad", time=NOW), lag_seconds=4000.0, suspended=True)
    assert status.reasons[0] == "bad"
    assert len(status.reasons) == 3
