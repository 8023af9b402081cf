"""The end of a failover: settled after a commit, or undone. Each step is durable, and made again after a crash."""

from __future__ import annotations

import asyncio

from replica_agent.disk_sets import adopt_promoted, remove_unnamed
from replica_agent.finishing import finish
from replica_agent.parts import VmParts
from replica_agent.promoted_layers import remove_overlays
from replica_agent.promoted_tap import PromotedTap
from shared.errors import DiskInUseError, InvalidStateError, VmreplicaError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.states import ReplicaEvent, ReplicationState
from shared.status import Cause

RETRY_SECONDS = 0.5
TELL_AFTER = 10
"""Attempts after which it is shown that a tap does not end."""


async def settled(parts: VmParts, tap: PromotedTap) -> None:
    """Wait until all has settled in the disks; then they are plain ones, and what lay over them is deleted."""
    record = parts.ledger.promotion
    if record is None or not record.layered:
        if record is not None and record.committed_time is not None:
            # A crash may have left what was to be deleted.
            await finish(parts.ports.workers.run(_remove_rest, parts))
        return
    await tap.settled.wait()
    # The tap reads nothing but the disks any more. Its next start must not look for what goes now.
    await finish(parts.ports.workers.run(tap.configure_plain))
    async with parts.ledger.transaction() as draft:
        assert draft.promotion is not None
        draft.promotion.layered = False
        cut = draft.promotion.cut
        draft.replication.applied_time = parts.time_of(cut.position) if cut is not None else None
        parts.history.unguard(draft)
        adopt_promoted(draft)
        draft.replication.applied = cut
        # What was merged when an older point was promoted leads nowhere any more.
        draft.resync = None
        draft.replication.applying = None
        draft.replication.identities = None
        draft.event(
            EventId.FAILOVER_COMMITTED,
            f"What lay over the disks of {draft.vm.name} has settled in them; they are plain disks again.",
            cause="settled",
        )
    parts.applier.merge = None
    # They are closed: the tap has them.
    parts.disks.settle(parts.ledger.vm.geometry)
    await parts.history.tidy()
    await finish(parts.ports.workers.run(_remove_rest, parts))
    parts.changed.notify()


def _remove_rest(parts: VmParts) -> None:
    """Nothing reads any of this any more. Blocks."""
    remove_overlays(parts)
    remove_unnamed(parts)
    for tree in (parts.layout.spool, parts.layout.undo_logs, parts.layout.resyncs):
        parts.ports.files.remove_tree(tree)
        parts.ports.files.make_folder(tree)
    parts.ports.files.sync_folder(parts.layout.folder)


async def undo(parts: VmParts, clients: int) -> None:
    """Decide durably that the failover is undone. Raises InvalidStateError where it can't be, or is in use."""
    name = parts.ledger.vm.name
    async with parts.order, parts.ledger.transaction() as draft:
        record = draft.promotion
        if record is None:
            raise InvalidStateError(f"{name} is not failed over to this host.", f"See `vmreplica status {name}`.")
        if record.undoing:
            return
        if not record.undoable or record.before is None:
            how = "is committed" if record.committed_time is not None else "left nothing on record to go back to"
            raise InvalidStateError(
                f"The failover of {name} {how}: its disks have been written, so that it can't be undone.",
                "Replicate it back to its old host instead.",
            )
        if clients:
            raise InvalidStateError(
                f"The disks of {name} are in use: a client is connected to its tap.", "Stop the virtual machine first."
            )
        record.undoing = True
        draft.event(
            EventId.FAILOVER_UNDONE,
            f"The failover of {name} is being undone: what was written here since is dropped.",
            cause="begun",
        )


async def finish_undo(parts: VmParts) -> None:
    """End the tap, drop its overlays, and be a replica again. The VM has to be started anew after this."""
    tap = PromotedTap(parts, b"")
    attempts = 0
    while parts.ledger.promotion is not None and parts.ledger.promotion.serving:
        try:
            await tap.stop_tap()
            await finish(parts.ports.workers.run(_wait_for_locks, parts))
            break
        except VmreplicaError as error:
            attempts += 1
            if attempts >= TELL_AFTER:
                cause = Cause(code="tap_stays", text=str(error), time=parts.ports.clock.wall())
                parts.applier.problem = cause
                parts.changed.notify()
        await asyncio.sleep(RETRY_SECONDS)
    await finish(parts.ports.workers.run(_drop, parts))
    async with parts.ledger.transaction() as draft:
        record, draft.promotion = draft.promotion, None
        assert record is not None and record.before is not None
        draft.replication.epoch = record.before.epoch
        draft.replication.lineage = record.before.lineage
        draft.step(ReplicaEvent.FAILOVER_UNDONE, "undo")
        if record.before.state is ReplicationState.SUSPENDED:
            draft.step(ReplicaEvent.SUSPENDED, "as before the failover")
        elif record.before.state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE:
            draft.step(ReplicaEvent.RESYNC_REQUIRED, "as before the failover")
        text = f"The failover of {draft.vm.name} is undone"
        if draft.replication.applied is None:
            # The state was lost meanwhile: nothing tells any more which cut the disks are at.
            cause = Cause(
                code=ResyncCause.STATE_LOST,
                text=f"{text}, and the state that told which cut its disks are at was lost.",
                time=draft.now,
                remedy="Resynchronize at the primary.",
            )
            draft.require_resync(cause, suspect=True)
        draft.event(EventId.FAILOVER_UNDONE, f"{text}: disks and recovery points are what they were before it.")
    parts.applier.problem = None


def _wait_for_locks(parts: VmParts) -> None:
    """Whoever holds the disks' locks could still write, if only overlays. Blocks. Raises DiskInUseError."""
    try:
        parts.disks.open()
    except DiskInUseError:
        raise
    except (VmreplicaError, OSError):
        # A disk that is gone keeps no undo from its end: the VM's start, which comes then, tells it with the remedy.
        return


def _drop(parts: VmParts) -> None:
    """Blocks."""
    parts.disks.close()
    parts.ports.files.remove_tree(parts.layout.tap)
    parts.ports.files.remove(parts.layout.reverse_map)
    parts.ports.files.sync_folder(parts.layout.folder)
