"""A pair of agents with a proxy between them, and deadlines and waits that are short."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from primary_agent import dialing, session_loop
from shared import channel
from shared.cli.console import Palette
from shared.cli.page import page_lines
from shared.events import EventId
from shared.states import ReplicationState
from tests.faults.defences import SWITCH
from tests.pair import rig
from tests.pair.proxy import Proxy
from tests.pair.rig import Pair
from tests.pair.watching import Watch

HEARTBEAT_SECONDS = 0.25
DEAD_AFTER_SECONDS = 1.5
FIRST_SECONDS = 0.1
LAST_SECONDS = 0.5
CONNECT_SECONDS = 1.0
OPENING_SECONDS = 3.0
# Without its defence a test waits in vain: not for so long.
VAIN_SECONDS = 15.0


class LinkedPair(Pair):
    """The VM's link goes through ``proxy``."""

    proxy: Proxy

    async def down(self, reason: str = "") -> None:
        """Wait until the primary has no session, and says why."""

        def is_down() -> bool:
            link = self.vm.parts.link
            return link.dialled is None and reason in link.last_error

        await self.until(f"the end of the session with {reason!r}", is_down)

    async def broken(self, accepted: int) -> None:
        """Wait until the session has ended that was there when the proxy had accepted so many; the next may follow."""

        def is_broken() -> bool:
            return self.vm.parts.link.dialled is None or self.proxy.accepted > accepted

        await self.until("the end of the session", is_broken)

    async def told(self, reason: str) -> None:
        """Wait until an outage was told with this reason; it may be over by then."""
        deadline = time.monotonic() + rig.WAIT_SECONDS
        while not any(reason in text for text in await self.retries()):
            assert time.monotonic() < deadline, f"{reason!r} was never told: {await self.retries()}"
            await asyncio.sleep(0.05)

    async def gave_back(self, watch: Watch) -> None:
        """Wait until both agents hold no more than before."""
        try:
            await self.until("what was held", watch.is_back)
        except AssertionError as error:
            raise AssertionError(f"{watch.before} grew to {watch.look()}") from error

    async def up(self) -> None:
        """Wait for a healthy session."""
        await self.healthy()
        await self.state(ReplicationState.REPLICATING)

    async def retries(self) -> list[str]:
        """The texts of the events that told of an outage, oldest first."""
        return [event["text"] for event in await self.events(EventId.WILL_RETRY)]

    async def shown(self) -> str:
        """What ``vmreplica status VM`` says of the link at the primary."""
        status = await self.vm.status()
        lines = page_lines(status, time.time(), None, Palette(enabled=False))
        return "\n".join(line for line in lines if line.split()[:1] == ["link"])

    async def ends_well(self) -> None:
        """Back to Replicating by itself, and the newest cut is the same byte for byte on both sides."""
        await self.up()
        await self.assert_same()
        assert self.vm.parts.replication.state is ReplicationState.REPLICATING
        assert self.vm.parts.replication.record.causes == []


@asynccontextmanager
async def linked_pair(folder: Path, *, buffer: int = 0, **settings: Any) -> AsyncIterator[LinkedPair]:
    """A started pair, and a proxy to its replica; ``settings`` are attributes of the pair."""
    with tempfile.TemporaryDirectory(prefix="vmr-") as sockets, contextlib.ExitStack() as stack:
        pair = LinkedPair(folder, Path(sockets))
        pair.heartbeat, pair.dead_after, pair.replica_dead_after = (
            HEARTBEAT_SECONDS,
            DEAD_AFTER_SECONDS,
            DEAD_AFTER_SECONDS,
        )
        for name, value in settings.items():
            setattr(pair, name, value)
        await pair.start()
        try:
            pair.proxy = Proxy(("127.0.0.1", pair.port), buffer=buffer)
            stack.callback(pair.proxy.close)
            pair.route = pair.proxy.port
            yield pair
        finally:
            if hasattr(pair, "proxy"):
                pair.proxy.release()
            await pair.stop()


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Let the waits of the product be short."""
    patch.setattr(session_loop, "BACKOFF_FIRST_SECONDS", FIRST_SECONDS)
    patch.setattr(session_loop, "BACKOFF_LAST_SECONDS", LAST_SECONDS)
    patch.setattr(dialing, "CONNECT_SECONDS", CONNECT_SECONDS)
    patch.setattr(dialing, "OPENING_SECONDS", OPENING_SECONDS)
    patch.setattr(channel, "CLOSING_SECONDS", 1.0)
    if os.environ.get(SWITCH):
        patch.setattr(rig, "WAIT_SECONDS", VAIN_SECONDS)
