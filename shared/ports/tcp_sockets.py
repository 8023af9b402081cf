"""Listening TCP sockets of every address that a host name stands for."""

from __future__ import annotations

import asyncio
import errno
import socket

from shared.errors import InvalidStateError, UsageError
from shared.ports import Address

BACKLOG = 256


async def bind_tcp(address: Address) -> list[socket.socket]:
    """Listening sockets for every address that the host name stands for, all with one port.

    Raises InvalidStateError where another process has it, else UsageError.
    """
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    port = address.port
    try:
        found = await loop.getaddrinfo(address.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, where in dict.fromkeys(found):
            try:
                listening = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
            except OSError as error:
                # A kernel without IPv6 still resolves the wildcard to both.
                if error.errno == errno.EAFNOSUPPORT and not address.host and len(found) > 1:
                    continue
                raise
            sockets.append(listening)
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((where[0], port, *where[2:]))
            listening.listen(BACKLOG)
            port = listening.getsockname()[1]
    except OSError as error:
        for listening in sockets:
            listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InvalidStateError(
                f"Another process listens on {address}.", "Stop it, or configure another port."
            ) from error
        raise UsageError(
            f"It is not possible to listen on {address}: {reason_of(error)}.",
            "Configure an address of this host and a port that is allowed.",
        ) from error
    return sockets


def reason_of(error: OSError) -> str:
    """What went wrong, in the system's words."""
    return error.strerror or str(error) or type(error).__name__
