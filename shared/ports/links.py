"""A link on a plain byte stream of the event loop: bytes go straight into the receiver's buffer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import cast

from shared.errors import UnreachableError, VmreplicaError
from shared.ports import Buffer, Peer, Receiver

HIGH_WATER = 4 << 20
"""Bytes in the send queue above which ``drain`` waits."""
READ_HINT = 256 << 10
"""Size hint for a receiver's buffer where the event loop gives none."""
STASH_BYTES = 64 << 10
"""Received before a receiver is attached; then the peer has to wait."""
LINGER_SECONDS = 5.0
"""How long a closed link may go on sending what is queued and wait for the peer to end as well."""

_DROPPED = bytearray(64 << 10)
"""Where bytes go that arrive after our own close; nobody reads it."""

# These releases let writelines pass the high-water mark (CVE-2024-12254).
WRITELINES_IS_BOUNDED = not (
    (3, 12, 0) <= sys.version_info[:3] < (3, 12, 9) or (3, 13, 0) <= sys.version_info[:3] < (3, 13, 2)
)


class StreamLink(asyncio.BufferedProtocol):
    """One TCP or unix connection without TLS (shared.ports.Link), and the base of the one with TLS.

    What arrives before ``attach`` is kept, up to one small buffer; then the peer has to wait. ``close`` sends
    what is queued, tells the peer that we end, and drops what still arrives until the peer ends too: closing
    at once would make the kernel answer late bytes with a reset, which destroys our last words on their way.
    """

    def __init__(self, peer: Peer, *, gone: Callable[[StreamLink], None] | None = None) -> None:
        self.peer = peer
        self._loop = asyncio.get_running_loop()
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._attached = False
        self._stash = bytearray()
        self._spare: bytearray | None = None
        self._into_spare = False
        self._paused = False
        self._ended = False
        self._closing = False
        self._lost = False
        self._error: Exception | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._linger: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.peer.address!r})"

    # --- shared.ports.Link ---

    def attach(self, receiver: Receiver) -> None:
        if self._attached:
            raise RuntimeError(f"{self!r} has a receiver already")
        self._attached = True
        self._receiver = receiver
        # The receiver may still be in the middle of its own construction.
        self._loop.call_soon(self._start)

    def write(self, *buffers: Buffer) -> None:
        if self._transport is None or self._closing or self._lost:
            return
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        elif WRITELINES_IS_BOUNDED:
            self._transport.writelines(buffers)
        else:
            self._transport.write(b"".join(buffers))

    async def drain(self) -> None:
        # A sender that never waits would keep the loop from sending, receiving and noticing the loss.
        await asyncio.sleep(0)
        while not (self._lost or self._writable.is_set()):
            await self._writable.wait()

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._stop_reading()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.call_soon(self._go_on)

    def close(self) -> None:
        if self._closing or self._lost or self._transport is None:
            return
        self._closing = True
        self._linger = self._loop.call_later(LINGER_SECONDS, self.abort)
        if self._ended:
            self._transport.close()
        else:
            self._start_reading()
            with contextlib.suppress(OSError):
                self._transport.write_eof()

    def abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.BufferedProtocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Those of uvloop have no base class in common with asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        if self._closing:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        if self._closing:
            return _DROPPED
        self._into_spare = self._receiver is None or self._paused
        if self._into_spare:
            self._spare = self._spare or bytearray(STASH_BYTES)
            return self._spare
        return self._receiver_buffer(sizehint if sizehint > 0 else READ_HINT)

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing or self._lost:
            return
        if self._into_spare:
            self._keep(nbytes)
        elif self._receiver is not None:
            self._guarded(self._receiver.buffer_updated, nbytes)

    def eof_received(self) -> bool:
        self._ended = True
        delivered = self._receiver is not None and not self._paused and not self._stash
        return not (self._closing or delivered)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._writable.set()
        if self._linger is not None:
            self._linger.cancel()
        if self._error is None and exc is not None and not self._closing:
            self._error = self._as_error(exc)
        self._stash.clear()
        # Some transports can't even be aborted any more.
        self._transport = None
        if self._gone is not None:
            self._gone(self)
        self._tell_loss()

    # --- parts ---

    def _keep(self, count: int) -> None:
        """Keep bytes for which there is no receiver yet, or that the event loop brought after a pause."""
        assert self._spare is not None
        self._stash += memoryview(self._spare)[:count]
        self._spare = None
        self._into_spare = False
        self._stop_reading()

    def _start(self) -> None:
        """Tell a receiver that came too late of the loss, or begin to deliver."""
        if self._lost:
            self._tell_loss()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Deliver what was kept, then go on reading, or end if the peer has."""
        self._deliver_kept()
        if self._receiver is None or self._paused or self._lost or self._closing:
            return
        if self._ended:
            self._finish()
        else:
            self._start_reading()

    def _deliver_kept(self) -> None:
        while self._stash and not (self._receiver is None or self._paused or self._lost or self._closing):
            with memoryview(self._receiver_buffer(len(self._stash))) as view:
                count = min(len(view), len(self._stash))
                view[:count] = self._stash[:count]
            del self._stash[:count]
            if not self._closing:
                self._guarded(self._receiver.buffer_updated, count)

    def _finish(self) -> None:
        """The peer has ended and all it sent is delivered."""
        if self._transport is not None:
            self._transport.close()

    def _stop_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _start_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _receiver_buffer(self, hint: int) -> memoryview | bytearray:
        assert self._receiver is not None
        try:
            return self._receiver.get_buffer(hint)
        except Exception as error:
            if self._error is None:
                self._error = error
            # uvloop does not survive its transport being closed while it asks for a buffer.
            self._closing = True
            self._loop.call_soon(self.abort)
            return _DROPPED

    def _tell_loss(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(self._error)

    def _guarded(self, call: Callable[[int], None], argument: int) -> None:
        """Call the receiver; its error ends this link and comes back to it through ``lost``."""
        try:
            call(argument)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self.abort()

    def _as_error(self, exc: Exception) -> Exception:
        if isinstance(exc, VmreplicaError):
            return exc
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc) or type(exc).__name__
        error = UnreachableError(f"The link to {self.peer.address} broke: {reason}.")
        error.__cause__ = exc
        return error
