"""What happened to an agent rather than to one of its VMs: a small store of its own, with the health told last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import structlog

from shared.errors import StoreDamagedError, VmreplicaError
from shared.event_query import Wants, everything, sought
from shared.events import EventId, make_event
from shared.ports import Ports, Store

FOLDER = "agent"
"""Below the agent's state_dir."""
HEALTH = "health"
"""The record with the health of each VM as it was told last, by UUID."""

log = structlog.get_logger(__name__)


class AgentEvents:
    """Opened at the agent's start. A store that fails costs the agent's own events, never its work."""

    def __init__(
        self, ports: Ports, state_dir: str, undurable: Callable[[dict[str, Any]], None] = lambda _event: None
    ) -> None:
        """``undurable`` is told the events that could not be recorded: whoever is to hear of them still does."""
        self._ports = ports
        self._undurable = undurable
        self._folder = f"{state_dir}/{FOLDER}"
        self._store: Store | None = None
        self.error = ""
        """Why nothing is recorded, where that is so."""

    async def open(self) -> None:
        """Open the store, or make it; a damaged one is kept aside."""
        run, files = self._ports.workers.run, self._ports.files
        try:
            names = await run(files.list, self._folder)
            await run(files.make_folder, self._folder)
            if not names:
                self._store = await self._ports.stores.open(self._folder, create=True)
                return
            try:
                self._store = await self._ports.stores.open(self._folder)
            except StoreDamagedError as error:
                kept = await self._ports.stores.rebuild(self._folder, {})
                log.warning("the agent's own events begin anew", reason=error.text, kept=kept)
                self._store = await self._ports.stores.open(self._folder)
        except (VmreplicaError, OSError) as error:
            self._failed(error)

    async def note(
        self,
        number: EventId,
        text: str,
        *,
        cause: str = "",
        before: str = "",
        after: str = "",
        data: dict[str, Any] | None = None,
        level: str = "",
        changes: dict[str, Any] | None = None,
    ) -> None:
        """Record an event, and with it changes of records. An event of a VM has ``vm`` and ``uuid`` in its data."""
        now = self._ports.clock.wall()
        event = make_event(number, text, time=now, cause=cause, before=before, after=after, data=data, level=level)
        if self._store is None and self.error:
            # What failed, a full volume say, may be over.
            await self.open()
        if self._store is None:
            self._undurable(event)
            return
        try:
            await self._store.commit(changes or {}, [event])
        except (VmreplicaError, OSError) as error:
            self._failed(error)
            self._undurable(event)
            # A store takes nothing more once a commit has failed: it is opened anew.
            with contextlib.suppress(VmreplicaError, OSError):
                await self.close()
        else:
            self.error = ""

    def health(self) -> dict[str, str]:
        """The health of each VM as it was told last, by UUID."""
        known = self._store.get(HEALTH) if self._store is not None else None
        return dict(known) if isinstance(known, dict) else {}

    async def events(
        self, *, limit: int, after: int, wants: Wants = everything, since: float = 0.0
    ) -> list[dict[str, Any]]:
        """As shared.event_query has it, with ``vm`` and ``uuid`` as VMs' events have."""
        if self._store is None:
            return []
        found = await sought(self._store.events, limit=limit, after=after, wants=wants, since=since)
        return [{**event, "vm": event["data"].get("vm", ""), "uuid": event["data"].get("uuid", "")} for event in found]

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    def _failed(self, error: Exception) -> None:
        self.error = str(error)
        log.error("the agent's own events can't be recorded", reason=self.error)
