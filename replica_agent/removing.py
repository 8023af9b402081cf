"""Stops all of a VM that is to be removed, and deletes it; the disks of one that was failed over to here are kept.

One that was handed over lies in the same folder, disks, tap and log: the primary agent goes on with them. Nothing here
tells whether it has the VM, the less so while the tap is down, so whoever removes it has to have asked there.
"""

from __future__ import annotations

from replica_agent.creating import remove_vm
from replica_agent.damaged import DamagedVm
from replica_agent.layout import removed_folder
from replica_agent.promoted_tap import PromotedTap
from replica_agent.promotion import require_settled
from replica_agent.vm import ReplicaVm
from shared.admin.carrying import Carriers
from shared.errors import InvalidStateError
from shared.ports import Ports


async def dismantle(vm: ReplicaVm, now: float, carriers: Carriers, *, released: bool) -> str:
    """Stop everything of a VM but its store; where its disks are to be kept, or empty. Raises InvalidStateError.

    ``released``: the primary agent of this host was asked, and does not have it.
    """
    promotion, tap = vm.ledger.promotion, vm.promotion.tap
    kept = removed_folder(vm.parts.layout.folder, vm.parts.vm, int(now))
    if promotion is None:
        await vm.end()
        # Disks that were removed from the VM while it ran here are nobody's copy.
        return kept if vm.ledger.vm.apart else ""
    if promotion.handed_over and (not released or await PromotedTap(vm.parts, promotion.epoch).answers()):
        raise InvalidStateError(
            f"{vm.name} was handed over to the primary agent of this host, and its disks are in "
            f"{vm.parts.layout.folder}, with those files of its tap that the agent needs.",
            "Nothing was removed. Remove it at the primary agent first, or leave this folder as it is. Where that "
            f"agent does not have it, `vmreplica reverse {vm.name}` completes the hand-over.",
        )
    if tap is not None and tap.status is not None and any(disk.clients for disk in tap.status.disks):
        raise InvalidStateError(
            f"The disks of {vm.name} are in use: a client is connected to its tap.",
            "Stop the virtual machine first.",
        )
    require_settled(promotion, vm.name)
    # No hand-over begins from here on, since the VM is closing (replica_agent.reversing).
    carriers.judge(vm.parts.uuid, vm.name)
    await vm.end()
    if tap is not None:
        await tap.stop_tap()
    return kept


async def delete(ports: Ports, vm: ReplicaVm, keep: str) -> None:
    """Forget a VM that was dismantled; ``keep`` is where its disks go."""
    only = None if vm.ledger.promotion is not None else vm.ledger.vm.apart
    await remove_vm(ports, vm.parts.layout.folder, vm.ledger.store, keep_disks=keep, only=only)


def not_deleted(name: str, damaged: DamagedVm) -> InvalidStateError:
    """Why a copy whose state is damaged stays."""
    return InvalidStateError(
        f"The state of {name} can't be read, so its copy is not deleted: {damaged.error.text}",
        f"Look into {damaged.folder}; delete it by hand if nothing in it is needed.",
    )
