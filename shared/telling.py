"""Tells of every event that became durable, whichever store it went to: for the journal, and for alarms.

:class:`TellingStores` is put around the real stores, so that whoever records an event need not know who hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from shared.ports import Store, Stores


@dataclass(frozen=True, slots=True)
class Told:
    """An event (shared.events) and whose it is; name and UUID are empty for one of the agent itself."""

    event: dict[str, Any]
    vm: str = ""
    uuid: str = ""


Tell = Callable[[Told], None]
"""Called on the event loop, after the event's transaction; it must neither block nor raise."""


class TellingStores:
    """See shared.ports.Stores."""

    def __init__(self, stores: Stores, tell: Tell) -> None:
        self._stores = stores
        self._tell = tell

    async def open(self, folder: str, *, create: bool = False) -> Store:
        return _TellingStore(await self._stores.open(folder, create=create), folder, self._tell)

    async def rebuild(self, folder: str, records: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> str:
        kept = await self._stores.rebuild(folder, records, events)
        name = _name_of(records.get("vm"))
        for event in events:
            self._tell(Told(event, name, _uuid_of(folder)))
        return kept


class _TellingStore:
    """See shared.ports.Store."""

    def __init__(self, store: Store, folder: str, tell: Tell) -> None:
        self._store = store
        self._uuid = _uuid_of(folder)
        self._tell = tell

    def get(self, name: str) -> Any:
        return self._store.get(name)

    def names(self, prefix: str = "") -> list[str]:
        return self._store.names(prefix)

    def commit(self, changes: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> Coroutine[Any, Any, None]:
        # The order of commits is that of these calls, so it is called now.
        work = self._store.commit(changes, events)
        return self._committed(work, [dict(event) for event in events]) if events else work

    async def _committed(self, work: Coroutine[Any, Any, None], events: list[dict[str, Any]]) -> None:
        # Whoever waits may be cancelled; what becomes durable is told all the same.
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda outcome: self._done(outcome, events))
        await asyncio.shield(task)

    def _done(self, outcome: asyncio.Future[None], events: list[dict[str, Any]]) -> None:
        if outcome.cancelled() or outcome.exception() is not None:
            return
        name = _name_of(self._store.get("vm"))
        for event in events:
            data = event.get("data") or {}
            if name:
                self._tell(Told(event, name, self._uuid))
            else:
                # An agent's own event may be about one of its VMs.
                self._tell(Told(event, str(data.get("vm", "")), str(data.get("uuid", ""))))

    async def events(self, *, limit: int, after: int = 0) -> list[dict[str, Any]]:
        return await self._store.events(limit=limit, after=after)

    async def close(self) -> None:
        await self._store.close()


def _name_of(record: Any) -> str:
    return str(record.get("name", "")) if isinstance(record, dict) else ""


def _uuid_of(folder: str) -> str:
    return folder.rstrip("/").rpartition("/")[2]
