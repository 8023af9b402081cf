"""JSON-RPC server over a listening address: bounded clients, each with its own requests and notifications."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import structlog

from shared.admin.access import Authorize
from shared.admin.codec import (
    CLIENT_MESSAGE_MAX,
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    SERVER_MESSAGE_MAX,
    Failure,
    Malformed,
    MessageReader,
    Notification,
    Request,
    Result,
    encode,
)
from shared.admin.failures import failure_of, rpc_failure
from shared.admin.methods import Method
from shared.errors import ForbiddenError, VmreplicaError
from shared.ports import Address, Link, Listener, Network, Peer

REQUESTS_AT_ONCE_MAX = 16
"""Requests of one client that run at the same time; further ones wait unread."""
ANSWERS_QUEUED_MAX = 1 << 20
"""Bytes of unsent output above which no further request of that client is begun."""
NOTIFICATIONS_QUEUED_MAX = 1000
"""Unsent notifications of one client; one more ends the client, so that it never misses one unknowingly."""
STALLED_SECONDS = 30.0
"""A client that takes no byte of its output for so long is ended."""

Refused = Callable[[Request, Peer, ForbiddenError], Awaitable[None]]

log = structlog.get_logger(__name__)


class Client:
    """One connected client: reads requests, runs them, and sends answers and notifications in order."""

    def __init__(self, server: JsonRpcServer, link: Link) -> None:
        self.peer: Peer = link.peer
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._server = server
        self._link = link
        self._reader = MessageReader(SERVER_MESSAGE_MAX)
        self._buffer = bytearray(SERVER_MESSAGE_MAX)
        self._waiting: deque[Request] = deque()
        self._running = 0
        self._paused = False
        self._ending = False
        # Unsent lines in order. A line with a key is replaced by the next one with the same key.
        self._outbox: dict[object, bytes] = {}
        self._outbox_bytes = 0
        self._notifications = 0
        self._output = asyncio.Event()

    @property
    def ending(self) -> bool:
        """Nothing more is read of it."""
        return self._ending

    # --- what methods use

    def notify(self, method: str, params: Mapping[str, Any], *, replaces: str | None = None) -> None:
        """Queue a notification; a no-op after the client went away.

        An unsent notification with the same ``replaces`` is dropped in favour of this one: for what is only
        of interest as it stands now, so that a slow client gets fewer but current ones.
        """
        if self.closed.done() or self._ending:
            return
        line = encode(Notification(method, dict(params)))
        key: object = object() if replaces is None else replaces
        replaced = self._outbox.pop(key, None)
        if replaced is None:
            self._notifications += 1
        else:
            self._outbox_bytes -= len(replaced)
        if self._notifications > NOTIFICATIONS_QUEUED_MAX:
            log.warning("admin client too slow for its notifications", peer=self.peer.pid)
            self.abort()
            return
        self._queue(key, line)

    def on_closed(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once when the client is gone; at the next turn of the loop if it already is."""
        self.closed.add_done_callback(lambda _: callback())

    # --- shared.ports.Receiver

    def get_buffer(self, size_hint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        if self._ending:
            return
        for message in self._reader.feed(memoryview(self._buffer)[:count]):
            match message:
                case Request():
                    self._waiting.append(message)
                case Malformed():
                    self.answer(rpc_failure(message.id, message.code, message.text))
                    if message.fatal:
                        self.end()
                        return
                case Notification() | Result() | Failure():
                    # A server has no use for these; by JSON-RPC a notification never gets an answer.
                    pass
        self._begin_requests()

    def lost(self, error: Exception | None) -> None:
        self._waiting.clear()
        if not self.closed.done():
            self.closed.set_result(None)
        self._output.set()

    # --- requests

    def _begin_requests(self) -> None:
        if self._ending or self.closed.done():
            return
        while self._waiting and self._running < REQUESTS_AT_ONCE_MAX and not self._output_is_full():
            self._running += 1
            self._server.own(self, partial(self._serve, self._waiting.popleft()))
        wait = bool(self._waiting) or self._output_is_full()
        if wait != self._paused:
            self._paused = wait
            if wait:
                self._link.pause()
            else:
                self._link.resume()

    def _output_is_full(self) -> bool:
        return self._outbox_bytes > ANSWERS_QUEUED_MAX

    async def _serve(self, request: Request) -> None:
        try:
            self.answer(await self._server.perform(request, self))
        finally:
            self._running -= 1
            self._begin_requests()

    # --- output

    def answer(self, message: Result | Failure) -> None:
        """Queue an answer; a value that can't be sent becomes an internal error."""
        try:
            line = encode(message)
            if len(line) > CLIENT_MESSAGE_MAX:
                raise ValueError(f"the answer has {len(line)} bytes, more than {CLIENT_MESSAGE_MAX}")
        except (TypeError, ValueError, RecursionError):
            log.exception("an answer can't be sent", request=message.id)
            line = encode(internal_failure(message.id))
        self._queue(object(), line)

    def _queue(self, key: object, line: bytes) -> None:
        if self.closed.done():
            return
        self._outbox[key] = line
        self._outbox_bytes += len(line)
        self._output.set()

    def end(self) -> None:
        """Send what is queued, then close; nothing more is read."""
        self._ending = True
        self._waiting.clear()
        self._output.set()

    def abort(self) -> None:
        """End at once."""
        self._ending = True
        self._waiting.clear()
        self._link.abort()

    async def send_output(self) -> None:
        """Send queued lines until the client is gone; owned by the server."""
        while not self.closed.done():
            await self._output.wait()
            self._output.clear()
            self.send_queued()
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await self._link.drain()
                    if self._ending:
                        self._link.close()
                        await asyncio.wait({self.closed})
            except TimeoutError:
                log.warning("admin client takes no output; ending it", peer=self.peer.pid)
                self.abort()
                return
            self._begin_requests()

    def finish(self) -> None:
        """Send what is queued and close, without waiting."""
        self.send_queued()
        self._link.close()
        self.lost(None)

    def send_queued(self) -> None:
        """Hand all queued lines to the link."""
        lines = list(self._outbox.values())
        self._outbox.clear()
        self._outbox_bytes = self._notifications = 0
        if lines:
            self._link.write(*lines)


def internal_failure(identity: int | str | None) -> Failure:
    """The neutral answer to a request that failed unexpectedly."""
    return rpc_failure(
        identity, INTERNAL_ERROR, "The request failed unexpectedly.", "See the agent's log for the reason."
    )


class JsonRpcServer:
    """Serves ``methods`` at ``address``.

    Each request is first put to ``authorize(peer, method)``, which raises ForbiddenError to refuse it, of which
    ``refused`` is told; an unknown method is looked up only afterwards. Requests of one client begin in the order they
    came and run beside each other. One user other than root has at most ``max_user_clients``, so that nobody can keep
    the others out. Requests run to their end even if the client goes away.
    """

    def __init__(
        self,
        network: Network,
        address: Address,
        methods: Mapping[str, Method],
        *,
        authorize: Authorize,
        refused: Refused | None = None,
        max_clients: int = 64,
        max_user_clients: int | None = None,
    ) -> None:
        self.address = address
        self._network = network
        self._methods = methods
        self._authorize = authorize
        self._refused = refused
        self._max_clients = max_clients
        self._max_user_clients = max_user_clients or max_clients
        self._listener: Listener | None = None
        # In the order of their coming, so that what is done for all of them has one order.
        self._clients: dict[Client, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def clients(self) -> frozenset[Client]:
        """The clients that are connected now."""
        return frozenset(self._clients)

    async def start(self) -> None:
        """Listen. Raises what ``Network.listen`` raises."""
        self._listener = await self._network.listen(self.address, self._accept)
        self.address = self._listener.address

    async def close(self) -> None:
        """Stop listening, cancel running requests, send queued answers, and close all clients.

        A method whose work must not be cancelled half-way hands it to a task of its own part of the program.
        Not to be called from within a method: it would wait for itself.
        """
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        clients = list(self._clients)
        for client in clients:
            client.end()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            client.finish()

    def own(self, client: Client, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work()`` for ``client`` as a task of this server, cancelled and awaited by :meth:`close`."""

        async def guarded() -> None:
            try:
                await work()
            except Exception:
                log.exception("serving an admin client failed; ending it", peer=client.peer.pid)
                client.abort()

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, link: Link) -> None:
        client = Client(self, link)
        link.attach(client)
        limit = self._max_clients if client.peer.uid == 0 else self._max_user_clients
        same = [each for each in self._clients if each.peer.uid == client.peer.uid]
        # Who was told that there is no place may linger for a while.
        if len(self._clients) >= 2 * self._max_clients or len(same) >= 2 * limit:
            client.abort()
            return
        if _serving(self._clients) >= self._max_clients or _serving(same) >= limit:
            text = f"{self.address} already serves {self._max_clients} clients, or {limit} of this user."
            busy = VmreplicaError(text, "Close one of them and try again.", code="busy")
            client.answer(failure_of(None, busy))
            client.end()
        self._clients[client] = None
        client.on_closed(lambda: self._clients.pop(client, None))
        self.own(client, client.send_output)

    async def perform(self, request: Request, client: Client) -> Result | Failure:
        """Authorize and run one request; every outcome is an answer."""
        try:
            try:
                self._authorize(client.peer, request.method)
            except ForbiddenError as error:
                if self._refused is not None:
                    await self._refused(request, client.peer, error)
                raise
            method = self._methods.get(request.method)
            if method is None:
                text = f"The agent at {self.address} has no method {request.method}."
                return rpc_failure(request.id, METHOD_NOT_FOUND, text)
            return Result(request.id, await method(request.params, client))
        except VmreplicaError as error:
            return failure_of(request.id, error)
        except Exception:
            log.exception("an admin request failed", method=request.method, peer=client.peer.pid)
            return internal_failure(request.id)


def _serving(clients: Iterable[Client]) -> int:
    """Those that may still ask something."""
    return sum(not client.ending for client in clients)
