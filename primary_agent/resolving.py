"""Keeps this side of a split brain: replication goes on from here, to the host that gave its failover up.

That host is made the replica again by its own administrator (``vmreplica resolve VM --keep primary`` there); it then
tells at which cut of this side's history it stands, and the compare is bounded by what either side changed since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from primary_agent.fencing import ask
from primary_agent.handing_over import find, to_map
from shared.channel import ChannelClosed
from shared.differences import Differences, disks_of
from shared.errors import InvalidStateError, UsageError
from shared.handover import read_map
from shared.map_file import MapDamagedError, Range
from shared.planning import ResyncCause
from shared.states import PrimaryEvent, ReplicationState
from shared.tap_config import MAP_NAME
from shared.tap_control import Tracking

if TYPE_CHECKING:
    from primary_agent.vm import PrimaryVm


async def keep_primary(vm: PrimaryVm, *, yes: bool) -> None:
    """Go on with this side. Raises InvalidStateError where it was not failed over, UsageError without ``yes``."""
    replication = vm.parts.replication
    async with vm.ordering:
        if replication.state is not ReplicationState.FAILED_OVER or vm.parts.handed_over is not None:
            raise InvalidStateError(
                f"{vm.name} is in state {replication.state.title}: there is nothing to resolve on this host.",
                f"`vmreplica status {vm.name}` says what is to be done here.",
            )
        if not yes:
            raise UsageError(
                f"What {replication.record.peer_host or vm.record.replica_host} wrote of {vm.name} since its failover "
                "is given up for what is on this host.",
                "Repeat it with --yes.",
            )
        try:
            told = await ask(vm.parts)
        except ChannelClosed as error:
            raise InvalidStateError(
                f"Whether the failover of {vm.name} was given up can't be asked: {error.text}", error.remedy
            ) from error
        if told.promoted:
            host = told.fence.host if told.fence is not None else ""
            raise InvalidStateError(
                f"{vm.name} is still failed over to {host or replication.record.peer_host or vm.record.replica_host}.",
                f"Run `vmreplica resolve {vm.name} --keep primary` there first.",
            )
        # The dirty map is what bounds a compare; a log could not be sent to a side that stands elsewhere.
        await to_map(vm.parts)
        text = f"The administrator keeps this side: {replication.record.fenced}"
        settling = (PrimaryEvent.RESYNC_STARTED,) if replication.record.proposed is not None else ()
        path = (PrimaryEvent.RETRIED, *settling)
        await replication.transition(path, text, fenced="", fence=None, stopped_time=None)
        await replication.require_resync(ResyncCause.REVERSED, text)
        replication.replan()


async def differences(vm: PrimaryVm) -> Differences:
    """What this side wrote that the promoted one has not. Raises InvalidStateError where it was not failed over."""
    parts, record = vm.parts, vm.record
    async with vm.ordering:
        if parts.replication.state is not ReplicationState.FAILED_OVER or parts.handed_over is not None:
            raise InvalidStateError(
                f"{vm.name} was not failed over to its replica's host.", f"See `vmreplica status {vm.name}`."
            )
        finding = await find(parts)
        if finding.common is not None and parts.tap.require().status.tracking is Tracking.ON:
            await parts.tap.require().client.release(finding.common.epoch, finding.common.segment)
        status = await to_map(parts)
        report = Differences(name=vm.name, uuid=vm.uuid, role="primary", reason=finding.reason)
        if finding.common is not None:
            report.common = str(finding.common)
        paths, ranges = {disk.index: disk.path for disk in record.disks}, dict[int, list[Range]]()
        if status.tracking is Tracking.MAP:
            ports, path = parts.surroundings.ports, f"{parts.tap.folder}/{MAP_NAME}"
            try:
                ranges = await ports.workers.run(read_map, ports.files, path, record.vm, record.geometry)
            except (MapDamagedError, OSError) as error:
                report.reason = f"the dirty map can't be used: {error}"
        else:
            report.reason = f"tracking is {status.tracking.value} on this host"
        report.disks = disks_of(paths, ranges)
        return report
