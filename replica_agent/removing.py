"""Stops all of a VM that is to be removed; the disks of one that was failed over to this host are kept."""

from __future__ import annotations

from replica_agent.layout import removed_folder
from replica_agent.promoted_tap import PromotedTap
from replica_agent.promotion import require_settled
from replica_agent.vm import ReplicaVm
from shared.errors import InvalidStateError


async def dismantle(vm: ReplicaVm, now: float) -> str:
    """Stop everything of a VM but its store; where its disks are to be kept, or empty. Raises InvalidStateError."""
    promotion, tap = vm.ledger.promotion, vm.promotion.tap
    kept = removed_folder(vm.parts.layout.folder, vm.parts.vm, int(now))
    if promotion is None:
        await vm.end()
        # Disks that were removed from the VM while it ran here are nobody's copy.
        return kept if vm.ledger.vm.apart else ""
    if promotion.handed_over and await PromotedTap(vm.parts, promotion.epoch).answers():
        raise InvalidStateError(
            f"The primary agent of this host replicates {vm.name}, and its disks are in {vm.parts.layout.folder}.",
            "Remove it at the primary agent first; or leave this folder as it is.",
        )
    if tap is not None and tap.status is not None and any(disk.clients for disk in tap.status.disks):
        raise InvalidStateError(
            f"The disks of {vm.name} are in use: a client is connected to its tap.",
            "Stop the virtual machine first.",
        )
    require_settled(promotion, vm.name)
    await vm.end()
    if tap is not None:
        await tap.stop_tap()
    return kept
