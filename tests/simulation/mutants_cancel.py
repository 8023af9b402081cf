"""Planted bugs of what an order to cancel a resync promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from primary_agent.replication import Replication
from tests.simulation.mutants_kit import Patch


def cancel_after_proposal() -> Sequence[Patch]:
    """I7: a resync is cancelled although its commit may be at the replica already."""

    def make(original: Any) -> Any:
        async def cancel(replication: Replication, text: str) -> None:
            resync = replication.record.resync
            if resync is not None and resync.end is not None:
                await replication.update(resync=msgspec.structs.replace(resync, end=None))
            await original(replication, text)

        return cancel

    return [(Replication, "cancel", make)]
