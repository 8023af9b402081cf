"""Copies ranges of a disk into a file with holes, and tells what was copied by its SHA-256."""

from __future__ import annotations

import errno
import hashlib

from shared.ports import Extent, File

STEP_BYTES = 1 << 20
"""So much is read at a time; one that is wholly zeroes becomes a hole."""
_ZEROES = bytes(STEP_BYTES)


def data_extents(source: File, offset: int, length: int) -> list[Extent]:
    """What of the range is data, in order. Blocks. Raises OSError."""
    return [extent for extent in source.extents(offset, length) if not extent.hole]


def data_bytes(source: File, offset: int, length: int) -> int:
    """How many bytes of the range are data. Blocks. Raises OSError."""
    return sum(extent.length for extent in data_extents(source, offset, length))


def copy_range(source: File, target: File, offset: int, length: int) -> str:
    """Copy a range to the same place; holes, and what reads as zeroes, are holes of ``target`` afterwards.

    Returns the SHA-256 of what the range of ``target`` reads as now, in hex; empty where all of it is zeroes. What is
    written to the source meanwhile is there or is not. Blocks. Raises OSError.
    """
    target.punch_hole(offset, length)
    found = hashlib.sha256()
    hashed = 0
    empty = True
    for extent in data_extents(source, offset, length):
        end = extent.offset + extent.length
        for at in range(extent.offset, end, STEP_BYTES):
            size = min(STEP_BYTES, end - at)
            data = source.read(at, size)
            if len(data) != size:
                raise OSError(errno.EIO, f"the file ends before {at + size}", source.path)
            if data == _ZEROES[:size]:
                continue
            _add_zeroes(found, at - offset - hashed)
            target.write(at, data)
            found.update(data)
            hashed, empty = at - offset + size, False
    if empty:
        return ""
    _add_zeroes(found, length - hashed)
    return found.hexdigest()


def _add_zeroes(found: hashlib._Hash, count: int) -> None:
    while count > 0:
        found.update(_ZEROES[: min(count, STEP_BYTES)])
        count -= STEP_BYTES
