"""The entries of a batch: 24 bytes for each write, judged and read as whole numpy tables.

An entry, integers little-endian::

    offset size field
    0      2    disk index
    2      1    kind: 1 data, 2 zero, 3 discard
    3      1    flags, 0
    4      4    payload bytes: the length for data, else 0
    8      8    offset on the disk, in bytes
    16     8    length in bytes
"""

from __future__ import annotations

import functools
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.errors import LogError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

ENTRY_BYTES = 24
MAX_ENTRIES = 4096
MAX_PAYLOAD = 1 << 20
MAX_DISK_BYTES = 64 << 40

_ENTRY = struct.Struct("<HBBIQQ")
assert _ENTRY.size == ENTRY_BYTES

ENTRY_DTYPE = np.dtype(
    [("disk", "<u2"), ("kind", "u1"), ("flags", "u1"), ("payload", "<u4"), ("offset", "<u8"), ("length", "<u8")]
)
assert ENTRY_DTYPE.itemsize == ENTRY_BYTES


class EntryKind(IntEnum):
    """Kinds of writes. The numbers never change and are never reused."""

    DATA = 1
    ZERO = 2
    DISCARD = 3


def encode_entry(disk: int, kind: EntryKind, offset: int, length: int) -> bytes:
    """One 24-byte entry: disk u16, kind u8, flags u8 (0), payload bytes u32, offset u64, length u64.

    ``payload`` is the length for data and 0 for zero and discard.
    """
    return _ENTRY.pack(disk, kind, 0, length if kind is EntryKind.DATA else 0, offset, length)


def decode_table(body: Buffer, count: int, length: int, sizes: dict[int, int], *, at: int = 0) -> NDArray[Any]:
    """``count`` entries that with their payloads have ``length`` bytes, as an array of ENTRY_DTYPE, wholly validated.

    ``body`` begins with the table, and the array is a view of it; the payloads are not looked at and need not be in
    it, so that the tables of several batches can be judged as one. ``sizes`` maps disk index to bytes. Raises
    LogError for an unknown disk or kind, an empty range or one outside the disk, or payload lengths that don't add up.
    """
    if length < count * ENTRY_BYTES or len(body) < count * ENTRY_BYTES:
        raise LogError(at, "entry-count", f"{count} entries and their payloads do not fit into {length} bytes")
    # Few operations on whole columns: a batch has few entries and there are many batches. Unsigned numbers wrap, so
    # that one comparison judges both bounds; disks that the VM does not have are given 0 bytes.
    words, offsets, lengths = np.frombuffer(body, "<u8", 3 * count).reshape(count, 3).T
    kinds = (words >> 16) & 0xFFFF
    payloads = words >> 32
    limits = _disk_limits(tuple(sizes.items()))
    limit = limits[np.minimum(words & 0xFFFF, len(limits) - 1)]
    wrong = kinds - 1 > 2
    wrong |= payloads != lengths * (kinds == EntryKind.DATA)
    wrong |= lengths - 1 >= limit
    wrong |= offsets > limit - lengths
    table: NDArray[Any] = np.frombuffer(body, ENTRY_DTYPE, count)
    if wrong.any():
        raise _explain_entry(table[wrong][0].tolist(), sizes, at)
    if int(payloads.sum()) != length - count * ENTRY_BYTES:
        raise LogError(at, "entry-count", "the entries' payloads do not add up to the record's body")
    return table


@functools.lru_cache(maxsize=64)
def _disk_limits(sizes: tuple[tuple[int, int], ...]) -> NDArray[Any]:
    """Disk sizes by index, and a 0 behind the last."""
    limits = np.zeros(2 + max((disk for disk, _size in sizes), default=-1), np.uint64)
    for disk, size in sizes:
        limits[disk] = size
    return limits


def _explain_entry(entry: tuple[int, int, int, int, int, int], sizes: dict[int, int], at: int) -> LogError:
    disk, kind, flags, payload, offset, length = entry
    if not EntryKind.DATA <= kind <= EntryKind.DISCARD or flags:
        return LogError(at, "entry-kind", f"an entry has the unknown kind {kind}, flags {flags}")
    if payload != (length if kind == EntryKind.DATA else 0):
        return LogError(at, "entry-payload", f"an entry of kind {kind} and {length} bytes has {payload} of payload")
    if disk not in sizes:
        return LogError(at, "entry-disk", f"an entry names disk {disk}, which the VM does not have")
    return LogError(
        at, "entry-range", f"an entry's range, {length} bytes at {offset}, lies outside disk {disk} of {sizes[disk]}"
    )
