"""Accepts links from primaries: handshake, authorization before anything else is touched, and the way to the VM.

Every refusal is told once and logged with who asked. The caps hold before any work is done for a peer (I13, I19).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from protocol.errors import ProtocolError
from protocol.messages import ErrorCode, Open, Opened, Role
from protocol.position import NO_EPOCH
from protocol.session import ReplicaSession
from replica_agent.authorize import Authorization, Grant
from replica_agent.parts import Surroundings
from replica_agent.refusals import Refusal, refusal
from replica_agent.vm import ReplicaVm, settle
from shared.channel import Channel, ChannelClosed
from shared.errors import VmreplicaError
from shared.ports import Address, Link, Listener
from shared.states import ReplicationState
from shared.tasks import together

HALF_OPEN_MAX = 64
"""Links, of all peers together, that have not come to an OPEN."""
EXTRA_PER_PEER = 4
"""Links of one peer beside three for each of its VMs here."""
SESSION_SECONDS = 86400.0
"""A connection lives no longer, so that a certificate that was revoked or has expired does not outlive it for long."""

log = structlog.get_logger(__name__)


class Sessions:
    """The replica's side of all connections.

    ``locate`` tells the storage location that has a copy of a VM, or None; ``find_vm`` gives the VM of an authorized
    OPEN, making it where needed.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        authorization: Authorization,
        locate: Callable[[bytes], str | None],
        find_vm: Callable[[Grant, Open, str], Awaitable[ReplicaVm]],
        count_vms: Callable[[], int],
    ) -> None:
        self.authorization = authorization
        self.listener: Listener | None = None
        self.on_refused: Callable[[str, str], None] = lambda _peer, _reason: None
        """Told the peer's address and the reason whenever a connection is refused."""
        self._surroundings = surroundings
        self._locate = locate
        self._find_vm = find_vm
        self._count_vms = count_vms
        self._half_open = 0
        self._of_peer: Counter[str] = Counter()
        self._open: dict[Channel, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def listen(self, address: Address) -> None:
        """Accept links from now on. Raises what ``Network.listen`` raises."""
        self.listener = await self._surroundings.ports.network.listen(address, self._accept)

    async def close(self) -> None:
        """Stop accepting, and end all connections."""
        self._closing = True
        if self.listener is not None:
            await self.listener.close()
            self.listener = None
        for task in list(self._tasks):
            task.cancel()
        await settle(self._tasks)

    def reauthorize(self, authorization: Authorization) -> None:
        """Take over new entries; connections that they no longer allow are ended."""
        self.authorization = authorization
        for channel, vm in list(self._open.items()):
            if authorization.find(channel.peer, vm, self._locate(vm)) is None:
                channel.refuse(ErrorCode.UNAUTHORIZED, *_FORBIDDEN)

    def connected(self) -> int:
        return len(self._tasks)

    # --- accepting -------------------------------------------------------------------------------------------------

    def _accept(self, link: Link) -> None:
        peer = link.peer
        limit = EXTRA_PER_PEER + 3 * max(1, self._count_vms())
        if self._closing or self._half_open >= HALF_OPEN_MAX or self._of_peer[peer.fingerprint] >= limit:
            log.warning("link refused: too many", peer=peer.address, fingerprint=peer.fingerprint)
            link.abort()
            return
        self._of_peer[peer.fingerprint] += 1
        self._half_open += 1
        token = 1 + int.from_bytes(self._surroundings.ports.random.bytes(8), "little") % ((1 << 63) - 1)
        session = ReplicaSession(self._surroundings.identity, token)
        surroundings = self._surroundings
        channel = Channel(
            link,
            session,
            surroundings.ports.clock,
            heartbeat=surroundings.heartbeat,
            dead_after=surroundings.dead_after,
        )
        task = asyncio.get_running_loop().create_task(self._serve(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, channel: Channel) -> None:
        """One connection from its link to its end. Only the death of this process gets out of here."""
        who: dict[str, Any] = {"peer": channel.peer.address, "fingerprint": channel.peer.fingerprint}
        try:
            try:
                body = await self._greet(channel)
            finally:
                self._half_open -= 1
            await together(self._dispatch(channel, body), self._expire(channel))
        except ChannelClosed as error:
            log.info("connection ended", reason=error.text, **who)
        except ProtocolError as error:
            # Errors that the channel found it has told already; others are told here.
            channel.refuse(error.code, error.text)
            log.warning("connection ended by a protocol error", reason=error.text, code=error.code, **who)
        except (VmreplicaError, OSError) as error:
            told = refusal(error, "")
            channel.refuse(told.code, told.text, told.remedy)
            log.warning("connection refused", reason=told.text, code=told.code, **who)
            if told.code is ErrorCode.UNAUTHORIZED:
                self.on_refused(channel.peer.address, told.text)
        except Exception:
            channel.refuse(ErrorCode.BUSY, "The replica failed unexpectedly.", "See its log.")
            log.exception("serving a connection failed", **who)
        except asyncio.CancelledError:
            channel.refuse(ErrorCode.SHUTDOWN, "The connection was ended by the replica.", "It is tried again.")
            if self._closing:
                raise
        finally:
            self._open.pop(channel, None)
            self._of_peer[channel.peer.fingerprint] -= 1
            self._of_peer += Counter()
            if not channel.closed:
                channel.abort("it is no longer served")

    async def _greet(self, channel: Channel) -> Open:
        """HELLO, WELCOME, OPEN; the channel sees to it that they come in time."""
        await channel.greet()
        body = await channel.receive()
        assert isinstance(body, Open)
        return body

    async def _expire(self, channel: Channel) -> None:
        """End the connection when its time, or its certificate's, is over."""
        left = SESSION_SECONDS
        if channel.peer.not_after:
            left = min(left, channel.peer.not_after - self._surroundings.ports.clock.wall())
        await asyncio.sleep(max(left, 0.0))
        raise Refusal(
            ErrorCode.BUSY, "The connection's time is over.", "It is opened again with the present certificate."
        )

    # --- opening ---------------------------------------------------------------------------------------------------

    async def _dispatch(self, channel: Channel, body: Open) -> None:
        if body.role is Role.PROBE:
            await self._probe(channel, body)
            return
        grant = self.authorization.find(channel.peer, body.vm, self._locate(body.vm))
        if grant is None:
            raise Refusal(ErrorCode.UNAUTHORIZED, *_FORBIDDEN)
        _judge_names(channel, body)
        self._open[channel] = body.vm
        if body.role is Role.SAMPLE and self._locate(body.vm) is None:
            # Nobody's first connection makes a VM for a question alone.
            raise Refusal(ErrorCode.UNAUTHORIZED, *_FORBIDDEN)
        vm = await self._find_vm(grant, body, channel.peer.fingerprint)
        if body.role is Role.SAMPLE:
            await vm.connections.serve_sample(channel, body)
            return
        try:
            if body.role is Role.CONTROL:
                await vm.connections.serve_control(channel, body)
            elif body.role is Role.VERIFY:
                await vm.connections.serve_verify(channel, body)
            else:
                await vm.connections.serve_bulk(channel, body)
        except ChannelClosed:
            raise
        except (VmreplicaError, OSError, ProtocolError) as error:
            told = refusal(error, vm.name)
            vm.connections.note_trouble(told)
            # What the channel found itself it has told already.
            channel.refuse(told.code, told.text, told.remedy)
            log.warning("session ended", vm=vm.name, reason=told.text, code=told.code, peer=channel.peer.address)

    async def _probe(self, channel: Channel, body: Open) -> None:
        """Answer a test of the connection: who asks is checked, no VM is looked at."""
        named = body.vm != NO_EPOCH
        known = self.authorization.find(channel.peer, body.vm) if named else self.authorization.knows(channel.peer)
        if not known:
            raise Refusal(ErrorCode.UNAUTHORIZED, *_FORBIDDEN)
        channel.send(
            Opened(
                state=ReplicationState.DISABLED.title,
                promoted=False,
                epoch=NO_EPOCH,
                lineage=[],
                disks=[],
                received=None,
                cut=None,
                applied=None,
                resync=None,
            )
        )
        await channel.receive()


def _judge_names(channel: Channel, body: Open) -> None:
    """Names are shown on terminals: nothing but what can be printed may be in them. Raises ProtocolError."""
    hello = channel.session.peer
    for name in (body.name, hello.host if hello is not None else ""):
        if not name.isprintable():
            raise ProtocolError(f"the name {name!r} has characters that can't be printed")


_FORBIDDEN = (
    "This certificate is not authorized for that VM here.",
    "Add an [[authorize]] entry with its fingerprint or name to the replica's configuration.",
)
