"""The ports: the interfaces to clock, network, disk, randomness, threads, store and other processes.

The product uses the real ones of this package; the deterministic simulation brings its own, so that the whole
pair runs in one thread under a simulated world. Code above a port never calls ``time``, ``os``, ``socket``,
``random`` or a thread itself. Waiting is always ``asyncio``: the event loop's time is the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import tzinfo
from typing import Any, Protocol, TypeVar

from shared.ports.trust import Trust

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview


# --- clock and randomness ---------------------------------------------------------------------------------


class Clock(Protocol):
    """Time. Intervals use ``monotonic``; ``wall`` is shown, recorded, put into headers, and what windows go by."""

    def monotonic(self) -> float:
        """Seconds of the event loop's clock; never goes back."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, UTC; may jump."""

    def boot_id(self) -> str:
        """Identity of this boot of the host's kernel: page cache survives only within one."""

    def zone(self) -> tzinfo:
        """The host's time zone: daily windows and times that administrators give are in it."""


class Random(Protocol):
    """Randomness: keys, identifiers, jitter."""

    def bytes(self, count: int) -> bytes:
        """``count`` bytes fit for keys and UUIDs."""

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high], for jitter."""


# --- workers ----------------------------------------------------------------------------------------------


class Workers(Protocol):
    """Threads for blocking file work: reading, hashing, syncing. The event loop only awaits the result."""

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Run ``work(*args)`` off the loop and return its result or raise its exception.

        A cancelled caller does not stop the work; files must stay open until it ended.
        """
        ...


# --- files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells one state of a file from another (R18). Times in nanoseconds, size in bytes.

    A ``block`` device has no times that prove anything, they are 0; its ``inode`` is the kernel's number of this
    attachment of it, and that and ``device`` mean nothing after another boot.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    block: bool = False


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a file: ``hole`` reads as zeroes and is not stored. Offset and length in bytes."""

    offset: int
    length: int
    hole: bool


class ReadableFile(Protocol):
    """What of an open file is needed to hash it; the rules are those of :class:`File`."""

    @property
    def path(self) -> str: ...

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int: ...

    def size(self) -> int: ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]: ...


class File(Protocol):
    """One open file. All calls block (call them in a worker, or inline where the design says so).

    They raise OSError. Reads and writes are complete: short transfers and EINTR are retried inside; a read
    past the end returns less. A failed ``sync`` is final: the caller never retries it as if it had worked (R17).
    """

    path: str

    def read(self, offset: int, length: int) -> bytes: ...

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` from ``offset``; returns the bytes read, fewer only at the end of the file."""

    def read_ranges(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill ``buffer`` with the ranges, one behind the other; EIO where one of them is cut short by the end."""

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """What ``read`` returns if it is wholly in the page cache, else None at once (RWF_NOWAIT)."""

    def expect_sequential(self) -> None:
        """Long runs are going to be read in order: read further ahead. Changes nothing else, and never fails."""

    def write(self, offset: int, data: Buffer) -> None: ...

    def write_many(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the buffers one after another from ``offset`` (pwritev)."""

    def write_behind(self, offset: int, length: int) -> None:
        """Begin to bring what was written there to the disk, so that ``sync`` has less to do. Never fails."""

    def punch_hole(self, offset: int, length: int) -> None:
        """Make the range, as far as the file goes, read as zeroes and free its space, or write zeroes instead."""

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range, as far as the file goes, read as zeroes, its space allocated (FALLOC_FL_ZERO_RANGE)."""

    def allocate(self, offset: int, length: int) -> None:
        """Reserve space (fallocate, file may grow); raises OSError ENOSPC where there is none."""

    def truncate(self, size: int) -> None: ...

    def size(self) -> int: ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The range as alternating data and hole extents, in order, gapless, clipped to the range.

        What lies past the end of the file is a hole.
        """

    def identity(self) -> FileIdentity: ...

    def sync(self) -> None:
        """fdatasync plus whatever metadata is needed to read the data back."""

    def lock(self) -> None:
        """Take the exclusive OFD lock and QEMU's image locks, and before them claim a block device.

        Raises shared.errors.DiskInUseError if another process holds one of them, or the device is mounted, say.
        """

    def close(self) -> None: ...


class FileSystem(Protocol):
    """Files by path. All calls block and raise OSError.

    Nothing follows a symbolic link in the last component.
    """

    def lodge(self, folder: str) -> None:
        """From now on nothing that lies below the folder, which another user may change, is reached through a link of
        his, whatever he puts where meanwhile, and only his own files are opened as disks there (docs/security.md).
        """

    def open(self, path: str, *, write: bool = False, create: bool = False, exclusive: bool = False) -> File:
        """Open a regular file; ``create`` makes it with mode 0600, ``exclusive`` refuses an existing one.

        Anything else than a regular file raises StorageError, and so does one that neither we, nor root, nor the owner
        of its folder owns.
        """

    def open_disk(self, path: str, *, write: bool = False) -> File:
        """Open a VM's disk: a regular file, or a block device, or a link below /dev to one.

        Anything else raises StorageError.
        """

    def exists(self, path: str) -> bool: ...

    def list(self, path: str) -> list[str]:
        """Names in the folder, sorted; an empty list where the folder is missing."""

    def make_folder(self, path: str, *, inherited: bool = False) -> None:
        """mkdir -p with mode 0700. One that is there has to be a folder of ours or root's that nobody else may write
        in, else StorageError. ``inherited``: or of whoever its parent is, as a file may be (docs/reversing.md).
        """

    def rename(self, source: str, target: str) -> None:
        """Atomic; durable only after ``sync_folder`` of the folder."""

    def remove(self, path: str) -> None:
        """Unlink; a missing file is no error."""

    def remove_tree(self, path: str) -> None:
        """rm -r of a folder that is ours; a missing one is no error."""

    def sync_folder(self, path: str) -> None: ...

    def allocated(self, path: str) -> int:
        """Bytes that a file takes on its volume, holes not counted; 0 for a folder, and for what is missing."""

    def free_space(self, path: str) -> int:
        """Bytes available to us on the volume that holds ``path``."""


# --- network ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect or listen: TCP (``host``, ``port``, ``tls``) or a unix path.

    ``tls`` asks for mutual TLS 1.3, as client when connecting and as server when listening. ``mode`` and
    ``group`` (a name, empty for our own) are those of a listening unix socket's file; ``other_groups`` may use it, too.
    """

    host: str = ""
    port: int = 0
    unix_path: str = ""
    tls: bool = False
    mode: int = 0o600
    group: str = ""
    other_groups: tuple[str, ...] = ()

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.unix_path or f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end.

    ``fingerprint`` is the SHA-256 of the certificate's SubjectPublicKeyInfo in lower hex, ``names`` are its
    DNS names and IP addresses, ``not_before`` and ``not_after`` its first and last second as seconds since the epoch,
    ``issuer`` names its CA. ``certificates`` is its chain as it was verified, each as DER. User, group and process are
    those of the connecting process of a unix socket.
    """

    address: str = ""
    fingerprint: str = ""
    names: tuple[str, ...] = ()
    not_before: float = 0.0
    not_after: float = 0.0
    issuer: str = ""
    certificates: tuple[bytes, ...] = field(default=(), repr=False)
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    groups: tuple[int, ...] = field(default=())


class Receiver(Protocol):
    """The consumer of a link's bytes. Calls come on the event loop, in order, never after ``lost``."""

    def get_buffer(self, size_hint: int) -> memoryview | bytearray:
        """A non-empty writable buffer to receive into."""

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were received into the buffer that ``get_buffer`` returned last."""

    def lost(self, error: Exception | None) -> None:
        """The link is gone; None after an orderly end of the peer or our own close."""


class Link(Protocol):
    """One ordered byte stream to a peer."""

    peer: Peer

    def attach(self, receiver: Receiver) -> None:
        """Start delivering bytes to ``receiver``. Called exactly once, right after connect or accept."""

    def write(self, *buffers: Buffer) -> None:
        """Queue bytes; never blocks. The buffers must not change afterwards. After loss it is a no-op."""

    async def drain(self) -> None:
        """Wait until the send queue is below its high-water mark; returns at once after loss."""

    def pause(self) -> None:
        """Stop delivering received bytes (back-pressure)."""

    def resume(self) -> None: ...

    def close(self) -> None:
        """Send what is queued, then end in order."""

    def abort(self) -> None:
        """End at once; queued bytes are lost."""


class Listener(Protocol):
    """A listening address."""

    address: Address

    async def close(self) -> None:
        """Stop accepting; established links stay."""


class Network(Protocol):
    """Streams to peers. ``trust`` judges those that were accepted, again and again."""

    @property
    def trust(self) -> Trust: ...

    async def connect(self, address: Address, *, timeout: float) -> Link:
        """Raises shared.errors.UnreachableError (can heal) or ForbiddenError (certificates)."""

    async def listen(self, address: Address, accept: Callable[[Link], None]) -> Listener:
        """``accept`` is called on the event loop for every new link (with TLS: after the handshake)."""


# --- store ------------------------------------------------------------------------------------------------


class Store(Protocol):
    """The durable state of one VM on one agent: named records and an append-only event list.

    A record is a plain value of dict, list, str, int, float, bool, None and bytes. One ``commit`` is one
    transaction: all or nothing, durable when it returns. Raises shared.errors.StoreDamagedError for damaged,
    missing or newer state.
    """

    def get(self, name: str) -> Any:
        """The record as last committed, or None. Served from memory; never blocks."""

    def names(self, prefix: str = "") -> list[str]: ...

    async def commit(self, changes: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> None:
        """Replace the named records (None deletes one) and append events, in one durable transaction.

        A value is copied at the call; commits are durable in the order of their calls.
        """

    async def events(self, *, limit: int, after: int = 0) -> list[dict[str, Any]]:
        """The newest ``limit`` events with ``id`` above ``after``, oldest first; ids rise without reuse."""

    async def close(self) -> None: ...


class Stores(Protocol):
    """The stores of an agent, one for each VM, so that damage to one leaves the others alone."""

    async def open(self, folder: str, *, create: bool = False) -> Store:
        """Open ``folder``'s state; ``create`` makes a fresh one and refuses an existing one."""

    async def rebuild(self, folder: str, records: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> str:
        """Put a fresh state with these records and events in the place of a damaged or missing one.

        A crash leaves one or the other. What was there is kept aside: returns its path, empty where there was nothing.
        """


# --- other processes --------------------------------------------------------------------------------------


class TapLauncher(Protocol):
    """Starts a tap process for a folder that holds its configuration. The tap outlives whoever started it."""

    async def start(self, folder: str) -> None:
        """Returns once the process runs (not yet: serves). Raises VmreplicaError with the reason."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All ports together, as agents and tap receive them.

    ``background`` are workers to which processor and disks go last, for what has to stand back behind guests.
    """

    clock: Clock
    random: Random
    workers: Workers
    background: Workers
    files: FileSystem
    network: Network
    stores: Stores
    taps: TapLauncher

    def in_background(self) -> Ports:
        """The same, with the background workers in the place of the others."""
        return replace(self, workers=self.background)
