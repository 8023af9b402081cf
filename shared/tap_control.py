"""The control of a tap: methods, parameters, results and notifications of its socket, and a typed client for them.

JSON-RPC 2.0 over the tap's control socket (``shared.admin``). Identifiers and chain hashes are 32 hex digits, times
nanoseconds or seconds since the Unix epoch as the name says. ``docs/tap.md`` describes what each method promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar

import msgspec

from protocol.position import Position
from shared.admin.client import JsonRpcClient, OnNotification
from shared.admin.methods import NoParams, Params
from shared.errors import VmreplicaError
from shared.ports import Address, Network
from shared.tap_config import TapDisk

Hex16 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=256)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Interval = Annotated[float, msgspec.Meta(ge=1, le=86400)]
Bytes = Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]

CONTROL_VERSION = 1
"""Of this module's methods and fields. A tap outlives its agent's upgrade, so agents of a version command taps of the
one before: fields and parameters are only added, with defaults, and a parameter at its default is not sent at all."""

CALL_TIMEOUT = 30.0
"""Seconds after which a method that does not wait for a disk counts as unanswered."""
SLOW_CALL_TIMEOUT = 300.0
"""The same for methods that wait until a disk or the log is synced."""
RELOG_RANGES_MAX = 256
RELOG_BYTES_MAX = 1 << 20
"""What one ``relog`` reads and logs at most: the guest's writes wait for it."""


class Tracking(StrEnum):
    """Whether the writes of the VM's disks go to the log. The values are stable."""

    OFF = "off"
    """Never begun, or ended by order."""
    ON = "on"
    LOST = "lost"
    """Nothing tells what changed since the epoch's start: whole disks have to be compared."""
    MAP = "map"
    """The log could not go on: the dirty map names every block that changed since its base."""


class LostReason(StrEnum):
    """Why tracking was lost. The values are stable and never reused."""

    LOG_FULL = "log_full"
    LOG_FAILED = "log_failed"
    """Writing or syncing the log failed."""
    LOG_DAMAGED = "log_damaged"
    """At start the log was not what the state says it has to be."""
    DISK_FAILED = "disk_failed"
    """A disk could not be synced, or not be read where its content was in doubt."""
    DISK_CHANGED = "disk_changed"
    """A disk is not as the tap left it."""
    UNCLEAN_STOP = "unclean_stop"
    """The host stopped while the tap ran."""
    STATE_DAMAGED = "state_damaged"
    """The state file is damaged or missing."""
    STATE_FAILED = "state_failed"
    """The state file could not be written."""
    BEGIN_FAILED = "begin_failed"
    """The tap ended while tracking was being started."""
    MAP_FAILED = "map_failed"
    """The dirty map could not be written, or of block devices the hot-region map."""
    DISK_UNPROVEN = "disk_unproven"
    """A block device may have been changed while no tap held it, and the policy asks for a compare."""
    DISKS_CHANGED = "disks_changed"
    """The VM gets or loses a disk: what the log knew went to the dirty map, which names a new disk wholly."""
    ABANDONED = "abandoned"
    """The resynchronization that the log was for was cancelled: what it knew went to the older dirty map."""
    REVERSED = "reversed"
    """By order: the direction of replication is reversed, and the dirty map says what changed on this side."""


class DiskPart(StrEnum):
    """What of a disk is not as it was. The values are stable."""

    KIND = "kind"
    """A file in the place of a block device, or the reverse."""
    INODE = "inode"
    ATTACHMENT = "attachment"
    """Of a block device: which attachment of it this is."""
    SIZE = "size_bytes"
    DEVICE = "device"
    MTIME = "mtime_ns"
    CTIME = "ctime_ns"
    STAMP = "stamp"
    """What the tap notes of the file after each batch."""
    CONTENT = "content"
    """SHA-256 of a place of a block device that was sampled, its first 16 bytes in hex."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Base of results and notifications. Unknown fields are ignored: agent and tap may differ in version."""


class TapPosition(Result, frozen=True):
    """A :class:`protocol.position.Position` as JSON."""

    epoch: Hex16
    segment: Count
    entry: Count
    chain: Hex16

    @classmethod
    def of(cls, position: Position) -> TapPosition:
        return cls(
            epoch=position.epoch.hex(),
            segment=position.segment,
            entry=position.entry,
            chain=position.chain.hex(),
        )

    def position(self) -> Position:
        return Position(bytes.fromhex(self.epoch), self.segment, self.entry, bytes.fromhex(self.chain))


class LogPlace(Result, frozen=True):
    """A byte of the log: log file's sequence number (its name), offset in it, and the position there.

    At the end of a file's records an END_OF_FILE record may follow: the log goes on in file ``file`` + 1, at the end
    of its file header.
    """

    file: Count
    offset: Count
    position: TapPosition


class DiskChange(Result, frozen=True):
    """``part`` of the disk with that index was ``old`` and is ``new``; times in nanoseconds since the Unix epoch."""

    disk: int
    part: DiskPart
    old: int | str
    new: int | str


class Lost(Result, frozen=True):
    """Why and when tracking was lost; ``text`` shows the evidence, and ``changes`` what of it is about disks."""

    reason: LostReason
    text: str
    time: float
    changes: list[DiskChange] = []


class Doubt(Result, frozen=True):
    """What the dirty map says: every block that changed after cut ``base_segment`` of ``base_epoch`` is in it.

    ``end_segment`` is the last segment of the log that it goes on from. ``complete``: all that the log knew is in it,
    durably. ``catch_up``: an unclean stop began it. ``bytes`` are those of its blocks.
    """

    base_epoch: Hex16
    base_segment: Count
    end_segment: Count
    complete: bool
    catch_up: bool
    bytes: int


class LogUsage(Result, frozen=True):
    """Bytes of the log files that hold unreleased log, their limit, the number of files, and where they are."""

    used: int
    limit: int
    files: int
    file_bytes: int
    folder: str


class GuestLatency(Result, frozen=True):
    """What the tap's NBD clients asked for since the tap began, and how many seconds that took, added up.

    From decoded to reply queued; a change with FUA counts as a flush. ``passes`` are the passes over received bytes
    that these requests came in, and ``starved_seconds`` is how long the tap's thread could have run and had no
    processor.
    """

    reads: Count = 0
    read_seconds: float = 0.0
    writes: Count = 0
    write_seconds: float = 0.0
    flushes: Count = 0
    flush_seconds: float = 0.0
    passes: Count = 0
    starved_seconds: float = 0.0


class DiskStatus(Result, frozen=True):
    """One disk as the tap serves it; ``failed`` says why its flushes fail, else it is empty.

    ``found_size`` is the size that it was seen to have last, None where the tap does not tell; ``block`` says that it
    is a block device.
    """

    index: int
    path: str
    size: int
    export: str
    uri: str
    clients: int
    writes: int
    bytes_written: int
    failed: str = ""
    found_size: int | None = None
    block: bool = False


class DiskFile(Result, frozen=True):
    """The bytes that a disk's file, or block device, has at the moment."""

    size: int
    block: bool


class Layers(Result, frozen=True):
    """Disks in layers. ``written_bytes`` are those of the blocks that overlays have.

    ``committed``: what lies over the disks is being brought into them, ``done_bytes`` of about ``total_bytes`` so far;
    ``failed`` says why that does not go on at the moment, else it is empty.
    """

    committed: bool
    written_bytes: Count
    done_bytes: Count = 0
    total_bytes: Count = 0
    failed: str = ""


class Refused(Result, frozen=True):
    """The tap takes no writes, by the order ``id``, and since when (seconds since the Unix epoch).

    ``id`` is empty where the record of the order can't be read.
    """

    id: str
    text: str
    time: float


class TapStatus(Result, frozen=True):
    """Everything about a tap.

    ``position`` is the end of the log, ``sealed`` the newest sealed and durable cut (None before the first), and
    ``first_segment`` the oldest segment that is wholly kept; all None or 0 while nothing is tracked. ``epoch`` stays
    that of the last tracking after it was lost. ``last_write_time`` is None before the first write of this process.
    """

    vm: str
    name: str
    pid: int
    version: str
    boot_id: str
    tracking: Tracking
    lost: Lost | None
    epoch: Hex16 | None
    position: TapPosition | None
    sealed: TapPosition | None
    first_segment: int
    log: LogUsage
    disks: list[DiskStatus]
    interval: float
    nbd_uri: str
    writes: int
    bytes_written: int
    last_write_time: float | None
    doubt: Doubt | None = None
    """Set while the dirty map is in force: also while a fresh log is tracked, until its epoch is committed."""
    hot_bytes: int = 0
    """Bytes of the regions that a power loss now would leave in doubt."""
    hot_regions: int = 0
    hot_region_bytes: int = 0
    """The most regions that are hot at a time, and the size of one; 0 where the tap does not tell."""
    latency: GuestLatency = GuestLatency()
    layers: Layers | None = None
    """Set while disks are in layers, as after a failover that can be undone."""
    control: int = 0
    """CONTROL_VERSION of the tap's program; 0 where it is from before there was one."""
    fenced: str | None = None
    """Why whoever connects now may only read; None where the tap does not tell."""
    refused: Refused | None = None
    """Set while the tap takes no writes."""


# --- parameters ----------------------------------------------------------------------------------------------------


class BeginParams(Params, frozen=True):
    epoch: Hex16


class AbandonParams(Params, frozen=True):
    """The epoch of a resync that was cancelled."""

    epoch: Hex16


class TryDiskParams(Params, frozen=True):
    """``try_disk``: one disk, as the tap's configuration has it."""

    disk: TapDisk


class EnlargeParams(Params, frozen=True, omit_defaults=True):
    """``enlarge``: a disk by its index, and the bytes that its file is to have; 0 only looks at it."""

    disk: Count
    size: Count = 0


class ReasonParams(Params, frozen=True, omit_defaults=True):
    """Of ``stop_tracking`` and ``cut``. A cut for a resync is asked for with the reason ``resync``."""

    reason: Text = ""


class SetParams(Params, frozen=True, omit_defaults=True):
    """What is None stays, and is not sent: an older tap would refuse what it does not know.

    The tap keeps it until it ends; the agent writes it to the tap's configuration, too.
    """

    interval: Interval | None = None
    log_limit: Bytes | None = None
    hot_regions: Bytes | None = None
    fenced: Text | None = None


class LocateParams(Params, frozen=True, omit_defaults=True):
    """``entry`` and ``chain`` together name a point behind a record; without both it is the segment's start."""

    epoch: Hex16
    segment: Count
    entry: Count | None = None
    chain: Hex16 | None = None


class LeaseParams(Params, frozen=True, omit_defaults=True):
    """Keep log files from ``from_file`` on for ``seconds``; replaces the former lease of the same client.

    A ``weak`` one ends at once where the log needs a file and there is none.
    """

    from_file: Count
    seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)]
    weak: bool = False


class RefuseParams(Params, frozen=True, omit_defaults=True):
    """``text`` says why, for whoever tries to write. ``used``: also where a client is connected."""

    id: Hex16
    text: Text
    used: bool = False


class AllowParams(Params, frozen=True):
    """The ``id`` that the status tells."""

    id: Annotated[str, msgspec.Meta(max_length=32)]


class ReleaseParams(Params, frozen=True):
    """Everything up to and including this sealed segment is acknowledged as durable by the replica."""

    epoch: Hex16
    segment: Count


class RelogParams(Params, frozen=True):
    """Ranges of a disk, offset and length in bytes, of RELOG_BYTES_MAX together at most; none: only tell the place."""

    disk: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    ranges: Annotated[list[tuple[Count, Count]], msgspec.Meta(max_length=RELOG_RANGES_MAX)]


class KnowsCutParams(Params, frozen=True):
    """A cut of the dirty map's base epoch, with its chain."""

    epoch: Hex16
    segment: Count
    chain: Hex16


class KnowsCut(Result, frozen=True):
    """``known``: the log that the dirty map goes on from had exactly this cut."""

    known: bool


# --- notifications -------------------------------------------------------------------------------------------------


class Progress(Result, frozen=True):
    """The log is written, and its writes are on the disks, up to ``offset`` of log file ``file``."""

    file: Count
    offset: Count
    epoch: Hex16
    segment: Count
    entry: Count


class Sealed(Result, frozen=True):
    """A cut is sealed and the log up to it durable. ``file`` and ``offset`` are the end of its seal."""

    epoch: Hex16
    segment: Count
    entry: Count
    chain: Hex16
    file: Count
    offset: Count
    time_ns: Count

    def position(self) -> Position:
        return Position(bytes.fromhex(self.epoch), self.segment, self.entry, bytes.fromhex(self.chain))


class TrackingChanged(Result, frozen=True):
    """Tracking was begun, ended or lost; durable when it is told."""

    tracking: Tracking
    epoch: Hex16 | None
    lost: Lost | None


Notification = Progress | Sealed | TrackingChanged
NOTIFICATIONS: dict[str, type[Notification]] = {
    "progress": Progress,
    "sealed": Sealed,
    "tracking": TrackingChanged,
}


def notification_name(notification: Notification) -> str:
    """The method under which the notification is sent."""
    return next(name for name, kind in NOTIFICATIONS.items() if isinstance(notification, kind))


def is_outdated(status: TapStatus, version: str) -> bool:
    """Whether the tap runs another program than one of ``version``, which is empty where that does not matter."""
    return bool(version) and (status.version != version or status.control != CONTROL_VERSION)


class TapProtocolError(VmreplicaError):
    """The tap answered what this agent can't read, or does not know what is asked of it: it is of another version."""

    code = "tap_protocol"


# What a tap answers to a method or a parameter that came after its version.
_UNKNOWN_TO_IT = frozenset({"unknown_method", "invalid_params"})


R = TypeVar("R")


def _read(plain: Any, kind: type[R], method: str) -> R:
    try:
        return msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError as error:
        raise TapProtocolError(
            f"The tap's {method} is not readable: {error}.", "Run agent and tap from the same version."
        ) from None


# --- client --------------------------------------------------------------------------------------------------------


class TapClient:
    """Commands one tap. Methods raise what the tap raised, UnreachableError when it is gone, or TapProtocolError."""

    def __init__(self, rpc: JsonRpcClient) -> None:
        self.rpc = rpc

    @classmethod
    async def connect(
        cls, network: Network, path: str, *, timeout: float, on_notification: OnNotification | None = None
    ) -> Self:
        """Connect to the control socket ``path``; raises UnreachableError.

        With ``on_notification`` notifications go there as plain values (see :func:`read_notification`), else to
        :meth:`notifications`.
        """
        address = Address(unix_path=path)
        return cls(await JsonRpcClient.connect(network, address, timeout, on_notification=on_notification))

    async def _call(self, method: str, params: Params, kind: type[R], timeout: float = CALL_TIMEOUT) -> R:
        try:
            plain = await self.rpc.call(method, msgspec.to_builtins(params), timeout)
        except VmreplicaError as error:
            if error.code not in _UNKNOWN_TO_IT:
                raise
            raise TapProtocolError(
                f"The running tap is of another version and does not know `{method}` as it is asked for: {error.text}",
                "It is replaced at its next start: shut the VM down and stop its tap, which the agent then starts.",
            ) from None
        return _read(plain, kind, method)

    async def status(self) -> TapStatus:
        return await self._call("status", NoParams(), TapStatus)

    async def latency(self, timeout: float) -> GuestLatency:
        """The status's latency alone, which costs the tap next to nothing; ``timeout`` in seconds."""
        return await self._call("latency", NoParams(), GuestLatency, timeout)

    async def begin(self, epoch: bytes) -> TapStatus:
        """Track in a fresh log of ``epoch``; what was written before is on the disks when this returns (R6).

        A no-op if that epoch is tracked already. Raises InvalidStateError for an epoch whose tracking was lost or
        ended, NoSpaceError where no log file can be made.
        """
        return await self._call("begin", BeginParams(epoch=epoch.hex()), TapStatus, SLOW_CALL_TIMEOUT)

    async def stop_tracking(self, reason: str) -> TapStatus:
        """End tracking and drop the log."""
        return await self._call("stop_tracking", ReasonParams(reason=reason), TapStatus, SLOW_CALL_TIMEOUT)

    async def abandon(self, epoch: bytes) -> TapStatus:
        """Give up the log of ``epoch``, whose resync was cancelled: an older dirty map takes over what it knows.

        Where there is none, nobody tells any more what changes. A no-op unless that epoch is tracked.
        """
        return await self._call("abandon", AbandonParams(epoch=epoch.hex()), TapStatus, SLOW_CALL_TIMEOUT)

    async def try_disk(self, disk: TapDisk) -> None:
        """Whether the tap could serve one more disk: it opens and locks it, and lets go of it. Raises why it can't."""
        await self._call("try_disk", TryDiskParams(disk=disk), dict[str, Any], SLOW_CALL_TIMEOUT)

    async def enlarge(self, disk: int, size: int = 0) -> DiskFile:
        """Make a disk's file ``size`` bytes long, durably, as a write of the tap's own; 0 only looks at it.

        The tap goes on serving the size that it has. Raises why it can't.
        """
        return await self._call("enlarge", EnlargeParams(disk=disk, size=size), DiskFile, SLOW_CALL_TIMEOUT)

    async def leave_log(self, reason: str) -> TapStatus:
        """Track in the dirty map instead of the log, before the tap is stopped to be started with other disks.

        The map is complete when this returns, unless tracking was lost over it. A no-op where no log is tracked.
        """
        return await self._call("leave_log", ReasonParams(reason=reason), TapStatus, SLOW_CALL_TIMEOUT)

    async def forget(self, epoch: bytes) -> TapStatus:
        """Let go of the dirty map from before ``epoch``, which is tracked: what is in it is on record elsewhere.

        A no-op where another epoch is tracked, or there is no such map.
        """
        return await self._call("forget", AbandonParams(epoch=epoch.hex()), TapStatus, SLOW_CALL_TIMEOUT)

    async def to_map(self) -> TapStatus:
        """The dirty map takes the place of the log; it is complete once ``doubt.complete`` says so.

        A no-op where it has already. Raises InvalidStateError where nothing is tracked or there is no map.
        """
        return await self._call("to_map", NoParams(), TapStatus, SLOW_CALL_TIMEOUT)

    async def cut(self, reason: str = "") -> Sealed:
        """Seal the current segment; durable when this returns. Raises InvalidStateError while nothing is tracked."""
        return await self._call("cut", ReasonParams(reason=reason), Sealed, SLOW_CALL_TIMEOUT)

    async def set(
        self,
        *,
        interval: float | None = None,
        log_limit: int | None = None,
        hot_regions: int | None = None,
        fenced: str | None = None,
    ) -> TapStatus:
        params = SetParams(interval=interval, log_limit=log_limit, hot_regions=hot_regions, fenced=fenced)
        return await self._call("set", params, TapStatus)

    async def locate(self, position: Position) -> LogPlace:
        """Where the log goes on after ``position``, its chain verified. Raises NotFoundError."""
        params = LocateParams(
            epoch=position.epoch.hex(),
            segment=position.segment,
            entry=position.entry,
            chain=position.chain.hex(),
        )
        return await self._call("locate", params, LogPlace, SLOW_CALL_TIMEOUT)

    async def locate_segment(self, epoch: bytes, segment: int) -> LogPlace:
        """Where ``segment`` starts: before its SEGMENT record. Raises NotFoundError."""
        params = LocateParams(epoch=epoch.hex(), segment=segment)
        return await self._call("locate", params, LogPlace, SLOW_CALL_TIMEOUT)

    async def lease(self, from_file: int, seconds: float, *, weak: bool = False) -> None:
        await self._call("lease", LeaseParams(from_file=from_file, seconds=seconds, weak=weak), dict[str, Any])

    async def release(self, epoch: bytes, segment: int) -> None:
        """Raises InvalidStateError for an epoch that is not tracked or a segment that is not sealed and durable."""
        await self._call("release", ReleaseParams(epoch=epoch.hex(), segment=segment), dict[str, Any])

    async def relog(self, disk: int = 0, ranges: Sequence[tuple[int, int]] = ()) -> LogPlace:
        """Log again what a disk holds in ranges (offset, length), in the order of the guest's writes.

        Returns a place behind it: everything that is logged up to there is on the disks. Raises StorageError where a
        range can't be read, NoSpaceError where the log is nearly full, InvalidStateError while nothing is tracked.
        """
        return await self._call("relog", RelogParams(disk=disk, ranges=list(ranges)), LogPlace, SLOW_CALL_TIMEOUT)

    async def refuse_writes(self, identity: bytes, text: str, *, used: bool = False) -> TapStatus:
        """Take no writes any more, also after a restart; what was taken before is on the disks when this returns.

        Raises InvalidStateError where a client is connected, unless ``used``; StorageError where that can't be made
        durable, and writes are taken as before.
        """
        params = RefuseParams(id=identity.hex(), text=text[:256], used=used)
        return await self._call("refuse_writes", params, TapStatus, SLOW_CALL_TIMEOUT)

    async def allow_writes(self, identity: str) -> TapStatus:
        """End the refusal ``identity``, as the status names it. A no-op while writes are taken."""
        return await self._call("allow_writes", AllowParams(id=identity), TapStatus, SLOW_CALL_TIMEOUT)

    async def knows_cut(self, cut: Position) -> bool:
        """Whether the log that the dirty map goes on from had exactly this cut (R34)."""
        params = KnowsCutParams(epoch=cut.epoch.hex(), segment=cut.segment, chain=cut.chain.hex())
        return (await self._call("knows_cut", params, KnowsCut)).known

    async def settle(self) -> TapStatus:
        """Bring what lies over the disks into them, in the background: from now on that can't be undone."""
        return await self._call("settle", NoParams(), TapStatus)

    async def subscribe(self) -> TapStatus:
        """Ask for notifications; the status is that at the moment from which on they are complete."""
        return await self._call("subscribe", NoParams(), TapStatus)

    async def stop(self) -> None:
        """Stop in order; the connection ends when the tap is about to exit."""
        await self._call("stop", NoParams(), dict[str, Any], SLOW_CALL_TIMEOUT)

    async def notifications(self) -> AsyncIterator[Notification]:
        """Notifications from the first step of the iteration on, until the connection ends."""
        async for method, params in self.rpc.notifications():
            notification = read_notification(method, params)
            if notification is not None:
                yield notification

    def close(self) -> None:
        self.rpc.close()


def read_notification(method: str, params: dict[str, Any]) -> Notification | None:
    """The typed notification; None for a method this version does not know. Raises TapProtocolError."""
    kind = NOTIFICATIONS.get(method)
    return None if kind is None else _read(params, kind, method)
