"""Hyper-V Replica's health rules and our forecasts, one by one, at their bounds, and on both sides.

``docs/monitoring.md`` has the same rules as tables.
"""

from __future__ import annotations

from typing import Any

import pytest

from shared.forecasts import (
    LOG_SOON_SECONDS,
    POINTS_LOST_SECONDS,
    ROOM_BYTES,
    STATE_ROOM_BYTES,
    VOLUME_SOON_SECONDS,
    promised_lag,
)
from shared.health import assessed, measured
from shared.measures import Statistics
from shared.states import ReplicationState
from shared.stats import ReplicationStatistics
from shared.status import Cause, CutStatus, LinkStatus, TapStatus, VmStatus

NOW = 1_700_000_000.0
MIB, GIB = 1 << 20, 1 << 30
S = ReplicationState
UP = LinkStatus(connected=True, healthy=True, peer="b:7000")
DOWN = LinkStatus(peer="b:7000")
TAP = TapStatus(running=True, tracking="on", log_used_bytes=100 * MIB, log_limit_bytes=GIB)


def cut(age: float) -> CutStatus:
    return CutStatus(epoch="03" * 16, segment=5, entry=50, time=NOW - age)


def vm(role: str, state: ReplicationState = S.REPLICATING, **fields: Any) -> VmStatus:
    defaults: dict[str, Any] = {
        "name": "web",
        "uuid": "u",
        "role": role,
        "state": state.title,
        "state_code": int(state),
        "baseline": True,
        "interval_seconds": 30.0,
        "lag_seconds": 12.0,
        "peer_host": "b",
        "folder": "/srv/web",
        "link": UP,
        "tap": TAP if role == "primary" else None,
        "newest_cut": cut(12.0),
        "applied_cut": cut(12.0),
    }
    return assessed(VmStatus(**(defaults | fields)), NOW)


def cause(code: str = "gap") -> Cause:
    return Cause(code=code, text="It is so.", time=NOW, remedy="Do it.")


def figures(**fields: Any) -> Statistics:
    return Statistics(**fields)


def filling(seconds: float) -> TapStatus:
    return TapStatus(running=True, tracking="on", log_used_bytes=MIB, log_limit_bytes=GIB, log_full_seconds=seconds)


def missed(count: int) -> Statistics:
    return figures(successful_replication_count=100 - count, missed_replication_count=count)


BOTH = ("primary", "replica")

# --- Hyper-V Replica's rules: what is so, at which sides, and the health

RULES: dict[str, tuple[tuple[str, ...], str, ReplicationState, dict[str, Any]]] = {
    # Critical
    "the network fails": (
        ("primary",), "Critical", S.REPLICATING,
        {"link": LinkStatus(peer="b:7000", attempts=1, since_time=NOW - 30, last_error="refused")},
    ),
    "storage fails": (BOTH, "Critical", S.REPLICATING, {"problem": cause("storage")}),
    "the tap fails": (("primary",), "Critical", S.REPLICATING, {"tap": TapStatus(error="disk in use")}),
    "a resync is required": (BOTH, "Critical", S.WAITING_FOR_START_RESYNCHRONIZE, {"causes": [cause()]}),
    "in error": (BOTH, "Critical", S.ERROR, {}),
    "paused on the replica": (("replica",), "Critical", S.SUSPENDED, {"suspended": True}),
    # Warning
    "more than 20 % of the cycles missed": (BOTH, "Warning", S.REPLICATING, {"statistics": missed(21)}),
    "more than an hour since the last one": (BOTH, "Warning", S.REPLICATING, {"lag_seconds": 3600.1}),
    "the same by the figures": (
        BOTH, "Warning", S.REPLICATING,
        {"lag_seconds": None, "statistics": figures(last_replication_time=NOW - 3600.1)},
    ),
    "initial replication not started": (BOTH, "Warning", S.READY_FOR_INITIAL_REPLICATION, {"baseline": False}),
    "initial replication not complete": (BOTH, "Warning", S.INITIAL_REPLICATION_IN_PROGRESS, {"baseline": False}),
    "failed over without reverse": (("replica",), "Warning", S.FAILED_OVER_WAITING_COMPLETION, {}),
    "paused on the primary": (("primary",), "Warning", S.SUSPENDED, {"suspended": True}),
    "a resync is not complete": (BOTH, "Warning", S.RESYNCHRONIZING, {}),
    "latency above the interval": (
        BOTH, "Warning", S.REPLICATING, {"statistics": figures(average_replication_latency_seconds=30.1)},
    ),
    # Normal
    "20 % of the cycles missed": (BOTH, "Normal", S.REPLICATING, {"statistics": missed(20)}),
    "latency as the interval": (
        BOTH, "Normal", S.REPLICATING, {"statistics": figures(average_replication_latency_seconds=30.0)},
    ),
    "an hour since the last one, of an interval that allows it": (
        BOTH, "Normal", S.REPLICATING, {"lag_seconds": 3600.0, "interval_seconds": 1800.0},
    ),
    "a cycle missed while suspended counts nothing": (
        ("primary",), "Warning", S.SUSPENDED, {"suspended": True, "statistics": missed(90)},
    ),
    "all well": (BOTH, "Normal", S.REPLICATING, {}),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "role"), [(rule, role) for rule, row in RULES.items() for role in row[0]])
def test_rule(rule: str, role: str) -> None:
    _, health, state, fields = RULES[rule]
    status = vm(role, state, **fields)
    assert status.health == health, status.reasons
    assert bool(status.reasons) == (health != "Normal")


def test_an_intervals_own_promise_goes_before_the_hour() -> None:
    """Hyper-V Replica's longest interval is 15 minutes; with one of half an hour an hour is nothing."""
    assert "more than an hour" in vm("primary", lag_seconds=3600.1, interval_seconds=900.0).reasons[0]
    assert vm("primary", lag_seconds=5000.0, interval_seconds=3600.0).health == "Normal"
    assert "more than an hour" in vm("primary", lag_seconds=10800.1, interval_seconds=3600.0).reasons[0]


def test_measure_tells_health_and_every_reason() -> None:
    status = vm("primary", problem=cause(), statistics=missed(50))
    told = measured(status)
    assert (told.replication_health, told.replication_health_details) == ("Critical", status.reasons)
    assert told.missed_replication_count == 50 and len(status.reasons) == 2
    assert status.statistics.replication_health == ""


# --- forecasts: role, what is so, health, a word of the reason and one of the remedy

FORECASTS: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "older than promised": ("primary", {"lag_seconds": 90.1}, "Warning", "promises at most 1 min 30 s", "churn web"),
    "older than promised, there": ("replica", {"lag_seconds": 90.1}, "Warning", "1 min 30 s", "primary's host"),
    "as old as promised, and soon older": ("primary", {"lag_seconds": 90.0}, "Warning", "too old in 0 s", "churn web"),
    "soon older, with what is to be sent": (
        "primary", {"lag_seconds": 61.0, "pending_bytes": 300 * MIB, "caught_up_seconds": 40.0},
        "Warning", "too old in 29 s", "churn web",
    ),
    "caught up before that": (
        "primary", {"lag_seconds": 61.0, "pending_bytes": MIB, "caught_up_seconds": 5.0}, "Normal", "", "",
    ),
    "not soon": ("primary", {"lag_seconds": 60.0}, "Normal", "", ""),
    "the log is full soon, the link is down": (
        "primary",
        {"link": DOWN, "tap": filling(LOG_SOON_SECONDS)},
        "Warning", "is full in 4 h 0 min at the present rate", "log-limit=SIZE",
    ),
    "the log only seems to fill, cuts free it": ("primary", {"tap": filling(LOG_SOON_SECONDS)}, "Normal", "", ""),
    "the log is full soon, cuts come late": (
        "primary", {"tap": filling(LOG_SOON_SECONDS), "lag_seconds": 60.1, "caught_up_seconds": 1.0},
        "Warning", "is full in", "log-limit",
    ),
    "the log is full later": (
        "primary",
        {"link": DOWN, "tap": filling(LOG_SOON_SECONDS + 1)},
        "Normal", "", "",
    ),
    "no room for state and log": (
        "primary", {"store_free_bytes": STATE_ROOM_BYTES - 1}, "Critical", "only 64.0 MiB left", "Make room",
    ),
    "no room for the log's limit": (
        "primary", {"store_free_bytes": 900 * MIB}, "Warning", "log may take 924.0 MiB more", "lower the limit",
    ),
    "room for the log's limit": ("primary", {"store_free_bytes": 924 * MIB}, "Normal", "", ""),
    "the primary's volume is full tomorrow": (
        "primary", {"store_free_bytes": 10 * GIB, "store_full_seconds": VOLUME_SOON_SECONDS - 1},
        "Warning", "is full in 23 h 59 min", "Make room",
    ),
    "below the reserve": (
        "replica", {"store_free_bytes": 64 * MIB - 1, "store_reserve_bytes": 64 * MIB},
        "Critical", "nothing more is received", "Make room",
    ),
    "points give way": (
        "replica", {"store_free_bytes": 64 * MIB + ROOM_BYTES - 1, "store_reserve_bytes": 64 * MIB},
        "Warning", "older recovery points are deleted", "enlarge",
    ),
    "room": ("replica", {"store_free_bytes": 64 * MIB + ROOM_BYTES, "store_reserve_bytes": 64 * MIB}, "Normal", "", ""),
    "the replica's volume is full tomorrow": (
        "replica", {"store_free_bytes": 10 * GIB, "store_full_seconds": VOLUME_SOON_SECONDS - 1},
        "Warning", "full in 23 h 59 min", "points-hourly=N",
    ),
    "the replica's volume is full later": (
        "replica", {"store_free_bytes": 10 * GIB, "store_full_seconds": VOLUME_SOON_SECONDS}, "Normal", "", "",
    ),
    "pinned points take nearly all of the limit": (
        "replica", {"points_pinned": 1, "points_pinned_bytes": 76, "points_limit_bytes": 100},
        "Warning", "the oldest of the pinned is deleted next", "points-limit=SIZE",
    ),
    "pinned points leave enough of it": (
        "replica", {"points_pinned": 1, "points_pinned_bytes": 75, "points_limit_bytes": 100}, "Normal", "", "",
    ),
    "a pinned point is the next that goes for room": (
        "replica", {"points_pinned": 1, "points_pinned_oldest": True, "store_free_bytes": 4 * ROOM_BYTES - 1},
        "Warning", "the oldest recovery point is pinned", "Unpin one",
    ),
    "others go for room first": (
        "replica", {"points_pinned": 1, "store_free_bytes": 4 * ROOM_BYTES - 1}, "Normal", "", "",
    ),
    "the quota is used up": (
        "replica", {"quota_limit_bytes": 10 * GIB, "quota_used_bytes": 10 * GIB, "quota_full_seconds": 0.0},
        "Critical", "nothing more is received until there is room", "Raise quota_bytes",
    ),
    "the quota is nearly used up": (
        "replica", {"quota_limit_bytes": 10 * GIB, "quota_used_bytes": 9 * GIB},
        "Warning", "of 10.0 GiB for the copies of b here is used to 90 %. Then", "points-hourly=N",
    ),
    "the quota is nearly used up, and it is known when": (
        "replica", {"quota_limit_bytes": 10 * GIB, "quota_used_bytes": 9 * GIB, "quota_full_seconds": 11520.0},
        "Warning", "it is full in 3 h 12 min. Then", "remove VMs",
    ),
    "the quota is full tomorrow": (
        "replica", {
            "quota_limit_bytes": 10 * GIB, "quota_used_bytes": GIB, "quota_full_seconds": VOLUME_SOON_SECONDS - 1,
        },
        "Warning", "is full in 23 h 59 min at the rate of the last hour; 1.0 GiB are used", "[[authorize]]",
    ),
    "the quota is full later": (
        "replica", {
            "quota_limit_bytes": 10 * GIB, "quota_used_bytes": 9 * GIB - 1, "quota_full_seconds": VOLUME_SOON_SECONDS,
        },
        "Normal", "", "",
    ),
    "nobody has looked at the quota": ("replica", {"quota_limit_bytes": 10 * GIB}, "Normal", "", ""),
    "the spool is above its limit": (
        "replica", {"pending_bytes": 5 * GIB, "spool_limit_bytes": 4 * GIB},
        "Warning", "the primary is made to wait", "slower than what arrives",
    ),
    "applying is late": (
        "replica", {"pending_bytes": GIB, "spool_limit_bytes": 4 * GIB, "lag_seconds": 103.0, "interval_seconds": 30.0},
        "Warning", "Applying is 1 min 31 s behind", "primary's host",
    ),
    "fewer points than asked for": (
        "replica",
        {"points_lost_time": NOW - 60, "points_lost_text": "It was full.", "older_points": 26,
         "settings": {"points_newest": 4, "points_hourly": 24}},
        "Warning", "27 recovery points are kept of the 28", "points-hourly=N",
    ),
    "as many points again": (
        "replica",
        {"points_lost_time": NOW - 60, "older_points": 27, "settings": {"points_newest": 4, "points_hourly": 24}},
        "Normal", "", "",
    ),
    "points were lost long ago": (
        "replica",
        {"points_lost_time": NOW - POINTS_LOST_SECONDS - 1, "settings": {"points_newest": 4, "points_hourly": 24}},
        "Normal", "", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORECASTS)
def test_forecast(name: str) -> None:
    role, fields, health, word, todo = FORECASTS[name]
    status = vm(role, **fields)
    assert status.health == health, status.reasons
    assert any(word in reason for reason in status.reasons) if word else status.reasons == []
    assert todo in status.remedy


def test_nothing_is_forecast_for_what_was_failed_over() -> None:
    full = {"store_free_bytes": 0, "store_reserve_bytes": MIB}
    assert len(vm("replica", S.FAILED_OVER_WAITING_COMPLETION, **full).reasons) == 1


@pytest.mark.parametrize(("interval", "promised"), [(1.0, 60.0), (20.0, 60.0), (30.0, 90.0), (900.0, 2700.0)])
def test_what_an_interval_promises(interval: float, promised: float) -> None:
    assert promised_lag(interval) == promised
    assert vm("primary", interval_seconds=interval).promised_lag_seconds == promised


def test_a_reset_of_the_figures_clears_the_warnings_that_rest_on_them() -> None:
    counted = ReplicationStatistics(None, NOW - 7200)
    counted.tick(NOW - 7200, 0.0, 30.0)
    counted.tick(NOW - 100, 7000.0, 30.0)
    counted.acknowledged(NOW - 50, latency=31.0, size=1)
    before = vm("primary", statistics=counted.report(NOW))
    assert (before.health, len(before.reasons)) == ("Warning", 2)
    counted.reset(NOW)
    assert vm("primary", statistics=counted.report(NOW)).health == "Normal"
    # What is still so is still told.
    assert vm("primary", statistics=counted.report(NOW), lag_seconds=4000.0).health == "Warning"
