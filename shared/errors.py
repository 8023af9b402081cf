"""Typed errors that leave a module: each names the thing, the value and the remedy.

Errors are split by consequence. A :class:`VmreplicaError` fails one request or one VM; the process goes on.
:class:`FatalError` ends the process that raised it, after its durable state was left right.
The ``code`` is a stable identifier (never reused), ``exit_code`` the exit status of the command line.
"""

from __future__ import annotations


class VmreplicaError(Exception):
    """A request, a VM or a file can't be served; nothing was changed.

    ``text`` says what is wrong with which value; ``remedy`` says what the administrator can do about it.
    """

    code = "error"
    exit_code = 1

    def __init__(self, text: str, remedy: str = "", *, code: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.remedy = remedy
        if code is not None:
            # Plain text, also where an enumeration's member was given: it is stored and sent.
            self.code = str(code)

    def __str__(self) -> str:
        return f"{self.text} {self.remedy}".strip()


class UsageError(VmreplicaError):
    """A command, parameter or configuration value is not valid."""

    code = "usage"
    exit_code = 2


class NotFoundError(VmreplicaError):
    """The named VM, export or file does not exist."""

    code = "not_found"
    exit_code = 3


class InvalidStateError(VmreplicaError):
    """The VM is not in a valid state for the operation (Hyper-V Replica's event 32546)."""

    code = "invalid_state"
    exit_code = 4


DAMAGED_LINK = "damaged"
"""Code of an UnreachableError: TLS found that what came over a link is not what the peer sent, and ended it."""


class UnreachableError(VmreplicaError):
    """The peer, or the agent's socket, does not answer."""

    code = "unreachable"
    exit_code = 5


class ForbiddenError(VmreplicaError):
    """The caller or peer is not authorized. Unknown and forbidden get the same answer (I19)."""

    code = "forbidden"
    exit_code = 6


class StoreDamagedError(VmreplicaError):
    """Durable state is damaged, missing or from a newer version: this VM stops, the others go on."""

    code = "store_damaged"
    exit_code = 7


class StorageError(VmreplicaError):
    """Reading, writing or syncing a disk, log or store failed."""

    code = "storage"
    exit_code = 8


class NoSpaceError(StorageError):
    """A volume has no room; the text names the volume and the missing bytes."""

    code = "no_space"
    exit_code = 9


class DiskInUseError(StorageError):
    """Another process holds the disk's lock."""

    code = "disk_in_use"
    exit_code = 10


class FatalError(VmreplicaError):
    """The process can't go on; its durable state already says why."""

    code = "fatal"
    exit_code = 70
