"""JSON-RPC client over one link: concurrent calls, typed errors, notifications, and a known end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Self

from shared.admin.codec import (
    CLIENT_MESSAGE_MAX,
    Failure,
    Malformed,
    MessageReader,
    Notification,
    Request,
    RequestId,
    Result,
    encode,
)
from shared.admin.failures import error_of
from shared.errors import UnreachableError, VmreplicaError
from shared.ports import Address, Link, Network

RECEIVE_BUFFER = 256 << 10
NOTIFICATIONS_HELD_MAX = 1000
"""Notifications held for :meth:`JsonRpcClient.notifications`; above it, reading stops until some are taken."""

OnNotification = Callable[[str, dict[str, Any]], None]


class JsonRpcClient:
    """One connection to a server. Made by :meth:`connect`; ended by either side, ``closed`` tells.

    Notifications go to the ``on_notification`` given to :meth:`connect`, called on the event loop in order,
    or else to the iterators of :meth:`notifications`; without either they are dropped.
    """

    def __init__(self, link: Link, address: Address, on_notification: OnNotification | None = None) -> None:
        self.address = address
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended, for whatever reason; it has no exception."""
        self.error: VmreplicaError | None = None
        """Why the connection ended, where it was not closed in order."""
        self._link = link
        self._on_notification = on_notification
        self._reader = MessageReader(CLIENT_MESSAGE_MAX)
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._calls: dict[RequestId, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._iterated = False
        self._held: deque[tuple[str, dict[str, Any]]] = deque()
        self._news = asyncio.Event()
        self._paused = False

    @classmethod
    async def connect(
        cls,
        network: Network,
        address: Address,
        timeout: float,
        *,
        on_notification: OnNotification | None = None,
    ) -> Self:
        """Raises UnreachableError when nobody answers within ``timeout`` seconds."""
        link = await network.connect(address, timeout=timeout)
        client = cls(link, address, on_notification)
        link.attach(client)
        return client

    async def call(self, method: str, params: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """The method's result, as plain JSON values.

        Raises the server's error as the class it had there, and UnreachableError when the connection ends or
        no answer comes within ``timeout`` seconds (None: waits as long as the connection lives).
        """
        if self.closed.done():
            raise self._ended()
        self._last_id += 1
        identity = self._last_id
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[identity] = answer
        try:
            self._link.write(encode(Request(identity, method, dict(params or {}))))
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise UnreachableError(
                f"{self.address} did not answer {method} within {timeout:g} seconds.",
                "Check that the agent is not overloaded, and try again.",
            ) from None
        finally:
            del self._calls[identity]

    async def notifications(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Method and params of each notification from the first step of the iteration on, until the end."""
        self._iterated = True
        while True:
            while self._held:
                yield self._held.popleft()
                if self._paused and len(self._held) < NOTIFICATIONS_HELD_MAX // 2:
                    self._paused = False
                    self._link.resume()
            if self.closed.done():
                return
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """End the connection; calls under way fail with UnreachableError."""
        self._link.close()
        self.lost(None)

    # --- shared.ports.Receiver

    def get_buffer(self, size_hint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        for message in self._reader.feed(memoryview(self._buffer)[:count]):
            match message:
                case Result(id=identity, value=value):
                    self._settle(identity, value)
                case Failure(id=None):
                    self._fail(error_of(message))
                case Failure(id=identity):
                    self._settle(identity, error_of(message))
                case Notification(method=method, params=params):
                    self._notified(method, params)
                case Request(method=method):
                    self._fail(UnreachableError(f"{self.address} sent a request ({method}) to its client."))
                case Malformed(text=text):
                    self._fail(UnreachableError(f"{self.address} does not speak JSON-RPC. {text}"))

    def lost(self, error: Exception | None) -> None:
        if self.closed.done():
            return
        if error is not None and self.error is None:
            self.error = (
                error
                if isinstance(error, VmreplicaError)
                else UnreachableError(f"The connection to {self.address} broke: {error}")
            )
        self.closed.set_result(None)
        self._news.set()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(self._ended())

    # --- inner parts

    def _ended(self) -> VmreplicaError:
        return self.error or UnreachableError(
            f"{self.address} closed the connection.", "Check that the agent runs, and see its log."
        )

    def _fail(self, error: VmreplicaError) -> None:
        self.error = self.error or error
        self._link.abort()
        self.lost(None)

    def _settle(self, identity: RequestId | None, outcome: Any) -> None:
        answer = self._calls.get(identity) if identity is not None else None
        # The answer to a call that was given up is of no use to anybody.
        if answer is None or answer.done():
            return
        if isinstance(outcome, VmreplicaError):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _notified(self, method: str, params: dict[str, Any]) -> None:
        if self._on_notification is not None:
            self._on_notification(method, params)
        elif self._iterated:
            self._held.append((method, params))
            self._news.set()
            if len(self._held) >= NOTIFICATIONS_HELD_MAX and not self._paused:
                self._paused = True
                self._link.pause()
