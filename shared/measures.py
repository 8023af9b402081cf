"""The figures of ``measure``: what Hyper-V Replica's Measure-VMReplication tells, under our names.

``docs/monitoring.md`` has its names beside ours. Fields are only added; one that is not known is None.
"""

from __future__ import annotations

import msgspec


class Statistics(msgspec.Struct, kw_only=True):
    """What Hyper-V Replica's Measure-VMReplication tells, over the monitoring interval."""

    monitoring_start_time: float | None = None
    monitoring_end_time: float | None = None
    monitoring_interval_seconds: float | None = None
    successful_replication_count: int = 0
    """Cuts acknowledged by the replica as durable."""
    missed_replication_count: int = 0
    """Cycles in which no cut was acknowledged within the interval."""
    replication_errors: int = 0
    pending_replication_bytes: int = 0
    average_replication_bytes: float | None = None
    maximum_replication_bytes: int | None = None
    average_replication_latency_seconds: float | None = None
    """From seal to the replica's acknowledgement."""
    maximum_replication_latency_seconds: float | None = None
    initial_replication_bytes: int | None = None
    last_replication_time: float | None = None
    last_applied_time: float | None = None
    last_snapshot_time: float | None = None
    """When the newest application-consistent cut was sealed; None where there was none."""
    last_test_failover_time: float | None = None
    """When one was begun; known at the replica."""
    replication_health: str = ""
    """With ``replication_health_details``, all reasons: in the answer of ``vm.measure`` only."""
    replication_health_details: list[str] = []
    replications_since_start: int = 0
    """These four count from the start of the agent on, and are not reset."""
    replicated_bytes_since_start: int = 0
    missed_since_start: int = 0
    errors_since_start: int = 0
