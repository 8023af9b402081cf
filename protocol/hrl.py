"""The HRL's bytes: file header, segment, batch, seal and end-of-file records, and the chain that binds them.

The same records lie in a tap's log files, cross the wire, fill a replica's spool files and its differencing files.
All integers are little-endian. ``docs/hrl-format.md`` is the description of the format; its test vectors are read by
the tests.

A log file is a 4096-byte file header followed by records. A record is an 80-byte header and a body::

    offset size field
    0      4    magic b"HRLR"
    4      1    kind: 1 segment, 2 batch, 3 seal, 4 end of file, 5 settled range, 6 undo index, 7 undo end
    5      1    version, 1
    6      2    flags, 0
    8      4    body length in bytes, a multiple of 8, at most MAX_BODY
    12     4    count: entries in a batch, disks in a segment record, batches in an undo index, else 0
    16     16   epoch
    32     8    segment number
    40     8    number of the first entry in a batch; of the next entry in every other kind
    48     8    time, nanoseconds since the Unix epoch
    56     8    xxh3-64 of bytes 0..55: the lengths can be trusted before the body is read
    64     16   chain: xxh3-128 of the previous record's chain, bytes 0..63, and the body

The chain runs through segment, batch, seal and settled records of an epoch, across files. It starts from
``chain_seed``. End-of-file records carry the running chain but do not advance it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import xxhash

from protocol.entries import (
    ENTRY_BYTES,
    ENTRY_DTYPE,
    MAX_DISK_BYTES,
    MAX_ENTRIES,
    MAX_PAYLOAD,
    EntryKind,
    decode_table,
    encode_entry,
)
from protocol.errors import LogError
from protocol.position import CHAIN_BYTES, EPOCH_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

VERSION = 1
FILE_HEADER_BYTES = 4096
FILE_MAGIC = b"VMRHRL\r\n"
RECORD_MAGIC = b"HRLR"
RECORD_HEADER_BYTES = 80
MAX_BODY = MAX_PAYLOAD + MAX_ENTRIES * ENTRY_BYTES
MAX_RECORD = RECORD_HEADER_BYTES + MAX_BODY
MAX_DISKS = 64


class RecordKind(IntEnum):
    """Kinds of records. The numbers never change and are never reused."""

    SEGMENT = 1
    BATCH = 2
    SEAL = 3
    END_OF_FILE = 4
    SETTLED = 5
    UNDO_INDEX = 6
    UNDO_END = 7
    UNSETTLED = 8


class SealReason(IntEnum):
    """Why a segment was cut. The numbers never change and are never reused."""

    INTERVAL = 1
    COMMAND = 2
    RESYNC = 3
    SHUTDOWN = 4
    RECOVERY = 5


_HEADER = struct.Struct("<4sBBHII16sQQQQ16s")
_HEADER_PLAIN = struct.Struct("<4sBBHII16sQQQ")
_CHECK = struct.Struct("<Q")
_CHECKED_BYTES = 64
_SEGMENT_DISK = struct.Struct("<HHIQ16s")
_SEAL = struct.Struct("<B7sQQ")
_SETTLED = struct.Struct("<H6sQQ")
_FILE_HEADER = struct.Struct("<8sHHI16sQQ16sQQ16s")
_FILE_CHECK_OFFSET = FILE_HEADER_BYTES - 16
assert _HEADER.size == RECORD_HEADER_BYTES
assert _HEADER_PLAIN.size + _CHECK.size == _CHECKED_BYTES
SEGMENT_DISK_BYTES = _SEGMENT_DISK.size
SEAL_BODY_BYTES = _SEAL.size
SETTLED_BODY_BYTES = _SETTLED.size
UNDO_INDEX_ENTRY_BYTES = 48
UNDO_END_BODY_BYTES = 104
"""The bodies of undo logs' records are those of :mod:`protocol.undo`."""

_SEAL_REASONS = {int(reason): reason for reason in SealReason}
_RECORD_KINDS = {int(kind): kind for kind in RecordKind}
_ZERO_HEADER = bytes(RECORD_HEADER_BYTES)


@dataclass(frozen=True, slots=True)
class Geometry:
    """One disk of the VM as a segment record names it: index, size in bytes, identity (16 bytes)."""

    index: int
    size: int
    uuid: bytes


@dataclass(slots=True)
class RecordHeader:
    """The decoded 80-byte header of a record; ``length`` counts header and body. Never changed once decoded."""

    kind: RecordKind
    body_length: int
    count: int
    epoch: bytes
    segment: int
    entry: int
    time_ns: int
    chain: bytes

    @property
    def length(self) -> int:
        return RECORD_HEADER_BYTES + self.body_length

    @property
    def next_entry(self) -> int:
        """The number of the first entry after this record."""
        return self.entry + self.count if self.kind is RecordKind.BATCH else self.entry


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The header of a log file: whose it is, its place in the log, and the state of the log at its first record.

    ``sequence`` numbers the files of a VM's log from 1 without reuse; ``capacity`` is the file's size in bytes;
    ``epoch``, ``segment``, ``entry`` and ``chain`` are those before the first record.
    """

    vm: bytes
    sequence: int
    capacity: int
    epoch: bytes
    segment: int
    entry: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """The body of a seal: why, how many entries the segment has, and its bytes from segment record to here."""

    reason: SealReason
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Settled:
    """The body of a settled record: this range was compared, its differences are durable (R35); or of an unsettled."""

    disk: int
    offset: int
    length: int


def chain_seed(vm: bytes, epoch: bytes) -> bytes:
    """The chain before the first record of an epoch: xxh3-128 of VM UUID and epoch."""
    return xxhash.xxh3_128_digest(vm + epoch)


# --- encoding ------------------------------------------------------------------------------------------------------


def encode_record(
    kind: RecordKind,
    epoch: bytes,
    segment: int,
    entry: int,
    time_ns: int,
    chain: bytes,
    body: Sequence[Buffer],
    count: int = 0,
) -> tuple[bytes, bytes]:
    """The 80-byte header for ``body`` (pieces in order), and the chain after the record.

    The pieces are not copied: write header and pieces one after another.
    """
    body_length = sum(map(len, body))
    plain = _HEADER_PLAIN.pack(RECORD_MAGIC, kind, VERSION, 0, body_length, count, epoch, segment, entry, time_ns)
    checked = plain + _CHECK.pack(xxhash.xxh3_64_intdigest(plain))
    if kind is RecordKind.END_OF_FILE:
        return checked + chain, chain
    hasher = xxhash.xxh3_128(chain + checked)
    for piece in body:
        hasher.update(piece)
    after = hasher.digest()
    return checked + after, after


def encode_segment_body(disks: Iterable[Geometry]) -> bytes:
    """The body of a segment record: 32 bytes a disk (index u16, 0 u16, 0 u32, size u64, uuid 16)."""
    return b"".join(_SEGMENT_DISK.pack(disk.index, 0, 0, disk.size, disk.uuid) for disk in disks)


def encode_seal_body(seal: Seal) -> bytes:
    """The body of a seal: reason u8, 7 zero bytes, entries u64, bytes u64."""
    return _SEAL.pack(seal.reason, b"", seal.entries, seal.bytes)


def encode_settled_body(settled: Settled) -> bytes:
    """The body of a settled or unsettled record: disk u16, 6 zero bytes, offset u64, length u64."""
    return _SETTLED.pack(settled.disk, b"", settled.offset, settled.length)


def encode_file_header(header: FileHeader) -> bytes:
    """The 4096 bytes at the start of a log file; the last 16 are the xxh3-128 of the bytes before them."""
    plain = _FILE_HEADER.pack(
        FILE_MAGIC,
        VERSION,
        0,
        FILE_HEADER_BYTES,
        header.vm,
        header.sequence,
        header.capacity,
        header.epoch,
        header.segment,
        header.entry,
        header.chain,
    ).ljust(_FILE_CHECK_OFFSET, b"\0")
    return plain + xxhash.xxh3_128_digest(plain)


# --- decoding ------------------------------------------------------------------------------------------------------


def decode_file_header(data: Buffer) -> FileHeader:
    """Decode the first 4096 bytes of a log file. Raises LogError at offset 0 with what is wrong."""
    if len(data) < FILE_HEADER_BYTES:
        raise LogError(0, "short-header", f"the file has {len(data)} bytes, its header needs {FILE_HEADER_BYTES}")
    plain = bytes(data[:_FILE_CHECK_OFFSET])
    magic, version, flags, size, vm, sequence, capacity, epoch, segment, entry, chain = _FILE_HEADER.unpack_from(plain)
    if magic != FILE_MAGIC:
        raise LogError(0, "file-magic", f"not a log file: magic {magic!r}")
    if xxhash.xxh3_128_digest(plain) != bytes(data[_FILE_CHECK_OFFSET:FILE_HEADER_BYTES]):
        raise LogError(0, "file-checksum", "the file header's checksum is wrong")
    if version != VERSION or flags != 0 or size != FILE_HEADER_BYTES:
        raise LogError(0, "file-version", f"log file version {version} (flags {flags}); this program reads {VERSION}")
    return FileHeader(vm, sequence, capacity, epoch, segment, entry, chain)


def decode_record_header(data: Buffer, offset: int = 0, *, at: int = 0) -> RecordHeader:
    """Decode the header at ``data[offset:]``; ``at`` is where that lies in the file, for the error.

    Only the header is judged: magic, version, its own checksum, and that lengths and counts are within bounds.
    Raises LogError with reason ``end`` for an all-zero header, else with what is wrong.
    """
    if len(data) - offset < RECORD_HEADER_BYTES:
        raise LogError(at, "short", f"{len(data) - offset} bytes left, a record header has {RECORD_HEADER_BYTES}")
    magic, kind, version, flags, body, count, epoch, segment, entry, time_ns, check, chain = _HEADER.unpack_from(
        data, offset
    )
    if magic != RECORD_MAGIC:
        if data[offset : offset + RECORD_HEADER_BYTES] == _ZERO_HEADER:
            raise LogError(at, "end", "nothing was written from here on")
        raise LogError(at, "magic", f"no record starts here: magic {magic!r}")
    if xxhash.xxh3_64_intdigest(data[offset : offset + _HEADER_PLAIN.size]) != check:
        raise LogError(at, "header-checksum", "the record header's checksum is wrong")
    if version != VERSION or flags != 0:
        raise LogError(at, "version", f"record version {version}, flags {flags}; this program reads {VERSION}, 0")
    known = _RECORD_KINDS.get(kind)
    if known is None:
        raise LogError(at, "kind", f"unknown kind of record {kind}")
    if not _valid_lengths(known, body, count):
        raise LogError(at, "length", f"a {known.name} record with {count} items in {body} bytes is not valid")
    return RecordHeader(known, body, count, epoch, segment, entry, time_ns, chain)


def _valid_lengths(kind: RecordKind, body: int, count: int) -> bool:
    """Whether a writer can have made a record of these lengths: judged before anything is allocated for it."""
    match kind:
        case RecordKind.BATCH:
            table = count * ENTRY_BYTES
            return 0 < count <= MAX_ENTRIES and table <= body <= table + MAX_PAYLOAD and body % 8 == 0
        case RecordKind.SEGMENT:
            return 0 < count <= MAX_DISKS and body == count * SEGMENT_DISK_BYTES
        case RecordKind.SEAL:
            return count == 0 and body == SEAL_BODY_BYTES
        case RecordKind.SETTLED | RecordKind.UNSETTLED:
            return count == 0 and body == SETTLED_BODY_BYTES
        case RecordKind.UNDO_INDEX:
            return count > 0 and body == count * UNDO_INDEX_ENTRY_BYTES <= MAX_BODY
        case RecordKind.UNDO_END:
            return count == 0 and body == UNDO_END_BODY_BYTES
        case RecordKind.END_OF_FILE:
            return count == 0 and body == 0


def check_chain(header: RecordHeader, chain: bytes, record: Buffer, *, at: int = 0) -> bytes:
    """Verify that ``record`` (header and body) follows ``chain``; returns the chain after it. Raises LogError."""
    if header.kind is RecordKind.END_OF_FILE:
        if header.chain != chain:
            raise LogError(at, "chain", "the end-of-file record does not follow the record before it")
        return chain
    hasher = xxhash.xxh3_128(chain)
    view = memoryview(record)
    hasher.update(view[:_CHECKED_BYTES])
    hasher.update(view[RECORD_HEADER_BYTES : header.length])
    if hasher.digest() != header.chain:
        raise LogError(at, "chain", "the record does not follow the record before it, or its body is damaged")
    return header.chain


def decode_entries(header: RecordHeader, body: Buffer, sizes: dict[int, int], *, at: int = 0) -> NDArray[Any]:
    """The entry table of a batch as a numpy array of ENTRY_DTYPE (a view of ``body``), wholly validated.

    ``sizes`` maps disk index to bytes. Raises LogError for an unknown disk or kind, an empty range or one outside
    the disk, or payload lengths that don't add up to the body.
    """
    if len(body) < header.body_length:
        raise LogError(at, "entry-count", f"{len(body)} bytes of a batch whose body has {header.body_length}")
    return decode_table(body, header.count, header.body_length, sizes, at=at)


def decode_segment_body(header: RecordHeader, body: Buffer, *, at: int = 0) -> tuple[Geometry, ...]:
    """The disks of a segment record. Raises LogError for a repeated index or a size out of bounds."""
    disks: list[Geometry] = []
    for number in range(header.count):
        index, zero16, zero32, size, uuid = _SEGMENT_DISK.unpack_from(body, number * _SEGMENT_DISK.size)
        if zero16 or zero32 or not 0 < size <= MAX_DISK_BYTES or any(disk.index == index for disk in disks):
            raise LogError(at, "geometry", f"disk {index} of {size} bytes is not valid or repeated")
        disks.append(Geometry(index, size, uuid))
    return tuple(disks)


def decode_seal_body(body: Buffer, *, at: int = 0) -> Seal:
    """The body of a seal. Raises LogError for an unknown reason."""
    reason, zeroes, entries, size = _SEAL.unpack_from(body)
    known = _SEAL_REASONS.get(reason)
    if known is None or any(zeroes):
        raise LogError(at, "seal-reason", f"unknown reason of a seal: {reason}, then {zeroes.hex()}")
    return Seal(known, entries, size)


def decode_settled_body(body: Buffer, *, at: int = 0) -> Settled:
    """The body of a settled or unsettled record. Raises LogError for an empty range, or one that no disk can have."""
    disk, zeroes, offset, length = _SETTLED.unpack_from(body)
    if any(zeroes) or not 0 < length <= MAX_DISK_BYTES or offset > MAX_DISK_BYTES - length:
        raise LogError(at, "settled-range", f"a settled range of {length} bytes at {offset} of disk {disk}")
    return Settled(disk, offset, length)


__all__ = [
    "CHAIN_BYTES",
    "ENTRY_BYTES",
    "ENTRY_DTYPE",
    "EPOCH_BYTES",
    "FILE_HEADER_BYTES",
    "MAX_BODY",
    "MAX_DISKS",
    "MAX_DISK_BYTES",
    "MAX_ENTRIES",
    "MAX_PAYLOAD",
    "MAX_RECORD",
    "RECORD_HEADER_BYTES",
    "EntryKind",
    "FileHeader",
    "Geometry",
    "RecordHeader",
    "RecordKind",
    "Seal",
    "SealReason",
    "Settled",
    "chain_seed",
    "check_chain",
    "decode_entries",
    "decode_file_header",
    "decode_record_header",
    "decode_seal_body",
    "decode_segment_body",
    "decode_settled_body",
    "decode_table",
    "encode_entry",
    "encode_file_header",
    "encode_record",
    "encode_seal_body",
    "encode_segment_body",
    "encode_settled_body",
]
