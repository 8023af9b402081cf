"""What is going to go wrong with a VM's replication if nothing changes, as reasons for its health: pure functions.

Hyper-V Replica's rules (:mod:`shared.health`) judge what has happened. These judge what is coming: space that runs out,
a recovery point that grows older than the settings promise, a replica that falls behind with applying.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.rates import duration_text, size_text
from shared.states import Health, ReplicationState
from shared.status import VmStatus

BEHIND_SECONDS = 3600.0
PROMISED_FLOOR_SECONDS = 60.0
PROMISED_INTERVALS = 3
"""The newest recovery point is not to be older than so many intervals, and not than the floor."""
EARLY_FRACTION = 2 / 3
"""Of the promised age: from there on it is told that it will be missed."""
LOG_FRACTIONS = (0.5, 0.75, 0.9)
"""Of the log's limit: each that is passed is told, whatever the rate."""
LOG_SOON_SECONDS = 4 * 3600.0
VOLUME_SOON_SECONDS = 24 * 3600.0
STATE_ROOM_BYTES = 64 << 20
"""With less than this free, a primary's volume can't be relied on for the VM's state and log."""
ROOM_BYTES = 32 << 20
"""At a replica the oldest points are deleted while the volume has less than this beside the reserve."""
QUOTA_FRACTION = 0.9
"""Of an authorization entry's quota: from there on it is told how full it is, whatever the rate."""
PINNED_FRACTION = 0.75
"""Of the limit of undo logs: with more than that, pinned points are warned of. They are deleted above 7/8."""
POINTS_LOST_SECONDS = 24 * 3600.0
"""Deleting points for want of room is told for so long, unless they are all there again."""

Reason = tuple[Health, str, str]
"""How bad it is, a text, and what to do."""


def promised_lag(interval: float) -> float:
    """The greatest age of the newest recovery point that an interval promises, in seconds."""
    return max(PROMISED_INTERVALS * interval, PROMISED_FLOOR_SECONDS)


def long_behind(interval: float) -> float:
    """More seconds than this since the last send or receive are a Warning by Hyper-V Replica's rules: an hour.

    There an interval is 15 minutes at most; a longer one is given what it promises.
    """
    return max(BEHIND_SECONDS, promised_lag(interval))


def forecasts(status: VmStatus, now: float) -> Iterator[Reason]:
    """What is coming, for either side."""
    state = ReplicationState(status.state_code)
    if state in (ReplicationState.FAILED_OVER, ReplicationState.FAILED_OVER_WAITING_COMPLETION):
        return
    waits = status.planned is not None and status.planned.token_sent
    if state is ReplicationState.REPLICATING and status.baseline and not waits:
        yield from _age(status)
    if status.role == "primary":
        yield from _log(status)
        yield from _state_volume(status)
    else:
        yield from _backlog(status, now)
        yield from _store_volume(status)
        yield from _quota(status)
        yield from _points(status, now)
        yield from _pinned(status)


def _age(status: VmStatus) -> Iterator[Reason]:
    """The age of the newest recovery point: beyond what the interval promises, or about to be."""
    lag, promised = status.lag_seconds, promised_lag(status.interval_seconds)
    if lag is None or lag > long_behind(status.interval_seconds):
        return
    rule = f"an interval of {duration_text(status.interval_seconds)} promises at most {duration_text(promised)}"
    todo = _waiting_to_be_sent(status)
    if lag > promised:
        yield (
            Health.WARNING,
            f"The newest recovery point is {duration_text(lag)} old; {rule}{todo}.",
            _age_remedy(status),
        )
    elif lag > EARLY_FRACTION * promised and status.link.connected:
        late = status.caught_up_seconds is None or lag + status.caught_up_seconds > promised
        if late:
            text = (
                f"The newest recovery point is {duration_text(lag)} old, and will be too old in "
                f"{duration_text(promised - lag)} unless another one is completed: {rule}{todo}."
            )
            yield Health.WARNING, text, _age_remedy(status)


def _waiting_to_be_sent(status: VmStatus) -> str:
    if status.role != "primary" or not status.pending_bytes or not status.link.connected:
        return ""
    text = f"; {size_text(status.pending_bytes)} are to be sent"
    if status.caught_up_seconds is None:
        return text
    return f"{text}, which takes {duration_text(status.caught_up_seconds)} at the present rate"


def _age_remedy(status: VmStatus) -> str:
    if status.role == "replica":
        return "Look at `vmreplica status` on the primary's host."
    if not status.link.connected:
        return ""
    return (
        f"If it lasts, the link or the replica's disks are slower than the VM writes: see `vmreplica churn "
        f"{status.name}`, its replication-send-rate, and the replica's `vmreplica status`; or set a longer interval."
    )


def _log(status: VmStatus) -> Iterator[Reason]:
    """A log that is full soon, though its level is not worth telling yet.

    While cuts are acknowledged in time the log only looks as if it grew: each one frees what is before it.
    """
    tap = status.tap
    if tap is None or tap.log_full_seconds is None or tap.log_full_seconds > LOG_SOON_SECONDS:
        return
    behind = status.lag_seconds is None or status.lag_seconds > 2 * status.interval_seconds
    replicating = status.state_code == ReplicationState.REPLICATING
    told_by_level = tap.log_used_bytes >= LOG_FRACTIONS[0] * tap.log_limit_bytes
    if told_by_level or (status.link.connected and replicating and not behind):
        return
    text = (
        f"The replication log is full in {duration_text(tap.log_full_seconds)} at the present rate "
        f"({size_text(tap.log_used_bytes)} of {size_text(tap.log_limit_bytes)} are used). Past the limit the dirty map "
        "takes over: the VM is not affected, and what changed since is compared."
    )
    raised = f"raise the limit: `vmreplica set {status.name} log-limit=SIZE`."
    if status.link.connected:
        yield Health.WARNING, text, f"Cuts are not acknowledged as fast as the VM writes; if that lasts, {raised}"
    else:
        yield Health.WARNING, text, f"Restore the link before that, or {raised}"


def _state_volume(status: VmStatus) -> Iterator[Reason]:
    """The volume of a primary's state and log."""
    free = status.store_free_bytes
    if free is None:
        return
    where, remedy = f"The volume of {status.folder}, with the VM's state and log,", "Make room there, or enlarge it."
    wanted = 0
    if status.tap is not None and status.tap.tracking == "on":
        wanted = max(0, status.tap.log_limit_bytes - status.tap.log_used_bytes)
    if free < STATE_ROOM_BYTES:
        text = f"{where} has only {size_text(free)} left: soon neither can be written, and nothing is replicated."
        yield Health.CRITICAL, text, remedy
    elif free < wanted:
        text = (
            f"{where} has {size_text(free)} left, and the log may take {size_text(wanted)} more: the volume would be "
            "full before the log's limit is reached."
        )
        yield Health.WARNING, text, f"{remedy} Or lower the limit: `vmreplica set {status.name} log-limit=SIZE`."
    elif status.store_full_seconds is not None and status.store_full_seconds < VOLUME_SOON_SECONDS:
        text = f"{where} is full in {duration_text(status.store_full_seconds)} at the rate of the last hour."
        yield Health.WARNING, f"{text} {size_text(free)} are left.", remedy


def _backlog(status: VmStatus, now: float) -> Iterator[Reason]:
    """What a replica has received and not applied."""
    pending, limit = status.pending_bytes or 0, status.spool_limit_bytes
    remedy = "The replica's disks are slower than what arrives: look at their load, and at other work on its host."
    if limit and pending > limit:
        text = (
            f"{size_text(pending)} are received and not applied, more than the limit of {size_text(limit)}: the "
            "primary is made to wait."
        )
        yield Health.WARNING, text, remedy
        return
    received = status.newest_cut.time if status.newest_cut is not None else None
    if not pending or received is None or status.lag_seconds is None:
        return
    if status.state_code != ReplicationState.REPLICATING:
        return
    apart = status.lag_seconds - max(0.0, now - received)
    if apart > promised_lag(status.interval_seconds):
        text = (
            f"Applying is {duration_text(apart)} behind what was received: {size_text(pending)} wait in the spool. "
            "They are safe, and a failover applies them first, which takes its time."
        )
        yield Health.WARNING, text, remedy


def _store_volume(status: VmStatus) -> Iterator[Reason]:
    """The volume of the copy, its undo logs and what was received."""
    free, reserve = status.store_free_bytes, status.store_reserve_bytes
    if free is None:
        return
    where, remedy = f"The volume of {status.folder}", "Make room there, or enlarge it."
    if free < reserve:
        text = (
            f"{where} has only {size_text(free)} left, less than the reserve of {size_text(reserve)}: nothing more is "
            "received until there is room. What was received is applied."
        )
        yield Health.CRITICAL, text, remedy
    elif free < reserve + ROOM_BYTES:
        text = f"{where} has only {size_text(free)} left: older recovery points are deleted to make room."
        yield Health.WARNING, text, remedy
    elif status.store_full_seconds is not None and status.store_full_seconds < VOLUME_SOON_SECONDS:
        text = (
            f"{where} is full in {duration_text(status.store_full_seconds)} at the rate of the last hour; "
            f"{size_text(free)} are left. Then older recovery points are deleted, and in the end nothing is received."
        )
        yield Health.WARNING, text, f"{remedy} Or keep fewer points: `vmreplica set {status.name} points-hourly=N`."


def _quota(status: VmStatus) -> Iterator[Reason]:
    """The quota of the authorization entry that the copy counts for, with all copies of that entry."""
    limit, used, full = status.quota_limit_bytes, status.quota_used_bytes, status.quota_full_seconds
    if not limit or used is None:
        return
    whose = f" of {status.peer_host}" if status.peer_host else ""
    what = f"The quota of {size_text(limit)} for the copies{whose} here"
    remedy = (
        "Raise quota_bytes of its [[authorize]] entry in the replica's configuration and reload the agent there, or "
        f"free some: `vmreplica set {status.name} points-hourly=N` there, or remove VMs."
    )
    soon = f" At the rate of the last hour it is full in {duration_text(full)}." if full is not None else ""
    then = "Then older recovery points are deleted, and in the end nothing is received."
    if used >= limit:
        text = (
            f"{what} is used up ({size_text(used)}): older recovery points are deleted, and nothing more is received "
            "until there is room. What was received is applied."
        )
        yield Health.CRITICAL, text, remedy
    elif used >= QUOTA_FRACTION * limit:
        yield Health.WARNING, f"{what} is used to {100 * used // limit} %.{soon} {then}", remedy
    elif full is not None and full < VOLUME_SOON_SECONDS:
        text = f"{what} is full in {duration_text(full)} at the rate of the last hour; {size_text(used)} are used."
        yield Health.WARNING, f"{text} {then}", remedy


def _pinned(status: VmStatus) -> Iterator[Reason]:
    """Pinned recovery points that are going to be deleted although they are: nothing else is left to go."""
    if not status.points_pinned:
        return
    remedy = f"Unpin one that is not needed: `vmreplica points {status.name}` shows what each takes"
    limit, taken, free = status.points_limit_bytes, status.points_pinned_bytes, status.store_free_bytes
    if limit and taken > PINNED_FRACTION * limit:
        text = (
            f"Pinned recovery points alone take {size_text(taken)} of the {size_text(limit)} that all undo logs may "
            "have: as others are gone, the oldest of the pinned is deleted next."
        )
        yield Health.WARNING, text, f"{remedy}; or `vmreplica set {status.name} points-limit=SIZE`."
    if free is not None and status.points_pinned_oldest and free < status.store_reserve_bytes + 4 * ROOM_BYTES:
        text = (
            f"The volume of {status.folder} has only {size_text(free)} left, and the oldest recovery point is pinned: "
            "it is the next to be deleted."
        )
        yield Health.WARNING, text, f"Make room there, or enlarge it. {remedy}."


def _points(status: VmStatus, now: float) -> Iterator[Reason]:
    """Fewer recovery points than the settings promise, because there is no room for them."""
    lost = status.points_lost_time
    if lost is None or now - lost > POINTS_LOST_SECONDS:
        return
    promised = sum(int(status.settings.get(key) or 0) for key in ("points_newest", "points_hourly"))
    kept = status.older_points + (1 if status.applied_cut is not None else 0)
    if kept < promised:
        text = (
            f"{kept} recovery points are kept of the {promised} that the settings ask for: "
            f"{duration_text(now - lost)} ago there was no room. {status.points_lost_text}"
        )
        remedy = (
            "Make room on the volume, raise limit_bytes of [points], or ask for fewer points: "
            f"`vmreplica set {status.name} points-hourly=N`."
        )
        yield Health.WARNING, text.rstrip(), remedy
