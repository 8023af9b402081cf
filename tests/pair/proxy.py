"""A TCP proxy on loopback for tests of the link: it cuts, holds, loses, delays, slows, parts and damages what passes.

It runs in a thread of its own, so that what it does to the link goes on whatever the test waits for. Settings hold for
one direction (``up`` goes to the replica) or for all; they take effect before the call that makes them returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with which a closed socket sends a reset."""
READ_BYTES = 64 << 10
TICK_SECONDS = 0.01
"""What waits for a setting to change looks at it so often."""


@dataclass(slots=True)
class Way:
    """What happens in one direction, on all connections. Times are in seconds."""

    held: bool = False
    """Nothing is read and nothing passed on: the sender's window fills."""
    delay: float = 0.0
    rate: float = 0.0
    """Bytes a second that are passed on; 0 for as many as come."""
    piece: int = 0
    """The most that is sent in one call; 0 for as much as came."""
    window: int = 1 << 20
    """The most that is under way in the proxy, in bytes."""
    cut_after: int | None = None
    """The connections are reset when so many more bytes were passed."""
    flip_after: int | None = None
    """One bit is changed when so many more bytes were passed."""
    passed: int = 0

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What of ``data`` is passed on, and whether the connection is cut behind it."""
        cut = self.cut_after is not None and len(data) >= self.cut_after
        if cut:
            data, self.cut_after = data[: self.cut_after], None
        elif self.cut_after is not None:
            self.cut_after -= len(data)
        if self.flip_after is not None:
            if self.flip_after < len(data):
                changed = bytearray(data)
                changed[self.flip_after] ^= 1
                data, self.flip_after = bytes(changed), None
            else:
                self.flip_after -= len(data)
        self.passed += len(data)
        return data, cut


@dataclass(eq=False, slots=True)
class Connection:
    """One connection through the proxy."""

    near: socket.socket
    far: socket.socket
    held: bool = False
    """As that of a direction, for both of this connection."""
    forgotten: bool = False
    """The far host has gone without a word: what is sent to it is lost."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for task in self.tasks:
            task.cancel()


class Proxy:
    """Forwards connections to ``target``, which a test may change; ``port`` is where it listens.

    ``buffer`` bounds what the kernel keeps of each connection here, in bytes; 0 leaves it to the kernel.
    """

    def __init__(self, target: tuple[str, int], *, buffer: int = 0) -> None:
        self.target = target
        self.up, self.down = Way(), Way()
        self.refusing = False
        """New connections are reset at once."""
        self.accepted = 0
        self.connections: list[Connection] = []
        self._buffer = buffer
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(256)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # --- orders of the test ----------------------------------------------------------------------------------------

    def order(self, work: Callable[[], None]) -> None:
        """Do it in the proxy's thread; returns when it is done."""
        done = threading.Event()

        def act() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(10), "the proxy does not answer"

    def hold(self, *ways: Way) -> None:
        """Pass nothing on these ways, or on both, until ``release``: a black hole."""
        self._set_held(ways, held=True)

    def release(self, *ways: Way) -> None:
        self._set_held(ways, held=False)

    def _set_held(self, ways: tuple[Way, ...], *, held: bool) -> None:
        def act() -> None:
            for way in ways or (self.up, self.down):
                way.held = held

        self.order(act)

    def reset(self) -> None:
        """Reset all connections; new ones are taken."""

        def act() -> None:
            for connection in self.connections:
                connection.reset()

        self.order(act)

    def stall(self, *, held: bool = True) -> None:
        """Hold the present connections, or let them go; later ones are free."""

        def act() -> None:
            for connection in self.connections:
                connection.held = held

        self.order(act)

    def forget(self) -> None:
        """The far ends of all connections are gone, and the near ones are not told: half-open."""

        def act() -> None:
            for connection in self.connections:
                connection.forgotten = True
                with contextlib.suppress(OSError):
                    connection.far.shutdown(socket.SHUT_RDWR)

        self.order(act)

    def close(self) -> None:
        """End everything. Raises what went wrong in the proxy itself, if anything did."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    # --- the proxy's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        everything = [accepting, *self._tasks]
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*everything, return_exceptions=True))
        self._loop.close()
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            near, _ = await self._loop.sock_accept(self._listener)
            self.accepted += 1
            task = self._loop.create_task(self._serve(near))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, near: socket.socket) -> None:
        far = socket.socket()
        far.setblocking(False)
        near.setblocking(False)
        connection = Connection(near, far)
        self.connections.append(connection)
        try:
            if self.refusing:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return
            if self._buffer:
                for end in (near, far):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer)
            await self._loop.sock_connect(far, self.target)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ways = ((self.up, near, far), (self.down, far, near))
            connection.tasks = [self._loop.create_task(self._forward(connection, *way)) for way in ways]
            await asyncio.gather(*connection.tasks, return_exceptions=True)
        except OSError:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        finally:
            for task in connection.tasks:
                task.cancel()
            self.connections.remove(connection)
            near.close()
            far.close()

    async def _forward(self, connection: Connection, way: Way, source: socket.socket, sink: socket.socket) -> None:
        """One direction until its end. A loss is passed on as a reset, an orderly end as one."""
        queue: deque[tuple[float, bytes]] = deque()
        writing = self._loop.create_task(self._write(connection, way, queue, sink))
        connection.tasks.append(writing)
        try:
            while not writing.done():
                await self._until_open(connection, way)
                data = await self._loop.sock_recv(source, READ_BYTES)
                if connection.forgotten and source is connection.far:
                    # The near end is to believe that its peer is there.
                    await asyncio.Event().wait()
                if connection.forgotten and data:
                    continue
                queue.append((self._loop.time() + way.delay, data))
                if not data:
                    await writing
                    return
                while sum(len(piece) for _, piece in queue) > way.window and not writing.done():  # noqa: ASYNC110
                    await asyncio.sleep(TICK_SECONDS)
        except OSError:
            if connection.forgotten and source is connection.far:
                await asyncio.Event().wait()
            connection.reset()
        finally:
            writing.cancel()

    async def _write(
        self, connection: Connection, way: Way, queue: deque[tuple[float, bytes]], sink: socket.socket
    ) -> None:
        try:
            while True:
                while not queue:  # noqa: ASYNC110 - a byte at a time, an event for each would take longer
                    await asyncio.sleep(0 if way.piece else TICK_SECONDS / 10)
                due, data = queue[0]
                if (left := due - self._loop.time()) > 0:
                    await asyncio.sleep(left)
                if not data:
                    await self._until_open(connection, way)
                    with contextlib.suppress(OSError):
                        sink.shutdown(socket.SHUT_WR)
                    return
                await self._pass(connection, way, data, sink)
                queue.popleft()
        except OSError:
            if not connection.forgotten:
                connection.reset()

    async def _pass(self, connection: Connection, way: Way, data: bytes, sink: socket.socket) -> None:
        while data:
            await self._until_open(connection, way)
            size = way.piece or (max(1, int(way.rate * TICK_SECONDS)) if way.rate else len(data))
            piece, data = data[:size], data[size:]
            taken, cut = way.take(piece)
            if taken and not connection.forgotten:
                await self._loop.sock_sendall(sink, taken)
            if cut:
                connection.reset()
            if way.rate:
                await asyncio.sleep(len(piece) / way.rate)
            elif way.piece:
                await asyncio.sleep(0)

    @staticmethod
    async def _until_open(connection: Connection, way: Way) -> None:
        while way.held or connection.held:  # noqa: ASYNC110 - tests set these from their own thread
            await asyncio.sleep(TICK_SECONDS)
