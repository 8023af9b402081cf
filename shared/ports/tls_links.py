"""A link under TLS: records are opened and sealed here, between the event loop's stream and the receiver.

The loops' own TLS layers are not used: they send no alert when a handshake fails, so that a refused peer never
learns why, and they take an end without close_notify for an orderly one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable
from typing import cast

from shared.errors import UnreachableError, VmreplicaError
from shared.ports import Buffer, Peer
from shared.ports.links import READ_HINT, StreamLink
from shared.ports.tls import TlsContexts, check_peer
from shared.ports.tls_refusals import explain

RECORD_BYTES = 16 << 10
"""The most that a TLS record holds; small buffers written together are joined up to this size."""
SEALED_AT_ONCE = 128 << 10
"""Piece of a large buffer that goes through OpenSSL in one call; larger pieces only grow its buffers."""
READ_BYTES = 256 << 10
ANSWER_BYTES, ANSWER_SHARE = 4096, 1024
"""What TLS itself may answer after the handshake, that is to key updates: so many bytes, and one for so many that
brought something. Answers are not held up by a peer that does not read, so that they have to be bounded.
"""


class _Receiving(threading.local):
    """Where all TLS links of a thread's event loop receive; what one read brings is moved on before the next begins."""

    def __init__(self) -> None:
        self.buffer = bytearray(READ_BYTES)


_receiving = _Receiving()


class TlsLink(StreamLink):
    """One mutually authenticated TLS connection (shared.ports.Link), usable once ``secured`` returned."""

    def __init__(
        self,
        address: str,
        contexts: TlsContexts,
        *,
        server_name: str | None = None,
        gone: Callable[[StreamLink], None] | None = None,
    ) -> None:
        """``server_name`` is the host that was dialled; without one this is the server's side."""
        super().__init__(Peer(address=address), gone=gone)
        self._contexts = contexts
        self._ciphertext = _receiving.buffer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = contexts.server if server_name is None else contexts.client
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        # With a buffer to read into, the answer is a count.
        self._read_record = cast("Callable[[int, memoryview], int]", self._tls.read)
        self._shaking = True
        self._notified = False
        self._opened = 0
        self._answered = 0
        """Bytes that were received, and bytes that TLS answered by itself after the handshake."""
        self._secured: asyncio.Future[None] = self._loop.create_future()
        self.displaced = False
        """It was ended in the middle of its handshake to make room for another."""

    async def secured(self) -> None:
        """Wait for the end of the handshake; raises ForbiddenError or UnreachableError with what went wrong."""
        await self._secured

    def displace(self) -> None:
        """End it in the middle of its handshake, to make room for another one."""
        self.displaced = True
        self._settle(UnreachableError(f"{self.peer.address} gave way: too many connections were half open."))
        self.abort()

    # --- shared.ports.Link ---

    def write(self, *buffers: Buffer) -> None:
        if self._transport is None or self._closing or self._lost:
            return
        try:
            self._seal(buffers)
        except ssl.SSLError as error:
            self._fail(self._explained(error))

    def close(self) -> None:
        if not self._closing and not self._lost and not self._shaking:
            # Raises, since it also asks for the peer's close_notify; ours is on its way then.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._send_sealed()
        super().close()

    # --- asyncio.BufferedProtocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        return self._ciphertext

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing or self._lost:
            return
        with memoryview(self._ciphertext) as view:
            self._incoming.write(view[:nbytes])
        if self._shaking:
            self._shake_hands()
        elif self._receiver is None or self._paused:
            self._stop_reading()
        else:
            self._open()

    def eof_received(self) -> bool:
        self._ended = True
        self._incoming.write_eof()
        if self._shaking:
            self._shake_hands()
        elif self._receiver is not None and not self._paused and not self._closing:
            self._open()
            self._finish()
        return not self._closing

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(self._as_error(exc or ConnectionResetError("it ended in the middle of the handshake")))
        super().connection_lost(exc)

    # --- handshake ---

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_sealed()
            return
        except ssl.SSLError as error:
            # The alert that says why.
            self._send_sealed()
            self._refuse(self._explained(error))
            return
        self._send_sealed()
        self._shaking = False
        try:
            self.peer = check_peer(self._tls, self.peer.address)
        except (VmreplicaError, ValueError) as error:
            self._refuse(error)
            return
        if self._secured.done():
            # Whoever waited was cancelled.
            self.abort()
        else:
            self._secured.set_result(None)

    def _refuse(self, error: Exception) -> None:
        """End a handshake that failed, in order, so that the alert arrives."""
        self._settle(error)
        StreamLink.close(self)

    def _settle(self, error: Exception) -> None:
        """Give the outcome to whoever waits for it; nobody waiting is no error of its own."""
        self._shaking = False
        if not self._secured.done():
            self._secured.set_exception(error)
            self._secured.exception()

    # --- records ---

    def _go_on(self) -> None:
        if not self._shaking:
            self._open()
            super()._go_on()

    def _finish(self) -> None:
        """The peer has ended: in order only if it said so, since anybody on the way can cut a stream."""
        if not self._notified and not self._closing:
            self._fail(
                UnreachableError(
                    f"The link to {self.peer.address} was cut: it ended without a TLS close_notify.",
                    "If this repeats, look for a proxy or firewall between the hosts.",
                )
            )
        super()._finish()

    def _open(self) -> None:
        """Open what has arrived into the receiver's buffers, as much at a time as they hold."""
        while self._may_deliver() and not self._notified and (self._incoming.pending or self._tls.pending()):
            assert self._receiver is not None
            with memoryview(self._receiver_buffer(self._incoming.pending or READ_HINT)) as view:
                filled, failure = self._open_into(view)
            self._opened += filled
            if filled and not self._closing:
                self._guarded(self._receiver.buffer_updated, filled)
            if failure is not None:
                self._give_up(self._explained(failure))
            if filled == 0:
                break
        # A record may have asked for an answer, or deserved an alert.
        self._answer()
        if self._notified and not self._closing:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._send_sealed()
            self._finish()

    def _answer(self) -> None:
        self._answered += self._outgoing.pending
        if self._answered > ANSWER_BYTES + self._opened // ANSWER_SHARE and not (self._closing or self._lost):
            self._outgoing.read()
            self._give_up(
                UnreachableError(
                    f"{self.peer.address} asks for TLS key updates without an end.",
                    "Is it a vmreplica agent? Those never do.",
                )
            )
        self._send_sealed()

    def _give_up(self, error: VmreplicaError) -> None:
        """End a link whose records can't be opened, in an order in which the alert that says why arrives."""
        if self._error is None:
            self._error = error
        self._send_sealed()
        # Without the close_notify that ours would send.
        StreamLink.close(self)
        self._tell_loss()

    def _open_into(self, view: memoryview) -> tuple[int, ssl.SSLError | None]:
        """Open whole records into ``view`` while there are any; the bytes filled, and what ended it."""
        filled = 0
        try:
            while filled < len(view) and (filled == 0 or self._incoming.pending):
                with view[filled:] as rest:
                    count = self._read_record(len(rest), rest)
                if count == 0:
                    self._notified = True
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._notified = True
        except ssl.SSLError as error:
            return filled, error
        return filled, None

    def _may_deliver(self) -> bool:
        return not (self._receiver is None or self._paused or self._lost or self._closing)

    def _seal(self, buffers: tuple[Buffer, ...]) -> None:
        small: list[Buffer] = []
        size = 0
        for buffer in buffers:
            length = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
            if size + length > RECORD_BYTES:
                self._seal_small(small)
                small, size = [], 0
            if length > RECORD_BYTES:
                self._seal_large(buffer)
            elif length:
                small.append(buffer)
                size += length
        self._seal_small(small)

    def _seal_small(self, buffers: list[Buffer]) -> None:
        if buffers:
            self._tls.write(buffers[0] if len(buffers) == 1 else b"".join(buffers))
            self._send_sealed()

    def _seal_large(self, buffer: Buffer) -> None:
        with memoryview(buffer) as whole, whole.cast("B") as view:
            for start in range(0, len(view), SEALED_AT_ONCE):
                with view[start : start + SEALED_AT_ONCE] as piece:
                    self._tls.write(piece)
                self._send_sealed()

    def _send_sealed(self) -> None:
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())

    def _explained(self, error: ssl.SSLError) -> VmreplicaError:
        return explain(error, self.peer.address, self._contexts, self._tls, secured=not self._shaking)
