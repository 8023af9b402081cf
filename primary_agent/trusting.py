"""Sessions with replicas whose certificates would not be accepted any more are ended (I19)."""

from __future__ import annotations

from collections.abc import Iterable

from primary_agent.vm import PrimaryVm
from protocol.messages import ErrorCode
from shared.ports.trust import Trust


def end_distrusted(vms: Iterable[PrimaryVm], trust: Trust) -> None:
    """End them, and tell the replicas why.

    They are dialled again at once: a replica that has another certificate by now goes on, others are refused.
    """
    for vm in vms:
        dialled = vm.parts.link.dialled
        if dialled is None or dialled.channel.closed:
            continue
        objection = trust.objection(dialled.channel.peer)
        if objection is not None:
            dialled.channel.refuse(ErrorCode.BUSY, objection.text, objection.remedy)
