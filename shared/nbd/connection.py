"""One client's connection: an asyncio protocol that does every request of a socket read and answers with one write."""

from __future__ import annotations

import asyncio
import select
from dataclasses import dataclass, replace
from typing import Protocol, cast

from shared.nbd import replies
from shared.nbd.backend import ExportBackend, ExportDirectory
from shared.nbd.changing import ChangeQueue, Changes
from shared.nbd.constants import Command
from shared.nbd.ending import Ending, EndReason
from shared.nbd.flushing import FlushGate
from shared.nbd.handshake import Handshake, Selection
from shared.nbd.latency import LatencyMeter
from shared.nbd.memory import MemoryBudget
from shared.nbd.querying import LARGE_READ, QueryRunner
from shared.nbd.receiving import Inbox
from shared.nbd.requests import Batch, Query, RequestParser
from shared.nbd.sending import Outbox

MAXIMUM_PENDING = 1024
"""Requests of one connection that wait for something; at this many we stop reading."""
LINGER_SECONDS = 5.0
"""How long a connection that was ended may take to receive its last replies."""
_HANDSHAKE_HEADER = 1
"""A handshake message may be short; one more byte is always progress."""


@dataclass(slots=True)
class ConnectionStatistics:
    """What one connection has done so far. ``export`` is empty during the handshake; payload bytes are counted."""

    peer: str
    export: str = ""
    requests: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class Host(Protocol):
    """The server, as its connections see it."""

    directory: ExportDirectory
    budget: MemoryBudget
    latency: LatencyMeter
    handshake_timeout: float
    draining: bool
    closing: bool

    def admit(self, connection: Connection) -> Ending | None:
        """Count the connection in, or say why not."""

    def enter(self, connection: Connection, export: ExportBackend) -> tuple[FlushGate, list[asyncio.Future[None]]]:
        """The export's flush gate, and what must be over before the connection may begin."""

    def leave(self, connection: Connection) -> None:
        """The connection is gone."""

    def describe(self, transport: asyncio.BaseTransport) -> str:
        """Who is at the other end."""


class Connection(asyncio.BufferedProtocol):
    """Reads, parses, performs and answers; stops reading whenever something has to wait."""

    def __init__(self, host: Host) -> None:
        self._statistics = ConnectionStatistics("")
        self.ending: Ending | None = None
        self.export: ExportBackend | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the transport is gone."""
        self._host = host
        self._latency = host.latency
        self._loop = asyncio.get_running_loop()
        self._handshake: Handshake | None = Handshake(host.directory, lambda: host.closing)
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._abandoned = False
        self._predecessors: set[asyncio.Future[None]] = set()
        self._flushing = 0
        self._goodbye: Ending | None = None
        self._needed = _HANDSHAKE_HEADER

    @property
    def statistics(self) -> ConnectionStatistics:
        """A copy that stays as it is."""
        return replace(self._statistics, bytes_read=self._outbox.bytes_read)

    # --- the transport's calls --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._statistics.peer = self._host.describe(transport)
        self._outbox = Outbox(self._transport)
        self._inbox = Inbox(self._host.budget, self._receive_progress, self._stalled, self._advance)
        refusal = self._host.admit(self)
        if refusal is not None:
            self._end(refusal, abort=True)
            return
        self._timer = self._loop.call_later(self._host.handshake_timeout, self._handshake_timed_out)
        assert self._handshake is not None
        self._outbox.put(self._handshake.greeting())
        self._outbox.send_out()
        self._inbox.arrange(self._needed)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox.room()

    def buffer_updated(self, nbytes: int) -> None:
        inbox = self._inbox
        inbox.received(nbytes)
        # A large payload comes in many pieces: nothing to do before its last one.
        if inbox.end - inbox.start >= self._needed:
            self._advance()

    def eof_received(self) -> None:
        inside = self._inbox.end - self._inbox.start
        detail = f"inside a message, after {inside} bytes of it" if inside else ""
        self._end(Ending(EndReason.CLOSED_BY_CLIENT, detail))

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()
        if self.export is not None:
            self._queries.start()
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ending is None:
            reason = EndReason.CLOSED_BY_CLIENT if exc is None else EndReason.TRANSPORT_FAILED
            self.ending = Ending(reason, "" if exc is None else str(exc))
        self.abandon()
        if self._timer is not None:
            self._timer.cancel()
        self._inbox.close()
        self._host.leave(self)
        self.lost.set_result(None)

    # --- the heart --------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do all that the received bytes allow, send the answers, and read on only if there's room for more."""
        inbox = self._inbox
        # Each round takes something, or learns that more bytes are needed than there are.
        while inbox.end - inbox.start >= self._needed and self._able():
            try:
                if self._handshake is not None:
                    self._shake_hands(self._handshake)
                else:
                    self._serve()
            except Exception as error:
                # Whatever an export raises against its promise ends this connection only.
                self._fail(error)
            self._outbox.send_out()
        self._outbox.send_out()
        if self._goodbye is not None and not self._pending():
            self._end(self._goodbye)
        reading = self._able() and inbox.arrange(self._needed)
        if reading is not self._reading and self.ending is None:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _able(self) -> bool:
        """Whether another request may begin."""
        return (
            self._outbox.sendable()
            and self.ending is None
            and self._goodbye is None
            and not self._predecessors
            and self._pending() < MAXIMUM_PENDING
        )

    def _pending(self) -> int:
        if self.export is None:
            return 0
        return self._flushing + self._changes.pending + self._queries.pending

    def _shake_hands(self, handshake: Handshake) -> None:
        inbox = self._inbox
        step = handshake.advance(inbox.view, inbox.start, inbox.end)
        if step is None:
            self._needed = inbox.end - inbox.start + _HANDSHAKE_HEADER
            return
        inbox.start += step.consumed
        self._needed = _HANDSHAKE_HEADER
        if step.reply:
            self._outbox.put(step.reply)
        if step.ending is not None:
            self._outbox.send_out()
            self._end(step.ending)
        elif handshake.selection is not None:
            self._begin(handshake.selection)

    def _begin(self, selection: Selection) -> None:
        """From the handshake to the transmission phase."""
        export = selection.export
        self._handshake = None
        self._cancel_timer()
        self._outbox.structured = selection.structured
        self._parser = RequestParser(
            export.size,
            read_only=export.read_only,
            structured=selection.structured,
            allocation=selection.allocation,
        )
        self._needed = self._parser.needed
        self._changes = ChangeQueue(export, self._inbox, self._answer_changes, self._wake, self._fail)
        self._queries = QueryRunner(
            export,
            self._outbox,
            self._host.budget,
            self._latency,
            wake=self._wake,
            stalled=self._stalled,
            failed=self._fail,
        )
        self._gate, predecessors = self._host.enter(self, export)
        self.export = export
        self._statistics.export = export.name
        for predecessor in predecessors:
            if not predecessor.done():
                self._predecessors.add(predecessor)
                predecessor.add_done_callback(self._predecessor_done)

    def _predecessor_done(self, predecessor: asyncio.Future[None]) -> None:
        self._predecessors.discard(predecessor)
        self._advance()

    def _serve(self) -> None:
        """Perform one batch of requests."""
        inbox = self._inbox
        batch = Batch(begun=self._latency.now())
        self._latency.passes += 1
        inbox.start = self._parser.parse(inbox.view, inbox.start, inbox.end, batch, draining=self._host.draining)
        self._needed = self._parser.needed
        self._statistics.requests += batch.count()
        if batch.mutations or batch.flushes:
            self._statistics.bytes_written += batch.payload
            self._changes.submit(batch)
        if batch.reads:
            self._read(batch.reads, batch.begun)
        for query in batch.queries:
            self._queries.submit(query)
        for refusal in batch.refusals:
            self._outbox.put_failure(refusal.cookie, refusal.error, refusal.text)
        if batch.ending is not None:
            if batch.ending.reason is EndReason.DISCONNECTED:
                self._goodbye = batch.ending
            else:
                self._outbox.send_out()
                self._end(batch.ending)

    def _read(self, reads: list[tuple[bytes, int, int]], begun: float) -> None:
        """Answer hot reads at once; let the others run."""
        export = self.export
        assert export is not None
        hot = 0
        for cookie, offset, length in reads:
            data = export.read_cached(offset, length) if length <= LARGE_READ else None
            if data is not None and len(data) == length:
                self._outbox.put_data(cookie, offset, data)
                hot += 1
            else:
                self._queries.submit(Query(Command.READ, cookie, offset, length, begun=begun))
        if hot:
            self._latency.reads.add(hot, begun)

    # --- changes ----------------------------------------------------------------------------------------------------

    def _answer_changes(self, changes: Changes) -> None:
        """Answer mutations that were performed; those with FUA, and FLUSHes, when a flush has followed."""
        cookies = changes.cookies
        durable = changes.flushes
        if changes.fua or [mutation for mutation in changes.mutations if mutation.error]:
            cookies = []
            durable = list(durable)
            for mutation, cookie in zip(changes.mutations, changes.cookies, strict=True):
                if mutation.error:
                    text = f"{mutation.kind.value} of {mutation.length} bytes at {mutation.offset} failed"
                    self._outbox.put_failure(cookie, mutation.error, text)
                else:
                    (durable if mutation.fua else cookies).append(cookie)
        if cookies:
            self._outbox.put(replies.done(cookies))
            self._latency.changes.add(len(cookies), changes.begun)
        if durable:
            self._flush(durable, changes.begun)

    def _flush(self, cookies: list[bytes], begun: float) -> None:
        self._flushing += len(cookies)

        def answer(error: int) -> None:
            self._flushing -= len(cookies)
            if error:
                for cookie in cookies:
                    self._outbox.put_failure(cookie, error, "flush failed")
            else:
                self._outbox.put(replies.done(cookies))
            self._latency.flushes.add(len(cookies), begun)
            self._advance()

        self._gate.request(answer)

    # --- ends -------------------------------------------------------------------------------------------------------

    def _end(self, ending: Ending, *, abort: bool = False) -> None:
        """Close the connection for this reason, after its last replies; the first reason stands."""
        if self.ending is None:
            self.ending = ending
            self._cancel_timer()
        if abort:
            self._transport.abort()
        elif not self._transport.is_closing():
            self._transport.close()
            self._timer = self._loop.call_later(LINGER_SECONDS, self._transport.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _handshake_timed_out(self) -> None:
        detail = f"no export selected within {self._host.handshake_timeout:g} s"
        self._end(Ending(EndReason.HANDSHAKE_TIMEOUT, detail), abort=True)

    def _stalled(self) -> None:
        detail = "it held memory for a large request and moved no byte while others waited"
        self._end(Ending(EndReason.STALLED, detail), abort=True)

    def _fail(self, error: BaseException) -> None:
        """An export raised what it must not raise: this connection ends, and the loop's handler is told."""
        if isinstance(error, asyncio.CancelledError) and self.ending is not None:
            return
        self._loop.call_exception_handler(
            {"message": f"NBD export {self._statistics.export!r} failed", "exception": error, "protocol": self}
        )
        self._end(Ending(EndReason.INTERNAL_ERROR, f"{type(error).__name__}: {error}"), abort=True)

    def say_goodbye(self, ending: Ending) -> None:
        """Begin no further request; end when everything under way was answered."""
        if self._goodbye is None:
            self._goodbye = ending
        self._advance()

    def abort(self, ending: Ending) -> None:
        """End at once."""
        self._end(ending, abort=True)

    def abandon(self) -> None:
        """The client is gone: drop what was not begun. Only the first call does anything."""
        if self.export is not None and not self._abandoned:
            self._abandoned = True
            self._changes.cancel()
            self._queries.cancel()

    def settled(self) -> asyncio.Future[None]:
        """Done as soon as no change of this connection is under way or queued."""
        if self.export is None:
            future: asyncio.Future[None] = self._loop.create_future()
            future.set_result(None)
            return future
        return self._changes.settled()

    async def wait_closed(self) -> None:
        """Wait until the transport is gone and no work of this connection is left."""
        await self.lost
        await self.settled()
        if self.export is not None:
            await self._queries.wait_closed()

    def client_is_gone(self) -> bool:
        """Whether the client closed its end, even if bytes of it were not read yet."""
        if self._goodbye is not None:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return any(events & (select.POLLHUP | select.POLLERR | select.POLLRDHUP) for _, events in poll.poll(0))

    # --- callbacks --------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._advance()

    def _receive_progress(self) -> int | None:
        """What shows that the client still sends or takes something; None while it is our turn."""
        if self._reading:
            return self._inbox.total
        return None if self._outbox.sendable() else self._outbox.taken()
