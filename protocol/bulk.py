"""The bodies of bulk frames: log records, manifests and blocks, decoded as views of the received buffer.

Integers are little-endian; ``docs/protocol.md`` describes the layouts and has test vectors. A MANIFEST is::

    offset size field
    0      16   resync id
    16     16   key id: which key the tags were made with
    32     4    round
    36     2    disk
    38     2    0
    40     4    block size in bytes
    44     4    count of blocks, at most MAX_MANIFEST_BLOCKS
    48     8    offset of the range on the disk, in bytes
    56     8    length of the range; all blocks but the last have the block size
    64     g    bitmap of ceil(groups / 8) bytes: bit i % 8 of byte i / 8 is set where group i of GROUP_BLOCKS blocks
                has the digest that was sent with the request
    64+g   b    bitmap of ceil(count / 8) bytes: set where block i is wholly a hole, or in a group that is equal
    64+g+b 16n  the tags of the n other blocks, in order

A DETAIL has the same header, with the size of the smaller blocks in place of the block size and the count of tags in
place of the count of blocks, and then the tags of the smaller blocks of all blocks that were asked for, in order.

A BLOCKS frame is resync id (16 bytes), round (u32), count (u32), ``count`` entries as in a batch (data and zero only)
and their payloads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.chain import Cursor, follow_records
from protocol.compression import decompress
from protocol.errors import LogError, ProtocolError
from protocol.frames import BLOCKS_HEADER_BYTES, MANIFEST_HEADER_BYTES, MAX_DETAIL_TAGS, MAX_MANIFEST_BLOCKS
from protocol.hrl import (
    ENTRY_BYTES,
    MAX_DISK_BYTES,
    MAX_ENTRIES,
    MAX_PAYLOAD,
    EntryKind,
    RecordHeader,
    RecordKind,
    decode_table,
    encode_entry,
)
from protocol.messages import DETAIL_BYTES, GROUP_BLOCKS, MessageType

if TYPE_CHECKING:
    from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

TAG_BYTES = 16
MAX_BLOCK_BYTES = 16 << 20
_MANIFEST = struct.Struct("<16s16sIHHIIQQ")
_BLOCKS = struct.Struct("<16sII")
assert _MANIFEST.size == MANIFEST_HEADER_BYTES
assert _BLOCKS.size == BLOCKS_HEADER_BYTES

_LOG_KINDS = frozenset({RecordKind.SEGMENT, RecordKind.BATCH})
_SEAL_KINDS = frozenset({RecordKind.SEAL})


@dataclass(slots=True)
class Bulk:
    """A received LOG, SEAL, MANIFEST, DETAIL or BLOCKS. ``payload`` is as it came and belongs to the receiver."""

    type: MessageType
    payload: Buffer
    compressed: bool
    raw_length: int

    def content(self) -> Buffer:
        """The raw bytes. Decompresses where needed (1 ms per MiB: call it in a worker). Raises ProtocolError."""
        return decompress(self.payload, self.raw_length) if self.compressed else self.payload


# --- log -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One verified record of a LOG or SEAL frame; ``record`` is header and body, a view of the frame."""

    header: RecordHeader
    record: memoryview


def decode_log(kind: MessageType, content: Buffer, cursor: Cursor) -> list[LogRecord]:
    """The records of a LOG or SEAL frame, verified to follow ``cursor``, which then stands after them.

    LOG holds whole segment and batch records, SEAL exactly one seal. Entries are not looked at: see
    :func:`protocol.hrl.decode_entries`. Raises ProtocolError (code ``chain`` where a sound record is not the next
    one), and leaves the cursor as it was: a frame is followed wholly or not at all.
    """
    allowed = _SEAL_KINDS if kind is MessageType.SEAL else _LOG_KINDS
    step = cursor.copy()
    records: list[LogRecord] = []
    try:
        for _offset, header, record in follow_records(step, memoryview(content)):
            if header.kind not in allowed or (kind is MessageType.SEAL and records):
                raise ProtocolError(f"{kind.name} frame with a {header.kind.name} record")
            records.append(LogRecord(header, record))
    except LogError as error:
        code = {"segment": "gap", "entry": "gap", "chain": "chain", "epoch": "chain"}.get(error.reason, "protocol")
        raise ProtocolError(f"{kind.name} frame, {error}", code=code) from None
    if not records:
        raise ProtocolError(f"{kind.name} frame without a record")
    cursor.segment, cursor.entry, cursor.chain, cursor.inside = step.segment, step.entry, step.chain, step.inside
    return records


# --- manifests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tags of a range's blocks.

    ``equal`` is a numpy array of bool, one for each group: its tags' digest is the one that was sent; ``holes`` one for
    each block: it has no tag, because it is a hole or in such a group; ``tags`` has the shape (other blocks, 16), u8.
    """

    id: bytes
    key_id: bytes
    round: int
    disk: int
    block_size: int
    offset: int
    length: int
    holes: NDArray[Any]
    tags: NDArray[Any]
    equal: NDArray[Any]

    def equal_blocks(self) -> NDArray[Any]:
        """Which blocks are in groups that are equal, as bool."""
        return np.repeat(self.equal, GROUP_BLOCKS)[: len(self.holes)]

    def by_block(self) -> NDArray[Any]:
        """The tags as shape (blocks, 2) of u64, zeroes where there is none: two manifests compare column by column."""
        table = np.zeros((len(self.holes), 2), np.uint64)
        table[~self.holes] = self.tags.reshape(-1).view("<u8").reshape(-1, 2)
        return table


def block_count(length: int, block_size: int) -> int:
    """How many blocks a range of ``length`` bytes has; the last may be shorter."""
    return -(-length // block_size)


def group_count(blocks: int) -> int:
    """How many groups so many blocks have; the last may have fewer."""
    return -(-blocks // GROUP_BLOCKS)


def _pack(flags: NDArray[Any]) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()


def unpack_flags(bitmap: Buffer, count: int, what: str) -> NDArray[Any]:
    """The first ``count`` bits of a bitmap as bool; those behind must be 0. Raises ProtocolError."""
    if len(bitmap) != -(-count // 8):
        raise ProtocolError(f"{what} with a bitmap of {len(bitmap)} bytes for {count} bits")
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    if bits[count:].any():
        raise ProtocolError(f"{what} with bits set behind the last one")
    return bits[:count].astype(bool)


def encode_manifest(manifest: Manifest) -> list[Buffer]:
    """The payload of a MANIFEST, in pieces. Raises ValueError where tags and holes don't fit the range."""
    count = block_count(manifest.length, manifest.block_size)
    tags = np.ascontiguousarray(manifest.tags, np.uint8)
    if not 0 < count <= MAX_MANIFEST_BLOCKS or len(manifest.holes) != count:
        raise ValueError(f"a manifest of {count} blocks with {len(manifest.holes)} hole bits")
    if len(manifest.equal) != group_count(count) or (manifest.equal_blocks() & ~manifest.holes).any():
        raise ValueError(f"a manifest of {count} blocks with tags in groups that are equal")
    if tags.size != TAG_BYTES * (count - int(np.count_nonzero(manifest.holes))):
        raise ValueError(f"a manifest of {count} blocks with {tags.size} bytes of tags")
    header = _MANIFEST.pack(
        manifest.id,
        manifest.key_id,
        manifest.round,
        manifest.disk,
        0,
        manifest.block_size,
        count,
        manifest.offset,
        manifest.length,
    )
    return [header, _pack(manifest.equal), _pack(manifest.holes), tags.tobytes()]


def decode_manifest(content: Buffer) -> Manifest:
    """Decode a MANIFEST's payload; tags are a view of it. Raises ProtocolError naming the field."""
    if len(content) < MANIFEST_HEADER_BYTES:
        raise ProtocolError(f"MANIFEST of {len(content)} bytes; its header has {MANIFEST_HEADER_BYTES}")
    identity, key_id, number, disk, zero, block_size, count, offset, length = _MANIFEST.unpack_from(content)
    if zero:
        raise ProtocolError(f"MANIFEST with {zero} in the reserved field at byte 38")
    if not 0 < block_size <= MAX_BLOCK_BYTES or not 0 < count <= MAX_MANIFEST_BLOCKS:
        raise ProtocolError(f"MANIFEST of {count} blocks of {block_size} bytes is out of bounds")
    if length > MAX_DISK_BYTES or offset > MAX_DISK_BYTES - length or block_count(length, block_size) != count:
        raise ProtocolError(f"MANIFEST of {count} blocks of {block_size} for {length} bytes at {offset}")
    holes_at = MANIFEST_HEADER_BYTES + -(-group_count(count) // 8)
    tags_at = holes_at + -(-count // 8)
    if len(content) < tags_at:
        raise ProtocolError(f"MANIFEST of {len(content)} bytes; header and bitmaps have {tags_at}")
    view = memoryview(content)
    equal = unpack_flags(view[MANIFEST_HEADER_BYTES:holes_at], group_count(count), "MANIFEST")
    holes = unpack_flags(view[holes_at:tags_at], count, "MANIFEST")
    if (np.repeat(equal, GROUP_BLOCKS)[:count] & ~holes).any():
        raise ProtocolError("MANIFEST with tags in a group that is equal")
    tags = np.frombuffer(content, np.uint8, offset=tags_at)
    expected = TAG_BYTES * (count - int(np.count_nonzero(holes)))
    if tags.size != expected:
        raise ProtocolError(f"MANIFEST with {tags.size} bytes of tags in place of {expected}")
    rows = tags.reshape(-1, TAG_BYTES)
    return Manifest(identity, key_id, number, disk, block_size, offset, length, holes, rows, equal)


@dataclass(frozen=True, slots=True)
class Detail:
    """The tags of the smaller blocks in the blocks of a range that were asked for; ``tags`` has the shape (n, 16)."""

    id: bytes
    key_id: bytes
    round: int
    disk: int
    offset: int
    length: int
    tags: NDArray[Any]


def encode_detail(detail: Detail) -> list[Buffer]:
    """The payload of a DETAIL, in pieces. Raises ValueError where there are too few or too many tags."""
    tags = np.ascontiguousarray(detail.tags, np.uint8)
    if not 0 < len(tags) <= MAX_DETAIL_TAGS or tags.shape != (len(tags), TAG_BYTES):
        raise ValueError(f"a detail of {len(tags)} tags; 1 to {MAX_DETAIL_TAGS} are allowed")
    header = _MANIFEST.pack(
        detail.id,
        detail.key_id,
        detail.round,
        detail.disk,
        0,
        DETAIL_BYTES,
        len(tags),
        detail.offset,
        detail.length,
    )
    return [header, tags.tobytes()]


def decode_detail(content: Buffer) -> Detail:
    """Decode a DETAIL's payload; tags are a view of it. Raises ProtocolError naming the field."""
    if len(content) < MANIFEST_HEADER_BYTES:
        raise ProtocolError(f"DETAIL of {len(content)} bytes; its header has {MANIFEST_HEADER_BYTES}")
    identity, key_id, number, disk, zero, size, count, offset, length = _MANIFEST.unpack_from(content)
    if zero or size != DETAIL_BYTES:
        raise ProtocolError(f"DETAIL with blocks of {size} bytes and {zero} in the reserved field at byte 38")
    if length > MAX_DISK_BYTES or offset > MAX_DISK_BYTES - length or not 0 < count <= MAX_DETAIL_TAGS:
        raise ProtocolError(f"DETAIL of {count} tags for {length} bytes at {offset} is out of bounds")
    if len(content) != MANIFEST_HEADER_BYTES + TAG_BYTES * count:
        raise ProtocolError(f"DETAIL of {len(content)} bytes with {count} tags")
    tags = np.frombuffer(content, np.uint8, offset=MANIFEST_HEADER_BYTES).reshape(-1, TAG_BYTES)
    return Detail(identity, key_id, number, disk, offset, length, tags)


# --- blocks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blocks:
    """Differing blocks. ``table`` has ENTRY_DTYPE; ``payload`` holds the data entries' bytes in order."""

    id: bytes
    round: int
    table: NDArray[Any]
    payload: memoryview


def encode_blocks(identity: bytes, number: int, entries: Sequence[bytes], payloads: Iterable[Buffer]) -> list[Buffer]:
    """The payload of a BLOCKS, in pieces: ``entries`` as made by :func:`encode_blocks_entry`, payloads in order."""
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise ValueError(f"a BLOCKS frame of {len(entries)} entries; 1 to {MAX_ENTRIES} are allowed")
    return [_BLOCKS.pack(identity, number, len(entries)), b"".join(entries), *payloads]


def encode_blocks_entry(disk: int, offset: int, length: int, *, zero: bool) -> bytes:
    """One entry of a BLOCKS: ``zero`` means that the range reads as zeroes and has no payload."""
    return encode_entry(disk, EntryKind.ZERO if zero else EntryKind.DATA, offset, length)


def decode_blocks(content: Buffer, sizes: dict[int, int]) -> Blocks:
    """Decode a BLOCKS' payload, wholly validated against the disks' ``sizes``. Raises ProtocolError."""
    view = memoryview(content)
    if len(view) < BLOCKS_HEADER_BYTES:
        raise ProtocolError(f"BLOCKS of {len(view)} bytes; its header has {BLOCKS_HEADER_BYTES}")
    identity, number, count = _BLOCKS.unpack_from(view)
    body = view[BLOCKS_HEADER_BYTES:]
    data_bytes = len(body) - count * ENTRY_BYTES
    if not 0 < count <= MAX_ENTRIES or not 0 <= data_bytes <= MAX_PAYLOAD:
        raise ProtocolError(f"BLOCKS of {count} entries in {len(body)} bytes is out of bounds")
    try:
        table = decode_table(body, count, len(body), sizes)
    except LogError as error:
        raise ProtocolError(f"BLOCKS: {error.text}") from None
    if (table["kind"] == EntryKind.DISCARD).any():
        raise ProtocolError("BLOCKS with a discard; only data and zeroes are sent as blocks")
    return Blocks(identity, number, table, body[count * ENTRY_BYTES :])
