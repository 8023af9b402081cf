"""Planted bugs of a planned failover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from primary_agent import planned_orders
from primary_agent.planned import advance, let_writes
from primary_agent.tap.refusal import WriteGate
from shared.states import PlannedEvent
from tests.simulation.mutants_kit import Patch, nothing


def refusal_forgotten() -> Sequence[Patch]:
    """R43: a tap that is started anew takes writes, whatever was ordered before."""
    return [(WriteGate, "load", nothing)]


def abort_unanswered() -> Sequence[Patch]:
    """R43: a preparation whose token has left is taken back without the replica's answer."""

    def make(original: Any) -> Any:
        del original

        async def take_back(vm: Any, *, force: bool) -> None:
            del force
            await advance(vm.parts, PlannedEvent.FORCED, "planted")
            vm.parts.replication.replan()
            await let_writes(vm.parts)

        return take_back

    return [(planned_orders, "_take_back", make)]
