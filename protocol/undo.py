"""An undo log's bytes: the old content of what one apply overwrote, sorted, with an index to find it by.

An undo log leads from a newer cut back to an older one. It is a 4096-byte file header (of :mod:`protocol.hrl`; its
``epoch``, ``segment``, ``entry`` and ``chain`` are the older cut, ``sequence`` and ``capacity`` 0), then batch records,
index records and one end record, all of epoch = the older cut's, segment 0, numbered by entries from 0, in one chain
from ``undo_seed``. The entries are sorted by disk and offset and do not overlap; a batch has entries of one disk only.
Data entries hold what was there; zero entries say that there was a hole.

An index record has 48 bytes for each batch, in order::

    offset size field
    0      2    disk
    2      6    0
    8      8    offset of the first byte on the disk that the batch holds
    16     8    the end of the last range of the batch, exclusive
    24     8    where the batch's record begins in the file
    32     16   the chain before the batch: with it a batch can be verified by itself

The end record is the last of the file, so it is found from the file's length. Its body::

    0      16   epoch of the newer cut
    16     8    its segment
    24     8    its entry
    32     16   its chain
    48     8    when the older cut was sealed, nanoseconds since the Unix epoch; 0 if that is not known
    56     8    when the newer cut was sealed
    64     8    entries
    72     8    payload bytes
    80     8    batches
    88     8    where the first index record begins in the file
    96     8    0
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from protocol.errors import LogError
from protocol.hrl import (
    FILE_HEADER_BYTES,
    MAX_BODY,
    RECORD_HEADER_BYTES,
    UNDO_END_BODY_BYTES,
    UNDO_INDEX_ENTRY_BYTES,
    Buffer,
)
from protocol.position import Position

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POSITION = struct.Struct("<16sQQ16s")
_END = struct.Struct("<16sQQ16sQQQQQQQ")
assert _END.size == UNDO_END_BODY_BYTES

END_RECORD_BYTES = RECORD_HEADER_BYTES + UNDO_END_BODY_BYTES
MAX_INDEX_ENTRIES = MAX_BODY // UNDO_INDEX_ENTRY_BYTES
"""Batches that one index record names."""

INDEX_DTYPE = np.dtype(
    [
        ("disk", "<u2"),
        ("zero", "V6"),
        ("first", "<u8"),
        ("end", "<u8"),
        ("at", "<u8"),
        ("chain", "V16"),
    ]
)
assert INDEX_DTYPE.itemsize == UNDO_INDEX_ENTRY_BYTES
_INDEX = struct.Struct("<H6sQQQ16s")


@dataclass(frozen=True, slots=True)
class UndoEnd:
    """The body of an end record. Times in nanoseconds since the Unix epoch, 0 where not known."""

    newer: Position
    older_time_ns: int
    newer_time_ns: int
    entries: int
    payload_bytes: int
    batches: int
    index_at: int


def undo_seed(vm: bytes, older: Position, newer: Position) -> bytes:
    """The chain before the first record of the undo log from ``newer`` back to ``older``."""
    return xxhash.xxh3_128_digest(b"undo" + vm + _POSITION.pack(*older) + _POSITION.pack(*newer))


def encode_index_entry(disk: int, first: int, end: int, at: int, chain: bytes) -> bytes:
    """One 48-byte entry of an index record."""
    return _INDEX.pack(disk, b"", first, end, at, chain)


def decode_index(body: Buffer, count: int, sizes: dict[int, int], index_at: int, *, at: int = 0) -> NDArray[Any]:
    """The entries of an index record as an array of INDEX_DTYPE.

    ``sizes`` maps disk index to bytes; ``index_at`` is where the file's first index record begins. Raises LogError
    with reason ``undo-index`` for a disk that the VM does not have, a range outside it, or a batch outside the file.
    """
    table: NDArray[Any] = np.frombuffer(body, INDEX_DTYPE, count)
    for disk in np.unique(table["disk"]).tolist():
        if disk not in sizes:
            raise LogError(at, "undo-index", f"the index names disk {disk}, which the VM does not have")
        rows = table[table["disk"] == disk]
        if (rows["first"] >= rows["end"]).any() or (rows["end"] > np.uint64(sizes[disk])).any():
            raise LogError(at, "undo-index", f"the index names a range outside disk {disk}")
    if (table["at"] < FILE_HEADER_BYTES).any() or (table["at"] >= np.uint64(index_at)).any():
        raise LogError(at, "undo-index", "the index names a batch outside the file")
    return table


def encode_end_body(end: UndoEnd) -> bytes:
    """The 104-byte body of an end record."""
    return _END.pack(
        *end.newer,
        end.older_time_ns,
        end.newer_time_ns,
        end.entries,
        end.payload_bytes,
        end.batches,
        end.index_at,
        0,
    )


def decode_end_body(body: Buffer, *, at: int = 0) -> UndoEnd:
    """The body of an end record. Raises LogError with reason ``undo-end`` where it can't be one."""
    epoch, segment, entry, chain, older_ns, newer_ns, entries, payload, batches, index_at, zero = _END.unpack_from(body)
    if zero or not FILE_HEADER_BYTES <= index_at <= at or batches > entries:
        raise LogError(at, "undo-end", f"{batches} batches of {entries} entries, index at {index_at}, then {zero}")
    return UndoEnd(Position(epoch, segment, entry, chain), older_ns, newer_ns, entries, payload, batches, index_at)
