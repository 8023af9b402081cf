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
    64     b    bitmap of ceil(count / 8) bytes: bit i % 8 of byte i / 8 is set where block i is wholly a hole
    64+b   16n  the tags of the n blocks that are not holes, in order

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
from protocol.frames import BLOCKS_HEADER_BYTES, MANIFEST_HEADER_BYTES, MAX_MANIFEST_BLOCKS
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
from protocol.messages import MessageType

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
    """A received LOG, SEAL, MANIFEST or BLOCKS. ``payload`` is as it came and belongs to the receiver."""

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

    ``holes`` is a numpy array of bool, one for each block; ``tags`` one of shape (blocks that are no holes, 16), u8.
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

    def by_block(self) -> NDArray[Any]:
        """The tags as shape (blocks, 2) of u64, zeroes for holes: two manifests compare column by column."""
        table = np.zeros((len(self.holes), 2), np.uint64)
        table[~self.holes] = self.tags.reshape(-1).view("<u8").reshape(-1, 2)
        return table


def block_count(length: int, block_size: int) -> int:
    """How many blocks a range of ``length`` bytes has; the last may be shorter."""
    return -(-length // block_size)


def encode_manifest(manifest: Manifest) -> list[Buffer]:
    """The payload of a MANIFEST, in pieces. Raises ValueError where tags and holes don't fit the range."""
    count = block_count(manifest.length, manifest.block_size)
    tags = np.ascontiguousarray(manifest.tags, np.uint8)
    if not 0 < count <= MAX_MANIFEST_BLOCKS or len(manifest.holes) != count:
        raise ValueError(f"a manifest of {count} blocks with {len(manifest.holes)} hole bits")
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
    return [header, np.packbits(manifest.holes, bitorder="little").tobytes(), tags.tobytes()]


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
    bitmap_bytes = -(-count // 8)
    tags_at = MANIFEST_HEADER_BYTES + bitmap_bytes
    if len(content) < tags_at:
        raise ProtocolError(f"MANIFEST of {len(content)} bytes; bitmap of holes and header have {tags_at}")
    bits = np.unpackbits(np.frombuffer(content, np.uint8, bitmap_bytes, MANIFEST_HEADER_BYTES), bitorder="little")
    if bits[count:].any():
        raise ProtocolError("MANIFEST with bits set behind the last block")
    holes = bits[:count].astype(bool)
    tags = np.frombuffer(content, np.uint8, offset=tags_at)
    expected = TAG_BYTES * (count - int(np.count_nonzero(holes)))
    if tags.size != expected:
        raise ProtocolError(f"MANIFEST with {tags.size} bytes of tags in place of {expected}")
    return Manifest(identity, key_id, number, disk, block_size, offset, length, holes, tags.reshape(-1, TAG_BYTES))


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
