"""The status of one VM at the replica, put together from its parts."""

from __future__ import annotations

from protocol.position import NO_EPOCH, Position
from replica_agent.damaged import DamagedVm
from replica_agent.disk_sets import kept_disks, others_of, promoted_disks, served_size
from replica_agent.exports import TEST_SUFFIX
from replica_agent.marks import proof_of, wrong_cause
from replica_agent.parts import VmParts
from replica_agent.planned import planned_status
from replica_agent.point_disks import export_name, point_text
from replica_agent.retention import pinned_cost
from replica_agent.vm import ReplicaVm
from shared.expiry import certificates_of_link
from shared.health import assessed
from shared.progress_status import DiskProgress, ProgressStatus
from shared.states import ReplicationState
from shared.status import (
    Cause,
    CutStatus,
    DiskStatus,
    FailoverStatus,
    LinkStatus,
    TapStatus,
    TestFailoverStatus,
    VmStatus,
)


def status_of(vm: ReplicaVm) -> VmStatus:
    """The whole status, with health and summary."""
    parts = vm.parts
    record, clock = parts.ledger.replication, parts.ports.clock
    now = clock.wall()
    state = ReplicationState.ERROR if vm.failure is not None else record.state
    spool, tap = parts.applier.spool, vm.promotion.tap
    received = spool.received if spool is not None else None
    pending = parts.applier.pending_bytes
    surroundings, folder = parts.surroundings, parts.layout.folder
    volume, lost = surroundings.volumes.of(folder), parts.history.lost
    pinned = pinned_cost(parts.ledger.points)
    statistics = vm.statistics.report(now, pending_bytes=pending)
    statistics.last_test_failover_time = parts.ledger.points.last_test_time
    quota = surroundings.quota_of(parts.vm)
    handed_over = parts.ledger.promotion is not None and parts.ledger.promotion.handed_over
    served = promoted_disks(parts.ledger.vm, parts.ledger.promotion)
    kept = kept_disks(parts.ledger.vm, parts.ledger.promotion)
    status = VmStatus(
        name=vm.name,
        uuid=parts.uuid,
        role="replica",
        state=state.title,
        state_code=int(state),
        causes=list(record.causes),
        problem=vm.failure or record.suspect or parts.applier.problem or vm.connections.trouble,
        baseline=record.epoch != NO_EPOCH,
        suspended=state is ReplicationState.SUSPENDED,
        interval_seconds=record.interval_seconds,
        lag_seconds=max(0.0, now - record.applied_time) if record.applied_time is not None else None,
        pending_bytes=pending,
        newest_cut=_cut(vm, received),
        acked_cut=_cut(vm, received),
        applied_cut=_cut(vm, record.applied.position if record.applied is not None else None),
        epoch=record.epoch.hex() if record.epoch != NO_EPOCH else "",
        peer_host=record.peer_host,
        link=_link(vm, now),
        tap=tap.view() if tap is not None else _silent_tap(vm),
        progress=_progress(parts),
        planned=planned_status(parts.ledger.prepared, parts.ledger.promotion) if not handed_over else None,
        statistics=statistics,
        failover=failover_of(vm),
        disks=[
            DiskStatus(
                index=disk.index,
                uuid=disk.uuid.hex(),
                size_bytes=served_size(disk, parts.ledger.promotion),
                path=parts.disks.path(disk.index),
                export=export_name(disk.index),
            )
            for disk in served
        ],
        former_disks=[
            DiskStatus(index=disk.index, uuid=disk.uuid.hex(), size_bytes=disk.size, path=parts.disks.path(disk.index))
            for disk in kept
        ],
        exports=vm.exports.status(),
        handed_over=handed_over,
        older_points=sum(log.point for log in parts.ledger.points.logs),
        oldest_point_time=next((log.older_time for log in parts.ledger.points.logs if log.point), None),
        points_bytes=parts.history.bytes,
        points_lost_time=lost.time if lost is not None else None,
        points_lost_text=lost.text if lost is not None else "",
        points_limit_bytes=parts.history.retention.limit,
        points_pinned=sum(mark.pinned for mark in parts.ledger.points.marks),
        points_pinned_bytes=pinned.bytes,
        points_pinned_oldest=pinned.oldest,
        test_failover=_test_failover(vm),
        proof=vm.prover.status,
        wrong_point=wrong_cause(parts.ledger.points),
        seeded=record.seeded,
        store_free_bytes=volume.free,
        store_full_seconds=volume.full_seconds(surroundings.reserve),
        store_reserve_bytes=surroundings.reserve,
        quota_limit_bytes=quota.limit if quota is not None else None,
        quota_used_bytes=quota.used if quota is not None else None,
        quota_full_seconds=quota.full_seconds if quota is not None else None,
        spool_limit_bytes=surroundings.spool_limit,
        uris=tap.uris if tap is not None else [],
        folder=folder,
        settings={
            "interval_seconds": record.interval_seconds,
            "points_newest": parts.history.retention.newest,
            "points_hourly": parts.history.retention.hourly,
            "points_daily": parts.history.retention.daily,
            "points_weekly": parts.history.retention.weekly,
            "points_limit_bytes": parts.history.retention.limit,
            "points_age_seconds": parts.history.retention.age,
        },
    )
    marked = vm.companions.marked()
    if marked:
        status.application_cut = vm.describe(marked[-1])
        status.statistics.last_snapshot_time = status.application_cut.time
    status.definition = vm.companions.status()
    return assessed(status, now)


def damaged_status(vm: DamagedVm, now: float) -> VmStatus:
    """The status of a VM whose state can't be read."""
    state = ReplicationState.ERROR
    status = VmStatus(
        name=vm.name,
        uuid=vm.identity,
        role="replica",
        state=state.title,
        state_code=int(state),
        problem=Cause(code=vm.error.code, text=vm.error.text, remedy=vm.error.remedy, time=now),
        folder=vm.folder,
    )
    return assessed(status, now)


def _test_failover(vm: ReplicaVm) -> TestFailoverStatus | None:
    record = vm.ledger.exports.test
    if record is None:
        return None
    export = next(each for each in vm.exports.status() if each.id == record.id)
    return TestFailoverStatus(
        name=vm.name + TEST_SUFFIX,
        export=export.id,
        point=point_text(record.position.position),
        cut=export.cut,
        started_time=record.created_time,
        uris=export.uris,
        error=export.error,
    )


def _cut(vm: ReplicaVm, position: Position | None) -> CutStatus | None:
    return vm.describe(position) if position is not None and position.segment > 0 else None


def _silent_tap(vm: ReplicaVm) -> TapStatus | None:
    """What is to be told of the tap of a VM that was handed over: nothing where it answers."""
    return TapStatus(error="it does not answer") if vm.promotion.silent else None


def failover_of(vm: ReplicaVm) -> FailoverStatus | None:
    """The failover to this host, if there was one."""
    record, tap = vm.ledger.promotion, vm.promotion.tap
    if record is None:
        return None
    layers = tap.status.layers if tap is not None and tap.status is not None else None
    others = others_of(vm.ledger.vm, record)
    proof = proof_of(vm.ledger.points, record.cut) if record.cut is not None else None
    return FailoverStatus(
        time=record.time,
        epoch=record.epoch.hex(),
        cut=_cut(vm, record.cut.position if record.cut is not None else None),
        received=_cut(vm, record.received.position if record.received is not None else None),
        undoable=record.undoable,
        undoing=record.undoing,
        committed_time=record.committed_time,
        layered=record.layered,
        written_bytes=layers.written_bytes if layers is not None else 0,
        settled_bytes=layers.done_bytes if layers is not None else 0,
        settling_bytes=layers.total_bytes if layers is not None else 0,
        trouble=layers.failed if layers is not None else "",
        proven_time=proof.time if proof is not None else None,
        added_disks=others.added,
        removed_disks=others.removed,
    )


def _link(vm: ReplicaVm, now: float) -> LinkStatus:
    trust = vm.parts.ports.network.trust
    channel = vm.connections.control.channel if vm.connections.control is not None else None
    if channel is None:
        trouble = vm.connections.trouble
        return LinkStatus(
            heard_time=vm.connections.left_time,
            since_time=vm.connections.left_time,
            last_error=trouble.text if trouble is not None else vm.connections.left_reason,
            last_error_code=trouble.code if trouble else "",
            certificates=certificates_of_link(trust, None, now),
        )
    return LinkStatus(
        connected=not channel.closed,
        healthy=channel.healthy(),
        heard_time=now - max(0.0, vm.parts.ports.clock.monotonic() - channel.last_heard),
        peer=channel.peer.address,
        since_time=vm.connections.opened_time,
        certificates=certificates_of_link(trust, channel.peer, now),
        clock_difference_seconds=channel.clock_difference,
        rtt_ms=channel.rtt * 1000 if channel.rtt is not None else None,
        bytes_sent=channel.bytes_sent,
        bytes_received=channel.bytes_received,
    )


def _progress(parts: VmParts) -> ProgressStatus | None:
    """The work that takes long and is under way, if any."""
    promotion, applier = parts.ledger.promotion, parts.applier
    if promotion is not None and not promotion.serving:
        return ProgressStatus(
            kind="promotion",
            phase="applying",
            started_time=promotion.time,
            total_bytes=applier.progress.total,
            done_bytes=applier.progress.done,
        )
    if (importing := parts.importing) is not None:
        return ProgressStatus(
            kind="import",
            phase="copying",
            text=f"A first copy is imported from {importing.source}.",
            started_time=importing.started_time,
            total_bytes=importing.total_bytes,
            done_bytes=importing.done_bytes,
        )
    if applier.merge is not None:
        return ProgressStatus(
            kind="merge",
            phase="merging",
            text="The resynchronization is committed and is being merged into the disks.",
            total_bytes=applier.progress.total,
            done_bytes=applier.progress.done,
        )
    return _resync_progress(parts)


def _resync_progress(parts: VmParts) -> ProgressStatus | None:
    resync = parts.resync
    if resync is None:
        return None
    settled = {index: ranges.bytes for index, ranges in resync.differences.settled.items()}
    complete = resync.differences.is_settled()
    return ProgressStatus(
        kind=resync.record.kind.value,
        phase="tracked writes" if complete else "comparing" if resync.key is not None else "waiting",
        text="" if resync.key is not None else "It goes on when the primary connects again.",
        started_time=resync.record.started_time,
        total_bytes=sum(parts.disks.sizes.values()),
        done_bytes=sum(settled.values()),
        compared_bytes=sum(settled.values()),
        different_bytes=resync.received_bytes,
        sent_bytes=resync.received_bytes,
        disks=[
            DiskProgress(index=index, total_bytes=size, compared_bytes=settled[index], settled_bytes=settled[index])
            for index, size in parts.disks.sizes.items()
        ],
    )
