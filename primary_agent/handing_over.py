"""Lets a VM that was failed over go to this host's replica agent: what these disks differ in is named first (R41).

The order: nobody uses the disks, and nobody new can write; the cut that the promoted side had last is found in this
side's history, chain and all; the tap's dirty map names all that was written since; the tap stops in order; then the
hand-over is durable. Until then nothing was given up: a crash leaves a VM that was failed over, and the same order
begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from primary_agent import fencing
from primary_agent.parts import Parts
from primary_agent.record import FenceRecord, VmRecord
from primary_agent.scope import POLL_SECONDS, completed, is_logged
from primary_agent.tap_link import TapLink
from protocol.position import Position
from shared.errors import InvalidStateError, VmreplicaError
from shared.events import EventId
from shared.handover import (
    RANGES_NAME,
    HandedDisk,
    HandOver,
    Place,
    digest,
    encode_ranges,
    read_map,
    steps,
    total,
)
from shared.map_file import MapDamagedError, Range
from shared.ports import FileIdentity, FileSystem
from shared.rates import size_text
from shared.replacing import replace_file
from shared.states import ReplicationState
from shared.tap_config import MAP_NAME
from shared.tap_control import TapStatus, Tracking
from shared.tasks import uninterrupted

if TYPE_CHECKING:
    from primary_agent.vm import PrimaryVm

CLOCKS_SECONDS = 10.0
"""Two hosts' clocks may differ by so much: what was written later than so long before the failover came after it."""
NEEDS_YES, SPLIT_BRAIN = "needs_confirmation", "split_brain"
GIVEN_AWAY = (ReplicationState.FAILED_OVER, ReplicationState.PREPARED_FOR_FAILOVER)
"""States in which the VM runs on the other host, or is about to."""
_KEPT = ("interval_seconds", "log_limit_bytes", "hot_regions", "hot_region_bytes", "block_device_policy")
_KEPT_WHERE_SET = (
    "resync_mode",
    "resync_window_start",
    "resync_window_end",
    "resync_past_window",
    "resync_back_off",
    "resync_priority",
    "resync_read_rate",
    "resync_send_rate",
    "initial_read_rate",
    "initial_send_rate",
    "replication_send_rate",
    "verify_schedule",
    "consistency",
    "consistency_hours",
    "definition",
    "definition_files",
)


@dataclass(slots=True)
class Finding:
    """What this side has that the other one has not.

    ``common`` is the newest cut of this history that the promoted side had, None where that can't be told, for
    ``reason``. ``lost`` says in words what is only here, empty where that is nothing. ``moved_on``: some of it was, or
    may have been, written after the failover; ``written``: so was something on the other side.
    """

    common: Position | None = None
    reason: str = ""
    lost: str = ""
    moved_on: bool = False
    written: bool = True
    host: str = ""

    @property
    def split(self) -> bool:
        return self.moved_on and self.written


async def find(parts: Parts) -> Finding:
    """Look at both sides; changes nothing. Raises InvalidStateError where the other one is not failed over (any more),
    VmreplicaError where it can't be asked and has to be.
    """
    fence = await _fence(parts)
    finding = Finding(written=fence.written, host=fence.host or _replica_of(parts))
    status = await parts.tap.refresh()
    received = fence.received.position if fence.received is not None else None
    if received is None:
        finding.reason = "the other host does not tell which cut of this side it had when it was failed over"
    elif not await _has(parts, status, received):
        finding.reason = f"cut {received}, which the other host had, is not in what is tracked here"
    else:
        finding.common = received
    finding.lost = _lost(parts, status, received)
    finding.moved_on = bool(finding.lost) and await _is_later(parts, fence)
    return finding


async def _fence(parts: Parts) -> FenceRecord:
    """The failover, as the other host tells it now, or told it before it could not be reached any more."""
    replication, known, host = parts.replication, parts.replication.record.fence, _replica_of(parts)
    name = replication.vm.name
    try:
        told = await fencing.ask(parts)
    except VmreplicaError:
        if known is None:
            raise
        # What was written there since it told that is not known.
        return msgspec.structs.replace(known, written=True)
    if not told.promoted and replication.state is ReplicationState.PREPARED_FOR_FAILOVER:
        raise InvalidStateError(
            f"{name} is only prepared for a failover: it was not failed over to {host}.",
            f"Run `vmreplica failover {name}` there first, or take the preparation back: "
            f"`vmreplica failover {name} --prepare --abort`.",
        )
    if not told.promoted:
        raise InvalidStateError(
            f"{name} is not failed over to {host} any more.",
            f"To go on as its primary: `vmreplica resume {name}` where the failover was undone, `vmreplica resolve "
            f"{name} --keep primary` where it was given up.",
        )
    fence = told.fence or known
    if fence is None:
        raise InvalidStateError(
            f"{name} is failed over to {host}, which does not tell what it had of this side then.",
            f"Upgrade vmreplica on {host}, and try again.",
        )
    return fence


def _replica_of(parts: Parts) -> str:
    return parts.replication.record.peer_host or parts.replication.vm.replica_host


async def _has(parts: Parts, status: TapStatus, cut: Position) -> bool:
    """Whether exactly this cut is in this side's history, and all that was written since is tracked."""
    tap = parts.tap
    if status.tracking is Tracking.ON:
        return status.epoch == cut.epoch.hex() and cut.segment + 1 >= status.first_segment and await is_logged(tap, cut)
    doubt = status.doubt
    if status.tracking is not Tracking.MAP or doubt is None or doubt.base_epoch != cut.epoch.hex():
        return False
    if not doubt.base_segment <= cut.segment <= doubt.end_segment:
        return False
    acked = parts.replication.acked
    return (acked is not None and acked.position == cut) or await tap.require().client.knows_cut(cut)


def _lost(parts: Parts, status: TapStatus, received: Position | None) -> str:
    """What is on these disks alone, in words; empty where that is nothing."""
    if status.tracking is Tracking.ON and status.position is not None and received is not None:
        end = status.position.position()
        if end.epoch == received.epoch and end.entry == received.entry:
            return ""
        if end.epoch == received.epoch:
            return (
                f"{max(0, end.entry - received.entry)} changes of the disks ({size_text(parts.pending_bytes())} of log)"
            )
    if status.tracking is Tracking.MAP and status.doubt is not None:
        return f"changes in up to {size_text(status.doubt.bytes)} of the disks" if status.doubt.bytes else ""
    return "changes that are not tracked"


async def _is_later(parts: Parts, fence: FenceRecord) -> bool:
    """Whether a disk was written after the failover; what is uncertain counts as that."""
    ports, disks = parts.surroundings.ports, parts.replication.vm.disks

    def newest() -> float:
        return max(_identity(ports.files, disk.path).mtime_ns for disk in disks) / 1e9

    try:
        return await ports.workers.run(newest) > fence.time - CLOCKS_SECONDS
    except OSError:
        return True


def _identity(files: FileSystem, path: str) -> FileIdentity:
    file = files.open_disk(path)
    try:
        return file.identity()
    finally:
        file.close()


def judge(name: str, finding: Finding, *, yes: bool, despite_split: bool) -> None:
    """Raises InvalidStateError where the order needs more than it says."""
    if finding.split and not despite_split:
        raise InvalidStateError(
            f"Split brain: {name} was written on this host after it was failed over to {finding.host}, and there as "
            f"well. Only here are {finding.lost}.",
            f"Decide which side counts. `vmreplica resolve {name} --keep replica` here: that of {finding.host}; "
            f"`vmreplica resolve {name} --keep primary` there: this one. The other side's content stays a recovery "
            "point.",
            code=SPLIT_BRAIN,
        )
    if finding.lost and not yes:
        when = "after the failover" if finding.moved_on else "before the failover, and had not arrived when it came"
        raise InvalidStateError(
            f"Only on this host are {finding.lost} of {name}, written {when}. What {finding.host} has takes their "
            "place; this host's content stays a recovery point.",
            "Repeat it with --yes.",
            code=NEEDS_YES,
        )


async def hand_over(vm: PrimaryVm, *, yes: bool, despite_split: bool) -> HandOver:
    """Let the VM go; the same answer again where that is done. Raises VmreplicaError; it is not let go then."""
    parts, replication = vm.parts, vm.parts.replication
    async with vm.ordering:
        if parts.handed_over is not None:
            return parts.handed_over
        if replication.state not in GIVEN_AWAY:
            raise InvalidStateError(
                f"{vm.name} is in state {replication.state.title}: it was not failed over to its replica's host.",
                f"Run `vmreplica failover {vm.name}` there first; this host is told as soon as it can be reached.",
            )
        _judge_use(vm, await parts.tap.refresh())
        finding = await find(parts)
        if finding.split:
            text = f"{vm.name} was written on both hosts since the failover."
            await replication.note(replication.event(EventId.SPLIT_BRAIN, text, cause="fenced"))
        judge(vm.name, finding, yes=yes, despite_split=despite_split)
        handed, ranges = await _track(vm, finding)
        return await uninterrupted(_let_go(vm, handed, ranges))


def _judge_use(vm: PrimaryVm, status: TapStatus) -> None:
    used = [f"{disk.export} ({disk.clients})" for disk in status.disks if disk.clients]
    if used:
        raise InvalidStateError(
            f"The disks of {vm.name} are in use: clients are connected to {', '.join(used)}.",
            "Shut the virtual machine down on this host first.",
        )
    if devices := [disk.path for disk in status.disks if disk.block]:
        raise InvalidStateError(
            f"{', '.join(devices)} of {vm.name} is a block device; a copy is kept in files.",
            "Remove the VM here, and let the other host make a first copy.",
        )


async def _track(vm: PrimaryVm, finding: Finding) -> tuple[HandOver, bool]:
    """Have the dirty map name what was written since the common cut; the hand-over as far as it is known then."""
    parts, replication = vm.parts, vm.parts.replication
    connection = parts.tap.require()
    client, here = connection.client, None
    if connection.status.fenced is not None:
        # Nobody is connected, and whoever connects now may only read: the disks stand still from here on.
        await client.set(fenced=fencing.fence_text(replication) or "The VM is handed over to the replica's agent.")
    status = await parts.tap.refresh()
    _judge_use(vm, status)
    if status.tracking is Tracking.ON and finding.common is not None:
        here = (await client.cut("reverse")).position()
        await client.release(finding.common.epoch, finding.common.segment)
        status = await to_map(parts)
    complete = status.tracking is Tracking.MAP and status.doubt is not None and status.doubt.complete
    if finding.common is not None and not complete:
        finding.common, finding.reason = None, f"tracking is {status.tracking.value} on this host"
    record = replication.record
    handed = HandOver(
        id=parts.surroundings.ports.random.bytes(16).hex(),
        vm=vm.record.vm.hex(),
        name=vm.name,
        to="replica",
        disks=[
            HandedDisk(index=disk.index, uuid=disk.uuid.hex(), path=disk.path, size=disk.size, export=disk.export)
            for disk in vm.record.disks
        ],
        epoch=record.epoch.hex(),
        lineage=steps(record.ancestors),
        common=Place.of(finding.common) if finding.common is not None else None,
        reason=finding.reason,
        here=Place.of(here) if here is not None else None,
        peer=finding.host,
        interval_seconds=vm.record.interval_seconds,
        written=finding.moved_on,
        next_index=vm.record.index_to_come,
    )
    return handed, complete


def kept_settings(record: VmRecord) -> dict[str, Any]:
    """What is kept of a VM's settings for the day on which it comes back, as `vmreplica set` takes them."""
    settings = {name: _plain(getattr(record, name)) for name in _KEPT}
    settings |= {name: _plain(value) for name in _KEPT_WHERE_SET if (value := getattr(record, name))}
    return {name: value for name, value in settings.items() if value not in (None, 0, "")}


async def to_map(parts: Parts) -> TapStatus:
    """Have the tap's dirty map take the place of its log; the status once the map is complete, or there is none."""
    status = await parts.tap.refresh()
    if status.tracking is Tracking.ON:
        await parts.tap.require().client.to_map()
    return await completed(parts.tap, POLL_SECONDS / 10)


def _plain(value: object) -> object:
    return getattr(value, "value", value)


async def _let_go(vm: PrimaryVm, handed: HandOver, mapped: bool) -> HandOver:
    """Stop the tap in order, read what it left, and put the hand-over on record; where that fails all goes on."""
    tap = vm.parts.tap
    await vm.rest()
    try:
        if vm.parts.replication.state not in GIVEN_AWAY:
            # The fence lifts by itself (primary_agent.unfencing), and guests may have written since.
            raise InvalidStateError(
                f"The failover of {vm.name} was undone meanwhile: this host is its primary again.",
                f"`vmreplica status {vm.name}` shows that. It is not handed over, and nothing was given up.",
            )
        await tap.stop_tap()
        handed, size = await vm.parts.surroundings.ports.workers.run(_read, vm, tap, handed, mapped)
        text = f"{vm.name} is handed over to the replica agent of this host: {_told(handed, size)}"
        await _record(vm.parts, handed, text)
    except BaseException:
        vm.start()
        raise
    return handed


def _told(handed: HandOver, size: int) -> str:
    if handed.common is None:
        return f"all of its disks are compared, since {handed.reason}."
    return f"{size_text(size)} of its disks may differ from cut {handed.common.position}."


def _read(vm: PrimaryVm, tap: TapLink, handed: HandOver, mapped: bool) -> tuple[HandOver, int]:
    """Blocks."""
    ports, folder = vm.parts.surroundings.ports, vm.folder
    look_at_disks(ports.files, handed, vm.record)
    ranges: dict[int, list[Range]] = {}
    if handed.common is not None and mapped:
        try:
            ranges = read_map(ports.files, f"{tap.folder}/{MAP_NAME}", vm.record.vm, vm.record.geometry)
        except MapDamagedError as error:
            handed.common, handed.reason = None, f"the dirty map can't be used: {error}"
    data = encode_ranges(ranges)
    handed.ranges_path, handed.ranges_bytes, handed.ranges_digest = f"{folder}/{RANGES_NAME}", len(data), digest(data)
    replace_file(ports.files, handed.ranges_path, data)
    return handed, total(ranges)


def look_at_disks(files: FileSystem, handed: HandOver, record: VmRecord) -> None:
    """Add what the disks' files are now that the tap has stopped. Blocks. Raises OSError.

    A file that was being enlarged by order when the VM was failed over may have its new size: then that is what the
    copy has, behind whose former end nobody has written.
    """
    larger = {disk.index: disk.larger for disk in record.disks if disk.larger}
    for disk in handed.disks:
        found = _identity(files, disk.path)
        disk.inode, disk.mtime_ns = found.inode, found.mtime_ns
        if found.size == larger.get(disk.index):
            disk.size = found.size


async def take_back(vm: PrimaryVm) -> None:
    """The replica agent did not take it: the VM is as it was before. Nothing is done where it was not let go."""
    if vm.parts.handed_over is not None:
        await _record(vm.parts, None, f"The hand-over of {vm.name} to the replica agent of this host is taken back.")
        vm.start()


async def _record(parts: Parts, handed: HandOver | None, text: str) -> None:
    replication = parts.replication
    event = replication.event(EventId.REVERSED, text, cause="reverse")
    await replication.store.commit({"handover": msgspec.to_builtins(handed) if handed is not None else None}, [event])
    parts.handed_over = handed
    replication.changed.notify()
