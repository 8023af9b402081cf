"""Why a connection ended: one typed reason, one sentence of detail."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class EndReason(Enum):
    """Every way in which a client's connection ends. The values are stable: they appear in logs and status."""

    DISCONNECTED = "disconnected"
    """The client said goodbye (DISC or ABORT); everything it asked for was done."""
    CLOSED_BY_CLIENT = "closed by client"
    """The client closed the connection without a goodbye."""
    TRANSPORT_FAILED = "transport failed"
    """The socket reported an error."""
    BAD_CLIENT_FLAGS = "bad client flags"
    BAD_OPTION_MAGIC = "bad option magic"
    BAD_REQUEST_MAGIC = "bad request magic"
    OPTION_NOT_ALLOWED = "option not allowed"
    """An option other than EXPORT_NAME from a client that does not speak fixed newstyle."""
    OPTION_TOO_LARGE = "option too large"
    TOO_MANY_OPTIONS = "too many options"
    UNKNOWN_EXPORT = "unknown export"
    """EXPORT_NAME named an export that does not exist; this option has no error reply."""
    HANDSHAKE_TIMEOUT = "handshake timeout"
    TOO_MANY_CONNECTIONS = "too many connections"
    STALLED = "stalled"
    """It held shared memory without any progress while other connections waited for memory."""
    SUPERSEDED = "superseded"
    """The client was gone and had connected anew: what it left unfinished must not overtake the new connection."""
    SERVER_CLOSED = "server closed"
    INTERNAL_ERROR = "internal error"
    """A bug: an export raised what it must not raise. The detail names the exception."""

    @property
    def orderly(self) -> bool:
        """Whether this is how connections usually end."""
        return self in _ORDERLY


_ORDERLY = frozenset({EndReason.DISCONNECTED, EndReason.CLOSED_BY_CLIENT, EndReason.SERVER_CLOSED})


@dataclass(frozen=True, slots=True)
class Ending:
    """The reason and what exactly was wrong."""

    reason: EndReason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}" if self.detail else self.reason.value
