"""The status of one VM at the primary, put together from its parts."""

from __future__ import annotations

import uuid

from primary_agent.damaged import DamagedVm
from primary_agent.observing import TapObserver
from primary_agent.pacing import RATES
from primary_agent.parts import Parts
from primary_agent.planned import planned_progress, planned_status
from primary_agent.record import AHEAD_TEXT, VmRecord, moved_text
from primary_agent.scheduling import Schedule, backs_off
from primary_agent.starting import waiting_text
from primary_agent.tap_link import Connection, TapLink
from protocol.position import NO_EPOCH, Position
from shared.config_sections import ResyncSection
from shared.errors import VmreplicaError
from shared.expiry import certificates_of_link
from shared.guest_status import ConsistencyStatus, DefinitionStatus
from shared.health import assessed
from shared.states import ReplicationState
from shared.status import Cause, CutStatus, DiskStatus, LinkStatus, TapStatus, VerifyStatus, VmStatus
from shared.tap_config import TapConfig
from shared.tap_control import Tracking, is_outdated


def status_of(parts: Parts, folder: str, failure: VmreplicaError | None, verify: VerifyStatus) -> VmStatus:
    """The whole status, with health and summary; ``failure`` is why the VM's tasks have ended, if they have."""
    replication, clock = parts.replication, parts.surroundings.ports.clock
    record, vm, now = replication.record, replication.vm, clock.wall()
    connection = parts.tap.connection
    state = ReplicationState.ERROR if failure is not None else record.state
    acked, volume = replication.acked, parts.surroundings.volumes.of(folder)
    status = VmStatus(
        name=vm.name,
        uuid=str(uuid.UUID(bytes=vm.vm)),
        role="primary",
        state=state.title,
        state_code=int(state),
        causes=list(record.causes),
        resync_stopped_time=record.stopped_time,
        resync_whole=parts.whole,
        problem=problem_of(failure, now) if failure is not None else record.problem or record.recovered,
        baseline=record.epoch != NO_EPOCH,
        suspended=state in (ReplicationState.SUSPENDED, ReplicationState.RESYNCHRONIZE_SUSPENDED),
        interval_seconds=vm.interval_seconds,
        lag_seconds=max(0.0, now - acked.time_ns / 1e9) if acked is not None else None,
        pending_bytes=parts.pending_bytes() if connection is not None else None,
        newest_cut=_newest_cut(connection),
        acked_cut=_cut(acked.position, acked.time_ns) if acked is not None else None,
        applied_cut=_cut(parts.applied, None) if parts.applied is not None else None,
        epoch=record.epoch.hex() if record.epoch != NO_EPOCH else "",
        peer_host=record.peer_host or vm.replica_host,
        # Also where it was resumed after a failover, until the replica has answered that it is over.
        fenced=_fenced(parts) if state is ReplicationState.FAILED_OVER or record.fenced else "",
        split_brain=_is_split(parts) if state is ReplicationState.FAILED_OVER else False,
        handed_over=parts.handed_over is not None,
        link=_link(parts, vm, now),
        tap=_tap(parts.tap, parts.surroundings.version, parts.observer),
        progress=parts.progress.status() if parts.progress is not None else planned_progress(parts),
        planned=planned_status(parts),
        verify=verify,
        statistics=replication.statistics.report(now, pending_bytes=parts.pending_bytes()),
        disks=_disks(vm, connection),
        excluded_disks=vm.excluded,
        uris=_uris(connection),
        folder=folder,
        waiting=waiting_text(parts),
        export_folder=record.export.folder if record.export else record.resync.exported if record.resync else "",
        export_complete=bool(record.resync is not None and record.resync.exported),
        bypasses=list(parts.bypasses),
        resync_start_time=record.resync_at,
        caught_up_seconds=parts.caught_up_seconds(),
        store_free_bytes=volume.free,
        store_full_seconds=volume.full_seconds(),
        settings=_settings(vm, parts.tap.config, parts.surroundings.resync),
        pending_settings=_pending_settings(parts.tap.config, connection),
    )
    return assessed(status, now)


def with_guest(
    status: VmStatus, consistency: ConsistencyStatus | None, definition: DefinitionStatus | None, now: float
) -> VmStatus:
    """The status with what concerns the VM beside its disks, judged anew where there is any."""
    if consistency is None and definition is None:
        return status
    status.consistency, status.definition = consistency, definition
    if consistency is not None and consistency.newest is not None:
        status.application_cut = consistency.newest
        status.statistics.last_snapshot_time = consistency.newest.time
    return assessed(status, now)


def damaged_status(vm: DamagedVm, now: float) -> VmStatus:
    """The status of a VM whose state can't be read."""
    state = ReplicationState.ERROR
    connection = vm.tap.connection if vm.tap is not None else None
    status = VmStatus(
        name=vm.name,
        uuid=vm.identity,
        role="primary",
        state=state.title,
        state_code=int(state),
        problem=problem_of(vm.error, now),
        tap=_tap(vm.tap) if vm.tap is not None else None,
        uris=_uris(connection),
        folder=vm.folder,
    )
    return assessed(status, now)


def problem_of(error: VmreplicaError, now: float) -> Cause:
    return Cause(code=error.code, text=error.text, remedy=error.remedy, time=now)


def _settings(vm: VmRecord, config: TapConfig, defaults: ResyncSection) -> dict[str, object]:
    """The settings as ``get`` and ``set`` name them."""
    return {
        "interval_seconds": vm.interval_seconds,
        "log_limit_bytes": config.log_limit,
        "replica": vm.replica,
        "hot_region_bytes": config.hot_region_bytes,
        "hot_regions": config.hot_regions,
        "block_device_policy": config.block_device_policy.value,
        "verify_schedule": vm.verify_schedule,
        "consistency": vm.consistency,
        "consistency_hours": vm.consistency_hours,
        "definition": vm.definition,
        "definition_files": vm.definition_files,
        "resync_priority": vm.resync_priority,
        "resync_back_off": backs_off(vm, defaults),
        **{name: getattr(vm, name) for name in RATES},
    } | Schedule.of(vm, defaults).settings()


def _pending_settings(config: TapConfig, connection: Connection | None) -> list[str]:
    """What the running tap does not know yet: a region's size is that of its map, for as long as it runs."""
    running = connection.status.hot_region_bytes if connection is not None else 0
    return ["hot_region_bytes"] if running not in (0, config.hot_region_bytes) else []


def _fenced(parts: Parts) -> str:
    """Where the VM was failed over to, and whether both sides have moved on, as of now."""
    moved = AHEAD_TEXT if parts.moved_on() and not _is_split(parts) else moved_text(split=parts.moved_on())
    return f"{parts.replication.record.fenced} {moved}".strip()


def _is_split(parts: Parts) -> bool:
    """Whether both sides have, or may have, writes that the other one has not (I8)."""
    fence = parts.replication.record.fence
    return parts.moved_on() and (fence is None or fence.written)


def _cut(position: Position, time_ns: int | None) -> CutStatus:
    time = time_ns / 1e9 if time_ns is not None else None
    return CutStatus(epoch=position.epoch.hex(), segment=position.segment, entry=position.entry, time=time)


def _newest_cut(connection: Connection | None) -> CutStatus | None:
    if connection is None or connection.tracking is not Tracking.ON:
        return None
    sealed, known = connection.sealed, connection.status.sealed
    if sealed is not None and (known is None or known.epoch != sealed.epoch or known.segment <= sealed.segment):
        return _cut(sealed.position(), sealed.time_ns)
    return _cut(known.position(), None) if known is not None else None


def _link(parts: Parts, vm: VmRecord, now: float) -> LinkStatus:
    link, ports = parts.link, parts.surroundings.ports
    channel = link.dialled.channel if link.dialled is not None else None
    return LinkStatus(
        connected=channel is not None,
        healthy=link.healthy(),
        peer=vm.replica,
        since_time=link.since,
        last_error=link.last_error,
        last_error_code=link.last_error_code,
        retryable=link.retryable,
        attempts=link.attempts,
        next_attempt_seconds=(
            max(0.0, link.next_attempt - ports.clock.monotonic())
            if link.next_attempt is not None and channel is None
            else None
        ),
        damaged=link.damaged,
        certificates=certificates_of_link(ports.network.trust, channel.peer if channel is not None else None, now),
        clock_difference_seconds=channel.clock_difference if channel is not None else None,
        rtt_ms=channel.rtt * 1000 if channel is not None and channel.rtt is not None else None,
        bytes_sent=channel.bytes_sent if channel is not None else 0,
        bytes_received=channel.bytes_received if channel is not None else 0,
    )


def _tap(link: TapLink, version: str = "", observer: TapObserver | None = None) -> TapStatus:
    """``version`` is that of this agent's program, where it matters."""
    connection = link.connection
    if connection is None:
        return TapStatus(running=False, tracking="", error=link.error)
    status, lost = connection.status, connection.lost
    return TapStatus(
        running=True,
        pid=status.pid,
        tracking=connection.tracking.value,
        lost_reason=lost.reason.value if lost is not None else "",
        lost_text=lost.text if lost is not None else "",
        uris=_uris(connection),
        clients=sum(disk.clients for disk in status.disks),
        log_used_bytes=status.log.used,
        log_limit_bytes=status.log.limit,
        log_full_seconds=observer.log_full_seconds(status.log) if observer is not None else None,
        writes=status.writes,
        bytes_written=status.bytes_written,
        last_write_time=status.last_write_time,
        doubt_bytes=status.doubt.bytes if status.doubt is not None else None,
        hot_bytes=status.hot_bytes,
        version=status.version,
        outdated=is_outdated(status, version),
        refused=status.refused.text if status.refused is not None else "",
    )


def _uris(connection: Connection | None) -> list[str]:
    return [disk.uri for disk in connection.status.disks] if connection is not None else []


def _disks(vm: VmRecord, connection: Connection | None) -> list[DiskStatus]:
    told = {disk.index: disk for disk in connection.status.disks} if connection is not None else {}
    disks = []
    for disk in vm.disks:
        status = DiskStatus(
            index=disk.index, uuid=disk.uuid.hex(), size_bytes=disk.size, path=disk.path, export=disk.export
        )
        if (served := told.get(disk.index)) is not None:
            status.uri, status.found_size_bytes, status.block_device = served.uri, served.found_size, served.block
        disks.append(status)
    return disks
