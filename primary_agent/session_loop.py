"""Keeps a session with the replica going: when to connect, when to try again, and what a failure means.

Faults that can heal are retried after 1, 2, 4 ... 30 s with jitter, for ever. Others are put on record, told once, and
retried every five minutes or when an administrator says so. A failover at the replica stops everything (I8).
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from primary_agent.companions import Companions
from primary_agent.conclusions import FencedOff, Refused, Replan
from primary_agent.dialing import dial, open_body
from primary_agent.parts import Parts
from primary_agent.problems import set_problem
from primary_agent.progress import WAITING
from primary_agent.record import fence_record
from primary_agent.session import Session
from primary_agent.unfencing import UndoWatch
from protocol.errors import ProtocolError
from protocol.messages import ErrorCode, Fence
from shared.channel import ChannelClosed
from shared.errors import (
    DAMAGED_LINK,
    ForbiddenError,
    StorageError,
    StoreDamagedError,
    UsageError,
    VmreplicaError,
)
from shared.events import EventId
from shared.planning import ResyncCause
from shared.rates import duration_text
from shared.states import ReplicationState
from shared.tasks import together

BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_LAST_SECONDS = 30.0
SLOW_RETRY_SECONDS = 300.0
QUEUED_SECONDS = 5.0
"""A replica that has no place for a compare is asked again after so long."""
JITTER = 0.25
"""A wait is shortened by up to this fraction, so that many VMs do not come back at the same instant."""

PARKED = frozenset({ReplicationState.SUSPENDED, ReplicationState.RESYNCHRONIZE_SUSPENDED, ReplicationState.FAILED_OVER})
"""States in which there is no session; in the last one only whether that was undone is asked now and then."""

_JOIN_BROKEN = {ErrorCode.GAP: ResyncCause.GAP, ErrorCode.CHAIN: ResyncCause.CHAIN}

# What a peer of another version or for other VMs stays, however often it is asked. Of what the replica tells itself,
# primary_agent.recoverability has the table.
_UNFIT = frozenset({ErrorCode.VERSION, ErrorCode.UNAUTHORIZED, ErrorCode.GEOMETRY, ErrorCode.UNRELATED})

log = structlog.get_logger(__name__)


class SessionLoop:
    """The session loop of one VM."""

    def __init__(self, parts: Parts, companions: Companions) -> None:
        self._parts = parts
        self._companions = companions
        self._link = parts.link
        self._replication = parts.replication
        self._ports = parts.surroundings.ports
        self._backoff = BACKOFF_FIRST_SECONDS
        self._told = ""
        """The code of the failure that was last told in an event; empty once a session lasted."""
        self._undone = UndoWatch(parts)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while self._replication.state in PARKED:
                await self._rest()
            try:
                await self._session()
            except Replan:
                continue
            except (VmreplicaError, ProtocolError, OSError) as error:
                if isinstance(error, StoreDamagedError):
                    raise
                await self._failed(error)

    async def _rest(self) -> None:
        """There is no session before something changes; whether a failover was undone is asked meanwhile."""
        if self._replication.state is not ReplicationState.FAILED_OVER:
            await self._replication.changed.wait()
            return
        try:
            await self._undone.wait()
        except ChannelClosed as error:
            # Nothing new, unless it is another failover.
            await self._fence(error)

    async def _session(self) -> None:
        """One session; always raises."""
        parts = self._parts
        connection = await parts.tap.connected()
        async with parts.surroundings.dialing.turn(parts.address):
            await parts.tap.refresh()
            dialled = await dial(parts.surroundings, parts.address, open_body(self._replication, connection))
        channel = dialled.channel
        if self._replication.state in PARKED:
            # The order came while we dialled: a session would know no other order to wait for.
            await channel.close("replication was suspended meanwhile")
            raise Replan("the session is planned anew")
        self._opened()
        self._link.dialled = dialled
        opened_at = self._ports.clock.monotonic()
        session = Session(parts, dialled, connection)
        try:
            await together(session.run(), self._companions.run(dialled))
        except asyncio.CancelledError:
            channel.abort("the agent stops")
            raise
        except Exception as error:
            await channel.close(str(error) or type(error).__name__)
            raise
        finally:
            if session.fruitful or self._ports.clock.monotonic() - opened_at > self._backoff:
                # It got somewhere, or went well for longer than the wait before it: what comes is another outage.
                self._backoff = BACKOFF_FIRST_SECONDS
                self._link.attempts = 0
                self._told = ""
            self._link.dialled = None
            self._link.since = self._ports.clock.wall()

    def _opened(self) -> None:
        self._link.since = self._ports.clock.wall()
        self._link.last_error = self._link.last_error_code = ""
        self._link.retryable = True
        self._link.next_attempt = None

    # --- failures --------------------------------------------------------------------------------------------------

    async def _failed(self, error: Exception) -> None:
        """Record what a failure means, and wait until the next attempt."""
        failure = _as_failure(error)
        log.info("session ended", vm=self._replication.vm.name, code=failure.code, reason=failure.text)
        if failure.code == ErrorCode.QUEUED:
            await self._queue_at_replica(failure)
            return
        now = self._ports.clock
        self._replication.statistics.failed(now.wall())
        if isinstance(error, FencedOff) or failure.code == ErrorCode.FENCED:
            await self._fence(failure)
            return
        code = ErrorCode(failure.code) if failure.code in ErrorCode._value2member_map_ else None
        retryable = _heals(error)
        if code in _JOIN_BROKEN and isinstance(error, ChannelClosed):
            await self._join_is_broken(_JOIN_BROKEN[code], failure)
            # What was broken is on record now, and the next session is about healing it.
            retryable = True
        self._link.attempts += 1
        if self._link.since is None:
            self._link.since = now.wall()
        self._link.last_error = str(failure)
        self._link.last_error_code = failure.code
        self._link.damaged += failure.code == DAMAGED_LINK
        self._link.retryable = retryable
        if not retryable:
            delay = SLOW_RETRY_SECONDS
        elif not self._tap_answers():
            # The next session waits for the tap, which has waits of its own; the replica has no part in it.
            delay = 0.0
        else:
            delay = self._next_delay()
        await self._tell(failure, retryable=retryable, delay=delay)
        self._link.next_attempt = now.monotonic() + delay
        if delay and await self._link.poke.wait_for(delay):
            self._backoff = BACKOFF_FIRST_SECONDS
        self._link.next_attempt = None

    async def _queue_at_replica(self, failure: VmreplicaError) -> None:
        """The replica has no place for a compare yet: that is no outage, and nothing has to be healed."""
        if self._parts.progress is not None:
            self._parts.progress.enter(WAITING, failure.text)
        self._link.next_attempt = self._ports.clock.monotonic() + QUEUED_SECONDS
        await self._link.poke.wait_for(QUEUED_SECONDS - self._ports.random.uniform(0, JITTER * QUEUED_SECONDS))

    def _tap_answers(self) -> bool:
        connection = self._parts.tap.connection
        return connection is not None and connection.alive

    def _next_delay(self) -> float:
        """1, 2, 4 ... 30 s with jitter, from the start again after a session that got somewhere."""
        delay = self._backoff
        self._backoff = min(2 * delay, BACKOFF_LAST_SECONDS)
        return delay - self._ports.random.uniform(0, JITTER * delay)

    async def _tell(self, failure: VmreplicaError, *, retryable: bool, delay: float) -> None:
        """One event for each outage, not for each attempt; one record for what does not heal."""
        if not retryable:
            await set_problem(self._replication, failure, EventId.SUSPENDED_NOT_RECOVERABLE)
        elif failure.code != self._told:
            self._told = failure.code
            data = {"code": failure.code, "seconds": round(delay, 1)}
            when = f"in {duration_text(delay)}" if delay else "at once"
            name = self._replication.vm.name
            text = f"Replication of {name} is interrupted and will be retried {when}: {failure.text}"
            event = self._replication.event(EventId.WILL_RETRY, text, cause=failure.code, data=data)
            await self._replication.note(event)

    async def _fence(self, failure: VmreplicaError) -> None:
        """I8: stop; put on record where the VM went, and whether both sides may have moved on by now."""
        self._undone.put_off()
        problem = failure.problem if isinstance(failure, ChannelClosed) else None
        with contextlib.suppress(VmreplicaError):
            await self._parts.tap.refresh()
        split = failure.split if isinstance(failure, FencedOff) else self._parts.moved_on()
        text = problem.text if problem is not None else failure.text
        fence = problem.fence if problem is not None and isinstance(problem.fence, Fence) else None
        told, record = fence_record(fence) if fence is not None else None, self._replication.record
        if told in (None, record.fence) or (record.state, record.fenced) != (ReplicationState.FAILED_OVER, text):
            await self._replication.fence(text, split=split, fence=told)
            return
        # Of the same failover it tells what has become of it: that something was written there since, say.
        events = []
        if told is not None and told.written and split:
            both = f"{self._replication.vm.name} was, or may have been, written on both hosts since the failover."
            events = [self._replication.event(EventId.SPLIT_BRAIN, both, cause="fenced")]
        await self._replication.transition(None, text, *events, seen=record, fence=told)

    async def _join_is_broken(self, cause: ResyncCause, failure: VmreplicaError) -> None:
        """The replica found that our log does not continue what it has: only a compare helps."""
        if self._replication.record.resync is not None:
            # The open resync's log is what does not fit: it starts anew under another epoch.
            await self._replication.update(resync=None)
        if self._replication.state is not ReplicationState.INITIAL_REPLICATION_IN_PROGRESS:
            acked, connection = self._replication.acked, self._parts.tap.connection
            end = connection.log_end() if connection is not None else None
            evidence = {"acked": str(acked.position) if acked else None, "log_end": str(end) if end else None}
            await self._replication.require_resync(cause, failure.text, evidence)


def _as_failure(error: Exception) -> VmreplicaError:
    """Any expected error as one with code, text and remedy."""
    match error:
        case VmreplicaError():
            return error
        case ProtocolError():
            return VmreplicaError(f"The replica broke the protocol: {error.text}", code=error.code)
        case OSError():
            return StorageError(f"{error.filename or 'A file'}: {error.strerror or error}.", "Check the volume.")
    raise error


def _heals(error: Exception) -> bool:
    """Whether trying again can help by itself."""
    match error:
        case ChannelClosed():
            return error.retryable
        case Refused() | ForbiddenError() | UsageError():
            return False
        case StorageError():
            # A full volume or a released log heals; a block that can't be read waits for an administrator.
            return error.code != "block_unreadable"
        case ProtocolError():
            return error.code not in _UNFIT
    return True
