"""Merges a VM's undo logs in the background, so that the points that are not kept free their space.

The merged log is durable before the state names it, in one transaction with its sources' end; those are deleted after
it. Readers that go through the sources are given the merged log instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from replica_agent.finishing import finish
from replica_agent.history import History
from replica_agent.record import UndoRecord
from replica_agent.retention import merge_next
from replica_agent.thinning import merge
from replica_agent.undo_records import record_of
from shared.errors import NoSpaceError
from shared.events import EventId
from shared.undo_log import Link, UndoDamagedError, UndoLog, UndoUnreadableError


@dataclass(slots=True)
class Thinner:
    """Merges the undo logs of one history."""

    history: History
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _told: bool = False

    async def run(self) -> None:
        """Merge what is to be merged, one group after the other; returns when there is nothing left."""
        async with self._turn:
            while (place := merge_next(self.history.ledger.points, self.history.retention)) is not None:
                chosen = self.history.ledger.points.logs[slice(*place)]
                try:
                    if not await self._merge(chosen):
                        return
                except UndoDamagedError as error:
                    await self._lose(chosen[-1], error.text)
                except UndoUnreadableError as error:
                    bad = [log for log in chosen if self.history.layout.undo(log.first, log.last) == error.filename]
                    await self._lose(bad[-1], error.strerror or "")
                except OSError as error:
                    if not self._told:
                        self._told = True
                        text = f"Undo logs can't be merged: {error}"
                        await self.history.ledger.note(EventId.POINTS, text, cause="merge")
                    return
                else:
                    self._told = False

    async def _merge(self, chosen: Sequence[UndoRecord]) -> bool:
        run = self.history.ports.workers.run
        oldest, newest = chosen[0], chosen[-1]
        link = Link(oldest.older.position, newest.newer.position, oldest.older_time, newest.newer_time)
        logs = [await finish(run(self.history.log, record)) for record in chosen]
        there = self.history.ledger.disks_at(link.older)
        try:
            sealed = await self.history.write(
                oldest.first, newest.last, link, lambda writer: merge(logs, writer, there)
            )
        except NoSpaceError:
            return False
        merged = record_of(oldest.first, newest.last, link, sealed)
        merged.level, merged.point = max(record.level for record in chosen) + 1, oldest.point
        async with self.history.chain:
            async with self.history.ledger.transaction() as draft:
                present = draft.points.logs
                numbers = [record.first for record in present]
                at = numbers.index(oldest.first) if oldest.first in numbers else -1
                # Much may have happened meanwhile: points were deleted, or somebody reads one in the middle.
                same = at >= 0 and [r.first for r in present[at : at + len(chosen)]] == [r.first for r in chosen]
                if same and not any(r.first in {c.first for c in chosen[1:]} for r in self.history.readings):
                    merged.point = present[at].point
                    logs_after = [*present[:at], merged, *present[at + len(chosen) :]]
                    draft.points = msgspec.structs.replace(draft.points, logs=logs_after)
                else:
                    same = False
            self.history.named(merged)
            if same:
                await self._swap(logs, merged)
        await self.history.tidy()
        return same

    async def _swap(self, logs: list[UndoLog], merged: UndoRecord) -> None:
        """Give the merged log to the readers of ``logs``."""
        gone = {log.order for log in logs}
        if not any(gone & {log.order for log in reading.reader.layers} for reading in self.history.readings):
            return
        log = await finish(self.history.ports.workers.run(self.history.log, merged))
        for reading in self.history.readings:
            layers = reading.reader.layers
            if gone <= {known.order for known in layers}:
                place = next(i for i, known in enumerate(layers) if known.order in gone)
                rest = [known for known in layers if known.order not in gone]
                reading.reader.layers = (*rest[:place], log, *rest[place:])

    async def _lose(self, damaged: UndoRecord, reason: str) -> None:
        """A log is damaged: the points that need it are gone, the newer ones are not."""
        async with self.history.ledger.transaction() as draft:
            if damaged not in draft.points.logs:
                # It was deleted meanwhile, with its point.
                return
            left = [log for log in draft.points.logs if log.first > damaged.last]
            draft.points = msgspec.structs.replace(draft.points, logs=left)
            draft.event(EventId.DAMAGED, f"Older recovery points are lost. {reason}", cause="undo_damaged")
        await self.history.tidy()
