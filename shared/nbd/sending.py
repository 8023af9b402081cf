"""Collects one connection's replies, joins small ones into one write, and knows whether the client takes them."""

from __future__ import annotations

import asyncio

from shared.nbd import replies

SEND_HIGH_WATER = 1 << 20
"""Bytes of unsent replies above which we stop reading and begin no further request."""
_JOIN_LIMIT = 64 << 10
"""Data of at least this many bytes are sent as they are, not copied together with other replies."""
_ZEROES = bytes(2 << 20)


class Outbox:
    """The replies of one connection. ``put`` collects; ``send_out`` writes what was collected, in one piece."""

    __slots__ = ("_out", "_paused", "_sent", "_transport", "_waiters", "bytes_read", "structured")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.structured = False
        """Whether READs are answered, and errors explained, by structured replies."""
        self.bytes_read = 0
        """Bytes of data that READs got."""
        self._transport = transport
        self._out: list[bytes | memoryview] = []
        self._sent = 0
        self._paused = False
        self._waiters: list[asyncio.Future[None]] = []
        transport.set_write_buffer_limits(high=SEND_HIGH_WATER)

    def put(self, reply: bytes) -> None:
        """Collect a reply without data."""
        self._out.append(reply)

    def put_failure(self, cookie: bytes, error: int, text: str) -> None:
        """Collect the answer to a request that was refused or failed."""
        self._out.append(replies.failed(cookie, error, text, structured=self.structured))

    def put_data(self, cookie: bytes, offset: int, data: bytes | memoryview) -> None:
        """Collect the answer to a READ; large data are sent at once."""
        length = len(data)
        self.bytes_read += length
        if self.structured and type(data) is bytes and _ZEROES.startswith(data):
            self._out.append(replies.hole(cookie, offset, length))
            return
        self._out.append(replies.data_header(cookie, offset, length, structured=self.structured))
        if length < _JOIN_LIMIT:
            self._out.append(data)
        else:
            self.send_out()
            self._write(data)

    def send_out(self) -> None:
        """Write what was collected."""
        out = self._out
        if out:
            self._out = []
            self._write(out[0] if len(out) == 1 else b"".join(out))

    def _write(self, data: bytes | memoryview) -> None:
        # An answer may become ready after the connection ended.
        if not self._transport.is_closing():
            self._sent += len(data)
            self._transport.write(data)

    def taken(self) -> int:
        """Bytes that left our send queue so far."""
        return self._sent - self._transport.get_write_buffer_size()

    def pause(self) -> None:
        """The send queue is above its high-water mark."""
        self._paused = True

    def resume(self) -> None:
        """The send queue has fallen below its low-water mark."""
        self._paused = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def sendable(self) -> bool:
        """Whether the client takes its replies: the send queue is not full."""
        return not self._paused

    async def wait_until_sendable(self) -> None:
        """Returns at once unless the send queue is full."""
        if self._paused:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
