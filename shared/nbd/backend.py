"""What an NBD server serves: the interface of an export, and of the directory that finds exports by name."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from shared.nbd.constants import Errno
from shared.ports import Extent


class CommandKind(Enum):
    """The commands that change a disk."""

    WRITE = "write"
    ZEROES = "zeroes"
    TRIM = "trim"


@dataclass(slots=True)
class Mutation:
    """One change of an export. Offset and length are in bytes, multiples of 512, inside the export.

    ``payload`` is set for WRITE only: a view that is neither changed nor reused until the result of the
    ``mutate`` call that got it is known. ``no_hole`` and ``fast`` are the flags of WRITE_ZEROES: keep the space
    allocated; fail with ENOTSUP rather than be slower than a write. A length without payload may reach 4 GiB.
    """

    kind: CommandKind
    offset: int
    length: int
    payload: memoryview | None
    fua: bool
    no_hole: bool
    fast: bool
    error: int = 0
    """An ``Errno`` set by the export; 0 means done."""


class ExportBackend(Protocol):
    """One disk to serve. All calls come on the event loop; requests were validated before.

    Attributes stay the same while the export is served; ``read_only`` may change, for clients that connect then.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes; a multiple of 512, since nothing behind the last multiple can be reached."""

    @property
    def read_only(self) -> bool: ...

    @property
    def description(self) -> str:
        """For people; may be empty."""

    def read_cached(self, offset: int, length: int) -> bytes | memoryview | None:
        """Exactly ``length`` bytes if that needs no waiting, else None. What is returned never changes afterwards."""

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Exactly ``length`` bytes, read off the loop. Raises OSError. What is returned never changes afterwards."""
        ...

    def mutate(self, batch: list[Mutation]) -> Awaitable[None] | None:
        """Perform all changes in order, setting the ``error`` of each that failed.

        None means that all is done; this is the hot path. An awaitable means that something had to wait; the same
        connection's later changes are held back until it is done. Never raises for anything a client asked for.
        When the awaitable is cancelled, the client is gone: a change not begun yet must not happen any more.
        """

    async def flush(self) -> int:
        """Make everything durable that was completed before the call, over all connections; returns an ``Errno``."""
        ...

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """The range as data and holes: in order, without gaps, clipped to the range. Raises OSError."""
        ...

    async def cache(self, offset: int, length: int) -> None:
        """A hint that the range is going to be read. Raises OSError."""


class ExportDirectory(Protocol):
    """The exports of a server."""

    def find(self, name: str) -> ExportBackend | None:
        """The export of that name; "" is the default export if there is exactly one.

        It is the same object every time for as long as it is served: connections to it share its flushes.
        """

    def names(self) -> list[tuple[str, str]]:
        """Name and description of every export that clients may see."""


_ERRNO_OF_OS = {
    errno.EPERM: Errno.EPERM,
    errno.EACCES: Errno.EPERM,
    errno.EROFS: Errno.EPERM,
    errno.ENOMEM: Errno.ENOMEM,
    errno.EINVAL: Errno.EINVAL,
    errno.ENOSPC: Errno.ENOSPC,
    errno.EDQUOT: Errno.ENOSPC,
    errno.EFBIG: Errno.ENOSPC,
    errno.EOVERFLOW: Errno.EOVERFLOW,
    errno.EOPNOTSUPP: Errno.ENOTSUP,
    errno.ESHUTDOWN: Errno.ESHUTDOWN,
}


def errno_of(error: OSError) -> Errno:
    """The protocol's number for an operating system's error; what the protocol doesn't know is EIO."""
    return _ERRNO_OF_OS.get(error.errno or 0, Errno.EIO)
