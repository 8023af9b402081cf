"""The tap's durable state: two checksummed slots written in turn, and a witness of what the tap last did to each disk.

The file has three pages of 4096 bytes, allocated when it is made, so that writing it never needs space:
slot A, slot B, witness. ``docs/tap.md`` gives the layouts and says what a start concludes from them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec
import xxhash

from protocol.hrl import MAX_DISKS
from shared.ports import File, FileIdentity, FileSystem
from shared.tap_control import DiskChange, DiskPart, Lost, LostReason, Tracking

PAGE = 4096
WITNESS_OFFSET = 2 * PAGE
STATE_BYTES = 3 * PAGE
MAGIC = b"VMRTAP\x01\n"
MAX_TEXT = 400
"""Bytes of a loss's text, in UTF-8, that are kept,"""
MAX_CHANGES = 6
"""and so many changes of disks: with the stamps of all disks a state has to fit its slot."""

_SLOT = struct.Struct("<8sQI4x16s")
"""Magic, sequence number, length of the body, xxh3-128 of sequence number, length and body."""
_CHECKED = struct.Struct("<QI")
_WITNESS = struct.Struct("<QQQQ")
"""Time of the last batch that is wholly on the disk, newest time at which the tap was about to write, mtime, ctime."""
_CHECK = struct.Struct("<Q")
WITNESS_BYTES = 40
assert _WITNESS.size + _CHECK.size == WITNESS_BYTES
assert MAX_DISKS * WITNESS_BYTES <= PAGE


class Status(StrEnum):
    """ACTIVE from before the first write until an orderly stop has made everything durable (R16)."""

    ACTIVE = "active"
    CLEAN = "clean"


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """The identity of a disk at the moment the state was written; see FileIdentity for what it is of a device."""

    index: int
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    block: bool = False

    @classmethod
    def of(cls, index: int, identity: FileIdentity) -> Stamp:
        times = identity.mtime_ns, identity.ctime_ns
        return cls(index, identity.device, identity.inode, identity.size, *times, identity.block)


class LogEnd(msgspec.Struct, frozen=True, array_like=True):
    """Where the log ended at an orderly stop: file, offset in bytes, and the position there."""

    file: int
    offset: int
    segment: int
    entry: int
    chain: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


ChangeTuple = tuple[int, DiskPart, int | str, int | str]
"""A DiskChange as it is kept: disk, part, old and new value."""


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """Why tracking was lost, with evidence, and when (seconds since the Unix epoch)."""

    reason: LostReason
    text: str
    time: float
    changes: Annotated[list[ChangeTuple], msgspec.Meta(max_length=MAX_CHANGES)] = []

    @classmethod
    def of(cls, reason: LostReason, text: str, time: float, changes: Sequence[DiskChange] = ()) -> Loss:
        """A loss that fits the state: what is too long is cut off."""
        kept = [(each.disk, each.part, each.old, each.new) for each in changes[:MAX_CHANGES]]
        return cls(reason, text.encode()[:MAX_TEXT].decode(errors="ignore"), time, kept)

    def told(self) -> Lost:
        """As it is told to an agent."""
        changes = [DiskChange(disk=disk, part=part, old=old, new=new) for disk, part, old, new in self.changes]
        return Lost(reason=self.reason, text=self.text, time=self.time, changes=changes)


class TapState(msgspec.Struct, frozen=True, array_like=True):
    """Everything that one slot holds.

    ``first_file`` is the sequence number of the first log file of ``epoch``'s log; what has a lower number belongs to
    no log any more. ``end`` is set in a CLEAN state while tracking is on. ``doubt``: the dirty map was in force when
    this epoch began, and still is unless it says otherwise. ``samples`` is the digest of the samples that were taken
    of block devices at an orderly stop. ``hotless``: there is no hot-region map, so that one that is found later tells
    nothing of this time.
    """

    vm: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    status: Status
    boot_id: Annotated[str, msgspec.Meta(max_length=64)]
    tracking: Tracking
    epoch: Annotated[bytes, msgspec.Meta(max_length=16)]
    first_file: int
    loss: Loss | None
    disks: Annotated[list[Stamp], msgspec.Meta(max_length=MAX_DISKS)]
    end: LogEnd | None
    doubt: bool = False
    samples: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    hotless: bool = False


@dataclass(frozen=True, slots=True)
class Witness:
    """What the tap last knew of a disk; written after each batch, it outlives the process but not the host.

    ``done_ns`` is the time of the last batch that is wholly on the disk, ``before_ns`` the newest time at which the
    tap was about to write to it; ``mtime_ns`` and ``ctime_ns`` are the file's after that last batch.
    """

    done_ns: int
    before_ns: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the file says. ``damage`` names what is wrong with it; then ``state`` is not to be relied upon.

    ``gap``: both slots are sound, but writings between them are missing, as power loss leaves it before a sync.
    """

    state: TapState | None
    damage: str = ""
    gap: bool = False


class StateFile:
    """The open state file. Writing goes to the page cache, where it survives the process; ``sync`` makes it durable."""

    def __init__(self, file: File) -> None:
        self.is_new = False
        self._file = file
        self._sequence = 0

    @classmethod
    def open(cls, files: FileSystem, path: str) -> tuple[StateFile, Loaded]:
        """Open or make the file, and read it; one that can't be read is made anew. Blocks. Raises OSError."""
        if files.exists(path):
            state_file = cls(files.open(path, write=True))
            try:
                loaded = state_file._load()
                if loaded.damage:
                    state_file._file.allocate(0, STATE_BYTES)
                return state_file, loaded
            except OSError as error:
                # Where it can't be read it may not take writes either: another file takes its name.
                state_file.close()
                unreadable = Loaded(None, f"slots can't be read: {error.strerror}")
        else:
            unreadable = Loaded(None)
        part = f"{path}.part"
        files.remove(part)
        file = files.open(part, write=True, create=True, exclusive=True)
        try:
            file.allocate(0, STATE_BYTES)
            file.write(0, bytes(STATE_BYTES))
            file.sync()
        finally:
            file.close()
        state_file = cls(files.open(part, write=True))
        state_file.is_new = True
        return state_file, unreadable

    def publish(self, files: FileSystem, path: str) -> None:
        """Give a file that ``open`` has made its name, once both slots are durable. Blocks. Raises OSError."""
        if self.is_new:
            files.rename(self._file.path, path)
            files.sync_folder(path.rpartition("/")[0])
            self._file.path = path
            self.is_new = False

    def _load(self) -> Loaded:
        slots = [_read_slot(self._file.read(offset, PAGE)) for offset in (0, PAGE)]
        sequences = [slot[0] for slot in slots if isinstance(slot, tuple)]
        self._sequence = max(sequences, default=0)
        states = {slot[0]: slot[1] for slot in slots if isinstance(slot, tuple)}
        newest = states.get(self._sequence)
        for name, slot in zip("AB", slots, strict=True):
            if isinstance(slot, str):
                return Loaded(newest, f"slot {name} {slot}")
        if abs(sequences[0] - sequences[1]) != 1:
            text = f"the slots' numbers {sequences[0]} and {sequences[1]} do not follow each other"
            return Loaded(newest, text, gap=True)
        return Loaded(newest)

    def write(self, state: TapState) -> None:
        """Write the next slot. Does not wait for the disk. Raises OSError."""
        body = msgspec.msgpack.encode(state)
        sequence = self._sequence + 1
        check = xxhash.xxh3_128_digest(_CHECKED.pack(sequence, len(body)) + body)
        page = (_SLOT.pack(MAGIC, sequence, len(body), check) + body).ljust(PAGE, b"\0")
        assert len(page) == PAGE, "the state outgrew its slot"
        self._file.write(sequence % 2 * PAGE, page)
        self._sequence = sequence

    def sync(self) -> None:
        """Make what was written durable. Blocks. Raises OSError."""
        self._file.sync()

    def witness(self, slot: int, done_ns: int, before_ns: int, mtime_ns: int, ctime_ns: int) -> None:
        """Write the witness of the disk at place ``slot`` of the configuration. Raises OSError."""
        plain = _WITNESS.pack(done_ns, before_ns, mtime_ns, ctime_ns)
        record = plain + _CHECK.pack(xxhash.xxh3_64_intdigest(plain, slot))
        self._file.write(WITNESS_OFFSET + slot * WITNESS_BYTES, record)

    def read_witness(self, slot: int) -> Witness | None:
        """The witness of that disk; None if it is not valid. Raises OSError."""
        record = self._file.read(WITNESS_OFFSET + slot * WITNESS_BYTES, WITNESS_BYTES)
        plain = record[: _WITNESS.size]
        if record[_WITNESS.size :] != _CHECK.pack(xxhash.xxh3_64_intdigest(plain, slot)):
            return None
        return Witness(*_WITNESS.unpack(plain))

    def close(self) -> None:
        self._file.close()


def _read_slot(page: bytes) -> tuple[int, TapState] | str:
    """Sequence number and state of a slot, or what is wrong with it."""
    if len(page) < PAGE:
        return "is cut off"
    magic, sequence, length, check = _SLOT.unpack_from(page)
    if magic != MAGIC:
        return "was not written by this version" if magic.strip(b"\0") else "is empty"
    if length > PAGE - _SLOT.size:
        return f"claims {length} bytes"
    body = page[_SLOT.size : _SLOT.size + length]
    if xxhash.xxh3_128_digest(_CHECKED.pack(sequence, length) + body) != check:
        return "has a wrong checksum"
    try:
        return sequence, msgspec.msgpack.decode(body, type=TapState, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"is not readable: {error}"
