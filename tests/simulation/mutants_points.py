"""Planted bugs of the older recovery points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import replica_agent.history
import replica_agent.thinning
from replica_agent.apply import Applier
from replica_agent.exports import Exports
from replica_agent.groups import Group
from replica_agent.history import History
from replica_agent.record import UndoRecord
from replica_agent.writable import WritableDisk
from shared.map_file import MapFile
from tests.simulation.disk import SimulatedFile
from tests.simulation.mutants_kit import Patch, nothing, unsynced


def export_not_preserved() -> Sequence[Patch]:
    """R37: an export is not told of the undo logs of applies that began after it."""

    def make(original: Any) -> Any:
        async def publish(history: History, record: UndoRecord) -> None:
            readings, history.readings = history.readings, []
            await original(history, record)
            history.readings = readings

        return publish

    return [(History, "publish", make)]


def export_unpinned() -> Sequence[Patch]:
    """R37: what an export shows is kept for its reader only, and may go before a start has made another one."""

    def reopened_late(original: Any) -> Any:
        started: list[Exports] = []

        async def reopen(exports: Exports) -> None:
            if any(each is exports for each in started):
                await original(exports)
            started.append(exports)

        return reopen

    return [
        (Exports, "reopen", reopened_late),
        (replica_agent.history, "exported", lambda _original: lambda _logs, _exports: set()),
    ]


def undo_nosync() -> Sequence[Patch]:
    """R25: the disks change before their undo log is durable."""
    return [(SimulatedFile, "sync", unsynced("/undo/"))]


def undo_rebuilt() -> Sequence[Patch]:
    """R25: an apply that a crash interrupted saves what it overwrites anew, though some of it is overwritten."""

    def make(original: Any) -> Any:
        def begun(applier: Applier, group: Group) -> bool:
            redone: bool = original(applier, group)
            return redone and group.merge is not None

        return begun

    return [(Applier, "_begun", make)]


def newer_wins() -> Sequence[Patch]:
    """R25: where two undo logs are merged, the newer content wins."""

    def make(original: Any) -> Any:
        return lambda layers: original(list(reversed(layers)))

    return [(replica_agent.thinning, "overlaid", make)]


def thinned_unmerged() -> Sequence[Patch]:
    """R25: a point that is not kept any more takes its undo log with it, which older points need."""

    def make(original: Any) -> Any:
        return lambda *arguments, **named: [log for log in original(*arguments, **named) if log.point]

    return [(replica_agent.history, "thinned", make)]


def history_over_unsaved() -> Sequence[Patch]:
    """R38: older points stay on record although the disks change without an undo log, since none could be written."""

    def make(original: Any) -> Any:
        async def save(history: History, sources: Any, link: Any) -> UndoRecord | None:
            # Real failures of undo logs are rare; what follows from one is what this is about.
            if history.wanted and history.ports.random.uniform(0, 1) < 0.3:
                return None
            saved: UndoRecord | None = await original(history, sources, link)
            return saved

        return save

    return [(History, "unguard", nothing), (History, "save", make)]


def overlay_unlisted() -> Sequence[Patch]:
    """I4: a client of a writable export is answered before it is on record which blocks are the overlay's."""

    def make(original: Any) -> Any:
        def write(found: MapFile) -> None:
            if found.path.endswith(".live"):
                found._changed.clear()
            else:
                original(found)

        return write

    return [(MapFile, "write", make)]


def overlay_unsynced() -> Sequence[Patch]:
    """I4: FLUSH of a writable export has the map durable, and not the data that it leads to."""

    def make(_original: Any) -> Any:
        def sync(disk: WritableDisk) -> int:
            disk._files.durable.write()
            disk._files.durable.sync()
            return 0

        return sync

    return [(WritableDisk, "_sync", make)]


def overlay_unfilled() -> Sequence[Patch]:
    """I1: of a block that a client writes in part, the rest is not copied from the point."""
    return [(WritableDisk, "_fill", nothing)]
