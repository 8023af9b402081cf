"""Entries with fields for systemd's journal, in its native protocol: a datagram each, a sealed memory file if large.

The port is ``Journal``; :class:`SystemJournal` is the real one, :class:`NoJournal` stands in where there is none.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Protocol

SOCKET_PATH = "/run/systemd/journal/socket"
SOCKET_VARIABLE = "VMREPLICA_JOURNAL_SOCKET"
"""Environment variable with another path of the journal's socket; empty for no journal."""
FIELD_BYTES_MAX = 1 << 20
"""A longer field is cut there."""
SEND_SECONDS = 5.0
"""A journal that takes nothing for so long loses the entry; the event stays in its store."""

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class Journal(Protocol):
    """Where events go for the host's administrators. Blocks: called in a worker."""

    def send(self, fields: Mapping[str, str]) -> None:
        """Write one entry. Raises OSError where it is lost."""


class NoJournal:
    """For hosts without systemd."""

    def send(self, fields: Mapping[str, str]) -> None:
        """Nobody listens."""


class SystemJournal:
    """systemd-journald's native protocol."""

    def __init__(self, path: str = SOCKET_PATH) -> None:
        self._path = path

    def send(self, fields: Mapping[str, str]) -> None:
        """See :class:`Journal`."""
        data = encode(fields)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            end.settimeout(SEND_SECONDS)
            try:
                end.sendto(data, self._path)
            except OSError as error:
                if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self._send_file(end, data)

    def _send_file(self, end: socket.socket, data: bytes) -> None:
        """What is too large for a datagram goes as a memory file that nobody can change any more."""
        descriptor = os.memfd_create("vmreplica-journal", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            end.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(descriptor)


def system_journal(environment: Mapping[str, str]) -> Journal:
    """The journal of this host, or none."""
    path = environment.get(SOCKET_VARIABLE)
    if path is None:
        path = SOCKET_PATH if os.path.exists(SOCKET_PATH) else ""
    return SystemJournal(path) if path else NoJournal()


def encode(fields: Mapping[str, str]) -> bytes:
    """An entry in the native form: ``NAME=value``, or name, length and bytes where a value has a line break."""
    entry = bytearray()
    for name, value in fields.items():
        assert _NAME.fullmatch(name), f"{name!r} is no name of a field"
        data = value.encode("utf-8", "surrogateescape")[:FIELD_BYTES_MAX]
        if b"\n" in data:
            entry += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            entry += name.encode() + b"=" + data + b"\n"
    return bytes(entry)
