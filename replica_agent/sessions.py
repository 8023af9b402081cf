"""Accepts links from primaries: handshake, authorization before anything else is touched, and the way to the VM.

Every refusal is told once, counted, and logged with who asked, of one peer at most some a minute. The caps hold before
any work is done for a peer (I13, I19).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import Any

import structlog

from protocol.errors import ProtocolError
from protocol.messages import ErrorCode, Open, Opened, Role
from protocol.position import NO_EPOCH
from protocol.session import ReplicaSession
from replica_agent.authorize import Authorization, Grant
from replica_agent.intake import Admit
from replica_agent.parts import Surroundings
from replica_agent.quota import Copy, QuotaFigures, Quotas
from replica_agent.refusals import Refusal, refusal
from replica_agent.vm import ReplicaVm, settle
from shared.channel import Channel, ChannelClosed
from shared.errors import VmreplicaError
from shared.limits import LimitsStatus
from shared.ports import Address, Link, Listener, Peer
from shared.rates import Ration
from shared.states import ReplicationState
from shared.tasks import together

PER_VM = 3
"""Links of a VM: control, bulk and verify."""
LOGGED_AT_ONCE, LOGGED_PER_SECOND = 20, 0.2
"""Lines in the log about refusals of one peer."""
PEERS_RATIONED_MAX = 1000
SESSION_SECONDS = 86400.0
"""A connection lives no longer, so that a certificate that was revoked or has expired does not outlive it for long."""

log = structlog.get_logger(__name__)


class Sessions:
    """The replica's side of all connections.

    ``locate`` tells the storage location that has a copy of a VM, or None; ``find_vm`` gives the VM of an authorized
    OPEN, making it where needed; ``copies`` are all that are here, for the quotas.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        authorization: Authorization,
        locate: Callable[[bytes], str | None],
        find_vm: Callable[[Grant, Open, str], Awaitable[ReplicaVm]],
        known_vms: Callable[[], Collection[bytes]],
        copies: Callable[[], Iterable[Copy]],
    ) -> None:
        self.authorization = authorization
        self.listener: Listener | None = None
        self.on_refused: Callable[[Peer, str], None] = lambda _peer, _reason: None
        """Told the peer and the reason whenever a connection is refused, or ended since it would be by now."""
        self._surroundings = surroundings
        self._locate = locate
        self._find_vm = find_vm
        self._known_vms = known_vms
        self._copies = copies
        self.quotas = Quotas(surroundings.ports, lambda: self.authorization.grants, self._copies_of)
        self._limits = surroundings.limits
        self._unopened: dict[Channel, str] = {}
        """Links that have not come to an OPEN, the oldest first, with the peer's fingerprint."""
        self._counts = Counter[str]()
        self._rations: dict[str, Ration] = {}
        self._left_out = 0
        self._of_peer: Counter[str] = Counter()
        self._open: dict[Channel, bytes] = {}
        self._brought_by: dict[bytes, Peer] = {}
        """Who last opened a VM that is here."""
        self._served: set[Channel] = set()
        self._withdrawn: dict[Channel, Refusal] = {}
        """Why those are being ended that were allowed once."""
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
        self.quotas.forget()
        for channel, vm in list(self._open.items()):
            if authorization.find(channel.peer, vm, self._locate(vm)) is None:
                self._withdrawn[channel] = Refusal(ErrorCode.UNAUTHORIZED, *_FORBIDDEN)
                channel.refuse(ErrorCode.UNAUTHORIZED, *_FORBIDDEN)
                self.on_refused(channel.peer, _FORBIDDEN[0])

    def reexamine(self) -> None:
        """End connections of peers whose certificates would not be accepted any more.

        They may try again at once: whoever has another certificate by now goes on, and others are refused for good.
        """
        for channel in self._served:
            objection = self._surroundings.ports.network.trust.objection(channel.peer)
            if objection is not None and not channel.closed:
                self._withdrawn[channel] = Refusal(ErrorCode.UNAUTHORIZED, objection.text, objection.remedy)
                channel.refuse(ErrorCode.BUSY, objection.text, objection.remedy)
                self.on_refused(channel.peer, objection.text)

    def connected(self) -> int:
        return len(self._tasks)

    def add_to(self, status: LimitsStatus) -> LimitsStatus:
        """Put in what is known here of the limits, and who was kept out."""
        memory = self._surroundings.memory
        status.unopened, status.sessions = len(self._unopened), len(self._tasks)
        status.half_open_limit, status.sessions_limit = self._limits.half_open, self._limits.sessions
        status.memory_bytes, status.memory_highest_bytes = memory.used, memory.highest
        status.memory_limit_bytes = memory.limit or 0
        status.displaced += self._counts["displaced"]
        status.refused_sessions = self._counts["sessions"]
        status.refused_unauthorized = self._counts["unauthorized"]
        status.refused_protocol = self._counts["protocol"]
        return status

    # --- accepting -------------------------------------------------------------------------------------------------

    def _accept(self, link: Link) -> None:
        peer = link.peer
        if self._closing:
            link.abort()
            return
        if len(self._tasks) >= self._limits.sessions or self._of_peer[peer.fingerprint] >= self._limit_of(peer):
            self._note_refusal(peer, "sessions", "link refused: too many", at_peer=self._of_peer[peer.fingerprint])
            link.abort()
            return
        if len(self._unopened) >= self._limits.half_open:
            self._make_room()
        self._of_peer[peer.fingerprint] += 1
        token = 1 + int.from_bytes(self._surroundings.ports.random.bytes(8), "little") % ((1 << 63) - 1)
        session = ReplicaSession(self._surroundings.identity, token)
        surroundings = self._surroundings
        channel = Channel(
            link,
            session,
            surroundings.ports.clock,
            heartbeat=surroundings.heartbeat,
            dead_after=surroundings.dead_after,
            budget=surroundings.memory,
        )
        self._unopened[channel] = peer.fingerprint
        task = asyncio.get_running_loop().create_task(self._serve(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _limit_of(self, peer: Peer) -> int:
        """How many links the peer may have: for its VMs that are named, or kept here by an entry for all, and more."""
        vms: set[bytes] = set()
        for grant in self.authorization.grants:
            if grant.fits(peer):
                vms.update(self._kept_by(grant) if grant.vms is None else grant.vms)
        return self._limits.extra_sessions + PER_VM * max(1, len(vms))

    def _kept_by(self, grant: Grant) -> Iterator[bytes]:
        """The VMs that are kept here where the entry reaches."""
        for vm in self._known_vms():
            storage = self._locate(vm)
            if storage is not None and self.authorization.reaches(grant, storage):
                yield vm

    def _make_room(self) -> None:
        """End the oldest link without an OPEN of the peer that has most of them, so that a flood hits itself."""
        busiest, _ = Counter(self._unopened.values()).most_common(1)[0]
        oldest = next(channel for channel, fingerprint in self._unopened.items() if fingerprint == busiest)
        del self._unopened[oldest]
        self._note_refusal(oldest.peer, "displaced", "link ended: it named no VM, and others wait")
        oldest.abort("it named no VM, and others wait")

    def _note_refusal(self, peer: Peer, kind: str, text: str, **fields: Any) -> None:
        """Count a refusal, and log it unless the peer has had many lately."""
        self._counts[kind] += 1
        now = self._surroundings.ports.clock.monotonic()
        ration = self._rations.pop(peer.fingerprint, None) or Ration(LOGGED_AT_ONCE, LOGGED_PER_SECOND, now)
        self._rations[peer.fingerprint] = ration
        if len(self._rations) > PEERS_RATIONED_MAX:
            del self._rations[next(iter(self._rations))]
        if not ration.take(now):
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        log.warning(text, peer=peer.address, fingerprint=peer.fingerprint, left_out=left_out, **fields)

    async def _serve(self, channel: Channel) -> None:
        """One connection from its link to its end. Only the death of this process gets out of here."""
        who: dict[str, Any] = {"peer": channel.peer.address, "fingerprint": channel.peer.fingerprint}
        self._served.add(channel)
        try:
            try:
                body = await self._greet(channel)
            finally:
                self._unopened.pop(channel, None)
            await together(self._dispatch(channel, body), self._expire(channel))
        except ChannelClosed as error:
            tell = log.warning if channel in self._withdrawn else log.info
            tell("connection ended", reason=error.text, **who)
        except ProtocolError as error:
            # Errors that the channel found it has told already; others are told here.
            channel.refuse(error.code, error.text)
            text = "connection ended by a protocol error"
            self._note_refusal(channel.peer, "protocol", text, reason=error.text, code=error.code)
        except (VmreplicaError, OSError) as error:
            told = refusal(error, "")
            channel.refuse(told.code, told.text, told.remedy, told.fence)
            kind = "unauthorized" if told.code == ErrorCode.UNAUTHORIZED else "refused"
            self._note_refusal(channel.peer, kind, "connection refused", reason=told.text, code=told.code)
            if told.code == ErrorCode.UNAUTHORIZED:
                self.on_refused(channel.peer, told.text)
        except Exception:
            channel.refuse(ErrorCode.BUSY, "The replica failed unexpectedly.", "See its log.")
            log.exception("serving a connection failed", **who)
        except asyncio.CancelledError:
            channel.refuse(ErrorCode.SHUTDOWN, "The connection was ended by the replica.", "It is tried again.")
            if self._closing:
                raise
        finally:
            self._open.pop(channel, None)
            self._served.discard(channel)
            self._withdrawn.pop(channel, None)
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
        self._brought_by[body.vm] = channel.peer
        if body.role is Role.SAMPLE:
            await vm.connections.serve_sample(channel, body)
            return
        try:
            if body.role is Role.CONTROL:
                await vm.promotion.ask()
                await vm.connections.serve_control(channel, body, self._intake_of(channel, body.vm))
            elif body.role is Role.VERIFY:
                await vm.connections.serve_verify(channel, body)
            else:
                await vm.connections.serve_bulk(channel, body, self._intake_of(channel, body.vm))
        except ChannelClosed:
            if channel in self._withdrawn:
                vm.connections.note_trouble(self._withdrawn[channel])
            raise
        except (VmreplicaError, OSError, ProtocolError) as error:
            told = refusal(error, vm.name)
            vm.connections.note_trouble(told)
            # What the channel found itself it has told already.
            channel.refuse(told.code, told.text, told.remedy, told.fence)
            # A primary that was told of the failover asks now and then whether it was undone.
            tell = log.info if told.code is ErrorCode.FENCED else log.warning
            tell("session ended", vm=vm.name, reason=told.text, code=told.code, peer=channel.peer.address)

    def _copies_of(self, grant: Grant) -> list[Copy]:
        """The copies that an entry is for."""
        reaches = self.authorization.reaches
        return [copy for copy in self._copies() if grant.allows(copy.vm) and reaches(grant, copy.storage)]

    def quota_of(self, vm: bytes) -> QuotaFigures | None:
        """How full the quota is that a copy here counts for: by the entry of who replicates it, else by the first."""
        authorization, storage = self.authorization, self._locate(vm)
        if storage is None or not any(grant.quota for grant in authorization.grants):
            return None
        peer = self._brought_by.get(vm)
        grant = authorization.find(peer, vm, storage) if peer is not None else None
        if grant is None:
            fitting = (g for g in authorization.grants if g.allows(vm) and authorization.reaches(g, storage))
            grant = next(fitting, None)
        return self.quotas.figures(grant) if grant is not None else None

    def _intake_of(self, channel: Channel, vm: bytes) -> Admit:
        """Lets bytes of a connection in, by its entry as it stands at that moment. Raises NoSpaceError."""

        async def admit(count: int) -> None:
            await self.quotas.admit(self.authorization.find(channel.peer, vm, self._locate(vm)), count)

        return admit

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
