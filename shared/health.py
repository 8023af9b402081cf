"""Health of a VM's replication, and what to tell people: a pure function of a status and the time.

The rules are Hyper-V Replica's, and :mod:`shared.forecasts` adds what is coming; ``docs/monitoring.md`` has both as a
table. The summary says first whether the VM is protected, then how far behind its replica is; the remedy says what to
do, and is empty when nothing needs to be done.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from shared import expiry
from shared.failover_health import judge_failover
from shared.forecasts import LOG_FRACTIONS, forecasts, long_behind, promised_lag
from shared.guest_health import judge_guest
from shared.measures import Statistics
from shared.rates import duration_text, size_text
from shared.states import Health, PlannedStep, ReplicationState
from shared.status import DiskStatus, VmStatus
from shared.summary_words import behind_text, initial_words, percent_text, prepared_words
from shared.verify_outcomes import DIFFERENT

MISSED_FRACTION = 0.2
CYCLES_MIN = 20
"""Of fewer cycles there is no percentage: those up to this many are taken for ones that will not be missed."""
DISCONNECTED_GRACE_SECONDS = 30.0

_INITIAL = (
    ReplicationState.READY_FOR_INITIAL_REPLICATION,
    ReplicationState.INITIAL_REPLICATION_IN_PROGRESS,
    ReplicationState.WAITING_FOR_INITIAL_REPLICATION,
)
_RESYNCING = (ReplicationState.RESYNCHRONIZING, ReplicationState.RESYNCHRONIZE_SUSPENDED)
_STOPPED = (
    ReplicationState.PREPARED_FOR_FAILOVER,
    ReplicationState.FAILED_OVER,
    ReplicationState.FAILED_OVER_WAITING_COMPLETION,
)
"""States in which nothing is sent any more that could be late."""


@dataclass(slots=True)
class Assessment:
    """The outcome: ``reasons`` are (health, text, remedy), to be sorted with the worst first."""

    reasons: list[tuple[Health, str, str]] = field(default_factory=list)
    protected: bool = False
    summary: str = ""

    def critical(self, text: str, remedy: str = "") -> None:
        self.reasons.append((Health.CRITICAL, text, remedy))

    def warn(self, text: str, remedy: str = "") -> None:
        self.reasons.append((Health.WARNING, text, remedy))

    @property
    def health(self) -> Health:
        return max((reason[0] for reason in self.reasons), default=Health.NORMAL)


def resync_required_text(name: str) -> str:
    """The sentence that Hyper-V Replica's users know."""
    return (
        f"Resynchronization is required for the virtual machine {name}. Resume replication to start resynchronization."
    )


def assess(status: VmStatus, now: float) -> Assessment:
    """Judge ``status`` at ``now`` (seconds since the Unix epoch)."""
    result = Assessment()
    state = ReplicationState(status.state_code)
    _judge_state(status, state, result)
    if status.role == "primary":
        _judge_primary(status, state, now, result)
    else:
        _judge_replica(status, state, result)
    _judge_age(status, state, now, result)
    _judge_cycles(status, state, result)
    result.reasons += judge_failover(status, state)
    result.reasons += judge_guest(status, now)
    result.reasons += forecasts(status, now)
    result.reasons += expiry.judge(status.link.certificates, now)
    result.reasons.sort(key=lambda reason: -reason[0])
    result.protected = _is_protected(status, state)
    result.summary = _summary(status, state, result)
    return result


def assessed(status: VmStatus, now: float) -> VmStatus:
    """``status`` with its health, protection, summary, remedy and reasons filled in."""
    result = assess(status, now)
    status.health = result.health.title
    status.promised_lag_seconds = promised_lag(status.interval_seconds) if status.interval_seconds else None
    status.protected = result.protected
    status.summary = result.summary
    status.reasons = [text for _, text, _ in result.reasons]
    status.remedies = [remedy for _, _, remedy in result.reasons]
    status.remedy = next((remedy for _, _, remedy in result.reasons if remedy), "")
    return status


def measured(status: VmStatus) -> Statistics:
    """The answer of ``vm.measure``: the figures, with the VM's health and what makes it worse than Normal."""
    figures: Statistics = msgspec.structs.replace(
        status.statistics, replication_health=status.health, replication_health_details=status.reasons
    )
    return figures


def _judge_state(status: VmStatus, state: ReplicationState, result: Assessment) -> None:
    """What follows from the state, a failure on record and the causes of a resync, on either side."""
    name = status.name
    if status.problem is not None:
        result.critical(status.problem.text, status.problem.remedy)
    elif state is ReplicationState.ERROR:
        result.critical(
            f"Replication for virtual machine '{name}' is in error. Fix the error(s) and resume replication."
        )
    if status.handed_over or (state is ReplicationState.FAILED_OVER and status.role == "primary"):
        # What follows from that is told by judge_failover.
        pass
    elif state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE or (status.causes and state not in _RESYNCING):
        result.critical(_required_text(status), _resync_remedy(status))
    if status.role == "primary":
        _judge_planned(status, state, result)
    if state in _RESYNCING:
        result.warn("A resynchronization is not complete; the replica keeps its older recovery point until then.")
    if state in _INITIAL or (not status.baseline and state is ReplicationState.SUSPENDED):
        result.warn("Initial replication has not been completed.", _initial_remedy(status, state))


def _judge_planned(status: VmStatus, state: ReplicationState, result: Assessment) -> None:
    """A VM that is prepared for a failover, or whose tap takes no writes, runs nowhere (R43)."""
    planned, name = status.planned, status.name
    back = f"vmreplica failover {name} --prepare --abort"
    if planned is not None and planned.step == PlannedStep.FORCED:
        result.critical(
            f"The planned failover of {name} was aborted by force: {status.peer_host} may hold its token still.",
            f"Do not fail over there before the link is mended: `vmreplica test-connection {status.link.peer}`.",
        )
    elif planned is not None and planned.step == PlannedStep.CONFIRMED:
        where = status.peer_host or "the replica"
        result.warn(
            f"{name} is prepared for a failover to {where}, and takes no writes here.",
            f"Run `vmreplica failover {name}` on {where}, or take it back: `{back}`.",
        )
    elif planned is not None and planned.holds_writes and state is not ReplicationState.FAILED_OVER:
        result.warn(f"A failover of {name} is being prepared ({planned.step}): {planned.text}")
    elif status.tap is not None and status.tap.refused and state is not ReplicationState.FAILED_OVER:
        result.critical(
            f"The tap of virtual machine '{name}' takes no writes: {status.tap.refused}",
            f"If nothing was failed over: `{back}` (with --force where no preparation is on record).",
        )


def _required_text(status: VmStatus) -> str:
    """The sentence that users know; where the dirty map bounds the compare, also to how much, and that it starts."""
    required = resync_required_text(status.name)
    if not _is_bounded(status) or status.tap is None:
        return required
    whole = sum(disk.size_bytes for disk in status.disks)
    doubt = f"Only {size_text(status.tap.doubt_bytes or 0)} of {size_text(whole)} are in doubt"
    if status.resync_stopped_time is not None:
        return f"{required} {doubt}."
    return f"{required} {doubt}; they are compared by themselves as soon as connectivity is healthy."


def _is_bounded(status: VmStatus) -> bool:
    return (
        status.tap is not None
        and status.tap.tracking == "map"
        and not status.resync_whole
        and all(cause.code in ("tracking_lost", "reversed") for cause in status.causes)
    )


def _resync_remedy(status: VmStatus) -> str:
    if _is_bounded(status):
        return f"Run `vmreplica resume {status.name}`." if status.resync_stopped_time is not None else ""
    if status.role == "replica" and any(cause.code == "reversed" for cause in status.causes):
        where = status.peer_host or "the host that it was failed over to"
        return f"Run `vmreplica reverse {status.name}` on {where} as well; what is in doubt is compared by itself then."
    if status.role == "replica":
        return f"Run `vmreplica resume {status.name} --resynchronize` at the primary."
    return f"Run `vmreplica resume {status.name} --resynchronize`."


def _initial_remedy(status: VmStatus, state: ReplicationState) -> str:
    if state is not ReplicationState.READY_FOR_INITIAL_REPLICATION:
        return ""
    if status.role == "primary":
        return f"Run `vmreplica initial {status.name}`."
    with_seed = " --use-seed" if status.seeded else ""
    return f"Run `vmreplica initial {status.name}{with_seed}` on {status.peer_host or 'the primary'}."


def _judge_primary(status: VmStatus, state: ReplicationState, now: float, result: Assessment) -> None:
    name, tap, link = status.name, status.tap, status.link
    if status.waiting and not _is_bounded(status) and state is not ReplicationState.REPLICATING:
        result.warn(status.waiting)
    if status.suspended or state in (ReplicationState.SUSPENDED, ReplicationState.RESYNCHRONIZE_SUSPENDED):
        result.warn("Replication is suspended by the administrator.", f"Run `vmreplica resume {name}`.")
    for cause in status.bypasses:
        result.critical(cause.text, cause.remedy)
    for disk in status.disks:
        _judge_size(status, disk, result)
    if tap is not None:
        if tap.error:
            result.critical(
                f"The tap of virtual machine '{name}' does not run: {tap.error}",
                f"`vmreplica doctor {name}` looks who has its disks, and at all else that it needs.",
            )
        if log_level(tap.log_used_bytes, tap.log_limit_bytes):
            text = log_text(tap.log_used_bytes, tap.log_limit_bytes, tap.log_full_seconds)
            result.warn(text, _log_remedy(status))
    waits = state in (ReplicationState.SUSPENDED, ReplicationState.FAILED_OVER, ReplicationState.ERROR)
    if not link.connected and link.attempts > 0 and not waits and status.problem is None:
        text = f"Replication to {link.peer} is interrupted: {link.last_error}"
        if link.since_time is not None and now - link.since_time >= DISCONNECTED_GRACE_SECONDS:
            result.critical(text, f"Check the replica's host and `vmreplica test-connection {link.peer}`.")
        else:
            result.warn(text)
    verified = status.verify.last if status.verify is not None else None
    if verified is not None and verified.outcome == DIFFERENT and verified.epoch == status.epoch:
        result.critical(f"A verify found that the replica is wrong: {verified.text}", verified.remedy)


def log_level(used: int, limit: int) -> int:
    """How many of LOG_FRACTIONS the bytes of log have reached."""
    if used < LOG_FRACTIONS[0] * limit or not limit:
        return 0
    return sum(used >= fraction * limit for fraction in LOG_FRACTIONS)


def log_text(used: int, limit: int, full_seconds: float | None) -> str:
    """How full the log is, when it is full, and what happens then."""
    left = f"; at the present rate it is full in {duration_text(full_seconds)}" if full_seconds is not None else ""
    return (
        f"The replication log uses {size_text(used)} of its limit of {size_text(limit)} "
        f"({100 * used // limit} %){left}. Past the limit the dirty map takes over: the VM is not affected, and what "
        f"changed since is compared instead of being sent as it was written."
    )


def _log_remedy(status: VmStatus) -> str:
    if not status.link.connected:
        return ""
    return (
        f"The link is slower than the VM writes, or the limit is small: `vmreplica set {status.name} log-limit=SIZE`."
    )


def _judge_size(status: VmStatus, disk: DiskStatus, result: Assessment) -> None:
    """A disk that was resized (R20): what is inside its size goes on, and what is beyond is not replicated."""
    if disk.found_size_bytes is not None and disk.found_size_bytes != disk.size_bytes:
        result.critical(*resized(status.name, disk, disk.found_size_bytes))


def resized(name: str, disk: DiskStatus, found: int) -> tuple[str, str]:
    """What is told of a disk of the VM that has ``found`` bytes in the place of its size, and the way out."""
    size = disk.size_bytes
    back, order = f"`truncate --size {size} {disk.path}`", f"shut the VM down and run `vmreplica resize {name}`"
    if disk.block_device:
        back, order = "as it was resized", f"run `vmreplica disk resize {name} {disk.index}`"
    text = f"Disk {disk.index} of virtual machine '{name}', {disk.path}, was resized: {size} to {found} bytes"
    if found > size:
        text += f". The VM and its replica go on with {size} bytes, but its tap will not start again on it."
        return text, f"To replicate its new size, {order}; or bring it back to {size} bytes ({back})."
    text += ": what lay behind that is lost, the VM gets errors there, and nothing is replicated."
    remedy = (
        f"The replica's newest point is older than that: fail over to it, or bring the disk back to {size} bytes "
        f"({back}), restore what it held there, and run `vmreplica resume {name} --resynchronize`."
    )
    return text, remedy


def _judge_replica(status: VmStatus, state: ReplicationState, result: Assessment) -> None:
    name = status.name
    if status.suspended or state is ReplicationState.SUSPENDED:
        result.critical("Replication is suspended at the replica.", f"Run `vmreplica resume {name}`.")


def _judge_age(status: VmStatus, state: ReplicationState, now: float, result: Assessment) -> None:
    """More than an hour since the last send or receive: by the newest cut, or where that is not known, by the figures.

    A cut that was received late says nothing newer than itself, so the age of the cut counts, not when it arrived.
    """
    if not status.baseline or state in _STOPPED or (status.planned is not None and status.planned.token_sent):
        return
    age, last = status.lag_seconds, status.statistics.last_replication_time
    if age is None and last is not None:
        age = now - last
    if age is not None and age > long_behind(status.interval_seconds):
        remedy = "Look at `vmreplica status` on the primary's host." if status.role == "replica" else ""
        result.warn(f"Replica virtual machine '{status.name}' is behind the primary by more than an hour.", remedy)


def _judge_cycles(status: VmStatus, state: ReplicationState, result: Assessment) -> None:
    if state is not ReplicationState.REPLICATING:
        return
    statistics = status.statistics
    cycles = max(_cycles_needed(status), statistics.successful_replication_count + statistics.missed_replication_count)
    if statistics.missed_replication_count > MISSED_FRACTION * cycles:
        result.warn(
            f"More than 20 percent of replication cycles have been missed for virtual machine '{status.name}'. "
            "Replication might be encountering problems.",
            _slow_remedy(status),
        )
    latency = statistics.average_replication_latency_seconds
    if latency is not None and status.interval_seconds and latency > status.interval_seconds:
        result.warn(
            f"The average latency of {duration_text(latency)} is longer than the replication interval of "
            f"{duration_text(status.interval_seconds)}.",
            _slow_remedy(status),
        )


def _slow_remedy(status: VmStatus) -> str:
    there = " at the primary" if status.role == "replica" else ""
    return (
        f"`vmreplica events {status.name} --level warning` tells of outages. Where link or replica can't do more: a "
        f"longer interval, `vmreplica set {status.name} interval=TIME`{there}."
    )


def _cycles_needed(status: VmStatus) -> float:
    """The cycles that a percentage is taken of at least; of a long interval those of one monitoring interval."""
    monitored = status.statistics.monitoring_interval_seconds
    if monitored is None or not status.interval_seconds:
        return CYCLES_MIN
    return min(CYCLES_MIN, monitored / status.interval_seconds)


def _is_protected(status: VmStatus, state: ReplicationState) -> bool:
    """Kept up to date, and up to date: a point that is recent but no longer followed protects nothing to come."""
    if state is not ReplicationState.REPLICATING or not status.baseline or status.lag_seconds is None:
        return False
    if status.problem is not None or status.causes or status.bypasses or status.fenced:
        return False
    return status.lag_seconds <= promised_lag(status.interval_seconds)


def _summary(status: VmStatus, state: ReplicationState, result: Assessment) -> str:
    if status.handed_over:
        to = "primary agent of this host, which serves the VM's disks now"
        return f"Handed over to the {to if status.role == 'replica' else 'replica agent of this host'}."
    here = status.role == "replica" and state is ReplicationState.FAILED_OVER
    if here or state is ReplicationState.FAILED_OVER_WAITING_COMPLETION:
        return "Failed over: the VM's disks are served from this host, without a replica of their own."
    if status.role == "replica" and status.planned is not None and status.planned.token_sent:
        return f"Prepared for a failover: {status.planned.text}"
    if state is ReplicationState.PREPARED_FOR_FAILOVER:
        return f"Prepared for a failover: {prepared_words(status)}."
    if state is ReplicationState.FAILED_OVER:
        return f"Not protected: {status.fenced or 'the VM was failed over at the replica.'}"
    if state is ReplicationState.ERROR:
        return "Not protected: " + (status.problem.text if status.problem else "replication is in error.")
    if not status.baseline:
        return f"Not protected: initial replication {initial_words(status, state)}."
    if status.bypasses:
        return f"Not protected: {status.bypasses[0].text}"
    behind = behind_text(status)
    if status.fenced:
        there = status.peer_host or "the replica"
        return f"Not protected: {there} has not answered yet whether its failover is over; {behind}."
    if result.protected:
        return f"Protected: {behind}."
    if status.suspended:
        return f"Not protected: replication is suspended; {behind}."
    if status.causes or state in (*_RESYNCING, ReplicationState.WAITING_FOR_START_RESYNCHRONIZE):
        doing = f"resynchronizing{percent_text(status)}" if state in _RESYNCING else "a resynchronization is required"
        return f"Not protected: {doing}; {behind}."
    return f"Not protected: {behind}."
