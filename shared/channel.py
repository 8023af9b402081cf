"""A channel: one link to a peer with its frames, session, heartbeats, deadlines and back-pressure.

The agents read messages with :meth:`Channel.receive` and queue them with :meth:`Channel.send`; everything else that
keeps a connection honest happens here. Runs on one event loop, which also is the clock of all deadlines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from protocol.errors import ProtocolError
from protocol.messages import REVERSE, Body, Close, ErrorCode, Fence, Heartbeat, Hello, MessageType, Problem, Welcome
from protocol.session import Message, PrimarySession, ReplicaSession, Session, SessionState
from shared.budget import Budget
from shared.errors import DAMAGED_LINK, ForbiddenError, VmreplicaError
from shared.inbox import Inbox
from shared.patience import answers, patience
from shared.ports import Buffer, Clock, Link, Peer
from shared.refusing import TEXT_LIMIT, describe
from shared.tasks import Signal

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 15.0
QUEUE_BYTES = 8 << 20
HANDSHAKE_SECONDS = 5.0
# A frame that has begun must grow by so many bytes in so many seconds.
PROGRESS_BYTES = 1024
PROGRESS_SECONDS = 10.0
# A peer that sends but does not read is cut off after so long without an echo.
UNREAD_SECONDS = 120.0
# How long an orderly close may take before the link is cut.
CLOSING_SECONDS = 5.0
# A sender lets the rest of the loop run at least once in so many bytes.
YIELD_BYTES = 256 << 10


class ChannelClosed(VmreplicaError):
    """The channel has ended; ``problem`` is the peer's ERROR, if any; ``retryable`` says whether to try again."""

    code = "closed"

    def __init__(
        self,
        text: str,
        remedy: str = "",
        *,
        code: str = "closed",
        retryable: bool = True,
        problem: Problem | None = None,
    ) -> None:
        super().__init__(text, remedy, code=code)
        self.retryable = retryable
        self.problem = problem


class Channel:
    """A link and a session in use. Create it right after connect or accept; it attaches itself to the link.

    ``heartbeat`` and ``dead_after`` are in seconds, as shared.patience takes them. ``queue_bytes`` bounds received
    messages that nobody took yet, and so does the ``budget`` that it shares with others: above it the link is paused.
    Payloads of received bulk messages belong to whoever receives them.
    """

    def __init__(
        self,
        link: Link,
        session: Session,
        clock: Clock,
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
        dead_after: float = DEAD_AFTER_SECONDS,
        queue_bytes: int = QUEUE_BYTES,
        budget: Budget | None = None,
    ) -> None:
        self.session = session
        self.bytes_sent = self.bytes_received = 0
        self._yielded_at = 0
        self.rtt: float | None = None
        """Seconds from our last answered heartbeat to its echo."""
        self.clock_difference: float | None = None  # Seconds by which the peer's clock is ahead, by its last heartbeat.
        self._link = link
        self._clock = clock
        self._heartbeat = heartbeat
        self._dead_after = self._patience = dead_after  # From the greeting on also by what the peer tells.
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(queue_bytes, budget)
        self._paused = False
        self._arrival = asyncio.Event()
        self._ended = asyncio.Event()
        self._failure: Exception | None = None
        now = clock.monotonic()
        self.last_heard = now
        self._stage: tuple[SessionState, float] = (SessionState.NEW, now)
        self._progress_since = now
        self._progress_mark = 0
        self._number = 0
        self._seen = 0
        self._answers = answers(heartbeat, heartbeat, now)
        self._sent_at: deque[tuple[int, float]] = deque()
        self._echoed_at: float | None = None
        self._echoed = 0
        self._echo = Signal()
        self._beat_due = now
        self._tick_seconds = min(heartbeat, dead_after / 4, 1.0)
        self._tick_due = now + self._tick_seconds
        self._timer = self._loop.call_later(self._tick_seconds, self._tick)
        link.attach(self)

    # --- state -----------------------------------------------------------------------------------------------------

    @property
    def peer(self) -> Peer:
        return self._link.peer

    @property
    def closed(self) -> bool:
        return self._failure is not None

    @property
    def reason(self) -> str:
        """Why the channel ended; empty while it is open."""
        return getattr(self._failure, "text", "")

    def healthy(self) -> bool:
        """Whether a heartbeat of ours was echoed lately: bytes get there and back (I20)."""
        if self.closed or self._echoed_at is None:
            return False
        return self._clock.monotonic() - self._echoed_at <= self._patience

    async def prove(self) -> bool:
        """Whether a heartbeat sent now is echoed before the peer would count as dead: bytes get there and back (I20).

        The peer rations its answers, so that it is asked again.
        """
        number, end = self._number, self._clock.monotonic() + self._patience
        while not self.closed and self._echoed <= number:
            left = end - self._clock.monotonic()
            if left <= 0:
                return False
            echo = self._echo.upcoming()
            self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._heartbeat / 2, left)):
                    await echo.wait()
        return not self.closed

    # --- messages --------------------------------------------------------------------------------------------------

    async def greet(self) -> Hello | Welcome:
        """Do this side's part of HELLO and WELCOME; returns how the peer introduced itself."""
        match self.session:
            case PrimarySession():
                self.send(self.session.hello())
                body = await self.receive()
            case ReplicaSession():
                body = await self.receive()
                self.send(self.session.welcome())
        assert isinstance(body, Hello | Welcome)
        self._patience = patience(self._dead_after, body.heartbeat_seconds)
        self._answers = answers(self._heartbeat, body.heartbeat_seconds, self._clock.monotonic())
        self._beat()
        return body

    async def receive(self) -> Message:
        """The next message. Heartbeats never come out here.

        Raises ChannelClosed once the channel has ended, with the peer's ERROR where one came, and ProtocolError after
        the peer broke the protocol (it was told); messages that came before are returned first.
        """
        while not self._inbox:
            self._check_open()
            self._arrival.clear()
            await self._arrival.wait()
        message = self._inbox.take()
        if self._paused and self._inbox.low and self._failure is None:
            self._paused = False
            self._forgive()
            self._link.resume()
        return message

    def send(self, body: Body) -> None:
        """Queue a control message. Raises ChannelClosed, or ProtocolError where the session's state forbids it."""
        self._check_open()
        self._write(self.session.send(body))

    def send_bulk(self, kind: MessageType, pieces: Sequence[Buffer], *, raw_length: int | None = None) -> None:
        """Queue a bulk message; the pieces must not change any more. ``raw_length`` where they are one zstd frame."""
        self._check_open()
        self._write(self.session.send_bulk(kind, pieces, raw_length))

    async def drain(self) -> None:
        """Wait until the send queue has room. Raises ChannelClosed."""
        self._check_open()
        await self._link.drain()
        if self.bytes_sent - self._yielded_at >= YIELD_BYTES:
            # A link that takes everything at once, or is already gone, must not keep the loop from telling us.
            self._yielded_at = self.bytes_sent
            await asyncio.sleep(0)
        self._check_open()

    def refuse(self, code: ErrorCode | str, text: str, remedy: str = "", fence: Fence | None = None) -> None:
        """Tell the peer what is wrong in an ERROR and end the channel; ``fence`` only where it knows of that."""
        if self._failure is None:
            problem = describe(code, text, remedy, fence if REVERSE in self.session.capabilities else None)
            self._fail(
                ChannelClosed(problem.text, problem.remedy, code=problem.code, retryable=problem.retryable), problem
            )

    async def close(self, reason: str = "") -> None:
        """End in order: CLOSE is sent where the session has got so far. Returns when the link is gone."""
        if self._failure is None:
            if self.session.allows(MessageType.CLOSE):
                self._write(self.session.send(Close(text=reason[:TEXT_LIMIT])))
            self._end(ChannelClosed(f"The channel was closed: {reason or 'no longer needed'}."))
        await self._ended.wait()

    def abort(self, reason: str = "") -> None:
        """End at once, without a word to the peer: for an owner that is cancelled or failed half-way."""
        if self._failure is None:
            self._failure = ChannelClosed(f"The channel was cut: {reason or 'no longer needed'}.")
            self._arrival.set()
        self._timer.cancel()
        self._link.abort()

    # --- link (shared.ports.Receiver) ------------------------------------------------------------------------------

    def get_buffer(self, size_hint: int) -> memoryview:
        return self.session.reader.get_buffer(size_hint)

    def buffer_updated(self, count: int) -> None:
        try:
            self._received(count)
        except ProtocolError as error:
            self._fail(error, describe(error.code, error.text))
        except Exception as error:
            # A mistake of ours ends this channel, and its owner learns of it.
            self._fail(error, describe(ErrorCode.PROTOCOL, "internal error"))

    def lost(self, error: Exception | None) -> None:
        if isinstance(error, VmreplicaError):
            # It names the peer itself. A certificate may be refused after the handshake, too: that does not heal.
            code = error.code if error.code in (DAMAGED_LINK, ForbiddenError.code) else ChannelClosed.code
            heals = not isinstance(error, ForbiddenError)
            self._end(ChannelClosed(error.text, error.remedy, code=code, retryable=heals))
        else:
            detail = f": {error}" if error is not None else " without a closing message"
            self._end(ChannelClosed(f"The link to {self.peer.address or 'the peer'} was lost{detail}."))
        self._timer.cancel()
        self._inbox.close()
        self._ended.set()

    # --- receiving -------------------------------------------------------------------------------------------------

    def _received(self, count: int) -> None:
        reader = self.session.reader
        frames = reader.buffer_updated(count)
        if self._failure is not None:
            return
        self.bytes_received += count
        self._hear()
        if frames:
            self._progress_mark, self._progress_since = 0, self.last_heard
        for frame in frames:
            self._take(self.session.receive(frame))
            if self._failure is not None:
                return
        if reader.failure is not None:
            raise reader.failure

    def _hear(self) -> None:
        self.last_heard = self._clock.monotonic()

    def _forgive(self) -> None:
        """Start the peer's deadlines anew: for a while we did not look at what it sent."""
        self._hear()
        self._progress_since = self.last_heard
        self._sent_at.clear()

    def _take(self, message: Message) -> None:
        match message:
            case Heartbeat():
                self._take_heartbeat(message)
            case Problem():
                text = f"{self.peer.address or 'The peer'} refused: {message.text}"
                self._end(
                    ChannelClosed(text, message.remedy, code=message.code, retryable=message.retryable, problem=message)
                )
            case Close():
                self._end(ChannelClosed(f"{self.peer.address or 'The peer'} closed the channel: {message.text}"))
            case _:
                self._inbox.put(message)
                self._arrival.set()
                if self._inbox.full and not self._paused:
                    self._paused = True
                    self._link.pause()

    def _take_heartbeat(self, beat: Heartbeat) -> None:
        now = self._clock.monotonic()
        while self._sent_at and self._sent_at[0][0] <= beat.echo:
            self.rtt = now - self._sent_at.popleft()[1]
            self._echoed_at = now
        # Only what was sent can be echoed.
        if self._echoed < beat.echo <= self._number:
            self._echoed = beat.echo
            self._echo.notify()
        self.clock_difference = beat.wall_ns / 1e9 + (self.rtt or 0.0) / 2 - self._clock.wall()
        if beat.number > self._seen:
            self._seen = beat.number
            # Answers are rationed, so that a flood of heartbeats is not doubled; the next own one carries the echo.
            if self.session.allows(MessageType.HEARTBEAT) and self._answers.take(now):
                self._send_heartbeat()

    # --- time ------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Several times in every interval: send our heartbeat when due, and cut off a peer that is overdue."""
        if self._failure is not None:
            return
        now = self._clock.monotonic()
        if self._paused or now - self._tick_due > self._heartbeat:
            # We read nothing, or this process was not running: no evidence against the peer.
            self._forgive()
            self._stage = (self.session.state, now)
        self._tick_due = now + self._tick_seconds
        self._timer = self._loop.call_later(self._tick_seconds, self._tick)
        overdue = self._overdue(now)
        if overdue:
            self._end(ChannelClosed(f"{self.peer.address or 'The peer'} {overdue}.", code="unreachable"))
            self._link.abort()
        elif now >= self._beat_due:
            self._beat()

    def _overdue(self, now: float) -> str:
        """What the peer has failed to do in time; empty while all is well."""
        state, since = self._stage
        if state is not self.session.state:
            self._stage = state, since = (self.session.state, now)
        waiting = now - since
        match self.session, state:
            case (ReplicaSession(), SessionState.NEW | SessionState.READY) if waiting > HANDSHAKE_SECONDS:
                missing = "HELLO" if state is SessionState.NEW else "OPEN"
                return f"sent no {missing} within {HANDSHAKE_SECONDS:g} s"
            case (PrimarySession(), SessionState.HELLO) if waiting > self._dead_after:
                return f"sent no WELCOME within {self._dead_after:g} s"
        if now - self.last_heard > self._patience:
            return f"was silent for {now - self.last_heard:.0f} s"
        if self._is_unread(now):
            return f"did not read what was sent to it for {UNREAD_SECONDS:g} s"
        begun = self.session.reader.begun
        if begun == 0 or begun - self._progress_mark >= PROGRESS_BYTES:
            self._progress_mark, self._progress_since = begun, now
        elif now - self._progress_since > PROGRESS_SECONDS:
            return f"sent less than {PROGRESS_BYTES} bytes of a message in {PROGRESS_SECONDS:g} s"
        return ""

    def _is_unread(self, now: float) -> bool:
        """Whether the peer takes nothing of what is sent to it; on a slow link echoes come late, but they come."""
        return bool(self._sent_at) and now - max(self._sent_at[0][1], self._echoed_at or 0.0) > UNREAD_SECONDS

    def _beat(self) -> None:
        if self._failure is None and self.session.allows(MessageType.HEARTBEAT):
            now = self._clock.monotonic()
            self._beat_due = now + self._heartbeat
            self._number += 1
            self._sent_at.append((self._number, now))
            self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        wall_ns = int(self._clock.wall() * 1e9)
        self._write(self.session.send(Heartbeat(number=self._number, echo=self._seen, wall_ns=wall_ns)))

    # --- sending and ending ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._failure is not None:
            # It may be raised many times; without this its traceback would grow each time.
            raise self._failure.with_traceback(None)

    def _write(self, buffers: Sequence[Buffer]) -> None:
        self.bytes_sent += sum(map(len, buffers))
        self._link.write(*buffers)

    def _fail(self, error: Exception, problem: Problem) -> None:
        """Tell the peer and end."""
        if self._failure is None:
            if self.session.allows(MessageType.ERROR):
                self._write(self.session.send(problem))
            self._end(error)

    def _end(self, reason: Exception) -> None:
        """From here on nothing is sent; what is queued still goes out, for a while."""
        if self._failure is None:
            self._failure = reason
            self._arrival.set()
            self._timer.cancel()
            self._timer = self._loop.call_later(CLOSING_SECONDS, self._link.abort)
            self._link.close()
