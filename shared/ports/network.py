"""The real network: TCP with or without TLS, and unix sockets, as links."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from shared.errors import ForbiddenError, UnreachableError, UsageError
from shared.limits import LimitsStatus
from shared.ports import Address, Link, Peer
from shared.ports.admission import FAILURES_PER_MINUTE, HALF_OPEN_MAX, Admission
from shared.ports.beneath import remove_same
from shared.ports.links import StreamLink
from shared.ports.tcp_sockets import bind_tcp, reason_of
from shared.ports.trust import Trust
from shared.ports.unix_sockets import bind_unix, connect_unix, credentials

if TYPE_CHECKING:
    from shared.ports.tls import TlsContexts, TlsIdentity

HANDSHAKE_SECONDS = 5.0
ACCEPTED_AT_ONCE = 32
ACCEPT_PAUSE_SECONDS = 0.5
"""How long no connection is accepted after the host ran out of descriptors or memory."""
REPORT_SECONDS = 1.0
"""Refused handshakes are logged at most once in this time, with the number of those left out."""

# What accept(2) reports of a connection that died in the queue.
_DEAD_ON_ARRIVAL = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
    }
)

_log = structlog.get_logger(__name__)


class RealNetwork:
    """Streams of this host (shared.ports.Network).

    ``refused`` is called with the peer's address and the reason for every connection that failed its TLS
    handshake, or was not even heard; without it such refusals are logged. The limits are those of connections with
    TLS that arrive; :mod:`shared.ports.admission` says what they mean.
    """

    def __init__(
        self,
        tls: TlsIdentity | None = None,
        *,
        half_open_max: int = HALF_OPEN_MAX,
        handshake_seconds: float = HANDSHAKE_SECONDS,
        failures_per_minute: int = FAILURES_PER_MINUTE,
        refused: Callable[[str, Exception], None] | None = None,
    ) -> None:
        """Raises UsageError where the identity's files can't be used."""
        self._identity = tls
        self._contexts: TlsContexts | None = None
        self.admission: Admission[StreamLink] = Admission(half_open_max, failures_per_minute)
        self.handshake_seconds = handshake_seconds
        self._refused = refused or self._log_refusal
        self.on_forbidden: Callable[[Peer, ForbiddenError], None] = lambda _peer, _error: None
        """Told each peer that connected and was refused for its certificate, or for want of one that is right."""
        self._reported = float("-inf")
        self._unreported = 0
        self._crl_stamp: tuple[int, ...] = ()
        self.reload_tls()

    def read_tls(self) -> Callable[[], None]:
        """Read the identity's files again; what is returned puts them in force, which can't fail.

        Raises UsageError where they can't be used.
        """
        if self._identity is None:
            return lambda: None
        # Who needs no TLS, such as the tap, need not load all that belongs to it.
        from shared.ports.tls import load_contexts  # noqa: PLC0415

        # Before it is read: a change in the middle is noticed by the next look.
        stamp = self._look_at_crl()
        contexts = load_contexts(self._identity)

        def use() -> None:
            self._contexts, self._crl_stamp = contexts, stamp

        return use

    def reload_tls(self) -> None:
        """Read the identity's files again; new connections use them, established ones go on untouched: whoever serves
        them asks ``trust`` whether they may.

        Raises UsageError where they can't be used; then everything stays as it was.
        """
        self.read_tls()()

    def has_other_crl(self) -> bool:
        """Whether the revocation list's file is another one than was loaded. Blocks for a look at it."""
        return self._look_at_crl() != self._crl_stamp

    def _look_at_crl(self) -> tuple[int, ...]:
        if self._identity is None or not self._identity.crl:
            return ()
        try:
            state = os.stat(self._identity.crl)
        except OSError as error:
            return (error.errno or 0,)
        return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)

    @property
    def trust(self) -> Trust:
        return self._contexts.trust if self._contexts is not None else Trust()

    def certificate_end(self) -> float | None:
        """When this host's own certificate ends, in seconds since the Unix epoch; None without one."""
        return self._contexts.own.not_valid_after_utc.timestamp() if self._contexts is not None else None

    def arrivals(self) -> LimitsStatus:
        """What became of the connections with TLS that arrived, and how many are in their handshake."""
        counts = self.admission.counts
        return LimitsStatus(
            half_open=self.admission.half_open,
            arrived=counts.accepted,
            secured=counts.secured,
            refused_handshakes=counts.refused,
            refused_rate=counts.over_rate,
            displaced=counts.displaced,
        )

    def contexts(self, address: Address) -> TlsContexts | None:
        """What a connection with ``address`` needs for TLS, or None where it is to have none."""
        if not address.tls:
            return None
        if self._contexts is None:
            raise UsageError(f"{address} needs TLS, but no certificate is configured.", "Set ca, certificate and key.")
        return self._contexts

    # --- connecting ---

    async def connect(self, address: Address, *, timeout: float) -> Link:
        try:
            async with asyncio.timeout(timeout):
                if address.unix_path:
                    return await self._connect_unix(address.unix_path)
                return await self._connect_tcp(address, self.contexts(address))
        except TimeoutError as error:
            raise UnreachableError(
                f"{address} does not answer within {timeout:g} s.",
                "Check that it runs, and the network and firewalls between.",
            ) from error

    async def _connect_unix(self, path: str) -> Link:
        connection = await connect_unix(path)
        link = StreamLink(credentials(connection, path))
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=connection)
        return link

    async def _connect_tcp(self, address: Address, contexts: TlsContexts | None) -> Link:
        link = self._make_link(address, contexts)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: link, address.host, address.port)
        except socket.gaierror as error:
            raise UnreachableError(
                f"The host name {address.host} can't be resolved: {error.strerror}.",
                "Check the name, DNS and /etc/hosts.",
            ) from error
        except OSError as error:
            raise UnreachableError(
                f"{address} can't be reached: {reason_of(error)}.",
                "Check that the agent runs there, the port, and firewalls between.",
            ) from error
        if contexts is not None:
            await self._secure(link, f"{address}")
            self._judge_again(link, contexts)
        return link

    def _judge_again(self, link: StreamLink, contexts: TlsContexts) -> None:
        """Certificates may have been loaded anew in the middle of a handshake. Raises ForbiddenError."""
        if contexts is not self._contexts and (objection := self.trust.objection(link.peer)) is not None:
            link.abort()
            raise objection

    def _make_link(self, address: Address, contexts: TlsContexts | None) -> StreamLink:
        if contexts is None:
            return StreamLink(Peer(address=str(address)))
        from shared.ports.tls import check_own_validity  # noqa: PLC0415
        from shared.ports.tls_links import TlsLink  # noqa: PLC0415

        check_own_validity(contexts)
        return TlsLink(str(address), contexts, server_name=address.host)

    async def _secure(self, link: StreamLink, address: str) -> None:
        """Wait for the handshake; a link that fails it is gone."""
        from shared.ports.tls_links import TlsLink  # noqa: PLC0415

        assert isinstance(link, TlsLink)
        try:
            async with asyncio.timeout(self.handshake_seconds):
                await link.secured()
        except TimeoutError as error:
            link.abort()
            raise UnreachableError(
                f"{address} did not finish the TLS handshake within {self.handshake_seconds:g} s."
            ) from error
        except asyncio.CancelledError:
            link.abort()
            raise

    # --- listening ---

    async def listen(self, address: Address, accept: Callable[[Link], None]) -> RealListener:
        self.contexts(address)
        if address.unix_path:
            sockets = [await bind_unix(address)]
        else:
            sockets = await bind_tcp(address)
            address = replace(address, port=sockets[0].getsockname()[1])
        return RealListener(self, address, sockets, accept)

    async def establish(self, connection: socket.socket, address: Address) -> StreamLink:
        """Turn an accepted socket into a link; raises what ``connect`` raises, and OSError."""
        loop = asyncio.get_running_loop()
        if address.unix_path:
            link = StreamLink(credentials(connection, address.unix_path))
            await loop.connect_accepted_socket(lambda: link, connection)
            return link
        host, port = connection.getpeername()[:2]
        peer = str(Address(host, port))
        contexts = self.contexts(address)
        if contexts is None:
            link = StreamLink(Peer(address=peer))
            await loop.connect_accepted_socket(lambda: link, connection)
            return link
        from shared.ports.tls_links import TlsLink  # noqa: PLC0415

        link = TlsLink(peer, contexts, gone=self.admission.end)
        oldest = self.admission.begin(link, host)
        if oldest is not None:
            assert isinstance(oldest, TlsLink)
            oldest.displace()
        try:
            await loop.connect_accepted_socket(lambda: link, connection)
        except BaseException:
            # Nobody will tell of its end: without a transport it has none.
            self.admission.end(link)
            link.abort()
            raise
        try:
            await self._secure(link, link.peer.address)
            self._judge_again(link, contexts)
        except (ForbiddenError, UnreachableError) as error:
            self.admission.counts.refused += not link.displaced
            self._refused(link.peer.address, error)
            if isinstance(error, ForbiddenError):
                self.on_forbidden(link.peer, error)
            raise
        self.admission.let_in(link, loop.time())
        return link

    def turns_away(self, host: str, port: int) -> bool:
        """Whether a connection with TLS that arrived is ended unheard, since its host fails too often."""
        if self.admission.may_try(host, asyncio.get_running_loop().time()):
            return False
        text = "Too many connections of its address came to nothing lately; it was not heard."
        self._refused(str(Address(host, port)), UnreachableError(text))
        return True

    def _log_refusal(self, address: str, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._reported < REPORT_SECONDS:
            self._unreported += 1
            return
        _log.warning("connection refused", peer=address, reason=str(error), left_out=self._unreported)
        self._reported, self._unreported = now, 0


class RealListener:
    """One listening address (shared.ports.Listener) and the tasks that make links of its connections.

    Connections are accepted in a callback: a cancelled ``sock_accept`` can lose one that it has accepted.
    """

    def __init__(
        self,
        network: RealNetwork,
        address: Address,
        sockets: list[socket.socket],
        accept: Callable[[Link], None],
    ) -> None:
        self.address = address
        self._network = network
        self._sockets = sockets
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._identity = (0, 0)
        if address.unix_path:
            state = os.lstat(address.unix_path)
            self._identity = (state.st_dev, state.st_ino)
        for listening in sockets:
            self._loop.add_reader(listening, self._accept_waiting, listening)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        if self.address.unix_path:
            remove_same(self.address.unix_path, self._identity)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept_waiting(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, where = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _DEAD_ON_ARRIVAL:
                    self._pause(listening, error)
                    return
                continue
            if self.address.tls and self._network.turns_away(where[0], where[1]):
                connection.close()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._admit(connection))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Let what waits to be accepted wait a little: trying again at once would only burn the processor."""
        _log.error("connections can't be accepted", address=str(self.address), reason=reason_of(error))
        self._loop.remove_reader(listening)
        self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._go_on, listening)

    def _go_on(self, listening: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listening, self._accept_waiting, listening)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": f"a connection to {self.address} failed", "exception": error, "task": task}
            )

    async def _admit(self, connection: socket.socket) -> None:
        try:
            link = await self._network.establish(connection, self.address)
        except (ForbiddenError, UnreachableError) as error:
            _let_go(error)
            return
        except OSError:
            # The peer is gone already.
            connection.close()
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        try:
            self._accept(link)
        except Exception:
            link.abort()
            raise


def _let_go(error: BaseException | None) -> None:
    """Forget the frames that an error was raised through: they hold the link, which holds the error.

    Thousands of refused links would else stay in memory, 50 KiB each, until the collector of cycles comes to them.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
