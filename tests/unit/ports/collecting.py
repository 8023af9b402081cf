"""A receiver that collects, and pairs of links on the real network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from shared.ports import Address, Link
from shared.ports.links import StreamLink
from shared.ports.network import RealNetwork


class Collector:
    """Collects what a link delivers (shared.ports.Receiver) and lets a test wait for it."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.data = bytearray()
        self.counts: list[int] = []
        self.losses: list[Exception | None] = []
        self._buffer = bytearray(size)
        self._changed = asyncio.Event()

    def get_buffer(self, size_hint: int) -> bytearray:
        assert size_hint > 0
        assert not self.losses
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        assert not self.losses
        assert 0 < count <= len(self._buffer)
        self.data += memoryview(self._buffer)[:count]
        self.counts.append(count)
        self._changed.set()

    def lost(self, error: Exception | None) -> None:
        self.losses.append(error)
        self._changed.set()

    async def wait(self, size: int) -> bytes:
        """All bytes so far, once there are ``size``."""
        async with asyncio.timeout(20):
            while len(self.data) < size:
                self._changed.clear()
                await self._changed.wait()
        return bytes(self.data)

    async def wait_lost(self) -> Exception | None:
        """What ``lost`` was called with."""
        async with asyncio.timeout(20):
            while not self.losses:
                self._changed.clear()
                await self._changed.wait()
        assert len(self.losses) == 1
        return self.losses[0]


class Accepting:
    """Collects the links that a listener accepts."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self._queue: asyncio.Queue[Link] = asyncio.Queue()

    def __call__(self, link: Link) -> None:
        self.links.append(link)
        self._queue.put_nowait(link)

    async def next(self) -> StreamLink:
        async with asyncio.timeout(20):
            return cast(StreamLink, await self._queue.get())

    async def end(self) -> None:
        """End all links, and let the loop do so."""
        for link in self.links:
            link.abort()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(
    address: Address, client: RealNetwork, server: RealNetwork | None = None
) -> AsyncIterator[tuple[StreamLink, StreamLink]]:
    """A client's link and the server's link to it."""
    accepting = Accepting()
    listener = await (server or client).listen(address, accepting)
    try:
        near = cast(StreamLink, await client.connect(listener.address, timeout=10))
        far = await accepting.next()
        try:
            yield near, far
        finally:
            near.abort()
    finally:
        await listener.close()
        await accepting.end()
