"""Simulated streams: bytes in order with delay, cut anywhere by a reset; partitions; unix sockets within a host."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from typing import Any

from shared.errors import UnreachableError
from shared.ports import Address, Buffer, Link, Peer, Receiver
from tests.simulation.loop import CURRENT, Process, SimulationLoop

HIGH_WATER = 256 << 10


class Wire:
    """All links of the world, and what the weather does to them."""

    def __init__(self, loop: SimulationLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.partitioned = False
        self.slow = 0.02
        self.listeners: dict[str, SimulatedListener] = {}
        self.ends: list[SimulatedLink] = []

    def reset(self, *, everything: bool = False) -> None:
        """Cut the links between hosts (or really all), with what is in flight."""
        for end in list(self.ends):
            if everything or not end.local:
                end.cut(ConnectionResetError("simulated reset"))

    def delay(self, local: bool) -> float:
        if local:
            return self.rng.uniform(0.00001, 0.0005)
        base = self.rng.uniform(0.0005, self.slow)
        return base + (self.rng.uniform(0, 2) if self.rng.random() < 0.002 else 0)


class SimulatedLink:
    """One end of a stream (shared.ports.Link)."""

    def __init__(self, wire: Wire, process: Process, peer: Peer, local: bool) -> None:
        self.wire = wire
        self.process = process
        self.peer = peer
        self.local = local
        self.other: SimulatedLink | None = None
        self.receiver: Receiver | None = None
        self.context = contextvars.copy_context()
        self.context.run(CURRENT.set, process)
        self.dead = False
        self.error: Exception | None = None
        self.paused = False
        self.incoming: list[bytes] = []
        self.ended = False
        self.flying = 0
        self.last_arrival = 0.0
        self.drainers: list[asyncio.Future[None]] = []
        wire.ends.append(self)
        process.on_death.append(lambda: self.cut(ConnectionResetError("process died")))

    def attach(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.wire.loop.call_soon(self._deliver, context=self.context)

    def write(self, *buffers: Buffer) -> None:
        self.process.operation()
        if self.dead:
            return
        data = b"".join(bytes(piece) for piece in buffers)
        self.flying += len(data)
        self._fly(lambda: self._arrive(data))

    def _fly(self, land: Callable[[], None]) -> None:
        loop = self.wire.loop
        self.last_arrival = max(self.last_arrival, loop.time() + self.wire.delay(self.local))
        # Bytes in flight belong to neither process: they land even if the sender dies.
        loop.call_at(self.last_arrival, land, context=contextvars.Context())

    def _arrive(self, data: bytes) -> None:
        self.flying -= len(data)
        if self.flying < HIGH_WATER:
            self._wake()
        if self.other is not None and not self.other.dead:
            self.other.incoming.append(data)
            self.other.wake_reader()

    def _wake(self) -> None:
        for future in self.drainers:
            if not future.done():
                future.set_result(None)
        self.drainers.clear()

    def wake_reader(self) -> None:
        self.wire.loop.call_soon(self._deliver, context=self.context)

    def _deliver(self) -> None:
        while self.receiver is not None and self.incoming and not self.paused and not self.dead:
            data = self.incoming.pop(0)
            view = memoryview(data)
            while view and not self.dead:
                buffer = memoryview(self.receiver.get_buffer(len(view)))
                count = min(len(buffer), len(view))
                buffer[:count] = view[:count]
                buffer.release()
                self.receiver.buffer_updated(count)
                view = view[count:]
                if self.paused and view:
                    self.incoming.insert(0, bytes(view))
                    break
        if self.receiver is not None and not self.incoming and self.ended:
            self.cut(None)

    async def drain(self) -> None:
        self.process.operation()
        while not self.dead and self.flying >= HIGH_WATER:
            future: asyncio.Future[None] = self.wire.loop.create_future()
            self.drainers.append(future)
            await future

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.wake_reader()

    def close(self) -> None:
        if self.dead or self.process.dead:
            return
        other = self.other

        def land() -> None:
            if other is not None and not other.dead:
                other.ended = True
                other.wake_reader()

        self._fly(land)
        self._end(None)

    def abort(self) -> None:
        self.cut(ConnectionAbortedError("aborted"))

    def cut(self, error: Exception | None) -> None:
        """End both directions now; what is in flight is lost."""
        other = self.other
        self._end(error)
        if other is not None:
            other._end(error)

    def _end(self, error: Exception | None) -> None:
        if self.dead:
            return
        self.dead = True
        self.error = error
        self.incoming.clear()
        self._wake()
        if self in self.wire.ends:
            self.wire.ends.remove(self)
        if self.receiver is not None:
            self.wire.loop.call_soon(self.receiver.lost, error, context=self.context)


class SimulatedListener:
    """A listening address (shared.ports.Listener)."""

    def __init__(self, network: SimulatedNetwork, address: Address, key: str, accept: Callable[[Link], None]) -> None:
        self.network = network
        self.address = address
        self.key = key
        self.accept = accept
        self.context = contextvars.copy_context()

    async def close(self) -> None:
        if self.network.wire.listeners.get(self.key) is self:
            del self.network.wire.listeners[self.key]


class SimulatedNetwork:
    """The network as one process sees it (shared.ports.Network)."""

    def __init__(self, wire: Wire, process: Process, host: str, identity: Peer) -> None:
        self.wire = wire
        self.process = process
        self.host = host
        self.identity = identity

    def _key(self, address: Address) -> str:
        if address.unix_path:
            return f"{self.host}:{address.unix_path}"
        return f"tcp:{address.port}"

    async def connect(self, address: Address, *, timeout: float) -> SimulatedLink:
        self.process.operation()
        local = bool(address.unix_path)
        await asyncio.sleep(self.wire.delay(local))
        listener = self.wire.listeners.get(self._key(address))
        if listener is None or listener.network.process.dead or (self.wire.partitioned and not local):
            raise UnreachableError(f"{address} does not answer.", "Check the other side.")
        here = SimulatedLink(self.wire, self.process, listener.network.identity, local)
        there = SimulatedLink(self.wire, listener.network.process, self.identity, local)
        here.other, there.other = there, here
        self.wire.loop.call_soon(listener.accept, there, context=there.context)
        return here

    async def listen(self, address: Address, accept: Callable[[Any], None]) -> SimulatedListener:
        self.process.operation()
        key = self._key(address)
        listener = SimulatedListener(self, address, key, accept)
        self.wire.listeners[key] = listener

        def forget() -> None:
            if self.wire.listeners.get(key) is listener:
                del self.wire.listeners[key]

        self.process.on_death.append(forget)
        return listener
