"""The metrics that an agent offers to Prometheus, as one table.

Names and units follow Prometheus' conventions: base units in the name, ``_total`` for what only grows. A figure that is
not known has no sample. ``docs/monitoring.md`` has the same table, made by
``python -m shared.cli.metrics_page``.
"""

from __future__ import annotations

from shared.failover_metrics import FAILOVER_METRICS
from shared.metric_kinds import AgentMetric, Figure, Samples, VmMetric, one_hot
from shared.metric_kinds import agent_metric as _agent
from shared.metric_kinds import vm_metric as _vm
from shared.states import PRIMARY_TRANSITIONS, REPLICA_TRANSITIONS, Health, ReplicationState
from shared.status import VmStatus
from shared.tap_control import Tracking
from shared.verify_outcomes import DIFFERENT

_STATES = {
    "primary": sorted({ReplicationState.DISABLED, ReplicationState.ERROR, *PRIMARY_TRANSITIONS.values()}),
    "replica": sorted({ReplicationState.DISABLED, ReplicationState.ERROR, *REPLICA_TRANSITIONS.values()}),
}
_TRACKING = tuple(tracking.value for tracking in Tracking)


def _limit(name: str, text: str, field: str) -> AgentMetric:
    return _agent(name, text, lambda agent: getattr(agent.limits, field) if agent.limits is not None else None)


def _tap(name: str, text: str, field: str, *, counter: bool = False) -> VmMetric:
    def read(vm: VmStatus) -> Figure:
        return getattr(vm.tap, field) if vm.tap is not None and vm.tap.running else None

    return _vm(f"tap_{name}", text, read, at="primary", counter=counter)


def _work(name: str, text: str, field: str) -> VmMetric:
    def read(vm: VmStatus) -> Samples:
        return (((vm.progress.kind,), getattr(vm.progress, field)),) if vm.progress is not None else ()

    return VmMetric(f"vmreplica_work_{name}", text, read, ("kind",))


def _figure(name: str, text: str, field: str, *, counter: bool = False) -> VmMetric:
    return _vm(name, text, lambda vm: getattr(vm.statistics, field), counter=counter)


def _disk(name: str, text: str, field: str, *, at: str = "") -> VmMetric:
    def read(vm: VmStatus) -> Samples:
        return [((str(disk.index),), getattr(disk, field)) for disk in vm.disks]

    return VmMetric(f"vmreplica_disk_{name}", text, read, ("disk",), at=at)


def _verify_ended(vm: VmStatus) -> Figure:
    return vm.verify.last.ended_time if vm.verify is not None and vm.verify.last is not None else None


def _verify_different(vm: VmStatus) -> Figure:
    """What is known to be wrong at the replica: nothing once it was repaired, or another baseline has begun."""
    last = vm.verify.last if vm.verify is not None else None
    if last is None:
        return None
    return last.different_bytes if last.outcome == DIFFERENT and last.epoch == vm.epoch else 0


_REFUSED = {
    "handshake": "refused_handshakes",
    "rate": "refused_rate",
    "displaced": "displaced",
    "too_many": "refused_sessions",
    "unauthorized": "refused_unauthorized",
    "protocol": "refused_protocol",
}

AGENT_METRICS: tuple[AgentMetric, ...] = (
    AgentMetric(
        "vmreplica_agent_info",
        "Host and version of the agent; always 1.",
        lambda agent: (((agent.host, agent.version), 1),),
        ("host", "version"),
    ),
    _agent("agent_start_timestamp_seconds", "When the agent started.", lambda agent: agent.started_time),
    _agent("agent_problems", "What concerns the agent as a whole and needs a look.", lambda agent: len(agent.problems)),
    _agent("agent_vms", "VMs that the agent has.", lambda agent: len(agent.vms)),
    _agent(
        "certificate_expiry_timestamp_seconds",
        "Last second of the agent's own certificate.",
        lambda agent: agent.certificate_not_after_time,
    ),
    AgentMetric(
        "vmreplica_trust_expiry_timestamp_seconds",
        "Last second of each certificate, CA and revocation list that the agent's TLS rests on.",
        lambda agent: [((each.what, each.subject), each.not_after_time) for each in agent.certificates],
        ("what", "subject"),
    ),
    _limit("connections_half_open", "Connections that have not finished their TLS handshake.", "half_open"),
    _limit("connections_half_open_limit", "Their limit.", "half_open_limit"),
    _limit("connections", "Connections that finished their handshake.", "sessions"),
    _limit("connections_limit", "Their limit.", "sessions_limit"),
    _limit("received_memory_bytes", "What was received and is not stored yet.", "memory_bytes"),
    _limit("received_memory_limit_bytes", "Its limit.", "memory_limit_bytes"),
    AgentMetric(
        "vmreplica_connections_refused_total",
        "Connections that were kept out: by a failed handshake, the rate of their address, for lack of room, as too "
        "many, without authorization, by a broken protocol.",
        lambda agent: [
            ((reason,), getattr(agent.limits, field)) for reason, field in _REFUSED.items() if agent.limits is not None
        ],
        ("reason",),
        counter=True,
    ),
)

VM_METRICS: tuple[VmMetric, ...] = (
    VmMetric(
        "vmreplica_vm_info",
        "The other host and the epoch of the VM's baseline; always 1.",
        lambda vm: (((vm.peer_host, vm.epoch), 1),),
        ("peer", "epoch"),
    ),
    VmMetric(
        "vmreplica_vm_state",
        "1 for the state that replication is in, 0 for the others.",
        lambda vm: one_hot((state.title for state in _STATES[vm.role]), vm.state),
        ("state",),
    ),
    VmMetric(
        "vmreplica_vm_health",
        "1 for the health of replication, 0 for the others.",
        lambda vm: one_hot((health.title for health in Health), vm.health),
        ("health",),
    ),
    _vm(
        "vm_protected",
        "Whether a recovery point exists that is recent enough and kept up to date.",
        lambda vm: vm.protected,
    ),
    _vm("vm_initial_replication_complete", "Whether the replica can be promoted at all.", lambda vm: vm.baseline),
    _vm("vm_suspended", "Whether an administrator suspended replication.", lambda vm: vm.suspended),
    _vm("vm_resync_required", "Whether a resynchronization is required.", lambda vm: bool(vm.causes)),
    _vm("vm_failed", "Whether a failure is on record that does not heal by itself.", lambda vm: vm.problem is not None),
    _vm(
        "vm_resync_waiting", "Whether a required or scheduled resync waits.", lambda vm: bool(vm.waiting), at="primary"
    ),
    _vm("vm_interval_seconds", "Time between two cuts.", lambda vm: vm.interval_seconds or None),
    _vm("vm_lag_seconds", "Age of the newest recovery point.", lambda vm: vm.lag_seconds),
    _vm("vm_promised_lag_seconds", "The newest recovery point is not to be older.", lambda vm: vm.promised_lag_seconds),
    _vm(
        "vm_pending_bytes",
        "Log that the replica has not acknowledged; at the replica: received and not applied.",
        lambda vm: vm.pending_bytes,
    ),
    _vm(
        "vm_caught_up_seconds",
        "How long sending that takes at the present rate.",
        lambda vm: vm.caught_up_seconds,
        at="primary",
    ),
    _vm("link_up", "Whether a session is open.", lambda vm: vm.link.connected),
    _vm("link_healthy", "Whether connectivity is proven in both directions now.", lambda vm: vm.link.healthy),
    _vm(
        "link_changed_timestamp_seconds",
        "When the session opened, or since when there is none.",
        lambda vm: vm.link.since_time,
    ),
    _vm(
        "link_round_trip_seconds",
        "Round trip of a heartbeat.",
        lambda vm: None if vm.link.rtt_ms is None else vm.link.rtt_ms / 1000,
    ),
    _vm("link_sent_bytes_total", "Bytes sent in the present session.", lambda vm: vm.link.bytes_sent, counter=True),
    _vm(
        "link_received_bytes_total",
        "Bytes received in the present session.",
        lambda vm: vm.link.bytes_received,
        counter=True,
    ),
    _vm("link_failed_attempts", "Failed attempts since the last session.", lambda vm: vm.link.attempts, at="primary"),
    _vm("link_recoverable", "Whether the last error can heal by itself.", lambda vm: vm.link.retryable, at="primary"),
    _vm(
        "link_next_attempt_seconds",
        "Until the next attempt to connect, while there is no session.",
        lambda vm: vm.link.next_attempt_seconds,
        at="primary",
    ),
    _vm(
        "link_damaged_sessions_total",
        "Sessions that ended because TLS found data damaged on its way.",
        lambda vm: vm.link.damaged,
        counter=True,
        at="primary",
    ),
    _vm("tap_running", "Whether the VM's tap answers.", lambda vm: vm.tap is not None and vm.tap.running, at="primary"),
    VmMetric(
        "vmreplica_tap_tracking",
        "1 for how the tap tracks writes, 0 for the others.",
        lambda vm: one_hot(_TRACKING, vm.tap.tracking) if vm.tap is not None and vm.tap.running else (),
        ("tracking",),
        at="primary",
    ),
    _tap("clients", "Clients that are connected to the tap: the hypervisor's disks.", "clients"),
    _tap("writes_total", "Writes of the guest.", "writes", counter=True),
    _tap("written_bytes_total", "Bytes that the guest wrote.", "bytes_written", counter=True),
    _tap("last_write_timestamp_seconds", "When the guest wrote last.", "last_write_time"),
    _tap("log_used_bytes", "What the replication log takes.", "log_used_bytes"),
    _tap("log_limit_bytes", "What it may take.", "log_limit_bytes"),
    _tap("log_full_seconds", "Until the log is full at the present rate, while it grows.", "log_full_seconds"),
    _tap("hot_bytes", "What power loss now would leave in doubt.", "hot_bytes"),
    _tap("doubt_bytes", "What the dirty map says is in doubt and will be compared.", "doubt_bytes"),
    _disk("size_bytes", "Size of a disk as it is replicated.", "size_bytes"),
    _disk("found_size_bytes", "Size that it was seen to have last.", "found_size_bytes", at="primary"),
    _figure(
        "replications_total",
        "Cuts that the replica acknowledged, since the agent started.",
        "replications_since_start",
        counter=True,
    ),
    _figure("replicated_bytes_total", "Bytes of these cuts.", "replicated_bytes_since_start", counter=True),
    _figure(
        "missed_cycles_total",
        "Replication intervals without one, since the agent started.",
        "missed_since_start",
        counter=True,
    ),
    _figure(
        "replication_errors_total",
        "Failed attempts to replicate, since the agent started.",
        "errors_since_start",
        counter=True,
    ),
    _figure(
        "monitoring_interval_seconds",
        "Length of the monitoring interval, over which the next ones are.",
        "monitoring_interval_seconds",
    ),
    _figure("monitoring_replications", "Cuts acknowledged in the monitoring interval.", "successful_replication_count"),
    _figure("monitoring_missed_cycles", "Cycles missed in it.", "missed_replication_count"),
    _figure("monitoring_errors", "Failed attempts in it.", "replication_errors"),
    _figure(
        "monitoring_average_latency_seconds",
        "From seal to acknowledgement, on average.",
        "average_replication_latency_seconds",
    ),
    _figure("monitoring_maximum_latency_seconds", "The same at most.", "maximum_replication_latency_seconds"),
    _figure("monitoring_average_replication_bytes", "Bytes of a cut, on average.", "average_replication_bytes"),
    _figure("monitoring_maximum_replication_bytes", "The same at most.", "maximum_replication_bytes"),
    _figure("last_replication_timestamp_seconds", "When a cut was last acknowledged.", "last_replication_time"),
    _figure(
        "last_applied_timestamp_seconds",
        "When a newer cut was last applied, as far as this side knows.",
        "last_applied_time",
    ),
    _work("size_bytes", "Size of long work that is under way.", "total_bytes"),
    _work("done_bytes", "How much of it is done.", "done_bytes"),
    _work("different_bytes", "What a compare found to differ.", "different_bytes"),
    _work("sent_bytes", "Differing blocks sent, before compression.", "sent_bytes"),
    _work("remaining_seconds", "What is left of it at the present rate.", "seconds_left"),
    _vm(
        "verify_running",
        "Whether a verify runs.",
        lambda vm: vm.verify.running if vm.verify is not None else None,
        at="primary",
    ),
    _vm(
        "verify_last_timestamp_seconds",
        "When the last verify ended.",
        _verify_ended,
        at="primary",
    ),
    _vm(
        "verify_different_bytes",
        "What the last verify found to differ, of the present baseline, and was not repaired.",
        _verify_different,
        at="primary",
    ),
    _vm(
        "points",
        "Recovery points, with the newest.",
        lambda vm: vm.older_points + (vm.applied_cut is not None),
        at="replica",
    ),
    _vm("points_bytes", "What the undo logs of the older ones take.", lambda vm: vm.points_bytes, at="replica"),
    _vm(
        "points_oldest_timestamp_seconds",
        "When the oldest one was sealed.",
        lambda vm: vm.oldest_point_time,
        at="replica",
    ),
    _vm(
        "points_lost_timestamp_seconds",
        "When one was last given up for want of room.",
        lambda vm: vm.points_lost_time,
        at="replica",
    ),
    _vm("points_pinned", "Recovery points that are pinned.", lambda vm: vm.points_pinned, at="replica"),
    _vm("points_pinned_bytes", "What they take, at least.", lambda vm: vm.points_pinned_bytes, at="replica"),
    _vm("points_limit_bytes", "What all undo logs may take.", lambda vm: vm.points_limit_bytes, at="replica"),
    _vm("exports", "Recovery points that are exported.", lambda vm: len(vm.exports), at="replica"),
    _vm(
        "exports_failed",
        "Of them, those that can't be read, for good or at present.",
        lambda vm: sum(bool(export.error) for export in vm.exports),
        at="replica",
    ),
    _vm(
        "exports_written_bytes",
        "What clients have written to writable exports.",
        lambda vm: sum(export.written_bytes for export in vm.exports),
        at="replica",
    ),
    _vm("test_failover", "1 while one is served.", lambda vm: vm.test_failover is not None, at="replica"),
    _vm(
        "test_failover_timestamp_seconds",
        "When a test failover was begun last.",
        lambda vm: vm.statistics.last_test_failover_time,
        at="replica",
    ),
    _vm(
        "spool_limit_bytes",
        "With more than this received and not applied the primary waits.",
        lambda vm: vm.spool_limit_bytes,
        at="replica",
    ),
    _vm("store_free_bytes", "Free space of the volume with the VM's folder.", lambda vm: vm.store_free_bytes),
    _vm("store_reserve_bytes", "What of it stays free for applying.", lambda vm: vm.store_reserve_bytes, at="replica"),
    _vm(
        "store_full_seconds",
        "Until that volume is full at the rate of the last hour, while it fills.",
        lambda vm: vm.store_full_seconds,
    ),
    _vm(
        "quota_used_bytes",
        "What the copies take together that the VM's authorization entry is for.",
        lambda vm: vm.quota_used_bytes if vm.quota_limit_bytes is not None else None,
        at="replica",
    ),
    _vm(
        "quota_limit_bytes",
        "What they may take, where there is a quota.",
        lambda vm: vm.quota_limit_bytes,
        at="replica",
    ),
    _vm(
        "quota_full_seconds",
        "Until it is used up at the rate of the last hour, while it fills.",
        lambda vm: vm.quota_full_seconds,
        at="replica",
    ),
    *FAILOVER_METRICS,
)
