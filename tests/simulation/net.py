"""Simulated streams: bytes in order with delay, cut anywhere by a reset; partitions; unix sockets within a host."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from shared.errors import UnreachableError
from shared.ports import Address, Buffer, Link, Peer, Receiver
from shared.ports.trust import Trust
from tests.simulation.loop import Process, SimulationLoop, fingerprint

WINDOW = 256 << 10
"""Bytes that a link takes before its writer has to wait: what both kernels would buffer."""


class Wire:
    """All links of the world, and what the weather does to them."""

    def __init__(self, loop: SimulationLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.heard_at: dict[str, float] = {}
        """When each host last got bytes from the other one."""
        self.slow = 0.02
        """Seconds that bytes between hosts travel at most."""
        self.hiccups = 0.0
        """The share of writes between hosts that are held up for seconds."""
        self.splits = 0.0
        """The share of writes that arrive in two pieces."""
        self.partitioned = False
        self.held: list[SimulatedLink] = []
        self.listeners: dict[str, SimulatedListener] = {}
        self.ends: dict[int, SimulatedLink] = {}
        self.numbers = 0

    def reset(self) -> None:
        """Cut the links between hosts, with what is in flight."""
        for end in list(self.ends.values()):
            if not end.local:
                end.cut(ConnectionResetError("simulated reset"))

    def partition(self) -> None:
        """From now on nothing gets from host to host; established links stay silent."""
        self.partitioned = True

    def heal(self) -> None:
        """What was sent during the partition arrives, as a kernel's retransmission would have it."""
        self.partitioned = False
        held, self.held = self.held, []
        for end in held:
            end.land_held()

    def delay(self, local: bool) -> float:
        if local:
            return self.rng.uniform(0.00001, 0.0005)
        base = self.rng.uniform(0.0005, self.slow)
        if self.hiccups and self.rng.random() < self.hiccups:
            base += self.rng.uniform(0, 3)
        return base


class SimulatedLink:
    """One end of a stream (shared.ports.Link)."""

    def __init__(self, wire: Wire, process: Process, host: str, peer: Peer, local: bool) -> None:
        self.wire = wire
        self.host = host
        self.process = process
        self.peer = peer
        self.local = local
        self.other: SimulatedLink | None = None
        self.receiver: Receiver | None = None
        self.context = process.context.copy()
        self.dead = False
        self.paused = False
        self.incoming: deque[bytes] = deque()
        self.ended = False
        self.unread = 0
        self.last_arrival = 0.0
        self.held: list[Callable[[], None]] = []
        self.drainers: list[asyncio.Future[None]] = []
        wire.numbers += 1
        self.number = wire.numbers
        wire.ends[self.number] = self
        process.on_death.append(self._process_died)

    def _process_died(self) -> None:
        # The kernel sends what was written, then the end; bytes that nobody read make it a reset.
        if self.incoming:
            self.cut(ConnectionResetError("process died"))
        else:
            self._leave()

    def vanish(self, delay: float) -> None:
        """Our host lost power: the peer hears nothing for a while, then a reset."""
        other = self.other
        self._end(None)
        if other is not None and not other.dead:
            error = ConnectionResetError("the peer's host was restarted")
            self.wire.loop.call_later(delay, other._end, error, context=contextvars.Context())

    def attach(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._soon(self._deliver)

    def _soon(self, callback: Callable[..., None], *args: Any) -> None:
        self.wire.loop.call_soon(callback, *args, context=self.context)

    # --- sending ---

    def write(self, *buffers: Buffer) -> None:
        data = b"".join(buffers)
        self.process.operation(self.number, fingerprint(data))
        if self.dead or not data:
            return
        self.unread += len(data)
        if self.wire.splits and len(data) > 1 and self.wire.rng.random() < self.wire.splits:
            cut = self.wire.rng.randrange(1, len(data))
            self._fly(self._arrive, data[:cut])
            data = data[cut:]
        self._fly(self._arrive, data)

    def _fly(self, land: Callable[..., None], *args: Any) -> None:
        loop = self.wire.loop
        self.last_arrival = max(self.last_arrival, loop.time() + self.wire.delay(self.local))
        # Bytes in flight belong to neither process: they land even if the sender dies.
        loop.call_at(self.last_arrival, self._land, land, args, context=contextvars.Context())

    def _land(self, land: Callable[..., None], args: tuple[Any, ...]) -> None:
        if (self.wire.partitioned and not self.local) or self.held:
            if not self.held:
                self.wire.held.append(self)
            self.held.append(lambda: land(*args))
        else:
            land(*args)

    def land_held(self) -> None:
        held, self.held = self.held, []
        for land in held:
            land()

    def _arrive(self, data: bytes) -> None:
        other = self.other
        if other is not None and not other.dead:
            other.incoming.append(data)
            other._soon(other._deliver)

    def _taken(self, count: int) -> None:
        """The peer read so many of our bytes."""
        self.unread -= count
        if self.unread < WINDOW:
            self._wake()

    def _wake(self) -> None:
        for future in self.drainers:
            if not future.done():
                future.set_result(None)
        self.drainers.clear()

    async def drain(self) -> None:
        self.process.operation()
        while not self.dead and self.unread >= WINDOW:
            future: asyncio.Future[None] = self.wire.loop.create_future()
            self.drainers.append(future)
            await future

    # --- receiving ---

    def _deliver(self) -> None:
        receiver, other = self.receiver, self.other
        if receiver is None:
            return
        while self.incoming and not self.paused and not self.dead:
            data = self.incoming.popleft()
            buffer = memoryview(receiver.get_buffer(len(data)))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            buffer.release()
            if count < len(data):
                self.incoming.appendleft(data[count:])
            if other is not None:
                other._taken(count)
            if not self.local:
                self.wire.heard_at[self.host] = self.wire.loop.now
            receiver.buffer_updated(count)
        if not self.incoming and self.ended:
            self._end(None)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._soon(self._deliver)

    # --- ending ---

    def close(self) -> None:
        if not self.dead and not self.process.dead:
            self._leave()

    def _leave(self) -> None:
        """Our end is closed; the peer learns of it after everything that was sent before."""
        if self.dead:
            return
        other = self.other

        def land() -> None:
            if other is not None and not other.dead:
                other.ended = True
                other._soon(other._deliver)

        self._fly(land)
        self._end(None)

    def abort(self) -> None:
        self.cut(ConnectionAbortedError("aborted"))

    def cut(self, error: Exception) -> None:
        """End both directions now; what is in flight is lost. During a partition the peer does not learn of it."""
        other = self.other
        self._end(error)
        if other is not None:
            if self.wire.partitioned and not self.local:
                if not self.held:
                    self.wire.held.append(self)
                self.held.append(lambda: other._end(error))
            else:
                other._end(error)

    def _end(self, error: Exception | None) -> None:
        if self.dead:
            return
        self.dead = True
        self.incoming.clear()
        self._wake()
        self.wire.ends.pop(self.number, None)
        if self.receiver is not None:
            self._soon(self.receiver.lost, error)


class SimulatedListener:
    """A listening address (shared.ports.Listener)."""

    def __init__(self, network: SimulatedNetwork, address: Address, key: str, accept: Callable[[Link], None]) -> None:
        self.network = network
        self.address = address
        self.key = key
        self.accept = accept

    async def close(self) -> None:
        self.forget()

    def forget(self) -> None:
        if self.network.wire.listeners.get(self.key) is self:
            del self.network.wire.listeners[self.key]


class SimulatedNetwork:
    """The network as one process sees it (shared.ports.Network)."""

    trust = Trust()

    def __init__(self, wire: Wire, process: Process, host: str, identity: Peer) -> None:
        self.wire = wire
        self.process = process
        self.host = host
        self.identity = identity

    def _key(self, address: Address) -> str:
        return f"{self.host}:{address.unix_path}" if address.unix_path else f"tcp:{address.port}"

    async def connect(self, address: Address, *, timeout: float) -> SimulatedLink:
        self.process.operation()
        local = bool(address.unix_path)
        await asyncio.sleep(self.wire.delay(local))
        if self.wire.partitioned and not local:
            await asyncio.sleep(timeout)
            raise UnreachableError(f"{address} did not answer within {timeout:g} seconds.", "Check the network.")
        listener = self.wire.listeners.get(self._key(address))
        if listener is None or listener.network.process.dead:
            raise UnreachableError(f"{address} does not answer.", "Check that the other side runs.")
        here = SimulatedLink(self.wire, self.process, self.host, listener.network.identity, local)
        network = listener.network
        there = SimulatedLink(self.wire, network.process, network.host, self.identity, local)
        here.other, there.other = there, here
        there._soon(listener.accept, there)
        return here

    async def listen(self, address: Address, accept: Callable[[Any], None]) -> SimulatedListener:
        self.process.operation()
        key = self._key(address)
        listener = SimulatedListener(self, address, key, accept)
        self.wire.listeners[key] = listener
        self.process.on_death.append(listener.forget)
        return listener
