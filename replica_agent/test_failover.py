"""A test failover: one writable export of a point, under the name of a VM of its own, while replication goes on."""

from __future__ import annotations

from protocol.position import Position
from replica_agent.point_disks import point_text
from replica_agent.vm import ReplicaVm
from shared.errors import InvalidStateError, NotFoundError


async def begin_test(vm: ReplicaVm, position: Position | None) -> None:
    """Serve a point, by default the newest, for a test. Raises InvalidStateError, NotFoundError, NoSpaceError."""
    running = vm.ledger.exports.test
    if running is not None:
        raise InvalidStateError(
            f"{vm.name} has a test failover already, of point {point_text(running.position.position)}.",
            f"End it with `vmreplica failover {vm.name} --test --stop`.",
        )
    _refuse_while_resyncing(vm, position)
    await vm.exports.start(vm.describe, position, writable=True, test=True)


def _refuse_while_resyncing(vm: ReplicaVm, position: Position | None) -> None:
    """The newest point is what a resync is about: a test of it would say nothing of what is there afterwards."""
    applied = vm.ledger.replication.applied
    newest = position is None or (applied is not None and applied.position == position)
    resyncing = vm.parts.resync is not None or vm.parts.applier.merge is not None
    if newest and resyncing and vm.ledger.promotion is None:
        raise InvalidStateError(
            f"{vm.name} is being resynchronized: its newest recovery point can't be tested meanwhile.",
            "Wait until that is complete, or name an older point with --point.",
        )


async def end_test(vm: ReplicaVm) -> None:
    """End the test failover, and delete what was written to it. Raises NotFoundError where there is none."""
    running = vm.ledger.exports.test
    if running is None:
        raise NotFoundError(f"{vm.name} has no test failover.", f"See `vmreplica status {vm.name}`.")
    await vm.exports.stop(running.id)
