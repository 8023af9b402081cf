"""The NBD server: listens on a unix socket or on loopback, and holds what its connections share."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import socket
import stat
import struct
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from shared.errors import StorageError, UsageError, VmreplicaError
from shared.nbd.backend import ExportBackend, ExportDirectory
from shared.nbd.connection import Connection, ConnectionStatistics
from shared.nbd.constants import MAXIMUM_PAYLOAD, REQUEST
from shared.nbd.ending import Ending, EndReason
from shared.nbd.flushing import FlushGate
from shared.nbd.latency import LatencyMeter
from shared.nbd.memory import MemoryBudget
from shared.ports.beneath import Place, by_descriptor, remove_same, socket_at

MEMORY_LIMIT = 65 << 20
"""Bytes that requests above 2 MiB may hold together; enough for two of the largest."""
STALL_TIMEOUT = 10.0
"""Seconds without progress after which a client that holds such memory is cut off, if others wait for memory."""
BACKLOG = 64
SEND_BUFFER = 1 << 20
"""Bytes of socket send buffer that we ask for; the kernel may give less."""
CLOSE_GRACE = 5.0

_CREDENTIALS = struct.Struct("iII")

log = structlog.get_logger(__name__)


class SocketInUseError(VmreplicaError):
    """Somebody answers on the socket, or the path is no socket."""

    code = "socket_in_use"


@dataclass(slots=True)
class _SharedExport:
    """What the connections to one export have in common."""

    gate: FlushGate
    export: ExportBackend
    connections: set[Connection] = field(default_factory=set)


class NbdServer:
    """Serves the exports of a directory to at most ``max_connections`` clients.

    ``memory_limit`` bounds, over all connections together, the memory of requests above 2 MiB. Beside it a connection
    has buffers of its own; docs/nbd.md adds them up.
    """

    def __init__(
        self,
        directory: ExportDirectory,
        *,
        max_connections: int = 64,
        handshake_timeout: float = 10.0,
        memory_limit: int = MEMORY_LIMIT,
        stall_timeout: float = STALL_TIMEOUT,
        latency: LatencyMeter | None = None,
    ) -> None:
        """``latency`` is told how long requests take; without it nobody asks."""
        if memory_limit < MAXIMUM_PAYLOAD + REQUEST.size:
            raise UsageError(
                f"the NBD memory limit of {memory_limit} bytes is too small for one request",
                f"Set at least {MAXIMUM_PAYLOAD + REQUEST.size}.",
            )
        self.directory = directory
        self.budget = MemoryBudget(memory_limit, stall_timeout)
        self.latency = latency or LatencyMeter(asyncio.get_running_loop().time)
        self.handshake_timeout = handshake_timeout
        self.draining = False
        self.closing = False
        self.endings: Counter[EndReason] = Counter()
        """How many connections ended for which reason."""
        self._max_connections = max_connections
        self._connections: set[Connection] = set()
        self._exports: dict[int, _SharedExport] = {}
        self._listeners: list[asyncio.Server] = []
        self._paths: list[tuple[Path, tuple[int, int]]] = []
        self._tasks: set[asyncio.Future[None]] = set()

    # --- listening --------------------------------------------------------------------------------------------------

    async def start_unix(self, path: Path | str, mode: int = 0o600, group: str = "") -> None:
        """Listen on a unix socket that has its mode from the first moment. A stale socket is replaced.

        Members of ``group``, if given, may connect too, and may pass through the socket's folder.

        Raises SocketInUseError if somebody answers there or the path is something else, StorageError if the socket
        can't be made.
        """
        path = Path(path)
        try:
            _remove_stale_socket(path)
            listener = _bind_unix(path, mode, group)
        except OSError as error:
            raise StorageError(
                f"the NBD socket {path} can't be made: {error.strerror or error}.",
                "Check the folder, its permissions, and that the path has at most 107 bytes.",
            ) from error
        status = path.lstat()
        self._paths.append((path, (status.st_dev, status.st_ino)))
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_unix_server(lambda: Connection(self), sock=listener, backlog=BACKLOG))

    async def start_tcp(self, host: str = "127.0.0.1", port: int = 0, *, allow_remote: bool = False) -> int:
        """Listen on TCP; returns the port. Refuses an address that others than this host reach, unless told.

        NBD here has neither encryption nor authentication. Raises UsageError for a refused or unknown address.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise UsageError(f"{host!r} is no address to listen on: {error.strerror or error}.") from error
        for *_, address in found:
            if not allow_remote and not ipaddress.ip_address(address[0]).is_loopback:
                raise UsageError(
                    f"NBD would listen on {address[0]}, which other hosts can reach.",
                    "Use 127.0.0.1, ::1 or a unix socket.",
                )
        try:
            listener = await loop.create_server(lambda: Connection(self), str(found[0][-1][0]), port, backlog=BACKLOG)
        except OSError as error:
            raise UsageError(
                f"NBD can't listen on {host} port {port}: {error.strerror or error}.", "Choose another port."
            ) from error
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    # --- what connections need ----------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> Ending | None:
        """Count the connection in, or say why not."""
        if self.closing:
            return Ending(EndReason.SERVER_CLOSED)
        if len(self._connections) >= self._max_connections:
            return Ending(EndReason.TOO_MANY_CONNECTIONS, f"there are {self._max_connections} already")
        self._connections.add(connection)
        return None

    def enter(self, connection: Connection, export: ExportBackend) -> tuple[FlushGate, list[asyncio.Future[None]]]:
        """The export's flush gate, and what must be over before the connection's first request.

        A client that lost its connection may have reconnected and be about to send its unanswered writes again, and
        then newer ones. What the dead connection still holds must not be performed after those.
        """
        shared = self._exports.get(id(export))
        if shared is None:
            shared = self._exports[id(export)] = _SharedExport(FlushGate(export.flush, self._start), export)
        predecessors = []
        for other in list(shared.connections):
            if other.client_is_gone():
                other.abandon()
                other.abort(Ending(EndReason.SUPERSEDED, "its client was gone when the next connection came"))
                predecessors.append(other.settled())
        shared.connections.add(connection)
        log.info("nbd client attached", peer=connection.statistics.peer, export=export.name)
        return shared.gate, predecessors

    def leave(self, connection: Connection) -> None:
        """The connection is gone; what it still has under way is waited for by ``close``."""
        ending = connection.ending or Ending(EndReason.CLOSED_BY_CLIENT)
        self.endings[ending.reason] += 1
        self._connections.discard(connection)
        if connection.export is not None:
            shared = self._exports.get(id(connection.export))
            if shared is not None:
                shared.connections.discard(connection)
                if not shared.connections:
                    del self._exports[id(connection.export)]
        self._start(connection.wait_closed())
        write = log.info if ending.reason.orderly else log.warning
        statistics = connection.statistics
        write(
            "nbd connection ended",
            peer=statistics.peer,
            export=statistics.export,
            reason=ending.reason.value,
            detail=ending.detail,
            requests=statistics.requests,
        )

    def describe(self, transport: asyncio.BaseTransport) -> str:
        """Who is at the other end; also gives the socket a large send buffer."""
        endpoint = transport.get_extra_info("socket")
        # The loop's own wrapper offers no socket options under uvloop.
        with socket.socket(fileno=os.dup(endpoint.fileno())) as duplicate:
            with contextlib.suppress(OSError):
                duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            if duplicate.family != socket.AF_UNIX:
                address = transport.get_extra_info("peername")
                return f"{address[0]}:{address[1]}" if address else "unknown"
            raw = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return f"pid {pid} uid {uid}"

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "work of the NBD server failed", "exception": error, "future": task}
            asyncio.get_running_loop().call_exception_handler(context)

    # --- status and the end -------------------------------------------------------------------------------------------

    @property
    def connections(self) -> list[ConnectionStatistics]:
        """The statistics of every connection that is open."""
        return [connection.statistics for connection in self._connections]

    def drain(self) -> None:
        """From now on every new change gets ESHUTDOWN. Reads, and FLUSHes of what was done before, go on."""
        self.draining = True

    async def drained(self) -> None:
        """After ``drain``: wait until no change is under way on any connection."""
        for connection in list(self._connections):
            await connection.settled()

    async def close(self, grace: float = CLOSE_GRACE) -> None:
        """Stop listening, finish what is under way for up to ``grace`` seconds, end all connections, remove sockets."""
        self.closing = True
        for listener in self._listeners:
            listener.close()
        for path, identity in self._paths:
            remove_same(str(path), identity)
        self._paths.clear()
        for connection in list(self._connections):
            connection.say_goodbye(Ending(EndReason.SERVER_CLOSED))
        waiting = {connection.lost for connection in self._connections}
        if waiting:
            await asyncio.wait(waiting, timeout=grace)
        for connection in list(self._connections):
            connection.abort(Ending(EndReason.SERVER_CLOSED, "it did not finish in time"))
        for connection in list(self._connections):
            await connection.lost
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._listeners.clear()


def _remove_stale_socket(path: Path) -> None:
    """Unlink a socket on which nobody listens; raises SocketInUseError for anything else that is there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketInUseError(f"{path} exists and is no socket.", "Remove it or choose another path.")
    with socket_at(str(path)) as (place, there), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(there)
        except ConnectionRefusedError:
            os.unlink(place.name, dir_fd=place.folder)
            return
        except BlockingIOError:
            # A full backlog: somebody listens, if slowly.
            pass
    raise SocketInUseError(f"another process serves {path}.", "Stop that process first, or choose another path.")


def _bind_unix(path: Path, mode: int, group: str) -> socket.socket:
    """A bound unix socket that nobody outside ``mode`` and ``group`` could connect to at any moment."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
        with socket_at(str(path)) as (place, made):
            # The umask can only take permissions away, and it knows no set-id bits; this sets exactly the mode.
            os.chmod(made, mode)
            if group:
                _admit(path, place, made, group)
    except (OSError, VmreplicaError):
        listener.close()
        raise
    finally:
        os.umask(former)
    return listener


def _admit(path: Path, place: Place, made: str, group: str) -> None:
    """Let a group connect. Raises UsageError for one that does not exist, or that we may not give it to."""
    try:
        shutil.chown(made, group=group)
    except LookupError:
        raise UsageError(f"There is no group {group} for {path}.", f"Make it with: groupadd {group}") from None
    except PermissionError:
        raise UsageError(
            f"We may not give the socket {path} to the group {group}.",
            f"Let the service be in it: `systemctl edit` its unit, and set SupplementaryGroups={group} in [Service].",
        ) from None
    os.chmod(made, 0o660)
    if place.folder is not None:
        os.chmod(by_descriptor(place.folder), 0o711)  # noqa: S103
