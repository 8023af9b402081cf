"""All VMs of an agent in one line, for ``systemctl status``: how many, their health, and what the worst one has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shared.states import Health
from shared.status import VmStatus

_RANK = {health.title: int(health) for health in Health}


def line_of(vms: Sequence[VmStatus]) -> str:
    """For example ``3 VMs: 2 Normal, 1 Critical (web: Resynchronization is required ...)``."""
    if not vms:
        return "No VMs."
    counted = Counter(vm.health for vm in vms)
    healths = sorted(counted, key=lambda health: _RANK.get(health, 0))
    text = f"{len(vms)} VM{'s' if len(vms) > 1 else ''}: "
    text += ", ".join(f"{counted[health]} {health}" for health in healths)
    worst = max(vms, key=lambda vm: _RANK.get(vm.health, 0))
    if _RANK.get(worst.health, 0) > Health.NORMAL and worst.reasons:
        text += f" ({worst.name}: {worst.reasons[0].rstrip('.')})"
    return f"{text}."
