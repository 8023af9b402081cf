"""Answers GET /metrics over HTTP/1.1, and nothing else: one request a connection, and bounds on everything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from shared.ports import Address, Link, Listener, Network
from shared.rates import Ration

REQUEST_MAX = 8 << 10
"""Bytes of a request with its headers."""
CONNECTIONS_MAX = 16
REQUEST_SECONDS = 10.0
"""A request has to be complete by then,"""
ANSWER_SECONDS = 30.0
"""and its answer taken."""
REPORTS_AT_ONCE, REPORTS_PER_SECOND = 3, 1 / 60
"""Failures of making the answer that are logged."""

Render = Callable[[], Awaitable[bytes]]
"""Makes the metrics' text."""

_HEAD_END = b"\r\n\r\n"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}

log = structlog.get_logger(__name__)


class MetricsServer:
    """Serves what ``render`` makes at ``address``; ``content_type`` is told with it."""

    def __init__(self, network: Network, address: Address, render: Render, content_type: str) -> None:
        self.address = address
        self._network = network
        self._render = render
        self._content_type = content_type
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._reports = Ration(REPORTS_AT_ONCE, REPORTS_PER_SECOND, 0.0)

    async def start(self) -> None:
        """Listen. Raises what ``Network.listen`` raises."""
        self._listener = await self._network.listen(self.address, self._accept)
        self.address = self._listener.address

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, link: Link) -> None:
        request = _Request(link)
        link.attach(request)
        if len(self._tasks) >= CONNECTIONS_MAX:
            link.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(link, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, link: Link, request: _Request) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await request.head
            status, body = await self._answer(head)
            async with asyncio.timeout(ANSWER_SECONDS):
                link.write(self._headers(status, body), b"" if head.startswith(b"HEAD ") else body)
                await link.drain()
                link.close()
                await request.gone.wait()
        except (TimeoutError, ConnectionError):
            pass
        finally:
            link.abort()

    async def _answer(self, head: bytes) -> tuple[int, bytes]:
        if len(head) > REQUEST_MAX:
            return _told(431)
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _told(400)
        if words[0] not in (b"GET", b"HEAD"):
            return _told(405)
        if words[1].partition(b"?")[0] != b"/metrics":
            return _told(404)
        try:
            return 200, await self._render()
        except Exception:
            if self._reports.take(asyncio.get_running_loop().time()):
                log.exception("the metrics could not be made")
            return _told(500)

    def _headers(self, status: int, body: bytes) -> bytes:
        kind = self._content_type if status == 200 else "text/plain; charset=utf-8"
        lines = [
            f"HTTP/1.1 {status} {_REASONS[status]}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(["Allow: GET, HEAD"] if status == 405 else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


def _told(status: int) -> tuple[int, bytes]:
    where = "The metrics are at /metrics.\n" if status == 404 else ""
    return status, f"{status} {_REASONS[status]}\n{where}".encode()


class _Request:
    """Receives a request up to the end of its headers; what follows is not read."""

    def __init__(self, link: Link) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """Complete, or longer than REQUEST_MAX; ConnectionError where the peer is gone before."""
        self.gone = asyncio.Event()
        self._link = link
        self._buffer = bytearray(REQUEST_MAX + 1)
        self._length = 0

    def get_buffer(self, size_hint: int) -> memoryview:
        if self.head.done():
            # Nothing of it is wanted: it may be written over again and again until the end.
            return memoryview(bytearray(4096))
        return memoryview(self._buffer)[self._length :]

    def buffer_updated(self, count: int) -> None:
        if self.head.done():
            return
        self._length += count
        end = self._buffer.find(_HEAD_END, 0, self._length)
        if end >= 0 or self._length > REQUEST_MAX:
            self.head.set_result(bytes(self._buffer[: end if end >= 0 else self._length]))

    def lost(self, error: Exception | None) -> None:
        self.gone.set()
        if not self.head.done():
            self.head.set_exception(ConnectionError("the client went away"))
            # Whoever waits for it hears of it; nobody may.
            self.head.exception()
