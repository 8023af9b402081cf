"""Statistics of a VM's replication over a sliding interval, as Hyper-V Replica's Measure-VMReplication tells them.

The interval (12 h by default) is kept in buckets, so that old cycles leave the figures one bucket at a time.
Time is an argument, in seconds since the Unix epoch; the whole is a plain record that the store keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from shared.measures import Statistics

MONITORING_SECONDS = 12 * 3600.0
BUCKETS = 12


class Bucket(msgspec.Struct, kw_only=True):
    """The cycles of one part of the monitoring interval."""

    start: float
    successful: int = 0
    missed: int = 0
    errors: int = 0
    bytes_total: int = 0
    bytes_max: int = 0
    latency_total: float = 0.0
    latency_max: float = 0.0


class StatisticsRecord(msgspec.Struct, kw_only=True):
    """What the store keeps."""

    start: float
    buckets: list[Bucket] = []
    initial_bytes: int | None = None
    last_replication: float | None = None
    last_applied: float | None = None
    told: float | None = None
    """When the figures were last told in an event."""


class ReplicationStatistics:
    """Counts cycles: a cycle is one replication interval, missed if no cut was acknowledged in it."""

    def __init__(self, record: Any, now: float, *, monitoring_seconds: float = MONITORING_SECONDS) -> None:
        """Go on from ``record`` (as :meth:`plain` gave it), or start anew where it is None."""
        self._record = StatisticsRecord(start=now) if record is None else msgspec.convert(record, StatisticsRecord)
        self._span = monitoring_seconds / BUCKETS
        self._monitoring_seconds = monitoring_seconds
        self._cycle_end: float | None = None
        self._cycle_acknowledged = False
        self._totals = Bucket(start=now)
        """Since this process began: what counters that never go back are made of."""

    def plain(self) -> Any:
        """The record to store."""
        return msgspec.to_builtins(self._record)

    def pause(self) -> None:
        """Stop counting cycles: nothing is expected to be replicated."""
        self._cycle_end = None

    def tick(self, now: float, steady: float, interval: float) -> None:
        """Count the cycles that ended before ``steady`` (monotonic seconds: a clock set anew misses no cycle)."""
        if self._cycle_end is None:
            self._cycle_end = steady + interval
            self._cycle_acknowledged = False
            return
        if steady < self._cycle_end:
            return
        cycles = 1 + int((steady - self._cycle_end) / interval)
        missed = cycles - (1 if self._cycle_acknowledged else 0)
        if missed:
            self._bucket(now).missed += missed
            self._totals.missed += missed
        self._cycle_acknowledged = False
        self._cycle_end += cycles * interval

    def acknowledged(self, now: float, *, latency: float, size: int) -> None:
        """One cut of ``size`` bytes was acknowledged ``latency`` seconds after its seal."""
        for bucket in (self._bucket(now), self._totals):
            bucket.successful += 1
            bucket.bytes_total += size
            bucket.bytes_max = max(bucket.bytes_max, size)
            bucket.latency_total += max(latency, 0.0)
            bucket.latency_max = max(bucket.latency_max, latency)
        self._record.last_replication = now
        self._cycle_acknowledged = True

    def applied(self, now: float) -> None:
        """The replica exposed a newer cut."""
        self._record.last_applied = now

    def failed(self, now: float) -> None:
        """One attempt to replicate failed."""
        self._bucket(now).errors += 1
        self._totals.errors += 1

    def initial(self, size: int) -> None:
        """The initial replication sent ``size`` bytes."""
        self._record.initial_bytes = size

    def reset(self, now: float) -> None:
        """Begin a new monitoring interval at ``now``: what was counted is forgotten, what happened when is not."""
        self._record = msgspec.structs.replace(self._record, start=now, buckets=[], told=now)

    def is_due(self, now: float) -> bool:
        """Whether a monitoring interval has passed since the figures were last told; a clock set back starts anew."""
        since = self._record.told if self._record.told is not None else self._record.start
        if since > now:
            self._record.told = since = now
        return now - since >= self._monitoring_seconds

    def told(self, now: float) -> None:
        """The figures were told."""
        self._record.told = now

    def bytes_per_second(self, now: float) -> float | None:
        """The bytes of all cuts of the monitoring interval by its length; None before it has any length."""
        kept = self._kept(now)
        seconds = now - max(self._record.start, now - self._monitoring_seconds)
        return sum(bucket.bytes_total for bucket in kept) / seconds if seconds > 0 else None

    def report(self, now: float, *, pending_bytes: int = 0) -> Statistics:
        """The figures over the monitoring interval that ends at ``now``."""
        kept = self._kept(now)
        successful = sum(bucket.successful for bucket in kept)
        size = sum(bucket.bytes_total for bucket in kept)
        latency = sum(bucket.latency_total for bucket in kept)
        return Statistics(
            monitoring_start_time=max(self._record.start, now - self._monitoring_seconds),
            monitoring_end_time=now,
            monitoring_interval_seconds=self._monitoring_seconds,
            successful_replication_count=successful,
            missed_replication_count=sum(bucket.missed for bucket in kept),
            replication_errors=sum(bucket.errors for bucket in kept),
            pending_replication_bytes=pending_bytes,
            average_replication_bytes=size / successful if successful else None,
            maximum_replication_bytes=_maximum(bucket.bytes_max for bucket in kept if bucket.successful),
            average_replication_latency_seconds=latency / successful if successful else None,
            maximum_replication_latency_seconds=max(
                (bucket.latency_max for bucket in kept if bucket.successful), default=None
            ),
            initial_replication_bytes=self._record.initial_bytes,
            last_replication_time=self._record.last_replication,
            last_applied_time=self._record.last_applied,
            replications_since_start=self._totals.successful,
            replicated_bytes_since_start=self._totals.bytes_total,
            missed_since_start=self._totals.missed,
            errors_since_start=self._totals.errors,
        )

    def _kept(self, now: float) -> list[Bucket]:
        oldest = now - self._monitoring_seconds
        return [bucket for bucket in self._record.buckets if bucket.start > oldest]

    def _bucket(self, now: float) -> Bucket:
        buckets = self._record.buckets
        if not buckets or not buckets[-1].start <= now < buckets[-1].start + self._span:
            self._record.buckets = [*self._kept(now), Bucket(start=now)][-BUCKETS:]
        return self._record.buckets[-1]


def interval_text(name: str, figures: Statistics) -> str:
    """The figures of a monitoring interval in a sentence, for event 29174."""
    return (
        f"{name}: {figures.successful_replication_count} cuts replicated, "
        f"{figures.missed_replication_count} cycles missed, {figures.replication_errors} errors."
    )


def _maximum(values: Iterable[int]) -> int | None:
    return max(values, default=None)
