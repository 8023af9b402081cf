"""Statistics over the monitoring interval, rates, durations and sizes in words."""

from __future__ import annotations

import msgspec
import pytest

from shared.rates import RateMeter, duration_text, size_text
from shared.stats import MONITORING_SECONDS, ReplicationStatistics


def test_cycles_are_counted_as_successful_or_missed() -> None:
    statistics = ReplicationStatistics(None, 0.0)
    statistics.tick(0.0, 0.0, 30.0)
    statistics.acknowledged(10.0, latency=2.0, size=100)
    statistics.acknowledged(12.0, latency=4.0, size=300)
    statistics.tick(29.0, 29.0, 30.0)
    statistics.tick(31.0, 31.0, 30.0)
    assert statistics.report(31.0).missed_replication_count == 0
    statistics.tick(150.0, 150.0, 30.0)
    report = statistics.report(150.0, pending_bytes=7)
    assert report.missed_replication_count == 4
    assert report.successful_replication_count == 2
    assert report.average_replication_bytes == 200
    assert report.maximum_replication_bytes == 300
    assert report.average_replication_latency_seconds == 3.0
    assert report.maximum_replication_latency_seconds == 4.0
    assert report.pending_replication_bytes == 7
    assert report.last_replication_time == 12.0


def test_no_cycle_is_missed_while_paused() -> None:
    statistics = ReplicationStatistics(None, 0.0)
    statistics.tick(0.0, 0.0, 30.0)
    statistics.pause()
    statistics.tick(1000.0, 1000.0, 30.0)
    assert statistics.report(1000.0).missed_replication_count == 0


def test_old_cycles_leave_the_monitoring_interval_and_the_record_stays_small() -> None:
    statistics = ReplicationStatistics(None, 0.0)
    for number in range(40):
        statistics.acknowledged(number * 3600.0, latency=1.0, size=1)
    report = statistics.report(39 * 3600.0)
    assert report.successful_replication_count == 12
    assert report.monitoring_start_time == 39 * 3600.0 - MONITORING_SECONDS
    assert len(statistics.plain()["buckets"]) == 12


def test_the_record_goes_on_after_a_restart() -> None:
    before = ReplicationStatistics(None, 5.0)
    before.acknowledged(10.0, latency=1.0, size=50)
    before.failed(11.0)
    before.initial(1234)
    after = ReplicationStatistics(before.plain(), 20.0)
    since_start = {"replications_since_start": 0, "replicated_bytes_since_start": 0, "errors_since_start": 0}
    assert after.report(20.0) == msgspec.structs.replace(before.report(20.0), **since_start)
    assert after.report(20.0).replication_errors == 1
    assert after.report(20.0).initial_replication_bytes == 1234


def test_a_clock_set_anew_misses_no_cycle() -> None:
    statistics = ReplicationStatistics(None, 100000.0)
    statistics.tick(100000.0, 0.0, 30.0)
    statistics.tick(10.0, 10.0, 30.0)
    statistics.tick(900000.0, 31.0, 30.0)
    assert statistics.report(900000.0).missed_replication_count == 1


def test_rate_over_the_window() -> None:
    meter = RateMeter(window_seconds=10.0)
    assert meter.per_second() is None
    for second in range(21):
        meter.add(float(second), second * 100 if second < 10 else 1000 + (second - 10) * 500)
    assert meter.per_second() == pytest.approx(500.0, rel=0.15)
    assert meter.seconds_left(1000) == pytest.approx(2.0, rel=0.15)


def test_no_remaining_time_is_told_while_nothing_moves() -> None:
    meter = RateMeter()
    meter.add(0.0, 5)
    meter.add(5.0, 5)
    assert meter.seconds_left(10) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (0.44, "0.4 s"), (12.9, "12 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration_text(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert size_text(count) == words


def test_a_reset_forgets_what_was_counted_and_keeps_when_it_happened() -> None:
    statistics = ReplicationStatistics(None, 0.0)
    statistics.initial(1234)
    statistics.acknowledged(10.0, latency=2.0, size=100)
    statistics.failed(11.0)
    statistics.tick(0.0, 0.0, 30.0)
    statistics.tick(200.0, 200.0, 30.0)
    statistics.reset(300.0)
    report = statistics.report(310.0)
    assert (report.successful_replication_count, report.missed_replication_count, report.replication_errors) == (
        0,
        0,
        0,
    )
    assert report.average_replication_latency_seconds is None
    assert (report.monitoring_start_time, report.monitoring_end_time) == (300.0, 310.0)
    assert (report.initial_replication_bytes, report.last_replication_time) == (1234, 10.0)
    # Counters that never go back go on.
    assert (report.replications_since_start, report.errors_since_start, report.missed_since_start) == (1, 1, 6)


@pytest.mark.parametrize("monitoring", [3600.0, 7 * 86400.0])
def test_the_monitoring_interval_is_what_it_is_set_to(monitoring: float) -> None:
    statistics = ReplicationStatistics(None, 0.0, monitoring_seconds=monitoring)
    step = monitoring / 24
    for number in range(48):
        statistics.acknowledged(number * step, latency=1.0, size=1)
    report = statistics.report(47 * step)
    assert 22 <= report.successful_replication_count <= 24
    assert report.monitoring_interval_seconds == monitoring
    assert statistics.bytes_per_second(47 * step) == pytest.approx(1 / step, rel=0.1)


def test_figures_are_due_once_an_interval_also_over_restarts_and_clocks_set_back() -> None:
    statistics = ReplicationStatistics(None, 100.0)
    assert not statistics.is_due(100.0 + MONITORING_SECONDS - 1)
    again = ReplicationStatistics(statistics.plain(), 5000.0)
    assert again.is_due(100.0 + MONITORING_SECONDS)
    again.told(100.0 + MONITORING_SECONDS)
    assert not again.is_due(100.0 + 2 * MONITORING_SECONDS - 1)
    assert again.is_due(100.0 + 2 * MONITORING_SECONDS)
    assert not again.is_due(50.0)
    assert again.is_due(50.0 + MONITORING_SECONDS)


def test_a_record_of_an_older_version_is_read() -> None:
    old = {"start": 5.0, "buckets": [{"start": 6.0, "successful": 3, "bytes_total": 30, "bytes_max": 10}]}
    assert ReplicationStatistics(old, 10.0).report(10.0).successful_replication_count == 3
