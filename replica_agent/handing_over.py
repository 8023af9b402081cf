"""Lets a VM that was failed over to this host go to its primary agent; or gives the failover up (R41, I8).

The guest does not notice a hand-over: the tap goes on, and only who looks after it changes. Its dirty map takes the
place of its log first, since nobody has the log, and the map names all that was written since the failover. To give a
failover up the tap is stopped instead, and what it wrote is what these disks differ in from the newest cut received.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from protocol.hrl import chain_seed
from protocol.position import Position
from replica_agent.disk_sets import forget_sets, next_index, promoted_disks
from replica_agent.finishing import finish
from replica_agent.marks import set_aside, set_aside_text
from replica_agent.point_disks import export_name
from replica_agent.promoted_tap import is_written
from replica_agent.record import (
    IdentityRecord,
    PositionRecord,
    PromotionRecord,
    ReplicationRecord,
    ReversalRecord,
)
from replica_agent.vm import ReplicaVm
from shared.differences import Differences, disks_of
from shared.errors import InvalidStateError, UsageError, VmreplicaError
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
    union,
    write_map,
)
from shared.map_file import MapDamagedError, Range
from shared.planning import ResyncCause
from shared.rates import size_text
from shared.replacing import replace_file
from shared.states import ReplicaEvent
from shared.status import Cause
from shared.tap_config import MAP_NAME
from shared.tap_control import TapClient, TapStatus, Tracking

POLL_SECONDS = 0.05
MAP_SECONDS = 600.0
"""How long the dirty map may take until it is complete: all of the log is read for it."""
SETTLE_SECONDS = 120.0
"""How long an order waits for what was written to settle in the disks."""


@dataclass(slots=True)
class Tracked:
    """What the tap of a promoted VM knows: ``reason`` says why it does not name all that was written, or is empty."""

    reason: str
    written: bool


async def hand_over(vm: ReplicaVm) -> HandOver:
    """Let the VM go; where it was let go already, the same once more. Raises VmreplicaError; it is not let go then.

    One order at a time (replica_agent.reversing): each replaces the file of the ranges.
    """
    parts = vm.parts
    record = await _plain(vm)
    tracked = Tracked("", record.written)
    if not record.handed_over:
        with contextlib.closing(await _client(vm)) as client:
            tracked = await _to_map(client, record.epoch)
    handed = await finish(parts.ports.workers.run(_describe, vm, record, tracked))
    if not record.handed_over:
        async with parts.order:
            async with parts.ledger.transaction() as draft:
                assert draft.promotion is not None
                draft.promotion.handed_over, draft.promotion.written = True, tracked.written
                draft.step(ReplicaEvent.HANDED_OVER, "reverse")
                text = f"{vm.name} is handed over to the primary agent of this host."
                draft.event(EventId.REVERSED, text, cause="reverse")
            await vm.leave_tap()
        parts.changed.notify()
    return handed


async def take_back(vm: ReplicaVm) -> None:
    """The primary agent did not take it: this agent looks after the tap again."""
    promotion = vm.ledger.promotion
    if promotion is None or not promotion.handed_over:
        return
    async with vm.parts.order, vm.ledger.transaction() as draft:
        assert draft.promotion is not None
        draft.promotion.handed_over = False
        draft.step(ReplicaEvent.TAKEN_BACK, "reverse")
        text = f"The hand-over of {vm.name} to the primary agent of this host is taken back."
        draft.event(EventId.REVERSED, text, cause="reverse")
    vm.take_tap_up()
    vm.parts.changed.notify()


def _promotion(vm: ReplicaVm) -> PromotionRecord:
    """The failover, once its disks are served. Raises InvalidStateError."""
    record = vm.ledger.promotion
    if vm.failure is not None:
        raise InvalidStateError(f"{vm.name} is in error: {vm.failure.text}", vm.failure.remedy)
    if record is None:
        raise InvalidStateError(
            f"{vm.name} was not failed over to this host.", f"Run `vmreplica failover {vm.name}` first."
        )
    if not record.serving:
        raise InvalidStateError(f"The failover of {vm.name} is not complete.", "Try again when its disks are served.")
    return record


async def _plain(vm: ReplicaVm) -> PromotionRecord:
    """The failover for good, once all that was written since lies in the disks themselves: they are given away so.

    Raises InvalidStateError where that takes longer than SETTLE_SECONDS; it goes on.
    """
    record, left = _promotion(vm), SETTLE_SECONDS
    if record.undoing:
        raise InvalidStateError(f"The failover of {vm.name} is being undone.", f"See `vmreplica status {vm.name}`.")
    if record.layered:
        await vm.promotion.commit()
    while record.layered:
        if left <= 0:
            raise InvalidStateError(
                f"What was written to {vm.name} since its failover still settles in its disks.",
                f"Run the same command again; `vmreplica status {vm.name}` shows how far it is.",
            )
        await asyncio.sleep(POLL_SECONDS)
        left -= POLL_SECONDS
        record = _promotion(vm)
    return record


async def _client(vm: ReplicaVm) -> TapClient:
    tap = vm.promotion.tap
    if tap is None:
        raise InvalidStateError(f"The tap of {vm.name} is not looked after here.", "Try again in a moment.")
    return await tap.dial()


async def _to_map(client: TapClient, epoch: bytes) -> Tracked:
    """Have the dirty map name all that was written since the failover, durably."""
    status = await client.status()
    written = is_written(status, epoch)
    if status.tracking is Tracking.ON and status.epoch == epoch.hex():
        status = await client.to_map()
    waited = 0.0
    while status.tracking is Tracking.MAP and status.doubt is not None and not status.doubt.complete:
        await asyncio.sleep(POLL_SECONDS)
        waited += POLL_SECONDS
        if waited > MAP_SECONDS:
            raise InvalidStateError("The dirty map is not complete yet.", "Run the command again.")
        status = await client.status()
    doubt = status.doubt
    if status.tracking is not Tracking.MAP or doubt is None:
        return Tracked(f"tracking is {status.tracking.value} on the host that it was failed over to", written)
    if (doubt.base_epoch, doubt.base_segment) != (epoch.hex(), 0):
        return Tracked("the dirty map there does not go back to the failover", written)
    return Tracked("", written or doubt.bytes > 0)


def _describe(vm: ReplicaVm, record: PromotionRecord, tracked: Tracked) -> HandOver:
    """Blocks."""
    parts, replication = vm.parts, vm.ledger.replication
    reason, ranges = tracked.reason or _unbounded(record), dict[int, list[Range]]()
    if not reason:
        try:
            ranges = _between(vm)
        except (MapDamagedError, OSError) as error:
            reason = f"what lay between the promoted cut and the newest one can't be read: {error}"
    data, path = encode_ranges(ranges), f"{parts.layout.folder}/{RANGES_NAME}"
    replace_file(parts.ports.files, path, data)
    surroundings = parts.surroundings
    return HandOver(
        id=record.epoch.hex(),
        vm=parts.vm.hex(),
        name=vm.name,
        to="primary",
        disks=[
            HandedDisk(
                index=disk.index,
                uuid=disk.uuid.hex(),
                path=parts.disks.path(disk.index),
                size=disk.size,
                export=export_name(disk.index),
            )
            for disk in parts.disks.geometry
        ],
        epoch=replication.epoch.hex(),
        lineage=steps(replication.ancestors),
        common=Place.of(record.received.position) if record.received is not None and not reason else None,
        reason=reason,
        peer=replication.peer_host,
        interval_seconds=replication.interval_seconds or 300.0,
        tap_folder=parts.layout.tap,
        runtime_folder=f"{surroundings.runtime_folder}/{parts.uuid}",
        written=tracked.written,
        ranges_path=path,
        ranges_bytes=len(data),
        ranges_digest=digest(data),
        disk_set=vm.ledger.vm.disk_set + 1,
        next_index=next_index(vm.ledger.vm),
    )


def _unbounded(record: PromotionRecord) -> str:
    """Why nothing says where the promoted cut differs from the newest that was received; empty where the map does."""
    if record.received is None:
        return "the newest cut that was here at the failover is not known any more"
    if record.disks is not None:
        return "the promoted recovery point has other disks than the newest one that was here"
    return ""


def _between(vm: ReplicaVm) -> dict[int, list[Range]]:
    """Where the promoted cut differs from the newest that was received. Blocks."""
    parts = vm.parts
    if not parts.ports.files.exists(parts.layout.reverse_map):
        record = vm.ledger.promotion
        if record is not None and record.cut != record.received:
            raise MapDamagedError(f"{parts.layout.reverse_map} is missing")
        return {}
    return read_map(parts.ports.files, parts.layout.reverse_map, parts.vm, parts.disks.geometry)


async def differences(vm: ReplicaVm) -> Differences:
    """What was written on this host since the failover, and what lies between the promoted cut and the newest one."""
    parts, record = vm.parts, _promotion(vm)
    if record.handed_over:
        raise InvalidStateError(f"The primary agent of this host has {vm.name}.", "Look at its `vmreplica status`.")
    with contextlib.closing(await _client(vm)) as client:
        tracked = await _to_map(client, record.epoch)
    reason = tracked.reason or (_unbounded(record) if record.received is not None else "")
    report = Differences(name=vm.name, uuid=parts.uuid, role="replica", reason=reason)
    if record.received is not None:
        report.common = str(record.received.position)
    ranges = dict[int, list[Range]]()
    if not reason:
        try:
            run = parts.ports.workers.run
            ranges = union(await run(_between, vm), await run(_tap_map, vm))
        except (MapDamagedError, OSError) as error:
            report.reason = f"the dirty map can't be used: {error}"
    disks = promoted_disks(vm.ledger.vm, record)
    report.disks = disks_of({disk.index: parts.disks.path(disk.index) for disk in disks}, ranges)
    return report


# --- giving up ---------------------------------------------------------------------------------------------------


async def give_up(vm: ReplicaVm, *, yes: bool) -> None:
    """Make this side the replica again: what was written since the failover is kept as a recovery point.

    The VM has to be started anew after this. Raises VmreplicaError; nothing was changed then, but that the failover is
    committed, and that the tap may have been stopped, which is started again.
    """
    parts, record = vm.parts, _promotion(vm)
    if record.handed_over:
        raise InvalidStateError(
            f"{vm.name} was handed over to the primary agent of this host.",
            "Fail it over to the other host instead, and reverse the direction.",
        )
    client = await _client(vm)
    try:
        status = await _unused(vm, client)
        if not yes:
            raise UsageError(
                f"The failover of {vm.name} to this host is given up: what was written here since is no longer what "
                "counts, and stays as a recovery point.",
                "Repeat it with --yes.",
            )
        if status.fenced is not None:
            # Who connects from here on may only read: no guest starts on disks that are about to be taken away (I14).
            await client.set(fenced=f"The failover of {vm.name} is being given up.")
        try:
            await _stop_and_take_back(vm, client)
        except BaseException:
            if status.fenced is not None:
                with contextlib.suppress(VmreplicaError):
                    await client.set(fenced="")
            raise
    finally:
        client.close()
    parts.applier.changed.notify()
    parts.changed.notify()


async def _unused(vm: ReplicaVm, client: TapClient) -> TapStatus:
    """The tap's status. Raises InvalidStateError where anybody is connected to a disk."""
    status = await client.status()
    if used := [f"{disk.export} ({disk.clients})" for disk in status.disks if disk.clients]:
        raise InvalidStateError(
            f"The disks of {vm.name} are in use: clients are connected to {', '.join(used)}.",
            "Shut the virtual machine down on this host first.",
        )
    return status


async def _stop_and_take_back(vm: ReplicaVm, client: TapClient) -> None:
    record = await _plain(vm)
    tracked = await _to_map(client, record.epoch)
    tap = vm.promotion.tap
    assert tap is not None
    async with vm.parts.order:
        await _unused(vm, client)
        await vm.leave_tap()
        try:
            await tap.stop_tap()
            await finish(_take_disks_back(vm, record, tracked))
        except BaseException:
            if vm.ledger.promotion is not None:
                vm.take_tap_up()
            raise


async def _take_disks_back(vm: ReplicaVm, record: PromotionRecord, tracked: Tracked) -> None:
    parts, run = vm.parts, vm.parts.ports.workers.run
    reason, ranges = tracked.reason or _unbounded(record), dict[int, list[Range]]()
    if not reason:
        try:
            ranges = union(await run(_between, vm), await run(_tap_map, vm))
            await run(write_map, parts.ports.files, parts.layout.doubt, parts.vm, parts.disks.geometry, ranges)
        except (MapDamagedError, OSError) as error:
            reason = f"what was written since the failover can't be read: {error}"
    await run(parts.disks.open)
    identities = await run(parts.disks.identities)
    here = own_point(parts.ports.random.bytes(16), parts.vm)
    common = None if reason or record.received is None else record.received
    async with parts.ledger.transaction() as draft:
        replication = draft.replication
        draft.promotion = None
        if (before := record.before) is not None:
            # The promoted point may be of an earlier baseline than the one that was here, and that the primary has.
            replication.epoch, replication.lineage = before.epoch, before.lineage
        else:
            replication.epoch = record.parent
            replication.lineage = [step for step in replication.lineage if step.epoch != record.epoch]
        # What is here is in an epoch of its own, and has all the disks.
        forget_sets(draft)
        if record.disks is not None:
            # The primary's set is the newer one: its disks are taken over with the compare.
            draft.vm.disk_set = max(0, draft.vm.disk_set - 1)
        stand_at(replication, here, draft.now, identities, parts.ports.clock.boot_id())
        replication.reversal = ReversalRecord(common=common, bytes=total(ranges)) if common is not None else None
        text = reversed_text(common, total(ranges), reason)
        replication.causes = [Cause(code=ResyncCause.REVERSED.value, text=text, time=draft.now)]
        draft.step(ReplicaEvent.GIVEN_UP, "resolve")
        if tracked.written or reason:
            text = f"{text} {set_aside_text(set_aside(draft.points, here, draft.now))}"
        draft.event(EventId.REVERSED, f"The failover of {vm.name} to this host was given up. {text}", cause="resolve")
    parts.applier.spool = parts.spool_from(here)
    await run(parts.ports.files.remove_tree, parts.layout.tap)
    await run(parts.ports.files.remove, parts.layout.reverse_map)


def _tap_map(vm: ReplicaVm) -> dict[int, list[Range]]:
    """Blocks."""
    parts = vm.parts
    return read_map(parts.ports.files, f"{parts.layout.tap}/{MAP_NAME}", parts.vm, parts.disks.geometry)


def own_point(identity: bytes, vm: bytes) -> Position:
    """A position for content that no cut names: in an epoch of its own, which nothing else is ever part of."""
    return Position(identity, 1, 0, chain_seed(vm, identity))


def stand_at(
    replication: ReplicationRecord, here: Position, time: float, identities: list[IdentityRecord], boot_id: str
) -> None:
    """The disks are exactly at ``here``, a point of this side alone."""
    replication.applied, replication.applied_time = PositionRecord.of(here), time
    replication.applying = replication.undo = replication.suspect = None
    replication.identities, replication.boot_id = identities, boot_id
    replication.reread = False


def reversed_text(common: PositionRecord | None, size: int, reason: str) -> str:
    """Why a resync is required after a reversal."""
    if common is None:
        return f"The direction was reversed, and whole disks are compared, since {reason}."
    return (
        f"The direction was reversed: these disks are as of cut {common.position} but in {size_text(size)}, which are "
        "compared with what changed on the other side."
    )
