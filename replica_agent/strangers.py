"""Removes what was received and no state names any more: rests of resyncs that were dropped, replaced or forgotten."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from replica_agent.layout import read_resync, read_segment
from replica_agent.parts import VmParts


def remove_strangers(parts: VmParts, epochs: AbstractSet[bytes]) -> None:
    """Remove segments of other epochs than these, and differencing files of other resyncs than the open one. Blocks."""
    files, layout = parts.ports.files, parts.layout
    for name in files.list(layout.spool):
        place = read_segment(name)
        if place is not None and place[0] not in epochs:
            parts.pool.put(f"{layout.spool}/{name}")
    record = parts.ledger.resync
    for name in files.list(layout.resyncs):
        identity = read_resync(name)
        if identity is not None and (record is None or identity != record.id):
            files.remove(f"{layout.resyncs}/{name}")
