"""Planted bugs of what an order to cancel a resync promises."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

import primary_agent.session
import primary_agent.vm
from primary_agent.replication import Replication
from primary_agent.scope import position_to_prove
from primary_agent.tap_link import TapLink
from shared.planning import ReplicaView
from tests.simulation.mutants_kit import Patch, nothing_async


def cancel_forgets_log() -> Sequence[Patch]:
    """R32: what was written while a bounded resync ran, which was cancelled, is not compared by the next one."""

    def make(_original: Any) -> Any:
        async def is_bounded(tap: TapLink, replica: ReplicaView, causes: Collection[str]) -> bool:
            """The same without the last defence: whether a log beside the map knows more."""
            cut = position_to_prove((await tap.refresh()).doubt, replica, causes)
            return cut is not None and await tap.require().client.knows_cut(cut)

        return is_bounded

    return [
        (primary_agent.vm, "abandon", nothing_async),
        (primary_agent.session, "abandon", nothing_async),
        (primary_agent.session, "is_bounded", make),
        (primary_agent.vm, "is_told", lambda _original: lambda *_arguments: True),
    ]


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
