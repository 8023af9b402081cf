"""Fingerprints of disk images for a verify: SHA-256 of every block, of groups of blocks, and of a whole image.

Nothing is keyed, so that both sides come to the same digest of an image, and an administrator to the same as they. An
image's digest is the SHA-256 of the SHA-256 digests (the leaves) of its blocks of 64 KiB in order; the last block may
be shorter. A hole has the leaf of the zeroes that it reads as.
"""

from __future__ import annotations

import errno
import functools
import hashlib
from collections.abc import Iterable
from typing import Protocol

from shared.ports import Extent

LEAF_HASH = "sha-256"
LEAF_BYTES = 32
UNREADABLE = b"\xff" * LEAF_BYTES
"""In place of the leaf of a block that can't be read: no block has it, and it never counts as equal (R24)."""
READ_BYTES = 1 << 20

Block = bytes | bytearray | memoryview


class Readable(Protocol):
    """A disk, or a disk as of a recovery point. Both methods block and raise OSError."""

    def read(self, offset: int, length: int) -> bytes: ...

    def extents(self, offset: int, length: int) -> Iterable[Extent]: ...


def leaf(block: Block) -> bytes:
    """The leaf of one block."""
    return hashlib.sha256(block).digest()


@functools.lru_cache(maxsize=128)
def zero_leaf(size: int) -> bytes:
    """The leaf of a block of so many zeroes."""
    return leaf(bytes(size))


def leaves_of(source: Readable, offset: int, length: int, size: int) -> tuple[bytearray, int]:
    """The leaves of a range's blocks of ``size`` bytes, in order, and the bytes of it that are data.

    Blocks. What lies wholly in a hole is not read; what can't be read is UNREADABLE.
    """
    count = -(-length // size)
    rest = length % size
    leaves = bytearray(zero_leaf(size) * count)
    if rest:
        leaves[-LEAF_BYTES:] = zero_leaf(rest)
    data, step = 0, max(READ_BYTES // size, 1) * size
    for start, stop in _data_blocks(source, offset, length, size):
        data += stop - start
        for at in range(start, stop, step):
            place = (at - offset) // size * LEAF_BYTES
            found = _read_leaves(source, at, min(step, stop - at), size)
            leaves[place : place + len(found)] = found
    return leaves, data


def _data_blocks(source: Readable, offset: int, length: int, size: int) -> list[tuple[int, int]]:
    """Start and end of the runs of whole blocks that have data, in order and apart."""
    runs: list[list[int]] = []
    end = offset + length
    try:
        for extent in source.extents(offset, length):
            if extent.hole:
                continue
            start = offset + (extent.offset - offset) // size * size
            stop = min(offset + -(-(extent.offset + extent.length - offset) // size) * size, end)
            if runs and start <= runs[-1][1]:
                runs[-1][1] = max(stop, runs[-1][1])
            else:
                runs.append([start, stop])
    except OSError:
        # Reading it tells what can't be read.
        return [(offset, end)]
    return [(start, stop) for start, stop in runs]


def _read_leaves(source: Readable, offset: int, length: int, size: int) -> bytes:
    try:
        view = memoryview(read_exactly(source, offset, length))
    except OSError:
        if length <= size:
            return UNREADABLE
        parts = range(offset, offset + length, size)
        return b"".join(_read_leaves(source, at, min(size, offset + length - at), size) for at in parts)
    return b"".join(leaf(view[at : at + size]) for at in range(0, length, size))


def read_exactly(source: Readable, offset: int, length: int) -> bytes:
    """The range. Blocks. Raises OSError, also where it ends early."""
    data = source.read(offset, length)
    if len(data) != length:
        raise OSError(errno.EIO, "the file ends before the disk does")
    return data


def group_digests(leaves: Block, group: int) -> bytes:
    """The digests, LEAF_BYTES each, of every ``group`` leaves."""
    view, step = memoryview(leaves), group * LEAF_BYTES
    return b"".join(leaf(view[at : at + step]) for at in range(0, len(view), step))


class ImageDigest:
    """The digest of an image of ``size`` bytes, from leaves that come in order. None where it is not whole."""

    def __init__(self, size: int, block_size: int) -> None:
        self._left = -(-size // block_size)
        self._sum = hashlib.sha256()
        self._sound = True

    def add(self, leaves: Block) -> None:
        """The next leaves."""
        self._left -= len(leaves) // LEAF_BYTES
        self._sound = self._sound and not has_unreadable(leaves)
        self._sum.update(leaves)

    def digest(self) -> bytes | None:
        """None where leaves are missing, or a block could not be read."""
        return self._sum.digest() if self._left == 0 and self._sound else None


def has_unreadable(leaves: Block) -> bool:
    """Whether a block of these could not be read."""
    data = bytes(leaves)
    at = data.find(UNREADABLE)
    while at >= 0 and at % LEAF_BYTES:
        at = data.find(UNREADABLE, at + 1)
    return at >= 0
